//! The services of the system group as they are asked for: the records of a connection to dvkd, and its client half.
//!
//! A connection is a session: locks, leaderships, places at a barrier, memberships and keys that are leased to it end
//! with it, however that ends. Requests are numbered and several may be open; each gets one last answer. Nothing is sent
//! that was not asked for, but that the session is lost: a watcher and a member of a group ask for what is next.
//!
//! Each record is a line of JSON. Lines are written in pieces of [`limits::CHUNK`] bytes at most, as one end may be a
//! SEQPACKET socket.

mod client;
pub mod limits;
mod lines;
mod record;

pub use client::{Client, Ended};
pub use lines::Lines;
pub use record::{Change, Entry, Failure, Item, Lease, Op, Reply, Request, Text, Told};

/// Version of the records. A program says it when it comes; both sides must have the same.
pub const VERSION: u32 = 2;
