//! A channel: memory shared by exactly two processes, over which one makes calls of the other.
//!
//! ```text
//! page 0   header: magic, version, closed | pending, cancelled, notified, told (requester) | answered (receiver)
//! page 1…  64 lanes of 256 bytes: request, and in the same cache line the state | cancel | answer
//! then     per lane: request payload area, answer payload area
//! ```
//! A lane's state goes IDLE → REQUEST → ANSWER → REQUEST. The requester owns it in IDLE and ANSWER, the
//! receiver in REQUEST. The receiver first makes it ANSWER, then writes the answer, its tag last: that is what a
//! requester looks for, in the cache line that it needs anyway. A receiver of the rendezvous kind (`door::flag::RENDEZVOUS`) claims a request before it
//! reads it: REQUEST → TAKEN → ANSWER. Until then the requester can take it back (REQUEST → IDLE), afterwards it can
//! abandon it (TAKEN → ABANDONED): then the answer, when it comes, only makes the lane IDLE. Bit n of `pending`, `cancelled`, `answered` says "look at lane n".
//! Such a receiver looks at the first lane itself ([`SharedChannel::first`]), so a request there needs no bit: between a
//! process with one thread and its receiver two cache lines travel, the request's and the answer's.
//! Nothing here is trusted: words are copied once, then checked. Each side keeps what it must rely on
//! (which lanes it has taken, which tags are open) in memory of its own.
#![expect(unsafe_code, reason = "the channel is memory shared with another process")]

use crate::bell::{check_size, timespec};
use crate::copy::copy;
use crate::endpoint::Endpoint;
use crate::errno::IpcError;
use crate::limits::{LANES, PAYLOAD_AREA, PAYLOAD_MAX};
use crate::message::{ARGS_SIZE, Message, Tag};
use crate::port::way;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;

/// How long a requester sleeps that finds its answer half written.
const ANSWER_NAP: Duration = Duration::from_micros(100);

const MAGIC: u32 = 0x4456_5343;
const PAGE: usize = 4096;
const LANE_SIZE: usize = 256;
const LANES_AT: usize = PAGE;
const PAYLOADS_AT: usize = LANES_AT + (LANES * LANE_SIZE).next_multiple_of(PAGE);

/// Bytes of a channel. Memory is used only where something was written.
pub const SIZE: usize = PAYLOADS_AT + LANES * 2 * PAYLOAD_AREA;

/// A lane's state, with flags. The lowest 16 bits are the request's call number.
mod state {
    /// Where the way is that the request was sent (`port::way`).
    pub(super) const WAY_AT: u32 = 16;
    pub(super) const IDLE: u32 = 0;
    pub(super) const REQUEST: u32 = 0x10_0000;
    pub(super) const ANSWER: u32 = 0x20_0000;
    /// A request that its receiver has claimed.
    pub(super) const TAKEN: u32 = 0x30_0000;
    /// Claimed, and nobody waits for the answer.
    pub(super) const ABANDONED: u32 = 0x40_0000;
    pub(super) const PHASE: u32 = 0xf0_0000;
    /// The requester sleeps on the word.
    pub(super) const SLEEPING: u32 = 0x100_0000;
    /// dvkd says: the receiver is gone.
    pub(super) const DEAD: u32 = 0x200_0000;
}

#[repr(C, align(64))]
struct Header {
    magic: AtomicU32,
    version: AtomicU32,
    /// Status of the `IpcError` with which the channel ended; 0 while it lives.
    closed: AtomicU32,
    requester: RequesterWords,
    receiver: ReceiverWords,
}

#[repr(C, align(64))]
struct RequesterWords {
    pending: AtomicU64,
    cancelled: AtomicU64,
    notified: AtomicU64,
    notify_value: AtomicU64,
    /// How many notifications the requester (dvkd) has told the receiver of another way.
    told: AtomicU64,
}

#[repr(C, align(64))]
struct ReceiverWords {
    answered: AtomicU64,
}

/// Request and answer are two lines apart: processors fetch lines in pairs.
#[repr(C, align(128))]
struct Lane {
    request: SharedRequest,
    /// Tag of the call that the requester wants given up.
    cancel: AtomicU64,
    answer: SharedMessage,
}

/// A request as [`Message`] has it, but for the lane's [`state`], which is where that has call and status: whoever looks
/// for the one has the other.
#[repr(C, align(64))]
struct SharedRequest {
    source: AtomicU64,
    tag: AtomicU64,
    state: AtomicU32,
    payload_len: AtomicU32,
    args: [AtomicU64; ARGS_SIZE / 8],
}

/// A message in shared memory: read and written word by word, so a peer's race cannot be undefined.
#[repr(C, align(128))]
struct SharedMessage {
    words: [AtomicU64; 8],
}

/// Where in a message the tag is.
const TAG_WORD: usize = core::mem::offset_of!(Message, tag) / size_of::<u64>();

const _: () = assert!(
    size_of::<Header>() <= PAGE
        && size_of::<Lane>() == LANE_SIZE
        && PAYLOADS_AT.is_multiple_of(PAGE)
);

/// What a requester finds when it looks at its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Not answered yet.
    Open,
    /// Answered, and the lane is free for the next request. It overwrites the answer's payload.
    Answered(Message),
    /// The receiver is gone; no answer will come over this channel.
    Closed,
    /// Nothing was posted here: the memory under the lane has been replaced by a new channel.
    Vacant,
}

/// How a requester got out of a call ([`SharedChannel::withdraw`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// The receiver has not seen the request. The lane is free.
    Unseen,
    /// The receiver has it. The lane is free when it answers ([`SharedChannel::is_idle`]).
    Abandoned,
    /// The answer is there, or the channel closed.
    TooLate,
}

/// What a receiver finds: bit n is lane n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// Lanes with a request.
    pub pending: u64,
    /// Lanes whose caller wants its call given up.
    pub cancelled: u64,
}

/// One process's mapping of a channel. Both sides use this type; a side uses its half.
#[derive(Debug)]
pub struct SharedChannel {
    base: NonNull<u8>,
}

// SAFETY: shared words are atomics; payload bytes are copied by raw pointers, never referenced.
unsafe impl Send for SharedChannel {}
// SAFETY: as above; a lane's payload areas belong to whoever owns the lane.
unsafe impl Sync for SharedChannel {}

/// Makes the memory of a new channel (dvkd).
///
/// # Errors
/// [`IpcError::Exhausted`] if the kernel has no memory or descriptor for it.
pub fn create() -> Result<OwnedFd, IpcError> {
    let fd =
        rustix::fs::memfd_create(c"dvs-channel", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|_| IpcError::Exhausted)?;
    rustix::fs::ftruncate(&fd, SIZE as u64).map_err(|_| IpcError::Exhausted)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|_| IpcError::Exhausted)?;
    let channel = SharedChannel::map(fd.as_fd())?;
    channel.header().magic.store(MAGIC, Ordering::Relaxed);
    channel.header().version.store(crate::door::VERSION, Ordering::Release);
    Ok(fd)
}

impl SharedChannel {
    /// Maps a channel. It is not inherited by forked children.
    ///
    /// # Errors
    /// [`IpcError::Protocol`] if `fd` is no channel of this version, [`IpcError::Exhausted`] without memory.
    pub fn map(fd: BorrowedFd<'_>) -> Result<SharedChannel, IpcError> {
        check_size(fd, SIZE as u64)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            rustix::mm::mmap(core::ptr::null_mut(), SIZE, protection, MapFlags::SHARED, fd, 0)
        };
        let base = NonNull::new(base.map_err(|_| IpcError::Exhausted)?.cast())
            .ok_or(IpcError::Exhausted)?;
        let channel = SharedChannel { base };
        channel.keep_from_children();
        Ok(channel)
    }

    /// Does the memory say that it is a channel of this version? (After [`create`] it does.)
    pub fn is_current(&self) -> bool {
        self.header().magic.load(Ordering::Relaxed) == MAGIC
            && self.header().version.load(Ordering::Acquire) == crate::door::VERSION
    }

    /// Replaces the mapping at `address` by the channel `fd`, in one step.
    ///
    /// # Safety
    /// `address` came from [`SharedChannel::into_address`], and nobody is between reading a lane's state and
    /// acting on it there (`client::Slot` keeps that).
    pub(crate) unsafe fn replace(address: usize, fd: BorrowedFd<'_>) -> Result<(), IpcError> {
        check_size(fd, SIZE as u64)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the caller's contract: the range is a channel mapping that may be replaced.
        let base = unsafe { rustix::mm::mmap(address as *mut _, SIZE, protection, flags, fd, 0) };
        base.map_err(|_| IpcError::Exhausted)?;
        core::mem::ManuallyDrop::new(SharedChannel::at(address).ok_or(IpcError::Protocol)?)
            .keep_from_children();
        Ok(())
    }

    /// The mapping as a number, kept mapped.
    pub(crate) fn into_address(self) -> usize {
        core::mem::ManuallyDrop::new(self).base.as_ptr() as usize
    }

    /// A mapping that was kept as a number. Dropping it unmaps.
    pub(crate) fn at(address: usize) -> Option<SharedChannel> {
        NonNull::new(address as *mut u8).map(|base| SharedChannel { base })
    }

    fn keep_from_children(&self) {
        // SAFETY: advice about our own mapping of this size.
        let advised = unsafe {
            rustix::mm::madvise(self.base.as_ptr().cast(), SIZE, rustix::mm::Advice::LinuxDontFork)
        };
        // Without it a child would merely hold the memory longer.
        advised.ok();
    }

    // ---- requester ----

    /// Writes a request into an idle lane and says so. Ring the receiver's bell afterwards.
    ///
    /// # Errors
    /// [`IpcError::TooLarge`] if the parts do not fit the payload area, [`IpcError::DestinationDied`] if the
    /// channel is closed.
    pub fn post(&self, lane: usize, message: &Message, parts: &[&[u8]]) -> Result<(), IpcError> {
        self.write_request(lane, message, parts)?;
        self.header().requester.pending.fetch_or(1 << (lane % LANES), Ordering::SeqCst);
        Ok(())
    }

    /// The same on the first lane, to a receiver that looks there itself ([`SharedChannel::first`]).
    ///
    /// # Errors
    /// As [`SharedChannel::post`].
    #[inline]
    pub fn post_first(&self, message: &Message, parts: &[&[u8]]) -> Result<(), IpcError> {
        self.write_request(0, message, parts)
    }

    #[inline]
    fn write_request(
        &self,
        lane: usize,
        message: &Message,
        parts: &[&[u8]],
    ) -> Result<(), IpcError> {
        let total = parts.iter().map(|part| part.len()).sum::<usize>();
        if total > PAYLOAD_AREA {
            return Err(IpcError::TooLarge);
        }
        if let Some(error) = self.closed() {
            return Err(error);
        }
        let mut at = 0;
        for part in parts {
            self.copy_in(request_area(lane) + at, part);
            at += part.len();
        }
        let len = u32::try_from(total).map_err(|_| IpcError::TooLarge)?;
        self.lane(lane).request.store(message, len);
        Ok(())
    }

    /// Asks the receiver to give the call `tag` on `lane` up. Ring the bell afterwards.
    pub fn cancel(&self, lane: usize, tag: Tag) {
        self.lane(lane).cancel.store(tag.0, Ordering::Relaxed);
        self.header().requester.cancelled.fetch_or(1 << lane, Ordering::SeqCst);
    }

    /// Looks at `lane`, on which the call `tag` was posted.
    #[inline]
    pub fn poll(&self, lane: usize, tag: Tag) -> Poll {
        let slot = self.lane(lane);
        if let Some(answer) = slot.answer_to(tag) {
            return Poll::Answered(answer);
        }
        let word = slot.request.state.load(Ordering::Acquire);
        if word & state::DEAD != 0 || self.closed().is_some() {
            // The last thing that it did may have been to answer.
            return slot.answer_to(tag).map_or(Poll::Closed, Poll::Answered);
        }
        if word & state::PHASE == state::IDLE { Poll::Vacant } else { Poll::Open }
    }

    /// Looks at a lane of which the bell said that it is answered ([`SharedChannel::take_answered`]).
    pub fn poll_answered(&self, lane: usize) -> Poll {
        let slot = self.lane(lane);
        let word = slot.request.state.load(Ordering::Acquire);
        match word & state::PHASE {
            state::ANSWER => Poll::Answered(slot.answer.load()),
            _ if word & state::DEAD != 0 || self.closed().is_some() => Poll::Closed,
            state::IDLE => Poll::Vacant,
            _ => Poll::Open,
        }
    }

    /// Is the call `tag` on `lane` answered? One load, for looking again and again; [`SharedChannel::poll`] says more.
    #[inline]
    pub fn is_answered(&self, lane: usize, tag: Tag) -> bool {
        self.lane(lane).answer.tag() == tag
    }

    /// Is the lane free (after it was abandoned)?
    pub fn is_idle(&self, lane: usize) -> bool {
        self.lane(lane).request.state.load(Ordering::Acquire) & state::PHASE == state::IDLE
    }

    /// Gets out of the call on `lane`, whose receiver claims requests.
    pub fn withdraw(&self, lane: usize) -> Withdrawn {
        let word = &self.lane(lane).request.state;
        let mut now = word.load(Ordering::Acquire);
        loop {
            let (phase, outcome) = match now & state::PHASE {
                _ if now & state::DEAD != 0 => return Withdrawn::TooLate,
                state::REQUEST => (state::IDLE, Withdrawn::Unseen),
                state::TAKEN => (state::ABANDONED, Withdrawn::Abandoned),
                _ => return Withdrawn::TooLate,
            };
            match word.compare_exchange(now, phase, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return outcome,
                Err(changed) => now = changed,
            }
        }
    }

    /// Gets out of the call on `lane` of a closed channel, to make it elsewhere. As [`SharedChannel::withdraw`], but
    /// the lane is not used again.
    pub fn leave(&self, lane: usize) -> Withdrawn {
        let word = &self.lane(lane).request.state;
        let mut now = word.load(Ordering::Acquire);
        loop {
            let (phase, outcome) = match now & state::PHASE {
                state::REQUEST => (state::IDLE, Withdrawn::Unseen),
                state::TAKEN => (state::ABANDONED, Withdrawn::Abandoned),
                state::IDLE => return Withdrawn::Unseen,
                _ => return Withdrawn::TooLate,
            };
            let next = now & !state::PHASE | phase;
            match word.compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return outcome,
                Err(changed) => now = changed,
            }
        }
    }

    /// Sleeps until the lane's state changes, a signal handler ran, or `timeout` is over.
    ///
    /// With a timeout the kernel does not restart the wait after a handler, without one it does if the
    /// handler has SA_RESTART (futex(2); verified in the design's notes).
    ///
    /// # Errors
    /// [`IpcError::Interrupted`], [`IpcError::TimedOut`]. `Ok` may be spurious.
    pub fn sleep(&self, lane: usize, timeout: Option<Duration>) -> Result<(), IpcError> {
        let word = &self.lane(lane).request.state;
        let now = word.load(Ordering::Acquire);
        let asleep = now | state::SLEEPING;
        if now == state::ANSWER {
            // It is being written, by somebody who may wait for a CPU, or who never ends.
            let nap = timespec(timeout.map_or(ANSWER_NAP, |timeout| timeout.min(ANSWER_NAP)));
            futex::wait(word, futex::Flags::empty(), now, Some(&nap)).ok();
            return Ok(());
        }
        if now & state::DEAD != 0
            || !matches!(now & state::PHASE, state::REQUEST | state::TAKEN)
            || word.compare_exchange(now, asleep, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return Ok(());
        }
        let timeout = timeout.map(timespec);
        match futex::wait(word, futex::Flags::empty(), asleep, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => Err(IpcError::Interrupted),
            Err(rustix::io::Errno::TIMEDOUT) => Err(IpcError::TimedOut),
            _ => Ok(()),
        }
    }

    /// Wakes the requester that sleeps on `lane`, though nothing has happened there.
    pub fn wake(&self, lane: usize) {
        let word = &self.lane(lane).request.state;
        // Who is about to sleep finds the word changed.
        word.fetch_and(!state::SLEEPING, Ordering::SeqCst);
        wake(word);
    }

    /// The request that is on `lane` if its tag is `tag`, whatever has become of it; without its call's number if it is answered.
    pub fn posted(&self, lane: usize, tag: Tag) -> Option<Message> {
        let request = &self.lane(lane).request;
        let message = request.load(request.state.load(Ordering::Acquire));
        (message.tag == tag && message.payload_len as usize <= PAYLOAD_AREA).then_some(message)
    }

    /// Says of all lanes that there is something, for a requester that died before it could.
    pub fn announce(&self) {
        self.header().requester.pending.fetch_or(u64::MAX, Ordering::SeqCst);
    }

    /// Copies the answer's payload to `out`; returns how much the answer has, at most `out`'s length is copied.
    pub fn read_answer(&self, lane: usize, answer: &Message, out: &mut [u8]) -> usize {
        let len = (answer.payload_len as usize).min(PAYLOAD_AREA);
        let copied = len.min(out.len());
        self.copy_out(answer_area(lane), &mut out[..copied]);
        len
    }

    /// Has anything been answered since the last look (requesters that are woken by a bell)?
    pub fn has_answers(&self) -> bool {
        self.header().receiver.answered.load(Ordering::SeqCst) != 0
    }

    /// Lanes answered since the last look (requesters that are woken by a bell).
    pub fn take_answered(&self) -> u64 {
        take(&self.header().receiver.answered)
    }

    /// Leaves a notification; a pending one of the same sender is an overrun. Ring the bell afterwards.
    ///
    /// # Errors
    /// [`IpcError::Overrun`]: the earlier one has not been received yet. [`IpcError::DestinationDied`].
    pub fn notify(&self, value: u64) -> Result<(), IpcError> {
        if let Some(error) = self.closed() {
            return Err(error);
        }
        let words = &self.header().requester;
        if words.notified.load(Ordering::Acquire) != 0 {
            return Err(IpcError::Overrun);
        }
        words.notify_value.store(value, Ordering::Relaxed);
        words.notified.store(1, Ordering::SeqCst);
        // Closed meanwhile, perhaps after somebody looked for what is pending: then it is taken back, if it is there.
        match self.closed() {
            Some(error) if words.notified.swap(0, Ordering::SeqCst) != 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// Says how many notifications the receiver has been told of over its connection to dvkd, all in all: it takes what
    /// is posted afterwards only when it has heard of them. Only dvkd's channels count.
    pub fn note_told(&self, count: u64) {
        let told = &self.header().requester.told;
        if told.load(Ordering::Relaxed) != count {
            told.store(count, Ordering::Relaxed);
        }
    }

    // ---- receiver ----

    /// Of how many notifications the receiver has been told another way before it was sent what is here.
    #[inline]
    pub fn told(&self) -> u64 {
        self.header().requester.told.load(Ordering::Relaxed)
    }

    /// Is anything waiting (requests, cancellations, a notification)?
    #[inline]
    pub fn has_news(&self) -> bool {
        self.has_requests() || self.is_notified()
    }

    /// Is a request or a cancellation waiting?
    #[inline]
    pub fn has_requests(&self) -> bool {
        let words = &self.header().requester;
        words.pending.load(Ordering::SeqCst) | words.cancelled.load(Ordering::SeqCst) != 0
    }

    /// Is a notification?
    #[inline]
    pub fn is_notified(&self) -> bool {
        self.header().requester.notified.load(Ordering::SeqCst) != 0
    }

    /// What the requester has done since the last look. Handle `pending` before `cancelled`: a call may be posted
    /// and given up between two looks, and then both bits are here.
    #[inline]
    pub fn take_news(&self) -> News {
        let words = &self.header().requester;
        // In this order: a cancellation that is seen was set after its request, which is then seen as well.
        let cancelled = take(&words.cancelled);
        News { pending: take(&words.pending), cancelled }
    }

    /// Which call is to be given up on a lane of [`News::cancelled`]; if another one is open there, ignore it.
    pub fn cancelled(&self, lane: usize) -> Tag {
        Tag(self.lane(lane).cancel.load(Ordering::Relaxed))
    }

    /// The notification's value, if there is one.
    #[inline]
    pub fn take_notification(&self) -> Option<u64> {
        let words = &self.header().requester;
        if words.notified.load(Ordering::Acquire) == 0 {
            return None;
        }
        let value = words.notify_value.load(Ordering::Relaxed);
        // One of several that look gets it.
        (words.notified.swap(0, Ordering::SeqCst) != 0).then_some(value)
    }

    /// The tag of the request on the first lane that is not claimed, if there is one.
    #[inline]
    pub fn first(&self) -> Option<Tag> {
        let request = &self.lane(0).request;
        // SeqCst, as the requester's: either this sees it, or the requester sees that the receiver sleeps.
        let is_there = request.state.load(Ordering::SeqCst) & state::PHASE == state::REQUEST
            && self.closed().is_none();
        is_there.then(|| Tag(request.tag.load(Ordering::Relaxed)))
    }

    /// As who writes a request and dies before the last word.
    #[cfg(test)]
    pub(crate) fn write_half(&self, lane: usize, message: &Message) {
        self.lane(lane).request.tag.store(message.tag.0, Ordering::Relaxed);
    }

    /// Makes a lane look as if a request were posted there, as a requester may that is not honest.
    #[cfg(test)]
    pub(crate) fn lane_as_posted(&self, lane: usize) {
        self.lane(lane).request.state.store(state::REQUEST, Ordering::SeqCst);
    }

    /// The request on `lane`, copied; `None` if there is none.
    #[inline]
    pub fn request(&self, lane: usize) -> Option<Message> {
        let request = &self.lane(lane).request;
        let word = request.state.load(Ordering::Acquire);
        let is_there = matches!(word & state::PHASE, state::REQUEST | state::TAKEN);
        is_there.then(|| request.load(word))
    }

    /// Lanes with a request that its receiver has claimed and not answered (dvkd, when the receiver is dead).
    pub fn claimed(&self) -> impl Iterator<Item = usize> {
        let is_claimed = |lane: &usize| {
            self.lane(*lane).request.state.load(Ordering::Acquire) & state::PHASE == state::TAKEN
        };
        (0..LANES).filter(is_claimed)
    }

    /// Claims the request on `lane`; the requester cannot take it back any more. False: it has.
    #[inline]
    pub fn claim(&self, lane: usize) -> bool {
        self.change(lane, state::REQUEST, state::TAKEN)
    }

    /// Takes a claim back: the request waits again. False: it has been abandoned meanwhile.
    pub fn unclaim(&self, lane: usize) -> bool {
        self.change(lane, state::TAKEN, state::REQUEST)
    }

    /// Has the requester abandoned the request on `lane`?
    pub fn is_abandoned(&self, lane: usize) -> bool {
        self.lane(lane).request.state.load(Ordering::Acquire) & state::PHASE == state::ABANDONED
    }

    /// Moves a lane from one phase to another and leaves its flags.
    #[inline]
    fn change(&self, lane: usize, from: u32, to: u32) -> bool {
        let word = &self.lane(lane).request.state;
        let mut now = word.load(Ordering::Relaxed);
        while now & state::PHASE == from {
            let next = now & !state::PHASE | to;
            match word.compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
        false
    }

    /// Copies the request's payload into `out`, which is `payload_len` of the copied message long.
    ///
    /// # Errors
    /// [`IpcError::TooLarge`] if that is more than a payload area has.
    pub fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError> {
        self.read_request_at(lane, 0, out)
    }

    /// The same, from `start` of the payload on.
    ///
    /// # Errors
    /// As [`SharedChannel::read_request`].
    pub fn read_request_at(
        &self,
        lane: usize,
        start: usize,
        out: &mut [u8],
    ) -> Result<(), IpcError> {
        if start.saturating_add(out.len()) > PAYLOAD_AREA {
            return Err(IpcError::TooLarge);
        }
        self.copy_out(request_area(lane) + start, out);
        Ok(())
    }

    /// Answers the request on `lane` and wakes the requester if it sleeps there. `by_bell`: the requester is
    /// woken by its bell ([`crate::door::flag::REQUESTER_BELL`]); ring it afterwards. False: nobody waits for it.
    pub fn answer(&self, lane: usize, message: &Message, payload: &[u8], by_bell: bool) -> bool {
        let slot = self.lane(lane);
        // First, so that a requester who sees its tag has the lane for itself. One access, without a look before: this
        // word may be on its way to the requester. DEAD may get lost, as an answer comes.
        let before = slot.request.state.swap(state::ANSWER, Ordering::AcqRel);
        let mut message = *message;
        if payload.len() > PAYLOAD_MAX {
            message = Message {
                tag: message.tag,
                ..Message::undelivered(message.call, IpcError::TooLarge)
            };
        } else {
            message.payload_len = u32::try_from(payload.len()).unwrap_or(0);
            self.copy_in(answer_area(lane), payload);
        }
        slot.answer.store(&message);
        let is_abandoned = before & state::PHASE == state::ABANDONED;
        if is_abandoned {
            slot.request.state.store(state::IDLE, Ordering::Release);
            if !by_bell {
                return false;
            }
        }
        if by_bell {
            self.header().receiver.answered.fetch_or(1 << lane, Ordering::SeqCst);
        }
        if before & state::SLEEPING != 0 {
            wake(&slot.request.state);
        }
        !is_abandoned
    }

    // ---- dvkd ----

    /// Ends the channel because one side is gone: open calls end, further ones are refused.
    pub fn close(&self, error: IpcError) {
        self.header().closed.store(error.status().into(), Ordering::SeqCst);
        for lane in 0..LANES {
            let word = &self.lane(lane).request.state;
            word.fetch_or(state::DEAD, Ordering::SeqCst);
            wake(word);
        }
    }

    /// Why the channel ended, if it did.
    #[inline]
    pub fn closed(&self) -> Option<IpcError> {
        let status = self.header().closed.load(Ordering::Acquire);
        (status != 0)
            .then(|| u16::try_from(status).map_or(IpcError::Protocol, IpcError::from_status))
    }

    // ---- memory ----

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the mapping is SIZE bytes, page-aligned, lives as long as `self`, and all fields are atomics.
        unsafe { self.base.cast().as_ref() }
    }

    #[inline]
    fn lane(&self, lane: usize) -> &Lane {
        let lane = lane % LANES;
        // SAFETY: LANES_AT + LANES * LANE_SIZE is inside the mapping.
        let at = unsafe { self.base.add(LANES_AT + lane * LANE_SIZE) };
        // SAFETY: mapped, 64-byte aligned, lives as long as `self`, and all fields are atomics.
        unsafe { at.cast().as_ref() }
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= SIZE, "a payload area is inside the channel");
        // SAFETY: inside the mapping, just checked.
        let target = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: the target range is inside the mapping; `bytes` is our own memory, so they cannot overlap.
        unsafe { copy(bytes.as_ptr(), target, bytes.len()) };
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= SIZE, "a payload area is inside the channel");
        // SAFETY: inside the mapping, just checked.
        let source = unsafe { self.base.as_ptr().add(at) };
        // SAFETY: the source range is inside the mapping; `bytes` is our own memory, so they cannot overlap.
        // The peer may write meanwhile: then the bytes are arbitrary, and they are not interpreted before the copy.
        unsafe { copy(source, bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Drop for SharedChannel {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size, and nothing refers to it any more.
        unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), SIZE) }.ok();
    }
}

impl Lane {
    #[inline]
    fn answer_to(&self, tag: Tag) -> Option<Message> {
        (self.answer.tag() == tag).then(|| Message { tag, ..self.answer.load() })
    }
}

impl SharedRequest {
    /// The state is written last, at once, and in one order with what is looked at next: does the receiver sleep?
    #[inline]
    fn store(&self, message: &Message, payload_len: u32) {
        let args: [u64; ARGS_SIZE / 8] = zerocopy::transmute!(message.args);
        self.source.store(message.source.to_bits(), Ordering::Relaxed);
        self.tag.store(message.tag.0, Ordering::Relaxed);
        self.payload_len.store(payload_len, Ordering::Relaxed);
        for (word, copy) in self.args.iter().zip(args) {
            word.store(copy, Ordering::Relaxed);
        }
        let way = u32::from(way(message.status)) << state::WAY_AT;
        self.state.swap(state::REQUEST | way | u32::from(message.call), Ordering::SeqCst);
    }

    /// The request beside the state `word`.
    #[expect(clippy::cast_possible_truncation, reason = "the word's halves")]
    #[inline]
    fn load(&self, word: u32) -> Message {
        let args = self.args.each_ref().map(|word| word.load(Ordering::Relaxed));
        Message {
            source: Endpoint::from_bits(self.source.load(Ordering::Relaxed)),
            tag: Tag(self.tag.load(Ordering::Relaxed)),
            call: word as u16,
            status: way((word >> state::WAY_AT) as u16),
            payload_len: self.payload_len.load(Ordering::Relaxed),
            args: zerocopy::transmute!(args),
        }
    }
}

impl SharedMessage {
    #[inline]
    fn load(&self) -> Message {
        let mut words = [0u64; 8];
        for (copy, word) in words.iter_mut().zip(&self.words) {
            *copy = word.load(Ordering::Relaxed);
        }
        zerocopy::transmute!(words)
    }

    /// The tag is written last: who finds it there finds the rest.
    #[inline]
    fn store(&self, message: &Message) {
        let words: [u64; 8] = zerocopy::transmute!(*message);
        for (index, (copy, word)) in words.into_iter().zip(&self.words).enumerate() {
            if index != TAG_WORD {
                word.store(copy, Ordering::Relaxed);
            }
        }
        self.words[TAG_WORD].store(message.tag.0, Ordering::Release);
    }

    #[inline]
    fn tag(&self) -> Tag {
        Tag(self.words[TAG_WORD].load(Ordering::Acquire))
    }
}

fn request_area(lane: usize) -> usize {
    PAYLOADS_AT + (lane % LANES) * 2 * PAYLOAD_AREA
}

fn answer_area(lane: usize) -> usize {
    request_area(lane) + PAYLOAD_AREA
}

fn take(bits: &AtomicU64) -> u64 {
    if bits.load(Ordering::Relaxed) == 0 { 0 } else { bits.swap(0, Ordering::AcqRel) }
}

fn wake(word: &AtomicU32) {
    // Waking nobody is fine: the requester looks at the word before it sleeps.
    futex::wake(word, futex::Flags::empty(), 1).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> SharedChannel {
        let fd = create().expect("memfd");
        SharedChannel::map(fd.as_fd()).expect("a channel")
    }

    fn request(tag: Tag) -> Message {
        Message { tag, ..Message::request(7) }
    }

    /// A receiver that is killed, or waits for a CPU, between saying that it answers and the answer's last word.
    #[test]
    fn an_answer_counts_when_its_last_word_is_there_and_not_before() {
        let channel = channel();
        let tag = Tag::new(3, 1);
        channel.post(3, &request(tag), &[b"ask"]).expect("posted");
        let lane = channel.lane(3);
        let before = lane.request.state.swap(state::ANSWER, Ordering::AcqRel);
        assert_eq!(before, state::REQUEST | 7);
        assert_eq!((channel.poll(3, tag), channel.is_answered(3, tag)), (Poll::Open, false));
        // It does not look all the time, nor sleep for ever.
        assert_eq!(channel.sleep(3, None), Ok(()));
        lane.answer.store(&request(tag));
        assert_eq!(channel.poll(3, tag), Poll::Answered(request(tag)));
        assert_eq!(channel.poll(3, Tag::new(3, 2)), Poll::Open, "the answer to another call");
    }

    #[test]
    fn a_receiver_that_ends_in_the_middle_of_an_answer_has_not_answered() {
        let channel = channel();
        let tag = Tag::new(0, 9);
        channel.post(0, &request(tag), &[]).expect("posted");
        channel.lane(0).request.state.swap(state::ANSWER, Ordering::AcqRel);
        channel.close(IpcError::DestinationDied);
        assert_eq!(channel.poll(0, tag), Poll::Closed);
        // One that ends behind it has.
        channel.lane(0).answer.store(&request(tag));
        assert_eq!(channel.poll(0, tag), Poll::Answered(request(tag)));
    }

    #[test]
    fn an_answer_to_an_abandoned_request_frees_its_lane_and_wakes_nobody() {
        let channel = channel();
        let tag = Tag::new(1, 1);
        channel.post(1, &request(tag), &[]).expect("posted");
        assert!(channel.claim(1));
        assert!(!channel.claim(1), "once");
        assert_eq!((channel.withdraw(1), channel.is_idle(1)), (Withdrawn::Abandoned, false));
        channel.answer(1, &request(tag), &[], false);
        assert!(channel.is_idle(1));
        channel.post(1, &request(Tag::new(1, 2)), &[]).expect("posted");
        assert_eq!(channel.poll(1, Tag::new(1, 2)), Poll::Open);
    }
}
