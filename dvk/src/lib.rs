//! The DVK: moves messages, knows nodes, containers and endpoints. It cannot name a POSIX call.
//!
//! Pure middle: `kernel`, `frame`, `server`, `store` (the traits) do no I/O and read no clock.
//! Rim: `host` runs servers, `dvkd` is the node daemon. Modules stand in reading order.

pub mod dvkd;
pub mod frame;
pub mod host;
pub mod kernel;
pub mod lanes;
pub mod limits;
mod lock_file;
pub mod server;
pub mod sim;
pub mod store;
