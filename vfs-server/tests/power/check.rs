//! Opens what a power failure leaves, and compares it with what was.

use crate::disk::{Disk, Unflushed};
use crate::trace::Event;
use crate::workload::{Random, SIZE_MAX, Truth, bytes, hash};
use dvk::host::disk::DiskStore;
use dvk::store::Store;
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
    VfsServer::open(&mut store, 0).map_err(|error| error.to_string())?;
    store.commit_sync().map_err(|error| format!("{error:#}"))
}
