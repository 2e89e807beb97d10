//! The directory: where endpoints are that have moved or have backups elsewhere, and how one moves.
//!
//! An endpoint names its home node, and is there unless it has an *entry*: at which node it is, in which of that node's
//! lives. Only endpoints with a number can have one. Entries are the system group's: all nodes learn the same ones in the
//! same order, an entry is replaced only by who knows it (compare and swap by its epoch), and as long as its node is up only
//! by that node. A node believes nobody but the group (`places`).
//!
//! The node where an endpoint is (its *place*) moves it: it stops the process, asks the new node to hold what comes for the
//! endpoint (`Frame::Adopt`), and has the group place it there. When the group has, the old place gives it up and a backup on
//! the new one becomes it; both wait first until the other nodes go by the entry (`Frame::Entry`, `Frame::Noted`), so that
//! nobody takes what comes from the new place for forged, or does not know where to send what comes back from the old one.
//! If the group takes the place for down, a backup elsewhere has itself placed instead. A node that may be taken for down
//! rests first (`fence`).
//!
//! Messages that come to an endpoint that moves are held. If it goes on here, they are delivered; if it has gone, their
//! senders' nodes are told (`Frame::Moved`) and send them to where it is now. Who had received a message before is not
//! given it again: it is delivered as one that has been received and waits for its answer (`port::RECEIVED`).

mod fence;
mod places;
mod standby;

pub(super) use places::{Binder, Number};

use super::container::Container;
use super::slots::Binding;
use super::{Asker, Entry, Kernel, NodeState, Output, Role};
use crate::frame::{Frame, Order};
use crate::limits::{FREEZE_WAIT, MIGRATION_MAX, PLACING_MAX};
use crate::server::Nanos;
use m3ipc::limits::NOTIFIERS_MAX;
use m3ipc::{CallId, DcId, Endpoint, IpcError, NodeId, Rights};
use places::Wish;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Who is told how an order ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    Here(Asker),
    There {
        node: NodeId,
        from: Endpoint,
        number: u64,
    },
    /// Nobody ordered it.
    Nobody,
}

/// An endpoint on the move.
#[derive(Debug)]
struct Move {
    endpoint: Endpoint,
    rights: Rights,
    stage: Stage,
    /// Its process here is dead.
    is_dead: bool,
    /// Nobody has what that had received: who takes over has not been given its state.
    is_takeover: bool,
    /// It has stopped because this node is fenced, and goes on when that is over.
    is_fenced: bool,
    /// It has not stopped at the fence in time.
    is_cut_off: bool,
    /// Notifications that wait, one of each source.
    pending: VecDeque<(Endpoint, u64)>,
}

impl Move {
    fn new(endpoint: Endpoint, rights: Rights, stage: Stage) -> Move {
        Move {
            endpoint,
            rights,
            stage,
            is_dead: false,
            is_takeover: false,
            is_fenced: false,
            is_cut_off: false,
            pending: VecDeque::new(),
        }
    }
}

#[derive(Debug)]
enum Stage {
    /// Its process is being stopped.
    Freezing {
        reply: Reply,
        until: Nanos,
    },
    Frozen {
        until: Nanos,
    },
    /// That node has been asked to take it on.
    Offered {
        reply: Reply,
        node: NodeId,
        epoch: u64,
    },
    /// It will, as soon as the group takes it for up.
    Ready {
        reply: Reply,
        node: NodeId,
        until: Nanos,
    },
    /// The group is asked to place it there.
    Proposed {
        reply: Reply,
        node: NodeId,
    },
    /// The group has done so.
    Leaving {
        reply: Reply,
        node: NodeId,
        gate: Gate,
    },
    /// It comes here from that node, if the group says so.
    Adopting {
        from: NodeId,
        backup: Endpoint,
    },
    /// The group is asked to place it here, as its place is down.
    Claiming {
        backup: Endpoint,
    },
    /// The group has placed it here.
    Arriving {
        backup: Endpoint,
        gate: Gate,
    },
}

/// Nodes that do not go by an entry yet, and how long they are waited for.
#[derive(Debug)]
struct Gate {
    unaware: BTreeSet<NodeId>,
    until: Nanos,
}

/// The directory of one container, as this node knows it.
#[derive(Debug, Default)]
pub(super) struct Directory {
    entries: BTreeMap<u32, Entry>,
    moves: BTreeMap<u32, Move>,
    /// What the group has been asked for and has not answered, at most one thing for each slot.
    proposed: BTreeMap<u32, Wish>,
    /// Endpoints that the group has placed here, and that nobody here is yet.
    arrivals: BTreeSet<u32>,
    /// Nodes that have asked whether this one goes by an entry of this epoch, before it did.
    asked: BTreeMap<(u32, NodeId), u64>,
    /// Processes that wait for a number whose last owner has not ended for the group.
    binders: VecDeque<Binder>,
    /// Backups of endpoints that are here, on which nodes, that take over when those die.
    standing_by: BTreeSet<(u32, NodeId, Endpoint)>,
    /// Where endpoints that are here were before: that node passes on what was pending.
    came_from: BTreeMap<u32, NodeId>,
}

impl Directory {
    pub(super) fn place(&self, slot: u32) -> Option<NodeId> {
        self.entries.get(&slot).filter(|entry| !entry.is_over).map(|entry| entry.node)
    }

    /// How many endpoints have a place.
    pub(super) fn placed_count(&self) -> usize {
        self.entries.values().filter(|entry| !entry.is_over).count()
    }

    /// Does `node` pass on what was pending at the endpoint in `slot`?
    pub(super) fn came_from(&self, slot: u32, node: NodeId) -> bool {
        self.came_from.get(&slot) == Some(&node)
    }

    /// The endpoint in `slot` that is on the move here.
    pub(super) fn moving(&self, slot: u32) -> Option<Endpoint> {
        self.moves.get(&slot).map(|moving| moving.endpoint)
    }

    pub(super) fn rights_of_moving(&self, slot: u32) -> Option<&Rights> {
        self.moves.get(&slot).map(|moving| &moving.rights)
    }

    /// Of the entry of the endpoint in `slot`; 0: it has none.
    pub(super) fn epoch(&self, slot: u32) -> u64 {
        self.entries.get(&slot).map_or(0, |entry| entry.epoch)
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        let binders = self.binders.front().map(|binder| binder.until);
        self.moves.values().filter_map(Move::until).chain(binders).min()
    }

    /// Keeps a notification for an endpoint on the move; as elsewhere, one of each source.
    pub(super) fn keep_notification(&mut self, slot: u32, from: Endpoint, value: u64) -> bool {
        let Some(moving) = self.moves.get_mut(&slot) else { return false };
        let is_pending = moving.pending.iter().any(|(source, _)| *source == from);
        if !is_pending && moving.pending.len() < NOTIFIERS_MAX {
            moving.pending.push_back((from, value));
        }
        true
    }
}

impl Container {
    /// The backup of `slot` on this node that `wanted` names, or any.
    fn backup(&self, slot: u32, wanted: Endpoint) -> Option<Endpoint> {
        let is_it = |binding: &&Binding| {
            matches!(binding.role, Role::Backup(of, _) if of.slot == slot)
                && (wanted == Endpoint::NONE || binding.endpoint == wanted)
        };
        self.slots.iter().find(is_it).map(|binding| binding.endpoint)
    }
}

/// Orders, and the way of an endpoint from one process to another.
impl Kernel {
    /// An administrator of this node orders something about `to`, wherever that is.
    #[expect(clippy::too_many_arguments, reason = "the fields of Input::Order")]
    pub(super) fn ask_order(
        &mut self,
        now: Nanos,
        asker: Asker,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        order: Order,
        privileged: bool,
        out: &mut Vec<Output>,
    ) -> Result<(), IpcError> {
        let container = self.containers.get(&dc).ok_or(IpcError::NotBound)?;
        if !privileged {
            return Err(IpcError::Denied);
        }
        container.slots.get(from).ok_or(IpcError::Stale)?;
        let place = container.home(to).ok_or(IpcError::NotBound)?;
        if place == self.node {
            self.order(now, dc, to, Reply::Here(asker), order, out);
            return Ok(());
        }
        let peer = self.peers.get(&place).ok_or(IpcError::NotBound)?;
        if matches!(peer.state(), NodeState::Down { .. }) {
            return Err(IpcError::NodeDown);
        }
        self.awaits.ask(asker, dc, from, to, place);
        self.send(now, place, &Frame::Order { dc, from, to, number: asker.0, order }, out);
        Ok(())
    }

    /// Carries out an order about an endpoint that should be here.
    pub(super) fn order(
        &mut self,
        now: Nanos,
        dc: DcId,
        to: Endpoint,
        reply: Reply,
        order: Order,
        out: &mut Vec<Output>,
    ) {
        let ended = match order {
            Order::Start => self.start(now, dc, to, reply, out),
            Order::Rollback => self.rollback(now, dc, to, out).map(Some),
            Order::Commit { node, backup } => self.commit(now, dc, to, reply, node, backup, out),
            Order::Wake => self.wake(dc, to, out).map(Some),
        };
        match ended {
            Ok(Some(endpoint)) => self.reply(now, dc, to, reply, Ok(endpoint), out),
            Ok(None) => {}
            Err(error) => self.reply(now, dc, to, reply, Err(error), out),
        }
    }

    fn reply(
        &mut self,
        now: Nanos,
        dc: DcId,
        to: Endpoint,
        reply: Reply,
        outcome: Result<Endpoint, IpcError>,
        out: &mut Vec<Output>,
    ) {
        match (reply, outcome) {
            (Reply::Here(asker), Ok(endpoint)) => out.push(Output::Done { asker, endpoint }),
            (Reply::Here(asker), Err(error)) => out.push(Output::Refused { asker, error }),
            (Reply::There { node, from, number }, outcome) => {
                let outcome = outcome.map_err(IpcError::status);
                self.send(
                    now,
                    node,
                    &Frame::Awaited { dc, from: to, to: from, number, outcome },
                    out,
                );
            }
            (Reply::Nobody, _) => {}
        }
    }

    fn wake(&self, dc: DcId, to: Endpoint, out: &mut Vec<Output>) -> Result<Endpoint, IpcError> {
        let container = self.containers.get(&dc).ok_or(IpcError::NotBound)?;
        let binding = container.resolve(to)?;
        if !matches!(binding.role, Role::Peer(_) | Role::Replica(_)) {
            return Err(IpcError::Denied);
        }
        out.push(Output::Wake { dc, endpoint: binding.endpoint });
        Ok(binding.endpoint)
    }

    /// The endpoint is going to move.
    fn start(
        &mut self,
        now: Nanos,
        dc: DcId,
        to: Endpoint,
        reply: Reply,
        out: &mut Vec<Output>,
    ) -> Result<Option<Endpoint>, IpcError> {
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        if container.directory.moving(to.slot).is_some() {
            return Err(IpcError::Moved);
        }
        let binding = container.resolve(to)?;
        let (endpoint, rights) = (binding.endpoint, binding.rights);
        if !endpoint.is_well_known()
            || binding.is_reserved
            || !matches!(binding.role, Role::Peer(_))
        {
            return Err(IpcError::Denied);
        }
        let stage = Stage::Freezing { reply, until: now + FREEZE_WAIT };
        container.directory.moves.insert(endpoint.slot, Move::new(endpoint, rights, stage));
        container.incoming.hold(endpoint.slot);
        out.push(Output::Freeze { dc, endpoint });
        Ok(None)
    }

    /// The process at `endpoint` has stopped.
    pub(super) fn frozen(
        &mut self,
        now: Nanos,
        dc: DcId,
        endpoint: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let moving = self
            .containers
            .get_mut(&dc)
            .and_then(|container| container.directory.moves.get_mut(&endpoint.slot));
        let Some(moving) = moving.filter(|moving| moving.endpoint == endpoint) else { return };
        if let Stage::Freezing { reply, .. } = moving.stage {
            moving.stage = Stage::Frozen { until: now + MIGRATION_MAX };
            self.reply(now, dc, endpoint, reply, Ok(endpoint), out);
        } else if moving.is_takeover
            && moving.is_dead
            && !moving.is_fenced
            && matches!(moving.stage, Stage::Frozen { .. })
        {
            self.take_over(now, dc, endpoint, out);
        }
    }

    /// A call that was with the endpoint when it stopped had not been received.
    pub(super) fn unreceived(&mut self, dc: DcId, to: Endpoint, id: CallId) {
        if let Some(container) = self.containers.get_mut(&dc)
            && container.directory.moving(to.slot).is_some()
        {
            container.incoming.unreceived(to, id);
        }
    }

    fn rollback(
        &mut self,
        now: Nanos,
        dc: DcId,
        to: Endpoint,
        out: &mut Vec<Output>,
    ) -> Result<Endpoint, IpcError> {
        let endpoint = self.stopped(dc, to)?;
        self.thaw(now, dc, endpoint, out);
        Ok(endpoint)
    }

    /// The endpoint that `to` names, which has stopped and is not leaving yet.
    fn stopped(&self, dc: DcId, to: Endpoint) -> Result<Endpoint, IpcError> {
        let container = self.containers.get(&dc).ok_or(IpcError::NotBound)?;
        match container.directory.moves.get(&to.slot) {
            Some(moving) if to.generation != 0 && moving.endpoint != to => Err(IpcError::Stale),
            // This node is cut off, and so is whoever wants that.
            Some(Move { is_fenced: true, .. }) => Err(IpcError::NodeDown),
            Some(Move { endpoint, stage: Stage::Frozen { .. }, .. }) => Ok(*endpoint),
            Some(_) => Err(IpcError::Moved),
            None => container.resolve(to).and(Err(IpcError::NotWaiting)),
        }
    }

    /// The endpoint goes on where it was, if this node may.
    fn thaw(&mut self, now: Nanos, dc: DcId, endpoint: Endpoint, out: &mut Vec<Output>) {
        if self.rests_on(dc, endpoint.slot) {
            return;
        }
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.remove(&endpoint.slot) else { return };
        if let Stage::Freezing { reply, .. } = moving.stage {
            self.reply(now, dc, endpoint, reply, Err(IpcError::TimedOut), out);
        }
        if moving.is_dead {
            return self.end_dead(now, dc, endpoint, out);
        }
        out.push(Output::Thaw { dc, endpoint });
        self.go_on(now, dc, moving, out);
    }

    /// What waited for an endpoint that is here now gets on.
    fn go_on(&mut self, now: Nanos, dc: DcId, moving: Move, out: &mut Vec<Output>) {
        let to = moving.endpoint;
        if moving.is_takeover {
            self.end_received(now, dc, to.slot, out);
        }
        let pending = moving.pending.into_iter();
        out.extend(pending.map(|(from, value)| Output::DeliverNotify { dc, to, from, value }));
        self.deliver_waiting(dc, to, out);
        out.push(Output::Retire { dc, to });
        self.tell_awaits(now, dc, to.slot, out);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of the order")]
    fn commit(
        &mut self,
        now: Nanos,
        dc: DcId,
        to: Endpoint,
        reply: Reply,
        node: NodeId,
        backup: Endpoint,
        out: &mut Vec<Output>,
    ) -> Result<Option<Endpoint>, IpcError> {
        let endpoint = self.stopped(dc, to)?;
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        if node == self.node {
            let backup = container.backup(endpoint.slot, backup).ok_or(IpcError::NotBound)?;
            self.hand_over_here(now, dc, endpoint, backup, out);
            return Ok(Some(endpoint));
        }
        if !container.dc.nodes.contains(&node) {
            return Err(IpcError::NotBound);
        }
        let peer = self.peers.get(&node).ok_or(IpcError::NotBound)?;
        if matches!(peer.state(), NodeState::Down { .. }) {
            return Err(IpcError::NodeDown);
        }
        let epoch = container.directory.epoch(endpoint.slot);
        let moving = container.directory.moves.get_mut(&endpoint.slot).ok_or(IpcError::NotBound)?;
        moving.stage = Stage::Offered { reply, node, epoch };
        let rights = moving.rights;
        self.send(now, node, &Frame::Adopt { dc, endpoint, backup, epoch, rights }, out);
        Ok(None)
    }

    /// A backup of this node becomes the endpoint, and who was it becomes a backup.
    fn hand_over_here(
        &mut self,
        now: Nanos,
        dc: DcId,
        endpoint: Endpoint,
        backup: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let past = self.demote(now, dc, endpoint, out);
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.remove(&endpoint.slot) else { return };
        self.promote(dc, backup, &moving, past, out);
        self.go_on(now, dc, moving, out);
    }

    /// `backup` is the endpoint from now on.
    fn promote(
        &mut self,
        dc: DcId,
        backup: Endpoint,
        moving: &Move,
        past: Option<Binding>,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(mut binding) = container.slots.unbind(backup) else { return };
        binding.endpoint = moving.endpoint;
        binding.rights = moving.rights;
        binding.role = Role::Peer(moving.endpoint.index());
        if let Some(past) = past {
            binding.receivers.extend(past.receivers);
            binding.reached.extend(past.reached);
        }
        container.slots.insert(binding);
        container.receivers.entry(moving.endpoint.slot).or_default();
        let (endpoint, inherits) = (moving.endpoint, !moving.is_takeover);
        out.push(Output::Promote { dc, backup, endpoint, inherits });
    }

    /// The process that is the endpoint here is so no longer: it becomes a backup. Returns what it was.
    fn demote(
        &mut self,
        now: Nanos,
        dc: DcId,
        endpoint: Endpoint,
        out: &mut Vec<Output>,
    ) -> Option<Binding> {
        self.died(now, dc, endpoint.memory(), out);
        let container = self.containers.get_mut(&dc)?;
        container.forget_receiver(endpoint.slot);
        let past = container.slots.unbind(endpoint)?;
        let role = Role::Backup(endpoint, false);
        // A slot is free: one has just become so.
        let backup = container.slots.bind(role, past.pid, past.nonce, past.rights).ok()?;
        self.forget_awaits_of(now, dc, endpoint, out);
        for (node, to) in &past.reached {
            self.take_back_outgoing(now, *node, dc, endpoint, *to, out);
        }
        out.push(Output::Demote { dc, endpoint, backup });
        Some(past)
    }

    /// Another node asks this one to take an endpoint on.
    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::Adopt")]
    pub(super) fn adopt(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        endpoint: Endpoint,
        backup: Endpoint,
        epoch: u64,
        rights: &Rights,
        out: &mut Vec<Output>,
    ) {
        let taken = self.containers.get_mut(&dc).ok_or(IpcError::NotBound).and_then(|container| {
            let is_there = container.home(endpoint) == Some(node);
            if !is_there || !container.dc.nodes.contains(&node) {
                return Err(IpcError::Denied);
            }
            match container.directory.moves.get(&endpoint.slot).map(|moving| &moving.stage) {
                None => {}
                // It has thought better of it, and now asks again.
                Some(Stage::Adopting { from, .. }) if *from == node => {}
                Some(_) => return Err(IpcError::Moved),
            }
            let backup = container.backup(endpoint.slot, backup).ok_or(IpcError::NotBound)?;
            let stage = Stage::Adopting { from: node, backup };
            let moving = Move::new(endpoint, *rights, stage);
            let before = container.directory.moves.remove(&endpoint.slot);
            let pending = before.map(|before| before.pending).unwrap_or_default();
            container.directory.moves.insert(endpoint.slot, Move { pending, ..moving });
            Ok(())
        });
        let status = taken.err().map_or(0, IpcError::status);
        self.send(now, node, &Frame::Adopted { dc, endpoint, epoch, status }, out);
    }

    /// The node that was asked answers.
    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::Adopted")]
    pub(super) fn adopted(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        endpoint: Endpoint,
        of: u64,
        status: u16,
        out: &mut Vec<Output>,
    ) {
        let Some(moving) = self
            .containers
            .get_mut(&dc)
            .and_then(|container| container.directory.moves.get_mut(&endpoint.slot))
        else {
            return;
        };
        if matches!(moving.stage, Stage::Adopting { from, .. } if from == node) && status != 0 {
            // It is the other way round: the endpoint stays where it is.
            return self.stop_adopting(now, dc, endpoint.slot, out);
        }
        let Stage::Offered { reply, node: asked, epoch } = moving.stage else { return };
        if (asked, epoch, moving.endpoint) != (node, of, endpoint) {
            return;
        }
        if status != 0 {
            let is_takeover = moving.is_takeover;
            moving.stage = Stage::Frozen { until: now + MIGRATION_MAX };
            self.reply(now, dc, endpoint, reply, Err(IpcError::from_status(status)), out);
            if is_takeover {
                self.take_over(now, dc, endpoint, out);
            }
            return;
        }
        moving.stage = Stage::Ready { reply, node, until: now + PLACING_MAX };
        self.propose_ready(dc, endpoint.slot, out);
    }

    /// The nodes of the container that are there, but this one.
    pub(super) fn others(&self, dc: DcId) -> BTreeSet<NodeId> {
        let nodes = self.containers.get(&dc).map(|container| container.dc.nodes.clone());
        let is_there = |node: &NodeId| {
            self.peers.get(node).is_some_and(|peer| !matches!(peer.state(), NodeState::Down { .. }))
        };
        nodes.into_iter().flatten().filter(is_there).collect()
    }

    /// The endpoint in `slot` is here now: `backup` is it, unless it has died meanwhile.
    fn arrive(&mut self, now: Nanos, dc: DcId, slot: u32, backup: Endpoint, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.remove(&slot) else { return };
        if container.slots.get(backup).is_some() {
            self.promote(dc, backup, &moving, None, out);
            self.go_on(now, dc, moving, out);
        } else {
            self.end_dead(now, dc, moving.endpoint, out);
        }
    }

    /// The endpoint is at `node` now: everything that waits for it here goes there.
    fn leave_for(
        &mut self,
        now: Nanos,
        dc: DcId,
        endpoint: Endpoint,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        self.demote(now, dc, endpoint, out);
        let Some(container) = self.containers.get_mut(&dc) else { return };
        container.forget_receiver(endpoint.slot);
        container.directory.came_from.remove(&endpoint.slot);
        container.directory.standing_by.retain(|(slot, ..)| *slot != endpoint.slot);
        let Some(moving) = container.directory.moves.remove(&endpoint.slot) else { return };
        if moving.is_takeover {
            self.end_received(now, dc, endpoint.slot, out);
        }
        for (from, value) in moving.pending {
            self.send(now, node, &Frame::Notify { dc, from, to: endpoint, value }, out);
        }
        self.redirect_incoming(now, dc, endpoint.slot, out);
        self.redirect_awaits(now, dc, endpoint.slot, out);
        self.register_backups(now, dc, endpoint.slot, out);
    }

    /// Its process was dead already, and nobody takes it on: now it dies.
    fn end_dead(&mut self, now: Nanos, dc: DcId, endpoint: Endpoint, out: &mut Vec<Output>) {
        self.is_over(now, dc, endpoint, out);
        self.end_waiting(now, dc, endpoint, out);
    }

    /// Nobody is the endpoint any more: whoever waits for it here hears that.
    fn end_waiting(&mut self, now: Nanos, dc: DcId, endpoint: Endpoint, out: &mut Vec<Output>) {
        if let Some(container) = self.containers.get_mut(&dc) {
            container.forget_receiver(endpoint.slot);
        }
        self.receiver_died(now, dc, endpoint, out);
        out.push(Output::Retire { dc, to: endpoint });
        self.tell_awaits(now, dc, endpoint.slot, out);
    }

    /// The endpoint, which was here, is nobody any more: if it has an entry, every node is to know.
    pub(super) fn is_over(
        &mut self,
        now: Nanos,
        dc: DcId,
        endpoint: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        container.directory.came_from.remove(&endpoint.slot);
        self.reconcile(now, dc, endpoint.slot, out);
    }

    /// The process of an endpoint with a number has died. True: the endpoint lives on, it is moving or a backup takes
    /// over. The process's own calls are over in any case.
    pub(super) fn outlives(
        &mut self,
        now: Nanos,
        dc: DcId,
        binding: &Binding,
        out: &mut Vec<Output>,
    ) -> bool {
        let (endpoint, is_fenced) = (binding.endpoint, self.is_fenced);
        let Some(container) = self.containers.get_mut(&dc) else { return false };
        if let Some(moving) = container.directory.moves.get_mut(&endpoint.slot) {
            if moving.is_fenced {
                self.died_at_fence(now, dc, endpoint, out);
                return true;
            }
            let Stage::Freezing { reply, .. } = moving.stage else {
                moving.is_dead = true;
                return true;
            };
            container.directory.moves.remove(&endpoint.slot);
            self.reply(now, dc, endpoint, reply, Err(IpcError::DestinationDied), out);
        }
        let slot = endpoint.slot;
        let Some(container) = self.containers.get_mut(&dc) else { return false };
        let has_backup = container.directory.standing_by.iter().any(|(of, ..)| *of == slot);
        if !has_backup || binding.is_reserved {
            return false;
        }
        let stage = Stage::Frozen { until: now + MIGRATION_MAX };
        let moving = Move::new(endpoint, binding.rights, stage);
        let moving = Move { is_dead: true, is_takeover: true, is_fenced, ..moving };
        container.directory.moves.insert(slot, moving);
        container.incoming.hold(slot);
        // Answered by `Input::Frozen`, when it is known what the dead had received.
        out.push(Output::TakeOver { dc, endpoint });
        true
    }

    /// The next of the backups gets the endpoint, whose process is dead; if there is none, that is its end.
    fn take_over(&mut self, now: Nanos, dc: DcId, endpoint: Endpoint, out: &mut Vec<Output>) {
        loop {
            let Some(container) = self.containers.get_mut(&dc) else { return };
            let standing = &mut container.directory.standing_by;
            let of = |entry: &&(u32, NodeId, Endpoint)| entry.0 == endpoint.slot;
            let Some(next) = standing.iter().find(of).copied() else {
                return self.thaw(now, dc, endpoint, out);
            };
            standing.remove(&next);
            let (_, node, backup) = next;
            match self.commit(now, dc, endpoint, Reply::Nobody, node, backup, out) {
                Ok(_) => return,
                Err(_) => continue,
            }
        }
    }

    /// Moves whose time is over: the endpoint goes on where it was, or nobody waits any more.
    pub(super) fn end_overdue_moves(&mut self, now: Nanos, out: &mut Vec<Output>) {
        let mut overdue = Vec::new();
        for (dc, container) in &self.containers {
            let due = container
                .directory
                .moves
                .iter()
                .filter(|(_, moving)| moving.until().is_some_and(|until| until <= now));
            overdue.extend(due.map(|(slot, _)| (*dc, *slot)));
        }
        for (dc, slot) in overdue {
            self.end_overdue_move(now, dc, slot, out);
        }
        self.refuse_overdue_binders(now, out);
    }

    fn end_overdue_move(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.get_mut(&slot) else { return };
        let endpoint = moving.endpoint;
        if moving.is_fenced {
            return moving.cut_off(dc, out);
        }
        match &mut moving.stage {
            Stage::Freezing { .. } | Stage::Frozen { .. } => self.thaw(now, dc, endpoint, out),
            Stage::Ready { .. } => self.stay(now, dc, slot, out),
            Stage::Leaving { gate, .. } | Stage::Arriving { gate, .. } => {
                gate.unaware.clear();
                self.go_if_all_know(now, dc, slot, out);
            }
            Stage::Offered { .. }
            | Stage::Proposed { .. }
            | Stage::Adopting { .. }
            | Stage::Claiming { .. } => {}
        }
    }
}

impl Move {
    /// When it is over, if it is not waited for the group, another node or the fence.
    fn until(&self) -> Option<Nanos> {
        match &self.stage {
            Stage::Freezing { until, .. } if self.is_fenced => (!self.is_cut_off).then_some(*until),
            _ if self.is_fenced => None,
            Stage::Freezing { until, .. }
            | Stage::Frozen { until }
            | Stage::Ready { until, .. } => Some(*until),
            Stage::Leaving { gate, .. } | Stage::Arriving { gate, .. } => {
                (!gate.unaware.is_empty()).then_some(gate.until)
            }
            Stage::Offered { .. }
            | Stage::Proposed { .. }
            | Stage::Adopting { .. }
            | Stage::Claiming { .. } => None,
        }
    }
}
