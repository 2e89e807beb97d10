//! Every call of every server, one row each: number, arguments, answer, what rides along, and
//! whether it may simply be repeated. Client, server and trace come from the row.
//!
//! This crate is the only one that knows a call's number or the bytes of its arguments.
#![no_std]

#[macro_use]
mod table;
pub mod container;
pub mod ipc;
pub mod pm;
pub mod vfs;
pub mod wire;

pub use table::{
    Each, Retry, Row, answer, answered, call, call_again, call_all, call_noted, call_until,
};
