//! M3-IPC, the client half of the DVK: what a process needs to exchange messages with any other.
//!
//! No standard library, no allocation, no thread-local storage, no libc call: the same code runs in
//! a daemon, in the preload shim of an unmodified program, and in a coroutine of muk2.
//! Modules stand in reading order.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod bell;
pub mod channel;
pub mod client;
pub mod connection;
pub mod copy;
pub mod cred;
pub mod door;
pub mod endpoint;
pub mod errno;
pub mod info;
pub mod interrupt;
pub mod lent;
pub mod limits;
pub mod load;
pub mod message;
pub mod port;
pub mod rights;
pub mod spin;

pub use cred::Cred;
pub use endpoint::{DcId, Endpoint, NodeId};
pub use errno::{Errno, IpcError};
pub use interrupt::Interrupt;
pub use message::{CallId, Message, Tag};
pub use port::{Note, Part, Sendrec, Wait};
pub use rights::Rights;
