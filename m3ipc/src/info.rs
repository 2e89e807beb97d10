//! What dvkd tells about a DC, an endpoint, a node: records with a version, the same for Rust, C and the wire.

use crate::endpoint::Endpoint;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the records here.
pub const VERSION: u32 = 1;

/// The DVS as one node sees it: what there can be (the prototype's `dvs_usr_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DvsInfo {
    pub version: u32,
    /// The node that tells.
    pub node: u32,
    /// The highest number that a node can have.
    pub node_max: u32,
    /// Endpoints that a DC can have on a node.
    pub endpoint_max: u32,
    /// As in [`DcInfo`].
    pub well_known_max: u32,
    pub system_max: u32,
    pub copy_max: u32,
    pub payload_max: u32,
    /// Versions of what a process says to its dvkd, and of what nodes say to each other.
    pub door: u32,
    pub link: u32,
}

/// A DC as one node sees it (the prototype's `dc_usr_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DcInfo {
    pub version: u32,
    pub dc: u32,
    /// The node that tells.
    pub node: u32,
    /// Nodes that the DC spans.
    pub node_count: u32,
    /// Endpoints bound on this node.
    pub endpoint_count: u32,
    /// Endpoints that can be bound on this node.
    pub endpoint_max: u32,
    /// Numbers below this are found without a generation; those up to `system_max` are the administrator's.
    pub well_known_max: u32,
    pub system_max: u32,
    /// Bytes of one `vcopy` of the protocol, and of one message's payload.
    pub copy_max: u32,
    pub payload_max: u32,
}

/// A bound endpoint (the prototype's `proc_usr_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EndpointInfo {
    pub version: u32,
    /// [`state`].
    pub state: u32,
    pub endpoint: Endpoint,
    /// Its process in the DC's pid namespace, and as the node's host sees it.
    pub pid: u32,
    pub host_pid: u32,
    pub node: u32,
    /// `rights::level`.
    pub level: u32,
    /// Requesters that have a channel to it, and receivers of this node to which it has one.
    pub requesters: u32,
    pub receivers: u32,
}

/// Bits of [`EndpointInfo::state`].
pub mod state {
    /// It receives.
    pub const RECEIVES: u32 = 1;
    /// Bound by the administrator; its process has not said hello yet.
    pub const RESERVED: u32 = 2;
    /// A server or the container of the DC.
    pub const SERVER: u32 = 4;
    /// It stands by for another endpoint.
    pub const BACKUP: u32 = 8;
    /// It is one of several replicas.
    pub const REPLICA: u32 = 16;
}

/// Another node, and the proxy to it (the prototype's `node_usr_t`; a pair of proxies is a link here).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NodeInfo {
    pub version: u32,
    pub node: u32,
    /// [`link`].
    pub link: u32,
    pub reserved: u32,
    /// Which life of its daemon this node has a session with; 0 without one.
    pub incarnation: u64,
    /// How often this node has given it up.
    pub epoch: u64,
    /// Calls of this node that wait for it, and calls of it that are open here.
    pub calls_out: u64,
    pub calls_in: u64,
    /// Nanoseconds of the last round trip; 0 if it is not known.
    pub round_trip: u64,
}

/// [`NodeInfo::link`].
pub mod link {
    /// The node that tells.
    pub const SELF: u32 = 1;
    pub const UP: u32 = 2;
    /// There is no link; calls wait.
    pub const LOST: u32 = 3;
    /// Given up; calls fail at once.
    pub const DOWN: u32 = 4;
    /// The administrator has cut it. The node is given up soon, or has been.
    pub const CUT: u32 = 5;
}

/// A record from bytes; `None` if they are of another size or version. Every record begins with its version.
pub fn decode<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Option<T> {
    let (version, _) = bytes.split_first_chunk::<4>()?;
    T::read_from_bytes(bytes).ok().filter(|_| u32::from_le_bytes(*version) == VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn a_record_of_another_size_or_version_is_refused() {
        let info = NodeInfo { version: VERSION, node: 3, ..NodeInfo::new_zeroed() };
        let bytes = info.as_bytes();
        assert_eq!(decode(bytes), Some(info));
        assert_eq!(decode::<NodeInfo>(&bytes[1..]), None);
        assert_eq!(decode::<DcInfo>(bytes), None);
        assert_eq!(decode::<NodeInfo>(NodeInfo { version: 2, ..info }.as_bytes()), None);
    }
}
