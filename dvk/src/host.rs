//! Hosts: what runs a server. Here the one that a node uses, and the disk under it.

mod blobs;
pub mod disk;
mod inbox;
mod journal;
pub mod solo;
