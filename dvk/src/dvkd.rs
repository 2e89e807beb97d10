//! The node daemon: the door to local processes, the links to other nodes, and the children.

pub mod admin;
mod config;

pub use config::{Config, Dc, Peer};

/// Runs the node daemon until SIGTERM, SIGINT or an admin's `Stop`.
///
/// Children are started as `COMMAND vfs-server|pm-server|ipc-server --socket PATH --store DIR` and
/// `COMMAND container --dc NAME --dc-id ID --node NODE --socket PATH --run DIR [--map PATH]...`.
///
/// # Errors
/// One sentence: the address or a socket is in use, a directory cannot be made.
pub fn run(config: Config) -> anyhow::Result<()> {
    config.check()?;
    anyhow::bail!("not yet")
}
