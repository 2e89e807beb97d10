//! `Port`: send, receive, sendrec, rcvrqst, reply and notify, written once above `Channel`.

use crate::bell::Bell;
use crate::channel::{News, SharedChannel};
use crate::cred::{CRED_SIZE_MAX, Cred};
use crate::door::flag;
use crate::endpoint::Endpoint;
use crate::errno::IpcError;
use crate::interrupt::Interrupt;
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

/// One of several calls that are made at once ([`Sendrec::sendrec_all`]).
#[derive(Debug)]
pub struct Part<'a> {
    pub message: Message,
    pub send: &'a [&'a [u8]],
    pub receive: &'a mut [u8],
    /// The length of what is in `receive` afterwards.
    pub outcome: Result<usize, IpcError>,
}

/// Who must know what becomes of a call, also if this process dies.
pub trait Note {
    /// It is about to be made, with this tag: nobody can have seen the request yet.
    fn asked(&mut self, tag: Tag);
    /// It is answered; no other call has its lane yet.
    fn answered(&mut self, answer: &Message, payload: &[u8]);
    /// It has ended without an answer.
    fn failed(&mut self, error: IpcError);
}

/// Tells what has become of a call.
pub(crate) fn tell(
    note: &mut dyn Note,
    outcome: &Result<usize, IpcError>,
    answer: &Message,
    payload: &[u8],
) {
    match outcome {
        Ok(len) => note.answered(answer, &payload[..(*len).min(payload.len())]),
        Err(error) => note.failed(*error),
    }
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

    /// As [`Sendrec::sendrec`] without a limit, and `note` is told what becomes of the call: of its tag only if a later process can go on with
    /// it ([`crate::client::Client::resume`]).
    ///
    /// # Errors
    /// As there.
    fn sendrec_noted(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> Result<usize, IpcError> {
        let outcome = self.sendrec(to, message, send, receive, Wait::FOREVER);
        tell(note, &outcome, message, receive);
        outcome
    }

    /// Goes on with call `tag`, of number `call`, that an earlier process has made ([`crate::client::Client::resume`]), and tells `note` what becomes of it.
    /// False: it is not known to have been made.
    fn resume(
        &self,
        _tag: Tag,
        _call: u16,
        _send: &mut [u8],
        _receive: &mut [u8],
        _note: &mut dyn Note,
    ) -> bool {
        false
    }

    /// As [`Sendrec::sendrec_noted`], a call that an earlier process may have made with the tag that is in `message`: with the same, so that it is executed once.
    ///
    /// # Errors
    /// As [`Sendrec::sendrec`].
    fn repeat(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> Result<usize, IpcError> {
        self.sendrec_noted(to, message, send, receive, note)
    }

    /// Nobody repeats call `tag` that an earlier process may have made.
    fn leave(&self, _tag: Tag) {}

    /// As [`Sendrec::sendrec`] without a limit, but `interrupt` cancels the call as a signal does. A port that cannot do
    /// that waits for the answer.
    ///
    /// # Errors
    /// As there; [`IpcError::WokenUp`] if it was interrupted, and not executed.
    fn sendrec_until(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        _interrupt: &Interrupt,
    ) -> Result<usize, IpcError> {
        self.sendrec(to, message, send, receive, Wait::FOREVER)
    }

    /// Makes several calls to one receiver without waiting for one before the next is under way, where the port can do
    /// that, and waits for all answers. They may be received in any order. Each part has its outcome, as of
    /// [`Sendrec::sendrec`], afterwards.
    fn sendrec_all(&self, to: Endpoint, parts: &mut [Part<'_>], wait: Wait) {
        for part in parts {
            part.outcome = self.sendrec(to, &mut part.message, part.send, part.receive, wait);
        }
    }

    /// Cancels the call that is made with `interrupt` on this port. A thread that is about to sleep may not notice: to be
    /// repeated until the call has ended.
    fn interrupt(&self, _interrupt: &Interrupt) {}
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

    fn sendrec_noted(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> Result<usize, IpcError> {
        (**self).sendrec_noted(to, message, send, receive, note)
    }

    fn resume(
        &self,
        tag: Tag,
        call: u16,
        send: &mut [u8],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> bool {
        (**self).resume(tag, call, send, receive, note)
    }

    fn repeat(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        note: &mut dyn Note,
    ) -> Result<usize, IpcError> {
        (**self).repeat(to, message, send, receive, note)
    }

    fn leave(&self, tag: Tag) {
        (**self).leave(tag);
    }

    fn sendrec_until(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        interrupt: &Interrupt,
    ) -> Result<usize, IpcError> {
        (**self).sendrec_until(to, message, send, receive, interrupt)
    }

    fn sendrec_all(&self, to: Endpoint, parts: &mut [Part<'_>], wait: Wait) {
        (**self).sendrec_all(to, parts, wait);
    }

    fn interrupt(&self, interrupt: &Interrupt) {
        (**self).interrupt(interrupt);
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
    /// There was something to receive.
    fn found(&self) {}
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
                self.rest.found();
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
mod tests;
