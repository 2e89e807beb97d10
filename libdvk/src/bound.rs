//! `Bound`: an endpoint of this process, and the calls of M3-IPC that it makes and receives.

use crate::inbox::{Accepted, Event, Inbox, Sleeper, locked};
use crate::memory::Memory;
use m3ipc::client::{Begun, Client, Opener};
use m3ipc::connection::Opened;
use m3ipc::door::{Ask, SOCKET_ENV, SOCKET_PATH, ask, event, kind, tell};
use m3ipc::port::{Inbound, Incoming, Kind, ONE_WAY, Port, Received, Signals};
use m3ipc::rights::call;
use m3ipc::{DcId, Endpoint, IpcError, Message, NodeId, Rights, Wait};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::time::Duration;

/// A bound endpoint. It is unbound when this value is dropped, when its process ends or executes another program, or
/// when the administrator unbinds it. A forked child has no part in it, and must not use it.
///
/// Timeouts: `None` waits for ever, zero does not wait ([`IpcError::WouldBlock`]), others end in
/// [`IpcError::TimedOut`]. Signals do not interrupt a wait.
#[derive(Debug)]
pub struct Bound {
    pub(crate) core: Core,
    pub(crate) memory: OnceLock<Memory>,
    socket: PathBuf,
    dc: DcId,
    node: NodeId,
}

/// What the memory side of an endpoint has in common with it.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) endpoint: Endpoint,
    pub(crate) inbox: Arc<Inbox>,
    client: Client,
    receiving: Mutex<Receiving>,
}

/// The receiving half: one thread at a time.
#[derive(Debug)]
struct Receiving {
    port: Port<Sleeper>,
    place: Place,
    /// Received and not yet answered, the oldest first.
    open: Vec<Received>,
}

/// Channels and who is dead.
#[derive(Debug)]
struct Place {
    inbox: Arc<Inbox>,
    list: Vec<Inbound<Accepted>>,
    next: u64,
    /// Endpoints that were received from by name: dvkd says when they are gone.
    watched: BTreeSet<Endpoint>,
    dead: BTreeMap<Endpoint, IpcError>,
    /// Whose open requests are to be forgotten.
    forgotten: Vec<Endpoint>,
    lost_nodes: Vec<NodeId>,
}

/// A received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Got {
    pub message: Message,
    pub kind: Kind,
    /// Bytes of payload in the caller's buffer.
    pub payload_len: usize,
}

/// Deaths that are remembered so that a later `receive` from one says so; then the oldest are forgotten, and found
/// out again.
const DEAD_MAX: usize = 4096;

impl Bound {
    /// Binds this process (or thread) in the DC whose door is at `socket`; without one, where `DVS_SOCKET` says or
    /// where containers have it. `number`: the well-known number wanted, 1 to 1 023, up to 63 only for the
    /// administrator (root, or the daemon's own user); 0 for any endpoint.
    ///
    /// # Errors
    /// [`IpcError::NotBound`]: no dvkd there, or no such number. [`IpcError::InUse`], [`IpcError::Denied`],
    /// [`IpcError::Exhausted`].
    pub fn bind(socket: Option<&Path>, number: u32) -> Result<Bound, IpcError> {
        let socket = socket.map_or_else(default_socket, Path::to_path_buf);
        let hello = Ask::hello(kind::PEER, number, nonce());
        let (inbox, welcome) = Inbox::open(socket.as_os_str().as_bytes(), hello, "dvk")?;
        let node = NodeId(u16::try_from(welcome.node).map_err(|_| IpcError::Protocol)?);
        let core = Core::new(inbox, welcome.endpoint, node);
        Ok(Bound { core, memory: OnceLock::new(), socket, dc: DcId(welcome.dc), node })
    }

    pub fn endpoint(&self) -> Endpoint {
        self.core.endpoint
    }

    pub fn dc(&self) -> DcId {
        self.dc
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The DC's door, by which it was bound.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends a message and waits until it is received.
    ///
    /// # Errors
    /// [`IpcError::DestinationDied`] while it waited; [`IpcError::Stale`] or [`IpcError::NotBound`]: nobody is
    /// bound there; [`IpcError::NodeDown`]; [`IpcError::Denied`]: no right; [`IpcError::Deadlock`]: the destination
    /// waits in a send to this endpoint; [`IpcError::TooLarge`]; `TimedOut`, `WouldBlock`.
    pub fn send(
        &self,
        to: Endpoint,
        message: &Message,
        payload: &[u8],
        timeout: Option<Duration>,
    ) -> Result<(), IpcError> {
        self.check(call::SEND)?;
        let mut copy = Message { status: ONE_WAY, ..*message };
        self.core.exchange(to, &mut copy, &[payload], &mut [], timeout).map(|_| ())
    }

    /// Sends a request and waits for the reply, which replaces `message`; returns the length of its payload, now in
    /// `answer`. A reply with a POSIX error in `status` is a reply.
    ///
    /// # Errors
    /// As [`Bound::send`]. `TimedOut` may come though the request was received: its reply is then dropped.
    pub fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        payload: &[u8],
        answer: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<usize, IpcError> {
        self.check(call::SENDREC)?;
        message.status = 0;
        self.core.exchange(to, message, &[payload], answer, timeout)
    }

    /// Receives the next message of `from`, or of anybody (`Endpoint::ANY`): pending notifications first, then
    /// senders in turn. A well-known number without a generation stands for who is bound there now.
    ///
    /// # Errors
    /// [`IpcError::SourceDied`] or [`IpcError::NodeDown`]: `from` is gone and will send nothing; [`IpcError::Stale`] or
    /// [`IpcError::NotBound`]: it was not there to begin with; `Denied`, `TimedOut`, `WouldBlock`.
    pub fn receive(
        &self,
        from: Endpoint,
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Got, IpcError> {
        self.check(call::RECEIVE)?;
        let mut receiving = locked(&self.core.receiving);
        let from = self.core.source(&mut receiving, from)?;
        receiving.receive(from, payload, timeout)
    }

    /// Receives the next request made by `sendrec`, of anybody; what was sent otherwise waits for [`Bound::receive`].
    ///
    /// # Errors
    /// `Denied`, `TimedOut`, `WouldBlock`; [`IpcError::NotBound`] if this endpoint is not bound any more.
    pub fn rcvrqst(&self, payload: &mut [u8], timeout: Option<Duration>) -> Result<Got, IpcError> {
        self.check(call::RCVRQST)?;
        locked(&self.core.receiving).rcvrqst(payload, timeout)
    }

    /// Answers the oldest request received of `to`; if `message.tag` is that of one of its requests, that one.
    /// Never blocks.
    ///
    /// # Errors
    /// [`IpcError::NotWaiting`]: no request of it is open, or it has given it up. `Denied`, `TooLarge`.
    pub fn reply(&self, to: Endpoint, message: &Message, payload: &[u8]) -> Result<(), IpcError> {
        self.check(call::REPLY)?;
        if payload.len() > m3ipc::limits::PAYLOAD_MAX {
            return Err(IpcError::TooLarge);
        }
        self.core.reply(to, message, payload)
    }

    /// Leaves a notification with a value for `to`, without waiting. To another node it is under way then: it gets lost
    /// if `to` is not there, or has one of this endpoint pending.
    ///
    /// # Errors
    /// [`IpcError::Overrun`]: the one before is still pending. `Denied`, `Stale`, `NotBound`.
    pub fn notify(&self, to: Endpoint, value: u64) -> Result<(), IpcError> {
        self.check(call::NOTIFY)?;
        self.core.client.notify(&*self.core.inbox, to, value)
    }

    /// Passes the oldest open request of `caller` on to `to` and answers it with what `to` replies. The source that `to`
    /// sees is this endpoint. (The prototype has only a stub.)
    ///
    /// # Errors
    /// As [`Bound::sendrec`] and [`Bound::reply`]. The caller's call ends with the same error.
    pub fn relay(
        &self,
        caller: Endpoint,
        to: Endpoint,
        message: &Message,
        payload: &[u8],
        timeout: Option<Duration>,
    ) -> Result<(), IpcError> {
        let mut request = *message;
        let mut answer = vec![0; m3ipc::limits::PAYLOAD_MAX];
        let relayed = self.sendrec(to, &mut request, payload, &mut answer, timeout);
        let (reply, len) = match relayed {
            Ok(len) => (Message { tag: message.tag, ..request }, len),
            Err(error) => {
                let ended = Message::undelivered(message.call, error);
                (Message { tag: message.tag, ..ended }, 0)
            }
        };
        self.reply(caller, &reply, &answer[..len])?;
        relayed.map(|_| ())
    }

    /// Unbinds this endpoint: who waits for it is told that it died.
    ///
    /// # Errors
    /// [`IpcError::NotBound`]: it was not bound any more.
    pub fn unbind(self) -> Result<(), IpcError> {
        self.core.inbox.ask(Ask::new(ask::UNBIND, Endpoint::NONE)).map(|_| ())
    }

    /// What this endpoint may do.
    pub fn rights(&self) -> Rights {
        self.core.inbox.rights()
    }

    pub(crate) fn check(&self, calls: u32) -> Result<(), IpcError> {
        if self.core.inbox.may(calls) { Ok(()) } else { Err(IpcError::Denied) }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.get() {
            memory.close();
        }
        self.core.inbox.close();
    }
}

/// Channels over the kept connection.
impl Opener for Inbox {
    fn open(&self, _: &Client, to: Endpoint) -> Result<Opened, IpcError> {
        let (told, [channel, bell]) = self.ask(Ask::open(to))?;
        let told = told.expect(tell::CHANNEL)?;
        let (Some(channel), Some(bell)) = (channel, bell) else { return Err(IpcError::Protocol) };
        Ok(Opened { channel, bell, flags: told.flags })
    }
}

impl Core {
    pub(crate) fn new(inbox: Arc<Inbox>, endpoint: Endpoint, node: NodeId) -> Core {
        let client = Client::new();
        client.adopt(endpoint, node);
        let place = Place {
            inbox: Arc::clone(&inbox),
            list: Vec::new(),
            next: 0,
            watched: BTreeSet::new(),
            dead: BTreeMap::new(),
            forgotten: Vec::new(),
            lost_nodes: Vec::new(),
        };
        let port = Port::new(Sleeper(Arc::clone(&inbox)));
        let receiving = Mutex::new(Receiving { port, place, open: Vec::new() });
        Core { endpoint, inbox, client, receiving }
    }

    pub(crate) fn exchange(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        answer: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<usize, IpcError> {
        if to == self.endpoint || self.is_sending_here(to) {
            return Err(IpcError::Deadlock);
        }
        let timeout_ms = timeout.map(milliseconds);
        let wait = Wait { timeout_ms, signals: Signals::Ignore };
        self.client.sendrec(&*self.inbox, to, message, send, answer, wait)
    }

    /// Half of a call to a memory side, which calls nobody; the other is [`Core::finish`].
    pub(crate) fn begin(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
    ) -> Result<Begun, IpcError> {
        self.client.begin(&*self.inbox, to, message, send)
    }

    pub(crate) fn finish(
        &self,
        begun: Begun,
        message: &mut Message,
        send: &[&[u8]],
        answer: &mut [u8],
    ) -> Result<usize, IpcError> {
        self.client.finish(&*self.inbox, begun, message, send, answer, Wait::FOREVER)
    }

    pub(crate) fn rcvrqst(
        &self,
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Got, IpcError> {
        locked(&self.receiving).rcvrqst(payload, timeout)
    }

    pub(crate) fn reply(
        &self,
        to: Endpoint,
        message: &Message,
        payload: &[u8],
    ) -> Result<(), IpcError> {
        let mut receiving = locked(&self.receiving);
        receiving.place.refresh();
        receiving.forget();
        receiving.reply(to, &Message { source: self.endpoint, ..*message }, payload)
    }

    /// Does `to` wait until this endpoint receives its message? Then neither would go on. If another thread of this
    /// process is receiving, it will.
    fn is_sending_here(&self, to: Endpoint) -> bool {
        if !self.inbox.is_called() {
            return false;
        }
        let mut receiving = match self.receiving.try_lock() {
            Ok(receiving) => receiving,
            Err(TryLockError::WouldBlock) => return false,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        receiving.place.refresh();
        receiving.forget();
        let to = if to.generation == 0 {
            let mut peers = receiving.place.list.iter().map(|inbound| inbound.peer);
            peers.rfind(|peer| peer.slot == to.slot).unwrap_or(to)
        } else {
            to
        };
        Port::<Sleeper>::is_sending(&mut receiving.place.list, to)
    }

    /// The endpoint that `from` names, watched from now on.
    fn source(&self, receiving: &mut Receiving, from: Endpoint) -> Result<Endpoint, IpcError> {
        if from == Endpoint::ANY {
            return Ok(from);
        }
        let place = &mut receiving.place;
        if place.watched.contains(&from) {
            return Ok(from);
        }
        place.refresh();
        if place.dead.contains_key(&from) {
            return Ok(from);
        }
        let now = Ask { number: event::BOUND, ..Ask::new(ask::AWAIT, from) };
        let (told, _) = self.inbox.ask(now).map_err(|error| match error {
            IpcError::WouldBlock => IpcError::NotBound,
            error => error,
        })?;
        let exact = told.endpoint;
        if place.watched.insert(exact) {
            let gone = Ask {
                number: event::UNBOUND,
                value: event::FOREVER,
                ..Ask::new(ask::AWAIT, exact)
            };
            self.inbox.watch(gone, exact)?;
        }
        Ok(exact)
    }
}

impl Receiving {
    fn receive(
        &mut self,
        from: Endpoint,
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Got, IpcError> {
        loop {
            let received = self.port.receive_in(&mut self.place, from, payload, timeout);
            if let Some(got) = self.note(received)? {
                return Ok(got);
            }
        }
    }

    fn rcvrqst(&mut self, payload: &mut [u8], timeout: Option<Duration>) -> Result<Got, IpcError> {
        loop {
            let received = self.port.rcvrqst_in(&mut self.place, payload, timeout);
            if let Some(got) = self.note(received)? {
                return Ok(got);
            }
        }
    }

    /// Remembers a request, to be answered. `None`: receive once more.
    fn note(&mut self, received: Result<Received, IpcError>) -> Result<Option<Got>, IpcError> {
        self.forget();
        let received = received?;
        match received.kind {
            Kind::Request => self.open.push(received),
            // Its caller waits no longer; the reply will say so.
            Kind::Cancelled => return Ok(None),
            Kind::Notification(_) | Kind::OneWay => {}
        }
        let Received { message, kind, payload_len, .. } = received;
        Ok(Some(Got { message, kind, payload_len }))
    }

    fn reply(&mut self, to: Endpoint, message: &Message, payload: &[u8]) -> Result<(), IpcError> {
        let of = |open: &Received| open.message.source == to;
        let tagged = |open: &Received| of(open) && open.message.tag == message.tag;
        let at = self.open.iter().position(tagged).or_else(|| self.open.iter().position(of));
        let open = self.open.remove(at.ok_or(IpcError::NotWaiting)?);
        match self.port.reply(&mut self.place.list, &open, message, payload) {
            // Its channel is gone, and its caller.
            Err(IpcError::Protocol) => Err(IpcError::NotWaiting),
            replied => replied,
        }
    }

    /// Drops the open requests of those who are gone; the lanes on which dvkd had brought some are free again.
    fn forget(&mut self) {
        let gone = std::mem::take(&mut self.place.forgotten);
        let nodes = std::mem::take(&mut self.place.lost_nodes);
        if gone.is_empty() && nodes.is_empty() {
            return;
        }
        let is_gone = |source: Endpoint| gone.contains(&source) || nodes.contains(&source.node());
        let (dropped, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition::<Vec<_>, _>(|open| is_gone(open.message.source));
        self.open = open;
        for open in dropped {
            let ended = Message::undelivered(open.message.call, IpcError::SourceDied);
            // Nobody reads it.
            self.port.reply(&mut self.place.list, &open, &ended, &[]).ok();
        }
    }
}

impl Place {
    fn take_in(&mut self, event: Event) {
        match event {
            Event::Accepted(mut inbound) => {
                // Those that their requesters have let go of, and dvkd's that have retired.
                self.list.retain(|inbound| inbound.has_open() || !is_closed(inbound));
                self.next += 1;
                inbound.number = self.next;
                self.list.push(*inbound);
            }
            Event::Gone(endpoint) => {
                self.list.retain(|inbound| inbound.peer != endpoint);
                self.forgotten.push(endpoint);
                self.died(endpoint, IpcError::SourceDied);
            }
            Event::NodeGone(node) => {
                self.lost_nodes.push(node);
                let of: Vec<_> =
                    self.watched.iter().filter(|source| source.node() == node).copied().collect();
                for source in of {
                    self.died(source, IpcError::NodeDown);
                }
            }
            Event::Watched(source, reason) => self.died(source, reason),
        }
    }

    fn died(&mut self, source: Endpoint, reason: IpcError) {
        if self.watched.remove(&source) {
            if self.dead.len() >= DEAD_MAX {
                self.dead.clear();
            }
            self.dead.insert(source, reason);
        }
    }
}

impl Incoming for Place {
    type Channel = Accepted;

    fn list(&mut self) -> &mut [Inbound<Accepted>] {
        &mut self.list
    }
    fn refresh(&mut self) {
        if self.inbox.has_news() {
            for event in self.inbox.take() {
                self.take_in(event);
            }
        }
    }
    fn has_news(&mut self) -> bool {
        use m3ipc::port::Channel;
        self.inbox.has_news() || self.list.iter().any(|inbound| inbound.channel.has_news())
    }
    fn notification(&mut self, from: Endpoint) -> Option<(Endpoint, u64)> {
        self.inbox.notification(from)
    }
    fn check_source(&mut self, from: Endpoint) -> Result<(), IpcError> {
        if let Some(reason) = self.dead.get(&from) {
            return Err(*reason);
        }
        if self.inbox.is_lost() { Err(IpcError::NotBound) } else { Ok(()) }
    }
}

fn is_closed(inbound: &Inbound<Accepted>) -> bool {
    use m3ipc::port::Channel;
    inbound.channel.closed().is_some()
}

fn milliseconds(timeout: Duration) -> u32 {
    // A wait of less than one is a wait.
    let ms = timeout.as_nanos().div_ceil(1_000_000);
    u32::try_from(ms).unwrap_or(u32::MAX)
}

pub(crate) fn default_socket() -> PathBuf {
    std::env::var_os(SOCKET_ENV).map_or_else(|| PathBuf::from(SOCKET_PATH), PathBuf::from)
}

/// Tells this binding apart from others; not secret.
pub(crate) fn nonce() -> u64 {
    let mut bytes = [0; 8];
    // Eight bytes are never cut short (getrandom(2)); without any the pid will do.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    let fresh = if filled == Ok(8) { u64::from_ne_bytes(bytes) } else { std::process::id().into() };
    fresh | 1
}
