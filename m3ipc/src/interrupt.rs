//! `Interrupt`: ends the wait of a call from another thread, as a signal to the thread that waits would.

use core::sync::atomic::{AtomicU32, Ordering};

/// One call at a time can be made with it ([`crate::Sendrec::sendrec_until`]), and any thread can interrupt that. Once
/// interrupted it stays so: a call that is made with it later ends as soon as it would wait.
#[derive(Debug, Default)]
pub struct Interrupt {
    /// [`WANTED`], [`MARKING`], and the number of the lane on which the call waits plus one.
    state: AtomicU32,
}

/// The call is to end.
const WANTED: u32 = 1 << 31;
/// A thread does something to the lane: it must not become another call's.
const MARKING: u32 = 1 << 30;
const LANE: u32 = MARKING - 1;

impl Interrupt {
    pub const fn new() -> Interrupt {
        Interrupt { state: AtomicU32::new(0) }
    }

    /// Has somebody asked for the end?
    pub fn is_wanted(&self) -> bool {
        self.state.load(Ordering::Acquire) & WANTED != 0
    }

    /// From now on the call is on lane `number`. True: it is to end.
    pub(crate) fn attach(&self, number: u16) -> bool {
        self.state.fetch_add(u32::from(number) + 1, Ordering::AcqRel) & WANTED != 0
    }

    /// The lane is about to be another call's. Waits for a thread that has just seen this one on it.
    pub(crate) fn detach(&self) {
        loop {
            let before = self.state.load(Ordering::Relaxed) & !MARKING;
            let after = before & !LANE;
            if self
                .state
                .compare_exchange_weak(before, after, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                return;
            }
            rustix::thread::sched_yield();
        }
    }

    /// Asks for the end, and calls `mark` with the number of the lane on which the call waits, if it does. For ports; a port
    /// without lanes has none.
    pub fn mark(&self, mark: impl FnOnce(u16)) {
        if self.state.fetch_or(WANTED | MARKING, Ordering::AcqRel) & MARKING != 0 {
            // Another thread is at it.
            return;
        }
        // Attached only after this, it sees that it is wanted.
        let lane = self.state.load(Ordering::Acquire) & LANE;
        if let Some(number) = lane.checked_sub(1).and_then(|lane| u16::try_from(lane).ok()) {
            mark(number);
        }
        self.state.fetch_and(!MARKING, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(interrupt: &Interrupt) -> Option<u16> {
        let mut marked = None;
        interrupt.mark(|number| marked = Some(number));
        marked
    }

    #[test]
    fn the_lane_of_the_call_is_marked_and_no_other() {
        let interrupt = Interrupt::new();
        assert!(!interrupt.attach(0) && !interrupt.is_wanted());
        assert_eq!(marked(&interrupt), Some(0));
        interrupt.detach();
        assert_eq!(marked(&interrupt), None, "there is no call");
        assert!(interrupt.attach(u16::MAX), "it stays wanted");
        assert_eq!(marked(&interrupt), Some(u16::MAX));
    }

    #[test]
    fn a_lane_is_not_let_go_while_it_is_being_marked() {
        let interrupt = Interrupt::new();
        interrupt.attach(5);
        let is_marked = core::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            interrupt.mark(|_| {
                let leaver = scope.spawn(|| {
                    interrupt.detach();
                    is_marked.load(Ordering::SeqCst)
                });
                for _ in 0..100 {
                    std::thread::yield_now();
                    assert!(!leaver.is_finished());
                }
                is_marked.store(true, Ordering::SeqCst);
            });
        });
        assert_eq!(interrupt.state.load(Ordering::Relaxed), WANTED);
    }
}
