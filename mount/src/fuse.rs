//! The FUSE protocol between the kernel and an [`crate::agent::Agent`], without a library: `/dev/fuse`, its requests and
//! replies, and the signals that interrupt them.
//!
//! To read: `abi`, `request`, `reply`, `door`, `under_way`, `device`, `handshake`, `session`.
//!
//! Nothing is cached: entries and attributes are valid for no time, and files are opened for direct I/O (with mmap still
//! working), so every node sees a change as soon as the call that made it has returned.

pub(crate) mod abi;
pub(crate) mod device;
pub(crate) mod door;
pub(crate) mod handshake;
pub(crate) mod reply;
pub mod request;
pub(crate) mod session;
pub(crate) mod under_way;
