//! M3-IPC for programs: bound endpoints that send, receive, call, notify, and copy each other's memory, on any node; and
//! the services of the system group ([`group`]).
//!
//! [`Bound`] is an endpoint of the calling process in its DC. A process may have several, usually one per thread. What
//! each call means follows the prototype (Pessolani's DVK, `dvk-lib`), which follows MINIX 3: a rendezvous without
//! buffers, between processes of one node or of two. Here generations are checked, so nobody ever
//! talks to the successor of the one it meant.

mod ask;
mod bound;
pub mod capi;
pub mod group;
pub mod group_capi;
mod inbox;
mod lend;
mod load;
mod memory;

pub use bound::{Bound, Got};
pub use lend::Shared;
pub use m3ipc::info::{DcInfo, DvsInfo, EndpointInfo, NodeInfo};
pub use m3ipc::load::{DcLoad, NodeLoad};
pub use m3ipc::port::Kind;
pub use m3ipc::rights::{Allowed, Rights, call, level};
pub use m3ipc::{DcId, Endpoint, IpcError, Message, NodeId};
pub use memory::{Access, CopyFailed, Grant};
