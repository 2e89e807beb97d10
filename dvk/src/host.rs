//! Hosts: what runs a server. Here the one that a node uses, and the disk under it.

mod blobs;
mod checksums;
pub mod disk;
mod inbox;
mod journal;
mod manifest;
mod scrub;
pub mod solo;
mod upkeep;
