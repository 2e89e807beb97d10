//! Files that programs have opened for reading, and vfs-server knows nothing of.
//!
//! While there is a lease on an inode nobody else can change what open(2) looks at, nor take the file away. So the agent opens it
//! alone, if what it knows allows that. It asks the server to open the file when something is asked for that only the server has;
//! before the lease goes, or before a program of this node takes the file away or changes who may read it; and when it has been
//! open for a while, so that the file does not hang on the agent's session. A file that is read from the kernel's pages and closed
//! soon costs no call.

use crate::estate::Table;
use crate::estate::calls::{Calls, Key};
use crate::limits::PROMISED_MAX;
use m3ipc::errno::numbers::{EACCES, EBADF, ENOENT, ESTALE};
use m3ipc::{Cred, Errno};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// In handles given out here. The server counts from 1.
const PROMISED: u64 = 1 << 63;

/// Is `fh` one of a file that was opened here?
pub(crate) fn is_promised(fh: u64) -> bool {
    fh & PROMISED != 0
}

/// The open files.
#[derive(Debug)]
pub(crate) struct Promised {
    files: Mutex<HashMap<u64, Arc<Promise>>>,
    /// How many of them the server does not know of.
    unknown: AtomicUsize,
    next: AtomicU64,
    /// As a successor finds them: with their states, and the requests for which they were opened.
    rows: Table<6>,
    /// Of those that a predecessor has opened: handles, by request.
    left: Mutex<HashMap<u64, u64>>,
    calls: Arc<Calls>,
}

/// A file that a program has open.
#[derive(Debug)]
pub(crate) struct Promise {
    pub(crate) fh: u64,
    row: usize,
    pub(crate) ino: u64,
    /// Of open(2).
    pub(crate) flags: u32,
    pub(crate) cred: Cred,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Only here. True: when it was looked at last, too.
    Here(bool),
    /// At the server, with this handle.
    Open(u64),
    /// The server has said that there is no such file, or that it may not be read, any more: a session has lapsed.
    Lost(Errno),
    Closed,
}

/// In the word of a row that is otherwise the server's handle: an errno.
const LOST: u64 = 1 << 63;

impl State {
    fn word(self) -> u64 {
        match self {
            State::Here(_) | State::Closed => 0,
            State::Open(fh) => fh,
            State::Lost(error) => LOST | u64::from(error.errno.unsigned_abs()),
        }
    }

    fn of_word(word: u64) -> State {
        match word {
            0 => State::Here(false),
            word if word & LOST != 0 => {
                State::Lost(Errno::new(i32::try_from(word & !LOST).unwrap_or(ESTALE)))
            }
            fh => State::Open(fh),
        }
    }
}

impl Promised {
    /// With the files that the rows have; handles given out anew begin behind those of as many `predecessors`. Calls that open files are in
    /// `calls`.
    pub(crate) fn new(rows: Table<6>, calls: Arc<Calls>, predecessors: u64) -> Promised {
        let (mut files, mut left) = (HashMap::new(), HashMap::new());
        let mut unknown = 0;
        for (row, [fh, ino, flags, ids, state, request]) in rows.rows() {
            left.insert(request, fh);
            let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
            let state = State::of_word(state);
            unknown += usize::from(matches!(state, State::Here(_)));
            let cred = Cred::new(0, half(ids >> 32), half(ids));
            let state = Mutex::new(state);
            files.insert(fh, Arc::new(Promise { fh, row, ino, flags: half(flags), cred, state }));
        }
        Promised {
            files: Mutex::new(files),
            unknown: AtomicUsize::new(unknown),
            next: AtomicU64::new(predecessors << 40),
            rows,
            left: Mutex::new(left),
            calls,
        }
    }

    /// The handle that a predecessor has given out for a request which is asked again.
    pub(crate) fn opened_for(&self, request: u64) -> Option<u64> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).remove(&request)
    }

    /// What has become of a call that was to open file `fh`.
    pub(crate) fn has_opened(&self, fh: u64, outcome: Result<u64, Errno>) {
        if let Some(promise) = self.files().get(&fh).cloned() {
            self.ask_for(&promise, |_| outcome).ok();
        }
        self.calls.end(Key::promise(fh));
    }

    /// A handle for a file that is opened here; `None`: there are as many as may be that the server does not know of.
    pub(crate) fn open(&self, ino: u64, flags: u32, cred: Cred, request: u64) -> Option<u64> {
        let mut files = self.files();
        // It grows under this lock only.
        if self.unknown.load(Ordering::Relaxed) >= PROMISED_MAX {
            return None;
        }
        let fh = PROMISED | self.next.fetch_add(1, Ordering::Relaxed);
        let ids = u64::from(cred.uid) << 32 | u64::from(cred.gid);
        let row = self.rows.put([fh, ino, flags.into(), ids, 0, request])?;
        self.unknown.fetch_add(1, Ordering::Relaxed);
        let state = Mutex::new(State::Here(false));
        files.insert(fh, Arc::new(Promise { fh, row, ino, flags, cred, state }));
        Some(fh)
    }

    /// The server's handle of file `fh`, which `open` asks for if need be.
    ///
    /// # Errors
    /// As `open`. EBADF: it is closed.
    pub(crate) fn ask(
        &self,
        fh: u64,
        open: impl FnOnce(&Promise) -> Result<u64, Errno>,
    ) -> Result<u64, Errno> {
        if fh & PROMISED == 0 {
            return Ok(fh);
        }
        let promise = self.files().get(&fh).cloned().ok_or(Errno::new(EBADF))?;
        self.ask_for(&promise, open)
    }

    fn ask_for(
        &self,
        promise: &Promise,
        open: impl FnOnce(&Promise) -> Result<u64, Errno>,
    ) -> Result<u64, Errno> {
        let mut state = promise.state();
        match *state {
            State::Open(fh) => Ok(fh),
            State::Lost(error) => Err(error),
            State::Closed => Err(Errno::new(EBADF)),
            State::Here(_) => {
                let opened = open(promise);
                *state = match opened {
                    Ok(fh) => State::Open(fh),
                    Err(error) if matches!(error.errno, ENOENT | ESTALE | EACCES) => {
                        State::Lost(error)
                    }
                    // It may do so yet.
                    Err(error) => {
                        self.calls.end(Key::promise(promise.fh));
                        return Err(error);
                    }
                };
                // Before that call is forgotten.
                self.rows.set(promise.row, 4, state.word());
                self.calls.end(Key::promise(promise.fh));
                self.unknown.fetch_sub(1, Ordering::Relaxed);
                opened
            }
        }
    }

    /// May a file of inode `ino` be open here only? True also if the server knows of it by now.
    pub(crate) fn has(&self, ino: u64) -> bool {
        self.unknown.load(Ordering::Relaxed) > 0
            && self.files().values().any(|promise| promise.ino == ino)
    }

    /// As [`Promised::ask`], without asking: 0 if the server does not know of it. Waits for who is asking.
    ///
    /// # Errors
    /// As [`Promised::ask`].
    pub(crate) fn peek(&self, fh: u64) -> Result<u64, Errno> {
        if fh & PROMISED == 0 {
            return Ok(fh);
        }
        let promise = self.files().get(&fh).cloned().ok_or(Errno::new(EBADF))?;
        match *promise.state() {
            State::Here(_) => Ok(0),
            State::Open(fh) => Ok(fh),
            State::Lost(error) => Err(error),
            State::Closed => Err(Errno::new(EBADF)),
        }
    }

    /// As [`Promised::peek`], without waiting, and 0 also if it is lost.
    pub(crate) fn asked(&self, fh: u64) -> u64 {
        if fh & PROMISED == 0 {
            return fh;
        }
        let Some(promise) = self.files().get(&fh).cloned() else { return 0 };
        // While somebody is asking, the lease is there.
        match promise.state.try_lock().map(|state| *state) {
            Ok(State::Open(fh)) => fh,
            _ => 0,
        }
    }

    /// File `fh` is closed. Returns the server's handle, if there is one, and a row for [`Promised::forget`].
    pub(crate) fn close(&self, fh: u64) -> Option<(u64, Option<usize>)> {
        if fh & PROMISED == 0 {
            return Some((fh, None));
        }
        let promise = self.files().remove(&fh)?;
        // Waits for who is asking.
        let state = std::mem::replace(&mut *promise.state(), State::Closed);
        if let State::Open(fh) = state {
            return Some((fh, Some(promise.row)));
        }
        self.rows.remove(promise.row);
        if let State::Here(_) = state {
            self.unknown.fetch_sub(1, Ordering::Relaxed);
        }
        None
    }

    /// The server, or a successor, knows that it is closed.
    pub(crate) fn forget(&self, row: Option<usize>) {
        row.into_iter().for_each(|row| self.rows.remove(row));
    }

    /// File `fh` is closed, if it is open here only and nobody is asking for it. False: it is not.
    pub(crate) fn close_unknown(&self, fh: u64) -> bool {
        if fh & PROMISED == 0 {
            return false;
        }
        let mut files = self.files();
        let Some(promise) = files.get(&fh) else { return false };
        let Ok(mut state) = promise.state.try_lock() else { return false };
        if !matches!(*state, State::Here(_)) {
            return false;
        }
        *state = State::Closed;
        drop(state);
        self.rows.remove(promise.row);
        files.remove(&fh);
        self.unknown.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Has the server open all files of inode `ino` that are open here only; all at all if it is 0.
    ///
    /// # Errors
    /// As `open`, for one of them: it may be lost if the lease goes, or the file.
    pub(crate) fn keep(
        &self,
        ino: u64,
        open: impl Fn(&Promise) -> Result<u64, Errno>,
    ) -> Result<(), Errno> {
        self.ask_all(|promise| ino == 0 || promise.ino == ino, open)
    }

    /// As [`Promised::keep`], those that were there already when this was called last.
    ///
    /// # Errors
    /// As [`Promised::keep`].
    pub(crate) fn keep_old(
        &self,
        open: impl Fn(&Promise) -> Result<u64, Errno>,
    ) -> Result<(), Errno> {
        let is_old = |promise: &Promise| match &mut *promise.state() {
            State::Here(is_old) => std::mem::replace(is_old, true),
            _ => false,
        };
        self.ask_all(is_old, open)
    }

    fn ask_all(
        &self,
        which: impl Fn(&Promise) -> bool,
        open: impl Fn(&Promise) -> Result<u64, Errno>,
    ) -> Result<(), Errno> {
        let mut outcome = Ok(());
        let promises: Vec<Arc<Promise>> = self.files().values().cloned().collect();
        for promise in promises.iter().filter(|promise| which(promise)) {
            if let Err(error) = self.ask_for(promise, &open) {
                tracing::debug!(
                    ?error,
                    ino = promise.ino,
                    "a file that is open here cannot be opened"
                );
                // What is lost already nobody need wait for.
                if !matches!(*promise.state(), State::Lost(_) | State::Closed) {
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    fn files(&self) -> MutexGuard<'_, HashMap<u64, Arc<Promise>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promise {
    /// Held while the server is being asked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Default for Promised {
    fn default() -> Promised {
        let mut estate = crate::estate::Estate::default();
        let calls = estate.calls.clone();
        Promised::new(estate.take().promises, calls, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::errno::numbers::ENFILE;
    use std::cell::Cell;

    fn cred() -> Cred {
        Cred::new(1, 2, 3)
    }

    fn closed(promised: &Promised, fh: u64) -> Option<u64> {
        promised.close(fh).map(|(fh, row)| {
            promised.forget(row);
            fh
        })
    }

    #[test]
    fn the_server_is_asked_once_and_only_if_need_be() {
        let promised = Promised::default();
        assert_eq!(promised.ask(7, |_| unreachable!()), Ok(7), "the server's own");
        assert_eq!((promised.asked(7), closed(&promised, 7)), (7, Some(7)));
        let [a, b] = [5, 5].map(|ino| promised.open(ino, 0, cred(), 0).unwrap());
        assert_ne!(a, b);
        assert_eq!(promised.asked(a), 0);
        assert_eq!(promised.close(a), None, "it never knew");
        assert_eq!(promised.ask(a, |_| unreachable!()), Err(Errno::new(EBADF)));
        assert_eq!(promised.ask(b, |_| Err(Errno::new(ENFILE))), Err(Errno::new(ENFILE)));
        assert_eq!(promised.ask(b, |promise| Ok(promise.ino + 100)), Ok(105));
        assert_eq!(promised.ask(b, |_| unreachable!()), Ok(105));
        assert_eq!((promised.asked(b), closed(&promised, b)), (105, Some(105)));
        assert_eq!((promised.asked(b), promised.close(b)), (0, None));
        let [a, b] = [5, 5].map(|ino| promised.open(ino, 0, cred(), 0).unwrap());
        promised.ask(b, |_| Ok(8)).unwrap();
        assert!(promised.close_unknown(a) && !promised.close_unknown(a));
        assert!(!promised.close_unknown(b) && !promised.close_unknown(7));
        assert_eq!((closed(&promised, a), closed(&promised, b)), (None, Some(8)));
        assert_eq!(promised.unknown.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn files_of_an_inode_are_opened_before_its_lease_goes_and_all_after_a_while() {
        let promised = Promised::default();
        let count = Cell::new(0);
        let open = |promise: &Promise| {
            count.set(count.get() + 1);
            if promise.ino == 9 { Err(Errno::new(ENFILE)) } else { Ok(promise.ino) }
        };
        let [a, b, c, d] = [5, 6, 5, 9].map(|ino| promised.open(ino, 0, cred(), 0).unwrap());
        promised.keep(5, open).unwrap();
        let asked = |them: [u64; 4]| them.map(|fh| promised.asked(fh));
        assert_eq!((asked([a, b, c, d]), count.get()), ([5, 0, 5, 0], 2));
        promised.keep_old(open).unwrap();
        assert_eq!(count.get(), 2, "they are young");
        let e = promised.open(7, 0, cred(), 0).unwrap();
        assert_eq!(promised.keep_old(open), Err(Errno::new(ENFILE)), "one may be opened yet");
        assert_eq!((asked([b, c, d, e]), count.get()), ([6, 5, 0, 0], 4));
        assert_eq!(promised.keep(0, open), Err(Errno::new(ENFILE)));
        assert_eq!((asked([b, c, d, e]), count.get()), ([6, 5, 0, 7], 6));
        // Lost for good: nobody waits for it, and it takes no place any more.
        assert_eq!(promised.keep(9, |_| Err(Errno::new(ESTALE))), Ok(()));
        assert_eq!(promised.ask(d, |_| unreachable!()), Err(Errno::new(ESTALE)));
        assert_eq!((promised.asked(d), promised.unknown.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(promised.close(d), None);
    }

    #[test]
    fn they_are_bounded() {
        let promised = Promised::default();
        let opened: Vec<u64> =
            (0..PROMISED_MAX).map(|_| promised.open(5, 0, cred(), 0).unwrap()).collect();
        assert_eq!(promised.open(5, 0, cred(), 0), None);
        promised.close(opened[0]);
        promised.ask(opened[1], |_| Ok(7)).unwrap();
        promised.ask(opened[2], |_| Err(Errno::new(ENFILE))).unwrap_err();
        promised.close(opened[1]);
        assert!(promised.open(5, 0, cred(), 0).is_some());
        assert!(promised.open(5, 0, cred(), 0).is_some());
        assert_eq!(promised.open(5, 0, cred(), 0), None);
    }
}
