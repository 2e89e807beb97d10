//! sem_open(3) and its family: dispatch between the DC's semaphores and ordinary ones.
#![expect(unsafe_code, reason = "exported names")]
//!
//! These names shadow libc's, so they must also do what libc does for semaphores made by sem_init(3)
//! (`unnamed`) and, where there is no DVS, for named ones in shared memory (`shared_memory`).

use crate::errno::{or_local, result, status};
use crate::libc::{cancellation_point, set_errno};
use crate::unnamed::{self, SemT};
use crate::{named, shared_memory};
use core::ffi::{c_int, c_uint};
use core::ptr;
use libdvsposix::deadline::{Clock, Deadline, Timespec};
use libdvsposix::pointer::{Out, Text, put};
use libdvsposix::session::Session;
use libdvsposix::{sem, umask};
use m3ipc::Errno;
use m3ipc::errno::numbers::{EFAULT, EINVAL, EMFILE};

const O_CREAT: c_int = 0o100;

#[unsafe(no_mangle)]
pub(crate) extern "C" fn sem_open(
    name: Text<'_>,
    flags: c_int,
    mode: c_uint,
    value: c_uint,
) -> *mut SemT {
    // Without O_CREAT there are no further arguments: what is in their registers means nothing.
    let (mode, value) = if flags & O_CREAT != 0 { (mode, value) } else { (0, 0) };
    let opened = name.bytes().and_then(|name| {
        or_local(open_in_dc(name, flags, mode, value), || {
            shared_memory::open(name, flags, mode, value)
        })
    });
    opened.unwrap_or_else(|error| {
        set_errno(error.errno);
        ptr::null_mut()
    })
}

fn open_in_dc(name: &[u8], flags: c_int, mode: u32, value: u32) -> Result<*mut SemT, Errno> {
    let mode = if flags & O_CREAT != 0 { umask::apply(mode) } else { 0 };
    let id = sem::open(&Session, name, flags.cast_unsigned(), mode, value)?;
    named::add(id).ok_or_else(|| {
        sem::close(&Session, id).ok();
        Errno::new(EMFILE)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn sem_close(semaphore: *mut SemT) -> c_int {
    status(match named::contains(semaphore) {
        // The server counts how often a process has opened a semaphore. It may not know of an
        // inherited one, and then has nothing to close.
        true => named::remove(semaphore).ok_or(Errno::new(EINVAL)).map(|id| {
            sem::close(&Session, id).ok();
        }),
        false => shared_memory::close(semaphore),
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn sem_unlink(name: Text<'_>) -> c_int {
    status(
        name.bytes()
            .and_then(|name| or_local(sem::unlink(&Session, name), || shared_memory::unlink(name))),
    )
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn sem_wait(semaphore: *mut SemT) -> c_int {
    status(wait(semaphore, None))
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn sem_timedwait(
    semaphore: *mut SemT,
    deadline: Option<&Timespec>,
) -> c_int {
    let deadline = deadline.ok_or(Errno::new(EFAULT));
    status(deadline.and_then(|deadline| wait(semaphore, Some((Clock::Realtime, *deadline)))))
}

#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn sem_clockwait(
    semaphore: *mut SemT,
    clock: c_int,
    deadline: Option<&Timespec>,
) -> c_int {
    let clock = match clock {
        0 => Ok(Clock::Realtime),
        1 => Ok(Clock::Monotonic),
        _ => Err(Errno::new(EINVAL)),
    };
    let deadline = deadline.ok_or(Errno::new(EFAULT));
    status(clock.and_then(|clock| wait(semaphore, Some((clock, *deadline?)))))
}

fn wait(semaphore: *mut SemT, deadline: Option<(Clock, Timespec)>) -> Result<(), Errno> {
    cancellation_point();
    match named::id(semaphore)? {
        Some(id) => {
            let deadline = deadline.map_or(Deadline::Never, |(clock, at)| Deadline::At(clock, at));
            sem::wait(&Session, id, deadline)
        }
        None => unnamed::wait(semaphore, deadline),
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn sem_trywait(semaphore: *mut SemT) -> c_int {
    status(named::id(semaphore).and_then(|id| match id {
        Some(id) => sem::wait(&Session, id, Deadline::Now),
        None => unnamed::try_wait(semaphore),
    }))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn sem_post(semaphore: *mut SemT) -> c_int {
    status(named::id(semaphore).and_then(|id| match id {
        Some(id) => sem::post(&Session, id),
        None => unnamed::post(semaphore),
    }))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn sem_getvalue(semaphore: *mut SemT, value: Out<'_, c_int>) -> c_int {
    result(named::id(semaphore).and_then(|id| {
        let found = match id {
            Some(id) => sem::value(&Session, id)?,
            None => unnamed::value(semaphore),
        };
        put(value, found).map(|()| 0)
    }))
}
