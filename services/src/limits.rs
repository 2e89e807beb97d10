//! Every bound of a connection to the services, with its reason.

use std::time::Duration;

/// Bytes of one line: a range of keys of 64 KiB and one more, each byte as `\u001f`.
pub const LINE_MAX: usize = 1 << 20;

/// Bytes of a line of a request: a value of 32 KiB and a key, or the state of a group, 64 KiB, each byte as `\u001f`.
/// A program's line that is longer ends its connection.
pub const REQUEST_MAX: usize = 6 * (66 << 10);

/// Bytes that are written at once: one packet, far below what a socket's buffer takes (208 KiB).
pub const CHUNK: usize = 32 << 10;

/// Requests of one connection that are open at once: as many threads of a program may wait. What they ask for is in the
/// memory of dvkd.
pub const OPEN_MAX: usize = 32;

/// How long dvkd may take to read what was written, or to answer behind the time that it was given: it is stopped, or
/// its machine has far too much to do.
pub const PATIENCE: Duration = Duration::from_secs(10);
