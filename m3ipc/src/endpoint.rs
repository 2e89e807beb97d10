//! Addresses: which node, which container, which thread of control inside it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A node of the DVS, 1..=4095. 0 means "no particular node": the address of a server of the DC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

/// A distributed container. Endpoints of different containers have nothing to do with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DcId(pub u32);

/// Address of a thread of control inside a DC.
///
/// `slot` is node (12 bits) and index on that node (20 bits), so an ordinary process's address
/// says where it is and no table grows with the number of processes. `generation` tells successive
/// owners of one slot apart: a stale endpoint is an error, never another process. Generation 0
/// means "whoever is bound there now" and is used for the well-known endpoints only.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Endpoint {
    pub slot: u32,
    pub generation: u32,
}

/// Bits of `slot` that number the endpoints of one node.
const INDEX_BITS: u32 = 20;

/// In an index: the memory side of the endpoint with the rest of the address.
const MEMORY_BIT: u32 = 1 << (INDEX_BITS - 1);

impl Endpoint {
    /// Nobody. Never bound.
    pub const NONE: Endpoint = Endpoint { slot: 0, generation: 0 };
    /// In `receive`: from whomever.
    pub const ANY: Endpoint = Endpoint { slot: u32::MAX, generation: u32::MAX };
    /// The hardware of a node, as the source of a notification ([`crate::door::ask::NOTIFY_AS`]). Never bound.
    pub const HARDWARE: Endpoint = Endpoint { slot: 0, generation: 1 };
    /// The DC's file server.
    pub const VFS: Endpoint = Endpoint::server(1);
    /// The DC's process server.
    pub const PM: Endpoint = Endpoint::server(2);
    /// The DC's server of semaphores and message queues.
    pub const IPC: Endpoint = Endpoint::server(3);

    /// The well-known endpoint of server number `index` (1..) of a DC.
    pub const fn server(index: u32) -> Endpoint {
        Endpoint { slot: index, generation: 0 }
    }

    /// The container of the DC on `node`: it starts, signals and reaps that node's processes.
    pub const fn container(node: NodeId) -> Endpoint {
        Endpoint { slot: (node.0 as u32) << INDEX_BITS, generation: 0 }
    }

    /// An ordinary endpoint. `index` counts from 1 on each node and is below 2^20.
    pub const fn new(node: NodeId, index: u32, generation: u32) -> Endpoint {
        Endpoint {
            slot: (node.0 as u32) << INDEX_BITS | index & ((1 << INDEX_BITS) - 1),
            generation,
        }
    }

    /// The endpoint with the fixed number `index` (1 to `limits::WELL_KNOWN_MAX`) on `node`, whoever is bound there now.
    pub const fn well_known(node: NodeId, index: u32) -> Endpoint {
        Endpoint::new(node, index, 0)
    }

    /// Whichever replica with the number `index` (above `limits::SYSTEM_MAX`, up to `limits::WELL_KNOWN_MAX`) is best for the
    /// caller: the one of its own node, or one that lives.
    pub const fn replicated(index: u32) -> Endpoint {
        Endpoint { slot: index & ((1 << INDEX_BITS) - 1), generation: 0 }
    }

    /// Does it stand for any of several replicas?
    pub const fn is_replicated(self) -> bool {
        self.node().0 == 0
            && self.generation == 0
            && self.index() > crate::limits::SYSTEM_MAX
            && self.index() <= crate::limits::WELL_KNOWN_MAX
    }

    /// Does this name, perhaps without a generation, mean `other`?
    pub const fn names(self, other: Endpoint) -> bool {
        self.slot == other.slot && (self.generation == other.generation || self.generation == 0)
    }

    /// Has it a number that is found without a generation?
    pub const fn is_well_known(self) -> bool {
        self.node().0 != 0 && self.index() != 0 && self.index() <= crate::limits::WELL_KNOWN_MAX
    }

    /// Where the process bound as `self` answers for its memory (`vcopy`): an address that nobody else can have.
    pub const fn memory(self) -> Endpoint {
        Endpoint { slot: self.slot | MEMORY_BIT, generation: self.generation }
    }

    /// Is it the memory side of another endpoint?
    pub const fn is_memory(self) -> bool {
        self.node().0 != 0 && self.index() & MEMORY_BIT != 0
    }

    /// The endpoint whose memory side this is.
    pub const fn of_memory(self) -> Endpoint {
        Endpoint { slot: self.slot & !MEMORY_BIT, generation: self.generation }
    }

    /// The node in the address; `NodeId(0)` for a server, whose place is in the directory.
    pub const fn node(self) -> NodeId {
        NodeId((self.slot >> INDEX_BITS) as u16)
    }

    /// The number on its node.
    pub const fn index(self) -> u32 {
        self.slot & ((1 << INDEX_BITS) - 1)
    }

    /// A server of the DC: found through the directory.
    pub const fn is_server(self) -> bool {
        self.node().0 == 0 && self.slot != 0 && !self.is_replicated()
    }

    /// `self` as a 64-bit number, for keys and logs.
    pub const fn to_bits(self) -> u64 {
        (self.slot as u64) << 32 | self.generation as u64
    }

    /// The inverse of [`Endpoint::to_bits`].
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves are taken apart on purpose"
    )]
    pub const fn from_bits(bits: u64) -> Endpoint {
        Endpoint { slot: (bits >> 32) as u32, generation: bits as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_names_its_node_and_survives_packing() {
        let endpoint = Endpoint::new(NodeId(4095), 77, 9);
        assert_eq!((endpoint.node(), endpoint.index()), (NodeId(4095), 77));
        assert_eq!(Endpoint::from_bits(endpoint.to_bits()), endpoint);
        assert!(Endpoint::VFS.is_server() && !endpoint.is_server() && !Endpoint::NONE.is_server());
        assert!(!Endpoint::container(NodeId(1)).is_server());
        let replicated = Endpoint::replicated(70);
        assert!(replicated.is_replicated() && !replicated.is_server());
        assert!(!Endpoint::VFS.is_replicated() && !endpoint.is_replicated());
        let memory = endpoint.memory();
        assert!(memory.is_memory() && !endpoint.is_memory() && memory != endpoint);
        assert_eq!((memory.of_memory(), memory.node()), (endpoint, endpoint.node()));
        assert!(Endpoint::well_known(NodeId(3), 7).is_well_known());
        assert!(!Endpoint::container(NodeId(3)).is_well_known() && !Endpoint::VFS.is_well_known());
    }
}
