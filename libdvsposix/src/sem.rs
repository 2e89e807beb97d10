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
pub fn open(
    port: &impl Sendrec,
    name: &[u8],
    flags: u32,
    mode: u32,
    value: u32,
) -> Result<u64, Errno> {
    let name = Name::semaphore(name)?;
    if flags & O_CREAT != 0 && value > SEM_VALUE_MAX {
        return Err(Errno::new(EINVAL));
    }
    let row = SemOpen { flags: flags & (O_CREAT | O_EXCL), mode, value };
    call(port, Endpoint::IPC, &row, &[name.bytes()], &mut [], Wait::FOREVER)
        .map(|(object, _)| object.id)
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
    call(port, Endpoint::IPC, &SemGetvalue { id }, &[], &mut [], Wait::FOREVER)
        .map(|(value, _)| value.value)
}

pub(crate) const O_CREAT: u32 = 0o100;
pub(crate) const O_EXCL: u32 = 0o200;

#[cfg(test)]
mod tests {
    use super::{O_CREAT, O_EXCL, SEM_VALUE_MAX, close, open, post, unlink, value, wait};
    use crate::deadline::{Clock, Deadline, Timespec};
    use crate::fake::Fake;
    use calls::ipc::{
        FOREVER, Object, SemClose, SemGetvalue, SemOpen, SemPost, SemUnlink, SemWait, Value,
    };
    use m3ipc::errno::numbers::{EAGAIN, EHOSTDOWN, EINTR, EINVAL, ENOENT};
    use m3ipc::{Endpoint, IpcError, Wait};

    #[test]
    fn opening_sends_the_canonical_name_and_only_the_flags_that_count() {
        let fake = Fake::replying::<SemOpen>(&Object { id: 5 }, []);
        assert_eq!(open(&fake, b"//name", O_CREAT | O_EXCL | 0o2, 0o640, 3), Ok(5));
        assert_eq!(
            fake.row::<SemOpen>(),
            SemOpen { flags: O_CREAT | O_EXCL, mode: 0o640, value: 3 }
        );
        assert_eq!((fake.last().to, fake.payload()), (Endpoint::IPC, b"/name".to_vec()));
    }

    #[test]
    fn what_cannot_be_is_refused_without_a_call() {
        let fake = Fake::replying::<SemOpen>(&Object { id: 5 }, []);
        let refused = |outcome: Result<u64, m3ipc::Errno>| outcome.map_err(|error| error.errno);
        assert_eq!(refused(open(&fake, b"/a/b", 0, 0, 0)), Err(EINVAL));
        assert_eq!(refused(open(&fake, b"/a", O_CREAT, 0, SEM_VALUE_MAX + 1)), Err(EINVAL));
        assert_eq!(unlink(&fake, b"/a/b").map_err(|error| error.errno), Err(ENOENT));
        assert_eq!(fake.calls(), 0);
        // Without O_CREAT the value means nothing.
        assert_eq!(open(&fake, b"/a", 0, 0, SEM_VALUE_MAX + 1), Ok(5));
    }

    #[test]
    fn only_a_timed_wait_is_interrupted_despite_sa_restart() {
        let fake = Fake::answering([]);
        let far = Deadline::At(Clock::Monotonic, Timespec { sec: i64::MAX, nsec: 0 });
        for (deadline, wait_ns, signals) in [
            (Deadline::Never, FOREVER, Wait::RESTART),
            (Deadline::Now, 0, Wait::RESTART),
            (far, FOREVER - 1, Wait::INTERRUPT),
        ] {
            assert_eq!(wait(&fake, 7, deadline), Ok(()));
            assert_eq!(fake.row::<SemWait>(), SemWait { id: 7, wait_ns });
            assert_eq!(fake.last().wait, signals);
        }
    }

    #[test]
    fn the_servers_errno_and_the_transports_reach_the_caller() {
        let errno = |fake: Fake| wait(&fake, 1, Deadline::Now).map_err(|error| error.errno);
        assert_eq!(errno(Fake::failing(EAGAIN)), Err(EAGAIN));
        assert_eq!(errno(Fake::unreachable(IpcError::Interrupted)), Err(EINTR));
        assert_eq!(errno(Fake::unreachable(IpcError::NodeDown)), Err(EHOSTDOWN));
    }

    #[test]
    fn the_other_calls_name_the_semaphore() {
        let fake = Fake::replying::<SemGetvalue>(&Value { value: 9 }, []);
        assert_eq!(value(&fake, 4), Ok(9));
        assert_eq!(post(&fake, 4), Ok(()));
        assert_eq!(fake.row::<SemPost>(), SemPost { id: 4 });
        assert_eq!(close(&fake, 4), Ok(()));
        assert_eq!(fake.row::<SemClose>(), SemClose { id: 4 });
        assert_eq!(unlink(&fake, b"name"), Ok(()));
        assert_eq!((fake.row::<SemUnlink>(), fake.payload()), (SemUnlink {}, b"/name".to_vec()));
    }
}
