//! What the kernel is told to remember, for a short time, and how it is made to forget that.

use super::{Known, Memory, Shard, index, slot};
use crate::kernel::Kernel;
use crate::limits::{
    FORGET_PAUSE, HOT, LENT_FOR_MAX, LENT_PER_SHARD_MAX, MARGIN, NAME_LENT_FOR, QUIET,
};
use crate::names::nanos;
use calls::vfs::{Attr, search};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// What the kernel may remember of an inode.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lent {
    /// Attributes; as [`Memory::until`].
    pub(super) until: u64,
    /// Does it know the inode for sure? Else the reply that tells it may not have been read yet.
    is_known: bool,
    /// Is somebody having it forgotten?
    is_going: bool,
}

impl Lent {
    /// Might the kernel still remember something?
    pub(super) fn is_needed(&self, now: u64) -> bool {
        now < self.until.saturating_add(nanos(MARGIN))
    }
}

/// How often names of a directory have been looked up of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Looks {
    /// Since when names are known, and unchanged by this node; 0: none are.
    pub(super) known: u64,
    /// Since when `count` is counted.
    since: u64,
    count: u32,
}

impl Looks {
    /// Of a directory whose names are known from `now` on.
    pub(super) fn known_since(now: u64) -> Looks {
        Looks { known: now, ..Looks::default() }
    }

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

impl Memory {
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
    pub(super) fn take_back(&self, shard: MutexGuard<'_, Shard>, ino: u64) {
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
    pub(super) fn while_going<'a>(
        &'a self,
        mut shard: MutexGuard<'a, Shard>,
        ino: u64,
    ) -> MutexGuard<'a, Shard> {
        while shard.lent.get(&ino).is_some_and(|lent| lent.is_going) {
            shard = self.forgot[index(ino)].wait(shard).unwrap_or_else(PoisonError::into_inner);
        }
        shard
    }
}

impl Shard {
    /// May something more be lent of inode `ino`?
    fn has_room_to_lend(&mut self, ino: u64, now: u64) -> bool {
        if self.lent.len() < LENT_PER_SHARD_MAX || self.lent.contains_key(&ino) {
            return true;
        }
        self.lent.retain(|_, lent| lent.is_going || lent.is_needed(now));
        self.lent.len() < LENT_PER_SHARD_MAX
    }
}
