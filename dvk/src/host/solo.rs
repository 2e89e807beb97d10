//! The `Solo` host: one server in one process, its state on this node's disk.

use crate::server::Server;
use crate::store::Store;
use anyhow::Result;
use std::path::Path;

/// Runs server `number` of the container whose door is `socket`, with its state in directory
/// `store`, until dvkd says stop. `open` makes the server from its store.
///
/// # Errors
/// One sentence: no dvkd at the socket, the store is in use or damaged, the disk is full. The state is then what
/// the last commit made it; dvkd starts the server again.
pub fn run<S: Server>(
    number: u32,
    socket: &Path,
    store: &Path,
    open: impl FnOnce(&mut dyn Store) -> Result<S>,
) -> Result<()> {
    let _ = (number, socket, store, open);
    anyhow::bail!("not yet")
}
