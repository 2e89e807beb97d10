//! The receiving side of a container: its connection to dvkd, and the channels of its callers.
//!
//! One thread listens to dvkd, one serves requests. Answers may come from any thread: they are
//! queued, and the serving thread's bell is rung.

use anyhow::{Context, Result, anyhow};
use dvk::server::{Answer, Answers, Call, Gone};
use m3ipc::bell::{Bell, Ringer};
use m3ipc::channel::SharedChannel;
use m3ipc::connection::{Connection, Fds};
use m3ipc::door::{Ask, Tell, flag, kind, tell};
use m3ipc::limits::{LANES, PAYLOAD_AREA};
use m3ipc::port::bits;
use m3ipc::spin::Spin;
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message, NodeId, Tag};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Handles what comes through the door.
pub(super) trait Handler {
    fn serve(&mut self, call: &Call<'_>, answers: &mut Answers);
    fn cancel(&mut self, id: CallId, answers: &mut Answers);
    fn gone(&mut self, gone: Gone);
}

/// The serving thread's side.
#[derive(Debug)]
pub(super) struct Door {
    shared: Arc<Shared>,
    inbound: Vec<Inbound>,
    open: BTreeMap<CallId, (u64, usize)>,
    next: u64,
    spin: Spin,
}

/// Pause before an owner is rung again that has said that it will sleep, and does not yet.
const RING_PAUSE: Duration = Duration::from_millis(1);

/// For all other threads.
#[derive(Clone, Debug)]
pub(super) struct Answerer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bell: Bell,
    queue: Mutex<Vec<Item>>,
}

#[derive(Debug)]
enum Item {
    Told(Box<Tell>, Fds),
    Answers(Vec<Answer>),
    /// dvkd says stop, or is gone.
    Stop,
}

/// A caller's channel.
#[derive(Debug)]
struct Inbound {
    number: u64,
    channel: SharedChannel,
    /// Wakes the caller, if it is not woken by its lane.
    bell: Option<Ringer>,
    peer: Endpoint,
    /// `None`: the caller is trusted, and says whose each request is.
    cred: Option<Cred>,
    tags: [Option<CallId>; LANES],
}

impl Door {
    /// Binds as the container of this node. `nonce` is the one of the process's client.
    ///
    /// # Errors
    /// One sentence: dvkd is not there or refuses.
    pub(super) fn open(socket: &Path, nonce: u64) -> Result<(Door, Answerer)> {
        let (bell, bell_fd) = Bell::create().map_err(|error| anyhow!("no bell: {error:?}"))?;
        let connection = Connection::connect(socket.as_os_str().as_bytes())
            .map_err(|error| anyhow!("no dvkd answers at {}: {error:?}", socket.display()))?;
        connection
            .hello(Ask::hello(kind::CONTAINER, 0, nonce), Some(bell_fd.as_fd()))
            .map_err(|error| anyhow!("dvkd refuses this container: {error:?}"))?;
        let shared = Arc::new(Shared { bell, queue: Mutex::new(Vec::new()) });
        let listener = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("door".into())
            .spawn(move || listener.listen(&connection))
            .context("no thread to listen to dvkd")?;
        let door = Door {
            shared: Arc::clone(&shared),
            inbound: Vec::new(),
            open: BTreeMap::new(),
            next: 0,
            spin: Spin::new(),
        };
        Ok((door, Answerer { shared }))
    }

    /// Serves until dvkd says stop or is gone.
    pub(super) fn serve(mut self, handler: &mut impl Handler) {
        let mut payload = vec![0; PAYLOAD_AREA];
        loop {
            let items = self.shared.take();
            for item in items {
                match item {
                    Item::Stop => return,
                    Item::Answers(list) => self.answer(list),
                    Item::Told(tell, fds) => self.told(&tell, fds, handler),
                }
            }
            self.shared.bell.found(|| self.has_news());
            self.look(handler, &mut payload);
            self.rest();
        }
    }

    fn has_news(&self) -> bool {
        self.inbound.iter().any(|inbound| inbound.channel.has_news()) || self.shared.has_items()
    }

    /// Sleeps until there is news.
    fn rest(&self) {
        if self.spin.until(|| self.has_news()) {
            return;
        }
        let ticket = self.shared.bell.prepare();
        if self.has_news() {
            self.shared.bell.awake()
        } else {
            self.shared.bell.sleep(ticket, None)
        }
    }

    fn told(&mut self, tell: &Tell, fds: Fds, handler: &mut impl Handler) {
        match tell.op {
            tell::ACCEPT => {
                if let Err(error) = self.accept(tell, fds) {
                    tracing::warn!("a channel that dvkd handed over is refused: {error:?}");
                }
            }
            tell::CUT => {
                // On channels of dvkd itself each message has been checked.
                let is_of = |peer| match tell.endpoint {
                    Endpoint::ANY => peer != Endpoint::NONE,
                    endpoint => peer == endpoint,
                };
                self.inbound.retain(|inbound| !is_of(inbound.peer));
            }
            tell::GONE => {
                self.inbound.retain(|inbound| inbound.peer != tell.endpoint);
                self.forget(|source| source == tell.endpoint);
                handler.gone(Gone::Endpoint(tell.endpoint));
            }
            tell::NODE_GONE => {
                let node = NodeId(u16::try_from(tell.node).unwrap_or(0));
                self.forget(|source| source.node() == node);
                handler.gone(Gone::Node(node));
            }
            _ => {}
        }
    }

    fn accept(&mut self, tell: &Tell, [channel, bell]: Fds) -> Result<(), IpcError> {
        let channel = SharedChannel::map(channel.as_ref().ok_or(IpcError::Protocol)?.as_fd())?;
        let by_bell = tell.flags & flag::REQUESTER_BELL != 0;
        let ring = |bell: OwnedFd| Ringer::map(bell.as_fd());
        let bell = bell.filter(|_| by_bell).map(ring).transpose()?;
        let trusted = tell.flags & flag::TRUSTED != 0;
        let cred = tell.cred().filter(|_| !trusted);
        if !trusted && cred.is_none() {
            return Err(IpcError::Protocol);
        }
        cred.inspect(|cred| self.shared.bell.beware_of(cred.uid));
        self.next += 1;
        self.inbound.push(Inbound {
            number: self.next,
            channel,
            bell,
            peer: tell.endpoint,
            cred,
            tags: [None; LANES],
        });
        Ok(())
    }

    /// Forgets the open calls of callers that are gone.
    fn forget(&mut self, is_gone: impl Fn(Endpoint) -> bool) {
        let Door { open, inbound, .. } = self;
        open.retain(|id, (number, lane)| {
            if !is_gone(id.source) {
                return true;
            }
            let place = inbound.iter_mut().find(|inbound| inbound.number == *number);
            if let Some(inbound) = place {
                // Its place in the channel of a trusted peer is needed again.
                inbound.end(*lane, id, &Message::undelivered(0, IpcError::SourceDied), &[]);
            }
            false
        });
    }

    fn answer(&mut self, list: Vec<Answer>) {
        for Answer { to, message, payload } in list {
            let Some((number, lane)) = self.open.remove(&to) else { continue };
            let place = self.inbound.iter_mut().find(|inbound| inbound.number == number);
            if let Some(inbound) = place {
                inbound.end(lane, &to, &message, &payload);
            }
        }
    }

    /// Takes all requests that are there.
    fn look(&mut self, handler: &mut impl Handler, payload: &mut [u8]) {
        let mut answers = Answers::default();
        for inbound in &mut self.inbound {
            let news = inbound.channel.take_news();
            // A container takes no notifications; one that stayed would be news for ever.
            inbound.channel.take_notification();
            for lane in bits(news.pending) {
                inbound.request(lane, &mut self.open, handler, payload, &mut answers);
            }
            for lane in bits(news.cancelled) {
                if let Some(id) =
                    inbound.tags[lane].filter(|id| inbound.channel.cancelled(lane) == id.tag)
                {
                    handler.cancel(id, &mut answers);
                }
            }
        }
        self.answer(answers.list);
    }
}

impl Inbound {
    /// One request: it is served, or refused if it is malformed.
    fn request(
        &mut self,
        lane: usize,
        open: &mut BTreeMap<CallId, (u64, usize)>,
        handler: &mut impl Handler,
        payload: &mut [u8],
        answers: &mut Answers,
    ) {
        let Some(message) = self.channel.request(lane).filter(|_| self.tags[lane].is_none()) else {
            return;
        };
        match self.read(lane, message, payload) {
            Ok((message, cred, payload)) => {
                let id = CallId { source: message.source, tag: message.tag };
                if open.contains_key(&id) {
                    return self.refuse(lane, &message, IpcError::Protocol);
                }
                open.insert(id, (self.number, lane));
                self.tags[lane] = Some(id);
                handler.serve(&Call { id, cred: &cred, message: &message, payload }, answers);
            }
            Err(error) => self.refuse(lane, &message, error),
        }
    }

    /// The request with its source and credentials, as far as this channel's peer may say them.
    fn read<'a>(
        &self,
        lane: usize,
        mut message: Message,
        buffer: &'a mut [u8],
    ) -> Result<(Message, Cred, &'a [u8]), IpcError> {
        let len = message.payload_len as usize;
        let bytes = buffer.get_mut(..len).ok_or(IpcError::TooLarge)?;
        self.channel.read_request(lane, bytes)?;
        match self.cred {
            Some(cred) => {
                message.source = self.peer;
                Ok((message, cred, bytes))
            }
            None => {
                let (cred, payload) = Cred::decode(bytes).ok_or(IpcError::Protocol)?;
                Ok((message, cred, payload))
            }
        }
    }

    fn refuse(&mut self, lane: usize, message: &Message, error: IpcError) {
        self.write(lane, message.tag, &Message::undelivered(message.call, error), &[]);
    }

    /// Answers an open call.
    fn end(&mut self, lane: usize, id: &CallId, message: &Message, payload: &[u8]) {
        if self.tags[lane].take_if(|open| *open == *id).is_some() {
            self.write(lane, id.tag, message, payload);
        }
    }

    fn write(&mut self, lane: usize, tag: Tag, message: &Message, payload: &[u8]) {
        let message = Message { tag, ..*message };
        self.channel.answer(lane, &message, payload, self.bell.is_some());
        if let Some(bell) = &self.bell {
            // If the caller does not hear it now, it looks again by itself.
            let _heard = bell.ring();
        }
    }
}

impl Answerer {
    /// Has answers sent.
    pub(super) fn send(&self, answers: Answers) {
        if !answers.list.is_empty() {
            self.shared.put(Item::Answers(answers.list));
        }
    }
}

impl Shared {
    /// Puts what dvkd says into the queue, until it says stop or is gone.
    fn listen(&self, connection: &Connection) {
        loop {
            match connection.hear() {
                Ok((tell, _)) if tell.op == tell::STOP => break,
                Ok((tell, fds)) => self.put(Item::Told(Box::new(tell), fds)),
                Err(_) => break,
            }
        }
        self.put(Item::Stop);
    }

    fn put(&self, item: Item) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        // Between its last look at the queue and its sleep the owner may have to wait for a CPU.
        while !self.bell.ring() {
            std::thread::sleep(RING_PAUSE);
        }
    }

    fn take(&self) -> Vec<Item> {
        std::mem::take(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has_items(&self) -> bool {
        !self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_is_slow_to_fall_asleep_is_woken() {
        let (bell, _) = Bell::create().unwrap();
        let shared = Shared { bell, queue: Mutex::new(Vec::new()) };
        std::thread::scope(|scope| {
            let ticket = shared.bell.prepare();
            assert!(!shared.has_items());
            // Now it loses its CPU.
            let putter = scope.spawn(|| shared.put(Item::Stop));
            let slow = std::time::Instant::now() + Duration::from_millis(20);
            while !putter.is_finished() && std::time::Instant::now() < slow {
                std::thread::yield_now();
            }
            let slept = std::time::Instant::now();
            shared.bell.sleep(ticket, Some(Duration::from_secs(60)));
            assert!(slept.elapsed() < Duration::from_secs(60), "it was not woken");
        });
        assert!(shared.has_items());
    }
}
