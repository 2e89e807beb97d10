//! semget(2), semop(2), semtimedop(2), semctl(2).
#![expect(unsafe_code, reason = "exported names, and memory of semctl's varying argument")]

use crate::errno::{or_kernel, result};
use crate::kernel::call;
use calls::ipc::{Perm, SemStat, SetPerm};
use core::ffi::{c_int, c_long, c_ulong, c_void};
use core::ptr;
use libdvsposix::capi::{SemBuf, sem_operations};
use libdvsposix::deadline::{Deadline, Timespec};
use libdvsposix::pointer::{Array, Bytes, BytesMut};
use libdvsposix::session::Session;
use libdvsposix::sysv_sem::{self, command};
use m3ipc::Errno;
use m3ipc::errno::numbers::EFAULT;

/// `struct ipc_perm` of both libcs on 64 bit.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct IpcPerm {
    key: c_int,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    cuid: u32,
    cgid: u32,
    pub(crate) mode: u32,
    /// glibc: 16 bits and padding; the same bytes.
    seq: u32,
    unused: [c_ulong; 2],
}

impl IpcPerm {
    pub(crate) fn new(perm: &Perm) -> IpcPerm {
        IpcPerm {
            key: perm.key,
            uid: perm.uid,
            gid: perm.gid,
            cuid: perm.cuid,
            cgid: perm.cgid,
            mode: perm.mode,
            seq: perm.seq & 0xffff,
            unused: [0; 2],
        }
    }
}

/// `struct semid_ds`: x86 has spare words where 32-bit times once were.
#[derive(Clone, Copy)]
#[repr(C)]
struct SemidDs {
    perm: IpcPerm,
    otime: c_long,
    #[cfg(target_arch = "x86_64")]
    spare_otime: c_ulong,
    ctime: c_long,
    #[cfg(target_arch = "x86_64")]
    spare_ctime: c_ulong,
    semaphores: c_ulong,
    spare: [c_ulong; 2],
}

#[cfg(target_arch = "x86_64")]
const _: () = assert!(size_of::<IpcPerm>() == 48 && size_of::<SemidDs>() == 104);

#[unsafe(no_mangle)]
pub(crate) extern "C" fn semget(key: c_int, count: c_int, flags: c_int) -> c_int {
    let got = sysv_sem::get(&Session, key, count, flags);
    result(or_kernel(got, || call!(semget, key, count, flags)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn semop(id: c_int, operations: Array<'_, SemBuf>, count: usize) -> c_int {
    semtimedop(id, operations, count, None)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn semtimedop(
    id: c_int,
    operations: Array<'_, SemBuf>,
    count: usize,
    timeout: Option<&Timespec>,
) -> c_int {
    let deadline = timeout.map_or(Deadline::Never, |timeout| Deadline::After(*timeout));
    let done = sem_operations(operations, count, |operations| {
        sysv_sem::operate(&Session, id, operations, deadline)
    });
    let timeout = timeout.map_or(ptr::null(), ptr::from_ref);
    // Programs with a filter may allow semop only.
    result(or_kernel(done.map(|()| 0), || match timeout.is_null() {
        true => call!(semop, id, operations.address(), count),
        false => call!(semtimedop, id, operations.address(), count, timeout),
    }))
}

/// The fourth argument is `union semun`, or none: then what is in its register means nothing.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn semctl(
    id: c_int,
    number: c_int,
    command: c_int,
    argument: *mut c_void,
) -> c_int {
    /// Programs of 32 bit say with this bit which structs they have.
    const IPC_64: c_int = 0x100;
    let done = control(id, number, command & !IPC_64, argument);
    result(or_kernel(done, || call!(semctl, id, number, command, argument)))
}

fn control(
    id: c_int,
    number: c_int,
    command: c_int,
    argument: *mut c_void,
) -> Result<c_int, Errno> {
    use command::{
        GETALL, IPC_INFO, IPC_SET, IPC_STAT, SEM_INFO, SEM_STAT, SEM_STAT_ANY, SETALL, SETVAL,
    };
    match command {
        IPC_STAT | SEM_STAT | SEM_STAT_ANY => {
            let (value, stat) = sysv_sem::stat(&Session, id, command)?;
            write(argument.cast(), described(&stat))?;
            Ok(value)
        }
        IPC_INFO | SEM_INFO => {
            let (highest, info) = sysv_sem::info(&Session, command)?;
            write(argument.cast(), info)?;
            Ok(highest)
        }
        IPC_SET => {
            let given =
                Array::<SemidDs>::at(argument.cast()).get(1)?.first().ok_or(Errno::new(EFAULT))?;
            let IpcPerm { uid, gid, mode, .. } = given.perm;
            sysv_sem::set_perm(&Session, id, SetPerm { uid, gid, mode, bytes_max: 0 }).map(|()| 0)
        }
        GETALL => {
            let values = BytesMut::at(argument.cast()).get(size_of_values(id)?)?;
            sysv_sem::values(&Session, id, values).map(|_| 0)
        }
        SETALL => {
            let values = Bytes::at(argument.cast::<u8>().cast_const()).get(size_of_values(id)?)?;
            sysv_sem::set_values(&Session, id, values).map(|()| 0)
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "an int in a register"
        )]
        SETVAL => sysv_sem::control(&Session, id, number, command, argument.addr() as c_int),
        _ => sysv_sem::control(&Session, id, number, command, 0),
    }
}

/// Bytes of the array that GETALL and SETALL mean: as many values as the set has.
fn size_of_values(id: c_int) -> Result<usize, Errno> {
    let (_, stat) = sysv_sem::stat(&Session, id, command::IPC_STAT)?;
    usize::try_from(stat.semaphores)
        .ok()
        .and_then(|count| count.checked_mul(2))
        .ok_or(Errno::new(EFAULT))
}

fn described(stat: &SemStat) -> SemidDs {
    SemidDs {
        perm: IpcPerm::new(&stat.perm),
        otime: stat.otime,
        #[cfg(target_arch = "x86_64")]
        spare_otime: 0,
        ctime: stat.ctime,
        #[cfg(target_arch = "x86_64")]
        spare_ctime: 0,
        semaphores: stat.semaphores,
        spare: [0; 2],
    }
}

/// Stores a result where the program wants it.
pub(crate) fn write<T>(target: *mut T, value: T) -> Result<(), Errno> {
    if target.is_null() {
        return Err(Errno::new(EFAULT));
    }
    // SAFETY: the program's buffer for this struct (its promise, as to libc).
    unsafe { target.write(value) };
    Ok(())
}
