//! Which pages of files the kernel may have: those of which vfs-server has given this agent leases, until it wants them back.
//!
//! The kernel fills pages by reads of its own (not for read(2) of a file that is opened for direct I/O), and is made to lose them before the
//! server is told so. A page that is being read is locked, and who makes the kernel lose it waits for that. So nobody waits here for
//! the server's word about pages that the server may be waiting for:
//!
//! - What is being read when pages are to go is not there yet. It is passed over, and asked for anew when its answer has come.
//! - What comes to be read while the kernel is losing just that may be what it waits for. It is answered after a moment, as the server still counts these
//!   pages as ours, and the kernel loses them again.
//! - Read-ahead of several pages does not wait for others: it fails, and the kernel reads the page that it needs by itself.
//!
//! Who has a file open for writing may map it, and write to pages that are there without anybody being told. So while somebody on this node has, all
//! its pages are read exclusively, and before that it loses those that are shared.

use crate::estate::Table;
use crate::kernel::Kernel;
use crate::limits::{
    AGAIN_PAUSE, PAGED_FILES_MAX, PAGES_KEPT_FOR, READ_HELD_DOUBLINGS, READ_HELD_FOR,
};
use calls::vfs::PAGE_SIZE;
use m3ipc::Errno;
use rangemap::RangeSet;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// All pages of a file.
pub(crate) const ALL: Range<u64> = 0..u64::MAX;

/// All pages that the kernel may have.
#[derive(Debug)]
pub(crate) struct Pages {
    state: Mutex<State>,
    changed: Condvar,
    /// There is something for who gives pages back.
    wanted: Condvar,
    kernel: OnceLock<Arc<dyn Kernel>>,
}

#[derive(Debug)]
struct State {
    files: HashMap<u64, File>,
    /// Files with pages, and those that are open for reading and writing, as a successor finds them.
    paged_rows: Table<1>,
    writer_rows: Table<2>,
    /// The session with vfs-server; 0: there is none.
    session: u64,
    /// When it may be over, and whether a thread waits until then.
    until: Option<Instant>,
    is_watched: bool,
    /// Attempts to begin one that have failed, and why the last one did.
    failures: u64,
    failure: Option<Errno>,
    /// The number of the next read, or loss.
    next: u64,
    /// How often programs have set a size.
    settings: u64,
    /// What the server wants back.
    recalls: VecDeque<Recall>,
    /// Files of which there are pages, as they came.
    held: BTreeMap<u64, u64>,
    has_ended: bool,
}

#[derive(Debug, Default)]
struct File {
    /// The kernel may have these.
    held: RangeSet<u64>,
    reads: Vec<Read>,
    loss: Option<Loss>,
    /// Read while the kernel was losing them.
    late: RangeSet<u64>,
    /// Read-ahead that has failed: who asks for that once more waits.
    refused: Option<Range<u64>>,
    /// Files that are open for reading and writing, and their rows.
    writers: HashMap<u64, Option<usize>>,
    /// When pages were read last.
    read: Option<Instant>,
    /// Its place in [`State::held`], and its row.
    place: Option<u64>,
    row: Option<usize>,
    /// A thread is about to give some back.
    is_taken: bool,
    /// The size that the kernel is known to have been told.
    size: Option<u64>,
    /// Which setting of a size was the last of this one.
    setting: u64,
    /// It is being told a larger one.
    is_growing: bool,
}

impl File {
    fn is_idle(&self) -> bool {
        self.held.is_empty()
            && self.reads.is_empty()
            && self.loss.is_none()
            && self.refused.is_none()
            && !self.is_taken
            && !self.is_growing
            && self.writers.is_empty()
    }
}

/// Pages that are being read.
#[derive(Debug)]
struct Read {
    number: u64,
    pages: Range<u64>,
    /// They have been recalled since the server was asked.
    is_void: bool,
}

/// Pages that the kernel is losing.
#[derive(Debug)]
struct Loss {
    /// Reads with smaller numbers are passed over.
    number: u64,
    pages: Range<u64>,
    /// Of these, what the kernel may have; and what it may have got again since.
    going: RangeSet<u64>,
    /// How often it has lost what it got again.
    rounds: u32,
    /// It has lost them, and the server is being told.
    is_over: bool,
}

/// What the server wants back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recall {
    pub(crate) session: u64,
    pub(crate) ino: u64,
    pub(crate) pages: Range<u64>,
}

/// How pages are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// With a lease.
    Leased { is_exclusive: bool, waits: bool },
    /// As they are: the server counts them as ours, and the kernel loses them again.
    AsTheyAre,
    /// Not.
    Refused,
}

/// A read of pages that is under way.
#[derive(Debug)]
#[must_use]
pub(crate) struct Reading<'a> {
    pages: &'a Pages,
    ino: u64,
    number: u64,
    range: Range<u64>,
}

impl Pages {
    /// With what the rows have: of these files the kernel may have any pages.
    pub(crate) fn new(paged_rows: Table<1>, writer_rows: Table<2>) -> Pages {
        let mut state = State {
            files: HashMap::new(),
            session: 0,
            until: None,
            is_watched: false,
            failures: 0,
            failure: None,
            next: 0,
            settings: 0,
            recalls: VecDeque::new(),
            held: BTreeMap::new(),
            has_ended: false,
            paged_rows,
            writer_rows,
        };
        let paged: Vec<(usize, [u64; 1])> = state.paged_rows.rows().collect();
        for (row, [ino]) in paged {
            // It was losing pages, and got others.
            if state.files.contains_key(&ino) {
                state.paged_rows.remove(row);
                continue;
            }
            let place = state.number();
            state.held.insert(place, ino);
            let file = state.files.entry(ino).or_default();
            file.held.insert(ALL);
            (file.place, file.row) = (Some(place), Some(row));
        }
        for (row, [ino, fh]) in state.writer_rows.rows() {
            state.files.entry(ino).or_default().writers.insert(fh, Some(row));
        }
        Pages {
            state: Mutex::new(state),
            changed: Condvar::new(),
            wanted: Condvar::new(),
            kernel: OnceLock::new(),
        }
    }

    /// From now on `kernel` can be made to lose pages.
    pub(crate) fn attach(&self, kernel: Arc<dyn Kernel>) {
        // A mount has one kernel.
        drop(self.kernel.set(kernel));
    }

    /// Can the kernel be made to lose pages?
    pub(crate) fn is_attached(&self) -> bool {
        self.kernel.get().is_some()
    }

    /// A program has opened a file for reading and writing. To be said before it knows.
    pub(crate) fn add_writer(&self, ino: u64, fh: u64) {
        let is_first = {
            let mut state = self.state();
            let file = state.files.entry(ino).or_default();
            let is_first =
                file.writers.is_empty() && !(file.held.is_empty() && file.reads.is_empty());
            file.writers.entry(fh).or_insert(None);
            is_first
        };
        if is_first {
            self.lose(ino, &ALL, || ());
        }
        // Another may have come just before.
        let mut state = self.state();
        while state.files.get(&ino).is_some_and(|file| file.loss.is_some()) {
            state = self.wait(state);
        }
        // Now that the kernel has none that are shared: a successor that finds the row relies on that.
        let State { files, writer_rows, .. } = &mut *state;
        if let Some(row @ None) = files.get_mut(&ino).and_then(|file| file.writers.get_mut(&fh)) {
            *row = writer_rows.must_put([ino, fh]);
        }
    }

    /// A file is closed that may have been open for reading and writing.
    pub(crate) fn remove_writer(&self, ino: u64, fh: u64) {
        let mut state = self.state();
        if let Some(file) = state.files.get_mut(&ino)
            && let Some(row) = file.writers.remove(&fh)
        {
            row.into_iter().for_each(|row| state.writer_rows.remove(row));
            state.tidy(ino);
        }
    }

    /// Does the kernel read pages of a file at the moment?
    pub(crate) fn is_being_read(&self, ino: u64) -> bool {
        self.state().files.get(&ino).is_some_and(|file| !file.reads.is_empty())
    }

    /// The kernel reads pages.
    pub(crate) fn reading(&self, ino: u64, range: Range<u64>) -> Reading<'_> {
        let mut state = self.state();
        let number = state.number();
        let read = Read { number, pages: range.clone(), is_void: false };
        state.files.entry(ino).or_default().reads.push(read);
        Reading { pages: self, ino, number, range }
    }

    /// The server has begun a session, that may be over at `until`.
    pub(crate) fn begin_session(&self, session: u64, until: Instant) {
        let mut state = self.state();
        (state.session, state.until) = (session, Some(until));
        drop(state);
        self.wanted.notify_one();
        self.changed.notify_all();
    }

    /// The server goes on with it. False: it has been given up here meanwhile, and what it recalled forgotten.
    pub(crate) fn extend(&self, session: u64, until: Instant) -> bool {
        let mut state = self.state();
        let goes_on = state.session == session;
        if goes_on {
            state.until = Some(until);
        }
        goes_on
    }

    /// Does anybody wait for a session?
    pub(crate) fn is_wanted(&self) -> bool {
        self.state().files.values().any(|file| !file.reads.is_empty())
    }

    /// May programs be using pages without asking for anything?
    pub(crate) fn are_mapped(&self) -> bool {
        let is_mapped = |file: &File| !(file.writers.is_empty() || file.held.is_empty());
        self.state().files.values().any(is_mapped)
    }

    /// The kernel does not know an inode any more, perhaps: so it needs no pages of it.
    pub(crate) fn is_forgotten(&self, ino: u64) {
        let mut state = self.state();
        let session = state.session;
        if state.files.get(&ino).is_some_and(|file| !file.held.is_empty()) {
            state.recalls.push_back(Recall { session, ino, pages: ALL });
            drop(state);
            self.wanted.notify_one();
        }
    }

    /// There is no session, and none could be begun.
    pub(crate) fn fail(&self, error: Errno) {
        let mut state = self.state();
        state.failures += 1;
        state.failure = Some(error);
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn has_session(&self) -> bool {
        self.state().session != 0
    }

    /// The session is over, or is about to end: the kernel loses everything. Who reads pages waits for another one.
    pub(crate) fn end_session(&self) {
        let state = self.state();
        self.lose_everything(state);
    }

    /// As [`Pages::end_session`], if it may be over.
    fn lapse(&self) {
        let state = self.state();
        if state.until.is_some_and(|until| until <= Instant::now()) {
            tracing::debug!("vfs-server has not been heard of: pages are lost");
            self.lose_everything(state);
        }
    }

    fn lose_everything(&self, mut state: MutexGuard<'_, State>) {
        (state.session, state.until) = (0, None);
        state.recalls.clear();
        for file in state.files.values_mut() {
            file.refused = None;
            file.reads.iter_mut().for_each(|read| read.is_void = true);
        }
        let files: Vec<u64> = state.files.keys().copied().collect();
        drop(state);
        for ino in files {
            self.lose(ino, &ALL, || ());
        }
    }

    /// The kernel loses all pages of a file that it has, if it has any: others may have changed them.
    pub(crate) fn lose_all(&self, ino: u64) {
        let has_some = self.state().files.get(&ino).is_some_and(|file| !file.held.is_empty());
        if has_some {
            self.lose(ino, &ALL, || ());
        }
    }

    /// The kernel is about to be told that a file has `size` bytes. What is told while it loses pages of the file it does not take up, and a fault beyond the
    /// end that it knows is a SIGBUS: so it learns of a larger size in another way first.
    ///
    /// `asked`: of [`Pages::asked`]. It learns of it before anybody can be told the same.
    pub(crate) fn tell_size(&self, ino: u64, size: u64, asked: u64) {
        let Some(kernel) = self.kernel.get() else { return };
        let last = pages_in(size).saturating_sub(1);
        let mut state = self.while_growing(ino);
        let Some(file) = state.files.get_mut(&ino) else { return };
        if file.setting > asked {
            return;
        }
        if file.size.replace(size).is_none_or(|before| pages_in(size) <= pages_in(before)) {
            return;
        }
        // Nobody is told the same, or has it so long otherwise, before it knows.
        file.is_growing = true;
        // It may have the last page of when the file was that long before, and must not.
        loop {
            let file = state.files.entry(ino).or_default();
            let is_read = file.reads.iter().any(|read| read.pages.contains(&last));
            let is_going = file.loss.as_ref().is_some_and(|loss| loss.going.contains(&last));
            if is_read || is_going {
                state = self.wait(state);
            } else if file.held.contains(&last) {
                drop(state);
                self.lose(ino, &(last..last + 1), || ());
                state = self.state();
            } else {
                break;
            }
        }
        drop(state);
        kernel.grow(ino, size);
        if let Some(file) = self.state().files.get_mut(&ino) {
            file.is_growing = false;
        }
        self.changed.notify_all();
    }

    /// A moment before the server is asked for a size.
    pub(crate) fn asked(&self) -> u64 {
        self.state().settings
    }

    /// A program is about to set the size of a file.
    pub(crate) fn set_size(&self, ino: u64) {
        let mut state = self.while_growing(ino);
        let State { files, settings, .. } = &mut *state;
        if let Some(file) = files.get_mut(&ino) {
            *settings += 1;
            file.setting = *settings;
        }
    }

    /// A program has set the size of a file, and its kernel is about to know.
    pub(crate) fn has_size(&self, ino: u64, size: u64) {
        self.set_size(ino);
        if let Some(file) = self.while_growing(ino).files.get_mut(&ino) {
            file.size = Some(size);
        }
    }

    /// As [`Pages::has_size`], of a file that is longer than that, perhaps.
    pub(crate) fn has_written(&self, ino: u64, end: u64) {
        if let Some(file) = self.while_growing(ino).files.get_mut(&ino) {
            file.size = file.size.map(|size| size.max(end));
        }
    }

    /// As [`Pages::has_written`], if that takes no time. False: it does.
    pub(crate) fn has_written_at_once(&self, ino: u64, end: u64) -> bool {
        let mut state = self.state();
        match state.files.get_mut(&ino) {
            Some(file) if file.is_growing => false,
            Some(file) => {
                file.size = file.size.map(|size| size.max(end));
                true
            }
            None => true,
        }
    }

    fn while_growing(&self, ino: u64) -> MutexGuard<'_, State> {
        let mut state = self.state();
        while state.files.get(&ino).is_some_and(|file| file.is_growing) {
            state = self.wait(state);
        }
        state
    }

    /// The server wants pages back.
    pub(crate) fn recall(&self, recall: Recall) {
        self.state().recalls.push_back(recall);
        self.wanted.notify_one();
    }

    /// Gives back what the server wants, until [`Pages::end`]. `let_go` tells it so; several threads may do this.
    pub(crate) fn give_back(&self, let_go: impl Fn(&Recall) -> Result<(), Errno>) {
        while let Some((recall, pause)) = self.next_recall() {
            // Who has just got pages uses them once at least.
            std::thread::sleep(pause);
            self.lose(recall.ino, &recall.pages, || {
                while let Err(error) = let_go(&recall) {
                    // Without a session there is nothing to be told.
                    if self.state().session != recall.session {
                        break;
                    }
                    tracing::debug!(?error, ?recall, "pages cannot be given back");
                    std::thread::sleep(AGAIN_PAUSE);
                }
            });
            let mut state = self.state();
            if let Some(file) = state.files.get_mut(&recall.ino) {
                file.is_taken = false;
            }
            state.tidy(recall.ino);
        }
    }

    /// Lets the threads in [`Pages::give_back`] end.
    pub(crate) fn end(&self) {
        self.state().has_ended = true;
        self.wanted.notify_all();
    }

    /// What is to be given back next, and how long its pages are to be kept yet. `None`: no more is. When the session may be over
    /// the kernel loses everything here: who keeps it may be waiting for an answer.
    fn next_recall(&self) -> Option<(Recall, Duration)> {
        let mut state = self.state();
        loop {
            if state.has_ended {
                return None;
            }
            let State { recalls, files, .. } = &mut *state;
            // Another thread has the others' files.
            let is_free = |recall: &Recall| {
                files.get(&recall.ino).is_none_or(|file| file.loss.is_none() && !file.is_taken)
            };
            if let Some(recall) = recalls.iter().position(is_free).and_then(|at| recalls.remove(at))
            {
                let file = files.entry(recall.ino).or_default();
                file.is_taken = true;
                let kept = file.read.map_or(PAGES_KEPT_FOR, |read| read.elapsed());
                if state.until.is_some() && !state.is_watched {
                    self.wanted.notify_one();
                }
                return Some((recall, PAGES_KEPT_FOR.saturating_sub(kept)));
            }
            let now = Instant::now();
            match state.until {
                Some(until) if until <= now => {
                    drop(state);
                    self.lapse();
                    state = self.state();
                }
                // One is enough to wait for that.
                Some(until) if !state.is_watched => {
                    state.is_watched = true;
                    let waited = self.wanted.wait_timeout(state, until - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    state.is_watched = false;
                }
                _ => state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Has the kernel lose pages, and calls `tell` when it has; nothing of them is read before that returns.
    fn lose(&self, ino: u64, pages: &Range<u64>, tell: impl FnOnce()) {
        let Some(kernel) = self.kernel.get() else { return tell() };
        let mut state = self.state();
        while state.files.get(&ino).is_some_and(|file| file.loss.is_some()) {
            state = self.wait(state);
        }
        let number = state.number();
        let file = state.files.entry(ino).or_default();
        let mut there: RangeSet<u64> = overlap(&file.held, pages);
        for read in file.reads.iter_mut().filter(|read| overlaps(&read.pages, pages)) {
            read.is_void = true;
            remove(&mut there, &read.pages);
        }
        remove(&mut file.held, pages);
        let going = there.clone();
        file.loss = Some(Loss { number, pages: pages.clone(), going, rounds: 0, is_over: false });
        let place = if file.held.is_empty() { file.place.take() } else { None };
        // As long as the kernel has them, a successor is to know.
        let row = place.and_then(|_| file.row.take());
        if let Some(place) = place {
            state.held.remove(&place);
        }
        while !there.is_empty() {
            drop(state);
            for run in there.iter() {
                kernel.lose_pages(ino, run);
            }
            state = self.state();
            let file = state.files.entry(ino).or_default();
            there = std::mem::take(&mut file.late);
            if let Some(loss) = &mut file.loss {
                loss.rounds += 1;
            }
        }
        if let Some(loss) = &mut state.files.entry(ino).or_default().loss {
            loss.is_over = true;
        }
        drop(state);
        tell();
        let mut state = self.state();
        row.into_iter().for_each(|row| state.paged_rows.remove(row));
        state.files.entry(ino).or_default().loss = None;
        state.tidy(ino);
        if !state.recalls.is_empty() {
            self.wanted.notify_one();
        }
        drop(state);
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A file has pages that had none. If many have, the oldest that nobody writes to gives way.
    fn note(&mut self, ino: u64) {
        let place = self.number();
        self.held.insert(place, ino);
        let row = self.paged_rows.must_put([ino]);
        let file = self.files.entry(ino).or_default();
        (file.place, file.row) = (Some(place), row);
        if self.held.len() <= PAGED_FILES_MAX {
            return;
        }
        let Some((_, oldest)) = self.held.pop_first() else { return };
        let place = self.number();
        let Some(file) = self.files.get_mut(&oldest) else { return };
        file.place = Some(place);
        self.held.insert(place, oldest);
        if file.writers.is_empty() {
            let session = self.session;
            self.recalls.push_back(Recall { session, ino: oldest, pages: ALL });
        }
    }

    /// Forgets a file of which there is nothing to be known.
    fn tidy(&mut self, ino: u64) {
        if self.files.get(&ino).is_some_and(File::is_idle) {
            self.files.remove(&ino);
        }
    }
}

impl Reading<'_> {
    /// How the pages are to be read now.
    ///
    /// # Errors
    /// There is no session, and there can be none for now.
    pub(crate) fn how(&self) -> Result<How, Errno> {
        let begun = Instant::now();
        let mut state = self.pages.state();
        let failures = state.failures;
        loop {
            let has_session = state.session != 0;
            if !has_session && state.failures != failures {
                return Err(state.failure.unwrap_or(Errno::new(m3ipc::errno::numbers::EIO)));
            }
            let file = state.files.entry(self.ino).or_default();
            let is_refused = file.refused.as_ref() == Some(&self.range);
            let is_one = self.range.end - self.range.start <= 1;
            let loss = file.loss.as_ref().filter(|loss| overlaps(&loss.pages, &self.range));
            match loss {
                Some(loss)
                    if self.number > loss.number
                        && !loss.is_over
                        && loss.going.overlaps(&self.range) =>
                {
                    // It may be what the kernel waits for.
                    // Longer each time, so that it comes to an end.
                    let hold = READ_HELD_FOR * 2u32.pow(loss.rounds.min(READ_HELD_DOUBLINGS));
                    let held = begun.elapsed();
                    if held < hold {
                        state = self
                            .pages
                            .changed
                            .wait_timeout(state, hold - held)
                            .unwrap_or_else(PoisonError::into_inner)
                            .0;
                        continue;
                    }
                    if !is_one && !is_refused {
                        file.refused = Some(self.range.clone());
                        return Ok(How::Refused);
                    }
                    file.late.insert(self.range.clone());
                    if let Some(loss) = &mut file.loss {
                        loss.going.insert(self.range.clone());
                    }
                    return Ok(How::AsTheyAre);
                }
                Some(_) => {}
                None if has_session => {
                    let is_exclusive = !file.writers.is_empty();
                    let its = file.reads.iter_mut().find(|read| read.number == self.number);
                    if let Some(read) = its {
                        read.is_void = false;
                    }
                    return Ok(How::Leased { is_exclusive, waits: is_one || is_refused });
                }
                None => {}
            }
            state = self.pages.wait(state);
        }
    }

    /// The server has given a lease. False: the pages have been recalled since it was asked for, and it must be asked again.
    pub(crate) fn keep(&self) -> bool {
        let mut state = self.pages.state();
        let file = state.files.entry(self.ino).or_default();
        let is_void = file.reads.iter().any(|read| read.number == self.number && read.is_void);
        if !is_void {
            // From now on the kernel may have them, and waits itself for what it is about to be told.
            file.reads.retain(|read| read.number != self.number);
            let is_new = file.place.is_none();
            file.held.insert(self.range.clone());
            file.read = Some(Instant::now());
            file.refused.take_if(|refused| refused.contains(&self.range.start));
            if is_new {
                state.note(self.ino);
                if !state.recalls.is_empty() {
                    self.pages.wanted.notify_one();
                }
            }
        }
        !is_void
    }

    /// Others have some of these pages, and this is read-ahead.
    pub(crate) fn refuse(&self) {
        let mut state = self.pages.state();
        state.files.entry(self.ino).or_default().refused = Some(self.range.clone());
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.pages.state();
        if let Some(file) = state.files.get_mut(&self.ino) {
            file.reads.retain(|read| read.number != self.number);
        }
        state.tidy(self.ino);
        drop(state);
        self.pages.changed.notify_all();
    }
}

/// How many pages a file of `size` bytes has.
fn pages_in(size: u64) -> u64 {
    size.div_ceil(PAGE_SIZE)
}

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What of `set` is in `pages`.
fn overlap(set: &RangeSet<u64>, pages: &Range<u64>) -> RangeSet<u64> {
    let cut = |run: &Range<u64>| run.start.max(pages.start)..run.end.min(pages.end);
    set.iter().filter(|run| overlaps(run, pages)).map(cut).collect()
}

fn remove(set: &mut RangeSet<u64>, pages: &Range<u64>) {
    if pages.start < pages.end {
        set.remove(pages.clone());
    }
}

#[cfg(test)]
impl Default for Pages {
    fn default() -> Pages {
        let heirlooms = crate::estate::Estate::default().take();
        Pages::new(heirlooms.paged, heirlooms.writers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::errno::numbers::ENOLCK;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread;

    type Steps = (SyncSender<(u64, u64)>, Mutex<Receiver<()>>);

    /// A kernel that notes what it loses, and says when it begins to and may go on if it has somebody to tell.
    #[derive(Debug, Default)]
    struct Noting {
        lost: Mutex<Vec<(u64, u64)>>,
        steps: Option<Steps>,
    }

    impl Kernel for Noting {
        fn forget(&self, ino: u64) -> bool {
            panic!("attributes of {ino}");
        }

        fn grow(&self, _: u64, size: u64) {
            self.lost.lock().unwrap().push((u64::MAX, size));
        }

        fn lose_pages(&self, _: u64, pages: &Range<u64>) {
            let pages = (pages.start, pages.end);
            self.lost.lock().unwrap().push(pages);
            if let Some((begins, goes)) = &self.steps {
                begins.send(pages).unwrap();
                goes.lock().unwrap().recv().unwrap();
            }
        }
    }

    impl Noting {
        fn take(&self) -> Vec<(u64, u64)> {
            std::mem::take(&mut self.lost.lock().unwrap())
        }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    fn pages() -> (Pages, Arc<Noting>) {
        let (pages, kernel) = (Pages::default(), Arc::new(Noting::default()));
        pages.attach(kernel.clone());
        pages.begin_session(1, later());
        (pages, kernel)
    }

    /// With a kernel that loses pages step by step.
    fn stepping() -> (Pages, Receiver<(u64, u64)>, SyncSender<()>) {
        let ((begins, begun), (go, goes)) = (sync_channel(0), sync_channel(0));
        let pages = Pages::default();
        let steps = Some((begins, Mutex::new(goes)));
        pages.attach(Arc::new(Noting { lost: Mutex::default(), steps }));
        pages.begin_session(1, later());
        (pages, begun, go)
    }

    const SHARED: How = How::Leased { is_exclusive: false, waits: true };

    fn read(pages: &Pages, range: Range<u64>) {
        let reading = pages.reading(5, range);
        assert!(matches!(reading.how(), Ok(How::Leased { .. })));
        assert!(reading.keep());
    }

    #[test]
    fn the_kernel_loses_what_it_has_and_is_told_of_nothing_else() {
        let (pages, kernel) = pages();
        read(&pages, 3..5);
        read(&pages, 7..8);
        pages.lose(5, &(4..20), || ());
        assert_eq!(kernel.take(), [(4, 5), (7, 8)]);
        pages.lose(5, &ALL, || ());
        assert_eq!(kernel.take(), [(3, 4)]);
        pages.lose(6, &ALL, || ());
        pages.lose_all(5);
        assert_eq!(kernel.take(), []);
        assert!(pages.state().files.is_empty());
        read(&pages, 3..5);
        pages.lose_all(5);
        assert_eq!(kernel.take(), [(3, 5)]);
    }

    #[test]
    fn what_is_being_read_when_pages_are_to_go_is_passed_over_and_asked_for_anew() {
        let (pages, kernel) = pages();
        read(&pages, 1..9);
        let (one, other) = (pages.reading(5, 3..4), pages.reading(5, 20..21));
        assert_eq!((one.how(), other.how()), (Ok(SHARED), Ok(SHARED)));
        pages.lose(5, &(2..5), || ());
        assert_eq!(kernel.take(), [(2, 3), (4, 5)]);
        assert!(!one.keep() && other.keep());
        assert_eq!(one.how(), Ok(SHARED));
        assert!(one.keep());
        drop(one);
        pages.lose(5, &ALL, || ());
        assert_eq!(kernel.take(), [(1, 2), (3, 4), (5, 9), (20, 21)]);
    }

    #[test]
    fn what_is_read_while_pages_go_is_answered_and_lost_again() {
        let (pages, begun, go) = stepping();
        read(&pages, 0..4);
        let early = pages.reading(5, 9..10);
        let told = &Mutex::new(false);
        thread::scope(|scope| {
            let loser = scope.spawn(|| pages.lose(5, &ALL, || *told.lock().unwrap() = true));
            assert_eq!(begun.recv(), Ok((0, 4)));
            let (late, ahead) = (pages.reading(5, 2..3), pages.reading(5, 0..2));
            assert_eq!(ahead.how(), Ok(How::Refused), "the kernel reads ahead");
            assert_eq!(late.how(), Ok(How::AsTheyAre));
            // Who asks for the same again needs it.
            assert_eq!(ahead.how(), Ok(How::AsTheyAre));
            // What was there before is not what the kernel waits for.
            let waits = scope.spawn(|| early.how());
            go.send(()).unwrap();
            assert_eq!(begun.recv(), Ok((0, 3)));
            assert!(!*told.lock().unwrap() && !waits.is_finished());
            go.send(()).unwrap();
            loser.join().unwrap();
            assert!(*told.lock().unwrap());
            assert_eq!(waits.join().unwrap(), Ok(SHARED));
        });
        assert!(early.keep());
    }

    #[test]
    fn nothing_is_read_between_its_loss_and_the_word_of_it() {
        let (pages, _) = pages();
        read(&pages, 0..4);
        thread::scope(|scope| {
            let mut reader = None;
            pages.lose(5, &(0..4), || {
                let reading = pages.reading(5, 1..2);
                let (begins, begun) = sync_channel(1);
                reader = Some(scope.spawn(move || {
                    begins.send(()).unwrap();
                    (reading.how(), Instant::now())
                }));
                begun.recv().unwrap();
                let other = pages.reading(5, 8..9);
                assert_eq!(other.how(), Ok(SHARED), "others are");
                // It is not the kernel that waits any more.
                thread::park_timeout(2 * READ_HELD_FOR);
                assert!(!reader.as_ref().unwrap().is_finished());
            });
            let (how, _) = reader.unwrap().join().unwrap();
            assert_eq!(how, Ok(SHARED));
        });
    }

    #[test]
    fn the_kernel_learns_of_a_larger_size_before_it_is_told_what_it_may_not_take_up() {
        let (pages, kernel) = pages();
        let tell = |size| {
            pages.tell_size(5, size, pages.asked());
            kernel.take()
        };
        assert_eq!(tell(1), [], "nobody has it mapped");
        pages.add_writer(5, 10);
        assert_eq!((tell(100), tell(4096)), (vec![], vec![]), "the first, and on the same page");
        assert_eq!(tell(4097), [(u64::MAX, 4097)]);
        assert_eq!((tell(4100), tell(100)), (vec![], vec![]));
        read(&pages, 3..4);
        assert_eq!(tell(4 * 4096), [(3, 4), (u64::MAX, 4 * 4096)], "it has that page of before");
        assert_eq!((tell(0), tell(10)), (vec![], vec![(u64::MAX, 10)]));
        thread::scope(|scope| {
            let reading = pages.reading(5, 5..6);
            let told = scope.spawn(|| tell(6 * 4096));
            thread::park_timeout(2 * READ_HELD_FOR);
            assert!(!told.is_finished(), "it is about to have that page");
            drop(reading);
            assert_eq!(told.join().unwrap(), [(u64::MAX, 6 * 4096)]);
        });
        assert_eq!(tell(7 * 4096), [(u64::MAX, 7 * 4096)]);
        let asked = pages.asked();
        pages.set_size(5);
        pages.tell_size(5, 9 * 4096, asked);
        assert_eq!(kernel.take(), [], "it may be what was before");
        pages.has_size(5, 4096);
        pages.has_written(5, 8 * 4096);
        assert_eq!(tell(8 * 4096), []);
    }

    #[test]
    fn read_ahead_that_was_refused_waits_the_next_time() {
        let (pages, _) = pages();
        let waits = |range| match pages.reading(5, range).how() {
            Ok(How::Leased { waits, .. }) => waits,
            other => panic!("{other:?}"),
        };
        assert!(waits(0..1) && !waits(0..2));
        pages.reading(5, 0..2).refuse();
        assert!(waits(0..2) && !waits(0..3));
        read(&pages, 0..2);
        assert!(!waits(0..2));
    }

    #[test]
    fn pages_are_read_exclusively_while_somebody_may_write_to_them() {
        let (pages, _) = pages();
        let is_exclusive = || {
            let how = pages.reading(5, 0..1).how();
            how == Ok(How::Leased { is_exclusive: true, waits: true })
        };
        assert!(!is_exclusive());
        pages.add_writer(5, 10);
        pages.add_writer(5, 11);
        pages.add_writer(6, 12);
        pages.remove_writer(5, 10);
        pages.remove_writer(5, 10);
        pages.remove_writer(7, 10);
        assert!(is_exclusive());
        pages.remove_writer(5, 11);
        assert!(!is_exclusive());
        pages.remove_writer(6, 12);
        assert!(pages.state().files.is_empty());
    }

    #[test]
    fn without_a_session_nothing_is_kept_and_reads_wait_for_one() {
        let (pages, kernel) = pages();
        read(&pages, 0..4);
        pages.recall(Recall { session: 1, ino: 5, pages: 0..1 });
        let early = pages.reading(5, 3..4);
        assert_eq!(early.how(), Ok(SHARED));
        pages.end_session();
        assert_eq!(kernel.take(), [(0, 3)]);
        assert!(!early.keep(), "of the session before");
        assert!(pages.state().recalls.is_empty());
        thread::scope(|scope| {
            let waits = scope.spawn(|| early.how());
            pages.begin_session(2, later());
            assert_eq!(waits.join().unwrap(), Ok(SHARED));
        });
        pages.end_session();
        let error = Errno::new(ENOLCK);
        thread::scope(|scope| {
            let (begins, begun) = sync_channel(1);
            let (early, pages) = (&early, &pages);
            let waits = scope.spawn(move || {
                begins.send(()).unwrap();
                early.how()
            });
            begun.recv().unwrap();
            while !waits.is_finished() {
                pages.fail(error);
                thread::yield_now();
            }
            assert_eq!(waits.join().unwrap(), Err(error));
        });
    }

    #[test]
    fn a_session_that_nobody_goes_on_with_is_given_up_and_stays_so() {
        let (pages, kernel) = pages();
        read(&pages, 0..4);
        assert!(pages.extend(1, later()) && !pages.extend(2, later()));
        pages.lapse();
        assert_eq!(kernel.take(), []);
        assert!(pages.extend(1, Instant::now()));
        thread::scope(|scope| {
            scope.spawn(|| pages.give_back(|_| Ok(())));
            while pages.has_session() {
                thread::yield_now();
            }
            pages.end();
        });
        assert_eq!(kernel.take(), [(0, 4)]);
        assert!(!pages.extend(1, later()) && !pages.has_session());
    }

    #[test]
    fn files_with_pages_are_bounded_and_the_oldest_gives_way() {
        let (pages, _) = pages();
        let read = |ino| {
            let reading = pages.reading(ino, 0..1);
            assert!(matches!(reading.how(), Ok(How::Leased { .. })) && reading.keep());
        };
        pages.add_writer(1, 10);
        let count = PAGED_FILES_MAX as u64;
        (1..=count).for_each(read);
        // Of one that has come and gone nothing is kept.
        for _ in 0..10 {
            pages.lose(count, &ALL, || ());
            read(count);
        }
        assert!(pages.state().recalls.is_empty());
        (count + 1..=count + 3).for_each(read);
        let recalled: Vec<u64> = pages.state().recalls.iter().map(|recall| recall.ino).collect();
        assert_eq!(recalled, [2, 3], "somebody may write to the first");
        assert_eq!(pages.state().held.len() as u64, count + 3);
    }

    #[test]
    fn what_the_server_wants_back_it_is_told_of_until_the_session_is_over() {
        let (pages, kernel) = pages();
        read(&pages, 0..4);
        let wanted = |first| Recall { session: 1, ino: 5, pages: first..first + 1 };
        let (tells, told) = sync_channel(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                pages.give_back(|recall| {
                    tells.send(recall.clone()).unwrap();
                    Err(Errno::new(ENOLCK))
                });
            });
            pages.recall(wanted(1));
            assert_eq!((told.recv().unwrap(), told.recv().unwrap()), (wanted(1), wanted(1)));
            assert_eq!(kernel.take(), [(1, 2)]);
            // This loses the rest once it has been told.
            scope.spawn(|| pages.end_session());
            while told.recv_timeout(10 * AGAIN_PAUSE).is_ok() {}
            pages.end();
        });
        assert_eq!(kernel.take(), [(0, 1), (2, 4)]);
    }
}
