//! vfs-server: one DC's tree of files, as a deterministic value.
//!
//! All of the tree is in the store: inodes, names, attributes, open files and locks in the map
//! (`keys.rs` is the layout), the bytes of files in blobs. The fields of [`VfsServer`] are caches
//! that [`VfsServer::open`] makes anew from the store; its cost is that of the open files, locks and
//! garbage, not of the tree. What is *not* durable is which calls wait for a lock.
//!
//! Invariants:
//!
//! 1. A handler checks everything before its first change, and changes that can fail (blobs) come
//!    before those that cannot (the map): a call that fails has changed nothing that can be seen.
//! 2. Finding a name is one `get`. No handler's work grows with the size of the tree, of a
//!    directory, or of a file. What it may grow with is bounded by `limits.rs` or by the callers:
//!    an inode's attributes and locks, and the depth a directory is moved to.
//! 3. Numbers of inodes and handles are never used again, across crashes too.
//! 4. An inode exists while it has a name or an open file, and a little longer (`reclaim.rs`). Its
//!    blob is removed, and a shortened one cut, in a later round (unless the disk is full).
//! 5. What a blob holds behind its inode's size is never read.
//! 6. A directory's `size` is the number of its entries, its `nlink` 2 plus its subdirectories; each
//!    entry is in the store twice, under its name and under its cookie.
//! 7. Every lock and every waiting call belongs to an open handle, every handle to an endpoint;
//!    each goes with what it belongs to.
//! 8. A call by inode number whose inode is gone fails with ESTALE, so that a kernel looks the path
//!    up again; a name in a directory that is gone fails with ENOENT.
//! 9. Permissions are checked where Linux checks them: search permission when a name is looked up,
//!    read and write permission when a file is opened. Who knows an inode's number is taken to have
//!    been allowed to look it up.
//! 10. What a tree with a quota counts is the sum of its inodes, in every round.
//! 11. What a snapshot shows never changes. Handlers see it as part of the store (`snapshot.rs`), so all that they do they do through [`Context::store`].
//!
//! Modules stand in reading order.

mod acl;
mod answer;
mod attr;
mod counters;
mod dir;
mod inode;
pub mod keys;
mod lease;
pub mod limits;
mod linux;
mod lock;
mod name;
mod open;
mod pages;
mod permission;
mod quota;
mod ranges;
mod read_write;
mod reclaim;
mod rename;
mod scrub;
mod snapshot;
mod sole;
mod staged;
mod statfs;
#[cfg(test)]
mod tests;
mod xattr;

use answer::{Outcome, RESTART, Result, both, err, payload, reply};
use calls::vfs::{
    Access, Attr, CopyRange, Create, Fallocate, Flush, Fsync, Getattr, Getlk, Getxattr, Leased,
    LetGo, Link, Listxattr, Lookup, Mkdir, Mknod, Open, Quotas, ROOT_INO, Read, ReadPages, Readdir,
    Readlink, Release, Releases, RemoveSnapshot, Removexattr, Rename, Rmdir, Scrub, Seek, SetQuota,
    Setattr, Setxattr, Stage, Statfs, Symlink, TakeSnapshot, Tmpfile, Unlink, VfsCall, Write,
    WriteBack, WritePages, WriteStaged,
};
use calls::wire::Wire;
use calls::{Retry, Row};
use counters::Numbers;
use dir::FIRST_COOKIE;
use dvk::server::{Call, Context, Gone, Nanos, Server};
use dvk::store::Store;
use inode::{Inodes, time};
use keys::Inode;
use lease::Leases;
use lock::Locks;
use m3ipc::errno::numbers::ENOSYS;
use m3ipc::{CallId, Endpoint, Message};
use open::Opens;
use quota::Trees;
use reclaim::Reclaim;
use snapshot::Snapshots;
use staged::Staged;

/// Mode of the root directory: everybody may make files in it, as in /tmp, and keep them.
const ROOT_MODE: u32 = linux::S_IFDIR | linux::S_ISVTX | 0o777;

/// The file server of one DC.
#[derive(Debug)]
pub struct VfsServer {
    numbers: Numbers,
    inodes: Inodes,
    opens: Opens,
    locks: Locks,
    reclaim: Reclaim,
    leases: Leases,
    staged: Staged,
    trees: Trees,
    snapshots: Snapshots,
    /// There are some.
    has_snapshots: bool,
    /// A snapshot waits until nobody has put anything off: until then there are no new sole writers.
    no_soles_until: Nanos,
}

/// A store that is not, or not of this version, of a file server. Nothing was changed in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownStore {
    /// The version it says it has.
    pub version: Option<u32>,
}

impl std::fmt::Display for UnknownStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version {
            Some(version) if version != keys::VERSION => write!(
                f,
                "the file store has layout version {version}; this vfs-server knows version {}",
                keys::VERSION
            ),
            _ => write!(f, "the file store's version, counters, quotas or snapshots are damaged"),
        }
    }
}

impl std::error::Error for UnknownStore {}

impl VfsServer {
    /// The server of the tree in `store`; an empty store gets a root directory of time `wall`
    /// (nanoseconds since the epoch).
    ///
    /// After a start it is the host's to say `gone` for each of [`VfsServer::holders`] that is no
    /// longer bound.
    ///
    /// # Errors
    /// [`UnknownStore`].
    pub fn open(store: &mut dyn Store, wall: u64) -> std::result::Result<VfsServer, UnknownStore> {
        let found = store.get(keys::VERSION_KEY);
        let version = found.as_deref().and_then(u32::get);
        if found.is_some() && !matches!(version, Some(keys::OLDEST_VERSION..=keys::VERSION)) {
            return Err(UnknownStore { version });
        }
        let mut server = VfsServer {
            numbers: Numbers::open(store).map_err(|_| UnknownStore { version })?,
            inodes: Inodes::default(),
            opens: Opens::open(store),
            locks: Locks::open(store),
            reclaim: Reclaim::open(store),
            leases: Leases::open(store),
            staged: Staged::default(),
            trees: Trees::open(store).map_err(|_| UnknownStore { version })?,
            snapshots: Snapshots::open(store).map_err(|_| UnknownStore { version })?,
            has_snapshots: false,
            no_soles_until: 0,
        };
        if found.is_none() {
            server.make_root(store, wall);
        }
        if version.is_some_and(|version| version < keys::VERSION) {
            store.put(keys::VERSION_KEY, &keys::VERSION.to_le_bytes());
        }
        Ok(server)
    }

    /// Every endpoint that has a file open.
    pub fn holders(&self) -> Vec<Endpoint> {
        self.opens.owners()
    }

    fn make_root(&mut self, store: &mut dyn Store, wall: u64) {
        let now = time(wall);
        let root = Inode {
            ino: self.numbers.new_inode(store),
            parent: ROOT_INO,
            next_cookie: FIRST_COOKIE,
            atime: now,
            mtime: now,
            ctime: now,
            mode: ROOT_MODE,
            nlink: 2,
            ..Inode::default()
        };
        assert_eq!(root.ino, ROOT_INO, "the root is the first inode of an empty store");
        self.inodes.put(&root, store);
        store.put(keys::VERSION_KEY, &keys::VERSION.to_le_bytes());
    }

    /// The server's table of contents.
    fn handle_call(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Result<Outcome> {
        let Some(row) = VfsCall::decode(call.message) else { return err(ENOSYS) };
        self.look_at_all(&row, call, cx)?;
        match row {
            VfsCall::Lookup(row) => self.lookup(row, call, cx).map(both::<Lookup>),
            VfsCall::Getattr(row) => self.getattr(row, call, cx).map(both::<Getattr>),
            VfsCall::Setattr(row) => self.setattr(row, call, cx).map(both::<Setattr>),
            VfsCall::Readlink(row) => self.readlink(row, call, cx).map(payload::<Readlink>),
            VfsCall::Symlink(row) => {
                let attr = self.symlink(row, call, cx)?;
                Ok(self.made::<Symlink>(row.parent, &attr, call, cx))
            }
            VfsCall::Mknod(row) => {
                let attr = self.mknod(row, call, cx)?;
                Ok(self.made::<Mknod>(row.parent, &attr, call, cx))
            }
            VfsCall::Mkdir(row) => {
                let attr = self.mkdir(row, call, cx)?;
                Ok(self.made::<Mkdir>(row.parent, &attr, call, cx))
            }
            VfsCall::Unlink(row) => self.unlink(row, call, cx).map(both::<Unlink>),
            VfsCall::Rmdir(row) => self.rmdir(row, call, cx).map(both::<Rmdir>),
            VfsCall::Rename(row) => self.rename(row, call, cx).map(both::<Rename>),
            VfsCall::Link(row) => {
                let attr = self.link(row, call, cx)?;
                Ok(self.made::<Link>(row.new_parent, &attr, call, cx))
            }
            VfsCall::Open(row) => self.open_inode(row, call, cx).map(both::<Open>),
            VfsCall::Create(row) => self.create(row, call, cx).map(both::<Create>),
            VfsCall::Read(row) => self.read(row, call, cx).map(payload::<Read>),
            VfsCall::Write(row) => self.write(row, call, cx).map(reply::<Write>),
            VfsCall::Flush(row) => self.flush(row, call, cx).map(reply::<Flush>),
            VfsCall::Release(row) => self.release(row, call, cx).map(reply::<Release>),
            VfsCall::Releases(_) => self.releases(call, cx).map(reply::<Releases>),
            VfsCall::Fsync(row) => self.fsync(row, call, cx).map(reply::<Fsync>),
            VfsCall::Readdir(row) => self.readdir(row, call, cx).map(both::<Readdir>),
            VfsCall::Statfs(row) => self.statfs(row, cx).map(payload::<Statfs>),
            VfsCall::Access(row) => self.access(row, call, cx).map(reply::<Access>),
            VfsCall::Getlk(row) => self.getlk(row, call).map(payload::<Getlk>),
            VfsCall::Setlk(row) => self.setlk(row, call, cx),
            VfsCall::Getxattr(row) => self.getxattr(row, call, cx).map(both::<Getxattr>),
            VfsCall::Setxattr(row) => self.setxattr(row, call, cx).map(reply::<Setxattr>),
            VfsCall::Listxattr(row) => self.listxattr(row, call, cx).map(both::<Listxattr>),
            VfsCall::Removexattr(row) => self.removexattr(row, call, cx).map(reply::<Removexattr>),
            VfsCall::Fallocate(row) => self.fallocate(row, call, cx).map(reply::<Fallocate>),
            VfsCall::Seek(row) => self.seek(row, call, cx).map(reply::<Seek>),
            VfsCall::Tmpfile(row) => self.tmpfile(row, call, cx).map(both::<Tmpfile>),
            VfsCall::CopyRange(row) => self.copy_range(row, call, cx).map(reply::<CopyRange>),
            VfsCall::Recalls(row) => self.recalls(row, call, cx),
            VfsCall::ReadPages(row) => self.read_pages(row, call, cx).map(both::<ReadPages>),
            VfsCall::WritePages(row) => self.write_pages(row, call, cx).map(reply::<WritePages>),
            VfsCall::Stage(row) => self.stage(row, call, cx).map(reply::<Stage>),
            VfsCall::WriteStaged(row) => self.write_staged(row, call, cx).map(reply::<WriteStaged>),
            VfsCall::WriteBack(row) => self.write_back(row, call, cx).map(both::<WriteBack>),
            VfsCall::SetQuota(row) => self.set_quota(row, call, cx).map(reply::<SetQuota>),
            VfsCall::Quotas(row) => self.quotas(row, call).map(payload::<Quotas>),
            VfsCall::TakeSnapshot(_) => self.take_snapshot(call, cx).map(reply::<TakeSnapshot>),
            VfsCall::RemoveSnapshot(_) => {
                self.remove_snapshot(call, cx).map(reply::<RemoveSnapshot>)
            }
            VfsCall::Snapshots(row) => {
                self.snapshots(row, cx).map(payload::<calls::vfs::Snapshots>)
            }
            VfsCall::Scrub(row) => self.scrub(row, call, cx).map(both::<Scrub>),
            VfsCall::LetGo(row) => self.let_go_of_pages(row, call, cx).map(reply::<LetGo>),
        }
    }

    /// The answer to a call that has given the inode of `attr` a name in directory `dir`.
    fn made<R: Row<Reply = Leased>>(
        &mut self,
        dir: u64,
        attr: &Attr,
        call: &Call<'_>,
        cx: &Context<'_>,
    ) -> Outcome {
        let leased = self.lease_after(dir, attr.ino, call, cx);
        let mut payload = attr.bytes().to_vec();
        payload.extend(self.parent_after(dir, leased.name, call, cx));
        both::<R>((leased, payload))
    }

    /// Handles a call, and answers it unless it waits for something.
    fn serve_call(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
        let outcome = match self.handle_call(call, cx) {
            Err(errno) if errno.errno == RESTART => self.put_off(call, cx).map(|()| Outcome::Kept),
            outcome => outcome,
        };
        match outcome {
            Ok(Outcome::Answer(message, payload)) => cx.answer(call.id, message, payload),
            Ok(Outcome::Kept) => {}
            Err(errno) => cx.answer(call.id, Message::failed(call.message.call, errno), []),
        }
    }
}

impl Server for VfsServer {
    fn serve(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
        self.leases.date(cx.now);
        // It may come again while it waits.
        if !self.leases.is_put_off(call.id) {
            self.with_snapshots(cx, |server, cx| server.serve_call(call, cx));
        }
    }

    fn cancel(&mut self, id: CallId, cx: &mut Context<'_>) {
        self.with_snapshots(cx, |server, cx| {
            if !server.cancel_put_off(id, cx) {
                server.cancel_wait(id, cx);
            }
        });
    }

    fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        self.with_snapshots(cx, |server, cx| {
            server.drop_calls_of(gone, cx);
            server.staged.drop_of(gone);
            server.close_all_of(gone, cx);
        });
    }

    fn tick(&mut self, cx: &mut Context<'_>) {
        self.with_snapshots(cx, |server, cx| {
            server.reclaim_tick(cx);
            server.lease_tick(cx);
            server.quota_tick(cx);
        });
        self.snapshot_tick(cx);
    }

    fn deadline(&self) -> Option<Nanos> {
        let deadlines = [
            self.reclaim.deadline(),
            self.leases.deadline(),
            self.trees.deadline(),
            self.snapshots.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    fn once(&self, message: &Message) -> bool {
        VfsCall::retry(message) == Retry::Once
    }
}
