//! Files that programs have closed, and vfs-server is told so together with others a little later: nobody waits for that. And when that is, for
//! whatever else is put off (`put_off`).

use crate::estate::Table;
use crate::limits::PUT_OFF_FOR;
use calls::vfs::Closed;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The files that are closed, and when who tells the server is wanted.
#[derive(Debug)]
pub(crate) struct Closing {
    state: Mutex<State>,
    changed: Condvar,
    /// As a successor finds them.
    closed_rows: Table<2>,
    locked_rows: Table<1>,
}

#[derive(Debug, Default)]
struct State {
    closed: Vec<Told>,
    /// Open files through which locks have been taken, and their rows: for the end of those somebody may wait.
    locked: HashMap<u64, Option<usize>>,
    due: Option<Instant>,
    has_ended: bool,
}

/// A file of which the server is to be told that it is closed, and its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) closed: Closed,
    row: usize,
}

impl Closing {
    /// With what the rows have.
    pub(crate) fn new(closed_rows: Table<2>, locked_rows: Table<1>) -> Closing {
        let told = |(row, [fh, ino]): (usize, [u64; 2])| Told { closed: Closed { fh, ino }, row };
        let closed: Vec<Told> = closed_rows.rows().map(told).collect();
        let locked = locked_rows.rows().map(|(row, [fh])| (fh, Some(row))).collect();
        let due = (!closed.is_empty()).then(Instant::now);
        let state = State { closed, locked, due, has_ended: false };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Closing { state, changed, closed_rows, locked_rows }
    }

    /// A lock is about to be taken through open file `fh`.
    pub(crate) fn lock(&self, fh: u64) {
        let put = || self.locked_rows.must_put([fh]);
        self.state().locked.entry(fh).or_insert_with(put);
    }

    /// Has a lock been taken through open file `fh`?
    pub(crate) fn is_locked(&self, fh: u64) -> bool {
        self.state().locked.contains_key(&fh)
    }

    /// An open file is closed. False: the server is to be told at once.
    pub(crate) fn close(&self, closed: Closed) -> bool {
        let mut state = self.state();
        if let Some(row) = state.locked.remove(&closed.fh) {
            row.into_iter().for_each(|row| self.locked_rows.remove(row));
            return false;
        }
        if state.has_ended {
            return false;
        }
        let Some(row) = self.closed_rows.put([closed.fh, closed.ino]) else { return false };
        state.closed.push(Told { closed, row });
        self.want(&mut state);
        true
    }

    /// The server could not be told of these.
    pub(crate) fn again(&self, closed: &[Told]) {
        let mut state = self.state();
        state.closed.extend_from_slice(closed);
        self.want(&mut state);
    }

    /// The server knows of these.
    pub(crate) fn told(&self, closed: &[Told]) {
        closed.iter().for_each(|told| self.closed_rows.remove(told.row));
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
    pub(crate) fn take(&self) -> Vec<Told> {
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
