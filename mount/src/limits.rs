//! Every bound of the file agent, with its reason.

use m3ipc::client::CALLS_MAX;
use m3ipc::limits::PAYLOAD_MAX;
use std::time::Duration;

/// Most data of one FUSE read or write: 256 pages, which Linux allows without being told otherwise.
pub const IO_SIZE_MAX: u32 = 1 << 20;

/// Most that one request copies from file to file, so that a signal is not kept waiting.
pub const COPY_MAX: u32 = 16 << 20;

/// Most data of one call: what rides along with one message.
pub const CALL_SIZE_MAX: usize = PAYLOAD_MAX;

/// Calls that one read is made of at most.
pub const PARTS_MAX: usize = IO_SIZE_MAX as usize / CALL_SIZE_MAX;

/// Threads that serve requests. Each has a call of its own.
pub const THREADS_MAX: usize = CALLS_MAX / 2;

/// Calls beside those, by which reads have more than one under way.
pub const MORE_CALLS_MAX: usize = CALLS_MAX - THREADS_MAX;

/// Writes of more than one message that are under way at once: the server keeps 1 MiB of each.
pub const STAGING_MAX: usize = 16;

/// Calls that wait for a lock: some of the threads stay free for everything else.
pub const LOCK_WAITS_MAX: usize = THREADS_MAX / 4 * 3;

/// Threads kept that have nothing to do, so that none is started and ended again with each burst.
pub const SPARE_MAX: usize = 32;

/// How long what a program has written, and that it has closed a file, is put off at most: a few calls of a program that works with
/// one small file after the other.
pub const PUT_OFF_FOR: Duration = Duration::from_millis(10);

/// Most bytes of one write that is put off; of all of a file, with what the credentials need of one call; files at once, so 16 MiB in all. The server
/// keeps room for what all agents put off.
pub const PUT_OFF_SIZE_MAX: usize = 64 * 1024;
pub const PUT_OFF_BYTES_MAX: usize = CALL_SIZE_MAX;
pub const PUT_OFF_FILES_MAX: usize = 128;

/// Files with a sole writer that are known of at once: what more are opened are written as if they had none.
pub const SOLE_FILES_MAX: usize = 4096;

/// Stack of such a thread: it makes one call.
pub const STACK: usize = 128 * 1024;

/// What a request has beside its data: its head, its struct, its extensions. The kernel wants 4 KiB of room for it.
pub const REQUEST_HEAD_MAX: usize = 4096;

/// Requests that nobody waits for, or several at a time for one (read-ahead, RELEASE, asynchronous direct I/O), which the
/// kernel has under way at once; and from how many on it finds the device busy. Its own choice is 12, which would make
/// closing files wait for each other's RELEASE.
pub const REQUESTS_BACKGROUND: u16 = 256;
pub const CONGESTION: u16 = 48;

/// Interrupts kept of requests that are not there. One that comes early, while another thread is about to serve its
/// request, finds it within microseconds.
pub const EARLY_INTERRUPTS_MAX: usize = 1024;

/// The memory's parts, so that threads do not meet at one lock; and what each remembers at most: 65 536 inodes and 262 144 names
/// in all, some 40 MB. What more is asked for makes it forget the rest of its part.
pub const SHARDS: usize = 64;
pub const INODES_PER_SHARD_MAX: usize = 1024;
pub const NAMES_PER_SHARD_MAX: usize = 4096;

/// Listings of directories that each part remembers, and how long each is at most: 64 MB in all.
pub const LISTINGS_PER_SHARD_MAX: usize = 16;
pub const LISTING_SIZE_MAX: usize = 64 * 1024;

/// How long the kernel is told to remember attributes at most, and of how many inodes per shard it is known that it does.
pub const LENT_FOR_MAX: Duration = Duration::from_secs(1);
pub const LENT_PER_SHARD_MAX: usize = 1024;

/// How long pages that were read are kept at least when others want them: so that who has read them uses them once, a few times a round trip between
/// nodes.
pub const PAGES_KEPT_FOR: Duration = Duration::from_micros(200);

/// How long a read is held back of pages that the kernel is losing, so that it need not lose them again. It may be waiting for it.
pub const READ_HELD_FOR: Duration = Duration::from_millis(5);

/// How often that time is doubled, each time that the kernel has lost them again.
pub const READ_HELD_DOUBLINGS: u32 = 8;

/// Threads that give pages back. Each file has one at a time, which may wait for a program that makes the file shorter.
pub const GIVERS: usize = 16;

/// Files of which the kernel may have pages: of the oldest of more it loses them. Half of what the server allows, as each has one run of pages or more.
pub const PAGED_FILES_MAX: usize = 32 * 1024;

/// How long giving everything up may take before the server is told that it is under way, and how often it is told so.
pub const FLUSH_QUIET: Duration = Duration::from_millis(100);

/// Pause between attempts to have the kernel forget an inode that it does not know yet.
pub const FORGET_PAUSE: Duration = Duration::from_micros(100);

/// Files that are open here and not at the server. Before a lease ends those of its inode are opened there, one after the other:
/// so many take a fraction of a session.
pub const PROMISED_MAX: usize = 64;

/// How long the kernel is told to remember a name, and how long who changes one waits: it counts in ticks of up to 10 ms, rounds up, and
/// the last one counts whole. And when it is told: the directory's names have been known here and unchanged for a time, and have been asked
/// for so often within the first.
pub const NAME_LENT_FOR: Duration = Duration::from_millis(80);
pub const NAME_GOES_IN: Duration = Duration::from_millis(100);
pub const QUIET: Duration = Duration::from_secs(1);
pub const HOT: u32 = 3;

/// Directories of which names are lent, and threads that have just been told one. More of them ask each time.
pub const NAMES_LENT_TO_MAX: usize = 16 * 1024;
pub const NAMES_LENT_THREADS_MAX: usize = 256;

/// A thread that has been answered runs within this: what it does later than that may count from later.
/// It is half of a session, which goes on while this is waited for.
pub const RUNS_WITHIN: Duration = Duration::from_secs(1);

/// What an agent leaves its successor, in rows. Files that it has opened alone: with more it has the server open them. Files that are closed, untold: of more
/// the server is told at once. Errors that are to be told; files through which locks have been taken; files that are open for reading and
/// writing; files of which the kernel has pages (those that are about to be lost are more than [`PAGED_FILES_MAX`]): with more there is no successor.
pub const PROMISED_FILES_MAX: usize = 1 << 16;
pub const CLOSED_FILES_MAX: usize = 1 << 14;
pub const ERRORS_MAX: usize = 1 << 12;
pub const LOCKED_FILES_MAX: usize = 1 << 16;
pub const WRITERS_MAX: usize = 1 << 18;
pub const PAGED_ROWS_MAX: usize = 2 * PAGED_FILES_MAX;

/// Calls of which a successor must know: one per request, some more for what is put off or opened late.
pub const NOTED_CALLS_MAX: usize = 2 * THREADS_MAX;

/// How long an agent keeps what has become of its predecessor's calls for requests that do not come again: the kernel brings them within milliseconds.
pub const ORPHANS_KEPT_FOR: Duration = Duration::from_secs(60);

/// Agents that die one after the other within this time of their lives, after which no other is started: it would die of the same.
pub const DEATHS_MAX: u32 = 5;
pub const DEATHS_WITHIN: Duration = Duration::from_secs(1);

/// Pause between looks whether all threads of an agent that dies are gone, or wait in the kernel for what only its successor can answer; and how long that
/// is waited for.
pub const DYING_PAUSE: Duration = Duration::from_millis(10);
pub const DYING_PATIENCE: Duration = Duration::from_millis(300);

/// How long dvkd may take to say hello before others are heard, and it is asked again.
pub const HELLO_PATIENCE: Duration = Duration::from_secs(1);

/// Owners of record locks of which is known that there are no others. With more, each close(2) asks the server.
pub const LOCK_OWNERS_MAX: usize = 1 << 16;

/// What an agent leaves unused of its session: the server's clock and its own may differ in pace.
pub const MARGIN: Duration = Duration::from_millis(500);

/// Bytes of one answer that says what is to be forgotten: 1024 times 24.
pub const RECALLS_SIZE: usize = 24 * 1024;

/// How long nobody has asked for anything when a session ends.
pub const IDLE_FOR: Duration = Duration::from_secs(10);

/// Pause before the server is asked again after an error.
pub const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Pause before a call is made again that the server has sent back.
pub const AGAIN_PAUSE: Duration = Duration::from_millis(5);

/// Pauses between looks after those that are interrupted: first and longest.
pub const INTERRUPT_LOOK: Duration = Duration::from_millis(1);
pub const INTERRUPT_LOOK_MAX: Duration = Duration::from_millis(100);

/// How long the request of a program that is being killed may still take, before it is given up without the server's word:
/// long beside any answer, short for who waits for the program's end.
pub const KILLED_PATIENCE: Duration = Duration::from_millis(500);

/// Bytes of `/proc/<tid>/status` that are looked at: 1500 at most beside the groups, of which `GROUPS_MAX` fit the rest. A
/// longer list is cut, which gives fewer rights, never more, and no sight of the signals behind it.
pub const STATUS_SIZE: usize = 4096;

/// Seconds that programs with files open are given to close them after SIGTERM.
pub const STOP_GRACE_SECONDS: u64 = 5;

const _: () = assert!(IO_SIZE_MAX as usize <= calls::vfs::WRITE_SIZE_MAX);
const _: () = assert!((IO_SIZE_MAX as usize).is_multiple_of(CALL_SIZE_MAX));
const _: () = assert!(LISTING_SIZE_MAX <= CALL_SIZE_MAX);
const _: () = assert!(STATUS_SIZE >= 1500 + 11 * m3ipc::limits::GROUPS_MAX);
