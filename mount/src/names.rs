//! Names that the kernel may remember for a moment, and when it does not any more.
//!
//! What the kernel remembers of a name it tells whoever looks, without asking: so only names in directories are lent that everybody may
//! search. It cannot be made to forget one: the notification for that waits for the directory's lock, which a program may hold
//! that waits for us. So names are lent for [`NAME_LENT_FOR`] only, and what would make another of one waits until that is over: recalls,
//! and this node's own changes, which others may see before our kernel does.
//!
//! The time counts from when the thread that asked takes up the reply. No message says when it does. It has when it sleeps, is gone, asks
//! again, or has used the CPU for longer than that takes ([`Progress`]). Who is told a listing may sleep in between: it has when it asks
//! for the rest, or is gone.
//!
//! A thread that changes names is lent none for a while: who removes a tree lists each directory, and would then wait for itself in each.

use crate::limits::{NAME_GOES_IN, NAMES_LENT_THREADS_MAX, NAMES_LENT_TO_MAX, QUIET, RUNS_WITHIN};
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
    /// When threads have changed names last.
    changers: HashMap<u32, Nanos>,
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
    /// It was told a listing.
    may_sleep: bool,
    /// CPU time that it had used when it was looked at first.
    used: Option<u64>,
}

/// How far a thread has come that has been told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is no more.
    Gone,
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
    /// Notes that thread `tid` is about to be lent a name in `directory`, for which it has asked, or with `may_sleep` a listing. False: it
    /// is not, as there is no room for more or it changes names.
    ///
    /// To be called while it is certain that the name is what is told, and followed by [`Names::told`].
    #[must_use]
    pub(crate) fn lend(
        &self,
        directory: u64,
        tid: u32,
        may_sleep: bool,
        now: impl Fn() -> Nanos,
    ) -> bool {
        let mut state = self.state();
        let lent = now();
        if state.changers.get(&tid).is_some_and(|changed| lent < changed + nanos(QUIET)) {
            state.threads.remove(&tid);
            return false;
        }
        let is_full = state.directories.len() >= NAMES_LENT_TO_MAX
            && !state.directories.contains_key(&directory)
            || state.threads.len() >= NAMES_LENT_THREADS_MAX && !state.threads.contains_key(&tid);
        if !is_full {
            state.directories.insert(directory, lent);
            // It asks again, so it has taken up what it was told before.
            let thread = Thread { lent, is_told: false, may_sleep, used: None };
            state.threads.insert(tid, thread);
        }
        !is_full
    }

    /// Thread `tid` asks again, and is lent nothing.
    pub(crate) fn asks(&self, tid: u32) {
        self.state().threads.remove(&tid);
    }

    /// Thread `tid` is about to change names: it is past what it was told.
    pub(crate) fn changes(&self, tid: u32, now: impl Fn() -> Nanos) {
        let mut state = self.state();
        state.threads.remove(&tid);
        let changed = now();
        if state.changers.len() >= NAMES_LENT_THREADS_MAX {
            state.changers.retain(|_, before| changed < *before + nanos(QUIET));
        }
        if state.changers.len() < NAMES_LENT_THREADS_MAX || state.changers.contains_key(&tid) {
            state.changers.insert(tid, changed);
        }
    }

    /// The reply to thread `tid` has been written, or never will be.
    pub(crate) fn told(&self, tid: u32) {
        if let Some(thread) = self.state().threads.get_mut(&tid) {
            thread.is_told = true;
        }
    }

    /// To be called now and then, so that what has been over for long is waited for by nobody.
    pub(crate) fn settle(&self, now: impl Fn() -> Nanos) {
        let begun = {
            let mut state = self.state();
            let begun = now();
            if begun < state.ending.1 {
                return;
            }
            state.over = state.over.max(state.ending.0);
            let State { over, ref mut directories, .. } = *state;
            directories.retain(|_, lent| *lent >= over);
            begun
        };
        self.look(begun, &now);
        let mut state = self.state();
        // What was lent since it began counts next time.
        let oldest = state.threads.values().map(|thread| thread.lent).min().unwrap_or(begun);
        state.ending = (oldest.min(begun), now().saturating_add(nanos(NAME_GOES_IN)));
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
        while !self.look(last, &now) {
            std::thread::sleep(LOOK_PAUSE);
        }
        std::thread::sleep(NAME_GOES_IN);
        let mut state = self.state();
        state.over = state.over.max(last + 1);
    }

    /// Drops threads that have taken up what they were told at `last` or before. Returns whether none of these is left.
    fn look(&self, last: Nanos, now: &impl Fn() -> Nanos) -> bool {
        let those: Vec<(u32, Thread)> = {
            let state = self.state();
            let all = state.threads.iter().map(|(tid, thread)| (*tid, *thread));
            all.filter(|(_, thread)| thread.lent <= last).collect()
        };
        let mut is_none_left = true;
        for (tid, thread) in those {
            // Not under the lock: who looks up names waits for that.
            let used = match (self.progress)(tid) {
                Progress::Gone => None,
                Progress::Past if thread.is_told && !thread.may_sleep => None,
                Progress::Runs(used) if thread.is_told && !thread.may_sleep => {
                    let first = thread.used.unwrap_or(used);
                    (used < first + LONG).then_some(Some(first))
                }
                Progress::Past | Progress::Runs(_) | Progress::Unknown => Some(thread.used),
            };
            // One that has no CPU for so long is late with everything else, too.
            let is_late = now() >= thread.lent.saturating_add(nanos(RUNS_WITHIN));
            let mut state = self.state();
            let Some(entry) = state.threads.get_mut(&tid) else { continue };
            if entry.lent != thread.lent {
                // It has asked again.
                is_none_left &= entry.lent > last;
                continue;
            }
            match used {
                Some(used) if !is_late => (entry.used, is_none_left) = (used, false),
                _ => drop(state.threads.remove(&tid)),
            }
        }
        is_none_left
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time, or the longest that can be counted.
pub(crate) fn nanos(time: Duration) -> Nanos {
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
        let (names, step) = (names(), nanos(NAME_GOES_IN));
        assert!(names.lend(5, 1, false, || step));
        names.settle(|| 2 * step);
        names.settle(|| 4 * step);
        names.settle(|| 6 * step);
        assert!(is_lent(&names, 5), "the thread has not been told yet");
        names.told(1);
        names.settle(|| 8 * step);
        assert!(is_lent(&names, 5), "the thread may have taken it up this moment");
        names.settle(|| 9 * step - 1);
        assert!(is_lent(&names, 5));
        names.settle(|| 9 * step);
        assert!(!is_lent(&names, 5));
        assert_eq!(names.state().directories.len(), 0);
        names.wait(&[5], || unreachable!("nothing is lent"));
    }

    #[test]
    fn who_changes_names_is_past_its_listing_and_is_lent_none_for_a_while() {
        let names = names();
        assert!(names.lend(5, 1, true, || 10));
        names.told(1);
        names.changes(1, || 20);
        // Its own listing is nothing to wait for; the time is.
        names.wait(&[5], || 20);
        assert!(!names.lend(6, 1, true, || 30) && !names.lend(6, 1, false, || 30));
        names.wait(&[6], || unreachable!("nothing is lent"));
        assert!(names.lend(6, 2, false, || 30), "another thread");
        assert!(!names.lend(6, 1, false, || 19 + nanos(QUIET)));
        assert!(names.lend(6, 1, false, || 20 + nanos(QUIET)));
        // Of too many some are lent what they will wait for.
        let threads = 10..10 + u32::try_from(2 * NAMES_LENT_THREADS_MAX).unwrap();
        threads.clone().for_each(|tid| names.changes(tid, || 20));
        assert_eq!(names.state().changers.len(), NAMES_LENT_THREADS_MAX);
        names.changes(7, || 20 + nanos(QUIET));
        assert_eq!(names.state().changers.len(), 1);
    }

    #[test]
    fn a_thread_that_runs_has_taken_it_up_after_a_while_of_cpu() {
        let (names, step) = (names(), nanos(NAME_GOES_IN));
        assert!(names.lend(5, 1, false, || step));
        names.told(1);
        let mut now = step;
        let mut at = |progress| {
            PROGRESS.set(progress);
            now += step;
            names.settle(|| now);
            names.state().threads.len()
        };
        let base = 7;
        assert_eq!(at(Progress::Runs(base)), 1);
        assert_eq!(at(Progress::Unknown), 1);
        assert_eq!(at(Progress::Runs(base + LONG - 1)), 1);
        assert_eq!(at(Progress::Runs(base + LONG)), 0);
        assert!(names.lend(5, 1, false, || now));
        names.told(1);
        let late = now + nanos(RUNS_WITHIN);
        PROGRESS.set(Progress::Unknown);
        names.settle(|| late - 1);
        assert_eq!(names.state().threads.len(), 1);
        names.settle(|| late + step);
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
            before.elapsed() >= NAME_GOES_IN
        };
        assert!(names.lend(5, 1, false, now));
        names.told(1);
        assert!(!waited(&[6, 7]), "nothing is lent there");
        assert!(waited(&[6, 5]));
        assert!(!waited(&[5]), "once is enough");
        assert!(names.lend(5, 1, false, now));
        names.told(1);
        assert!(!waited(&[6]) && waited(&[5]));
        assert!(names.lend(9, 2, false, now));
        names.told(2);
        names.wait_for_all(now);
        assert!(!waited(&[9]));
    }

    #[test]
    fn who_asks_again_has_taken_up_what_it_was_told_before() {
        let names = names();
        PROGRESS.set(Progress::Unknown);
        assert!(names.lend(5, 1, false, || 10) && names.lend(6, 1, false, || 20));
        names.told(1);
        let before = Instant::now();
        names.wait(&[5], || 30);
        let waited = before.elapsed();
        assert!(waited >= NAME_GOES_IN && waited < RUNS_WITHIN, "{waited:?}");
        assert!(is_lent(&names, 6));
    }

    #[test]
    fn who_is_told_a_listing_has_taken_it_up_when_it_asks_for_the_rest_or_is_gone() {
        let names = names();
        let count = || {
            names.look(1, &|| 1);
            names.state().threads.len()
        };
        for end in [true, false] {
            assert!(names.lend(5, 1, true, || 1));
            names.told(1);
            for progress in [Progress::Past, Progress::Runs(1), Progress::Runs(1 + LONG)] {
                PROGRESS.set(progress);
                assert_eq!(count(), 1);
            }
            if end {
                names.asks(1)
            } else {
                PROGRESS.set(Progress::Gone)
            }
            assert_eq!(count(), 0);
        }
    }

    #[test]
    fn what_is_lent_is_bounded() {
        let names = names();
        let threads = u32::try_from(NAMES_LENT_THREADS_MAX).unwrap();
        let lent = (0..=threads).filter(|tid| names.lend(5, *tid, false, || 1)).count();
        assert_eq!(lent, NAMES_LENT_THREADS_MAX);
        let directories = NAMES_LENT_TO_MAX as u64;
        let lent = (5..=5 + directories).filter(|one| names.lend(*one, 0, false, || 1)).count();
        assert_eq!(lent, NAMES_LENT_TO_MAX);
    }
}
