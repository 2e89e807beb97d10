//! kill(2) of processes on any node.

use calls::call;
use calls::pm::Kill;
use m3ipc::errno::numbers::EINVAL;
use m3ipc::{Endpoint, Errno, Sendrec, Wait};

/// Largest signal number of Linux.
pub const SIGNAL_MAX: i32 = 64;

/// kill(2): `pid` > 0 one process of the DC, -1 all that the caller may signal, < -1 a process
/// group. 0, the caller's own group, is its node's business: pm-server does not know it.
///
/// # Errors
/// EINVAL, EPERM, ESRCH.
pub fn kill(port: &impl Sendrec, pid: i32, signal: i32) -> Result<(), Errno> {
    let signal = u32::try_from(signal).map_err(|_| Errno::new(EINVAL))?;
    if signal > SIGNAL_MAX.cast_unsigned() || pid == 0 {
        return Err(Errno::new(EINVAL));
    }
    call(port, Endpoint::PM, &Kill { pid, signal }, &[], &mut [], Wait::FOREVER).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::kill;
    use crate::fake::Fake;
    use calls::pm::Kill;
    use m3ipc::Endpoint;
    use m3ipc::errno::numbers::{EINVAL, ESRCH};

    #[test]
    fn a_signal_goes_to_the_process_server() {
        let fake = Fake::answering([]);
        assert_eq!(kill(&fake, -300_001, 15), Ok(()));
        assert_eq!(
            (fake.row::<Kill>(), fake.last().to),
            (Kill { pid: -300_001, signal: 15 }, Endpoint::PM)
        );
        assert_eq!(kill(&Fake::failing(ESRCH), 9, 0).map_err(|error| error.errno), Err(ESRCH));
    }

    #[test]
    fn no_signal_and_no_process_are_refused_without_a_call() {
        let fake = Fake::answering([]);
        for (pid, signal) in [(1, -1), (1, 65), (1, i32::MAX), (0, 15)] {
            assert_eq!(kill(&fake, pid, signal).map_err(|error| error.errno), Err(EINVAL));
        }
        assert_eq!(fake.calls(), 0);
        assert_eq!(kill(&fake, 1, 64), Ok(()));
    }
}
