//! Where a DVS is reachable from here: a DC's socket, and beside it a file with the DC's nodes.

use crate::exit::{self, Failure};
use crate::lab;
use anyhow::{Context, Result};
use m3ipc::client::{Identity, Process};
use m3ipc::connection::Connection;
use m3ipc::door::Ask;
use m3ipc::{Endpoint, IpcError, Message, NodeId, Sendrec, Wait, door};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What everybody in a DC may know of it. Beside the socket `NAME.sock` it is in `NAME.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Info {
    pub(crate) dc: String,
    pub(crate) id: u32,
    /// The node that the socket leads to.
    pub(crate) node: u16,
    /// The node where the servers run.
    pub(crate) home: u16,
    pub(crate) nodes: Vec<NodeInfo>,
}

/// A node that the DC spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeInfo {
    pub(crate) node: u16,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

impl Info {
    /// Reads what stands beside `socket`.
    ///
    /// # Errors
    /// One sentence with the file's name.
    pub(crate) fn beside(socket: &Path) -> Result<Info> {
        let path = Info::path(socket);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not understood", path.display()))
    }

    /// Writes it beside `socket`.
    ///
    /// # Errors
    /// One sentence with the file's name.
    pub(crate) fn write_beside(&self, socket: &Path) -> Result<()> {
        let path = Info::path(socket);
        std::fs::write(&path, toml::to_string(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The file beside `socket`.
    pub(crate) fn path(socket: &Path) -> PathBuf {
        socket.with_extension("toml")
    }

    /// A node by its name, or by its number.
    pub(crate) fn find(&self, name: &str) -> Option<&NodeInfo> {
        let by_name = self.nodes.iter().find(|node| node.name == name);
        by_name.or_else(|| self.nodes.iter().find(|node| node.node.to_string() == name))
    }

    /// The name of a node; its number if it is unknown.
    pub(crate) fn name_of(&self, node: u16) -> String {
        let known = self.nodes.iter().find(|known| known.node == node);
        known.map_or_else(|| node.to_string(), |known| known.name.clone())
    }
}

/// A way into a DC.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) socket: PathBuf,
    pub(crate) info: Info,
    /// The node that the user means: the one named, or the one that the socket leads to.
    pub(crate) target: u16,
}

impl Place {
    /// Finds the DVS: inside a container its own door, on the host the lab. `None`: there is none.
    ///
    /// # Errors
    /// There is one, but not with this DC or node.
    pub(crate) fn find(dc: Option<&str>, node: Option<&str>) -> Result<Option<Place>> {
        let Some(socket) = own_door().or_else(|| lab::door(node)) else { return Ok(None) };
        let info = Info::beside(&socket)?;
        if let Some(dc) = dc.filter(|dc| *dc != info.dc) {
            let message =
                format!("there is no distributed container {dc:?} here, only {:?}", info.dc);
            return Err(Failure::error(exit::NO_DC, message));
        }
        let target = match node {
            None => info.node,
            Some(name) => info.find(name).map(|found| found.node).ok_or_else(|| {
                let names: Vec<&str> = info.nodes.iter().map(|node| node.name.as_str()).collect();
                let all = names.join(", ");
                let message = format!("{:?} has no node {name:?}, only {all}", info.dc);
                Failure::error(exit::NO_NODE, message)
            })?,
        };
        Ok(Some(Place { socket, info, target }))
    }

    /// As [`Place::find`], for commands that are of no use without a DVS.
    ///
    /// # Errors
    /// As there, and if there is no DVS.
    pub(crate) fn required(dc: Option<&str>, node: Option<&str>) -> Result<Place> {
        Place::find(dc, node)?.ok_or_else(|| {
            Failure::error(exit::NO_DVS, "no DVS is running here; \"dvs lab up\" starts one")
        })
    }

    /// A connection to the DC as an ordinary process. Should this node's dvkd end, so does this
    /// process: after its last words, `lost`.
    ///
    /// # Errors
    /// One sentence: nobody answers at the socket.
    pub(crate) fn connect(&self, lost: impl FnOnce() + Send + 'static) -> Result<Connected> {
        let process = connect(&self.socket, door::kind::PROCESS)?;
        let over = Arc::new(AtomicBool::new(false));
        watch(&self.socket, process.nonce(), Arc::clone(&over), lost)?;
        Ok(Connected { process, over })
    }

    /// The node that the user means.
    pub(crate) fn target(&self) -> NodeId {
        NodeId(self.target)
    }
}

/// A connection that lasts as long as dvkd, or ends this process.
#[derive(Debug)]
pub(crate) struct Connected {
    process: Process,
    over: Arc<AtomicBool>,
}

impl Connected {
    /// From now on dvkd may end.
    pub(crate) fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Whoever lets go of it expects nothing more of dvkd, and may end it.
impl Drop for Connected {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Sendrec for Connected {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> std::result::Result<usize, IpcError> {
        self.process.sendrec(to, message, send, receive, wait)
    }
}

/// Connects to the DC at `socket` as `kind` of `door::kind`.
///
/// # Errors
/// One sentence: nobody answers there, or dvkd refuses.
pub(crate) fn connect(socket: &Path, kind: u32) -> Result<Process> {
    let process = Process::new(Identity::new(kind, 0, socket.as_os_str().as_bytes()));
    match process.whoami() {
        Ok(_) => Ok(process),
        Err(IpcError::Denied) => {
            Err(Failure::error(exit::NODE_DOWN, "dvkd does not let this user do that"))
        }
        Err(error) => Err(Failure::error(
            exit::NODE_DOWN,
            format!("no dvkd answers at {} ({error:?})", socket.display()),
        )),
    }
}

/// Ends this process when the dvkd at `socket` is gone. A call whose answer nobody will ever write
/// would else wait for ever: channels are memory, and memory does not tell who has died.
fn watch(
    socket: &Path,
    nonce: u64,
    over: Arc<AtomicBool>,
    lost: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let gone = |error| {
        let message = format!("no dvkd answers at {} ({error:?})", socket.display());
        Failure::error(exit::NODE_DOWN, message)
    };
    let connection = Connection::connect(socket.as_os_str().as_bytes()).map_err(gone)?;
    connection.hello(Ask::hello(door::kind::PROCESS, 0, nonce), None).map_err(gone)?;
    std::thread::spawn(move || {
        while connection.hear().is_ok() {}
        if over.load(Ordering::Relaxed) {
            return;
        }
        lost();
        eprintln!("dvs: this node's dvkd is gone");
        std::process::exit(exit::NODE_DOWN.into());
    });
    Ok(())
}

/// The door of the container that this process is in, if it is in one.
pub(crate) fn own_door() -> Option<PathBuf> {
    let named = std::env::var_os(door::SOCKET_ENV).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(door::SOCKET_PATH)).filter(|path| path.exists()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn info() -> Info {
        let node = |node: u16| NodeInfo {
            node,
            name: format!("n{node}"),
            address: ([10, 83, 0, 1], 7083).into(),
        };
        Info { dc: "lab".into(), id: 1, node: 1, home: 1, nodes: vec![node(1), node(2), node(12)] }
    }

    #[test]
    fn what_stands_beside_a_socket_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("dc-lab.sock");
        assert!(Info::beside(&socket).is_err());
        info().write_beside(&socket).unwrap();
        assert_eq!(Info::beside(&socket).unwrap(), info());
    }

    #[test]
    fn a_node_is_found_by_name_and_by_number() {
        let info = info();
        assert_eq!(info.find("n2").map(|node| node.node), Some(2));
        assert_eq!(info.find("12").map(|node| node.node), Some(12));
        assert_eq!(info.find("n1x"), None);
        assert_eq!(info.name_of(12), "n12");
        assert_eq!(info.name_of(13), "13");
    }
}
