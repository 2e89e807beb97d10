//! The constructor: reads where the door is from the environment. Makes no system call.
#![expect(
    unsafe_code,
    reason = "the loader hands over raw vectors, and finds us by section and name"
)]

use crate::libc;
use core::ffi::{CStr, c_char, c_int};
use libdvsposix::session;

/// Version of the shim's interface to a launcher, which finds it by this name in the file, and the
/// file in `/proc/PID/maps`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn dvs_preload_version() -> c_int {
    1
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = start;

/// glibc passes a program's arguments to constructors; musl does not, but has `environ` set.
extern "C" fn start(_: c_int, _: *const *const c_char, glibc_environment: *const *const c_char) {
    let environment = if libc::is_glibc() { glibc_environment } else { libc::environment() };
    if environment.is_null() {
        return;
    }
    let mut path = None;
    let mut at = environment;
    while let Some(variable) = next(&mut at) {
        if let Some(value) = value_of_socket(variable) {
            path = Some(value);
        }
    }
    // A program that runs with more rights than its user must not believe the user's environment.
    if let Some(path) = path
        && !runs_with_more_rights(at.cast())
    {
        session::set_socket(path.to_bytes());
    }
}

/// The string at `*at`, which then moves on; `None` at the end of the vector, and then `*at` is beyond it.
fn next(at: &mut *const *const c_char) -> Option<&'static CStr> {
    // SAFETY: the vector ends with a null pointer, and the loop with it.
    let string = unsafe { **at };
    // SAFETY: at most one beyond the end of the vector, where the auxiliary vector begins.
    *at = unsafe { at.add(1) };
    if string.is_null() {
        return None;
    }
    // SAFETY: the kernel's strings, which live as long as the process; they end with a NUL.
    Some(unsafe { CStr::from_ptr(string) })
}

fn value_of_socket(variable: &'static CStr) -> Option<&'static CStr> {
    let value = variable.to_bytes_with_nul().strip_prefix(m3ipc::door::SOCKET_ENV.as_bytes())?;
    CStr::from_bytes_with_nul(value.strip_prefix(b"=")?).ok()
}

const AT_NULL: usize = 0;
const AT_SECURE: usize = 23;

/// AT_SECURE of the auxiliary vector: setuid, setgid, or capabilities from the file.
fn runs_with_more_rights(mut auxiliary: *const [usize; 2]) -> bool {
    loop {
        // SAFETY: the vector follows the environment and ends with AT_NULL, and the loop with it.
        match unsafe { *auxiliary } {
            [AT_NULL, _] => return true,
            [AT_SECURE, value] => return value != 0,
            _ => {}
        }
        // SAFETY: this was not the last entry.
        auxiliary = unsafe { auxiliary.add(1) };
    }
}
