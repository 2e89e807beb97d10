//! MUK2: a whole VOS and its programs in one process, as coroutines of one thread.
//!
//! The servers are the same values that run as processes elsewhere, behind the same filter
//! (`dvk::lanes`) and the same receiving rules (`m3ipc::port`); only the channel differs: a queue in this
//! process instead of shared memory. A call costs two coroutine switches.

pub mod channel;
pub mod house;
pub mod task;
pub mod world;

pub use world::{Program, World};
