//! What a file agent does, request by request, in no protocol's terms.

use crate::kernel::Kernel;
use calls::vfs::{Attr, DirEntry, FsStats, Lock, SetAttr};
use m3ipc::errno::numbers::EIO;
use m3ipc::{Errno, Interrupt};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// Who makes a request, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The thread that waits for the answer; 0 if it is the kernel itself.
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    /// Number of the request: what is asked again, as an agent has died, has the same.
    pub request: u64,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub parent: u64,
    pub name: &'a [u8],
}

/// An open file: its inode and the server's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    pub ino: u64,
    pub fh: u64,
}

/// Permission bits and type of what is to be made, and the maker's umask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewMode {
    pub mode: u32,
    pub umask: u32,
}

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Offset(u64),
    /// There, and it is the kernel that writes pages of a mapping back.
    Page(u64),
    /// Wherever the file ends when the write is executed (O_APPEND).
    End,
}

/// Which family a lock belongs to; they do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// fcntl(2): record locks of a process or of an open file description.
    Record,
    /// flock(2).
    Flock,
}

/// Attributes, and how long the kernel may remember them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub attr: Attr,
    pub lent: Duration,
}

/// What a name stands for, and how long the kernel may remember that; `None`: for nothing, to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    pub told: Option<Told>,
    pub lent: Duration,
}

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// Each read is a request.
    Requests,
    /// From pages that the kernel has, or asks for.
    Pages,
}

/// What the kernel can do with pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skill {
    /// It can read files from pages, and asks for attributes before if it has none.
    pub reads: bool,
    /// It has no pages of files but those it has read, maps files that are not read through pages, and has lost a page when it says so (from Linux 6.16 on).
    pub maps: bool,
}

/// Called for each directory entry, until it breaks.
pub type VisitEntry<'a> = dyn FnMut(DirEntry, &[u8]) -> ControlFlow<()> + 'a;

/// As [`VisitEntry`], with what the name stands for as far as that is remembered.
pub type VisitLooked<'a> = dyn FnMut(DirEntry, &[u8], Option<Looked>) -> ControlFlow<()> + 'a;

/// A file agent: one method per request of a file protocol, each a call of vfs-server or several.
///
/// Methods may be called from many threads and return when it is done. Numbers, flags and modes are Linux's.
/// Every error is an errno for the program that asked.
#[expect(clippy::missing_errors_doc, reason = "as just told")]
pub trait Agent: Send + Sync + 'static {
    /// [`Agent::has_told`] follows if the name may be remembered.
    fn lookup(&self, caller: Caller, entry: Entry<'_>) -> Result<Looked, Errno>;
    /// Before requests are served, if there were agents before this one: does what they had put off, and has the kernel and others forget
    /// what nobody knows any more to have been told.
    fn settle(&self);
    /// Beside that: waits for what becomes of the calls that they had made.
    fn resume(&self);
    /// The kernel is about to be told that a file is open.
    fn answers_open(&self, caller: Caller);
    /// A request has been answered, or nobody waits for an answer: it is not asked again.
    fn has_answered(&self, caller: Caller);
    /// The caller has been sent a name that it asked for, or never will be.
    fn has_told(&self, caller: Caller);
    fn getattr(&self, caller: Caller, ino: u64, fh: Option<u64>) -> Result<Told, Errno>;
    fn setattr(
        &self,
        caller: Caller,
        ino: u64,
        fh: Option<u64>,
        set: &SetAttr,
    ) -> Result<Attr, Errno>;
    fn readlink(&self, caller: Caller, ino: u64) -> Result<Vec<u8>, Errno>;
    fn symlink(&self, caller: Caller, entry: Entry<'_>, target: &[u8]) -> Result<Attr, Errno>;
    fn mknod(
        &self,
        caller: Caller,
        entry: Entry<'_>,
        new: NewMode,
        rdev: u32,
    ) -> Result<Attr, Errno>;
    fn mkdir(&self, caller: Caller, entry: Entry<'_>, new: NewMode) -> Result<Attr, Errno>;
    fn unlink(&self, caller: Caller, entry: Entry<'_>) -> Result<(), Errno>;
    fn rmdir(&self, caller: Caller, entry: Entry<'_>) -> Result<(), Errno>;
    fn rename(
        &self,
        caller: Caller,
        from: Entry<'_>,
        to: Entry<'_>,
        flags: u32,
    ) -> Result<(), Errno>;
    fn link(&self, caller: Caller, ino: u64, to: Entry<'_>) -> Result<Attr, Errno>;
    /// Opens a file or directory; the handle, and how it is read.
    fn open(&self, caller: Caller, ino: u64, flags: u32) -> Result<(u64, Through), Errno>;
    fn create(
        &self,
        caller: Caller,
        entry: Entry<'_>,
        new: NewMode,
        flags: u32,
    ) -> Result<(Attr, OpenFile), Errno>;
    /// Makes and opens a file without a name on the file system of directory `parent` (O_TMPFILE).
    fn tmpfile(
        &self,
        caller: Caller,
        parent: u64,
        new: NewMode,
        flags: u32,
    ) -> Result<(Attr, OpenFile), Errno>;
    /// Fills `buffer` from `offset` on; fewer bytes than it has room for mean the end of the file.
    fn read(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno>;
    /// As [`Agent::read`], of whole pages that the kernel keeps.
    fn read_pages(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno>;
    fn write(
        &self,
        caller: Caller,
        file: OpenFile,
        place: Place,
        data: &[u8],
    ) -> Result<usize, Errno>;
    /// One descriptor is closed: the record locks of `owner` on the file go.
    fn flush(&self, caller: Caller, file: OpenFile, owner: u64) -> Result<(), Errno>;
    /// The last descriptor is closed.
    fn release(&self, caller: Caller, file: OpenFile) -> Result<(), Errno>;
    /// Returns when the file is on stable storage.
    fn fsync(&self, caller: Caller, file: OpenFile, datasync: bool) -> Result<(), Errno>;
    /// Visits entries after cookie `offset` (0 is the start), as they are at one moment, until `visit` breaks: as many as
    /// fit `size` bytes in the kernel's format, or more, and none at the end.
    fn readdir(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        size: u32,
        visit: &mut VisitEntry<'_>,
    ) -> Result<(), Errno>;
    fn statfs(&self, caller: Caller, ino: u64) -> Result<FsStats, Errno>;
    fn access(&self, caller: Caller, ino: u64, mask: u32) -> Result<(), Errno>;
    fn getlk(&self, caller: Caller, file: OpenFile, lock: Lock) -> Result<Lock, Errno>;
    /// Sets or drops a lock. With `wait` it returns when the lock is granted or refused, or with EINTR when it is
    /// interrupted.
    fn setlk(
        &self,
        caller: Caller,
        file: OpenFile,
        lock: Lock,
        kind: LockKind,
        wait: Option<&Interrupt>,
    ) -> Result<(), Errno>;
    /// Ends the wait of who waits with it. To be repeated until that has returned.
    fn interrupt(&self, interrupt: &Interrupt);
    /// The length of the value, which is in `buffer` unless that is empty.
    fn getxattr(
        &self,
        caller: Caller,
        ino: u64,
        name: &[u8],
        buffer: &mut [u8],
    ) -> Result<usize, Errno>;
    fn setxattr(
        &self,
        caller: Caller,
        ino: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno>;
    /// As `getxattr`, for the list of names.
    fn listxattr(&self, caller: Caller, ino: u64, buffer: &mut [u8]) -> Result<usize, Errno>;
    fn removexattr(&self, caller: Caller, ino: u64, name: &[u8]) -> Result<(), Errno>;
    fn fallocate(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<(), Errno>;
    /// copy_file_range(2) from one file and offset to another. It may copy less than `length`.
    fn copy_range(
        &self,
        caller: Caller,
        from: (OpenFile, u64),
        to: (OpenFile, u64),
        length: u64,
    ) -> Result<u32, Errno>;
    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    fn seek(&self, caller: Caller, file: OpenFile, offset: u64, whence: u32) -> Result<u64, Errno>;
    /// As [`Agent::lookup`], if that takes no time: nobody has to be asked or waited for. So for all that are done `at_once`.
    fn lookup_at_once(&self, caller: Caller, entry: Entry<'_>) -> Option<Result<Looked, Errno>>;
    fn getattr_at_once(&self, ino: u64) -> Option<Told>;
    fn open_at_once(&self, caller: Caller, ino: u64, flags: u32) -> Option<u64>;
    fn opendir_at_once(&self, caller: Caller, ino: u64, flags: u32) -> Option<u64>;
    /// True: it is done; false: it is to be done in the other way.
    fn readdir_at_once(&self, file: OpenFile, offset: u64, visit: &mut VisitEntry<'_>) -> bool;
    /// With what the names stand for. [`Agent::has_told`] follows if it is done.
    fn readdir_looked_at_once(
        &self,
        caller: Caller,
        file: OpenFile,
        offset: u64,
        visit: &mut VisitLooked<'_>,
    ) -> bool;
    fn setattr_at_once(&self, caller: Caller, ino: u64, set: &SetAttr) -> Option<Attr>;
    fn write_at_once(
        &self,
        caller: Caller,
        file: OpenFile,
        place: Place,
        data: &[u8],
    ) -> Option<Result<usize, Errno>>;
    fn getxattr_at_once(&self, ino: u64, name: &[u8]) -> Option<Errno>;
    fn flush_at_once(&self, file: OpenFile, owner: u64) -> bool;
    fn release_at_once(&self, file: OpenFile) -> bool;
    /// The kernel has forgotten an inode, or may have.
    fn forgotten(&self, ino: u64);
    /// From now on the kernel may remember what it is told to, and is to be told what it must not any more.
    fn attach(&self, kernel: Arc<dyn Kernel>, skill: Skill);
    /// What is done a little after programs were answered. As [`Agent::run`], it has a thread of its own.
    fn follow_up(&self);
    /// What must be done beside requests. It gets a thread of its own and returns when [`Agent::stop`] was called.
    fn run(&self);
    /// As [`Agent::run`], in several threads.
    fn give_back(&self);
    /// The mount is gone.
    fn stop(&self);
}

/// An errno that may be told to a program: the server's word, but inside the range of errno.
pub(crate) fn tellable(error: Errno) -> i32 {
    if (1..512).contains(&error.errno) { error.errno } else { EIO }
}
