//! Directories: lookup, mknod, mkdir, symlink, link, unlink, rmdir, readlink, readdir.
//!
//! An entry has a cookie: its place in the order of readdir, given when the name is made and kept as
//! long as the name is there, also when it comes to stand for another inode. So a reader that goes on
//! behind a cookie meets every name that was there all the time exactly once, whatever else is made
//! and removed meanwhile.

use crate::VfsServer;
use crate::acl::Inherited;
use crate::answer::{Result, err};
use crate::inode::time;
use crate::keys::{self, Entry, Inode, Place, mark};
use crate::limits::{LINK_MAX, SUBDIRECTORY_MAX, SYMLINK_MAX};
use crate::linux::{
    S_IALLUGO, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, S_IRWXUGO,
    S_ISVTX, X_OK,
};
use crate::name::{self, Name};
use crate::permission;
use crate::snapshot::is_in_snapshot;
use calls::vfs::{
    Attr, DirEntry, Leased, Link, Listed, Lookup, Mkdir, Mknod, NAME_MAX, Readdir, Readlink, Rmdir,
    Symlink, Unlink,
};
use calls::wire::Wire;
use dvk::server::{Call, Context};
use m3ipc::Cred;
use m3ipc::errno::numbers::{
    EEXIST, EINVAL, EIO, EISDIR, EMLINK, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EXDEV,
};
use m3ipc::limits::PAYLOAD_MAX;
use std::ops::ControlFlow;

/// Cookies of `.` and `..`; entries come behind them.
const COOKIE_DOT: u64 = 1;
const COOKIE_DOT_DOT: u64 = 2;
pub(crate) const FIRST_COOKIE: u64 = 3;

pub(crate) const DT_DIR: u8 = 4;

/// What is to be made: its type and permissions, those that its maker does not give unless the directory says which, and a
/// device's number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New {
    pub(crate) mode: u32,
    pub(crate) umask: u32,
    pub(crate) rdev: u32,
}

impl VfsServer {
    pub(crate) fn lookup(
        &mut self,
        row: Lookup,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Leased, Vec<u8>)> {
        let dir = self.searchable(row.parent, call.cred, cx)?;
        let mut leased = Leased { owner: dir.uid, ..Leased::default() };
        let ino = match name::parse(call.payload)? {
            Name::Dot => dir.ino,
            Name::DotDot => dir.parent,
            Name::Entry(name) => {
                let entry = self.find(&dir, name, cx)?;
                leased.name = self.lease_names(&dir, call, cx);
                match entry {
                    Some(entry) => entry.ino,
                    None if leased.name == 0 => return err(ENOENT),
                    None => return Ok((leased, Attr::default().bytes().into())),
                }
            }
        };
        self.look(ino, call, cx)?;
        let inode = self.inode(ino, cx)?;
        // Whoever may not remember the name has no use for its attributes before it asks for them.
        leased.attr = if leased.name == 0 { 0 } else { self.lease(&inode, call, cx) };
        Ok((leased, inode.attr(cx.store).bytes().into()))
    }

    pub(crate) fn mknod(
        &mut self,
        row: Mknod,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Attr> {
        let dir = self.searchable(row.parent, call.cred, cx)?;
        let name = name::to_make(call.payload)?;
        self.missing(&dir, name, cx)?;
        let kind = match row.mode & S_IFMT {
            0 | S_IFREG => S_IFREG,
            kind @ (S_IFIFO | S_IFSOCK) => kind,
            // Device 0:0 is overlayfs' whiteout, which anybody may make.
            kind @ (S_IFCHR | S_IFBLK)
                if call.cred.uid == 0 || (kind == S_IFCHR && row.rdev == 0) =>
            {
                kind
            }
            S_IFCHR | S_IFBLK | S_IFDIR => return err(EPERM),
            _ => return err(EINVAL),
        };
        let rdev = if matches!(kind, S_IFCHR | S_IFBLK) { row.rdev } else { 0 };
        let new = New { mode: kind | row.mode & S_IALLUGO, umask: row.umask, rdev };
        Ok(self.make(dir, name, new, call, cx)?.attr(cx.store))
    }

    pub(crate) fn mkdir(
        &mut self,
        row: Mkdir,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Attr> {
        let dir = self.searchable(row.parent, call.cred, cx)?;
        let name = name::to_make(call.payload)?;
        self.missing(&dir, name, cx)?;
        let mode = S_IFDIR | row.mode & (S_IRWXUGO | S_ISVTX);
        let new = New { mode, umask: row.umask, rdev: 0 };
        Ok(self.make(dir, name, new, call, cx)?.attr(cx.store))
    }

    pub(crate) fn symlink(
        &mut self,
        row: Symlink,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Attr> {
        let (name, target) = name::split(call.payload, row.name_len)?;
        match target {
            b"" => return err(ENOENT),
            _ if target.len() > SYMLINK_MAX => return err(ENAMETOOLONG),
            _ if target.contains(&0) => return err(EINVAL),
            _ => {}
        }
        let dir = self.searchable(row.parent, call.cred, cx)?;
        let name = name::to_make(name)?;
        self.missing(&dir, name, cx)?;
        let new = New { mode: S_IFLNK | S_IRWXUGO, umask: 0, rdev: 0 };
        let mut inode = self.make(dir, name, new, call, cx)?;
        inode.size = target.len() as u64;
        cx.store.put(&keys::target(inode.ino), target);
        self.save(&inode, cx);
        Ok(inode.attr(cx.store))
    }

    pub(crate) fn link(
        &mut self,
        row: Link,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Attr> {
        let mut dir = self.searchable(row.new_parent, call.cred, cx)?;
        let name = name::to_make(call.payload)?;
        let mut inode = self.inode(row.ino, cx)?;
        self.missing(&dir, name, cx)?;
        permission::add_entry(&dir, call.cred, cx.store)?;
        if is_in_snapshot(inode.ino) {
            return err(EXDEV);
        }
        match inode {
            Inode { nlink: 0, marks, .. }
                if marks & mark::LINKABLE == 0 || !self.opens.is_open(inode.ino) =>
            {
                return err(ENOENT);
            }
            inode if inode.is_directory() => return err(EPERM),
            Inode { nlink: LINK_MAX.., .. } => return err(EMLINK),
            _ => {}
        }
        self.check_link(&inode, &dir)?;
        self.claim(&[(dir.ino, true), (inode.ino, true)], call, cx)?;
        self.take_metadata_space(cx)?;
        inode.nlink += 1;
        self.join_tree(&mut inode, dir.tree, cx);
        inode.marks &= !mark::LINKABLE;
        inode.ctime = time(cx.wall);
        self.save(&inode, cx);
        self.enter(&mut dir, name, &inode, cx);
        Ok(inode.attr(cx.store))
    }

    pub(crate) fn unlink(
        &mut self,
        row: Unlink,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Leased, Vec<u8>)> {
        let mut dir = self.searchable(row.parent, call.cred, cx)?;
        let name = name::to_unlink(call.payload)?;
        let entry = self.existing(&dir, name, cx)?;
        self.look(entry.ino, call, cx)?;
        let inode = self.inode(entry.ino, cx)?;
        permission::remove_entry(&dir, &inode, call.cred, cx.store)?;
        if inode.is_directory() {
            return err(EISDIR);
        }
        let is_forgotten = row.forgotten == inode.ino;
        self.claim(&[(dir.ino, true), (inode.ino, is_forgotten)], call, cx)?;
        self.leave(&mut dir, name, &entry, cx);
        self.unlinked(inode, is_forgotten, call, cx);
        let leased = self.lease_after(dir.ino, 0, call, cx);
        Ok((leased, self.parent_after(dir.ino, leased.name, call, cx)))
    }

    pub(crate) fn rmdir(
        &mut self,
        row: Rmdir,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Leased, Vec<u8>)> {
        let mut dir = self.searchable(row.parent, call.cred, cx)?;
        let name = name::to_rmdir(call.payload)?;
        let entry = self.existing(&dir, name, cx)?;
        let inode = self.inode(entry.ino, cx)?;
        permission::remove_entry(&dir, &inode, call.cred, cx.store)?;
        if !inode.is_directory() {
            return err(ENOTDIR);
        }
        if inode.size > 0 {
            return err(ENOTEMPTY);
        }
        let is_forgotten = row.forgotten == inode.ino;
        self.claim(&[(dir.ino, true), (inode.ino, is_forgotten)], call, cx)?;
        self.leave(&mut dir, name, &entry, cx);
        self.unlinked(inode, is_forgotten, call, cx);
        let leased = self.lease_after(dir.ino, 0, call, cx);
        Ok((leased, self.parent_after(dir.ino, leased.name, call, cx)))
    }

    pub(crate) fn readlink(
        &mut self,
        row: Readlink,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Vec<u8>> {
        let mut inode = self.inode(row.ino, cx)?;
        if inode.kind() != S_IFLNK {
            return err(EINVAL);
        }
        let Some(target) = cx.store.get(&keys::target(row.ino)) else { return err(EIO) };
        if inode.accessed(cx.wall) {
            self.save_accessed(&inode, call, cx);
        }
        Ok(target)
    }

    pub(crate) fn readdir(
        &mut self,
        row: Readdir,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Listed, Vec<u8>)> {
        self.handle(row.fh, row.ino, call.id.source)?;
        let mut dir = self.directory(row.ino, cx)?;
        if dir.nlink == 0 {
            return err(ENOENT);
        }
        let mut listing = Listing::new(row.size);
        list(&dir, row.offset, cx, &mut listing);
        if listing.bytes.is_empty() && listing.full {
            return err(EINVAL);
        }
        if dir.accessed(cx.wall) {
            self.save_accessed(&dir, call, cx);
        }
        let kept = u8::from(self.lease(&dir, call, cx) != 0);
        Ok((Listed { is_end: u8::from(!listing.full), kept }, listing.bytes))
    }

    /// Directory `ino`, which the caller may search.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EACCES.
    pub(crate) fn searchable(&mut self, ino: u64, cred: &Cred, cx: &Context<'_>) -> Result<Inode> {
        let dir = self.directory(ino, cx)?;
        permission::access(&dir, cred, X_OK, cx.store)?;
        Ok(dir)
    }

    /// The entry of `name`, if there is one.
    pub(crate) fn find(&self, dir: &Inode, name: &[u8], cx: &Context<'_>) -> Result<Option<Entry>> {
        Ok(keys::read(cx.store, &keys::entry(dir.ino, name))?)
    }

    /// The entry of `name`.
    ///
    /// # Errors
    /// ENOENT.
    pub(crate) fn existing(&self, dir: &Inode, name: &[u8], cx: &Context<'_>) -> Result<Entry> {
        match self.find(dir, name, cx)? {
            Some(entry) => Ok(entry),
            None => err(ENOENT),
        }
    }

    /// There must be no entry of `name`.
    fn missing(&self, dir: &Inode, name: &[u8], cx: &Context<'_>) -> Result<()> {
        if self.find(dir, name, cx)?.is_some() { err(EEXIST) } else { Ok(()) }
    }

    /// Makes an inode with one name, which is not there yet. `mode` includes the type.
    ///
    /// # Errors
    /// ENOENT, EACCES, EMLINK, ENOSPC, EDQUOT.
    pub(crate) fn make(
        &mut self,
        mut dir: Inode,
        name: &[u8],
        new: New,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Inode> {
        permission::add_entry(&dir, call.cred, cx.store)?;
        let is_directory = new.mode & S_IFMT == S_IFDIR;
        if is_directory && dir.nlink >= SUBDIRECTORY_MAX {
            return err(EMLINK);
        }
        self.claim(&[(dir.ino, true)], call, cx)?;
        let nlink = if is_directory { 2 } else { 1 };
        let parent = if is_directory { dir.ino } else { 0 };
        let inode = Inode { parent, nlink, ..self.new_inode(&dir, new, call.cred, cx)? };
        self.save(&inode, cx);
        self.enter(&mut dir, name, &inode, cx);
        Ok(inode)
    }

    /// An inode of `cred`'s below `dir`, not stored yet, without a name.
    ///
    /// # Errors
    /// ENOSPC, EDQUOT.
    pub(crate) fn new_inode(
        &mut self,
        dir: &Inode,
        new: New,
        cred: &Cred,
        cx: &mut Context<'_>,
    ) -> Result<Inode> {
        self.check_new_inode(dir.tree)?;
        self.take_metadata_space(cx)?;
        let now = time(cx.wall);
        let inherited = Inherited::of(dir, new.mode, new.umask, cx.store);
        let mut inode = Inode {
            ino: self.numbers.new_inode(cx.store),
            next_cookie: FIRST_COOKIE,
            atime: now,
            mtime: now,
            ctime: now,
            mode: permission::new_mode(dir, inherited.mode, cred),
            uid: cred.uid,
            gid: permission::new_group(dir, cred),
            rdev: new.rdev,
            tree: dir.tree,
            ..Inode::default()
        };
        inherited.give(&mut inode, cx.store);
        Ok(inode)
    }

    /// Adds an entry to `dir` and stores `dir`.
    pub(crate) fn enter(
        &mut self,
        dir: &mut Inode,
        name: &[u8],
        inode: &Inode,
        cx: &mut Context<'_>,
    ) {
        let cookie = dir.next_cookie;
        dir.next_cookie += 1;
        dir.size += 1;
        dir.nlink += u32::from(inode.is_directory());
        dir.modified(cx.wall);
        point(dir.ino, name, cookie, inode, cx);
        self.save(dir, cx);
    }

    /// Removes an entry from `dir` and stores `dir`.
    pub(crate) fn leave(
        &mut self,
        dir: &mut Inode,
        name: &[u8],
        entry: &Entry,
        cx: &mut Context<'_>,
    ) {
        dir.size -= 1;
        dir.nlink -= u32::from(entry.kind == DT_DIR);
        dir.modified(cx.wall);
        cx.store.remove(&keys::entry(dir.ino, name));
        cx.store.remove(&keys::place(dir.ino, entry.cookie));
        self.save(dir, cx);
    }

    /// Lets a name that is there stand for another inode, and stores `dir`.
    pub(crate) fn repoint(
        &mut self,
        dir: &mut Inode,
        name: &[u8],
        entry: &Entry,
        inode: &Inode,
        cx: &mut Context<'_>,
    ) {
        dir.nlink -= u32::from(entry.kind == DT_DIR);
        dir.nlink += u32::from(inode.is_directory());
        dir.modified(cx.wall);
        point(dir.ino, name, entry.cookie, inode, cx);
        self.save(dir, cx);
    }

    /// A name of `inode` is gone. A directory has only one.
    /// `is_forgotten`: the caller knows that it was this one.
    pub(crate) fn unlinked(
        &mut self,
        mut inode: Inode,
        is_forgotten: bool,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) {
        inode.nlink = if inode.is_directory() { 0 } else { inode.nlink.saturating_sub(1) };
        inode.ctime = time(cx.wall);
        self.save(&inode, cx);
        if inode.is_directory() {
            self.trees.end(inode.ino, cx.store);
        }
        if inode.nlink == 0 && !self.opens.is_open(inode.ino) {
            self.discard(inode, cx);
            if is_forgotten {
                self.let_go(inode.ino, call);
            }
        }
    }
}

/// Stores an entry under its name and under its cookie.
fn point(dir: u64, name: &[u8], cookie: u64, inode: &Inode, cx: &mut Context<'_>) {
    let (ino, kind) = (inode.ino, inode.entry_kind());
    cx.store.put(&keys::entry(dir, name), &Entry { ino, cookie, kind }.bytes());
    let mut place = Place { ino, kind }.bytes().to_vec();
    place.extend_from_slice(name);
    cx.store.put(&keys::place(dir, cookie), &place);
}

/// Lists what comes behind cookie `offset`, until the listing is full.
fn list(dir: &Inode, offset: u64, cx: &Context<'_>, listing: &mut Listing) {
    if offset < COOKIE_DOT && !listing.add(dir.ino, COOKIE_DOT, DT_DIR, b".") {
        return;
    }
    if offset < COOKIE_DOT_DOT && !listing.add(dir.parent, COOKIE_DOT_DOT, DT_DIR, b"..") {
        return;
    }
    let Some(first) = offset.checked_add(1) else { return };
    let (from, to) = keys::places_from(dir.ino, first.max(FIRST_COOKIE));
    cx.store.range(&from, &to, &mut |key, value| {
        let added = match (keys::numbers(key), Place::get(value)) {
            (Some([_, cookie]), Some(place)) => {
                listing.add(place.ino, cookie, place.kind, &value[Place::SIZE..])
            }
            _ => true,
        };
        if added { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
}

/// The payload of a `Readdir` under construction.
struct Listing {
    bytes: Vec<u8>,
    size: usize,
    full: bool,
}

impl Listing {
    fn new(size: u32) -> Listing {
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(PAYLOAD_MAX);
        Listing { bytes: Vec::with_capacity(size.min(4096)), size, full: false }
    }

    /// Adds an entry if it fits.
    fn add(&mut self, ino: u64, cookie: u64, kind: u8, name: &[u8]) -> bool {
        const { assert!(NAME_MAX <= u8::MAX as usize) };
        let name_len = u8::try_from(name.len()).expect("names were checked when they were made");
        self.full = self.bytes.len() + DirEntry::SIZE + name.len() > self.size;
        if !self.full {
            self.bytes.extend_from_slice(&DirEntry { ino, next: cookie, kind, name_len }.bytes());
            self.bytes.extend_from_slice(name);
        }
        !self.full
    }
}
