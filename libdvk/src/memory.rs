//! `vcopy`: memory that a process lends, and copies between any two processes of the DC, on any nodes.
//!
//! Nobody reaches into another process. A process *grants* a range of its own memory to one endpoint or to all; with
//! its first grant it binds a second endpoint, its memory side (`Endpoint::memory`), whose thread reads and writes the
//! granted ranges when it is asked, whatever the process's other threads are doing. So a copy is a call like any other:
//! the requester is who the DVK says, deaths and nodes that go down end it, and no privilege over the other process is needed.
//! (The prototype copies if the other is blocked in a call to the requester; here the grant says that it may.)
#![expect(unsafe_code, reason = "memory is granted, and named, by address")]

use crate::bound::{Bound, Core, Which, nonce};
use crate::inbox::{Inbox, locked};
use crate::lend::hint;
use m3ipc::door::{Ask, kind};
use m3ipc::lent::Lent;
use m3ipc::limits::{COPY_MAX, GRANTS_MAX, PAYLOAD_MAX};
use m3ipc::message::kernel::{COPY_IN, COPY_OUT};
use m3ipc::rights::call;
use m3ipc::{Endpoint, IpcError, Message};
use rustix::mm::{Advice, madvise};
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard};

/// What may be done with granted memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Both,
}

/// A grant of this process. It ends with [`Bound::revoke`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant(u64);

impl Grant {
    /// Its number, for C.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    pub(crate) fn from_number(number: u64) -> Grant {
        Grant(number)
    }
}

/// A copy that ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFailed {
    /// Bytes that are at the destination, from the beginning on. Some of those behind them may be there, too.
    pub copied: usize,
    pub error: IpcError,
}

/// Pieces that are under way at once: while one is copied here, its owner copies the next.
const PIECES: usize = COPY_MAX / PAYLOAD_MAX;

/// Bytes that pass through this process at once, if neither side is its own.
const BATCH: usize = COPY_MAX;

/// How far a copy has come, piece by piece.
struct Moved {
    result: Result<(), CopyFailed>,
    copied: usize,
}

impl Moved {
    /// The next piece has been answered, wholly or not. The first error counts.
    fn piece(&mut self, len: usize, is_whole: Result<bool, IpcError>) {
        let error = match is_whole {
            Ok(true) => {
                self.copied += len;
                return;
            }
            Ok(false) => IpcError::Protocol,
            Err(error) => error,
        };
        self.result = self.result.and(Err(CopyFailed { copied: self.copied, error }));
    }
}

/// Where pieces start.
fn starts() -> impl Iterator<Item = u64> {
    (0..).step_by(PAYLOAD_MAX)
}

/// The memory side of an endpoint.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) inbox: Arc<Inbox>,
    grants: Arc<Mutex<Grants>>,
}

#[derive(Debug, Default)]
pub(crate) struct Grants {
    pub(crate) list: BTreeMap<Grant, Range>,
    count: u64,
    /// The endpoint is not bound any more: nothing is answered, so that who asks hears that it died.
    is_closed: bool,
}

/// A range of memory, and who may use it how.
#[derive(Debug)]
pub(crate) struct Range {
    pub(crate) to: Endpoint,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) access: Access,
    /// If it can be mapped; mapped here as long as it is granted.
    pub(crate) lent: Option<Arc<Lent>>,
}

impl Range {
    /// `access`: none if any will do.
    pub(crate) fn allows(
        &self,
        who: Endpoint,
        start: u64,
        len: u64,
        access: Option<Access>,
    ) -> bool {
        let is_inside = start >= self.start
            && start.checked_add(len).is_some_and(|end| end <= self.start.saturating_add(self.len));
        let is_for = self.to == Endpoint::ANY || self.to.names(who);
        let is_so =
            self.access == Access::Both || access.is_none_or(|access| self.access == access);
        is_inside && is_for && is_so
    }
}

impl Grants {
    fn allow(&self, who: Endpoint, start: u64, len: u64, access: Access) -> bool {
        self.list.values().any(|range| range.allows(who, start, len, Some(access)))
    }
}

impl Bound {
    /// Lends `len` bytes at `start` of this process's memory to `to` (`Endpoint::ANY`: to all of the DC), until
    /// [`Bound::revoke`]. A range whose ends are not mapped is found out when it is used ([`IpcError::Fault`]).
    ///
    /// # Errors
    /// [`IpcError::Exhausted`]: too many grants, no memory or thread for the memory side; or as [`Bound::bind`].
    ///
    /// # Safety
    /// Until it is revoked, the bytes are mapped, and may be read at any time, with `Write` or `Both` written: no
    /// reference to them may be relied on meanwhile. What is written to them during a copy arrives or not.
    pub unsafe fn grant(
        &self,
        to: Endpoint,
        start: *const u8,
        len: usize,
        access: Access,
    ) -> Result<Grant, IpcError> {
        self.core.inbox.pass()?;
        let range = Range { to, start: start as u64, len: len as u64, access, lent: None };
        self.memory_side()?.add(range)
    }

    /// Ends a grant. A piece of a copy that is under way is finished first.
    ///
    /// # Errors
    /// [`IpcError::Stale`]: there is no such grant (any more).
    pub fn revoke(&self, grant: Grant) -> Result<(), IpcError> {
        if self.end_kept(grant) {
            return Ok(());
        }
        let memory = locked(&self.memory).as_ref().map(|(_, memory)| Arc::clone(memory));
        let memory = memory.ok_or(IpcError::Stale)?;
        memory.remove(grant)
    }

    /// Copies `len` bytes at `from` of `source`'s memory to `to` in `destination`'s. Both may be this endpoint, and
    /// neither: then the bytes pass through this process. Any length: it is cut into pieces.
    ///
    /// # Errors
    /// [`IpcError::Denied`]: a range is not granted to this endpoint, or it has no right to copy. [`IpcError::Fault`]:
    /// not mapped so. [`IpcError::NotBound`]: a side is not there, or has never granted anything; `Stale`, `NodeDown`,
    /// `DestinationDied`. [`CopyFailed::copied`] bytes have arrived all the same.
    ///
    /// # Safety
    /// For a side that is this endpoint, the range is mapped, and its to read, or to write, while this runs.
    pub unsafe fn vcopy(
        &self,
        source: Endpoint,
        from: u64,
        destination: Endpoint,
        to: u64,
        len: usize,
    ) -> Result<(), CopyFailed> {
        // SAFETY: the caller's contract.
        if unsafe { self.copy_mapped((source, from), (destination, to), len) } {
            return Ok(());
        }
        let is_through_here = !self.is_own(source) && !self.is_own(destination);
        let mut buffer = vec![0; if is_through_here { len.min(BATCH) } else { 0 }];
        let mut copied = 0;
        while copied < len {
            let size = (len - copied).min(if is_through_here { BATCH } else { len });
            let (from, to) = (from.wrapping_add(copied as u64), to.wrapping_add(copied as u64));
            let own = |error| CopyFailed { copied: 0, error };
            let moved = match (self.is_own(source), self.is_own(destination)) {
                _ if self.check(call::VCOPY).is_err() => Err(own(IpcError::Denied)),
                // SAFETY: the caller's contract.
                (true, true) => unsafe { copy_own(from, to, size) }.map_err(own),
                (true, false) => {
                    // SAFETY: the caller's contract.
                    let bytes = unsafe { own_bytes(from, size) };
                    bytes.map_err(own).and_then(|bytes| self.store(destination, to, bytes))
                }
                (false, true) => {
                    // SAFETY: the caller's contract.
                    let bytes = unsafe { own_bytes_mut(to, size) };
                    bytes.map_err(own).and_then(|bytes| self.fetch(source, from, bytes))
                }
                (false, false) => {
                    let bytes = &mut buffer[..size];
                    let fetched = self.fetch(source, from, bytes);
                    let there = fetched.map_or_else(|failed| failed.copied, |()| size);
                    self.store(destination, to, &bytes[..there]).and(fetched)
                }
            };
            moved.map_err(|failed| CopyFailed { copied: copied + failed.copied, ..failed })?;
            copied += size;
        }
        Ok(())
    }

    /// Copies at once if one side is this endpoint and the other is mapped here ([`Bound::lend`]). The address of one's own
    /// is not looked at before: that takes longer than the copy.
    ///
    /// # Safety
    /// As for [`Bound::vcopy`].
    unsafe fn copy_mapped(
        &self,
        source: (Endpoint, u64),
        destination: (Endpoint, u64),
        len: usize,
    ) -> bool {
        let own = |at: u64| usize::try_from(at).ok().map(|at| at as *mut u8);
        let (there, here, access) = match (self.is_own(source.0), self.is_own(destination.0)) {
            (false, true) => (source, own(destination.1), Access::Read),
            (true, false) => (destination, own(source.1), Access::Write),
            _ => return false,
        };
        let (Some(here), true) = (here, self.check(call::VCOPY).is_ok()) else { return false };
        // SAFETY: the caller's contract.
        unsafe { self.copy_lent(there, here, len, access) }.is_some()
    }

    /// Reads what `source` lends at `from`.
    fn fetch(&self, source: Endpoint, from: u64, bytes: &mut [u8]) -> Result<(), CopyFailed> {
        self.copy_pieces(COPY_OUT, source, from, bytes.chunks_mut(PAYLOAD_MAX), |piece| {
            (&[], &mut **piece)
        })
    }

    /// Writes to what `destination` lends at `to`.
    fn store(&self, destination: Endpoint, to: u64, bytes: &[u8]) -> Result<(), CopyFailed> {
        self.copy_pieces(COPY_IN, destination, to, bytes.chunks(PAYLOAD_MAX), |piece| {
            (*piece, &mut [])
        })
    }

    /// Makes a call `number` for each of the pieces of a range of `other` that begins at `start`; the next ones before
    /// one has been answered. Of a piece, `parts` are what is sent and what is received: one of the two is empty.
    fn copy_pieces<P>(
        &self,
        number: u16,
        other: Endpoint,
        start: u64,
        pieces: impl Iterator<Item = P>,
        parts: fn(&mut P) -> (&[u8], &mut [u8]),
    ) -> Result<(), CopyFailed> {
        let side = other.memory();
        let mut pieces = starts().zip(pieces);
        let (mut begun, mut moved) = (VecDeque::new(), Moved { result: Ok(()), copied: 0 });
        let mut channel = None;
        loop {
            while begun.len() < PIECES
                && moved.result.is_ok()
                && let Some((at, mut piece)) = pieces.next()
            {
                let (send, receive) = parts(&mut piece);
                let len = send.len() + receive.len();
                let mut message = request(number, start.wrapping_add(at), len);
                let call = self.core.begin(side, &mut message, &[send]);
                begun.push_back((call, message, piece));
            }
            let Some((call, mut message, mut piece)) = begun.pop_front() else {
                return moved.result;
            };
            // The one that the first of them goes over.
            let channel = *channel.get_or_insert_with(|| self.core.channel_to(side));
            let (send, receive) = parts(&mut piece);
            let (len, wanted) = (send.len() + receive.len(), receive.len());
            let answered =
                call.and_then(|call| self.core.finish(call, &mut message, &[send], receive));
            if answered.is_ok() && message.status == 0 {
                self.borrowed.learn(&self.core, side, channel, &message.args);
            }
            moved.piece(len, answered.map(|got| message.status == 0 && got == wanted));
        }
    }

    fn is_own(&self, endpoint: Endpoint) -> bool {
        endpoint.names(self.endpoint())
    }

    /// The memory side, made when it is first needed. Grants end when the endpoint goes to another process.
    pub(crate) fn memory_side(&self) -> Result<Arc<Memory>, IpcError> {
        let own = self.endpoint();
        let mut kept = locked(&self.memory);
        match &*kept {
            Some((of, memory)) if *of == own && !memory.inbox.is_lost() => {
                return Ok(Arc::clone(memory));
            }
            _ => {}
        }
        let hello = Ask { to: own, ..Ask::hello(kind::MEMORY, 0, nonce()) };
        let (inbox, _) = Inbox::open(self.socket().as_os_str().as_bytes(), hello, "dvk-mem")?;
        let grants = Arc::<Mutex<Grants>>::default();
        let core = Core::new(Arc::clone(&inbox));
        let lent = Arc::clone(&grants);
        std::thread::Builder::new()
            .name("dvk-copy".into())
            .spawn(move || serve(&core, &lent))
            .map_err(|_| IpcError::Exhausted)?;
        let memory = Arc::new(Memory { inbox, grants });
        *kept = Some((own, Arc::clone(&memory)));
        Ok(memory)
    }
}

impl Memory {
    pub(crate) fn add(&self, range: Range) -> Result<Grant, IpcError> {
        let mut grants = locked(&self.grants);
        if grants.list.len() >= GRANTS_MAX {
            return Err(IpcError::Exhausted);
        }
        grants.count += 1;
        let grant = Grant(grants.count);
        grants.list.insert(grant, range);
        Ok(grant)
    }

    pub(crate) fn remove(&self, grant: Grant) -> Result<(), IpcError> {
        locked(&self.grants).list.remove(&grant).map(|_| ()).ok_or(IpcError::Stale)
    }

    /// Nothing is lent any more.
    pub(crate) fn close(&self) {
        let mut grants = locked(&self.grants);
        grants.list.clear();
        grants.is_closed = true;
        drop(grants);
        self.inbox.close();
    }
}

/// The body of the memory side's thread: until the endpoint is not bound any more.
fn serve(core: &Core, grants: &Mutex<Grants>) {
    let mut buffer = vec![0; PAYLOAD_MAX];
    loop {
        let got = match core.rcvrqst(&mut buffer, None) {
            Ok(got) => got,
            Err(IpcError::NotBound) => return,
            Err(_) => continue,
        };
        let source = got.message.source;
        // Held while the bytes are moved: a revoked grant is not in use.
        let grants = locked(grants);
        if grants.is_closed {
            return;
        }
        let done = answer(&got.message, &buffer[..got.payload_len], &grants);
        let (reply, bytes) = match done {
            Ok(bytes) => {
                let mut reply = Message::request(got.message.call);
                hint(&grants, &got.message, range(&got.message), &mut reply.args);
                (reply, bytes)
            }
            Err(error) => (Message::undelivered(got.message.call, error), &[][..]),
        };
        let reply = Message { tag: got.message.tag, ..reply };
        // A requester that has given up, or died, needs none.
        core.reply(source, &reply, bytes, Which::Named).ok();
    }
}

/// Does what a request asks; returns the bytes of the answer.
fn answer<'a>(
    message: &Message,
    payload: &[u8],
    grants: &'a MutexGuard<'_, Grants>,
) -> Result<&'a [u8], IpcError> {
    let (start, len) = range(message);
    let size = usize::try_from(len).ok().filter(|size| *size <= PAYLOAD_MAX);
    let size = size.ok_or(IpcError::TooLarge)?;
    match message.call {
        COPY_OUT if grants.allow(message.source, start, len, Access::Read) => {
            // SAFETY: whoever granted them says that they are mapped until they are revoked, which `grants` keeps off.
            unsafe { own_bytes(start, size) }
        }
        COPY_IN if size != payload.len() => Err(IpcError::Protocol),
        COPY_IN if grants.allow(message.source, start, len, Access::Write) => {
            // SAFETY: as above, and that nobody relies on what is in them.
            unsafe { own_bytes_mut(start, size) }.map(|bytes| {
                bytes.copy_from_slice(payload);
                &[][..]
            })
        }
        COPY_OUT | COPY_IN => Err(IpcError::Denied),
        _ => Err(IpcError::Protocol),
    }
}

/// Start and length of what a request is about.
fn range(message: &Message) -> (u64, u64) {
    let word = |at: usize| {
        let bytes = message.args[at..at + 8].first_chunk().expect("eight bytes");
        u64::from_le_bytes(*bytes)
    };
    (word(0), word(8))
}

fn request(number: u16, start: u64, len: usize) -> Message {
    let mut message = Message::request(number);
    message.args[..8].copy_from_slice(&start.to_le_bytes());
    message.args[8..16].copy_from_slice(&(len as u64).to_le_bytes());
    message
}

/// Copies from this process to itself.
///
/// # Safety
/// As for [`Bound::vcopy`].
unsafe fn copy_own(from: u64, to: u64, len: usize) -> Result<(), IpcError> {
    let from = mapped(from, len, Advice::LinuxPopulateRead)?;
    let to = mapped(to, len, Advice::LinuxPopulateWrite)?;
    // SAFETY: the caller's contract; they may overlap.
    unsafe { std::ptr::copy(from, to, len) };
    Ok(())
}

/// Bytes of this process.
///
/// # Safety
/// They are mapped, and nobody takes them away while the slice lives. It is only copied from, once: if somebody writes
/// to them meanwhile, the copy is arbitrary.
unsafe fn own_bytes<'a>(start: u64, len: usize) -> Result<&'a [u8], IpcError> {
    let start = mapped(start, len, Advice::LinuxPopulateRead)?;
    // SAFETY: the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts(start, len) })
}

/// The same, to be written.
///
/// # Safety
/// They are mapped writable, and nobody uses them otherwise, or takes them away, while the slice lives.
unsafe fn own_bytes_mut<'a>(start: u64, len: usize) -> Result<&'a mut [u8], IpcError> {
    let start = mapped(start, len, Advice::LinuxPopulateWrite)?;
    // SAFETY: the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts_mut(start, len) })
}

/// Looks whether both ends of a range are mapped so (madvise(2), Linux 5.14): an address that is wrong is found out
/// before it ends the process. Looking at every page would take twice as long as the copy.
fn mapped(start: u64, len: usize, advice: Advice) -> Result<*mut u8, IpcError> {
    let start = usize::try_from(start).map_err(|_| IpcError::Fault)?;
    let last = start.checked_add(len.saturating_sub(1)).ok_or(IpcError::Fault)?;
    let size = rustix::param::page_size();
    let (first, last) = (start - start % size, last - last % size);
    for page in [Some(first), (last != first).then_some(last)].into_iter().flatten() {
        // SAFETY: one page is made present, nothing else changes; one that is not mapped is an error.
        unsafe { madvise(page as *mut _, size, advice) }.map_err(|_| IpcError::Fault)?;
    }
    Ok(start as *mut u8)
}
