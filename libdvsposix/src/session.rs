//! This process's client: one for the shim and the C API, wiped by fork, gone with exec.
#![expect(
    unsafe_code,
    reason = "pages that a forked child finds wiped can only be had by mapping them"
)]

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use m3ipc::client::{Client, Identity};
use m3ipc::{Endpoint, IpcError, Message, Sendrec, Wait};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes mapped for the client; only pages that are used take memory.
const CLIENT_BYTES: usize = size_of::<Client>().next_multiple_of(4096);

/// The session of this process.
#[derive(Clone, Copy, Debug)]
pub struct Session;

/// The client's pages. A child inherits the address and finds zeros there: a client that has not connected.
static CLIENT: AtomicPtr<Client> = AtomicPtr::new(ptr::null_mut());

/// Is there a DVS here? Decided by the first call and inherited by children: a process that began
/// with the local kernel's objects must not meet the DC's later, nor the other way round.
static DOOR: AtomicU32 = AtomicU32::new(UNKNOWN);
const UNKNOWN: u32 = 0;
const OPEN: u32 = 1;
const ABSENT: u32 = 2;

/// Where the door is, if not at its usual place.
struct Place {
    state: AtomicU32,
    identity: UnsafeCell<Identity>,
}

/// States of a [`Place`].
const USUAL: u32 = 0;
const WRITING: u32 = 1;
const GIVEN: u32 = 2;

// SAFETY: `identity` is written once, by who moved `state` from USUAL, and read only when it is GIVEN.
unsafe impl Sync for Place {}

static PLACE: Place =
    Place { state: AtomicU32::new(USUAL), identity: UnsafeCell::new(Identity::PROCESS) };

/// The door's socket is at `path`. Counts only the first time, and before the first call.
pub fn set_socket(path: &[u8]) {
    if PLACE.state.compare_exchange(USUAL, WRITING, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        let identity = Identity::new(m3ipc::door::kind::PROCESS, 0, path);
        // SAFETY: only this thread got WRITING, and nobody reads before GIVEN.
        unsafe { *PLACE.identity.get() = identity };
        PLACE.state.store(GIVEN, Ordering::Release);
    }
}

impl Session {
    /// Does the process belong to no DC? `false` as long as nobody has asked the door.
    pub fn is_outside(self) -> bool {
        DOOR.load(Ordering::Relaxed) == ABSENT
    }
}

impl Sendrec for Session {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        if self.is_outside() {
            return Err(IpcError::NotBound);
        }
        let outcome = client()?.sendrec(identity(), to, message, send, receive, wait);
        if outcome != Err(IpcError::NotBound) {
            DOOR.store(OPEN, Ordering::Relaxed);
            return outcome;
        }
        if DOOR.load(Ordering::Relaxed) == UNKNOWN && !door_is_there() {
            DOOR.compare_exchange(UNKNOWN, ABSENT, Ordering::Relaxed, Ordering::Relaxed).ok();
        }
        // A DVS that does not answer is not the same as none: its objects are not the local kernel's.
        if self.is_outside() { outcome } else { Err(IpcError::NodeDown) }
    }
}

/// Is there a door that this process can see, whether or not somebody answers?
fn door_is_there() -> bool {
    rustix::fs::stat(identity().path()).is_ok()
}

fn identity() -> &'static Identity {
    static PROCESS: Identity = Identity::PROCESS;
    if PLACE.state.load(Ordering::Acquire) != GIVEN {
        return &PROCESS;
    }
    // SAFETY: GIVEN: it is written and never changes again.
    unsafe { &*PLACE.identity.get() }
}

/// The client in its pages, which are mapped when it is first needed.
fn client() -> Result<&'static Client, IpcError> {
    let mapped = CLIENT.load(Ordering::Acquire);
    let client = if mapped.is_null() { map_client()? } else { mapped };
    // SAFETY: the pages are mapped for ever, and zeros are a fresh client (m3ipc::client).
    Ok(unsafe { &*client })
}

fn map_client() -> Result<*mut Client, IpcError> {
    // SAFETY: a new mapping of no particular address.
    let page = unsafe {
        rustix::mm::mmap_anonymous(
            ptr::null_mut(),
            CLIENT_BYTES,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    let page = page.map_err(|_| IpcError::Exhausted)?;
    // SAFETY: the page is this function's, and nothing is in it.
    let wiped = unsafe { rustix::mm::madvise(page, CLIENT_BYTES, Advice::LinuxWipeOnFork) };
    let fresh = page.cast::<Client>();
    let place =
        || CLIENT.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire);
    let placed = match wiped {
        Ok(()) => Ok(place().map_or_else(|other| other, |_| fresh)),
        Err(_) => Err(IpcError::Exhausted),
    };
    if placed != Ok(fresh) {
        // SAFETY: another thread was faster, or the page is of no use: nobody has seen it.
        unsafe { rustix::mm::munmap(page, CLIENT_BYTES) }.ok();
    }
    placed
}
