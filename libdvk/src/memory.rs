//! `vcopy`: memory that a process lends, and copies between any two processes of the DC, on any nodes.
//!
//! Nobody reaches into another process. A process *grants* a range of its own memory to one endpoint or to all; with
//! its first grant it binds a second endpoint, its memory side (`Endpoint::memory`), whose thread reads and writes the
//! granted ranges when it is asked, whatever the process's other threads are doing. So a copy is a call like any other:
//! the requester is who the DVK says, deaths and nodes that go down end it, and no privilege over the other process is needed.
//! (The prototype copies if the other is blocked in a call to the requester; here the grant says that it may.)
#![expect(unsafe_code, reason = "memory is granted, and named, by address")]

use crate::bound::{Bound, Core, nonce};
use crate::inbox::{Inbox, locked};
use m3ipc::door::{Ask, kind};
use m3ipc::limits::{GRANTS_MAX, PAYLOAD_MAX};
use m3ipc::message::kernel::{COPY_IN, COPY_OUT};
use m3ipc::rights::call;
use m3ipc::{Endpoint, IpcError, Message};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

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
    /// Bytes that are at the destination, from the beginning on.
    pub copied: usize,
    pub error: IpcError,
}

/// The memory side of an endpoint.
#[derive(Debug)]
pub(crate) struct Memory {
    inbox: Arc<Inbox>,
    grants: Arc<Mutex<Grants>>,
}

#[derive(Debug, Default)]
struct Grants {
    list: BTreeMap<Grant, Lent>,
    count: u64,
}

/// A range of memory, and who may use it how.
#[derive(Clone, Copy, Debug)]
struct Lent {
    to: Endpoint,
    start: u64,
    len: u64,
    access: Access,
}

impl Lent {
    fn allows(&self, who: Endpoint, start: u64, len: u64, access: Access) -> bool {
        let is_inside = start >= self.start
            && start.checked_add(len).is_some_and(|end| end <= self.start.saturating_add(self.len));
        let is_for = self.to == Endpoint::ANY
            || self.to == who
            || self.to.generation == 0 && self.to.slot == who.slot;
        is_inside && is_for && (self.access == Access::Both || self.access == access)
    }
}

impl Grants {
    fn allow(&self, who: Endpoint, start: u64, len: u64, access: Access) -> bool {
        self.list.values().any(|lent| lent.allows(who, start, len, access))
    }
}

impl Bound {
    /// Lends `len` bytes at `start` of this process's memory to `to` (`Endpoint::ANY`: to all of the DC), until
    /// [`Bound::revoke`]. A range that is not mapped is found out when it is used ([`IpcError::Fault`]).
    ///
    /// # Errors
    /// [`IpcError::Exhausted`]: too many grants, no memory or thread for the memory side; or as [`Bound::bind`].
    ///
    /// # Safety
    /// Until it is revoked, the bytes may be read at any time, and with `Write` or `Both` written: no reference to
    /// them may be relied on meanwhile.
    pub unsafe fn grant(
        &self,
        to: Endpoint,
        start: *const u8,
        len: usize,
        access: Access,
    ) -> Result<Grant, IpcError> {
        let memory = self.memory()?;
        let mut grants = locked(&memory.grants);
        if grants.list.len() >= GRANTS_MAX {
            return Err(IpcError::Exhausted);
        }
        grants.count += 1;
        let grant = Grant(grants.count);
        let lent = Lent { to, start: start as u64, len: len as u64, access };
        grants.list.insert(grant, lent);
        Ok(grant)
    }

    /// Ends a grant. A piece of a copy that is under way is finished first.
    ///
    /// # Errors
    /// [`IpcError::Stale`]: there is no such grant (any more).
    pub fn revoke(&self, grant: Grant) -> Result<(), IpcError> {
        let memory = self.memory.get().ok_or(IpcError::Stale)?;
        locked(&memory.grants).list.remove(&grant).map(|_| ()).ok_or(IpcError::Stale)
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
    /// For a side that is this endpoint, the range is its to read, or to write, while this runs.
    pub unsafe fn vcopy(
        &self,
        source: Endpoint,
        from: u64,
        destination: Endpoint,
        to: u64,
        len: usize,
    ) -> Result<(), CopyFailed> {
        let mut piece = vec![0; len.min(PAYLOAD_MAX)];
        let mut copied = 0;
        while copied < len {
            let bytes = &mut piece[..(len - copied).min(PAYLOAD_MAX)];
            let moved = self
                .check(call::VCOPY)
                .and_then(|()| self.fetch(source, from.wrapping_add(copied as u64), bytes))
                .and_then(|()| self.store(destination, to.wrapping_add(copied as u64), bytes));
            moved.map_err(|error| CopyFailed { copied, error })?;
            copied += bytes.len();
        }
        Ok(())
    }

    fn fetch(&self, source: Endpoint, from: u64, bytes: &mut [u8]) -> Result<(), IpcError> {
        if self.is_own(source) {
            return read_own(from, bytes);
        }
        let mut message = request(COPY_OUT, from, bytes.len());
        let len = self.core.exchange(source.memory(), &mut message, &[], bytes, None)?;
        if message.status == 0 && len == bytes.len() { Ok(()) } else { Err(IpcError::Protocol) }
    }

    fn store(&self, destination: Endpoint, to: u64, bytes: &[u8]) -> Result<(), IpcError> {
        if self.is_own(destination) {
            return write_own(to, bytes);
        }
        let mut message = request(COPY_IN, to, bytes.len());
        self.core.exchange(destination.memory(), &mut message, &[bytes], &mut [], None)?;
        if message.status == 0 { Ok(()) } else { Err(IpcError::Protocol) }
    }

    fn is_own(&self, endpoint: Endpoint) -> bool {
        let own = self.endpoint();
        endpoint == own || endpoint.generation == 0 && endpoint.slot == own.slot
    }

    /// The memory side, made when it is first needed.
    fn memory(&self) -> Result<&Memory, IpcError> {
        if let Some(memory) = self.memory.get() {
            return Ok(memory);
        }
        let hello = Ask { to: self.endpoint(), ..Ask::hello(kind::MEMORY, 0, nonce()) };
        let (inbox, welcome) = Inbox::open(self.socket().as_os_str().as_bytes(), hello, "dvk-mem")?;
        let grants = Arc::<Mutex<Grants>>::default();
        let core = Core::new(Arc::clone(&inbox), welcome.endpoint, self.node());
        let lent = Arc::clone(&grants);
        std::thread::Builder::new()
            .name("dvk-copy".into())
            .spawn(move || serve(&core, &lent))
            .map_err(|_| IpcError::Exhausted)?;
        Ok(self.memory.get_or_init(|| Memory { inbox, grants }))
    }
}

impl Memory {
    /// Nothing is lent any more.
    pub(crate) fn close(&self) {
        locked(&self.grants).list.clear();
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
        let done = answer(&got.message, got.payload_len, &mut buffer, grants);
        let (reply, len) = match done {
            Ok(len) => (Message::request(got.message.call), len),
            Err(error) => (Message::undelivered(got.message.call, error), 0),
        };
        let reply = Message { tag: got.message.tag, ..reply };
        // A requester that has given up, or died, needs none.
        core.reply(source, &reply, &buffer[..len]).ok();
    }
}

/// Does what a request asks; returns how much of `buffer` is the answer.
fn answer(
    message: &Message,
    payload_len: usize,
    buffer: &mut [u8],
    grants: &Mutex<Grants>,
) -> Result<usize, IpcError> {
    let word = |at: usize| {
        let bytes = message.args[at..at + 8].first_chunk().expect("eight bytes");
        u64::from_le_bytes(*bytes)
    };
    let (start, len) = (word(0), word(8));
    let size = usize::try_from(len).ok().filter(|size| *size <= buffer.len());
    let size = size.ok_or(IpcError::TooLarge)?;
    // Held while the bytes are moved: a revoked grant is not in use.
    let grants = locked(grants);
    match message.call {
        COPY_OUT if grants.allow(message.source, start, len, Access::Read) => {
            read_own(start, &mut buffer[..size]).map(|()| size)
        }
        COPY_IN if size != payload_len => Err(IpcError::Protocol),
        COPY_IN if grants.allow(message.source, start, len, Access::Write) => {
            write_own(start, &buffer[..size]).map(|()| 0)
        }
        COPY_OUT | COPY_IN => Err(IpcError::Denied),
        _ => Err(IpcError::Protocol),
    }
}

fn request(number: u16, start: u64, len: usize) -> Message {
    let mut message = Message::request(number);
    message.args[..8].copy_from_slice(&start.to_le_bytes());
    message.args[8..16].copy_from_slice(&(len as u64).to_le_bytes());
    message
}

/// Reads this process's memory by way of the kernel, which says EFAULT where a load would end the process.
fn read_own(start: u64, bytes: &mut [u8]) -> Result<(), IpcError> {
    let (base, len) = (address(start)?, bytes.len());
    let read =
        process_vm_readv(Pid::this(), &mut [IoSliceMut::new(bytes)], &[RemoteIoVec { base, len }]);
    whole(read, len)
}

/// Writes this process's memory, likewise.
fn write_own(start: u64, bytes: &[u8]) -> Result<(), IpcError> {
    let (base, len) = (address(start)?, bytes.len());
    let written =
        process_vm_writev(Pid::this(), &[IoSlice::new(bytes)], &[RemoteIoVec { base, len }]);
    whole(written, len)
}

fn address(start: u64) -> Result<usize, IpcError> {
    usize::try_from(start).map_err(|_| IpcError::Fault)
}

fn whole(moved: nix::Result<usize>, len: usize) -> Result<(), IpcError> {
    match moved {
        Ok(moved) if moved == len => Ok(()),
        Ok(_) | Err(nix::Error::EFAULT) => Err(IpcError::Fault),
        Err(_) => Err(IpcError::Denied),
    }
}
