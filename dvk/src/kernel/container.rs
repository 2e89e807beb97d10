//! One container on this node: bind, open, and die.
//!
//! A server's slot outlives its owners: who has called the last one, and who has died since, matters to the next.

use super::calls::Incoming;
use super::directory::Directory;
use super::replicas::Replicas;
use super::slots::{Binding, Slots};
use super::{Asker, Binder, Dc, EndpointInfo, Kernel, Number, Output, Role};
use crate::frame::Frame;
use crate::limits::{PARKED_MAX, PEERS_PER_ENDPOINT, SERVER_WAIT, UNTOLD_MAX};
use crate::server::{Gone, Nanos};
use m3ipc::rights::{Rights, call};
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the kernel knows of a container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) dc: Dc,
    pub(super) node: NodeId,
    pub(super) slots: Slots,
    /// By slot: the well-known ones of this node, bound or not, and bound agents and peers.
    pub(super) receivers: BTreeMap<u32, Receiver>,
    /// By slot, those who wait for a receiver; none of nobody.
    parked: BTreeMap<u32, VecDeque<Parked>>,
    pub(super) incoming: Incoming,
    pub(super) directory: Directory,
    pub(super) replicas: Replicas,
    /// Of the last death, see [`Output::Gone`].
    death_number: u64,
}

/// A receiver, or the place of one that will come (again).
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// Endpoints of this node that have had a channel with it, or with its predecessors.
    clients: BTreeSet<Endpoint>,
    /// Only servers have a past: their store outlives them.
    deaths: Option<Deaths>,
}

/// Who is gone, in order and numbered: what a server's owner is told, and its successor again, because
/// the one may have been killed before it had done and committed what there is to do. The number tells the other whether.
#[derive(Debug)]
struct Deaths {
    list: VecDeque<(u64, Gone)>,
    /// Numbers up to this have been told to an owner.
    told: u64,
}

/// An OPEN that waits until its receiver is bound.
#[derive(Debug)]
struct Parked {
    asker: Asker,
    from: Endpoint,
    until: Nanos,
}

/// Where a message to an endpoint of this node goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Bound(Endpoint),
    /// The server will come (back).
    Absent,
    /// It is moving away, or here: messages wait.
    Moving,
    No(IpcError),
}

impl Container {
    pub(super) fn new(dc: Dc, node: NodeId, first_generation: u32) -> Container {
        let mut container = Container {
            dc,
            node,
            slots: Slots::new(node, first_generation),
            receivers: BTreeMap::from([(Endpoint::container(node).slot, Receiver::default())]),
            parked: BTreeMap::new(),
            incoming: Incoming::default(),
            directory: Directory::default(),
            replicas: Replicas::new(),
            // Above those of earlier incarnations of the node, like generations.
            death_number: u64::from(first_generation) << 32,
        };
        let servers = container.dc.servers.iter().filter(|(_, home)| **home == node);
        for slot in servers.map(|(number, _)| *number).collect::<Vec<u32>>() {
            let receiver = Receiver { deaths: Some(Deaths::new()), ..Receiver::default() };
            container.receivers.insert(slot, receiver);
        }
        // A server's store may be older than this daemon: whoever called then is gone, on every node.
        for gone in container.dc.nodes.clone() {
            container.tell_all(Gone::Node(gone), &mut Vec::new());
        }
        container
    }

    /// The node where `to` is, by the directory or by its address.
    pub(super) fn home(&self, to: Endpoint) -> Option<NodeId> {
        let owner = if to.is_memory() { to.of_memory() } else { to };
        let node = match self.directory.place(owner.slot) {
            Some(place) => place,
            // What is known of them is known here.
            None if to.is_replicated() => self.node,
            None if to.is_server() => self.dc.servers.get(&to.slot).copied()?,
            None => to.node(),
        };
        self.dc.nodes.contains(&node).then_some(node)
    }

    /// Is it one that can move, and on another node?
    pub(super) fn is_elsewhere(&self, to: Endpoint) -> bool {
        let owner = if to.is_memory() { to.of_memory() } else { to };
        owner.is_well_known()
            && self.directory.moving(owner.slot).is_none()
            && self.home(to).is_some_and(|home| home != self.node)
    }

    /// Is `slot` that of a server of this node, or of the container itself?
    pub(super) fn is_well_known(&self, slot: u32) -> bool {
        slot == Endpoint::container(self.node).slot
            || self.dc.servers.get(&slot) == Some(&self.node)
    }

    pub(super) fn find(&self, to: Endpoint) -> Found {
        let will_come = self.is_well_known(to.slot) && to.generation == 0;
        match self.directory.moving(to.slot) {
            Some(moving) if to.generation == 0 || moving == to => return Found::Moving,
            Some(_) => return Found::No(IpcError::Stale),
            None => {}
        }
        match self.resolve(to) {
            Err(IpcError::NotBound | IpcError::Stale) if will_come => Found::Absent,
            Err(error) => Found::No(error),
            Ok(binding) if binding.is_reserved => Found::Absent,
            Ok(binding) if !binding.role.receives() => Found::No(IpcError::Denied),
            Ok(binding) => Found::Bound(binding.endpoint),
        }
    }

    /// Who is bound as `to` on this node.
    pub(super) fn resolve(&self, to: Endpoint) -> Result<&Binding, IpcError> {
        if self.home(to) != Some(self.node) {
            return Err(IpcError::NotBound);
        }
        // Whoever is there now.
        let owner = if to.is_memory() { to.of_memory() } else { to };
        let is_by_number = to.generation == 0
            && (self.is_well_known(to.slot) || owner.is_well_known() || to.is_server());
        match self.slots.by_slot(to.slot) {
            None if is_by_number => Err(IpcError::NotBound),
            Some(binding) if is_by_number || binding.endpoint == to => Ok(binding),
            _ => Err(IpcError::Stale),
        }
    }

    pub(super) fn info(&self, binding: &Binding) -> EndpointInfo {
        let place = self.receivers.get(&binding.endpoint.slot);
        EndpointInfo {
            endpoint: binding.endpoint,
            role: binding.role,
            pid: binding.pid,
            rights: binding.rights,
            is_reserved: binding.is_reserved,
            requesters: place.map_or(0, |place| place.clients.len()),
            receivers: binding.receivers.len(),
        }
    }

    /// May `from`, bound on this node, have a channel to `to`?
    fn check_rights(&self, from: Endpoint, to: Endpoint) -> Result<(), IpcError> {
        let binding = self.slots.get(from).ok_or(IpcError::Stale)?;
        let useful = if to.is_memory() { call::VCOPY } else { call::OUTWARD & !call::VCOPY };
        let may = binding.rights.calls & useful != 0 && binding.rights.to.contains(to);
        if may && self.accepts(to, from) { Ok(()) } else { Err(IpcError::Denied) }
    }

    /// Does `to`, if it is of this node, take messages of `from`?
    pub(super) fn accepts(&self, to: Endpoint, from: Endpoint) -> bool {
        let bound = self.slots.by_slot(to.slot).map(|binding| &binding.rights);
        let rights = bound.or_else(|| self.directory.rights_of_moving(to.slot));
        rights.is_none_or(|rights| rights.from.contains(from))
    }

    /// Nobody is the receiver in `slot` here any more.
    pub(super) fn forget_receiver(&mut self, slot: u32) {
        for client in self.receivers.remove(&slot).into_iter().flat_map(|receiver| receiver.clients)
        {
            if let Some(binding) = self.slots.get_mut(client) {
                binding.receivers.remove(&slot);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        // All that is gone through here are the few that wait: this is asked each time that anybody does anything.
        let parked = self.parked.values().filter_map(|parked| parked.front());
        let parked = parked.map(|parked| parked.until);
        parked.chain(self.incoming.deadline()).chain(self.directory.deadline()).min()
    }

    /// Tells the receiver at `slot` that `gone` is: now, or its successor when that is bound. False if too
    /// much is to be remembered.
    pub(super) fn tell(&mut self, slot: u32, gone: Gone, out: &mut Vec<Output>) -> bool {
        let Some(receiver) = self.receivers.get_mut(&slot) else { return true };
        self.death_number += 1;
        let (dc, number) = (self.dc.id, self.death_number);
        let bound = self.slots.by_slot(slot).map(|binding| binding.endpoint);
        out.extend(bound.map(|to| Output::Gone { dc, to, gone, number }));
        receiver.deaths.as_mut().is_none_or(|deaths| deaths.remember(number, gone, bound.is_some()))
    }

    /// Tells every receiver that a node, or an endpoint that had moved, is gone.
    pub(super) fn tell_all(&mut self, gone: Gone, out: &mut Vec<Output>) {
        let slots: Vec<u32> = self.receivers.keys().copied().collect();
        for slot in slots {
            self.tell(slot, gone, out);
        }
    }

    /// A notification goes to a receiver that is there, or gets lost.
    pub(super) fn notify(
        &mut self,
        from: Endpoint,
        to: Endpoint,
        value: u64,
        out: &mut Vec<Output>,
    ) {
        if !self.accepts(to, from) {
            return;
        }
        match self.find(to) {
            Found::Bound(to) => {
                out.push(Output::DeliverNotify { dc: self.dc.id, to, from, value });
            }
            Found::Moving => {
                self.directory.keep_notification(to.slot, from, value);
            }
            Found::Absent | Found::No(_) => {}
        }
    }

    /// Would `to`, of this node, get a notification of `from`?
    fn check_notifiable(&self, from: Endpoint, to: Endpoint) -> Result<(), IpcError> {
        match self.find(to) {
            Found::Bound(_) | Found::Moving if self.accepts(to, from) => Ok(()),
            Found::Bound(_) | Found::Moving => Err(IpcError::Denied),
            Found::Absent => Err(IpcError::NotBound),
            Found::No(error) => Err(error),
        }
    }

    /// What a receiver that has just been bound must hear first, and the channels that waited for it.
    fn introduce(&mut self, bound: Endpoint, out: &mut Vec<Output>) {
        let dc = self.dc.id;
        let Some(receiver) = self.receivers.get_mut(&bound.slot) else { return };
        for (number, gone) in receiver.deaths.iter_mut().flat_map(Deaths::retell) {
            out.push(Output::Gone { dc, to: bound, gone, number });
        }
        for parked in self.parked.remove(&bound.slot).into_iter().flatten() {
            self.connect(parked.asker, parked.from, bound, out);
        }
    }

    fn park(&mut self, slot: u32, parked: Parked) -> Result<(), IpcError> {
        if !self.receivers.contains_key(&slot) {
            return Err(IpcError::NotBound);
        }
        let queue = self.parked.entry(slot).or_default();
        if queue.len() >= PARKED_MAX {
            return Err(IpcError::Exhausted);
        }
        queue.push_back(parked);
        Ok(())
    }

    /// Notes and orders a channel between two processes of this node.
    fn connect(
        &mut self,
        asker: Asker,
        requester: Endpoint,
        receiver: Endpoint,
        out: &mut Vec<Output>,
    ) {
        let (Some(binding), Some(place)) =
            (self.slots.get_mut(requester), self.receivers.get_mut(&receiver.slot))
        else {
            return out.push(Output::Refused { asker, error: IpcError::Stale });
        };
        if binding.receivers.len() >= PEERS_PER_ENDPOINT
            && !binding.receivers.contains(&receiver.slot)
        {
            return out.push(Output::Refused { asker, error: IpcError::Exhausted });
        }
        binding.receivers.insert(receiver.slot);
        place.clients.insert(requester);
        out.push(Output::Channel { asker, dc: self.dc.id, requester, receiver, via: None });
    }

    /// A process of this node that had channels is dead: its receivers hear of it.
    fn leave_receivers(
        &mut self,
        dead: Endpoint,
        receivers: &BTreeSet<u32>,
        out: &mut Vec<Output>,
    ) {
        self.parked.retain(|_, queue| {
            queue.retain(|parked| {
                if parked.from == dead {
                    out.push(Output::Refused { asker: parked.asker, error: IpcError::Stale });
                }
                parked.from != dead
            });
            !queue.is_empty()
        });
        for slot in receivers {
            if let Some(receiver) = self.receivers.get_mut(slot) {
                receiver.clients.remove(&dead);
            }
            // Those nobody is told of are bounded by the clients of the receiver when it died: nobody can become one
            // while it is not bound.
            self.tell(*slot, Gone::Endpoint(dead), out);
        }
    }

    /// A receiver of this node is dead: its channels end.
    fn close(&mut self, dead: Endpoint, out: &mut Vec<Output>) {
        out.push(Output::CloseChannels {
            dc: self.dc.id,
            receiver: dead,
            error: IpcError::DestinationDied,
        });
        if self.is_well_known(dead.slot) {
            return;
        }
        self.forget_receiver(dead.slot);
    }
}

impl Deaths {
    fn new() -> Deaths {
        Deaths { list: VecDeque::new(), told: 0 }
    }

    /// False if there are too many that nobody has been told of.
    fn remember(&mut self, number: u64, gone: Gone, is_told: bool) -> bool {
        if let Gone::Node(node) = gone {
            self.list.retain(|(_, earlier)| match earlier {
                Gone::Endpoint(endpoint) => endpoint.node() != node,
                Gone::Node(earlier) => *earlier != node,
            });
        }
        self.list.push_back((number, gone));
        if is_told {
            self.told = number;
        }
        // Who has been told of so many later ones has done with the first.
        if self.list.len() > UNTOLD_MAX
            && self.list.front().is_some_and(|(first, _)| *first <= self.told)
        {
            self.list.pop_front();
        }
        self.list.len() <= UNTOLD_MAX
    }

    /// All, for an owner that has just been bound.
    fn retell(&mut self) -> Vec<(u64, Gone)> {
        self.told = self.list.back().map_or(self.told, |(last, _)| *last);
        self.list.iter().copied().collect()
    }
}

impl Kernel {
    pub(super) fn dc_start(&mut self, dc: &Dc) {
        let (node, first_generation) = (self.node, self.first_generation);
        self.containers
            .entry(dc.id)
            .or_insert_with(|| Container::new(dc.clone(), node, first_generation));
    }

    /// More nodes, that this node has not had anything to do with yet.
    pub(super) fn dc_span(&mut self, dc: DcId, nodes: &BTreeSet<NodeId>) {
        if let Some(container) = self.containers.get_mut(&dc) {
            container.dc.nodes.extend(nodes);
        }
    }

    pub(super) fn dc_stop(&mut self, now: Nanos, dc: DcId, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get(&dc) else { return };
        let bound: Vec<Endpoint> = container.slots.iter().map(|binding| binding.endpoint).collect();
        for endpoint in bound {
            self.died(now, dc, endpoint, out);
        }
        self.end_incoming_of_dc(now, dc, out);
        self.end_awaits_of_dc(now, dc, out);
        let Some(container) = self.containers.remove(&dc) else { return };
        // If the container starts again, no endpoint of this one is given out, and deaths go on being counted.
        self.first_generation = self.first_generation.max(container.slots.next_generation());
        for parked in container.parked.into_values().flatten() {
            out.push(Output::Refused { asker: parked.asker, error: IpcError::NotBound });
        }
        self.entries_of_others.extend(container.directory.leave(dc, out));
    }

    /// A process, or the administrator for one, says what it wants to be: now, or when its number is free.
    pub(super) fn bind_or_park(
        &mut self,
        now: Nanos,
        dc: DcId,
        binder: Binder,
        out: &mut Vec<Output>,
    ) {
        if self.parks(now, dc, binder, out) {
            return;
        }
        let Binder { asker, role, pid, nonce, privileged, .. } = binder;
        let done = match nonce {
            Some(nonce) => self
                .bind(now, dc, role, pid, nonce, privileged, out)
                .map(|bound| self.welcome(now, asker, dc, bound, out)),
            None => self.reserve(dc, role, pid, privileged).map(|endpoint| {
                out.push(Output::Done { asker, endpoint });
                self.tell_awaits(now, dc, endpoint.slot, out);
            }),
        };
        if let Err(error) = done {
            out.push(Output::Refused { asker, error });
        }
    }

    /// Binds a process, or finds it bound.
    #[expect(clippy::too_many_arguments, reason = "the fields of Input::Hello")]
    fn bind(
        &mut self,
        now: Nanos,
        dc: DcId,
        role: Role,
        pid: u32,
        nonce: u64,
        privileged: bool,
        out: &mut Vec<Output>,
    ) -> Result<Bound, IpcError> {
        let container = self.containers.get(&dc).ok_or(IpcError::NotBound)?;
        if role.is_privileged() && !privileged {
            return Err(IpcError::Denied);
        }
        if let Role::Server(number) = role
            && container.dc.servers.get(&number) != Some(&self.node)
        {
            return Err(IpcError::Denied);
        }
        if let Role::Peer(number) = role
            && let Some(endpoint) = container.slots.reserved_for(pid, number)
        {
            return Ok(self.claim_reserved(now, dc, endpoint, nonce, out));
        }
        if !role.is_bound_to_connection()
            && let Some(binding) = container.slots.by_pid(pid)
        {
            let old = binding.endpoint;
            match binding.nonce == nonce {
                true if binding.role == role => return Ok(Bound::Already(old)),
                true => return Err(IpcError::Denied),
                false => self.died(now, dc, old, out),
            }
        }
        if role.slot(self.node).is_some_and(|slot| self.number(dc, slot) != Number::Free) {
            return Err(IpcError::InUse);
        }
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        if let Role::Backup(of, _) = role
            && !(of.is_well_known() && container.dc.nodes.contains(&of.node()))
        {
            return Err(IpcError::NotBound);
        }
        let endpoint = container.slots.bind(role, pid, nonce, role.first_rights(privileged))?;
        if role.receives() {
            container.receivers.entry(endpoint.slot).or_default();
        }
        self.reconcile(now, dc, endpoint.slot, out);
        match role {
            Role::Backup(of, true) => {
                self.register_backups(now, dc, of.slot, out);
                // Its place may be down already.
                self.reconcile(now, dc, of.slot, out);
            }
            Role::Replica(_) => self.own_replica(now, dc, endpoint, false, out),
            _ => {}
        }
        Ok(Bound::New(endpoint))
    }

    /// The process for which the administrator has bound an endpoint is there.
    fn claim_reserved(
        &mut self,
        now: Nanos,
        dc: DcId,
        endpoint: Endpoint,
        nonce: u64,
        out: &mut Vec<Output>,
    ) -> Bound {
        let container = self.containers.get_mut(&dc);
        if let Some(binding) = container.and_then(|container| container.slots.get_mut(endpoint)) {
            binding.is_reserved = false;
            binding.nonce = nonce;
        }
        self.reconcile(now, dc, endpoint.slot, out);
        Bound::New(endpoint)
    }

    /// Binds a process that has not said hello.
    fn reserve(
        &mut self,
        dc: DcId,
        role: Role,
        pid: u32,
        privileged: bool,
    ) -> Result<Endpoint, IpcError> {
        if !privileged {
            return Err(IpcError::Denied);
        }
        if role.slot(self.node).is_some_and(|slot| self.number(dc, slot) != Number::Free) {
            return Err(IpcError::InUse);
        }
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        let rights = Rights::of_level(m3ipc::rights::level::SERVER);
        let endpoint = container.slots.bind(role, pid, 0, rights)?;
        if let Some(binding) = container.slots.get_mut(endpoint) {
            binding.is_reserved = true;
        }
        container.receivers.entry(endpoint.slot).or_default();
        Ok(endpoint)
    }

    /// Only the administrator changes rights, of endpoints of this node.
    pub(super) fn set_rights(
        &mut self,
        dc: DcId,
        to: Endpoint,
        rights: &Rights,
        privileged: bool,
        out: &mut Vec<Output>,
    ) -> Result<Endpoint, IpcError> {
        if !privileged {
            return Err(IpcError::Denied);
        }
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        let endpoint = container.resolve(to)?.endpoint;
        let binding = container.slots.get_mut(endpoint).ok_or(IpcError::Stale)?;
        binding.rights = *rights;
        out.push(Output::Reopen { dc, endpoint });
        Ok(endpoint)
    }

    fn welcome(&mut self, now: Nanos, asker: Asker, dc: DcId, bound: Bound, out: &mut Vec<Output>) {
        let (Bound::New(endpoint) | Bound::Already(endpoint)) = bound;
        out.push(Output::Welcome { asker, dc, endpoint });
        let (Bound::New(_), Some(container)) = (bound, self.containers.get_mut(&dc)) else {
            return;
        };
        container.introduce(endpoint, out);
        self.deliver_waiting(dc, endpoint, out);
        self.tell_awaits(now, dc, endpoint.slot, out);
    }

    pub(super) fn open(
        &mut self,
        now: Nanos,
        asker: Asker,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        out: &mut Vec<Output>,
    ) -> Result<(), IpcError> {
        let to = self.actual(dc, to)?;
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        let binding = container.slots.get(from).ok_or(IpcError::Stale)?;
        let requester = binding.endpoint;
        if matches!(binding.role, Role::Backup(..)) || container.directory.is_cut_off(requester) {
            return Err(IpcError::Moved);
        }
        let home = container.home(to).ok_or(IpcError::NotBound)?;
        container.check_rights(from, to)?;
        if home != self.node {
            self.peers.get(&home).ok_or(IpcError::NotBound)?;
            out.push(Output::Channel { asker, dc, requester, receiver: to, via: Some(home) });
            return Ok(());
        }
        match container.find(to) {
            Found::Bound(receiver) if receiver == from => return Err(IpcError::Denied),
            Found::Bound(receiver) => container.connect(asker, requester, receiver, out),
            // Its calls are held here, and go where the receiver is then.
            Found::Moving => {
                let via = Some(self.node);
                out.push(Output::Channel { asker, dc, requester, receiver: to, via });
            }
            Found::Absent => {
                container.park(to.slot, Parked { asker, from, until: now + SERVER_WAIT })?
            }
            Found::No(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) fn withdraw(&mut self, asker: Asker) {
        for container in self.containers.values_mut() {
            container.parked.retain(|_, queue| {
                queue.retain(|parked| parked.asker != asker);
                !queue.is_empty()
            });
            container.directory.withdraw(asker);
        }
    }

    /// OPENs whose receiver has not come in time.
    pub(super) fn refuse_overdue(&mut self, now: Nanos, out: &mut Vec<Output>) {
        for container in self.containers.values_mut() {
            container.parked.retain(|_, queue| {
                // They came in this order.
                let overdue = queue.iter().take_while(|parked| parked.until <= now).count();
                for Parked { asker, .. } in queue.drain(..overdue) {
                    out.push(Output::Refused { asker, error: IpcError::DestinationDied });
                }
                !queue.is_empty()
            });
        }
    }

    pub(super) fn died(&mut self, now: Nanos, dc: DcId, dead: Endpoint, out: &mut Vec<Output>) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(binding) = container.slots.unbind(dead) else { return };
        self.forget_awaits_of(now, dc, dead, out);
        let is_dead = !self.outlives(now, dc, &binding, out);
        if is_dead {
            self.tell_awaits(now, dc, dead.slot, out);
        }
        let Some(container) = self.containers.get_mut(&dc) else { return };
        container.leave_receivers(dead, &binding.receivers, out);
        if binding.role.receives() && is_dead {
            container.close(dead, out);
            self.receiver_died(now, dc, dead, out);
            self.is_over(now, dc, dead, out);
        }
        for (node, to) in binding.reached {
            if node == self.node {
                self.remote_died(node, dc, to, dead, out);
                continue;
            }
            self.forget_outgoing(node, dc, dead, to);
            self.send(now, node, &Frame::Gone { dc, to, gone: dead }, out);
        }
        match binding.role {
            Role::Backup(of, _) => self.forget_backup(now, dc, of, dead, out),
            Role::Replica(_) => self.own_replica(now, dc, dead, true, out),
            _ => {}
        }
    }

    pub(super) fn local_notify(
        &mut self,
        now: Nanos,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        value: u64,
        out: &mut Vec<Output>,
    ) {
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let Some(binding) = container.slots.get(from) else { return };
        if !binding.rights.may(call::NOTIFY) || !binding.rights.to.contains(to) {
            return;
        }
        match container.home(to) {
            Some(home) if home == self.node => container.notify(from, to, value, out),
            Some(home) => {
                self.send(now, home, &Frame::Notify { dc, from, to, value }, out);
            }
            None => {}
        }
    }
}

impl Kernel {
    /// An administrator notifies `to` in the name of another, or of this node's hardware.
    #[expect(clippy::too_many_arguments, reason = "the fields of Input::NotifyAs")]
    pub(super) fn notify_as(
        &mut self,
        now: Nanos,
        dc: DcId,
        source: Endpoint,
        to: Endpoint,
        value: u64,
        privileged: bool,
        out: &mut Vec<Output>,
    ) -> Result<Endpoint, IpcError> {
        if !privileged {
            return Err(IpcError::Denied);
        }
        let to = self.actual(dc, to)?;
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        if source == Endpoint::HARDWARE {
            // A node has its own hardware only.
            container.check_notifiable(source, to)?;
            container.notify(source, to, value, out);
            return Ok(source);
        }
        let home = container.home(to).ok_or(IpcError::NotBound)?;
        let binding = container.slots.get(container.resolve(source)?.endpoint);
        let binding = binding.ok_or(IpcError::Stale)?;
        let source = binding.endpoint;
        if !binding.rights.may(call::NOTIFY) || !binding.rights.to.contains(to) {
            return Err(IpcError::Denied);
        }
        if home == self.node {
            container.check_notifiable(source, to)?;
        }
        self.local_notify(now, dc, source, to, value, out);
        Ok(source)
    }
}

/// How a HELLO ended well.
#[derive(Clone, Copy, Debug)]
enum Bound {
    New(Endpoint),
    Already(Endpoint),
}
