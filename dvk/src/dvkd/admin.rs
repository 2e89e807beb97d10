//! What the command line asks a running `dvkd`: one JSON line each way over `admin.sock`.

use crate::limits::ADMINS_MAX;
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of one line at most.
pub(crate) const LINE_MAX: u64 = 1 << 20;

/// How long a healthy dvkd takes to answer, at most.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a dvkd takes to stop its children and itself, at most: `STOP_TIMEOUT` of the supervisor twice
/// (containers, then servers) and a margin.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    Status,
    /// Stop everything. The connection is closed when dvkd is about to exit.
    Stop,
    /// Take a node's membership away. Where the authority is. The answer is an [`Outcome`].
    Revoke {
        node: u16,
    },
    /// Make a container that spans all nodes. Where the authority is. The answer is an [`Outcome`].
    CreateDc {
        name: String,
        home: u16,
    },
    /// Take away a container that was made so. Where the authority is. The answer is an [`Outcome`].
    RemoveDc {
        name: String,
    },
    /// Get a new certificate for this node. The answer is an [`Outcome`].
    Renew,
    /// The system group as this node knows it. The answer is a [`super::services::GroupStatus`], or null.
    Group,
    /// How busy nodes and DCs are. The answer is a [`super::figures::Figures`].
    Loads,
    /// The same of one node, in the last minutes.
    History {
        node: u16,
        minutes: u16,
    },
    /// Use the services of the system group on this connection: [`super::services`].
    Services,
    /// The same with the keys and names of a container's programs.
    ServicesOf {
        dc: u32,
    },
}

impl Query {
    /// Everybody may look; only root and dvkd's own user may change something.
    fn is_harmless(&self) -> bool {
        matches!(self, Query::Status | Query::Group | Query::Loads | Query::History { .. })
    }
}

/// What has become of a wish: what was done, or why not, in one sentence.
pub type Outcome = std::result::Result<String, String>;

/// What a dvkd knows about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub node: u16,
    pub name: String,
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    pub listen: Option<SocketAddr>,
    /// This node first, then the other members that have not been revoked.
    pub nodes: Vec<NodeStatus>,
    /// Which list of members counts here, 0 without one.
    #[serde(default)]
    pub members_revision: u64,
    /// Until when this node's certificate counts, in seconds since 1970.
    #[serde(default)]
    pub certificate_until: Option<u64>,
    pub dcs: Vec<DcStatus>,
    pub counters: Counters,
}

/// A node as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: u16,
    pub name: String,
    pub address: SocketAddr,
    pub up: bool,
}

/// A container as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DcStatus {
    pub id: u32,
    pub name: String,
    pub home: u16,
    pub nodes: Vec<u16>,
    pub socket: PathBuf,
    /// Processes bound here now, servers and containers included.
    pub endpoints: usize,
    /// Channels between two processes of this node, or one and this dvkd.
    pub channels: usize,
    /// Endpoints of which the system group keeps where they are, as far as this node knows.
    pub placed: usize,
    /// What this dvkd runs for it.
    pub children: Vec<ChildStatus>,
}

/// A process that dvkd supervises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStatus {
    /// `vfs-server`, `pm-server`, `ipc-server` or `container`.
    pub role: String,
    /// `None` while it waits to be started again.
    pub pid: Option<u32>,
    pub restarts: u32,
    /// Has it said hello at the door?
    pub bound: bool,
    /// How it ended last time.
    pub last_exit: Option<String>,
}

/// Since this dvkd started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub frames_in: u64,
    pub frames_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Calls of local processes that went to other nodes.
    pub calls_out: u64,
    /// Calls of other nodes that went to local servers.
    pub calls_in: u64,
    /// Records and frames that broke the protocol.
    pub protocol_errors: u64,
    /// Frames that came compressed.
    #[serde(default)]
    pub packed_in: u64,
}

/// Asks the dvkd whose run directory is `run` for its status.
///
/// # Errors
/// One sentence: no dvkd there, or it does not answer.
pub fn status(run: &Path) -> Result<Status> {
    question(run, Query::Status)
}

/// Asks something whose answer is one line.
pub(super) fn question<T: DeserializeOwned>(run: &Path, query: Query) -> Result<T> {
    let mut line = String::new();
    ask(run, query)?.read_line(&mut line).context("dvkd does not answer")?;
    if line.is_empty() {
        bail!("dvkd closed the connection without an answer");
    }
    serde_json::from_str(&line).context("dvkd's answer is not understood; is it another version?")
}

/// Stops the dvkd whose run directory is `run` and waits until it has.
///
/// # Errors
/// One sentence: no dvkd there, or it does not stop.
pub fn stop(run: &Path) -> Result<()> {
    let mut answer = ask(run, Query::Stop)?;
    answer.get_ref().get_ref().set_read_timeout(Some(STOP_TIMEOUT))?;
    // dvkd closes its side when all its children are gone.
    answer.read_to_end(&mut Vec::new()).context("dvkd has been asked to stop, but does not")?;
    Ok(())
}

/// Asks the dvkd whose run directory is `run` for something other than its status or its end.
///
/// # Errors
/// One sentence: no dvkd there, it does not answer, or what it says against it.
pub fn command(run: &Path, query: Query) -> Result<String> {
    let mut line = String::new();
    ask(run, query)?.read_line(&mut line).context("dvkd does not answer")?;
    if line.is_empty() {
        bail!("dvkd refuses: only root and its own user may do that");
    }
    let outcome: Outcome = serde_json::from_str(&line)
        .context("dvkd's answer is not understood; is it another version?")?;
    outcome.map_err(|why| anyhow::anyhow!("{why}"))
}

/// How dvkd answers a query; a connection that it keeps ends when it has stopped.
pub(super) type Answer = Arc<dyn Fn(Query, UnixStream) -> Result<()> + Send + Sync>;

/// The body of the thread that answers the command line. Ends when the listener is shut down.
pub(super) fn serve(listener: &UnixListener, uid: u32, answer: &Answer) {
    let busy = Arc::new(AtomicUsize::new(0));
    while let Ok((stream, _)) = listener.accept() {
        if busy.fetch_add(1, Ordering::SeqCst) >= ADMINS_MAX {
            busy.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (answer, counter) = (answer.clone(), busy.clone());
        let thread = std::thread::Builder::new().name("admin".into()).spawn(move || {
            if let Err(error) = serve_one(stream, uid, &answer) {
                tracing::debug!(error = format!("{error:#}"), "an admin's query fails");
            }
            counter.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = thread {
            tracing::error!(%error, "cannot start a thread");
            busy.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn serve_one(stream: UnixStream, uid: u32, answer: &Answer) -> Result<()> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_MAX)).read_line(&mut line)?;
    let query: Query = serde_json::from_str(&line)?;
    if !query.is_harmless() && ![0, uid].contains(&peer.uid.as_raw()) {
        bail!("user {} may not command dvkd", peer.uid.as_raw());
    }
    answer(query, stream)
}

/// Sends a status or an outcome.
pub(super) fn answer(mut stream: &UnixStream, answer: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(answer)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    Ok(())
}

fn ask(run: &Path, query: Query) -> Result<BufReader<std::io::Take<UnixStream>>> {
    Ok(BufReader::new(open(run, query)?.take(LINE_MAX)))
}

/// A connection on which a query has been sent.
pub(super) fn open(run: &Path, query: Query) -> Result<UnixStream> {
    let path = run.join("admin.sock");
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("no dvkd answers at {}", path.display()))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut line = serde_json::to_string(&query)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).context("dvkd does not read")?;
    Ok(stream)
}
