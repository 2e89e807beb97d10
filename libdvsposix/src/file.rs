//! Calls on inodes and open files: one thin function per row of vfs-server, for agents and the C API.

use calls::vfs::{
    Access, Attr, Create, Fallocate, Flush, Fsync, Getattr, Getlk, Getxattr, Listxattr, Lock,
    Lookup, Open, Opened, Read, Readlink, Release, Removexattr, Seek, SetAttr, Setattr, Setlk,
    Setxattr, Write,
};
use calls::wire::Wire;
use calls::{Row, call};
use m3ipc::errno::numbers::EPROTO;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Errno, Sendrec, Wait};

/// Finds `name` in directory `parent`.
///
/// # Errors
/// ENOENT, ENOTDIR, EACCES, ENAMETOOLONG.
pub fn lookup(port: &impl Sendrec, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
    attr(port, &Lookup { parent }, &[name])
}

/// fstat(2); `fh` 0 if no open file is at hand.
///
/// # Errors
/// ESTALE.
pub fn getattr(port: &impl Sendrec, ino: u64, fh: u64) -> Result<Attr, Errno> {
    attr(port, &Getattr { ino, fh }, &[])
}

/// chmod, chown, truncate, utimensat.
///
/// # Errors
/// EPERM, EACCES, EFBIG, EINVAL.
pub fn setattr(port: &impl Sendrec, ino: u64, fh: u64, change: &SetAttr) -> Result<Attr, Errno> {
    attr(port, &Setattr { ino, fh }, &[&change.bytes()])
}

/// readlink(2) into `target`: its length.
///
/// # Errors
/// EINVAL: not a symbolic link.
pub fn readlink(port: &impl Sendrec, ino: u64, target: &mut [u8]) -> Result<usize, Errno> {
    quick(port, &Readlink { ino }, &[], target).map(|(_, len)| len)
}

/// open(2) of an inode.
///
/// # Errors
/// EACCES, EISDIR, ETXTBSY.
pub fn open(port: &impl Sendrec, ino: u64, flags: u32) -> Result<Opened, Errno> {
    quick(port, &Open { ino, flags }, &[], &mut []).map(|(opened, _)| opened)
}

/// open(2) with O_CREAT: the handle and the attributes.
///
/// # Errors
/// EACCES, EEXIST, EISDIR, ENOSPC.
pub fn create(
    port: &impl Sendrec,
    parent: u64,
    name: &[u8],
    mode: u32,
    umask: u32,
    flags: u32,
) -> Result<(u64, Attr), Errno> {
    let mut bytes = [0; Attr::SIZE];
    let (created, len) =
        quick(port, &Create { parent, forgotten: 0, mode, umask, flags }, &[name], &mut bytes)?;
    Ok((created.fh, decode(&bytes, len)?))
}

/// pread(2) of at most [`PAYLOAD_MAX`] bytes; fewer than asked only at the end of the file.
///
/// # Errors
/// EBADF, EIO.
pub fn read(
    port: &impl Sendrec,
    fh: u64,
    ino: u64,
    offset: u64,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    let room = buffer.len().min(PAYLOAD_MAX);
    let buffer = buffer.get_mut(..room).unwrap_or_default();
    let row = Read { fh, ino, offset, size: u32::try_from(room).unwrap_or(0) };
    quick(port, &row, &[], buffer).map(|(_, len)| len)
}

/// pwrite(2) of at most [`PAYLOAD_MAX`] bytes: how many were written.
///
/// # Errors
/// EBADF, EFBIG, ENOSPC.
pub fn write(
    port: &impl Sendrec,
    fh: u64,
    ino: u64,
    offset: u64,
    data: &[u8],
) -> Result<usize, Errno> {
    let data = data.get(..data.len().min(PAYLOAD_MAX)).unwrap_or_default();
    let (count, _) = quick(port, &Write { fh, ino, offset }, &[data], &mut [])?;
    usize::try_from(count.count).ok().filter(|count| *count <= data.len()).ok_or(Errno::new(EPROTO))
}

/// close(2) of one descriptor.
///
/// # Errors
/// EBADF.
pub fn flush(port: &impl Sendrec, fh: u64, ino: u64, owner: u64) -> Result<(), Errno> {
    done(port, &Flush { fh, ino, owner }, &[])
}

/// The last descriptor is gone.
///
/// # Errors
/// EBADF.
pub fn release(port: &impl Sendrec, fh: u64, ino: u64) -> Result<(), Errno> {
    done(port, &Release { fh, ino }, &[])
}

/// fsync(2), or fdatasync(2).
///
/// # Errors
/// EBADF, EIO.
pub fn fsync(port: &impl Sendrec, fh: u64, ino: u64, data_only: bool) -> Result<(), Errno> {
    done(port, &Fsync { fh, ino, datasync: u8::from(data_only) }, &[])
}

/// access(2).
///
/// # Errors
/// EACCES.
pub fn access(port: &impl Sendrec, ino: u64, mask: u32) -> Result<(), Errno> {
    done(port, &Access { ino, mask }, &[])
}

/// F_GETLK: the lock in the way.
///
/// # Errors
/// EBADF.
pub fn getlk(port: &impl Sendrec, fh: u64, ino: u64, lock: &Lock) -> Result<Lock, Errno> {
    let mut bytes = [0; Lock::SIZE];
    let (_, len) = quick(port, &Getlk { ino, fh }, &[&lock.bytes()], &mut bytes)?;
    Lock::get(bytes.get(..len).unwrap_or_default()).ok_or(Errno::new(EPROTO))
}

/// F_SETLK, F_SETLKW (`blocking`), flock(2) (`whole`). `wait` says what a signal does to a blocking one.
///
/// # Errors
/// EAGAIN, EDEADLK, EINTR, ENOLCK.
pub fn setlk(
    port: &impl Sendrec,
    fh: u64,
    ino: u64,
    lock: &Lock,
    blocking: bool,
    whole: bool,
    wait: Wait,
) -> Result<(), Errno> {
    let row = Setlk { ino, fh, wait: u8::from(blocking), flock: u8::from(whole) };
    call(port, Endpoint::VFS, &row, &[&lock.bytes()], &mut [], wait).map(|_| ())
}

/// getxattr(2) into `value`: the value's length; an empty `value` only asks for it.
///
/// # Errors
/// ENODATA, ERANGE.
pub fn getxattr(
    port: &impl Sendrec,
    ino: u64,
    name: &[u8],
    value: &mut [u8],
) -> Result<usize, Errno> {
    let row = Getxattr { ino, size: u32::try_from(value.len()).unwrap_or(u32::MAX) };
    let (count, _) = quick(port, &row, &[name], value)?;
    usize::try_from(count.count).map_err(|_| Errno::new(EPROTO))
}

/// setxattr(2).
///
/// # Errors
/// EEXIST, ENODATA, ENOSPC, EPERM.
pub fn setxattr(
    port: &impl Sendrec,
    ino: u64,
    name: &[u8],
    value: &[u8],
    flags: u32,
) -> Result<(), Errno> {
    let name_len =
        u16::try_from(name.len()).map_err(|_| Errno::new(m3ipc::errno::numbers::ERANGE))?;
    done(port, &Setxattr { ino, name_len, flags }, &[name, value])
}

/// listxattr(2) into `list`: the list's length; an empty `list` only asks for it.
///
/// # Errors
/// ERANGE.
pub fn listxattr(port: &impl Sendrec, ino: u64, list: &mut [u8]) -> Result<usize, Errno> {
    let row = Listxattr { ino, size: u32::try_from(list.len()).unwrap_or(u32::MAX) };
    let (count, _) = quick(port, &row, &[], list)?;
    usize::try_from(count.count).map_err(|_| Errno::new(EPROTO))
}

/// removexattr(2).
///
/// # Errors
/// ENODATA, EPERM.
pub fn removexattr(port: &impl Sendrec, ino: u64, name: &[u8]) -> Result<(), Errno> {
    done(port, &Removexattr { ino }, &[name])
}

/// fallocate(2).
///
/// # Errors
/// EFBIG, ENOSPC, EOPNOTSUPP.
pub fn fallocate(
    port: &impl Sendrec,
    fh: u64,
    ino: u64,
    offset: u64,
    length: u64,
    mode: u32,
) -> Result<(), Errno> {
    done(port, &Fallocate { fh, ino, offset, length, mode }, &[])
}

/// lseek(2) with SEEK_DATA or SEEK_HOLE.
///
/// # Errors
/// ENXIO.
pub fn seek(
    port: &impl Sendrec,
    fh: u64,
    ino: u64,
    offset: u64,
    whence: u32,
) -> Result<u64, Errno> {
    quick(port, &Seek { fh, ino, offset, whence }, &[], &mut []).map(|(count, _)| count.count)
}

/// A call whose answer is an [`Attr`].
pub(crate) fn attr<R: Row>(port: &impl Sendrec, row: &R, send: &[&[u8]]) -> Result<Attr, Errno> {
    let mut bytes = [0; Attr::SIZE];
    let (_, len) = quick(port, row, send, &mut bytes)?;
    decode(&bytes, len)
}

/// A call whose answer says only that it is done.
pub(crate) fn done<R: Row>(port: &impl Sendrec, row: &R, send: &[&[u8]]) -> Result<(), Errno> {
    quick(port, row, send, &mut []).map(|_| ())
}

/// A call that the server answers at once: signals need not end it.
pub(crate) fn quick<R: Row>(
    port: &impl Sendrec,
    row: &R,
    send: &[&[u8]],
    receive: &mut [u8],
) -> Result<(R::Reply, usize), Errno> {
    call(port, Endpoint::VFS, row, send, receive, Wait::FOREVER)
}

fn decode(bytes: &[u8], len: usize) -> Result<Attr, Errno> {
    Attr::get(bytes.get(..len).unwrap_or_default()).ok_or(Errno::new(EPROTO))
}
