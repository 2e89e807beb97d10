//! `Client`: the requester of one process. It opens channels when they are first needed and makes calls.
//!
//! All-zero memory is a fresh client: the shim keeps its client in a page that a forked child finds
//! wiped, so the child connects anew. It allocates nothing, keeps no descriptor and takes no lock over a wait.
#![expect(
    unsafe_code,
    reason = "a channel's mapping is replaced in place when its receiver has been restarted"
)]

use crate::bell::Ringer;
use crate::channel::{Poll, SharedChannel, Withdrawn};
use crate::connection::{Connection, Opened};
use crate::door::{self, Ask, flag};
use crate::endpoint::{Endpoint, NodeId};
use crate::errno::IpcError;
use crate::limits::{HAND_OVER, HAND_OVER_REMOTE, LANES};
use crate::message::{Message, Tag};
use crate::port::{Sendrec, Signals, Wait};
use crate::spin::Spin;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use rustix::fd::AsFd;
use rustix::thread::futex;
use syscalls::{Sysno, syscall};

/// Channels a client can have: `SLOTS * LANES` calls may be open at once, to all peers together.
const SLOTS: usize = 16;

/// First sleep when the receiver's bell could not be confirmed: it is out of CPU, stopped, or gone with its dvkd.
/// It is doubled [`RERING_DOUBLINGS`] times at most, so that waiting for a stopped receiver costs nothing.
const RERING: Duration = Duration::from_millis(1);
const RERING_DOUBLINGS: u32 = 7;

/// Longest time futex(2) can wait, in effect for ever, but with the rule that a handler always interrupts.
const AGES: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Times that a bell is rung for a notification: whoever does not hear it then finds it when it looks.
const NOTIFY_RINGS: u32 = 50;

/// With this a requester closes a channel that it does not need any more.
pub const LET_GO: IpcError = IpcError::NotBound;

/// Longest path of a socket, with its NUL (unix(7)).
const PATH_MAX: usize = 108;

/// The requester of one process.
#[derive(Debug)]
pub struct Client {
    /// One thread at a time talks to dvkd.
    connecting: Gate,
    endpoint: AtomicU64,
    node: AtomicU32,
    nonce: AtomicU64,
    sequence: AtomicU64,
    slots: [Slot; SLOTS],
}

/// What a client is to its dvkd, set before the first call.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    kind: u32,
    number: u32,
    path: [u8; PATH_MAX],
    path_len: usize,
}

impl Identity {
    /// An ordinary process, at the socket where containers have it.
    pub const PROCESS: Identity =
        Identity::new(door::kind::PROCESS, 0, door::SOCKET_PATH.as_bytes());

    /// One of [`door::kind`] at the socket `path`; a path that is too long is cut and will not be found.
    pub const fn new(kind: u32, number: u32, path: &[u8]) -> Identity {
        let mut copy = [0; PATH_MAX];
        let mut path_len = 0;
        while path_len < path.len() && path_len < PATH_MAX - 1 {
            copy[path_len] = path[path_len];
            path_len += 1;
        }
        Identity { kind, number, path: copy, path_len }
    }

    /// The socket's path.
    pub fn path(&self) -> &[u8] {
        &self.path[..self.path_len]
    }
}

/// How a client gets its channels.
pub trait Opener {
    /// Asks dvkd for a channel to `to`. The client is locked against other threads meanwhile.
    ///
    /// # Errors
    /// As dvkd refuses it.
    fn open(&self, client: &Client, to: Endpoint) -> Result<Opened, IpcError>;
}

/// A connection of its own for each question.
impl Opener for Identity {
    fn open(&self, client: &Client, to: Endpoint) -> Result<Opened, IpcError> {
        client.connect(self)?.open(to)
    }
}

/// A client and its identity: what daemons and commands use.
#[derive(Debug)]
pub struct Process {
    client: Client,
    identity: Identity,
}

impl Process {
    pub const fn new(identity: Identity) -> Process {
        Process { client: Client::new(), identity }
    }

    /// Who and where this process is; connects if it has not yet.
    ///
    /// # Errors
    /// [`IpcError::NotBound`] if there is no DVS here, or as dvkd refuses it.
    pub fn whoami(&self) -> Result<(Endpoint, NodeId), IpcError> {
        self.client.whoami(&self.identity)
    }

    /// What a second connection of this process must say hello with to be the same endpoint.
    pub fn nonce(&self) -> u64 {
        self.client.nonce()
    }
}

impl Sendrec for Process {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        self.client.sendrec(&self.identity, to, message, send, receive, wait)
    }
}

impl Default for Client {
    fn default() -> Client {
        Client::new()
    }
}

impl Client {
    pub const fn new() -> Client {
        Client {
            connecting: Gate::new(),
            endpoint: AtomicU64::new(0),
            node: AtomicU32::new(0),
            nonce: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            slots: [const { Slot::new() }; SLOTS],
        }
    }

    /// Who and where this process is; connects if it has not yet.
    ///
    /// # Errors
    /// [`IpcError::NotBound`] if there is no DVS here, or as dvkd refuses it.
    pub fn whoami(&self, identity: &Identity) -> Result<(Endpoint, NodeId), IpcError> {
        if self.endpoint.load(Ordering::Acquire) == 0 {
            let _turn = self.connecting.enter();
            self.connect(identity)?;
        }
        let node =
            u16::try_from(self.node.load(Ordering::Relaxed)).map_err(|_| IpcError::Protocol)?;
        Ok((Endpoint::from_bits(self.endpoint.load(Ordering::Relaxed)), NodeId(node)))
    }

    /// Tells this image of the process apart from those it runs before and after exec.
    pub fn nonce(&self) -> u64 {
        if self.nonce.load(Ordering::Relaxed) == 0 {
            let mut bytes = [0u8; 8];
            // Not secret; if the kernel has no randomness yet, the address of a mapping does (ASLR).
            let filled =
                rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
            let fresh =
                if filled == Ok(8) { u64::from_ne_bytes(bytes) } else { &raw const *self as u64 };
            self.nonce.compare_exchange(0, fresh | 1, Ordering::Relaxed, Ordering::Relaxed).ok();
        }
        self.nonce.load(Ordering::Relaxed)
    }

    /// [`Sendrec::sendrec`], over channels that `opener` gets.
    ///
    /// To a peer, a call that is given up ends at once: its request is taken back, or, if it has been received, its
    /// answer is dropped. A timeout of 0 means [`IpcError::WouldBlock`] if nobody takes the request within
    /// [`HAND_OVER`].
    ///
    /// # Errors
    /// As there.
    pub fn sendrec(
        &self,
        opener: &impl Opener,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        let (slot, lane) = self.lane(opener, to)?;
        let place = &self.slots[slot];
        let number = u16::try_from(slot * LANES + lane).map_err(|_| IpcError::Exhausted)?;
        message.tag = Tag::new(number, self.sequence.fetch_add(1, Ordering::Relaxed) + 1);
        message.source = Endpoint::from_bits(self.endpoint.load(Ordering::Relaxed));
        let outcome = self.exchange(opener, place, lane, message, send, receive, wait);
        // A lane that its receiver still has stays taken.
        if place.abandoned.load(Ordering::Relaxed) & 1 << lane == 0 {
            place.lanes.fetch_and(!(1 << lane), Ordering::Release);
        }
        outcome
    }

    /// Leaves a notification for `to`, and does not wait. For a peer of another node it is under way then, and gets
    /// lost if that node or the peer is gone.
    ///
    /// # Errors
    /// [`IpcError::Overrun`]: the one before has not been received, or is not yet under way. As dvkd refuses a channel.
    pub fn notify(&self, opener: &impl Opener, to: Endpoint, value: u64) -> Result<(), IpcError> {
        let (slot, lane) = self.lane(opener, to)?;
        let place = &self.slots[slot];
        let left = match place.using(|channel| channel.notify(value)) {
            Err(IpcError::DestinationDied | IpcError::Denied) => self
                .reopen(opener, place)
                .and_then(|()| place.using(|channel| channel.notify(value))),
            left => left,
        };
        if left.is_ok() {
            for _ in 0..NOTIFY_RINGS {
                if place.ring(false) {
                    break;
                }
            }
        }
        place.lanes.fetch_and(!(1 << lane), Ordering::Release);
        left
    }

    /// Takes on the endpoint that a kept connection was given.
    pub fn adopt(&self, endpoint: Endpoint, node: NodeId) {
        self.node.store(node.0.into(), Ordering::Relaxed);
        self.endpoint.store(endpoint.to_bits(), Ordering::Release);
    }

    /// Posts the request, again after every restart of the receiver, until it is answered.
    #[expect(clippy::too_many_arguments, reason = "the call's own arguments and where it goes")]
    fn exchange(
        &self,
        opener: &impl Opener,
        slot: &Slot,
        lane: usize,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        loop {
            match slot.post(lane, message, send) {
                Ok(rung) => match slot.await_answer(lane, message.tag, rung, receive, wait) {
                    Some(Ok((answer, len))) => {
                        *message = answer;
                        if message.status >= 4096 {
                            return Err(IpcError::from_status(message.status));
                        }
                        return if len > receive.len() { Err(IpcError::TooLarge) } else { Ok(len) };
                    }
                    Some(Err(error)) => return Err(error),
                    None => {}
                },
                // Closed because it is gone, or because its rights or ours have changed: dvkd says which.
                Err(IpcError::DestinationDied | IpcError::Denied | LET_GO) => {}
                Err(error) => return Err(error),
            }
            self.reopen(opener, slot)?;
        }
    }

    /// Finds a free lane to `to`, opening a channel if there is none.
    fn lane(&self, opener: &impl Opener, to: Endpoint) -> Result<(usize, usize), IpcError> {
        loop {
            let mut vacant = None;
            let mut idle = None;
            for (index, slot) in self.slots.iter().enumerate() {
                match slot.peer.load(Ordering::Acquire) {
                    0 => {
                        vacant = Some(index);
                        break;
                    }
                    peer if peer == to.to_bits() => {
                        if let Some(lane) = slot.take_lane() {
                            // It may have become somebody else's between the two looks.
                            if slot.peer.load(Ordering::Acquire) == to.to_bits() {
                                return Ok((index, lane));
                            }
                            slot.lanes.fetch_and(!(1 << lane), Ordering::Release);
                        }
                    }
                    _ if slot.lanes.load(Ordering::Relaxed) == 0 => idle = Some(index),
                    _ => {}
                }
            }
            let index = vacant.or(idle).ok_or(IpcError::Exhausted)?;
            let _turn = self.connecting.enter();
            let slot = &self.slots[index];
            if slot.peer.load(Ordering::Acquire) == 0 {
                slot.fill(to, &opener.open(self, to)?)?;
            } else if vacant.is_none() && slot.take_all() {
                let replaced = opener.open(self, to).and_then(|opened| slot.hand_over(to, &opened));
                slot.lanes.store(0, Ordering::Release);
                replaced?;
            }
        }
    }

    /// Gets a new channel for a slot whose receiver is gone. dvkd answers when it is back, or refuses.
    fn reopen(&self, opener: &impl Opener, slot: &Slot) -> Result<(), IpcError> {
        let _turn = self.connecting.enter();
        if !slot.is_closed() {
            return Ok(());
        }
        let peer = Endpoint::from_bits(slot.peer.load(Ordering::Acquire));
        slot.refill(&opener.open(self, peer)?)
    }

    /// Connects and says hello. The caller has entered `connecting`.
    fn connect(&self, identity: &Identity) -> Result<Connection, IpcError> {
        let connection = Connection::connect(identity.path())?;
        let welcome =
            connection.hello(Ask::hello(identity.kind, identity.number, self.nonce()), None)?;
        self.node.store(welcome.node, Ordering::Relaxed);
        self.endpoint.store(welcome.endpoint.to_bits(), Ordering::Release);
        Ok(connection)
    }
}

/// One channel of a client.
#[derive(Debug)]
struct Slot {
    /// Bits of the peer's endpoint; 0: the slot is vacant.
    peer: AtomicU64,
    /// Address of the mapping of the channel, and of the peer's bell.
    channel: AtomicUsize,
    bell: AtomicUsize,
    /// Lanes in use.
    lanes: AtomicU64,
    /// Those of them that a peer still has though nobody waits for its answer.
    abandoned: AtomicU64,
    /// `door::flag`s of the channel.
    flags: AtomicU32,
    /// Threads that are between looking at a lane and acting on it, or [`REPLACING`].
    users: AtomicU32,
    spin: Spin,
}

/// In `Slot::users`: the mapping is being replaced.
const REPLACING: u32 = 1 << 31;

impl Slot {
    const fn new() -> Slot {
        Slot {
            peer: AtomicU64::new(0),
            channel: AtomicUsize::new(0),
            bell: AtomicUsize::new(0),
            lanes: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            flags: AtomicU32::new(0),
            users: AtomicU32::new(0),
            spin: Spin::new(),
        }
    }

    fn fill(&self, peer: Endpoint, opened: &Opened) -> Result<(), IpcError> {
        let channel = SharedChannel::map(opened.channel.as_fd())?;
        if !channel.is_current() {
            return Err(IpcError::Protocol);
        }
        let bell = Ringer::map(opened.bell.as_fd())?;
        self.flags.store(opened.flags, Ordering::Relaxed);
        self.channel.store(channel.into_address(), Ordering::Relaxed);
        self.bell.store(bell.into_address(), Ordering::Relaxed);
        self.peer.store(peer.to_bits(), Ordering::Release);
        Ok(())
    }

    /// Puts a new channel where the old one is. Threads that wait there were woken when it was closed,
    /// find their lane vacant, and post again.
    /// The caller has a [`Turn`], so no handler of this thread runs while others are kept out.
    fn refill(&self, opened: &Opened) -> Result<(), IpcError> {
        // SAFETY: the address is this slot's bell.
        unsafe { Ringer::replace(self.bell.load(Ordering::Relaxed), opened.bell.as_fd()) }?;
        while self
            .users
            .compare_exchange(0, REPLACING, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            rustix::thread::sched_yield();
        }
        // SAFETY: the address is this slot's mapping, and REPLACING keeps everybody out.
        let replaced = unsafe {
            SharedChannel::replace(self.channel.load(Ordering::Relaxed), opened.channel.as_fd())
        };
        self.flags.store(opened.flags, Ordering::Relaxed);
        self.users.store(0, Ordering::Release);
        replaced
    }

    /// Gives the slot, all of whose lanes the caller has taken, to another peer. The old one drops its channel.
    fn hand_over(&self, peer: Endpoint, opened: &Opened) -> Result<(), IpcError> {
        self.using(|channel| channel.close(LET_GO));
        self.refill(opened)?;
        self.peer.store(peer.to_bits(), Ordering::Release);
        Ok(())
    }

    /// Takes all lanes at once, if none is in use.
    fn take_all(&self) -> bool {
        self.lanes.compare_exchange(0, u64::MAX, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Frees the abandoned lanes that have been answered.
    fn reclaim(&self) {
        let abandoned = self.abandoned.load(Ordering::Relaxed);
        if abandoned == 0 {
            return;
        }
        let idle = |lane: &usize| {
            self.using(|channel| channel.is_idle(*lane) || channel.closed().is_some())
        };
        for lane in crate::port::bits(abandoned).filter(idle) {
            // Only one thread may free it.
            if self.abandoned.fetch_and(!(1 << lane), Ordering::AcqRel) & 1 << lane != 0 {
                self.lanes.fetch_and(!(1 << lane), Ordering::Release);
            }
        }
    }

    fn is_rendezvous(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flag::RENDEZVOUS != 0
    }

    fn take_lane(&self) -> Option<usize> {
        self.reclaim();
        let mut busy = self.lanes.load(Ordering::Relaxed);
        loop {
            let lane = (!busy).trailing_zeros();
            if lane as usize >= LANES {
                return None;
            }
            match self.lanes.compare_exchange_weak(
                busy,
                busy | 1 << lane,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(lane as usize),
                Err(now) => busy = now,
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.using(|channel| channel.closed().is_some())
    }

    /// Posts a request; says whether the receiver's bell was heard.
    fn post(&self, lane: usize, message: &Message, send: &[&[u8]]) -> Result<bool, IpcError> {
        self.using(|channel| channel.post(lane, message, send))?;
        Ok(self.ring(false))
    }

    /// Waits for the answer on `lane`; `None`: the receiver is gone, post again.
    fn await_answer(
        &self,
        lane: usize,
        tag: Tag,
        rung: bool,
        receive: &mut [u8],
        wait: Wait,
    ) -> Option<Result<(Message, usize), IpcError>> {
        if let Some(channel) = self.unguarded() {
            self.spin.until(|| !channel.is_open(lane));
        }
        let mut rung = rung;
        let mut unheard = 0;
        // Why the call is being given up; the answer that comes now decides.
        let mut given_up = None;
        let limit = wait.timeout_ms.map(|ms| now() + self.patience(ms));
        loop {
            match self.look(lane, tag, receive) {
                Look::Answered(message, IpcLen(len)) => {
                    if let (Some(error), true) =
                        (given_up, message.status == IpcError::Interrupted.status())
                    {
                        return Some(Err(error));
                    }
                    return Some(Ok((message, len)));
                }
                // A server comes back, a peer does not.
                Look::Gone if self.is_rendezvous() => {
                    let reason = self.using(SharedChannel::closed);
                    let died = reason.unwrap_or(IpcError::DestinationDied);
                    return Some(Err(given_up.unwrap_or(died)));
                }
                Look::Gone => return given_up.map(Err),
                Look::Open => {}
            }
            let left = limit.map(|limit| limit.saturating_sub(now()));
            let again = (!rung).then(|| RERING * 2u32.pow(RERING_DOUBLINGS.min(unheard)));
            match self.sleep(lane, again, left, wait.signals, given_up.is_some()) {
                Err(error) if given_up.is_none() => {
                    let error = if wait.timeout_ms == Some(0) && error == IpcError::TimedOut {
                        IpcError::WouldBlock
                    } else {
                        error
                    };
                    given_up = Some(error);
                    if self.is_rendezvous() {
                        if self.withdraw(lane) {
                            return Some(Err(error));
                        }
                        continue;
                    }
                    self.using(|channel| channel.cancel(lane, tag));
                    rung = self.ring(false);
                }
                _ if !rung => {
                    unheard += 1;
                    rung = self.ring(true);
                }
                _ => {}
            }
        }
    }

    /// How long a call with this timeout may take.
    fn patience(&self, timeout_ms: u32) -> Duration {
        match timeout_ms {
            0 if self.is_rendezvous() => HAND_OVER,
            0 => HAND_OVER_REMOTE,
            ms => Duration::from_millis(ms.into()),
        }
    }

    /// Gets out of the call on `lane`. False: look again, it has just ended.
    fn withdraw(&self, lane: usize) -> bool {
        match self.using(|channel| channel.withdraw(lane)) {
            Withdrawn::Unseen => true,
            Withdrawn::Abandoned => {
                self.abandoned.fetch_or(1 << lane, Ordering::AcqRel);
                true
            }
            Withdrawn::TooLate => false,
        }
    }

    /// One sleep, `again` at most if the bell has not been heard; an error is a reason to give the call up.
    fn sleep(
        &self,
        lane: usize,
        again: Option<Duration>,
        left: Option<Duration>,
        signals: Signals,
        given_up: bool,
    ) -> Result<(), IpcError> {
        let Some(channel) = self.unguarded() else { return Ok(()) };
        if !given_up && left == Some(Duration::ZERO) {
            return Err(IpcError::TimedOut);
        }
        let left = if given_up { None } else { left };
        let timeout = match (again, left, signals) {
            (Some(again), left, _) => Some(left.map_or(again, |left| left.min(again))),
            (None, Some(left), _) => Some(left),
            (None, None, Signals::Interrupt) if !given_up => Some(AGES),
            (None, None, _) => None,
        };
        match channel.sleep(lane, timeout) {
            Err(IpcError::Interrupted) if signals != Signals::Ignore && !given_up => {
                Err(IpcError::Interrupted)
            }
            // An unconfirmed bell or the limit: the caller looks, and decides.
            _ => Ok(()),
        }
    }

    /// Looks at the lane and takes the answer if it is there.
    fn look(&self, lane: usize, tag: Tag, receive: &mut [u8]) -> Look {
        self.using(|channel| match channel.poll(lane) {
            Poll::Open => Look::Open,
            Poll::Closed | Poll::Vacant => Look::Gone,
            Poll::Answered(message) if message.tag != tag => {
                // The receiver broke the protocol; its answer cannot be told from another call's.
                channel.release(lane);
                Look::Answered(
                    Message { tag, ..Message::undelivered(message.call, IpcError::Protocol) },
                    IpcLen(0),
                )
            }
            Poll::Answered(message) => {
                let len = channel.read_answer(lane, &message, receive);
                channel.release(lane);
                Look::Answered(message, IpcLen(len))
            }
        })
    }

    fn ring(&self, again: bool) -> bool {
        Ringer::ring_at(self.bell.load(Ordering::Acquire), again)
    }

    /// Runs `act` on the channel while it cannot be replaced.
    fn using<T>(&self, act: impl FnOnce(&SharedChannel) -> T) -> T {
        loop {
            let users = self.users.fetch_add(1, Ordering::Acquire);
            if users & REPLACING == 0 {
                break;
            }
            self.users.fetch_sub(1, Ordering::Release);
            rustix::thread::sched_yield();
        }
        let outcome = self.unguarded().map(|channel| act(&channel));
        self.users.fetch_sub(1, Ordering::Release);
        outcome.expect("a slot is filled before it has lanes")
    }

    /// The channel, for looking and sleeping only: it may be replaced by another at any time.
    fn unguarded(&self) -> Option<core::mem::ManuallyDrop<SharedChannel>> {
        SharedChannel::at(self.channel.load(Ordering::Acquire)).map(core::mem::ManuallyDrop::new)
    }
}

/// Bytes of an answer's payload.
struct IpcLen(usize);

/// What [`Slot::look`] found.
enum Look {
    Open,
    Answered(Message, IpcLen),
    Gone,
}

/// Lets one thread in at a time, with its signals blocked: a handler that makes a call could otherwise wait for
/// the thread it interrupts.
#[derive(Debug)]
struct Gate {
    taken: AtomicU32,
}

struct Turn<'a> {
    gate: &'a Gate,
    _signals: SignalsBlocked,
}

/// A thread looks again after this long, should the one before it have died inside.
const TURN_PATIENCE: Duration = Duration::from_millis(100);

impl Gate {
    const fn new() -> Gate {
        Gate { taken: AtomicU32::new(0) }
    }

    fn enter(&self) -> Turn<'_> {
        let signals = SignalsBlocked::new();
        let patience = crate::bell::timespec(TURN_PATIENCE);
        while self.taken.swap(1, Ordering::Acquire) != 0 {
            futex::wait(&self.taken, futex::Flags::empty(), 1, Some(&patience)).ok();
        }
        Turn { gate: self, _signals: signals }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.gate.taken.store(0, Ordering::Release);
        futex::wake(&self.gate.taken, futex::Flags::empty(), 1).ok();
    }
}

/// Blocks all signals of this thread while it lives.
struct SignalsBlocked {
    before: Option<u64>,
}

impl SignalsBlocked {
    fn new() -> SignalsBlocked {
        // libc's own signals too: no libc function runs meanwhile.
        SignalsBlocked { before: change_mask(SIG_BLOCK, u64::MAX) }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            change_mask(SIG_SETMASK, before);
        }
    }
}

/// `how` of rt_sigprocmask(2).
const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;

/// Changes the thread's signal mask; returns the one from before.
fn change_mask(how: usize, mask: u64) -> Option<u64> {
    let mut before = 0u64;
    // SAFETY: both masks are eight bytes, as the kernel's sigset_t, and outlive the call.
    let changed = unsafe {
        syscall!(Sysno::rt_sigprocmask, how, &raw const mask, &raw mut before, size_of::<u64>())
    };
    changed.ok().map(|_| before)
}

/// Time on the monotonic clock.
pub(crate) fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
