//! Requests to an [`Agent`], and its answers to replies.

use super::reply::{self, put};
use super::request::Operation;
use super::{abi, request::Request};
use crate::agent::{Agent, Caller, Looked, OpenFile, Through, Told};
use crate::limits::IO_SIZE_MAX;
use calls::vfs::DirEntry;
use m3ipc::errno::numbers::{ELOOP, ENXIO, EOVERFLOW, ESTALE};
use m3ipc::{Errno, Interrupt};
use std::ops::ControlFlow;
use std::time::Duration;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// The reply's payload is that long.
    Reply(usize),
    /// As [`Done::Reply`]; and the agent is to know when it has been told.
    Lent(usize),
    /// As [`Done::Reply`]; and the file is open, which must be undone if nobody gets to know.
    Opened(usize, OpenFile),
    /// The kernel is to do it in another way.
    Refused(i32),
}

/// An agent as the kernel sees it.
#[derive(Debug)]
pub(crate) struct Door<A> {
    agent: A,
    /// `fuse_open_out.open_flags` of files.
    open_flags: u32,
}

impl<A: Agent> Door<A> {
    /// With `open_flags` files are opened; directories with none.
    pub(crate) fn new(agent: A, open_flags: u32) -> Door<A> {
        Door { agent, open_flags }
    }

    pub(crate) fn agent(&self) -> &A {
        &self.agent
    }

    /// Does what is asked for. The reply's payload is put into `out`, which has room for the largest.
    ///
    /// # Errors
    /// An errno for the program that asked.
    pub(crate) fn serve(
        &self,
        request: &Request<'_>,
        interrupt: &Interrupt,
        out: &mut [u8],
    ) -> Result<Done, Errno> {
        let Request { caller, ref operation, .. } = *request;
        let agent = &self.agent;
        let nothing = Ok(Done::Reply(0));
        match *operation {
            Operation::Lookup(entry) => self.looked(out, caller, &agent.lookup(caller, entry)?),
            Operation::Getattr { ino, fh } => attributes(out, &agent.getattr(caller, ino, fh)?),
            Operation::Setattr { ino, fh, ref set } => {
                attributes(out, &at_once(agent.setattr(caller, ino, fh, set)?))
            }
            Operation::Readlink { ino } => copy(out, &agent.readlink(caller, ino)?),
            Operation::Symlink { entry, target } => {
                found(out, &at_once(agent.symlink(caller, entry, target)?))
            }
            Operation::Mknod { entry, new, rdev } => {
                found(out, &at_once(agent.mknod(caller, entry, new, rdev)?))
            }
            Operation::Mkdir { entry, new } => {
                found(out, &at_once(agent.mkdir(caller, entry, new)?))
            }
            Operation::Unlink(entry) => agent.unlink(caller, entry).and(nothing),
            Operation::Rmdir(entry) => agent.rmdir(caller, entry).and(nothing),
            Operation::Rename { from, to, flags } => {
                agent.rename(caller, from, to, flags).and(nothing)
            }
            Operation::Link { ino, to } => found(out, &at_once(agent.link(caller, ino, to)?)),
            Operation::Open { ino, flags } => {
                Ok(self.opened(out, ino, agent.open(caller, ino, flags)?))
            }
            Operation::Opendir { ino, flags } => {
                let (fh, _) = agent.open(caller, ino, flags)?;
                Ok(opened(out, 0, OpenFile { ino, fh }, 0))
            }
            Operation::Create { entry, new, flags } => {
                let (attr, file) = look_again(agent.create(caller, entry, new, flags))?;
                self.created(request, out, &attr, file)
            }
            Operation::Tmpfile { parent, new, flags } => {
                let (attr, file) = agent.tmpfile(caller, parent, new, flags)?;
                self.created(request, out, &attr, file)
            }
            Operation::Read { file, offset, size, is_for_pages } => {
                let buffer = &mut out[..size.min(IO_SIZE_MAX) as usize];
                let read = if is_for_pages {
                    agent.read_pages(caller, file, offset, buffer)
                } else {
                    agent.read(caller, file, offset, buffer)
                };
                read.map(Done::Reply)
            }
            Operation::Write { file, place, data } => {
                written(out, agent.write(caller, file, place, data)?)
            }
            Operation::Flush { file, owner } => agent.flush(caller, file, owner).and(nothing),
            Operation::Release(file) => agent.release(caller, file).and(nothing),
            Operation::Fsync { file, datasync } => agent.fsync(caller, file, datasync).and(nothing),
            Operation::Readdir { file, offset, size, plus } => {
                let nothing = plus.then(|| reply::no_entry(Duration::ZERO));
                let mut list = List::new(out, size);
                agent.readdir(caller, file, offset, size, &mut |entry, name| {
                    list.add(&entry, name, nothing.as_ref())
                })?;
                Ok(Done::Reply(list.len))
            }
            Operation::Statfs { ino } => {
                Ok(Done::Reply(put(out, &reply::statfs(&agent.statfs(caller, ino)?))))
            }
            Operation::Access { ino, mask } => agent.access(caller, ino, mask).and(nothing),
            Operation::Getlk { file, lock } => {
                Ok(Done::Reply(put(out, &reply::lock(&agent.getlk(caller, file, lock)?))))
            }
            Operation::Setlk { file, lock, kind, wait } => {
                let wait = wait.then_some(interrupt);
                agent.setlk(caller, file, lock, kind, wait).and(nothing)
            }
            Operation::Getxattr { ino, name, size } => {
                attribute(out, size, |value| agent.getxattr(caller, ino, name, value))
            }
            Operation::Setxattr { ino, name, value, flags } => {
                agent.setxattr(caller, ino, name, value, flags).and(nothing)
            }
            Operation::Listxattr { ino, size } => {
                attribute(out, size, |names| agent.listxattr(caller, ino, names))
            }
            Operation::Removexattr { ino, name } => {
                agent.removexattr(caller, ino, name).and(nothing)
            }
            Operation::Fallocate { file, offset, length, mode } => {
                agent.fallocate(caller, file, offset, length, mode).and(nothing)
            }
            Operation::Seek { file, offset, whence } => {
                sought(out, agent.seek(caller, file, offset, whence)?)
            }
            Operation::CopyRange { flags: 1.., .. } => Ok(Done::Refused(libc::EINVAL)),
            Operation::CopyRange { from, to, length, .. } => {
                let size = agent.copy_range(caller, from, to, length)?;
                Ok(Done::Reply(put(out, &abi::fuse_write_out { size, padding: 0 })))
            }
            Operation::Ioctl => Ok(Done::Refused(libc::ENOTTY)),
            // All but the last are not answered, and never come here.
            Operation::Interrupt { .. }
            | Operation::Forget { .. }
            | Operation::ForgetAll { .. }
            | Operation::Nothing
            | Operation::Unknown => Ok(Done::Refused(libc::ENOSYS)),
        }
    }

    /// As [`Door::serve`], if that takes no time.
    pub(crate) fn serve_at_once(
        &self,
        request: &Request<'_>,
        out: &mut [u8],
    ) -> Option<Result<Done, Errno>> {
        let Request { caller, ref operation, .. } = *request;
        let agent = &self.agent;
        let nothing = |is_done: bool| is_done.then_some(Ok(Done::Reply(0)));
        match *operation {
            Operation::Lookup(entry) => {
                let answer = agent.lookup_at_once(caller, entry)?;
                Some(answer.and_then(|answer| self.looked(out, caller, &answer)))
            }
            Operation::Getattr { ino, .. } => Some(attributes(out, &agent.getattr_at_once(ino)?)),
            Operation::Open { ino, flags } => {
                let fh = agent.open_at_once(caller, ino, flags)?;
                Some(Ok(self.opened(out, ino, (fh, Through::Pages))))
            }
            Operation::Opendir { ino, flags } => {
                let fh = agent.opendir_at_once(caller, ino, flags)?;
                Some(Ok(opened(out, 0, OpenFile { ino, fh }, 0)))
            }
            Operation::Readdir { file, offset, size, plus: false } => {
                let mut list = List::new(out, size);
                let visit = &mut |entry, name: &[u8]| list.add(&entry, name, None);
                let is_done = agent.readdir_at_once(file, offset, visit);
                is_done.then_some(Ok(Done::Reply(list.len)))
            }
            Operation::Readdir { file, offset, size, plus: true } => {
                let mut list = List::new(out, size);
                let visit = &mut |entry, name: &[u8], looked: Option<Looked>| {
                    let told = looked.and_then(|looked| Some((looked.told?, looked.lent)));
                    let plus = told.and_then(|(told, lent)| reply::entry(&told, lent).ok());
                    let nothing = reply::no_entry(Duration::ZERO);
                    list.add(&entry, name, Some(&plus.unwrap_or(nothing)))
                };
                let is_done = agent.readdir_looked_at_once(caller, file, offset, visit);
                is_done.then_some(Ok(Done::Lent(list.len)))
            }
            Operation::Setattr { ino, ref set, .. } => {
                let attr = agent.setattr_at_once(caller, ino, set)?;
                Some(attributes(out, &at_once(attr)))
            }
            Operation::Write { file, place, data } => {
                let outcome = agent.write_at_once(caller, file, place, data)?;
                Some(outcome.and_then(|count| written(out, count)))
            }
            Operation::Getxattr { ino, name, .. } => Some(Err(agent.getxattr_at_once(ino, name)?)),
            Operation::Flush { file, owner } => nothing(agent.flush_at_once(file, owner)),
            Operation::Release(file) => nothing(agent.release_at_once(file)),
            _ => None,
        }
    }

    /// A file that has been opened, and whether the kernel may read it from pages.
    fn opened(&self, out: &mut [u8], ino: u64, (fh, through): (u64, Through)) -> Done {
        let open_flags = match through {
            Through::Requests => self.open_flags,
            Through::Pages => self.open_flags & abi::FOPEN_KEEP_CACHE,
        };
        opened(out, 0, OpenFile { ino, fh }, open_flags)
    }

    /// What a name stands for.
    fn looked(&self, out: &mut [u8], caller: Caller, looked: &Looked) -> Result<Done, Errno> {
        let entry = match looked.told {
            Some(ref told) => reply::entry(told, looked.lent),
            None => Ok(reply::no_entry(looked.lent)),
        };
        // An error lends nothing.
        let entry = entry.inspect_err(|_| self.agent.has_told(caller))?;
        let len = put(out, &entry);
        Ok(if looked.lent.is_zero() { Done::Reply(len) } else { Done::Lent(len) })
    }

    /// A file that has been made and opened.
    fn created(
        &self,
        request: &Request<'_>,
        out: &mut [u8],
        attr: &calls::vfs::Attr,
        file: OpenFile,
    ) -> Result<Done, Errno> {
        match reply::entry(&at_once(*attr), Duration::ZERO) {
            Ok(entry) => {
                let len = put(out, &entry);
                Ok(opened(out, len, file, self.open_flags))
            }
            Err(error) => {
                self.undo(request, file);
                Err(error)
            }
        }
    }

    /// Closes a file of whose opening nobody gets to know.
    pub(crate) fn undo(&self, request: &Request<'_>, file: OpenFile) {
        if let Err(error) = self.agent.release(request.caller, file) {
            tracing::debug!(?error, "a file that nobody has opened stays open");
        }
    }
}

/// Of a create. The name was free when the kernel looked; if another node has made a link or a pipe
/// of it since, ESTALE makes the kernel look again and follow or open that.
fn look_again<T>(created: Result<T, Errno>) -> Result<T, Errno> {
    created.map_err(|error| match error.errno {
        ELOOP | ENXIO => Errno::new(ESTALE),
        _ => error,
    })
}

/// Attributes that the kernel must not remember.
fn at_once(attr: calls::vfs::Attr) -> Told {
    Told { attr, lent: Duration::ZERO }
}

/// A name that has been made, which the kernel must not remember.
fn found(out: &mut [u8], told: &Told) -> Result<Done, Errno> {
    Ok(Done::Reply(put(out, &reply::entry(told, Duration::ZERO)?)))
}

fn attributes(out: &mut [u8], told: &Told) -> Result<Done, Errno> {
    Ok(Done::Reply(put(out, &reply::attributes(&told.attr, told.lent)?)))
}

fn copy(out: &mut [u8], bytes: &[u8]) -> Result<Done, Errno> {
    let place = out.get_mut(..bytes.len()).ok_or(Errno::new(EOVERFLOW))?;
    place.copy_from_slice(bytes);
    Ok(Done::Reply(bytes.len()))
}

/// `file` is told behind the first `len` bytes.
fn opened(out: &mut [u8], len: usize, file: OpenFile, open_flags: u32) -> Done {
    let told = abi::fuse_open_out { fh: file.fh, open_flags, ..Default::default() };
    Done::Opened(len + put(&mut out[len..], &told), file)
}

fn written(out: &mut [u8], written: usize) -> Result<Done, Errno> {
    let size = u32::try_from(written).map_err(|_| Errno::new(EOVERFLOW))?;
    Ok(Done::Reply(put(out, &abi::fuse_write_out { size, padding: 0 })))
}

fn sought(out: &mut [u8], offset: u64) -> Result<Done, Errno> {
    // An off_t has a sign.
    i64::try_from(offset).map_err(|_| Errno::new(EOVERFLOW))?;
    Ok(Done::Reply(put(out, &abi::fuse_lseek_out { offset })))
}

/// A directory's listing under construction.
struct List<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl List<'_> {
    /// Of `size` bytes at most.
    fn new(out: &mut [u8], size: u32) -> List<'_> {
        let room = size.min(IO_SIZE_MAX) as usize;
        List { out: &mut out[..room], len: 0 }
    }

    /// Adds an entry if it fits.
    fn add(
        &mut self,
        entry: &DirEntry,
        name: &[u8],
        plus: Option<&abi::fuse_entry_out>,
    ) -> ControlFlow<()> {
        match reply::add_entry(self.out, self.len, entry, name, plus) {
            Some(longer) => {
                self.len = longer;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        }
    }
}

/// Answers an xattr request of `size` bytes: the length only if it is 0.
fn attribute(
    out: &mut [u8],
    size: u32,
    get: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Done, Errno> {
    let room = size.min(IO_SIZE_MAX) as usize;
    let len = get(&mut out[..room])?;
    if size == 0 {
        let size = u32::try_from(len).unwrap_or(u32::MAX);
        return Ok(Done::Reply(put(out, &abi::fuse_getxattr_out { size, padding: 0 })));
    }
    Ok(Done::Reply(len.min(room)))
}
