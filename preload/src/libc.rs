//! What the shim knows of the program's libc: a few names that may or may not be there.
#![expect(unsafe_code, reason = "weak names can only be had in assembler")]

use core::arch::naked_asm;
use core::ffi::{c_char, c_int};

/// Declares a function that returns the address of `$name`, null if no library of the program has it.
macro_rules! address_of_weak {
    ($function:ident, $name:literal) => {
        #[unsafe(naked)]
        extern "C" fn $function() -> usize {
            #[cfg(target_arch = "x86_64")]
            naked_asm!(
                concat!(".weak ", $name),
                concat!("mov rax, [rip + ", $name, "@GOTPCREL]"),
                "ret",
            );
            #[cfg(target_arch = "aarch64")]
            naked_asm!(
                concat!(".weak ", $name),
                concat!("adrp x0, :got:", $name),
                concat!("ldr x0, [x0, :got_lo12:", $name, "]"),
                "ret",
            );
        }
    };
}

address_of_weak!(errno_location, "__errno_location");
address_of_weak!(glibc_version, "gnu_get_libc_version");
address_of_weak!(environ, "environ");
address_of_weak!(set_cancel_type, "pthread_setcanceltype");
address_of_weak!(test_cancel, "pthread_testcancel");

/// Is it glibc? Else it is musl, whose semaphores look otherwise.
pub(crate) fn is_glibc() -> bool {
    glibc_version() != 0
}

/// `environ`; null if it is not there.
pub(crate) fn environment() -> *const *const c_char {
    let environ = environ() as *const *const *const c_char;
    if environ.is_null() {
        return core::ptr::null();
    }
    // SAFETY: the variable of that name, which every libc has of this type.
    unsafe { *environ }
}

/// Sets this thread's `errno`.
pub(crate) fn set_errno(errno: c_int) {
    let location = errno_location();
    if location == 0 {
        return;
    }
    // SAFETY: the function of that name, which both libcs have with this signature.
    let location =
        unsafe { core::mem::transmute::<usize, extern "C" fn() -> *mut c_int>(location) };
    // SAFETY: this thread's errno.
    unsafe { *location() = errno };
}

/// The thread ends here if it is to be cancelled (pthread_cancel), as in libc's blocking functions.
pub(crate) fn cancellation_point() {
    let test = test_cancel();
    if test == 0 {
        return;
    }
    // SAFETY: the function of that name, which both libcs have with this signature.
    let test = unsafe { core::mem::transmute::<usize, extern "C-unwind" fn()>(test) };
    test();
}

/// Waits in `wait`, one system call that takes nothing: the thread may be cancelled meanwhile.
pub(crate) fn cancellable<T>(wait: impl FnOnce() -> T) -> T {
    /// PTHREAD_CANCEL_ASYNCHRONOUS of both libcs.
    const ASYNCHRONOUS: c_int = 1;
    let set = set_cancel_type();
    if set == 0 {
        return wait();
    }
    type SetCancelType = extern "C-unwind" fn(c_int, *mut c_int) -> c_int;
    // SAFETY: the function of that name, which both libcs have with this signature.
    let set = unsafe { core::mem::transmute::<usize, SetCancelType>(set) };
    let (mut before, mut ignored) = (0, 0);
    set(ASYNCHRONOUS, &raw mut before);
    let outcome = wait();
    set(before, &raw mut ignored);
    outcome
}
