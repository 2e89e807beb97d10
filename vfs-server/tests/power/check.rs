//! Opens what a power failure leaves, and compares it with what was.

use crate::disk::{Disk, Unflushed};
use crate::trace::Event;
use crate::workload::{Happened, PART, Random, SIZE_MAX, Truth, bytes, hash};
use calls::Row;
use calls::vfs::{IN_SNAPSHOT, Open, Opened, Read};
use calls::wire::Wire;
use dvk::host::disk::DiskStore;
use dvk::server::{Answers, Call, Context, Server};
use dvk::store::Store;
use m3ipc::{CallId, Cred, Endpoint, Message, NodeId, Tag};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use vfs_server::VfsServer;

/// Random states of the disk for each event.
const RANDOM: u64 = 1;
/// Events whose states one thread looks at in turn.
const STRIDE: usize = 2;

/// How far the run had come when the power failed.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    /// The last round that was answered as synced.
    synced: usize,
    /// The last that had begun.
    begun: usize,
}

/// Checks the states that the disk may be in after each event. Returns how many these were.
pub(crate) fn check(events: &[Event], truth: &Truth, seed: u64) -> usize {
    let checked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for part in 0..STRIDE {
            let checked = &checked;
            scope.spawn(move || check_part(events, truth, seed, part, checked));
        }
    });
    checked.into_inner()
}

fn check_part(events: &[Event], truth: &Truth, seed: u64, part: usize, checked: &AtomicUsize) {
    let scratch = tempfile::tempdir().unwrap();
    let (mut disk, mut reached) = (Disk::new(), Reached::default());
    for (at, event) in events.iter().enumerate() {
        let changes = disk.happen(at, event);
        match *event {
            Event::Begin { round } => reached.begun = round,
            Event::Synced { round } => reached.synced = round,
            _ => {}
        }
        if !changes || at % STRIDE != part {
            continue;
        }
        let mut states = vec![Unflushed::All, Unflushed::Nothing];
        states.extend(
            (0..RANDOM).map(|one| Unflushed::Some(Random(seed ^ ((at as u64) << 8) ^ one))),
        );
        for unflushed in states {
            let place = scratch.path().join("store");
            disk.fail(&unflushed, &place);
            let found = look(&place, reached, truth);
            if let Err(why) = found {
                let kept = scratch.keep();
                let event = format!("{event:?}");
                panic!(
                    "{why}: power fails after event {at} with {unflushed:?} of the rest, {reached:?}; the disk is in {}; \
                     the event: {:.300}",
                    kept.display(),
                    event
                );
            }
            std::fs::remove_dir_all(&place).unwrap();
            checked.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Is what is there one of the trees that may be?
fn look(place: &Path, reached: Reached, truth: &Truth) -> Result<(), String> {
    let mut store = DiskStore::open(place).map_err(|error| format!("{error:#}"))?;
    let Some(rounds) = truth.rounds.get(&hash(&store)) else {
        return Err("the map is none that ever was".into());
    };
    let Some(round) = rounds.iter().find(|round| (reached.synced..=reached.begun).contains(round))
    else {
        return Err(format!("it is the map after round {rounds:?}"));
    };
    for (ino, synced) in &truth.synced {
        let last = synced.iter().rev().find(|(round, _)| *round <= reached.synced);
        let Some((synced, content)) = last else { continue };
        if truth.removed.get(ino).is_some_and(|removed| removed <= round) {
            continue;
        }
        let mut changed = truth.changed.get(ino).into_iter().flatten();
        if changed.any(|round| (*synced + 1..=reached.begun).contains(round)) {
            continue;
        }
        if bytes(&store, *ino) != *content {
            return Err(format!(
                "file {ino} is not what it was when it was synced in round {synced}"
            ));
        }
    }
    // No good byte looks damaged, whether it was synced or not.
    for ino in truth.changed.keys() {
        if store.blob_read(*ino, 0, &mut [0; SIZE_MAX]).is_err() {
            return Err(format!("file {ino} does not have the checksums that it is said to have"));
        }
    }
    // And the server goes on with it.
    let server = VfsServer::open(&mut store, 0).map_err(|error| error.to_string())?;
    let mut reader = Reader { server, store, calls: 0 };
    reader.compare(truth, reached, *round)?;
    reader.store.commit_sync().map_err(|error| format!("{error:#}"))
}

/// Reads files as a program does.
struct Reader {
    server: VfsServer,
    store: DiskStore,
    calls: u64,
}

impl Reader {
    /// Files that were synced and not changed since are as they were, and so they are in the snapshots that there are in the map after `round`.
    fn compare(&mut self, truth: &Truth, reached: Reached, round: usize) -> Result<(), String> {
        let mut files: BTreeMap<u64, &[u8]> = BTreeMap::new();
        let mut snapshots: BTreeMap<u64, BTreeMap<u64, &[u8]>> = BTreeMap::new();
        for (at, happened) in truth.history.iter().filter(|(at, _)| *at <= reached.begun) {
            match happened {
                Happened::Synced { ino, content } if *at <= reached.synced => {
                    files.insert(*ino, content);
                }
                Happened::Synced { .. } => {}
                Happened::Changed { ino } => drop(files.remove(ino)),
                Happened::Taken { number } if *at <= round => {
                    snapshots.insert(*number, files.clone());
                }
                Happened::Taken { .. } => {}
                Happened::Removed { number } if *at <= round => drop(snapshots.remove(number)),
                Happened::Removed { .. } => {}
            }
        }
        let then = |number: u64, ino: u64| IN_SNAPSHOT | number << 40 | ino;
        let kept = snapshots.iter().flat_map(|(number, files)| {
            files.iter().map(move |(ino, content)| (then(*number, *ino), *content))
        });
        for (ino, content) in files.iter().map(|(ino, content)| (*ino, *content)).chain(kept) {
            if self.content(ino).is_some_and(|found| found != content) {
                return Err(format!("file {ino:x} is not what it was when it was synced"));
            }
        }
        Ok(())
    }

    /// `None`: it is no more.
    fn content(&mut self, ino: u64) -> Option<Vec<u8>> {
        let (Opened { fh, .. }, _) = self.call(&Open { ino, flags: 0 })?;
        let mut content = Vec::new();
        loop {
            let row = Read { fh, ino, offset: content.len() as u64, size: PART };
            // Bytes of a length that they cannot have.
            let Some((_, data)) = self.call(&row) else {
                return Some(vec![0; usize::from(u16::MAX)]);
            };
            if data.is_empty() {
                return Some(content);
            }
            content.extend(data);
        }
    }

    fn call<R: Row>(&mut self, row: &R) -> Option<(R::Reply, Vec<u8>)> {
        self.calls += 1;
        let id = CallId { source: Endpoint::new(NodeId(2), 1, 1), tag: Tag::new(0, self.calls) };
        let mut message = Message::request(R::NUMBER);
        row.put(&mut message.args);
        (message.source, message.tag) = (id.source, id.tag);
        let mut answers = Answers::default();
        let mut cx =
            Context { now: 1, wall: 1, entropy: 1, store: &mut self.store, answers: &mut answers };
        let call = Call { id, cred: &Cred::ROOT, message: &message, payload: &[] };
        self.server.serve(&call, &mut cx);
        let answer = answers.list.into_iter().next().unwrap();
        answer.message.outcome().unwrap().ok()?;
        Some((R::Reply::get(&answer.message.args).unwrap(), answer.payload))
    }
}
