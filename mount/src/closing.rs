//! Files that programs have closed, and vfs-server is told so together with others a little later: nobody waits for that. And when that is, for
//! whatever else is put off (`put_off`).

use crate::limits::PUT_OFF_FOR;
use calls::vfs::Closed;
use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The files that are closed, and when who tells the server is wanted.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: Vec<Closed>,
    /// Open files through which locks have been taken: for the end of those somebody may wait.
    locked: HashSet<u64>,
    due: Option<Instant>,
    has_ended: bool,
}

impl Closing {
    /// A lock is about to be taken through open file `fh`.
    pub(crate) fn lock(&self, fh: u64) {
        self.state().locked.insert(fh);
    }

    /// Has a lock been taken through open file `fh`?
    pub(crate) fn is_locked(&self, fh: u64) -> bool {
        self.state().locked.contains(&fh)
    }

    /// An open file is closed. False: the server is to be told at once.
    pub(crate) fn close(&self, closed: Closed) -> bool {
        let mut state = self.state();
        let may_wait = !state.locked.remove(&closed.fh) && !state.has_ended;
        if may_wait {
            state.closed.push(closed);
            self.want(&mut state);
        }
        may_wait
    }

    /// The server could not be told of these.
    pub(crate) fn again(&self, closed: &[Closed]) {
        let mut state = self.state();
        state.closed.extend_from_slice(closed);
        self.want(&mut state);
    }

    /// There is something to be done a little later.
    pub(crate) fn soon(&self) {
        self.want(&mut self.state());
    }

    fn want(&self, state: &mut State) {
        if state.due.is_none() {
            state.due = Some(Instant::now() + PUT_OFF_FOR);
            self.changed.notify_all();
        }
    }

    /// What is to be told by now.
    pub(crate) fn take(&self) -> Vec<Closed> {
        std::mem::take(&mut self.state().closed)
    }

    /// Waits until something is to be done. False: the thread is to end.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.state();
        loop {
            if state.has_ended {
                return false;
            }
            let now = Instant::now();
            state = match state.due {
                Some(due) if due <= now => {
                    state.due = None;
                    return true;
                }
                Some(due) => {
                    let waited = self.changed.wait_timeout(state, due - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Lets the thread end.
    pub(crate) fn end(&self) {
        self.state().has_ended = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
