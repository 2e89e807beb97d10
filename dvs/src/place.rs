//! Where a DVS is reachable from here: a DC's socket, and what its dvkd says beside it of the DC.

use crate::exit::{self, Failure};
use crate::{lab, state};
use anyhow::Result;
use dvk::dvkd::{Config, Description, admin};
use m3ipc::client::{Identity, Process};
use m3ipc::connection::Connection;
use m3ipc::door::Ask;
use m3ipc::{Endpoint, IpcError, Message, NodeId, Sendrec, Wait, door};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A way into a DC.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) socket: PathBuf,
    pub(crate) info: Description,
    /// The node that the user means: the one named, or the one that the socket leads to.
    pub(crate) target: u16,
}

impl Place {
    /// Finds the DVS: inside a container its own door, on the host the node of this machine, or the lab. `None`: there is none.
    ///
    /// # Errors
    /// There is one, but not with this DC or node, or its dvkd does not answer.
    pub(crate) fn find(dc: Option<&str>, node: Option<&str>) -> Result<Option<Place>> {
        let host = || match state::own_node()? {
            Some(config) => door_of(&config, dc).map(Some),
            None => Ok(lab::door(node)),
        };
        let Some(socket) = own_door().map_or_else(host, |door| Ok(Some(door)))? else {
            return Ok(None);
        };
        let info = Description::beside(&socket)?;
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
            Failure::error(
                exit::NO_DVS,
                "no DVS is running here; \"dvs lab up\" starts one for a try, \"dvs init\" one of machines",
            )
        })
    }

    /// A connection to the DC as an ordinary process. Should this node's dvkd end, so does this
    /// process: after its last words, `lost`.
    ///
    /// # Errors
    /// One sentence: nobody answers at the socket.
    pub(crate) fn connect(&self, lost: impl FnOnce() + Send + 'static) -> Result<Connected> {
        self.connect_as(door::kind::PROCESS, lost)
    }

    /// As [`Place::connect`], as `kind` of `door::kind`.
    ///
    /// # Errors
    /// As there, and this user may not.
    pub(crate) fn connect_as(
        &self,
        kind: u32,
        lost: impl FnOnce() + Send + 'static,
    ) -> Result<Connected> {
        let process = connect(&self.socket, kind)?;
        let over = Arc::new(AtomicBool::new(false));
        watch(&self.socket, kind, process.nonce(), Arc::clone(&over), lost)?;
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
    kind: u32,
    nonce: u64,
    over: Arc<AtomicBool>,
    lost: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let gone = |error| {
        let message = format!("no dvkd answers at {} ({error:?})", socket.display());
        Failure::error(exit::NODE_DOWN, message)
    };
    let connection = Connection::connect(socket.as_os_str().as_bytes()).map_err(gone)?;
    connection.hello(Ask::hello(kind, 0, nonce), None).map_err(gone)?;
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

/// The door of the container `dc`, or of the only one, on the node of this machine.
///
/// # Errors
/// Its dvkd does not answer, there is no such container, or it must be said which.
fn door_of(config: &Config, dc: Option<&str>) -> Result<PathBuf> {
    let status = admin::status(&config.run).map_err(|error| {
        let message = format!("this machine is node {}, but {error:#}", config.name);
        Failure::error(exit::NODE_DOWN, message)
    })?;
    let names: Vec<&str> = status.dcs.iter().map(|dc| dc.name.as_str()).collect();
    let found = match (dc, &names[..]) {
        (None, [only]) => Ok(*only),
        (None, []) => Err("there is no distributed container; \"dvs dc create NAME\" makes one \
             (on the node where \"dvs init\" was run)"
            .to_owned()),
        (None, _) => Err(format!("say which distributed container: --dc {}", names.join("|"))),
        (Some(name), _) => names.iter().copied().find(|known| *known == name).ok_or_else(|| {
            format!("there is no distributed container {name:?} here, only {names:?}")
        }),
    };
    let name = found.map_err(|message| Failure::error(exit::NO_DC, message))?;
    Ok(config.socket(name))
}

/// The door of the container that this process is in, if it is in one.
pub(crate) fn own_door() -> Option<PathBuf> {
    let named = std::env::var_os(door::SOCKET_ENV).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(door::SOCKET_PATH)).filter(|path| path.exists()))
}
