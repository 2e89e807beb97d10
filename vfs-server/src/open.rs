//! Open files: open, create, release, and who holds what.
//!
//! A handle is a number that is never used again. Its record is in the store, so an open file, and
//! with it an inode without a name, survives a crash of the server. It is good only for the endpoint
//! that opened it and goes with that endpoint.

use crate::VfsServer;
use crate::answer::{Result, err};
use crate::dir::New;
use crate::keys::{self, Inode, OpenRecord, mark};
use crate::limits::HANDLES_MAX;
use crate::linux::{
    FMODE_EXEC, O_ACCMODE, O_APPEND, O_CREAT, O_DIRECT, O_DIRECTORY, O_DSYNC, O_EXCL, O_NOATIME,
    O_TMPFILE_BIT, O_TRUNC, R_OK, S_IALLUGO, S_IFDIR, S_IFLNK, S_IFREG, W_OK, X_OK,
};
use crate::name;
use crate::pages::{Own, PAGES_END, PageClaim};
use crate::permission;
use crate::snapshot::refuse_change;
use calls::Row;
use calls::vfs::{Closed, Create, Created, Leased, Open, Opened, Release, Setlk, Tmpfile};
use calls::wire::Wire;
use dvk::server::{Call, Context, Gone};
use dvk::store::Store;
use m3ipc::errno::numbers::{
    EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENFILE, ENOTDIR, ENXIO, EOPNOTSUPP, EPERM,
};
use m3ipc::{CallId, Endpoint, Errno, Message};
use std::collections::{BTreeMap, BTreeSet};

impl VfsServer {
    pub(crate) fn open_inode(
        &mut self,
        row: Open,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Opened, Vec<u8>)> {
        if row.flags & O_TMPFILE_BIT != 0 {
            return err(EOPNOTSUPP);
        }
        let inode = self.inode(row.ino, cx)?;
        let fh = self.open_existing(inode, true, row.flags, call, cx)?;
        let inode = self.inode(row.ino, cx)?;
        let attr = self.make_sole(&inode, fh, call, cx);
        let payload = if attr == 0 { Vec::new() } else { inode.attr(cx.store).bytes().into() };
        Ok((Opened { fh, attr }, payload))
    }

    pub(crate) fn create(
        &mut self,
        row: Create,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Created, Vec<u8>)> {
        if row.flags & O_DIRECTORY != 0 {
            return err(EINVAL);
        }
        let dir = self.searchable(row.parent, call.cred, cx)?;
        let (fh, ino) = match name::parse(call.payload)? {
            name::Name::Dot | name::Name::DotDot if row.flags & O_EXCL != 0 => return err(EEXIST),
            name::Name::Dot | name::Name::DotDot => return err(EISDIR),
            name::Name::Entry(name) => match self.find(&dir, name, cx)? {
                Some(_) if row.flags & O_EXCL != 0 => return err(EEXIST),
                Some(entry) => {
                    self.look(entry.ino, call, cx)?;
                    let inode = self.inode(entry.ino, cx)?;
                    if inode.is_directory() {
                        return err(EISDIR);
                    }
                    let is_forgotten = row.forgotten == entry.ino;
                    (self.open_existing(inode, is_forgotten, row.flags, call, cx)?, entry.ino)
                }
                None => {
                    self.check_handle_count()?;
                    let mode = S_IFREG | row.mode & S_IALLUGO;
                    let new = New { mode, umask: row.umask, rdev: 0 };
                    let inode = self.make(dir, name, new, call, cx)?;
                    (self.new_handle(inode.ino, row.flags, call, cx), inode.ino)
                }
            },
        };
        let inode = self.inode(ino, cx)?;
        let Leased { name, attr: may_keep, owner } = self.lease_after(row.parent, ino, call, cx);
        let attr = self.make_sole(&inode, fh, call, cx);
        let mut payload = inode.attr(cx.store).bytes().to_vec();
        payload.extend(self.parent_after(row.parent, name, call, cx));
        Ok((Created { fh, name, attr: attr | may_keep, owner }, payload))
    }

    /// open(2) with O_TMPFILE: a file without a name. It may get one with linkat(2), unless O_EXCL says otherwise.
    pub(crate) fn tmpfile(
        &mut self,
        row: Tmpfile,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Opened, Vec<u8>)> {
        if access_mask(row.flags) & W_OK == 0 {
            return err(EINVAL);
        }
        let dir = self.searchable(row.parent, call.cred, cx)?;
        permission::add_entry(&dir, call.cred, cx.store)?;
        self.check_handle_count()?;
        let new = New { mode: S_IFREG | row.mode & S_IALLUGO, umask: row.umask, rdev: 0 };
        let mut inode = self.new_inode(&dir, new, call.cred, cx)?;
        if row.flags & O_EXCL == 0 {
            inode.marks |= mark::LINKABLE;
        }
        self.save(&inode, cx);
        let flags = row.flags & !(O_TMPFILE_BIT | O_DIRECTORY);
        let fh = self.new_handle(inode.ino, flags, call, cx);
        Ok((Opened { fh, attr: 0 }, inode.attr(cx.store).bytes().into()))
    }

    pub(crate) fn release(
        &mut self,
        row: Release,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        self.handle(row.fh, row.ino, call.id.source)?;
        for waited in self.close(row.fh, cx) {
            cx.answer(waited, Message::failed(Setlk::NUMBER, Errno::new(EBADF)), []);
        }
        Ok(())
    }

    /// As [`VfsServer::release`], of several, each by itself.
    ///
    /// # Errors
    /// EINVAL: the payload is malformed, nothing was closed.
    pub(crate) fn releases(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Result<()> {
        if !call.payload.len().is_multiple_of(Closed::SIZE) {
            return err(EINVAL);
        }
        for closed in call.payload.chunks(Closed::SIZE).filter_map(Closed::get) {
            let outcome = self.release(Release { fh: closed.fh, ino: closed.ino }, call, cx);
            // An agent that comes again after a crash may have closed some.
            outcome.ok();
        }
        Ok(())
    }

    /// The open file behind a handle.
    ///
    /// # Errors
    /// EBADF if it is not open, is of another inode, or was opened by another endpoint.
    pub(crate) fn handle(&self, fh: u64, ino: u64, source: Endpoint) -> Result<OpenRecord> {
        match self.opens.by_handle.get(&fh) {
            Some(open) if open.ino == ino && open.owner == source => Ok(*open),
            _ => err(EBADF),
        }
    }

    /// Closes everything that belonged to who is gone. Nobody wants the answers of its calls.
    pub(crate) fn close_all_of(&mut self, gone: Gone, cx: &mut Context<'_>) {
        let handles = self.opens.of(gone);
        for fh in &handles {
            self.drop_waiting_of_handle(*fh);
        }
        for fh in handles {
            self.close(fh, cx);
        }
    }

    /// open(2) of an inode that exists, in the order of Linux's checks. `is_forgotten`: the caller knows that it is this one.
    fn open_existing(
        &mut self,
        mut inode: Inode,
        is_forgotten: bool,
        flags: u32,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<u64> {
        let mask = access_mask(flags);
        match inode.kind() {
            S_IFLNK => return err(ELOOP),
            S_IFDIR if mask & W_OK != 0 || flags & O_CREAT != 0 => return err(EISDIR),
            S_IFDIR => {}
            _ if flags & O_DIRECTORY != 0 => return err(ENOTDIR),
            _ => {}
        }
        if mask & W_OK != 0 {
            refuse_change(inode.ino)?;
        }
        permission::access(&inode, call.cred, mask, cx.store)?;
        if flags & O_NOATIME != 0 && !permission::owner(&inode, call.cred) {
            return err(EPERM);
        }
        if !inode.is_directory() && !inode.is_regular() {
            // Kernels keep pipes, sockets and devices to themselves: nothing is behind them here.
            return err(ENXIO);
        }
        self.check_handle_count()?;
        if flags & O_TRUNC != 0 && inode.is_regular() {
            let pages = PageClaim::change(inode.ino, 0..PAGES_END, Own::All);
            self.claim_all(&[(inode.ino, is_forgotten)], &[pages], call, cx)?;
        }
        if inode.nlink == 0 && !self.opens.is_open(inode.ino) {
            self.revive(&mut inode, cx)?;
        }
        if flags & O_TRUNC != 0 && inode.is_regular() {
            self.resize(&mut inode, 0, call.cred, cx)?;
            self.save(&inode, cx);
        }
        Ok(self.new_handle(inode.ino, flags, call, cx))
    }

    /// So that no lock is granted to somebody who is about to lose it.
    fn drop_waiting_of_handle(&mut self, fh: u64) {
        if let Some(open) = self.opens.by_handle.get(&fh) {
            self.locks.forget_waiting_through(open.ino, fh);
        }
    }

    fn check_handle_count(&self) -> Result<()> {
        if self.opens.by_handle.len() >= HANDLES_MAX { err(ENFILE) } else { Ok(()) }
    }

    fn new_handle(&mut self, ino: u64, flags: u32, call: &Call<'_>, cx: &mut Context<'_>) -> u64 {
        let fh = self.numbers.new_handle(cx.store);
        let flags = flags & !(O_CREAT | O_EXCL | O_TRUNC | SOLE);
        let record = OpenRecord { ino, flags, owner: call.id.source };
        cx.store.put(&keys::open(fh), &record.bytes());
        self.opens.insert(fh, record);
        fh
    }

    /// Ends an open file: its locks go, and its inode if this was the last that held it. Returns
    /// the calls that were waiting for a lock through it, unanswered.
    fn close(&mut self, fh: u64, cx: &mut Context<'_>) -> Vec<CallId> {
        let Some(record) = self.opens.remove(fh) else { return Vec::new() };
        cx.store.remove(&keys::open(fh));
        let waited = self.drop_locks_of_handle(record.ino, fh, cx);
        if !self.opens.is_open(record.ino)
            && let Ok(Some(inode)) = self.inodes.find(record.ino, cx.store)
            && inode.nlink == 0
        {
            self.discard(inode, cx);
        }
        waited
    }

    /// The open file behind a handle that is to be written through.
    ///
    /// # Errors
    /// EBADF as [`VfsServer::handle`]; `errno` if it was not opened for writing.
    pub(crate) fn writable_handle(
        &self,
        fh: u64,
        ino: u64,
        source: Endpoint,
        errno: i32,
    ) -> Result<OpenRecord> {
        let open = self.handle(fh, ino, source)?;
        if open.writes() { Ok(open) } else { err(errno) }
    }
}

/// Bit of [`OpenRecord::flags`]: the handle is a sole writer's. No flag of open(2) has it.
const SOLE: u32 = 1 << 31;

/// What open(2) with `flags` needs. Access mode 3 means "to check both and do neither".
fn access_mask(flags: u32) -> u32 {
    let mask = match flags & O_ACCMODE {
        0 if flags & FMODE_EXEC != 0 => X_OK,
        0 => R_OK,
        1 => W_OK,
        _ => R_OK | W_OK,
    };
    mask | if flags & O_TRUNC != 0 { W_OK } else { 0 }
}

impl OpenRecord {
    pub(crate) fn reads(&self) -> bool {
        matches!(self.flags & O_ACCMODE, 0 | 2)
    }

    pub(crate) fn writes(&self) -> bool {
        matches!(self.flags & O_ACCMODE, 1 | 2)
    }

    pub(crate) fn appends(&self) -> bool {
        self.flags & O_APPEND != 0
    }

    /// O_SYNC or O_DSYNC.
    pub(crate) fn is_synchronous(&self) -> bool {
        self.flags & O_DSYNC != 0
    }

    pub(crate) fn leaves_access_time(&self) -> bool {
        self.flags & O_NOATIME != 0
    }
}

/// All open files: the records of the store, and the ways to find them.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    by_handle: BTreeMap<u64, OpenRecord>,
    by_owner: BTreeSet<(Endpoint, u64)>,
    count_of_inode: BTreeMap<u64, usize>,
    /// The handles of sole writers, by inode.
    sole: BTreeMap<u64, u64>,
}

impl Opens {
    pub(crate) fn open(store: &dyn Store) -> Opens {
        let mut opens = Opens::default();
        keys::collect(store, &keys::opens(), |key, value| {
            if let (Some([fh]), Some(record)) = (keys::numbers(key), OpenRecord::get(value)) {
                opens.insert(fh, record);
            }
        });
        opens
    }

    pub(crate) fn is_open(&self, ino: u64) -> bool {
        self.count_of_inode.contains_key(&ino)
    }

    /// Everybody who has a file open.
    pub(crate) fn owners(&self) -> Vec<Endpoint> {
        let mut owners: Vec<Endpoint> = self.by_owner.iter().map(|(owner, _)| *owner).collect();
        owners.dedup();
        owners
    }

    /// The handle of inode `ino`'s sole writer, and who that is.
    pub(crate) fn sole(&self, ino: u64) -> Option<(u64, Endpoint)> {
        let fh = *self.sole.get(&ino)?;
        Some((fh, self.by_handle.get(&fh)?.owner))
    }

    /// The inodes of which `source` is the sole writer.
    pub(crate) fn soles_of(&self, source: Endpoint) -> Vec<u64> {
        let owner = |fh: &u64| self.by_handle.get(fh).map(|record| record.owner);
        self.sole.iter().filter(|(_, fh)| owner(fh) == Some(source)).map(|(ino, _)| *ino).collect()
    }

    /// The inodes that have a sole writer.
    pub(crate) fn soles(&self) -> impl Iterator<Item = u64> {
        self.sole.keys().copied()
    }

    /// Would handle `fh` do as a sole writer's, if there are fewer than `most`? Whose writes are durable when they return does not put them off, nor who wants
    /// no cache.
    pub(crate) fn may_be_sole(&self, fh: u64, most: usize) -> bool {
        self.sole.len() < most
            && self.by_handle.get(&fh).is_some_and(|record| {
                record.writes()
                    && !record.is_synchronous()
                    && record.flags & O_DIRECT == 0
                    && !self.sole.contains_key(&record.ino)
            })
    }

    /// Handle `fh` is a sole writer's from now on, or is none any more.
    pub(crate) fn set_sole(&mut self, fh: u64, is_sole: bool, store: &mut dyn Store) {
        let Some(record) = self.by_handle.get_mut(&fh) else { return };
        record.flags = record.flags & !SOLE | if is_sole { SOLE } else { 0 };
        store.put(&keys::open(fh), &record.bytes());
        if is_sole {
            self.sole.insert(record.ino, fh);
        } else {
            self.sole.remove(&record.ino);
        }
    }

    fn insert(&mut self, fh: u64, record: OpenRecord) {
        if record.flags & SOLE != 0 {
            self.sole.insert(record.ino, fh);
        }
        self.by_handle.insert(fh, record);
        self.by_owner.insert((record.owner, fh));
        *self.count_of_inode.entry(record.ino).or_default() += 1;
    }

    fn remove(&mut self, fh: u64) -> Option<OpenRecord> {
        let record = self.by_handle.remove(&fh)?;
        self.by_owner.remove(&(record.owner, fh));
        if self.sole.get(&record.ino) == Some(&fh) {
            self.sole.remove(&record.ino);
        }
        if let Some(count) = self.count_of_inode.get_mut(&record.ino) {
            *count -= 1;
            if *count == 0 {
                self.count_of_inode.remove(&record.ino);
            }
        }
        Some(record)
    }

    /// The handles of who is gone. Endpoints are ordered by node, so both are ranges.
    fn of(&self, gone: Gone) -> Vec<u64> {
        let (first, last) = match gone {
            Gone::Endpoint(endpoint) => (endpoint, endpoint),
            Gone::Node(node) => {
                (Endpoint::new(node, 0, 0), Endpoint::new(node, u32::MAX, u32::MAX))
            }
        };
        self.by_owner.range((first, 0)..=(last, u64::MAX)).map(|(_, fh)| *fh).collect()
    }
}
