//! `Client`: the requester of one process. It opens channels when they are first needed and makes calls.
//!
//! All-zero memory is a fresh client: the shim keeps its client in pages that a forked child finds
//! wiped, so the child connects anew. It allocates nothing, keeps no descriptor and takes no lock over a wait.
//!
//! A call is made on a lane of a slot. One word per lane, its *turn*, says who has it, numbers its calls, and keeps
//! the slot's channel in place while something is written there, all with one locked instruction per call.
#![expect(
    unsafe_code,
    reason = "a channel's mapping is replaced in place when its receiver has been restarted"
)]

use crate::bell::{Ringer, Rung};
use crate::channel::{Poll, SharedChannel, Withdrawn};
use crate::connection::{Connection, Opened};
use crate::door::{self, Ask, flag};
use crate::endpoint::{Endpoint, NodeId};
use crate::errno::IpcError;
use crate::interrupt::Interrupt;
use crate::limits::{CHANNELS_PER_PEER, HAND_OVER, HAND_OVER_REMOTE, LANES};
use crate::message::{Message, Tag};
use crate::port::{Note, Part, RECEIVED, Sendrec, Signals, Wait, tell};
use crate::spin::Spin;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use core::time::Duration;
use rustix::fd::AsFd;
use rustix::thread::futex;
use syscalls::{Sysno, syscall};

/// Channels a client can have.
const SLOTS: usize = CHANNELS_PER_PEER;

/// Calls of a process that may be open at once, to all peers together.
pub const CALLS_MAX: usize = SLOTS * LANES;

/// First sleep when the receiver's bell could not be confirmed: it is out of CPU, stopped, or gone with its dvkd.
/// It is doubled [`RERING_DOUBLINGS`] times at most, so that waiting for a stopped receiver costs nothing.
const RERING: Duration = Duration::from_millis(1);
const RERING_DOUBLINGS: u32 = 7;

/// Longest time futex(2) can wait, in effect for ever, but with the rule that a handler always interrupts.
const AGES: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Calls of one thread that are under way at once. Each takes a lane: a fraction of them, so that others find one.
const PARTS_MAX: usize = 8;

/// Times that a bell is rung for a notification, or for what a dead process has left, [`RERING`] apart: a receiver that is stopped keeps nobody longer.
const NOTIFY_RINGS: u32 = 50;

/// Times that the threads of a process are looked after when its calls are ended, [`RERING`] apart.
const WAKES: u32 = 1000;

/// How long a requester waits for an answer that its receiver, which moves, is writing.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// Sleeps for [`RERING`].
fn pause() {
    let never = AtomicU32::new(0);
    let time = crate::bell::timespec(RERING);
    futex::wait(&never, futex::Flags::empty(), 0, Some(&time)).ok();
}

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

/// A call that is under way ([`Client::begin`]). Dropped without [`Client::finish`], its lane stays taken.
#[derive(Debug)]
#[must_use = "its lane is taken until it is finished"]
pub struct Begun {
    slot: usize,
    lane: usize,
    /// Whether the receiver's bell was heard.
    posted: Result<bool, IpcError>,
}

/// How a client gets its channels.
pub trait Opener {
    /// Asks dvkd for a channel to `to`, which is to be in `slot` of the client. That is locked against other threads meanwhile.
    ///
    /// # Errors
    /// As dvkd refuses it.
    fn open(&self, client: &Client, to: Endpoint, slot: usize) -> Result<Opened, IpcError>;
}

/// A connection of its own for each question.
impl Opener for Identity {
    fn open(&self, client: &Client, to: Endpoint, _: usize) -> Result<Opened, IpcError> {
        client.connect(self)?.open(to)
    }
}

/// A client and how it gets its channels: what daemons and commands use.
#[derive(Debug)]
pub struct Process<O = Identity> {
    client: Client,
    opener: O,
}

impl<O> Process<O> {
    pub const fn new(opener: O) -> Process<O> {
        Process { client: Client::new(), opener }
    }

    pub const fn client(&self) -> &Client {
        &self.client
    }

    pub const fn opener(&self) -> &O {
        &self.opener
    }
}

impl Process {
    /// Who and where this process is; connects if it has not yet.
    ///
    /// # Errors
    /// [`IpcError::NotBound`] if there is no DVS here, or as dvkd refuses it.
    pub fn whoami(&self) -> Result<(Endpoint, NodeId), IpcError> {
        self.client.whoami(&self.opener)
    }

    /// What a second connection of this process must say hello with to be the same endpoint.
    pub fn nonce(&self) -> u64 {
        self.client.nonce()
    }
}

impl<O: Opener> Sendrec for Process<O> {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        self.client.sendrec(&self.opener, to, message, send, receive, wait)
    }

    fn sendrec_noted(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> Result<usize, IpcError> {
        self.client.sendrec_noted(&self.opener, to, message, send, receive, note)
    }

    fn resume(
        &self,
        tag: Tag,
        call: u16,
        send: &mut [u8],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> bool {
        self.client.resume(&self.opener, tag, call, send, receive, note)
    }

    fn repeat(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> Result<usize, IpcError> {
        self.client.repeat(&self.opener, to, message, send, receive, note)
    }

    fn leave(&self, tag: Tag) {
        self.client.leave(tag);
    }

    fn sendrec_until(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        interrupt: &Interrupt,
    ) -> Result<usize, IpcError> {
        self.client.sendrec_until(&self.opener, to, message, send, receive, interrupt)
    }

    fn sendrec_all(&self, to: Endpoint, parts: &mut [Part<'_>], wait: Wait) {
        self.client.sendrec_all(&self.opener, to, parts, wait);
    }

    fn interrupt(&self, interrupt: &Interrupt) {
        self.client.interrupt(interrupt);
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
            slots: [const { Slot::new() }; SLOTS],
        }
    }

    /// Who and where this process is; connects if it has not yet.
    ///
    /// # Errors
    /// [`IpcError::NotBound`] if there is no DVS here, or as dvkd refuses it.
    pub fn whoami(&self, identity: &Identity) -> Result<(Endpoint, NodeId), IpcError> {
        if self.endpoint.load(Ordering::Acquire) == 0 {
            let _passage = self.connecting.enter();
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
        let begun = self.begin(opener, to, message, send)?;
        self.finish(opener, begun, message, send, receive, wait)
    }

    /// The first half of [`Client::sendrec`]: the request is under way. Several may be, each on a lane of its own, which
    /// is taken until [`Client::finish`].
    ///
    /// # Errors
    /// There is no lane or no channel.
    pub fn begin(
        &self,
        opener: &impl Opener,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
    ) -> Result<Begun, IpcError> {
        self.begin_noted(opener, to, message, send, &mut |_| ())
    }

    /// As [`Client::begin`]; `asked` is told the call's tag before anybody can see the request.
    fn begin_noted(
        &self,
        opener: &impl Opener,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        asked: &mut dyn FnMut(Tag),
    ) -> Result<Begun, IpcError> {
        let (slot, lane, sequence) = self.lane(opener, to)?;
        let number = u16::try_from(slot * LANES + lane).map_err(|_| IpcError::Exhausted)?;
        message.tag = Tag::new(number, sequence);
        message.source = Endpoint::from_bits(self.endpoint.load(Ordering::Relaxed));
        asked(message.tag);
        Ok(Begun { slot, lane, posted: self.slots[slot].post(lane, message, send) })
    }

    /// The second half: waits for the answer. `message` and `send` as they were in [`Client::begin`]: if the receiver has
    /// been restarted they are sent again.
    ///
    /// # Errors
    /// As [`Client::sendrec`].
    pub fn finish(
        &self,
        opener: &impl Opener,
        begun: Begun,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        let outcome = self.exchange(opener, &begun, message, send, receive, wait);
        self.end(&begun);
        outcome
    }

    /// [`Sendrec::sendrec_noted`], over channels that `opener` gets.
    ///
    /// # Errors
    /// As there.
    pub fn sendrec_noted(
        &self,
        opener: &impl Opener,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> Result<usize, IpcError> {
        let begun = self.begin_noted(opener, to, message, send, &mut |tag| note.asked(tag))?;
        let outcome = self.exchange(opener, &begun, message, send, receive, Wait::FOREVER);
        // Before another call overwrites the answer.
        tell(note, &outcome, message, receive);
        self.end(&begun);
        outcome
    }

    /// [`Sendrec::sendrec_until`], over channels that `opener` gets.
    ///
    /// # Errors
    /// As there.
    pub fn sendrec_until(
        &self,
        opener: &impl Opener,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        interrupt: &Interrupt,
    ) -> Result<usize, IpcError> {
        let begun = self.begin(opener, to, message, send)?;
        let (slot, lane) = (&self.slots[begun.slot], begun.lane);
        if interrupt.attach(message.tag.lane()) {
            slot.woken.fetch_or(1 << lane, Ordering::SeqCst);
        }
        let outcome = self.exchange(opener, &begun, message, send, receive, Wait::FOREVER);
        // From here on nobody marks this lane, which may be another call's soon.
        interrupt.detach();
        self.end(&begun);
        outcome
    }

    /// [`Sendrec::sendrec_all`], over channels that `opener` gets: [`PARTS_MAX`] at a time.
    pub fn sendrec_all(
        &self,
        opener: &impl Opener,
        to: Endpoint,
        parts: &mut [Part<'_>],
        wait: Wait,
    ) {
        for parts in parts.chunks_mut(PARTS_MAX) {
            let mut begun = [const { None }; PARTS_MAX];
            for (part, begun) in parts.iter_mut().zip(&mut begun) {
                *begun = Some(self.begin(opener, to, &mut part.message, part.send));
            }
            for (part, begun) in parts.iter_mut().zip(&mut begun) {
                let Some(begun) = begun.take() else { continue };
                part.outcome = begun.and_then(|begun| {
                    let (message, receive) = (&mut part.message, &mut *part.receive);
                    self.finish(opener, begun, message, part.send, receive, wait)
                });
            }
        }
    }

    /// [`Sendrec::interrupt`].
    pub fn interrupt(&self, interrupt: &Interrupt) {
        interrupt.mark(|number| {
            let (slot, lane) = (usize::from(number) / LANES, usize::from(number) % LANES);
            let Some(slot) = self.slots.get(slot) else { return };
            slot.woken.fetch_or(1 << lane, Ordering::SeqCst);
            if let Some(channel) = slot.channel() {
                channel.wake(lane);
            }
        });
    }

    /// A call has ended: its lane is free, unless a peer still has it.
    fn end(&self, begun: &Begun) {
        let place = &self.slots[begun.slot];
        if place.woken.load(Ordering::Relaxed) != 0 {
            place.woken.fetch_and(!(1 << begun.lane), Ordering::Relaxed);
        }
        place.turns[begun.lane].end();
    }

    /// Leaves a notification for `to`, and does not wait. For a peer of another node it is under way then, and gets
    /// lost if that node or the peer is gone.
    ///
    /// # Errors
    /// [`IpcError::Overrun`]: the one before has not been received, or is not yet under way. As dvkd refuses a channel.
    pub fn notify(&self, opener: &impl Opener, to: Endpoint, value: u64) -> Result<(), IpcError> {
        let (slot, lane, _) = self.lane(opener, to)?;
        let place = &self.slots[slot];
        let left = match place.write(lane, |channel| channel.notify(value)) {
            Err(IpcError::DestinationDied | IpcError::Denied | IpcError::Moved) => self
                .leave_and_reopen(opener, slot, lane)
                .and_then(|()| place.write(lane, |channel| channel.notify(value))),
            left => left,
        };
        if left.is_ok() {
            // Not heard: it has said that it will sleep, and waits for a CPU before it does.
            for _ in 0..NOTIFY_RINGS {
                if place.ring(false) {
                    break;
                }
                pause();
            }
        }
        place.turns[lane].end();
        left
    }

    /// Ends all calls that wait now with [`IpcError::WokenUp`]. Waits until their threads have seen it, a second at most.
    pub fn wake_all(&self) {
        let waiting = |slot: &Slot| {
            let lanes = slot.turns.iter().enumerate();
            let taken =
                lanes.filter(|(_, turn)| matches!(turn.state(), turn::TAKEN | turn::WRITING));
            taken.fold(0u64, |all, (lane, _)| all | 1 << lane)
        };
        for slot in &self.slots {
            slot.woken.fetch_or(waiting(slot), Ordering::SeqCst);
        }
        for _ in 0..WAKES {
            let mut is_seen = true;
            for slot in &self.slots {
                let unseen = slot.woken.load(Ordering::SeqCst) & waiting(slot);
                for lane in crate::port::bits(unseen) {
                    is_seen = false;
                    if let Some(channel) = slot.channel() {
                        channel.wake(lane);
                    }
                }
            }
            if is_seen {
                return;
            }
            pause();
        }
    }

    /// The endpoint is not bound any more, or its dvkd is gone: calls under way end with [`IpcError::NotBound`]. The opener
    /// must refuse from now on.
    pub fn lose(&self) {
        // Whoever opens a channel has it in its slot before this, or does not get one.
        let _passage = self.connecting.enter();
        for channel in self.slots.iter().filter_map(Slot::channel) {
            channel.close(IpcError::NotBound);
        }
    }

    /// Names the channel over which calls to `to` go: one that takes its place has another name. None: there is none, or
    /// it is closed, as `to` is gone.
    pub fn channel_to(&self, to: Endpoint) -> Option<u64> {
        let peers = self.slots.iter().zip(0u64..);
        let mut used = peers.take_while(|(slot, _)| slot.peer.load(Ordering::Acquire) != 0);
        used.find_map(|(slot, index)| {
            let version = slot.version.load(Ordering::Acquire);
            let is_it = slot.peer.load(Ordering::Acquire) == to.to_bits();
            (is_it && version.is_multiple_of(2) && !slot.is_closed())
                .then_some(index << 32 | u64::from(version))
        })
    }

    /// Takes on the endpoint that a kept connection was given.
    pub fn adopt(&self, endpoint: Endpoint, node: NodeId) {
        self.node.store(node.0.into(), Ordering::Relaxed);
        self.endpoint.store(endpoint.to_bits(), Ordering::Release);
    }

    /// Calls are numbered from `sequence` on. For a client that goes on for a dead process of the same endpoint
    /// ([`Client::inherit`]): it must be greater than any number that has had. To be called before all else.
    pub fn number_from(&self, sequence: u64) {
        for turn in self.slots.iter().flat_map(|slot| &slot.turns) {
            turn.0.store(sequence << turn::BITS | turn::FREE, Ordering::Relaxed);
        }
    }

    /// Goes on with the channel that a dead process of the same endpoint had in slot `index`. Calls that are open there are
    /// given up, but for those in `kept`, which wait for [`Client::resume`].
    ///
    /// # Errors
    /// It is not the channel of a server, or cannot be mapped.
    pub fn inherit(
        &self,
        index: usize,
        peer: Endpoint,
        opened: &Opened,
        kept: &[Tag],
    ) -> Result<(), IpcError> {
        let slot = self.slots.get(index).ok_or(IpcError::Protocol)?;
        if opened.flags & flag::RENDEZVOUS != 0 || slot.peer.load(Ordering::Relaxed) != 0 {
            return Err(IpcError::Protocol);
        }
        slot.fill(peer, opened)?;
        let channel = slot.channel().ok_or(IpcError::Protocol)?;
        for (lane, turn) in slot.turns.iter().enumerate() {
            let number = index * LANES + lane;
            if kept.iter().any(|tag| usize::from(tag.lane()) == number) {
                turn.set(turn::TAKEN, Ordering::Relaxed);
            } else if let Some(request) = channel.request(lane) {
                turn.set(turn::ORPHANED, Ordering::Relaxed);
                channel.cancel(lane, request.tag);
            }
        }
        // Who died may have been about to say so.
        channel.announce();
        for _ in 0..NOTIFY_RINGS {
            if slot.ring(false) {
                break;
            }
            pause();
        }
        Ok(())
    }

    /// Waits for the answer to call `tag`, of number `call`, that a dead process of the same endpoint had made ([`Client::inherit`]), and tells `note` of it.
    /// If its receiver is restarted it is made again. `send` is room for the request's payload. False: it is not known to have been made; its lane is kept
    /// for [`Client::repeat`] or [`Client::leave`].
    pub fn resume(
        &self,
        opener: &impl Opener,
        tag: Tag,
        call: u16,
        send: &mut [u8],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> bool {
        let Some(begun) = self.kept(tag) else { return false };
        let slot = &self.slots[begun.slot];
        let Some(mut message) = slot.posted(begun.lane, tag, send) else { return false };
        message.call = call;
        let sent = &send[..message.payload_len as usize];
        let outcome = self.exchange(opener, &begun, &mut message, &[sent], receive, Wait::FOREVER);
        tell(note, &outcome, &message, receive);
        self.end(&begun);
        true
    }

    /// [`Sendrec::repeat`], over channels that `opener` gets: if the lane was not kept the call has another tag, as it cannot have been made.
    ///
    /// # Errors
    /// As there.
    pub fn repeat(
        &self,
        opener: &impl Opener,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> Result<usize, IpcError> {
        let Some(mut begun) = self.kept(message.tag) else {
            return self.sendrec_noted(opener, to, message, send, receive, note);
        };
        message.source = Endpoint::from_bits(self.endpoint.load(Ordering::Relaxed));
        note.asked(message.tag);
        begun.posted = self.slots[begun.slot].post(begun.lane, message, send);
        let outcome = self.exchange(opener, &begun, message, send, receive, Wait::FOREVER);
        tell(note, &outcome, message, receive);
        self.end(&begun);
        outcome
    }

    /// Nobody repeats call `tag`.
    pub fn leave(&self, tag: Tag) {
        if let Some(begun) = self.kept(tag) {
            self.end(&begun);
        }
    }

    /// The lane that is kept for a call of a dead process.
    fn kept(&self, tag: Tag) -> Option<Begun> {
        let (slot, lane) = (usize::from(tag.lane()) / LANES, usize::from(tag.lane()) % LANES);
        let its = self.slots.get(slot)?;
        let is_kept =
            its.peer.load(Ordering::Acquire) != 0 && its.turns[lane].state() == turn::TAKEN;
        is_kept.then_some(Begun { slot, lane, posted: Ok(false) })
    }

    /// Waits until the request is answered; posts it again after every restart of the receiver.
    fn exchange(
        &self,
        opener: &impl Opener,
        begun: &Begun,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        let end = wait
            .timeout_ms
            .filter(|ms| *ms != 0)
            .map(|ms| now() + Duration::from_millis(ms.into()));
        let mut wait = wait;
        let (slot, lane) = (&self.slots[begun.slot], begun.lane);
        let mut posted = begun.posted;
        loop {
            match posted {
                Ok(rung) => match slot.await_answer(lane, message.tag, rung, receive, wait) {
                    Some(Ok((answer, len))) => {
                        *message = answer;
                        if message.status >= 4096 {
                            return Err(IpcError::from_status(message.status));
                        }
                        return if len > receive.len() { Err(IpcError::TooLarge) } else { Ok(len) };
                    }
                    // It moves, and has received the request: its answer comes from where it is then.
                    Some(Err(IpcError::Moved)) => message.status |= RECEIVED,
                    Some(Err(error)) => return Err(error),
                    None => {}
                },
                // Closed because it is gone or moves, or because its rights or ours have changed: dvkd says which.
                Err(IpcError::DestinationDied | IpcError::Denied | IpcError::Moved | LET_GO) => {}
                Err(error) => return Err(error),
            }
            self.leave_and_reopen(opener, begun.slot, lane).map_err(|error| match error {
                // It was there, and has the request.
                IpcError::NotBound | IpcError::Stale if message.status & RECEIVED != 0 => {
                    IpcError::DestinationDied
                }
                error => error,
            })?;
            if let Some(end) = end {
                let left = end.saturating_sub(now()).as_millis().max(1);
                wait.timeout_ms = Some(u32::try_from(left).unwrap_or(u32::MAX));
            }
            posted = slot.post(lane, message, send);
        }
    }

    /// Finds a free lane to `to`, opening a channel if there is none. Returns slot, lane, and the call's number on it.
    fn lane(&self, opener: &impl Opener, to: Endpoint) -> Result<(usize, usize, u64), IpcError> {
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
                        if let Some((lane, sequence)) = slot.take_lane() {
                            // It may have become somebody else's between the two looks.
                            if slot.peer.load(Ordering::Acquire) == to.to_bits() {
                                return Ok((index, lane, sequence));
                            }
                            slot.turns[lane].end();
                        }
                    }
                    _ if slot.is_idle() => idle = Some(index),
                    _ => {}
                }
            }
            let index = vacant.or(idle).ok_or(IpcError::Exhausted)?;
            let _passage = self.connecting.enter();
            let slot = &self.slots[index];
            if slot.peer.load(Ordering::Acquire) == 0 {
                slot.fill(to, &opener.open(self, to, index)?)?;
            } else if vacant.is_none() && slot.take_all() {
                let opened = opener.open(self, to, index);
                let replaced = opened.and_then(|opened| slot.hand_over(to, &opened));
                slot.turns.iter().for_each(Turn::end);
                replaced?;
            }
        }
    }

    /// Gets a new channel for a slot when nothing is to be learned from the closed one on `lane` any more.
    fn leave_and_reopen(
        &self,
        opener: &impl Opener,
        index: usize,
        lane: usize,
    ) -> Result<(), IpcError> {
        self.slots[index].left.fetch_or(1 << lane, Ordering::SeqCst);
        self.reopen(opener, index)
    }

    /// Gets a new channel for a slot whose receiver is gone. dvkd answers when it is back, or refuses.
    fn reopen(&self, opener: &impl Opener, index: usize) -> Result<(), IpcError> {
        let _passage = self.connecting.enter();
        let slot = &self.slots[index];
        if !slot.is_closed() {
            return Ok(());
        }
        let peer = Endpoint::from_bits(slot.peer.load(Ordering::Acquire));
        let opened = opener.open(self, peer, index)?;
        if slot.channel().and_then(|channel| channel.closed()) == Some(IpcError::Moved) {
            slot.await_leavers();
        }
        let refilled = slot.refill(&opened);
        slot.left.store(0, Ordering::SeqCst);
        refilled
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
    rung: Rung,
    /// `door::flag`s of the channel.
    flags: AtomicU32,
    /// Odd while the mapping is being replaced.
    version: AtomicU32,
    /// Lanes in use that need nothing of the closed channel any more.
    left: AtomicU64,
    /// Lanes whose calls are to end with `WokenUp`.
    woken: AtomicU64,
    spin: Spin,
    turns: [Turn; LANES],
}

/// Who has a lane: [`turn`] in the lowest bits, the number of its last call above.
#[derive(Debug)]
struct Turn(AtomicU64);

/// States of a [`Turn`].
mod turn {
    pub(super) const FREE: u64 = 0;
    /// Its thread writes to the channel, which must stay where it is.
    pub(super) const WRITING: u64 = 1;
    /// Its thread waits.
    pub(super) const TAKEN: u64 = 2;
    /// Its thread is about to leave it to a peer that has its request.
    pub(super) const LEAVING: u64 = 3;
    /// A peer still has it, though nobody waits for its answer.
    pub(super) const ABANDONED: u64 = 4;
    /// A server still has a call of a process that is dead.
    pub(super) const ORPHANED: u64 = 5;
    pub(super) const BITS: u32 = 3;
    pub(super) const MASK: u64 = (1 << BITS) - 1;
}

impl Turn {
    const fn new() -> Turn {
        Turn(AtomicU64::new(turn::FREE))
    }

    /// Takes a lane that was seen as `before`, to write; returns the number of its call.
    fn take(&self, before: u64) -> Option<u64> {
        let sequence = (before >> turn::BITS) + 1;
        let after = sequence << turn::BITS | turn::WRITING;
        // SeqCst: whoever replaces the mapping either sees this, or is seen afterwards.
        let taken = self.0.compare_exchange(before, after, Ordering::SeqCst, Ordering::Relaxed);
        taken.is_ok().then_some(sequence)
    }

    fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn state(&self) -> u64 {
        self.load() & turn::MASK
    }

    /// Sets the state of a lane that this thread has.
    fn set(&self, state: u64, order: Ordering) {
        self.0.store(self.0.load(Ordering::Relaxed) & !turn::MASK | state, order);
    }

    /// Frees the lane that this thread has, unless its receiver still has it.
    fn end(&self) {
        let is_left = self.0.load(Ordering::Relaxed) & turn::MASK == turn::LEAVING;
        self.set(if is_left { turn::ABANDONED } else { turn::FREE }, Ordering::Release);
    }
}

/// How long a mapping waits to be replaced for threads that write there. One that does not come to an end was
/// interrupted by a signal, in whose handler this may be.
const WRITERS_PATIENCE: Duration = Duration::from_millis(20);

impl Slot {
    const fn new() -> Slot {
        Slot {
            peer: AtomicU64::new(0),
            channel: AtomicUsize::new(0),
            bell: AtomicUsize::new(0),
            rung: Rung::never(),
            flags: AtomicU32::new(0),
            version: AtomicU32::new(0),
            left: AtomicU64::new(0),
            woken: AtomicU64::new(0),
            spin: Spin::new(),
            turns: [const { Turn::new() }; LANES],
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
    /// The caller has a [`Passage`], so no handler of this thread runs while others are kept out.
    fn refill(&self, opened: &Opened) -> Result<(), IpcError> {
        // SAFETY: the address is this slot's bell.
        unsafe { Ringer::replace(self.bell.load(Ordering::Relaxed), opened.bell.as_fd()) }?;
        // Who rings in between posts again, to the channel that comes with the new bell.
        self.rung.forget();
        self.version.fetch_add(1, Ordering::SeqCst);
        let replaced = if self.await_writers() {
            // SAFETY: the address is this slot's mapping, and the odd version keeps everybody out.
            unsafe {
                SharedChannel::replace(self.channel.load(Ordering::Relaxed), opened.channel.as_fd())
            }
        } else {
            // Who writes goes on in the old one, which therefore stays mapped, and then finds the new one.
            SharedChannel::map(opened.channel.as_fd()).map(|channel| {
                // Before it, as the writer may be about to look where it is to write.
                self.flags.store(opened.flags, Ordering::Relaxed);
                self.channel.store(channel.into_address(), Ordering::Release);
            })
        };
        self.flags.store(opened.flags, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::SeqCst);
        replaced
    }

    /// Waits until nobody writes to the mapping; false: somebody does not end.
    fn await_writers(&self) -> bool {
        let mut limit = None;
        while self.turns.iter().any(|lane| lane.state() == turn::WRITING) {
            if now() > *limit.get_or_insert_with(|| now() + WRITERS_PATIENCE) {
                return false;
            }
            rustix::thread::sched_yield();
        }
        true
    }

    /// Gives the slot, all of whose lanes the caller has taken, to another peer. The old one drops its channel.
    fn hand_over(&self, peer: Endpoint, opened: &Opened) -> Result<(), IpcError> {
        if let Some(channel) = self.channel() {
            channel.close(LET_GO);
        }
        self.refill(opened)?;
        self.peer.store(peer.to_bits(), Ordering::Release);
        Ok(())
    }

    /// Has nobody a lane?
    fn is_idle(&self) -> bool {
        self.turns.iter().all(|lane| lane.state() == turn::FREE)
    }

    /// Takes all lanes at once, if none is in use.
    fn take_all(&self) -> bool {
        for (count, lane) in self.turns.iter().enumerate() {
            let before = lane.load();
            if before & turn::MASK != turn::FREE || lane.take(before).is_none() {
                self.turns[..count].iter().for_each(Turn::end);
                return false;
            }
            lane.set(turn::TAKEN, Ordering::Release);
        }
        true
    }

    /// Takes a free lane, to write; an abandoned one is free when it has been answered. Returns the call's number on it.
    fn take_lane(&self) -> Option<(usize, u64)> {
        self.turns.iter().enumerate().find_map(|(index, lane)| {
            let before = lane.0.load(Ordering::Relaxed);
            let is_free = match before & turn::MASK {
                turn::FREE => true,
                turn::ABANDONED => self
                    .channel()
                    .is_some_and(|channel| channel.is_idle(index) || channel.closed().is_some()),
                turn::ORPHANED => self.channel().is_some_and(|channel| {
                    channel.request(index).is_none() || channel.closed().is_some()
                }),
                _ => false,
            };
            is_free.then(|| lane.take(before)).flatten().map(|sequence| (index, sequence))
        })
    }

    fn is_rendezvous(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flag::RENDEZVOUS != 0
    }

    fn is_of_replicas(&self) -> bool {
        Endpoint::from_bits(self.peer.load(Ordering::Relaxed)).is_replicated()
    }

    fn is_closed(&self) -> bool {
        self.channel().is_some_and(|channel| channel.closed().is_some())
    }

    /// Posts a request; says whether the receiver's bell was heard.
    fn post(&self, lane: usize, message: &Message, send: &[&[u8]]) -> Result<bool, IpcError> {
        self.write(lane, |channel| {
            if lane == 0 && self.is_rendezvous() {
                channel.post_first(message, send)
            } else {
                channel.post(lane, message, send)
            }
        })?;
        Ok(self.ring(false))
    }

    /// The request `tag` that a dead process has left on `lane`, with its payload in `send`. `None`: it was not posted.
    fn posted(&self, lane: usize, tag: Tag, send: &mut [u8]) -> Option<Message> {
        let mut limit = None;
        loop {
            let channel = self.channel()?;
            let message = channel.posted(lane, tag)?;
            let is_there = channel.request(lane).is_some() || channel.is_answered(lane, tag);
            if is_there {
                let payload = send.get_mut(..message.payload_len as usize)?;
                channel.read_request(lane, payload).ok()?;
                return Some(message);
            }
            // Its answer is about to be written, or else the request has not been: what is there may be half of it.
            let limit = limit.get_or_insert_with(|| now() + ANSWER_PATIENCE);
            if channel.closed().is_some() || now() > *limit {
                return None;
            }
            pause();
        }
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
        if let Some(channel) = self.channel() {
            self.spin.until(|| channel.is_answered(lane, tag));
        }
        let mut rung = rung;
        let mut unheard = 0;
        // Why the call is being given up; the answer that comes now decides.
        let mut given_up = None;
        let mut unwritten = None;
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
                // A server comes back, a peer does not, unless it moves.
                Look::Gone if self.is_rendezvous() => {
                    let reason = self.channel().and_then(|channel| channel.closed());
                    let died = reason.unwrap_or(IpcError::DestinationDied);
                    let leave =
                        || self.channel().map_or(Withdrawn::Unseen, |channel| channel.leave(lane));
                    match (given_up, died) {
                        (Some(error), _) => {
                            leave();
                            return Some(Err(error));
                        }
                        (None, IpcError::Moved) => match leave() {
                            Withdrawn::Unseen => return None,
                            Withdrawn::Abandoned => return Some(Err(IpcError::Moved)),
                            // Its answer is there, or is being written; or it ended in the middle of that.
                            Withdrawn::TooLate => {
                                if now() > *unwritten.get_or_insert_with(|| now() + ANSWER_PATIENCE)
                                {
                                    return Some(Err(IpcError::Moved));
                                }
                                rustix::thread::sched_yield();
                            }
                        },
                        // Another replica can have what this one has not received.
                        (None, _) if self.is_of_replicas() && leave() == Withdrawn::Unseen => {
                            return None;
                        }
                        (None, died) => return Some(Err(died)),
                    }
                    continue;
                }
                Look::Gone => return given_up.map(Err),
                Look::Open => {}
            }
            let left = limit.map(|limit| limit.saturating_sub(now()));
            let again = (!rung).then(|| RERING * 2u32.pow(RERING_DOUBLINGS.min(unheard)));
            let bit = 1 << lane;
            let is_woken = given_up.is_none()
                && self.woken.load(Ordering::Relaxed) & bit != 0
                && self.woken.fetch_and(!bit, Ordering::SeqCst) & bit != 0;
            let slept = if is_woken {
                Err(IpcError::WokenUp)
            } else {
                self.sleep(lane, again, left, wait.signals, given_up.is_some())
            };
            match slept {
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
                    self.write(lane, |channel| channel.cancel(lane, tag));
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

    /// Waits until every thread with a call on the channel, which is closed and has woken them, has seen what became of
    /// it: answered, received, or neither. (A thread that has begun several would wait for itself: only memory sides are
    /// called so, and they do not move.)
    fn await_leavers(&self) {
        let is_waited_for = || {
            let left = self.left.load(Ordering::SeqCst);
            self.turns.iter().enumerate().any(|(lane, turn)| {
                matches!(turn.state(), turn::TAKEN | turn::WRITING) && left & 1 << lane == 0
            })
        };
        while is_waited_for() {
            rustix::thread::sched_yield();
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
        // One word: whichever channel it is in says what is so.
        match self.channel().map_or(Withdrawn::TooLate, |channel| channel.withdraw(lane)) {
            Withdrawn::Unseen => true,
            Withdrawn::Abandoned => {
                self.turns[lane].set(turn::LEAVING, Ordering::Relaxed);
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
        let Some(channel) = self.channel() else { return Ok(()) };
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
        loop {
            let version = self.version.load(Ordering::Acquire);
            let found =
                self.channel().map_or(Look::Gone, |channel| match channel.poll(lane, tag) {
                    Poll::Open => Look::Open,
                    Poll::Closed | Poll::Vacant => Look::Gone,
                    Poll::Answered(message) => {
                        let len = channel.read_answer(lane, &message, receive);
                        Look::Answered(message, IpcLen(len))
                    }
                });
            fence(Ordering::Acquire);
            // What was read while the mapping was replaced may be half of each.
            if version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version {
                return found;
            }
            rustix::thread::sched_yield();
        }
    }

    fn ring(&self, again: bool) -> bool {
        Ringer::ring_at(self.bell.load(Ordering::Acquire), &self.rung, again)
    }

    /// Runs `act` on the channel while it cannot be replaced, for a thread that has `lane`.
    fn write<T>(&self, lane: usize, act: impl FnOnce(&SharedChannel) -> T) -> T {
        let turn = &self.turns[lane];
        // A lane that has just been taken is in this state already.
        if turn.state() != turn::WRITING {
            turn.set(turn::WRITING, Ordering::SeqCst);
        }
        while !self.version.load(Ordering::SeqCst).is_multiple_of(2) {
            turn.set(turn::TAKEN, Ordering::Release);
            rustix::thread::sched_yield();
            turn.set(turn::WRITING, Ordering::SeqCst);
        }
        let outcome = self.channel().map(|channel| act(&channel));
        turn.set(turn::TAKEN, Ordering::Release);
        outcome.expect("a slot is filled before it has lanes")
    }

    /// The channel. It may be replaced by another at any time, between any two words, but it stays mapped.
    fn channel(&self) -> Option<core::mem::ManuallyDrop<SharedChannel>> {
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

struct Passage<'a> {
    gate: &'a Gate,
    _signals: SignalsBlocked,
}

/// A thread looks again after this long, should the one before it have died inside.
const TURN_PATIENCE: Duration = Duration::from_millis(100);

impl Gate {
    const fn new() -> Gate {
        Gate { taken: AtomicU32::new(0) }
    }

    fn enter(&self) -> Passage<'_> {
        let signals = SignalsBlocked::new();
        let patience = crate::bell::timespec(TURN_PATIENCE);
        while self.taken.swap(1, Ordering::Acquire) != 0 {
            futex::wait(&self.taken, futex::Flags::empty(), 1, Some(&patience)).ok();
        }
        Passage { gate: self, _signals: signals }
    }
}

impl Drop for Passage<'_> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bell::Bell;

    fn opened() -> Opened {
        let (_, bell) = Bell::create().expect("memfd");
        let channel = crate::channel::create().expect("memfd");
        Opened { channel, bell, flags: flag::RENDEZVOUS }
    }

    fn slot() -> Slot {
        let slot = Slot::new();
        slot.fill(Endpoint::new(NodeId(1), 5, 1), &opened()).expect("filled");
        slot
    }

    #[test]
    fn a_channel_is_replaced_where_it_is_and_beside_itself_while_a_writer_does_not_end() {
        let slot = slot();
        let before = slot.channel.load(Ordering::Relaxed);
        slot.channel().expect("filled").close(IpcError::DestinationDied);
        slot.refill(&opened()).expect("replaced");
        assert_eq!((slot.channel.load(Ordering::Relaxed), slot.is_closed()), (before, false));
        // A signal's handler makes a call while the thread under it writes.
        let (lane, _) = slot.take_lane().expect("all are free");
        let written = slot.channel().expect("filled");
        written.close(IpcError::DestinationDied);
        slot.refill(&opened()).expect("replaced");
        assert_ne!(slot.channel.load(Ordering::Relaxed), before);
        assert!(written.closed().is_some() && !slot.is_closed(), "both are mapped");
        slot.turns[lane].end();
        let free = slot.take_lane();
        assert_eq!(free, Some((lane, 2)), "a lane counts its calls");
    }

    #[test]
    fn a_request_that_was_half_written_was_not_made() {
        let slot = Slot::new();
        let server = Opened { flags: 0, ..opened() };
        slot.fill(Endpoint::VFS, &server).expect("filled");
        let channel = slot.channel().expect("filled");
        let (first, second) = (Tag::new(3, 1), Tag::new(3, 2));
        let message = |tag| Message { tag, ..Message::request(7) };
        assert_eq!(slot.posted(3, first, &mut []), None);
        channel.post(3, &message(first), &[b"sent"]).expect("posted");
        assert_eq!(slot.posted(3, first, &mut [0; 3]), None, "there is no room for it");
        let mut send = [0; 4];
        let posted = slot.posted(3, first, &mut send).map(|message| message.payload_len);
        assert_eq!((posted, &send), (Some(4), b"sent"));
        channel.answer(3, &message(first), &[], false);
        assert!(slot.posted(3, first, &mut [0; 4]).is_some());
        assert_eq!(slot.posted(3, second, &mut [0; 4]), None);
        // Who wrote this died before it changed the lane's state.
        channel.write_half(3, &message(second));
        assert_eq!(slot.posted(3, second, &mut [0; 4]), None);
        channel.close(IpcError::DestinationDied);
        assert_eq!(slot.posted(3, second, &mut [0; 4]), None);
        assert_eq!(slot.posted(3, first, &mut [0; 4]), None, "it is another's by now");
    }

    #[test]
    fn a_lane_left_to_its_receiver_is_taken_again_only_when_that_has_answered() {
        let slot = slot();
        let (lane, sequence) = slot.take_lane().expect("all are free");
        let message = Message { tag: Tag::new(0, sequence), ..Message::request(7) };
        assert!(slot.post(lane, &message, &[]).is_ok());
        let channel = slot.channel().expect("filled");
        assert!(channel.claim(lane));
        assert!(slot.withdraw(lane));
        assert_ne!(slot.take_lane().map(|(lane, _)| lane), Some(lane), "it is being left");
        slot.turns[lane].end();
        assert!(!slot.is_idle());
        assert_ne!(slot.take_lane().map(|(lane, _)| lane), Some(lane), "it is left");
        channel.answer(lane, &message, &[], false);
        assert_eq!(slot.take_lane(), Some((lane, 2)));
    }
}
