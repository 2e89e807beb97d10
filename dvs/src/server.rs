//! The servers of a DC as processes: `vfs-server`, `pm-server`, `ipc-server`, each on the `Solo` host.

use anyhow::Result;
use dvk::host::solo;
use ipc_server::IpcServer;
use pm_server::PmServer;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use vfs_server::VfsServer;

/// How dvkd starts a server.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The distributed container's socket on this node
    #[arg(long)]
    socket: PathBuf,
    /// Directory of the server's state
    #[arg(long)]
    store: PathBuf,
}

/// `vfs-server`.
///
/// # Errors
/// One sentence, as of `solo::run`.
pub(crate) fn vfs(options: &Options) -> Result<()> {
    rustix::thread::set_name(c"vfs-server")?;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let wall = u64::try_from(wall)?;
    solo::run(1, &options.socket, &options.store, |store| Ok(VfsServer::open(store, wall)?))
}

/// `pm-server`.
///
/// # Errors
/// One sentence, as of `solo::run`.
pub(crate) fn pm(options: &Options) -> Result<()> {
    rustix::thread::set_name(c"pm-server")?;
    solo::run(2, &options.socket, &options.store, |store| Ok(PmServer::open(store)))
}

/// `ipc-server`.
///
/// # Errors
/// One sentence, as of `solo::run`.
pub(crate) fn ipc(options: &Options) -> Result<()> {
    rustix::thread::set_name(c"ipc-server")?;
    solo::run(3, &options.socket, &options.store, |store| Ok(IpcServer::open(store)))
}
