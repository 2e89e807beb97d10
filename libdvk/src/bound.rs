//! `Bound`: an endpoint of this process, and the calls of M3-IPC that it makes and receives.

use crate::inbox::{Accepted, Event, Inbox, Sleeper, locked};
use crate::lend::{Borrowed, Shared};
use crate::memory::Memory;
use m3ipc::client::{Begun, Client, Opener};
use m3ipc::connection::Opened;
use m3ipc::door::{Ask, SOCKET_ENV, SOCKET_PATH, ask, event, info, kind, tell};
use m3ipc::message::{ARGS_SIZE, RELAYED};
use m3ipc::port::{Inbound, Incoming, Kind, ONE_WAY, Port, Received, Signals, Want};
use m3ipc::rights::call;
use m3ipc::{DcId, Endpoint, IpcError, Message, NodeId, Rights, Wait};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

/// A bound endpoint. It is unbound when this value is dropped, when its process ends or executes another program, or
/// when the administrator unbinds it. A forked child has no part in it, and must not use it.
///
/// Timeouts: `None` waits for ever, zero does not wait ([`IpcError::WouldBlock`]), others end in
/// [`IpcError::TimedOut`]. Signals do not interrupt a wait.
#[derive(Debug)]
pub struct Bound {
    pub(crate) core: Core,
    pub(crate) memory: Mutex<Option<(Endpoint, Arc<Memory>)>>,
    pub(crate) borrowed: Borrowed,
    pub(crate) kept: Mutex<Vec<Shared>>,
    socket: PathBuf,
    dc: DcId,
    node: NodeId,
}

/// What the memory side of an endpoint has in common with it.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) inbox: Arc<Inbox>,
    client: Arc<Client>,
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
    /// Is there anything in the next three?
    has_gone: bool,
    /// Whose open requests are to be forgotten.
    forgotten: Vec<Endpoint>,
    lost_nodes: Vec<NodeId>,
    /// All open requests are another process's to answer.
    is_demoted: bool,
    /// Open requests that the endpoint's last process had received are this one's to answer.
    inherits: bool,
    /// When the endpoint was last on the move.
    moved: Option<Instant>,
    /// How often its waits had been ended when this one began.
    wakes: u64,
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

/// Which open request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one with the message's tag.
    Named,
    /// That, or if there is none the oldest of its source.
    NamedOrOldest,
}

/// Times that one request is passed on. Who passes it in a circle gets nowhere.
const RELAYS_MAX: usize = 8;

const MILLISECOND: Duration = Duration::from_millis(1);

/// How long a reply to a request that was received before the endpoint moved waits for its caller to come again: a few
/// wake-ups.
const AGAIN_WAIT: Duration = Duration::from_secs(1);

impl Bound {
    /// Binds this process (or thread) in the DC whose door is at `socket`; without one, where `DVS_SOCKET` says or
    /// where containers have it. `number`: the well-known number wanted, 1 to 1 023, up to 63 only for the
    /// administrator (root, or the daemon's own user); 0 for any endpoint.
    ///
    /// # Errors
    /// [`IpcError::NotBound`]: no dvkd there, or no such number. [`IpcError::InUse`], [`IpcError::Denied`],
    /// [`IpcError::Exhausted`]. [`IpcError::TimedOut`]: after 5 s the system group has not said whether the last owner of
    /// the number has ended, as it has no majority, or this node is cut off from that.
    pub fn bind(socket: Option<&Path>, number: u32) -> Result<Bound, IpcError> {
        let socket = socket.map_or_else(default_socket, Path::to_path_buf);
        Bound::open(socket, Ask::hello(kind::PEER, number, nonce()))
    }

    /// Binds this process as `number` (64 to 1 023) of this node, and as one of the replicas of that number: whoever calls
    /// [`Endpoint::replicated`] of it on this node gets this one; on nodes that have none, one that lives. (The
    /// replicas keep each other's state the same by themselves.) Only for the administrator.
    ///
    /// A call to a replica that dies ends as any other, and the next goes to another one; on one node a request that it
    /// has not received goes there by itself. A replica does not move.
    ///
    /// # Errors
    /// As [`Bound::bind`]; [`IpcError::InUse`]: this node has that number already.
    pub fn bind_replica(socket: Option<&Path>, number: u32) -> Result<Bound, IpcError> {
        let socket = socket.map_or_else(default_socket, Path::to_path_buf);
        Bound::open(socket, Ask::hello(kind::REPLICA, number, nonce()))
    }

    /// Binds this process as a backup of `of`, an endpoint with a number of any node of the DC, bound or not: it makes no
    /// calls ([`IpcError::Moved`]) until it is promoted. That is when an administrator commits the endpoint's migration
    /// to it; and with `takes_over` also when the endpoint's process dies, or its node goes down, if the
    /// system group knew by then where it was, which takes it some milliseconds from when both are bound. Only for the administrator.
    ///
    /// # Errors
    /// As [`Bound::bind`]; [`IpcError::NotBound`]: the DC has no such node, or `of` has no number.
    pub fn bind_backup(
        socket: Option<&Path>,
        of: Endpoint,
        takes_over: bool,
    ) -> Result<Bound, IpcError> {
        let socket = socket.map_or_else(default_socket, Path::to_path_buf);
        let hello = Ask::hello(kind::BACKUP, takes_over.into(), nonce());
        Bound::open(socket, Ask { to: of, ..hello })
    }

    fn open(socket: PathBuf, hello: Ask) -> Result<Bound, IpcError> {
        let (inbox, welcome) = Inbox::open(socket.as_os_str().as_bytes(), hello, "dvk")?;
        let node = NodeId(u16::try_from(welcome.node).map_err(|_| IpcError::Protocol)?);
        let core = Core::new(inbox);
        let (memory, borrowed, kept) = Default::default();
        Ok(Bound { core, memory, borrowed, kept, socket, dc: DcId(welcome.dc), node })
    }

    /// Who this is. It changes when a backup is promoted, and when the endpoint goes to another process.
    pub fn endpoint(&self) -> Endpoint {
        self.core.inbox.endpoint()
    }

    /// Is it a backup, or has it become one?
    pub fn is_backup(&self) -> bool {
        self.core.inbox.is_backup()
    }

    /// Waits until this backup is promoted; returns who it is then.
    ///
    /// # Errors
    /// [`IpcError::TimedOut`]; [`IpcError::NotBound`]: it is not bound any more.
    pub fn wait_promoted(&self, timeout: Option<Duration>) -> Result<Endpoint, IpcError> {
        self.core.inbox.wait_promoted(timeout)
    }

    /// The requests that the endpoint had received before it came to this process, and has not answered: their callers
    /// wait for [`Bound::reply`]. Without payload. A caller of this node may take a moment to be among them.
    ///
    /// # Errors
    /// [`IpcError::Moved`], [`IpcError::NotBound`].
    pub fn inherited(&self) -> Result<Vec<Message>, IpcError> {
        self.core.inbox.pass()?;
        let mut receiving = locked(&self.core.receiving);
        receiving.begin();
        while let Ok(again) = receiving.port_again(Duration::ZERO) {
            receiving.note(Ok(again))?;
        }
        let inherited = receiving.open.iter().filter(|open| open.kind == Kind::Again);
        Ok(inherited.map(|open| open.message).collect())
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
    /// senders in turn. What one of them does comes in its order, also a message after a notification. A well-known number without a generation stands for who is bound there now.
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
        if message.status == RELAYED {
            // That is not an answer: [`Bound::relay`].
            return Err(IpcError::Protocol);
        }
        if payload.len() > m3ipc::limits::PAYLOAD_MAX {
            return Err(IpcError::TooLarge);
        }
        self.core.reply(to, message, payload, Which::NamedOrOldest)
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

    /// Passes an open request, which `request` names by source and tag, on to `to`, as it came: `to` receives it of its
    /// caller, and answers to that. Never blocks; this endpoint has no part in the call any more. The caller must have
    /// the right to send to `to`, or its call ends with that error. (The prototype has only a stub.)
    ///
    /// It is the caller's library that makes the request again, so nobody speaks in its name, and its timeout goes on.
    ///
    /// # Errors
    /// As [`Bound::reply`]; [`IpcError::Denied`]: no right to (`call::RELAY`), or `to` is a server of the DC.
    pub fn relay(&self, request: &Message, to: Endpoint) -> Result<(), IpcError> {
        self.check(call::REPLY | call::RELAY)?;
        if to.is_server() {
            return Err(IpcError::Denied);
        }
        let mut answer = Message { status: RELAYED, args: [0; ARGS_SIZE], ..*request };
        answer.args[..8].copy_from_slice(&to.to_bits().to_le_bytes());
        self.core.reply(request.source, &answer, &[], Which::Named)
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
        self.core.inbox.pass()?;
        if self.core.inbox.may(calls) { Ok(()) } else { Err(IpcError::Denied) }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some((_, memory)) = &*locked(&self.memory) {
            memory.close();
        }
        self.core.inbox.close();
    }
}

/// Channels over the kept connection.
impl Opener for Inbox {
    fn open(&self, _: &Client, to: Endpoint, _: usize) -> Result<Opened, IpcError> {
        let (told, [channel, bell]) = self.ask(Ask::open(to))?;
        let told = told.expect(tell::CHANNEL)?;
        let (Some(channel), Some(bell)) = (channel, bell) else { return Err(IpcError::Protocol) };
        self.opened(to, told.flags);
        Ok(Opened { channel, bell, flags: told.flags })
    }
}

impl Core {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Core {
        let client = Arc::new(Client::new());
        inbox.adopt(&client);
        let place = Place {
            inbox: Arc::clone(&inbox),
            list: Vec::new(),
            next: 0,
            watched: BTreeSet::new(),
            dead: BTreeMap::new(),
            has_gone: false,
            forgotten: Vec::new(),
            lost_nodes: Vec::new(),
            is_demoted: false,
            inherits: false,
            moved: None,
            wakes: 0,
        };
        let port = Port::new(Sleeper(Arc::clone(&inbox)));
        let receiving = Mutex::new(Receiving { port, place, open: Vec::new() });
        Core { inbox, client, receiving }
    }

    pub(crate) fn exchange(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        answer: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<usize, IpcError> {
        // (It may still receive what had come before.)
        if self.inbox.is_lost() {
            return Err(IpcError::NotBound);
        }
        let end = timeout
            .filter(|timeout| !timeout.is_zero())
            .and_then(|timeout| Instant::now().checked_add(timeout));
        let request = *message;
        let (mut to, mut timeout) = (to, timeout);
        for _ in 0..=RELAYS_MAX {
            if to == self.inbox.endpoint() || self.is_sending_here(to) {
                return Err(IpcError::Deadlock);
            }
            let wait = Wait { timeout_ms: timeout.map(milliseconds), signals: Signals::Ignore };
            let len = self.client.sendrec(&*self.inbox, to, message, send, answer, wait)?;
            if message.status != RELAYED {
                return Ok(len);
            }
            let next = relayed_to(message).filter(|_| self.inbox.may_relay(to));
            // Servers speak another language.
            to = next.filter(|next| !next.is_server()).ok_or(IpcError::Protocol)?;
            *message = request;
            // It has taken the time that it took until it was received.
            timeout = match end {
                Some(end) => Some(end.saturating_duration_since(Instant::now()).max(MILLISECOND)),
                None => timeout,
            };
        }
        Err(IpcError::Deadlock)
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

    /// Names the channel over which calls to `to` go, if there is one that is open.
    pub(crate) fn channel_to(&self, to: Endpoint) -> Option<u64> {
        self.client.channel_to(to)
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
        which: Which,
    ) -> Result<(), IpcError> {
        let mut receiving = locked(&self.receiving);
        receiving.begin();
        receiving.place.refresh();
        receiving.forget();
        let message = Message { source: self.inbox.endpoint(), ..*message };
        receiving.reply(to, &message, payload, which)
    }

    /// Does `to` wait until this endpoint receives its message? Then neither would go on. If another thread of this
    /// process is receiving, it will.
    fn is_sending_here(&self, to: Endpoint) -> bool {
        if !self.inbox.is_called_by(to) {
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
        // Hardware does not die.
        if from == Endpoint::ANY || from == Endpoint::HARDWARE {
            return Ok(from);
        }
        let place = &mut receiving.place;
        if place.watched.contains(&from) {
            return Ok(from);
        }
        place.refresh();
        // One whose node went down may have been taken over by a backup.
        match place.dead.get(&from) {
            Some(IpcError::NodeDown) => {}
            Some(_) => return Ok(from),
            None => {}
        }
        let now = Ask { number: event::BOUND, ..Ask::new(ask::AWAIT, from) };
        let (told, _) = self.inbox.ask(now).map_err(|error| match error {
            IpcError::WouldBlock => IpcError::NotBound,
            error => error,
        })?;
        let exact = told.endpoint;
        place.dead.remove(&exact);
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
    /// A call begins: only what ends waits from now on ends this one.
    fn begin(&mut self) {
        self.place.wakes = self.place.inbox.wakes();
    }

    fn port_again(&mut self, timeout: Duration) -> Result<Received, IpcError> {
        self.port.again_in(&mut self.place, Some(timeout))
    }

    fn receive(
        &mut self,
        from: Endpoint,
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Got, IpcError> {
        self.begin();
        loop {
            let received = self.port.receive_in(&mut self.place, from, payload, timeout);
            if let Some(got) = self.note(received)? {
                return Ok(got);
            }
        }
    }

    fn rcvrqst(&mut self, payload: &mut [u8], timeout: Option<Duration>) -> Result<Got, IpcError> {
        self.begin();
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
            Kind::Again => {
                self.take_again(received);
                return Ok(None);
            }
            Kind::Notification(_) | Kind::OneWay => {}
        }
        let Received { message, kind, payload_len, .. } = received;
        Ok(Some(Got { message, kind, payload_len }))
    }

    /// A request that had been received before: its caller waits on another channel now.
    fn take_again(&mut self, again: Received) {
        let is_it = |open: &Received| {
            (open.message.source, open.message.tag) == (again.message.source, again.message.tag)
        };
        if let Some(at) = self.open.iter().position(is_it) {
            self.open[at] = again;
        } else if self.place.inherits {
            self.open.push(again);
        } else {
            // Who received it is dead, or has answered when nobody heard.
            let ended = Message::undelivered(again.message.call, IpcError::DestinationDied);
            self.port.reply(&mut self.place.list, &again, &ended, &[]).ok();
        }
    }

    fn reply(
        &mut self,
        to: Endpoint,
        message: &Message,
        payload: &[u8],
        which: Which,
    ) -> Result<(), IpcError> {
        loop {
            let of = |open: &Received| open.message.source == to;
            let tagged = |open: &Received| of(open) && open.message.tag == message.tag;
            let oldest = || self.open.iter().position(of).filter(|_| which != Which::Named);
            let at = self.open.iter().position(tagged).or_else(oldest);
            let open = match at {
                Some(at) => self.open.remove(at),
                None => {
                    self.await_again()?;
                    continue;
                }
            };
            match self.port.reply(&mut self.place.list, &open, message, payload) {
                Ok(()) => return Ok(()),
                // Its channel is gone, and its caller; or the endpoint moved, and its caller comes again.
                Err(IpcError::Protocol | IpcError::NotWaiting) => {
                    self.open.push(open);
                    // If it is because the endpoint moves, dvkd has said so before it answers this.
                    self.place.inbox.ask(Ask { number: info::DC, ..Ask::new(ask::INFO, to) }).ok();
                    self.place.inbox.pass()?;
                    self.place.refresh();
                    let came = self.await_again_of(&open);
                    if came.is_err() {
                        self.open.retain(|other| other != &open);
                    }
                    came?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in a request that had been received before the endpoint moved, if it has just done so.
    fn await_again(&mut self) -> Result<(), IpcError> {
        let left = self.place.moved.and_then(|moved| AGAIN_WAIT.checked_sub(moved.elapsed()));
        let again = self.port_again(left.ok_or(IpcError::NotWaiting)?);
        self.note(Ok(again.map_err(|_| IpcError::NotWaiting)?)).map(|_| ())
    }

    fn await_again_of(&mut self, lost: &Received) -> Result<(), IpcError> {
        while self.open.contains(lost) {
            self.await_again()?;
        }
        Ok(())
    }

    /// Drops the open requests of those who are gone; the lanes on which dvkd had brought some are free again.
    fn forget(&mut self) {
        if !self.place.has_gone {
            return;
        }
        self.place.has_gone = false;
        if std::mem::take(&mut self.place.is_demoted) {
            self.open.clear();
        }
        let gone = std::mem::take(&mut self.place.forgotten);
        let nodes = std::mem::take(&mut self.place.lost_nodes);
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
                self.has_gone = true;
                self.forgotten.push(endpoint);
                self.died(endpoint, IpcError::SourceDied);
            }
            Event::Cut(endpoint) => {
                let is_of = |inbound: &&mut Inbound<Accepted>| match endpoint {
                    Endpoint::ANY => !inbound.is_trusted(),
                    endpoint => inbound.peer == endpoint,
                };
                self.list.iter_mut().filter(is_of).for_each(Inbound::cut);
            }
            Event::NodeGone(node) => {
                self.has_gone = true;
                self.lost_nodes.push(node);
                let of: Vec<_> =
                    self.watched.iter().filter(|source| source.node() == node).copied().collect();
                for source in of {
                    self.died(source, IpcError::NodeDown);
                }
            }
            Event::Watched(source, reason) => self.died(source, reason),
            Event::Thawed => self.moved = Some(Instant::now()),
            Event::Promoted { inherits } => {
                self.moved = Some(Instant::now());
                self.inherits = inherits;
            }
            Event::Demoted => {
                self.list.clear();
                self.watched.clear();
                self.dead.clear();
                self.has_gone = true;
                self.is_demoted = true;
                self.inherits = false;
            }
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
    #[inline]
    fn refresh(&mut self) {
        if self.inbox.has_news() {
            for event in self.inbox.take() {
                self.take_in(event);
            }
        }
    }
    #[inline]
    fn has_news(&mut self, from: Endpoint, want: Want) -> bool {
        self.inbox.has_news() || self.list.iter().any(|inbound| inbound.has_news(from, want))
    }
    fn notification(&mut self, from: Endpoint) -> Option<(Endpoint, u64)> {
        self.inbox.notification(from)
    }
    fn check_source(&mut self, from: Endpoint) -> Result<(), IpcError> {
        if self.inbox.is_backup() {
            return Err(IpcError::Moved);
        }
        if self.inbox.wakes() != self.wakes {
            return Err(IpcError::WokenUp);
        }
        if let Some(reason) = self.dead.get(&from) {
            return Err(*reason);
        }
        if self.inbox.is_lost() { Err(IpcError::NotBound) } else { Ok(()) }
    }
}

/// Where a request is to be made, by the answer that passes it on.
fn relayed_to(answer: &Message) -> Option<Endpoint> {
    answer.args.first_chunk().map(|bits| Endpoint::from_bits(u64::from_le_bytes(*bits)))
}

fn is_closed(inbound: &Inbound<Accepted>) -> bool {
    use m3ipc::port::Channel;
    inbound.is_cut() || inbound.channel.closed().is_some()
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
