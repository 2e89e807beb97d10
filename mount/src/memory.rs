//! What the agent remembers of inodes and names, as long as vfs-server's leases let it.
//!
//! A value is served from here only if everybody else would see the same at that moment: the server has granted a lease with
//! it and has not recalled that, the session lasts (the server gives up an agent from which it has not heard; the agent counts the time
//! from before it spoke, so it stops first), and no change by this node's own programs is under way.
//!
//! What is remembered here may be *lent*: the kernel is told to remember attributes, too, for a short time. Whatever makes an inode
//! forgotten here has the kernel forget it first. (Its pages are another matter: `pages`.)
//!
//! *Stamps* order what happens here: one counter, advanced by every change, recall and new session. Who asks the server takes a
//! stamp before; the answer is kept only if nothing has happened to its inode since.

mod change;
mod lending;
#[cfg(test)]
mod tests;

use crate::kernel::Kernel;
use crate::limits::{
    INODES_PER_SHARD_MAX, LISTINGS_PER_SHARD_MAX, MARGIN, NAMES_PER_SHARD_MAX, SHARDS,
};
use crate::names::{Names, nanos};
use calls::vfs::{Attr, Leased, NAME_MAX, SNAPSHOTS_NAME, Time, attributes, search};
pub(crate) use change::{Change, Reading, Until};
use lending::{Lent, Looks};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Inodes that share a place in which changes are noted.
const SLOTS: usize = 64;
/// Seconds after which reading moves an access time in any case, as relatime has it.
const DAY: i64 = 24 * 60 * 60;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;

/// A moment before a question to the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked(u64);

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is not there.
    Missing,
    Inode(Attr),
}

/// All that is remembered.
#[derive(Debug)]
pub(crate) struct Memory {
    shards: [Mutex<Shard>; SHARDS],
    /// A kernel has forgotten something.
    forgot: [Condvar; SHARDS],
    kernel: OnceLock<Arc<dyn Kernel>>,
    stamp: AtomicU64,
    /// The stamp with which the session began; what was asked before is not kept.
    floor: AtomicU64,
    start: Instant,
    /// Nanoseconds from `start` on at which the session may be over; 0: there is none.
    until: AtomicU64,
    /// Has anybody looked since that was asked last?
    is_used: AtomicBool,
    names: Names,
}

#[derive(Debug)]
struct Shard {
    inodes: HashMap<u64, Known>,
    /// Names in all of them.
    names: usize,
    /// Listings of them.
    listings: usize,
    slots: [Slot; SLOTS],
    /// What the kernel may remember.
    lent: HashMap<u64, Lent>,
}

/// Of the inodes of one slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// When something happened to one last.
    stamp: u64,
    /// Changes under way.
    changing: u32,
    /// When one was read last so that its access time may have changed.
    read: u64,
}

#[derive(Debug, Default)]
struct Known {
    attr: Option<Attr>,
    /// Of which the access time may be another by now.
    is_read: bool,
    /// Everybody may read it.
    is_readable: bool,
    /// It has neither an access control list nor capabilities.
    is_plain: bool,
    /// The inodes of names; 0: there is no such name.
    names: HashMap<Box<[u8]>, u64>,
    /// These are all that there are.
    has_all: bool,
    /// Who may be told of names: of [`search`].
    search: u8,
    owner: u32,
    looks: Looks,
    /// All entries of a directory, as `Readdir` has them.
    listing: Option<Arc<[u8]>>,
}

impl Known {
    /// Is it of type `kind`, and may user `uid` read it, for all that is known?
    fn may_read(&self, uid: u32, kind: u32) -> bool {
        let Some(attr) = self.attr else { return false };
        let is_owner = attr.uid == uid;
        let may_owner = attr.mode & 0o400 != 0;
        attr.mode & S_IFMT == kind
            && (uid == 0 || is_owner && may_owner || !is_owner && self.is_readable)
    }

    /// The inode for which a name stands, or 0 for none, if that is known. While the directory is being changed not all names are.
    fn stands_for(&self, name: &[u8]) -> Option<u64> {
        // That one is never listed.
        let is_none = self.has_all && name.len() <= NAME_MAX && name != SNAPSHOTS_NAME;
        self.names.get(name).copied().or_else(|| is_none.then_some(0))
    }

    fn may_search(&self, uid: u32) -> bool {
        let bits = if uid == 0 { search::SUPERUSER } else { 0 }
            | if uid == self.owner { search::OWNER } else { 0 }
            | search::EVERYBODY;
        self.search & bits != 0
    }
}

impl Default for Memory {
    fn default() -> Memory {
        let shard = || Shard {
            inodes: HashMap::new(),
            names: 0,
            listings: 0,
            slots: [Slot::default(); SLOTS],
            lent: HashMap::new(),
        };
        Memory {
            shards: std::array::from_fn(|_| Mutex::new(shard())),
            forgot: std::array::from_fn(|_| Condvar::new()),
            kernel: OnceLock::new(),
            stamp: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            start: Instant::now(),
            until: AtomicU64::new(0),
            is_used: AtomicBool::new(false),
            names: Names::default(),
        }
    }
}

impl Memory {
    /// Before the server is asked for something that may be remembered.
    pub(crate) fn asked(&self) -> Asked {
        Asked(self.stamp.load(Ordering::SeqCst))
    }

    /// Attributes of an inode, if they are known.
    pub(crate) fn attr(&self, ino: u64) -> Option<Attr> {
        let shard = self.shard(ino);
        let known = shard.inodes.get(&ino).filter(|known| !known.is_read)?;
        let attr = known.attr?;
        self.is_valid().then_some(attr)
    }

    /// What is under a name of a directory, if that is known and user `uid` may be told.
    pub(crate) fn name(&self, parent: u64, name: &[u8], uid: u32) -> Option<Found> {
        let ino = {
            let shard = self.shard(parent);
            let known = shard.inodes.get(&parent)?;
            let ino = known.stands_for(name)?;
            (known.may_search(uid) && self.is_valid()).then_some(ino)?
        };
        match ino {
            0 => Some(Found::Missing),
            // A name cannot come to stand for another inode without a change of this one (its ctime).
            ino => self.attr(ino).map(Found::Inode),
        }
    }

    /// Remembers attributes that the server has told with a lease (of [`attributes`]), unless something has happened since they
    /// were asked for.
    pub(crate) fn keep_attr(&self, asked: Asked, leased: u8, attr: Attr) {
        let mut shard = self.shard(attr.ino);
        if leased != 0 && self.is_fresh(&shard, attr.ino, asked) {
            shard.insert_attr(asked.0, leased, attr);
        }
    }

    /// As [`Memory::keep_attr`], that a name stands for `ino`, or with 0 for nothing, and who may be told.
    pub(crate) fn keep_name(
        &self,
        asked: Asked,
        (parent, name): (u64, &[u8]),
        leased: Leased,
        ino: u64,
    ) {
        let mut shard = self.shard(parent);
        if self.is_fresh(&shard, parent, asked) {
            shard.make_room();
            self.insert_name(&mut shard, (parent, name), leased, ino);
        }
    }

    fn insert_name(
        &self,
        shard: &mut Shard,
        (parent, name): (u64, &[u8]),
        leased: Leased,
        ino: u64,
    ) {
        let known = shard.inodes.entry(parent).or_default();
        (known.search, known.owner) = (leased.name, leased.owner);
        if known.looks.known == 0 {
            known.looks.known = self.now();
        }
        if known.names.insert(name.into(), ino).is_none() {
            shard.names += 1;
        }
    }

    /// As [`Memory::keep_attr`] of what has just been made: if it is a directory, there is no name in it.
    pub(crate) fn keep_empty(&self, asked: Asked, leased: u8, attr: Attr) {
        let mut shard = self.shard(attr.ino);
        let is_plain = leased & attributes::PLAIN != 0;
        if is_plain && attr.mode & S_IFMT == S_IFDIR && self.is_fresh(&shard, attr.ino, asked) {
            let known = shard.inodes.entry(attr.ino).or_default();
            // As the server has it of directories without access control lists.
            let owner = if attr.mode & 0o100 == 0 { 0 } else { search::OWNER };
            let everybody = if attr.mode & 0o111 == 0o111 { search::EVERYBODY } else { 0 };
            (known.search, known.owner) = (search::SUPERUSER | owner | everybody, attr.uid);
            known.has_all = true;
        }
    }

    /// As [`Memory::keep_attr`], all entries of directory `ino`.
    pub(crate) fn keep_listing(&self, asked: Asked, ino: u64, entries: &[u8]) {
        let mut shard = self.shard(ino);
        if self.is_fresh(&shard, ino, asked) {
            shard.make_room();
            let known = shard.inodes.entry(ino).or_default();
            let had_none = known.listing.replace(entries.into()).is_none();
            shard.listings += usize::from(had_none);
        }
    }

    /// All entries of directory `ino`, if they are known and listing them leaves its access time as it is.
    pub(crate) fn listing(&self, ino: u64) -> Option<Arc<[u8]>> {
        let shard = self.shard(ino);
        let known = shard.inodes.get(&ino)?;
        let is_known = !known.is_read && shard.keeps_access_time(ino) && self.is_valid();
        known.listing.clone().filter(|_| is_known)
    }

    /// A program of this node is about to change an inode (0: none): its attributes are forgotten until it is done.
    pub(crate) fn change(&self, ino: u64) -> Change<'_> {
        let mut shard = self.shard(ino);
        let (stamp, had_all) = self.begin_change(&mut shard, ino);
        if ino != 0 {
            self.take_back(shard, ino);
        }
        Change { memory: self, ino, stamp, had_all }
    }

    /// Returns its stamp, and whether all names of the directory were known.
    fn begin_change(&self, shard: &mut Shard, ino: u64) -> (u64, bool) {
        let stamp = self.next_stamp();
        let mut had_all = false;
        if ino != 0 {
            shard.slots[slot(ino)].changing += 1;
            shard.happened(ino, stamp);
            if let Some(known) = shard.inodes.get_mut(&ino) {
                known.attr = None;
                // Until it is known what has come of it.
                had_all = std::mem::take(&mut known.has_all);
                known.looks = Looks::known_since(self.now());
                let had_one = known.listing.take().is_some();
                shard.listings -= usize::from(had_one);
            }
        }
        (stamp, had_all)
    }

    /// As [`Memory::change`], if that takes no time.
    pub(crate) fn change_at_once(&self, ino: u64) -> Option<Change<'_>> {
        let mut shard = self.shard(ino);
        if shard.lent.contains_key(&ino) {
            // The kernel would have to forget it.
            return None;
        }
        let (stamp, had_all) = self.begin_change(&mut shard, ino);
        Some(Change { memory: self, ino, stamp, had_all })
    }

    /// A change that was left: it is still under way.
    pub(crate) fn resume(&self, ino: u64, stamp: u64) -> Change<'_> {
        Change { memory: self, ino, stamp, had_all: false }
    }

    /// Has nothing happened to `ino` since?
    pub(crate) fn is_as_asked(&self, ino: u64, asked: Asked) -> bool {
        self.is_fresh(&self.shard(ino), ino, asked)
    }

    /// As [`Memory::change`], of which also follows who may search the directory.
    pub(crate) fn change_rights(&self, ino: u64) -> Change<'_> {
        let change = self.change(ino);
        self.shard(ino).remove(ino);
        change
    }

    /// A name is about to be made, or taken away, or to stand for another inode; its directory is among those of a change that
    /// is under way. Returns the inode that it stood for as far as is known, or 0.
    pub(crate) fn change_name(&self, parent: u64, name: &[u8]) -> u64 {
        let mut shard = self.shard(parent);
        let known = shard.inodes.get_mut(&parent).and_then(|known| known.names.remove(name));
        shard.names -= usize::from(known.is_some());
        known.unwrap_or(0)
    }

    /// An inode is about to be read, by which its access time may change.
    pub(crate) fn read(&self, ino: u64) -> Reading<'_> {
        let changes = !self.shard(ino).keeps_access_time(ino);
        let Asked(stamp) = self.asked();
        Reading { memory: self, ino: changes.then_some(ino), stamp, atime: None }
    }

    /// Is it known that a name is not there?
    pub(crate) fn is_missing(&self, parent: u64, name: &[u8]) -> bool {
        let shard = self.shard(parent);
        shard.inodes.get(&parent).is_some_and(|known| known.stands_for(name) == Some(0))
    }

    /// Something that is done to an inode is noted when it is over, for those who have asked before.
    pub(crate) fn until(&self, ino: u64) -> Until<'_> {
        Until { memory: self, ino }
    }

    /// Is it known that an inode has neither an access control list nor `security.capability`?
    pub(crate) fn is_plain(&self, ino: u64) -> bool {
        let shard = self.shard(ino);
        shard.inodes.get(&ino).is_some_and(|known| known.is_plain) && self.is_leased(&shard, ino)
    }

    /// May file `ino` be opened for reading by user `uid`? False: that is not known.
    pub(crate) fn may_open(&self, ino: u64, uid: u32) -> bool {
        let shard = self.shard(ino);
        let known = shard.inodes.get(&ino);
        known.is_some_and(|known| known.may_read(uid, S_IFREG)) && self.is_leased(&shard, ino)
    }

    /// Would the server open directory `ino` for user `uid`, so that it may be listed from here? False: that is not known.
    pub(crate) fn may_open_directory(&self, ino: u64, uid: u32) -> bool {
        let shard = self.shard(ino);
        let known = shard.inodes.get(&ino);
        known.is_some_and(|known| known.listing.is_some() && known.may_read(uid, S_IFDIR))
            && self.is_leased(&shard, ino)
    }

    /// Is there a lease on an inode?
    pub(crate) fn has_lease(&self, ino: u64) -> bool {
        self.is_leased(&self.shard(ino), ino)
    }

    /// The server recalls its lease on an inode. [`Memory::wait_for_names`] must follow.
    pub(crate) fn forget(&self, ino: u64) {
        let mut shard = self.shard(ino);
        shard.happened(ino, self.next_stamp());
        shard.remove(ino);
        self.take_back(shard, ino);
    }

    /// There is no session any more, or is about to be none: forgets everything.
    pub(crate) fn end_session(&self) {
        self.until.store(0, Ordering::SeqCst);
        self.floor.store(self.next_stamp(), Ordering::SeqCst);
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.inodes = HashMap::new();
            (shard.names, shard.listings) = (0, 0);
            let lent: Vec<u64> = shard.lent.keys().copied().collect();
            drop(shard);
            for ino in lent {
                self.take_back(self.shard(ino), ino);
            }
        }
        self.names.wait_for_all(|| self.now());
    }

    /// What has been asked so far is not kept: an answer may be of an earlier session.
    pub(crate) fn outdate(&self) {
        self.floor.store(self.next_stamp(), Ordering::SeqCst);
    }

    /// Is there a lease on an inode that is not about to end?
    fn is_leased(&self, shard: &Shard, ino: u64) -> bool {
        let is_kept = shard.inodes.get(&ino).is_some_and(|known| known.attr.is_some());
        is_kept && shard.slots[slot(ino)].changing == 0 && self.is_valid()
    }

    fn now(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    /// The server has begun a session when it was asked to, after `sent`: it lasts for `lease` from then.
    pub(crate) fn begin_session(&self, sent: Instant, lease: Duration) {
        // What was asked while there was none is not covered by it.
        self.floor.store(self.next_stamp(), Ordering::SeqCst);
        self.extend(sent, lease);
    }

    /// The server has heard of this agent after `sent`, and what it said since has been done.
    pub(crate) fn extend(&self, sent: Instant, lease: Duration) {
        let end = (sent + lease.saturating_sub(MARGIN)).saturating_duration_since(self.start);
        self.until.store(nanos(end).max(1), Ordering::SeqCst);
    }

    /// Until when the session lasts, if nothing more is heard.
    pub(crate) fn ends_at(&self) -> Instant {
        self.start + Duration::from_nanos(self.until.load(Ordering::SeqCst))
    }

    /// Is there a session, though perhaps one that the server has given up?
    pub(crate) fn has_session(&self) -> bool {
        self.until.load(Ordering::SeqCst) != 0
    }

    /// Is there a session that may be over?
    pub(crate) fn has_lapsed(&self) -> bool {
        self.has_session() && !self.is_valid()
    }

    /// Notes that somebody has a use for leases.
    pub(crate) fn use_it(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    /// Has anybody since this was asked last?
    pub(crate) fn was_used(&self) -> bool {
        self.is_used.swap(false, Ordering::Relaxed)
    }

    /// May what is remembered be told?
    pub(crate) fn is_valid(&self) -> bool {
        let until = self.until.load(Ordering::SeqCst);
        until != 0 && self.now() < until
    }

    /// Has nothing happened to `ino` since?
    fn is_fresh(&self, shard: &Shard, ino: u64, asked: Asked) -> bool {
        let slot = &shard.slots[slot(ino)];
        slot.changing == 0
            && slot.stamp <= asked.0
            && self.floor.load(Ordering::SeqCst) <= asked.0
            && self.has_session()
    }

    fn next_stamp(&self) -> u64 {
        self.stamp.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn shard(&self, ino: u64) -> MutexGuard<'_, Shard> {
        self.shards[index(ino)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// Forgets an inode.
    fn remove(&mut self, ino: u64) {
        if let Some(known) = self.inodes.remove(&ino) {
            self.names -= known.names.len();
            self.listings -= usize::from(known.listing.is_some());
        }
    }

    fn happened(&mut self, ino: u64, stamp: u64) {
        self.slots[slot(ino)].stamp = stamp;
    }

    /// Does reading `ino` leave its access time as it is, as relatime has it, for all that is known?
    fn keeps_access_time(&self, ino: u64) -> bool {
        let order = |time: Time| (time.seconds, time.nanos);
        self.inodes.get(&ino).and_then(|known| known.attr).is_some_and(|attr| {
            let is_young = attr.atime.seconds.saturating_add(DAY - 1) > seconds_now();
            order(attr.atime) > order(attr.mtime).max(order(attr.ctime)) && is_young
        })
    }

    /// Attributes that were asked for at `asked`.
    fn insert_attr(&mut self, asked: u64, leased: u8, attr: Attr) {
        self.make_room();
        let is_read = self.slots[slot(attr.ino)].read > asked;
        let known = self.inodes.entry(attr.ino).or_default();
        (known.attr, known.is_read) = (Some(attr), is_read);
        known.is_readable = leased & attributes::READABLE != 0;
        known.is_plain = leased & attributes::PLAIN != 0;
    }

    /// A full shard is emptied: what is in use is back after one question each.
    fn make_room(&mut self) {
        if self.inodes.len() >= INODES_PER_SHARD_MAX
            || self.names >= NAMES_PER_SHARD_MAX
            || self.listings >= LISTINGS_PER_SHARD_MAX
        {
            self.inodes.clear();
            (self.names, self.listings) = (0, 0);
        }
    }
}

/// Which shard an inode has.
fn index(ino: u64) -> usize {
    usize::try_from(ino).unwrap_or(0) % SHARDS
}

/// Which of its shard's slots an inode has.
fn slot(ino: u64) -> usize {
    usize::try_from(ino).unwrap_or(0) / SHARDS % SLOTS
}

fn seconds_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Before the epoch nothing is young.
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(i64::MAX)
}
