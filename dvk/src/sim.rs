//! `Sim`: a whole cluster in one thread, from one seed: kernels, servers, programs, and everything that can go wrong.
//!
//! Kernels, lanes and servers are the real ones; the simulator stands for what is around them: the daemon
//! (`sim::node`), the server's process and its disk (`sim::service`, `sim::disk`), the wires
//! (`sim::network`), the programs and the client half of M3-IPC (`sim::process`), clocks and dice.
//!
//! Links break and lose what is under way, connections are made anew, directions fall silent,
//! servers and programs are killed at any point of their work, nodes crash and start again, signals interrupt calls. After
//! [`Faults::until`] everything heals, and every program must come to its end.

mod disk;
#[cfg(test)]
mod moves;
mod network;
mod node;
mod peer;
mod process;
mod random;
mod seeds;
mod service;
pub(crate) mod system_group;
#[cfg(test)]
mod tests;

pub use disk::CrashStore;
pub use process::{Ended, Program, Step};
pub use random::Random;
pub use seeds::{SEED, SEEDS, check_seeds};

use crate::frame::Track;
use crate::kernel::{Asker, Dc, Kernel, LinkId, NodeState};
use crate::lanes::LANE_PREFIX;
use crate::server::{Nanos, Server};
use crate::store::Store;
use bytes::Bytes;
use m3ipc::{CallId, Cred, Endpoint, Message, NodeId, Tag};
use network::{Side, Wire};
use node::{Ask, Node};
use peer::Peer;
use process::{Process, Told};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use system_group::{Group, Proposal};

pub const MICROSECOND: Nanos = 1_000;
pub const MILLISECOND: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000_000_000;

/// Makes server `number` from its store, as the server's `main` does.
pub type Factory = fn(number: u32, store: &mut dyn Store) -> Box<dyn Server>;

/// What goes wrong, and how often. Times and places are the dice's.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Nothing new goes wrong after that. A silence may last longer.
    pub until: Nanos,
    /// Connections that break.
    pub breaks: u64,
    /// Silences of a link, one way or both ways, and how long at most.
    pub silences: u64,
    pub silence_max: Nanos,
    /// Nodes that nobody hears, or that hear nobody, or both, as long as `silence_max` says.
    pub cuts: u64,
    pub server_kills: u64,
    pub process_kills: u64,
    pub peer_kills: u64,
    /// Nodes that stop with everything on them, and start again.
    pub node_crashes: u64,
    /// Does what is not synced get lost when a node crashes?
    pub power_fails: bool,
    /// Calls in 1 000 that a signal interrupts.
    pub signals: u64,
    /// Frames in 1 000 that arrive twice.
    pub doubles: u64,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Faults = Faults {
        until: 0,
        breaks: 0,
        silences: 0,
        silence_max: 0,
        cuts: 0,
        server_kills: 0,
        process_kills: 0,
        peer_kills: 0,
        node_crashes: 0,
        power_fails: false,
        signals: 0,
        doubles: 0,
    };
}

/// After the last fault everything must end within this time: a migration that nobody goes on with, a node given up
/// and found again, a server's wait, a slow start, and the programs' own work.
const PATIENCE: Nanos = crate::limits::MIGRATION_MAX + 120 * SECOND;

/// Bytes of a message's arguments.
const ARGS: usize = m3ipc::message::ARGS_SIZE;

/// Events of one run at most: what comes here spins.
const EVENTS_MAX: u64 = 3_000_000;

/// A simulated cluster.
pub struct Sim {
    random: Random,
    now: Nanos,
    queue: BTreeMap<(Nanos, u64), Event>,
    /// Numbers everything that needs one: events, connections, processes, instances.
    count: u64,
    events: u64,
    faults: Faults,
    dc: Dc,
    factory: Factory,
    nodes: BTreeMap<NodeId, Node>,
    disks: BTreeMap<u32, CrashStore>,
    processes: BTreeMap<u32, Process>,
    peers: BTreeMap<u32, Peer>,
    /// How often each request, told apart by its arguments, has been received by a peer.
    received: BTreeMap<[u8; ARGS], u32>,
    wires: BTreeMap<LinkId, Wire>,
    group: Group,
    /// Directions in which nothing arrives before that time.
    silent: BTreeMap<(NodeId, NodeId), Nanos>,
    /// What must not happen and did.
    wrong: Vec<String>,
    log: Option<Vec<String>>,
    pub stats: Stats,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub calls: u64,
    pub frames: u64,
    pub links: u64,
    /// Bulk frames that came before small ones that had been sent before them.
    pub held: u64,
    pub rounds: u64,
    pub server_kills: u64,
    pub process_kills: u64,
    pub node_crashes: u64,
    /// How often a node gave another up, in the last incarnation of each. With `node_crashes` it says whether
    /// a call may have ended without its server's answer, and what somebody held may have been taken from them.
    pub given_up: u64,
    /// How often the group took a node for down (who was there may have been taken over), and looks at which a node was
    /// fenced when it should long have signed on (nobody waits until it knows where others are).
    pub taken_for_down: u64,
    pub fenced: u64,
}

/// Something that will happen.
#[derive(Debug)]
enum Event {
    /// A kernel's deadline.
    Tick {
        node: NodeId,
        incarnation: u64,
    },
    StartNode(NodeId),
    Connect {
        from: NodeId,
        to: NodeId,
    },
    Accept(LinkId),
    HelloTimeout(LinkId),
    Arrive {
        link: LinkId,
        at: Side,
        track: Track,
        bytes: Bytes,
    },
    /// One side notices that the connection is gone.
    Notice {
        link: LinkId,
        at: Side,
    },

    StartServer {
        node: NodeId,
        number: u32,
        incarnation: u64,
    },
    Round {
        node: NodeId,
        number: u32,
        instance: u64,
    },
    /// The daemon looks at what a server has answered it.
    ReadAnswers {
        node: NodeId,
        number: u32,
        instance: u64,
    },
    NoticeServerDeath {
        node: NodeId,
        incarnation: u64,
        dead: service::Dead,
        number: u32,
    },

    SpawnPeer {
        pid: u32,
    },
    PeerLook {
        pid: u32,
    },
    PeerAnswer {
        pid: u32,
        call: CallId,
    },
    PeerRead {
        pid: u32,
    },
    PeerStopped {
        node: NodeId,
        incarnation: u64,
        pid: u32,
    },
    NoticePeerDeath {
        node: NodeId,
        incarnation: u64,
        pid: u32,
    },

    Spawn {
        pid: u32,
    },
    Think {
        pid: u32,
        thread: usize,
    },
    /// A record from a process, or from a server's process, reaches the daemon.
    Asked {
        node: NodeId,
        incarnation: u64,
        pid: u32,
        ask: Ask,
    },
    /// A record from the daemon reaches a process.
    Told {
        pid: u32,
        told: Told,
    },
    /// The daemon, as proxy, looks at a lane.
    ReadLane {
        pid: u32,
        thread: usize,
        tag: Tag,
    },
    Cancel {
        pid: u32,
        thread: usize,
        tag: Tag,
    },
    /// A thread wakes up: its lane has an answer, or the channel is closed.
    Wake {
        pid: u32,
        thread: usize,
        tag: Tag,
    },
    Signal {
        pid: u32,
        thread: usize,
        tag: Tag,
    },
    NoticeDeath {
        node: NodeId,
        incarnation: u64,
        pid: u32,
    },

    BreakLink,
    Silence,
    CutOff,
    KillServer,
    KillProcess,
    KillPeer,
    CrashNode,

    LookAtGroup,
    /// A node hears of what the group has decided.
    Learn(NodeId),
    /// The group hears of a proposal, and its node that it is refused.
    Propose(Proposal),
    Unplaced(Proposal),
}

impl Sim {
    /// A cluster of the nodes of `dc`, which all start now. Nothing goes wrong before [`Sim::begin`].
    pub fn new(seed: u64, dc: Dc, factory: Factory) -> Sim {
        let mut sim = Sim {
            random: Random::new(seed),
            now: 0,
            queue: BTreeMap::new(),
            count: 0,
            events: 0,
            faults: Faults::NONE,
            nodes: dc.nodes.iter().map(|node| (*node, Node::default())).collect(),
            disks: dc.servers.keys().map(|number| (*number, CrashStore::default())).collect(),
            dc,
            factory,
            processes: BTreeMap::new(),
            peers: BTreeMap::new(),
            received: BTreeMap::new(),
            wires: BTreeMap::new(),
            group: Group::default(),
            silent: BTreeMap::new(),
            wrong: Vec::new(),
            log: None,
            stats: Stats::default(),
        };
        let nodes: Vec<NodeId> = sim.dc.nodes.iter().copied().collect();
        for node in nodes {
            sim.after(0, 50 * MILLISECOND, Event::StartNode(node));
        }
        sim.look_at_group();
        sim
    }

    /// From now on things go wrong, until `faults.until` after now.
    pub fn begin(&mut self, faults: Faults) {
        self.faults = Faults { until: self.now + faults.until, ..faults };
        for (count, event) in [
            (faults.breaks, (|| Event::BreakLink) as fn() -> Event),
            (faults.silences, || Event::Silence),
            (faults.cuts, || Event::CutOff),
            (faults.server_kills, || Event::KillServer),
            (faults.process_kills, || Event::KillProcess),
            (faults.peer_kills, || Event::KillPeer),
            (faults.node_crashes, || Event::CrashNode),
        ] {
            for _ in 0..count {
                self.after(0, faults.until, event());
            }
        }
    }

    /// Keeps a record of all that happens, for [`Sim::log`].
    pub fn keep_log(&mut self) {
        self.log = Some(Vec::new());
    }

    pub fn log(&self) -> &[String] {
        self.log.as_deref().unwrap_or_default()
    }

    /// A process with these threads starts on `node` after `after`, or as soon as the node is up. It dies
    /// when all its threads have come to their end, or when it is killed.
    pub fn spawn(
        &mut self,
        after: Nanos,
        node: NodeId,
        cred: Cred,
        threads: Vec<Box<dyn Program>>,
    ) {
        let pid = self.next_pid();
        self.processes.insert(pid, Process::new(node, cred, threads));
        self.at(self.now + after, Event::Spawn { pid });
    }

    /// Lets time run until every process is gone and everything has come to rest.
    ///
    /// # Errors
    /// What must not happen: a call that ended twice or never, something left behind.
    pub fn run(&mut self) -> Result<(), String> {
        let end = self.now.max(self.faults.until) + PATIENCE;
        loop {
            while !self.is_finished() {
                if self.processes.is_empty() && self.now >= self.faults.until {
                    self.end_peers();
                }
                self.next_event(end)?;
            }
            // Deaths are told, servers look at them.
            let rest = self.now + 2 * SECOND;
            while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= rest) {
                self.next_event(end)?;
            }
            if self.is_finished() {
                break;
            }
        }
        self.stats.given_up =
            self.nodes.values().filter_map(|node| node.kernel.as_ref()).map(given_up).sum();
        self.check_rest()
    }

    /// After [`Sim::run`]: a process on `node` makes one call.
    ///
    /// # Errors
    /// As `run`.
    pub fn ask(
        &mut self,
        node: NodeId,
        to: Endpoint,
        message: Message,
        payload: &[u8],
    ) -> Result<(Message, Vec<u8>), String> {
        let answer = Rc::new(RefCell::new(None));
        let asker = process::OneCall::new(to, message, payload.to_vec(), answer.clone());
        self.spawn(0, node, Cred::ROOT, vec![Box::new(asker)]);
        self.run()?;
        answer.take().ok_or_else(|| "the asker was killed".to_owned())
    }

    /// The disk of a server.
    pub fn disk(&self, number: u32) -> Option<&CrashStore> {
        self.disks.get(&number)
    }

    pub fn now(&self) -> Nanos {
        self.now
    }

    /// All is done, and all that crashed is back.
    fn is_finished(&self) -> bool {
        let is_linked = |node: &Node| {
            node.kernel.as_ref().is_some_and(|kernel| {
                kernel.nodes().all(|info| matches!(info.state, NodeState::Up { .. }))
            })
        };
        let serves =
            |(number, home): (&u32, &NodeId)| self.nodes[home].services.contains_key(number);
        self.now >= self.faults.until
            && self.processes.is_empty()
            && self.peers.is_empty()
            && self.nodes.values().all(is_linked)
            && self.dc.servers.iter().all(serves)
    }

    fn next_event(&mut self, end: Nanos) -> Result<(), String> {
        let Some(((at, _), event)) = self.queue.pop_first() else {
            return Err(self.stuck("nothing more will happen"));
        };
        self.now = at;
        self.events += 1;
        if at > end || self.events > EVENTS_MAX {
            return Err(self.stuck("time is over"));
        }
        if self.log.is_some() {
            self.note(format!("{event:?}"));
        }
        self.happen(event);
        match self.wrong.is_empty() {
            true => Ok(()),
            false => Err(self.wrong.join("\n")),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { node, incarnation } => self.tick(node, incarnation),
            Event::StartNode(node) => self.start_node(node),
            Event::Connect { from, to } => self.connect(from, to),
            Event::Accept(link) => self.accept(link),
            Event::HelloTimeout(link) => self.hello_timeout(link),
            Event::Arrive { link, at, track, bytes } => self.arrive(link, at, track, &bytes),
            Event::Notice { link, at } => self.notice(link, at),
            Event::StartServer { node, number, incarnation } => {
                self.start_server(node, number, incarnation)
            }
            Event::Round { node, number, instance } => self.round(node, number, instance),
            Event::ReadAnswers { node, number, instance } => {
                self.read_answers(node, number, instance)
            }
            Event::NoticeServerDeath { node, incarnation, dead, number } => {
                self.notice_server_death(node, incarnation, dead, number);
            }
            Event::SpawnPeer { pid } => self.start_peer(pid),
            Event::PeerLook { pid } => self.peer_looks(pid),
            Event::PeerAnswer { pid, call } => self.peer_answers(pid, call),
            Event::PeerRead { pid } => self.read_peer(pid),
            Event::PeerStopped { node, incarnation, pid } => {
                self.peer_stopped(node, incarnation, pid)
            }
            Event::NoticePeerDeath { node, incarnation, pid } => {
                self.notice_peer_death(node, incarnation, pid);
            }
            Event::Spawn { pid } => self.start_process(pid),
            Event::Think { pid, thread } => self.think(pid, thread),
            Event::Asked { node, incarnation, pid, ask } => self.asked(node, incarnation, pid, ask),
            Event::Told { pid, told } => self.told(pid, told),
            Event::ReadLane { pid, thread, tag } => self.read_lane(pid, thread, tag),
            Event::Cancel { pid, thread, tag } => self.read_cancel(pid, thread, tag),
            Event::Wake { pid, thread, tag } => self.wake(pid, thread, tag),
            Event::Signal { pid, thread, tag } => self.signal(pid, thread, tag),
            Event::NoticeDeath { node, incarnation, pid } => {
                self.notice_death(node, incarnation, pid)
            }
            Event::BreakLink => self.break_link(),
            Event::Silence => self.fall_silent(),
            Event::CutOff => self.cut_off_some_node(),
            Event::KillServer => self.kill_some_server(),
            Event::KillProcess => self.kill_some_process(),
            Event::KillPeer => self.kill_some_peer(),
            Event::CrashNode => self.crash_some_node(),
            Event::LookAtGroup => self.look_at_group(),
            Event::Learn(node) => self.learn(node),
            Event::Propose(proposal) => self.proposed(proposal),
            Event::Unplaced(proposal) => self.unplaced(proposal),
        }
    }

    fn kill_some_process(&mut self) {
        let alive: Vec<u32> = self
            .processes
            .iter()
            .filter(|(_, process)| process.is_alive)
            .map(|(pid, _)| *pid)
            .collect();
        if !alive.is_empty() {
            self.stats.process_kills += 1;
            let pid = alive[self.random.index(alive.len())];
            self.kill_process(pid);
        }
    }

    /// Nothing may be left of all the calls and processes, neither in a kernel nor in a server nor in its store.
    fn check_rest(&mut self) -> Result<(), String> {
        let mut left = Vec::new();
        for (id, node) in &self.nodes {
            let Some(kernel) = &node.kernel else { continue };
            for info in kernel.nodes() {
                if info.calls_in + info.calls_out > 0 || !matches!(info.state, NodeState::Up { .. })
                {
                    left.push(format!("{id:?} has of {info:?}"));
                }
            }
            let own: BTreeSet<Endpoint> =
                kernel.servers(self.dc.id).filter_map(|server| server.bound).collect();
            left.extend(
                kernel
                    .endpoints(self.dc.id)
                    .filter(|info| !own.contains(&info.endpoint))
                    .map(|info| format!("{info:?}")),
            );
            if kernel.own_call_count() > 0 {
                left.push(format!("{id:?} has {} calls of its own", kernel.own_call_count()));
            }
            if kernel.await_count() > 0 {
                left.push(format!("{id:?} has {} questions", kernel.await_count()));
            }
            for (number, service) in &node.services {
                let lanes = self.disks.get(number).map_or(0, |disk| disk.keys(&LANE_PREFIX));
                let open = service.open_count();
                if open + lanes > 0 {
                    left.push(format!(
                        "server {number} has {open} open calls, {lanes} kept answers"
                    ));
                }
            }
        }
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join("; "))) }
    }

    fn stuck(&mut self, why: &str) -> String {
        let waiting: Vec<String> =
            self.processes.iter().map(|(pid, process)| format!("{pid}: {process:?}")).collect();
        let kernels: Vec<String> =
            self.nodes.iter().map(|(id, node)| format!("{id:?}: {}", node.describe())).collect();
        format!(
            "{why} at {} ms, and not all are done:\n{}\n{}",
            self.now / MILLISECOND,
            waiting.join("\n"),
            kernels.join("\n")
        )
    }

    /// Something that must not happen.
    fn wrong(&mut self, what: String) {
        self.note(format!("WRONG: {what}"));
        self.wrong.push(format!("at {} µs: {what}", self.now / MICROSECOND));
    }

    fn note(&mut self, what: String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{:>12} {what}", now / MICROSECOND));
        }
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn next_pid(&mut self) -> u32 {
        u32::try_from(self.number()).expect("fewer than EVENTS_MAX numbers")
    }

    fn asker(&mut self) -> Asker {
        Asker(self.number())
    }

    fn at(&mut self, at: Nanos, event: Event) {
        let number = self.number();
        // Events of the same time happen in any order.
        let order = self.random.next() << 32 | number;
        self.queue.insert((at.max(self.now), order), event);
    }

    /// Happens after between `least` and `most`.
    fn after(&mut self, least: Nanos, most: Nanos, event: Event) {
        let delay = self.random.between(least, most);
        self.at(self.now + delay, event);
    }

    /// Happens soon: a wake-up, a record through a socket. Mostly microseconds, sometimes a busy CPU.
    fn soon(&mut self, event: Event) {
        let most = if self.random.chance(20) { 20 * MILLISECOND } else { 100 * MICROSECOND };
        self.after(MICROSECOND, most, event);
    }
}

fn given_up(kernel: &Kernel) -> u64 {
    kernel.nodes().map(|info| info.epoch).sum()
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim")
            .field("now", &self.now)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
