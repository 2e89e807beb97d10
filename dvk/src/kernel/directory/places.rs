//! What the system group has in the directory, what this node asks it for, and what follows from what it says.
//!
//! Nothing is asked for twice at a time, and everything is asked for because of how things are (`reconcile`): when they
//! change, so does what is wanted. What was asked before may happen all the same, if nothing else has happened meanwhile.

use super::super::awaits::Event;
use super::super::container::Container;
use super::super::link::Peer;
use super::super::slots::Binding;
use super::super::{Asker, Entry, Kernel, Output, Role};
use super::{Gate, Move, Stage};
use crate::frame::Frame;
use crate::limits::{ASKED_MAX, MIGRATION_MAX, PARKED_MAX, PLACING_MAX};
use crate::server::{Gone, Nanos};
use m3ipc::rights::{Rights, level};
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the group is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// To know of an endpoint that is here.
    Register,
    /// That an endpoint goes elsewhere.
    Move,
    /// That a backup here takes over.
    Claim,
    /// That an endpoint is no more.
    End,
}

/// Who wants a number, and waits until it is known whether its last owner has ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernel) struct Binder {
    pub(in crate::kernel) asker: Asker,
    pub(in crate::kernel) role: Role,
    pub(in crate::kernel) pid: u32,
    /// Of its HELLO; none if an administrator binds it.
    pub(in crate::kernel) nonce: Option<u64>,
    pub(in crate::kernel) privileged: bool,
    pub(in crate::kernel) until: Nanos,
}

/// May a number be bound?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) enum Number {
    Free,
    /// When the group says that its last owner has ended.
    Soon,
    Taken,
}

impl Kernel {
    /// The group has a new entry. Those of one endpoint come in order; some may be skipped.
    pub(in crate::kernel) fn placed(
        &mut self,
        now: Nanos,
        dc: DcId,
        entry: Entry,
        out: &mut Vec<Output>,
    ) {
        let slot = entry.endpoint.slot;
        let Some(container) = self.containers.get_mut(&dc) else {
            self.entries_of_others.insert((dc, slot), entry);
            return;
        };
        if !entry.endpoint.is_well_known() || container.directory.epoch(slot) >= entry.epoch {
            return;
        }
        let directory = &mut container.directory;
        directory.entries.insert(slot, entry);
        directory.arrivals.remove(&slot);
        // What was asked for has happened, or cannot any more.
        let wish = directory.proposed.remove(&slot);
        self.answer_asked(now, dc, slot, out);
        if self.is_here(&entry) {
            self.placed_here(dc, slot, wish, out);
        } else {
            self.placed_elsewhere(now, dc, entry, out);
        }
        if entry.is_over
            && let Some(container) = self.containers.get_mut(&dc)
        {
            container.tell_all(Gone::Endpoint(entry.endpoint), out);
        }
        self.register_backups(now, dc, slot, out);
        self.reconcile(now, dc, slot, out);
        self.bind_parked(now, dc, slot, out);
    }

    /// Is that this life of this node?
    fn is_here(&self, entry: &Entry) -> bool {
        !entry.is_over && (entry.node, entry.incarnation) == (self.node, self.incarnation)
    }

    /// Is its place down, for the group?
    fn is_gone(&self, entry: &Entry) -> bool {
        !entry.is_over && self.up.get(&entry.node) != Some(&entry.incarnation)
    }

    fn placed_here(&mut self, dc: DcId, slot: u32, wish: Option<Wish>, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let directory = &mut container.directory;
        let is_bound = container.slots.by_slot(slot).is_some();
        match directory.moves.get(&slot).map(|moving| &moving.stage) {
            Some(Stage::Adopting { from, .. }) => {
                directory.came_from.insert(slot, *from);
                directory.arrivals.insert(slot);
            }
            Some(Stage::Claiming { .. }) => {
                directory.arrivals.insert(slot);
            }
            Some(Stage::Proposed { .. }) => self.propose_move(dc, slot, out),
            Some(_) => {}
            // What was here when the group was asked has died since.
            None if is_bound || wish == Some(Wish::Register) => {}
            None => {
                directory.arrivals.insert(slot);
            }
        }
    }

    fn placed_elsewhere(&mut self, now: Nanos, dc: DcId, entry: Entry, out: &mut Vec<Output>) {
        let slot = entry.endpoint.slot;
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.get_mut(&slot) else {
            // The end of an earlier owner says nothing of one that is bound by now.
            let bound = container.slots.by_slot(slot).map(|binding| binding.endpoint);
            if bound.is_some_and(|bound| !entry.is_over || bound == entry.endpoint) {
                return self.supersede(now, dc, slot, out);
            }
            if container.home(entry.endpoint) != Some(self.node) {
                // It was here, and has ended; who waits for the next one does so where that will be.
                self.redirect_awaits(now, dc, slot, out);
            }
            return;
        };
        match &moving.stage {
            Stage::Proposed { reply, node } if *node == entry.node && !entry.is_over => {
                let (reply, node) = (*reply, *node);
                let gate = self.gate(now, dc, &entry, out);
                self.set_stage(dc, slot, Stage::Leaving { reply, node, gate });
                self.go_if_all_know(now, dc, slot, out);
            }
            // It is still there, and may come yet.
            Stage::Adopting { from, .. } if *from == entry.node && !entry.is_over => {}
            Stage::Adopting { .. } | Stage::Claiming { .. } | Stage::Arriving { .. } => {
                self.stop_adopting(now, dc, slot, out);
            }
            _ => self.supersede(now, dc, slot, out),
        }
    }

    fn set_stage(&mut self, dc: DcId, slot: u32, stage: Stage) {
        if let Some(container) = self.containers.get_mut(&dc)
            && let Some(moving) = container.directory.moves.get_mut(&slot)
        {
            moving.stage = stage;
        }
    }

    /// The endpoint does not come here: what has come for it goes where it is.
    pub(super) fn stop_adopting(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.remove(&slot) else { return };
        container.directory.came_from.remove(&slot);
        if container.directory.place(slot).is_none_or(|place| place == self.node) {
            return self.end_waiting(now, dc, moving.endpoint, out);
        }
        self.redirect_incoming(now, dc, slot, out);
        self.redirect_awaits(now, dc, slot, out);
    }

    /// What this node took for the endpoint in `slot` is so no longer: another has taken over meanwhile, or it is over.
    fn supersede(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let moving = container.directory.moves.remove(&slot);
        let bound = container.slots.by_slot(slot).map(|binding| binding.endpoint);
        let Some(endpoint) = bound.or(moving.as_ref().map(|moving| moving.endpoint)) else {
            return;
        };
        if let Some(moving) = &moving
            && let Stage::Freezing { reply, .. }
            | Stage::Offered { reply, .. }
            | Stage::Ready { reply, .. }
            | Stage::Proposed { reply, .. }
            | Stage::Leaving { reply, .. } = moving.stage
        {
            self.reply(now, dc, endpoint, reply, Err(IpcError::Moved), out);
        }
        if bound.is_some() {
            // What it had received may be answered by nobody; what it had not goes to the other.
            let error = IpcError::DestinationDied;
            out.push(Output::CloseChannels { dc, receiver: endpoint, error });
        }
        self.end_received(now, dc, slot, out);
        if bound.is_some() {
            self.demote(now, dc, endpoint, out);
        }
        self.redirect_incoming(now, dc, slot, out);
        self.redirect_awaits(now, dc, slot, out);
    }

    /// The group is asked to place an endpoint that is ready to leave at its new node, if it takes that for up.
    pub(super) fn propose_ready(&mut self, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let moving = container.directory.moves.get(&slot);
        if let Some(Move { stage: Stage::Ready { reply, node, .. }, .. }) = moving
            && let Some(life) = self.peers.get(node).and_then(Peer::life)
            && self.up.get(node) == Some(&life)
        {
            let (reply, node) = (*reply, *node);
            self.set_stage(dc, slot, Stage::Proposed { reply, node });
            self.propose_move(dc, slot, out);
        }
    }

    /// The same for one that waits for the group already.
    fn propose_move(&mut self, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let Some(moving) = container.directory.moves.get(&slot) else { return };
        let (endpoint, Stage::Proposed { node, .. }) = (moving.endpoint, &moving.stage) else {
            return;
        };
        // In which life it has said that it takes the endpoint on. If it has been given up since, the group will refuse.
        let life = self.peers.get(node).and_then(Peer::life);
        let (node, incarnation, epoch) = (*node, life.unwrap_or(0), 0);
        let entry = Entry { endpoint, node, incarnation, epoch, is_over: false };
        self.propose(dc, entry, Wish::Move, out);
    }

    /// The endpoint does not go where it was to go.
    pub(super) fn stay(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.get_mut(&slot) else { return };
        let (endpoint, is_takeover) = (moving.endpoint, moving.is_takeover);
        if let Stage::Offered { reply, node, .. }
        | Stage::Ready { reply, node, .. }
        | Stage::Proposed { reply, node } = moving.stage
        {
            moving.stage = Stage::Frozen { until: now + MIGRATION_MAX };
            // It need not wait any more.
            let (epoch, status) = (0, IpcError::Moved.status());
            self.send(now, node, &Frame::Adopted { dc, endpoint, epoch, status }, out);
            self.reply(now, dc, endpoint, reply, Err(IpcError::NodeDown), out);
            if is_takeover {
                self.take_over(now, dc, endpoint, out);
            }
        }
    }

    /// Asks the group to replace the entry that this node goes by, unless it has been asked for something already.
    fn propose(&mut self, dc: DcId, entry: Entry, wish: Wish, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let slot = entry.endpoint.slot;
        let expected = container.directory.epoch(slot);
        if let Place::Vacant(vacant) = container.directory.proposed.entry(slot) {
            vacant.insert(wish);
            out.push(Output::Propose { dc, entry, expected });
        }
    }

    /// The group does not do what it was asked for.
    pub(in crate::kernel) fn unplaced(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        expected: u64,
        is_full: bool,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        if container.directory.epoch(slot) != expected {
            return;
        }
        container.directory.proposed.remove(&slot);
        match container.directory.moves.get(&slot).map(|moving| &moving.stage) {
            Some(Stage::Proposed { .. }) => self.stay(now, dc, slot, out),
            // Its place is up after all.
            Some(Stage::Claiming { .. }) => self.stop_adopting(now, dc, slot, out),
            _ => {}
        }
        // Other things may be wanted by now; what does not fit never will.
        if !is_full {
            self.reconcile(now, dc, slot, out);
        }
        self.bind_parked(now, dc, slot, out);
    }

    /// Asks the group for what is wanted of it, and does what it has made possible.
    pub(in crate::kernel) fn reconcile(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        out: &mut Vec<Output>,
    ) {
        if self.is_fenced {
            return;
        }
        let own = self.node;
        let Some(container) = self.containers.get_mut(&dc) else { return };
        if container.directory.arrivals.remove(&slot) {
            return self.arrive_when_all_know(now, dc, slot, out);
        }
        let Some(container) = self.containers.get(&dc) else { return };
        let entry = container.directory.entries.get(&slot).copied();
        let is_it = |bound: &&Binding| bound.role.can_move() && !bound.is_reserved;
        let bound = container.slots.by_slot(slot).filter(is_it);
        if let Some(moving) = container.directory.moves.get(&slot) {
            let is_adopted = matches!(moving.stage, Stage::Adopting { .. });
            match entry {
                Some(entry) if is_adopted && self.is_gone(&entry) => {
                    self.claim_adopted(now, dc, entry, out);
                }
                _ => {}
            }
            return;
        }
        match (bound.map(|bound| bound.endpoint), entry) {
            (Some(endpoint), entry)
                if entry.is_none_or(|entry| entry.is_over)
                    && container.directory.has_backup_elsewhere(slot, own) =>
            {
                let (node, incarnation) = (own, self.incarnation);
                let entry = Entry { endpoint, node, incarnation, epoch: 0, is_over: false };
                self.propose(dc, entry, Wish::Register, out);
            }
            // It was asked for the owner before.
            (Some(endpoint), Some(entry)) if self.is_here(&entry) && entry.endpoint != endpoint => {
                self.propose(dc, Entry { endpoint, ..entry }, Wish::Register, out);
            }
            (None, Some(entry)) if self.is_here(&entry) => {
                self.propose(dc, Entry { is_over: true, ..entry }, Wish::End, out);
            }
            (None, Some(entry)) if self.is_gone(&entry) => {
                if let Some((backup, rights)) = container.stands_by(slot) {
                    self.claim(dc, entry, backup, rights, out);
                } else if container.directory.is_wanted(slot, own) {
                    self.propose(dc, Entry { is_over: true, ..entry }, Wish::End, out);
                }
            }
            _ => {}
        }
    }

    /// A backup here takes over from the endpoint, whose place is down.
    fn claim(
        &mut self,
        dc: DcId,
        entry: Entry,
        backup: Endpoint,
        rights: Rights,
        out: &mut Vec<Output>,
    ) {
        let (slot, stage) = (entry.endpoint.slot, Stage::Claiming { backup });
        let (node, incarnation) = (self.node, self.incarnation);
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let moves = &mut container.directory.moves;
        let moving = moves
            .entry(slot)
            .or_insert_with(|| Move::new(entry.endpoint, rights, Stage::Claiming { backup }));
        (moving.stage, moving.is_takeover) = (stage, true);
        self.propose(dc, Entry { node, incarnation, ..entry }, Wish::Claim, out);
    }

    /// The endpoint that was to come here comes from a node that is down: it comes as one that is taken over, or not.
    fn claim_adopted(&mut self, now: Nanos, dc: DcId, entry: Entry, out: &mut Vec<Output>) {
        let slot = entry.endpoint.slot;
        let Some(container) = self.containers.get(&dc) else { return };
        match container.stands_by(slot) {
            Some((backup, rights)) => self.claim(dc, entry, backup, rights, out),
            None => self.stop_adopting(now, dc, slot, out),
        }
    }

    /// The same for everything that may have changed.
    pub(super) fn reconcile_all(&mut self, now: Nanos, dc: DcId, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let directory = &container.directory;
        let of_backups = container.slots.iter().filter_map(|binding| match binding.role {
            Role::Backup(of, true) => Some(of.slot),
            _ => None,
        });
        let known = directory.entries.keys().copied();
        let standing = directory.standing_by.iter().map(|(slot, ..)| *slot);
        let wanted = directory.binders.iter().filter_map(|binder| binder.role.slot(self.node));
        let slots: BTreeSet<u32> = known.chain(standing).chain(of_backups).chain(wanted).collect();
        for slot in slots {
            self.reconcile(now, dc, slot, out);
            self.bind_parked(now, dc, slot, out);
        }
    }

    /// The group has placed the endpoint in `slot` here: a backup is it as soon as the others go by that.
    fn arrive_when_all_know(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(entry) = container.directory.entries.get(&slot).copied() else { return };
        let any = container.backup(slot, Endpoint::NONE);
        let moving = container.directory.moves.get(&slot);
        let backup = match moving.map(|moving| &moving.stage) {
            Some(Stage::Adopting { backup, .. } | Stage::Claiming { backup }) => Some(*backup),
            Some(_) => return,
            None => any,
        };
        let Some(backup) = backup.filter(|backup| container.slots.get(*backup).is_some()).or(any)
        else {
            // Whoever was to be it has died.
            container.directory.moves.remove(&slot);
            return self.end_dead(now, dc, entry.endpoint, out);
        };
        if moving.is_none() {
            let stage = Stage::Claiming { backup };
            let rights = container.slots.get(backup).map(|one| one.rights);
            let rights = rights.unwrap_or(Rights::of_level(level::USER));
            let moving = Move::new(entry.endpoint, rights, stage);
            container.directory.moves.insert(slot, Move { is_takeover: true, ..moving });
        }
        let gate = self.gate(now, dc, &entry, out);
        self.set_stage(dc, slot, Stage::Arriving { backup, gate });
        self.go_if_all_know(now, dc, slot, out);
    }

    /// Asks the other nodes whether they go by an entry.
    fn gate(&mut self, now: Nanos, dc: DcId, entry: &Entry, out: &mut Vec<Output>) -> Gate {
        let mut unaware = self.others(dc);
        // Whoever is cut off is not waited for.
        unaware.retain(|node| self.up.contains_key(node));
        let (endpoint, epoch) = (entry.endpoint, entry.epoch);
        for node in &unaware {
            self.send(now, *node, &Frame::Entry { dc, endpoint, epoch }, out);
        }
        Gate { unaware, until: now + PLACING_MAX }
    }

    /// Another node asks whether this one goes by an entry.
    pub(in crate::kernel) fn asked(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        endpoint: Endpoint,
        epoch: u64,
        out: &mut Vec<Output>,
    ) {
        let slot = endpoint.slot;
        let concerns = |container: &&mut Container| container.dc.nodes.contains(&node);
        // Where the container is not, nobody has anything to do with the endpoint.
        let Some(container) = self.containers.get_mut(&dc).filter(concerns) else {
            self.send(now, node, &Frame::Noted { dc, endpoint, epoch }, out);
            return;
        };
        let directory = &mut container.directory;
        let of_node = directory.asked.keys().filter(|(_, of)| *of == node).count();
        if directory.epoch(slot) >= epoch || of_node < ASKED_MAX {
            directory.asked.insert((slot, node), epoch);
        }
        self.answer_asked(now, dc, slot, out);
    }

    fn answer_asked(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let directory = &mut container.directory;
        let Some(entry) = directory.entries.get(&slot).copied() else { return };
        let of_slot = (slot, NodeId(0))..=(slot, NodeId(u16::MAX));
        let asked = directory.asked.range(of_slot);
        let known: Vec<((u32, NodeId), u64)> = asked
            .filter(|(_, epoch)| **epoch <= entry.epoch)
            .map(|(key, of)| (*key, *of))
            .collect();
        for (key, epoch) in known {
            if let Some(container) = self.containers.get_mut(&dc) {
                container.directory.asked.remove(&key);
            }
            let endpoint = entry.endpoint;
            self.send(now, key.1, &Frame::Noted { dc, endpoint, epoch }, out);
        }
    }

    /// A node goes by an entry.
    pub(in crate::kernel) fn noted(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        slot: u32,
        epoch: u64,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        if container.directory.epoch(slot) == epoch {
            self.open_gate(now, dc, slot, |other| other == node, out);
        }
    }

    /// Some nodes are not waited for any more.
    fn open_gate(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        goes: impl Fn(NodeId) -> bool,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.get_mut(&slot) else { return };
        if let Stage::Leaving { gate, .. } | Stage::Arriving { gate, .. } = &mut moving.stage {
            gate.unaware.retain(|node| !goes(*node));
            self.go_if_all_know(now, dc, slot, out);
        }
    }

    /// The endpoint changes its place when every node knows, here as far as this one is concerned.
    pub(super) fn go_if_all_know(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.get(&slot) else { return };
        let endpoint = moving.endpoint;
        match &moving.stage {
            Stage::Leaving { reply, node, gate } if gate.unaware.is_empty() => {
                let (reply, node) = (*reply, *node);
                self.leave_for(now, dc, endpoint, node, out);
                self.reply(now, dc, endpoint, reply, Ok(endpoint), out);
            }
            Stage::Arriving { backup, gate } if gate.unaware.is_empty() && !self.is_fenced => {
                let backup = *backup;
                self.arrive(now, dc, slot, backup, out);
            }
            _ => {}
        }
    }

    /// How the nodes stand with the group has changed.
    pub(in crate::kernel) fn standing(
        &mut self,
        now: Nanos,
        until: Nanos,
        up: &BTreeMap<NodeId, u64>,
        out: &mut Vec<Output>,
    ) {
        self.up.clone_from(up);
        self.until = until;
        self.has_stood |= now < until;
        self.fence(now, now >= until, out);
        let dcs: Vec<DcId> = self.containers.keys().copied().collect();
        for dc in dcs {
            let moves = self.containers.get(&dc).map(|container| &container.directory.moves);
            let slots: Vec<u32> = moves.into_iter().flatten().map(|(slot, _)| *slot).collect();
            for slot in slots {
                self.open_gate(now, dc, slot, |node| !up.contains_key(&node), out);
                self.propose_ready(dc, slot, out);
            }
            self.reconcile_all(now, dc, out);
        }
    }

    /// A new session with `node`: it may know nothing of what this node waits for.
    pub(in crate::kernel) fn introduce_directory(
        &mut self,
        now: Nanos,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let mut backups = Vec::new();
        for (dc, container) in &self.containers {
            let of = container.slots.iter().filter_map(|binding| match binding.role {
                Role::Backup(of, true) => Some(of),
                _ => None,
            });
            let is_there = |of: &Endpoint| container.home(*of) == Some(node);
            backups.extend(of.filter(is_there).map(|of| (*dc, of.slot)));
        }
        for (dc, slot) in backups {
            self.register_backups(now, dc, slot, out);
        }
    }

    /// Another node is given up: it is not waited for, and does not wait.
    pub(in crate::kernel) fn directory_without(
        &mut self,
        now: Nanos,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let dcs: Vec<DcId> = self.containers.keys().copied().collect();
        for dc in dcs {
            self.directory_of_without(now, dc, node, out);
        }
    }

    /// The same for one container.
    pub(in crate::kernel) fn directory_of_without(
        &mut self,
        now: Nanos,
        dc: DcId,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        // Those of a node that is cut off may take over when the group says so.
        container.directory.standing_by.retain(|(_, of, _)| *of != node);
        container.directory.asked.retain(|(_, of), _| *of != node);
        let is_there = |entry: &&Entry| entry.node == node && entry.endpoint.node() != node;
        let entries = container.directory.entries.values();
        let lost: Vec<Endpoint> = entries
            .filter(is_there)
            .filter(|entry| !entry.is_over)
            .map(|entry| entry.endpoint)
            .collect();
        for endpoint in lost {
            container.tell_all(Gone::Endpoint(endpoint), out);
        }
        let slots: Vec<u32> = container.directory.moves.keys().copied().collect();
        for slot in slots {
            self.move_without(now, dc, slot, node, out);
        }
        self.replicas_without(now, dc, node, out);
    }

    fn move_without(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.get_mut(&slot) else { return };
        match moving.stage {
            Stage::Offered { node: to, .. } | Stage::Ready { node: to, .. } if to == node => {
                self.stay(now, dc, slot, out);
            }
            // If the group places it here all the same, it is as if a backup had taken over.
            Stage::Adopting { from, .. } if from == node => {
                self.stop_adopting(now, dc, slot, out);
            }
            _ => self.open_gate(now, dc, slot, |other| other == node, out),
        }
    }

    /// May the number in `slot`, of this node, be bound anew?
    pub(in crate::kernel) fn number(&self, dc: DcId, slot: u32) -> Number {
        let Some(container) = self.containers.get(&dc) else { return Number::Taken };
        if container.directory.moving(slot).is_some() || container.slots.by_slot(slot).is_some() {
            return Number::Taken;
        }
        match container.directory.entries.get(&slot).filter(|entry| !entry.is_over) {
            // What happened in its earlier lives it learns when it signs on.
            None if self.is_fenced && !self.has_stood => Number::Soon,
            None => Number::Free,
            Some(entry) if self.is_here(entry) || self.is_gone(entry) => Number::Soon,
            Some(_) => Number::Taken,
        }
    }

    /// What the group has said of the container before it was here.
    pub(in crate::kernel) fn place_early(&mut self, now: Nanos, dc: DcId, out: &mut Vec<Output>) {
        let of_dc = (dc, 0)..=(dc, u32::MAX);
        let early: Vec<Entry> =
            self.entries_of_others.range(of_dc).map(|(_, entry)| *entry).collect();
        for entry in early {
            self.entries_of_others.remove(&(dc, entry.endpoint.slot));
            self.placed(now, dc, entry, out);
        }
    }

    /// Keeps who wants a number that is [`Number::Soon`] free. False: its number is not.
    pub(in crate::kernel) fn parks(
        &mut self,
        now: Nanos,
        dc: DcId,
        binder: Binder,
        out: &mut Vec<Output>,
    ) -> bool {
        let Binder { asker, role, privileged, .. } = binder;
        let may = privileged || !role.is_privileged();
        let Some(slot) = role.slot(self.node).filter(|_| may) else { return false };
        if self.number(dc, slot) != Number::Soon {
            return false;
        }
        let Some(container) = self.containers.get_mut(&dc) else { return false };
        let binders = &mut container.directory.binders;
        if binders.len() >= PARKED_MAX {
            out.push(Output::Refused { asker, error: IpcError::Exhausted });
            return true;
        }
        binders.push_back(binder);
        self.reconcile(now, dc, slot, out);
        true
    }

    fn bind_parked(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        if self.number(dc, slot) == Number::Soon {
            return;
        }
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let (own, binders) = (self.node, &mut container.directory.binders);
        let ready = |binder: &Binder| binder.role.slot(own) == Some(slot);
        let (ready, rest): (VecDeque<Binder>, _) =
            std::mem::take(binders).into_iter().partition(ready);
        *binders = rest;
        for binder in ready {
            self.bind_or_park(now, dc, binder, out);
        }
    }

    pub(super) fn refuse_overdue_binders(&mut self, now: Nanos, out: &mut Vec<Output>) {
        for container in self.containers.values_mut() {
            let binders = &mut container.directory.binders;
            while let Some(asker) =
                binders.front().filter(|binder| binder.until <= now).map(|binder| binder.asker)
            {
                binders.pop_front();
                out.push(Output::Refused { asker, error: IpcError::TimedOut });
            }
        }
    }

    /// Questions about an endpoint that has moved are asked where it is now.
    pub(super) fn redirect_awaits(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        out: &mut Vec<Output>,
    ) {
        for (asker, question) in self.awaits.watched_here(dc, slot) {
            self.awaits.forget(asker);
            let timeout = question.until.map(|until| until.saturating_sub(now).max(1));
            let event = question.event.unwrap_or(Event::Bound);
            let (from, to) = (question.from, question.to);
            if let Err(error) = self.ask_await(now, asker, dc, from, to, event, timeout, out) {
                out.push(Output::Refused { asker, error });
            }
        }
        self.refuse_watchers(now, dc, slot, IpcError::Moved, out);
    }
}

impl super::Directory {
    /// Does another node than `own` have a backup of the endpoint in `slot`?
    fn has_backup_elsewhere(&self, slot: u32, own: NodeId) -> bool {
        self.standing_by.iter().any(|(of, node, _)| *of == slot && *node != own)
    }

    /// Does a process wait for the number in `slot`, of this node?
    fn is_wanted(&self, slot: u32, own: NodeId) -> bool {
        self.binders.iter().any(|binder| binder.role.slot(own) == Some(slot))
    }

    /// The container is not here any more: nobody gets a number of it. Returns what else is known of it.
    pub(in crate::kernel) fn leave(
        self,
        dc: DcId,
        out: &mut Vec<Output>,
    ) -> impl Iterator<Item = ((DcId, u32), Entry)> {
        let error = IpcError::NotBound;
        out.extend(
            self.binders.iter().map(|binder| Output::Refused { asker: binder.asker, error }),
        );
        self.entries.into_iter().map(move |(slot, entry)| ((dc, slot), entry))
    }

    /// Nobody waits for an answer to that HELLO any more.
    pub(in crate::kernel) fn withdraw(&mut self, asker: Asker) {
        self.binders.retain(|binder| binder.asker != asker);
    }
}

impl Container {
    /// The backup on this node that takes over from the endpoint in `slot`, and its rights.
    fn stands_by(&self, slot: u32) -> Option<(Endpoint, Rights)> {
        let is_it =
            |binding: &&Binding| matches!(binding.role, Role::Backup(of, true) if of.slot == slot);
        self.slots.iter().find(is_it).map(|binding| (binding.endpoint, binding.rights))
    }
}
