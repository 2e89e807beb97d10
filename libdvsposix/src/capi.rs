//! The C API: `dvs_*` functions, declared in `include/dvsposix.h`. They answer a number ≥ 0 or a negative errno.
#![expect(unsafe_code, reason = "exported names")]
//!
//! They speak through this process's [`Session`], the one the shim uses.

use crate::deadline::{Clock, Deadline, Timespec};
use crate::name::Name;
use crate::path::{self, Place, S_IFDIR, S_IFMT};
use crate::pointer::{Array, Bytes, BytesMut, Out, Text, put};
use crate::session::Session;
use crate::sysv_sem::command;
use crate::{dir, file, mq, process, sem, sysv_msg, sysv_sem, umask};
use calls::ipc::{MqAttr, SemOp};
use calls::vfs::Attr;
use core::ffi::{c_int, c_long, c_uint};
use m3ipc::Errno;
use m3ipc::errno::numbers::{EBADF, EEXIST, EFAULT, EINVAL, EISDIR, ENOENT, ENOTDIR};

/// `struct dvs_mq_attr`, as `struct mq_attr` without its reserved words.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DvsMqAttr {
    pub flags: i64,
    pub max_messages: i64,
    pub message_size: i64,
    pub messages: i64,
}

/// `struct sembuf` of semop(2).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SemBuf {
    pub number: u16,
    pub op: i16,
    pub flags: i16,
}

/// `struct dvs_file`, an open file. The caller keeps it; a forked child may use its copy.
#[derive(Debug)]
#[repr(C)]
pub struct DvsFile {
    pub handle: u64,
    pub ino: u64,
    /// Where the next read or write is.
    pub offset: u64,
    pub flags: u32,
    pub reserved: u32,
}

/// `struct dvs_stat`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DvsStat {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: Timespec,
    pub mtime: Timespec,
    pub ctime: Timespec,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub block_size: u32,
}

const O_ACCMODE: u32 = 3;
const O_CREAT: u32 = 0o100;
const O_EXCL: u32 = 0o200;
const O_DIRECTORY: u32 = 0o200_000;
const O_NOFOLLOW: u32 = 0o400_000;
const O_APPEND: u32 = 0o2000;

// Semaphores.

/// sem_open(3): the semaphore's number goes to `sem`.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_sem_open(
    sem: Out<'_, u64>,
    name: Text<'_>,
    flags: c_int,
    mode: c_uint,
    value: c_uint,
) -> c_int {
    status(name.bytes().and_then(|name| {
        let id = sem::open(&Session, name, flags.cast_unsigned(), umask::apply(mode), value)?;
        put(sem, id)
    }))
}

/// sem_close(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_sem_close(sem: u64) -> c_int {
    status(sem::close(&Session, sem))
}

/// sem_unlink(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_sem_unlink(name: Text<'_>) -> c_int {
    status(name.bytes().and_then(|name| sem::unlink(&Session, name)))
}

/// sem_wait(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_sem_wait(sem: u64) -> c_int {
    status(sem::wait(&Session, sem, Deadline::Never))
}

/// sem_trywait(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_sem_trywait(sem: u64) -> c_int {
    status(sem::wait(&Session, sem, Deadline::Now))
}

/// sem_timedwait(3): until `deadline` of CLOCK_REALTIME.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_sem_timedwait(sem: u64, deadline: Option<&Timespec>) -> c_int {
    let deadline = deadline.ok_or(Errno::new(EFAULT));
    status(deadline.and_then(|at| sem::wait(&Session, sem, Deadline::At(Clock::Realtime, *at))))
}

/// sem_post(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_sem_post(sem: u64) -> c_int {
    status(sem::post(&Session, sem))
}

/// sem_getvalue(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_sem_getvalue(sem: u64, value: Out<'_, c_int>) -> c_int {
    status(sem::value(&Session, sem).and_then(|found| put(value, found)))
}

// Message queues.

/// mq_open(3): the number of the open queue description goes to `queue`.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_mq_open(
    queue: Out<'_, u64>,
    name: Text<'_>,
    flags: c_int,
    mode: c_uint,
    attributes: Option<&DvsMqAttr>,
) -> c_int {
    status(name.bytes().and_then(|name| {
        let attributes = attributes.map(|attributes| MqAttr {
            flags: attributes.flags,
            max_messages: attributes.max_messages,
            message_size: attributes.message_size,
            messages: attributes.messages,
        });
        let name = Name::slash_queue(name)?;
        put(
            queue,
            mq::open(&Session, &name, flags.cast_unsigned(), umask::apply(mode), attributes)?,
        )
    }))
}

/// mq_close(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_mq_close(queue: u64) -> c_int {
    status(mq::close(&Session, queue))
}

/// mq_unlink(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_mq_unlink(name: Text<'_>) -> c_int {
    status(name.bytes().and_then(|name| mq::unlink(&Session, &Name::slash_queue(name)?)))
}

/// mq_timedsend(3); without a deadline, mq_send(3).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_mq_send(
    queue: u64,
    message: Bytes<'_>,
    len: usize,
    priority: c_uint,
    deadline: Option<&Timespec>,
) -> c_int {
    let message = message.get(len);
    status(
        message.and_then(|message| mq::send(&Session, queue, message, priority, until(deadline))),
    )
}

/// mq_timedreceive(3); without a deadline, mq_receive(3). `priority` may be null. Answers the length.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_mq_receive(
    queue: u64,
    buffer: BytesMut<'_>,
    len: usize,
    priority: Out<'_, c_uint>,
    deadline: Option<&Timespec>,
) -> c_long {
    length(buffer.get(len).and_then(|buffer| {
        let (len, found) = mq::receive(&Session, queue, buffer, until(deadline))?;
        if let Some(priority) = priority {
            priority.write(found);
        }
        Ok(len)
    }))
}

/// mq_getattr(3); mq_setattr(3) if `new` is not null. `old` may be null.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_mq_attr(
    queue: u64,
    new: Option<&DvsMqAttr>,
    old: Out<'_, DvsMqAttr>,
) -> c_int {
    status(mq::attributes(&Session, queue, new.map(|new| new.flags)).map(|found| {
        if let Some(old) = old {
            old.write(DvsMqAttr {
                flags: found.flags,
                max_messages: found.max_messages,
                message_size: found.message_size,
                messages: found.messages,
            });
        }
    }))
}

// SysV semaphores.

/// semget(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_semget(key: c_int, count: c_int, flags: c_int) -> c_int {
    number(sysv_sem::get(&Session, key, count, flags))
}

/// semtimedop(2); without a timeout, semop(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_semop(
    id: c_int,
    operations: Array<'_, SemBuf>,
    count: usize,
    timeout: Option<&Timespec>,
) -> c_int {
    let deadline = timeout.map_or(Deadline::Never, |timeout| Deadline::After(*timeout));
    status(sem_operations(operations, count, |operations| {
        sysv_sem::operate(&Session, id, operations, deadline)
    }))
}

/// semctl(2) with GETVAL, GETPID, GETNCNT, GETZCNT, SETVAL (to `value`) or IPC_RMID.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_semctl(id: c_int, semaphore: c_int, command: c_int, value: c_int) -> c_int {
    use command::{GETNCNT, GETPID, GETVAL, GETZCNT, IPC_RMID, SETVAL};
    match command {
        GETVAL | GETPID | GETNCNT | GETZCNT | SETVAL | IPC_RMID => {
            number(sysv_sem::control(&Session, id, semaphore, command, value))
        }
        _ => -EINVAL,
    }
}

// SysV message queues.

/// msgget(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_msgget(key: c_int, flags: c_int) -> c_int {
    number(sysv_msg::get(&Session, key, flags))
}

/// msgsnd(2), the type apart from the text.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_msgsnd(
    id: c_int,
    kind: i64,
    text: Bytes<'_>,
    len: usize,
    flags: c_int,
) -> c_int {
    status(text.get(len).and_then(|text| sysv_msg::send(&Session, id, kind, text, flags)))
}

/// msgrcv(2), the type apart from the text; `received` may be null. Answers the length.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_msgrcv(
    id: c_int,
    kind: i64,
    text: BytesMut<'_>,
    len: usize,
    received: Out<'_, i64>,
    flags: c_int,
) -> c_long {
    length(text.get(len).and_then(|text| {
        let (len, found) = sysv_msg::receive(&Session, id, kind, text, flags)?;
        if let Some(received) = received {
            received.write(found);
        }
        Ok(len)
    }))
}

/// msgctl(2) with IPC_RMID.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_msgctl(id: c_int, command: c_int) -> c_int {
    if command != command::IPC_RMID {
        return -EINVAL;
    }
    number(sysv_msg::control(&Session, id, command))
}

// Processes.

/// kill(2), on any node. 0, the own process group, is for kill(2) itself: -EINVAL here.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_kill(pid: c_int, signal: c_int) -> c_int {
    status(process::kill(&Session, pid, signal))
}

// Files, by their path in the VOS tree.

/// open(2) into `file`.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_open(
    file: Out<'_, DvsFile>,
    path: Text<'_>,
    flags: c_int,
    mode: c_uint,
) -> c_int {
    status(path.bytes().and_then(|path| put(file, open(path, flags.cast_unsigned(), mode)?)))
}

/// close(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_close(file: Option<&mut DvsFile>) -> c_int {
    status(opened(file).and_then(|file| {
        let released = file::release(&Session, file.handle, file.ino);
        (file.handle, file.ino) = (0, 0);
        released
    }))
}

/// read(2): how many bytes, at most 128 KiB a call.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_read(file: Option<&mut DvsFile>, buffer: BytesMut<'_>, len: usize) -> c_long {
    length(opened(file).and_then(|file| {
        if file.flags & O_ACCMODE == 1 {
            return Err(Errno::new(EBADF));
        }
        let count = file::read(&Session, file.handle, file.ino, file.offset, buffer.get(len)?)?;
        file.offset += count as u64;
        Ok(count)
    }))
}

/// write(2): how many bytes, at most 128 KiB a call.
#[unsafe(no_mangle)]
pub extern "C" fn dvs_write(file: Option<&mut DvsFile>, data: Bytes<'_>, len: usize) -> c_long {
    length(opened(file).and_then(|file| {
        if file.flags & O_ACCMODE == 0 {
            return Err(Errno::new(EBADF));
        }
        let count = file::write(&Session, file.handle, file.ino, file.offset, data.get(len)?)?;
        file.offset = if file.flags & O_APPEND != 0 {
            // Where it went is the server's choice: at the end, as it is now at the latest.
            file::getattr(&Session, file.ino, file.handle)?.size
        } else {
            file.offset + count as u64
        };
        Ok(count)
    }))
}

/// fsync(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_fsync(file: Option<&mut DvsFile>) -> c_int {
    status(opened(file).and_then(|file| file::fsync(&Session, file.handle, file.ino, false)))
}

/// stat(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_stat(path: Text<'_>, stat: Out<'_, DvsStat>) -> c_int {
    status(path.bytes().and_then(|path| put(stat, described(&path::find(&Session, path, true)?))))
}

/// mkdir(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_mkdir(path: Text<'_>, mode: c_uint) -> c_int {
    status(path.bytes().and_then(|path| {
        let place = path::walk(&Session, path, false)?;
        if place.attr.is_some() {
            return Err(Errno::new(EEXIST));
        }
        dir::mkdir(&Session, place.parent, place.name(), mode, umask::current()).map(|_| ())
    }))
}

/// unlink(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_unlink(path: Text<'_>) -> c_int {
    status(path.bytes().and_then(|path| {
        let place = there(path)?;
        if place.directory {
            return Err(Errno::new(EISDIR));
        }
        dir::unlink(&Session, place.parent, place.name())
    }))
}

/// rmdir(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_rmdir(path: Text<'_>) -> c_int {
    status(path.bytes().and_then(|path| {
        let place = there(path)?;
        if place.name() == b"." {
            return Err(Errno::new(EINVAL));
        }
        dir::rmdir(&Session, place.parent, place.name())
    }))
}

/// rename(2).
#[unsafe(no_mangle)]
pub extern "C" fn dvs_rename(old: Text<'_>, new: Text<'_>) -> c_int {
    status(old.bytes().and_then(|old| {
        let (old, new) = (there(old)?, path::walk(&Session, new.bytes()?, false)?);
        dir::rename(&Session, old.parent, old.name(), new.parent, new.name(), 0)
    }))
}

fn open(path: &[u8], flags: u32, mode: u32) -> Result<DvsFile, Errno> {
    let follow = flags & O_NOFOLLOW == 0 && flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL;
    let place = path::walk(&Session, path, follow)?;
    let (handle, ino) = match place.attr {
        Some(_) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => {
            return Err(Errno::new(EEXIST));
        }
        Some(attr) if flags & O_DIRECTORY != 0 && attr.mode & S_IFMT != S_IFDIR => {
            return Err(Errno::new(ENOTDIR));
        }
        Some(attr) if flags & O_CREAT != 0 && attr.mode & S_IFMT == S_IFDIR => {
            return Err(Errno::new(EISDIR));
        }
        Some(attr) => (file::open(&Session, attr.ino, flags & !(O_CREAT | O_EXCL))?.fh, attr.ino),
        None if flags & O_CREAT == 0 => return Err(Errno::new(ENOENT)),
        None if place.directory => return Err(Errno::new(EISDIR)),
        None => {
            let umask = umask::current();
            let (handle, attr) =
                file::create(&Session, place.parent, place.name(), mode, umask, flags)?;
            (handle, attr.ino)
        }
    };
    Ok(DvsFile { handle, ino, offset: 0, flags, reserved: 0 })
}

/// The place of something that is there.
fn there(path: &[u8]) -> Result<Place, Errno> {
    let place = path::walk(&Session, path, false)?;
    if place.attr.is_some() { Ok(place) } else { Err(Errno::new(ENOENT)) }
}

fn opened(file: Option<&mut DvsFile>) -> Result<&mut DvsFile, Errno> {
    let file = file.ok_or(Errno::new(EFAULT))?;
    if file.ino == 0 { Err(Errno::new(EBADF)) } else { Ok(file) }
}

fn described(attr: &Attr) -> DvsStat {
    let time = |time: calls::vfs::Time| Timespec { sec: time.seconds, nsec: time.nanos.into() };
    DvsStat {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        block_size: attr.block_size,
    }
}

/// Hands `count` operations to `act`, as the server wants them.
///
/// # Errors
/// EFAULT; E2BIG; what `act` answers.
pub fn sem_operations(
    given: Array<'_, SemBuf>,
    count: usize,
    act: impl FnOnce(&[SemOp]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    if count > sysv_sem::SEMOPM {
        return Err(Errno::new(m3ipc::errno::numbers::E2BIG));
    }
    let mut operations = [SemOp::default(); sysv_sem::SEMOPM];
    for (operation, given) in operations.iter_mut().zip(given.get(count)?) {
        *operation =
            SemOp { number: given.number, op: given.op.into(), flags: given.flags.cast_unsigned() };
    }
    act(operations.get(..count).unwrap_or_default())
}

fn until(deadline: Option<&Timespec>) -> Deadline {
    deadline.map_or(Deadline::Never, |at| Deadline::At(Clock::Realtime, *at))
}

fn status(outcome: Result<(), Errno>) -> c_int {
    outcome.map_or_else(|error| -error.errno, |()| 0)
}

fn number(outcome: Result<i32, Errno>) -> c_int {
    outcome.unwrap_or_else(|error| -error.errno)
}

fn length(outcome: Result<usize, Errno>) -> c_long {
    match outcome {
        Ok(length) => c_long::try_from(length).unwrap_or(c_long::MAX),
        Err(error) => c_long::from(-error.errno),
    }
}
