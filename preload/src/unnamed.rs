//! Semaphores made by sem_init(3): glibc's and musl's own algorithms on their `sem_t`, step by step.
#![expect(unsafe_code, reason = "a sem_t is the program's memory, shared by address")]
//!
//! sem_init and sem_destroy stay libc's, and a process without the shim may share the semaphore, so
//! layout and protocol are not ours to choose. glibc since 2.21 on 64 bit (nptl/sem_waitcommon.c):
//! value and number of waiters are one word of 64 bits. musl since 1.2.4 (src/thread/sem_timedwait.c).

use crate::kernel::{FUTEX_PRIVATE, futex_wait, futex_wake};
use crate::libc;
use core::ffi::c_int;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use libdvsposix::deadline::{Clock, Timespec};
use libdvsposix::sem::SEM_VALUE_MAX;
use m3ipc::Errno;
use m3ipc::errno::numbers::{EAGAIN, EINTR, EINVAL, EOVERFLOW, ETIMEDOUT};

/// `sem_t` of both libcs on 64 bit.
#[repr(C, align(8))]
pub(crate) struct SemT([u8; 32]);

/// sem_wait, sem_timedwait, sem_clockwait.
pub(crate) fn wait(
    semaphore: *const SemT,
    deadline: Option<(Clock, Timespec)>,
) -> Result<(), Errno> {
    let is_time = |time: Timespec| (0..1_000_000_000).contains(&time.nsec);
    if deadline.is_some_and(|(_, time)| !is_time(time)) {
        return Err(Errno::new(EINVAL));
    }
    if libc::is_glibc() {
        Glibc::at(semaphore).wait(deadline)
    } else {
        Musl::at(semaphore).wait(deadline)
    }
}

/// sem_trywait.
pub(crate) fn try_wait(semaphore: *const SemT) -> Result<(), Errno> {
    let taken = if libc::is_glibc() {
        Glibc::at(semaphore).try_wait()
    } else {
        Musl::at(semaphore).try_wait()
    };
    if taken { Ok(()) } else { Err(Errno::new(EAGAIN)) }
}

/// sem_post.
pub(crate) fn post(semaphore: *const SemT) -> Result<(), Errno> {
    if libc::is_glibc() { Glibc::at(semaphore).post() } else { Musl::at(semaphore).post() }
}

/// sem_getvalue.
pub(crate) fn value(semaphore: *const SemT) -> c_int {
    if libc::is_glibc() { Glibc::at(semaphore).value() } else { Musl::at(semaphore).value() }
}

/// What sem_init(3) makes of `value` for a semaphore shared by processes.
pub(crate) fn shared(value: u32) -> [u32; 8] {
    let glibc_shared = FUTEX_PRIVATE.cast_unsigned();
    if libc::is_glibc() {
        [value, 0, glibc_shared, 0, 0, 0, 0, 0]
    } else {
        [value, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// Sleeps on a semaphore's word; the thread can be cancelled meanwhile. It then stays counted as a
/// waiter, which costs those who post a system call, and is otherwise the same.
fn sleep(
    word: &AtomicU32,
    value: u32,
    deadline: Option<(Clock, Timespec)>,
    private: c_int,
) -> Result<(), Errno> {
    // The kernel refuses times before the epoch, libc says they are over.
    if deadline.is_some_and(|(_, time)| time.sec < 0) {
        return Err(Errno::new(ETIMEDOUT));
    }
    match libc::cancellable(|| futex_wait(word, value, deadline, private)) {
        Err(error) if matches!(error.errno, EINTR | ETIMEDOUT) => Err(error),
        _ => Ok(()),
    }
}

/// glibc's `struct new_sem`.
struct Glibc {
    address: *const SemT,
}

/// One waiter in the data word; the value is the lower half.
const WAITER: u64 = 1 << 32;

#[expect(clippy::cast_possible_truncation, reason = "the lower half is the value")]
const fn value_of(data: u64) -> u32 {
    data as u32
}

impl Glibc {
    fn at(address: *const SemT) -> Glibc {
        Glibc { address }
    }

    fn data(&self) -> &AtomicU64 {
        // SAFETY: the data word of the program's sem_t, which is aligned and lives during the call.
        unsafe { &*self.address.cast() }
    }

    /// The half of the data word that waiters sleep on (little-endian).
    fn value_word(&self) -> &AtomicU32 {
        // SAFETY: as `data`. Only the kernel reads through it, and only as a word of 32 bits.
        unsafe { &*self.address.cast() }
    }

    /// 0 or FUTEX_PRIVATE_FLAG, for the kernel; the field has it the other way round.
    fn private(&self) -> c_int {
        // SAFETY: the third word of the program's sem_t.
        let shared = unsafe { &*self.address.cast::<AtomicI32>().wrapping_add(2) };
        shared.load(Ordering::Relaxed) ^ FUTEX_PRIVATE
    }

    fn try_wait(&self) -> bool {
        let take = |data: u64| (value_of(data) > 0).then(|| data - 1);
        self.data().fetch_update(Ordering::Acquire, Ordering::Relaxed, take).is_ok()
    }

    fn wait(&self, deadline: Option<(Clock, Timespec)>) -> Result<(), Errno> {
        if self.try_wait() {
            return Ok(());
        }
        let mut data = self.data().fetch_add(WAITER, Ordering::Relaxed);
        loop {
            if value_of(data) == 0 {
                if let Err(error) = sleep(self.value_word(), 0, deadline, self.private()) {
                    self.data().fetch_sub(WAITER, Ordering::Relaxed);
                    return Err(error);
                }
                data = self.data().load(Ordering::Relaxed);
                continue;
            }
            let taken = data - 1 - WAITER;
            match self.data().compare_exchange_weak(
                data,
                taken,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => data = now,
            }
        }
    }

    fn post(&self) -> Result<(), Errno> {
        // Once posted, the semaphore may be destroyed: everything is read before.
        let (private, address) = (self.private(), self.address);
        let give = |data: u64| (value_of(data) < SEM_VALUE_MAX).then(|| data + 1);
        let before = self.data().fetch_update(Ordering::Release, Ordering::Relaxed, give);
        let before = before.map_err(|_| Errno::new(EOVERFLOW))?;
        if before >= WAITER {
            futex_wake(address.cast(), 1, private);
        }
        Ok(())
    }

    fn value(&self) -> c_int {
        value_of(self.data().load(Ordering::Relaxed)).cast_signed()
    }
}

/// musl's `sem_t`: value with a flag, number of waiters, flag for the kernel.
struct Musl {
    address: *const SemT,
}

/// In musl's value: somebody may be asleep.
const ASLEEP: u32 = 1 << 31;

impl Musl {
    fn at(address: *const SemT) -> Musl {
        Musl { address }
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        // SAFETY: `index` is 0..3, a word of the program's sem_t, which lives during the call.
        unsafe { &*self.address.cast::<AtomicU32>().wrapping_add(index) }
    }

    fn try_wait(&self) -> bool {
        let take = |value: u32| (value & SEM_VALUE_MAX > 0).then(|| value - 1);
        self.word(0).fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    fn wait(&self, deadline: Option<(Clock, Timespec)>) -> Result<(), Errno> {
        /// musl's: long enough for a holder on another processor.
        const SPINS: u32 = 100;
        for _ in 0..SPINS {
            if self.word(0).load(Ordering::Relaxed) & SEM_VALUE_MAX > 0
                || self.word(1).load(Ordering::Relaxed) > 0
            {
                break;
            }
            spin_loop();
        }
        while !self.try_wait() {
            self.word(1).fetch_add(1, Ordering::SeqCst);
            self.word(0).compare_exchange(0, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).ok();
            let woken = sleep(self.word(0), ASLEEP, deadline, self.private());
            self.word(1).fetch_sub(1, Ordering::SeqCst);
            woken?;
        }
        Ok(())
    }

    fn post(&self) -> Result<(), Errno> {
        // Once posted, the semaphore may be destroyed: everything is read before.
        let (private, address) = (self.private(), self.address);
        let mut value = self.word(0).load(Ordering::SeqCst);
        loop {
            let waiters = self.word(1).load(Ordering::SeqCst);
            if value & SEM_VALUE_MAX == SEM_VALUE_MAX {
                return Err(Errno::new(EOVERFLOW));
            }
            let kept = if waiters <= 1 { SEM_VALUE_MAX } else { u32::MAX };
            let given = (value + 1) & kept;
            match self.word(0).compare_exchange(value, given, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) if value & ASLEEP != 0 => {
                    futex_wake(address.cast(), if waiters > 1 { 1 } else { c_int::MAX }, private);
                    return Ok(());
                }
                Ok(_) => return Ok(()),
                Err(now) => value = now,
            }
        }
    }

    fn private(&self) -> c_int {
        self.word(2).load(Ordering::Relaxed).cast_signed()
    }

    fn value(&self) -> c_int {
        (self.word(0).load(Ordering::SeqCst) & SEM_VALUE_MAX).cast_signed()
    }
}
