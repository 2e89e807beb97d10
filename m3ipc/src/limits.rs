//! Every bound of M3-IPC, with its reason.

use core::time::Duration;

/// Bytes that may ride along with one message, beside the credentials in front of them.
/// The largest FUSE request that one page-cache read-ahead makes by default is 128 KiB.
pub const PAYLOAD_MAX: usize = 128 * 1024;

/// Bytes of one payload area of a lane: the payload, and a page for credentials and fixed structs.
pub const PAYLOAD_AREA: usize = PAYLOAD_MAX + 4096;

/// Lanes of a channel: calls that may be open on it at once. One word of bits finds those with news.
pub const LANES: usize = 64;

/// Channels that a trusted peer (a dvkd, a file agent) may open to one server when all lanes
/// of the others are taken by kept calls: 4 096 calls may wait there per peer and server.
pub const CHANNELS_PER_PEER: usize = 64;

/// Supplementary groups that travel with a call. Linux allows 65 536; NFS sends 16.
/// Dropping the rest gives fewer rights, never more.
pub const GROUPS_MAX: usize = 64;

/// Longest spin before sleeping, when both sides are awake and answer at once: about three wake-ups.
pub const SPIN_MAX: Duration = Duration::from_micros(20);

/// Longest spin of an occasional try, to find the other side awake the next time: waking it on a CPU that has halted
/// takes 30 to 50 µs in a virtual machine.
pub const SPIN_PROBE: Duration = Duration::from_micros(100);

const _: () = assert!(LANES <= u64::BITS as usize);
const _: () = assert!(PAYLOAD_AREA.is_multiple_of(4096));
const _: () = assert!(PAYLOAD_AREA >= PAYLOAD_MAX + crate::cred::CRED_SIZE_MAX);
