//! What a disk may hold when the power fails.
//!
//! Of each file all that was flushed is there. Of what was done to it since, the kernel has written some pages, each as it was at
//! some moment, in any order; and its length is that of some moment. Of each directory all changes up to its last flush are there,
//! and of those since the first few, as a file system's journal keeps them in order. A file's flush does not bring its name.

use crate::trace::{Event, Node, TOP};
use crate::workload::Random;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// What is written as a whole.
const PAGE: usize = 4096;

/// Which of what was not flushed has reached the disk.
#[derive(Clone, Debug)]
pub(crate) enum Unflushed {
    All,
    Nothing,
    Some(Random),
}

/// Bytes as they are on the disk. What is behind `bytes`, up to `size`, are zeros.
#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    size: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Truncate { size: u64 },
    Punch { offset: u64, length: u64 },
}

/// The names of a directory.
type Names = BTreeMap<String, Node>;

#[derive(Clone, Debug)]
enum Naming {
    Make { name: String, node: Node },
    Remove { name: String },
    Rename { from: String, to: String },
}

#[derive(Clone, Debug, Default)]
struct Entity {
    is_directory: bool,
    content: Content,
    names: Names,
    /// What was done and not flushed, and in which event.
    changes: Vec<(usize, Change)>,
    namings: Vec<(usize, Naming)>,
}

/// A disk, as the events have left it.
#[derive(Debug)]
pub(crate) struct Disk {
    entities: Vec<Entity>,
}

impl Disk {
    /// An empty directory.
    pub(crate) fn new() -> Disk {
        Disk { entities: vec![Entity { is_directory: true, ..Entity::default() }] }
    }

    /// Event number `at` happens. False: it is none of the disk's.
    pub(crate) fn happen(&mut self, at: usize, event: &Event) -> bool {
        match event.clone() {
            Event::Make { directory, name, node, is_directory } => {
                assert_eq!(node, self.entities.len());
                self.entities.push(Entity { is_directory, ..Entity::default() });
                self.entities[directory].namings.push((at, Naming::Make { name, node }));
            }
            Event::Remove { directory, name } => {
                self.entities[directory].namings.push((at, Naming::Remove { name }));
            }
            Event::Rename { directory, from, to } => {
                self.entities[directory].namings.push((at, Naming::Rename { from, to }));
            }
            Event::Write { node, offset, data } => {
                self.entities[node].changes.push((at, Change::Write { offset, data }));
            }
            Event::Truncate { node, size } => {
                self.entities[node].changes.push((at, Change::Truncate { size }));
            }
            Event::Punch { node, offset, length } => {
                self.entities[node].changes.push((at, Change::Punch { offset, length }));
            }
            Event::Flushed { node, since } => self.entities[node].flush(since),
            Event::Begin { .. } | Event::Synced { .. } => return false,
        }
        true
    }

    /// Makes `place` what the disk holds when the power fails now.
    pub(crate) fn fail(&self, unflushed: &Unflushed, place: &Path) {
        std::fs::create_dir(place).unwrap();
        self.write_directory(TOP, &mut unflushed.clone(), place);
    }

    fn write_directory(&self, node: Node, unflushed: &mut Unflushed, place: &Path) {
        for (name, node) in self.entities[node].surviving_names(unflushed) {
            let path = place.join(name);
            if self.entities[node].is_directory {
                std::fs::create_dir(&path).unwrap();
                self.write_directory(node, unflushed, &path);
            } else {
                let content = self.entities[node].surviving_content(unflushed);
                let file = File::create_new(&path).unwrap();
                file.write_all_at(&content.bytes, 0).unwrap();
                file.set_len(content.size).unwrap();
            }
        }
    }
}

impl Entity {
    fn flush(&mut self, since: usize) {
        let is_before = |at: &usize| *at < since;
        let flushed = self.changes.iter().take_while(|(at, _)| is_before(at)).count();
        for (_, change) in self.changes.drain(..flushed) {
            self.content.apply(&change);
        }
        let flushed = self.namings.iter().take_while(|(at, _)| is_before(at)).count();
        for (_, naming) in self.namings.drain(..flushed) {
            rename(&mut self.names, naming);
        }
    }

    fn surviving_names(&self, unflushed: &mut Unflushed) -> Names {
        let count = match unflushed {
            Unflushed::All => self.namings.len(),
            Unflushed::Nothing => 0,
            Unflushed::Some(random) => {
                usize::try_from(random.below(self.namings.len() as u64 + 1)).unwrap()
            }
        };
        let mut names = self.names.clone();
        for (_, naming) in &self.namings[..count] {
            rename(&mut names, naming.clone());
        }
        names
    }

    fn surviving_content(&self, unflushed: &mut Unflushed) -> Content {
        let mut content = self.content.clone();
        match unflushed {
            Unflushed::All => self.changes.iter().for_each(|(_, change)| content.apply(change)),
            Unflushed::Nothing => {}
            Unflushed::Some(random) if !self.changes.is_empty() => {
                content.apply_some(&self.changes, random);
            }
            Unflushed::Some(_) => {}
        }
        content
    }
}

fn rename(names: &mut Names, naming: Naming) {
    match naming {
        Naming::Make { name, node } => drop(names.insert(name, node)),
        Naming::Remove { name } => drop(names.remove(&name)),
        Naming::Rename { from, to } => {
            let node = names.remove(&from).unwrap();
            names.insert(to, node);
        }
    }
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match *change {
            Change::Write { offset, ref data } => self.write(offset, data),
            Change::Truncate { size } => {
                self.size = size;
                self.bytes.truncate(usize::try_from(size).unwrap());
            }
            Change::Punch { offset, length } => {
                let end = usize::try_from(offset + length).unwrap().min(self.bytes.len());
                let start = usize::try_from(offset).unwrap().min(end);
                self.bytes[start..end].fill(0);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap();
        let end = start + data.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(data);
        self.size = self.size.max(end as u64);
    }

    /// Some pages have reached the disk, each with the changes up to some moment, and the length of some moment.
    fn apply_some(&mut self, changes: &[(usize, Change)], random: &mut Random) {
        let count = changes.len() as u64;
        let moments = count + 1;
        let sized = random.below(moments);
        // A page that was cut off with that length does not come back.
        let mut floors = Vec::new();
        let (mut size, mut reached) = (self.size, self.size);
        for (at, (_, change)) in (1..).zip(changes) {
            match *change {
                Change::Write { offset, ref data } => size = size.max(offset + data.len() as u64),
                Change::Truncate { size: to } => {
                    size = to;
                    if at <= sized {
                        floors.push((to, at));
                    }
                }
                Change::Punch { .. } => {}
            }
            if at == sized {
                reached = size;
            }
        }
        let seed = random.next();
        let moment_of = |page: usize| {
            let end = ((page + 1) * PAGE) as u64;
            let floor = floors.iter().rev().find(|(to, _)| *to < end).map_or(0, |(_, at)| *at);
            floor + Random(seed ^ page as u64).below(moments - floor)
        };
        for (at, (_, change)) in (1..).zip(changes) {
            let is_written = |page: usize| at <= moment_of(page);
            match *change {
                Change::Write { offset, ref data } => {
                    let start = usize::try_from(offset).unwrap();
                    self.each_page(start, start + data.len(), is_written, |place, from| {
                        place.copy_from_slice(&data[from - start..][..place.len()]);
                    });
                }
                Change::Truncate { size } => {
                    let start = usize::try_from(size).unwrap().min(self.bytes.len());
                    self.each_page(start, self.bytes.len(), is_written, |place, _| place.fill(0));
                }
                Change::Punch { offset, length } => {
                    let end = usize::try_from(offset + length).unwrap().min(self.bytes.len());
                    let start = usize::try_from(offset).unwrap().min(end);
                    self.each_page(start, end, is_written, |place, _| place.fill(0));
                }
            }
        }
        self.size = reached;
        self.bytes.truncate(usize::try_from(reached).unwrap());
    }

    /// Calls `change` with each page's part of `start..end`, and where that begins, if the page `is_written`.
    fn each_page(
        &mut self,
        start: usize,
        end: usize,
        is_written: impl Fn(usize) -> bool,
        change: impl Fn(&mut [u8], usize),
    ) {
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let mut from = start;
        while from < end {
            let to = ((from / PAGE + 1) * PAGE).min(end);
            if is_written(from / PAGE) {
                change(&mut self.bytes[from..to], from);
            }
            from = to;
        }
    }
}
