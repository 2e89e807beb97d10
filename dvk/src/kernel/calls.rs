//! Calls between nodes: those of this node that wait for another's answer, and those of others that are open here.

use super::container::Found;
use super::link::Peer;
use super::shares::Shares;
use super::{Kernel, NodeState, Output};
use crate::frame::{Answer, Frame, Packet, Request, decode};
use crate::limits::{PEERS_PER_ENDPOINT, SERVER_WAIT, UNRECEIVED_MAX};
use crate::server::{Gone, Nanos};
use bytes::Bytes;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::message::RELAYED;
use m3ipc::port::RECEIVED;
use m3ipc::rights::call::RELAY;
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
    pub(super) fn new(id: CallId, to: Endpoint) -> Lane {
        Lane { source: id.source, slot: to.slot, lane: id.tag.lane() }
    }

    /// All lanes of a caller in its channels with a receiver.
    fn all(source: Endpoint, slot: u32) -> RangeInclusive<Lane> {
        Lane { source, slot, lane: 0 }..=Lane { source, slot, lane: u16::MAX }
    }
}

/// A call of this node that another has.
#[derive(Clone, Debug)]
pub(super) struct OutCall {
    to: Endpoint,
    tag: Tag,
    /// Of the user who makes it.
    uid: u32,
    call: u16,
    cancelled: bool,
    /// The right to make it (`m3ipc::rights::call`).
    needs: u32,
    /// Its frame, if the receiver may move meanwhile: then it is made again elsewhere.
    kept: Bytes,
    /// Of the receiver's entry in the directory when it was made.
    epoch: u64,
}

impl OutCall {
    /// Does nobody wait any more to know whether it was executed? A caller of a server of the container does: what a
    /// server has done must not be told as not done.
    fn is_given_up(&self) -> bool {
        self.cancelled && !self.to.is_server()
    }
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
    /// It has been received before, by who was the receiver then, and only waits for its answer.
    is_received: bool,
    place: Place,
}

/// Where such a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With this receiver.
    Delivered(Endpoint),
    /// Its server is not bound. After that time it ends.
    Waiting(Nanos),
    /// Its receiver moves.
    Held,
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

    /// The receiver in `slot` moves: until it is known what it has received, that is everything.
    pub(super) fn hold(&mut self, slot: u32) {
        for number in self.numbers_to(slot) {
            let was_delivered = self
                .calls
                .get(&number)
                .is_some_and(|call| matches!(call.place, Place::Delivered(_)));
            self.set_place(number, Place::Held);
            if let Some(call) = self.calls.get_mut(&number) {
                call.is_received |= was_delivered;
            }
        }
    }

    /// A held call had not been received.
    pub(super) fn unreceived(&mut self, to: Endpoint, id: CallId) {
        let call = self.get_mut(Lane::new(id, to));
        if let Some(call) = call.filter(|call| call.message.tag == id.tag) {
            call.is_received = false;
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
        let received = if self.is_received { RECEIVED } else { 0 };
        let message = Message { status: self.message.status | received, ..self.message };
        out.push(Output::Deliver { dc, to, cred: self.cred, message, payload });
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
        let is_one_way = message.status & m3ipc::port::ONE_WAY != 0;
        let needs =
            if is_one_way { m3ipc::rights::call::SEND } else { m3ipc::rights::call::SENDREC };
        let (cancelled, kept) = (false, Bytes::new());
        let (tag, uid, number, epoch) = (id.tag, cred.uid, message.call, 0);
        let call = OutCall { to, tag, uid, call: number, cancelled, needs, kept, epoch };
        if payload.len() > PAYLOAD_MAX || payload.len() != message.payload_len as usize {
            return end_outgoing(dc, id.source, &call, IpcError::TooLarge, out);
        }
        let request = Request { dc, to, cred: *cred, message: *message, payload };
        self.make_call(now, &request, call, out);
    }

    /// Makes a call where its receiver is, perhaps on this node: the channel was opened when it was elsewhere, or moved.
    fn make_call(
        &mut self,
        now: Nanos,
        request: &Request<'_>,
        call: OutCall,
        out: &mut Vec<Output>,
    ) {
        let (dc, id) = (request.dc, request.id());
        let failed = call.clone();
        match self.admit_outgoing(dc, id, call, out) {
            Ok(Admitted::New(node)) => self.send_request(now, node, request, out),
            Ok(Admitted::Here) => self.request(now, self.node, request, out),
            Ok(Admitted::Already) => {}
            Err(error) => {
                let error = why_ended(error, request.message.status);
                end_outgoing(dc, id.source, &failed, error, out);
            }
        }
    }

    fn send_request(
        &mut self,
        now: Nanos,
        node: NodeId,
        request: &Request<'_>,
        out: &mut Vec<Output>,
    ) {
        let bytes = self.send(now, node, &Frame::Request(*request), out);
        let key = (request.dc, Lane::new(request.id(), request.to));
        if request.to.is_well_known()
            && let Some(peer) = self.peers.get_mut(&node)
            && let Some(call) = peer.outgoing.get_mut(&key)
        {
            call.kept = bytes;
            peer.open_out.grow((request.dc, call.uid), call.kept.len());
        }
    }

    /// The receiver of a call of this node is not where it was made: it is made again, by the same tag.
    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::Moved")]
    pub(super) fn moved(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        to: Endpoint,
        id: CallId,
        is_received: bool,
        out: &mut Vec<Output>,
    ) {
        let container = self.containers.get(&dc);
        let epoch = container.map_or(0, |container| container.directory.epoch(to.slot));
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let key = (dc, Lane::new(id, to));
        if peer.outgoing.get(&key).is_none_or(|call| call.tag != id.tag) {
            return;
        }
        let Some(call) = peer.remove_outgoing(&key) else { return };
        let kept = call.kept.clone();
        let request = match decode(&kept) {
            Ok((Packet { frame: Frame::Request(request), .. }, _)) if epoch > call.epoch => request,
            // Its node does not know where it is, or its memory was meant, which does not move.
            _ => return end_outgoing(dc, id.source, &call, IpcError::DestinationDied, out),
        };
        let received = if is_received { RECEIVED } else { 0 };
        let message = Message { status: request.message.status | received, ..request.message };
        let request = Request { message, ..request };
        let cancelled = call.cancelled;
        self.make_call(
            now,
            &request,
            OutCall { cancelled: false, kept: Bytes::new(), ..call },
            out,
        );
        if cancelled {
            self.local_cancel(now, dc, to, id, out);
        }
    }

    /// The process that made these calls is not that endpoint any more: they end.
    pub(super) fn take_back_outgoing(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        source: Endpoint,
        to: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let (first, last) = Lane::all(source, to.slot).into_inner();
        if node == self.node {
            let Some(container) = self.containers.get(&dc) else { return };
            for lane in container.incoming.lanes_of(source, to.slot) {
                self.end_incoming_by(now, dc, &[lane], IpcError::Moved, out);
            }
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let keys: Vec<_> =
            peer.outgoing.range((dc, first)..=(dc, last)).map(|(key, _)| *key).collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&node) else { return };
            if let Some(call) = peer.remove_outgoing(&key) {
                let id = CallId { source, tag: call.tag };
                end_outgoing(dc, source, &call, IpcError::Moved, out);
                self.send(now, node, &Frame::Cancel { dc, to: call.to, id }, out);
            }
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
        let home = container.home(call.to).ok_or(IpcError::NotBound)?;
        let binding = container.slots.get_mut(id.source).ok_or(IpcError::Stale)?;
        // The channel is older than its requester's rights may be.
        let useful = if call.to.is_memory() { m3ipc::rights::call::VCOPY } else { call.needs };
        if call.needs != 0 && (!binding.rights.may(useful) || !binding.rights.to.contains(call.to))
        {
            return Err(IpcError::Denied);
        }
        let reach = (home, call.to);
        if binding.reached.len() >= PEERS_PER_ENDPOINT && !binding.reached.contains(&reach) {
            return Err(IpcError::Exhausted);
        }
        if home == self.node {
            let owner = if call.to.is_memory() { call.to.of_memory() } else { call.to };
            // Others do not move: nobody has a channel over the daemon to one that is here.
            if !owner.is_well_known() {
                return Err(IpcError::NotBound);
            }
            binding.reached.insert(reach);
            return Ok(Admitted::Here);
        }
        let peer = self.peers.get_mut(&home).ok_or(IpcError::NotBound)?;
        let key = (dc, Lane::new(id, call.to));
        match peer.outgoing.get(&key) {
            Some(open) if open.tag == id.tag => return Ok(Admitted::Already),
            Some(open) if open.tag > id.tag => return Err(IpcError::Stale),
            _ => {}
        }
        if matches!(peer.state(), NodeState::Down { .. }) {
            return Err(IpcError::NodeDown);
        }
        if !peer.open_out.has_room((dc, call.uid)) || peer.unreceived_bytes() > UNRECEIVED_MAX {
            return Err(IpcError::Exhausted);
        }
        binding.reached.insert(reach);
        // A caller that uses a lane again does not wait for the call that was open on it.
        if let Some(old) = peer.remove_outgoing(&key) {
            end_outgoing(dc, id.source, &old, IpcError::Interrupted, out);
        }
        let epoch = container.directory.epoch(call.to.slot);
        peer.open_out.add((dc, call.uid), call.kept.len());
        peer.outgoing.insert(key, OutCall { epoch, ..call });
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
        if node == self.node {
            return self.cancel(now, dc, to, id, out);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(call) = peer.outgoing.get_mut(&(dc, Lane::new(id, to))) else { return };
        if call.tag == id.tag && !call.cancelled {
            call.cancelled = true;
            let to = call.to;
            self.send(now, node, &Frame::Cancel { dc, to, id }, out);
            if let Some(peer) = self.peers.get_mut(&node)
                && !matches!(peer.state(), NodeState::Up { .. })
            {
                peer.end_given_up((dc, Lane::new(id, to)), out);
            }
        }
    }

    /// The answer of another node, which came in `packet`; to a call that is not open any more it is nothing.
    pub(super) fn answer(
        &mut self,
        node: NodeId,
        answer: &Answer<'_>,
        packet: &Packet<'_>,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (id, dc) = (answer.id(), answer.dc);
        let key = (dc, Lane::new(id, answer.message.source));
        if peer.outgoing.get(&key).is_none_or(|call| call.tag != id.tag) {
            return;
        }
        let Some(call) = peer.remove_outgoing(&key) else { return };
        let from = call.to;
        let payload = packet.keep(answer.payload);
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
            peer.remove_outgoing(&key);
        }
    }
}

enum Admitted {
    New(NodeId),
    /// Its receiver is on this node.
    Here,
    /// It is under way.
    Already,
}

fn end_outgoing(
    dc: DcId,
    source: Endpoint,
    call: &OutCall,
    error: IpcError,
    out: &mut Vec<Output>,
) {
    let message =
        Message { source: call.to, tag: call.tag, ..Message::undelivered(call.call, error) };
    let id = CallId { source, tag: call.tag };
    out.push(Output::AnswerLocal { dc, from: call.to, id, message, payload: Bytes::new() });
}

impl Peer {
    fn remove_outgoing(&mut self, key: &(DcId, Lane)) -> Option<OutCall> {
        let call = self.outgoing.remove(key)?;
        self.open_out.remove((key.0, call.uid), call.kept.len());
        Some(call)
    }

    /// The container has nothing to do with the node any more.
    pub(super) fn end_outgoing_of(&mut self, dc: DcId, out: &mut Vec<Output>) {
        let of = |key: &&(DcId, Lane)| key.0 == dc;
        let keys: Vec<(DcId, Lane)> = self.outgoing.keys().filter(of).copied().collect();
        for key in keys {
            if let Some(call) = self.remove_outgoing(&key) {
                end_outgoing(dc, key.1.source, &call, IpcError::NodeDown, out);
            }
        }
    }

    /// There is no link: whoever has given a call up does not wait until there is one, to know whether it was executed.
    pub(super) fn end_cancelled(&mut self, out: &mut Vec<Output>) {
        let given_up = self.outgoing.iter().filter(|(_, call)| call.is_given_up());
        let keys: Vec<(DcId, Lane)> = given_up.map(|(key, _)| *key).collect();
        for key in keys {
            self.end_given_up(key, out);
        }
    }

    fn end_given_up(&mut self, key: (DcId, Lane), out: &mut Vec<Output>) {
        if self.outgoing.get(&key).is_some_and(OutCall::is_given_up)
            && let Some(call) = self.remove_outgoing(&key)
        {
            end_outgoing(key.0, key.1.source, &call, IpcError::Interrupted, out);
        }
    }

    /// The node is gone: none of the calls it has will be answered.
    pub(super) fn end_all_outgoing(&mut self, out: &mut Vec<Output>) {
        self.open_out = Shares::default();
        for ((dc, lane), call) in std::mem::take(&mut self.outgoing) {
            end_outgoing(dc, lane.source, &call, IpcError::NodeDown, out);
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
            Ok(Entrance::To(place)) => place,
            Ok(Entrance::Already) => return,
            Ok(Entrance::Elsewhere) => {
                let (dc, to) = (request.dc, request.to);
                let is_received = request.message.status & RECEIVED != 0;
                return self.send_moved(now, node, dc, to, id, is_received, out);
            }
            Err(error) => {
                let error = why_ended(error, request.message.status);
                let message = Message::undelivered(request.message.call, error);
                return self.send_answer(now, node, request.dc, request.to, id, message, &[], out);
            }
        };
        // A caller that uses a lane again does not wait for the call that was open on it.
        if let Some(old) = self.drop_incoming(request.dc, lane)
            && node == self.node
        {
            let ended = Message::undelivered(old.message.call, IpcError::Interrupted);
            self.send_answer(now, node, request.dc, old.to, old.id(), ended, &[], out);
        }
        let is_received = request.message.status & RECEIVED != 0;
        let message = Message { status: request.message.status & !RECEIVED, ..request.message };
        let call = InCall {
            node,
            lane,
            to: request.to,
            cred: request.cred,
            message,
            payload: Bytes::copy_from_slice(request.payload),
            cancelled: false,
            is_received,
            place,
        };
        if let Place::Delivered(to) = place {
            call.deliver(request.dc, to, out);
        }
        if let Some(container) = self.containers.get_mut(&request.dc) {
            let peer = self.peers.get_mut(&node);
            let open = peer.map_or(&mut self.own_open, |peer| &mut peer.open_in);
            open.add((request.dc, call.cred.uid), call.payload.len());
            container.incoming.insert(call);
        }
    }

    /// A call in the name of an endpoint that, as far as this node knows, is not where it comes from.
    pub(super) fn refuse_request(
        &mut self,
        now: Nanos,
        node: NodeId,
        request: &Request<'_>,
        out: &mut Vec<Output>,
    ) {
        let message = Message::undelivered(request.message.call, IpcError::Stale);
        self.send_answer(now, node, request.dc, request.to, request.id(), message, &[], out);
    }

    /// The call belongs where the receiver is now. (A caller of this node finds it by itself.)
    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::Moved")]
    fn send_moved(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        to: Endpoint,
        id: CallId,
        is_received: bool,
        out: &mut Vec<Output>,
    ) {
        self.send(now, node, &Frame::Moved { dc, to, id, is_received }, out);
    }

    /// The receiver in `slot` has moved: the calls that wait for it here are made again where it is.
    pub(super) fn redirect_incoming(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get(&dc) else { return };
        let lanes: Vec<Lane> = container
            .incoming
            .numbers_to(slot)
            .iter()
            .filter_map(|number| container.incoming.calls.get(number))
            .map(|call| call.lane)
            .collect();
        for lane in lanes {
            let Some(call) = self.drop_incoming(dc, lane) else { continue };
            let (id, to, is_received) = (call.id(), call.to, call.is_received);
            if call.node != self.node {
                self.send_moved(now, call.node, dc, to, id, is_received, out);
                continue;
            }
            let received = if is_received { RECEIVED } else { 0 };
            let message = Message { status: call.message.status | received, ..call.message };
            let request = Request { dc, to, cred: call.cred, message, payload: &call.payload };
            // Its rights have been checked when it was made.
            let (tag, uid, number, needs) = (id.tag, call.cred.uid, call.message.call, 0);
            let (cancelled, kept, epoch) = (false, Bytes::new(), 0);
            let again = OutCall { to, tag, uid, call: number, cancelled, needs, kept, epoch };
            self.make_call(now, &request, again, out);
            if call.cancelled {
                self.local_cancel(now, dc, to, id, out);
            }
        }
    }

    /// Nobody has what the receiver in `slot` had received.
    pub(super) fn end_received(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let lanes: Vec<Lane> = container
            .incoming
            .numbers_to(slot)
            .iter()
            .filter_map(|number| container.incoming.calls.get(number))
            .filter(|call| call.is_received)
            .map(|call| call.lane)
            .collect();
        self.end_incoming(now, dc, &lanes, out);
    }

    /// Where the call goes.
    fn admit_incoming(
        &self,
        now: Nanos,
        node: NodeId,
        request: &Request<'_>,
        lane: Lane,
    ) -> Result<Entrance, IpcError> {
        let container = self.containers.get(&request.dc).ok_or(IpcError::NotBound)?;
        if !container.dc.nodes.contains(&node) {
            return Err(IpcError::Denied);
        }
        if container.is_elsewhere(request.to) {
            return Ok(Entrance::Elsewhere);
        }
        match container.incoming.get(lane) {
            Some(open) if open.message.tag == request.message.tag => return Ok(Entrance::Already),
            Some(open) if open.message.tag > request.message.tag => return Err(IpcError::Stale),
            _ => {}
        }
        let open = match self.peers.get(&node) {
            Some(peer) => &peer.open_in,
            None if node == self.node => &self.own_open,
            None => return Err(IpcError::Denied),
        };
        if !open.has_room((request.dc, request.cred.uid)) {
            return Err(IpcError::Exhausted);
        }
        if !container.accepts(request.to, request.message.source) {
            return Err(IpcError::Denied);
        }
        match container.find(request.to) {
            Found::Bound(to) => Ok(Entrance::To(Place::Delivered(to))),
            Found::Absent => Ok(Entrance::To(Place::Waiting(now + SERVER_WAIT))),
            Found::Moving => Ok(Entrance::To(Place::Held)),
            Found::No(error) => Err(error),
        }
    }

    /// The caller of a call that another node has sent wants it ended. A server that is not there may have
    /// executed it before it died, so its successor decides.
    pub(super) fn cancel(
        &mut self,
        now: Nanos,
        dc: DcId,
        to: Endpoint,
        id: CallId,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let lane = Lane::new(id, to);
        let Some(call) = container.incoming.get_mut(lane) else { return };
        if call.message.tag != id.tag || call.cancelled {
            return;
        }
        call.cancelled = true;
        match call.place {
            Place::Delivered(to) => out.push(Output::DeliverCancel { dc, to, id }),
            Place::Waiting(_) => {}
            Place::Held => self.end_incoming_by(now, dc, &[lane], IpcError::Interrupted, out),
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
        // Answered before it stopped, if its receiver moves.
        let is_held =
            call.place == Place::Held && container.directory.moving(from.slot) == Some(from);
        if call.message.tag != id.tag || call.place != Place::Delivered(from) && !is_held {
            return;
        }
        let (node, call) = (call.node, call.message.call);
        let may_relay = container.slots.get(from).is_none_or(|bound| bound.rights.may(RELAY));
        self.drop_incoming(dc, lane);
        if message.status == RELAYED && !may_relay {
            let message = Message::undelivered(call, IpcError::Protocol);
            return self.send_answer(now, node, dc, from, id, message, &[], out);
        }
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
        if node == self.node {
            let payload = Bytes::copy_from_slice(payload);
            return out.push(Output::AnswerLocal { dc, from, id, message, payload });
        }
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
        self.end_incoming_by(now, dc, lanes, IpcError::DestinationDied, out);
    }

    fn end_incoming_by(
        &mut self,
        now: Nanos,
        dc: DcId,
        lanes: &[Lane],
        error: IpcError,
        out: &mut Vec<Output>,
    ) {
        for lane in lanes {
            let Some(call) = self.drop_incoming(dc, *lane) else { continue };
            let message = Message::undelivered(call.message.call, error);
            self.send_answer(now, call.node, dc, call.to, call.id(), message, &[], out);
        }
    }

    /// The container has nothing to do with the node any more: its calls end.
    pub(super) fn end_incoming_from(
        &mut self,
        now: Nanos,
        dc: DcId,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let incoming = self.containers.get(&dc).map(|container| &container.incoming);
        let lanes = incoming.map(|incoming| incoming.lanes_from(node)).unwrap_or_default();
        self.end_incoming_by(now, dc, &lanes, IpcError::NodeDown, out);
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
        let peer = self.peers.get_mut(&call.node);
        let open = peer.map_or(&mut self.own_open, |peer| &mut peer.open_in);
        open.remove((dc, call.cred.uid), call.payload.len());
        Some(call)
    }
}

/// Who has had a call received is not told that there was nobody.
fn why_ended(error: IpcError, status: u16) -> IpcError {
    match error {
        IpcError::NotBound | IpcError::Stale if status & RECEIVED != 0 => IpcError::DestinationDied,
        error => error,
    }
}

/// Where a call that comes in goes.
enum Entrance {
    To(Place),
    Already,
    /// Its receiver is on another node.
    Elsewhere,
}
