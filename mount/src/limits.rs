//! Every bound of the file agent, with its reason.

use m3ipc::limits::{CHANNELS_PER_PEER, LANES, PAYLOAD_MAX};
use std::time::Duration;

/// Most data of one FUSE read or write: what rides along with one message.
pub const IO_SIZE_MAX: u32 = 128 * 1024;

/// Threads that serve requests. Each makes one call at a time, on a lane of the channels to the server.
pub const THREADS_MAX: usize = CHANNELS_PER_PEER * LANES;

/// Calls that wait for a lock: half of the threads stay free for everything else.
pub const LOCK_WAITS_MAX: usize = THREADS_MAX / 2;

/// Threads kept that have nothing to do, so that none is started and ended again with each burst.
pub const SPARE_MAX: usize = 32;

/// Stack of such a thread: it makes one call.
pub const STACK: usize = 128 * 1024;

/// What a request has beside its data: its head, its struct, its extensions. The kernel wants 4 KiB of room for it.
pub const REQUEST_HEAD_MAX: usize = 4096;

/// Requests that nobody waits for, or several at a time for one (read-ahead, RELEASE, asynchronous direct I/O), which the
/// kernel has under way at once; and from how many on it finds the device busy. Its own choice is 12, which would make
/// closing files wait for each other's RELEASE.
pub const REQUESTS_BACKGROUND: u16 = 64;
pub const CONGESTION: u16 = 48;

/// Interrupts kept of requests that are not there. One that comes early, while another thread is about to serve its
/// request, finds it within microseconds.
pub const EARLY_INTERRUPTS_MAX: usize = 1024;

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

const _: () = assert!(IO_SIZE_MAX as usize == PAYLOAD_MAX);
const _: () = assert!(STATUS_SIZE >= 1500 + 11 * m3ipc::limits::GROUPS_MAX);
