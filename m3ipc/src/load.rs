//! How busy nodes and DCs are: records with a version, the same for Rust, C and between nodes.
//!
//! All rates are means over [`NodeLoad::span_ms`], the time since the look before. A figure that cannot be had is 0.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How busy a node is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NodeLoad {
    /// [`crate::info::VERSION`].
    pub version: u32,
    pub node: u32,
    /// Milliseconds since the look that this comes from, as the node that tells has it.
    pub age_ms: u32,
    /// Milliseconds that it is about.
    pub span_ms: u32,
    /// Processors, and how much of them is in use, in thousandths of one processor (proc_stat(5)).
    pub cpus: u32,
    pub busy: u32,
    /// Load averages of 1, 5 and 15 minutes, in hundredths (proc_loadavg(5)).
    pub load1: u32,
    pub load5: u32,
    pub load15: u32,
    /// Other nodes to which there is a link.
    pub links: u32,
    /// Endpoints bound there, of all DCs.
    pub endpoints: u32,
    pub reserved: u32,
    /// Bytes: MemTotal and MemAvailable of proc_meminfo(5).
    pub memory_total: u64,
    pub memory_available: u64,
    /// Calls per second to other nodes, and of other nodes.
    pub calls_out: u64,
    pub calls_in: u64,
    /// Bytes of frames per second to and from all other nodes.
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// Nanoseconds: the mean of the last round trips to the nodes to which there is a link.
    pub round_trip: u64,
}

/// How busy the part of a DC on one node is. Calls between two processes of one node pass no daemon and are not
/// counted.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DcLoad {
    pub version: u32,
    pub dc: u32,
    pub node: u32,
    pub age_ms: u32,
    pub span_ms: u32,
    /// Endpoints bound there, and processes that they are of: programs, servers, the container.
    pub endpoints: u32,
    pub processes: u32,
    /// Processor time of these processes, in thousandths of one processor.
    pub busy: u32,
    /// Calls of other nodes per second to each of the servers 1, 2 and 3 (files, processes, semaphores and queues), and
    /// to all other endpoints.
    pub served: [u32; 4],
    /// Bytes of memory of these processes (RSS; what they share counts for each).
    pub memory: u64,
    /// Calls per second to other nodes, and of other nodes; payload per second of the requests of each.
    pub calls_out: u64,
    pub calls_in: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cred::CRED_SIZE_MAX;
    use crate::info::{VERSION, decode};

    #[test]
    fn a_record_fits_the_door_and_one_of_another_version_is_refused() {
        assert!(size_of::<NodeLoad>() <= CRED_SIZE_MAX && size_of::<DcLoad>() <= CRED_SIZE_MAX);
        let load = DcLoad { version: VERSION, dc: 7, ..DcLoad::default() };
        assert_eq!(decode(load.as_bytes()), Some(load));
        assert_eq!(decode::<NodeLoad>(load.as_bytes()), None);
        assert_eq!(decode::<DcLoad>(DcLoad { version: 9, ..load }.as_bytes()), None);
    }
}
