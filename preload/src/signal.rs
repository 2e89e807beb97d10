//! kill(2): of the node's own processes by its kernel, of all others through pm-server.
#![expect(unsafe_code, reason = "exported names")]

use crate::errno::{or_kernel, result};
use crate::kernel::{self, call};
use core::ffi::c_int;
use libdvsposix::process;
use libdvsposix::session::Session;
use m3ipc::Errno;
use m3ipc::errno::numbers::{EINVAL, ESRCH};

#[unsafe(no_mangle)]
pub(crate) extern "C" fn kill(pid: c_int, signal: c_int) -> c_int {
    result(send(pid, signal))
}

/// libc's calls its own kill.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn killpg(group: c_int, signal: c_int) -> c_int {
    result(if group < 0 { Err(Errno::new(EINVAL)) } else { send(-group, signal) })
}

/// A pid, and the number of a process group, is of one node: if it is of this one, its kernel knows it.
fn send(pid: c_int, signal: c_int) -> Result<c_int, Errno> {
    let local = || call!(kill, pid, signal);
    if pid == -1 {
        return or_kernel(process::kill(&Session, pid, signal).map(|()| 0), local);
    }
    match local() {
        Err(error) if error.errno == ESRCH && pid != 0 => {
            or_kernel(process::kill(&Session, pid, signal).map(|()| 0), || Err(error))
        }
        outcome => outcome.map(kernel::int),
    }
}
