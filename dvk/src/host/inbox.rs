//! What dvkd tells a server: a thread reads the connection and wakes the server by its own bell.

use crate::limits::RING_AGAIN;
use crate::server::Gone;
use anyhow::{Context, Result, bail};
use m3ipc::bell::{Bell, Ringer};
use m3ipc::channel::SharedChannel;
use m3ipc::connection::{Connection, Fds};
use m3ipc::door::{Ask, Tell, flag, kind, tell};
use m3ipc::limits::LANES;
use m3ipc::{CallId, Cred, Endpoint, IpcError, NodeId};
use rustix::fd::{AsFd, BorrowedFd};
use std::cell::RefCell;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One side of the connection: the server takes from it what the thread has put in.
#[derive(Debug)]
pub(crate) struct Inbox {
    shared: Arc<Shared>,
    endpoint: Endpoint,
}

#[derive(Debug)]
struct Shared {
    bell: Arc<Bell>,
    events: Mutex<Vec<Event>>,
    news: AtomicBool,
}

/// Something that dvkd said.
#[derive(Debug)]
pub(crate) enum Event {
    Accepted(Box<Accepted>),
    /// A death, with its number.
    Gone(u64, Gone),
    /// What has been handed over of this endpoint's channels, or of all of this node, brings nothing any more.
    Cut(Endpoint),
    Stop,
    /// dvkd is gone.
    Lost(IpcError),
}

/// A channel on which this process is the receiver.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) channel: SharedChannel,
    pub(crate) peer: Endpoint,
    flags: u32,
    /// Of the peer; on a trusted channel each request brings its own.
    pub(crate) cred: Cred,
    /// Of the requester, if it is woken by that.
    pub(crate) bell: Option<Ringer>,
    /// The open call of each lane. Only the server's thread uses it.
    pub(crate) calls: RefCell<[Option<CallId>; LANES]>,
}

impl Accepted {
    pub(crate) fn is_trusted(&self) -> bool {
        self.flags & flag::TRUSTED != 0
    }

    pub(crate) fn by_bell(&self) -> bool {
        self.bell.is_some()
    }

    fn from_record(record: &Tell, [channel, bell]: Fds) -> Result<Accepted, IpcError> {
        let channel = SharedChannel::map(channel.ok_or(IpcError::Protocol)?.as_fd())?;
        let bell = match bell {
            Some(bell) if record.flags & flag::REQUESTER_BELL != 0 => {
                Some(Ringer::map(bell.as_fd())?)
            }
            _ => None,
        };
        let cred = record.cred().ok_or(IpcError::Protocol)?;
        let calls = RefCell::new([None; LANES]);
        Ok(Accepted { channel, peer: record.endpoint, flags: record.flags, cred, bell, calls })
    }
}

impl Inbox {
    /// Binds this process as server `number` and starts the thread.
    pub(crate) fn connect(
        number: u32,
        socket: &Path,
        bell: Arc<Bell>,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Inbox> {
        let connection = match Connection::connect(socket.as_os_str().as_bytes()) {
            Ok(connection) => connection,
            Err(_) => bail!("no dvkd answers at {}", socket.display()),
        };
        let mut nonce = [0; 8];
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
        let hello = Ask::hello(kind::SERVER, number, u64::from_ne_bytes(nonce) | 1);
        let welcome = connection
            .hello(hello, Some(descriptor))
            .map_err(|error| anyhow::anyhow!("dvkd refuses server {number}: {error:?}"))?;
        let shared =
            Arc::new(Shared { bell, events: Mutex::default(), news: AtomicBool::new(false) });
        let listener = shared.clone();
        std::thread::Builder::new()
            .name("dvkd".into())
            .spawn(move || listener.listen(&connection))
            .context("cannot start a thread")?;
        Ok(Inbox { shared, endpoint: welcome.endpoint })
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.shared.bell
    }

    pub(crate) fn has_news(&self) -> bool {
        self.shared.news.load(Ordering::SeqCst)
    }

    /// What has been said since the last look, in order.
    pub(crate) fn take(&self) -> Vec<Event> {
        if !self.has_news() {
            return Vec::new();
        }
        self.shared.news.store(false, Ordering::SeqCst);
        std::mem::take(&mut *self.shared.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    fn listen(&self, connection: &Connection) {
        loop {
            let event = match connection.hear() {
                Ok((record, fds)) => event(&record, fds),
                Err(error) => Some(Event::Lost(error)),
            };
            if let Some(Event::Accepted(accepted)) = &event {
                self.bell.beware_of(accepted.cred.uid);
            }
            let last = matches!(event, Some(Event::Stop | Event::Lost(_)));
            if let Some(event) = event {
                self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                self.news.store(true, Ordering::SeqCst);
                while !self.bell.ring() {
                    // The server's thread is stopped, or waits for a CPU.
                    std::thread::sleep(Duration::from_nanos(RING_AGAIN));
                }
            }
            if last {
                return;
            }
        }
    }
}

fn event(record: &Tell, fds: Fds) -> Option<Event> {
    match record.op {
        tell::ACCEPT => match Accepted::from_record(record, fds) {
            Ok(accepted) => Some(Event::Accepted(Box::new(accepted))),
            Err(error) => {
                tracing::error!(peer = ?record.endpoint, ?error, "cannot accept a channel");
                None
            }
        },
        tell::GONE => Some(Event::Gone(record.number, Gone::Endpoint(record.endpoint))),
        tell::CUT => Some(Event::Cut(record.endpoint)),
        tell::NODE_GONE => {
            let node = u16::try_from(record.node).ok().map(NodeId);
            node.map(|node| Event::Gone(record.number, Gone::Node(node)))
        }
        tell::STOP => Some(Event::Stop),
        _ => None,
    }
}
