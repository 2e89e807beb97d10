//! Every bound of the system group, with its reason.

use crate::command::Millis;

/// Bytes of a key. etcd's users stay below 256; a path of a tree fits.
pub const KEY_MAX: usize = 1024;

/// Bytes of a value, of a message to a group, and of what a candidate says of itself: a command must
/// fit one frame of a link (128 KiB) with room for another.
pub const VALUE_MAX: usize = 32 << 10;

/// Bytes of the name of a lock, an election, a barrier, a group, a node or a container.
pub const NAME_MAX: usize = 256;

/// Bytes of all keys and values. The whole state is in the memory of every node and in one snapshot.
pub const KV_BYTES_MAX: usize = 16 << 20;

/// Keys. Bounds what small keys cost beyond their bytes.
pub const KEYS_MAX: usize = 100_000;

/// Changes of keys that are remembered for watchers who come late, and their bytes. Who asks for
/// older ones is told which is the oldest.
pub const HISTORY_MAX: usize = 8192;
pub const HISTORY_BYTES_MAX: usize = 4 << 20;

/// Keys, or changes, in one answer, and their bytes: the rest is asked for again.
pub const RANGE_MAX: usize = 1024;
pub const RANGE_BYTES_MAX: usize = 64 << 10;

/// Sessions of the cluster: one per node and one per program that uses the services.
pub const SESSIONS_MAX: usize = 16_384;

/// Answers that are kept for a client that has not said that it has them. Also how many commands of
/// one client may be under way.
pub const ANSWERS_MAX: usize = 1024;

/// Signs of life in one command, 30 bytes each at most.
pub const SIGNS_MAX: usize = 2048;

const _: () = assert!(30 * SIGNS_MAX < COMMAND_MAX);

/// What one session may hold: keys with its lease, locks, candidacies, barriers, groups.
pub const HOLDS_MAX: usize = 4096;

/// Time that a session lives without a sign of life. Less than the lower is not measurable over a busy
/// link; more than the upper is no sign of life any more.
pub const TTL_MIN: Millis = 100;
pub const TTL_MAX: Millis = 24 * 3600 * 1000;

/// Locks, and elections, and barriers, of the cluster.
pub const NAMES_MAX: usize = 65_536;

/// Clients in the line of one lock or election, and parties of one barrier.
pub const LINE_MAX: usize = 4096;

/// Groups of the cluster. All their memory is bounded by the next two.
pub const GROUPS_MAX: usize = 4096;

/// Members of a group. Each view lists them all.
pub const MEMBERS_MAX: usize = 256;

/// Messages and views that a group keeps for members that have not acknowledged them, and the bytes of
/// all groups together. A member that does not read stops the senders, not the memory.
pub const QUEUE_MAX: usize = 4096;
pub const QUEUES_BYTES_MAX: usize = 8 << 20;

/// Bytes of the state that a member gives to a joiner. One command carries it.
pub const STATE_MAX: usize = 64 << 10;

/// Nodes: 12 bits of an endpoint. Containers as many.
pub const NODES_MAX: usize = 4095;

/// Entries of the directory: the servers of each container and endpoints that have migrated.
pub const DIRECTORY_MAX: usize = 65_536;

/// Bytes of an encoded command: the longest (the state for a joiner, the nodes of a container) and its
/// fields.
pub const COMMAND_MAX: usize = STATE_MAX + (8 << 10);

/// Bytes of an encoded snapshot: keys, their history, the queues of the groups, and as much again for
/// tables, sessions and the lines of locks. More is refused before it is decoded.
pub const SNAPSHOT_MAX: usize = 4 * (KV_BYTES_MAX + HISTORY_BYTES_MAX + QUEUES_BYTES_MAX);

/// Of sessions, keys, their bytes, remembered changes, names of one kind, groups and the bytes that these keep: a
/// container's share. One that takes all it can leaves most to the others.
pub const DC_SESSIONS_MAX: usize = SESSIONS_MAX / 16;
pub const DC_KEYS_MAX: usize = 8192;
pub const DC_KV_BYTES_MAX: usize = KV_BYTES_MAX / 8;
pub const DC_HISTORY_MAX: usize = HISTORY_MAX / 8;
pub const DC_HISTORY_BYTES_MAX: usize = HISTORY_BYTES_MAX / 8;
pub const DC_NAMES_MAX: usize = 1024;
pub const DC_GROUPS_MAX: usize = 64;
pub const DC_QUEUES_BYTES_MAX: usize = QUEUES_BYTES_MAX / 8;

/// Of what few containers could take up: all of them together. The rest is the system's, whose nodes sign on with a
/// session each, and the administrator's.
pub const DCS_SESSIONS_MAX: usize = SESSIONS_MAX / 4 * 3;
pub const DCS_KEYS_MAX: usize = KEYS_MAX / 4 * 3;
pub const DCS_KV_BYTES_MAX: usize = KV_BYTES_MAX / 4 * 3;
pub const DCS_QUEUES_BYTES_MAX: usize = QUEUES_BYTES_MAX / 4 * 3;

const _: () = assert!(DC_QUEUES_BYTES_MAX >= STATE_MAX + VALUE_MAX);
const _: () = assert!(NODES_MAX < SESSIONS_MAX - DCS_SESSIONS_MAX);
const _: () = assert!(VALUE_MAX + KEY_MAX < COMMAND_MAX);
const _: () = assert!(NODES_MAX * 2 < COMMAND_MAX);

/// Voters of the group: five tolerate two deaths; more would only make each decision slower.
pub const VOTERS_MAX: usize = 5;

/// Requests to other nodes that have no answer yet. Each ends after its time.
pub const ASKING_MAX: usize = 4096;

/// Requests of one other node that are being dealt with, and their bytes. Others get no answer.
pub const SERVING_MAX: usize = 1024;
pub const SERVING_BYTES: usize = 8 << 20;

/// Slots that the nodes of a container share. The prototype has 221; with this many the table, 10 bytes a slot,
/// still fits a joiner's state.
pub const SLOTS_MAX: u16 = 4096;

const _: () = assert!(SLOTS_MAX as usize * 10 + MEMBERS_MAX * 72 < STATE_MAX);

/// Slots in one message: the prototype's, whose messages have 36 bytes. More would only make the donations of one
/// answer more uneven when their donor dies between two of its messages.
pub const SLOTS_PER_MESSAGE: usize = 4;

/// Slots in one answer. Bounds what a request makes each donor send at once (16 messages) where a whole
/// container is free.
pub const SLOTS_PER_ANSWER: usize = 16 * SLOTS_PER_MESSAGE;

/// Time that a member asks for no slots after a request that brought none: the prototype's. Without it each
/// fork of a full container would be two messages to everybody.
pub const SLOTS_PAUSE: Millis = 1000;

/// How often a caller that waits for a slot has it asked for: the prototype's. Behind that it is told that there
/// is none, after 5 s.
pub const SLOTS_RETRIES: u64 = 5;

/// Callers of one member that wait for a slot. More are told at once that there is none.
pub const SLOT_CALLERS_MAX: usize = 1024;
