//! How long to look before sleeping: as long as it has been paying off, and never with one CPU.

use core::sync::atomic::{AtomicU32, Ordering};

/// Looks at most; at about 50 ns each (`pause` on current x86) this is `limits::SPIN_MAX_NS`.
const LOOKS_MAX: u32 = 400;
/// Looks of an occasional try after spinning has stopped paying off.
const LOOKS_PROBE: u32 = 40;
/// Every so many waits is such a try.
const PROBE_EVERY: u32 = 32;

/// An adaptive spinner. All-zero is a fresh one: it probes first.
#[derive(Debug, Default)]
pub struct Spin {
    /// Looks granted now.
    looks: AtomicU32,
    waits: AtomicU32,
}

impl Spin {
    pub const fn new() -> Spin {
        Spin { looks: AtomicU32::new(0), waits: AtomicU32::new(0) }
    }

    /// Looks until `found` says yes or the budget is used up, and learns from it.
    pub fn until(&self, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        let budget = self.budget();
        for _ in 0..budget {
            core::hint::spin_loop();
            if found() {
                self.looks.store((budget * 2).clamp(LOOKS_PROBE, LOOKS_MAX), Ordering::Relaxed);
                return true;
            }
        }
        if budget > 0 {
            self.looks.store(budget / 2, Ordering::Relaxed);
        }
        false
    }

    fn budget(&self) -> u32 {
        let waits = self.waits.fetch_add(1, Ordering::Relaxed);
        let looks = self.looks.load(Ordering::Relaxed);
        let budget = if looks < LOOKS_PROBE && waits.is_multiple_of(PROBE_EVERY) {
            LOOKS_PROBE
        } else {
            looks
        };
        if budget == 0 || one_cpu() { 0 } else { budget }
    }
}

/// May this process use only one CPU? Then nobody can answer while we look.
fn one_cpu() -> bool {
    static CPUS: AtomicU32 = AtomicU32::new(0);
    let mut cpus = CPUS.load(Ordering::Relaxed);
    if cpus == 0 {
        cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
        CPUS.store(cpus, Ordering::Relaxed);
    }
    cpus < 2
}
