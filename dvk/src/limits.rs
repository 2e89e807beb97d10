//! Every bound of the kernel and the daemon, with its reason.

use crate::frame::{HEADER, ORDER};
use crate::server::Nanos;
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::limits::{LANES, PAYLOAD_MAX};
use std::time::Duration;

const MILLISECOND: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MILLISECOND;

/// Bytes of one replayable answer that a server keeps per lane. Answers with more payload are made
/// by calls that read, which are repeated instead.
pub const KEPT_ANSWER_MAX: usize = m3ipc::limits::PAYLOAD_AREA;

/// Bytes of the longest frame: header, container, destination, credentials, message, payload.
pub const FRAME_MAX: usize = HEADER + ORDER + 4 + 8 + CRED_SIZE_MAX + 64 + PAYLOAD_MAX;

/// Bytes of payload of a frame that goes on the track for small frames: the longest that TLS carries in one record
/// (RFC 8446, 5.1), half of it. So what waits for it waits for some microseconds.
pub const SMALL_MAX: usize = 8 << 10;

/// Endpoints of one DC on one node. The pids of a container are a range of 100 000.
pub const ENDPOINTS_MAX: usize = 100_000;

/// A freed slot is used again only when this many others were freed after it: it keeps generations
/// small and stale addresses rare, and the table compact.
pub const SLOTS_RESTING: usize = 1024;

/// Requests for channels that wait for a server to be bound, per server. Each is a process that has
/// its first call open, or a question of its own: four users may ask all they may.
pub const PARKED_MAX: usize = 4 * QUESTIONS_PER_USER;

/// How long a call waits for a server that is being started (again). A restart takes tens of
/// milliseconds, reading a large journal seconds.
pub const SERVER_WAIT: Nanos = 10 * SECOND;

/// Receivers that one process may have channels with: every server of its DC and its peers.
/// More is a process that opens and never uses; each channel costs the daemon no memory of its own
/// after it is handed out, only this entry.
pub const PEERS_PER_ENDPOINT: usize = 4096;

/// Questions of one other node about endpoints of this one that wait for their event. Each is one that a process of
/// that node has open.
pub const AWAITS_PER_NODE: usize = 65_536;

/// How long a process that is to move may take to stop. It only has to be scheduled; one that is stopped by a signal
/// does not move.
pub const FREEZE_WAIT: Nanos = SECOND;

/// How long a process may take to stop because its node is fenced, before it is cut off: less than half of the margin that
/// the node has for that before the group may take it for down (`group::fence`).
pub const FENCE_STOP: Nanos = 100 * MILLISECOND;

/// How long an endpoint may be on the move: then it goes on where it was, as whoever moves it seems to be gone. State
/// of many gigabytes is copied in this time.
pub const MIGRATION_MAX: Nanos = 300 * SECOND;

/// How long an endpoint that changes its place waits for nodes that do not say that they know, or that are to go up with the
/// group, and a process for a number whose last owner has not ended for the group. Longer than a node that is not answered
/// takes to be given up; all of it takes milliseconds when nobody is cut off.
pub const PLACING_MAX: Nanos = 5 * SECOND;

/// Entries of the directory, of one DC, that one other node may ask for before this one has heard of them.
pub const ASKED_MAX: usize = 1024;

/// Backups that take over by themselves, of all endpoints of a DC that are on one node.
pub const BACKUPS_MAX: usize = 4096;

/// Calls to one other node that are open at once, and calls of it that are open here. Each may be a
/// process of a node that waits, or one of the lanes of an agent.
pub const CALLS_PER_NODE: usize = 65_536;

/// The same of one ordinary user of a container: a quarter, so that nobody uses up what is everybody's.
pub const CALLS_PER_USER: usize = CALLS_PER_NODE / 4;

/// Bytes of payload of the calls of another node that are open here. Only calls that the server has
/// not been able to take hold much; 2 000 of the largest.
pub const CALLS_BYTES: usize = 256 << 20;

/// The same of one ordinary user of a container.
pub const CALLS_BYTES_PER_USER: usize = CALLS_BYTES / 4;

/// Channels over which calls of one other node go to one receiver: with a lane for each call that may be open.
pub const COURIERS_MAX: usize = CALLS_PER_NODE.div_ceil(LANES);

/// Bytes of frames kept for a node because it has not said that it received them. New calls are
/// refused above it.
pub const UNRECEIVED_MAX: usize = 64 << 20;

/// Above so much of it large messages wait in their lanes: what is on its way to a node a second away at 32 MB/s, or 30 ms
/// at a gigabyte. What is refused above `UNRECEIVED_MAX` is small, or was on its way here already.
pub const CONGESTED: usize = UNRECEIVED_MAX / 2;

/// The same, counting answers and notes, which cannot be refused: above it the node is given up.
pub const UNRECEIVED_LIMIT: usize = 512 << 20;

/// After so many frames, or bytes, one says what one has received even with nothing else to say. On a link
/// with traffic both ways it never happens.
pub const RECEIVED_FRAMES: u64 = 64;
pub const RECEIVED_BYTES: usize = 1 << 20;

/// Deaths that are remembered for the next owner of a server's slot. While the server is bound the oldest are
/// dropped: it has heard of so many others since. If it is not bound, the node that reports more is
/// given up, which is one death.
pub const UNTOLD_MAX: usize = 65_536;

/// An idle link is pinged so often: each time six threads wake up on both sides.
pub const PING_EVERY: Nanos = 400 * MILLISECOND;

/// A link on which no whole frame has come for so long is dropped: two pings got lost. One that brings a byte now and
/// then is as good as none.
pub const LINK_SILENCE: Nanos = SECOND;

/// A node without a link for so long is down: longer than a reconnect with a lost SYN (1 s) takes,
/// shorter than users wait.
pub const NODE_DOWN_AFTER: Nanos = 3 * SECOND;

const _: () = assert!(FRAME_MAX < u32::MAX as usize);
// The upper half of the indexes are the memory sides of the lower.
const _: () = assert!(ENDPOINTS_MAX + SLOTS_RESTING < 1 << 19);

/// Blob files that a store keeps open: a quarter of the 1 024 descriptors a process has by default.
pub const BLOB_FILES_OPEN: usize = 256;

/// Removed blobs whose files wait for the next sync to be unlinked.
pub const REMOVED_BLOBS_MAX: usize = 4096;

/// Bytes of the store's block cache.
pub const MAP_CACHE: u64 = 32 << 20;

/// Bytes of the map that are kept in memory before they become a table.
pub const MAP_MEMTABLE: u64 = 16 << 20;

/// Bytes of all journals of a store, the least that fjall takes. Read again at each start.
pub const MAP_JOURNALS: u64 = 64 << 20;

/// How long the files of removed blobs stay: unlinking needs a sync, which `rm -r` should not wait for each time.
pub const SWEEP_AFTER: Nanos = SECOND;

/// Blobs that have not been changed for once to twice this are given checksums: by then the kernel has written them to the disk
/// by itself (`dirty_expire_centisecs`, 30 s).
pub const STILL_AFTER: Nanos = 30 * SECOND;

/// How often a store looks what the thread has found that reads its blobs, while it has something to do; and when somebody waits for it.
pub const UPKEEP_LOOK: Nanos = 50 * MILLISECOND;
pub const UPKEEP_LOOK_URGENT: Nanos = 2 * MILLISECOND;

/// Parts of blobs that this thread is asked for at once: seconds of work, and of memory a few hundred kilobytes.
pub const UPKEEP_OPEN_MAX: usize = 1024;

/// Things that the thread has found and nobody has looked at; then it waits. And how many are looked at between two rounds: each is
/// up to 64 rows that are written, or looked for.
pub const UPKEEP_BACKLOG: usize = 64;
pub const UPKEEP_LOOK_MAX: usize = 32;

/// Jobs that it takes up together, for which it flushes directories once.
pub const UPKEEP_BATCH: usize = 256;

/// That thread's niceness.
pub const UPKEEP_NICE: i32 = 10;

/// From the end of a scrub to the next.
pub const SCRUB_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

/// A scrub that nobody waits for takes so much (chunks of 128 KiB, rows) at a time, and pauses: 16 MiB a second at most.
pub const SCRUB_CHUNKS: usize = 64;
/// One that somebody waits for takes so much.
pub const SCRUB_CHUNKS_URGENT: usize = 1024;
pub const SCRUB_ROWS: usize = 1024;
pub const SCRUB_PAUSE: Nanos = SECOND / 2;

/// Rows of checksums that are removed at once with the blob they were of; half a gibibyte has so many.
pub const FORGET_MAX: usize = if cfg!(test) { 64 } else { 4096 };

/// A server reads the wall clock so often at most; in between it goes on with the monotonic one. Times of files are
/// coarser than this on Linux (a tick).
pub const WALL_CLOCK_AGE: Nanos = MILLISECOND;

/// A bell whose owner had announced sleep but did not go on to it (stopped, or out of CPU) is rung again after this.
pub const RING_AGAIN: Nanos = MILLISECOND;

/// Bytes of frames that wait to be written to one link. The kernel keeps no more than that for a node that does
/// not read, so a link is dropped for this only if something is wrong with it.
pub const LINK_QUEUE: usize = UNRECEIVED_LIMIT + (64 << 20);

/// How long the daemon looks around before it sleeps, after there was something to do: about a round trip to
/// another node. It gives its CPU away at each look, and stops looking when that does not pay off.
pub const LOOK_AROUND: Nanos = 50_000;

/// Giving the CPU away at a look takes longer than this only if somebody took it: then looking takes it from those who
/// could bring something. (An empty `sched_yield` takes 0.3 to 1 µs.)
pub const LOOK_SWITCH: Nanos = 2_500;

/// Links used within this time are read while looking around, so many at most: each look is a system call.
pub const LINK_RECENT: Nanos = 2 * LOOK_AROUND;
pub const LINKS_LED: usize = 4;

/// Connections at the door, and those of one ordinary user: each is a descriptor of the daemon. Programs close
/// theirs after each exchange.
pub const CONNECTIONS_MAX: usize = 16_384;
pub const CONNECTIONS_PER_USER: usize = 2048;

/// Questions of one ordinary user that wait for their answers: for a server that is started, for somebody's death. What waits
/// with others' in one place, of this node or of another, has room for several users.
pub const QUESTIONS_PER_USER: usize = 8 << 10;

/// Processes of one ordinary user that are bound in one container: a third of all there can be.
pub const ENDPOINTS_PER_USER: usize = ENDPOINTS_MAX / 3;

/// Channels between processes of this node, of which each is a descriptor of the daemon, that an ordinary user of a container
/// may have: such a part of all descriptors.
pub const CHANNELS_OF_USER: u64 = 8;

/// Channels of this node's processes to other nodes: the daemon maps each, and Linux lets a process have 65 530 mappings
/// (`vm.max_map_count`), of which others are needed.
pub const PROXIES_MAX: usize = 48 << 10;

/// The same of one ordinary user of a container.
pub const PROXIES_PER_USER: usize = PROXIES_MAX / 3;

/// Pieces of memory that the processes of one ordinary user lend in one container: each is a descriptor of the daemon.
pub const LENT_PER_USER: usize = 256;

/// Records of one connection that are read before the others get their turn.
pub const PACKETS_PER_TURN: usize = 16;

/// Records that wait for a receiver that does not listen. A server hears of every channel and every death; many
/// thousands at once happen when a node goes down.
pub const TELLS_QUEUED: usize = 65_536;

/// How long a connection may take to be made: one lost SYN (1 s) is made good.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a new connection may take for the TLS handshake and the Hello, however many bytes come meanwhile.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections that are no link yet; each has a thread.
pub const HANDSHAKES_MAX: usize = 64;

/// Pauses between attempts to connect to another node.
pub const RECONNECT_MIN: Duration = Duration::from_millis(50);
pub const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// Pauses before a child that has died is started again. The first is short: clients wait.
pub const RESTART_MIN: Duration = Duration::from_millis(5);
pub const RESTART_MAX: Duration = Duration::from_secs(2);

/// How long the containers, and then the servers, have to stop before they are killed.
pub const CHILD_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of the command line at once.
pub const ADMINS_MAX: usize = 16;

/// Descriptors of a daemon: two per process, one per channel. It is Linux's own limit (`fs.nr_open`) by default.
pub const DESCRIPTORS_MAX: u64 = 1 << 20;

/// How long the authority of a DVS counts. It cannot be replaced without joining all nodes anew.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// How long a node's certificate counts. It is renewed after two thirds: ten days remain to notice that this fails.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How much the clocks of two nodes may differ for a certificate that has just been made to count on both.
pub const CLOCK_DIFFERENCE: Duration = Duration::from_secs(3600);

/// How often a node looks whether its certificate is to be renewed, and tries again if that failed. Days remain.
pub const RENEWAL_LOOK: Duration = Duration::from_secs(60);

/// How long a node waits after a request for a certificate was refused; it is not refused for asking twice in this time.
pub const RENEWAL_PAUSE: Duration = Duration::from_millis(500);

/// How long `dvs node renew` waits for the authority's answer: one round trip.
pub const RENEWAL_WAIT: Duration = Duration::from_secs(3);

/// Bytes of the document that lists the members: 4 095 of about 100.
pub const MEMBERS_BYTES: usize = 512 << 10;

/// Containers that span all nodes: each is a process on every node, and three more at its home.
pub const DCS_MAX: usize = 64;

/// Bytes of a request to join, or for a certificate: a key, a name, an address.
pub const JOIN_BYTES: usize = 4096;

/// Nodes that join at once; each has a thread. The others come again.
pub const JOINS_MAX: usize = 4;

/// How long a node that joins has to say what it wants, and to take the answer: people do not type in between.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Tokens that can be used at a time: more than people create by hand.
pub const TOKENS_MAX: usize = 256;

/// How long a token counts at most: it lies around on paper or in a chat.
pub const TOKEN_LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Bytes of ciphertext that wait for a socket, on top of the link's queue: a few frames, so that one write does
/// not encrypt what cannot be sent yet.
pub const TLS_UNSENT: usize = 256 << 10;

/// Bytes read from a socket at once, before they are decrypted: as many as a socket usually has.
pub const TLS_READ: usize = 128 << 10;

/// Bytes from which an allocation is a mapping of its own: more than a frame, less than the buffers of a link, of which
/// only pages that are used take memory.
pub const HEAP_LARGE: usize = 192 << 10;
const _: () = assert!(FRAME_MAX < HEAP_LARGE);

/// Freed bytes that the allocator keeps for each arena: the frames that a busy link has under way.
pub const HEAP_KEPT: usize = 16 << 20;

/// A link that takes no byte for so long, although some wait, is dropped. As [`LINK_SILENCE`].
pub const LINK_STALL: Duration = Duration::from_nanos(LINK_SILENCE);

/// Connections of one address that have not said Hello yet, or wait for the second of their link: a part of [`HANDSHAKES_MAX`], so that one stranger does
/// not keep the nodes out. Nodes behind one address reconnect one after the other.
pub const HANDSHAKES_PER_ADDRESS: usize = 16;

/// Lines about links in the log: so many at once, and one more each second (13 MB a day at most). Strangers, and nodes
/// that go wrong, must not fill the disk.
pub const REFUSALS_LOGGED: u32 = 64;
pub const REFUSALS_EVERY: Nanos = SECOND;

/// The same of frames that a node may not send: so many at once, and one more each minute. A good node sends
/// none, but for those under way while a container begins or ends.
pub const FORGERIES_LOGGED: u32 = 16;
pub const FORGERIES_EVERY: Nanos = 60 * SECOND;

/// How often a node looks how busy it is: as often as people look.
pub const LOAD_EVERY: Nanos = SECOND;

/// Looks of its own that a node keeps: ten minutes. DCs of a report; a look with this many makes 6 KB.
pub const LOAD_HISTORY: usize = 600;
pub const LOAD_DCS: usize = 64;

/// Reports of one other node that are kept, one in ten seconds: ten minutes. And those of all other nodes: with more than 273
/// nodes less time is kept of each. Usually 0.3 KB each, 6 KB at most.
pub const LOAD_HISTORY_OTHERS: usize = 60;
pub const LOAD_KEEP_EVERY: Nanos = 10 * SECOND;
pub const LOAD_REPORTS: usize = 16_384;

/// Bytes of a report on a link.
pub const LOAD_BYTES: usize = 6 << 10;

/// Other nodes that are told at one look; with more of them each is told less often.
pub const LOAD_PEERS_PER_LOOK: usize = 16;

/// Processes of a DC that are looked at in a second: each is a file of /proc that takes 10 µs.
pub const LOAD_PROCESSES: usize = 64;

/// Bytes of a message of the system group: the longest that it makes (two commands of 72 KiB and what is around them).
pub const GROUP_BYTES: usize = 210 << 10;

/// Messages of the system group, and their bytes, that wait to be written to one link. More are dropped: they
/// are sent again, and old ones are of no use.
pub const GROUP_QUEUED: usize = 256;
pub const GROUP_QUEUED_BYTES: usize = 2 << 20;

/// Pause before the system group is started again after its disk has failed.
pub const GROUP_RESTART: Duration = Duration::from_secs(2);

/// Connections that use the services of the system group at once: a program that holds a lock or waits for one has
/// one, without a thread.
pub const SERVICES_MAX: usize = 1024;

/// Of them those of programs in containers, so that the administrator always has some; and those of one container.
pub const PROGRAMS_SERVICES_MAX: usize = 768;
pub const DC_SERVICES_MAX: usize = 256;

/// What a container's programs of one node ask the group for at a time; the others wait for their turn. Some containers
/// that ask without an end do not take all 4096 that a node has.
pub const DC_SERVICES_TURNS: usize = 64;

/// Requests that a container's programs of one node have open, most of them waiting: each is looked at after each change
/// (a microsecond), and in memory with up to 64 KiB. And those of all containers together.
pub const DC_SERVICES_OPEN: usize = 512;
pub const PROGRAMS_SERVICES_OPEN: usize = 2048;

/// Lines of more than one packet, up to 400 KiB, that a container's programs of one node are in the middle of sending, or of
/// being sent. Others wait for their turn; each has [`SERVICE_WRITE_MAX`].
pub const DC_SERVICES_LONG: usize = 16;

/// Items that a member of a group has dealt with are acknowledged when it waits for the next, at the latest after so many:
/// each time is a command.
pub const SERVICE_ACKNOWLEDGED: u64 = 64;

/// How long a service's connection may take to read an answer: whoever does not is taken for dead.
pub const SERVICE_WRITE_MAX: Duration = Duration::from_secs(10);

/// How long an operation of a service may take if the asker does not say.
pub const SERVICE_PATIENCE: Duration = Duration::from_secs(10);

/// A session may take so long to open, however little time the asker has to wait for others: twice a change of the
/// leader.
pub const SERVICE_OPENING: Duration = Duration::from_secs(1);

/// A service that makes somebody wait says for what, after this long and whenever that changes.
pub const SERVICE_SILENCE: Duration = Duration::from_secs(2);

/// Time to live of a service's session, in milliseconds: longer than a change of the leader takes, with two
/// signs of life to spare. So long a lock of a node that died stays taken.
pub const SERVICE_TTL: u64 = 3000;

/// How long the lock of a directory is waited for: a child between fork and exec may have it, of a process that was
/// killed. An exec takes milliseconds, on a busy machine many.
pub const LOCK_WAIT: Duration = Duration::from_secs(1);
