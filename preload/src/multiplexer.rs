//! syscall(2): the calls that the shim implements, by number; all others go to the kernel.
#![expect(
    unsafe_code,
    reason = "an exported name, in assembler, since fork and its kin may be called through it"
)]

use crate::errno::result;
use crate::kernel::Sysno;
use crate::libc::set_errno;
use crate::queue::{self, MqAttr};
use crate::{signal, sysv_queue, sysv_semaphore};
use core::arch::naked_asm;
use core::ffi::{c_int, c_long};
use core::ptr;
use libdvsposix::pointer::{Array, Bytes, BytesMut, Text};

/// `long syscall(long number, ...)`. A call that is not the shim's is made without a stack frame, as libc
/// makes it: after vfork or clone two tasks come back from here.
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub(crate) unsafe extern "C-unwind" fn syscall() -> c_long {
    naked_asm!(
        "lea rax, [rdi - {first}]",
        "cmp rax, {last} - {first}",
        "jbe {shim}",
        "lea rax, [rdi - {first_queue}]",
        "cmp rax, {last_queue} - {first_queue}",
        "jbe {shim}",
        "cmp rdi, {timed}",
        "je {shim}",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 2f",
        "ret",
        "2:",
        "mov rdi, rax",
        "jmp {failed}",
        first = const Sysno::kill as i32,
        last = const Sysno::msgctl as i32,
        first_queue = const Sysno::mq_open as i32,
        last_queue = const Sysno::mq_getsetattr as i32,
        timed = const Sysno::semtimedop as i32,
        shim = sym implemented,
        failed = sym failed,
    )
}

/// As above.
#[cfg(target_arch = "aarch64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub(crate) unsafe extern "C-unwind" fn syscall() -> c_long {
    naked_asm!(
        "sub x9, x0, #{first}",
        "cmp x9, #({last} - {first})",
        "b.ls 3f",
        "cmp x0, #{kill}",
        "b.eq 3f",
        "mov x8, x0",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "mov x4, x5",
        "mov x5, x6",
        "svc #0",
        "cmn x0, #4095",
        "b.cs 2f",
        "ret",
        "2:",
        "b {failed}",
        "3:",
        "b {shim}",
        first = const Sysno::mq_open as i32,
        last = const Sysno::semop as i32,
        kill = const Sysno::kill as i32,
        shim = sym implemented,
        failed = sym failed,
    )
}

/// A system call has failed with -errno.
extern "C" fn failed(outcome: c_long) -> c_long {
    set_errno(c_int::try_from(-outcome).unwrap_or(c_int::MAX));
    -1
}

/// The numbers that may be the shim's, with the arguments as libc's syscall has them.
extern "C-unwind" fn implemented(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let Some(number) = usize::try_from(number).ok().and_then(Sysno::new) else {
        return failed(-c_long::from(m3ipc::errno::numbers::ENOSYS));
    };
    match number {
        Sysno::kill => signal::kill(int(a), int(b)).into(),
        Sysno::semget => sysv_semaphore::semget(int(a), int(b), int(c)).into(),
        Sysno::semop => sysv_semaphore::semop(int(a), Array::at(pointer(b)), c).into(),
        Sysno::semtimedop => {
            sysv_semaphore::semtimedop(int(a), Array::at(pointer(b)), c, reference(d)).into()
        }
        Sysno::semctl => sysv_semaphore::semctl(int(a), int(b), int(c), pointer(d)).into(),
        Sysno::msgget => sysv_queue::msgget(int(a), int(b)).into(),
        Sysno::msgsnd => sysv_queue::msgsnd(int(a), pointer(b), c, int(d)).into(),
        Sysno::msgrcv => long(sysv_queue::msgrcv(int(a), pointer(b), c, long_argument(d), int(e))),
        Sysno::msgctl => sysv_queue::msgctl(int(a), int(b), pointer(c)).into(),
        Sysno::mq_open => {
            let attributes = Array::at(pointer::<MqAttr>(d));
            result(queue::open(Text::at(pointer(a)), int(b), int(c).cast_unsigned(), attributes))
                .into()
        }
        Sysno::mq_unlink => result(queue::unlink(Text::at(pointer(a)))).into(),
        Sysno::mq_timedsend => {
            let priority = int(d).cast_unsigned();
            queue::mq_timedsend(int(a), Bytes::at(pointer(b)), c, priority, reference(e)).into()
        }
        Sysno::mq_timedreceive => long(queue::mq_timedreceive(
            int(a),
            BytesMut::at(pointer(b)),
            c,
            reference_mut(d),
            reference(e),
        )),
        Sysno::mq_notify => queue::mq_notify(int(a), pointer(b)).into(),
        Sysno::mq_getsetattr => queue::mq_setattr(int(a), reference(b), reference_mut(c)).into(),
        _ => match crate::kernel::system_call(number, [a, b, c, d, e, f]) {
            Ok(value) => long_argument(value),
            Err(error) => failed(-c_long::from(error.errno)),
        },
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the kernel takes an int's bits"
)]
fn int(argument: usize) -> c_int {
    argument as c_int
}

fn long_argument(argument: usize) -> c_long {
    long(argument.cast_signed())
}

fn long(value: isize) -> c_long {
    value as c_long
}

fn pointer<T>(argument: usize) -> *mut T {
    ptr::with_exposed_provenance_mut(argument)
}

fn reference<T>(argument: usize) -> Option<&'static T> {
    // SAFETY: null, or the program's pointer to a T that lives during the call.
    unsafe { pointer::<T>(argument).as_ref() }
}

fn reference_mut<T>(argument: usize) -> Option<&'static mut T> {
    // SAFETY: null, or the program's pointer to a T that lives during the call.
    unsafe { pointer::<T>(argument).as_mut() }
}
