//! Hosts: what runs a server. Here the one that a node uses, and the disk under it.

pub mod solo;
