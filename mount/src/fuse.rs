//! The FUSE protocol between the kernel and an [`crate::agent::Agent`], without a library: `/dev/fuse`, its requests and
//! replies, and the signals that interrupt them.
//!
//! To read: `abi`, `request`, `reply`, `door`, `under_way`, `device`, `handshake`, `session`.
//!
//! The kernel remembers what an agent tells it to, for as long as it says, and keeps pages until it is told to lose them; files are
//! opened for direct I/O (with mmap still working) unless the agent says otherwise.

pub(crate) mod abi;
pub(crate) mod device;
pub(crate) mod door;
pub(crate) mod handshake;
pub(crate) mod reply;
pub mod request;
pub(crate) mod session;
pub(crate) mod under_way;
