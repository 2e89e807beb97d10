//! What an agent does first whose predecessor has died.

use super::VosAgent;
use crate::agent::{Agent as _, Caller, OpenFile};
use crate::estate::calls::{Answered, Calls, Of, Open, Outcome};
use crate::estate::parts::Place;
use crate::limits::{NAME_GOES_IN, ORPHANS_KEPT_FOR, STACK};
use calls::Row as _;
use calls::vfs::{self, Attr, WrittenBack};
use calls::wire::Wire as _;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Errno, IpcError, Message, Note, Sendrec, Tag};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Places whose content is sent at once.
const PLACES_AT_ONCE: usize = 16;

/// Payload of a request: credentials stand in front of it.
const SENT_MAX: usize = PAYLOAD_MAX + m3ipc::cred::CRED_SIZE_MAX;

/// Does it for all at once, as far as there are threads.
fn beside<T: Send>(all: impl IntoIterator<Item = T>, act: impl Fn(T) + Sync) {
    let act = &act;
    thread::scope(|scope| {
        for one in all {
            // It is still here if there is no thread.
            let one = Arc::new(Mutex::new(Some(one)));
            let take =
                |one: &Mutex<Option<T>>| one.lock().unwrap_or_else(PoisonError::into_inner).take();
            let thread = thread::Builder::new().name("dvs-resume".into()).stack_size(STACK);
            let its = one.clone();
            if thread.spawn_scoped(scope, move || take(&its).into_iter().for_each(act)).is_err() {
                take(&one).into_iter().for_each(act);
            }
        }
    });
}

/// Keeps what becomes of a predecessor's call.
struct Resumed<'a> {
    calls: &'a Calls,
    open: Open,
}

impl Note for Resumed<'_> {
    fn asked(&mut self, _: Tag) {}

    fn answered(&mut self, answer: &Message, payload: &[u8]) {
        let (message, payload) = (*answer, payload.to_vec());
        let outcome = Outcome::Answered(Box::new(Answered { message, payload }));
        self.calls.resolve(self.open.key, outcome);
    }

    fn failed(&mut self, error: IpcError) {
        // It may have been done or not: that is what its request is told, as without a death.
        self.answered(&Message::undelivered(self.open.call, error), &[]);
    }
}

impl<P: Sendrec + Send + Sync + 'static> VosAgent<P> {
    /// Waits for what becomes of a call that a predecessor has made.
    fn resume_call(&self, open: Open) {
        let (mut sent, mut payload) = (vec![0; SENT_MAX], vec![0; PAYLOAD_MAX]);
        let mut note = Resumed { calls: &self.estate.calls, open };
        if !self.port.resume(open.tag, open.call, &mut sent, &mut payload, &mut note) {
            self.estate.calls.resolve(open.key, Outcome::Unmade(open.tag));
        }
    }

    /// Waits for calls that a predecessor has made, all at once.
    fn resume_calls(&self, which: impl Fn(Of) -> bool) {
        let open = self.estate.calls.open().into_iter();
        beside(open.filter(|open| which(open.key.of())), |open| self.resume_call(open));
    }

    /// What was put off is done, and what was being opened is open: nobody is answered by this agent before that.
    pub(super) fn settle_now(&self) {
        let begun = Instant::now();
        self.resume_calls(|of| matches!(of, Of::Place(_)));
        let mut places = self.soles.left();
        while !places.is_empty() {
            let next = places.split_off(places.len().saturating_sub(PLACES_AT_ONCE));
            beside(next, |place| self.settle_place(place));
        }
        // Of a place that was cleared already: what is put there next is another's.
        for key in self.estate.calls.left() {
            if let Of::Place(_) = key.of() {
                self.estate.calls.end(key);
            }
        }
        self.is_settled.store(true, Ordering::SeqCst);
        self.resume_calls(|of| matches!(of, Of::Promise(_)));
        for key in self.estate.calls.left() {
            if let Of::Promise(fh) = key.of()
                && self.estate.calls.unmade(key).is_none()
                && let Some((Outcome::Answered(answered), _)) =
                    self.estate.calls.take(key, vfs::Open::NUMBER)
            {
                let opened = calls::answered::<vfs::Open>(&answered.message, 0);
                self.promised.has_opened(fh, opened.map(|(opened, _)| opened.fh));
            }
        }
        // Names that the kernel was told are forgotten by then.
        thread::sleep(NAME_GOES_IN.saturating_sub(begun.elapsed()));
    }

    /// What is put off in a place is done.
    fn settle_place(&self, place: Place) {
        let outcome = if place.is_empty() {
            Ok(())
        } else {
            let sent = self.sending()(&place, false);
            sent.and_then(|(WrittenBack { errno, .. }, _)| match errno {
                0 => Ok(()),
                errno => Err(Errno::new(errno.into())),
            })
        };
        self.soles.has_sent(place, outcome);
    }

    /// Waits for the calls of requests, and closes later what has been opened for one that does not come again.
    pub(super) fn resume_now(&self) {
        self.resume_calls(|of| of == Of::Request);
        if self.estate.predecessors() == 0 || !self.wish.pause(ORPHANS_KEPT_FOR) {
            return;
        }
        self.soles.forget_left();
        for key in self.estate.calls.left() {
            if let Some((answered, ino)) = self.estate.calls.orphan(key) {
                self.close_orphan(&answered, ino);
            }
            if let Some(tag) = self.estate.calls.unmade(key) {
                self.port.leave(tag);
            }
            self.estate.calls.end(key);
        }
    }

    /// Closes what a call has opened or made for a request that nobody has been told of.
    fn close_orphan(&self, Answered { message, payload }: &Answered, ino: u64) {
        let made = || Attr::get(payload).map(|attr| attr.ino);
        let (fh, ino) = match message.call {
            vfs::Open::NUMBER => {
                (calls::answered::<vfs::Open>(message, 0).map(|(it, _)| it.fh), Some(ino))
            }
            vfs::Create::NUMBER => {
                (calls::answered::<vfs::Create>(message, 0).map(|(it, _)| it.fh), made())
            }
            vfs::Tmpfile::NUMBER => {
                (calls::answered::<vfs::Tmpfile>(message, 0).map(|(it, _)| it.fh), made())
            }
            _ => return,
        };
        if let (Ok(fh), Some(ino)) = (fh, ino) {
            let caller = Caller { pid: 0, uid: 0, gid: 0, request: 0 };
            self.release(caller, OpenFile { ino, fh }).ok();
        }
    }
}
