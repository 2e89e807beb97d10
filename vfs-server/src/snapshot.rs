//! Snapshots: the tree as it was, below `/.snapshots`.
//!
//! Taking one is one record. From then on whatever changes under a key for the first time is *kept* for the last snapshot (`Z`): so what a snapshot has under
//! a key is what it or the first later one keeps of it, or else what is there now. Bytes of files are kept as whole blobs (`layers.rs`). Inodes that were
//! made after a snapshot are not in it, by their numbers, nor names, by their cookies; nor is what had no name. So nothing of these is kept for it.
//!
//! All of this is in a store between the server and its own, [`Versions`]. What belongs to a snapshot has numbers with a bit of their own (`IN_SNAPSHOT`), of
//! which that store makes what the snapshot has; so looking at a snapshot needs no code but what looks at the tree. Nothing of it ever changes
//! ([`refuse_change`]).
//!
//! A snapshot that is removed cannot be found any more; when that is committed, what it keeps goes to the one before it, if that has nothing else there, or is dropped, little by little.

mod clearing;
mod layers;
mod versions;

use crate::VfsServer;
use crate::answer::{RESTART, Result, err};
use crate::inode::time;
use crate::keys::{self, Corrupt, Entry, Snapshot, SnapshotCounters, stage};
use crate::limits::{
    MERGES_MAX, SNAPSHOT_INTERVAL, SNAPSHOT_RETRY, SNAPSHOT_RETRY_MAX, SNAPSHOT_WAIT, SNAPSHOTS_MAX,
};
use crate::name;
use calls::vfs::{IN_SNAPSHOT, ROOT_INO, SNAPSHOTS_NAME, SnapshotHead, Snapshots as List};
use calls::wire::Wire;
use dvk::server::{Call, Context, Nanos};
use dvk::store::Store;
use layers::{FIRST_BLOB, Merge};
use m3ipc::errno::numbers::{EBUSY, EEXIST, ENOENT, ENOSPC, EPERM, EROFS};
use m3ipc::limits::PAYLOAD_MAX;
use std::collections::{BTreeMap, BTreeSet};
use versions::Versions;

/// Bits of an inode's own number; those of the snapshot's are above.
const INO_BITS: u32 = 40;
/// No snapshot has this number or a greater one.
const NUMBER_END: u64 = 1 << (62 - INO_BITS);
/// The directory of all snapshots.
const DIRECTORY: u64 = IN_SNAPSHOT;

/// The number of inode `ino` in snapshot `number`.
fn number_in(number: u64, ino: u64) -> u64 {
    IN_SNAPSHOT | number << INO_BITS | ino
}

/// Of which snapshot an inode is (0: it is the directory of all), and which one; `None`: of none.
fn split(ino: u64) -> Option<(u64, u64)> {
    let number = (ino & !IN_SNAPSHOT) >> INO_BITS;
    (ino & IN_SNAPSHOT != 0).then_some((number, ino & ((1 << INO_BITS) - 1)))
}

/// To be called before inode `ino` changes.
///
/// # Errors
/// EROFS: it belongs to a snapshot.
pub(crate) fn refuse_change(ino: u64) -> Result<()> {
    if is_in_snapshot(ino) { err(EROFS) } else { Ok(()) }
}

/// Does inode `ino` belong to a snapshot?
pub(crate) fn is_in_snapshot(ino: u64) -> bool {
    ino & IN_SNAPSHOT != 0
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    record: Snapshot,
    name: Vec<u8>,
}

impl Taken {
    fn get(value: &[u8]) -> Option<Taken> {
        Snapshot::get(value).map(|record| Taken {
            record,
            name: value.get(Snapshot::SIZE..).unwrap_or_default().into(),
        })
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.record.bytes()[..], &self.name].concat()
    }

    /// It has been removed.
    fn is_removed(&self) -> bool {
        self.record.stage != stage::THERE
    }

    /// What it alone has need not stay.
    fn is_going(&self) -> bool {
        self.record.stage == stage::GOING
    }
}

/// All snapshots, and what is to be done for those that are gone.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    list: BTreeMap<u64, Taken>,
    /// `None`: there was never any.
    counters: Option<SnapshotCounters>,
    /// Blobs that are to go to those that they are the parents of; those with which that has failed; and how far it has come.
    merges: BTreeSet<u64>,
    failed: BTreeSet<u64>,
    merging: BTreeMap<u64, Merge>,
    /// How long it waits after they have failed.
    pause: Nanos,
    /// Ticks since snapshots were removed.
    ticks: BTreeMap<u64, u8>,
    due: Option<Nanos>,
}

impl Snapshots {
    /// Takes up what an earlier life has left.
    pub(crate) fn open(store: &dyn Store) -> std::result::Result<Snapshots, Corrupt> {
        let counters = keys::read(store, keys::SNAPSHOT_COUNTERS)?;
        let list = known(store)?;
        let mut snapshots = Snapshots { list, counters, ..Snapshots::default() };
        let mut outcome = Ok(());
        keys::collect(store, &keys::merges(), |key, _| match keys::numbers(key) {
            Some([blob]) => {
                snapshots.merges.insert(blob);
            }
            None => outcome = Err(Corrupt),
        });
        snapshots.due = snapshots.has_work().then_some(0);
        outcome.map(|()| snapshots)
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.due
    }

    fn has_work(&self) -> bool {
        !self.merges.is_empty() || self.list.values().any(Taken::is_removed)
    }

    /// Snapshot `number`, unless it has been removed.
    fn find(&self, number: u64) -> Option<&Taken> {
        self.list.get(&number).filter(|taken| !taken.is_removed())
    }

    /// Those that can be found.
    fn visible(&self) -> impl Iterator<Item = (u64, &Taken)> {
        let is_visible = |(_, taken): &(&u64, &Taken)| !taken.is_removed();
        self.list.iter().filter(is_visible).map(|(number, taken)| (*number, taken))
    }

    fn named(&self, name: &[u8]) -> Option<u64> {
        self.visible().find(|(_, taken)| taken.name == name).map(|(number, _)| number)
    }

    /// The number of the last one there was.
    fn last(&self) -> u64 {
        self.counters.unwrap_or_default().last
    }

    /// The record of a snapshot was stored.
    fn put(&mut self, number: u64, taken: Taken, store: &mut dyn Store) {
        let mut counters =
            self.counters.unwrap_or(SnapshotCounters { last: 0, next_blob: FIRST_BLOB });
        counters.last = counters.last.max(number);
        self.set_counters(counters, store);
        self.list.insert(number, taken);
        if self.has_work() {
            self.due = Some(0);
        }
    }

    fn set_counters(&mut self, counters: SnapshotCounters, store: &mut dyn Store) {
        store.put(keys::SNAPSHOT_COUNTERS, &counters.bytes());
        self.counters = Some(counters);
    }

    /// The number of a blob that is no file's own.
    fn new_blob(&mut self, store: &mut dyn Store) -> u64 {
        let mut counters = self.counters.unwrap_or_default();
        let blob = counters.next_blob;
        counters.next_blob += 1;
        self.set_counters(counters, store);
        blob
    }

    fn begin_merge(&mut self, blob: u64) {
        self.merges.insert(blob);
        self.due = Some(0);
    }

    /// False: there was none.
    fn end_merge(&mut self, blob: u64) -> bool {
        self.merging.remove(&blob);
        self.failed.remove(&blob);
        self.merges.remove(&blob)
    }
}

#[cfg(test)]
impl Snapshots {
    pub(crate) fn is_idle(&self) -> bool {
        !self.has_work()
    }

    /// Does it know the same, but for how far it is?
    pub(crate) fn is_as(&self, other: &Snapshots) -> bool {
        self.list == other.list && self.counters == other.counters && self.merges == other.merges
    }
}

impl VfsServer {
    /// Lets `work` see the store with all snapshots in it.
    pub(crate) fn with_snapshots<R>(
        &mut self,
        cx: &mut Context<'_>,
        work: impl FnOnce(&mut VfsServer, &mut Context<'_>) -> R,
    ) -> R {
        let mut snapshots = std::mem::take(&mut self.snapshots);
        self.has_snapshots = snapshots.list.values().any(|taken| !taken.is_going());
        let mut store = Versions::new(cx.store, &mut snapshots);
        let mut inner = Context {
            now: cx.now,
            wall: cx.wall,
            entropy: cx.entropy,
            store: &mut store,
            answers: cx.answers,
        };
        let outcome = work(self, &mut inner);
        let must_sync = store.must_sync;
        self.snapshots = snapshots;
        if must_sync {
            cx.sync();
        }
        outcome
    }

    /// All that programs were told they have written is in it: so agents say first what they have put off.
    pub(crate) fn take_snapshot(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Result<()> {
        only_the_operator(call)?;
        let name = name::to_make(call.payload)?;
        let known = known(cx.store)?;
        let mut visible = known.values().filter(|taken| !taken.is_removed());
        if visible.clone().any(|taken| taken.name == name) || self.has_own_directory(cx)? {
            return err(EEXIST);
        }
        if visible.nth(SNAPSHOTS_MAX - 1).is_some() {
            return err(ENOSPC);
        }
        let (from, to) = keys::merges();
        let merges = layers::first(cx.store, &from, &to, MERGES_MAX).len();
        if merges >= MERGES_MAX || known.len() >= 2 * SNAPSHOTS_MAX {
            return err(EBUSY);
        }
        let counters: Option<SnapshotCounters> = keys::read(cx.store, keys::SNAPSHOT_COUNTERS)?;
        let number = counters.unwrap_or_default().last + 1;
        let ino_limit = self.numbers.ino_end();
        if number >= NUMBER_END || ino_limit >= 1 << INO_BITS {
            return err(ENOSPC);
        }
        // Or there would always be new ones to wait for.
        self.no_soles_until = cx.now.saturating_add(SNAPSHOT_WAIT);
        let soles: Vec<(u64, bool)> = self.opens.soles().map(|ino| (ino, false)).collect();
        let outcome = self.claim(&soles, call, cx).and_then(|()| self.take_metadata_space(cx));
        if outcome.is_err_and(|error| error.errno != RESTART) || outcome.is_ok() {
            self.no_soles_until = 0;
        }
        outcome?;
        let record = Snapshot { ino_limit, taken: time(cx.wall), stage: stage::THERE };
        cx.store.put(&keys::snapshot(number), &Taken { record, name: name.into() }.bytes());
        self.inodes.forget(DIRECTORY);
        cx.sync();
        Ok(())
    }

    /// Is there something of a program's by the name of the directory of all snapshots? (Older servers let it be made.)
    fn has_own_directory(&self, cx: &Context<'_>) -> Result<bool> {
        let found: Option<Entry> = keys::read(cx.store, &keys::entry(ROOT_INO, SNAPSHOTS_NAME))?;
        Ok(found.is_some_and(|entry| entry.ino != DIRECTORY))
    }

    pub(crate) fn remove_snapshot(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Result<()> {
        only_the_operator(call)?;
        let mut known = known(cx.store)?.into_iter();
        let found = known.find(|(_, taken)| !taken.is_removed() && taken.name == call.payload);
        let Some((number, mut taken)) = found else { return err(ENOENT) };
        // Until this is committed it must stay what it is.
        taken.record.stage = stage::REMOVED;
        cx.store.put(&keys::snapshot(number), &taken.bytes());
        self.inodes.forget_snapshots();
        cx.sync();
        Ok(())
    }

    pub(crate) fn snapshots(&self, row: List, cx: &Context<'_>) -> Result<Vec<u8>> {
        let mut payload = Vec::new();
        for (number, Taken { record, name }) in
            known(cx.store)?.range(row.after.saturating_add(1)..)
        {
            let head = SnapshotHead {
                number: *number,
                taken: record.taken,
                is_going: (record.stage != stage::THERE).into(),
                name_len: u8::try_from(name.len()).unwrap_or(0),
            };
            if payload.len() + SnapshotHead::SIZE + name.len() > PAYLOAD_MAX {
                break;
            }
            payload.extend_from_slice(&head.bytes());
            payload.extend_from_slice(name);
        }
        Ok(payload)
    }

    /// The clock's part: goes on with what is left of removed snapshots.
    pub(crate) fn snapshot_tick(&mut self, cx: &mut Context<'_>) {
        if self.snapshots.due.is_none_or(|due| cx.now < due) {
            return;
        }
        let mut store = Versions::new(cx.store, &mut self.snapshots);
        store.is_clearing_up = true;
        let outcome = store.clear_up();
        if store.must_sync {
            cx.sync();
        }
        let snapshots = &mut self.snapshots;
        let pause = match outcome {
            Ok(()) => SNAPSHOT_INTERVAL,
            Err(_) => {
                snapshots.pause = (2 * snapshots.pause).clamp(SNAPSHOT_RETRY, SNAPSHOT_RETRY_MAX);
                snapshots.pause
            }
        };
        let has_work = self.snapshots.has_work();
        self.snapshots.due = has_work.then(|| cx.now.saturating_add(pause));
    }
}

/// Whoever may do this is the DVS itself.
fn only_the_operator(call: &Call<'_>) -> Result<()> {
    if (call.cred.pid, call.cred.uid) == (0, 0) { Ok(()) } else { err(EPERM) }
}

/// All snapshots, also those that are going, as they are in the store.
fn known(store: &dyn Store) -> std::result::Result<BTreeMap<u64, Taken>, Corrupt> {
    let mut known = BTreeMap::new();
    let mut outcome = Ok(());
    keys::collect(store, &keys::snapshots(), |key, value| {
        match (keys::numbers(key), Taken::get(value)) {
            (Some([number]), Some(taken)) => {
                known.insert(number, taken);
            }
            _ => outcome = Err(Corrupt),
        }
    });
    outcome.map(|()| known)
}
