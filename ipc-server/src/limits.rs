//! Every bound of ipc-server, with its reason. Where Linux has one, it is Linux's or more generous.

use dvk::server::Nanos;
use m3ipc::limits::PAYLOAD_MAX;

/// Longest name of a POSIX semaphore without its slash: glibc puts "sem." in front (NAME_MAX - 4).
pub const SEM_NAME_MAX: usize = 251;
/// Longest name of a POSIX message queue without its slash (NAME_MAX).
pub const MQ_NAME_MAX: usize = 255;

/// SEM_VALUE_MAX: glibc's is `INT_MAX`.
pub const SEM_VALUE_MAX: u32 = i32::MAX.cast_unsigned();
/// POSIX semaphores of a DC. glibc's are pages of /dev/shm, of which 65 536 are 256 MiB.
pub const SEMAPHORES_MAX: usize = 65_536;

/// Messages of a queue made without attributes (/proc/sys/fs/mqueue/msg_default).
pub const MQ_MESSAGES_DEFAULT: i64 = 10;
/// Message size of a queue made without attributes (/proc/sys/fs/mqueue/msgsize_default).
pub const MQ_SIZE_DEFAULT: i64 = 8192;
/// Messages that a queue may ask for: what Linux allows the superuser (HARD_MSGMAX).
pub const MQ_MESSAGES_MAX: i64 = 65_536;
/// Message size that a queue may ask for: what fits one payload.
pub const MQ_SIZE_MAX: i64 = 128 * 1024;
/// Bytes that the queues of one user reserve at most, for messages and `MQ_MESSAGE_OVERHEAD` each
/// (as RLIMIT_MSGQUEUE, whose 800 KiB are too few for a cluster). The superuser may have more.
pub const MQ_BYTES_PER_USER: u64 = 1 << 30;
/// What a message costs beside its bytes: key, lengths, tree.
pub const MQ_MESSAGE_OVERHEAD: u64 = 64;
/// POSIX queues of a DC (Linux: 256 per IPC namespace).
pub const MQ_QUEUES_MAX: usize = 4096;
/// Open queue descriptions of a DC: each costs a small record and one per holder.
pub const MQ_DESCRIPTIONS_MAX: usize = 65_536;
/// First priority that is too high (MQ_PRIO_MAX).
pub const MQ_PRIORITY_MAX: u32 = 32_768;

/// How long an object without holders lives on after its last one is gone.
///
/// A process that forks and ends at once (as a daemon does) leaves a child that may use what it
/// inherited, but has not yet, so nobody knows of it. A minute covers what starts slowly; when a
/// limit is reached, these objects are the first to go.
pub const LINGER: Nanos = 60_000_000_000;

/// Calls that may wait in each part of the server. The DVK keeps at most 4096 per peer.
pub const WAITING_MAX: usize = 65_536;
/// Bytes of messages whose senders wait for room, in each part of the server.
pub const WAITING_BYTES_MAX: usize = 64 << 20;

/// SEMMNI, MSGMNI: identifiers of a kind. Below 2^15, the factor of the sequence number.
pub const SYSV_IDS_MAX: u32 = 32_000;
/// SEMMSL: semaphores of a set.
pub const SEMMSL: u32 = 32_000;
/// SEMMNS: semaphores in all. Linux says 1 024 000 000, which is no limit; these are 8 MiB.
pub const SEMMNS: usize = 1_024_000;
/// SEMOPM: operations of one semop(2).
pub const SEMOPM: usize = 500;
/// SEMVMX: largest value of a SysV semaphore.
pub const SEMVMX: u16 = 32_767;
/// SEMAEM: largest undo value. The smallest is one further from 0.
pub const SEMAEM: i32 = SEMVMX as i32;

/// MSGMAX: bytes of a SysV message.
pub const MSGMAX: usize = 8192;
/// MSGMNB: bytes of a SysV queue as made, and as a user may set them.
pub const MSGMNB: u64 = 16_384;
/// What the superuser may raise a SysV queue to: it is all kept in memory.
pub const MSGMNB_CEILING: u64 = 64 << 20;

const _: () = assert!(SYSV_IDS_MAX < 1 << 15);
const _: () = assert!(MSGMAX <= PAYLOAD_MAX);
const _: () = assert!(MQ_SIZE_MAX.cast_unsigned() <= PAYLOAD_MAX as u64);
const _: () = assert!(SEMMSL as usize * 2 <= PAYLOAD_MAX, "GETALL must fit a payload");
