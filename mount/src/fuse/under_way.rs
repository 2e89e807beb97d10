//! Requests that are being served, and the signals that interrupt those who wait for them.
//!
//! A program that waits for a lock gives up at any signal, and its handler runs (fcntl(2), flock(2)). All other requests go
//! on, as with a local file system, unless the program is to die: then the kernel is told after a moment that its request
//! has failed, whatever becomes of it, so that a program can always be killed, also when a server does not answer. (Not
//! sooner: what a dying program's closing of its files does, above all to locks, is done before others hear of its death.)

use crate::limits::{EARLY_INTERRUPTS_MAX, INTERRUPT_LOOK, INTERRUPT_LOOK_MAX, KILLED_PATIENCE};
use m3ipc::Interrupt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is being served in one session.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    state: Mutex<State>,
    /// Somebody has been interrupted, or the session has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: BTreeMap<u64, Served>,
    /// Interrupts of requests that are not there: not yet, as another thread has just read them, or not any more.
    early: BTreeSet<u64>,
    /// A new one has come since the watch has looked.
    is_new: bool,
    has_ended: bool,
}

/// A request that is being served.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// Where it was read, and is to be answered.
    pub(crate) device: usize,
    /// The thread that waits for the answer; 0 if that is not known.
    pub(crate) pid: u32,
    /// Of a call that any signal ends.
    pub(crate) interrupt: Option<Arc<Interrupt>>,
    interrupted: Option<Instant>,
}

impl Served {
    pub(crate) fn new(device: usize, pid: u32, interrupt: Option<Arc<Interrupt>>) -> Served {
        Served { device, pid, interrupt, interrupted: None }
    }
}

/// What the watch does for the session.
pub(crate) trait Watched {
    /// Ends the call that is made with `interrupt`.
    fn interrupt(&self, interrupt: &Interrupt);
    /// Is the thread about to die?
    fn is_dying(&self, pid: u32) -> bool;
    /// Answers a request, which nobody else will.
    fn give_up(&self, unique: u64, served: &Served);
}

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is served from now on.
    pub(crate) fn begin(&self, unique: u64, mut served: Served) {
        let mut state = self.lock();
        if state.early.remove(&unique) {
            served.interrupted = Some(Instant::now());
            state.is_new = true;
            self.changed.notify_one();
        }
        state.requests.insert(unique, served);
    }

    /// It has been served. False: it has been answered meanwhile, as nobody waits for it any more.
    pub(crate) fn end(&self, unique: u64) -> bool {
        self.lock().requests.remove(&unique).is_some()
    }

    /// Who waits for request `unique` has got a signal.
    pub(crate) fn interrupt(&self, unique: u64) {
        let mut state = self.lock();
        match state.requests.get_mut(&unique) {
            Some(served) => {
                served.interrupted.get_or_insert_with(Instant::now);
                state.is_new = true;
                self.changed.notify_one();
            }
            None => {
                // Those of requests that have ended stay until others push them out. Later requests have greater numbers.
                state.early.insert(unique);
                if state.early.len() > EARLY_INTERRUPTS_MAX {
                    state.early.pop_first();
                }
            }
        }
    }

    /// Looks after those that are interrupted, until the session ends.
    pub(crate) fn watch(&self, session: &impl Watched) {
        let mut pause = INTERRUPT_LOOK;
        loop {
            let Some(interrupted) = self.next_look(&mut pause) else { return };
            for (unique, served) in interrupted {
                if let Some(interrupt) = &served.interrupt {
                    // Again and again: a thread that is just about to wait does not notice.
                    session.interrupt(interrupt);
                }
                let since = served.interrupted.map_or(Duration::ZERO, |since| since.elapsed());
                if since >= KILLED_PATIENCE && session.is_dying(served.pid) && self.end(unique) {
                    session.give_up(unique, &served);
                }
            }
        }
    }

    /// Waits until it is time to look, and returns what is interrupted then. None: the session has ended.
    fn next_look(&self, pause: &mut Duration) -> Option<Vec<(u64, Served)>> {
        let mut state = self.lock();
        loop {
            if state.has_ended {
                return None;
            }
            if std::mem::take(&mut state.is_new) {
                *pause = INTERRUPT_LOOK;
                break;
            }
            let has_some = state.requests.values().any(|served| served.interrupted.is_some());
            if !has_some {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.changed.wait_timeout(state, *pause);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() {
                *pause = (*pause * 2).min(INTERRUPT_LOOK_MAX);
                break;
            }
        }
        let interrupted = state.requests.iter().filter(|(_, served)| served.interrupted.is_some());
        Some(interrupted.map(|(unique, served)| (*unique, served.clone())).collect())
    }

    /// The session has ended: nobody waits for anything.
    pub(crate) fn close(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    #[derive(Debug, PartialEq, Eq)]
    enum Event {
        Interrupted,
        GivenUp(u64, usize),
    }

    /// Threads with an even number are about to die.
    struct Session(Mutex<Sender<Event>>);

    impl Session {
        fn tell(&self, event: Event) {
            self.0.lock().unwrap().send(event).unwrap();
        }
    }

    impl Watched for Session {
        fn interrupt(&self, _: &Interrupt) {
            self.tell(Event::Interrupted);
        }

        fn is_dying(&self, pid: u32) -> bool {
            pid.is_multiple_of(2)
        }

        fn give_up(&self, unique: u64, served: &Served) {
            self.tell(Event::GivenUp(unique, served.device));
        }
    }

    /// Runs `act` beside a watch; what the watch did.
    fn watched(act: impl FnOnce(&UnderWay)) -> Vec<Event> {
        let under_way = UnderWay::default();
        let (tell, told) = channel();
        let session = Session(Mutex::new(tell));
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| under_way.watch(&session));
            act(&under_way);
            while under_way.lock().is_new {
                std::thread::yield_now();
            }
            under_way.close();
            watch.join().unwrap();
        });
        drop(session);
        told.into_iter().collect()
    }

    fn lock_wait(pid: u32) -> Served {
        Served::new(0, pid, Some(Arc::new(Interrupt::new())))
    }

    #[test]
    fn a_wait_for_a_lock_is_interrupted_and_nothing_else() {
        let events = watched(|under_way| {
            under_way.begin(1, Served::new(0, 1, None));
            under_way.begin(2, lock_wait(1));
            under_way.begin(3, lock_wait(1));
            under_way.interrupt(1);
            under_way.interrupt(2);
        });
        assert!(!events.is_empty() && events.iter().all(|event| *event == Event::Interrupted));
    }

    #[test]
    fn the_request_of_a_thread_that_dies_is_answered_once() {
        let events = watched(|under_way| {
            under_way.begin(1, Served::new(7, 2, None));
            under_way.begin(2, Served::new(0, 2, None));
            under_way.interrupt(1);
            under_way.interrupt(1);
            while under_way.lock().requests.contains_key(&1) {
                std::thread::yield_now();
            }
            assert!(!under_way.end(1), "it has been answered");
            assert!(under_way.end(2), "that one was not interrupted");
        });
        assert_eq!(events, [Event::GivenUp(1, 7)]);
    }

    #[test]
    fn an_interrupt_may_come_before_its_request_and_late_ones_are_bounded() {
        let events = watched(|under_way| {
            for unique in 0..10_000 {
                under_way.interrupt(unique);
            }
            assert_eq!(under_way.lock().early.len(), EARLY_INTERRUPTS_MAX);
            under_way.begin(9_999, Served::new(3, 2, None));
            while under_way.lock().requests.contains_key(&9_999) {
                std::thread::yield_now();
            }
            under_way.begin(0, Served::new(3, 2, None));
            assert!(under_way.end(0), "pushed out: it is served to its end");
        });
        assert_eq!(events, [Event::GivenUp(9_999, 3)]);
    }

    #[test]
    fn who_gets_another_signal_that_kills_is_found_by_looking_again() {
        let under_way = UnderWay::default();
        under_way.begin(1, Served::new(0, 1, None));
        under_way.interrupt(1);
        let mut pause = INTERRUPT_LOOK;
        for _ in 0..4 {
            let found = under_way.next_look(&mut pause).unwrap();
            assert_eq!(found.len(), 1);
        }
        assert_eq!(pause, INTERRUPT_LOOK * 8, "more and more rarely");
    }
}
