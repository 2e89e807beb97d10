//! What programs have written, and vfs-server is told a little later.
//!
//! Of a file with a *sole writer* nobody but this agent remembers anything (`vfs_server::sole`). Small writes through that handle, and changes of mode, owner
//! and times, are answered from here and sent together: when the file is closed, when anybody of this node asks for what only the server
//! knows, when the server recalls the lease because somebody elsewhere does, and after [`crate::limits::PUT_OFF_FOR`] in any case. As long as something is put off, a change
//! of the inode is under way for the memory: nothing of it is remembered, so everything that would be answered from there comes by here first.
//!
//! An error of what was put off is told by the next write, fsync or close of the file through which it was written.

use crate::estate::Table;
use crate::estate::calls::{Calls, Key};
use crate::estate::parts::{Mark, Place, Places};
use crate::limits::{PUT_OFF_BYTES_MAX, PUT_OFF_SIZE_MAX, SOLE_FILES_MAX};
use crate::memory::{Change, Memory};
use crate::promised::Promised;
use calls::vfs::{Attr, FILE_SIZE_MAX, PutOff, SetAttr, Time, WrittenBack, attributes, set};
use calls::wire::Wire;
use m3ipc::{Cred, Errno};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_ISVTX: u32 = 0o1000;
const S_IALLUGO: u32 = 0o7777;
/// What the owner of a file may change without being asked who else she is.
const BY_OWNER: u32 = set::MODE | set::ATIME | set::MTIME | set::ATIME_NOW | set::MTIME_NOW;
const BY_SUPERUSER: u32 = BY_OWNER | set::UID | set::GID;

/// All files that have a sole writer here.
#[derive(Debug)]
pub(crate) struct Soles {
    files: Mutex<HashMap<u64, Arc<Sole>>>,
    /// Where what is put off stands.
    places: Places,
    calls: Arc<Calls>,
    /// Those with something that is put off, or is being written back.
    concerned: Mutex<BTreeSet<u64>>,
    /// How many these are, to be looked at without a lock.
    count: AtomicUsize,
    /// Errors that are to be told, by open file, with their rows.
    errors: Mutex<HashMap<u64, (Errno, Option<usize>)>>,
    error_rows: Table<2>,
    done: Done,
    error_count: AtomicUsize,
}

/// A file with a sole writer.
#[derive(Debug)]
pub(crate) struct Sole {
    pub(crate) ino: u64,
    pub(crate) fh: u64,
    /// May anything (more) be put off?
    may_put_off: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// As the inode will be. Its times are guesses, told to kernels only, which forget them at once.
    attr: Attr,
    /// Is it so? Programs of this node may have changed the inode otherwise.
    is_known: bool,
    /// What is put off.
    place: Option<Place>,
    /// The change that is under way in the memory.
    stamp: u64,
}

/// Where a write goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Offset(u64),
    End,
}

/// Where something is put off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desk<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) promised: &'a Promised,
    /// The request for which it is.
    pub(crate) request: u64,
    /// It must not take time: nobody is to be waited for.
    pub(crate) at_once: bool,
}

/// Sends what is in a place, to be stored at once if that is true.
pub(crate) type Send<'a> = &'a dyn Fn(&Place, bool) -> Result<(WrittenBack, Attr), Errno>;

/// Requests that have been put off and perhaps not answered: they may come again to a successor.
#[derive(Debug)]
struct Done {
    rows: Table<5>,
    own: Mutex<HashMap<u64, usize>>,
    /// How many these are, to be looked at without a lock.
    count: AtomicUsize,
    /// Of a predecessor: bytes, by request.
    left: Mutex<HashMap<u64, u64>>,
}

impl Done {
    fn new(rows: Table<5>, places: &Places) -> Done {
        let (mut own, mut left) = (HashMap::new(), HashMap::new());
        let found: Vec<(usize, [u64; 5])> = rows.rows().collect();
        for (row, [request, number, taken, len, bytes]) in found {
            if places.has(Mark { number, taken, len }) {
                left.insert(request, bytes);
                own.insert(request, row);
            } else {
                rows.remove(row);
            }
        }
        let count = AtomicUsize::new(own.len());
        Done { rows, own: Mutex::new(own), count, left: Mutex::new(left) }
    }

    /// A request is put off when that moment comes. False: there is no room.
    fn begin(&self, request: u64, mark: Mark, bytes: usize) -> bool {
        let Mark { number, taken, len } = mark;
        if request == 0 {
            return true;
        }
        let row = self.rows.put([request, number, taken, len, bytes as u64]);
        if let Some(row) = row {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.insert(request, row);
            self.count.store(own.len(), Ordering::SeqCst);
        }
        row.is_some()
    }

    fn end(&self, request: u64) {
        if self.count.load(Ordering::SeqCst) > 0 {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            let row = own.remove(&request);
            self.count.store(own.len(), Ordering::SeqCst);
            row.into_iter().for_each(|row| self.rows.remove(row));
        }
    }
}

impl Soles {
    /// Has a predecessor put a request off that is asked again? How many bytes of it.
    pub(crate) fn has_done(&self, request: u64) -> Option<u64> {
        self.done.left.lock().unwrap_or_else(PoisonError::into_inner).get(&request).copied()
    }

    /// What a predecessor has done and is not asked again by now will not be.
    pub(crate) fn forget_left(&self) {
        let left =
            std::mem::take(&mut *self.done.left.lock().unwrap_or_else(PoisonError::into_inner));
        left.into_keys().for_each(|request| self.done.end(request));
    }

    /// A request has been answered.
    pub(crate) fn has_answered(&self, request: u64) {
        self.done.end(request);
    }

    /// What is put off stands in `places`, errors in a table of the same estate, calls that send what is there in `calls`.
    pub(crate) fn new(
        places: Places,
        error_rows: Table<2>,
        done: Table<5>,
        calls: Arc<Calls>,
    ) -> Soles {
        let errors: HashMap<u64, (Errno, Option<usize>)> = error_rows
            .rows()
            .map(|(row, [fh, errno])| {
                (fh, (Errno::new(i32::try_from(errno).unwrap_or(0)), Some(row)))
            })
            .collect();
        let done = Done::new(done, &places);
        Soles {
            files: Mutex::default(),
            places,
            calls,
            concerned: Mutex::default(),
            count: AtomicUsize::new(0),
            error_count: AtomicUsize::new(errors.len()),
            errors: Mutex::new(errors),
            error_rows,
            done,
        }
    }

    /// Places of an agent that is dead, with what it had put off.
    pub(crate) fn left(&self) -> Vec<Place> {
        self.places.left()
    }

    /// What was in such a place is done; or it has failed, which is to be told.
    pub(crate) fn has_sent(&self, place: Place, outcome: Result<(), Errno>) {
        if let Err(error) = outcome {
            self.keep_error(place.fh(), error);
        }
        self.leave(place);
    }

    fn leave(&self, place: Place) {
        // In this order: a successor makes no call again whose effect is there.
        self.places.clear(&place);
        self.calls.end(Key::place(place.number));
        self.places.free(place);
    }

    fn keep_error(&self, fh: u64, error: Errno) {
        let mut errors = self.errors();
        errors.entry(fh).or_insert_with(|| {
            let errno = u64::try_from(error.errno).unwrap_or(0);
            (error, self.error_rows.must_put([fh, errno]))
        });
        self.error_count.store(errors.len(), Ordering::SeqCst);
    }

    /// The server says that `fh` is a sole writer's, of the inode with these attributes. It is if that `is_current`, which is asked when everybody
    /// can find it. There is no other one of the inode that may put anything off.
    pub(crate) fn add(&self, attr: Attr, fh: u64, is_current: impl FnOnce() -> bool) {
        let state = State { attr, is_known: true, place: None, stamp: 0 };
        let sole = Arc::new(Sole {
            ino: attr.ino,
            fh,
            may_put_off: AtomicBool::new(false),
            state: Mutex::new(state),
        });
        // Nobody puts anything off, or ends it, before that is known.
        let _state = sole.state();
        {
            let mut files = self.files();
            if files.len() >= SOLE_FILES_MAX && !files.contains_key(&attr.ino) {
                return;
            }
            files.insert(attr.ino, sole.clone());
        }
        if is_current() {
            sole.may_put_off.store(true, Ordering::SeqCst);
        } else {
            self.files().retain(|_, one| !Arc::ptr_eq(one, &sole));
        }
    }

    /// Handle `fh` of inode `ino` is being closed. Everything has been written back.
    pub(crate) fn remove(&self, ino: u64, fh: u64) {
        self.files().retain(|its, sole| *its != ino || sole.fh != fh);
        if let Err(error) = self.tell(fh) {
            tracing::warn!(?error, ino, "what a program had written was not stored");
        }
    }

    /// As [`Soles::remove`], if that takes no time: nothing is put off, nobody is at it, there is no error. False: it does.
    pub(crate) fn remove_at_once(&self, ino: u64, fh: u64) -> bool {
        let mut files = self.files();
        let Some(sole) = files.get(&ino).filter(|sole| sole.fh == fh) else {
            return !self.has_error(fh);
        };
        let Ok(state) = sole.state.try_lock() else { return false };
        if state.place.is_some() || self.has_error(fh) {
            return false;
        }
        // Who has found it before puts nothing off any more.
        sole.may_put_off.store(false, Ordering::SeqCst);
        drop(state);
        files.remove(&ino);
        true
    }

    pub(crate) fn get(&self, ino: u64) -> Option<Arc<Sole>> {
        self.files().get(&ino).cloned()
    }

    /// Is something of inode `ino` put off, or being written back?
    pub(crate) fn concerns(&self, ino: u64) -> bool {
        self.count.load(Ordering::SeqCst) > 0 && self.inodes().contains(&ino)
    }

    /// Has inode `ino` a sole writer here? Then it has neither an access control list nor `security.capability`, as the server makes nobody the
    /// sole writer of one that has, and nobody has given it any.
    pub(crate) fn is_plain(&self, memory: &Memory, ino: u64) -> bool {
        let is_here = self.get(ino).is_some_and(|sole| sole.may_put_off.load(Ordering::SeqCst));
        is_here && memory.is_valid()
    }

    /// All inodes of which that is so.
    pub(crate) fn concerned(&self) -> Vec<u64> {
        match self.count.load(Ordering::SeqCst) {
            0 => Vec::new(),
            _ => self.inodes().iter().copied().collect(),
        }
    }

    /// From now on inode `ino` is one of them.
    fn concern(&self, ino: u64) {
        let mut set = self.inodes();
        set.insert(ino);
        self.count.store(set.len(), Ordering::SeqCst);
    }

    /// It is not any more, and nothing is in its place.
    fn settle(&self, ino: u64, place: Place) {
        self.leave(place);
        let mut set = self.inodes();
        set.remove(&ino);
        self.count.store(set.len(), Ordering::SeqCst);
    }

    fn inodes(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.concerned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of inode `ino` is under way for the memory that was not put off: what comes of it is not known here.
    pub(crate) fn disturb(&self, ino: u64) {
        if let Some(sole) = self.get(ino) {
            sole.state().is_known = false;
        }
    }

    /// The server has told these attributes, and that they are current.
    pub(crate) fn know(&self, attr: Attr, are_current: impl FnOnce() -> bool) {
        if let Some(sole) = self.get(attr.ino) {
            let mut state = sole.state();
            // Whoever changes the inode from now on comes by here afterwards.
            if state.place.is_none() && are_current() {
                (state.attr, state.is_known) = (attr, true);
            }
        }
    }

    /// Puts a write off. `None`: it is to be made, after what is put off has been written back.
    pub(crate) fn write(
        &self,
        desk: Desk<'_>,
        (ino, fh): (u64, u64),
        cred: Cred,
        at: At,
        data: &[u8],
    ) -> Option<(Attr, Result<usize, Errno>)> {
        let sole = self.get(ino).filter(|sole| sole.fh == fh)?;
        let mut state = sole.state_for(desk)?;
        if let Err(error) = self.tell(fh) {
            return Some((state.attr, Err(error)));
        }
        if !state.is_known {
            return None;
        }
        let offset = match at {
            At::Offset(offset) => offset,
            At::End => state.attr.size,
        };
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_SIZE_MAX)?;
        // A hole is not paid for by the room that was promised.
        if data.is_empty() || data.len() > PUT_OFF_SIZE_MAX || offset > state.attr.size {
            return None;
        }
        let note = |mark| self.done.begin(desk.request, mark, data.len());
        let place = self.open(desk, &sole, &mut state, cred, data.len(), false)?;
        if !place.write(offset, data, note) {
            return None;
        }
        state.attr.size = state.attr.size.max(end);
        Some((state.attr, Ok(data.len())))
    }

    /// Puts a change of mode, owner or times off that would be allowed. `None`: as above. Else what the attributes will be.
    pub(crate) fn set(
        &self,
        desk: Desk<'_>,
        ino: u64,
        cred: Cred,
        change: &SetAttr,
    ) -> Option<Attr> {
        let sole = self.get(ino)?;
        let mut state = sole.state_for(desk)?;
        let allowed = match cred.uid {
            0 => BY_SUPERUSER,
            uid if uid == state.attr.uid => BY_OWNER,
            _ => 0,
        };
        let has = |bit| change.valid & bit != 0;
        let is_time = |time: Time| time.nanos < 1_000_000_000;
        let is_plain = !has(set::MODE)
            || change.mode & S_IALLUGO & (S_ISUID | S_ISGID | S_ISVTX) == 0
                && change.mode & !(S_IALLUGO | 0o170_000) == 0;
        let is_sound = (!has(set::ATIME) || is_time(change.atime))
            && (!has(set::MTIME) || is_time(change.mtime))
            && (!has(set::UID) || change.uid != u32::MAX)
            && (!has(set::GID) || change.gid != u32::MAX);
        if !state.is_known
            || change.valid == 0
            || change.valid & !allowed != 0
            || !is_plain
            || !is_sound
        {
            return None;
        }
        let is_right = change.valid & (set::MODE | set::UID | set::GID) != 0;
        let note = |mark| self.done.begin(desk.request, mark, 0);
        if !self.open(desk, &sole, &mut state, cred, SetAttr::SIZE, is_right)?.set(change, note) {
            return None;
        }
        state.attr = changed(state.attr, change);
        Some(state.attr)
    }

    /// Begins to put something of `len` bytes off for `cred`, or goes on. `None`: it is to be made in the other way. `is_right`: it changes who may open
    /// the file.
    fn open<'a>(
        &self,
        desk: Desk<'_>,
        sole: &Sole,
        state: &'a mut State,
        cred: Cred,
        len: usize,
        is_right: bool,
    ) -> Option<&'a mut Place> {
        // What gives a program rights is lost by writing it, and that is told at once.
        let is_simple = state.attr.mode & (S_ISUID | S_ISGID) == 0;
        if !sole.may_put_off.load(Ordering::SeqCst) || !is_simple || !desk.memory.is_valid() {
            return None;
        }
        if let Some(place) = &state.place {
            let its = place.cred();
            let is_same = (its.uid, its.gid) == (cred.uid, cred.gid);
            let fits = place.len() + PutOff::SIZE + len <= PUT_OFF_BYTES_MAX;
            return if is_same && fits { state.place.as_mut() } else { None };
        }
        let place = self.places.take(sole.ino, sole.fh, &cred)?;
        // Before the memory forgets it: who looks there then looks here.
        self.concern(sole.ino);
        let change = match desk.at_once {
            true => desk.memory.change_at_once(sole.ino),
            false => Some(desk.memory.change(sole.ino)),
        };
        let Some(change) = change else {
            self.settle(sole.ino, place);
            return None;
        };
        // Nobody opens it from memory from now on; whoever has just done so keeps what it has.
        if is_right && desk.promised.has(sole.ino) {
            drop(change);
            self.settle(sole.ino, place);
            return None;
        }
        state.stamp = change.leave();
        Some(state.place.insert(place))
    }

    /// Writes back what is put off of inode `ino`. With `sync` it is stored then. `None`: there was nothing. An error is also kept until it is told to
    /// whom it concerns.
    pub(crate) fn write_back(
        &self,
        memory: &Memory,
        ino: u64,
        sync: bool,
        send: Send<'_>,
    ) -> Option<Result<(), Errno>> {
        let sole = self.concerned_one(ino)?;
        let mut state = sole.state();
        (state.place.is_some()).then(|| self.send(memory, &sole, &mut state, sync, send))
    }

    fn concerned_one(&self, ino: u64) -> Option<Arc<Sole>> {
        if self.concerns(ino) { self.get(ino) } else { None }
    }

    fn send(
        &self,
        memory: &Memory,
        sole: &Sole,
        state: &mut State,
        sync: bool,
        send: Send<'_>,
    ) -> Result<(), Errno> {
        let change = memory.resume(sole.ino, state.stamp);
        let Some(place) = state.place.take() else { return Ok(()) };
        let outcome = match send(&place, sync) {
            Ok((WrittenBack { errno, attr: leased }, attr)) => {
                (state.attr, state.is_known) = (attr, change.is_all_of(attr.ino));
                change.keep_attr(leased & !attributes::SOLE, attr);
                if leased & attributes::SOLE == 0 {
                    sole.may_put_off.store(false, Ordering::SeqCst);
                }
                if errno == 0 { Ok(()) } else { Err(Errno::new(errno.into())) }
            }
            Err(error) => {
                sole.may_put_off.store(false, Ordering::SeqCst);
                Err(error)
            }
        };
        if let Err(error) = outcome {
            self.keep_error(sole.fh, error);
        }
        drop(change);
        self.settle(sole.ino, place);
        outcome
    }

    /// As [`Soles::write_back`], of all files.
    pub(crate) fn write_back_all(&self, memory: &Memory, send: Send<'_>) {
        for ino in self.concerned() {
            // An error is kept.
            self.write_back(memory, ino, false, send);
        }
    }

    /// Nothing more is put off of inode `ino` (0: of any); what was is written back.
    pub(crate) fn end(&self, memory: &Memory, ino: u64, send: Send<'_>) {
        let files: Vec<Arc<Sole>> = match ino {
            0 => self.files().values().cloned().collect(),
            ino => self.get(ino).into_iter().collect(),
        };
        for sole in files {
            // Under its lock: who is putting something off has either done so or sees this.
            let mut state = sole.state();
            sole.may_put_off.store(false, Ordering::SeqCst);
            if state.place.is_some() {
                // It is kept.
                self.send(memory, &sole, &mut state, false, send).ok();
            }
        }
    }

    /// The error that is to be told through open file `fh`.
    ///
    /// # Errors
    /// That, once.
    pub(crate) fn tell(&self, fh: u64) -> Result<(), Errno> {
        if self.error_count.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let mut errors = self.errors();
        let told = errors.remove(&fh);
        self.error_count.store(errors.len(), Ordering::SeqCst);
        if let Some((_, Some(row))) = told {
            self.error_rows.remove(row);
        }
        told.map_or(Ok(()), |(error, _)| Err(error))
    }

    /// Is there one?
    pub(crate) fn has_error(&self, fh: u64) -> bool {
        self.error_count.load(Ordering::SeqCst) > 0 && self.errors().contains_key(&fh)
    }

    fn errors(&self) -> MutexGuard<'_, HashMap<u64, (Errno, Option<usize>)>> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, HashMap<u64, Arc<Sole>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sole {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: somebody is at it, for whom nobody waits.
    fn state_for(&self, desk: Desk<'_>) -> Option<MutexGuard<'_, State>> {
        if desk.at_once { self.state.try_lock().ok() } else { Some(self.state()) }
    }
}

/// What the server will make of attributes. Of a time that it chooses nobody is told.
fn changed(mut attr: Attr, change: &SetAttr) -> Attr {
    let has = |bit| change.valid & bit != 0;
    if has(set::UID) {
        attr.uid = change.uid;
    }
    if has(set::GID) {
        attr.gid = change.gid;
    }
    if has(set::MODE) {
        attr.mode = attr.mode & !S_IALLUGO | change.mode & S_IALLUGO;
    }
    if has(set::ATIME) && !has(set::ATIME_NOW) {
        attr.atime = change.atime;
    }
    if has(set::MTIME) && !has(set::MTIME_NOW) {
        attr.mtime = change.mtime;
    }
    attr
}

impl Change<'_> {
    /// Goes on with it by [`Memory::resume`].
    fn leave(self) -> u64 {
        let stamp = self.stamp();
        std::mem::forget(self);
        stamp
    }
}

#[cfg(test)]
impl Default for Soles {
    fn default() -> Soles {
        let mut estate = crate::estate::Estate::default();
        let calls = estate.calls.clone();
        let heirlooms = estate.take();
        Soles::new(heirlooms.places, heirlooms.errors, heirlooms.done, calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PUT_OFF_FILES_MAX;
    use m3ipc::errno::numbers::{EIO, ENOSPC};
    use std::cell::RefCell;
    use std::time::{Duration, Instant};

    const INO: u64 = 7;
    const FH: u64 = 70;
    const MODE: u32 = 0o100_644;

    fn attr() -> Attr {
        Attr { ino: INO, mode: MODE, uid: 5, size: 10, ..Attr::default() }
    }

    /// Agent's memory with a session, and one file with a sole writer.
    struct Desks {
        memory: Memory,
        promised: Promised,
        soles: Soles,
        /// What the server was told, and what it answers.
        sent: RefCell<Vec<Vec<u8>>>,
        answer: Result<u16, Errno>,
        stays: bool,
    }

    impl Desks {
        fn new() -> Desks {
            let memory = Memory::default();
            memory.begin_session(Instant::now(), Duration::from_secs(3600));
            let soles = Soles::default();
            soles.add(attr(), FH, || true);
            let (promised, sent) = (Promised::default(), RefCell::default());
            Desks { memory, promised, soles, sent, answer: Ok(0), stays: true }
        }

        fn desk(&self) -> Desk<'_> {
            Desk { memory: &self.memory, promised: &self.promised, request: 0, at_once: true }
        }

        fn write(&self, uid: u32, at: At, data: &[u8]) -> Option<Result<usize, Errno>> {
            let cred = Cred::new(1, uid, 0);
            Some(self.soles.write(self.desk(), (INO, FH), cred, at, data)?.1)
        }

        fn set(&self, uid: u32, change: SetAttr) -> Option<Attr> {
            self.soles.set(self.desk(), INO, Cred::new(1, uid, 0), &change)
        }

        fn write_back(&self) -> Option<Result<(), Errno>> {
            let send = |place: &Place, _| {
                self.sent.borrow_mut().push(place.payload());
                let sole = if self.stays { attributes::SOLE } else { 0 };
                let written = |errno| WrittenBack { errno, attr: attributes::KEPT | sole };
                self.answer.map(|errno| (written(errno), attr()))
            };
            self.soles.write_back(&self.memory, INO, false, &send)
        }
    }

    fn mode(mode: u32) -> SetAttr {
        SetAttr { valid: set::MODE, mode, ..SetAttr::default() }
    }

    #[test]
    fn what_is_put_off_is_sent_together_in_its_order() {
        let d = Desks::new();
        let asked = d.memory.asked();
        assert_eq!(d.write(5, At::Offset(0), b"ab"), Some(Ok(2)));
        assert!(!d.memory.is_as_asked(INO, asked), "a change is under way");
        assert_eq!(d.write(5, At::Offset(2), b"c"), Some(Ok(1)), "it goes with the first");
        assert_eq!(d.write(5, At::End, b"end"), Some(Ok(3)));
        assert_eq!(d.set(5, mode(0o600)).map(|attr| (attr.mode, attr.size)), Some((0o100_600, 13)));
        assert_eq!(d.soles.concerned(), [INO]);
        assert!(!d.soles.remove_at_once(INO, FH));
        assert_eq!(d.write_back(), Some(Ok(())));
        assert_eq!((d.write_back(), d.soles.concerned()), (None, Vec::new()));
        let payload = d.sent.borrow_mut().remove(0);
        let mut rest = &payload[..];
        let mut parts = Vec::new();
        while let Some(head) = PutOff::get(rest) {
            let end = PutOff::SIZE + head.len as usize;
            parts.push((head.kind, head.offset, rest[PutOff::SIZE..end].to_vec()));
            rest = &rest[end..];
        }
        assert_eq!(parts[0], (PutOff::WRITE, 0, b"abc".to_vec()));
        assert_eq!(parts[1], (PutOff::WRITE, 10, b"end".to_vec()));
        assert_eq!(parts[2], (PutOff::SET, 0, mode(0o600).bytes().to_vec()));
        assert!(d.memory.is_as_asked(INO, d.memory.asked()), "it is over");
        assert!(d.soles.remove_at_once(INO, FH));
        assert_eq!(d.write(5, At::End, b"x"), None, "it is closed");
    }

    #[test]
    fn only_what_is_known_to_be_allowed_is_put_off() {
        let d = Desks::new();
        let owner = SetAttr { valid: set::UID, uid: 9, ..SetAttr::default() };
        let size = SetAttr { valid: set::SIZE | set::MODE, ..SetAttr::default() };
        for (uid, change) in
            [(6, mode(0)), (5, owner), (0, size), (5, mode(0o4755)), (0, mode(0o2755))]
        {
            assert_eq!(d.set(uid, change), None, "{uid} {change:?}");
        }
        assert_eq!(d.write(5, At::Offset(FILE_SIZE_MAX), b"x"), None, "that is EFBIG");
        assert_eq!(d.write(5, At::End, &[0; PUT_OFF_SIZE_MAX + 1]), None);
        assert_eq!(d.write(5, At::End, b""), None);
        assert_eq!(d.write(5, At::Offset(attr().size + 1), b"x"), None, "it would make a hole");
        // Who has it open by what the mode was keeps it.
        d.promised.open(INO, 0, Cred::new(1, 8, 8), 0).unwrap();
        assert_eq!(d.set(0, mode(0o600)), None);
        assert!(d.memory.is_as_asked(INO, d.memory.asked()) && d.soles.concerned().is_empty());
        assert_eq!(d.write(5, At::End, b"x"), Some(Ok(1)));
        assert_eq!(d.write(6, At::End, b"x"), None, "who asks is another");
        // What programs have done otherwise must be seen first.
        d.write_back().unwrap().unwrap();
        d.soles.disturb(INO);
        assert_eq!(d.write(5, At::End, b"x"), None);
        d.soles.know(attr(), || false);
        assert_eq!(d.write(5, At::End, b"x"), None);
        d.soles.know(attr(), || true);
        assert_eq!(d.write(5, At::End, b"x"), Some(Ok(1)));
        d.write_back().unwrap().unwrap();
        d.memory.end_session();
        assert_eq!(d.write(5, At::End, b"x"), None, "there is no session");
    }

    #[test]
    fn an_error_is_told_once_through_the_file_that_was_written() {
        for (answer, told, goes_on) in [(Ok(28), ENOSPC, true), (Err(Errno::new(EIO)), EIO, false)]
        {
            let d = Desks { answer, ..Desks::new() };
            d.write(5, At::End, b"x").unwrap().unwrap();
            assert_eq!(d.write_back(), Some(Err(Errno::new(told))));
            assert_eq!(d.soles.tell(FH + 1), Ok(()), "another open file");
            assert!(d.soles.has_error(FH) && !d.soles.remove_at_once(INO, FH));
            assert_eq!(d.write(5, At::End, b"y"), Some(Err(Errno::new(told))));
            assert_eq!(d.soles.tell(FH), Ok(()));
            assert_eq!(d.write(5, At::End, b"y").is_some(), goes_on);
        }
        let d = Desks { stays: false, ..Desks::new() };
        d.write(5, At::End, b"x").unwrap().unwrap();
        assert_eq!(d.write_back(), Some(Ok(())));
        assert_eq!(d.write(5, At::End, b"y"), None, "it is the sole writer no more");
    }

    #[test]
    fn who_was_recalled_before_it_was_known_is_no_sole_writer() {
        let d = Desks::new();
        d.soles.add(attr(), FH + 1, || false);
        assert!(d.soles.get(INO).is_none());
        let send: Send<'_> = &|_, _| unreachable!("nothing is put off");
        d.soles.add(attr(), FH, || true);
        d.soles.end(&d.memory, INO, send);
        assert_eq!(d.write(5, At::End, b"x"), None);
    }

    #[test]
    fn files_of_which_something_is_put_off_are_bounded() {
        let d = Desks::new();
        for number in 0..PUT_OFF_FILES_MAX as u64 + 1 {
            let attr = Attr { ino: 1000 + number, ..attr() };
            d.soles.add(attr, 1, || true);
            let cred = Cred::new(1, 5, 0);
            let put_off = d.soles.write(d.desk(), (attr.ino, 1), cred, At::End, b"x");
            assert_eq!(put_off.is_some(), number < PUT_OFF_FILES_MAX as u64);
        }
        let most = PUT_OFF_BYTES_MAX / PUT_OFF_SIZE_MAX;
        let d = Desks::new();
        let fit = (0..10).take_while(|_| d.write(5, At::End, &[0; PUT_OFF_SIZE_MAX]).is_some());
        assert!(fit.count() <= most);
    }
}
