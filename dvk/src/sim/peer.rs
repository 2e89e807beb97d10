//! Peers in the simulator: processes that receive and answer, stand by for each other, and take each other's place.

use super::node::Ask;
use super::service::{Item, Origin};
use super::{Event, MICROSECOND, MILLISECOND, Sim};
use crate::kernel::{Input, Role};
use m3ipc::port::RECEIVED;
use m3ipc::{CallId, Endpoint, IpcError, Message, NodeId};
use std::collections::BTreeSet;

/// The process of a peer.
#[derive(Debug)]
pub(super) struct Peer {
    node: NodeId,
    role: Role,
    is_alive: bool,
    /// `None` until it is bound.
    pub(super) endpoint: Option<Endpoint>,
    /// It makes no calls: it stands by, or is on the move.
    is_still: bool,
    inherits: bool,
    /// In its lanes, and not received.
    inbox: Vec<Item>,
    /// Received and not answered.
    open: Vec<Open>,
    /// Answers to calls of other nodes that the daemon has not read yet.
    unread: Vec<(CallId, Message)>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    id: CallId,
    message: Message,
    origin: Origin,
    /// The channel over which it came is closed, and its caller has not come again.
    is_lost: bool,
}

impl Peer {
    pub(super) fn new(node: NodeId, role: Role) -> Peer {
        Peer {
            node,
            role,
            is_alive: false,
            endpoint: None,
            is_still: matches!(role, Role::Backup(..)),
            inherits: false,
            inbox: Vec::new(),
            open: Vec::new(),
            unread: Vec::new(),
        }
    }

    fn claimed(&self) -> BTreeSet<CallId> {
        self.open.iter().filter(|open| !open.is_lost).map(|open| open.id).collect()
    }
}

impl Sim {
    /// A peer starts on `node` after `after`, or as soon as the node is up. It answers every request with its own
    /// arguments. When all programs have come to their end, the peers are killed.
    pub fn spawn_peer(&mut self, after: crate::server::Nanos, node: NodeId, role: Role) {
        let pid = self.next_pid();
        self.peers.insert(pid, Peer::new(node, role));
        self.at(self.now + after, Event::SpawnPeer { pid });
    }

    pub(super) fn start_peer(&mut self, pid: u32) {
        let Some(peer) = self.peers.get_mut(&pid) else { return };
        let (id, role) = (peer.node, peer.role);
        let Some(node) = self.nodes.get(&id).filter(|node| node.kernel.is_some()) else {
            return self.after(100 * MILLISECOND, 300 * MILLISECOND, Event::SpawnPeer { pid });
        };
        let incarnation = node.incarnation;
        peer.is_alive = true;
        self.soon(Event::Asked { node: id, incarnation, pid, ask: Ask::Hello(role) });
    }

    pub(super) fn peer_welcome(&mut self, pid: u32, endpoint: Endpoint) -> bool {
        match self.peers.get_mut(&pid) {
            Some(peer) => {
                peer.endpoint = Some(endpoint);
                true
            }
            None => false,
        }
    }

    /// Its number is somebody else's, or it died meanwhile.
    pub(super) fn peer_refused(&mut self, pid: u32) -> bool {
        self.peers.remove(&pid).is_some()
    }

    fn peer_at(&mut self, id: NodeId, endpoint: Endpoint) -> Option<(u32, &mut Peer)> {
        self.peers
            .iter_mut()
            .find(|(_, peer)| peer.node == id && peer.endpoint == Some(endpoint))
            .map(|(pid, peer)| (*pid, peer))
    }

    /// Puts something in front of the peer bound as `to`. False: there is none.
    pub(super) fn post_to_peer(&mut self, id: NodeId, to: Endpoint, item: &Item) -> bool {
        let Some((pid, peer)) = self.peer_at(id, to) else { return false };
        match item {
            Item::Request { origin, cred, message, payload } => {
                let (origin, cred, message) = (*origin, *cred, *message);
                let payload = payload.clone();
                peer.inbox.push(Item::Request { origin, cred, message, payload });
                self.soon(Event::PeerLook { pid });
            }
            Item::Cancel(call) => self.take_back_from_peer(id, pid, *call),
            // Those who are gone get their answers in vain.
            Item::Gone(..) => {}
        }
        true
    }

    /// The caller withdraws its call, or abandons it.
    fn take_back_from_peer(&mut self, id: NodeId, pid: u32, call: CallId) {
        let Some(peer) = self.peers.get_mut(&pid) else { return };
        let mut found = None;
        peer.inbox.retain(|item| match item {
            Item::Request { origin, message, .. }
                if (message.source, message.tag) == (call.source, call.tag) =>
            {
                found = Some((*origin, *message));
                false
            }
            _ => true,
        });
        peer.open.retain(|open| {
            if open.id == call && !open.is_lost {
                found = Some((open.origin, open.message));
            }
            open.id != call
        });
        let endpoint = peer.endpoint.unwrap_or_default();
        let Some((origin, message)) = found else { return };
        let ended = Message::undelivered(message.call, IpcError::Interrupted);
        self.peer_answers_now(id, endpoint, origin, call, ended);
    }

    fn peer_answers_now(
        &mut self,
        id: NodeId,
        from: Endpoint,
        origin: Origin,
        call: CallId,
        message: Message,
    ) {
        let message = Message { source: from, tag: call.tag, ..message };
        match origin {
            Origin::Process(caller) => {
                self.lane_answered(Some(caller), call, message, Vec::new());
            }
            Origin::Daemon => {
                let dc = self.dc.id;
                let input =
                    Input::LocalAnswer { dc, from, id: call, message: &message, payload: &[] };
                self.step(id, input);
            }
        }
    }

    /// A peer receives what is there.
    pub(super) fn peer_looks(&mut self, pid: u32) {
        let Some(peer) = self.peers.get_mut(&pid) else { return };
        if !peer.is_alive || peer.is_still {
            return;
        }
        let (id, endpoint, inherits) =
            (peer.node, peer.endpoint.unwrap_or_default(), peer.inherits);
        for item in std::mem::take(&mut peer.inbox) {
            let Item::Request { origin, message, .. } = item else { continue };
            let call = CallId { source: message.source, tag: message.tag };
            let open = Open { id: call, message, origin, is_lost: false };
            let Some(peer) = self.peers.get_mut(&pid) else { return };
            if message.status & RECEIVED == 0 {
                peer.open.push(open);
                *self.received.entry(message.args).or_default() += 1;
            } else if let Some(known) = peer.open.iter_mut().find(|known| known.id == call) {
                *known = open;
            } else if inherits {
                peer.open.push(open);
            } else {
                let ended = Message::undelivered(message.call, IpcError::DestinationDied);
                self.peer_answers_now(id, endpoint, origin, call, ended);
                continue;
            }
            self.after(MICROSECOND, 3 * MILLISECOND, Event::PeerAnswer { pid, call });
        }
    }

    pub(super) fn peer_answers(&mut self, pid: u32, call: CallId) {
        let Some(peer) = self.peers.get_mut(&pid) else { return };
        let Some(at) = peer.open.iter().position(|open| open.id == call) else { return };
        // When its caller comes again, or the endpoint goes on, it is answered then.
        if peer.is_still || peer.open[at].is_lost {
            return;
        }
        let open = peer.open.remove(at);
        let answer = Message { status: 0, payload_len: 0, ..open.message };
        match open.origin {
            Origin::Process(_) => {
                let (id, endpoint) = (peer.node, peer.endpoint.unwrap_or_default());
                self.peer_answers_now(id, endpoint, open.origin, call, answer);
            }
            Origin::Daemon => {
                peer.unread.push((call, answer));
                self.soon(Event::PeerRead { pid });
            }
        }
    }

    /// The daemon reads what the peer has answered.
    pub(super) fn read_peer(&mut self, pid: u32) {
        let Some(peer) = self.peers.get_mut(&pid) else { return };
        let (id, from) = (peer.node, peer.endpoint.unwrap_or_default());
        for (call, message) in std::mem::take(&mut peer.unread) {
            self.peer_answers_now(id, from, Origin::Daemon, call, message);
        }
    }

    /// `Output::Freeze`.
    pub(super) fn freeze_peer(&mut self, id: NodeId, endpoint: Endpoint) {
        let Some((pid, _)) = self.peer_at(id, endpoint) else { return };
        self.read_peer(pid);
        let Some(peer) = self.peers.get_mut(&pid) else { return };
        peer.is_still = true;
        let claimed = peer.claimed();
        for open in &mut peer.open {
            open.is_lost = true;
        }
        self.take_back_unreceived(id, pid, endpoint);
        self.vacate(id, endpoint, &claimed, false);
        let incarnation = self.nodes.get(&id).map_or(0, |node| node.incarnation);
        self.soon(Event::PeerStopped { node: id, incarnation, pid });
    }

    fn take_back_unreceived(&mut self, id: NodeId, pid: u32, to: Endpoint) {
        let Some(peer) = self.peers.get_mut(&pid) else { return };
        for item in std::mem::take(&mut peer.inbox) {
            if let Item::Request { origin: Origin::Daemon, message, .. } = item
                && message.status & RECEIVED == 0
            {
                let call = CallId { source: message.source, tag: message.tag };
                self.step(id, Input::Unreceived { dc: self.dc.id, to, id: call });
            }
        }
    }

    /// The process has said that it stopped; nothing, if it was killed before.
    pub(super) fn peer_stopped(&mut self, id: NodeId, incarnation: u64, pid: u32) {
        let is_it = self.nodes.get(&id).is_some_and(|node| node.incarnation == incarnation);
        let endpoint =
            self.peers.get(&pid).filter(|peer| peer.is_alive).and_then(|peer| peer.endpoint);
        if let Some(endpoint) = endpoint.filter(|_| is_it) {
            self.step(id, Input::Frozen { dc: self.dc.id, endpoint });
        }
    }

    /// `Output::Thaw`: what it had received, it answers when the callers come again.
    pub(super) fn thaw_peer(&mut self, id: NodeId, endpoint: Endpoint) {
        if let Some((pid, peer)) = self.peer_at(id, endpoint) {
            peer.is_still = false;
            self.soon(Event::PeerLook { pid });
        }
    }

    /// `Output::TakeOver`.
    pub(super) fn take_over_peer(&mut self, id: NodeId, endpoint: Endpoint) {
        if let Some((pid, peer)) = self.peer_at(id, endpoint) {
            let claimed = peer.claimed();
            self.take_back_unreceived(id, pid, endpoint);
            self.vacate(id, endpoint, &claimed, true);
            if let Some(peer) = self.peers.get_mut(&pid) {
                peer.endpoint = None;
            }
        }
        self.step(id, Input::Frozen { dc: self.dc.id, endpoint });
    }

    /// `Output::Promote` and `Output::Demote`.
    pub(super) fn rename_peer(
        &mut self,
        id: NodeId,
        from: Endpoint,
        to: Endpoint,
        promoted: Option<bool>,
    ) {
        if promoted.is_none() {
            self.vacate(id, from, &BTreeSet::new(), false);
        }
        if let Some(node) = self.nodes.get_mut(&id)
            && let Some(pid) = node.bound.remove(&from)
        {
            node.bound.insert(to, pid);
        }
        let Some((_, peer)) = self.peer_at(id, from) else { return };
        peer.endpoint = Some(to);
        peer.is_still = promoted.is_none();
        peer.inherits = promoted.unwrap_or(false);
        peer.open.clear();
        peer.inbox.clear();
        peer.unread.clear();
    }

    /// Somebody kills a peer that is alive.
    pub(super) fn kill_some_peer(&mut self) {
        let alive: Vec<u32> =
            self.peers.iter().filter(|(_, peer)| peer.is_alive).map(|(pid, _)| *pid).collect();
        if !alive.is_empty() {
            self.stats.process_kills += 1;
            let pid = alive[self.random.index(alive.len())];
            self.kill_peer(pid);
        }
    }

    fn kill_peer(&mut self, pid: u32) {
        self.note(format!("peer {pid} is dead"));
        let Some(peer) = self.peers.get_mut(&pid) else { return };
        peer.is_alive = false;
        let node = peer.node;
        let incarnation = self.nodes.get(&node).map_or(0, |node| node.incarnation);
        self.soon(Event::NoticePeerDeath { node, incarnation, pid });
    }

    /// All programs are done: so are the peers.
    pub(super) fn end_peers(&mut self) {
        let alive: Vec<u32> =
            self.peers.iter().filter(|(_, peer)| peer.is_alive).map(|(pid, _)| *pid).collect();
        self.peers.retain(|pid, _| alive.contains(pid));
        for pid in alive {
            self.kill_peer(pid);
        }
    }

    pub(super) fn notice_peer_death(&mut self, id: NodeId, incarnation: u64, pid: u32) {
        let Some(node) = self.nodes.get(&id).filter(|node| node.incarnation == incarnation) else {
            self.peers.remove(&pid);
            return;
        };
        let bound = node.bound.iter().find(|(_, of)| **of == pid).map(|(endpoint, _)| *endpoint);
        self.read_peer(pid);
        self.withdraw_all(id, pid);
        if let Some(endpoint) = bound {
            self.step(id, Input::Died { dc: self.dc.id, endpoint });
            if let Some(node) = self.nodes.get_mut(&id) {
                node.bound.retain(|_, of| *of != pid);
            }
        }
        self.peers.remove(&pid);
    }

    /// A node has crashed, and its peers with it.
    pub(super) fn forget_peers(&mut self, id: NodeId) {
        self.peers.retain(|_, peer| peer.node != id || !peer.is_alive);
    }
}
