//! The system group: tables and services of the cluster that a majority of its voters agrees on.
//!
//! [`state`] is the replicated value, pure; [`group`] a node that replicates it (with openraft, over any
//! [`Transport`] and [`disk::Disk`]); [`session`] the services as a program uses them; [`slots`] how nodes share
//! process slots, [`SlotMember`] a node's part in it.

pub mod command;
pub mod contact;
pub mod disk;
pub mod fence;
pub mod group;
mod keeping;
pub mod limits;
mod network;
pub mod realm;
pub mod session;
mod signal;
mod signs;
pub mod slots;
mod slots_session;
pub mod state;
mod store;
mod types;
pub mod voters;
pub mod wire;

pub use group::{Config, Group, Unavailable, millis};
pub use network::Transport;
pub use realm::Realm;
pub use session::{Failure, Session};
pub use slots_session::{NoSlot, SlotMember};
pub use types::seed;
