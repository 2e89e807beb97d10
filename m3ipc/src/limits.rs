//! Every bound of M3-IPC, with its reason.

use core::time::Duration;

/// Bytes that may ride along with one message, beside the credentials in front of them.
/// The largest FUSE request that one page-cache read-ahead makes by default is 128 KiB.
pub const PAYLOAD_MAX: usize = 128 * 1024;

/// Bytes of one payload area of a lane: the payload, and a page for credentials and fixed structs.
pub const PAYLOAD_AREA: usize = PAYLOAD_MAX + 4096;

/// Lanes of a channel: calls that may be open on it at once. One word of bits finds those with news.
pub const LANES: usize = 64;

/// Channels that a process can have, to all its peers together; and that a trusted one (a dvkd, a file agent) may open to
/// one server when all lanes of the others are taken by kept calls: 4 096 calls may wait there per peer and server.
pub const CHANNELS_PER_PEER: usize = 64;

/// Endpoints of a node that have a fixed number and are found by it, without a generation, 1 and up. Others are
/// given out above. The prototype has 221 processes in all.
pub const WELL_KNOWN_MAX: u32 = 1023;

/// The first of them are for system processes: only the DC's administrator binds one. As many as the prototype has.
pub const SYSTEM_MAX: u32 = 63;

/// How long a call that must not wait may take to change hands: a receiver that sleeps in `receive` is woken within
/// this time, on a busy CPU too. On the way to another node lie two more wake-ups and the wire.
pub const HAND_OVER: Duration = Duration::from_millis(2);
pub const HAND_OVER_REMOTE: Duration = Duration::from_millis(50);

/// Bytes that one `vcopy` of the protocol moves, as in the prototype. The library splits longer ones.
pub const COPY_MAX: usize = 1 << 20;

/// Ranges of memory that a process may have granted at once: each is looked at for every piece of a copy.
pub const GRANTS_MAX: usize = 1024;

/// Memory that one process lends as such (`lent`) at once, as dvkd keeps a descriptor for each; and bytes of one.
pub const LENT_MAX: usize = 16;
pub const LENT_SIZE_MAX: usize = 1 << 30;

/// Of others' lent memory a process keeps so many mappings.
pub const BORROWED_MAX: usize = 64;

/// Endpoints of whose notifications from other nodes one process remembers at once that they are pending.
pub const NOTIFIERS_MAX: usize = 4096;

/// Questions to its dvkd that one process may have open: endpoints that it waits to see bound, or to die.
pub const QUESTIONS_MAX: usize = 1024;

/// Endpoints in each list of an endpoint's rights. The record has room for these.
pub const RIGHTS_LIST: usize = 12;

/// Supplementary groups that travel with a call. Linux allows 65 536; NFS sends 16.
/// Dropping the rest gives fewer rights, never more.
pub const GROUPS_MAX: usize = 64;

/// Longest spin before sleeping, when both sides are awake and answer at once. Longer than a wake-up: if one side was
/// kept from its CPU and the other fell asleep, they must not go on sleeping in turn.
pub const SPIN_MAX: Duration = Duration::from_micros(50);

/// Longest spin of an occasional try, to find the other side awake the next time: waking it on a CPU that has halted
/// takes 30 to 50 µs in a virtual machine.
pub const SPIN_PROBE: Duration = Duration::from_micros(100);

const _: () = assert!(LANES <= u64::BITS as usize);
const _: () = assert!(SYSTEM_MAX < WELL_KNOWN_MAX);
const _: () = assert!(PAYLOAD_AREA.is_multiple_of(4096));
const _: () = assert!(PAYLOAD_AREA >= PAYLOAD_MAX + crate::cred::CRED_SIZE_MAX);
