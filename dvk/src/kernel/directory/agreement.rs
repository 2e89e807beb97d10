//! What nodes tell each other of where endpoints are, and what a node believes.

use super::super::awaits::Event;
use super::super::container::Container;
use super::super::slots::Binding;
use super::super::{Kernel, NodeState, Output, Role};
use super::{Entry, Move, Stage};
use crate::frame::Frame;
use crate::limits::MIGRATION_MAX;
use crate::server::{Gone, Nanos};
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use std::collections::VecDeque;

impl Kernel {
    /// Another node says where an endpoint is.
    pub(in crate::kernel) fn entry(
        &mut self,
        now: Nanos,
        from: NodeId,
        dc: DcId,
        entry: Entry,
        out: &mut Vec<Output>,
    ) {
        let Entry { endpoint, epoch, .. } = entry;
        match self.judge(from, dc, &entry) {
            Verdict::Known => {}
            Verdict::Believed => {
                self.go_by(now, dc, entry, out);
                // Those who do not see that the place before is down believe its home.
                if entry.is_claim && endpoint.node() == self.node {
                    for other in self.others(dc, from) {
                        self.send_entry(now, other, dc, &entry, out);
                    }
                }
            }
            Verdict::Later => {
                if let Some(container) = self.containers.get_mut(&dc) {
                    let claims = &mut container.directory.claims;
                    let kept = claims.entry(endpoint.slot).or_insert((from, entry));
                    if kept.1.rank() < entry.rank() {
                        *kept = (from, entry);
                    }
                }
                return;
            }
            Verdict::Mine(owner) => return self.insist(now, dc, owner, epoch + 1, out),
            Verdict::Old => {
                // Who says so does not know better yet.
                let slot = endpoint.slot;
                let ours = self
                    .containers
                    .get(&dc)
                    .and_then(|container| container.directory.entries.get(&slot).copied());
                if let Some(ours) = ours.filter(|ours| ours.rank() > entry.rank()) {
                    self.send_entry(now, from, dc, &ours, out);
                }
                return;
            }
            Verdict::No => return,
        }
        self.note_entry(now, from, dc, &entry, out);
        self.judge_claims(now, dc, out);
    }

    /// The endpoint is here, whatever another node says: from this epoch on.
    pub(super) fn insist(
        &mut self,
        now: Nanos,
        dc: DcId,
        owner: Endpoint,
        epoch: u64,
        out: &mut Vec<Output>,
    ) {
        let node = self.node;
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let mine = Entry { endpoint: owner, node, epoch, is_over: false, is_claim: false };
        container.directory.entries.insert(owner.slot, mine);
        // A hand-over that is under way was begun in an earlier epoch: it is to be begun again.
        if let Some(moving) = container.directory.moves.get_mut(&owner.slot)
            && let Stage::Offered { reply, .. } | Stage::Telling { reply, .. } = moving.stage
        {
            let is_takeover = moving.is_takeover;
            moving.stage = Stage::Frozen { until: now + MIGRATION_MAX };
            self.reply(now, dc, owner, reply, Err(IpcError::Moved), out);
            if is_takeover {
                self.take_over(now, dc, owner, out);
            }
        }
        for other in self.others(dc, node) {
            self.send_entry(now, other, dc, &mine, out);
        }
    }

    /// Tells who said so, and whom it is about, that this node goes by the entry.
    pub(super) fn note_entry(
        &mut self,
        now: Nanos,
        from: NodeId,
        dc: DcId,
        entry: &Entry,
        out: &mut Vec<Output>,
    ) {
        let Entry { endpoint, node, epoch, .. } = *entry;
        self.send(now, from, &Frame::Noted { dc, endpoint, epoch }, out);
        if node != from && node != self.node {
            self.send(now, node, &Frame::Noted { dc, endpoint, epoch }, out);
        }
    }

    fn judge(&self, from: NodeId, dc: DcId, entry: &Entry) -> Verdict {
        let Some(container) = self.containers.get(&dc) else { return Verdict::No };
        let (slot, home) = (entry.endpoint.slot, entry.endpoint.node());
        let nodes = &container.dc.nodes;
        if ![from, entry.node, home].iter().all(|node| nodes.contains(node)) {
            return Verdict::No;
        }
        let ours = container.directory.entries.get(&slot);
        let place = ours.map_or(home, |ours| ours.node);
        if let Some(ours) = ours.filter(|ours| ours.epoch >= entry.epoch) {
            let is_same = (ours.endpoint, ours.node, ours.epoch, ours.is_over)
                == (entry.endpoint, entry.node, entry.epoch, entry.is_over);
            // Whoever may know: its home, the place that is wrong; a node of its own claim.
            let may_know = [home, place].contains(&from) || entry.is_claim && from == entry.node;
            let wins = may_know && ours.rank() < entry.rank();
            return match (is_same, wins) {
                (true, _) => Verdict::Known,
                (false, true) => Verdict::Believed,
                (false, false) => Verdict::Old,
            };
        }
        if let Some(Move { stage: Stage::Claiming { epoch, .. }, .. }) =
            container.directory.moves.get(&slot)
            && *epoch == entry.epoch
            && entry.is_claim
            && entry.node > self.node
        {
            return Verdict::No;
        }
        let owner = container.slots.by_slot(slot).map(|binding| binding.endpoint);
        match owner.or(container.directory.moving(slot)) {
            Some(owner) if place == self.node && from != home => return Verdict::Mine(owner),
            _ => {}
        }
        if home == self.node && from != place {
            let is_free = place == self.node || self.is_down(place);
            return if is_free { Verdict::Believed } else { Verdict::Later };
        }
        // Whoever knows more than this node speaks for a place that is down.
        if from == home || from == place || self.is_down(place) {
            Verdict::Believed
        } else {
            Verdict::Later
        }
    }

    pub(super) fn is_down(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| matches!(peer.state(), NodeState::Down { .. }))
    }

    /// From now on this node goes by an entry of another.
    pub(super) fn go_by(&mut self, now: Nanos, dc: DcId, entry: Entry, out: &mut Vec<Output>) {
        let own = self.node;
        let slot = entry.endpoint.slot;
        let Some(container) = self.containers.get_mut(&dc) else { return };
        container.directory.entries.insert(slot, entry);
        container
            .directory
            .claims
            .retain(|of, (_, claim)| *of != slot || claim.rank() > entry.rank());
        if entry.is_over {
            container.tell_all(Gone::Endpoint(entry.endpoint), out);
        }
        let moving = container.directory.moves.get(&slot);
        match moving.map(|moving| &moving.stage) {
            Some(&Stage::Adopting { from, backup, epoch })
                if entry.node == own && epoch == entry.epoch =>
            {
                container.directory.came_from.insert(slot, from);
                self.arrive(now, dc, slot, backup, out);
            }
            Some(Stage::Adopting { .. } | Stage::Claiming { .. }) if entry.node != own => {
                // It went back, or to another.
                container.directory.moves.remove(&slot);
                self.redirect_incoming(now, dc, slot, out);
                self.redirect_awaits(now, dc, slot, out);
            }
            _ if entry.node != own => self.supersede(now, dc, slot, out),
            None if !entry.is_over && container.slots.by_slot(slot).is_none() => {
                self.end_dead(now, dc, entry.endpoint, out);
            }
            _ => {}
        }
        self.register_backups(now, dc, slot, out);
    }

    /// What this node took for the endpoint in `slot` is so no longer: another has taken over meanwhile.
    pub(super) fn supersede(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(endpoint) = container.slots.by_slot(slot).map(|binding| binding.endpoint) else {
            if let Some(moving) = container.directory.moves.remove(&slot) {
                if let Stage::Offered { reply, .. } | Stage::Telling { reply, .. } = moving.stage {
                    self.reply(now, dc, moving.endpoint, reply, Err(IpcError::Moved), out);
                }
                self.redirect_incoming(now, dc, slot, out);
                self.redirect_awaits(now, dc, slot, out);
            }
            return;
        };
        if let Some(moving) = container.directory.moves.remove(&slot)
            && let Stage::Freezing { reply, .. }
            | Stage::Offered { reply, .. }
            | Stage::Telling { reply, .. } = moving.stage
        {
            self.reply(now, dc, endpoint, reply, Err(IpcError::Moved), out);
        }
        // What it had received may be answered by nobody; what it had not goes to the other.
        out.push(Output::CloseChannels {
            dc,
            receiver: endpoint,
            error: IpcError::DestinationDied,
        });
        self.end_received(now, dc, slot, out);
        self.demote(now, dc, endpoint, out);
        self.redirect_incoming(now, dc, slot, out);
        self.redirect_awaits(now, dc, slot, out);
    }

    /// A new session with `node`: it may know nothing of what this node answers for.
    pub(in crate::kernel) fn introduce_directory(
        &mut self,
        now: Nanos,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let own = self.node;
        let mut entries = Vec::new();
        let mut slots = Vec::new();
        for (dc, container) in &self.containers {
            if !container.dc.nodes.contains(&node) {
                continue;
            }
            let known = container.directory.entries.values();
            // The new place too: it may have missed that it is one.
            let mine = known
                .filter(|entry| [own, node].contains(&entry.node) || entry.endpoint.node() == own);
            entries.extend(mine.map(|entry| (*dc, *entry)));
            for (slot, moving) in &container.directory.moves {
                if let Stage::Telling { node: to, epoch, .. } = moving.stage
                    && to != node
                {
                    let entry = Entry {
                        endpoint: moving.endpoint,
                        node: to,
                        epoch,
                        is_over: false,
                        is_claim: false,
                    };
                    entries.push((*dc, entry));
                }
                if let Stage::Claiming { epoch, .. } = moving.stage {
                    let entry = Entry {
                        endpoint: moving.endpoint,
                        node: own,
                        epoch,
                        is_over: false,
                        is_claim: true,
                    };
                    entries.push((*dc, entry));
                }
                slots.push((*dc, *slot));
            }
            let backups = container.slots.iter().filter_map(|binding| match binding.role {
                Role::Backup(of, true) => Some((*dc, of.slot)),
                _ => None,
            });
            slots.extend(backups);
        }
        for (dc, entry) in entries {
            self.send_entry(now, node, dc, &entry, out);
        }
        for (dc, slot) in slots {
            let is_place = |container: &Container| {
                container.home(Endpoint { slot, generation: 0 }) == Some(node)
            };
            if self.containers.get(&dc).is_some_and(is_place) {
                self.register_backups(now, dc, slot, out);
            }
        }
    }

    /// Tells the endpoint's place of the backups here that take over when it dies.
    pub(in crate::kernel) fn register_backups(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let to = Endpoint { slot, generation: 0 };
        let Some(place) = container.home(to) else { return };
        let of = |binding: &Binding| match binding.role {
            Role::Backup(of, true) if of.slot == slot => Some(binding.endpoint),
            _ => None,
        };
        let backups: Vec<Endpoint> = container.slots.iter().filter_map(of).collect();
        for backup in backups {
            if place == self.node {
                if let Some(container) = self.containers.get_mut(&dc) {
                    container.directory.standing_by.insert((slot, place, backup));
                }
            } else {
                let frame = Frame::StandBy { dc, to, backup, is_over: false };
                self.send(now, place, &frame, out);
            }
        }
    }

    /// Another node has a backup, or not any more.
    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::StandBy")]
    pub(in crate::kernel) fn stand_by(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        to: Endpoint,
        backup: Endpoint,
        is_over: bool,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        if !container.dc.nodes.contains(&node) || backup.node() != node {
            return;
        }
        let key = (to.slot, node, backup);
        let standing = &mut container.directory.standing_by;
        if is_over {
            standing.remove(&key);
        } else if to.is_well_known() && standing.len() < crate::limits::BACKUPS_MAX {
            standing.insert(key);
            // It must know exactly whom it stands by for.
            let bound = container.slots.by_slot(to.slot).map(|binding| binding.endpoint);
            let is_known = container.directory.entries.contains_key(&to.slot);
            if let Some(bound) = bound.filter(|_| !is_known) {
                self.number_bound(now, dc, bound, out);
            }
        }
    }

    /// A backup of this node is gone.
    pub(in crate::kernel) fn forget_backup(
        &mut self,
        now: Nanos,
        dc: DcId,
        of: Endpoint,
        backup: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let (own, to) = (self.node, Endpoint { generation: 0, ..of });
        container.directory.standing_by.remove(&(of.slot, own, backup));
        let place = container.home(to);
        let claims = matches!(
            container.directory.moves.get(&of.slot),
            Some(Move { stage: Stage::Claiming { backup: claimer, .. }, .. }) if *claimer == backup
        );
        if claims {
            // Those who believe it hear that nobody is there.
            if let Some(moving) = container.directory.moves.remove(&of.slot)
                && let Stage::Claiming { epoch, .. } = moving.stage
            {
                let entry = Entry {
                    endpoint: moving.endpoint,
                    node: own,
                    epoch,
                    is_over: false,
                    is_claim: true,
                };
                container.directory.entries.insert(of.slot, entry);
                self.end_dead(now, dc, moving.endpoint, out);
            }
        }
        if let Some(place) = place.filter(|place| *place != own) {
            self.send(now, place, &Frame::StandBy { dc, to, backup, is_over: true }, out);
        }
    }

    /// Another node is down: what was there is gone, what was to go there stays, and what this node stands by for
    /// comes here.
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
        if let Some(container) = self.containers.get_mut(&dc) {
            container.directory.standing_by.retain(|(_, of, _)| *of != node);
            let lost: Vec<Endpoint> = container
                .directory
                .entries
                .values()
                .filter(|entry| {
                    entry.node == node && entry.endpoint.node() != node && !entry.is_over
                })
                .map(|entry| entry.endpoint)
                .collect();
            for endpoint in lost {
                container.tell_all(Gone::Endpoint(endpoint), out);
            }
            let slots: Vec<u32> = container.directory.moves.keys().copied().collect();
            for slot in slots {
                self.move_without(now, dc, slot, node, out);
            }
            self.judge_claims(now, dc, out);
            self.claim(now, dc, node, out);
            self.replicas_without(now, dc, node, out);
        }
    }

    pub(super) fn move_without(
        &mut self,
        now: Nanos,
        dc: DcId,
        slot: u32,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let all = self.others(dc, self.node);
        let own = self.node;
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(moving) = container.directory.moves.get_mut(&slot) else { return };
        let (endpoint, is_takeover) = (moving.endpoint, moving.is_takeover);
        match &mut moving.stage {
            Stage::Offered { reply, node: to, .. } if *to == node => {
                let reply = *reply;
                moving.stage = Stage::Frozen { until: now + MIGRATION_MAX };
                self.reply(now, dc, endpoint, reply, Err(IpcError::NodeDown), out);
            }
            // It may have begun to tell the others: they hear that it stays.
            Stage::Telling { reply, node: to, epoch, .. } if *to == node => {
                let reply = *reply;
                let epoch = *epoch + 1;
                moving.stage = Stage::Frozen { until: now + MIGRATION_MAX };
                let entry = Entry { endpoint, node: own, epoch, is_over: false, is_claim: false };
                container.directory.entries.insert(slot, entry);
                for other in all {
                    self.send_entry(now, other, dc, &entry, out);
                }
                self.reply(now, dc, endpoint, reply, Err(IpcError::NodeDown), out);
            }
            Stage::Telling { unaware, .. } | Stage::Claiming { unaware, .. } => {
                unaware.remove(&node);
                return self.go_if_all_know(now, dc, slot, out);
            }
            Stage::Adopting { from, backup, epoch } if *from == node => {
                let (backup, epoch) = (*backup, *epoch);
                moving.stage = Stage::Claiming { backup, epoch, unaware: all };
                return self.tell_claim(now, dc, slot, out);
            }
            _ => return,
        }
        if is_takeover {
            self.take_over(now, dc, endpoint, out);
        }
    }

    pub(super) fn tell_claim(&mut self, now: Nanos, dc: DcId, slot: u32, out: &mut Vec<Output>) {
        let moving =
            self.containers.get(&dc).and_then(|container| container.directory.moves.get(&slot));
        let Some(Move { endpoint, stage: Stage::Claiming { epoch, unaware, .. }, .. }) = moving
        else {
            return;
        };
        let (node, is_over, is_claim) = (self.node, false, true);
        let entry = Entry { endpoint: *endpoint, node, epoch: *epoch, is_over, is_claim };
        for other in unaware.clone() {
            self.send_entry(now, other, dc, &entry, out);
        }
        self.go_if_all_know(now, dc, slot, out);
    }

    /// What could not be believed may be believed now.
    pub(super) fn judge_claims(&mut self, now: Nanos, dc: DcId, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let claims: Vec<_> = container.directory.claims.values().copied().collect();
        for (from, claim) in claims {
            if self.judge(from, dc, &claim) == Verdict::Believed {
                self.go_by(now, dc, claim, out);
                self.note_entry(now, from, dc, &claim, out);
            }
        }
    }

    /// Backups here that take over for endpoints that were on `node`, which is down.
    pub(super) fn claim(&mut self, now: Nanos, dc: DcId, node: NodeId, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let of = |binding: &Binding| match binding.role {
            Role::Backup(of, true) => Some((of, binding.endpoint, binding.rights)),
            _ => None,
        };
        let backups: Vec<_> = container.slots.iter().filter_map(of).collect();
        for (of, backup, rights) in backups {
            let unaware = self.others(dc, self.node);
            let Some(container) = self.containers.get_mut(&dc) else { return };
            let directory = &mut container.directory;
            let entry = directory.entries.get(&of.slot);
            let endpoint = entry.map_or(of, |entry| entry.endpoint);
            let is_free = !directory.moves.contains_key(&of.slot)
                && !entry.is_some_and(|entry| entry.is_over);
            // Only an endpoint whose owner is known can be taken over: another generation is another endpoint.
            if container.home(of) != Some(node) || !is_free || endpoint.generation == 0 {
                continue;
            }
            let directory = &mut container.directory;
            let epoch = directory.epoch(of.slot) + 1;
            let moving = Move {
                endpoint,
                rights,
                stage: Stage::Claiming { backup, epoch, unaware },
                is_dead: false,
                is_takeover: true,
                pending: VecDeque::new(),
            };
            directory.moves.insert(of.slot, moving);
            self.tell_claim(now, dc, of.slot, out);
        }
    }

    /// May the number in `slot`, of this node, be bound anew?
    pub(in crate::kernel) fn is_number_free(&self, dc: DcId, slot: u32) -> bool {
        self.containers.get(&dc).is_some_and(|container| {
            let place = container.directory.place(slot);
            container.directory.moving(slot).is_none()
                && place.is_none_or(|place| place == self.node || self.is_down(place))
        })
    }

    /// A number of this node has a new owner: if the one before had moved, every node is to know.
    pub(in crate::kernel) fn number_bound(
        &mut self,
        now: Nanos,
        dc: DcId,
        bound: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let node = self.node;
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let directory = &mut container.directory;
        let is_known = directory.entries.contains_key(&bound.slot);
        if is_known || directory.standing_by.iter().any(|(slot, ..)| *slot == bound.slot) {
            let epoch = directory.epoch(bound.slot) + 1;
            let entry = Entry { endpoint: bound, node, epoch, is_over: false, is_claim: false };
            directory.entries.insert(bound.slot, entry);
            for other in self.others(dc, node) {
                self.send_entry(now, other, dc, &entry, out);
            }
        }
    }

    /// Tells `node`, which looks here for an endpoint that is elsewhere.
    pub(in crate::kernel) fn send_entry_of(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        slot: u32,
        out: &mut Vec<Output>,
    ) {
        let entry =
            self.containers.get(&dc).and_then(|container| container.directory.entries.get(&slot));
        if let Some(entry) = entry.copied() {
            self.send_entry(now, node, dc, &entry, out);
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

/// What is made of an entry that another node tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Known,
    Believed,
    /// When the place before is down, or the home says so.
    Later,
    /// The number has another owner here, at its home.
    Mine(Endpoint),
    Old,
    No,
}
