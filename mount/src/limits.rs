//! Every bound of the file agent, with its reason.

use m3ipc::limits::{CHANNELS_PER_PEER, LANES, PAYLOAD_MAX};
use std::time::Duration;

/// Most data of one FUSE read or write: what rides along with one message.
pub const IO_SIZE_MAX: u32 = 128 * 1024;

/// Calls that may take long and therefore have a thread of their own: waiting locks, fsync. Each
/// has a lane of the channel to the server; half of the lanes stay free for everything else.
pub const THREADS_APART_MAX: usize = CHANNELS_PER_PEER * LANES / 2;

/// Stack of such a thread: it makes one call.
pub const STACK_APART: usize = 128 * 1024;

/// Bytes of directory entries fetched with one call. The kernel asks for 4 KiB (before Linux 6.16)
/// or for as much as the program does (32 KiB with glibc); its format needs about a third more.
pub const READDIR_SIZE: u32 = 8 * 1024;

/// Bytes of `/proc/<pid>/status` that are looked at. The groups stand in the first 300 bytes, and
/// `GROUPS_MAX` of them fit the rest; a longer list is cut, which gives fewer rights, never more.
pub const STATUS_SIZE: usize = 4096;

/// Looks at `/proc/<pid>/syscall` until the thread that waits for our answer is seen asleep.
/// First that often, one right after the other, then with pauses, as long as a thread may wait for a CPU on a machine
/// that is still of use.
pub const SYSCALL_LOOKS: u32 = 64;
pub const SYSCALL_PAUSE: Duration = Duration::from_micros(100);
pub const SYSCALL_PATIENCE: Duration = Duration::from_secs(10);

/// Seconds that programs with files open are given to close them after SIGTERM.
pub const STOP_GRACE_SECONDS: u64 = 5;

const _: () = assert!(IO_SIZE_MAX as usize == PAYLOAD_MAX);
const _: () = assert!(STATUS_SIZE >= 1024 + 11 * m3ipc::limits::GROUPS_MAX);
