//! Destroying inodes that nothing refers to any more, and giving back the storage behind a file's
//! end: always in a later round than the one that made them garbage.
//!
//! Garbage waits for the second tick after it arose; between two ticks lies a commit. A round's
//! changes of the map are committed together, but a blob is cut at once: were a truncated file's blob
//! cut in the round of the call, a crash before the commit would leave the old size with zeros. And in
//! the meantime an inode without a name can still be opened by number, which spares a program that has
//! just looked its name up, on a node far away, an error that no local file system would give it.
//!
//! Which inodes are garbage is in the store (`G`); blobs to be cut are not, because a crash only
//! leaves them longer than needed, and growing a file cuts first (`read_write.rs`).

use crate::VfsServer;
use crate::answer::{Result, err};
use crate::keys::{self, Inode, mark};
use crate::limits::{
    METADATA_COST, RECLAIM_BACKLOG_INTERVAL, RECLAIM_BATCH, RECLAIM_INTERVAL, SPACE_GRANT,
    SPACE_KNOWN, SPACE_RESERVE,
};
use crate::linux::{S_IFLNK, S_IFREG};
use dvk::server::{Context, Nanos};
use dvk::store::Store;
use m3ipc::errno::numbers::ENOSPC;
use std::collections::VecDeque;

/// What waits to be reclaimed, and how much may be written before asking for free space again.
#[derive(Debug, Default)]
pub(crate) struct Reclaim {
    queue: VecDeque<Garbage>,
    /// Ticks so far.
    ticks: u64,
    due: Option<Nanos>,
    /// Bytes that may be used without asking the store.
    granted: u64,
    /// What [`Store::space`] said, and until when that is taken to be so.
    lately: ((u64, u64), Nanos),
}

/// An inode to destroy, or whose blob to cut at `size`, which it had then, and the tick it arose after.
#[derive(Clone, Copy, Debug)]
struct Garbage {
    ino: u64,
    size: u64,
    tick: u64,
}

impl Reclaim {
    /// Takes up the garbage of an earlier life; its deletion is committed already.
    pub(crate) fn open(store: &dyn Store) -> Reclaim {
        let mut reclaim = Reclaim { ticks: 2, ..Reclaim::default() };
        keys::collect(store, &keys::all_garbage(), |key, _| {
            if let Some([ino]) = keys::numbers(key) {
                reclaim.queue.push_back(Garbage { ino, size: u64::MAX, tick: 0 });
            }
        });
        reclaim.due = (!reclaim.queue.is_empty()).then_some(0);
        reclaim
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.due
    }

    fn push(&mut self, ino: u64, size: u64, now: Nanos) {
        self.queue.push_back(Garbage { ino, size, tick: self.ticks });
        self.due.get_or_insert(now.saturating_add(RECLAIM_INTERVAL));
    }

    /// The next inode that became garbage at least two ticks ago.
    fn pop_ripe(&mut self) -> Option<Garbage> {
        let ripe = self.queue.front().is_some_and(|garbage| garbage.tick + 2 <= self.ticks);
        if ripe { self.queue.pop_front() } else { None }
    }
}

impl VfsServer {
    /// The last name or the last handle of an inode is gone. No quota counts it from now on, so that there is room at once.
    pub(crate) fn discard(&mut self, mut inode: Inode, cx: &mut Context<'_>) {
        inode.marks |= mark::GARBAGE;
        self.save(&inode, cx);
        cx.store.put(&keys::garbage(inode.ino), &[]);
        self.reclaim.push(inode.ino, u64::MAX, cx.now);
    }

    /// Somebody opens an inode that has no name any more.
    ///
    /// # Errors
    /// ESTALE: its room has been given to others.
    pub(crate) fn revive(&mut self, inode: &mut Inode, cx: &mut Context<'_>) -> Result<()> {
        self.check_revival(inode)?;
        inode.marks &= !mark::GARBAGE;
        self.save(inode, cx);
        cx.store.remove(&keys::garbage(inode.ino));
        Ok(())
    }

    /// File `ino` has become shorter: `size`.
    pub(crate) fn cut_later(&mut self, ino: u64, size: u64, cx: &Context<'_>) {
        self.reclaim.push(ino, size, cx.now);
    }

    /// The clock's part: reclaims what has waited long enough.
    pub(crate) fn reclaim_tick(&mut self, cx: &mut Context<'_>) {
        if self.reclaim.due.is_none_or(|due| cx.now < due) {
            return;
        }
        self.reclaim.ticks += 1;
        let mut budget = RECLAIM_BATCH;
        while budget > 0
            && let Some(garbage) = self.reclaim.pop_ripe()
        {
            self.reclaim_one(garbage, cx);
            budget -= 1;
        }
        let pause = if budget == 0 { RECLAIM_BACKLOG_INTERVAL } else { RECLAIM_INTERVAL };
        let more = !self.reclaim.queue.is_empty();
        self.reclaim.due = more.then(|| cx.now.saturating_add(pause));
    }

    /// Takes `bytes` of the storage that is free.
    ///
    /// # Errors
    /// ENOSPC, if the reserve would be touched even after everything was reclaimed. What has just
    /// been reclaimed counts as free, though the store may give it back to the disk only later.
    pub(crate) fn take_space(&mut self, bytes: u64, cx: &mut Context<'_>) -> Result<()> {
        if self.reclaim.granted < bytes && !self.ask_for_space(bytes, cx) {
            let freed = self.reclaim_all(cx);
            if !self.ask_for_space(bytes, cx) {
                if freed < bytes {
                    return err(ENOSPC);
                }
                self.reclaim.granted = freed;
            }
        }
        self.reclaim.granted -= bytes;
        Ok(())
    }

    /// What is [`available`], or was a moment ago: the disk is not asked for each file that is opened or changed.
    pub(crate) fn available_lately(&mut self, cx: &Context<'_>) -> u64 {
        let (total, free) = self.space_lately(cx);
        free.saturating_sub(reserve(total))
    }

    /// Is so much of the reserve gone that nothing must change that snapshots would have to keep? (Or was, a moment ago.)
    pub(crate) fn has_no_room_to_keep(&mut self, cx: &Context<'_>) -> bool {
        if !self.has_snapshots {
            return false;
        }
        let (total, free) = self.space_lately(cx);
        free < reserve(total) / 2
    }

    fn space_lately(&mut self, cx: &Context<'_>) -> (u64, u64) {
        if self.reclaim.lately.1 <= cx.now {
            self.reclaim.lately = (cx.store.space(), cx.now.saturating_add(SPACE_KNOWN));
        }
        self.reclaim.lately.0
    }

    /// Takes what a new name or inode costs.
    ///
    /// # Errors
    /// ENOSPC.
    pub(crate) fn take_metadata_space(&mut self, cx: &mut Context<'_>) -> Result<()> {
        self.take_space(METADATA_COST, cx)
    }

    fn ask_for_space(&mut self, bytes: u64, cx: &Context<'_>) -> bool {
        let available = available(cx.store);
        let grant = SPACE_GRANT.min(reserve(cx.store.space().0) / 4);
        self.reclaim.granted = available.min(grant.max(bytes));
        bytes <= available
    }

    /// Reclaims at once, and says how many bytes that frees: the disk is full. A crash before this round's commit may cost the data of
    /// files deleted in the same round; refusing to write to a disk that has just been cleared would
    /// be the more common harm.
    pub(crate) fn reclaim_all(&mut self, cx: &mut Context<'_>) -> u64 {
        let (mut freed, mut later) = (0, VecDeque::new());
        while let Some(garbage) = self.reclaim.queue.pop_front() {
            // What a snapshot has as well does not become free, and to cut it takes room.
            let is_shared = cx.store.blob_is_shared(garbage.ino);
            if is_shared && garbage.size != u64::MAX {
                later.push_back(garbage);
                continue;
            }
            let used = cx.store.blob_used(garbage.ino);
            self.reclaim_one(garbage, cx);
            if !is_shared {
                freed += used.saturating_sub(cx.store.blob_used(garbage.ino));
            }
        }
        self.reclaim.queue = later;
        freed
    }

    /// Looks again at what was garbage: it may have been opened, or be gone already.
    fn reclaim_one(&mut self, Garbage { ino, size, .. }: Garbage, cx: &mut Context<'_>) {
        let Ok(Some(inode)) = self.inodes.find(ino, cx.store) else { return };
        if inode.nlink == 0 && !self.opens.is_open(ino) {
            self.destroy(&inode, cx);
            self.recall_late(ino, None, cx);
            self.recall_pages_late(ino, cx);
            return;
        }
        // What it has lost since then is not committed yet, and has garbage of its own.
        let end = inode.size.max(size);
        if inode.is_regular() && extends_beyond(cx.store, ino, end) {
            // A blob that cannot be cut now is cut before the file grows again, or never needs to be.
            cx.store.blob_truncate(ino, end).ok();
            // It takes less room now.
            self.recall_late(ino, None, cx);
        }
    }

    fn destroy(&mut self, inode: &Inode, cx: &mut Context<'_>) {
        let (ino, kind) = (inode.ino, inode.kind());
        let mut gone = vec![keys::garbage(ino)];
        if kind == S_IFLNK {
            gone.push(keys::target(ino));
        }
        keys::collect(cx.store, &keys::xattrs(ino), |key, _| gone.push(key.to_vec()));
        for key in gone {
            cx.store.remove(&key);
        }
        self.inodes.remove(ino, cx.store);
        if kind == S_IFREG {
            cx.store.blob_remove(ino);
        }
        self.numbers.inode_gone(cx.store);
    }
}

/// Does the blob have bytes at or behind `size`?
pub(crate) fn extends_beyond(store: &dyn Store, blob: u64, size: u64) -> bool {
    store.blob_seek(blob, size, true).is_some()
}

/// Bytes that callers may use.
pub(crate) fn available(store: &dyn Store) -> u64 {
    let (total, free) = store.space();
    free.saturating_sub(reserve(total))
}

pub(crate) fn reserve(total: u64) -> u64 {
    SPACE_RESERVE.min(total / 16)
}
