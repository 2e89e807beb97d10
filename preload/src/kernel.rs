//! The local kernel: raw system calls, by number and with libc's view of the result.
#![expect(unsafe_code, reason = "raw system calls")]

use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::AtomicU32;
use libdvsposix::deadline::{Clock, Timespec};
use m3ipc::Errno;
pub(crate) use syscalls::Sysno;

/// A value as a system call wants it.
pub(crate) trait Word {
    fn word(self) -> usize;
}

macro_rules! words {
    ($($int:ty)*) => {$(
        impl Word for $int {
            #[expect(clippy::allow_attributes, reason = "some of these casts lose nothing")]
            #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "registers have no sign")]
            fn word(self) -> usize {
                self as usize
            }
        }
    )*};
}
words!(i32 u32 i64 u64 usize isize);

impl<T> Word for *const T {
    fn word(self) -> usize {
        self.expose_provenance()
    }
}

impl<T> Word for *mut T {
    fn word(self) -> usize {
        self.expose_provenance()
    }
}

/// Makes system call `number` with what the program gave libc. The kernel checks it.
pub(crate) fn system_call(number: Sysno, arguments: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the program's own call, made for it: what it does to memory is what the program asked for;
    // the shim's own calls name memory of the shim.
    let outcome = unsafe { syscalls::syscall6(number, a, b, c, d, e, f) };
    outcome.map_err(|errno| Errno::new(errno.into_raw()))
}

/// `call!(getpid)`, `call!(kill, pid, signal)`.
macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {{
        let mut arguments = [0usize; 6];
        let given: &[usize] = &[$($crate::kernel::Word::word($argument)),*];
        for (argument, given) in arguments.iter_mut().zip(given) {
            *argument = *given;
        }
        $crate::kernel::system_call($crate::kernel::Sysno::$number, arguments)
    }};
}
pub(crate) use call;

/// A system call's result as libc's `int`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the kernel's result is an int"
)]
pub(crate) fn int(result: usize) -> c_int {
    result as c_int
}

const FUTEX_WAKE: c_int = 1;
const FUTEX_WAIT_BITSET: c_int = 9;
const FUTEX_CLOCK_REALTIME: c_int = 256;
const FUTEX_BITSET_MATCH_ANY: u32 = u32::MAX;
/// The futex is of one process only.
pub(crate) const FUTEX_PRIVATE: c_int = 128;

/// Sleeps while `word` is `value`, until `deadline` if there is one. `private`: 0 or [`FUTEX_PRIVATE`].
///
/// # Errors
/// EAGAIN (the word has another value), EINTR, ETIMEDOUT, EINVAL.
pub(crate) fn futex_wait(
    word: &AtomicU32,
    value: u32,
    deadline: Option<(Clock, Timespec)>,
    private: c_int,
) -> Result<(), Errno> {
    let clock = match deadline {
        Some((Clock::Realtime, _)) => FUTEX_CLOCK_REALTIME,
        _ => 0,
    };
    let time = deadline.map(|(_, time)| time);
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    let operation = FUTEX_WAIT_BITSET | clock | private;
    call!(futex, word.as_ptr(), operation, value, time, 0, FUTEX_BITSET_MATCH_ANY).map(|_| ())
}

/// Wakes at most `count` of those who sleep on the word at this address. The address is only a name here:
/// nothing is read there, so the semaphore may be gone already.
pub(crate) fn futex_wake(word: *const c_void, count: c_int, private: c_int) {
    call!(futex, word, FUTEX_WAKE | private, count).ok();
}

pub(crate) fn process_id() -> u32 {
    call!(getpid).map_or(0, |pid| u32::try_from(pid).unwrap_or(0))
}

pub(crate) fn sched_yield() {
    call!(sched_yield).ok();
}

/// Ends the process with a signal that says where.
pub(crate) fn abort() -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an invalid instruction: SIGILL.
    unsafe {
        core::arch::asm!("ud2", options(noreturn))
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a trap: SIGTRAP.
    unsafe {
        core::arch::asm!("brk #1", options(noreturn))
    }
}
