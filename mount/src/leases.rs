//! The agent's session with vfs-server: begins it when there is a use for it, hears what is to be forgotten and given back, and ends it.

use crate::limits::{IDLE_POLLS_MAX, RECALLS_SIZE, RETRY_PAUSE};
use crate::memory::Memory;
use crate::pages::{Pages, Recall};
use crate::promised::{Promise, Promised};
use calls::vfs::{FAREWELL, Forget, Recalled, Recalls};
use calls::wire::Wire;
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::{Cred, Endpoint, Errno, Sendrec, Wait};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Open files that hang on leases.
#[derive(Clone, Copy)]
pub(crate) struct Files<'a> {
    pub(crate) promised: &'a Promised,
    /// Has the server open one.
    pub(crate) redeem: &'a dyn Fn(&Promise) -> Result<u64, Errno>,
}

/// What the thread that keeps the session is told.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// There is no session, and somebody would have a use for one.
    is_wanted: bool,
    has_ended: bool,
}

impl Wish {
    /// Asks for a session.
    pub(crate) fn want(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.is_wanted {
            state.is_wanted = true;
            self.changed.notify_all();
        }
    }

    /// Lets the thread end.
    pub(crate) fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).has_ended = true;
        self.changed.notify_all();
    }

    /// Waits until a session is wanted. False: the thread is to end.
    fn wait(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.is_wanted && !state.has_ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_wanted = false;
        !state.has_ended
    }

    /// Waits for a time. False: the thread is to end.
    fn pause(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = |state: &mut State| !state.has_ended;
        let (state, _) = self
            .changed
            .wait_timeout_while(state, time, ended)
            .unwrap_or_else(PoisonError::into_inner);
        !state.has_ended
    }
}

/// Keeps the session of `memory` and `pages` until `wish` ends it.
pub(crate) fn keep(
    port: &impl Sendrec,
    (memory, pages): (&Memory, &Pages),
    files: Files<'_>,
    wish: &Wish,
) {
    while wish.wait() {
        match session(port, (memory, pages), files, wish) {
            Ok(End::Idle) => {}
            Ok(End::GivenUp) => wish.want(),
            // Who asks for something wants one again.
            Err(error) => {
                tracing::debug!(?error, "no session with vfs-server");
                memory.end_session();
                pages.end_session();
                pages.fail(error);
                wish.pause(RETRY_PAUSE);
            }
        }
    }
}

/// How a session has ended.
enum End {
    /// Nobody has a use for it.
    Idle,
    /// The server has given it up.
    GivenUp,
}

/// One session, from its beginning to its end.
fn session(
    port: &impl Sendrec,
    (memory, pages): (&Memory, &Pages),
    files: Files<'_>,
    wish: &Wish,
) -> Result<End, Errno> {
    // What cannot be opened at the server now stays open here, and is asked for again when it is read: there is nobody to tell.
    let end = || {
        memory.end_session();
        // What programs have written to mappings is written back while the session lasts.
        pages.end_session();
        files.promised.keep(0, files.redeem).ok();
    };
    end();
    let mut told = vec![0; RECALLS_SIZE];
    let mut poll = |session, forgotten| -> Result<(Instant, Recalled, Vec<Forget>), Errno> {
        // Process 0: the agent itself.
        let mut cred = [0; CRED_SIZE_MAX];
        let len = Cred::new(0, 0, 0).encode(&mut cred);
        let row = Recalls { session, forgotten };
        let sent = Instant::now();
        let send = [&cred[..len]];
        let (recalled, len) =
            calls::call(port, Endpoint::VFS, &row, &send, &mut told, Wait::FOREVER)?;
        let told = told[..len.min(RECALLS_SIZE)].chunks(Forget::SIZE);
        Ok((sent, recalled, told.filter_map(Forget::get).collect()))
    };
    let (sent, Recalled { session, lease, .. }, _) = poll(0, 0)?;
    memory.begin_session(sent, Duration::from_millis(lease.into()));
    pages.begin_session(session);
    let (mut forgotten, mut idle) = (0, 0);
    loop {
        let (sent, recalled, told) = match poll(session, forgotten) {
            Ok(answer) => answer,
            // The server may be on its way back, and the session with it.
            Err(error) if !memory.has_lapsed() && wish.pause(RETRY_PAUSE) => {
                tracing::debug!(?error, "vfs-server does not say what is to be forgotten");
                continue;
            }
            Err(error) => return Err(error),
        };
        if recalled.session != session {
            return Ok(End::GivenUp);
        }
        let (inodes, wanted): (Vec<Forget>, Vec<Forget>) =
            told.into_iter().partition(|forget| forget.count == 0);
        for Forget { ino, first, count } in wanted {
            pages.recall(Recall { session, ino, pages: first..first.saturating_add(count) });
        }
        let inodes: Vec<u64> = inodes.into_iter().map(|forget| forget.ino).collect();
        for ino in &inodes {
            memory.forget(*ino);
            files.promised.keep(*ino, files.redeem).ok();
        }
        memory.wait_for_names(&inodes);
        memory.settle();
        files.promised.keep_old(files.redeem).ok();
        forgotten = recalled.batch;
        memory.extend(sent, Duration::from_millis(recalled.lease.into()));
        idle = if memory.was_used() { 0 } else { idle + 1 };
        if idle >= IDLE_POLLS_MAX || !wish.pause(Duration::ZERO) {
            end();
            poll(session, FAREWELL)?;
            return Ok(End::Idle);
        }
    }
}
