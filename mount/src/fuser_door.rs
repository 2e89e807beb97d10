//! The FUSE protocol, by the crate `fuser`, on top of an [`Agent`].
//!
//! Nothing is cached: entries and attributes are valid for no time, and files are opened for direct I/O
//! (with mmap still working), so every node sees a change as soon as the call that made it has returned.
//!
//! What `fuser` 0.18 cannot do: FUSE_INTERRUPT (a program waiting for a lock is not woken by a signal, not even
//! SIGKILL, until the lock is granted or refused), the difference between flock and fcntl (see `lock_kind`), O_TMPFILE.

use crate::agent::{Agent, Caller, Entry, NewMode, OpenFile, Place, tellable};
use crate::limits::IO_SIZE_MAX;
use crate::lock_kind;
use calls::vfs::{Attr, Lock, SetAttr, Time, set};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use m3ipc::errno::numbers::{EIO, ELOOP, ENXIO, ESTALE};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long the kernel may believe an entry or attribute: not at all.
const NO_TIME: Duration = Duration::ZERO;
/// Inode numbers are never used again, so one generation is enough.
const GENERATION: Generation = Generation(0);
/// File type bits of a mode (S_IFMT).
const TYPE_BITS: u32 = 0o170_000;
/// Permission bits of a mode.
const PERMISSION_BITS: u32 = 0o7777;
const O_APPEND: i32 = 0o2000;

/// Without these, locks would be local to a node, or O_TRUNC and the umask would not reach the server.
const NEEDED: InitFlags = InitFlags::FUSE_POSIX_LOCKS
    .union(InitFlags::FUSE_FLOCK_LOCKS)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_DONT_MASK);

/// These make it faster, or better with files that are not opened for direct I/O: the server drops set-user-id bits
/// itself, so that a write need not ask for xattrs first; pages go when a file's mtime or size has changed.
const WELCOME: [InitFlags; 3] = [
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_AUTO_INVAL_DATA,
];

thread_local! {
    /// What a read is answered from: one of the largest size per thread, so that none is made per read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An [`Agent`] as a FUSE file system.
#[derive(Debug)]
pub struct FuserDoor<A> {
    agent: A,
    /// How files are opened: for direct I/O, if the kernel can map such files.
    open_flags: FopenFlags,
}

impl<A: Agent> FuserDoor<A> {
    pub fn new(agent: A) -> FuserDoor<A> {
        FuserDoor { agent, open_flags: FopenFlags::empty() }
    }
}

fn caller(req: &Request) -> Caller {
    Caller { pid: req.pid(), uid: req.uid(), gid: req.gid() }
}

fn entry(parent: INodeNo, name: &OsStr) -> Entry<'_> {
    Entry { parent: parent.0, name: name.as_bytes() }
}

fn file(ino: INodeNo, fh: FileHandle) -> OpenFile {
    OpenFile { ino: ino.0, fh: fh.0 }
}

/// The bits of a flag word that Linux has as int.
fn bits(flags: i32) -> u32 {
    flags.cast_unsigned()
}

/// An errno for the kernel. It must never hear ENOSYS: it would not ask again, for the life of the mount.
fn errno(error: m3ipc::Errno) -> Errno {
    Errno::from_i32(match tellable(error) {
        libc::ENOSYS => EIO,
        number => number,
    })
}

/// Of a create. The name was free when the kernel looked; if another node has made a link or a pipe
/// of it since, ESTALE makes the kernel look again and follow or open that.
fn look_again<T>(created: Result<T, m3ipc::Errno>) -> Result<T, m3ipc::Errno> {
    created.map_err(|error| match error.errno {
        ELOOP | ENXIO => m3ipc::Errno::new(ESTALE),
        _ => error,
    })
}

fn to_system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    let nanos = Duration::from_nanos(time.nanos.into());
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The time that the kernel sent. Before the epoch, `fuser` subtracts the nanoseconds instead of
/// adding them; this undoes exactly that.
fn from_system_time(time: SystemTime) -> Time {
    let (seconds, nanos) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            (0i64.checked_sub_unsigned(before.as_secs()).unwrap_or(i64::MIN), before.subsec_nanos())
        }
    };
    Time { seconds, nanos }
}

fn file_type(mode: u32) -> Option<FileType> {
    Some(match mode & TYPE_BITS {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => return None,
    })
}

/// The type of a directory entry from its DT_* value, which is a mode's type shifted.
fn entry_type(kind: u8) -> FileType {
    file_type(u32::from(kind) << 12).unwrap_or(FileType::RegularFile)
}

fn file_attr(attr: &Attr) -> Result<FileAttr, m3ipc::Errno> {
    Ok(FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system_time(attr.atime),
        mtime: to_system_time(attr.mtime),
        ctime: to_system_time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.mode).ok_or(m3ipc::Errno::new(EIO))?,
        perm: (attr.mode & PERMISSION_BITS) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.block_size,
        flags: 0,
    })
}

fn reply_entry(reply: ReplyEntry, outcome: Result<Attr, m3ipc::Errno>) {
    match outcome.and_then(|attr| file_attr(&attr)) {
        Ok(attr) => reply.entry(&NO_TIME, &attr, GENERATION),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_attr(reply: ReplyAttr, outcome: Result<Attr, m3ipc::Errno>) {
    match outcome.and_then(|attr| file_attr(&attr)) {
        Ok(attr) => reply.attr(&NO_TIME, &attr),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_empty(reply: ReplyEmpty, outcome: Result<(), m3ipc::Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// Answers an xattr request of `size` bytes: the length only if it is 0.
fn reply_xattr(
    reply: ReplyXattr,
    size: u32,
    get: impl FnOnce(&mut [u8]) -> Result<usize, m3ipc::Errno>,
) {
    let mut buffer = vec![0; size.min(IO_SIZE_MAX) as usize];
    match get(&mut buffer) {
        Ok(length) if size == 0 => reply.size(u32::try_from(length).unwrap_or(u32::MAX)),
        Ok(length) => reply.data(&buffer[..length.min(buffer.len())]),
        Err(error) => reply.error(errno(error)),
    }
}

/// What utimensat(2), chmod, chown and truncate change, as the kernel says.
fn set_attr(mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>) -> SetAttr {
    let bit = |given: bool, bit: u32| if given { bit } else { 0 };
    SetAttr {
        valid: bit(mode.is_some(), set::MODE)
            | bit(uid.is_some(), set::UID)
            | bit(gid.is_some(), set::GID)
            | bit(size.is_some(), set::SIZE),
        mode: mode.unwrap_or(0) & PERMISSION_BITS,
        uid: uid.unwrap_or(0),
        gid: gid.unwrap_or(0),
        size: size.unwrap_or(0),
        ..SetAttr::default()
    }
}

/// The bits of a time to set, and the time.
fn set_time(time: Option<TimeOrNow>, set: u32, now: u32) -> (u32, Time) {
    match time {
        None => (0, Time::default()),
        Some(TimeOrNow::Now) => (now, Time::default()),
        Some(TimeOrNow::SpecificTime(time)) => (set, from_system_time(time)),
    }
}

impl<A: Agent> Filesystem for FuserDoor<A> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if let Err(missing) = config.add_capabilities(NEEDED) {
            tracing::error!(?missing, "this kernel's FUSE is too old");
            return Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT));
        }
        for flag in WELCOME {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "not offered by this kernel");
            }
        }
        // Without that capability a file opened for direct I/O cannot be mapped shared: then the
        // page cache is used, emptied at each open and whenever mtime or size have changed.
        if config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok() {
            self.open_flags = FopenFlags::FOPEN_DIRECT_IO;
        }
        let refused =
            |most: u32| io::Error::other(format!("no request may be larger than {most} bytes"));
        config.set_max_write(IO_SIZE_MAX).map_err(refused)?;
        // The kernel's own wish may be smaller already.
        if let Err(most) = config.set_max_readahead(IO_SIZE_MAX) {
            tracing::debug!(most, "read-ahead");
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, self.agent.lookup(caller(req), entry(parent, name)));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.agent.getattr(caller(req), ino.0, fh.map(|fh| fh.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut set = set_attr(mode, uid, gid, size);
        let (atime_bits, atime) = set_time(atime, set::ATIME, set::ATIME_NOW);
        let (mtime_bits, mtime) = set_time(mtime, set::MTIME, set::MTIME_NOW);
        set.valid |= atime_bits | mtime_bits;
        (set.atime, set.mtime) = (atime, mtime);
        reply_attr(reply, self.agent.setattr(caller(req), ino.0, fh.map(|fh| fh.0), &set));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.agent.readlink(caller(req), ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        reply_entry(
            reply,
            self.agent.mknod(caller(req), entry(parent, name), NewMode { mode, umask }, rdev),
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        reply_entry(
            reply,
            self.agent.mkdir(caller(req), entry(parent, name), NewMode { mode, umask }),
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.agent.unlink(caller(req), entry(parent, name)));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.agent.rmdir(caller(req), entry(parent, name)));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        reply_entry(reply, self.agent.symlink(caller(req), entry(parent, name), target));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (entry(parent, name), entry(newparent, newname));
        reply_empty(reply, self.agent.rename(caller(req), from, to, flags.bits()));
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply_entry(reply, self.agent.link(caller(req), ino.0, entry(newparent, newname)));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.agent.open(caller(req), ino.0, bits(flags.0)) {
            Ok(fh) => reply.opened(FileHandle(fh), self.open_flags),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let new = NewMode { mode, umask };
        let created = self.agent.create(caller(req), entry(parent, name), new, bits(flags));
        match look_again(created).and_then(|(attr, opened)| Ok((file_attr(&attr)?, opened.fh))) {
            Ok((attr, fh)) => {
                reply.created(&NO_TIME, &attr, GENERATION, FileHandle(fh), self.open_flags)
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size.max(IO_SIZE_MAX) as usize, 0);
            }
            match self.agent.read(caller(req), file(ino, fh), offset, &mut buffer[..size as usize])
            {
                Ok(len) => reply.data(&buffer[..len]),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Dirty pages of a mapping belong where they are, and their file handle is any of the inode's.
        let from_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let place =
            if flags.0 & O_APPEND != 0 && !from_pages { Place::End } else { Place::Offset(offset) };
        match self.agent.write(caller(req), file(ino, fh), place, data) {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.agent.flush(caller(req), file(ino, fh), owner.0));
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.agent.release(caller(req), file(ino, fh)));
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let done = Box::new(move |outcome| reply_empty(reply, outcome));
        self.agent.fsync(caller(req), file(ino, fh), datasync, done);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.agent.open(caller(req), ino.0, bits(flags.0)) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let outcome = self.agent.readdir(caller(req), file(ino, fh), offset, &mut |entry, name| {
            let full = reply.add(
                INodeNo(entry.ino),
                entry.next,
                entry_type(entry.kind),
                OsStr::from_bytes(name),
            );
            if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.agent.release(caller(req), file(ino, fh)));
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let done = Box::new(move |outcome| reply_empty(reply, outcome));
        self.agent.fsync(caller(req), file(ino, fh), datasync, done);
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.agent.statfs(caller(req), ino.0) {
            Ok(stats) => reply.statfs(
                stats.blocks,
                stats.blocks_free,
                stats.blocks_available,
                stats.files,
                stats.files_free,
                stats.block_size,
                stats.name_max,
                stats.block_size,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(
            reply,
            self.agent.setxattr(caller(req), ino.0, name.as_bytes(), value, bits(flags)),
        );
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes();
        reply_xattr(reply, size, |buffer| self.agent.getxattr(caller(req), ino.0, name, buffer));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, |buffer| self.agent.listxattr(caller(req), ino.0, buffer));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.agent.removexattr(caller(req), ino.0, name.as_bytes()));
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        reply_empty(reply, self.agent.access(caller(req), ino.0, bits(mask.bits())));
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let lock = Lock { owner: owner.0, start, end, pid, kind: bits(typ) };
        match self.agent.getlk(caller(req), file(ino, fh), lock) {
            Ok(found) => reply.locked(found.start, found.end, found.kind.cast_signed(), found.pid),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let lock = Lock { owner: owner.0, start, end, pid, kind: bits(typ) };
        let kind = lock_kind::of_request(req.pid(), start, end);
        let done = Box::new(move |outcome| reply_empty(reply, outcome));
        self.agent.setlk(caller(req), file(ino, fh), lock, kind, sleep, done);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(
            reply,
            self.agent.fallocate(caller(req), file(ino, fh), offset, length, bits(mode)),
        );
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let found = self.agent.seek(caller(req), file(ino, fh), offset, bits(whence));
        match found.map(i64::try_from) {
            Ok(Ok(offset)) => reply.offset(offset),
            Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// ENOSYS on purpose: the kernel then copies with reads and writes, and asks no more.
    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What `fuser` makes of the kernel's seconds and nanoseconds (its `time.rs`).
    fn as_fuser_reads(time: Time) -> SystemTime {
        if time.seconds >= 0 {
            SystemTime::UNIX_EPOCH + Duration::new(time.seconds.unsigned_abs(), time.nanos)
        } else {
            SystemTime::UNIX_EPOCH - Duration::new(time.seconds.unsigned_abs(), time.nanos)
        }
    }

    proptest! {
        #[test]
        fn a_time_that_the_kernel_sends_is_the_time_that_the_server_gets(
            seconds in -(1i64 << 60)..1 << 60, nanos in 0u32..1_000_000_000
        ) {
            let time = Time { seconds, nanos };
            prop_assert_eq!(from_system_time(as_fuser_reads(time)), time);
        }

        #[test]
        fn no_time_of_the_server_makes_the_door_panic(seconds: i64, nanos: u32) {
            to_system_time(Time { seconds, nanos });
        }
    }

    #[test]
    fn a_time_before_the_epoch_keeps_its_nanoseconds() {
        let time = to_system_time(Time { seconds: -2, nanos: 800_000_000 });
        assert_eq!(
            SystemTime::UNIX_EPOCH.duration_since(time).unwrap(),
            Duration::from_millis(1200)
        );
    }

    #[test]
    fn an_error_is_one_the_kernel_takes_and_never_forgets_a_request_for() {
        let check = |given, expected| {
            assert_eq!(errno(m3ipc::Errno::new(given)), Errno::from_i32(expected), "{given}")
        };
        check(libc::ENOENT, libc::ENOENT);
        check(libc::EHOSTDOWN, libc::EHOSTDOWN);
        check(libc::ENOSYS, EIO);
        check(512, EIO);
        check(0, EIO);
        check(-5, EIO);
    }

    #[test]
    fn a_type_in_a_directory_is_the_type_of_a_mode() {
        let check = |kind, expected| assert_eq!(entry_type(kind), expected);
        check(libc::DT_DIR, FileType::Directory);
        check(libc::DT_LNK, FileType::Symlink);
        check(libc::DT_FIFO, FileType::NamedPipe);
        check(libc::DT_SOCK, FileType::Socket);
        check(libc::DT_REG, FileType::RegularFile);
        assert_eq!(file_type(0), None);
    }
}
