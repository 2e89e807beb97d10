//! Memory that a process lends as such: whoever may have it maps it once, and then copies with one memcpy and no call.
//!
//! The owner gets it from here, so it is a memfd that can be given away; otherwise it is a grant like any other, and whoever
//! cannot map it (on another node) copies by calls. The answer to the first copy says that there is something to map,
//! dvkd brings the descriptor, and from then on a copy looks at two things: the word that says that the memory is
//! still lent, and whether the channel to its owner is the one over which it was learned.
#![expect(unsafe_code, reason = "memory is copied by address")]

use crate::bound::{Bound, Core};
use crate::inbox::{Inbox, locked};
use crate::memory::{Access, Grant, Grants, Memory, Range};
use m3ipc::door::{Ask, ask, tell};
use m3ipc::lent::Lent;
use m3ipc::limits::{BORROWED_MAX, LENT_MAX};
use m3ipc::message::ARGS_SIZE;
use m3ipc::{Endpoint, IpcError, Message};
use rustix::fd::AsFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// Memory of this process that another endpoint, or all of the DC, may copy from or to at the speed of memory. Zero at
/// first. Dropped, it is not lent any more.
///
/// A mapping cannot be taken back. After that a borrower's library refuses further copies ([`IpcError::Denied`]), but
/// one that is under way goes on, and a borrower that does not keep to the rules reads (with `Write` or
/// `Both` writes) these bytes, no others, for as long as it lives; one that may write can make the others believe that they
/// are lent still. So what it must not see is not to be put here, and for
/// another secret there is other memory.
#[derive(Debug)]
pub struct Shared {
    memory: Arc<Memory>,
    grant: Grant,
    lent: Arc<Lent>,
}

impl Bound {
    /// Makes `len` bytes, up to 1 GiB, of memory that is lent to `to` (`Endpoint::ANY`: to all of the DC). It is
    /// shared memory: no reference to it may be relied on, as with [`Bound::grant`].
    ///
    /// # Errors
    /// [`IpcError::TooLarge`]: no bytes, or too many. [`IpcError::Exhausted`]: too many are lent already, no memory.
    /// As [`Bound::grant`].
    pub fn lend(&self, to: Endpoint, len: usize, access: Access) -> Result<Shared, IpcError> {
        self.core.inbox.pass()?;
        let memory = self.memory_side()?;
        let (lent, fd) = Lent::create(len, access != Access::Read)?;
        let lent = Arc::new(lent);
        let start = lent.bytes().as_ptr() as u64;
        let range = Range { to, start, len: len as u64, access, lent: Some(Arc::clone(&lent)) };
        let grant = memory.add(range)?;
        let shared = Shared { memory, grant, lent };
        let told = Ask { value: grant.number(), ..Ask::new(ask::LEND, to) };
        // If it is refused, `shared` is dropped, and the grant ends.
        shared.memory.inbox.ask_with(told, Some(fd.as_fd()))?;
        Ok(shared)
    }

    /// How many pieces of lent memory of others this endpoint has mapped.
    pub fn mapped_count(&self) -> usize {
        let windows = locked(&self.borrowed.0);
        windows.iter().filter(|window| window.lent.is_some()).count()
    }

    /// Holds memory until its grant is revoked, for C.
    pub(crate) fn keep(&self, shared: Shared) -> Grant {
        let grant = shared.grant;
        locked(&self.kept).push(shared);
        grant
    }

    /// Does not lend any more what is kept by this grant. False: it is none of these.
    pub(crate) fn end_kept(&self, grant: Grant) -> bool {
        let mut kept = locked(&self.kept);
        let at = kept.iter().position(|shared| shared.grant == grant);
        let ended = at.map(|at| kept.remove(at));
        drop(kept);
        ended.is_some()
    }

    /// A copy out of, or into, memory that can be mapped. None: it is to be done by calls.
    ///
    /// # Safety
    /// As [`Bound::vcopy`].
    pub(crate) unsafe fn copy_lent(
        &self,
        (owner, at): (Endpoint, u64),
        own: *mut u8,
        len: usize,
        access: Access,
    ) -> Option<()> {
        let lent = self.borrowed.find(&self.core, owner.memory(), at, len, access)?;
        // SAFETY: `find` says that so many bytes are there.
        let theirs = unsafe { lent.0.bytes().add(lent.1) }.as_ptr();
        let (from, to) = if access == Access::Read { (theirs, own) } else { (own, theirs) };
        // SAFETY: one side is mapped by this process as long as `lent`, the other is the caller's, as `vcopy` wants it; nobody
        // but `Borrowed` knows where the first is, so it cannot be in the other.
        unsafe { m3ipc::copy::copy(from, to, len) };
        Some(())
    }
}

impl Shared {
    /// Where it is. Others read it, with `Write` or `Both` write to it, at any time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.lent.bytes()
    }

    /// What borrowers name it by in [`Bound::vcopy`].
    pub fn address(&self) -> u64 {
        self.as_ptr().as_ptr() as u64
    }

    pub fn len(&self) -> usize {
        self.lent.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lent.is_empty()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.lent.end();
        self.memory.remove(self.grant).ok();
        // If the endpoint is gone, dvkd has dropped it.
        let told = Ask { value: self.grant.number(), ..Ask::new(ask::LEND, Endpoint::NONE) };
        self.memory.inbox.ask(told).ok();
    }
}

/// What the answer to a copy says about memory that can be mapped: its name, where it begins, how long it is, and what is
/// granted. All zero: it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hint {
    name: u64,
    start: u64,
    len: u64,
    is_writable: bool,
    is_readable: bool,
}

/// Puts into the answer to a copy what can be mapped instead.
pub(crate) fn hint(
    grants: &Grants,
    message: &Message,
    range: (u64, u64),
    args: &mut [u8; ARGS_SIZE],
) {
    let found = grants.list.iter().find(|(_, grant)| {
        grant.lent.is_some() && grant.allows(message.source, range.0, range.1, None)
    });
    let Some((grant, of)) = found else { return };
    let [is_writable, is_readable] =
        [Access::Read, Access::Write].map(|only| u64::from(of.access != only));
    let words = [grant.number(), of.start, of.len, is_writable, is_readable];
    for (bytes, word) in args.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

impl Hint {
    fn of(args: &[u8; ARGS_SIZE]) -> Option<Hint> {
        let mut words = args
            .chunks_exact(8)
            .map(|bytes| u64::from_le_bytes(*bytes.first_chunk().expect("chunks of eight bytes")));
        let mut next = || words.next().expect("forty bytes are five words");
        let (name, start, len) = (next(), next(), next());
        let (is_writable, is_readable) = (next() != 0, next() != 0);
        (name != 0).then_some(Hint { name, start, len, is_writable, is_readable })
    }

    fn allows(&self, access: Access) -> bool {
        (access == Access::Write || self.is_readable)
            && (access == Access::Read || self.is_writable)
    }

    /// Where in the memory `len` bytes at `at` are, if all of them are there.
    fn offset(&self, at: u64, len: usize) -> Option<usize> {
        let offset = at.checked_sub(self.start)?;
        let end = offset.checked_add(len as u64)?;
        if end <= self.len { usize::try_from(offset).ok() } else { None }
    }
}

/// Memory of others that this endpoint has mapped.
#[derive(Debug, Default)]
pub(crate) struct Borrowed(Mutex<Vec<Window>>);

#[derive(Debug)]
struct Window {
    /// Whose memory side, as it was called.
    owner: Endpoint,
    hint: Hint,
    /// Over which channel it was learned.
    channel: u64,
    /// None: it could not be mapped, and is not tried again.
    lent: Option<Arc<Lent>>,
}

impl Borrowed {
    /// The mapping in which `len` bytes at `at` of `owner`'s memory are, and where in it.
    fn find(
        &self,
        core: &Core,
        owner: Endpoint,
        at: u64,
        len: usize,
        access: Access,
    ) -> Option<(Arc<Lent>, usize)> {
        let mut windows = locked(&self.0);
        let holds = |window: &Window| {
            window.owner == owner
                && window.hint.allows(access)
                && window.hint.offset(at, 1).is_some()
        };
        let index = windows.iter().position(holds)?;
        let window = &windows[index];
        let is_lent = window.lent.as_ref().is_none_or(|lent| lent.is_lent());
        if !is_lent || core.channel_to(owner) != Some(window.channel) {
            windows.remove(index);
            return None;
        }
        // As long as the hint says, or it would not have been mapped.
        let lent = window.lent.as_ref()?;
        let offset = window.hint.offset(at, len)?;
        Some((Arc::clone(lent), offset))
    }

    /// Takes in what the answer to a copy, made over `channel`, says.
    pub(crate) fn learn(
        &self,
        core: &Core,
        owner: Endpoint,
        channel: Option<u64>,
        args: &[u8; ARGS_SIZE],
    ) {
        let (Some(hint), Some(channel)) = (Hint::of(args), channel) else { return };
        let is_known =
            |window: &Window| (window.owner, window.hint, window.channel) == (owner, hint, channel);
        if locked(&self.0).iter().any(is_known) {
            return;
        }
        let lent = fetch(&core.inbox, owner, &hint).ok().map(Arc::new);
        if core.channel_to(owner) != Some(channel) {
            return;
        }
        // Unmapped when others may copy again.
        let mut dropped = Vec::new();
        let mut windows = locked(&self.0);
        let is_over = |window: &mut Window| core.channel_to(window.owner) != Some(window.channel);
        dropped.extend(windows.extract_if(.., is_over));
        // Nobody can lend more at once: what it names anew takes the place of its own.
        let of_owner = |window: &&Window| window.owner == owner;
        if windows.iter().filter(of_owner).count() >= LENT_MAX
            && let Some(at) = windows.iter().position(|window| window.owner == owner)
        {
            dropped.push(windows.remove(at));
        }
        if windows.len() >= BORROWED_MAX {
            dropped.push(windows.remove(0));
        }
        windows.push(Window { owner, hint, channel, lent });
        drop(windows);
    }
}

/// Gets memory from dvkd, and maps it. What its owner says about it counts for nothing: the kernel says how long it is.
fn fetch(inbox: &Inbox, owner: Endpoint, hint: &Hint) -> Result<Lent, IpcError> {
    let (told, [memory, _]) = inbox.ask(Ask { value: hint.name, ..Ask::new(ask::MAP, owner) })?;
    told.expect(tell::DONE)?;
    let len = usize::try_from(hint.len).map_err(|_| IpcError::TooLarge)?;
    Lent::map(memory.ok_or(IpcError::Protocol)?.as_fd(), len, hint.is_writable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: [u64; 5]) -> [u8; ARGS_SIZE] {
        let mut args = [0; ARGS_SIZE];
        for (bytes, word) in args.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        args
    }

    #[test]
    fn whatever_an_owner_says_of_its_memory_no_copy_leaves_it() {
        assert_eq!(Hint::of(&args([0, 1, 2, 3, 4])), None);
        let values = [0, 1, 4095, 4096, 1 << 32, u64::MAX - 1, u64::MAX];
        for start in values {
            for size in values {
                let hint = Hint::of(&args([1, start, size, 7, 9])).expect("it has a name");
                for at in values {
                    for len in values {
                        let len = usize::try_from(len).unwrap();
                        let Some(offset) = hint.offset(at, len) else { continue };
                        let end = offset as u128 + len as u128;
                        assert!(end <= u128::from(size), "{hint:?} {at} {len}");
                        assert_eq!(start + offset as u64, at);
                    }
                }
            }
        }
    }
}
