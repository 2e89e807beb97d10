//! The `Solo` host: one server in one process, its state on this node's disk.
//!
//! A round is all requests found at one look at the channels. It is committed as one batch before its
//! answers leave; if one of them wants stable storage, all wait for one fsync (group commit).

use super::disk::{DiskStore, Durable, StoreFailure};
use super::inbox::{Accepted, Event, Inbox};
use crate::lanes::Hosted;
use crate::limits::{RING_AGAIN, SWEEP_AFTER, WALL_CLOCK_AGE};
use crate::server::{Answer, Answers, Call, Context, Gone, Nanos, Server};
use crate::store::Store;
use anyhow::{Result, anyhow, bail};
use m3ipc::bell::Bell;
use m3ipc::channel::News;
use m3ipc::limits::{CHANNELS_PER_PEER, LANES, PAYLOAD_AREA, PAYLOAD_MAX};
use m3ipc::port::bits;
use m3ipc::spin::Spin;
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message, Tag};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Runs server `number` of the container whose door is `socket`, with its state in directory
/// `store`, until dvkd says stop. `open` makes the server from its store.
///
/// # Errors
/// One sentence: no dvkd at the socket, the store is in use or damaged, the disk is full. The state is then what
/// the last commit made it; dvkd starts the server again.
pub fn run<S: Server>(
    number: u32,
    socket: &Path,
    store: &Path,
    open: impl FnOnce(&mut dyn Store) -> Result<S>,
) -> Result<()> {
    catch_store_failure(|| {
        let mut store = DiskStore::open(store)?;
        let server = open(&mut store)?;
        store.commit_sync()?;
        let (bell, descriptor) =
            Bell::create().map_err(|error| anyhow!("cannot make a bell: {error:?}"))?;
        Solo::connect(number, socket, server, store, Arc::new(bell), descriptor.as_fd())?.serve()
    })
}

/// A failed store unwinds through the server, which has no error to return for it.
fn catch_store_failure(body: impl FnOnce() -> Result<()>) -> Result<()> {
    match std::panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(cause) => match cause.downcast::<StoreFailure>() {
            Ok(failure) => Err(anyhow!(failure.0)),
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

/// Channels that are looked at while spinning: those with the latest requests.
const HOT: usize = 4;

/// A server with its store and its channels. [`run`] drives one in a process of its own; muk2 drives several in turn.
#[derive(Debug)]
pub struct Solo<S, D> {
    hosted: Hosted<S>,
    store: D,
    inbox: Inbox,
    channels: Vec<Rc<Accepted>>,
    hot: Vec<Rc<Accepted>>,
    /// Those with news, during a look.
    active: Vec<(Rc<Accepted>, News)>,
    /// Where the calls of this round came from. Most are answered in it.
    fresh: Vec<(CallId, Rc<Accepted>, usize)>,
    /// Where the calls came from that the server keeps.
    open: HashMap<CallId, (Rc<Accepted>, usize)>,
    answers: Answers,
    /// Has this round done anything that must be committed?
    worked: bool,
    stopping: bool,
    /// When removed blobs are to be unlinked.
    sweep_at: Option<Nanos>,
    /// Requesters who had announced sleep but were not asleep when rung.
    ring_again: Vec<Rc<Accepted>>,
    spin: Spin,
    clock: Clock,
    entropy: Entropy,
    payload: Vec<u8>,
}

impl<S: Server, D: Durable> Solo<S, D> {
    /// Binds `server`, which has been opened from `store`, as number `number` of the container whose door is `socket`.
    /// `bell` wakes whoever drives it; its `descriptor` is for the peers.
    ///
    /// # Errors
    /// One sentence: no dvkd at the socket, it refuses, or the store is damaged.
    pub fn connect(
        number: u32,
        socket: &Path,
        server: S,
        store: D,
        bell: Arc<Bell>,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Solo<S, D>> {
        Ok(Solo {
            hosted: Hosted::open(server, &store)?,
            store,
            inbox: Inbox::connect(number, socket, bell, descriptor)?,
            channels: Vec::new(),
            hot: Vec::new(),
            active: Vec::new(),
            fresh: Vec::new(),
            open: HashMap::new(),
            answers: Answers::default(),
            worked: false,
            stopping: false,
            sweep_at: None,
            ring_again: Vec::new(),
            spin: Spin::new(),
            clock: Clock::default(),
            entropy: Entropy::default(),
            payload: vec![0; PAYLOAD_AREA],
        })
    }

    fn serve(mut self) -> Result<()> {
        while !self.stopping {
            if !self.round()? {
                self.rest();
            }
        }
        self.store.finish()
    }

    /// Has dvkd said stop?
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Handles everything that is there, commits it, and lets the answers go. False: nothing was there.
    ///
    /// # Errors
    /// The store failed, or the connection to dvkd is lost.
    pub fn round(&mut self) -> Result<bool> {
        self.worked = false;
        self.answers.sync = false;
        // In this order: what somebody asked before they died is asked for before it is said that they are dead.
        let events = self.inbox.take();
        let now = self.clock.read();
        self.look();
        for event in events {
            self.event(event)?;
        }
        if self.hosted.deadline().is_some_and(|deadline| deadline <= now) {
            self.with_context(|hosted, cx| hosted.tick(cx));
        }
        self.commit(now)?;
        self.answer();
        self.keep_up()?;
        Ok(self.worked)
    }

    fn commit(&mut self, now: Nanos) -> Result<()> {
        if self.answers.sync {
            self.store.commit_sync()?;
        } else if self.worked {
            self.store.commit()?;
        }
        if !self.store.wants_sweep() {
            self.sweep_at = None;
        } else if *self.sweep_at.get_or_insert(now + SWEEP_AFTER) <= now {
            self.store.sweep()?;
            self.sweep_at = None;
        }
        Ok(())
    }

    /// Looks after the store, when that is due: behind the answers of a round.
    fn keep_up(&mut self) -> Result<()> {
        let is_due = self.store.keep_up_at().is_some_and(|at| at <= self.clock.now);
        if is_due { self.store.keep_up(self.clock.now) } else { Ok(()) }
    }

    /// Takes the requests of all channels.
    fn look(&mut self) {
        let mut active = std::mem::take(&mut self.active);
        for accepted in &self.channels {
            let news = accepted.channel.take_news();
            // Servers take no notifications; one that stayed would be news for ever.
            accepted.channel.take_notification();
            if news.pending | news.cancelled != 0 {
                active.push((accepted.clone(), news));
            }
        }
        self.inbox.bell().found(|| !active.is_empty());
        for (accepted, news) in active.drain(..) {
            for lane in bits(news.pending) {
                self.request(&accepted, lane);
            }
            for lane in bits(news.cancelled) {
                let tag = accepted.channel.cancelled(lane);
                if let Some(id) = accepted.calls.borrow()[lane].filter(|id| id.tag == tag) {
                    self.with_context(|hosted, cx| hosted.cancel(id, cx));
                }
            }
            self.heat(accepted);
        }
        self.active = active;
    }

    /// Keeps the channels with the latest requests for the spinning.
    fn heat(&mut self, accepted: Rc<Accepted>) {
        if let Some(at) = self.hot.iter().position(|hot| Rc::ptr_eq(hot, &accepted)) {
            self.hot.swap(0, at);
            return;
        }
        self.hot.truncate(HOT - 1);
        self.hot.insert(0, accepted);
    }

    fn request(&mut self, accepted: &Rc<Accepted>, lane: usize) {
        let Some(mut message) = accepted.channel.request(lane) else { return };
        let mut payload = std::mem::take(&mut self.payload);
        match accepted.check(lane, &mut message, &mut payload) {
            Ok((cred, range)) => {
                let id = CallId { source: message.source, tag: message.tag };
                // A requester that goes on for one that has died says of all lanes that there is something.
                if accepted.calls.borrow()[lane] == Some(id) {
                    self.payload = payload;
                    return;
                }
                self.fresh.push((id, accepted.clone(), lane));
                accepted.calls.borrow_mut()[lane] = Some(id);
                let call = Call { id, cred: &cred, message: &message, payload: &payload[range] };
                self.with_context(|hosted, cx| hosted.request(&call, cx));
            }
            Err(error) => {
                self.worked = true;
                let answer =
                    Message { tag: message.tag, ..Message::undelivered(message.call, error) };
                accepted.channel.answer(lane, &answer, &[], accepted.by_bell());
                self.ring(accepted);
            }
        }
        self.payload = payload;
    }

    fn event(&mut self, event: Event) -> Result<()> {
        self.worked = true;
        match event {
            Event::Accepted(accepted) => self.channels.push(Rc::from(accepted)),
            Event::Gone(number, gone) => {
                // Channels of the dead, and those that dvkd has done with.
                self.keep_channels(|accepted| {
                    Gone::Endpoint(accepted.peer) != gone && accepted.channel.closed().is_none()
                });
                self.with_context(|hosted, cx| hosted.told(number, gone, cx));
            }
            Event::Cut(Endpoint::ANY) => self.keep_channels(Accepted::is_trusted),
            Event::Cut(peer) => self.keep_channels(|accepted| accepted.peer != peer),
            Event::Stop => self.stopping = true,
            Event::Lost(error) => bail!("the connection to dvkd is lost: {error:?}"),
        }
        Ok(())
    }

    fn keep_channels(&mut self, stays: impl Fn(&Accepted) -> bool) {
        for list in [&mut self.channels, &mut self.hot, &mut self.ring_again] {
            list.retain(|accepted| stays(accepted));
        }
    }

    /// Passes one input to the server.
    fn with_context(&mut self, input: impl FnOnce(&mut Hosted<S>, &mut Context<'_>)) {
        self.worked = true;
        let mut context = Context {
            now: self.clock.now,
            wall: self.clock.wall(),
            entropy: self.entropy.next(),
            store: &mut self.store,
            answers: &mut self.answers,
        };
        input(&mut self.hosted, &mut context);
    }

    /// Lets the answers of the round go. One whose caller is gone has no place any more.
    fn answer(&mut self) {
        let mut bells: Vec<Rc<Accepted>> = Vec::new();
        let mut answers = std::mem::take(&mut self.answers.list);
        for Answer { to, mut message, payload } in answers.drain(..) {
            let Some((accepted, lane)) = self.place(to) else { continue };
            message.source = self.inbox.endpoint();
            accepted.calls.borrow_mut()[lane] = None;
            accepted.channel.answer(lane, &message, &payload, accepted.by_bell());
            if accepted.by_bell() && !bells.iter().any(|other| Rc::ptr_eq(other, &accepted)) {
                bells.push(accepted);
            }
        }
        self.answers.list = answers;
        for (id, accepted, lane) in self.fresh.drain(..) {
            self.open.insert(id, (accepted, lane));
        }
        for accepted in bells {
            self.ring(&accepted);
        }
    }

    /// Takes out where a call came from.
    fn place(&mut self, id: CallId) -> Option<(Rc<Accepted>, usize)> {
        // Answers come mostly in the order of the calls, so those before it are few.
        match self.fresh.iter().position(|(fresh, ..)| *fresh == id) {
            Some(at) => {
                let (_, accepted, lane) = self.fresh.swap_remove(at);
                Some((accepted, lane))
            }
            None => self.open.remove(&id),
        }
    }

    fn ring(&mut self, accepted: &Rc<Accepted>) {
        if accepted.bell.as_ref().is_some_and(|bell| !bell.ring()) {
            self.ring_again.push(accepted.clone());
        }
    }

    /// Waits for work: looks a while if that has been paying off, then sleeps.
    fn rest(&mut self) {
        let (inbox, hot) = (&self.inbox, &self.hot);
        if self
            .spin
            .until(|| inbox.has_news() || hot.iter().any(|accepted| accepted.channel.has_news()))
        {
            return;
        }
        self.ring_again();
        let ticket = self.inbox.bell().prepare();
        if self.has_news() {
            self.inbox.bell().awake();
        } else {
            self.inbox.bell().sleep(ticket, self.patience());
        }
    }

    /// Rings those again who could not be woken. Before every sleep.
    pub fn ring_again(&mut self) {
        for accepted in std::mem::take(&mut self.ring_again) {
            self.ring(&accepted);
        }
    }

    /// Is anything there for [`Solo::round`]?
    pub fn has_news(&self) -> bool {
        self.inbox.has_news() || self.channels.iter().any(|accepted| accepted.channel.has_news())
    }

    /// How long to sleep at most.
    pub fn patience(&self) -> Option<Duration> {
        let now = monotonic();
        let ring_again = (!self.ring_again.is_empty()).then(|| now + RING_AGAIN);
        let next = [self.hosted.deadline(), self.sweep_at, self.store.keep_up_at(), ring_again];
        let next = next.into_iter().flatten().min()?;
        Some(Duration::from_nanos(next.saturating_sub(now)))
    }
}

impl Accepted {
    /// Checks the request copied from `lane` and copies its payload. Returns the caller's credentials and where in
    /// `payload` the call's own is.
    fn check(
        &self,
        lane: usize,
        message: &mut Message,
        payload: &mut [u8],
    ) -> Result<(Cred, Range<usize>), IpcError> {
        if !self.is_trusted() {
            message.source = self.peer;
            check_lane(message.tag, lane)?;
        }
        message.status = 0;
        let end = message.payload_len as usize;
        let bytes = payload.get_mut(..end).ok_or(IpcError::Protocol)?;
        self.channel.read_request(lane, bytes)?;
        let (cred, start) = if self.is_trusted() {
            let (cred, rest) = Cred::decode(bytes).ok_or(IpcError::Protocol)?;
            (cred, end - rest.len())
        } else {
            (self.cred, 0)
        };
        if end - start > PAYLOAD_MAX || message.source == Endpoint::NONE {
            return Err(IpcError::Protocol);
        }
        message.payload_len = u32::try_from(end - start).map_err(|_| IpcError::TooLarge)?;
        Ok((cred, start..end))
    }
}

/// A client's lanes go on from channel to channel, so the number in a tag is more than the lane's in its channel.
/// Within its own source a client may lie to itself only, but not about more lanes than it can have.
pub(crate) fn check_lane(tag: Tag, lane: usize) -> Result<(), IpcError> {
    let number = usize::from(tag.lane());
    let fits = number % LANES == lane && number < LANES * CHANNELS_PER_PEER;
    if fits { Ok(()) } else { Err(IpcError::Protocol) }
}

/// The time of a round: both clocks, of which the wall's is read now and then and carried on in between.
#[derive(Debug, Default)]
struct Clock {
    now: Nanos,
    /// When the wall clock was read, and what it said.
    read_at: Nanos,
    read: u64,
}

impl Clock {
    fn read(&mut self) -> Nanos {
        self.now = monotonic();
        if self.now - self.read_at > WALL_CLOCK_AGE || self.read == 0 {
            self.read_at = self.now;
            self.read = wall_clock();
        }
        self.now
    }

    fn wall(&self) -> u64 {
        self.read + (self.now - self.read_at)
    }
}

/// Random bits, fetched many at a time.
#[derive(Debug, Default)]
struct Entropy {
    words: Vec<u64>,
}

impl Entropy {
    fn next(&mut self) -> u64 {
        if self.words.is_empty() {
            let mut bytes = [0; 4096];
            let mut filled = 0;
            while filled < bytes.len() {
                // Only a signal cuts it short (getrandom(2)).
                filled += rustix::rand::getrandom(
                    &mut bytes[filled..],
                    rustix::rand::GetRandomFlags::empty(),
                )
                .or_else(|error| if error == Errno::INTR { Ok(0) } else { Err(error) })
                .expect("the kernel has randomness after boot");
            }
            self.words
                .extend(bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_ne_bytes(*chunk)));
        }
        self.words.pop().expect("just filled")
    }
}

/// Nanoseconds on the monotonic clock.
pub(crate) fn monotonic() -> Nanos {
    nanoseconds(rustix::time::ClockId::Monotonic)
}

fn wall_clock() -> u64 {
    nanoseconds(rustix::time::ClockId::Realtime)
}

fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000) + u64::try_from(time.tv_nsec).unwrap_or(0)
}
