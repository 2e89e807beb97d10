//! What dvkd says to a bound endpoint: a thread reads the connection, keeps news for the receiver and answers for askers.

use m3ipc::bell::{Bell, Ringer};
use m3ipc::channel::{News, SharedChannel};
use m3ipc::client::Client;
use m3ipc::connection::{Connection, Fds};
use m3ipc::door::{Ask, Tell, ask, flag, kind, tell};
use m3ipc::limits::NOTIFIERS_MAX;
use m3ipc::port::{Channel, Inbound, Rest};
use m3ipc::{Endpoint, IpcError, Message, NodeId, Rights, Tag};
use rustix::fd::AsFd;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Times that a requester's bell is rung for one answer: a second or more. dvkd, its only owner here, is stopped then.
const RINGS_MAX: u32 = 1000;

/// Receivers that are remembered as such that may pass requests on, before those without a channel are forgotten: several
/// times the channels that a client has.
const RELAYERS_MAX: usize = 64;

/// The connection of a bound endpoint, shared by its threads.
#[derive(Debug)]
pub(crate) struct Inbox {
    connection: Connection,
    pub(crate) bell: Bell,
    news: AtomicBool,
    events: Mutex<Events>,
    questions: Mutex<Questions>,
    answered: Condvar,
    next: AtomicU64,
    rights: Mutex<Rights>,
    /// Who this is; changes when a backup is promoted, or the endpoint goes to another process.
    endpoint: AtomicU64,
    node: NodeId,
    /// [`role`]; changed under `standing`.
    role: AtomicU32,
    standing: Mutex<()>,
    changed: Condvar,
    /// How often somebody has ended this endpoint's waits.
    wakes: AtomicU64,
    /// For this endpoint's own calls, once it makes any.
    client: OnceLock<Arc<Client>>,
    /// `calls` of the rights, for a look at each call.
    calls: AtomicU32,
    /// Is there a pending notification? Written under the lock of the events.
    is_notified: AtomicBool,
    order: Arc<Order>,
    /// Receivers that may pass requests on, as their channels' flags say.
    relayers: Mutex<BTreeSet<Endpoint>>,
    /// Who has ever got a channel to this endpoint: a bit for each, which may be somebody else's too.
    callers: AtomicU64,
    is_lost: AtomicBool,
}

/// What the process is at the moment.
mod role {
    pub(super) const ACTIVE: u32 = 0;
    /// On the move: it makes no calls until it is known where the endpoint goes.
    pub(super) const FROZEN: u32 = 1;
    pub(super) const BACKUP: u32 = 2;
}

/// How far the receiver is with what dvkd tells it, beside what comes over the channels.
#[derive(Debug, Default)]
struct Order {
    /// Notifications that the listener has heard of; those that got lost count, too.
    heard: AtomicU64,
    /// Of these, how many were there when the receiver last looked for one.
    looked: AtomicU64,
}

/// What the receiver has not taken in yet.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) list: VecDeque<Event>,
    /// Pending notifications of other nodes' endpoints, one per endpoint.
    pub(crate) notifications: VecDeque<(Endpoint, u64)>,
}

/// Something that dvkd said.
#[derive(Debug)]
pub(crate) enum Event {
    Accepted(Box<Inbound<Accepted>>),
    Gone(Endpoint),
    NodeGone(NodeId),
    /// What has been handed over of this endpoint's channels, or of all of this node, brings nothing any more.
    Cut(Endpoint),
    /// The answer to a question that nobody waits for: the endpoint cannot send any more, for that reason.
    Watched(Endpoint, IpcError),
    /// It goes on after it was to move.
    Thawed,
    /// It is the endpoint from now on; what that had received before is its to answer, or nobody's.
    Promoted {
        inherits: bool,
    },
    /// Another process is the endpoint from now on.
    Demoted,
}

/// Questions by number.
#[derive(Debug, Default)]
struct Questions {
    open: BTreeMap<u64, Question>,
    is_lost: bool,
}

#[derive(Debug)]
enum Question {
    /// Somebody waits for it.
    Asked,
    Answered(Box<(Tell, Fds)>),
    /// It stands: the answer is an event about this endpoint.
    Standing(Endpoint),
}

/// A channel on which this endpoint receives.
#[derive(Debug)]
pub(crate) struct Accepted {
    channel: SharedChannel,
    /// Of the requester, if it is woken by that (dvkd for callers on other nodes).
    bell: Option<Ringer>,
    order: Arc<Order>,
}

impl Inbox {
    /// Says hello and starts the thread. Returns the welcome, too.
    pub(crate) fn open(
        path: &[u8],
        hello: Ask,
        name: &str,
    ) -> Result<(Arc<Inbox>, Tell), IpcError> {
        let (bell, descriptor) = Bell::create()?;
        let connection = Connection::connect(path)?;
        let welcome = connection.hello(hello, Some(descriptor.as_fd()))?;
        let rights = welcome.data().and_then(Rights::decode).ok_or(IpcError::Protocol)?;
        let node = NodeId(u16::try_from(welcome.node).map_err(|_| IpcError::Protocol)?);
        let first = if hello.kind == kind::BACKUP { role::BACKUP } else { role::ACTIVE };
        let inbox = Arc::new(Inbox {
            connection,
            bell,
            news: AtomicBool::new(false),
            events: Mutex::default(),
            questions: Mutex::default(),
            answered: Condvar::new(),
            next: AtomicU64::new(1),
            calls: AtomicU32::new(rights.calls),
            rights: Mutex::new(rights),
            endpoint: AtomicU64::new(welcome.endpoint.to_bits()),
            node,
            role: AtomicU32::new(first),
            standing: Mutex::default(),
            changed: Condvar::new(),
            wakes: AtomicU64::new(0),
            client: OnceLock::new(),
            is_notified: AtomicBool::new(false),
            order: Arc::default(),
            relayers: Mutex::default(),
            callers: AtomicU64::new(0),
            is_lost: AtomicBool::new(false),
        });
        let listener = Arc::clone(&inbox);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || listener.listen())
            .map_err(|_| IpcError::Exhausted)?;
        Ok((inbox, welcome))
    }

    /// Ends the connection, and so the endpoint and the thread.
    pub(crate) fn close(&self) {
        // It may have ended already.
        rustix::net::shutdown(&self.connection, rustix::net::Shutdown::Both).ok();
    }

    pub(crate) fn rights(&self) -> Rights {
        *locked(&self.rights)
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_bits(self.endpoint.load(Ordering::Acquire))
    }

    /// The client of this endpoint is told who it is.
    pub(crate) fn adopt(&self, client: &Arc<Client>) {
        client.adopt(self.endpoint(), self.node);
        self.client.set(Arc::clone(client)).ok();
        if self.is_lost() {
            client.lose();
        }
    }

    pub(crate) fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Acquire)
    }

    pub(crate) fn is_backup(&self) -> bool {
        self.role.load(Ordering::Acquire) == role::BACKUP
    }

    /// May this process make calls as the endpoint? While that is on the move, it waits.
    ///
    /// # Errors
    /// [`IpcError::Moved`]: another process is the endpoint.
    pub(crate) fn pass(&self) -> Result<(), IpcError> {
        match self.role.load(Ordering::Acquire) {
            role::ACTIVE => Ok(()),
            _ => self.pass_when_settled(),
        }
    }

    fn pass_when_settled(&self) -> Result<(), IpcError> {
        let is_frozen =
            |(): &mut ()| self.role.load(Ordering::Acquire) == role::FROZEN && !self.is_lost();
        drop(self.changed.wait_while(locked(&self.standing), is_frozen));
        if self.is_backup() { Err(IpcError::Moved) } else { Ok(()) }
    }

    /// Waits until this backup has been promoted.
    ///
    /// # Errors
    /// [`IpcError::TimedOut`]; [`IpcError::NotBound`]: it is not bound any more.
    pub(crate) fn wait_promoted(&self, timeout: Option<Duration>) -> Result<Endpoint, IpcError> {
        let is_backup = |(): &mut ()| self.is_backup() && !self.is_lost();
        let standing = locked(&self.standing);
        match timeout {
            None => drop(self.changed.wait_while(standing, is_backup)),
            Some(timeout) => {
                drop(self.changed.wait_timeout_while(standing, timeout, is_backup));
            }
        }
        if self.is_lost() {
            Err(IpcError::NotBound)
        } else if self.is_backup() {
            Err(IpcError::TimedOut)
        } else {
            Ok(self.endpoint())
        }
    }

    /// From now on the process is something else, perhaps as another endpoint.
    fn settle_as(&self, role: u32, endpoint: Option<Endpoint>) {
        let standing = locked(&self.standing);
        if let Some(endpoint) = endpoint {
            self.endpoint.store(endpoint.to_bits(), Ordering::Release);
            if let Some(client) = self.client.get() {
                client.adopt(endpoint, self.node);
            }
        }
        self.role.store(role, Ordering::Release);
        drop(standing);
        self.changed.notify_all();
    }

    /// The endpoint is to move: what it has not received goes back.
    fn freeze(&self) {
        self.settle_as(role::FROZEN, None);
        let pending = self.take_notifications();
        for (source, value) in pending {
            self.connection.ask(&Ask { value, ..Ask::new(ask::PENDING, source) }, None).ok();
        }
        // If dvkd does not hear it, the endpoint does not move.
        self.connection.ask(&Ask::new(ask::STOPPED, self.endpoint()), None).ok();
    }

    fn take_notifications(&self) -> VecDeque<(Endpoint, u64)> {
        let mut events = locked(&self.events);
        self.is_notified.store(false, Ordering::Release);
        std::mem::take(&mut events.notifications)
    }

    /// Somebody ends what this process waits for.
    fn wake_up(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        drop(locked(&self.questions));
        self.answered.notify_all();
        self.news.store(true, Ordering::SeqCst);
        self.ring();
        if let Some(client) = self.client.get() {
            client.wake_all();
        }
    }

    /// May this endpoint make these calls?
    pub(crate) fn may(&self, calls: u32) -> bool {
        self.calls.load(Ordering::Relaxed) & calls == calls
    }

    /// A channel to `to` has been opened, with these flags.
    pub(crate) fn opened(&self, to: Endpoint, flags: u32) {
        let mut relayers = locked(&self.relayers);
        if flags & flag::RELAYS == 0 {
            relayers.remove(&to);
            return;
        }
        if relayers.len() >= RELAYERS_MAX
            && let Some(client) = self.client.get()
        {
            // Of those that are gone, or whose channel was given up, no answer comes.
            relayers.retain(|known| client.channel_to(*known).is_some());
        }
        relayers.insert(to);
    }

    /// May `to` pass on what it has received?
    pub(crate) fn may_relay(&self, to: Endpoint) -> bool {
        locked(&self.relayers).contains(&to)
    }

    /// Can `who` be sending to this endpoint?
    pub(crate) fn is_called_by(&self, who: Endpoint) -> bool {
        self.callers.load(Ordering::Acquire) & caller_bit(who) != 0
    }

    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::SeqCst)
    }

    /// Is dvkd gone, or the endpoint unbound?
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Everything that has come since the last look, but notifications.
    pub(crate) fn take(&self) -> VecDeque<Event> {
        if !self.news.swap(false, Ordering::SeqCst) {
            return VecDeque::new();
        }
        std::mem::take(&mut locked(&self.events).list)
    }

    /// The next pending notification of `from`, from another node.
    pub(crate) fn notification(&self, from: Endpoint) -> Option<(Endpoint, u64)> {
        // Before the look: what is heard of later is not in it.
        self.order.looked.store(self.order.heard.load(Ordering::Acquire), Ordering::Relaxed);
        if !self.is_notified.load(Ordering::Acquire) {
            return None;
        }
        let mut events = locked(&self.events);
        let wanted = |(source, _): &(Endpoint, u64)| from == Endpoint::ANY || *source == from;
        let at = events.notifications.iter().position(wanted)?;
        let taken = events.notifications.remove(at);
        self.is_notified.store(!events.notifications.is_empty(), Ordering::Release);
        taken
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// As dvkd refuses, or [`IpcError::NotBound`] if it is gone.
    pub(crate) fn ask(&self, ask: Ask) -> Result<(Tell, Fds), IpcError> {
        self.ask_with(ask, None)
    }

    /// The same, with a descriptor.
    pub(crate) fn ask_with(
        &self,
        ask: Ask,
        fd: Option<rustix::fd::BorrowedFd<'_>>,
    ) -> Result<(Tell, Fds), IpcError> {
        let number = self.pose(Question::Asked)?;
        if let Err(error) = self.connection.ask(&Ask { nonce: number, ..ask }, fd) {
            locked(&self.questions).open.remove(&number);
            return Err(error);
        }
        let (wakes, may_wake) = (self.wakes(), ask.op == ask::AWAIT);
        let is_open = |questions: &mut Questions| {
            matches!(questions.open.get(&number), Some(Question::Asked))
                && !questions.is_lost
                && !(may_wake && self.wakes() != wakes)
        };
        let questions = self.answered.wait_while(locked(&self.questions), is_open);
        let mut questions = questions.unwrap_or_else(PoisonError::into_inner);
        match questions.open.remove(&number) {
            Some(Question::Asked) if !questions.is_lost => {
                drop(questions);
                self.connection
                    .ask(&Ask { nonce: number, ..Ask::new(ask::WITHDRAW, ask.to) }, None)?;
                Err(IpcError::WokenUp)
            }
            Some(Question::Answered(answer)) => {
                let (tell, fds) = *answer;
                tell.expect(if tell.op == tell::CHANNEL { tell::CHANNEL } else { tell::DONE })
                    .map(|tell| (tell, fds))
            }
            _ => Err(IpcError::NotBound),
        }
    }

    /// Asks, and makes an event about `source` of the answer, whenever it comes.
    pub(crate) fn watch(&self, ask: Ask, source: Endpoint) -> Result<(), IpcError> {
        let number = self.pose(Question::Standing(source))?;
        self.connection.ask(&Ask { nonce: number, ..ask }, None)
    }

    fn pose(&self, question: Question) -> Result<u64, IpcError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut questions = locked(&self.questions);
        if questions.is_lost {
            return Err(IpcError::NotBound);
        }
        if questions.open.len() >= m3ipc::limits::QUESTIONS_MAX {
            return Err(IpcError::Exhausted);
        }
        questions.open.insert(number, question);
        Ok(number)
    }

    fn listen(&self) {
        loop {
            match self.connection.hear() {
                Ok((tell, fds)) => self.told(&tell, fds),
                Err(IpcError::Protocol) => {}
                Err(_) => break,
            }
        }
        locked(&self.questions).is_lost = true;
        self.is_lost.store(true, Ordering::Release);
        self.answered.notify_all();
        drop(locked(&self.standing));
        self.changed.notify_all();
        self.news.store(true, Ordering::SeqCst);
        self.ring();
        if let Some(client) = self.client.get() {
            client.lose();
        }
    }

    fn told(&self, tell: &Tell, fds: Fds) {
        match tell.op {
            tell::ACCEPT => {
                // One that cannot be mapped: no memory. Its requester waits, as for a receiver that does not receive.
                if let Ok(inbound) = Accepted::inbound(tell, fds, &self.order) {
                    let bits =
                        if inbound.is_trusted() { u64::MAX } else { caller_bit(inbound.peer) };
                    self.callers.fetch_or(bits, Ordering::Release);
                    if !inbound.is_trusted() {
                        // Who is not said is a stranger.
                        self.bell.beware_of(tell.cred().map_or(u32::MAX, |cred| cred.uid));
                    }
                    self.happen(Event::Accepted(Box::new(inbound)));
                }
            }
            tell::GONE => self.happen(Event::Gone(tell.endpoint)),
            tell::CUT => self.happen(Event::Cut(tell.endpoint)),
            tell::NODE_GONE => {
                if let Ok(node) = u16::try_from(tell.node) {
                    self.happen(Event::NodeGone(NodeId(node)));
                }
            }
            tell::NOTIFY => self.notified(tell.endpoint, tell.number),
            tell::RIGHTS => {
                if let Some(rights) = tell.data().and_then(Rights::decode) {
                    *locked(&self.rights) = rights;
                    self.calls.store(rights.calls, Ordering::Relaxed);
                }
            }
            tell::FREEZE => self.freeze(),
            tell::THAW => {
                self.happen(Event::Thawed);
                self.settle_as(role::ACTIVE, None);
            }
            tell::PROMOTED => {
                if let Some(rights) = tell.data().and_then(Rights::decode) {
                    *locked(&self.rights) = rights;
                    self.calls.store(rights.calls, Ordering::Relaxed);
                }
                self.happen(Event::Promoted { inherits: tell.flags & 1 != 0 });
                self.settle_as(role::ACTIVE, Some(tell.endpoint));
            }
            tell::DEMOTED => {
                self.take_notifications();
                self.settle_as(role::BACKUP, Some(tell.endpoint));
                self.happen(Event::Demoted);
            }
            tell::WOKEN => self.wake_up(),
            tell::CHANNEL | tell::DONE | tell::REFUSED => self.answer(tell, fds),
            _ => {}
        }
    }

    fn answer(&self, tell: &Tell, fds: Fds) {
        let mut questions = locked(&self.questions);
        match questions.open.get_mut(&tell.number) {
            Some(question @ Question::Asked) => {
                *question = Question::Answered(Box::new((*tell, fds)));
                self.answered.notify_all();
            }
            Some(Question::Standing(source)) => {
                let source = *source;
                questions.open.remove(&tell.number);
                drop(questions);
                let reason = match tell.expect(tell::DONE) {
                    Err(error @ IpcError::NodeDown) => error,
                    _ => IpcError::SourceDied,
                };
                self.happen(Event::Watched(source, reason));
            }
            _ => {}
        }
    }

    fn happen(&self, event: Event) {
        locked(&self.events).list.push_back(event);
        self.news.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// One that is pending already stays; the later one is lost, as `notify` between nodes says.
    fn notified(&self, from: Endpoint, value: u64) {
        let mut events = locked(&self.events);
        let is_pending = events.notifications.iter().any(|(source, _)| *source == from);
        if !is_pending && events.notifications.len() < NOTIFIERS_MAX {
            events.notifications.push_back((from, value));
            self.is_notified.store(true, Ordering::Release);
        }
        drop(events);
        // Also of one that is lost: who waits for it goes on.
        self.order.heard.fetch_add(1, Ordering::Release);
        self.news.store(true, Ordering::SeqCst);
        self.ring();
    }

    fn ring(&self) {
        while !self.bell.ring() {
            // The receiver is stopped, or waits for a CPU.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The bit of an endpoint among callers. Its generation, which the asker may not know, plays no part.
fn caller_bit(who: Endpoint) -> u64 {
    1 << (who.slot % u64::BITS)
}

impl Accepted {
    fn inbound(
        tell: &Tell,
        [channel, bell]: Fds,
        order: &Arc<Order>,
    ) -> Result<Inbound<Accepted>, IpcError> {
        let channel = SharedChannel::map(channel.ok_or(IpcError::Protocol)?.as_fd())?;
        let bell = match bell {
            Some(bell) if tell.flags & flag::REQUESTER_BELL != 0 => {
                Some(Ringer::map(bell.as_fd())?)
            }
            _ => None,
        };
        Ok(Inbound::new(Accepted { channel, bell, order: Arc::clone(order) }, tell.endpoint)
            .with_flags(tell.flags))
    }
}

impl Channel for Accepted {
    fn closed(&self) -> Option<IpcError> {
        self.channel.closed()
    }
    fn has_requests(&self) -> bool {
        self.channel.has_requests()
    }
    fn is_notified(&self) -> bool {
        self.channel.is_notified()
    }
    fn first(&self) -> Option<Tag> {
        self.channel.first()
    }
    fn take_news(&self) -> News {
        self.channel.take_news()
    }
    fn take_notification(&self) -> Option<u64> {
        self.channel.take_notification()
    }
    fn is_behind(&self) -> bool {
        self.channel.told() > self.order.looked.load(Ordering::Relaxed)
    }
    fn request(&self, lane: usize) -> Option<Message> {
        self.channel.request(lane)
    }
    fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError> {
        self.channel.read_request(lane, out)
    }
    fn read_request_at(&self, lane: usize, start: usize, out: &mut [u8]) -> Result<(), IpcError> {
        self.channel.read_request_at(lane, start, out)
    }
    fn claim(&self, lane: usize) -> bool {
        self.channel.claim(lane)
    }
    fn unclaim(&self, lane: usize) -> bool {
        self.channel.unclaim(lane)
    }
    fn is_abandoned(&self, lane: usize) -> bool {
        self.channel.is_abandoned(lane)
    }
    fn cancelled(&self, lane: usize) -> Tag {
        self.channel.cancelled(lane)
    }
    fn answer(&self, lane: usize, message: &Message, payload: &[u8], _by_bell: bool) -> bool {
        let is_awaited = self.channel.answer(lane, message, payload, self.bell.is_some());
        if let Some(bell) = &self.bell {
            (0..RINGS_MAX).any(|_| bell.ring());
        }
        is_awaited
    }
}

/// The bell of an inbox, as a port sleeps on it.
#[derive(Debug)]
pub(crate) struct Sleeper(pub(crate) Arc<Inbox>);

impl Rest for Sleeper {
    fn prepare(&self) -> u32 {
        self.0.bell.prepare()
    }
    fn sleep(&self, ticket: u32, timeout: Option<Duration>) {
        self.0.bell.sleep(ticket, timeout);
    }
    fn awake(&self) {
        self.0.bell.awake();
    }
    fn found(&self) {
        self.0.bell.found(|| true);
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
