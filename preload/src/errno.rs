//! Results as C has them: -1 and errno.

use crate::kernel;
use crate::libc::set_errno;
use core::ffi::c_int;
use libdvsposix::session::Session;
use m3ipc::Errno;

/// A C function's failure value.
pub(crate) trait Failure {
    const FAILURE: Self;
}

impl Failure for c_int {
    const FAILURE: c_int = -1;
}

impl Failure for isize {
    const FAILURE: isize = -1;
}

/// The value, or -1 with errno set.
pub(crate) fn result<T: Failure>(outcome: Result<T, Errno>) -> T {
    outcome.unwrap_or_else(|error| {
        set_errno(error.errno);
        T::FAILURE
    })
}

/// 0, or -1 with errno set.
pub(crate) fn status(outcome: Result<(), Errno>) -> c_int {
    result(outcome.map(|()| 0))
}

/// The DC's answer or, where there is no DVS, the local kernel's.
pub(crate) fn or_local<T>(
    answer: Result<T, Errno>,
    local: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    if answer.is_err() && Session.is_outside() { local() } else { answer }
}

/// As [`or_local`], of a system call whose result is an `int`.
pub(crate) fn or_kernel(
    answer: Result<c_int, Errno>,
    local: impl FnOnce() -> Result<usize, Errno>,
) -> Result<c_int, Errno> {
    or_local(answer, || local().map(kernel::int))
}
