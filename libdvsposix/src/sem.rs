//! POSIX named semaphores: sem_open(3) and its family, by object number.

use crate::deadline::Deadline;
use crate::name::Name;
use calls::call;
use calls::ipc::{SemClose, SemGetvalue, SemOpen, SemPost, SemUnlink, SemWait};
use m3ipc::errno::numbers::{EINVAL, ENOENT};
use m3ipc::{Endpoint, Errno, Sendrec, Wait};

/// Largest value of a semaphore.
pub const SEM_VALUE_MAX: u32 = i32::MAX as u32;

/// sem_open(3). `flags`: O_CREAT, O_EXCL; `mode` is without the umask's bits already.
///
/// # Errors
/// As sem_open(3).
pub fn open(port: &impl Sendrec, name: &[u8], flags: u32, mode: u32, value: u32) -> Result<u64, Errno> {
    let name = Name::semaphore(name)?;
    if flags & O_CREAT != 0 && value > SEM_VALUE_MAX {
        return Err(Errno::new(EINVAL));
    }
    let row = SemOpen { flags: flags & (O_CREAT | O_EXCL), mode, value };
    call(port, Endpoint::IPC, &row, &[name.bytes()], &mut [], Wait::FOREVER).map(|(object, _)| object.id)
}

/// sem_close(3).
///
/// # Errors
/// EINVAL: no such semaphore.
pub fn close(port: &impl Sendrec, id: u64) -> Result<(), Errno> {
    call(port, Endpoint::IPC, &SemClose { id }, &[], &mut [], Wait::FOREVER).map(|_| ())
}

/// sem_unlink(3).
///
/// # Errors
/// ENOENT (also for what cannot be a name, as libc has it), EACCES, ENAMETOOLONG.
pub fn unlink(port: &impl Sendrec, name: &[u8]) -> Result<(), Errno> {
    let unfit = |error: Errno| if error.errno == EINVAL { Errno::new(ENOENT) } else { error };
    let name = Name::semaphore(name).map_err(unfit)?;
    call(port, Endpoint::IPC, &SemUnlink {}, &[name.bytes()], &mut [], Wait::FOREVER).map(|_| ())
}

/// sem_wait, sem_trywait, sem_timedwait, sem_clockwait. A timed wait is interrupted by every signal
/// handler, one without a deadline goes on after a handler with SA_RESTART, as a futex does.
///
/// # Errors
/// EAGAIN (`Deadline::Now`), ETIMEDOUT, EINTR, EINVAL.
pub fn wait(port: &impl Sendrec, id: u64, deadline: Deadline) -> Result<(), Errno> {
    let wait = if deadline.is_timed() { Wait::INTERRUPT } else { Wait::RESTART };
    let row = SemWait { id, wait_ns: deadline.wait_ns()? };
    call(port, Endpoint::IPC, &row, &[], &mut [], wait).map(|_| ())
}

/// sem_post(3).
///
/// # Errors
/// EOVERFLOW, EINVAL.
pub fn post(port: &impl Sendrec, id: u64) -> Result<(), Errno> {
    call(port, Endpoint::IPC, &SemPost { id }, &[], &mut [], Wait::FOREVER).map(|_| ())
}

/// sem_getvalue(3).
///
/// # Errors
/// EINVAL.
pub fn value(port: &impl Sendrec, id: u64) -> Result<i32, Errno> {
    call(port, Endpoint::IPC, &SemGetvalue { id }, &[], &mut [], Wait::FOREVER).map(|(value, _)| value.value)
}

pub(crate) const O_CREAT: u32 = 0o100;
pub(crate) const O_EXCL: u32 = 0o200;
