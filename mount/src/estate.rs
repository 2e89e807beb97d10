//! What a file agent leaves its successor: memory that outlives its process.
//!
//! The kernel and programs rely on what an agent has answered. So what of that is nowhere else is in here, and an agent that is started
//! when the one before has died (`holder`) goes on from it: handles given out, calls whose effect somebody waits for, writes that
//! are put off, files that are closed, who has locks, which pages the kernel may have. What is remembered under leases is not: it is asked for anew.
//!
//! An agent may be killed between two instructions, so everything is as of any moment: a row is there when its first word is not 0, which is
//! written last, and first when it goes. Who changes a row keeps to one word, or to an order in which each state has a meaning. The
//! memory has one user at a time: a process that dies runs no instruction more before its successor is started.
#![expect(unsafe_code, reason = "memory that is shared with a process that comes later")]

pub(crate) mod calls;
pub(crate) mod parts;

use crate::limits::{
    CLOSED_FILES_MAX, ERRORS_MAX, LOCK_OWNERS_MAX, LOCKED_FILES_MAX, NOTED_CALLS_MAX,
    PAGED_ROWS_MAX, PROMISED_FILES_MAX, PUT_OFF_FILES_MAX, WRITERS_MAX,
};
use anyhow::{Context as _, Result, ensure};
use calls::Calls;
use parts::{PlaceMemory, Places};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Says that the memory is laid out as here. To be changed with the layout.
const LAYOUT: u64 = 0x4456_5345_0000_0001;

/// All of it. All zero is what the first agent finds.
#[repr(C)]
pub(crate) struct Whole {
    head: Head,
    calls: Rows<{ calls::WORDS }, NOTED_CALLS_MAX>,
    promises: Rows<6, PROMISED_FILES_MAX>,
    closed: Rows<2, CLOSED_FILES_MAX>,
    errors: Rows<2, ERRORS_MAX>,
    done: Rows<5, NOTED_CALLS_MAX>,
    owners: Rows<3, LOCK_OWNERS_MAX>,
    locked: Rows<1, LOCKED_FILES_MAX>,
    paged: Rows<1, PAGED_ROWS_MAX>,
    writers: Rows<2, WRITERS_MAX>,
    places: [PlaceMemory; PUT_OFF_FILES_MAX],
}

/// What there is one of.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Head {
    layout: AtomicU64,
    /// Agents that there have been.
    agents: AtomicU64,
    /// The session with vfs-server.
    pub(crate) session: AtomicU64,
    /// Not 0: there was something for which there was no room, and no successor can go on.
    overflow: AtomicU64,
}

/// Rows of `WORDS`, of which `N` fit; those from `used` on have never been used.
#[repr(C)]
struct Rows<const WORDS: usize, const N: usize> {
    used: AtomicU64,
    rows: [[AtomicU64; WORDS]; N],
}

/// The memory, mapped.
#[derive(Debug)]
struct Mapping(NonNull<Whole>);

// SAFETY: all of it is atomics, and bytes that are reached under a lock (`parts`).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Of a descriptor, or else memory of this process alone.
    fn new(memory: Option<&OwnedFd>) -> rustix::io::Result<Mapping> {
        let (len, protection) = (size_of::<Whole>(), ProtFlags::READ | ProtFlags::WRITE);
        let hint = std::ptr::null_mut();
        let mapped = match memory {
            Some(memory) => {
                // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
                unsafe { rustix::mm::mmap(hint, len, protection, MapFlags::SHARED, memory, 0) }
            }
            None => {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                // SAFETY: as above.
                unsafe { rustix::mm::mmap_anonymous(hint, len, protection, flags) }
            }
        };
        NonNull::new(mapped?.cast()).map(Mapping).ok_or(rustix::io::Errno::NOMEM)
    }

    fn whole(&self) -> &Whole {
        // SAFETY: mapped with this size as long as `self` lives, page-aligned, and all bytes are values of it.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, and nothing refers to it any more.
        unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), size_of::<Whole>()) }.ok();
    }
}

/// One list of rows, each of `WORDS` words.
#[derive(Debug)]
pub(crate) struct Table<const WORDS: usize> {
    memory: Arc<Mapping>,
    rows: fn(&Whole) -> (&AtomicU64, &[[AtomicU64; WORDS]]),
    /// Rows that are free, of those that have been used.
    free: Mutex<Vec<usize>>,
}

impl<const WORDS: usize> Table<WORDS> {
    fn new(
        memory: &Arc<Mapping>,
        rows: fn(&Whole) -> (&AtomicU64, &[[AtomicU64; WORDS]]),
    ) -> Table<WORDS> {
        let mut table = Table { memory: memory.clone(), rows, free: Mutex::default() };
        let is_free = |row: &usize| table.word(*row, 0) == 0;
        let free = (0..table.used()).filter(is_free).collect();
        table.free = Mutex::new(free);
        table
    }

    fn used(&self) -> usize {
        let (used, rows) = (self.rows)(self.memory.whole());
        usize::try_from(used.load(Ordering::Relaxed))
            .map_or(rows.len(), |used| used.min(rows.len()))
    }

    fn row(&self, row: usize) -> &[AtomicU64; WORDS] {
        &(self.rows)(self.memory.whole()).1[row]
    }

    /// Adds a row, whose first word is not 0. `None`: there is no room.
    pub(crate) fn put(&self, words: [u64; WORDS]) -> Option<usize> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let row = match free.pop() {
            Some(row) => row,
            None => {
                let (used, rows) = (self.rows)(self.memory.whole());
                let next = self.used();
                if next == rows.len() {
                    return None;
                }
                // Rows are 0 until they are used for the first time.
                used.store(next as u64 + 1, Ordering::Relaxed);
                next
            }
        };
        drop(free);
        for (word, value) in self.row(row).iter().zip(words).skip(1) {
            word.store(value, Ordering::Relaxed);
        }
        self.set(row, 0, words[0]);
        Some(row)
    }

    /// As [`Table::put`], of what no successor can go on without.
    pub(crate) fn must_put(&self, words: [u64; WORDS]) -> Option<usize> {
        let row = self.put(words);
        if row.is_none() && self.memory.whole().head.overflow.swap(1, Ordering::Relaxed) == 0 {
            tracing::warn!("more is open than a successor of this agent could take over");
        }
        row
    }

    pub(crate) fn word(&self, row: usize, word: usize) -> u64 {
        self.row(row)[word].load(Ordering::Relaxed)
    }

    /// Changes a word; what was written before is there before that.
    pub(crate) fn set(&self, row: usize, word: usize, value: u64) {
        self.row(row)[word].store(value, Ordering::Release);
    }

    pub(crate) fn remove(&self, row: usize) {
        self.set(row, 0, 0);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    }

    /// The rows that there are.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (usize, [u64; WORDS])> {
        let words = |row| std::array::from_fn(|word| self.word(row, word));
        (0..self.used()).map(move |row| (row, words(row))).filter(|(_, words)| words[0] != 0)
    }
}

/// What an agent has of those before it, and leaves to the next.
#[derive(Debug)]
pub struct Estate {
    memory: Arc<Mapping>,
    pub(crate) calls: Arc<Calls>,
    heirlooms: Option<Heirlooms>,
}

/// What has owners of its own.
#[derive(Debug)]
pub(crate) struct Heirlooms {
    /// Handle, inode, flags of open(2), user and group, the server's handle (or of `promised`), request.
    pub(crate) promises: Table<6>,
    /// Handle, inode.
    pub(crate) closed: Table<2>,
    /// Handle, errno.
    pub(crate) errors: Table<2>,
    /// Of requests that were put off: number, moment of a place, bytes.
    pub(crate) done: Table<5>,
    /// Inode, owner, handle.
    pub(crate) owners: Table<3>,
    /// Handle.
    pub(crate) locked: Table<1>,
    /// Inode.
    pub(crate) paged: Table<1>,
    /// Inode, handle.
    pub(crate) writers: Table<2>,
    pub(crate) places: Places,
}

/// Descriptor of memory for an [`Estate`]: that of the first agent, which is empty.
///
/// # Errors
/// The kernel has no memory or no descriptor for it.
pub(crate) fn create() -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create(c"dvs-estate", flags).context("no memory to be left")?;
    rustix::fs::ftruncate(&memory, size_of::<Whole>() as u64).context("no memory to be left")?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).context("memory cannot be sealed")?;
    Ok(memory)
}

impl Estate {
    /// Takes over what is in the memory: from now on nobody else uses it.
    ///
    /// # Errors
    /// It is not laid out as this agent has it, or the one before had more than there is room for.
    pub(crate) fn inherit(memory: &OwnedFd) -> Result<Estate> {
        let size = rustix::fs::fstat(memory.as_fd()).context("no memory was left")?.st_size;
        ensure!(
            u64::try_from(size) == Ok(size_of::<Whole>() as u64),
            "the agent before was of another version"
        );
        let mapping = Mapping::new(Some(memory)).context("what was left cannot be mapped")?;
        let head = &mapping.whole().head;
        let found = head.layout.load(Ordering::Relaxed);
        ensure!(matches!(found, 0 | LAYOUT), "the agent before was of another version");
        ensure!(
            head.overflow.load(Ordering::Relaxed) == 0,
            "the agent before had more open than can be taken over"
        );
        Ok(Estate::of(mapping))
    }

    fn of(mapping: Mapping) -> Estate {
        let head = &mapping.whole().head;
        head.layout.store(LAYOUT, Ordering::Relaxed);
        head.agents.fetch_add(1, Ordering::Relaxed);
        let memory = Arc::new(mapping);
        macro_rules! table {
            ($field:ident) => {
                Table::new(&memory, |whole| (&whole.$field.used, &whole.$field.rows))
            };
        }
        let heirlooms = Heirlooms {
            promises: table!(promises),
            closed: table!(closed),
            errors: table!(errors),
            done: table!(done),
            owners: table!(owners),
            locked: table!(locked),
            paged: table!(paged),
            writers: table!(writers),
            places: Places::new(&memory),
        };
        Estate { calls: Arc::new(Calls::new(table!(calls))), heirlooms: Some(heirlooms), memory }
    }

    /// What has owners of its own.
    ///
    /// # Panics
    /// It has been taken before.
    pub(crate) fn take(&mut self) -> Heirlooms {
        self.heirlooms.take().expect("an estate has one heir")
    }

    pub(crate) fn head(&self) -> &Head {
        &self.memory.whole().head
    }

    /// How many agents there have been before this one.
    pub(crate) fn predecessors(&self) -> u64 {
        self.head().agents.load(Ordering::Relaxed).saturating_sub(1)
    }
}

/// Of an agent that has neither predecessor nor successor.
impl Default for Estate {
    /// # Panics
    /// There is no address space left.
    fn default() -> Estate {
        Estate::of(Mapping::new(None).expect("there is address space"))
    }
}

#[cfg(test)]
mod tests {
    use super::calls::{Key, Of, Outcome};
    use super::*;
    use ::calls::vfs::{PutOff, SetAttr};
    use ::calls::wire::Wire;
    use m3ipc::{Cred, Message, Tag};

    /// The estate of an agent that dies at this moment.
    fn next(memory: &OwnedFd) -> Estate {
        Estate::inherit(memory).unwrap()
    }

    #[test]
    fn a_successor_finds_the_rows_that_are_there_and_uses_the_others() {
        let memory = create().unwrap();
        let mut first = next(&memory);
        assert_eq!(first.predecessors(), 0);
        let closed = first.take().closed;
        let rows: Vec<usize> = (1..=4).map(|fh| closed.put([fh, fh * 10]).unwrap()).collect();
        closed.remove(rows[1]);
        closed.set(rows[2], 1, 7);
        let mut second = next(&memory);
        assert_eq!(second.predecessors(), 1);
        let closed = second.take().closed;
        let found: Vec<[u64; 2]> = closed.rows().map(|(_, words)| words).collect();
        assert_eq!(found, [[1, 10], [3, 7], [4, 40]]);
        assert_eq!(closed.put([5, 50]), Some(rows[1]), "that one is free");
        assert_eq!(closed.put([6, 60]), Some(4));
    }

    #[test]
    fn there_is_no_successor_of_another_version_or_of_one_that_had_no_room() {
        let memory = create().unwrap();
        let mut first = next(&memory);
        let heirlooms = first.take();
        for fh in 1..=ERRORS_MAX as u64 {
            assert!(heirlooms.errors.put([fh, 5]).is_some());
        }
        assert_eq!(heirlooms.errors.put([1, 5]), None);
        drop(next(&memory));
        assert_eq!(heirlooms.errors.must_put([1, 5]), None);
        assert!(Estate::inherit(&memory).unwrap_err().to_string().contains("more open"));
        let memory = create().unwrap();
        next(&memory).head().layout.store(LAYOUT + 1, Ordering::Relaxed);
        assert!(Estate::inherit(&memory).unwrap_err().to_string().contains("another version"));
        let other = rustix::fs::memfd_create(c"other", MemfdFlags::CLOEXEC).unwrap();
        assert!(Estate::inherit(&other).unwrap_err().to_string().contains("another version"));
    }

    fn parts(payload: &[u8]) -> Vec<(u8, u64, Vec<u8>)> {
        let mut rest = payload;
        let mut parts = Vec::new();
        while let Some(head) = PutOff::get(rest) {
            let end = PutOff::SIZE + head.len as usize;
            assert!(head.age < 60_000_000, "{head:?}");
            parts.push((head.kind, head.offset, rest[PutOff::SIZE..end].to_vec()));
            rest = &rest[end..];
        }
        assert!(rest.is_empty());
        parts
    }

    #[test]
    fn what_is_put_off_is_there_as_of_any_moment() {
        let memory = create().unwrap();
        let heirlooms = next(&memory).take();
        let set = SetAttr { valid: 1, mode: 0o600, ..SetAttr::default() };
        let mut place = heirlooms.places.take(7, 70, &Cred::new(1, 5, 6)).unwrap();
        let left = || {
            let mut left = next(&memory).take().places.left();
            assert_eq!(left.len(), 1);
            left.remove(0)
        };
        assert!(left().is_empty());
        assert!(place.write(0, b"ab", |_| true));
        assert_eq!(parts(&left().payload()), [(PutOff::WRITE, 0, b"ab".to_vec())]);
        assert!(place.write(2, b"cde", |_| true));
        assert_eq!(parts(&left().payload()), [(PutOff::WRITE, 0, b"abcde".to_vec())]);
        assert!(place.write(100, b"x", |_| true));
        assert!(place.set(&set, |_| true));
        assert!(place.write(101, b"y", |_| true), "behind something else it is a part of its own");
        let whole = [
            (PutOff::WRITE, 0, b"abcde".to_vec()),
            (PutOff::WRITE, 100, b"x".to_vec()),
            (PutOff::SET, 0, set.bytes().to_vec()),
            (PutOff::WRITE, 101, b"y".to_vec()),
        ];
        assert_eq!(parts(&place.payload()), whole);
        let found = left();
        assert_eq!((found.ino(), found.fh(), found.number), (7, 70, place.number));
        let cred = found.cred();
        assert_eq!((cred.pid, cred.uid, cred.gid), (1, 5, 6));
        assert_eq!(parts(&found.payload()), whole);
        // The successor goes on there.
        let mut found = found;
        assert!(found.write(102, b"z", |_| true));
        assert_eq!(parts(&found.payload())[3], (PutOff::WRITE, 101, b"yz".to_vec()));
        heirlooms.places.clear(&place);
        assert!(next(&memory).take().places.left().is_empty());
    }

    #[test]
    fn what_was_half_put_off_when_an_agent_died_is_not_there() {
        let memory = create().unwrap();
        let heirlooms = next(&memory).take();
        let mut place = heirlooms.places.take(7, 70, &Cred::new(1, 5, 6)).unwrap();
        assert!(place.write(0, b"ab", |_| true));
        let left = || {
            let mut left = next(&memory).take().places.left();
            parts(&left.remove(0).payload())
        };
        let before = left();
        // Everything but the last word of each: more of the last part, and another part.
        place.write_half(2, b"more");
        assert_eq!(left(), before);
        place.write_half(1000, b"another");
        assert_eq!(left(), before);
        assert!(place.write(2, b"c", |_| true));
        assert_eq!(left(), [(PutOff::WRITE, 0, b"abc".to_vec())]);
        let room = crate::limits::PUT_OFF_BYTES_MAX - place.len() - PutOff::SIZE;
        assert!(!place.write(5000, &vec![0; room + 1], |_| true));
        assert!(place.write(5000, &vec![1; room], |_| true));
        assert!(!place.write(5000 + room as u64, b"x", |_| true));
        assert_eq!(left()[1].2.len(), room);
    }

    fn answer(call: u16, args: u8) -> Message {
        Message { args: [args; 40], ..Message::request(call) }
    }

    /// An answer's first argument and its payload.
    type Told = Option<(u8, Vec<u8>)>;

    fn outcome(calls: &Calls, key: Key, call: u16) -> Option<(Told, u64)> {
        let (outcome, progress) = calls.take(key, call)?;
        let told = match outcome {
            Outcome::Unmade(_) => None,
            Outcome::Answered(it) => Some((it.message.args[0], it.payload.clone())),
        };
        Some((told, progress))
    }

    #[test]
    fn a_call_that_was_answered_is_not_made_again_until_its_request_is() {
        let memory = create().unwrap();
        let first = next(&memory).calls;
        let (one, two, three) = (Key::request(1 << 63 | 2), Key::request(4), Key::place(9));
        assert_eq!((one, one.of(), three.of()), (Key::request(2), Of::Request, Of::Place(9)));
        assert_eq!(Key::promise(1 << 63 | 5).of(), Of::Promise(1 << 63 | 5));
        first.begin(one, 3, Tag(77), 5);
        first.begin(two, 4, Tag(78), 5);
        first.begin(three, 5, Tag(79), 5);
        first.begin(Key::NONE, 5, Tag(80), 5);
        first.answer(one, &answer(3, 9), b"payload");
        first.end(three);
        for _ in 0..2 {
            // Also one that dies before it has told it.
            let second = next(&memory).calls;
            let open = second.open();
            assert_eq!(open.len(), 1);
            assert_eq!((open[0].key, open[0].tag, open[0].call), (two, Tag(78), 4));
            assert!(second.has_left(one) && !second.has_left(three));
            assert_eq!(outcome(&second, one, 99), None, "it is another call");
            assert_eq!(outcome(&second, one, 3), Some((Some((9, b"payload".to_vec())), 0)));
            assert_eq!(outcome(&second, one, 3), None, "once");
            assert!(!second.has_left(one));
        }
        let second = next(&memory).calls;
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| outcome(&second, two, 4));
            second.resolve(
                two,
                Outcome::Answered(Box::new(calls::Answered {
                    message: answer(4, 8),
                    payload: Vec::new(),
                })),
            );
            assert_eq!(waits.join().unwrap(), Some((Some((8, Vec::new())), 0)));
        });
        // What was waited for is known to the next, too.
        let third = next(&memory).calls;
        assert!(third.open().is_empty());
        assert_eq!(third.orphan(two).map(|(it, ino)| (it.message.args[0], ino)), Some((8, 5)));
        assert!(third.take(two, 4).is_some());
        third.tell(two);
        let fourth = next(&memory).calls;
        assert_eq!(fourth.orphan(two), None, "somebody may know it");
        assert!(fourth.has_left(two));
        third.end(two);
        third.end(one);
        assert!(next(&memory).calls.left().is_empty());
    }

    #[test]
    fn a_request_of_several_calls_goes_on_behind_those_that_were_answered() {
        let memory = create().unwrap();
        let first = next(&memory).calls;
        let key = Key::request(2);
        first.begin(key, 3, Tag(77), 5);
        first.answer(key, &answer(3, 1), &[]);
        first.progress(key, 1000);
        let second = next(&memory).calls;
        assert!(second.open().is_empty(), "the next one was not made");
        assert_eq!(outcome(&second, key, 3), Some((None, 1000)));
        second.begin(key, 3, Tag(78), 5);
        second.answer(key, &answer(3, 2), &[]);
        let third = next(&memory).calls;
        assert_eq!(outcome(&third, key, 3), Some((Some((2, Vec::new())), 1000)));
        // One that is made again with its own tag.
        let key = Key::request(4);
        third.begin(key, 3, Tag(79), 5);
        third.begin(key, 3, Tag(79), 5);
        let fourth = next(&memory).calls;
        fourth.resolve(key, Outcome::Unmade(Tag(79)));
        assert_eq!(outcome(&fourth, key, 3), Some((None, 0)));
        fourth.begin(key, 3, Tag(79), 5);
        assert_eq!(next(&memory).calls.open()[0].tag, Tag(79));
    }
}
