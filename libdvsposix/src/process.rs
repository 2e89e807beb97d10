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
