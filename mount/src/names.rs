//! Names that the kernel may remember for a moment, and when it does not any more.
//!
//! What the kernel remembers of a name it tells whoever looks, without asking: so only names in directories are lent that everybody may
//! search. It cannot be made to forget one: the notification for that waits for the directory's lock, which a program may hold
//! that waits for us. So names are lent for [`NAME_LENT_FOR`] only, and what would make another of one waits until that is over.
//!
//! The time counts from when the thread that asked takes up the reply. No message says when it does. It has when it sleeps, is gone, asks
//! again, or has used the CPU for longer than that takes ([`Progress`]).

use crate::limits::{NAME_LENT_FOR, NAMES_LENT_THREADS_MAX, NAMES_LENT_TO_MAX, RUNS_WITHIN};
use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Pause between looks at whether threads have taken up what they were told.
const LOOK_PAUSE: Duration = Duration::from_micros(200);
/// CPU time in nanoseconds that is many times what taking up a reply needs.
const LONG: u64 = 2_000_000;

/// Nanoseconds since some moment.
type Nanos = u64;

/// Which names the kernel may remember.
pub(crate) struct Names {
    state: Mutex<State>,
    progress: fn(u32) -> Progress,
}

#[derive(Debug, Default)]
struct State {
    /// When a name in each directory was lent last.
    directories: HashMap<u64, Nanos>,
    /// Threads that may not have taken up what they were told last.
    threads: HashMap<u32, Thread>,
    /// What was lent before this moment is over.
    over: Nanos,
    /// What was lent before the first is over at the second.
    ending: (Nanos, Nanos),
}

#[derive(Clone, Copy, Debug)]
struct Thread {
    lent: Nanos,
    /// Has the reply been written?
    is_told: bool,
    /// CPU time that it had used when it was looked at first.
    used: Option<u64>,
}

/// How far a thread has come that has been told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is past that: taking up a reply does not sleep.
    Past,
    /// It runs, or would if it were its turn, and has used that much CPU time in nanoseconds.
    Runs(u64),
    Unknown,
}

impl Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Default for Names {
    fn default() -> Names {
        Names { state: Mutex::default(), progress: crate::status::progress }
    }
}

impl Names {
    /// Notes that thread `tid` is about to be lent a name in `directory`, for which it has asked. False: there is no room for more.
    ///
    /// To be called while it is certain that the name is what is told, and followed by [`Names::told`].
    #[must_use]
    pub(crate) fn lend(&self, directory: u64, tid: u32, now: Nanos) -> bool {
        let mut state = self.state();
        let is_full = state.directories.len() >= NAMES_LENT_TO_MAX
            && !state.directories.contains_key(&directory)
            || state.threads.len() >= NAMES_LENT_THREADS_MAX && !state.threads.contains_key(&tid);
        if !is_full {
            state.directories.insert(directory, now);
            // It asks again, so it has taken up what it was told before.
            state.threads.insert(tid, Thread { lent: now, is_told: false, used: None });
        }
        !is_full
    }

    /// The reply to thread `tid` has been written, or never will be.
    pub(crate) fn told(&self, tid: u32) {
        if let Some(thread) = self.state().threads.get_mut(&tid) {
            thread.is_told = true;
        }
    }

    /// A name may be carried from one directory to the other, and stay lent.
    pub(crate) fn carry(&self, from: u64, to: u64) {
        let mut state = self.state();
        if let Some(lent) = state.directories.get(&from).copied() {
            let before = state.directories.entry(to).or_default();
            *before = lent.max(*before);
        }
    }

    /// To be called now and then, so that what has been over for long is waited for by nobody.
    pub(crate) fn settle(&self, now: Nanos) {
        let mut state = self.state();
        if now < state.ending.1 {
            return;
        }
        state.over = state.over.max(state.ending.0);
        let State { over, ref mut directories, .. } = *state;
        directories.retain(|_, lent| *lent >= over);
        state.look(now, now, self.progress);
        let oldest = state.threads.values().map(|thread| thread.lent).min().unwrap_or(now);
        state.ending = (oldest, now.saturating_add(lent_for()));
    }

    /// Waits until no name is lent any more in those of `directories` in which some may have been; nothing is lent in them meanwhile.
    pub(crate) fn wait(&self, directories: &[u64], now: impl Fn() -> Nanos) {
        let last = {
            let state = self.state();
            let lent = directories.iter().filter_map(|one| state.directories.get(one));
            lent.copied().filter(|lent| *lent >= state.over).max()
        };
        if let Some(last) = last {
            self.wait_since(last, now);
        }
    }

    /// As [`Names::wait`], of all directories.
    pub(crate) fn wait_for_all(&self, now: impl Fn() -> Nanos) {
        let last = {
            let state = self.state();
            state.directories.values().copied().filter(|lent| *lent >= state.over).max()
        };
        if let Some(last) = last {
            self.wait_since(last, now);
        }
    }

    /// Waits until what was lent at `last` or before is over.
    fn wait_since(&self, last: Nanos, now: impl Fn() -> Nanos) {
        loop {
            let mut state = self.state();
            state.look(last, now(), self.progress);
            if state.threads.values().all(|thread| thread.lent > last) {
                break;
            }
            drop(state);
            std::thread::sleep(LOOK_PAUSE);
        }
        std::thread::sleep(NAME_LENT_FOR);
        let mut state = self.state();
        state.over = state.over.max(last + 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Drops threads that have taken up what they were told at `last` or before.
    fn look(&mut self, last: Nanos, now: Nanos, progress: fn(u32) -> Progress) {
        self.threads.retain(|tid, thread| {
            if thread.lent > last || !thread.is_told {
                return true;
            }
            // One that has no CPU for so long is late with everything else, too.
            now < thread.lent.saturating_add(nanos(RUNS_WITHIN))
                && match progress(*tid) {
                    Progress::Past => false,
                    Progress::Runs(used) => used < *thread.used.get_or_insert(used) + LONG,
                    Progress::Unknown => true,
                }
        });
    }
}

fn lent_for() -> Nanos {
    nanos(NAME_LENT_FOR)
}

fn nanos(time: Duration) -> Nanos {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::time::Instant;

    thread_local! {
        static PROGRESS: Cell<Progress> = const { Cell::new(Progress::Past) };
    }

    fn names() -> Names {
        Names { progress: |_| PROGRESS.get(), ..Names::default() }
    }

    /// Would somebody wait for names in `directory`?
    fn is_lent(names: &Names, directory: u64) -> bool {
        let state = names.state();
        state.directories.get(&directory).is_some_and(|lent| *lent >= state.over)
    }

    #[test]
    fn what_has_been_over_for_long_is_waited_for_by_nobody() {
        let (names, step) = (names(), lent_for());
        assert!(names.lend(5, 1, step));
        names.settle(2 * step);
        names.settle(4 * step);
        names.settle(6 * step);
        assert!(is_lent(&names, 5), "the thread has not been told yet");
        names.told(1);
        names.settle(8 * step);
        assert!(is_lent(&names, 5), "the thread may have taken it up this moment");
        names.settle(9 * step - 1);
        assert!(is_lent(&names, 5));
        names.settle(9 * step);
        assert!(!is_lent(&names, 5));
        assert_eq!(names.state().directories.len(), 0);
        names.wait(&[5], || unreachable!("nothing is lent"));
    }

    #[test]
    fn a_thread_that_runs_has_taken_it_up_after_a_while_of_cpu() {
        let (names, step) = (names(), lent_for());
        assert!(names.lend(5, 1, step));
        names.told(1);
        let mut now = step;
        let mut at = |progress| {
            PROGRESS.set(progress);
            now += step;
            names.settle(now);
            names.state().threads.len()
        };
        let base = 7;
        assert_eq!(at(Progress::Runs(base)), 1);
        assert_eq!(at(Progress::Unknown), 1);
        assert_eq!(at(Progress::Runs(base + LONG - 1)), 1);
        assert_eq!(at(Progress::Runs(base + LONG)), 0);
        assert!(names.lend(5, 1, now));
        names.told(1);
        let late = now + nanos(RUNS_WITHIN);
        PROGRESS.set(Progress::Unknown);
        names.settle(late - 1);
        assert_eq!(names.state().threads.len(), 1);
        names.settle(late + step);
        assert_eq!(names.state().threads.len(), 0, "nobody waits for it any longer");
    }

    #[test]
    fn what_is_lent_is_waited_for_from_when_it_was_taken_up() {
        let names = names();
        let start = Instant::now();
        let now = || nanos(start.elapsed());
        let waited = |directories: &[u64]| {
            let before = Instant::now();
            names.wait(directories, now);
            before.elapsed() >= NAME_LENT_FOR
        };
        assert!(names.lend(5, 1, now()));
        names.told(1);
        assert!(!waited(&[6, 7]), "nothing is lent there");
        assert!(waited(&[6, 5]));
        assert!(!waited(&[5]), "once is enough");
        assert!(names.lend(5, 1, now()));
        names.told(1);
        names.carry(5, 6);
        names.carry(7, 6);
        assert!(waited(&[6]), "its name was carried there");
        assert!(!waited(&[5, 6, 7]));
        assert!(names.lend(9, 2, now()));
        names.told(2);
        names.wait_for_all(now);
        assert!(!waited(&[9]));
    }

    #[test]
    fn who_asks_again_has_taken_up_what_it_was_told_before() {
        let names = names();
        PROGRESS.set(Progress::Unknown);
        assert!(names.lend(5, 1, 10) && names.lend(6, 1, 20));
        names.told(1);
        let before = Instant::now();
        names.wait(&[5], || 30);
        let waited = before.elapsed();
        assert!(waited >= NAME_LENT_FOR && waited < RUNS_WITHIN, "{waited:?}");
        assert!(is_lent(&names, 6));
    }

    #[test]
    fn what_is_lent_is_bounded() {
        let names = names();
        let threads = u32::try_from(NAMES_LENT_THREADS_MAX).unwrap();
        let lent = (0..=threads).filter(|tid| names.lend(5, *tid, 1)).count();
        assert_eq!(lent, NAMES_LENT_THREADS_MAX);
        let directories = NAMES_LENT_TO_MAX as u64;
        let lent = (5..=5 + directories).filter(|one| names.lend(*one, 0, 1)).count();
        assert_eq!(lent, NAMES_LENT_TO_MAX);
    }
}
