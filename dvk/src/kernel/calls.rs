//! Calls between nodes: those of this node that wait for another's answer, and those of others that are open here.

use super::container::Found;
use super::link::Peer;
use super::{Kernel, NodeState, Output};
use crate::frame::{Answer, Frame, Request};
use crate::limits::{CALLS_BYTES, CALLS_PER_NODE, PEERS_PER_ENDPOINT, SERVER_WAIT, UNRECEIVED_MAX};
use crate::server::{Gone, Nanos};
use bytes::Bytes;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{CallId, Cred, DcId, Endpoint, IpcError, Message, NodeId, Tag};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// A lane of a caller in its channel with the receiver in a slot: it has at most one call open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lane {
    source: Endpoint,
    slot: u32,
    lane: u16,
}

impl Lane {
    fn new(id: CallId, to: Endpoint) -> Lane {
        Lane { source: id.source, slot: to.slot, lane: id.tag.lane() }
    }

    /// All lanes of a caller in its channels with a receiver.
    fn all(source: Endpoint, slot: u32) -> RangeInclusive<Lane> {
        Lane { source, slot, lane: 0 }..=Lane { source, slot, lane: u16::MAX }
    }
}

/// A call of this node that another has.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutCall {
    to: Endpoint,
    tag: Tag,
    call: u16,
    cancelled: bool,
    /// The right to make it (`m3ipc::rights::call`).
    needs: u32,
}

/// The calls of this node that another has.
pub(super) type Outgoing = BTreeMap<(DcId, Lane), OutCall>;

/// A call of another node that is open here.
#[derive(Debug)]
struct InCall {
    node: NodeId,
    lane: Lane,
    to: Endpoint,
    cred: Cred,
    message: Message,
    /// Kept until the end of the call: a server that is killed gets it again.
    payload: Bytes,
    cancelled: bool,
    place: Place,
}

/// Where such a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With this receiver.
    Delivered(Endpoint),
    /// Its server is not bound. After that time it ends.
    Waiting(Nanos),
}

/// The calls of other nodes that are open in one container here, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    calls: BTreeMap<u64, InCall>,
    by_lane: BTreeMap<Lane, u64>,
    waiting: BTreeSet<(Nanos, u64)>,
    /// How many there have been.
    count: u64,
}

impl Incoming {
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.waiting.first().map(|(until, _)| *until)
    }

    fn insert(&mut self, call: InCall) {
        self.count += 1;
        if let Place::Waiting(until) = call.place {
            self.waiting.insert((until, self.count));
        }
        self.by_lane.insert(call.lane, self.count);
        self.calls.insert(self.count, call);
    }

    fn get(&self, lane: Lane) -> Option<&InCall> {
        self.calls.get(self.by_lane.get(&lane)?)
    }

    fn get_mut(&mut self, lane: Lane) -> Option<&mut InCall> {
        self.calls.get_mut(self.by_lane.get(&lane)?)
    }

    fn remove(&mut self, lane: Lane) -> Option<InCall> {
        let number = self.by_lane.remove(&lane)?;
        let call = self.calls.remove(&number)?;
        if let Place::Waiting(until) = call.place {
            self.waiting.remove(&(until, number));
        }
        Some(call)
    }

    fn set_place(&mut self, number: u64, place: Place) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        if let Place::Waiting(until) = call.place {
            self.waiting.remove(&(until, number));
        }
        call.place = place;
        if let Place::Waiting(until) = place {
            self.waiting.insert((until, number));
        }
    }

    fn numbers_to(&self, slot: u32) -> Vec<u64> {
        self.calls
            .iter()
            .filter(|(_, call)| call.lane.slot == slot)
            .map(|(number, _)| *number)
            .collect()
    }

    /// The lanes with a call of `source` to `slot`.
    fn lanes_of(&self, source: Endpoint, slot: u32) -> Vec<Lane> {
        self.by_lane.range(Lane::all(source, slot)).map(|(lane, _)| *lane).collect()
    }

    fn lanes_from(&self, node: NodeId) -> Vec<Lane> {
        self.calls.values().filter(|call| call.node == node).map(|call| call.lane).collect()
    }

    fn lanes(&self) -> Vec<Lane> {
        self.calls.values().map(|call| call.lane).collect()
    }
}

impl InCall {
    fn id(&self) -> CallId {
        CallId { source: self.message.source, tag: self.message.tag }
    }

    fn deliver(&self, dc: DcId, to: Endpoint, out: &mut Vec<Output>) {
        let payload = self.payload.clone();
        out.push(Output::Deliver { dc, to, cred: self.cred, message: self.message, payload });
        if self.cancelled {
            out.push(Output::DeliverCancel { dc, to, id: self.id() });
        }
    }
}

/// The calls that processes of this node make.
impl Kernel {
    #[expect(clippy::too_many_arguments, reason = "the fields of Input::LocalRequest")]
    pub(super) fn local_request(
        &mut self,
        now: Nanos,
        dc: DcId,
        to: Endpoint,
        cred: &Cred,
        message: &Message,
        payload: &[u8],
        out: &mut Vec<Output>,
    ) {
        let id = CallId { source: message.source, tag: message.tag };
        let is_one_way = message.status == m3ipc::port::ONE_WAY;
        let needs =
            if is_one_way { m3ipc::rights::call::SEND } else { m3ipc::rights::call::SENDREC };
        let call = OutCall { to, tag: id.tag, call: message.call, cancelled: false, needs };
        if payload.len() > PAYLOAD_MAX || payload.len() != message.payload_len as usize {
            return end_outgoing(dc, id.source, call, IpcError::TooLarge, out);
        }
        match self.admit_outgoing(dc, id, call, out) {
            Ok(Admitted::New(node)) => {
                let request = Request { dc, to, cred: *cred, message: *message, payload };
                self.send(now, node, &Frame::Request(request), out);
            }
            Ok(Admitted::Already) => {}
            Err(error) => end_outgoing(dc, id.source, call, error, out),
        }
    }

    /// Notes a call that is to be sent, unless it cannot be.
    fn admit_outgoing(
        &mut self,
        dc: DcId,
        id: CallId,
        call: OutCall,
        out: &mut Vec<Output>,
    ) -> Result<Admitted, IpcError> {
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        let home =
            container.home(call.to).filter(|home| *home != self.node).ok_or(IpcError::NotBound)?;
        let binding = container.slots.get_mut(id.source).ok_or(IpcError::Stale)?;
        // The channel is older than its requester's rights may be.
        let useful = if call.to.is_memory() { m3ipc::rights::call::VCOPY } else { call.needs };
        if !binding.rights.may(useful) || !binding.rights.to.contains(call.to) {
            return Err(IpcError::Denied);
        }
        let peer = self.peers.get_mut(&home).ok_or(IpcError::NotBound)?;
        let key = (dc, Lane::new(id, call.to));
        match peer.outgoing.get(&key) {
            Some(open) if open.tag == id.tag => return Ok(Admitted::Already),
            Some(open) if open.tag > id.tag => return Err(IpcError::Stale),
            _ => {}
        }
        let reach = (home, call.to);
        if matches!(peer.state(), NodeState::Down { .. }) {
            return Err(IpcError::NodeDown);
        }
        if peer.outgoing.len() >= CALLS_PER_NODE
            || peer.unreceived_bytes() > UNRECEIVED_MAX
            || binding.reached.len() >= PEERS_PER_ENDPOINT && !binding.reached.contains(&reach)
        {
            return Err(IpcError::Exhausted);
        }
        binding.reached.insert(reach);
        // A caller that uses a lane again does not wait for the call that was open on it.
        if let Some(old) = peer.outgoing.insert(key, call) {
            end_outgoing(dc, id.source, old, IpcError::Interrupted, out);
        }
        Ok(Admitted::New(home))
    }

    pub(super) fn local_cancel(
        &mut self,
        now: Nanos,
        dc: DcId,
        to: Endpoint,
        id: CallId,
        out: &mut Vec<Output>,
    ) {
        let Some(node) = self.containers.get(&dc).and_then(|container| container.home(to)) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(call) = peer.outgoing.get_mut(&(dc, Lane::new(id, to))) else { return };
        if call.tag == id.tag && !call.cancelled {
            call.cancelled = true;
            let to = call.to;
            self.send(now, node, &Frame::Cancel { dc, to, id }, out);
        }
    }

    /// The answer of another node; to a call that is not open any more it is nothing.
    pub(super) fn answer(&mut self, node: NodeId, answer: &Answer<'_>, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (id, dc) = (answer.id(), answer.dc);
        let key = (dc, Lane::new(id, answer.message.source));
        let Some(call) = peer.outgoing.get(&key).filter(|call| call.tag == id.tag) else { return };
        let from = call.to;
        peer.outgoing.remove(&key);
        let payload = Bytes::copy_from_slice(answer.payload);
        out.push(Output::AnswerLocal { dc, from, id, message: answer.message, payload });
    }

    /// The caller of these is dead.
    pub(super) fn forget_outgoing(
        &mut self,
        node: NodeId,
        dc: DcId,
        source: Endpoint,
        to: Endpoint,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (first, last) = Lane::all(source, to.slot).into_inner();
        let keys: Vec<_> =
            peer.outgoing.range((dc, first)..=(dc, last)).map(|(key, _)| *key).collect();
        for key in keys {
            peer.outgoing.remove(&key);
        }
    }
}

enum Admitted {
    New(NodeId),
    /// It is under way.
    Already,
}

fn end_outgoing(dc: DcId, source: Endpoint, call: OutCall, error: IpcError, out: &mut Vec<Output>) {
    let message =
        Message { source: call.to, tag: call.tag, ..Message::undelivered(call.call, error) };
    let id = CallId { source, tag: call.tag };
    out.push(Output::AnswerLocal { dc, from: call.to, id, message, payload: Bytes::new() });
}

impl Peer {
    /// The node is gone: none of the calls it has will be answered.
    pub(super) fn end_all_outgoing(&mut self, out: &mut Vec<Output>) {
        for ((dc, lane), call) in std::mem::take(&mut self.outgoing) {
            end_outgoing(dc, lane.source, call, IpcError::NodeDown, out);
        }
    }
}

/// The calls that other nodes make to this one.
impl Kernel {
    pub(super) fn request(
        &mut self,
        now: Nanos,
        node: NodeId,
        request: &Request<'_>,
        out: &mut Vec<Output>,
    ) {
        let (id, lane) = (request.id(), Lane::new(request.id(), request.to));
        let place = match self.admit_incoming(now, node, request, lane) {
            Ok(Some(place)) => place,
            Ok(None) => return,
            Err(error) => {
                let message = Message::undelivered(request.message.call, error);
                return self.send_answer(now, node, request.dc, request.to, id, message, &[], out);
            }
        };
        // A caller that uses a lane again does not wait for the call that was open on it.
        self.drop_incoming(request.dc, lane);
        let call = InCall {
            node,
            lane,
            to: request.to,
            cred: request.cred,
            message: request.message,
            payload: Bytes::copy_from_slice(request.payload),
            cancelled: false,
            place,
        };
        if let Place::Delivered(to) = place {
            call.deliver(request.dc, to, out);
        }
        if let (Some(container), Some(peer)) =
            (self.containers.get_mut(&request.dc), self.peers.get_mut(&node))
        {
            peer.calls_in += 1;
            peer.bytes_in += call.payload.len();
            container.incoming.insert(call);
        }
    }

    /// Where the call goes; `None` if it is there already.
    fn admit_incoming(
        &self,
        now: Nanos,
        node: NodeId,
        request: &Request<'_>,
        lane: Lane,
    ) -> Result<Option<Place>, IpcError> {
        let container = self.containers.get(&request.dc).ok_or(IpcError::NotBound)?;
        if !container.dc.nodes.contains(&node) {
            return Err(IpcError::Denied);
        }
        match container.incoming.get(lane) {
            Some(open) if open.message.tag == request.message.tag => return Ok(None),
            Some(open) if open.message.tag > request.message.tag => return Err(IpcError::Stale),
            _ => {}
        }
        let peer = self.peers.get(&node).ok_or(IpcError::Denied)?;
        if peer.calls_in >= CALLS_PER_NODE || peer.bytes_in > CALLS_BYTES {
            return Err(IpcError::Exhausted);
        }
        if !container.accepts(request.to, request.message.source) {
            return Err(IpcError::Denied);
        }
        match container.find(request.to) {
            Found::Bound(to) => Ok(Some(Place::Delivered(to))),
            Found::Absent => Ok(Some(Place::Waiting(now + SERVER_WAIT))),
            Found::No(error) => Err(error),
        }
    }

    /// The caller of a call that another node has sent wants it ended. A server that is not there may have
    /// executed it before it died, so its successor decides.
    pub(super) fn cancel(&mut self, dc: DcId, to: Endpoint, id: CallId, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(call) = container.incoming.get_mut(Lane::new(id, to)) else { return };
        if call.message.tag == id.tag && !call.cancelled {
            call.cancelled = true;
            if let Place::Delivered(to) = call.place {
                out.push(Output::DeliverCancel { dc, to, id });
            }
        }
    }

    /// An endpoint of another node is dead; `to` has had calls of it.
    pub(super) fn remote_died(
        &mut self,
        node: NodeId,
        dc: DcId,
        to: Endpoint,
        gone: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        if !container.dc.nodes.contains(&node) {
            return;
        }
        for lane in container.incoming.lanes_of(gone, to.slot) {
            self.drop_incoming(dc, lane);
        }
        let Some(container) = self.containers.get_mut(&dc) else { return };
        if !container.tell(to.slot, Gone::Endpoint(gone), out)
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.is_overfull = true;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of Input::LocalAnswer")]
    pub(super) fn local_answer(
        &mut self,
        now: Nanos,
        dc: DcId,
        from: Endpoint,
        id: CallId,
        message: &Message,
        payload: &[u8],
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get(&dc) else { return };
        let lane = Lane::new(id, from);
        let Some(call) = container.incoming.get(lane) else { return };
        if call.message.tag != id.tag || call.place != Place::Delivered(from) {
            return;
        }
        let (node, call) = (call.node, call.message.call);
        self.drop_incoming(dc, lane);
        if payload.len() > PAYLOAD_MAX || payload.len() != message.payload_len as usize {
            let message = Message::undelivered(call, IpcError::TooLarge);
            return self.send_answer(now, node, dc, from, id, message, &[], out);
        }
        self.send_answer(now, node, dc, from, id, *message, payload, out);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of an answer")]
    fn send_answer(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        from: Endpoint,
        id: CallId,
        message: Message,
        payload: &[u8],
        out: &mut Vec<Output>,
    ) {
        let message = Message { source: from, tag: id.tag, ..message };
        let answer = Answer { dc, to: id.source, message, payload };
        self.send(now, node, &Frame::Answer(answer), out);
    }

    /// The calls that were with a dead receiver wait for its successor, if there will be one.
    pub(super) fn receiver_died(
        &mut self,
        now: Nanos,
        dc: DcId,
        dead: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let mut ended = Vec::new();
        for number in container.incoming.numbers_to(dead.slot) {
            let lasting = container.is_well_known(dead.slot);
            match container.incoming.calls.get(&number) {
                Some(call) if lasting && call.to.generation == 0 => {
                    container.incoming.set_place(number, Place::Waiting(now + SERVER_WAIT));
                }
                Some(call) => ended.push(call.lane),
                None => {}
            }
        }
        self.end_incoming(now, dc, &ended, out);
    }

    /// A server is bound (again): it gets the calls that wait for it, in the order they came.
    pub(super) fn deliver_waiting(&mut self, dc: DcId, bound: Endpoint, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        for number in container.incoming.numbers_to(bound.slot) {
            container.incoming.set_place(number, Place::Delivered(bound));
            if let Some(call) = container.incoming.calls.get(&number) {
                call.deliver(dc, bound, out);
            }
        }
    }

    /// Calls whose server has not come back in time.
    pub(super) fn end_overdue(&mut self, now: Nanos, out: &mut Vec<Output>) {
        let dcs: Vec<DcId> = self.containers.keys().copied().collect();
        for dc in dcs {
            let incoming = self.containers.get(&dc).map(|container| &container.incoming);
            let overdue: Vec<Lane> = incoming
                .into_iter()
                .flat_map(|incoming| {
                    let numbers = incoming.waiting.iter().take_while(|(until, _)| *until <= now);
                    numbers
                        .filter_map(|(_, number)| incoming.calls.get(number))
                        .map(|call| call.lane)
                })
                .collect();
            self.end_incoming(now, dc, &overdue, out);
        }
    }

    pub(super) fn end_incoming_of_dc(&mut self, now: Nanos, dc: DcId, out: &mut Vec<Output>) {
        let lanes = self
            .containers
            .get(&dc)
            .map(|container| container.incoming.lanes())
            .unwrap_or_default();
        self.end_incoming(now, dc, &lanes, out);
    }

    /// Nobody will answer these.
    fn end_incoming(&mut self, now: Nanos, dc: DcId, lanes: &[Lane], out: &mut Vec<Output>) {
        for lane in lanes {
            let Some(call) = self.drop_incoming(dc, *lane) else { continue };
            let message = Message::undelivered(call.message.call, IpcError::DestinationDied);
            self.send_answer(now, call.node, dc, call.to, call.id(), message, &[], out);
        }
    }

    /// The node is gone: nobody waits for the answers to its calls.
    pub(super) fn drop_incoming_of(&mut self, node: NodeId) {
        let dcs: Vec<DcId> = self.containers.keys().copied().collect();
        for dc in dcs {
            let incoming = self.containers.get(&dc).map(|container| &container.incoming);
            for lane in incoming.map(|incoming| incoming.lanes_from(node)).unwrap_or_default() {
                self.drop_incoming(dc, lane);
            }
        }
    }

    fn drop_incoming(&mut self, dc: DcId, lane: Lane) -> Option<InCall> {
        let call = self.containers.get_mut(&dc)?.incoming.remove(lane)?;
        if let Some(peer) = self.peers.get_mut(&call.node) {
            peer.calls_in -= 1;
            peer.bytes_in -= call.payload.len();
        }
        Some(call)
    }
}
