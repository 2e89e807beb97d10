//! One node of the system group: openraft, the state, and the threads of work around them.

use crate::command::{Answer, ClientId, Command, Millis, Op, Refusal};
use crate::contact::Contact;
use crate::disk::Disk;
use crate::limits::{SERVING_BYTES, SERVING_MAX, SNAPSHOT_MAX};
use crate::network::{Network, Peers, Transport};
use crate::signal::Signal;
use crate::signs::Signs;
use crate::state::State;
use crate::store::{self, LogStore, StateStore};
use crate::types::{Jitter, Raft, RaftId, Snapshot, SnapshotMeta, Vote};
use crate::wire::{Ask, Leads, Piece, Tell, Wire};
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ServerState, SnapshotPolicy};
use rand_core::RngCore;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: u64,
    pub name: String,
    pub address: String,
    /// The voters that the group begins with: the same on all nodes. A node that joins later gives none.
    pub first_voters: BTreeSet<u64>,
    /// A first voter that has never been in the group makes it. One that has been, and has lost its disk,
    /// must not: there is a group already.
    pub founds: bool,
    /// Nodes to ask while it is not known who leads. See [`Group::set_peers`].
    pub peers: Vec<u64>,
    /// Random at each start of what the node is for, though the group may start again meanwhile.
    pub incarnation: u64,
    /// A node that the group has not heard of for so long is down. See [`crate::fence`].
    pub lease: Millis,
    /// A voter that has been down for so long is replaced.
    pub gone: Duration,
    /// A snapshot is made each so many entries of the log.
    pub snapshot_each: u64,
}

impl Config {
    /// A node of a group with the usual times.
    pub fn new(node: u64, first_voters: BTreeSet<u64>) -> Config {
        Config {
            node,
            name: format!("node{node}"),
            address: String::new(),
            peers: first_voters.iter().copied().collect(),
            first_voters,
            founds: true,
            incarnation: Jitter.next_u64(),
            // A new leader is there after 0.5 s, seldom 1: that must not fence anybody.
            lease: 2000,
            gone: Duration::from_secs(60),
            snapshot_each: 5000,
        }
    }
}

/// How long one request of openraft's may take.
const REQUEST: Millis = 100;

/// How often a leader and those whom it leads say that they are here, and voters that have none.
pub(crate) const SIGN: Duration = Duration::from_millis(100);

/// A node that was silent for so long is out of contact: three signs of life.
const CONTACT: Millis = 300;

/// How long one attempt at a command may take before it is sent again.
pub(crate) const ATTEMPT: Duration = Duration::from_millis(400);

/// Pause before the next attempt.
const AGAIN: Duration = Duration::from_millis(20);

/// Nobody could be asked, or nobody has answered in time. What was asked may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system group has no majority, or it cannot be reached")]
pub struct Unavailable;

/// A node of the group. All clones are the same node.
#[derive(Clone)]
pub struct Group(pub(crate) Arc<Inner>);

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({})", self.0.config.node)
    }
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) state: StateStore,
    pub(crate) network: Arc<Network>,
    started: Instant,
    contact: Mutex<Contact>,
    clock: Mutex<Option<Clock>>,
    receiving: Mutex<Option<Receiving>>,
    /// Where requests of others are dealt with, and how many and how long those of each are.
    runtime: Handle,
    serving: Mutex<BTreeMap<u64, (usize, usize)>>,
    peers: Mutex<Vec<u64>>,
    expelled: Mutex<BTreeSet<u64>>,
    pub(crate) signs: Signs,
    /// Who leads; 0 is nobody.
    pub(crate) leader: Signal,
    pub(crate) fence: watch::Sender<crate::fence::Fence>,
}

/// The group's clock while this node leads: it goes on from the last stamp that this node knew.
#[derive(Clone, Copy, Debug)]
struct Clock {
    term: u64,
    base: Millis,
    since: Instant,
}

/// A snapshot of which parts have come.
struct Receiving {
    meta: SnapshotMeta,
    vote: Vote,
    bytes: Vec<u8>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer of a command, or who may know.
fn answer(tell: Tell) -> Result<(u64, Answer), Option<RaftId>> {
    match tell {
        Tell::Answer { index, answer } => Ok((index, answer)),
        Tell::NotLeader(leader) => Err(leader),
        _ => Err(None),
    }
}

/// A duration as the group counts it.
pub fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// A request of another node that is being dealt with.
struct Served {
    group: Group,
    from: u64,
    bytes: usize,
}

impl Served {
    fn admit(group: &Group, from: u64, bytes: usize) -> Option<Served> {
        let mut serving = locked(&group.0.serving);
        let (count, total) = serving.entry(from).or_default();
        if *count >= SERVING_MAX || *total + bytes > SERVING_BYTES {
            return None;
        }
        (*count, *total) = (*count + 1, *total + bytes);
        drop(serving);
        Some(Served { group: group.clone(), from, bytes })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut serving = locked(&self.group.0.serving);
        if let Some((count, total)) = serving.get_mut(&self.from) {
            (*count, *total) = (count.saturating_sub(1), total.saturating_sub(self.bytes));
            if *count == 0 {
                serving.remove(&self.from);
            }
        }
    }
}

impl Group {
    /// Starts a node with what is on its disk. Must be called in a tokio runtime, in which its work is done.
    ///
    /// # Errors
    /// The disk failed or is damaged.
    pub async fn start(
        config: Config,
        disk: Arc<dyn Disk>,
        transport: Arc<dyn Transport>,
    ) -> io::Result<Group> {
        let (log, state) = store::open(disk)?;
        let network = Arc::new(Network::new(transport, Jitter.next_u64()));
        let settings = openraft::Config {
            cluster_name: "dvs".into(),
            heartbeat_interval: REQUEST,
            // Signs of life are ours, and so is when to stand for election (`contact`). A voter that has been told something
            // by a leader has no vote for as long as the greater of these.
            enable_heartbeat: false,
            election_timeout_min: REQUEST + 1,
            election_timeout_max: 200,
            max_payload_entries: 256,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_each),
            max_in_snapshot_log_to_keep: config.snapshot_each / 4,
            replication_lag_threshold: config.snapshot_each,
            install_snapshot_timeout: 2000,
            enable_elect: false,
            enable_tick: false,
            ..openraft::Config::default()
        };
        let settings = settings.validate().map_err(io::Error::other)?;
        let links = Peers(network.clone());
        let raft =
            Raft::new(config.node, Arc::new(settings), links, log.clone(), state.clone()).await;
        let raft = raft.map_err(io::Error::other)?;
        let contact = Mutex::new(Contact::new(config.node, CONTACT));
        let peers = config.peers.clone();
        let group = Group(Arc::new(Inner {
            config,
            raft,
            log,
            state,
            network,
            started: Instant::now(),
            contact,
            clock: Mutex::default(),
            receiving: Mutex::default(),
            runtime: Handle::current(),
            serving: Mutex::default(),
            peers: Mutex::new(peers),
            expelled: Mutex::default(),
            signs: Signs::default(),
            leader: Signal::default(),
            fence: watch::Sender::default(),
        }));
        group.begin().await?;
        tokio::spawn(crate::keeping::leader(group.clone()));
        tokio::spawn(crate::keeping::contact(group.clone()));
        tokio::spawn(crate::keeping::time(group.clone()));
        tokio::spawn(crate::keeping::members(group.clone()));
        tokio::spawn(crate::signs::pass_on(group.clone()));
        tokio::spawn(crate::fence::live(group.clone()));
        Ok(group)
    }

    /// Makes the group, if there is none yet and this node is of the first.
    async fn begin(&self) -> io::Result<()> {
        let inner = &*self.0;
        let config = &inner.config;
        if !config.founds || !config.first_voters.contains(&config.node) {
            return Ok(());
        }
        match inner.raft.initialize(inner.config.first_voters.clone()).await {
            // Not allowed: the log is not empty, so there is a group.
            Ok(()) | Err(RaftError::APIError(openraft::error::InitializeError::NotAllowed(_))) => {
                Ok(())
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Ends this node's work. The group goes on without it.
    pub async fn stop(&self) {
        // Only a panic of openraft's task is an error here, and that was logged.
        self.0.raft.shutdown().await.ok();
    }

    /// Is it still at work? Not after [`Group::stop`], nor when its disk has failed.
    pub fn is_running(&self) -> bool {
        self.failure().is_none()
    }

    /// Why it is not at work any more, if so.
    pub fn failure(&self) -> Option<String> {
        let metrics = self.0.raft.metrics();
        // One that has panicked says nothing any more.
        if metrics.has_changed().is_err() {
            return Some("its thread of work has ended".to_owned());
        }
        metrics.borrow().running_state.as_ref().err().map(ToString::to_string)
    }

    pub fn node(&self) -> u64 {
        self.0.config.node
    }

    /// Nodes to ask while it is not known who leads: all that may be in the group.
    pub fn set_peers(&self, peers: Vec<u64>) {
        *locked(&self.0.peers) = peers;
    }

    /// Nodes that may not be in the group any more. They leave its tables and its voters.
    pub fn set_expelled(&self, nodes: BTreeSet<u64>) {
        *locked(&self.0.expelled) = nodes;
    }

    pub(crate) fn expelled(&self) -> BTreeSet<u64> {
        locked(&self.0.expelled).clone()
    }

    /// How long ago there was two-way contact with a node; only voters have that with each other.
    pub fn last_contact(&self, node: u64) -> Option<Duration> {
        let last = self.with_contact(|contact| contact.last(node))?;
        Some(Duration::from_millis(self.local_time().saturating_sub(last)))
    }

    /// Bytes from another node have come. May be called by any thread.
    pub fn deliver(&self, from: u64, bytes: &[u8]) {
        match Wire::decode(bytes) {
            Ok(Wire::Ping { leads: Some(leads), .. }) if !leads.may_be_of(from) => {
                tracing::warn!(from, "a node speaks for another; dropped");
            }
            Ok(Wire::Ping { hears, last, leads }) => {
                self.with_contact(|contact| contact.heard(from, &hears, last, self.local_time()));
                if let Some(leads) = leads {
                    self.heard_leader(&leads);
                }
            }
            Ok(Wire::Tell { id, tell }) => self.0.network.told(id, tell),
            Ok(Wire::Ask { ask, .. }) if !ask.may_be_of(from) => {
                tracing::warn!(from, "a node speaks for another; dropped");
            }
            Ok(Wire::Ask { id, ask }) => {
                // Who asks more than can be dealt with gets no answer, and asks again.
                let Some(served) = Served::admit(self, from, bytes.len()) else { return };
                self.0.runtime.spawn(async move {
                    let tell = served.group.serve(from, ask).await;
                    served.group.0.network.send(from, &Wire::Tell { id, tell });
                });
            }
            Err(error) => tracing::warn!(from, %error, "dropped bytes of the group"),
        }
    }

    /// Does what a node asks.
    async fn serve(&self, from: RaftId, ask: Ask) -> Tell {
        let raft = &self.0.raft;
        match ask {
            Ask::Append(request) => {
                // As a ping says it: a new leader is heard of at once.
                let committed = request.leader_commit.map_or(0, |last| last.index);
                self.heard_leader(&Leads { vote: request.vote, committed });
                raft.append_entries(request).await.map_or(Tell::Failed, Tell::Append)
            }
            // Who is led has no vote to give away: one that has not heard the leader does not unseat it.
            Ask::Vote(_) if self.is_led() => Tell::Failed,
            Ask::Vote(request) => raft.vote(request).await.map_or(Tell::Failed, Tell::Vote),
            Ask::Piece(piece) => self.piece(piece).await,
            Ask::Submit(command) => self.lead(from, command).await,
            Ask::Alive(client) => self.take_sign(from, client).await,
            Ask::ReadIndex => self.read_index().await,
        }
    }

    /// A node says that it leads. An earlier leader may not know yet that it is one.
    fn heard_leader(&self, leads: &Leads) {
        if let Some(leader) = leads.vote.leader_id.voted_for()
            && leads.vote >= self.0.raft.metrics().borrow().vote
        {
            self.with_contact(|contact| contact.led(leader, leads.committed, self.local_time()));
        }
    }

    /// Does this node lead a majority, or is it led by another?
    pub(crate) fn is_led(&self) -> bool {
        let (voters, leads, now) = (self.voters(), self.is_leader(), self.local_time());
        self.with_contact(|contact| match leads {
            true => contact.has_majority(&voters, now),
            false => contact.leader(now).is_some(),
        })
    }

    /// Takes a part of a snapshot; installs it with the last.
    async fn piece(&self, piece: Piece) -> Tell {
        let complete = {
            let mut receiving = locked(&self.0.receiving);
            let same =
                receiving.as_ref().is_some_and(|it| it.meta == piece.meta && it.vote == piece.vote);
            if !same {
                let (meta, vote) = (piece.meta.clone(), piece.vote);
                *receiving = Some(Receiving { meta, vote, bytes: Vec::new() });
            }
            let Some(it) = receiving.as_mut() else { return Tell::Failed };
            if piece.total > 2 * SNAPSHOT_MAX as u64 {
                *receiving = None;
                return Tell::Failed;
            }
            if piece.offset == it.bytes.len() as u64 {
                it.bytes.extend_from_slice(&piece.bytes);
            }
            let have = it.bytes.len() as u64;
            if have < piece.total {
                return Tell::Have(have);
            }
            receiving.take()
        };
        let Some(Receiving { meta, vote, bytes }) = complete else { return Tell::Failed };
        let snapshot = Snapshot { meta, snapshot: Box::new(bytes) };
        match self.0.raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => Tell::Installed(response.vote),
            Err(_) => Tell::Failed,
        }
    }

    /// Carries out a command as the leader, who says when it was and whose.
    async fn lead(&self, from: RaftId, command: Command) -> Tell {
        self.write(Command { from, ..command }).await
    }

    /// Has a command carried out as the leader.
    pub(crate) async fn write(&self, command: Command) -> Tell {
        let Some(now) = self.clock() else { return Tell::NotLeader(self.leader()) };
        let command = Command { now, ..command };
        match timeout(ATTEMPT, self.0.raft.client_write(command)).await {
            Ok(Ok(done)) => Tell::Answer { index: done.log_id.index, answer: done.data.0 },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Tell::NotLeader(forward.leader_id)
            }
            _ => Tell::Failed,
        }
    }

    async fn read_index(&self) -> Tell {
        match timeout(ATTEMPT, self.0.raft.get_read_log_id()).await {
            Ok(Ok((index, _))) => Tell::ReadIndex(index.map_or(0, |id| id.index)),
            Ok(Err(_)) => Tell::NotLeader(self.leader()),
            Err(_) => Tell::Failed,
        }
    }

    /// Milliseconds since this node's start.
    pub(crate) fn local_time(&self) -> Millis {
        millis(self.0.started.elapsed())
    }

    /// The group's clock, if this node leads.
    pub(crate) fn clock(&self) -> Option<Millis> {
        let term = {
            let metrics = self.0.raft.metrics();
            let metrics = metrics.borrow();
            if metrics.state != ServerState::Leader {
                return None;
            }
            metrics.current_term
        };
        let mut clock = locked(&self.0.clock);
        if clock.is_none_or(|clock| clock.term != term) {
            let base = self.look(State::now);
            *clock = Some(Clock { term, base, since: Instant::now() });
        }
        clock.map(|clock| clock.base + millis(clock.since.elapsed()))
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<u64> {
        self.0.raft.metrics().borrow().current_leader
    }

    pub fn is_leader(&self) -> bool {
        self.0.raft.metrics().borrow().state == ServerState::Leader
    }

    /// The term and the leader in it, if this node leads it.
    pub fn term(&self) -> u64 {
        self.0.raft.metrics().borrow().current_term
    }

    /// Index of the last entry of the log that this node has applied.
    pub fn applied(&self) -> u64 {
        self.0.state.changes().get()
    }

    /// The voters; two sets while they are being changed.
    pub fn voters(&self) -> Vec<BTreeSet<u64>> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_joint_config().clone()
    }

    /// All nodes that get the log, and whether they vote.
    pub fn members(&self) -> BTreeMap<u64, bool> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        membership.nodes().map(|(node, _)| (*node, voters.contains(node))).collect()
    }

    pub(crate) fn with_contact<T>(&self, work: impl FnOnce(&mut Contact) -> T) -> T {
        work(&mut locked(&self.0.contact))
    }

    /// Asks the leader until there is an answer: `here` if that is this node.
    async fn ask_leader<T>(
        &self,
        ask: impl Fn() -> Ask,
        wanted: impl Fn(Tell) -> Result<T, Option<RaftId>>,
        patience: Duration,
    ) -> Result<T, Unavailable> {
        let until = Instant::now() + patience;
        let mut hint = None;
        let mut next_peer = 0;
        let asking = async {
            loop {
                let known = hint.take().or_else(|| self.leader());
                let to = known.unwrap_or_else(|| {
                    next_peer += 1;
                    let peers = locked(&self.0.peers);
                    peers.get(next_peer % peers.len().max(1)).copied().unwrap_or(self.node())
                });
                let tell = if to == self.node() {
                    Some(self.serve(to, ask()).await)
                } else {
                    // Whoever led, or is asked who leads, may be dead: no need to wait for it when another does.
                    let is_open = self.leader().is_none_or(|leader| leader == to);
                    tokio::select! {
                        biased;
                        tell = self.0.network.ask(to, ask(), ATTEMPT) => tell,
                        () = self.replaced(to), if is_open => None,
                    }
                };
                match wanted(tell.unwrap_or(Tell::Failed)) {
                    Ok(answer) => return answer,
                    Err(leader) => hint = leader.filter(|leader| *leader != to),
                }
                sleep(AGAIN).await;
            }
        };
        timeout_at(until, asking).await.map_err(|_| Unavailable)
    }

    /// Waits until somebody else leads.
    async fn replaced(&self, leader: RaftId) {
        let other = |current| (current != 0 && current != leader).then_some(());
        self.0.leader.find(other).await;
    }

    /// Has a command carried out. Gives its answer and its place in the log.
    ///
    /// It is sent again until there is an answer; commands with a number in their session happen once.
    ///
    /// # Errors
    /// No answer in time: the command may have happened, or may happen yet.
    pub async fn submit(
        &self,
        client: ClientId,
        sequence: u64,
        acked: u64,
        op: Op,
        patience: Duration,
    ) -> Result<(u64, Answer), Unavailable> {
        let command = Command { client, sequence, acked, ..Command::alone(op) };
        self.ask_leader(|| Ask::Submit(command.clone()), answer, patience).await
    }

    /// Gives a sign of life of a session. An answer may take an eighth of its time, or 250 ms, as it waits for others.
    ///
    /// # Errors
    /// No answer in time: it may have been heard.
    pub async fn keep_alive(
        &self,
        client: ClientId,
        patience: Duration,
    ) -> Result<Result<(), Refusal>, Unavailable> {
        let (_, answer) = self.ask_leader(|| Ask::Alive(client), answer, patience).await?;
        Ok(answer.map(drop))
    }

    /// Looks at the state as it is now in the whole group: nothing that was answered before is missing.
    ///
    /// # Errors
    /// There is no majority that would know.
    pub async fn read<T>(
        &self,
        look: impl FnOnce(&State) -> T,
        patience: Duration,
    ) -> Result<T, Unavailable> {
        let until = Instant::now() + patience;
        let wanted = |tell| match tell {
            Tell::ReadIndex(index) => Ok(index),
            Tell::NotLeader(leader) => Err(leader),
            _ => Err(None),
        };
        let index = self.ask_leader(|| Ask::ReadIndex, wanted, patience).await?;
        timeout_at(until, self.reach(index)).await.map_err(|_| Unavailable)?;
        Ok(self.look(look))
    }

    /// Waits until this node has applied the log up to an index.
    pub async fn reach(&self, index: u64) {
        self.0.state.changes().find(|applied| (applied >= index).then_some(())).await;
    }

    /// Looks at the state as this node has it: perhaps not the latest. `look` must not look again.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.0.state.look(look)
    }

    /// Waits until `look` finds something in this node's state.
    pub async fn wait<T>(&self, mut look: impl FnMut(&State) -> Option<T>) -> T {
        self.0.state.changes().find(|_| self.look(&mut look)).await
    }

    /// Whether this node may act for the cluster.
    pub fn fence(&self) -> watch::Receiver<crate::fence::Fence> {
        self.0.fence.subscribe()
    }
}
