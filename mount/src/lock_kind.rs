//! Tells flock(2) from fcntl(2) locks, which the crate `fuser` does not (it drops `lk_flags`).
//!
//! flock() covers the whole file, so any other range is a record lock. For the whole range the thread that
//! waits for our answer is asked: `/proc/<tid>/syscall` names the system call it is in. Where that cannot be read
//! (it needs the right to trace) the lock is taken for a record lock: owners of the two kinds differ,
//! so exclusion still holds, but flock() then also excludes fcntl() and can get EDEADLK.

use crate::agent::LockKind;
use crate::limits::{SYSCALL_LOOKS, SYSCALL_PATIENCE, SYSCALL_PAUSE};
use std::time::Instant;

/// End of a lock to the end of the file (OFFSET_MAX).
const TO_THE_END: u64 = i64::MAX as u64;

/// Numbers of flock(2): of this machine, and of its 32-bit programs. Those of the other
/// table cannot be mistaken: no other call with one of these numbers takes a lock.
#[cfg(target_arch = "x86_64")]
const FLOCK: &[i64] = &[libc::SYS_flock, 143];
#[cfg(not(target_arch = "x86_64"))]
const FLOCK: &[i64] = &[libc::SYS_flock];

/// The kind of the lock that thread `pid` asks for.
pub(crate) fn of_request(pid: u32, start: u64, end: u64) -> LockKind {
    let whole = start == 0 && end == TO_THE_END;
    if whole && current_call(pid).is_some_and(|number| FLOCK.contains(&number)) {
        LockKind::Flock
    } else {
        LockKind::Record
    }
}

/// The system call that thread `pid` is waiting in.
fn current_call(pid: u32) -> Option<i64> {
    let path = format!("/proc/{pid}/syscall");
    let mut looks = 0;
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).ok()?;
        if !text.starts_with("running") {
            return call_number(&text);
        }
        // It has handed us the request but does not sleep yet. On a busy machine it may wait long for a CPU to do so;
        // to guess would let a flock() be a record lock, which does not exclude it.
        looks += 1;
        if looks < SYSCALL_LOOKS {
            std::thread::yield_now();
        } else if start.elapsed() < SYSCALL_PATIENCE {
            std::thread::sleep(SYSCALL_PAUSE);
        } else {
            return None;
        }
    }
}

/// The first word of a syscall file: a number, -1 if the thread is in none.
fn call_number(text: &str) -> Option<i64> {
    text.split_ascii_whitespace().next()?.parse().ok().filter(|number| *number >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_first_word() {
        let check = |text: &str, expected| assert_eq!(call_number(text), expected, "{text:?}");
        check("73 0x3 0x2 0x0 0x7f39 0x0 0x0 0x7ffd 0x7f3\n", Some(73));
        check("-1 0x7ffd 0x7f3\n", None);
        check("running\n", None);
        check("", None);
    }

    #[test]
    fn a_part_of_a_file_is_never_flocked() {
        assert_eq!(of_request(1, 0, 9), LockKind::Record);
        assert_eq!(of_request(1, 1, TO_THE_END), LockKind::Record);
        assert_eq!(of_request(u32::MAX, 0, TO_THE_END), LockKind::Record);
    }
}
