//! msgget(2), msgsnd(2), msgrcv(2), msgctl(2).
#![expect(unsafe_code, reason = "exported names")]

use crate::errno::{or_kernel, or_local, result};
use crate::kernel::call;
use crate::libc::{cancellable, cancellation_point};
use crate::sysv_semaphore::{IpcPerm, write};
use calls::ipc::{MsgStat, SetPerm};
use core::ffi::{c_int, c_long, c_ulong, c_void};
use libdvsposix::pointer::{Array, Bytes, BytesMut};
use libdvsposix::session::Session;
use libdvsposix::sysv_msg;
use libdvsposix::sysv_sem::command;
use m3ipc::Errno;
use m3ipc::errno::numbers::{EFAULT, EINVAL, EIO};

/// `struct msqid_ds` of both libcs on 64 bit.
#[derive(Clone, Copy)]
#[repr(C)]
struct MsqidDs {
    perm: IpcPerm,
    stime: c_long,
    rtime: c_long,
    ctime: c_long,
    bytes: c_ulong,
    messages: c_ulong,
    bytes_max: c_ulong,
    last_send_pid: u32,
    last_receive_pid: u32,
    spare: [c_ulong; 2],
}

#[cfg(target_arch = "x86_64")]
const _: () = assert!(size_of::<MsqidDs>() == 120);

/// `struct msgbuf` begins with the type, and the text follows.
const TEXT_AT: usize = size_of::<c_long>();

#[unsafe(no_mangle)]
pub(crate) extern "C" fn msgget(key: c_int, flags: c_int) -> c_int {
    let got = sysv_msg::get(&Session, key, flags);
    result(or_kernel(got, || call!(msgget, key, flags)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn msgsnd(
    id: c_int,
    message: *const c_void,
    size: usize,
    flags: c_int,
) -> c_int {
    cancellation_point();
    let sent = send(id, message, size, flags);
    result(or_kernel(sent.map(|()| 0), || cancellable(|| call!(msgsnd, id, message, size, flags))))
}

fn send(id: c_int, message: *const c_void, size: usize, flags: c_int) -> Result<(), Errno> {
    if isize::try_from(size).is_err() || id < 0 {
        return Err(Errno::new(EINVAL));
    }
    let kind = Array::<c_long>::at(message.cast()).get(1)?.first().ok_or(Errno::new(EFAULT))?;
    let text = Bytes::at(message.cast::<u8>().wrapping_add(TEXT_AT)).get(size)?;
    sysv_msg::send(&Session, id, *kind, text, flags)
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn msgrcv(
    id: c_int,
    message: *mut c_void,
    size: usize,
    kind: c_long,
    flags: c_int,
) -> isize {
    cancellation_point();
    let received = receive(id, message, size, kind, flags);
    let received =
        or_local(received, || cancellable(|| call!(msgrcv, id, message, size, kind, flags)));
    result(received.and_then(|len| isize::try_from(len).map_err(|_| Errno::new(EIO))))
}

fn receive(
    id: c_int,
    message: *mut c_void,
    size: usize,
    kind: c_long,
    flags: c_int,
) -> Result<usize, Errno> {
    if isize::try_from(size).is_err() || id < 0 {
        return Err(Errno::new(EINVAL));
    }
    if message.is_null() {
        return Err(Errno::new(EFAULT));
    }
    let text = BytesMut::at(message.cast::<u8>().wrapping_add(TEXT_AT)).get(size)?;
    let (len, found) = sysv_msg::receive(&Session, id, kind, text, flags)?;
    write(message.cast::<c_long>(), found)?;
    Ok(len)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn msgctl(id: c_int, command: c_int, argument: *mut c_void) -> c_int {
    /// Programs of 32 bit say with this bit which structs they have.
    const IPC_64: c_int = 0x100;
    let done = control(id, command & !IPC_64, argument);
    result(or_kernel(done, || call!(msgctl, id, command, argument)))
}

fn control(id: c_int, command: c_int, argument: *mut c_void) -> Result<c_int, Errno> {
    use command::{IPC_INFO, IPC_SET, IPC_STAT, MSG_INFO, MSG_STAT, MSG_STAT_ANY};
    match command {
        IPC_STAT | MSG_STAT | MSG_STAT_ANY => {
            let (value, stat) = sysv_msg::stat(&Session, id, command)?;
            write(argument.cast(), described(&stat))?;
            Ok(value)
        }
        IPC_INFO | MSG_INFO => {
            let (highest, info) = sysv_msg::info(&Session, command)?;
            write(argument.cast(), info)?;
            Ok(highest)
        }
        IPC_SET => {
            let given =
                Array::<MsqidDs>::at(argument.cast()).get(1)?.first().ok_or(Errno::new(EFAULT))?;
            let IpcPerm { uid, gid, mode, .. } = given.perm;
            let perm = SetPerm { uid, gid, mode, bytes_max: given.bytes_max };
            sysv_msg::set_perm(&Session, id, perm).map(|()| 0)
        }
        _ => sysv_msg::control(&Session, id, command),
    }
}

fn described(stat: &MsgStat) -> MsqidDs {
    MsqidDs {
        perm: IpcPerm::new(&stat.perm),
        stime: stat.stime,
        rtime: stat.rtime,
        ctime: stat.ctime,
        bytes: stat.bytes,
        messages: stat.messages,
        bytes_max: stat.bytes_max,
        last_send_pid: stat.last_send_pid,
        last_receive_pid: stat.last_receive_pid,
        spare: [0; 2],
    }
}
