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
    FMODE_EXEC, O_ACCMODE, O_APPEND, O_CREAT, O_DIRECTORY, O_DSYNC, O_EXCL, O_NOATIME,
    O_TMPFILE_BIT, O_TRUNC, R_OK, S_IALLUGO, S_IFDIR, S_IFLNK, S_IFREG, W_OK, X_OK,
};
use crate::name;
use crate::pages::{Own, PAGES_END, PageClaim};
use crate::permission;
use calls::Row;
use calls::vfs::{Create, Created, Leased, Open, Opened, Release, Setlk, Tmpfile};
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
    ) -> Result<Opened> {
        if row.flags & O_TMPFILE_BIT != 0 {
            return err(EOPNOTSUPP);
        }
        let inode = self.inode(row.ino, cx)?;
        self.open_existing(inode, true, row.flags, call, cx)
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
        let (opened, ino) = match name::parse(call.payload)? {
            name::Name::Dot | name::Name::DotDot if row.flags & O_EXCL != 0 => return err(EEXIST),
            name::Name::Dot | name::Name::DotDot => return err(EISDIR),
            name::Name::Entry(name) => match self.find(&dir, name, cx)? {
                Some(_) if row.flags & O_EXCL != 0 => return err(EEXIST),
                Some(entry) => {
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
        let attr = self.inode(ino, cx)?.attr(cx.store);
        let Leased { name, attr: may_keep, owner } = self.lease_after(row.parent, ino, call, cx);
        Ok((Created { fh: opened.fh, name, attr: may_keep, owner }, attr.bytes().into()))
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
        let opened = self.new_handle(inode.ino, flags, call, cx);
        Ok((opened, inode.attr(cx.store).bytes().into()))
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
    ) -> Result<Opened> {
        let mask = access_mask(flags);
        match inode.kind() {
            S_IFLNK => return err(ELOOP),
            S_IFDIR if mask & W_OK != 0 || flags & O_CREAT != 0 => return err(EISDIR),
            S_IFDIR => {}
            _ if flags & O_DIRECTORY != 0 => return err(ENOTDIR),
            _ => {}
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
            self.resize(&mut inode, 0, call.cred, cx)?;
            self.save(&inode, cx);
        }
        if inode.nlink == 0 && !self.opens.is_open(inode.ino) {
            self.revive(inode.ino, cx);
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

    fn new_handle(
        &mut self,
        ino: u64,
        flags: u32,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Opened {
        let fh = self.numbers.new_handle(cx.store);
        let flags = flags & !(O_CREAT | O_EXCL | O_TRUNC);
        let record = OpenRecord { ino, flags, owner: call.id.source };
        cx.store.put(&keys::open(fh), &record.bytes());
        self.opens.insert(fh, record);
        Opened { fh, flags: 0 }
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
            self.discard(record.ino, cx);
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

    fn insert(&mut self, fh: u64, record: OpenRecord) {
        self.by_handle.insert(fh, record);
        self.by_owner.insert((record.owner, fh));
        *self.count_of_inode.entry(record.ino).or_default() += 1;
    }

    fn remove(&mut self, fh: u64) -> Option<OpenRecord> {
        let record = self.by_handle.remove(&fh)?;
        self.by_owner.remove(&(record.owner, fh));
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
