//! Requests and answers between nodes, over whatever carries bytes.

use crate::limits::ASKING_MAX;
use crate::types::{RaftId, Snapshot, Types, Vote};
use crate::wire::{Ask, PIECE, Piece, Tell, Wire};
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Carries bytes to other nodes. They may get lost, doubled, or overtake each other; they must not be
/// changed, and come from the node that the receiver is told.
pub trait Transport: Send + Sync + 'static {
    fn send(&self, to: u64, bytes: Vec<u8>);
}

pub(crate) struct Network {
    transport: Arc<dyn Transport>,
    asking: Mutex<BTreeMap<u64, oneshot::Sender<Tell>>>,
    next: AtomicU64,
    /// Out of contact with the majority: this node says nothing as a leader.
    muted: AtomicBool,
}

impl Network {
    /// `first` is the number of the first request: random, so that answers to an earlier incarnation are not
    /// taken for ours.
    pub(crate) fn new(transport: Arc<dyn Transport>, first: u64) -> Network {
        Network {
            transport,
            asking: Mutex::default(),
            next: AtomicU64::new(first),
            muted: AtomicBool::new(false),
        }
    }

    fn asking(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Tell>>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn mute(&self, muted: bool) {
        self.muted.store(muted, Ordering::Relaxed);
    }

    pub(crate) fn send(&self, to: RaftId, message: &Wire) {
        self.transport.send(to, message.encode());
    }

    /// Asks a node. None: it did not answer in time, or there are too many questions open.
    pub(crate) async fn ask(&self, to: RaftId, ask: Ask, patience: Duration) -> Option<Tell> {
        let (sender, receiver) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let asked = Asked { network: self, id };
        {
            let mut asking = self.asking();
            if asking.len() >= ASKING_MAX {
                return None;
            }
            asking.insert(id, sender);
        }
        self.send(to, &Wire::Ask { id, ask });
        let tell = timeout(patience, receiver).await;
        drop(asked);
        tell.ok()?.ok()
    }

    /// An answer has come.
    pub(crate) fn told(&self, id: u64, tell: Tell) {
        let sender = self.asking().remove(&id);
        // Nobody waits for one that comes late, or twice.
        if let Some(sender) = sender {
            drop(sender.send(tell));
        }
    }
}

/// A question that is open; forgotten when nobody waits any more.
struct Asked<'a> {
    network: &'a Network,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.network.asking().remove(&self.id);
    }
}

/// Where openraft gets its connections.
pub(crate) struct Peers(pub(crate) Arc<Network>);

/// openraft's connection to one node.
pub(crate) struct Peer {
    network: Arc<Network>,
    to: RaftId,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: RaftId, _node: &EmptyNode) -> Peer {
        Peer { network: self.0.clone(), to: target }
    }
}

type Failed = RPCError<RaftId, EmptyNode, RaftError<RaftId>>;

fn no_answer() -> NetworkError {
    NetworkError::new(&std::io::Error::from(std::io::ErrorKind::TimedOut))
}

fn muted() -> Unreachable {
    Unreachable::new(&std::io::Error::from(std::io::ErrorKind::NotConnected))
}

impl Peer {
    async fn ask(&self, ask: Ask, patience: Duration) -> Result<Tell, Failed> {
        if self.network.muted.load(Ordering::Relaxed) {
            return Err(muted().into());
        }
        let tell = self.network.ask(self.to, ask, patience).await;
        tell.ok_or_else(|| no_answer().into())
    }

    async fn send_pieces(
        &self,
        vote: Vote,
        snapshot: Snapshot,
        patience: Duration,
    ) -> Result<SnapshotResponse<RaftId>, StreamingError<Types, Fatal<RaftId>>> {
        let bytes = &snapshot.snapshot;
        let mut offset = 0;
        loop {
            let end = bytes.len().min(offset + PIECE);
            let piece = Piece {
                vote,
                meta: snapshot.meta.clone(),
                total: bytes.len() as u64,
                offset: offset as u64,
                bytes: bytes[offset..end].to_vec(),
            };
            match self.ask(Ask::Piece(piece), patience).await {
                Ok(Tell::Installed(vote)) => return Ok(SnapshotResponse { vote }),
                // It may have less than we sent, if it has restarted.
                Ok(Tell::Have(have)) => {
                    offset = usize::try_from(have).unwrap_or(0).min(bytes.len());
                }
                Err(RPCError::Unreachable(error)) => return Err(error.into()),
                _ => return Err(no_answer().into()),
            }
        }
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, Failed> {
        match self.ask(Ask::Append(request), option.hard_ttl()).await? {
            Tell::Append(response) => Ok(response),
            _ => Err(no_answer().into()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftId>, Failed> {
        match self.ask(Ask::Vote(request), option.hard_ttl()).await? {
            Tell::Vote(response) => Ok(response),
            _ => Err(no_answer().into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<RaftId>, StreamingError<Types, Fatal<RaftId>>> {
        let sending = pin!(self.send_pieces(vote, snapshot, option.hard_ttl()));
        tokio::select! {
            biased;
            closed = pin!(cancel) => Err(closed.into()),
            sent = sending => sent,
        }
    }

    /// How often a node that cannot be reached is tried.
    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(50)))
    }
}
