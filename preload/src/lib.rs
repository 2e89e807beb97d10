//! `libdvs_preload.so`: the DVS in place of libc's semaphores, message queues and kill, in unmodified programs.
//!
//! It is loaded into every program of a container, so it needs nothing: no other library, no libc
//! function, no allocation, no thread-local storage; raw system calls only (glibc's and musl's
//! programs run with the same file). It works where signals, forks and threads may be at any point:
//! atomics, and no lock over a wait. On any doubt the local kernel decides: a call on what is not the
//! DC's goes through unchanged, and without a DVS every call does.
//!
//! Functions that a thread may be cancelled in are `extern "C-unwind"`: glibc unwinds their frames.
//!
//! It also exports the C API of libdvsposix (`dvs_*`). Modules stand in reading order.
#![no_std]

mod errno;
mod kernel;
mod libc;
mod memory;
mod start;

mod named;
mod semaphore;
mod shared_memory;
mod unnamed;

mod multiplexer;
mod queue;
mod signal;
mod sysv_queue;
mod sysv_semaphore;

/// Nothing here panics by intent. If something does, the program must not go on with half a call.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    kernel::abort()
}
