//! Writes and changes of attributes that are put off, as they are sent: a place for each file that has some.
#![expect(unsafe_code, reason = "bytes in memory that is shared with a process that comes later")]

use super::{Mapping, Whole};
use crate::limits::{PUT_OFF_BYTES_MAX, PUT_OFF_FILES_MAX};
use ::calls::vfs::{PutOff, SetAttr};
use ::calls::wire::Wire;
use m3ipc::Cred;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One place: a row of words, and parts behind each other, as `WriteBack` has them.
#[repr(C)]
pub(super) struct PlaceMemory {
    /// Inode; 0: the place is free.
    ino: AtomicU64,
    fh: AtomicU64,
    /// User and group, process.
    ids: AtomicU64,
    pid: AtomicU64,
    /// When it was taken, in nanoseconds of the monotonic clock: the parts count from then on.
    since: AtomicU64,
    /// How often it has been taken.
    taken: AtomicU64,
    /// How many bytes count, and where the last part begins, whose own length may be of before.
    extent: AtomicU64,
    bytes: [AtomicU8; PUT_OFF_BYTES_MAX],
}

/// All places.
#[derive(Debug)]
pub(crate) struct Places {
    memory: Arc<Mapping>,
    free: Mutex<Vec<usize>>,
}

/// A place that is taken. It stays so until [`Places::free`], or a successor finds it.
#[derive(Debug)]
pub(crate) struct Place {
    memory: Arc<Mapping>,
    pub(crate) number: usize,
    len: usize,
    last: usize,
}

/// A moment of a place: which one, how often it had been taken, how many bytes counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) number: u64,
    pub(crate) taken: u64,
    pub(crate) len: u64,
}

/// Nanoseconds of the monotonic clock, which all processes share.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let time = Duration::try_from(time).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Places {
    pub(super) fn new(memory: &Arc<Mapping>) -> Places {
        let is_free =
            |number: &usize| memory.whole().places[*number].ino.load(Ordering::Relaxed) == 0;
        let free = (0..PUT_OFF_FILES_MAX).rev().filter(is_free).collect();
        Places { memory: memory.clone(), free: Mutex::new(free) }
    }

    /// A place for what is put off of inode `ino`, through its handle `fh`. `None`: all are taken.
    pub(crate) fn take(&self, ino: u64, fh: u64, cred: &Cred) -> Option<Place> {
        let number = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        let place = Place { memory: self.memory.clone(), number, len: 0, last: 0 };
        let memory = place.memory();
        memory.fh.store(fh, Ordering::Relaxed);
        memory.ids.store(u64::from(cred.uid) << 32 | u64::from(cred.gid), Ordering::Relaxed);
        memory.pid.store(cred.pid.into(), Ordering::Relaxed);
        memory.since.store(now(), Ordering::Relaxed);
        memory.taken.fetch_add(1, Ordering::Relaxed);
        memory.extent.store(0, Ordering::Relaxed);
        memory.ino.store(ino, Ordering::Release);
        Some(place)
    }

    /// What is in a place is done, or is not to be.
    pub(crate) fn clear(&self, place: &Place) {
        place.memory().ino.store(0, Ordering::Release);
    }

    /// A place that is cleared may be taken again.
    pub(crate) fn free(&self, place: Place) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(place.number);
    }

    /// Has that moment come? What has been sent has been here before.
    pub(crate) fn has(&self, mark: Mark) -> bool {
        let number = usize::try_from(mark.number).unwrap_or(usize::MAX);
        let Some(memory) = self.memory.whole().places.get(number) else { return false };
        memory.taken.load(Ordering::Relaxed) != mark.taken
            || memory.ino.load(Ordering::Relaxed) == 0
            || memory.extent.load(Ordering::Relaxed) >> 32 >= mark.len
    }

    /// Those that an agent has left which is dead.
    pub(crate) fn left(&self) -> Vec<Place> {
        let place = |number| {
            let mut place = Place { memory: self.memory.clone(), number, len: 0, last: 0 };
            let memory = place.memory();
            let extent = memory.extent.load(Ordering::Acquire);
            let is_taken = memory.ino.load(Ordering::Relaxed) != 0;
            let bound = |part| usize::try_from(part).unwrap_or(0).min(PUT_OFF_BYTES_MAX);
            let (len, last) = (bound(extent >> 32), bound(extent & u64::from(u32::MAX)));
            (place.len, place.last) = (len, last.min(len));
            is_taken.then_some(place)
        };
        (0..PUT_OFF_FILES_MAX).filter_map(place).collect()
    }
}

impl Place {
    fn memory(&self) -> &PlaceMemory {
        &self.memory.whole().places[self.number]
    }

    pub(crate) fn ino(&self) -> u64 {
        self.memory().ino.load(Ordering::Relaxed)
    }

    pub(crate) fn fh(&self) -> u64 {
        self.memory().fh.load(Ordering::Relaxed)
    }

    /// Who has asked for what is here.
    pub(crate) fn cred(&self) -> Cred {
        let memory = self.memory();
        let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        let ids = memory.ids.load(Ordering::Relaxed);
        Cred::new(half(memory.pid.load(Ordering::Relaxed)), half(ids >> 32), half(ids))
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When so many bytes of it count.
    fn mark(&self, len: usize) -> Mark {
        let taken = self.memory().taken.load(Ordering::Relaxed);
        Mark { number: self.number as u64, taken, len: len as u64 }
    }

    /// Adds a write. `before` is told what is to count then, just before it does. False: there is no room, or `before` says so.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        before: impl FnOnce(Mark) -> bool,
    ) -> bool {
        if let Some(head) = self.last_head()
            && head.kind == PutOff::WRITE
            && head.offset.checked_add(head.len.into()) == Some(offset)
            && self.len + data.len() <= PUT_OFF_BYTES_MAX
        {
            self.copy_in(self.len, data);
            let age = self.part(0).age;
            self.copy_in(self.last, &PutOff { age, ..head }.bytes());
            return self.extend(self.len + data.len(), self.last, before);
        }
        self.add(PutOff { offset, kind: PutOff::WRITE, ..self.part(data.len()) }, data, before)
    }

    /// As [`Place::write`], a change of attributes.
    pub(crate) fn set(&mut self, change: &SetAttr, before: impl FnOnce(Mark) -> bool) -> bool {
        let head = PutOff { offset: 0, kind: PutOff::SET, ..self.part(SetAttr::SIZE) };
        self.add(head, &change.bytes(), before)
    }

    /// Head of a part that is put off now. Its age is that of the place until it is sent.
    fn part(&self, len: usize) -> PutOff {
        PutOff {
            offset: 0,
            age: u32::try_from(self.age()).unwrap_or(u32::MAX),
            len: u32::try_from(len).unwrap_or(u32::MAX),
            kind: PutOff::SET,
        }
    }

    /// Microseconds since the place was taken.
    fn age(&self) -> u64 {
        now().saturating_sub(self.memory().since.load(Ordering::Relaxed)) / 1000
    }

    fn add(&mut self, head: PutOff, data: &[u8], before: impl FnOnce(Mark) -> bool) -> bool {
        let start = self.len;
        let end = start + PutOff::SIZE + data.len();
        if end > PUT_OFF_BYTES_MAX {
            return false;
        }
        // From now on the length of the one before is its own.
        if let Some(earlier) = self.last_head() {
            self.copy_in(self.last, &earlier.bytes());
        }
        self.copy_in(start, &head.bytes());
        self.copy_in(start + PutOff::SIZE, data);
        self.extend(end, start, before)
    }

    /// As who dies before the last word.
    #[cfg(test)]
    pub(super) fn write_half(&mut self, offset: u64, data: &[u8]) {
        let extent = self.memory().extent.load(Ordering::Relaxed);
        let (len, last) = (self.len, self.last);
        assert!(self.write(offset, data, |_| true));
        (self.len, self.last) = (len, last);
        self.memory().extent.store(extent, Ordering::Relaxed);
    }

    /// From now on so many bytes count, unless `before` says no.
    fn extend(&mut self, len: usize, last: usize, before: impl FnOnce(Mark) -> bool) -> bool {
        let may = before(self.mark(len));
        if may {
            (self.len, self.last) = (len, last);
            self.memory().extent.store((len as u64) << 32 | last as u64, Ordering::Release);
        }
        may
    }

    /// Head of the last part, with the length that it has by now.
    fn last_head(&self) -> Option<PutOff> {
        let mut bytes = [0; PutOff::SIZE];
        let len = self.len.checked_sub(self.last + PutOff::SIZE)?;
        self.copy_out(self.last, &mut bytes);
        let head = PutOff::get(&bytes)?;
        Some(PutOff { len: u32::try_from(len).ok()?, ..head })
    }

    /// The payload of a `WriteBack`, as of now.
    pub(crate) fn payload(&self) -> Vec<u8> {
        let mut payload = vec![0; self.len];
        self.copy_out(0, &mut payload);
        if let Some(last) = self.last_head() {
            payload[self.last..self.last + PutOff::SIZE].copy_from_slice(&last.bytes());
        }
        let now = u32::try_from(self.age()).unwrap_or(u32::MAX);
        let mut rest = &mut payload[..];
        while let Some(mut head) = PutOff::get(rest) {
            head.age = now.saturating_sub(head.age);
            rest[..PutOff::SIZE].copy_from_slice(&head.bytes());
            let next = PutOff::SIZE.saturating_add(head.len as usize).min(rest.len());
            rest = &mut rest[next..];
        }
        payload
    }

    fn copy_in(&self, at: usize, data: &[u8]) {
        let bytes = &self.memory().bytes[at..at + data.len()];
        let target = bytes.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: the range is inside the place, as just checked, whose bytes may be written through a shared reference (they are atomics), which
        // only who has the place does; `data` is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
    }

    fn copy_out(&self, at: usize, data: &mut [u8]) {
        let bytes = &self.memory().bytes[at..at + data.len()];
        // SAFETY: as above, and nobody writes there meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), data.as_mut_ptr(), data.len())
        };
    }
}

const _: () = assert!(PUT_OFF_BYTES_MAX <= u32::MAX as usize);
const _: fn(&Whole) -> &[PlaceMemory; PUT_OFF_FILES_MAX] = |whole| &whole.places;
