//! The floor of the door: a FUSE file system that has nothing behind it, in memory under one lock, by the crate `fuser`.
//!
//! As the mount of DVS it remembers nothing in the kernel and has its files opened for direct I/O.

use crate::peer::Peer;
use anyhow::{Context, Result, ensure};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    SessionACL, TimeOrNow, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

const ROOT: u64 = 1;
/// Most bytes of a request, as with DVS.
const IO_SIZE_MAX: u32 = 128 << 10;

/// A mount of it, served by a process of its own; taken away when dropped.
#[derive(Debug)]
pub(crate) struct EmptyFuse {
    folder: tempfile::TempDir,
    process: Peer,
}

impl EmptyFuse {
    /// Mounts one.
    ///
    /// # Errors
    /// It cannot be mounted here.
    pub(crate) fn mount() -> Result<EmptyFuse> {
        let folder = tempfile::Builder::new().prefix("dvs-bench-fuse-").tempdir()?;
        let device = std::fs::metadata(folder.path())?.dev();
        let mut command = Command::new(std::env::current_exe()?);
        let mut process =
            Peer(command.arg("empty-fuse").arg(folder.path()).stdin(Stdio::null()).spawn()?);
        while std::fs::metadata(folder.path()).is_ok_and(|found| found.dev() == device) {
            ensure!(process.0.try_wait()?.is_none(), "FUSE cannot be mounted here");
            std::thread::yield_now();
        }
        Ok(EmptyFuse { folder, process })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for EmptyFuse {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
        if status.is_ok_and(|status| status.success()) {
            drop(self.process.0.wait());
        }
    }
}

/// Serves one at `folder` until it is unmounted.
///
/// # Errors
/// It cannot be mounted here.
pub(crate) fn serve(folder: &Path) -> Result<()> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(2);
    config.clone_fd = true;
    config.mount_options =
        vec![MountOption::FSName("empty".into()), MountOption::CUSTOM("max_read=131072".into())];
    let tree = Tree::new();
    fuser::mount(Memory(Mutex::new(tree)), folder, &config).context("cannot mount")
}

/// All files, by number.
#[derive(Debug)]
struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

#[derive(Debug)]
struct Node {
    attr: FileAttr,
    data: Vec<u8>,
    entries: BTreeMap<OsString, u64>,
}

impl Tree {
    fn new() -> Tree {
        let mut tree = Tree { nodes: BTreeMap::new(), next: ROOT };
        tree.make(FileType::Directory, 0o777);
        tree
    }

    fn make(&mut self, kind: FileType, mode: u32) -> FileAttr {
        let now = SystemTime::now();
        let ino = self.next;
        self.next += 1;
        let attr = FileAttr {
            ino: INodeNo(ino),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        self.nodes.insert(ino, Node { attr, data: Vec::new(), entries: BTreeMap::new() });
        attr
    }

    fn node(&mut self, ino: INodeNo) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino.0).ok_or(Errno::ENOENT)
    }

    fn find(&mut self, parent: INodeNo, name: &OsStr) -> Result<u64, Errno> {
        self.node(parent)?.entries.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn make_in(
        &mut self,
        parent: INodeNo,
        name: &OsStr,
        kind: FileType,
        mode: u32,
    ) -> Result<FileAttr, Errno> {
        if self.find(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let attr = self.make(kind, mode);
        self.node(parent)?.entries.insert(name.to_owned(), attr.ino.0);
        Ok(attr)
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let ino = self.node(parent)?.entries.remove(name).ok_or(Errno::ENOENT)?;
        self.nodes.remove(&ino);
        Ok(())
    }
}

struct Memory(Mutex<Tree>);

impl Memory {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reply_entry(reply: ReplyEntry, outcome: Result<FileAttr, Errno>) {
    match outcome {
        Ok(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn reply_empty(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Filesystem for Memory {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for welcome in [
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_POSIX_LOCKS,
        ] {
            // Older kernels do without.
            config.add_capabilities(welcome).ok();
        }
        let refused = |most| std::io::Error::other(format!("no request may be larger than {most}"));
        config.set_max_write(IO_SIZE_MAX).map_err(refused)?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut tree = self.tree();
        let found = tree.find(parent, name);
        reply_entry(reply, found.and_then(|ino| Ok(tree.node(INodeNo(ino))?.attr)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree().node(ino) {
            Ok(node) => reply.attr(&Duration::ZERO, &node.attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.tree().node(ino) {
            Ok(node) => {
                if let Some(size) = size {
                    node.data.resize(at(size), 0);
                    node.attr.size = size;
                }
                reply.attr(&Duration::ZERO, &node.attr);
            }
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        reply_entry(reply, self.tree().make_in(parent, name, FileType::Directory, mode));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.tree().remove(parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.tree().remove(parent, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut tree = self.tree();
        let moved = tree.find(parent, name).and_then(|ino| {
            tree.node(parent)?.entries.remove(name);
            tree.node(newparent)?.entries.insert(newname.to_owned(), ino);
            Ok(())
        });
        reply_empty(reply, moved);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.tree().make_in(parent, name, FileType::RegularFile, mode) {
            Ok(attr) => reply.created(
                &Duration::ZERO,
                &attr,
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_DIRECT_IO,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.tree().node(ino) {
            Ok(node) => {
                let start = at(offset).min(node.data.len());
                let end = start.saturating_add(size as usize).min(node.data.len());
                reply.data(&node.data[start..end]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.tree().node(ino) {
            Ok(node) => {
                let end = at(offset) + data.len();
                if node.data.len() < end {
                    node.data.resize(end, 0);
                    node.attr.size = end as u64;
                }
                node.data[at(offset)..end].copy_from_slice(data);
                reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
            }
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut tree = self.tree();
        let Ok(node) = tree.node(ino) else { return reply.error(Errno::ENOENT) };
        let dots = [(OsString::from("."), ino.0), (OsString::from(".."), ROOT)];
        let named = node.entries.iter().map(|(name, ino)| (name.clone(), *ino));
        let all: Vec<(OsString, u64)> = dots.into_iter().chain(named).collect();
        for (index, (name, ino)) in all.iter().enumerate().skip(at(offset)) {
            let kind = tree.nodes.get(ino).map_or(FileType::RegularFile, |node| node.attr.kind);
            if reply.add(INodeNo(*ino), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}
