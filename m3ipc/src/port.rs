//! `Port`: send, receive, sendrec, rcvrqst, reply and notify, written once above `Channel`.

use crate::bell::Bell;
use crate::channel::{News, SharedChannel};
use crate::cred::{CRED_SIZE_MAX, Cred};
use crate::door::flag;
use crate::endpoint::Endpoint;
use crate::errno::IpcError;
use crate::limits::LANES;
use crate::message::{Message, Tag, kernel};
use crate::rights::call;
use crate::spin::Spin;
use core::time::Duration;

/// How long a call may wait, and what a signal does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Milliseconds; `None` waits for ever. This bounds the transport. A deadline that belongs to
    /// the call's meaning (`sem_timedwait`) is an argument of the call, kept by the server.
    pub timeout_ms: Option<u32>,
    pub signals: Signals,
}

/// What happens when a signal handler runs while the caller waits (signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// Go on waiting.
    Ignore,
    /// Go on if the handler was installed with SA_RESTART, else cancel the call.
    Restart,
    /// Cancel the call, whatever SA_RESTART says (semop, msgsnd, msgrcv, and timed waits).
    Interrupt,
}

impl Wait {
    /// Until the answer is there.
    pub const FOREVER: Wait = Wait { timeout_ms: None, signals: Signals::Ignore };
    /// As a restartable system call.
    pub const RESTART: Wait = Wait { timeout_ms: None, signals: Signals::Restart };
    /// As a system call that a handler always interrupts.
    pub const INTERRUPT: Wait = Wait { timeout_ms: None, signals: Signals::Interrupt };
}

/// A way to make calls: a port, or something that has one.
pub trait Sendrec {
    /// Sends `message` with the concatenation of `send` as payload to `to`, waits for the answer,
    /// stores it in `message` and its payload in `receive`, and returns the payload's length.
    ///
    /// `tag` and `source` of `message` are set by the port. A reply whose `status` is an errno is
    /// a success here: it is the server's answer.
    ///
    /// # Errors
    /// [`IpcError`]: the answer did not come. A cancelled call that the server had already
    /// executed returns the server's answer, not `Interrupted`.
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError>;
}

impl<T: Sendrec + ?Sized> Sendrec for &T {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        (**self).sendrec(to, message, send, receive, wait)
    }
}

/// A channel as its receiver sees it. Shared memory is one, a queue inside one process (muk2, the simulator) another.
pub trait Channel {
    /// Why no more will come over it, if so.
    fn closed(&self) -> Option<IpcError>;
    /// Is a request or a cancellation waiting, apart from [`Channel::first`]?
    fn has_requests(&self) -> bool;
    /// Is a notification?
    fn is_notified(&self) -> bool {
        false
    }
    /// The tag of the unclaimed request on the first lane, if its requester need not say that there is one.
    fn first(&self) -> Option<Tag> {
        None
    }
    /// What has been posted and given up since the last look.
    fn take_news(&self) -> News;
    /// The notification's value, if there is one.
    fn take_notification(&self) -> Option<u64>;
    /// Did a notification that comes another way ([`Incoming::notification`]) leave before what is here, and has not been
    /// looked for since it came? Then that is first.
    fn is_behind(&self) -> bool {
        false
    }
    /// The request on `lane`, copied.
    fn request(&self, lane: usize) -> Option<Message>;
    /// The payload of the request on `lane`, copied to `out`.
    ///
    /// # Errors
    /// [`IpcError::TooLarge`] if `out` is more than a payload can be.
    fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError>;
    /// The same from `start` of the payload on. Only channels that speak for many need it.
    ///
    /// # Errors
    /// As [`Channel::read_request`].
    fn read_request_at(&self, lane: usize, start: usize, out: &mut [u8]) -> Result<(), IpcError> {
        if start == 0 { self.read_request(lane, out) } else { Err(IpcError::Protocol) }
    }
    /// Claims the request on `lane`, if its requester can take it back. False: it has.
    fn claim(&self, _lane: usize) -> bool {
        true
    }
    /// Takes a claim back. False: the request has been abandoned meanwhile, and is to be answered.
    fn unclaim(&self, _lane: usize) -> bool {
        true
    }
    /// Has the requester abandoned the claimed request on `lane`?
    fn is_abandoned(&self, _lane: usize) -> bool {
        false
    }
    /// Which call is to be given up on a lane of [`News::cancelled`].
    fn cancelled(&self, lane: usize) -> Tag;
    /// Answers the request on `lane`; `by_bell` if the requester is woken by its bell. False: nobody waits for it.
    fn answer(&self, lane: usize, message: &Message, payload: &[u8], by_bell: bool) -> bool;
}

/// Where a receiver sleeps until there is news on one of its channels.
pub trait Rest {
    /// Announces sleep; look once more after this.
    fn prepare(&self) -> u32;
    /// Sleeps until rung, or until `timeout` is over.
    fn sleep(&self, ticket: u32, timeout: Option<Duration>);
    /// Takes the announcement back.
    fn awake(&self);
}

/// One incoming channel of a port, with what the receiver must not take from shared memory.
#[derive(Debug)]
pub struct Inbound<C> {
    pub channel: C,
    /// Who is at the other end. On a trusted channel each message says it itself.
    pub peer: Endpoint,
    /// Names the channel in a [`Received`], for a receiver whose list changes. The receiver's choice.
    pub number: u64,
    is_trusted: bool,
    /// What the peer may do (`rights::call`).
    calls: u32,
    /// Requests posted and not yet received.
    waiting: u64,
    /// Requests received and not yet answered, with their tags.
    open: u64,
    tags: [Tag; LANES],
    /// Which request on the first lane has been looked at, and waits.
    first: Tag,
    /// Nothing is taken from it any more.
    is_cut: bool,
}

/// What `receive` got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub message: Message,
    /// Bytes of payload now in the caller's buffer.
    pub payload_len: usize,
    pub kind: Kind,
    channel: usize,
    number: u64,
    lane: usize,
}

impl Received {
    /// Where in the port's list the channel is over which it came.
    pub fn channel(&self) -> usize {
        self.channel
    }
}

/// How a received message was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By `notify`, with this value.
    Notification(u64),
    /// By `send`: its sender is free again.
    OneWay,
    /// By `sendrec`: its sender waits for [`Port::reply`].
    Request,
    /// The sender of an open request has given it up; reply to it all the same, the answer then decides.
    Cancelled,
    /// By `sendrec`, and received before, where this endpoint was then, or on a channel that is closed. It has no
    /// payload here; its sender waits for [`Port::reply`].
    Again,
}

/// What `receive` is to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Notifications, messages and requests.
    Anything,
    /// Only requests.
    Requests,
    /// Only requests that have been received before.
    Again,
}

/// The receiving half of M3-IPC: its rules, written once for every kind of channel.
///
/// Pending notifications come first, then requests, from the channels in turn so that no sender can
/// keep the others waiting. The channels are the caller's (`list`), in whatever it keeps them in.
#[derive(Debug)]
pub struct Port<R> {
    rest: R,
    next: usize,
    spin: Spin,
}

impl<C> Inbound<C> {
    pub const fn new(channel: C, peer: Endpoint) -> Inbound<C> {
        Inbound {
            channel,
            peer,
            number: 0,
            is_trusted: false,
            calls: call::ALL,
            waiting: 0,
            open: 0,
            tags: [Tag(0); LANES],
            first: Tag(0),
            is_cut: false,
        }
    }

    /// Takes nothing from it any more. (That the channel says it is closed can be undone by whoever writes there.) What is
    /// open can be answered.
    pub const fn cut(&mut self) {
        self.is_cut = true;
    }

    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// As dvkd hands it over, with the bits of `door::flag`.
    pub const fn with_flags(mut self, flags: u32) -> Inbound<C> {
        self.is_trusted = flags & flag::TRUSTED != 0;
        self.calls = flags >> flag::CALLS_SHIFT;
        self
    }

    /// Does the other end speak for many?
    pub const fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    /// Has it requests that are received and not answered?
    pub const fn has_open(&self) -> bool {
        self.open != 0
    }
}

/// The channels of a receiver, and what else it may hear of.
pub trait Incoming {
    type Channel: Channel;

    /// The channels. Between two looks of one `receive` they may change only at the end.
    fn list(&mut self) -> &mut [Inbound<Self::Channel>];

    /// Takes in what else has come: new channels, deaths.
    fn refresh(&mut self) {}

    /// Is there something for [`Incoming::refresh`], or [`Inbound::has_news`]? Who waits for one thing must not be kept
    /// awake by another.
    fn has_news(&mut self, from: Endpoint, want: Want) -> bool;

    /// A notification that came another way than over a channel.
    fn notification(&mut self, _from: Endpoint) -> Option<(Endpoint, u64)> {
        None
    }

    /// Is the one we listen to still there?
    ///
    /// # Errors
    /// Why it cannot send anything any more.
    fn check_source(&mut self, from: Endpoint) -> Result<(), IpcError>;
}

/// Channels that are all there from the beginning.
struct Fixed<'a, C>(&'a mut [Inbound<C>]);

impl<C: Channel> Incoming for Fixed<'_, C> {
    type Channel = C;

    fn list(&mut self) -> &mut [Inbound<C>] {
        self.0
    }
    fn has_news(&mut self, from: Endpoint, want: Want) -> bool {
        self.0.iter().any(|inbound| inbound.has_news(from, want))
    }
    fn check_source(&mut self, from: Endpoint) -> Result<(), IpcError> {
        check_source(self.0, from)
    }
}

impl<R: Rest> Port<R> {
    pub const fn new(rest: R) -> Port<R> {
        Port { rest, next: 0, spin: Spin::new() }
    }

    /// Receives a notification, one-way message or request of `from` ([`Endpoint::ANY`]: of whomever).
    ///
    /// # Errors
    /// [`IpcError::WouldBlock`] (`timeout` zero), [`IpcError::TimedOut`], [`IpcError::SourceDied`] if `from` is gone,
    /// [`IpcError::Stale`] if there is no channel from it.
    pub fn receive<C: Channel>(
        &mut self,
        list: &mut [Inbound<C>],
        from: Endpoint,
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Received, IpcError> {
        self.wait(&mut Fixed(list), from, Want::Anything, payload, timeout)
    }

    /// [`Port::receive`] of a receiver that gets channels while it waits.
    ///
    /// # Errors
    /// [`IpcError::WouldBlock`], [`IpcError::TimedOut`], or what [`Incoming::check_source`] says.
    pub fn receive_in(
        &mut self,
        place: &mut impl Incoming,
        from: Endpoint,
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Received, IpcError> {
        self.wait(place, from, Want::Anything, payload, timeout)
    }

    /// [`Port::rcvrqst`] of a receiver that gets channels while it waits.
    ///
    /// # Errors
    /// As [`Port::receive_in`].
    pub fn rcvrqst_in(
        &mut self,
        place: &mut impl Incoming,
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Received, IpcError> {
        self.wait(place, Endpoint::ANY, Want::Requests, payload, timeout)
    }

    /// Takes in the next request that has been received before ([`Kind::Again`]).
    ///
    /// # Errors
    /// As [`Port::receive_in`].
    pub fn again_in(
        &mut self,
        place: &mut impl Incoming,
        timeout: Option<Duration>,
    ) -> Result<Received, IpcError> {
        self.wait(place, Endpoint::ANY, Want::Again, &mut [], timeout)
    }

    /// Receives a request made by `sendrec`, of whomever.
    ///
    /// # Errors
    /// As [`Port::receive`].
    pub fn rcvrqst<C: Channel>(
        &mut self,
        list: &mut [Inbound<C>],
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Received, IpcError> {
        self.wait(&mut Fixed(list), Endpoint::ANY, Want::Requests, payload, timeout)
    }

    /// Answers a request.
    ///
    /// # Errors
    /// [`IpcError::Protocol`] if `to` is not an open request of this port, [`IpcError::NotWaiting`] if its caller
    /// has given it up.
    pub fn reply<C: Channel>(
        &self,
        list: &mut [Inbound<C>],
        to: &Received,
        message: &Message,
        payload: &[u8],
    ) -> Result<(), IpcError> {
        let is_it = |inbound: &Inbound<C>| inbound.number == to.number;
        let index = match list.get(to.channel).filter(|inbound| is_it(inbound)) {
            Some(_) => to.channel,
            None => list.iter().position(is_it).ok_or(IpcError::Protocol)?,
        };
        let inbound = &mut list[index];
        if inbound.open & 1 << to.lane == 0 || inbound.tags[to.lane] != to.message.tag {
            return Err(IpcError::Protocol);
        }
        inbound.open &= !(1 << to.lane);
        let message = Message { tag: to.message.tag, ..*message };
        let is_awaited = inbound.channel.answer(to.lane, &message, payload, false);
        if is_awaited { Ok(()) } else { Err(IpcError::NotWaiting) }
    }

    /// Is there a message of `from` that has not been received? Then its sender waits.
    pub fn is_sending<C: Channel>(list: &mut [Inbound<C>], from: Endpoint) -> bool {
        list.iter_mut().any(|inbound| inbound.is_sending(from))
    }

    fn wait(
        &mut self,
        place: &mut impl Incoming,
        from: Endpoint,
        want: Want,
        payload: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Received, IpcError> {
        let limit = timeout.map(|timeout| crate::client::now() + timeout);
        loop {
            place.refresh();
            // Only taken if it is wanted.
            if want == Want::Anything
                && let Some((source, value)) = place.notification(from)
            {
                return Ok(notification(source, value, 0));
            }
            if let Some(received) = self.look(place.list(), from, want, payload) {
                return Ok(received);
            }
            place.check_source(from)?;
            let left = limit.map(|limit| limit.saturating_sub(crate::client::now()));
            if left == Some(Duration::ZERO) {
                return Err(if timeout == Some(Duration::ZERO) {
                    IpcError::WouldBlock
                } else {
                    IpcError::TimedOut
                });
            }
            if self.spin.until(|| place.has_news(from, want)) {
                continue;
            }
            let ticket = self.rest.prepare();
            if place.has_news(from, want) || place.check_source(from).is_err() {
                self.rest.awake();
            } else {
                self.rest.sleep(ticket, left);
            }
        }
    }

    /// Takes the next message that fits, if there is one.
    fn look<C: Channel>(
        &mut self,
        list: &mut [Inbound<C>],
        from: Endpoint,
        want: Want,
        payload: &mut [u8],
    ) -> Option<Received> {
        let wanted = |peer: Endpoint| from == Endpoint::ANY || from == peer;
        if want == Want::Anything {
            for (index, inbound) in
                list.iter_mut().enumerate().filter(|(_, inbound)| wanted(inbound.peer))
            {
                if let Some(received) = inbound.notification(index) {
                    return Some(received);
                }
            }
        }
        let count = list.len();
        for turn in 0..count {
            let index = self.next.min(count) + turn;
            let index = if index < count { index } else { index - count };
            let inbound = &mut list[index];
            if !inbound.is_trusted && !wanted(inbound.peer) {
                continue;
            }
            if let Some(received) = inbound.look(index, from, want, payload) {
                self.next = if index + 1 < count { index + 1 } else { 0 };
                return Some(received);
            }
        }
        None
    }
}

impl<C: Channel> Inbound<C> {
    /// Has anything come that has not been looked at, and that one who wants this of `from` would look at?
    #[inline]
    pub fn has_news(&self, from: Endpoint, want: Want) -> bool {
        let is_wanted = from == Endpoint::ANY || from == self.peer;
        !self.is_cut
            && ((self.is_trusted || is_wanted)
                && (self.has_first() || self.channel.has_requests())
                && !self.is_behind(want)
                || is_wanted && want == Want::Anything && self.channel.is_notified())
    }

    /// Is what is here to wait for a notification that left before it?
    #[inline]
    fn is_behind(&self, want: Want) -> bool {
        self.is_trusted && want == Want::Anything && self.channel.is_behind()
    }

    /// The notification of the peer, if there is one. One that it may not send is taken, so that it is no news any more.
    #[inline]
    fn notification(&self, index: usize) -> Option<Received> {
        if self.is_cut {
            return None;
        }
        let value = self.channel.take_notification()?;
        (self.calls & call::NOTIFY != 0 && self.channel.closed().is_none())
            .then(|| notification(self.peer, value, index))
    }

    /// Is there a request on the first lane that has not been looked at?
    #[inline]
    fn has_first(&self) -> bool {
        // A lane with an open request cannot have another one; one that was taken back may be followed by another.
        self.open & 1 == 0
            && self.channel.first().is_some_and(|tag| self.waiting & 1 == 0 || tag != self.first)
    }

    /// Takes in which lanes have something.
    fn take_news(&mut self) -> News {
        let news = self.channel.take_news();
        self.waiting |= news.pending & !self.open;
        if self.has_first() {
            self.waiting |= 1;
        }
        news
    }

    fn look(
        &mut self,
        index: usize,
        from: Endpoint,
        want: Want,
        payload: &mut [u8],
    ) -> Option<Received> {
        if self.is_cut {
            return None;
        }
        let news = self.take_news();
        // Looked for again: what is here may have been sent after a notification that was not there a moment ago.
        if want == Want::Anything && self.waiting != 0 {
            if let Some(received) = self.notification(index) {
                return Some(received);
            }
            if self.is_behind(want) {
                return None;
            }
        }
        // Whoever waited there has been told that its call is over.
        if self.channel.closed().is_some() {
            self.waiting = 0;
            return None;
        }
        // On a trusted channel a lane may have been given up and used again by somebody else meanwhile.
        if !self.is_trusted
            && let Some(lane) = bits(news.cancelled).find(|&lane| self.is_cancelled(lane))
        {
            let tag = self.tags[lane];
            let message = Message { source: self.peer, tag, ..Message::request(0) };
            let kind = Kind::Cancelled;
            return Some(self.received(message, kind, index, lane));
        }
        for lane in bits(self.waiting) {
            let Some(mut message) = self.take(lane, from, want) else { continue };
            let one_way = message.status & ONE_WAY != 0;
            if message.status & RECEIVED != 0 {
                if let Some(received) = self.again(index, lane, message, one_way) {
                    return Some(received);
                }
                continue;
            }
            match self.read(lane, &mut message, payload) {
                Err(error) => {
                    let ended = Message::undelivered(message.call, error);
                    let ended = Message { tag: message.tag, ..ended };
                    self.channel.answer(lane, &ended, &[], false);
                    continue;
                }
                Ok(_) if one_way => {
                    let taken = Message { tag: message.tag, ..Message::request(message.call) };
                    self.channel.answer(lane, &taken, &[], false);
                }
                Ok(_) => {
                    self.open |= 1 << lane;
                    self.tags[lane] = message.tag;
                }
            }
            let kind = if one_way { Kind::OneWay } else { Kind::Request };
            return Some(self.received(message, kind, index, lane));
        }
        None
    }

    /// Takes a message that has been received before: who waits for that is free, who waits for an answer has an
    /// open request here.
    fn again(
        &mut self,
        index: usize,
        lane: usize,
        mut message: Message,
        one_way: bool,
    ) -> Option<Received> {
        if !self.is_trusted {
            message.source = self.peer;
        }
        if one_way {
            let taken = Message { tag: message.tag, ..Message::request(message.call) };
            self.channel.answer(lane, &taken, &[], false);
            return None;
        }
        self.open |= 1 << lane;
        self.tags[lane] = message.tag;
        Some(self.received(message, Kind::Again, index, lane))
    }

    fn received(&self, message: Message, kind: Kind, channel: usize, lane: usize) -> Received {
        let has_payload = !matches!(kind, Kind::Cancelled | Kind::Again);
        let payload_len = if has_payload { message.payload_len as usize } else { 0 };
        Received { message, payload_len, kind, channel, number: self.number, lane }
    }

    /// Claims the request on `lane` if it is wanted, and copies it.
    fn take(&mut self, lane: usize, from: Endpoint, want: Want) -> Option<Message> {
        // Whoever takes anything need not look before.
        let is_choosy = want != Want::Anything || (self.is_trusted && from != Endpoint::ANY);
        if is_choosy {
            let Some(seen) = self.channel.request(lane) else {
                self.waiting &= !(1 << lane);
                return None;
            };
            if !self.is_wanted(&seen, from, want) {
                self.leave(lane, seen.tag);
                return None;
            }
        }
        self.waiting &= !(1 << lane);
        if !self.channel.claim(lane) {
            return None;
        }
        let Some(taken) = self.channel.request(lane) else {
            self.free(lane);
            return None;
        };
        // What was looked at may have been taken back and replaced before the claim.
        if !is_choosy || self.is_wanted(&taken, from, want) {
            return Some(taken);
        }
        if self.channel.unclaim(lane) {
            self.leave(lane, taken.tag);
        } else {
            self.free(lane);
        }
        None
    }

    /// The request on a claimed lane has been given up since: the lane is free when that has been answered.
    fn free(&self, lane: usize) {
        let ended = Message::undelivered(0, IpcError::NotWaiting);
        self.channel.answer(lane, &ended, &[], false);
    }

    /// A request has been looked at, and waits.
    fn leave(&mut self, lane: usize, tag: Tag) {
        self.waiting |= 1 << lane;
        if lane == 0 {
            self.first = tag;
        }
    }

    fn is_wanted(&self, message: &Message, from: Endpoint, want: Want) -> bool {
        // Whatever is waited for, what was received before is to be known of.
        if message.status & RECEIVED != 0 || want == Want::Again {
            return message.status & RECEIVED != 0;
        }
        let source = if self.is_trusted { message.source } else { self.peer };
        (from == Endpoint::ANY || from == source)
            && (want == Want::Anything || message.status & ONE_WAY == 0)
    }

    /// Checks a claimed request and copies its payload; sets source and length in `message`.
    fn read(&self, lane: usize, message: &mut Message, payload: &mut [u8]) -> Result<(), IpcError> {
        let needed = if message.status & ONE_WAY != 0 { call::SEND } else { call::SENDREC };
        if self.calls & needed == 0 {
            return Err(IpcError::Denied);
        }
        let len = message.payload_len as usize;
        let start = if self.is_trusted { self.skip_cred(lane, len)? } else { 0 };
        if !self.is_trusted {
            message.source = self.peer;
        }
        let own = payload.get_mut(..len - start).ok_or(IpcError::TooLarge)?;
        self.channel.read_request_at(lane, start, own)?;
        message.payload_len = u32::try_from(len - start).map_err(|_| IpcError::TooLarge)?;
        Ok(())
    }

    /// Where the payload begins behind the caller's credentials.
    fn skip_cred(&self, lane: usize, len: usize) -> Result<usize, IpcError> {
        let mut head = [0; CRED_SIZE_MAX];
        let head = &mut head[..len.min(CRED_SIZE_MAX)];
        self.channel.read_request(lane, head)?;
        let (_, rest) = Cred::decode(head).ok_or(IpcError::Protocol)?;
        Ok(head.len() - rest.len())
    }

    fn is_sending(&mut self, from: Endpoint) -> bool {
        if self.is_cut || !self.is_trusted && self.peer != from {
            return false;
        }
        self.take_news();
        bits(self.waiting).any(|lane| {
            let seen = self.channel.request(lane);
            seen.is_some_and(|message| self.is_wanted(&message, from, Want::Anything))
        })
    }

    fn is_cancelled(&self, lane: usize) -> bool {
        self.open & 1 << lane != 0 && self.channel.cancelled(lane) == self.tags[lane]
    }
}

fn notification(source: Endpoint, value: u64, channel: usize) -> Received {
    let message = Message { source, ..Message::request(kernel::NOTIFY) };
    let kind = Kind::Notification(value);
    Received { message, payload_len: 0, kind, channel, number: 0, lane: 0 }
}

/// Bits of a request's `status`. The sender waits only until it is received.
pub const ONE_WAY: u16 = 1;
/// It has been received before: the channel over which it came was closed because its receiver is moving.
pub const RECEIVED: u16 = 2;

/// What of a request's `status` may come from its sender.
pub const fn way(status: u16) -> u16 {
    status & (ONE_WAY | RECEIVED)
}

/// Sends a one-way message and waits until it is received (rendezvous).
///
/// # Errors
/// As [`Sendrec::sendrec`].
pub fn send(
    port: &(impl Sendrec + ?Sized),
    to: Endpoint,
    message: &Message,
    payload: &[u8],
    wait: Wait,
) -> Result<(), IpcError> {
    let mut copy = Message { status: ONE_WAY, ..*message };
    port.sendrec(to, &mut copy, &[payload], &mut [], wait).map(|_| ())
}

/// Is the one we listen to still there?
fn check_source<C: Channel>(list: &[Inbound<C>], from: Endpoint) -> Result<(), IpcError> {
    if from == Endpoint::ANY {
        return Ok(());
    }
    let mut known = list.iter().filter(|inbound| inbound.peer == from).peekable();
    if known.peek().is_none() {
        return Err(IpcError::Stale);
    }
    if known.all(|inbound| inbound.is_cut || inbound.channel.closed().is_some()) {
        Err(IpcError::SourceDied)
    } else {
        Ok(())
    }
}

/// The numbers of the bits that are set.
pub fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(bit as usize)
    })
}

impl Channel for SharedChannel {
    fn closed(&self) -> Option<IpcError> {
        SharedChannel::closed(self)
    }
    fn has_requests(&self) -> bool {
        SharedChannel::has_requests(self)
    }
    fn is_notified(&self) -> bool {
        SharedChannel::is_notified(self)
    }
    fn first(&self) -> Option<Tag> {
        SharedChannel::first(self)
    }
    fn take_news(&self) -> News {
        SharedChannel::take_news(self)
    }
    fn take_notification(&self) -> Option<u64> {
        SharedChannel::take_notification(self)
    }
    fn request(&self, lane: usize) -> Option<Message> {
        SharedChannel::request(self, lane)
    }
    fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError> {
        SharedChannel::read_request(self, lane, out)
    }
    fn read_request_at(&self, lane: usize, start: usize, out: &mut [u8]) -> Result<(), IpcError> {
        SharedChannel::read_request_at(self, lane, start, out)
    }
    fn claim(&self, lane: usize) -> bool {
        SharedChannel::claim(self, lane)
    }
    fn unclaim(&self, lane: usize) -> bool {
        SharedChannel::unclaim(self, lane)
    }
    fn is_abandoned(&self, lane: usize) -> bool {
        SharedChannel::is_abandoned(self, lane)
    }
    fn cancelled(&self, lane: usize) -> Tag {
        SharedChannel::cancelled(self, lane)
    }
    fn answer(&self, lane: usize, message: &Message, payload: &[u8], by_bell: bool) -> bool {
        SharedChannel::answer(self, lane, message, payload, by_bell)
    }
}

impl Rest for Bell {
    fn prepare(&self) -> u32 {
        Bell::prepare(self)
    }
    fn sleep(&self, ticket: u32, timeout: Option<Duration>) {
        Bell::sleep(self, ticket, timeout);
    }
    fn awake(&self) {
        Bell::awake(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{self, Poll, Withdrawn};
    use core::cell::Cell;
    use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use rustix::fd::AsFd;
    use std::rc::Rc;
    use std::vec::Vec;

    const ALICE: Endpoint = Endpoint { slot: 10, generation: 1 };
    const BOB: Endpoint = Endpoint { slot: 11, generation: 1 };

    /// A port with a channel from Alice and one from Bob, and their ends.
    struct World {
        port: Port<Bell>,
        list: Vec<Inbound<SharedChannel>>,
        ends: [SharedChannel; 2],
    }

    fn world() -> World {
        let (bell, _) = Bell::create().expect("memfd");
        let fds = [ALICE, BOB].map(|_| channel::create().expect("memfd"));
        let ends = [0, 1].map(|end| SharedChannel::map(fds[end].as_fd()).expect("map"));
        let list = [ALICE, BOB].into_iter().zip(&fds);
        let list =
            list.map(|(peer, fd)| Inbound::new(SharedChannel::map(fd.as_fd()).expect("map"), peer));
        World { port: Port::new(bell), list: list.collect(), ends }
    }

    impl World {
        fn receive(&mut self, from: Endpoint) -> Result<(Endpoint, Kind, u16), IpcError> {
            let mut payload = [0; 16];
            let got =
                self.port.receive(&mut self.list, from, &mut payload, Some(Duration::ZERO))?;
            Ok((got.message.source, got.kind, got.message.call))
        }

        /// The next request, of whomever.
        fn requests(&mut self) -> Option<u16> {
            let got = self.port.rcvrqst(&mut self.list, &mut [], Some(Duration::ZERO));
            got.ok().map(|got| got.message.call)
        }
    }

    fn request(call: u16, lane: u16) -> Message {
        Message { tag: Tag::new(lane, 1), ..Message::request(call) }
    }

    #[test]
    fn notifications_come_first_and_senders_take_turns() {
        let mut world = world();
        for lane in 0..2 {
            world.ends[0].post(lane, &request(7, 0), &[]).expect("posted");
        }
        world.ends[1].post(0, &request(8, 0), &[]).expect("posted");
        world.ends[1].notify(99).expect("left");
        assert_eq!(world.ends[1].notify(98), Err(IpcError::Overrun));
        assert_eq!(world.receive(Endpoint::ANY), Ok((BOB, Kind::Notification(99), kernel::NOTIFY)));
        assert_eq!(world.receive(Endpoint::ANY), Ok((ALICE, Kind::Request, 7)));
        assert_eq!(world.receive(Endpoint::ANY), Ok((BOB, Kind::Request, 8)));
        assert_eq!(world.receive(Endpoint::ANY), Ok((ALICE, Kind::Request, 7)));
        assert_eq!(world.receive(Endpoint::ANY), Err(IpcError::WouldBlock));
    }

    #[test]
    fn receive_from_one_leaves_the_others_waiting() {
        let mut world = world();
        world.ends[0].post(0, &request(7, 0), &[]).expect("posted");
        assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
        assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Request, 7)));
        assert_eq!(world.receive(Endpoint::new(crate::NodeId(9), 9, 9)), Err(IpcError::Stale));
    }

    #[test]
    fn a_one_way_message_frees_its_sender_when_received_and_rcvrqst_passes_it_by() {
        let mut world = world();
        world.ends[0]
            .post(0, &Message { status: ONE_WAY, ..request(7, 0) }, &[b"hi"])
            .expect("posted");
        let mut payload = [0; 16];
        let zero = Some(Duration::ZERO);
        assert_eq!(
            world.port.rcvrqst(&mut world.list, &mut payload, zero).err(),
            Some(IpcError::WouldBlock)
        );
        assert_eq!(world.ends[0].poll_answered(0), Poll::Open);
        let got = world.port.receive(&mut world.list, ALICE, &mut payload, zero).expect("there");
        assert_eq!((got.kind, &payload[..got.payload_len]), (Kind::OneWay, &b"hi"[..]));
        assert!(
            matches!(world.ends[0].poll_answered(0), Poll::Answered(message) if message.status == 0)
        );
        assert_eq!(
            world.port.reply(&mut world.list, &got, &request(7, 0), &[]),
            Err(IpcError::Protocol)
        );
    }

    #[test]
    fn a_reply_goes_to_its_request_once_and_keeps_its_tag() {
        let mut world = world();
        world.ends[0].post(3, &request(7, 3), &[]).expect("posted");
        let mut payload = [0; 16];
        let got = world.port.rcvrqst(&mut world.list, &mut payload, None).expect("there");
        let answer = Message::request(7);
        assert_eq!(world.port.reply(&mut world.list, &got, &answer, b"yes"), Ok(()));
        assert_eq!(
            world.port.reply(&mut world.list, &got, &answer, b"no"),
            Err(IpcError::Protocol)
        );
        let Poll::Answered(message) = world.ends[0].poll_answered(3) else { panic!("answered") };
        assert_eq!((message.tag, message.payload_len), (Tag::new(3, 1), 3));
    }

    #[test]
    fn a_requester_that_posts_twice_or_lies_about_its_payload_harms_only_itself() {
        let mut world = world();
        world.ends[0].post(0, &request(7, 0), &[]).expect("posted");
        assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Request, 7)));
        world.ends[0].post(0, &request(9, 0), &[]).expect("posted again");
        assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
        world.ends[1].post(1, &request(7, 1), &[&[0; 17]]).expect("posted");
        assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
        assert!(matches!(world.ends[1].poll_answered(1), Poll::Answered(message)
            if message.outcome() == Err(IpcError::TooLarge)));
    }

    #[test]
    fn a_call_given_up_is_told_once_and_only_while_it_is_open() {
        let mut world = world();
        world.ends[0].post(0, &request(7, 0), &[]).expect("posted");
        world.ends[0].cancel(0, Tag::new(0, 1));
        world.ends[0].cancel(5, Tag::new(5, 1));
        assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Request, 7)));
        world.ends[0].cancel(0, Tag::new(0, 77));
        assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
        world.ends[0].cancel(0, Tag::new(0, 1));
        assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Cancelled, 0)));
        assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
    }

    #[test]
    fn a_source_that_died_ends_receive_and_a_wait_ends_in_time() {
        let mut world = world();
        let wait = Some(Duration::from_millis(5));
        let ended = world.port.receive(&mut world.list, ALICE, &mut [], wait);
        assert_eq!(ended.err(), Some(IpcError::TimedOut));
        world.ends[0].close(IpcError::SourceDied);
        assert_eq!(world.receive(ALICE), Err(IpcError::SourceDied));
        assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
    }

    #[test]
    fn a_request_is_taken_back_until_it_is_received_and_abandoned_after_that() {
        let mut world = world();
        let end = |world: &World| world.ends[0].withdraw(0);
        world.ends[0].post(0, &request(7, 0), &[]).expect("posted");
        assert_eq!(end(&world), Withdrawn::Unseen);
        assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
        world.ends[0].post(0, &request(8, 0), &[]).expect("posted again");
        let mut payload = [0; 16];
        let got = world.port.rcvrqst(&mut world.list, &mut payload, None).expect("there");
        assert_eq!((end(&world), world.ends[0].is_idle(0)), (Withdrawn::Abandoned, false));
        let reply = world.port.reply(&mut world.list, &got, &request(8, 0), b"late");
        assert_eq!(reply, Err(IpcError::NotWaiting));
        assert_eq!(
            (world.ends[0].poll_answered(0), world.ends[0].is_idle(0)),
            (Poll::Vacant, true)
        );
        world.ends[0].post(0, &request(9, 0), &[]).expect("the lane is free");
        let got = world.port.rcvrqst(&mut world.list, &mut payload, None).expect("there");
        assert_eq!(world.port.reply(&mut world.list, &got, &request(9, 0), b"in time"), Ok(()));
        assert_eq!(end(&world), Withdrawn::TooLate);
    }

    #[test]
    fn a_request_on_the_first_lane_is_found_without_a_bit_and_is_news_once() {
        let mut world = world();
        world.ends[0].post_first(&request(7, 0), &[]).expect("posted");
        assert!(
            !world.list[0].channel.has_news()
                && world.list[0].has_news(Endpoint::ANY, Want::Anything)
        );
        assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
        assert!(world.list[0].has_news(Endpoint::ANY, Want::Anything), "nobody has looked at it");
        assert_eq!(world.receive(Endpoint::ANY), Ok((ALICE, Kind::Request, 7)));
        // One that is not wanted waits, and is no reason to look again; the next one is.
        let one_way = |sequence| Message {
            status: ONE_WAY,
            tag: Tag::new(0, sequence),
            ..Message::request(8)
        };
        world.ends[1].post_first(&one_way(1), &[]).expect("posted");
        assert_eq!(world.requests(), None);
        assert!(!world.list[1].has_news(Endpoint::ANY, Want::Anything), "it waits");
        assert_eq!(world.ends[1].withdraw(0), Withdrawn::Unseen);
        world.ends[1].post_first(&one_way(2), &[]).expect("posted");
        assert!(world.list[1].has_news(Endpoint::ANY, Want::Anything), "another one");
        assert!(Port::<Bell>::is_sending(&mut world.list, BOB));
        assert_eq!(world.requests(), None);
        assert!(!world.list[1].has_news(Endpoint::ANY, Want::Anything), "it waits, too");
        assert_eq!(world.receive(BOB), Ok((BOB, Kind::OneWay, 8)));
        // A lane that is open, or of a closed channel, has no news whatever its requester writes there.
        world.ends[0].post_first(&request(9, 0), &[]).expect("posted again");
        assert!(!world.list[0].has_news(Endpoint::ANY, Want::Anything));
        world.ends[1].post_first(&one_way(3), &[]).expect("posted");
        world.ends[1].close(IpcError::Denied);
        world.ends[1].lane_as_posted(0);
        assert!(!world.list[1].has_news(Endpoint::ANY, Want::Anything));
    }

    /// The requester looks whether the receiver sleeps after it has posted, the receiver at the lane after it has said
    /// that it sleeps: one of them sees the other.
    #[test]
    fn no_request_on_the_first_lane_is_missed_between_deciding_and_sleeping() {
        const ROUNDS: u64 = 20_000;
        let (bell, bell_fd) = Bell::create().expect("memfd");
        let ringer = crate::bell::Ringer::map(bell_fd.as_fd()).expect("a bell");
        let fd = channel::create().expect("memfd");
        let end = SharedChannel::map(fd.as_fd()).expect("map");
        let mut list = [Inbound::new(SharedChannel::map(fd.as_fd()).expect("map"), ALICE)];
        let mut port = Port::new(bell);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also when the receiver fails.
            let _over = Over(&is_over);
            scope.spawn(|| {
                for sequence in 1..=ROUNDS {
                    let tag = Tag::new(0, sequence);
                    let message = Message { tag, ..Message::request(7) };
                    end.post_first(&message, &[]).expect("posted");
                    while !ringer.ring() && !is_over.load(Ordering::Relaxed) {}
                    let mut looks = 0u32;
                    while !end.is_answered(0, tag) && !is_over.load(Ordering::Relaxed) {
                        looks += 1;
                        if looks > 10_000 {
                            std::thread::yield_now();
                        }
                    }
                    // Until about when the receiver goes to sleep, a little sooner or later each time.
                    for step in 0..sequence % 512 {
                        std::hint::black_box(step);
                    }
                }
            });
            // A minute is "for ever": a ring that gets lost shows as the end of this wait.
            let limit = Some(Duration::from_secs(60));
            for _ in 0..ROUNDS {
                port.spin = Spin::sleepy();
                let start = std::time::Instant::now();
                let got = port.rcvrqst(&mut list, &mut [], limit).expect("a request");
                assert!(start.elapsed() < Duration::from_secs(60), "a ring got lost");
                port.reply(&mut list, &got, &Message::request(7), &[]).expect("it waits");
            }
        });
    }

    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Counts how often the receiver comes to sleep, which takes no time.
    struct Sleeps(AtomicU32);

    impl Rest for &Sleeps {
        fn prepare(&self) -> u32 {
            0
        }
        fn sleep(&self, _ticket: u32, _timeout: Option<Duration>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn awake(&self) {
            panic!("there is nothing to stay awake for");
        }
    }

    #[test]
    fn who_waits_for_one_thing_sleeps_though_another_has_come() {
        let world = world();
        let (mut list, ends) = (world.list, world.ends);
        ends[0].post_first(&request(1, 0), &[]).expect("posted");
        ends[0].post(3, &request(2, 3), &[]).expect("posted");
        let sleeps = Sleeps(AtomicU32::new(0));
        let mut port = Port::new(&sleeps);
        let soon = Some(Duration::from_millis(5));
        port.spin = Spin::sleepy();
        // Alice's requests are not Bob's; Bob's notification is no request.
        let nothing = port.receive(&mut list, BOB, &mut [], soon);
        assert_eq!(nothing.err(), Some(IpcError::TimedOut));
        assert!(sleeps.0.swap(0, Ordering::Relaxed) > 0);
        ends[1].notify(5).expect("left");
        port.spin = Spin::sleepy();
        let nothing = port.rcvrqst(&mut list[1..], &mut [], soon);
        assert_eq!(nothing.err(), Some(IpcError::TimedOut));
        assert!(sleeps.0.load(Ordering::Relaxed) > 0);
    }

    /// A channel whose requester gives each request up as soon as it has been claimed.
    struct Hasty(SharedChannel);

    impl Channel for Hasty {
        fn closed(&self) -> Option<IpcError> {
            self.0.closed()
        }
        fn has_requests(&self) -> bool {
            self.0.has_requests()
        }
        fn take_news(&self) -> News {
            self.0.take_news()
        }
        fn take_notification(&self) -> Option<u64> {
            None
        }
        fn request(&self, lane: usize) -> Option<Message> {
            self.0.request(lane)
        }
        fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError> {
            self.0.read_request(lane, out)
        }
        fn claim(&self, lane: usize) -> bool {
            let is_claimed = self.0.claim(lane);
            assert_eq!(self.0.withdraw(lane), Withdrawn::Abandoned);
            is_claimed
        }
        fn unclaim(&self, lane: usize) -> bool {
            self.0.unclaim(lane)
        }
        fn cancelled(&self, lane: usize) -> Tag {
            self.0.cancelled(lane)
        }
        fn answer(&self, lane: usize, message: &Message, payload: &[u8], by_bell: bool) -> bool {
            self.0.answer(lane, message, payload, by_bell)
        }
    }

    /// A channel whose requester notifies and calls just after one has looked for notifications.
    struct Late {
        channel: SharedChannel,
        end: SharedChannel,
        has_looked: Cell<bool>,
        is_behind: Rc<Cell<bool>>,
    }

    impl Channel for Late {
        fn closed(&self) -> Option<IpcError> {
            self.channel.closed()
        }
        fn has_requests(&self) -> bool {
            self.channel.has_requests()
        }
        fn take_news(&self) -> News {
            self.channel.take_news()
        }
        fn take_notification(&self) -> Option<u64> {
            let taken = self.channel.take_notification();
            if !self.has_looked.replace(true) {
                self.end.notify(5).expect("left");
                self.end.post(1, &request(7, 1), &[]).expect("posted");
            }
            taken
        }
        fn is_behind(&self) -> bool {
            self.is_behind.get()
        }
        fn request(&self, lane: usize) -> Option<Message> {
            self.channel.request(lane)
        }
        fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError> {
            self.channel.read_request(lane, out)
        }
        fn read_request_at(
            &self,
            lane: usize,
            start: usize,
            out: &mut [u8],
        ) -> Result<(), IpcError> {
            self.channel.read_request_at(lane, start, out)
        }
        fn cancelled(&self, lane: usize) -> Tag {
            self.channel.cancelled(lane)
        }
        fn answer(&self, lane: usize, message: &Message, payload: &[u8], by_bell: bool) -> bool {
            self.channel.answer(lane, message, payload, by_bell)
        }
    }

    fn late(is_behind: bool) -> (Late, Rc<Cell<bool>>) {
        let fd = channel::create().expect("memfd");
        let [channel, end] = [(); 2].map(|()| SharedChannel::map(fd.as_fd()).expect("map"));
        let is_behind = Rc::new(Cell::new(is_behind));
        let behind = Rc::clone(&is_behind);
        (Late { channel, end, has_looked: Cell::new(false), is_behind: behind }, is_behind)
    }

    #[test]
    fn a_notification_comes_before_the_request_that_was_made_after_it() {
        let sleeps = Sleeps(AtomicU32::new(0));
        let mut port = Port::new(&sleeps);
        let mut list = [Inbound::new(late(false).0, ALICE)];
        let now = Some(Duration::ZERO);
        let first = port.receive(&mut list, Endpoint::ANY, &mut [], now).expect("a notification");
        assert_eq!((first.kind, first.message.source), (Kind::Notification(5), ALICE));
        let second = port.receive(&mut list, Endpoint::ANY, &mut [], now).expect("a request");
        assert_eq!((second.kind, second.message.call), (Kind::Request, 7));
    }

    #[test]
    fn what_is_behind_a_notification_on_another_way_waits_for_it_and_wakes_nobody() {
        let sleeps = Sleeps(AtomicU32::new(0));
        let mut port = Port::new(&sleeps);
        let (channel, is_behind) = late(true);
        let flags = flag::TRUSTED | call::ALL << flag::CALLS_SHIFT;
        let mut cred = [0; CRED_SIZE_MAX];
        let len = Cred::ROOT.encode(&mut cred);
        channel.has_looked.set(true);
        let message = Message { source: BOB, ..request(7, 1) };
        channel.end.post(1, &message, &[&cred[..len]]).expect("posted");
        let mut list = [Inbound::new(channel, ALICE).with_flags(flags)];
        port.spin = Spin::sleepy();
        let soon = Some(Duration::from_millis(5));
        let nothing = port.receive(&mut list, Endpoint::ANY, &mut [], soon);
        assert_eq!(nothing.err(), Some(IpcError::TimedOut));
        assert!(sleeps.0.load(Ordering::Relaxed) > 0);
        is_behind.set(false);
        let got = port.receive(&mut list, Endpoint::ANY, &mut [], Some(Duration::ZERO));
        assert_eq!(got.expect("a request").message.call, 7);
    }

    #[test]
    fn a_lane_that_is_given_up_between_the_claim_and_the_copy_is_free_again() {
        let (bell, _) = Bell::create().expect("memfd");
        let mut port = Port::new(bell);
        let fd = channel::create().expect("memfd");
        let end = SharedChannel::map(fd.as_fd()).expect("map");
        let mut list = [Inbound::new(Hasty(SharedChannel::map(fd.as_fd()).expect("map")), ALICE)];
        for _ in 0..2 {
            end.post(1, &request(1, 1), &[]).expect("posted");
            let nothing = port.receive(&mut list, Endpoint::ANY, &mut [], Some(Duration::ZERO));
            assert_eq!(nothing.err(), Some(IpcError::WouldBlock));
            assert!(end.is_idle(1));
        }
    }

    #[test]
    fn a_trusted_channel_brings_messages_of_many_behind_their_credentials() {
        let mut world = world();
        let inbound = world.list.remove(0);
        let flags = flag::TRUSTED | call::ALL << flag::CALLS_SHIFT;
        world.list.push(inbound.with_flags(flags));
        let far = Endpoint::new(crate::NodeId(9), 9, 9);
        let mut cred = [0; CRED_SIZE_MAX];
        let len = Cred::new(1, 2, 3).with_groups([4, 5]).encode(&mut cred);
        let message = Message { source: far, ..request(7, 0) };
        world.ends[0].post(0, &message, &[&cred[..len], b"payload"]).expect("posted");
        assert!(Port::<Bell>::is_sending(&mut world.list, far));
        assert!(!Port::<Bell>::is_sending(&mut world.list, BOB));
        assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
        let mut payload = [0; 16];
        let got = world.port.receive(&mut world.list, far, &mut payload, None).expect("there");
        assert_eq!((got.message.source, &payload[..got.payload_len]), (far, &b"payload"[..]));
        world.ends[0].post(1, &message, &[&cred[..len - 1]]).expect("posted");
        assert_eq!(world.receive(Endpoint::ANY), Err(IpcError::WouldBlock));
        assert!(matches!(world.ends[0].poll_answered(1), Poll::Answered(message)
            if message.outcome() == Err(IpcError::Protocol)));
    }

    #[test]
    fn what_a_peer_may_not_send_and_what_a_closed_channel_has_is_not_received() {
        let mut world = world();
        let inbound = world.list.remove(0);
        world.list.insert(0, inbound.with_flags(call::SENDREC << flag::CALLS_SHIFT));
        let one_way = Message { status: ONE_WAY, ..request(7, 0) };
        world.ends[0].post(0, &one_way, &[]).expect("posted");
        world.ends[0].notify(5).expect("left");
        assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
        assert!(matches!(world.ends[0].poll_answered(0), Poll::Answered(message)
            if message.outcome() == Err(IpcError::Denied)));
        world.ends[0].post(1, &request(8, 1), &[]).expect("posted");
        assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Request, 8)));
        world.ends[1].post(0, &request(9, 0), &[]).expect("posted");
        world.ends[1].close(IpcError::Denied);
        assert_eq!(world.receive(Endpoint::ANY), Err(IpcError::WouldBlock));
        assert!(!world.list[1].channel.has_news(), "nothing to look for any more");
    }
}
