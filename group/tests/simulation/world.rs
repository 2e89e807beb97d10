//! A cluster of one seed: nodes that crash and come back, and what must be true at every step.

use crate::network::{Network, Port};
use crate::random::Random;
use group::command::ClientId;
use group::disk::MemoryDisk;
use group::fence::Fence;
use group::state::State;
use group::{Config, Group};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Time after which the group takes a silent node for down.
pub(crate) const LEASE: u64 = 2000;

pub(crate) struct World {
    pub(crate) network: Arc<Network>,
    pub(crate) size: u64,
    /// The voters that the group begins with.
    voters: u64,
    /// When a voter that is down is replaced.
    gone: Duration,
    inner: Mutex<Inner>,
}

struct Inner {
    random: Random,
    steps: u64,
    starts: u64,
    on: BTreeMap<u64, Running>,
    /// Disks of those that are off.
    disks: BTreeMap<u64, Arc<MemoryDisk>>,
    violations: Vec<String>,
    /// Who got each token of a lock and each epoch of an election.
    tokens: BTreeMap<u64, (String, ClientId)>,
    /// Leaders of the group itself, by term.
    leaders: BTreeMap<u64, u64>,
    pub(crate) crashes: u64,
}

struct Running {
    group: Group,
    disk: Arc<MemoryDisk>,
    fence: watch::Receiver<Fence>,
}

impl World {
    /// A cluster whose voters stay who they are.
    pub(crate) async fn start(seed: u64, size: u64) -> Arc<World> {
        World::start_with(seed, size, size.min(5), Duration::from_secs(3600)).await
    }

    pub(crate) async fn start_with(
        seed: u64,
        size: u64,
        voters: u64,
        gone: Duration,
    ) -> Arc<World> {
        group::seed(seed);
        let world = Arc::new(World {
            network: Network::new(seed),
            size,
            voters,
            gone,
            inner: Mutex::new(Inner {
                random: Random::new(seed ^ 0xc0ffee),
                steps: 0,
                starts: 0,
                on: BTreeMap::new(),
                disks: BTreeMap::new(),
                violations: Vec::new(),
                tokens: BTreeMap::new(),
                leaders: BTreeMap::new(),
                crashes: 0,
            }),
        });
        for node in 1..=size {
            world.turn_on(node).await;
        }
        world
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap())
    }

    pub(crate) fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        self.with(|inner| draw(&mut inner.random))
    }

    /// Numbers calls and returns: what is numbered earlier was earlier.
    pub(crate) fn step(&self) -> u64 {
        self.with(|inner| {
            inner.steps += 1;
            inner.steps
        })
    }

    pub(crate) fn on(&self) -> Vec<u64> {
        self.with(|inner| inner.on.keys().copied().collect())
    }

    pub(crate) fn group(&self, node: u64) -> Option<Group> {
        self.with(|inner| inner.on.get(&node).map(|running| running.group.clone()))
    }

    /// Some node that is on.
    pub(crate) fn any(&self) -> Option<Group> {
        let node = self.with(|inner| {
            let on: Vec<u64> = inner.on.keys().copied().collect();
            inner.random.pick(&on)
        });
        node.and_then(|node| self.group(node))
    }

    pub(crate) fn violation(&self, what: String) {
        self.with(|inner| inner.violations.push(what));
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.with(|inner| inner.violations.clone())
    }

    pub(crate) fn crashes(&self) -> u64 {
        self.with(|inner| inner.crashes)
    }

    pub(crate) async fn turn_on(self: &Arc<World>, node: u64) {
        let (start, disk) = self.with(|inner| {
            inner.starts += 1;
            (inner.starts, inner.disks.remove(&node).unwrap_or_default())
        });
        let port = Port { network: self.network.clone(), node, start };
        let mut config = Config::new(node, (1..=self.voters).collect());
        config.lease = LEASE;
        config.snapshot_each = 60;
        config.gone = self.gone;
        let group = Group::start(config, disk.clone(), Arc::new(port)).await.unwrap();
        self.network.turn_on(node, start, group.clone());
        let running = Running { group: group.clone(), disk, fence: group.fence() };
        self.with(|inner| inner.on.insert(node, running));
        let world = self.clone();
        tokio::spawn(async move {
            group.wait(|state| world.check(&group, state)).await;
        });
    }

    /// A power failure: what is not synced may be lost.
    pub(crate) fn crash(&self, node: u64) {
        let running = self.with(|inner| {
            inner.crashes += 1;
            inner.on.remove(&node)
        });
        let Some(running) = running else { return };
        self.network.turn_off(node);
        let kept = usize::try_from(self.random(|random| random.below(4))).unwrap();
        let disk = running.disk.crash(kept);
        self.with(|inner| inner.disks.insert(node, Arc::new(disk)));
        tokio::spawn(async move { running.group.stop().await });
    }

    /// What must be true whenever a node's state has changed. Ends the watch of a node that is off.
    fn check(&self, group: &Group, state: &State) -> Option<()> {
        if !group.is_running() {
            return Some(());
        }
        for name in ["short", "long"] {
            for (kind, holder) in
                [("lock", state.lock_holder(name)), ("leader", state.leader(name))]
            {
                if let Some(holder) = holder {
                    self.token(format!("{kind} {name}"), holder.token, holder.client);
                }
            }
        }
        if group.is_leader() {
            let (term, node) = (group.term(), group.node());
            let known = self.with(|inner| *inner.leaders.entry(term).or_insert(node));
            if known != node {
                self.violation(format!("nodes {known} and {node} lead in term {term}"));
            }
        }
        for (node, fence) in self.fences() {
            let Fence::Up { client, epoch, .. } = fence else { continue };
            let number = u16::try_from(node).unwrap();
            let up = state.node(number).and_then(|node| node.up).map(|(client, _)| client);
            // A state that is older than the node's signing on says nothing.
            if state.membership_epoch() >= epoch && up != Some(client) {
                self.violation(format!("node {node} is taken for down and does not know"));
            }
        }
        None
    }

    fn fences(&self) -> Vec<(u64, Fence)> {
        self.with(|inner| {
            inner.on.iter().map(|(node, running)| (*node, *running.fence.borrow())).collect()
        })
    }

    /// A token belongs to one holder of one thing for ever, and those of one thing grow in the order in which
    /// they were given: a client that says so later must have had it earlier.
    pub(crate) fn token(&self, of: String, token: u64, client: ClientId) {
        let holder = (of, client);
        let known = self.with(|inner| inner.tokens.entry(token).or_insert(holder.clone()).clone());
        if known != holder {
            self.violation(format!("token {token} is that of {known:?} and of {holder:?}"));
        }
    }
}
