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

use crate::kernel::Kernel;
use crate::limits::{
    FORGET_PAUSE, HOT, INODES_PER_SHARD_MAX, LENT_FOR_MAX, LENT_PER_SHARD_MAX,
    LISTINGS_PER_SHARD_MAX, MARGIN, NAME_LENT_FOR, NAMES_PER_SHARD_MAX, QUIET, SHARDS,
};
use crate::names::{Names, nanos};
use calls::vfs::{Attr, Leased, NAME_MAX, Parent, Time, attributes, search};
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

/// What the kernel may remember of an inode.
#[derive(Clone, Copy, Debug, Default)]
struct Lent {
    /// Attributes; as [`Memory::until`].
    until: u64,
    /// Does it know the inode for sure? Else the reply that tells it may not have been read yet.
    is_known: bool,
    /// Is somebody having it forgotten?
    is_going: bool,
}

impl Lent {
    /// Might the kernel still remember something?
    fn is_needed(&self, now: u64) -> bool {
        now < self.until.saturating_add(nanos(MARGIN))
    }
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

/// How often names of a directory have been looked up of late.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    /// Since when names are known, and unchanged by this node; 0: none are.
    known: u64,
    /// Since when `count` is counted.
    since: u64,
    count: u32,
}

impl Looks {
    /// One more, at `now`. Returns whether these are so many that the kernel had better remember names itself.
    fn add(&mut self, now: u64) -> bool {
        if now - self.since > nanos(NAME_LENT_FOR) {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        self.count >= HOT && self.is_quiet(now)
    }

    /// Have names been known for so long that others hardly change any?
    fn is_quiet(self, now: u64) -> bool {
        self.known != 0 && now - self.known > nanos(QUIET)
    }
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
        let is_none = self.has_all && name.len() <= NAME_MAX;
        self.names.get(name).copied().or_else(|| is_none.then_some(0))
    }

    fn may_search(&self, uid: u32) -> bool {
        let bits = if uid == 0 { search::SUPERUSER } else { 0 }
            | if uid == self.owner { search::OWNER } else { 0 }
            | search::EVERYBODY;
        self.search & bits != 0
    }
}

/// A change of an inode that is under way: nothing of it is remembered until it is over, but what the change itself has made of it,
/// if nothing else has happened to it meanwhile.
#[derive(Debug)]
#[must_use]
pub(crate) struct Change<'a> {
    memory: &'a Memory,
    /// 0: none.
    ino: u64,
    /// When it began.
    stamp: u64,
    /// All names of the directory were known.
    had_all: bool,
}

/// An inode that is being read.
#[derive(Debug)]
#[must_use]
pub(crate) struct Reading<'a> {
    memory: &'a Memory,
    /// If its access time may change by that.
    ino: Option<u64>,
    /// When it began.
    stamp: u64,
    /// The access time by now, if it has been told.
    atime: Option<Time>,
}

impl Reading<'_> {
    /// The server has told when the inode was read last.
    pub(crate) fn tell(&mut self, atime: Time) {
        self.atime = Some(atime);
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let Some(ino) = self.ino else { return };
        let mut shard = self.memory.shard(ino);
        let mark = &mut shard.slots[slot(ino)];
        mark.read = self.memory.next_stamp();
        let is_alone = mark.changing == 0 && mark.stamp <= self.stamp;
        let known = shard.inodes.get_mut(&ino).filter(|known| !known.is_read);
        let mut has_changed = false;
        if let Some(known) = known {
            match (&mut known.attr, self.atime.filter(|_| is_alone)) {
                (Some(attr), Some(atime)) => {
                    has_changed = attr.atime != atime;
                    attr.atime = atime;
                }
                _ => (known.is_read, has_changed) = (true, true),
            }
        }
        let is_lent = has_changed && shard.lent.get(&ino).is_some_and(|lent| lent.until != 0);
        drop(shard);
        if let (true, Some(kernel)) = (is_lent, self.memory.kernel.get()) {
            kernel.forget(ino);
        }
    }
}

/// Something that is done to an inode, and does not change what is known of it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Until<'a> {
    memory: &'a Memory,
    ino: u64,
}

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.memory.shard(self.ino).happened(self.ino, self.memory.next_stamp());
    }
}

impl Change<'_> {
    /// The inode; 0: none.
    pub(crate) fn ino(&self) -> u64 {
        self.ino
    }

    /// When it began.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Has nothing else happened to inode `ino` since it began?
    pub(crate) fn is_all_of(&self, ino: u64) -> bool {
        self.ino == ino && self.is_alone(&self.memory.shard(ino))
    }

    /// Has nothing else happened to the inode since it began? Then what the server has told is what is.
    fn is_alone(&self, shard: &Shard) -> bool {
        let slot = &shard.slots[slot(self.ino)];
        slot.changing == 1
            && slot.stamp == self.stamp
            && self.memory.floor.load(Ordering::SeqCst) <= self.stamp
            && self.memory.has_session()
    }

    /// As [`Memory::keep_name`], in the directory that was changed.
    pub(crate) fn keep_name(&self, name: &[u8], leased: Leased, ino: u64) {
        self.keep_names(&[(name, leased, ino)]);
    }

    /// As [`Change::keep_name`], all names that were changed. (Between two of them the directory would be taken to be known whole.)
    pub(crate) fn keep_names(&self, names: &[(&[u8], Leased, u64)]) {
        let mut shard = self.memory.shard(self.ino);
        if names.iter().any(|(_, leased, _)| leased.name == 0) || !self.is_alone(&shard) {
            return;
        }
        shard.make_room();
        // If not, it has been forgotten meanwhile, with its other names.
        let has_others = shard.inodes.contains_key(&self.ino);
        for (name, leased, ino) in names {
            self.memory.insert_name(&mut shard, (self.ino, name), *leased, *ino);
        }
        if let Some(known) = shard.inodes.get_mut(&self.ino) {
            known.has_all = self.had_all && has_others;
        }
    }

    /// As [`Change::keep_attr`], of the directory that was changed.
    pub(crate) fn keep_parent(&self, parent: Option<Parent>) {
        if let Some(Parent { leased, attr }) = parent {
            self.keep_attr(leased, attr);
        }
    }

    /// As [`Memory::keep_attr`], of the inode that was changed.
    pub(crate) fn keep_attr(&self, leased: u8, attr: Attr) {
        let mut shard = self.memory.shard(self.ino);
        if leased != 0 && attr.ino == self.ino && self.is_alone(&shard) {
            shard.insert_attr(self.stamp, leased, attr);
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.ino != 0 {
            let mut shard = self.memory.shard(self.ino);
            shard.happened(self.ino, self.memory.next_stamp());
            shard.slots[slot(self.ino)].changing -= 1;
        }
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
                known.looks = Looks { known: self.now(), ..Looks::default() };
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

    /// From now on `kernel` can be lent attributes.
    pub(crate) fn attach(&self, kernel: Arc<dyn Kernel>) {
        // A mount has one kernel.
        drop(self.kernel.set(kernel));
    }

    /// For how long the kernel may remember attributes that it is about to be told. `is_known`: it has the inode already. With it,
    /// whether it was told the same before.
    pub(crate) fn lend(&self, attr: &Attr, is_known: bool) -> (Duration, bool) {
        const NOT: (Duration, bool) = (Duration::ZERO, false);
        if self.kernel.get().is_none() {
            return NOT;
        }
        let ino = attr.ino;
        let mut shard = self.shard(ino);
        let (now, until) = (self.now(), self.until.load(Ordering::SeqCst));
        let is_kept = |known: &Known| known.attr.as_ref() == Some(attr) && !known.is_read;
        if !shard.inodes.get(&ino).is_some_and(is_kept)
            || until <= now
            || !shard.has_room_to_lend(ino, now)
        {
            return NOT;
        }
        let lent = shard.lent.entry(ino).or_default();
        if lent.is_going {
            return NOT;
        }
        let is_repeated = lent.until != 0;
        // It counts from when the reply is read, which is soon: the session has its margin for that.
        lent.until = until;
        lent.is_known |= is_known;
        (Duration::from_nanos(until - now).min(LENT_FOR_MAX), is_repeated)
    }

    /// For how long the kernel may remember that a name stands for `ino`, or with 0 for nothing, if thread `tid` is told so now.
    /// Unless that is no time, [`Memory::told`] must follow.
    ///
    /// `is_settled`: taking up the reply does nothing but that, as the inode is known to the kernel, and nothing of it has changed.
    pub(crate) fn lend_name(
        &self,
        (parent, name): (u64, &[u8]),
        ino: u64,
        is_settled: bool,
        tid: u32,
    ) -> Duration {
        let mut shard = self.shard(parent);
        let (now, until) = (self.now(), self.until.load(Ordering::SeqCst));
        let is_still = shard.slots[slot(parent)].changing == 0;
        let Some(known) = shard.inodes.get_mut(&parent) else { return Duration::ZERO };
        let is_hot = known.looks.add(now);
        let may_be_told = is_hot
            && is_settled
            && is_still
            && known.stands_for(name) == Some(ino)
            && known.search & search::EVERYBODY != 0
            && now < until
            && self.kernel.get().is_some();
        if may_be_told && self.names.lend(parent, tid, false, || self.now()) {
            Duration::from_nanos(until - now).min(NAME_LENT_FOR)
        } else {
            Duration::ZERO
        }
    }

    /// As [`Memory::lend_name`], all names of directory `ino`, of which `listing` is what is known.
    pub(crate) fn lend_listing(&self, ino: u64, listing: &Arc<[u8]>, tid: u32) -> Duration {
        let shard = self.shard(ino);
        let (now, until) = (self.now(), self.until.load(Ordering::SeqCst));
        let Some(known) = shard.inodes.get(&ino) else { return Duration::ZERO };
        let is_current = known.listing.as_ref().is_some_and(|its| Arc::ptr_eq(its, listing));
        let may_be_told = is_current
            && shard.slots[slot(ino)].changing == 0
            && known.looks.is_quiet(now)
            && known.search & search::EVERYBODY != 0
            && now < until
            && self.kernel.get().is_some();
        if may_be_told && self.names.lend(ino, tid, true, || self.now()) {
            Duration::from_nanos(until - now).min(NAME_LENT_FOR)
        } else {
            Duration::ZERO
        }
    }

    /// The reply in which a name was lent to thread `tid` has been written.
    pub(crate) fn told(&self, tid: u32) {
        self.names.told(tid);
    }

    /// Waits until the kernel remembers no names in `directories`, whose leases have been forgotten, or of which a change is under way.
    pub(crate) fn wait_for_names(&self, directories: &[u64]) {
        self.names.wait(directories, || self.now());
    }

    /// Thread `tid` is about to change names in `directories`: waits until the kernel remembers none there.
    pub(crate) fn change_names(&self, directories: &[u64], tid: u32) {
        self.names.changes(tid, || self.now());
        self.names.wait(directories, || self.now());
    }

    /// Thread `tid` has come to the end of a listing.
    pub(crate) fn has_listed(&self, tid: u32) {
        self.names.asks(tid);
    }

    /// To be called now and then.
    pub(crate) fn settle(&self) {
        self.names.settle(|| self.now());
    }

    /// Has the kernel forget what it was lent of an inode; returns when it has. Nothing is lent meanwhile.
    fn take_back(&self, shard: MutexGuard<'_, Shard>, ino: u64) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut shard = self.while_going(shard, ino);
        let Some(lent) = shard.lent.get_mut(&ino) else { return };
        if !lent.is_needed(self.now()) {
            shard.lent.remove(&ino);
            return;
        }
        lent.is_going = true;
        let Lent { until, is_known, .. } = *lent;
        drop(shard);
        // An inode that is not there may have gone, or come with a reply that has not been read yet.
        while !kernel.forget(ino) && !is_known && self.now() < until {
            std::thread::sleep(FORGET_PAUSE);
        }
        let mut shard = self.shard(ino);
        shard.lent.remove(&ino);
        drop(shard);
        self.forgot[index(ino)].notify_all();
    }

    /// Waits until nobody is having the kernel forget an inode: until then it may still have what was not good.
    fn while_going<'a>(
        &'a self,
        mut shard: MutexGuard<'a, Shard>,
        ino: u64,
    ) -> MutexGuard<'a, Shard> {
        while shard.lent.get(&ino).is_some_and(|lent| lent.is_going) {
            shard = self.forgot[index(ino)].wait(shard).unwrap_or_else(PoisonError::into_inner);
        }
        shard
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

    /// May something more be lent of inode `ino`?
    fn has_room_to_lend(&mut self, ino: u64, now: u64) -> bool {
        if self.lent.len() < LENT_PER_SHARD_MAX || self.lent.contains_key(&ino) {
            return true;
        }
        self.lent.retain(|_, lent| lent.is_going || lent.is_needed(now));
        self.lent.len() < LENT_PER_SHARD_MAX
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::NAME_GOES_IN;
    use proptest::prelude::{any, prop_assert_eq, prop_oneof, proptest};
    use std::ops::Range;

    const LEASE: Duration = Duration::from_secs(3600);
    const ALL: Leased = Leased { name: search::EVERYBODY, attr: attributes::KEPT, owner: 0 };

    fn on() -> Memory {
        let memory = Memory::default();
        memory.begin_session(Instant::now(), LEASE);
        memory
    }

    fn attr(ino: u64) -> Attr {
        Attr { ino, size: 7, ..Attr::default() }
    }

    #[test]
    fn who_has_asked_before_something_was_over_is_told_so() {
        let memory = on();
        let asked = memory.asked();
        let until = memory.until(5);
        assert!(memory.is_as_asked(5, asked));
        drop(until);
        assert!(!memory.is_as_asked(5, asked) && memory.is_as_asked(5, memory.asked()));
    }

    #[test]
    fn of_a_directory_that_was_made_here_all_names_are_known() {
        const DIR: u64 = 64;
        let made = || {
            let memory = on();
            let asked = memory.asked();
            let attr = Attr { ino: DIR, mode: S_IFDIR | 0o755, ..Attr::default() };
            memory.keep_attr(asked, attributes::KEPT, attr);
            memory.keep_empty(asked, attributes::KEPT, attr);
            assert_eq!(memory.name(DIR, b"any", 9), None, "it may have a list");
            memory.keep_empty(asked, attributes::KEPT | attributes::PLAIN, attr);
            memory
        };
        let is_missing = |memory: &Memory, name: &[u8]| {
            memory.name(DIR, name, 9) == Some(Found::Missing) && memory.is_missing(DIR, name)
        };
        let memory = made();
        assert!(is_missing(&memory, b"any") && is_missing(&memory, &[b'x'; NAME_MAX]));
        assert_eq!(memory.name(DIR, &[b'x'; NAME_MAX + 1], 9), None, "that is an error");
        let change = memory.change(DIR);
        memory.change_name(DIR, b"a");
        assert_eq!(memory.name(DIR, b"any", 9), None, "while it is being changed");
        change.keep_names(&[(b"a", ALL, 5), (b"b", ALL, 0)]);
        drop(change);
        assert!(is_missing(&memory, b"any") && is_missing(&memory, b"b"));
        assert!(!memory.is_missing(DIR, b"a"));
        // What has come of a change is not known.
        drop(memory.change(DIR));
        assert_eq!(memory.name(DIR, b"any", 9), None);
        assert!(is_missing(&memory, b"b"));
        // Its names have been forgotten, to make room.
        let memory = made();
        let change = memory.change(DIR);
        let asked = memory.asked();
        for number in 0..2 * INODES_PER_SHARD_MAX as u64 {
            memory.keep_attr(asked, ALL.attr, attr((1000 + number) * SHARDS as u64));
        }
        change.keep_names(&[(b"a", ALL, 0), (b"b", ALL, 5)]);
        drop(change);
        assert_eq!(memory.name(DIR, b"any", 9), None);
        let memory = made();
        memory.forget(DIR);
        assert_eq!(memory.name(DIR, b"any", 9), None, "it was recalled");
    }

    #[test]
    fn what_was_told_with_a_lease_is_known_until_it_is_recalled() {
        let memory = on();
        let asked = memory.asked();
        memory.keep_attr(asked, ALL.attr, attr(5));
        memory.keep_name(asked, (2, b"x"), ALL, 5);
        memory.keep_name(asked, (2, b"no"), ALL, 0);
        assert_eq!(memory.name(2, b"x", 9), Some(Found::Inode(attr(5))));
        assert_eq!(memory.name(2, b"no", 9), Some(Found::Missing));
        assert_eq!((memory.name(2, b"y", 9), memory.attr(2)), (None, None));
        memory.forget(5);
        assert_eq!(
            (memory.name(2, b"x", 9), memory.attr(5)),
            (None, None),
            "a name without attributes"
        );
        memory.keep_attr(asked, ALL.attr, attr(5));
        assert_eq!(memory.attr(5), None, "it was asked for before the recall");
        memory.keep_attr(memory.asked(), ALL.attr, attr(5));
        assert_eq!(memory.name(2, b"x", 9), Some(Found::Inode(attr(5))));
        memory.forget(2);
        assert_eq!(memory.name(2, b"no", 9), None);
        assert_eq!(memory.attr(5), Some(attr(5)));
    }

    #[test]
    fn nothing_is_kept_of_what_changes_meanwhile() {
        let memory = on();
        let before = memory.asked();
        memory.keep_attr(before, ALL.attr, attr(5));
        memory.keep_name(before, (2, b"x"), ALL, 5);
        memory.keep_name(before, (2, b"y"), ALL, 6);
        let change = memory.change(2);
        assert_eq!(memory.change_name(2, b"x"), 5);
        assert_eq!(memory.change_name(2, b"x"), 0);
        assert_eq!(memory.name(2, b"y", 0), None, "its attributes are not known");
        memory.keep_attr(memory.asked(), ALL.attr, attr(6));
        assert!(memory.name(2, b"y", 0).is_some(), "another name of the directory stays");
        memory.keep_name(memory.asked(), (2, b"x"), ALL, 5);
        memory.keep_attr(memory.asked(), ALL.attr, attr(2));
        assert_eq!((memory.name(2, b"x", 0), memory.attr(2)), (None, None));
        let during = memory.asked();
        drop(change);
        for asked in [before, during] {
            memory.keep_attr(asked, ALL.attr, attr(2));
            assert_eq!(memory.attr(2), None, "it may be what was before the change");
        }
        memory.keep_attr(memory.asked(), ALL.attr, attr(2));
        assert!(memory.attr(2).is_some());
        drop(memory.change_rights(2));
        assert_eq!(memory.name(2, b"y", 0), None, "others may search it now");
    }

    #[test]
    fn what_a_change_has_made_is_kept_if_nothing_else_has_happened() {
        let kept = |meanwhile: &dyn Fn(&Memory)| {
            let memory = on();
            let change = memory.change(2);
            meanwhile(&memory);
            change.keep_name(b"x", ALL, 5);
            change.keep_attr(ALL.attr, attr(2));
            change.keep_attr(ALL.attr, attr(6));
            drop(change);
            memory.keep_attr(memory.asked(), ALL.attr, attr(5));
            let found = (memory.name(2, b"x", 9), memory.attr(2), memory.attr(6));
            assert_eq!(found.2, None, "another's");
            assert_eq!(found.0.is_some(), found.1.is_some());
            found.0 == Some(Found::Inode(attr(5))) && found.1 == Some(attr(2))
        };
        assert!(kept(&|_| ()));
        assert!(kept(&|memory| memory.forget(3)));
        assert!(!kept(&|memory| memory.forget(2)), "it was recalled");
        assert!(!kept(&|memory| drop(memory.change(2))), "another has changed it");
        assert!(!kept(&|memory| std::mem::forget(memory.change(2))), "another is changing it");
        assert!(!kept(&|memory| memory.begin_session(Instant::now(), LEASE)), "another session's");
        assert!(!kept(&|memory| memory.end_session()));
        let memory = on();
        let change = memory.change(2);
        change.keep_name(b"x", Leased { name: 0, ..ALL }, 0);
        assert_eq!(memory.name(2, b"x", 0), None, "it may not be");
        let other = memory.change(2);
        drop(change);
        other.keep_name(b"x", ALL, 0);
        assert_eq!(memory.name(2, b"x", 0), None, "which came first is not known");
    }

    #[test]
    fn a_listing_is_known_as_long_as_its_directory_and_its_access_time_are_as_they_were() {
        let memory = on();
        let at = |seconds| Time { seconds, nanos: 0 };
        let now = seconds_now();
        let old = Attr { mode: S_IFDIR | 0o700, uid: 7, ..attr(2) };
        let young = Attr { atime: at(now), mtime: at(now - 9), ctime: at(now - 9), ..old };
        let keep = |attr: Attr, leased| {
            memory.keep_attr(memory.asked(), leased, attr);
            memory.keep_listing(memory.asked(), 2, b"entries");
        };
        let is_known = || memory.listing(2).is_some();
        keep(old, ALL.attr);
        assert!(!is_known(), "listing it is to change its access time");
        keep(young, ALL.attr);
        assert!(is_known() && memory.may_open_directory(2, 7) && memory.may_open_directory(2, 0));
        assert!(!memory.may_open_directory(2, 8));
        keep(young, ALL.attr | attributes::READABLE);
        assert!(memory.may_open_directory(2, 8));
        let asked = memory.asked();
        drop(memory.change(2));
        memory.keep_attr(memory.asked(), ALL.attr, young);
        memory.keep_listing(asked, 2, b"entries");
        assert!(!is_known() && !memory.may_open_directory(2, 0), "it has changed");
        keep(young, ALL.attr);
        memory.forget(2);
        memory.keep_attr(memory.asked(), ALL.attr, young);
        assert!(!is_known());
        keep(young, ALL.attr);
        memory.extend(Instant::now(), MARGIN);
        assert!(!is_known() && !memory.may_open_directory(2, 0), "the session may be over");
        memory.extend(Instant::now(), LEASE);
        keep(young, ALL.attr);
        for number in 1..=LISTINGS_PER_SHARD_MAX as u64 {
            memory.keep_listing(memory.asked(), 2, b"entries");
            memory.keep_listing(memory.asked(), 2 + number * SHARDS as u64, b"entries");
            let shard = memory.shard(2);
            let count = shard.inodes.values().filter(|known| known.listing.is_some()).count();
            assert_eq!(shard.listings, count);
            assert!(count <= LISTINGS_PER_SHARD_MAX);
        }
    }

    #[test]
    fn a_session_that_is_over_or_may_be_tells_nothing() {
        let memory = Memory::default();
        let early = memory.asked();
        memory.keep_attr(early, ALL.attr, attr(5));
        assert_eq!(memory.attr(5), None, "there is no session");
        memory.begin_session(Instant::now(), LEASE);
        memory.keep_attr(early, ALL.attr, attr(5));
        assert_eq!(memory.attr(5), None, "it was asked for before the session");
        memory.keep_attr(memory.asked(), ALL.attr, attr(5));
        assert!(memory.attr(5).is_some());
        memory.extend(Instant::now(), MARGIN);
        assert_eq!(memory.attr(5), None, "it may be over");
        memory.extend(Instant::now(), LEASE);
        assert!(memory.attr(5).is_some(), "the server has gone on with it");
        let asked = memory.asked();
        memory.end_session();
        memory.begin_session(Instant::now(), LEASE);
        memory.keep_attr(asked, ALL.attr, attr(6));
        assert_eq!((memory.attr(5), memory.attr(6)), (None, None));
    }

    #[test]
    fn names_are_told_to_those_who_may_search_their_directory() {
        let memory = on();
        let asked = memory.asked();
        let check = |name: u8, uid: u32, expected: bool| {
            memory.keep_name(asked, (2, b"x"), Leased { name, attr: 0, owner: 7 }, 0);
            assert_eq!(memory.name(2, b"x", uid).is_some(), expected, "{name} {uid}");
        };
        for (uid, bits) in
            [(0, [true, false, true]), (7, [false, true, true]), (8, [false, false, true])]
        {
            check(search::SUPERUSER, uid, bits[0]);
            check(search::OWNER, uid, bits[1]);
            check(search::EVERYBODY, uid, bits[2]);
        }
    }

    #[test]
    fn reading_changes_an_access_time_that_is_old() {
        let memory = on();
        let at = |seconds| Time { seconds, nanos: 0 };
        let now = seconds_now();
        assert!(memory.read(5).ino.is_some(), "it is not known");
        for (atime, mtime, ctime, changes) in [
            (now - 10, now - 20, now - 20, false),
            (now - 20, now - 20, now - 30, true),
            (now - 20, now - 30, now - 10, true),
            (now - DAY, now - DAY - 9, now - DAY - 9, true),
        ] {
            let known = Attr { atime: at(atime), mtime: at(mtime), ctime: at(ctime), ..attr(5) };
            memory.keep_attr(memory.asked(), ALL.attr, known);
            let asked = memory.asked();
            assert_eq!(memory.read(5).ino.is_some(), changes);
            assert_eq!(memory.attr(5).is_none(), changes);
            memory.keep_attr(asked, ALL.attr, known);
            assert_eq!(memory.attr(5).is_none(), changes, "it was asked for before");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let memory = on();
        let asked = memory.asked();
        for number in 0..NAMES_PER_SHARD_MAX + 10 {
            memory.keep_name(asked, (2, number.to_string().as_bytes()), ALL, 0);
        }
        assert!(memory.shard(2).names <= NAMES_PER_SHARD_MAX);
        for number in 0..INODES_PER_SHARD_MAX as u64 + 10 {
            memory.keep_attr(asked, ALL.attr, attr(3 + number * SHARDS as u64));
        }
        assert!(memory.shard(3).inodes.len() <= INODES_PER_SHARD_MAX);
        assert!(memory.name(2, b"4100", 0).is_some());
    }

    /// A kernel that notes what it is to forget. It does not know inode 99 at first.
    #[derive(Clone, Debug, Default)]
    struct Forgetful(Arc<Mutex<Vec<u64>>>);

    impl Kernel for Forgetful {
        fn forget(&self, ino: u64) -> bool {
            let mut forgotten = self.0.lock().unwrap();
            forgotten.push(ino);
            ino != 99 || forgotten.len() > 3
        }

        fn lose_pages(&self, ino: u64, _: &Range<u64>) {
            panic!("pages of {ino}");
        }

        fn grow(&self, ino: u64, _: u64) {
            panic!("size of {ino}");
        }
    }

    impl Forgetful {
        fn take(&self) -> Vec<u64> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    /// A memory whose kernel has been lent the attributes of inode 5, read a moment ago.
    fn lent() -> (Memory, Forgetful, Attr) {
        let (memory, kernel) = (on(), Forgetful::default());
        memory.attach(Arc::new(kernel.clone()));
        let at = |seconds| Time { seconds, nanos: 0 };
        let now = seconds_now();
        let known = Attr { atime: at(now), mtime: at(now - 9), ctime: at(now - 9), ..attr(5) };
        memory.keep_attr(memory.asked(), ALL.attr, known);
        assert_eq!(memory.lend(&known, true).0, LENT_FOR_MAX);
        (memory, kernel, known)
    }

    #[test]
    fn what_is_lent_is_taken_back_before_it_is_another() {
        let (memory, kernel, known) = lent();
        assert_eq!(memory.lend(&Attr { size: 8, ..known }, true).0, Duration::ZERO, "another");
        drop(memory.change(5));
        assert_eq!(kernel.take(), [5]);
        drop(memory.change(5));
        assert_eq!((kernel.take(), memory.lend(&known, true).0), (Vec::new(), Duration::ZERO));
        let (memory, kernel, known) = lent();
        memory.forget(5);
        assert_eq!((kernel.take(), memory.lend(&known, true).0), (vec![5], Duration::ZERO));
        let (memory, kernel, _) = lent();
        memory.end_session();
        assert_eq!(kernel.take(), [5]);
        let (memory, kernel, known) = lent();
        // Nothing is changed by reading what was read since.
        drop(memory.read(5));
        assert_eq!((kernel.take(), memory.attr(5)), (Vec::new(), Some(known)));
        let old = Attr { atime: Time::default(), ..known };
        memory.keep_attr(memory.asked(), ALL.attr, old);
        drop(memory.read(5));
        assert_eq!((kernel.take(), memory.attr(5)), (vec![5], None));
    }

    #[test]
    fn a_reply_that_makes_an_inode_known_is_waited_for() {
        let (memory, kernel, _) = lent();
        let unknown = attr(99);
        memory.keep_attr(memory.asked(), ALL.attr, unknown);
        assert_eq!(memory.lend(&unknown, false).0, LENT_FOR_MAX);
        memory.forget(99);
        assert_eq!(kernel.take().len(), 4, "until it was there");
    }

    #[test]
    fn names_are_lent_where_it_is_quiet_and_everybody_may_search() {
        let known_for = |memory: &mut Memory, time| memory.start -= time;
        let keep = |memory: &Memory, name| {
            let leased = Leased { name, ..ALL };
            memory.keep_name(memory.asked(), (2, b"x"), leased, 5);
            memory.keep_name(memory.asked(), (2, b"no"), leased, 0);
        };
        let lend = |memory: &Memory, name: &[u8], ino, is_settled| {
            let lent = memory.lend_name((2, name), ino, is_settled, 1);
            memory.told(1);
            lent
        };
        let (mut memory, _, _) = lent();
        keep(&memory, search::EVERYBODY);
        let many = |memory: &Memory| (0..HOT).map(|_| lend(memory, b"x", 5, true)).last();
        assert_eq!(many(&memory), Some(Duration::ZERO), "they have not been known for long");
        known_for(&mut memory, QUIET + NAME_LENT_FOR);
        assert_eq!(lend(&memory, b"x", 5, true), Duration::ZERO, "the first look for a while");
        assert_eq!(many(&memory), Some(NAME_LENT_FOR));
        assert_eq!(lend(&memory, b"no", 0, true), NAME_LENT_FOR);
        assert_eq!(lend(&memory, b"x", 5, false), Duration::ZERO, "more is to be done with it");
        for (name, ino) in [(&b"x"[..], 6), (b"no", 5), (b"y", 0)] {
            assert_eq!(lend(&memory, name, ino, true), Duration::ZERO, "not what is known");
        }
        let before = Instant::now();
        memory.forget(5);
        memory.wait_for_names(&[5]);
        assert!(before.elapsed() < NAME_GOES_IN, "no names are lent there");
        memory.wait_for_names(&[2]);
        assert!(before.elapsed() >= NAME_GOES_IN);
        keep(&memory, search::EVERYBODY);
        assert_eq!(many(&memory), Some(NAME_LENT_FOR));
        let before = Instant::now();
        memory.forget(5);
        memory.forget(2);
        memory.wait_for_names(&[5, 2]);
        assert!(before.elapsed() >= NAME_GOES_IN);
        assert_eq!(lend(&memory, b"x", 5, true), Duration::ZERO, "they are forgotten");
        keep(&memory, search::SUPERUSER | search::OWNER);
        known_for(&mut memory, QUIET + NAME_LENT_FOR);
        assert_eq!((many(&memory), many(&memory)), (Some(Duration::ZERO), Some(Duration::ZERO)));
        keep(&memory, search::EVERYBODY);
        memory.extend(Instant::now(), MARGIN);
        assert_eq!(many(&memory), Some(Duration::ZERO), "the session may be over");
    }

    #[test]
    fn what_is_lent_is_bounded() {
        let (memory, _, _) = lent();
        let lend = |number: u64| {
            let known = attr(7 + number * SHARDS as u64);
            memory.keep_attr(memory.asked(), ALL.attr, known);
            // All of them fit what is remembered of inodes.
            memory.shard(7).inodes.retain(|ino, _| *ino == known.ino);
            memory.lend(&known, true).0
        };
        let count = LENT_PER_SHARD_MAX as u64;
        assert!((0..count).all(|number| lend(number) == LENT_FOR_MAX));
        assert_eq!((lend(count), lend(count - 1)), (Duration::ZERO, LENT_FOR_MAX));
        memory.forget(7);
        assert_eq!(lend(count), LENT_FOR_MAX);
    }

    proptest! {
        /// Names are counted as they come and go.
        #[test]
        fn names_are_counted(steps in proptest::collection::vec(
            (prop_oneof![4 => 0..4u8, 1 => 4..6u8], 0..3u64, any::<bool>()), 1..60,
        )) {
            let memory = on();
            for (what, place, which) in steps {
                let parent = 2 + place * SHARDS as u64;
                let name: &[u8] = if which { b"a" } else { b"b" };
                match what {
                    0..=2 => memory.keep_name(memory.asked(), (parent, name), ALL, 9),
                    3 => drop(memory.change_name(parent, name)),
                    4 => memory.forget(parent),
                    _ => drop(memory.change_rights(parent)),
                }
                let shard = memory.shard(2);
                let names: usize = shard.inodes.values().map(|known| known.names.len()).sum();
                prop_assert_eq!(shard.names, names);
            }
        }
    }
}
