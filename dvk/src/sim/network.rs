//! The wires: links of two tracks, each of which keeps its order, and loses what is under way when it breaks.

use super::{Event, MICROSECOND, MILLISECOND, SECOND, Sim};
use crate::frame::{Frame, Hello, Packet, Track, decode};
use crate::kernel::{Input, LinkId};
use crate::server::Nanos;
use bytes::Bytes;
use m3ipc::NodeId;
use std::collections::VecDeque;

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Who has made it.
    Caller = 0,
    Called = 1,
}

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Caller => Side::Called,
            Side::Called => Side::Caller,
        }
    }
}

/// A link: two connections, which end together.
#[derive(Debug)]
pub(super) struct Wire {
    /// By side.
    nodes: [NodeId; 2],
    ends: [End; 2],
}

#[derive(Debug)]
struct End {
    /// Its daemon has not closed it.
    is_open: bool,
    /// The Hello it has sent.
    sent: Option<Hello>,
    /// It has got the other's, and told its kernel.
    is_up: bool,
    /// By track: nothing arrives here before that: the order of a stream.
    last_arrival: [Nanos; 2],
    /// By track: nothing that would arrive here after that does.
    lost_after: [Nanos; 2],
    /// Bulk frames that came too early: they wait in the socket.
    held: VecDeque<Bytes>,
}

impl End {
    fn new(is_open: bool) -> End {
        let (last_arrival, lost_after) = ([0; 2], [Nanos::MAX; 2]);
        End { is_open, sent: None, is_up: false, last_arrival, lost_after, held: VecDeque::new() }
    }

    /// From now on nothing arrives.
    fn lose(&mut self, after: [Nanos; 2]) {
        for (lost, after) in self.lost_after.iter_mut().zip(after) {
            *lost = (*lost).min(after);
        }
    }
}

impl Sim {
    /// The node with the lower number connects: two do not make two connections.
    pub(super) fn want_link(&mut self, one: NodeId, two: NodeId) {
        let (from, to) = (one.min(two), one.max(two));
        self.after(10 * MILLISECOND, 150 * MILLISECOND, Event::Connect { from, to });
    }

    pub(super) fn connect(&mut self, from: NodeId, to: NodeId) {
        let Some(node) = self.nodes.get(&from) else { return };
        let has_link = node.links.contains_key(&to);
        let Some(hello) = node.kernel.as_ref().and_then(|kernel| kernel.hello(to)) else { return };
        let under_way = self.wires.values().any(|wire| {
            let caller = &wire.ends[0];
            wire.nodes == [from, to] && caller.is_open && !caller.is_up
        });
        if has_link || under_way {
            return;
        }
        if self.silence(from, to).max(self.silence(to, from)) > self.now
            || self.nodes[&to].kernel.is_none()
        {
            return self.want_link(from, to);
        }
        let link = LinkId(self.number());
        let mut wire = Wire { nodes: [from, to], ends: [End::new(true), End::new(false)] };
        wire.ends[0].sent = Some(hello);
        self.wires.insert(link, wire);
        self.soon(Event::Accept(link));
        self.after(SECOND, 2 * SECOND, Event::HelloTimeout(link));
    }

    pub(super) fn accept(&mut self, link: LinkId) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let [from, to] = wire.nodes;
        let Some(kernel) = self.nodes.get(&to).and_then(|node| node.kernel.as_ref()) else {
            return;
        };
        if wire.ends[1].lost_after.iter().any(|lost| *lost <= self.now) {
            return;
        }
        wire.ends[1].is_open = true;
        wire.ends[1].sent = kernel.hello(from);
        // What the caller has said meanwhile has waited in the socket.
        for side in [Side::Caller, Side::Called] {
            let hello = self.wires.get(&link).and_then(|wire| wire.ends[side as usize].sent);
            if let Some(hello) = hello {
                // On both tracks; it is over when both have come. Here they come as one.
                let packet = Packet::alone(Frame::Hello(hello));
                self.transmit(link, side, Track::Small, Bytes::from(packet.encode()));
            }
        }
    }

    pub(super) fn hello_timeout(&mut self, link: LinkId) {
        if self.wires.get(&link).is_some_and(|wire| wire.ends[0].is_open && !wire.ends[0].is_up) {
            let [from, to] = self.wires[&link].nodes;
            self.close(link, Side::Caller);
            self.want_link(from, to);
        }
    }

    /// The kernel of `node` sends on its link.
    pub(super) fn send(&mut self, node: NodeId, link: LinkId, track: Track, bytes: Bytes) {
        self.stats.frames += 1;
        if let Some(side) = self.side(node, link) {
            self.transmit(link, side, track, bytes);
        }
    }

    fn transmit(&mut self, link: LinkId, from: Side, track: Track, bytes: Bytes) {
        let at = from.other();
        let Some(nodes) = self.wires.get(&link).map(|wire| wire.nodes) else { return };
        let silent = self.silence(nodes[from as usize], nodes[at as usize]);
        let delay = if self.random.chance(30) { 50 * MILLISECOND } else { 400 * MICROSECOND };
        let delay = self.random.between(20 * MICROSECOND, delay);
        let double = self.random.chance(self.faults.doubles);
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let end = &mut wire.ends[at as usize];
        // A stream keeps its order; a Hello is not overtaken.
        let mut arrival = (self.now.max(silent) + delay).max(end.last_arrival[track as usize] + 1);
        if !end.is_up {
            arrival = arrival.max(end.last_arrival[Track::Small as usize] + 1);
        }
        end.last_arrival[track as usize] = arrival + 1;
        if double && arrival < end.lost_after[track as usize] {
            self.at(arrival + 1, Event::Arrive { link, at, track, bytes: bytes.clone() });
        }
        self.at(arrival, Event::Arrive { link, at, track, bytes });
    }

    pub(super) fn arrive(&mut self, link: LinkId, at: Side, track: Track, bytes: &Bytes) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let (node, from) = (wire.nodes[at as usize], wire.nodes[at.other() as usize]);
        let end = &mut wire.ends[at as usize];
        if !end.is_open || end.lost_after[track as usize] < self.now {
            return;
        }
        if track == Track::Bulk && !end.held.is_empty() {
            return end.held.push_back(bytes.clone());
        }
        let packet = match decode(bytes) {
            Ok((packet, used)) if used == bytes.len() => packet,
            other => {
                return self.wrong(format!("a frame is not read as it was written: {other:?}"));
            }
        };
        match (packet.frame, end.sent, end.is_up) {
            (Frame::Hello(received), Some(sent), false) => {
                wire.ends[at as usize].is_up = true;
                self.stats.links += 1;
                // Before the step: it may close the link again.
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.links.insert(from, link);
                }
                self.step(node, Input::LinkUp { link, sent: &sent, received: &received });
            }
            // Doubled.
            (Frame::Hello(_), ..) => {}
            // Nobody reads that track before both have said Hello, and the small one has broken before it did.
            (_, _, false) if track == Track::Bulk => {}
            (_, _, false) => self.wrong("a frame came before the Hello".to_owned()),
            (_, _, true) => {
                let kernel = self.nodes.get(&node).and_then(|node| node.kernel.as_ref());
                if kernel.is_some_and(|kernel| kernel.is_early(from, track, &packet)) {
                    self.stats.held += 1;
                    if let Some(wire) = self.wires.get_mut(&link) {
                        wire.ends[at as usize].held.push_back(bytes.clone());
                    }
                    return;
                }
                self.step(node, Input::Packet { node: from, link, track, packet: &packet });
                if track == Track::Small {
                    self.take_held(link, at);
                }
            }
        }
    }

    /// A small frame has come: bulk ones may have waited for it.
    fn take_held(&mut self, link: LinkId, at: Side) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let mut held = std::mem::take(&mut wire.ends[at as usize].held);
        while let Some(bytes) = held.pop_front() {
            self.arrive(link, at, Track::Bulk, &bytes);
            let Some(wire) = self.wires.get_mut(&link) else { return };
            let again = &mut wire.ends[at as usize].held;
            if !again.is_empty() {
                // Still too early, and so is all that came behind it.
                return again.append(&mut held);
            }
        }
    }

    /// A daemon closes its end. What it had sent may still arrive, or not.
    pub(super) fn close(&mut self, link: LinkId, side: Side) {
        let after = [self.random.below(MILLISECOND), self.random.below(MILLISECOND)];
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let end = &mut wire.ends[side as usize];
        if !end.is_open {
            return;
        }
        (end.is_open, end.lost_after) = (false, [now; 2]);
        let (near, far) = (wire.nodes[side as usize], wire.nodes[side.other() as usize]);
        let other = &mut wire.ends[side.other() as usize];
        other.lose(after.map(|after| now + after));
        self.unlink(near, far, link);
        // The end of the stream travels as everything else does.
        let arrival = self.silence(near, far).max(now + after[0].max(after[1]));
        self.at(arrival + MICROSECOND, Event::Notice { link, at: side.other() });
    }

    /// One side learns that the connection is gone.
    pub(super) fn notice(&mut self, link: LinkId, at: Side) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let end = &mut wire.ends[at as usize];
        if !end.is_open {
            return;
        }
        end.is_open = false;
        let was_up = end.is_up;
        let (near, far) = (wire.nodes[at as usize], wire.nodes[at.other() as usize]);
        self.unlink(near, far, link);
        if was_up {
            self.step(near, Input::LinkDown { node: far, link });
        }
        self.want_link(near, far);
    }

    /// A connection breaks: in each direction a part of what is under way is lost, and each side notices
    /// when it does, or by the silence.
    pub(super) fn break_link(&mut self) {
        let open: Vec<LinkId> = self
            .wires
            .iter()
            .filter(|(_, wire)| wire.ends.iter().any(|end| end.is_open))
            .map(|(link, _)| *link)
            .collect();
        if open.is_empty() {
            return;
        }
        let link = open[self.random.index(open.len())];
        self.note(format!("{link:?} breaks"));
        self.cut(link, 3 * SECOND);
    }

    fn cut(&mut self, link: LinkId, notice: Nanos) {
        for side in [Side::Caller, Side::Called] {
            // One of the two connections breaks before the other, which goes on meanwhile.
            let lost_after = [(); 2].map(|()| self.now + self.random.below(MILLISECOND));
            if let Some(wire) = self.wires.get_mut(&link) {
                wire.ends[side as usize].lose(lost_after);
            }
            let notice = if self.random.chance(500) { 5 * MILLISECOND } else { notice };
            self.after(0, notice, Event::Notice { link, at: side });
        }
    }

    /// For a while nothing arrives, in one direction or both.
    pub(super) fn fall_silent(&mut self) {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let (one, two) =
            (nodes[self.random.index(nodes.len())], nodes[self.random.index(nodes.len())]);
        // A short one delays frames, a long one makes nodes give each other up.
        let long = self.faults.silence_max;
        let most = if self.random.chance(500) { long } else { long / 10 };
        let until = self.now + self.random.below(most);
        self.note(format!("nothing from {one:?} to {two:?} until {} µs", until / MICROSECOND));
        self.silent.insert((one, two), until);
        if self.random.chance(500) {
            self.silent.insert((two, one), until);
        }
    }

    /// For a while a node hears nobody, or is heard by nobody.
    pub(super) fn cut_off_some_node(&mut self) {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let node = nodes[self.random.index(nodes.len())];
        let until = self.now + self.random.below(self.faults.silence_max);
        let (hears, is_heard) =
            [(false, false), (false, true), (true, false)][self.random.index(3)];
        self.note(format!(
            "{node:?} hears: {hears}, is heard: {is_heard}, until {} µs",
            until / MICROSECOND
        ));
        for other in nodes.into_iter().filter(|other| *other != node) {
            if !is_heard {
                self.silent.insert((node, other), until);
            }
            if !hears {
                self.silent.insert((other, node), until);
            }
        }
    }

    /// The machine at this node stops: its connections are as if cut there.
    pub(super) fn cut_all(&mut self, node: NodeId) {
        let links: Vec<LinkId> = self
            .wires
            .iter()
            .filter(|(_, wire)| wire.nodes.contains(&node))
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            for side in [Side::Caller, Side::Called] {
                if let Some(wire) = self.wires.get_mut(&link)
                    && wire.nodes[side as usize] == node
                {
                    let end = &mut wire.ends[side as usize];
                    (end.is_open, end.lost_after) = (false, [self.now; 2]);
                }
            }
            self.cut(link, 5 * SECOND);
        }
    }

    pub(super) fn side(&self, node: NodeId, link: LinkId) -> Option<Side> {
        let wire = self.wires.get(&link)?;
        [Side::Caller, Side::Called].into_iter().find(|side| wire.nodes[*side as usize] == node)
    }

    fn unlink(&mut self, node: NodeId, peer: NodeId, link: LinkId) {
        if let Some(node) = self.nodes.get_mut(&node)
            && node.links.get(&peer) == Some(&link)
        {
            node.links.remove(&peer);
        }
    }

    pub(super) fn silence(&self, from: NodeId, to: NodeId) -> Nanos {
        self.silent.get(&(from, to)).copied().unwrap_or(0)
    }
}
