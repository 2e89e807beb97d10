//! The daemon as one end of channels: receiver for processes of other nodes, requester for callers of other nodes.
//!
//! One thread sleeps on the daemon's bell. It finds requests on the channels of local processes and gives them to
//! the kernel, which makes frames of them; and answers of local servers, which become frames as well.

use super::held::Lanes;
use super::links::Pump;
use super::node::{Node, Place, Shared};
use super::quota::Counted;
use crate::host::solo::{check_lane, monotonic};
use crate::kernel::Input;
use crate::limits::{
    COURIERS_MAX, LINK_RECENT, LINKS_LED, LOOK_AROUND, LOOK_SWITCH, PROXIES_MAX, RING_AGAIN,
};
use crate::server::Nanos;
use m3ipc::bell::Ringer;
use m3ipc::channel::{Poll, SharedChannel, Withdrawn};
use m3ipc::limits::{CHANNELS_PER_PEER, LANES, PAYLOAD_AREA, PAYLOAD_MAX};
use m3ipc::port::{bits, way};
use m3ipc::spin::Spin;
use m3ipc::{CallId, Cred, DcId, Endpoint, IpcError, Message, NodeId};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Channels of local processes with receivers on other nodes. This daemon receives.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    list: Vec<Arc<Proxy>>,
    /// The open call of each lane.
    lanes: BTreeMap<(u64, usize), CallId>,
    open: BTreeMap<(DcId, CallId), (Arc<Proxy>, usize)>,
    /// Those whose receiver is on this node now: they are closed when no call is open there.
    retiring: BTreeSet<u64>,
    next: u64,
    version: Version,
}

/// Grows when there are other channels to look at, before anybody can have posted on them.
pub(super) type Version = Arc<AtomicU64>;

/// One such channel.
#[derive(Debug)]
pub(super) struct Proxy {
    number: u64,
    channel: SharedChannel,
    dc: DcId,
    requester: Endpoint,
    to: Endpoint,
    cred: Cred,
    /// Each request brings its own credentials.
    is_trusted: bool,
    /// Lanes with requests that wait (`super::held`).
    pub(super) held: Lanes,
    /// For its requester's user.
    _counted: Counted,
}

/// Who makes the calls on such a channel.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) dc: DcId,
    pub(super) requester: Endpoint,
    pub(super) cred: Cred,
    pub(super) is_trusted: bool,
    pub(super) counted: Counted,
}

/// Channels with local receivers, over which calls of other nodes are made: each node has its own.
///
/// A receiver that is told that a node is gone must have taken what that had asked before, and nothing it asks
/// later: then the node's channels retire. They bring no more requests, and the channel for the next is handed over by
/// the socket on which the receiver hears of the death, and so after it.
#[derive(Debug, Default)]
pub(super) struct Couriers {
    places: BTreeMap<Place, Vec<CourierLanes>>,
    open: BTreeMap<(DcId, CallId), (Arc<Courier>, usize)>,
    /// Calls that have been made so far.
    pub(super) posted: usize,
    /// Where answers are copied to, for a moment.
    buffer: Vec<u8>,
    version: Version,
}

/// A courier, and the open call of each lane.
#[derive(Debug)]
struct CourierLanes {
    courier: Arc<Courier>,
    is_retired: bool,
    busy: u64,
    calls: [Option<CallId>; LANES],
    /// The calls' numbers, for the answer if there is none.
    numbers: [u16; LANES],
}

/// One such channel.
#[derive(Debug)]
pub(super) struct Courier {
    channel: SharedChannel,
    place: Place,
    /// Whose calls it brings.
    pub(super) node: NodeId,
    ringer: Arc<Ringer>,
    /// Lanes with answers that wait (`super::held`).
    pub(super) held: Lanes,
}

impl CourierLanes {
    fn has_room(&self, node: NodeId) -> bool {
        self.courier.node == node && !self.is_retired && self.busy != u64::MAX
    }
}

impl Proxies {
    pub(super) fn new(version: Version) -> Proxies {
        Proxies { version, ..Proxies::default() }
    }

    pub(super) fn add(
        &mut self,
        channel: &OwnedFd,
        from: Caller,
        to: Endpoint,
    ) -> Result<(), IpcError> {
        let Caller { dc, requester, cred, is_trusted, counted } = from;
        let is_let_go = |proxy: &Arc<Proxy>| {
            (proxy.dc, proxy.requester) == (dc, requester) && proxy.channel.closed().is_some()
        };
        self.remove_where(is_let_go);
        let alike = self
            .list
            .iter()
            .filter(|proxy| proxy.dc == dc && proxy.requester == requester && proxy.to == to);
        if alike.count() >= CHANNELS_PER_PEER || self.list.len() >= PROXIES_MAX {
            return Err(IpcError::Exhausted);
        }
        let channel = SharedChannel::map(channel.as_fd())?;
        self.next += 1;
        self.version.fetch_add(1, Ordering::SeqCst);
        self.list.push(Arc::new(Proxy {
            number: self.next,
            channel,
            dc,
            requester,
            to,
            cred,
            is_trusted,
            held: Lanes::default(),
            _counted: counted,
        }));
        Ok(())
    }

    /// The process at `place` is gone.
    pub(super) fn remove(&mut self, place: Place) {
        self.remove_where(|proxy| (proxy.dc, proxy.requester) == place);
    }

    /// Ends all channels of the process at `place`.
    pub(super) fn close(&mut self, place: Place, error: IpcError) {
        for proxy in self.list.iter().filter(|proxy| (proxy.dc, proxy.requester) == place) {
            proxy.channel.close(error);
        }
        self.remove(place);
    }

    fn remove_where(&mut self, is_over: impl Fn(&Arc<Proxy>) -> bool) {
        let (gone, list) =
            std::mem::take(&mut self.list).into_iter().partition::<Vec<_>, _>(is_over);
        self.list = list;
        for proxy in gone {
            self.version.fetch_add(1, Ordering::SeqCst);
            self.retiring.remove(&proxy.number);
            for lane in 0..LANES {
                if let Some(id) = self.lanes.remove(&(proxy.number, lane)) {
                    self.open.remove(&(proxy.dc, id));
                }
            }
        }
    }

    /// Is it still one of them?
    pub(super) fn has(&self, proxy: &Arc<Proxy>) -> bool {
        self.list.iter().any(|other| Arc::ptr_eq(other, proxy))
    }

    /// Ends a call of a local process.
    pub(super) fn answer(&mut self, dc: DcId, id: CallId, message: &Message, payload: &[u8]) {
        let Some((proxy, lane)) = self.open.remove(&(dc, id)) else { return };
        if self.lanes.get(&(proxy.number, lane)) == Some(&id) {
            self.lanes.remove(&(proxy.number, lane));
            proxy.channel.answer(lane, message, payload, false);
        }
    }

    /// The receiver in `slot` is on this node: its requesters shall have channels with itself.
    fn retire(&mut self, dc: DcId, slot: u32) {
        let of = |proxy: &&Arc<Proxy>| proxy.dc == dc && proxy.to.slot == slot;
        self.retiring.extend(self.list.iter().filter(of).map(|proxy| proxy.number));
    }

    /// Takes out those that retire and have no call open. Whoever posts there meanwhile posts again elsewhere.
    fn take_retired(&mut self) -> Vec<Arc<Proxy>> {
        if self.retiring.is_empty() {
            return Vec::new();
        }
        let is_idle =
            |number: &u64| self.lanes.range((*number, 0)..=(*number, LANES)).next().is_none();
        let idle: Vec<u64> =
            self.retiring.iter().filter(|number| is_idle(number)).copied().collect();
        let of = |proxy: &&Arc<Proxy>| idle.contains(&proxy.number);
        let retired: Vec<Arc<Proxy>> = self.list.iter().filter(of).cloned().collect();
        for proxy in &retired {
            proxy.channel.close(IpcError::Moved);
        }
        self.retiring.retain(|number| !idle.contains(number));
        self.remove_where(|proxy| idle.contains(&proxy.number));
        retired
    }

    pub(super) fn count(&self, dc: DcId) -> usize {
        self.list.iter().filter(|proxy| proxy.dc == dc).count()
    }
}

impl Couriers {
    pub(super) fn new(version: Version) -> Couriers {
        Couriers { version, ..Couriers::default() }
    }

    pub(super) fn add(
        &mut self,
        place: Place,
        node: NodeId,
        channel: &OwnedFd,
        ringer: Arc<Ringer>,
    ) -> Result<(), IpcError> {
        let couriers = self.places.entry(place).or_default();
        if couriers.iter().filter(|lanes| lanes.courier.node == node).count() >= COURIERS_MAX {
            return Err(IpcError::Exhausted);
        }
        let channel = SharedChannel::map(channel.as_fd())?;
        self.version.fetch_add(1, Ordering::SeqCst);
        let courier = Arc::new(Courier { channel, place, node, ringer, held: Lanes::default() });
        let (is_retired, calls, numbers) = (false, [None; LANES], [0; LANES]);
        couriers.push(CourierLanes { courier, is_retired, busy: 0, calls, numbers });
        Ok(())
    }

    /// The receiver at `place` is about to hear that `node` is gone.
    pub(super) fn retire(&mut self, place: Place, node: NodeId) {
        for lanes in self.places.get_mut(&place).into_iter().flatten() {
            lanes.is_retired |= lanes.courier.node == node;
        }
        self.remove_retired(place);
    }

    /// Those that have retired go when their last call has ended; the receiver drops them when it hears of the
    /// node's next death.
    fn remove_retired(&mut self, place: Place) {
        let Some(couriers) = self.places.get_mut(&place) else { return };
        let before = couriers.len();
        couriers.retain(|lanes| {
            let is_over = lanes.is_retired && lanes.busy == 0;
            if is_over {
                lanes.courier.channel.close(IpcError::SourceDied);
            }
            !is_over
        });
        if couriers.len() != before {
            self.version.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The receiver at `place` is gone.
    pub(super) fn remove(&mut self, place: Place) {
        for lanes in self.places.remove(&place).into_iter().flatten() {
            self.version.fetch_add(1, Ordering::SeqCst);
            for id in lanes.calls.into_iter().flatten() {
                self.open.remove(&(place.0, id));
            }
        }
    }

    /// Is there a free lane for a call of `node`?
    pub(super) fn has_room(&self, place: Place, node: NodeId) -> bool {
        self.places
            .get(&place)
            .is_some_and(|couriers| couriers.iter().any(|lanes| lanes.has_room(node)))
    }

    /// Makes the call of a process of another node, to a receiver that has been told of this many notifications. Returns
    /// the bell to ring.
    pub(super) fn post(
        &mut self,
        place: Place,
        node: NodeId,
        told: u64,
        cred: &Cred,
        message: &Message,
        payload: &[u8],
    ) -> Result<Arc<Ringer>, IpcError> {
        let couriers = self.places.get_mut(&place).ok_or(IpcError::Exhausted)?;
        let lanes =
            couriers.iter_mut().find(|lanes| lanes.has_room(node)).ok_or(IpcError::Exhausted)?;
        let lane = (!lanes.busy).trailing_zeros() as usize;
        let id = CallId { source: message.source, tag: message.tag };
        let mut head = [0; m3ipc::cred::CRED_SIZE_MAX];
        let head_len = cred.encode(&mut head);
        lanes.courier.channel.note_told(told);
        lanes.courier.channel.post(lane, message, &[&head[..head_len], payload])?;
        lanes.busy |= 1 << lane;
        lanes.calls[lane] = Some(id);
        lanes.numbers[lane] = message.call;
        self.open.insert((place.0, id), (lanes.courier.clone(), lane));
        self.posted += 1;
        Ok(lanes.courier.ringer.clone())
    }

    /// Tells the receiver that a call is to be given up. Returns the bell to ring.
    pub(super) fn cancel(&mut self, place: Place, id: CallId) -> Option<Arc<Ringer>> {
        let (courier, lane) =
            self.open.get(&(place.0, id)).filter(|(courier, _)| courier.place == place)?;
        courier.channel.cancel(*lane, id.tag);
        Some(courier.ringer.clone())
    }

    /// Takes back the calls at `place` that it has not received, and abandons those that it has. Returns them, with
    /// the number of each and whether it has been received; those that have just been answered are not among them.
    pub(super) fn withdraw(
        &mut self,
        place: Place,
        which: impl Fn(NodeId, &CallId) -> bool,
    ) -> Vec<(CallId, u16, bool)> {
        let mut withdrawn = Vec::new();
        for lanes in self.places.get_mut(&place).into_iter().flatten() {
            for lane in 0..LANES {
                let node = lanes.courier.node;
                let Some(id) = lanes.calls[lane].filter(|id| which(node, id)) else { continue };
                let is_received = match lanes.courier.channel.withdraw(lane) {
                    Withdrawn::TooLate => continue,
                    Withdrawn::Unseen => {
                        lanes.busy &= !(1 << lane);
                        false
                    }
                    // The lane is free when it is answered.
                    Withdrawn::Abandoned => true,
                };
                lanes.calls[lane] = None;
                self.open.remove(&(place.0, id));
                withdrawn.push((id, lanes.numbers[lane], is_received));
            }
        }
        self.remove_retired(place);
        withdrawn
    }

    /// An abandoned call has been answered: its lane is free.
    fn free(&mut self, courier: &Arc<Courier>, lane: usize) {
        let Some(couriers) = self.places.get_mut(&courier.place) else { return };
        let lanes = couriers.iter_mut().find(|lanes| Arc::ptr_eq(&lanes.courier, courier));
        if let Some(lanes) = lanes.filter(|lanes| lanes.calls[lane].is_none()) {
            lanes.busy &= !(1 << lane);
            self.remove_retired(courier.place);
        }
    }

    /// Takes the call that was open on a lane out.
    fn end(&mut self, courier: &Arc<Courier>, lane: usize) -> Option<CallId> {
        let couriers = self.places.get_mut(&courier.place)?;
        let lanes = couriers.iter_mut().find(|lanes| Arc::ptr_eq(&lanes.courier, courier))?;
        let id = lanes.calls[lane].take()?;
        lanes.busy &= !(1 << lane);
        let is_over = lanes.is_retired && lanes.busy == 0;
        self.open.remove(&(courier.place.0, id));
        if is_over {
            self.remove_retired(courier.place);
        }
        Some(id)
    }

    /// The lanes of a courier with an open call.
    fn lanes_with_calls(&self, courier: &Arc<Courier>) -> u64 {
        let couriers = self.places.get(&courier.place).into_iter().flatten();
        let lanes = couriers.filter(|lanes| Arc::ptr_eq(&lanes.courier, courier));
        lanes.fold(0, |all, lanes| {
            let with_calls = lanes.calls.iter().enumerate().filter(|(_, call)| call.is_some());
            with_calls.fold(all, |all, (lane, _)| all | 1 << lane)
        })
    }

    pub(super) fn channels_of(&self, place: Place) -> Vec<Arc<Courier>> {
        self.places.get(&place).into_iter().flatten().map(|lanes| lanes.courier.clone()).collect()
    }

    fn all(&self) -> Vec<Arc<Courier>> {
        self.places.values().flatten().map(|lanes| lanes.courier.clone()).collect()
    }

    pub(super) fn count(&self, dc: DcId) -> usize {
        self.places
            .iter()
            .filter(|((of, _), _)| *of == dc)
            .map(|(_, couriers)| couriers.len())
            .sum()
    }
}

impl Node {
    /// Takes the requests and cancellations of a local process.
    fn take_requests(&mut self, proxy: &Arc<Proxy>, buffer: &mut [u8]) {
        let news = proxy.channel.take_news();
        if let Some(value) = proxy.channel.take_notification() {
            let (dc, from, to) = (proxy.dc, proxy.requester, proxy.to);
            self.step(Input::LocalNotify { dc, from, to, value });
        }
        // What is still there is posted again elsewhere.
        if proxy.channel.closed().is_some() {
            return;
        }
        for lane in bits(news.pending) {
            self.take_request(proxy, lane, buffer);
        }
        for lane in bits(news.cancelled) {
            let tag = proxy.channel.cancelled(lane);
            let open = self.proxies.lanes.get(&(proxy.number, lane)).copied();
            if let Some(id) = open.filter(|id| id.tag == tag) {
                self.step(Input::LocalCancel { dc: proxy.dc, to: proxy.to, id });
            } else if let Some(message) = proxy.channel.request(lane)
                && message.tag == tag
                && proxy.held.has(lane)
            {
                // Nobody has heard of it yet.
                let ended = Message::undelivered(message.call, IpcError::Interrupted);
                proxy.channel.answer(lane, &Message { tag, ..ended }, &[], false);
            }
        }
    }

    pub(super) fn take_request(&mut self, proxy: &Arc<Proxy>, lane: usize, buffer: &mut [u8]) {
        let Some(mut message) = proxy.channel.request(lane) else { return };
        if self.hold_request(proxy, lane, message.payload_len as usize) {
            return;
        }
        match proxy.check(lane, &mut message, buffer) {
            Ok((cred, range)) => {
                self.counters.calls_out += 1;
                let id = CallId { source: message.source, tag: message.tag };
                let dc = proxy.dc;
                self.proxies.lanes.insert((proxy.number, lane), id);
                self.proxies.open.insert((dc, id), (proxy.clone(), lane));
                let payload = &buffer[range];
                self.traffic.entry(dc).or_default().note_out(payload.len());
                self.step(Input::LocalRequest {
                    dc,
                    to: proxy.to,
                    cred: &cred,
                    message: &message,
                    payload,
                });
            }
            Err(error) => {
                self.counters.protocol_errors += 1;
                let answer =
                    Message { tag: message.tag, ..Message::undelivered(message.call, error) };
                proxy.channel.answer(lane, &answer, &[], false);
            }
        }
    }

    /// Takes the answers of a local receiver to calls of other nodes; returns how many.
    pub(super) fn take_answers(&mut self, courier: &Arc<Courier>) -> usize {
        let lanes = courier.channel.take_answered();
        self.take_answers_on(courier, lanes, true)
    }

    /// The same of a receiver that answers nothing any more: also those that would have to wait.
    pub(super) fn take_all_answers(&mut self, courier: &Arc<Courier>) {
        let lanes = courier.channel.take_answered() | courier.held.take();
        self.take_answers_on(courier, lanes, false);
    }

    /// Takes what a receiver that is stopped or dead has answered, though it may not have said so.
    pub(super) fn take_last_answers(&mut self, place: Place) {
        for courier in self.couriers.channels_of(place) {
            let lanes = self.couriers.lanes_with_calls(&courier);
            courier.held.take();
            self.take_answers_on(&courier, lanes, false);
        }
    }

    /// Closes channels over this daemon whose receivers are on this node now and that have no call open.
    pub(super) fn close_retired(&mut self) {
        for proxy in self.proxies.take_retired() {
            if let Some(value) = proxy.channel.take_notification() {
                let (dc, from, to) = (proxy.dc, proxy.requester, proxy.to);
                self.step(Input::LocalNotify { dc, from, to, value });
            }
        }
    }

    pub(super) fn retire_proxies(&mut self, dc: DcId, to: Endpoint) {
        self.proxies.retire(dc, to.slot);
        self.close_retired();
    }

    /// Takes the answers on these lanes, but for those that must wait, if they may.
    pub(super) fn take_answers_on(
        &mut self,
        courier: &Arc<Courier>,
        lanes: u64,
        may_wait: bool,
    ) -> usize {
        let mut buffer = std::mem::take(&mut self.couriers.buffer);
        buffer.resize(PAYLOAD_AREA, 0);
        let mut count = 0;
        for lane in bits(lanes) {
            let mut message = match courier.channel.poll_answered(lane) {
                Poll::Answered(message) => message,
                Poll::Vacant => {
                    self.couriers.free(courier, lane);
                    continue;
                }
                Poll::Open | Poll::Closed => continue,
            };
            if may_wait && self.hold_answer(courier, lane, message.payload_len as usize) {
                continue;
            }
            let Some(id) = self.couriers.end(courier, lane) else { continue };
            let mut payload = &mut buffer[..(message.payload_len as usize).min(PAYLOAD_AREA)];
            courier.channel.read_answer(lane, &message, payload);
            if message.tag != id.tag || payload.len() > PAYLOAD_MAX {
                self.counters.protocol_errors += 1;
                message = Message {
                    tag: id.tag,
                    ..Message::undelivered(message.call, IpcError::Protocol)
                };
                payload = &mut [];
            }
            let (dc, from) = courier.place;
            self.step(Input::LocalAnswer { dc, from, id, message: &message, payload });
            count += 1;
        }
        self.couriers.buffer = buffer;
        count
    }
}

impl Proxy {
    /// Where its requests go.
    pub(super) fn way(&self) -> (DcId, Endpoint) {
        (self.dc, self.to)
    }

    /// Checks the request copied from `lane` and copies its payload. Returns the caller's credentials and where in
    /// `buffer` the call's own payload is.
    fn check(
        &self,
        lane: usize,
        message: &mut Message,
        buffer: &mut [u8],
    ) -> Result<(Cred, Range<usize>), IpcError> {
        check_lane(message.tag, lane)?;
        message.source = self.requester;
        // Of what a requester says there, only how it waits.
        message.status = way(message.status);
        let end = message.payload_len as usize;
        let bytes = buffer.get_mut(..end).ok_or(IpcError::Protocol)?;
        self.channel.read_request(lane, bytes)?;
        let (cred, start) = if self.is_trusted {
            let (cred, rest) = Cred::decode(bytes).ok_or(IpcError::Protocol)?;
            (cred, end - rest.len())
        } else {
            (self.cred, 0)
        };
        if end - start > PAYLOAD_MAX {
            return Err(IpcError::TooLarge);
        }
        message.payload_len = u32::try_from(end - start).map_err(|_| IpcError::TooLarge)?;
        Ok((cred, start..end))
    }
}

/// What the thread looks at; a copy, so that looking needs no lock.
#[derive(Default)]
struct Watched {
    proxies: Vec<Arc<Proxy>>,
    couriers: Vec<Arc<Courier>>,
    pumps: Vec<Pump>,
    /// What it is a copy of; none of anything yet.
    version: Option<u64>,
}

impl Watched {
    fn refresh(&mut self, node: &Node, version: u64) {
        if self.version != Some(version) {
            self.proxies.clone_from(&node.proxies.list);
            self.couriers = node.couriers.all();
            self.pumps = node.pumps.values().cloned().collect();
            self.version = Some(version);
        }
    }

    fn is_current(&self, shared: &Shared) -> bool {
        self.version == Some(shared.watched.load(Ordering::SeqCst))
    }

    /// Takes all requests and answers that are there; returns how many answers.
    fn attend(&self, node: &mut Node, buffer: &mut [u8]) -> usize {
        let mut answers = 0;
        for courier in self.couriers.iter().filter(|courier| courier.channel.has_answers()) {
            answers += node.take_answers(courier);
        }
        for proxy in self.proxies.iter().filter(|proxy| proxy.channel.has_news()) {
            node.take_requests(proxy, buffer);
        }
        answers
    }

    fn has_news(&self) -> bool {
        self.couriers.iter().any(|courier| courier.channel.has_answers())
            || self.proxies.iter().any(|proxy| proxy.channel.has_news())
    }
}

/// A link's reader that has brought calls, while it looks for their answers: they leave one wake-up earlier, and
/// the proxy thread sleeps on.
#[derive(Default)]
pub(super) struct Watcher {
    watched: Watched,
    spin: Spin,
    buffer: Vec<u8>,
}

impl Watcher {
    /// Looks for the answers to `calls` calls, as long as that has been paying off.
    pub(super) fn await_answers(&mut self, shared: &Shared, calls: usize) {
        if calls == 0 {
            return;
        }
        if !self.watched.is_current(shared) {
            self.buffer.resize(PAYLOAD_AREA, 0);
            shared.with(|node| {
                self.watched.refresh(node, shared.watched.load(Ordering::SeqCst));
            });
        }
        let watch = shared.bell.watch();
        let mut left = calls;
        while left > 0 && self.spin.until(|| self.watched.has_news()) {
            let answers = shared.with(|node| self.watched.attend(node, &mut self.buffer));
            left = left.saturating_sub(answers);
        }
        drop(watch);
        if self.watched.has_news() || !self.watched.is_current(shared) {
            shared.bell.ring();
        }
    }
}

/// The body of the proxy thread. It also keeps the kernel's time.
pub(super) fn run(shared: &Shared) {
    let mut watched = Watched::default();
    let mut buffer = vec![0; PAYLOAD_AREA];
    let one_cpu = std::thread::available_parallelism().map_or(1, usize::from) < 2;
    let mut patience = Patience { one_cpu, ..Patience::default() };
    let mut led = Vec::new();
    while !shared.is_stopping() {
        shared.bell.found(|| watched.has_news());
        shared.with(|node| {
            watched.attend(node, &mut buffer);
            if node.kernel.next_deadline().is_some_and(|deadline| deadline <= monotonic()) {
                node.step(Input::Tick);
            }
            node.settle();
            watched.refresh(node, shared.watched.load(Ordering::SeqCst));
            // From here on, whoever makes the deadline an earlier one says so and rings.
            let deadline = node.kernel.next_deadline().unwrap_or(Nanos::MAX);
            shared.sleeps_until.store(deadline, Ordering::SeqCst);
        });
        if !look_around(shared, &watched, &mut patience, &mut led) {
            // Their own readers wait for that.
            led.drain(..).for_each(|pump: Pump| pump.link.lead(false));
            rest(shared, &watched);
        }
    }
}

/// Looks for requests and answers for a while, and reads the links that were just used: those are `led` by this
/// thread until it rests. True if there is something to take.
fn look_around(
    shared: &Shared,
    watched: &Watched,
    patience: &mut Patience,
    led: &mut Vec<Pump>,
) -> bool {
    if watched.has_news() {
        return true;
    }
    let Some(budget) = patience.budget() else { return false };
    let start = monotonic();
    for pump in &watched.pumps {
        let is_recent = pump.link.last_use() + LINK_RECENT > start;
        if is_recent && led.len() < LINKS_LED && !led.iter().any(|other| other.is_same(pump)) {
            pump.link.lead(true);
            led.push(pump.clone());
        }
    }
    let (mut now, mut last) = (start, start);
    let (mut found, mut is_wanted) = (false, false);
    while !found && !is_wanted && now < last + budget && !shared.is_stopping() {
        // Whoever could bring the news may wait for this CPU.
        rustix::thread::sched_yield();
        let before = std::mem::replace(&mut now, monotonic());
        // Then whoever took it looks as well, or works: all they need is this CPU.
        is_wanted = now - before > LOOK_SWITCH;
        for pump in &*led {
            if pump.try_turn(shared) {
                last = now;
                is_wanted = false;
                patience.reward();
            }
        }
        found = watched.has_news();
    }
    if is_wanted && !found {
        patience.give_way();
    } else if found {
        patience.reward()
    } else {
        patience.punish()
    }
    found
}

/// How long to look around: as long as it has been paying off.
#[derive(Debug, Default)]
struct Patience {
    /// 0: not at all, but for a try every so often.
    nanos: Nanos,
    rests: u32,
    /// Then nobody can bring news while we look.
    one_cpu: bool,
}

/// Every so many rests is a try.
const TRY_EVERY: u32 = 16;

impl Patience {
    fn budget(&mut self) -> Option<Nanos> {
        if self.one_cpu {
            return None;
        }
        self.rests = self.rests.wrapping_add(1);
        let tries = self.rests.is_multiple_of(TRY_EVERY);
        (self.nanos > 0 || tries).then_some(LOOK_AROUND)
    }

    fn reward(&mut self) {
        self.nanos = LOOK_AROUND;
    }

    /// Others need the CPU: no look until the next try.
    fn give_way(&mut self) {
        self.nanos = 0;
    }

    fn punish(&mut self) {
        // Twice in vain is enough.
        self.nanos = if self.nanos == LOOK_AROUND { LOOK_AROUND / 2 } else { 0 };
    }
}

fn rest(shared: &Shared, watched: &Watched) {
    let again =
        std::mem::take(&mut *shared.ring_again.lock().unwrap_or_else(PoisonError::into_inner));
    let rung_all = again.is_empty();
    for ringer in again {
        shared.ring(ringer);
    }
    let ticket = shared.bell.prepare();
    let now = monotonic();
    let mut until = shared.sleeps_until.load(Ordering::SeqCst);
    if !rung_all {
        until = until.min(now + RING_AGAIN);
    }
    let changed = !watched.is_current(shared);
    if changed || until <= now || watched.has_news() || shared.is_stopping() {
        shared.bell.awake();
    } else {
        let timeout = (until != Nanos::MAX).then(|| Duration::from_nanos(until - now));
        shared.bell.sleep(ticket, timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::Tag;
    use m3ipc::bell::Bell;

    #[test]
    fn a_node_that_was_given_up_gets_new_channels_and_the_old_ones_go_with_their_last_call() {
        let (one, two) = (NodeId(1), NodeId(2));
        let place = (DcId(1), Endpoint::VFS);
        let (_bell, bell) = Bell::create().unwrap();
        let ringer = Arc::new(Ringer::map(bell.as_fd()).unwrap());
        let mut couriers = Couriers::new(Version::default());
        for node in [one, two] {
            assert!(!couriers.has_room(place, node), "each node has its own");
            let channel = m3ipc::channel::create().unwrap();
            couriers.add(place, node, &channel, ringer.clone()).unwrap();
        }
        let source = Endpoint::new(two, 5, 1);
        let message = Message { source, tag: Tag::new(0, 1), ..Message::request(0x100) };
        couriers.post(place, two, 0, &Cred::ROOT, &message, &[]).unwrap();
        couriers.retire(place, two);
        assert!(couriers.has_room(place, one) && !couriers.has_room(place, two));
        assert_eq!(couriers.count(place.0), 2, "the open call still needs its channel");
        let old = couriers.channels_of(place).pop().unwrap();
        assert_eq!(couriers.end(&old, 0), Some(CallId { source, tag: message.tag }));
        assert_eq!(couriers.count(place.0), 1);
        assert_eq!(old.channel.closed(), Some(IpcError::SourceDied), "so the receiver drops it");
        couriers.retire(place, one);
        assert_eq!(couriers.count(place.0), 0, "an idle one goes at once");
    }
}
