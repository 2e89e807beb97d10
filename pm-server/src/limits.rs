//! Every bound of pm-server, with its reason.

use dvk::server::Nanos;
use m3ipc::NodeId;

/// Pids of a node: node n owns n × 100 000 + 1 ..= (n + 1) × 100 000 - 1, so a pid says where its
/// process is. Linux' pids end at 2^22, which leaves room for 40 nodes with ranges of their own;
/// elsewhere (and where a container cannot choose its pids) only the table knows.
pub const PIDS_PER_NODE: u32 = 100_000;

/// The node that owns a pid by its number; none if no node can.
pub const fn node_of(pid: u32) -> Option<NodeId> {
    let (node, index) = (pid / PIDS_PER_NODE, pid % PIDS_PER_NODE);
    if index == 0 || node == 0 || node > NODE_MAX { None } else { Some(NodeId(narrow(node))) }
}

/// Highest number of a node (12 bits of an endpoint).
const NODE_MAX: u32 = 4095;

#[expect(clippy::cast_possible_truncation, reason = "the caller has checked that it is a node")]
const fn narrow(node: u32) -> u16 {
    node as u16
}

/// Highest signal (SIGRTMAX).
pub const SIGNAL_MAX: u32 = 64;

/// Processes of one node in the table: as many as have a pid there.
pub const PROCESSES_PER_NODE: usize = PIDS_PER_NODE as usize - 1;

/// Exit statuses that are kept for those who ask late. A process asks within moments of the exit.
pub const ENDED_MAX: usize = 4096;

/// Orders that a node may have open, waiting or under way. A container answers in microseconds; one
/// that does not is in trouble, and more signals do not help it.
pub const ORDERS_PER_NODE: usize = 1024;

/// Calls in which one container may wait for orders: more than threads that could carry them out.
pub const AWAITS_PER_NODE: usize = 64;

/// Processes that may wait for others' ends, and kills whose caller a crash has made unknown.
pub const WAITS_MAX: usize = 65_536;

/// Lists that may be collected at once.
pub const LISTS_MAX: usize = 1024;

/// How long a list waits for the reports of containers: longer than any that lives needs, short
/// enough for a person who waits for `dvs ps`.
pub const REPORT_WAIT: Nanos = 2_000_000_000;

/// How long a caller that pages through a list finds the rest of it: pages follow each other at once.
pub const SNAPSHOT_LIFE: Nanos = 30_000_000_000;

/// Lists that are kept for their callers. One more than that only costs its oldest a new collection.
pub const SNAPSHOTS_MAX: usize = 16;

/// How often a container is asked whether a process lives on that somebody waits for, but whose
/// end the container does not see (it is not its child).
pub const WATCH_INTERVAL: Nanos = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_says_which_node_owns_it() {
        let table = [
            (0, None),
            (1, None),
            (99_999, None),
            (100_000, None),
            (100_001, Some(1)),
            (199_999, Some(1)),
            (200_000, None),
            (200_001, Some(2)),
            (409_599_999, Some(4095)),
            (409_600_001, None),
            (u32::MAX, None),
        ];
        for (pid, node) in table {
            assert_eq!(node_of(pid), node.map(NodeId), "{pid}");
        }
    }
}
