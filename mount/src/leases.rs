//! The agent's session with vfs-server: begins it when there is a use for it, hears what is to be forgotten and given back, and ends it.

use crate::limits::{
    FLUSH_QUIET, IDLE_FOR, LENT_FOR_MAX, MARGIN, RECALLS_SIZE, RETRY_PAUSE, STACK,
};
use crate::memory::Memory;
use crate::pages::{Pages, Recall};
use crate::promised::{Promise, Promised};
use calls::vfs::{FAREWELL, Forget, Recalled, Recalls};
use calls::wire::Wire;
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::{Cred, Endpoint, Errno, Sendrec, Wait};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Open files that hang on leases.
#[derive(Clone, Copy)]
pub(crate) struct Files<'a> {
    pub(crate) promised: &'a Promised,
    /// Has the server open one.
    pub(crate) redeem: &'a (dyn Fn(&Promise) -> Result<u64, Errno> + Sync),
    /// Puts nothing more off of an inode (0: of any), and writes back what is.
    pub(crate) write_back: &'a (dyn Fn(u64) + Sync),
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
    pub(crate) fn pause(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = |state: &mut State| !state.has_ended;
        let (state, _) = self
            .changed
            .wait_timeout_while(state, time, ended)
            .unwrap_or_else(PoisonError::into_inner);
        !state.has_ended
    }
}

/// What is kept under leases.
#[derive(Clone, Copy)]
pub(crate) struct Kept<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) pages: &'a Pages,
    pub(crate) files: Files<'a>,
    /// Where a successor finds the session; 0: there is none.
    pub(crate) session: &'a AtomicU64,
    /// What a predecessor had put off is done.
    pub(crate) is_settled: &'a AtomicBool,
}

impl Kept<'_> {
    /// Gives everything up: nothing is kept when this returns.
    fn end(self) {
        self.memory.end_session();
        (self.files.write_back)(0);
        self.pages.end_session();
        // What cannot be opened at the server now stays open here, and is asked for again when it is read: there is nobody to tell.
        self.files.promised.keep(0, self.files.redeem).ok();
    }

    /// Has pages given back that the server wants.
    fn give_back(self, session: u64, told: &[Forget]) {
        for Forget { ino, first, count } in told.iter().filter(|forget| forget.count != 0) {
            let pages = *first..first.saturating_add(*count);
            self.pages.recall(Recall { session, ino: *ino, pages });
        }
    }

    /// Forgets, and has given back, what the server wants.
    fn give_up(self, session: u64, told: &[Forget]) {
        self.give_back(session, told);
        let inodes = told.iter().filter(|forget| forget.count == 0);
        let inodes: Vec<u64> = inodes.map(|forget| forget.ino).collect();
        for ino in &inodes {
            self.memory.forget(*ino);
            self.files.promised.keep(*ino, self.files.redeem).ok();
            (self.files.write_back)(*ino);
        }
        self.memory.wait_for_names(&inodes);
    }
}

/// Keeps the session of what is `kept` until `wish` ends it.
pub(crate) fn keep(port: &impl Sendrec, kept: Kept<'_>, wish: &Wish) {
    let mut calls = Calls { port, session: 0, forgotten: 0, told: vec![0; RECALLS_SIZE] };
    let left = kept.session.load(Ordering::Relaxed);
    if left != 0 {
        calls.session = left;
        calls.end_left(kept, wish);
        wish.want();
    }
    while wish.wait() {
        match session(&mut calls, kept, wish) {
            // Somebody may have come while it ended.
            Ok(End::Idle) if kept.pages.is_wanted() => wish.want(),
            Ok(End::Idle) => {}
            Ok(End::GivenUp) => wish.want(),
            // Who asks for something wants one again.
            Err(error) => {
                tracing::debug!(?error, "no session with vfs-server");
                calls.flush(kept, wish);
                kept.pages.fail(error);
                wish.pause(RETRY_PAUSE);
                if kept.pages.is_wanted() {
                    wish.want();
                }
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

/// The calls that keep a session.
struct Calls<'a, P> {
    port: &'a P,
    /// The one that there is, or was last.
    session: u64,
    /// What is forgotten of what it was told.
    forgotten: u64,
    told: Vec<u8>,
}

impl<P: Sendrec> Calls<'_, P> {
    fn make(&mut self, row: &Recalls) -> Result<(Instant, Recalled, Vec<Forget>), Errno> {
        // Process 0: the agent itself.
        let mut cred = [0; CRED_SIZE_MAX];
        let len = Cred::new(0, 0, 0).encode(&mut cred);
        let sent = Instant::now();
        let send = [&cred[..len]];
        let (recalled, len) =
            calls::call(self.port, Endpoint::VFS, row, &send, &mut self.told, Wait::FOREVER)?;
        let told = self.told[..len.min(RECALLS_SIZE)].chunks(Forget::SIZE);
        Ok((sent, recalled, told.filter_map(Forget::get).collect()))
    }

    /// Says what is forgotten, and waits for what is to be.
    fn poll(&mut self) -> Result<(Instant, Recalled, Vec<Forget>), Errno> {
        self.make(&Recalls { session: self.session, forgotten: self.forgotten })
    }

    /// Ends the session of a predecessor. What the kernel may remember that nobody knows it was told is forgotten after a time: until then the
    /// server hears of this agent, and is given pages back, but not told that anything is forgotten.
    fn end_left(&mut self, kept: Kept<'_>, wish: &Wish) {
        kept.pages.begin_session(self.session, Instant::now() + LENT_FOR_MAX + MARGIN);
        let settled = Instant::now() + LENT_FOR_MAX + MARGIN;
        let (mut heard, mut is_over) = (0, false);
        while Instant::now() < settled || !kept.is_settled.load(Ordering::SeqCst) {
            match self.poll() {
                // The server has given it up, or begun anew: nobody waits for what is kept. A new one is for later in any case.
                Ok((_, recalled, _)) if recalled.session != self.session => {
                    if !is_over {
                        tracing::warn!("vfs-server did not wait for this agent, or has begun anew");
                        self.flush(kept, wish);
                    }
                    is_over = true;
                }
                Ok((sent, recalled, told)) => {
                    let lease = Duration::from_millis(recalled.lease.into());
                    kept.pages.extend(self.session, sent + lease.saturating_sub(MARGIN));
                    if recalled.batch != heard {
                        heard = recalled.batch;
                        kept.give_back(self.session, &told);
                    }
                }
                Err(error) => tracing::debug!(?error, "vfs-server does not hear of this agent"),
            }
            if !wish.pause(RETRY_PAUSE) {
                break;
            }
        }
        self.flush(kept, wish);
    }

    /// Gives up everything that is kept. Meanwhile the server goes on hearing of this agent, as writing pages back may take longer than a session lasts.
    fn flush(&mut self, kept: Kept<'_>, wish: &Wish) {
        thread::scope(|scope| {
            let (tells, told) = channel();
            let thread = thread::Builder::new().name("dvs-flush".into()).stack_size(STACK);
            let end = move || {
                kept.end();
                tells.send(()).ok();
            };
            if thread.spawn_scoped(scope, end).is_err() {
                // It may take too long then.
                kept.end();
            }
            while told.recv_timeout(FLUSH_QUIET) == Err(RecvTimeoutError::Timeout) {
                if self.session == 0 {
                    continue;
                }
                match self.poll() {
                    Ok((_, recalled, wanted)) => {
                        kept.give_up(self.session, &wanted);
                        self.forgotten = recalled.batch;
                    }
                    Err(error) => {
                        tracing::debug!(?error, "vfs-server does not hear of this agent");
                        wish.pause(RETRY_PAUSE);
                    }
                }
            }
        });
    }
}

/// One session, from its beginning to its end.
fn session(calls: &mut Calls<'_, impl Sendrec>, kept: Kept<'_>, wish: &Wish) -> Result<End, Errno> {
    calls.flush(kept, wish);
    kept.session.store(0, Ordering::Relaxed);
    let (sent, begun, _) = calls.make(&Recalls { session: 0, forgotten: 0 })?;
    (calls.session, calls.forgotten) = (begun.session, 0);
    kept.session.store(begun.session, Ordering::Relaxed);
    let lease = |recalled: &Recalled| Duration::from_millis(recalled.lease.into());
    kept.memory.begin_session(sent, lease(&begun));
    kept.pages.begin_session(begun.session, kept.memory.ends_at());
    let mut used = Instant::now();
    loop {
        let (sent, recalled, told) = match calls.poll() {
            Ok(answer) => answer,
            // The server may be on its way back, and the session with it.
            Err(error) if !kept.memory.has_lapsed() && wish.pause(RETRY_PAUSE) => {
                tracing::debug!(?error, "vfs-server does not say what is to be forgotten");
                continue;
            }
            Err(error) => return Err(error),
        };
        if recalled.session != begun.session {
            return Ok(End::GivenUp);
        }
        kept.give_up(begun.session, &told);
        kept.memory.settle();
        kept.files.promised.keep_old(kept.files.redeem).ok();
        calls.forgotten = recalled.batch;
        kept.memory.extend(sent, lease(&recalled));
        if !kept.pages.extend(begun.session, kept.memory.ends_at()) {
            return Ok(End::GivenUp);
        }
        let is_idle = used.elapsed() >= IDLE_FOR;
        if kept.memory.was_used() || is_idle && kept.pages.are_mapped() {
            used = Instant::now();
        }
        if used.elapsed() >= IDLE_FOR || !wish.pause(Duration::ZERO) {
            calls.flush(kept, wish);
            calls.forgotten = FAREWELL;
            calls.poll()?;
            return Ok(End::Idle);
        }
    }
}
