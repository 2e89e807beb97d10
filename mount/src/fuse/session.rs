//! A mount that is being served: threads that read requests, and as many of them as are needed.
//!
//! A thread reads a request, does what it asks for, which may take as long as a lock is held, and replies. While it does,
//! another one reads: who was the last that waited for requests calls one more, and who finds enough of them there steps
//! aside, to be called again. So no request, and above all no interrupt, waits for another to be served, until as many are
//! being served as there may be threads. (The kernel gives requests to readers in turn: more of them than are needed would
//! only spread the work over more CPUs and caches.)

use super::abi::{
    FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PARALLEL_DIRECT_WRITES, UNIQUE_RESEND, init,
};
use super::device::{Arrival, Device};
use super::door::{Done, Door};
use super::handshake;
use super::reply::{self, HEADER_SIZE};
use super::request::{Malformed, Operation, Request};
use super::under_way::{Served, UnderWay, Watched};
use crate::agent::{Agent, Skill};
use crate::limits::{
    GIVERS, IO_SIZE_MAX, PUT_OFF_SIZE_MAX, REQUEST_HEAD_MAX, SPARE_MAX, STACK, THREADS_MAX,
};
use crate::status::Status;
use anyhow::{Context as _, Result};
use m3ipc::{Errno, Interrupt};
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// The minor from which on (Linux 6.16) a page that is being written back is there until it is. Before, its copy could arrive after the kernel had
/// lost it.
const WRITES_BACK_IN_PLACE: u32 = 44;

/// What one read of the device may bring, and what one reply may be.
const BUFFER_SIZE: usize = IO_SIZE_MAX as usize + REQUEST_HEAD_MAX;

/// Most of a request that most requests have.
const READ_SIZE_USUAL: usize = REQUEST_HEAD_MAX + PUT_OFF_SIZE_MAX;

/// Called once, when the mount is gone or the device is broken.
pub(crate) type End = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A mount that is being served.
struct Session<A> {
    door: Door<A>,
    devices: Vec<Device>,
    under_way: UnderWay,
    /// Threads that wait for a request, or have been called to.
    readers: AtomicUsize,
    /// How many are enough.
    readers_max: usize,
    spare: Mutex<Spare>,
    called: Condvar,
    /// All threads but the watch.
    threads: AtomicUsize,
    /// Has that been said of which there is much to say?
    is_full_told: AtomicBool,
    requests: Arc<AtomicU64>,
    end: Mutex<Option<End>>,
}

/// Threads that have stepped aside.
#[derive(Debug, Default)]
struct Spare {
    waiting: usize,
    /// How many of them have been called and not come yet.
    called: usize,
    has_ended: bool,
}

/// The descriptors of a mount that has been made, and what the kernel and we have agreed upon.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) devices: Vec<Device>,
    pub(crate) terms: Terms,
}

/// Features that are used, and the minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) flags: u64,
    pub(crate) minor: u32,
}

/// Shakes hands with the kernel on `descriptor`, of a mount that has been made, and gets a descriptor for each of so many threads. Of the
/// kernel's features only those of `allowed` are used.
///
/// # Errors
/// One sentence: the kernel is too old.
pub(crate) fn agree(descriptor: OwnedFd, threads: NonZero<usize>, allowed: u64) -> Result<Agreed> {
    let device = Device::new(descriptor);
    let mut buffer = vec![0; BUFFER_SIZE];
    let (flags, minor) = handshake::shake_hands(&device, allowed, &mut buffer)?;
    let mut devices = vec![device];
    for _ in 1..threads.get() {
        match devices[0].another() {
            Ok(device) => devices.push(device),
            // Not where /dev/fuse came from fusermount3 and is not ours to open.
            Err(error) => tracing::debug!(%error, "one descriptor for all threads"),
        }
    }
    Ok(Agreed { devices, terms: Terms { flags, minor } })
}

/// Serves `agent` on what has been `agreed`, with so many threads at first. If there was an agent before it, that has died, what that had not answered is
/// asked again. `requests` counts what the kernel asks for.
///
/// # Errors
/// One sentence: there can be no threads.
pub(crate) fn start<A: Agent>(
    agent: A,
    agreed: Agreed,
    threads: NonZero<usize>,
    requests: Arc<AtomicU64>,
    end: End,
) -> Result<()> {
    let Agreed { devices, terms: Terms { flags, minor } } = agreed;
    // Without that feature a file opened for direct I/O cannot be mapped shared: then the page cache is used, emptied at
    // each open and whenever mtime or size have changed.
    let can_map = flags & init::DIRECT_IO_ALLOW_MMAP != 0;
    let skill = Skill {
        reads: flags & init::AUTO_INVAL_DATA != 0,
        maps: can_map && minor >= WRITES_BACK_IN_PLACE,
    };
    let open_flags = if can_map { FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES } else { 0 };
    // What pages it has are good then.
    let open_flags = open_flags | if skill.maps { FOPEN_KEEP_CACHE } else { 0 };
    let session = Arc::new(Session {
        door: Door::new(agent, open_flags),
        devices,
        under_way: UnderWay::default(),
        readers: AtomicUsize::new(0),
        readers_max: threads.get(),
        spare: Mutex::default(),
        called: Condvar::new(),
        threads: AtomicUsize::new(0),
        is_full_told: AtomicBool::new(false),
        requests,
        end: Mutex::new(Some(end)),
    });
    match session.devices[0].same() {
        Ok(device) => {
            session.door.agent().attach(Arc::new(device), skill);
        }
        Err(error) => tracing::warn!(%error, "the kernel is not told to remember anything"),
    }
    session.beside("dvs-interrupts", |session| session.under_way.watch(&**session))?;
    session.beside("dvs-resume", |session| session.door.agent().resume())?;
    session.beside("dvs-leases", |session| session.door.agent().run())?;
    for _ in 0..GIVERS {
        session.beside("dvs-pages", |session| session.door.agent().give_back())?;
    }
    session.door.agent().settle();
    session.beside("dvs-later", |session| session.door.agent().follow_up())?;
    if flags & init::HAS_RESEND != 0 {
        session.devices[0].resend();
    }
    for _ in 0..threads.get() {
        session.hire().context("no thread to serve the mount")?;
    }
    Ok(())
}

impl<A: Agent> Session<A> {
    /// Starts a thread for something beside the requests.
    fn beside(
        self: &Arc<Session<A>>,
        name: &str,
        act: impl FnOnce(&Arc<Session<A>>) + Send + 'static,
    ) -> Result<()> {
        let session = self.clone();
        let thread = thread::Builder::new().name(name.into()).stack_size(STACK);
        thread.spawn(move || act(&session)).with_context(|| format!("no thread {name}")).map(drop)
    }

    /// Calls a thread that has stepped aside to wait for requests, or starts one if there may be one more.
    fn call_another(self: &Arc<Session<A>>) -> io::Result<()> {
        {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.waiting > spare.called {
                spare.called += 1;
                self.readers.fetch_add(1, Ordering::SeqCst);
                self.called.notify_one();
                return Ok(());
            }
        }
        self.hire()
    }

    /// Waits to be called. False: there are enough others, or the mount is gone.
    fn step_aside(&self) -> bool {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.waiting >= SPARE_MAX {
            return false;
        }
        spare.waiting += 1;
        while spare.called == 0 && !spare.has_ended {
            spare = self.called.wait(spare).unwrap_or_else(PoisonError::into_inner);
        }
        spare.waiting -= 1;
        spare.called = spare.called.saturating_sub(1);
        !spare.has_ended
    }

    /// Starts a thread, if there may be one more.
    fn hire(self: &Arc<Session<A>>) -> io::Result<()> {
        let number = self.threads.fetch_add(1, Ordering::Relaxed);
        if number >= THREADS_MAX {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            if !self.is_full_told.swap(true, Ordering::Relaxed) {
                tracing::warn!("{THREADS_MAX} requests are being served at once: others wait");
            }
            return Ok(());
        }
        // Counted at once, so that nobody else is hired for the same place.
        self.readers.fetch_add(1, Ordering::SeqCst);
        let session = self.clone();
        let serve = move || {
            let outcome = session.serve(number % session.devices.len());
            session.threads.fetch_sub(1, Ordering::Relaxed);
            if let Some(outcome) = outcome {
                session.end(outcome);
            }
        };
        let builder = thread::Builder::new().name("dvs-mount".into()).stack_size(STACK);
        builder.spawn(serve).map(drop).inspect_err(|_| {
            self.readers.fetch_sub(1, Ordering::SeqCst);
            self.threads.fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// Serves requests. Returns how the mount has ended, or nothing if it has not and other threads are enough.
    fn serve(self: &Arc<Session<A>>, device: usize) -> Option<io::Result<()>> {
        let mut request = vec![0; BUFFER_SIZE];
        // The kernel ends a request with EIO whose reader is killed while memory is got for it.
        request[..READ_SIZE_USUAL].fill(1);
        let mut reply = vec![0; BUFFER_SIZE];
        loop {
            let len = match self.devices[device].read(&mut request) {
                Ok(Arrival::Request(len)) => len,
                Ok(Arrival::Nothing) => continue,
                Ok(Arrival::End) => return Some(Ok(())),
                Err(error) => return Some(Err(error)),
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            match Request::decode(&request[..len]) {
                // These take no time.
                Ok(Request { operation: Operation::Nothing, .. }) => {}
                Ok(Request { operation: Operation::Forget { ino }, .. }) => {
                    self.door.agent().forgotten(ino);
                }
                Ok(Request { operation: Operation::ForgetAll { records }, .. }) => {
                    for record in records.as_chunks::<16>().0 {
                        let (ino, _) = record.split_first_chunk().unwrap_or((&[0; 8], &[]));
                        self.door.agent().forgotten(u64::from_ne_bytes(*ino));
                    }
                }
                Ok(Request { operation: Operation::Interrupt { unique }, .. }) => {
                    self.under_way.interrupt(unique);
                }
                Ok(request) => {
                    // It reads on itself, sooner than another could. What comes again takes the way that it took before.
                    if request.unique & UNIQUE_RESEND == 0
                        && let Some(done) =
                            self.door.serve_at_once(&request, &mut reply[HEADER_SIZE..])
                    {
                        self.finish(device, &request, done, &mut reply, true);
                        if let Operation::Write { .. } | Operation::Setattr { .. } =
                            request.operation
                        {
                            self.door.agent().has_answered(request.caller);
                        }
                        continue;
                    }
                    if self.readers.fetch_sub(1, Ordering::SeqCst) == 1
                        && let Err(error) = self.call_another()
                    {
                        tracing::warn!(%error, "no further thread to serve the mount");
                    }
                    self.serve_one(device, &request, &mut reply);
                    if self.readers.fetch_add(1, Ordering::SeqCst) >= self.readers_max {
                        self.readers.fetch_sub(1, Ordering::SeqCst);
                        if !self.step_aside() {
                            return None;
                        }
                    }
                }
                Err(malformed) => self.refuse(device, malformed),
            }
        }
    }

    fn serve_one(&self, device: usize, request: &Request<'_>, reply: &mut [u8]) {
        // Only what waits for as long as others please is interrupted; an allocation more is nothing to it.
        let interrupt = match request.operation {
            Operation::Setlk { wait: true, .. } => Some(Arc::new(Interrupt::new())),
            _ => None,
        };
        let never = Interrupt::new();
        let served = Served::new(device, request.caller.pid, interrupt.clone());
        self.under_way.begin(request.unique, served);
        let payload = &mut reply[HEADER_SIZE..];
        let done = self.door.serve(request, interrupt.as_deref().unwrap_or(&never), payload);
        let is_waited_for = self.under_way.end(request.unique);
        self.finish(device, request, done, reply, is_waited_for);
        self.door.agent().has_answered(request.caller);
    }

    /// Sends what was done, whose payload is in `reply` behind the place of the head, unless nobody waits for it any more.
    fn finish(
        &self,
        device: usize,
        request: &Request<'_>,
        done: Result<Done, Errno>,
        reply: &mut [u8],
        is_waited_for: bool,
    ) {
        let (len, outcome) = match done {
            Ok(Done::Reply(len) | Done::Lent(len) | Done::Opened(len, _)) => (len, Ok(())),
            Ok(Done::Refused(number)) => (0, Err(number)),
            Err(error) => (0, Err(reply::number(error))),
        };
        reply[..HEADER_SIZE].copy_from_slice(&reply::header(request.unique, len, outcome));
        if let (Ok(Done::Opened(..)), true) = (done, is_waited_for) {
            self.door.agent().answers_open(request.caller);
        }
        let is_told =
            is_waited_for && self.answer(device, request.unique, &reply[..HEADER_SIZE + len]);
        match done {
            Ok(Done::Lent(_)) => self.door.agent().has_told(request.caller),
            Ok(Done::Opened(_, file)) if !is_told => self.door.undo(request, file),
            _ => {}
        }
    }

    /// Sends a reply. False: it does not get to who waits for it.
    fn answer(&self, device: usize, unique: u64, reply: &[u8]) -> bool {
        self.devices[device].write(reply).unwrap_or_else(|error| {
            tracing::error!(%error, len = reply.len(), "the kernel refuses a reply");
            // Nobody must wait for ever for one that it does not like.
            self.devices[device].write(&reply::header(unique, 0, Err(libc::EIO))).ok();
            false
        })
    }

    fn refuse(&self, device: usize, malformed: Malformed) {
        tracing::error!(?malformed, "a FUSE request that is none");
        if let Some(unique) = malformed.unique {
            self.answer(device, unique, &reply::header(unique, 0, Err(libc::EPROTO)));
        }
    }

    /// The mount is gone.
    fn end(&self, outcome: io::Result<()>) {
        self.under_way.close();
        self.door.agent().stop();
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).has_ended = true;
        self.called.notify_all();
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(end) = end {
            end(outcome);
        }
    }
}

impl<A: Agent> Watched for Session<A> {
    fn interrupt(&self, interrupt: &Interrupt) {
        self.door.agent().interrupt(interrupt);
    }

    fn is_dying(&self, pid: u32) -> bool {
        Status::read(pid).is_some_and(|status| status.is_dying())
    }

    fn give_up(&self, unique: u64, served: &Served) {
        tracing::info!(pid = served.pid, "a program is being killed: its request is given up");
        self.answer(served.device, unique, &reply::header(unique, 0, Err(libc::EINTR)));
    }
}
