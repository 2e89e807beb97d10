//! What the agent tells the server a little later than programs are told: writes that are put off, files that are closed.

use super::{CLOSED_MAX, VosAgent};
use crate::agent::{self, Caller, OpenFile};
use crate::closing::Told;
use crate::cred::{self, By};
use crate::estate::calls::Key;
use crate::estate::parts::Place;
use crate::put_off::{At, Desk};
use calls::vfs::{Attr, Releases, SetAttr, WriteBack, WrittenBack, attributes};
use m3ipc::{Errno, Sendrec};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

impl<P: Sendrec> VosAgent<P> {
    /// The server has opened a file for a program of this node, which is perhaps its sole writer's: then this is told what `is_current`.
    pub(super) fn note_sole(
        &self,
        leased: u8,
        attr: Attr,
        fh: u64,
        is_current: impl FnOnce() -> bool,
    ) {
        if leased & attributes::SOLE != 0 {
            // One that is over: the server has just made this file's another.
            self.end_sole(attr.ino);
            // It may have been recalled before it was there, or the kernel be about to have pages.
            let is_read = || self.pages.is_being_read(attr.ino);
            // A call of a predecessor may be answered here whose session is over.
            let has_session = || self.memory.is_valid();
            self.soles.add(attr, fh, || is_current() && has_session() && !is_read());
        }
    }

    /// Has the server do what has been put off.
    pub(super) fn sending(
        &self,
    ) -> impl Fn(&Place, bool) -> Result<(WrittenBack, Attr), Errno> + '_ {
        |place, sync| {
            let row = WriteBack { fh: place.fh(), ino: place.ino(), sync: sync.into() };
            let by = By { cred: place.cred(), key: Key::place(place.number), ino: 0 };
            self.call_for(&by, &row, [&place.payload(), &[]])
        }
    }

    /// What has been put off of inode `ino` is done: before anything else is asked of it. Who changes it by a call begins that before (by
    /// [`VosAgent::change`]), so that nothing is put off in between.
    pub(super) fn write_back(&self, ino: u64) {
        // An error is told to whom it concerns.
        self.soles.write_back(&self.memory, ino, false, &self.sending());
    }

    /// As [`VosAgent::write_back`], of inode `ino`, or with 0 of all: which one a name stands for is not known.
    pub(super) fn write_back_named(&self, ino: u64) {
        match ino {
            0 => self.write_back_all(),
            ino => self.write_back(ino),
        }
    }

    /// As [`VosAgent::write_back`], and nothing is put off any more. 0: of all.
    pub(super) fn end_sole(&self, ino: u64) {
        self.soles.end(&self.memory, ino, &self.sending());
    }

    /// As [`VosAgent::write_back`], of all inodes.
    pub(super) fn write_back_all(&self) {
        self.soles.write_back_all(&self.memory, &self.sending());
    }

    /// An open file is about to be closed.
    pub(super) fn end_sole_of(&self, file: OpenFile) {
        if self.soles.get(file.ino).is_some_and(|sole| sole.fh == file.fh) {
            self.end_sole(file.ino);
        }
        self.soles.remove(file.ino, file.fh);
    }

    /// Tells the server of all files that are closed. True: it has been told of some, by anybody, since it had been `told` so often.
    pub(super) fn tell_all_closed(&self, told: u64) -> bool {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tell_closed(&self.closing.take()) {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
        self.told.load(Ordering::Relaxed) != told
    }

    /// Tells the server of files that are closed. True: there were some, and it knows.
    fn tell_closed(&self, closed: &[Told]) -> bool {
        let mut is_told = !closed.is_empty();
        for part in closed.chunks(CLOSED_MAX) {
            let payload: Vec<u8> = part.iter().flat_map(|told| told.closed.bytes()).collect();
            let outcome = self.order(&By::agent(), &Releases {}, [&payload, &[]]);
            if let Err(error) = outcome {
                tracing::debug!(?error, "files that are closed stay open");
                self.closing.again(part);
                is_told = false;
            } else {
                self.closing.told(part);
            }
        }
        is_told
    }

    /// Puts a write off, if it can be. `at_once`: without waiting for anybody.
    pub(super) fn put_off_write(
        &self,
        at_once: bool,
        caller: Caller,
        file: OpenFile,
        place: agent::Place,
        data: &[u8],
    ) -> Option<Result<usize, Errno>> {
        let at = match place {
            agent::Place::Offset(offset) => At::Offset(offset),
            agent::Place::End => At::End,
            agent::Place::Page(_) => return None,
        };
        let request = caller.request;
        let desk = Desk { memory: &self.memory, promised: &self.promised, request, at_once };
        let cred = cred::plain(caller).cred;
        let (attr, outcome) = self.soles.write(desk, (file.ino, file.fh), cred, at, data)?;
        if outcome.is_ok() {
            self.closing.soon();
            // Nobody has pages of such a file.
            self.pages.has_written_at_once(file.ino, attr.size);
        }
        Some(outcome)
    }

    /// As [`VosAgent::put_off_write`], a change of mode, owner or times.
    pub(super) fn put_off_set(
        &self,
        at_once: bool,
        caller: Caller,
        ino: u64,
        set: &SetAttr,
    ) -> Option<Attr> {
        let request = caller.request;
        let desk = Desk { memory: &self.memory, promised: &self.promised, request, at_once };
        let attr = self.soles.set(desk, ino, cred::plain(caller).cred, set)?;
        self.closing.soon();
        Some(attr)
    }
}
