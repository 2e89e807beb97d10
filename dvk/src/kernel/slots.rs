//! The endpoints of one container on one node: which slot is whose, and no endpoint ever two processes'.

use super::Role;
use crate::limits::{ENDPOINTS_MAX, SLOTS_RESTING};
use m3ipc::limits::WELL_KNOWN_MAX;
use m3ipc::{Endpoint, IpcError, NodeId, Rights};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A bound process.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) endpoint: Endpoint,
    pub(super) role: Role,
    pub(super) pid: u32,
    pub(super) nonce: u64,
    /// What it may do.
    pub(super) rights: Rights,
    /// The administrator has bound it; its process has not said hello yet.
    pub(super) is_reserved: bool,
    /// Slots of the receivers on this node that it has had a channel with.
    pub(super) receivers: BTreeSet<u32>,
    /// Receivers on other nodes that it has called. They are told of its death.
    pub(super) reached: BTreeSet<(NodeId, Endpoint)>,
}

/// Who is bound where.
#[derive(Debug)]
pub(super) struct Slots {
    node: NodeId,
    first_generation: u32,
    bound: BTreeMap<u32, Binding>,
    by_pid: BTreeMap<u32, u32>,
    /// The lowest index never used; 0 is the container's, and the well-known ones are asked for by number.
    fresh: u32,
    /// Freed ordinary slots with their next generation, the longest free in front.
    resting: VecDeque<(u32, u32)>,
    /// Next generation of the well-known slots that have had an owner.
    well_known: BTreeMap<u32, u32>,
    /// The highest given out.
    highest_generation: u32,
}

impl Slots {
    pub(super) fn new(node: NodeId, first_generation: u32) -> Slots {
        Slots {
            node,
            first_generation: first_generation.max(1),
            bound: BTreeMap::new(),
            by_pid: BTreeMap::new(),
            fresh: WELL_KNOWN_MAX + 1,
            resting: VecDeque::new(),
            well_known: BTreeMap::new(),
            highest_generation: first_generation,
        }
    }

    /// Above every generation given out.
    pub(super) fn next_generation(&self) -> u32 {
        self.highest_generation.saturating_add(1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Binding> {
        self.bound.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Binding> {
        self.bound.values_mut()
    }

    pub(super) fn by_slot(&self, slot: u32) -> Option<&Binding> {
        self.bound.get(&slot)
    }

    pub(super) fn by_pid(&self, pid: u32) -> Option<&Binding> {
        self.bound.get(self.by_pid.get(&pid)?)
    }

    /// The binding of exactly this endpoint.
    pub(super) fn get(&self, endpoint: Endpoint) -> Option<&Binding> {
        self.bound.get(&endpoint.slot).filter(|binding| binding.endpoint == endpoint)
    }

    pub(super) fn get_mut(&mut self, endpoint: Endpoint) -> Option<&mut Binding> {
        self.bound.get_mut(&endpoint.slot).filter(|binding| binding.endpoint == endpoint)
    }

    /// Binds a process that is not bound yet.
    pub(super) fn bind(
        &mut self,
        role: Role,
        pid: u32,
        nonce: u64,
        rights: Rights,
    ) -> Result<Endpoint, IpcError> {
        let endpoint = match role {
            Role::Server(number) => self.take_well_known(number, IpcError::Denied)?,
            Role::Container => {
                self.take_well_known(Endpoint::container(self.node).slot, IpcError::Denied)?
            }
            Role::Peer(index @ 1..=WELL_KNOWN_MAX) => {
                self.take_well_known(Endpoint::well_known(self.node, index).slot, IpcError::InUse)?
            }
            Role::Replica(index) if Endpoint::replicated(index).is_replicated() => {
                self.take_well_known(Endpoint::well_known(self.node, index).slot, IpcError::InUse)?
            }
            Role::Peer(1..) | Role::Replica(_) => return Err(IpcError::NotBound),
            Role::Memory(of) => self.take_memory(of, pid)?,
            Role::Process | Role::Agent | Role::Peer(0) | Role::Backup(..) => self.take()?,
        };
        let (receivers, reached) = (BTreeSet::new(), BTreeSet::new());
        let is_reserved = false;
        let binding =
            Binding { endpoint, role, pid, nonce, rights, is_reserved, receivers, reached };
        self.bound.insert(endpoint.slot, binding);
        if !role.is_bound_to_connection() {
            self.by_pid.insert(pid, endpoint.slot);
        }
        Ok(endpoint)
    }

    /// Takes in the binding of an endpoint that comes from another node, or from another process.
    pub(super) fn insert(&mut self, binding: Binding) {
        let next = binding.endpoint.generation.saturating_add(1);
        self.highest_generation = self.highest_generation.max(next);
        self.bound.insert(binding.endpoint.slot, binding);
    }

    /// A well-known endpoint that the administrator has bound for this process.
    pub(super) fn reserved_for(&self, pid: u32, index: u32) -> Option<Endpoint> {
        let mut reserved = self.bound.values().filter(|binding| binding.is_reserved);
        let of = |binding: &&Binding| {
            binding.pid == pid && (index == 0 || binding.endpoint.index() == index)
        };
        reserved.find(of).map(|binding| binding.endpoint)
    }

    /// Takes back the slot. A generation that cannot be counted on is the last of its slot.
    pub(super) fn unbind(&mut self, endpoint: Endpoint) -> Option<Binding> {
        self.get(endpoint)?;
        let binding = self.bound.remove(&endpoint.slot)?;
        if !binding.role.is_bound_to_connection() {
            self.by_pid.remove(&binding.pid);
        }
        let next = endpoint.generation.checked_add(1);
        self.highest_generation = self.highest_generation.max(next.unwrap_or(u32::MAX));
        match (binding.role, next) {
            (
                Role::Server(_) | Role::Container | Role::Peer(1..) | Role::Replica(_),
                Some(next),
            ) => {
                self.well_known.insert(endpoint.slot, next);
            }
            // It goes with the endpoint whose memory it is.
            (Role::Memory(_), _) => {}
            (_, Some(next)) => self.resting.push_back((endpoint.slot, next)),
            (_, None) => {}
        }
        Some(binding)
    }

    fn take_well_known(&mut self, slot: u32, taken: IpcError) -> Result<Endpoint, IpcError> {
        if self.bound.contains_key(&slot) {
            return Err(taken);
        }
        let generation = self.well_known.get(&slot).copied().unwrap_or(self.first_generation);
        Ok(Endpoint { slot, generation })
    }

    /// The memory side of a peer of the same process.
    fn take_memory(&mut self, of: Endpoint, pid: u32) -> Result<Endpoint, IpcError> {
        let peer = self.get(of).ok_or(IpcError::Stale)?;
        if peer.pid != pid || !matches!(peer.role, Role::Peer(_) | Role::Replica(_)) {
            return Err(IpcError::Denied);
        }
        let endpoint = of.memory();
        if self.bound.contains_key(&endpoint.slot) { Err(IpcError::InUse) } else { Ok(endpoint) }
    }

    fn take(&mut self) -> Result<Endpoint, IpcError> {
        if self.bound.len() >= ENDPOINTS_MAX {
            return Err(IpcError::Exhausted);
        }
        if self.resting.len() >= SLOTS_RESTING
            && let Some((slot, generation)) = self.resting.pop_front()
        {
            return Ok(Endpoint { slot, generation });
        }
        let endpoint = Endpoint::new(self.node, self.fresh, self.first_generation);
        // Only slots worn out by 2^32 owners are not in `bound` or `resting`.
        if endpoint.index() != self.fresh {
            return Err(IpcError::Exhausted);
        }
        self.fresh += 1;
        Ok(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Rights = Rights::of_level(m3ipc::rights::level::SERVER);

    fn slots() -> Slots {
        Slots::new(NodeId(3), 100)
    }

    #[test]
    fn a_slot_is_used_again_late_and_with_a_higher_generation() {
        let mut slots = slots();
        let first = slots.bind(Role::Process, 1, 0, FULL).unwrap();
        assert_eq!(first, Endpoint::new(NodeId(3), WELL_KNOWN_MAX + 1, 100));
        slots.unbind(first).unwrap();
        let mut seen = BTreeSet::from([first]);
        for round in 0..2 * SLOTS_RESTING {
            let next = slots.bind(Role::Process, 1, 0, FULL).unwrap();
            assert!(seen.insert(next), "{next:?} was somebody's before");
            assert_eq!(next.slot == first.slot, (round + 1) % SLOTS_RESTING == 0, "round {round}");
            slots.unbind(next).unwrap();
        }
        assert!(slots.unbind(first).is_none(), "a stale endpoint unbinds nobody");
    }

    #[test]
    fn well_known_slots_have_one_owner_at_a_time() {
        let mut slots = slots();
        let server = slots.bind(Role::Server(2), 1, 0, FULL).unwrap();
        assert_eq!(server, Endpoint { slot: Endpoint::PM.slot, generation: 100 });
        assert_eq!(slots.bind(Role::Server(2), 2, 0, FULL), Err(IpcError::Denied));
        slots.unbind(server).unwrap();
        assert_eq!(slots.bind(Role::Server(2), 2, 0, FULL).unwrap().generation, 101);
        assert_eq!(
            slots.bind(Role::Container, 3, 0, FULL).unwrap().slot,
            Endpoint::container(NodeId(3)).slot
        );
    }

    #[test]
    fn the_number_of_endpoints_is_bounded() {
        let mut slots = slots();
        for pid in 1..=u32::try_from(ENDPOINTS_MAX).unwrap() {
            slots.bind(Role::Process, pid, 0, FULL).unwrap();
        }
        assert_eq!(slots.bind(Role::Process, 0, 0, FULL), Err(IpcError::Exhausted));
        let one = slots.by_pid(7).unwrap().endpoint;
        slots.unbind(one).unwrap();
        assert!(slots.bind(Role::Process, 7, 0, FULL).is_ok());
    }

    #[test]
    fn a_peer_gets_the_number_it_wants_if_it_is_free_and_each_owner_another_generation() {
        let mut slots = slots();
        let wanted = Endpoint::well_known(NodeId(3), 70);
        let first = slots.bind(Role::Peer(70), 1, 0, FULL).unwrap();
        assert_eq!(first, Endpoint { generation: 100, ..wanted });
        assert_eq!(slots.bind(Role::Peer(70), 2, 0, FULL), Err(IpcError::InUse));
        assert_eq!(slots.bind(Role::Peer(WELL_KNOWN_MAX + 1), 2, 0, FULL), Err(IpcError::NotBound));
        let second = slots.bind(Role::Peer(0), 1, 0, FULL).unwrap();
        assert!(!second.is_well_known() && slots.by_pid(1).is_none(), "one process, two peers");
        slots.unbind(first).unwrap();
        assert_eq!(slots.bind(Role::Peer(70), 2, 0, FULL).unwrap().generation, 101);
    }

    #[test]
    fn a_memory_side_belongs_to_a_peer_of_the_same_process() {
        let mut slots = slots();
        let peer = slots.bind(Role::Peer(0), 1, 0, FULL).unwrap();
        assert_eq!(slots.bind(Role::Memory(peer), 2, 0, FULL), Err(IpcError::Denied));
        assert_eq!(slots.bind(Role::Memory(peer), 1, 0, FULL), Ok(peer.memory()));
        assert_eq!(slots.bind(Role::Memory(peer), 1, 0, FULL), Err(IpcError::InUse));
        let process = slots.bind(Role::Process, 1, 0, FULL).unwrap();
        assert_eq!(slots.bind(Role::Memory(process), 1, 0, FULL), Err(IpcError::Denied));
        slots.unbind(peer.memory()).unwrap();
        slots.unbind(peer).unwrap();
        assert_eq!(slots.bind(Role::Memory(peer), 1, 0, FULL), Err(IpcError::Stale));
    }
}
