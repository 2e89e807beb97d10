//! Real programs on real mounts of a tree that a vfs-server inside the test serves.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent_process;
mod coherence;
mod files;
mod hosted;
mod leases;
mod locks;
mod mappings;
mod names;
mod permissions;
mod programs;
mod put_off;
mod signals;
