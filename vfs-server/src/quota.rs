//! Quotas of directory trees: what a directory and all below it may have in bytes and inodes. The root's is the container's.
//!
//! Each inode says in which tree it is counted, the innermost one; a tree is *within* another, and what it counts, that one counts too. So a change
//! of a file's size is one of a few records, and what a tree has is known without looking through it. Counted are the blocks of 4 KiB up
//! to a file's end, holes too: what a file can come to need without becoming longer is there.
//!
//! When a directory gets a quota, or loses it, what is below is counted where it belongs little by little: a *walk* over its entries, and in turn
//! over those of the directories among them. Until it has ended, an inode may be counted in a tree around its own, or in one that is
//! gone; new ones are counted with the directory they are made in, which the walk comes to later, or has come to. What holds all
//! the time, but for files that are spread: an entry is counted with its directory, is itself the root of a tree, or the directory's walk has yet to come to it.
//!
//! As with the project quotas of XFS a directory with something in it does not move from one tree to another (EXDEV), so that mv(1) copies
//! it. A file with one name does, if there is room for it. One that had several names when it came to be counted in another tree is *spread*: they may
//! be in several trees, and it is counted in the one that was walked last, also when its names there are gone, until its only name is moved.

use crate::VfsServer;
use crate::answer::{Result, err};
use crate::dir::DT_DIR;
use crate::keys::{self, Corrupt, Inode, Place, Tree, mark};
use crate::limits::{
    SNAPSHOT_RETRY, STATFS_BLOCK_SIZE, TREE_DEPTH_MAX, TREE_WALK_BATCH, TREE_WALK_INTERVAL,
    TREES_MAX,
};
use crate::snapshot::refuse_change;
use calls::vfs::{FsStats, NO_LIMIT, Quota, Quotas, ROOT_INO, SetQuota};
use calls::wire::Wire;
use dvk::server::{Call, Context, Nanos};
use dvk::store::Store;
use m3ipc::errno::numbers::{EDQUOT, ELOOP, ENOENT, ENOSPC, ENOTDIR, EPERM, ESTALE, EXDEV};
use m3ipc::limits::PAYLOAD_MAX;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// What is counted, in bytes.
const BLOCK: u64 = STATFS_BLOCK_SIZE as u64;

/// All trees with a quota, and those whose quota is gone and that still count something.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    by_number: BTreeMap<u16, Tree>,
    by_root: BTreeMap<u64, u16>,
    /// The number given out last.
    last: u16,
    /// Directories whose entries are yet to be counted with them, and from which cookie on, in the order of their turns: the last has the
    /// next.
    walks: Vec<u64>,
    cookies: BTreeMap<u64, u64>,
    /// When walks go on; `None`: there are none.
    due: Option<Nanos>,
}

impl Trees {
    /// Takes up what an earlier life has left.
    pub(crate) fn open(store: &dyn Store) -> std::result::Result<Trees, Corrupt> {
        let mut trees = Trees::default();
        let mut outcome = Ok(());
        keys::collect(store, &keys::trees(), |key, value| {
            let number = keys::numbers(key).and_then(|[number]| u16::try_from(number).ok());
            match (number, Tree::get(value)) {
                (Some(number), Some(tree)) => {
                    trees.last = trees.last.max(number);
                    trees.by_number.insert(number, tree);
                    if tree.root != 0 {
                        trees.by_root.insert(tree.root, number);
                    }
                }
                _ => outcome = Err(Corrupt),
            }
        });
        keys::collect(store, &keys::walks(), |key, value| {
            match (keys::numbers(key), u64::get(value)) {
                (Some([dir]), Some(cookie)) => {
                    trees.walks.push(dir);
                    trees.cookies.insert(dir, cookie);
                }
                _ => outcome = Err(Corrupt),
            }
        });
        trees.due = (!trees.walks.is_empty()).then_some(0);
        outcome.map(|()| trees)
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.due
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// Bytes that files counted in `tree` may grow by.
    pub(crate) fn free_bytes(&self, tree: u16) -> u64 {
        self.free_blocks(tree).saturating_mul(BLOCK)
    }

    /// An inode changes from `before` to `after`; `None`: there is none.
    pub(crate) fn count(
        &mut self,
        before: Option<&Inode>,
        after: Option<&Inode>,
        store: &mut dyn Store,
    ) {
        let part = |inode: &Inode| {
            let is_counted = inode.marks & mark::GARBAGE == 0;
            is_counted.then(|| (inode.tree, blocks(inode)))
        };
        let (before, after) = (before.and_then(part), after.and_then(part));
        if before == after {
            return;
        }
        let of =
            |part: Option<(u16, u64)>| part.map_or((0, 0, 0), |(tree, blocks)| (tree, blocks, 1));
        let ((old, old_blocks, was), (new, new_blocks, is)) = (of(before), of(after));
        if old == new {
            let apart = |after: u64, before: u64| after.wrapping_sub(before);
            self.add(new, apart(new_blocks, old_blocks), apart(is, was), store);
        } else {
            // The new one first: one whose quota is gone must not look empty in between.
            self.add(new, new_blocks, is, store);
            self.add(old, old_blocks.wrapping_neg(), was.wrapping_neg(), store);
        }
    }

    /// What statfs(2) says below a directory that is counted in `tree`.
    pub(crate) fn bound(&self, tree: u16, mut stats: FsStats) -> FsStats {
        for (_, tree) in self.chain(tree) {
            if tree.blocks_limit != NO_LIMIT {
                let free = tree.blocks_limit.saturating_sub(tree.blocks);
                stats.blocks = stats.blocks.min(tree.blocks_limit);
                stats.blocks_free = stats.blocks_free.min(free);
                stats.blocks_available = stats.blocks_available.min(free);
            }
            if tree.inodes_limit != NO_LIMIT {
                let free = tree.inodes_limit.saturating_sub(tree.inodes);
                stats.files = stats.files.min(tree.inodes_limit);
                stats.files_free = stats.files_free.min(free);
            }
        }
        stats
    }

    /// `tree` and those around it, from the inside out.
    fn chain(&self, tree: u16) -> impl Iterator<Item = (u16, &Tree)> {
        let with = |number: u16| self.by_number.get(&number).map(|tree| (number, tree));
        std::iter::successors(with(tree), move |(_, tree)| with(tree.parent))
    }

    /// Is `inner` the same as `outer`, or within it?
    fn is_within(&self, inner: u16, outer: u16) -> bool {
        outer == 0 || self.chain(inner).any(|(number, _)| number == outer)
    }

    fn free_blocks(&self, tree: u16) -> u64 {
        self.chain(tree).map(|(_, tree)| tree.free_blocks()).min().unwrap_or(u64::MAX)
    }

    fn free_inodes(&self, tree: u16) -> u64 {
        self.chain(tree).map(|(_, tree)| tree.free_inodes()).min().unwrap_or(u64::MAX)
    }

    /// Is there room in `tree` for what has been counted in `from` so far, once `freed` is gone?
    fn has_room_for(&self, inode: &Inode, tree: u16, from: u16, freed: Option<&Inode>) -> bool {
        self.chain(tree).filter(|(number, _)| !self.is_within(from, *number)).all(
            |(number, tree)| {
                let freed = freed.filter(|freed| self.is_within(freed.tree, number));
                let blocks_freed = freed.map_or(0, blocks);
                let has_inode = freed.is_some() || tree.free_inodes() > 0;
                has_inode && tree.free_blocks().saturating_add(blocks_freed) >= blocks(inode)
            },
        )
    }

    /// Adds to what `tree` has, and all around it; what is added may be negative (two's complement).
    fn add(&mut self, tree: u16, blocks: u64, inodes: u64, store: &mut dyn Store) {
        let mut number = tree;
        while let Some(tree) = self.by_number.get_mut(&number) {
            tree.blocks = tree.blocks.wrapping_add(blocks);
            tree.inodes = tree.inodes.wrapping_add(inodes);
            let (key, parent) = (keys::tree(number), tree.parent);
            if tree.root == 0 && tree.inodes == 0 {
                store.remove(&key);
                self.by_number.remove(&number);
            } else {
                store.put(&key, &tree.bytes());
            }
            number = parent;
        }
    }

    /// `tree` is within `parent` from now on.
    fn reparent(&mut self, tree: u16, parent: u16, store: &mut dyn Store) {
        let Some(found) = self.by_number.get(&tree).copied() else { return };
        if found.parent == parent || self.is_within(parent, tree) && parent != 0 {
            return;
        }
        self.add(parent, found.blocks, found.inodes, store);
        self.add(found.parent, found.blocks.wrapping_neg(), found.inodes.wrapping_neg(), store);
        self.put(tree, Tree { parent, ..found }, store);
    }

    fn put(&mut self, number: u16, tree: Tree, store: &mut dyn Store) {
        store.put(&keys::tree(number), &tree.bytes());
        self.by_number.insert(number, tree);
    }

    /// What is in directory `ino` is yet to be counted with it.
    pub(crate) fn walk(&mut self, ino: u64, cx: &mut Context<'_>) {
        if self.cookies.insert(ino, 0).is_none() {
            self.walks.push(ino);
        }
        cx.store.put(&keys::walk(ino), &0_u64.to_le_bytes());
        self.due.get_or_insert(cx.now.saturating_add(TREE_WALK_INTERVAL));
    }

    /// The walk of directory `ino` goes on at `cookie`; `None`: it has ended.
    fn walked(&mut self, ino: u64, cookie: Option<u64>, store: &mut dyn Store) {
        match cookie {
            Some(cookie) => {
                store.put(&keys::walk(ino), &cookie.to_le_bytes());
                self.cookies.insert(ino, cookie);
            }
            None => {
                store.remove(&keys::walk(ino));
                self.cookies.remove(&ino);
                self.walks.retain(|walk| *walk != ino);
            }
        }
    }

    /// Directory `ino` has no quota any more, or is gone. False: it had none.
    pub(crate) fn end(&mut self, ino: u64, store: &mut dyn Store) -> bool {
        let Some(number) = self.by_root.remove(&ino) else { return false };
        if let Some(tree) = self.by_number.get(&number).copied() {
            let unlimited = Tree { blocks_limit: NO_LIMIT, inodes_limit: NO_LIMIT, ..tree };
            self.put(number, Tree { root: 0, ..unlimited }, store);
        }
        true
    }

    /// A new tree, within `parent`.
    ///
    /// # Errors
    /// ELOOP, ENOSPC.
    fn begin(&mut self, root: u64, parent: u16, store: &mut dyn Store) -> Result<u16> {
        // Those below will be deeper by one: who begins with the innermost may have as many as there are directories around it.
        if self.chain(parent).count() >= TREE_DEPTH_MAX {
            return err(ELOOP);
        }
        if self.by_number.len() >= TREES_MAX {
            return err(ENOSPC);
        }
        // The one that has been free for longest: what was garbage when its tree went may still carry its number.
        let behind = self.last.checked_add(1).unwrap_or(1);
        let mut numbers = (behind..=u16::MAX).chain(1..behind);
        let Some(number) = numbers.find(|number| !self.by_number.contains_key(number)) else {
            return err(ENOSPC);
        };
        self.last = number;
        self.put(number, Tree { root, parent, ..Tree::default() }, store);
        self.by_root.insert(root, number);
        Ok(number)
    }
}

#[cfg(test)]
impl Trees {
    pub(crate) fn walk_count(&self) -> usize {
        self.walks.len()
    }

    /// Does it know the same, but for when it goes on?
    pub(crate) fn is_as(&self, other: &Trees) -> bool {
        self.by_number == other.by_number
            && self.by_root == other.by_root
            && self.cookies == other.cookies
            && self.walks.len() == other.walks.len()
            && self.due.is_some() == other.due.is_some()
    }
}

#[cfg(test)]
impl Inode {
    /// May it be counted in another tree than its names are in?
    pub(crate) fn is_spread(&self) -> bool {
        self.marks & mark::SPREAD != 0
    }
}

impl Tree {
    fn free_blocks(&self) -> u64 {
        match self.blocks_limit {
            NO_LIMIT => u64::MAX,
            limit => limit.saturating_sub(self.blocks),
        }
    }

    fn free_inodes(&self) -> u64 {
        match self.inodes_limit {
            NO_LIMIT => u64::MAX,
            limit => limit.saturating_sub(self.inodes),
        }
    }
}

/// Blocks that an inode counts.
fn blocks(inode: &Inode) -> u64 {
    if inode.is_regular() { inode.size.div_ceil(BLOCK) } else { 0 }
}

impl VfsServer {
    pub(crate) fn set_quota(
        &mut self,
        row: SetQuota,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        if (call.cred.pid, call.cred.uid) != (0, 0) {
            return err(EPERM);
        }
        refuse_change(row.ino)?;
        let mut dir = self.inode(row.ino, cx)?;
        if !dir.is_directory() {
            return err(ENOTDIR);
        }
        if dir.nlink == 0 {
            return err(ESTALE);
        }
        if row.remove != 0 {
            let around = self.tree_around(&dir, cx)?;
            if !self.trees.end(dir.ino, cx.store) {
                return err(ENOENT);
            }
            self.count_in(&mut dir, around, cx);
            return Ok(());
        }
        let number = match self.trees.by_root.get(&dir.ino) {
            Some(number) => *number,
            None => {
                let parent = self.tree_around(&dir, cx)?;
                let number = self.trees.begin(dir.ino, parent, cx.store)?;
                self.count_in(&mut dir, number, cx);
                number
            }
        };
        let Some(tree) = self.trees.by_number.get(&number).copied() else { return err(ENOENT) };
        let blocks_limit = if row.bytes == NO_LIMIT { NO_LIMIT } else { row.bytes / BLOCK };
        let tree = Tree { blocks_limit, inodes_limit: row.inodes, ..tree };
        self.trees.put(number, tree, cx.store);
        Ok(())
    }

    pub(crate) fn quotas(&self, row: Quotas, call: &Call<'_>) -> Result<Vec<u8>> {
        // Numbers of inodes are for those who have looked up their names.
        if (call.cred.pid, call.cred.uid) != (0, 0) {
            return err(EPERM);
        }
        let is_counting = self.trees.due.is_some().into();
        let behind = (std::ops::Bound::Excluded(row.after), std::ops::Bound::Unbounded);
        let alive = self.trees.by_number.range(behind).filter(|(_, tree)| tree.root != 0);
        let mut payload = Vec::new();
        for (&number, tree) in alive.take(PAYLOAD_MAX / Quota::SIZE) {
            let quota = Quota {
                ino: tree.root,
                bytes_limit: tree.blocks_limit.saturating_mul(BLOCK),
                inodes_limit: tree.inodes_limit,
                bytes: tree.blocks.saturating_mul(BLOCK),
                inodes: tree.inodes,
                tree: number,
                is_counting,
            };
            payload.extend_from_slice(&quota.bytes());
        }
        Ok(payload)
    }

    /// How long file `inode` may become, at most `size`.
    pub(crate) fn within_quota(&self, inode: &Inode, size: u64) -> u64 {
        let (has, wants) = (blocks(inode), size.div_ceil(BLOCK));
        if inode.tree == 0 || wants <= has {
            return size;
        }
        let free = self.trees.free_blocks(inode.tree);
        size.min(has.saturating_add(free).saturating_mul(BLOCK))
    }

    /// May file `inode` become as long as `size`?
    ///
    /// # Errors
    /// EDQUOT.
    pub(crate) fn check_growth(&self, inode: &Inode, size: u64) -> Result<()> {
        if self.within_quota(inode, size) < size { err(EDQUOT) } else { Ok(()) }
    }

    /// May there be one more inode in `tree`?
    ///
    /// # Errors
    /// EDQUOT.
    pub(crate) fn check_new_inode(&self, tree: u16) -> Result<()> {
        if tree != 0 && self.trees.free_inodes(tree) == 0 { err(EDQUOT) } else { Ok(()) }
    }

    /// May `inode`, which is garbage and is counted no more, be counted again?
    ///
    /// # Errors
    /// ESTALE.
    pub(crate) fn check_revival(&self, inode: &mut Inode) -> Result<()> {
        if !self.trees.by_number.contains_key(&inode.tree) {
            inode.tree = 0;
        }
        if self.trees.has_room_for(inode, inode.tree, 0, None) { Ok(()) } else { err(ESTALE) }
    }

    /// May `inode` get a name in `dir` beside those it has?
    ///
    /// # Errors
    /// EXDEV, EDQUOT.
    pub(crate) fn check_link(&self, inode: &Inode, dir: &Inode) -> Result<()> {
        let (trees, from, to) = (&self.trees, inode.tree, dir.tree);
        // The walk of its directory may have yet to come to it.
        let is_gone = trees.by_number.get(&from).is_some_and(|tree| tree.root == 0);
        let is_to_come = trees.due.is_some() && (is_gone || trees.is_within(to, from));
        if from != to && inode.nlink > 0 && !is_to_come {
            return err(EXDEV);
        }
        if trees.has_room_for(inode, to, from, None) { Ok(()) } else { err(EDQUOT) }
    }

    /// May `inode` move from directory `from` to directory `to`, where `freed` is gone then?
    ///
    /// # Errors
    /// EXDEV, EDQUOT.
    pub(crate) fn check_trees(
        &mut self,
        from: &Inode,
        to: &Inode,
        inode: &Inode,
        freed: Option<&Inode>,
        cx: &Context<'_>,
    ) -> Result<()> {
        if self.trees.is_empty() {
            return Ok(());
        }
        let (is_settled, is_root) =
            (self.is_settled(), self.trees.by_root.contains_key(&inode.ino));
        let is_full = inode.is_directory() && inode.size > 0;
        let has_others = !inode.is_directory() && inode.nlink > 1;
        let has_same_mark = from.ino == to.ino || is_settled && from.tree == to.tree;
        let is_same = has_same_mark || self.tree_of(from, cx)? == self.tree_of(to, cx)?;
        if !is_same && (is_full || has_others || is_root) {
            return err(EXDEV);
        }
        // Else a walk that has been there would have to come again, for as long as somebody likes.
        if is_full
            && !is_root
            && from.ino != to.ino
            && inode.tree != to.tree
            && self.tree_of(to, cx)? != to.tree
        {
            return err(EXDEV);
        }
        let is_recounted = !is_same || is_settled && !has_others && !is_root;
        if !is_recounted || self.trees.has_room_for(inode, to.tree, inode.tree, freed) {
            Ok(())
        } else {
            err(EDQUOT)
        }
    }

    /// Is all counted where it belongs?
    pub(crate) fn is_settled(&self) -> bool {
        self.trees.due.is_none()
    }

    /// `inode` has a name in a directory that is counted in `tree`. The caller stores it.
    pub(crate) fn join_tree(&mut self, inode: &mut Inode, tree: u16, cx: &mut Context<'_>) {
        if let Some(own) = self.trees.by_root.get(&inode.ino) {
            self.trees.reparent(*own, tree, cx.store);
        } else if inode.tree != tree {
            inode.tree = tree;
            if inode.is_directory() && inode.size > 0 {
                self.trees.walk(inode.ino, cx);
            }
            if !inode.is_directory() && inode.nlink > 1 {
                inode.marks |= mark::SPREAD;
            }
        }
        if inode.nlink == 1 {
            inode.marks &= !mark::SPREAD;
        }
    }

    /// The clock's part: goes on with the walks.
    pub(crate) fn quota_tick(&mut self, cx: &mut Context<'_>) {
        if self.trees.due.is_none_or(|due| cx.now < due) {
            return;
        }
        if self.has_no_room_to_keep(cx) {
            // What it changes they would keep.
            self.trees.due = Some(cx.now.saturating_add(SNAPSHOT_RETRY));
            return;
        }
        // Deep before wide, so that few are under way at once; but whoever begins one walk anew all the time holds up no other.
        let first = self.trees.walks.len().min(1);
        self.trees.walks.rotate_left(first);
        let mut budget = TREE_WALK_BATCH;
        while budget > 0
            && let Some(dir) = self.trees.walks.last().copied()
        {
            budget = budget.saturating_sub(1 + self.walk_on(dir, budget, cx));
        }
        let has_more = !self.trees.walks.is_empty();
        self.trees.due = has_more.then(|| cx.now.saturating_add(TREE_WALK_INTERVAL));
    }

    /// Counts entries of a directory with it, as many as `most`, up to the first that is a directory. Says how many it was.
    fn walk_on(&mut self, dir: u64, most: usize, cx: &mut Context<'_>) -> usize {
        let found = self.inodes.peek(dir, cx.store).ok().flatten();
        let Some(tree) = found.filter(Inode::is_directory).map(|dir| dir.tree) else {
            self.trees.walked(dir, None, cx.store);
            return 0;
        };
        let cookie = self.trees.cookies.get(&dir).copied().unwrap_or(0);
        let (from, to) = keys::places_from(dir, cookie);
        let mut entries = Vec::new();
        let mut next = None;
        cx.store.range(&from, &to, &mut |key, value| {
            let (Some([_, cookie]), Some(place)) = (keys::numbers(key), Place::get(value)) else {
                return ControlFlow::Continue(());
            };
            entries.push(place.ino);
            if entries.len() < most && place.kind != DT_DIR {
                return ControlFlow::Continue(());
            }
            next = cookie.checked_add(1);
            ControlFlow::Break(())
        });
        // Before a walk of what is found in it begins, which may be of this one.
        self.trees.walked(dir, next, cx.store);
        for ino in &entries {
            let Some(mut child) = self.inodes.peek(*ino, cx.store).ok().flatten() else { continue };
            let before = child;
            self.join_tree(&mut child, tree, cx);
            if child != before {
                self.trees.count(Some(&before), Some(&child), cx.store);
                self.inodes.put_uncached(&child, cx.store);
            }
        }
        entries.len()
    }

    /// Counts a directory, and then all below it, in `tree`.
    fn count_in(&mut self, dir: &mut Inode, tree: u16, cx: &mut Context<'_>) {
        dir.tree = tree;
        self.save(dir, cx);
        if dir.size > 0 {
            self.trees.walk(dir.ino, cx);
        }
    }

    /// Where the directory that `dir` is in is counted.
    fn tree_around(&mut self, dir: &Inode, cx: &Context<'_>) -> Result<u16> {
        if dir.ino == ROOT_INO { Ok(0) } else { Ok(self.directory(dir.parent, cx)?.tree) }
    }

    /// The innermost tree that a directory is in, or the root of; 0: none.
    fn tree_of(&mut self, dir: &Inode, cx: &Context<'_>) -> Result<u16> {
        let mut at = *dir;
        loop {
            match self.trees.by_root.get(&at.ino) {
                Some(number) => return Ok(*number),
                None if at.ino == ROOT_INO => return Ok(0),
                None => at = self.directory(at.parent, cx)?,
            }
        }
    }
}
