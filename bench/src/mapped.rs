//! Two processes that take turns in a file that both have mapped.
#![expect(unsafe_code, reason = "maps a file that two processes share")]

use crate::place::Place;
use crate::report::{Group, Report};
use crate::rounds::{Subject, medians};
use crate::system::System;
use crate::worker::SENDREC;
use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// Turns in a file: `SIDE PAGES FILE` follow. Side 0 begins; the words of both are in one page, or two.
pub(crate) const TURNS: &str = "turns ";

const PAGE: usize = 4096;
/// Behind this many turns of nothing the other side is taken to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Rows of turns between processes of one node, and of two.
pub(crate) fn rows(system: Option<&System>, rounds: usize, report: &Report) -> Result<()> {
    if !report.wants(Group::Files) {
        return Ok(());
    }
    let native = [Place::native("one", "/dev/shm")?, Place::native("other", "/dev/shm")?];
    let mut pairs = vec![("tmpfs", "/dev/shm", [&native[0], &native[1]])];
    let workers = match system {
        Some(system) => {
            let home = [system.worker("one", "n1")?, system.worker("other", "n1")?];
            Some((home, system.worker("/dvs", "n2")?))
        }
        None => None,
    };
    if let Some((home, other)) = &workers {
        pairs.push(("/dvs, one node", "/dvs", [&home[0], &home[1]]));
        pairs.push(("/dvs, two nodes", "/dvs", [&home[0], other]));
    }
    for pages in [1, 2] {
        let mut subjects: Vec<Box<dyn Subject + '_>> = Vec::new();
        for (number, (name, folder, places)) in pairs.iter().enumerate() {
            let file = format!("turns-{}-{number}-{pages}", std::process::id());
            let file = Path::new(folder).join(file);
            let where_ = if pages == 1 { "one page" } else { "two pages" };
            let name = format!("turns in {where_} of a file on {name}");
            subjects.push(Box::new(Turns { name, places: *places, file, pages }));
        }
        if let Some((_, other)) = &workers {
            subjects.push(other.subject("sendrec, two nodes", SENDREC));
        }
        let times = medians(&mut subjects, rounds)?;
        let (baselines, ours): (Vec<_>, Vec<_>) =
            times.into_iter().partition(|time| !time.name.contains("/dvs"));
        report.beside(&ours, &baselines);
    }
    Ok(())
}

/// Two workers and their file.
struct Turns<'a> {
    name: String,
    places: [&'a Place; 2],
    file: PathBuf,
    pages: usize,
}

impl Subject for Turns<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        let operation =
            |side: usize| format!("{TURNS}{side} {} {}", self.pages, self.file.display());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| self.places[1].perform(count, &operation(1)));
            let time = self.places[0].perform(count, &operation(0));
            other.join().expect("it does not panic")?;
            time
        })
    }
}

/// The files that a worker has mapped.
#[derive(Debug, Default)]
pub(crate) struct Mapped {
    files: HashMap<String, Words>,
}

/// Those of both sides in a file, and the turns so far.
#[derive(Debug)]
struct Words {
    words: [&'static AtomicU64; 2],
    turn: u64,
    path: PathBuf,
}

impl Drop for Words {
    fn drop(&mut self) {
        // Both sides do; the second finds nothing.
        fs::remove_file(&self.path).ok();
    }
}

impl Mapped {
    /// `count` turns; `arguments` as of [`TURNS`].
    pub(crate) fn take_turns(&mut self, arguments: &str, count: u32) -> Result<Duration> {
        let words: Vec<&str> = arguments.splitn(3, ' ').collect();
        let [side, pages, file] = words[..] else { anyhow::bail!("turns of whom?") };
        let (side, pages): (usize, usize) = (side.parse()?, pages.parse()?);
        ensure!(side < 2 && (1..=2).contains(&pages), "two sides, and one page or two");
        if !self.files.contains_key(arguments) {
            self.files.insert(arguments.to_owned(), map(Path::new(file), pages)?);
        }
        let file = self.files.get_mut(arguments).context("it is there")?;
        let (own, other) = (file.words[side], file.words[1 - side]);
        let start = Instant::now();
        for _ in 0..count {
            file.turn += 1;
            if side == 0 {
                own.store(file.turn, SeqCst);
            }
            while other.load(SeqCst) != file.turn {
                ensure!(start.elapsed() < PATIENCE, "the other side does not come");
                std::thread::yield_now();
            }
            if side == 1 {
                own.store(file.turn, SeqCst);
            }
        }
        Ok(start.elapsed())
    }
}

fn map(path: &Path, pages: usize) -> Result<Words> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    file.set_len((pages * PAGE) as u64)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice takes no memory from anyone.
    let start = unsafe {
        mmap(std::ptr::null_mut(), pages * PAGE, protection, MapFlags::SHARED, &file, 0)?
    };
    let word = |offset: usize| -> &'static AtomicU64 {
        // SAFETY: `offset` is inside of the mapping.
        let at = unsafe { start.byte_add(offset) }.cast::<AtomicU64>();
        // SAFETY: the mapping is never taken away, it is aligned, and all who have it use it atomically.
        unsafe { &*at }
    };
    let words = [word(0), word((pages - 1) * PAGE + PAGE / 2)];
    Ok(Words { words, turn: 0, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_take_turns_and_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        for pages in [1, 2] {
            let file = folder.path().join("turns");
            let [mut one, mut other] = [Mapped::default(), Mapped::default()];
            let turns = |mapped: &mut Mapped, side| {
                let arguments = format!("{side} {pages} {}", file.display());
                for count in [3, 5] {
                    mapped.take_turns(&arguments, count).unwrap();
                }
                mapped.files[&arguments].turn
            };
            let (a, b) = std::thread::scope(|scope| {
                let b = scope.spawn(|| turns(&mut other, 1));
                (turns(&mut one, 0), b.join().unwrap())
            });
            assert_eq!((a, b), (8, 8));
            drop((one, other));
            assert!(!file.exists());
        }
        assert!(Mapped::default().take_turns("2 1 /x", 1).is_err());
    }
}
