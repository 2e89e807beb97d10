//! How long to look before sleeping: as long as it has been paying off.
//!
//! A sleeper answers only after it has been woken, and waking a CPU that idles (in a virtual machine: that has halted)
//! takes longer than everything else together. A look that is to find a sleeper awake the next time must outlast
//! that, or two sides that call each other all the time sleep in turn for ever. So the first look is long; one that
//! finds something grants the next one twice the time it took; and one in vain makes the next waits go
//! to sleep at once, twice as many after every further one. Who waits for something slow looks almost never.
//!
//! The one who is waited for may be on the same CPU. So after the first looks the CPU is given away between them,
//! and if that was what helped, from the first on. (Two that sleep in turn on one CPU are never moved apart; two
//! that can both run are, as soon as the scheduler balances.) Where there is no other CPU to be moved to, they sleep.

use crate::client::now;
use crate::limits::{SPIN_MAX, SPIN_PROBE};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// Looks before the CPU is given away, and then between two times. A `pause` takes 10 to 50 ns on current x86.
const LOOKS: u32 = 50;
const LOOKS_BETWEEN: u32 = 8;
/// Waits without a look after many looks in vain.
const SKIPS_MAX: u32 = 31;
/// Giving the CPU away takes longer than this only if somebody took it.
const SWITCH: Duration = Duration::from_nanos(1500);
/// Looks that give the CPU away at once after the other side was found on this one.
const LOOKS_BESIDE: u32 = 16;
/// Waits without a look where the other side needs this CPU, the only one: to sleep lets it run as well, for less. And
/// looks in a row that must have shown that: where it has a CPU of its own, to wake that takes much longer.
const SKIPS_BEHIND: u32 = 63;
const BEHIND: u32 = 8;
/// Two that call each other do not keep the CPU for so long: somebody else needs it.
const BUSY: Duration = Duration::from_micros(500);
/// Waits without a look when that happens again and again.
const SKIPS_BUSY: u32 = 1023;

/// An adaptive spinner. All-zero is a fresh one: it looks.
#[derive(Debug, Default)]
pub struct Spin {
    /// Nanoseconds of the next look; 0: [`SPIN_PROBE`].
    grant: AtomicU32,
    /// Waits that go to sleep at once before the next look.
    skips: AtomicU32,
    /// How many they will be after the next look in vain.
    penalty: AtomicU32,
    /// Looks that are still to give the CPU away at once, as the other side was found on it.
    beside: AtomicU32,
    /// Looks in a row that ended so, and with nothing to do for this CPU but what was waited for.
    behind: AtomicU32,
    /// Threads that look now. One that is ended, or jumps out of a signal handler, while it looks is counted
    /// for ever: then fewer look.
    lookers: AtomicU32,
}

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Found(Duration),
    /// After the other side was let run on this CPU.
    Beside,
    /// The same, and others had it for nearly all the time, and there is no other CPU for this thread.
    Behind,
    InVain,
    /// Others want the CPU.
    Busy,
}

impl Spin {
    pub const fn new() -> Spin {
        Spin {
            grant: AtomicU32::new(0),
            skips: AtomicU32::new(0),
            penalty: AtomicU32::new(0),
            beside: AtomicU32::new(0),
            behind: AtomicU32::new(0),
            lookers: AtomicU32::new(0),
        }
    }

    /// One that sleeps at once.
    #[cfg(test)]
    pub(crate) fn sleepy() -> Spin {
        Spin { skips: AtomicU32::new(u32::MAX), ..Spin::new() }
    }

    /// Looks until `found` says yes or the time is up, and learns from it.
    pub fn until(&self, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        let skips = self.skips.load(Ordering::Relaxed);
        if skips > 0 {
            self.skips.store(skips - 1, Ordering::Relaxed);
            return false;
        }
        // Too short to take a CPU from anybody.
        let is_beside = self.beside.load(Ordering::Relaxed) > 0;
        if !is_beside && (0..LOOKS).any(|_| looked(&mut found)) {
            self.learn(Look::Found(Duration::ZERO));
            return true;
        }
        // The one who is waited for needs a CPU as well.
        if self.lookers.fetch_add(1, Ordering::Relaxed) >= lookers_max() {
            self.lookers.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let look = self.look(&mut found);
        self.lookers.fetch_sub(1, Ordering::Relaxed);
        self.learn(look);
        matches!(look, Look::Found(_) | Look::Beside | Look::Behind) || found()
    }

    fn look(&self, found: &mut impl FnMut() -> bool) -> Look {
        let grant = match self.grant.load(Ordering::Relaxed) {
            0 => SPIN_PROBE,
            nanos => Duration::from_nanos(nanos.into()),
        };
        let start = now();
        let (mut time, mut given) = (Duration::ZERO, Duration::ZERO);
        while time < grant {
            rustix::thread::sched_yield();
            let has_found = (0..LOOKS_BETWEEN).any(|_| looked(found));
            let before = time;
            time = now().saturating_sub(start);
            let gap = time - before;
            if gap > BUSY {
                return Look::Busy;
            }
            if gap > SWITCH {
                given += gap;
            }
            if has_found {
                return match gap > SWITCH {
                    true if 4 * given >= 3 * time && has_one_cpu() => Look::Behind,
                    true => Look::Beside,
                    false => Look::Found(time),
                };
            }
        }
        Look::InVain
    }

    fn learn(&self, look: Look) {
        let penalty = self.penalty.load(Ordering::Relaxed);
        let behind = self.behind.load(Ordering::Relaxed);
        let (grant, skips, next) = match look {
            Look::Found(time) => ((2 * time).clamp(SPIN_MAX, SPIN_PROBE), 0, 0),
            Look::Beside => (SPIN_PROBE, 0, 0),
            Look::Behind if behind >= BEHIND => (SPIN_PROBE, SKIPS_BEHIND, 0),
            Look::Behind => (SPIN_PROBE, 0, 0),
            Look::InVain => (SPIN_PROBE, penalty, (2 * penalty + 1).min(SKIPS_MAX.max(penalty))),
            Look::Busy => {
                let skips = penalty.max(SKIPS_MAX);
                (SPIN_PROBE, skips, (2 * skips + 1).min(SKIPS_BUSY))
            }
        };
        let grant = u32::try_from(grant.as_nanos()).unwrap_or(0);
        let beside = match (look, self.beside.load(Ordering::Relaxed)) {
            (Look::Beside | Look::Behind, 0) => LOOKS_BESIDE,
            (Look::Beside | Look::Behind, left) => left - 1,
            _ => 0,
        };
        let behind = if look == Look::Behind { (behind + 1).min(BEHIND) } else { 0 };
        let words = [&self.grant, &self.skips, &self.penalty, &self.beside, &self.behind];
        // Usually nothing changes, and others who read this keep their copy.
        for (word, value) in words.into_iter().zip([grant, skips, next, beside, behind]) {
            if word.load(Ordering::Relaxed) != value {
                word.store(value, Ordering::Relaxed);
            }
        }
    }
}

/// May this thread run on one CPU only, as it is now?
fn has_one_cpu() -> bool {
    rustix::thread::sched_getaffinity(None).is_ok_and(|set| set.count() == 1)
}

/// One look.
fn looked(found: &mut impl FnMut() -> bool) -> bool {
    core::hint::spin_loop();
    found()
}

/// One less than the CPUs that this process may use (when it first asked), and one at least: alone on its CPU it
/// may still be waiting for somebody on another, or give the CPU to somebody on its own.
fn lookers_max() -> u32 {
    static MAX: AtomicU32 = AtomicU32::new(0);
    let mut max = MAX.load(Ordering::Relaxed);
    if max == 0 {
        let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
        max = cpus.saturating_sub(1).max(1);
        MAX.store(max, Ordering::Relaxed);
    }
    max
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many waits go to sleep at once after looks that ended so.
    fn skips(looks: &[Look]) -> u32 {
        let spin = Spin::new();
        looks.iter().for_each(|look| spin.learn(*look));
        spin.skips.load(Ordering::Relaxed)
    }

    #[test]
    fn the_only_cpu_is_left_to_others_when_a_row_of_looks_has_shown_that_they_need_it() {
        let row = [Look::Behind; BEHIND as usize + 1];
        assert_eq!(skips(&row), SKIPS_BEHIND);
        assert_eq!(skips(&row[1..]), 0, "one time is no evidence where a CPU takes long to wake");
        for other in [Look::Found(Duration::ZERO), Look::Beside, Look::InVain] {
            let mut broken = row;
            broken[1] = other;
            assert_eq!(skips(&broken), 0, "{other:?} in between");
        }
    }

    #[test]
    fn looks_in_vain_become_rare_and_one_that_finds_something_makes_them_frequent_again() {
        let in_vain = [Look::InVain; 9];
        let after = core::array::from_fn(|count| skips(&in_vain[..=count]));
        assert_eq!(after, [0, 1, 3, 7, 15, 31, 31, 31, 31]);
        assert_eq!(skips(&[Look::InVain, Look::InVain, Look::Found(Duration::ZERO)]), 0);
    }
}
