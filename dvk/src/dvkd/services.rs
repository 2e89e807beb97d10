//! The services of the system group for programs of the daemon's own user, and what a node knows of the group.
//!
//! A connection to `admin.sock` on which [`super::admin::Query::Services`] was answered with [`Reply::Ready`] takes the
//! requests of the crate `services`. Hanging up is how a command stops waiting.

use super::admin::{self, Query};
use ::group::limits::{KEY_MAX, RANGE_BYTES_MAX, STATE_MAX, VALUE_MAX};
use ::services::limits::{LINE_MAX, REQUEST_MAX};
use anyhow::{Result, anyhow, bail};
use m3ipc::connection::Connection;
use m3ipc::door::{Ask, kind};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

pub use ::services::{Change, Entry, Failure, Item, Lease, Op, Reply, Request, Text, Told};

// Whatever is asked, and whatever the group answers, is a line.
const _: () = assert!(6 * (RANGE_BYTES_MAX + KEY_MAX + VALUE_MAX) < LINE_MAX);
const _: () = assert!(6 * (STATE_MAX + KEY_MAX) < REQUEST_MAX);

/// Whether a node may act for the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The group is not at work here.
    #[default]
    Stopped,
    Joining,
    Up,
    Fenced,
}

/// What a node knows of the system group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub node: u16,
    pub name: String,
    pub standing: Standing,
    pub leader: Option<u16>,
    pub term: u64,
    /// Index of the last command that this node has carried out.
    pub applied: u64,
    /// The last change of a key.
    pub revision: u64,
    pub sessions: usize,
    /// Why nothing can be decided, if so.
    pub trouble: Option<String>,
    pub members: Vec<MemberStatus>,
}

/// A node of the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub node: u16,
    pub name: String,
    pub is_voter: bool,
    /// The group takes it for up.
    pub is_up: bool,
    /// There is a link to it.
    pub is_linked: bool,
    /// Milliseconds since the last two-way contact of two voters.
    pub contact_ms: Option<u64>,
}

/// The system group as the dvkd with the run directory `run` knows it; none if that node is alone.
///
/// # Errors
/// One sentence: no dvkd there, or it does not answer.
pub fn group_status(run: &Path) -> Result<Option<GroupStatus>> {
    admin::question(run, Query::Group)
}

/// A connection that uses the services. What it holds ends with it.
#[derive(Debug)]
pub struct Client {
    client: ::services::Client,
    /// The request whose answers are being waited for.
    id: u64,
}

impl Client {
    /// Connects to the dvkd whose run directory is `run`: to the services of the container with the number `dc`, or the
    /// administrator's own.
    ///
    /// # Errors
    /// One sentence: no dvkd there, it is alone or has too much to do, or it is somebody else's.
    pub fn connect(run: &Path, dc: Option<u32>) -> Result<Client> {
        let query = dc.map_or(Query::Services, |dc| Query::ServicesOf { dc });
        Client::begin(admin::open(run, query)?.into())
    }

    /// Connects at the door `socket` of the container that this process lives in.
    ///
    /// # Errors
    /// As [`Client::connect`]; this process lives in another container.
    pub fn enter(socket: &Path) -> Result<Client> {
        let shown = socket.display();
        let refused = |error| anyhow!("dvkd does not let this process in at {shown}: {error:?}");
        let connection = Connection::connect(socket.as_os_str().as_bytes()).map_err(refused)?;
        let hello = Ask::hello(kind::SERVICES, ::services::VERSION, 0);
        connection.hello_within(hello, admin::ANSWER_TIMEOUT).map_err(refused)?;
        Client::begin(connection.into())
    }

    fn begin(socket: OwnedFd) -> Result<Client> {
        let client = ::services::Client::new(socket);
        match client.next(0, Some(Instant::now() + admin::ANSWER_TIMEOUT)) {
            Ok(Some(Reply::Ready)) => Ok(Client { client, id: 0 }),
            Ok(Some(Reply::Failed { why, .. })) => bail!("{why}"),
            Ok(Some(_)) => bail!("dvkd's answer is not understood; is it another version?"),
            Ok(None) => bail!("dvkd does not answer"),
            Err(_) => bail!("dvkd refuses: only root and its own user may use the system group"),
        }
    }

    /// Asks; the answer is with [`Client::receive`].
    ///
    /// # Errors
    /// dvkd has ended.
    pub fn send(&mut self, op: Op, timeout_ms: Option<u64>) -> Result<()> {
        // One at a time: there is room.
        self.id = self.client.post(op, timeout_ms, None)?.unwrap_or_default();
        Ok(())
    }

    /// The next line of the answer; none if dvkd has ended the connection, or said nothing for `patience`.
    ///
    /// # Errors
    /// The line is not understood.
    pub fn receive(&mut self, patience: Option<Duration>) -> Result<Option<Reply>> {
        let until = patience.map(|patience| Instant::now() + patience);
        match self.client.next(self.id, until) {
            Ok(reply) => Ok(reply),
            Err(::services::Ended::Lost(why)) => Ok(Some(Reply::Lost { why })),
            Err(::services::Ended::Broken) => {
                bail!("dvkd's answer is not understood; is it another version?")
            }
            Err(::services::Ended::Gone) => Ok(None),
        }
    }

    /// Asks and waits for the answer; `waiting` is told what for, if it takes long.
    ///
    /// # Errors
    /// dvkd has ended.
    pub fn ask(
        &mut self,
        op: Op,
        timeout_ms: Option<u64>,
        mut waiting: impl FnMut(&str),
    ) -> Result<Reply> {
        self.send(op, timeout_ms)?;
        loop {
            match self.receive(None)? {
                Some(Reply::Waiting { why }) => waiting(&why),
                Some(reply) => return Ok(reply),
                None => bail!("dvkd has ended the connection; what was asked may have happened"),
            }
        }
    }

    /// Readable when dvkd says something.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}
