//! Deadlines of POSIX, as the nanoseconds from now that the servers keep.

use calls::ipc::FOREVER;
use m3ipc::Errno;
use m3ipc::errno::numbers::EINVAL;
use rustix::time::ClockId;

/// `struct timespec` of 64-bit Linux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Timespec {
    pub sec: i64,
    pub nsec: i64,
}

/// The clock an absolute deadline is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    Realtime,
    Monotonic,
}

/// How long a call may wait for its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// For ever.
    Never,
    /// Not at all: the `try` form.
    Now,
    /// Until this time of this clock (`sem_clockwait`, `mq_timedsend`).
    At(Clock, Timespec),
    /// This long (`semtimedop`).
    After(Timespec),
}

const NANOS: i64 = 1_000_000_000;

impl Deadline {
    /// What the servers want: [`FOREVER`], 0, or nanoseconds from now. A deadline that is over is 1,
    /// not 0: the server then still does what it can do at once, and else answers ETIMEDOUT.
    ///
    /// # Errors
    /// EINVAL: not a time.
    pub fn wait_ns(self) -> Result<u64, Errno> {
        match self {
            Deadline::Never => Ok(FOREVER),
            Deadline::Now => Ok(0),
            Deadline::At(clock, at) => {
                check_nanos(at)?;
                Ok(until(now(clock), at))
            }
            Deadline::After(time) => {
                check_nanos(time)?;
                if time.sec < 0 {
                    return Err(Errno::new(EINVAL));
                }
                Ok(nanos(time.sec, time.nsec))
            }
        }
    }

    /// Does the wait end by itself?
    pub fn is_timed(self) -> bool {
        matches!(self, Deadline::At(..) | Deadline::After(_))
    }
}

/// The time of `clock`, now.
pub fn now(clock: Clock) -> Timespec {
    let time = rustix::time::clock_gettime(match clock {
        Clock::Realtime => ClockId::Realtime,
        Clock::Monotonic => ClockId::Monotonic,
    });
    Timespec { sec: time.tv_sec, nsec: time.tv_nsec }
}

fn check_nanos(time: Timespec) -> Result<(), Errno> {
    if (0..NANOS).contains(&time.nsec) { Ok(()) } else { Err(Errno::new(EINVAL)) }
}

/// Nanoseconds from `now` until `at`, at least 1, less than [`FOREVER`].
fn until(now: Timespec, at: Timespec) -> u64 {
    let (mut sec, mut nsec) = (at.sec.saturating_sub(now.sec), at.nsec.saturating_sub(now.nsec));
    if nsec < 0 {
        (sec, nsec) = (sec.saturating_sub(1), nsec.saturating_add(NANOS));
    }
    if sec < 0 { 1 } else { nanos(sec, nsec).max(1) }
}

/// Less than [`FOREVER`], whatever the arguments; 0 if they are negative.
fn nanos(sec: i64, nsec: i64) -> u64 {
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    unsigned(sec).saturating_mul(unsigned(NANOS)).saturating_add(unsigned(nsec)).min(FOREVER - 1)
}

#[cfg(test)]
mod tests {
    use super::{Clock, Deadline, FOREVER, Timespec, now, until};
    use m3ipc::errno::numbers::EINVAL;

    const fn time(sec: i64, nsec: i64) -> Timespec {
        Timespec { sec, nsec }
    }

    #[test]
    fn an_absolute_time_becomes_what_is_left_of_it() {
        let check = |now, at, left| assert_eq!(until(now, at), left, "{now:?} {at:?}");
        check(time(10, 5), time(10, 6), 1);
        check(time(10, 999_999_999), time(11, 0), 1);
        check(time(10, 0), time(12, 500), 2_000_000_500);
        check(time(10, 0), time(10, 0), 1);
        check(time(10, 1), time(10, 0), 1);
        check(time(10, 0), time(-5, 999), 1);
        check(time(0, 0), time(i64::MAX, 999_999_999), FOREVER - 1);
        check(time(-5, 0), time(i64::MAX, 0), FOREVER - 1);
        check(time(i64::MAX, 0), time(i64::MIN, 0), 1);
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for deadline in [
            Deadline::At(Clock::Realtime, time(1, -1)),
            Deadline::At(Clock::Monotonic, time(1, 1_000_000_000)),
            Deadline::After(time(-1, 0)),
            Deadline::After(time(0, i64::MAX)),
        ] {
            assert_eq!(
                deadline.wait_ns().map_err(|error| error.errno),
                Err(EINVAL),
                "{deadline:?}"
            );
        }
    }

    #[test]
    fn the_special_deadlines_are_what_the_servers_expect() {
        assert_eq!(Deadline::Never.wait_ns(), Ok(FOREVER));
        assert_eq!(Deadline::Now.wait_ns(), Ok(0));
        assert_eq!(Deadline::After(time(0, 0)).wait_ns(), Ok(0));
        assert_eq!(Deadline::After(time(1, 2)).wait_ns(), Ok(1_000_000_002));
        assert_eq!(Deadline::At(Clock::Realtime, time(0, 0)).wait_ns(), Ok(1));
        assert!(now(Clock::Realtime).sec > 1_000_000_000);
    }
}
