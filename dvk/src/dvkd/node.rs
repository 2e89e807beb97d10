//! The daemon's state: the kernel, and the sockets, processes and channels that carry out what it wants.
//!
//! All of it is under one lock. Whatever happens (a packet at the door, a frame, a request on a channel) is
//! stepped through the kernel and its outputs carried out at once by the thread that brought it: no message is
//! handed from thread to thread. Nothing that is done under the lock waits.

use super::admin::Counters;
use super::children::Children;
use super::config::{Config, Dc};
use super::confine::Confined;
use super::dcs::Known;
use super::directory::Proposal;
use super::door::Door;
use super::held::Held;
use super::identity::Identity;
use super::link::{Link, Tracks};
use super::links::{Linking, Pump};
use super::load::Loads;
use super::log_limit::LogLimit;
use super::proxy::{Caller, Couriers, Proxies, Version};
use super::questions::Reserving;
use super::quota::{KeptChannel, Quota};
use super::sensing::Traffic;
use crate::frame::Track;
use crate::host::solo::monotonic;
use crate::kernel::{self, Asker, Input, Kernel, LinkId, Output};
use crate::limits::{
    CHANNELS_OF_USER, DESCRIPTORS_MAX, ENDPOINTS_PER_USER, FORGERIES_EVERY, FORGERIES_LOGGED,
    PROXIES_PER_USER, REFUSALS_EVERY, REFUSALS_LOGGED,
};
use crate::server::{Gone, Nanos};
use anyhow::{Context, Result};
use m3ipc::bell::{Bell, Ringer};
use m3ipc::channel::SharedChannel;
use m3ipc::door::{Tell, flag, tell};
use m3ipc::limits::CHANNELS_PER_PEER;
use m3ipc::{Cred, DcId, Endpoint, IpcError, NodeId};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zerocopy::IntoBytes;

/// What the threads of a daemon share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    /// Rung by local processes that have a request for another node, or an answer for it.
    pub(super) bell: Bell,
    pub(super) confined: Arc<Confined>,
    /// The containers that span this node.
    pub(super) dcs: Mutex<Vec<Known>>,
    pub(super) children: Mutex<Children>,
    /// Links to other nodes; `None`: this node is alone.
    pub(super) linking: Option<Linking>,
    node: Mutex<Node>,
    /// Until when the proxy thread sleeps at most.
    pub(super) sleeps_until: AtomicU64,
    /// Grows when there are other channels for the proxy thread to look at.
    pub(super) watched: Version,
    stopping: AtomicBool,
    nap: Mutex<()>,
    woken: Condvar,
    /// Bells whose owners had announced sleep but did not go on to it.
    pub(super) ring_again: Mutex<Vec<Arc<Ringer>>>,
}

/// What is under the lock.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kernel: Kernel,
    pub(super) confined: Arc<Confined>,
    out: Vec<Output>,
    pub(super) door: Door,
    /// Processes that are bound on this node.
    pub(super) processes: BTreeMap<Place, Process>,
    /// Those at each pid.
    by_pid: BTreeMap<(DcId, u32), Endpoint>,
    per_user: BTreeMap<(DcId, u32), usize>,
    /// What those of each user lend.
    pub(super) lent_per_user: BTreeMap<(DcId, u32), usize>,
    pub(super) channels_per_user: Quota,
    pub(super) proxies_per_user: Quota,
    pub(super) proxies: Proxies,
    pub(super) couriers: Couriers,
    pub(super) links: BTreeMap<LinkId, Tracks>,
    /// The links that are read.
    pub(super) pumps: BTreeMap<LinkId, Pump>,
    next_link: u64,
    /// Processes that administrators bind, by who has asked.
    pub(super) reserving: BTreeMap<Asker, Reserving>,
    /// What the group is to be asked for, when the lock is free.
    proposals: Vec<Proposal>,
    /// Large messages that wait for a node.
    pub(super) held: Held,
    /// Links with something new to write, when the lock is free.
    unflushed: Vec<Arc<Link>>,
    /// To be rung when the lock is free.
    rings: Vec<Arc<Ringer>>,
    pub(super) counters: Counters,
    /// What each DC has exchanged with other nodes.
    pub(super) traffic: BTreeMap<DcId, Traffic>,
    /// How busy the nodes have been.
    pub(super) loads: Loads,
    /// Frames that a node may not send, and news of links: how much of it may be in the log.
    forgeries: LogLimit,
    pub(super) link_news: LogLimit,
    /// This daemon's own bell, for those with whom it has channels.
    bell: Arc<OwnedFd>,
}

/// A process of this node.
pub(super) type Place = (DcId, Endpoint);

/// A bound process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// In its own pid namespace.
    pub(super) inner_pid: u32,
    pub(super) uid: u32,
    /// The door's number for its pidfd.
    watch: u64,
    /// If it receives: the connection it keeps, and its bell.
    pub(super) receiver: Option<Receiver>,
    /// Channels on which it is the receiver, by requester.
    pub(super) channels: BTreeMap<Endpoint, Vec<KeptChannel>>,
    /// Receivers of this node with which it has channels.
    peers: BTreeSet<Endpoint>,
    /// Memory that it lends, by its own numbers: who may map it.
    pub(super) lent: BTreeMap<u64, (Endpoint, Arc<OwnedFd>)>,
}

/// The receiving side of a process.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    pub(super) connection: u64,
    pub(super) bell: Arc<OwnedFd>,
    pub(super) ringer: Arc<Ringer>,
    /// Does it understand channels that speak for many?
    pub(super) takes_trusted: bool,
    /// Does it claim what it receives?
    pub(super) is_rendezvous: bool,
    /// Notifications that it has been told of.
    pub(super) told: u64,
}

impl Shared {
    /// The first `configured` containers of the configuration are its own; all members agree on the others.
    pub(super) fn new(
        config: Config,
        configured: usize,
        linking: Option<Linking>,
        kernel: Kernel,
        door: Door,
    ) -> Result<Shared> {
        let (bell, descriptor) =
            Bell::create().map_err(|error| anyhow::anyhow!("cannot make a bell: {error:?}"))?;
        bell.beware();
        let watched = Version::default();
        let confined = Arc::<Confined>::default();
        let node = Node {
            kernel,
            confined: Arc::clone(&confined),
            out: Vec::new(),
            door,
            processes: BTreeMap::new(),
            by_pid: BTreeMap::new(),
            per_user: BTreeMap::new(),
            lent_per_user: BTreeMap::new(),
            channels_per_user: Quota::new(channels_of_user()),
            proxies_per_user: Quota::new(PROXIES_PER_USER),
            proxies: Proxies::new(watched.clone()),
            couriers: Couriers::new(watched.clone()),
            links: BTreeMap::new(),
            pumps: BTreeMap::new(),
            next_link: 1,
            reserving: BTreeMap::new(),
            proposals: Vec::new(),
            held: Held::default(),
            unflushed: Vec::new(),
            rings: Vec::new(),
            counters: Counters::default(),
            traffic: BTreeMap::new(),
            loads: Loads::default(),
            forgeries: LogLimit::new(FORGERIES_LOGGED, FORGERIES_EVERY),
            link_news: LogLimit::new(REFUSALS_LOGGED, REFUSALS_EVERY),
            bell: Arc::new(descriptor),
        };
        let is_linked = linking.is_some();
        let dcs = config.dcs.iter().enumerate();
        let dcs = dcs.map(|(at, dc)| Known { dc: dc.clone(), is_agreed: at >= configured });
        let shared = Shared {
            dcs: Mutex::new(dcs.collect()),
            children: Mutex::default(),
            config,
            linking,
            confined,
            bell,
            node: Mutex::new(node),
            sleeps_until: AtomicU64::new(0),
            watched,
            stopping: AtomicBool::new(false),
            nap: Mutex::default(),
            woken: Condvar::new(),
            ring_again: Mutex::default(),
        };
        if is_linked {
            // Until it has signed on with the group, it may be cut off, or taken for its last life.
            let up = BTreeMap::new();
            shared.with(|node| node.step(Input::Standing { until: 0, up: &up }));
        }
        Ok(shared)
    }

    /// The containers that span this node now.
    pub(super) fn dcs(&self) -> Vec<Dc> {
        self.known().into_iter().map(|known| known.dc).collect()
    }

    /// The same, and how they came to be.
    pub(super) fn known(&self) -> Vec<Known> {
        self.dcs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Sleeps, unless the daemon stops.
    pub(super) fn nap(&self, time: Duration) {
        let guard = self.nap.lock().unwrap_or_else(PoisonError::into_inner);
        let awake = self.woken.wait_timeout_while(guard, time, |()| !self.is_stopping());
        drop(awake.unwrap_or_else(PoisonError::into_inner));
    }

    /// Makes all threads end.
    pub(super) fn halt(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(self.nap.lock().unwrap_or_else(PoisonError::into_inner));
        self.woken.notify_all();
        if let Some(linking) = &self.linking {
            linking.membership.stop();
        }
        self.with(|node| {
            node.door.wake();
            for link in node.links.values() {
                link.close();
            }
        });
        while !self.bell.ring() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Does something to the node, carries out what follows from it, and wakes whom it concerns.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Node) -> R) -> R {
        let mut node = self.lock();
        let result = act(&mut node);
        node.settle();
        let rings = std::mem::take(&mut node.rings);
        let unflushed = std::mem::take(&mut node.unflushed);
        let proposals = std::mem::take(&mut node.proposals);
        let deadline = node.kernel.next_deadline().unwrap_or(Nanos::MAX);
        drop(node);
        // Both may take a while, and let somebody run who then wants the lock.
        for ringer in rings {
            self.ring(ringer);
        }
        for link in unflushed {
            link.flush();
        }
        // A node without links asks for nothing.
        let system = self.linking.as_ref().map(|linking| &linking.system);
        for proposal in proposals {
            system.inspect(|system| system.directory.propose(proposal));
        }
        if deadline < self.sleeps_until.fetch_min(deadline, Ordering::SeqCst) {
            // It looks at the time again before it sleeps, so a ring that fails is no loss.
            self.bell.ring();
        }
        result
    }

    /// Rings a bell, later again if its owner does not get on.
    pub(super) fn ring(&self, ringer: Arc<Ringer>) {
        if !ringer.ring() {
            self.ring_again.lock().unwrap_or_else(PoisonError::into_inner).push(ringer);
            self.bell.ring();
        }
    }
}

impl Node {
    /// Steps the kernel. `settle` carries its outputs out.
    pub(super) fn step(&mut self, input: Input<'_>) {
        self.kernel.step(monotonic(), input, &mut self.out);
    }

    /// Carries out what the kernel wants, until it wants nothing more.
    pub(super) fn settle(&mut self) {
        loop {
            while !self.out.is_empty() {
                for output in std::mem::take(&mut self.out) {
                    self.carry_out(output);
                }
            }
            if !self.take_held() {
                return;
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Welcome { asker, dc, endpoint } => self.welcome(asker, dc, endpoint),
            Output::Refused { asker, error } => {
                self.reserving.remove(&asker);
                self.door.answer(asker, &Tell::refused(error), &[]);
            }
            Output::Done { asker, endpoint } => {
                self.reserved(asker, endpoint);
                self.door.answer(asker, &Tell::done(endpoint, &[]), &[]);
            }
            Output::Reopen { dc, endpoint } => self.reopen((dc, endpoint)),
            Output::Freeze { dc, endpoint } => self.freeze((dc, endpoint)),
            Output::CutOff { dc, endpoint } => {
                tracing::warn!(
                    dc = dc.0,
                    ?endpoint,
                    "a process does not stop although its node is fenced; it is cut off"
                );
                self.close_as_requester((dc, endpoint), IpcError::Moved);
            }
            Output::Thaw { dc, endpoint } => {
                self.tell((dc, endpoint), &Tell::new(tell::THAW, endpoint));
            }
            Output::TakeOver { dc, endpoint } => self.take_over((dc, endpoint)),
            Output::Promote { dc, backup, endpoint, inherits } => {
                self.promote(dc, backup, endpoint, inherits);
            }
            Output::Demote { dc, endpoint, backup } => self.demote(dc, endpoint, backup),
            Output::Retire { dc, to } => self.retire_proxies(dc, to),
            Output::Wake { dc, endpoint } => {
                self.tell((dc, endpoint), &Tell::new(tell::WOKEN, endpoint));
            }
            Output::Channel { asker, dc, requester, receiver, via } => {
                let opened = match via {
                    None => self.connect(asker, dc, requester, receiver),
                    Some(_) => self.connect_to_proxy(asker, dc, requester, receiver),
                };
                if let Err(error) = opened {
                    self.door.answer(asker, &Tell::refused(error), &[]);
                }
            }
            Output::CloseChannels { dc, receiver, error } => {
                self.close_channels((dc, receiver), error)
            }
            Output::Gone { dc, to, gone, number } => self.tell_gone((dc, to), gone, number),
            Output::Deliver { dc, to, cred, message, payload } => {
                self.deliver((dc, to), &cred, &message, &payload);
            }
            Output::DeliverCancel { dc, to, id } if self.is_rendezvous((dc, to)) => {
                self.withdraw((dc, to), |_, call| *call == id);
            }
            Output::DeliverCancel { dc, to, id } => {
                if let Some(ringer) = self.couriers.cancel((dc, to), id) {
                    self.rings.push(ringer);
                }
            }
            Output::DeliverNotify { dc, to, from, value } => {
                // Servers take none.
                let process = self.processes.get_mut(&(dc, to));
                let receiver = process.and_then(|process| process.receiver.as_mut());
                if let Some(receiver) = receiver.filter(|receiver| receiver.is_rendezvous) {
                    receiver.told += 1;
                    let record = Tell { number: value, ..Tell::new(tell::NOTIFY, from) };
                    self.door.tell(receiver.connection, &record, &[]);
                }
            }
            Output::AnswerLocal { dc, id, message, payload, .. } => {
                self.proxies.answer(dc, id, &message, &payload);
                self.close_retired();
            }
            Output::Send { link, track, bytes, .. } => self.send(link, track, bytes),
            Output::Propose { dc, entry, expected } => {
                self.proposals.push(Proposal { dc, entry, expected });
            }
            Output::Forged { node, dc, endpoint, forgery } => {
                self.counters.protocol_errors += 1;
                if let Some(unsaid) = self.forgeries.admit(monotonic()) {
                    tracing::warn!(
                        node = node.0,
                        dc = dc.0,
                        endpoint = ?endpoint,
                        reason = %forgery,
                        unsaid,
                        "a frame is refused"
                    );
                }
            }
            Output::DropLink { node, link, reason } => {
                self.counters.protocol_errors +=
                    u64::from(matches!(reason, kernel::LinkError::Forged { .. }));
                if let Some(unsaid) = self.link_news.admit(monotonic()) {
                    tracing::warn!(node = node.0, %reason, unsaid, "link dropped");
                }
                if let Some(link) = self.links.remove(&link) {
                    link.close();
                }
            }
        }
    }

    fn send(&mut self, link: LinkId, track: Track, bytes: bytes::Bytes) {
        let Some(link) = self.links.get(&link).map(|tracks| tracks.of(track)) else { return };
        self.counters.frames_out += 1;
        self.counters.bytes_out += bytes.len() as u64;
        link.send(bytes);
        if !self.unflushed.iter().any(|other| Arc::ptr_eq(other, link)) {
            self.unflushed.push(link.clone());
        }
    }

    /// A new link, still without a node.
    pub(super) fn new_link(&mut self) -> LinkId {
        self.next_link += 1;
        LinkId(self.next_link)
    }

    fn welcome(&mut self, asker: Asker, dc: DcId, endpoint: Endpoint) {
        let Some(connection) = self.door.connection_of(asker) else { return };
        let place = (dc, endpoint);
        let pid = connection.identity.pid;
        let Ok(bound) = self.kernel.endpoint(dc, endpoint) else { return };
        if !bound.role.is_bound_to_connection()
            && let Some(old) = self.by_pid.insert((dc, pid), endpoint)
            && old != endpoint
        {
            // The process has executed another program.
            self.forget((dc, old));
        }
        if !self.processes.contains_key(&place)
            && let Err(error) = self.note_process(asker, place)
        {
            tracing::warn!(pid, %error, "cannot watch a process");
            self.door.answer(asker, &Tell::refused(IpcError::Exhausted), &[]);
            self.step(Input::Died { dc, endpoint });
            return self.forget(place);
        }
        let node = NodeId(self.door.node);
        let receiver = self.door.welcome(asker, dc, endpoint, node, &bound.rights);
        if let (Some(process), Some(receiver)) = (self.processes.get_mut(&place), receiver) {
            process.receiver = Some(receiver);
        }
    }

    fn note_process(&mut self, asker: Asker, place: Place) -> Result<()> {
        let connection = self.door.connection_of(asker).context("the connection is gone")?;
        let Identity { pid, uid, pidfd, cred } = &connection.identity;
        let (pid, uid, inner_pid, pidfd) = (*pid, *uid, cred.pid, pidfd.try_clone()?);
        self.note(place, pid, inner_pid, uid, pidfd)
    }

    /// Watches the process behind an endpoint.
    pub(super) fn note(
        &mut self,
        place: Place,
        pid: u32,
        inner_pid: u32,
        uid: u32,
        pidfd: OwnedFd,
    ) -> Result<()> {
        let watch = self.door.watch(place, pidfd)?;
        *self.per_user.entry((place.0, uid)).or_default() += 1;
        self.processes.insert(
            place,
            Process {
                pid,
                inner_pid,
                uid,
                watch,
                receiver: None,
                channels: BTreeMap::new(),
                peers: BTreeSet::new(),
                lent: BTreeMap::new(),
            },
        );
        Ok(())
    }

    /// May this user bind one more process?
    pub(super) fn has_room_for(&self, dc: DcId, uid: u32) -> bool {
        let bound = self.per_user.get(&(dc, uid)).copied().unwrap_or(0);
        self.door.is_privileged(uid) || bound < ENDPOINTS_PER_USER
    }

    /// A channel between two processes of this node.
    fn connect(
        &mut self,
        asker: Asker,
        dc: DcId,
        requester: Endpoint,
        receiver: Endpoint,
    ) -> Result<(), IpcError> {
        let (cred, flags) = self.door.credentials(asker).ok_or(IpcError::Stale)?;
        let is_privileged = self.door.is_privileged(cred.uid);
        let process = self.processes.get_mut(&(dc, receiver)).ok_or(IpcError::Stale)?;
        let place = process.receiver.clone().ok_or(IpcError::Denied)?;
        if flags != 0 && !place.takes_trusted {
            return Err(IpcError::Denied);
        }
        let channels = process.channels.entry(requester).or_default();
        if channels.len() >= CHANNELS_PER_PEER {
            // Those that the requester has let go of do not count.
            channels.retain(is_in_use);
        }
        if channels.len() >= CHANNELS_PER_PEER {
            return Err(IpcError::Exhausted);
        }
        let calls = self.kernel.endpoint(dc, requester).map_or(0, |info| info.rights.calls);
        let may_relay = |info: &kernel::EndpointInfo| info.rights.may(m3ipc::rights::call::RELAY);
        let relays = self.kernel.endpoint(dc, receiver).is_ok_and(|info| may_relay(&info));
        let counted = self.channels_per_user.take((dc, cred.uid), is_privileged)?;
        let channel = Arc::new(m3ipc::channel::create()?);
        let kept = channel.try_clone().map_err(|_| IpcError::Exhausted)?;
        channels.push(KeptChannel::new(kept, counted));
        let mut accept = Tell::new(tell::ACCEPT, requester).with_cred(&cred);
        accept.flags = flags | calls << flag::CALLS_SHIFT;
        self.door.tell(place.connection, &accept, std::slice::from_ref(&channel));
        let mut opened = Tell::new(tell::CHANNEL, receiver);
        opened.flags = flags
            | if place.is_rendezvous { flag::RENDEZVOUS } else { 0 }
            | if relays { flag::RELAYS } else { 0 };
        self.door.answer(asker, &opened, &[channel, place.bell]);
        if let Some(process) = self.processes.get_mut(&(dc, requester)) {
            process.peers.insert(receiver);
        }
        Ok(())
    }

    /// A channel whose receiver is on another node: here this daemon receives.
    fn connect_to_proxy(
        &mut self,
        asker: Asker,
        dc: DcId,
        requester: Endpoint,
        receiver: Endpoint,
    ) -> Result<(), IpcError> {
        let (cred, flags) = self.door.credentials(asker).ok_or(IpcError::Stale)?;
        let is_privileged = self.door.is_privileged(cred.uid);
        let counted = self.proxies_per_user.take((dc, cred.uid), is_privileged)?;
        let channel = Arc::new(m3ipc::channel::create()?);
        let is_trusted = flags & flag::TRUSTED != 0;
        let from = Caller { dc, requester, cred, is_trusted, counted };
        self.proxies.add(&channel, from, receiver)?;
        let mut opened = Tell::new(tell::CHANNEL, receiver);
        // The receiver's kernel looks after its rights.
        opened.flags = flags | flag::RELAYS;
        self.door.answer(asker, &opened, &[channel, self.bell.clone()]);
        Ok(())
    }

    fn receiver(&self, place: Place) -> Option<&Receiver> {
        self.processes.get(&place)?.receiver.as_ref()
    }

    fn is_rendezvous(&self, place: Place) -> bool {
        self.receiver(place).is_some_and(|receiver| receiver.is_rendezvous)
    }

    /// Takes back calls of other nodes that `place` has not received, and abandons those that it has. They end.
    fn withdraw(&mut self, place: Place, which: impl Fn(NodeId, &m3ipc::CallId) -> bool) {
        for (id, call, _) in self.couriers.withdraw(place, which) {
            let ended = m3ipc::Message::undelivered(call, IpcError::Interrupted);
            let message = m3ipc::Message { tag: id.tag, ..ended };
            let (dc, from) = place;
            self.step(Input::LocalAnswer { dc, from, id, message: &message, payload: &[] });
        }
    }

    /// The rights of an endpoint have changed: nobody goes on with a channel from before.
    fn reopen(&mut self, place: Place) {
        let Ok(info) = self.kernel.endpoint(place.0, place.1) else { return };
        self.close_local_channels(place, IpcError::Denied);
        self.close_as_requester(place, IpcError::Denied);
        if let Some(receiver) = self.receiver(place).cloned() {
            // Its requesters can write into their channels that these are not closed.
            self.door.tell(receiver.connection, &Tell::new(tell::CUT, Endpoint::ANY), &[]);
            let record = Tell::new(tell::RIGHTS, place.1).with_data(info.rights.as_bytes());
            self.door.tell(receiver.connection, &record, &[]);
        }
    }

    fn close_channels(&mut self, place: Place, error: IpcError) {
        self.couriers.remove(place);
        self.close_local_channels(place, error);
    }

    fn close_local_channels(&mut self, place: Place, error: IpcError) {
        let Some(process) = self.processes.get_mut(&place) else { return };
        for (requester, channels) in std::mem::take(&mut process.channels) {
            channels.iter().for_each(|channel| close(channel, error));
            if let Some(requester) = self.processes.get_mut(&(place.0, requester)) {
                requester.peers.remove(&place.1);
            }
        }
    }

    fn tell_gone(&mut self, to: Place, gone: Gone, number: u64) {
        let record = match gone {
            Gone::Endpoint(endpoint) => Tell::new(tell::GONE, endpoint),
            Gone::Node(node) => Tell::node_gone(node),
        };
        let record = Tell { number, ..record };
        if self.is_rendezvous(to) {
            self.withdraw(to, |from, call| match gone {
                Gone::Endpoint(endpoint) => call.source == endpoint,
                Gone::Node(node) => from == node,
            });
        }
        if let Gone::Node(node) = gone {
            self.couriers.retire(to, node);
        }
        if let Some(receiver) =
            self.processes.get(&to).and_then(|process| process.receiver.as_ref())
        {
            self.door.tell(receiver.connection, &record, &[]);
        }
    }

    /// Hands a call of another node to a process of this one.
    fn deliver(&mut self, to: Place, cred: &Cred, message: &m3ipc::Message, payload: &[u8]) {
        self.counters.calls_in += 1;
        self.traffic.entry(to.0).or_default().note_in(to.1, payload.len());
        let id = m3ipc::CallId { source: message.source, tag: message.tag };
        let receiver = self.processes.get(&to).and_then(|process| process.receiver.clone());
        let result = match receiver {
            Some(receiver) if receiver.takes_trusted || receiver.is_rendezvous => {
                self.post(to, &receiver, cred, message, payload)
            }
            Some(_) => Err(IpcError::Denied),
            // It said hello without a bell: it makes calls only.
            None => Err(IpcError::Denied),
        };
        if let Err(error) = result {
            let answer =
                m3ipc::Message { tag: id.tag, ..m3ipc::Message::undelivered(message.call, error) };
            self.step(Input::LocalAnswer {
                dc: to.0,
                from: to.1,
                id,
                message: &answer,
                payload: &[],
            });
        }
    }

    fn post(
        &mut self,
        to: Place,
        receiver: &Receiver,
        cred: &Cred,
        message: &m3ipc::Message,
        payload: &[u8],
    ) -> Result<(), IpcError> {
        let node = self.kernel.place_of(to.0, message.source);
        if !self.couriers.has_room(to, node) {
            let channel = Arc::new(m3ipc::channel::create()?);
            self.couriers.add(to, node, &channel, receiver.ringer.clone())?;
            let mut accept = Tell::new(tell::ACCEPT, Endpoint::NONE).with_cred(&Cred::ROOT);
            // Each call has been checked where it came from.
            let calls = m3ipc::rights::call::ALL << flag::CALLS_SHIFT;
            accept.flags = flag::TRUSTED | flag::REQUESTER_BELL | calls;
            self.door.tell(receiver.connection, &accept, &[channel, self.bell.clone()]);
        }
        let ringer = self.couriers.post(to, node, receiver.told, cred, message, payload)?;
        if !self.rings.iter().any(|other| Arc::ptr_eq(other, &ringer)) {
            self.rings.push(ringer);
        }
        Ok(())
    }

    /// Tells the process bound at `place` something, if it listens.
    fn tell(&mut self, place: Place, record: &Tell) {
        if let Some(receiver) = self.receiver(place) {
            let connection = receiver.connection;
            self.door.tell(connection, record, &[]);
        }
    }

    /// The process at `place` is to stop: it keeps nothing of what it has not received.
    fn freeze(&mut self, place: Place) {
        self.take_back(place);
        for (requester, channels) in self.take_channels(place) {
            for channel in &channels {
                self.close_moving(place, requester, channel, false);
            }
        }
        self.tell(place, &Tell::new(tell::FREEZE, place.1));
    }

    /// The process at `place` is dead, and another will be it.
    fn take_over(&mut self, place: Place) {
        self.take_back(place);
        for (requester, channels) in self.take_channels(place) {
            for channel in &channels {
                self.close_moving(place, requester, channel, true);
            }
        }
        // Before another process is there.
        self.forget(place);
        let (dc, endpoint) = place;
        self.step(Input::Frozen { dc, endpoint });
    }

    /// Takes back the calls of other nodes that `place` has not received.
    fn take_back(&mut self, place: Place) {
        let (dc, to) = place;
        for (id, _, is_received) in self.couriers.withdraw(place, |_, _| true) {
            if !is_received {
                self.step(Input::Unreceived { dc, to, id });
            }
        }
        self.take_last_answers(place);
    }

    /// The channels on which `place` is the receiver: they are its no longer.
    fn take_channels(&mut self, place: Place) -> BTreeMap<Endpoint, Vec<KeptChannel>> {
        let Some(process) = self.processes.get_mut(&place) else { return BTreeMap::new() };
        let channels = std::mem::take(&mut process.channels);
        for requester in channels.keys() {
            if let Some(requester) = self.processes.get_mut(&(place.0, *requester)) {
                requester.peers.remove(&place.1);
            }
        }
        channels
    }

    /// Closes a channel whose receiver moves; a notification that it has not received goes with it.
    fn close_moving(&mut self, place: Place, from: Endpoint, channel: &KeptChannel, is_dead: bool) {
        let channel = match SharedChannel::map(channel.as_fd()) {
            Ok(channel) => channel,
            Err(error) => return tracing::error!(?error, "cannot close a channel"),
        };
        let claimed: Vec<usize> = if is_dead { channel.claimed().collect() } else { Vec::new() };
        for lane in claimed {
            let Some(request) = channel.request(lane) else { continue };
            let ended = m3ipc::Message::undelivered(request.call, IpcError::DestinationDied);
            let ended = m3ipc::Message { tag: request.tag, ..ended };
            channel.answer(lane, &ended, &[], false);
        }
        channel.close(IpcError::Moved);
        let (dc, to) = place;
        let may_notify = |info: &kernel::EndpointInfo| info.rights.may(m3ipc::rights::call::NOTIFY);
        if let Some(value) = channel.take_notification()
            && self.kernel.endpoint(dc, from).is_ok_and(|info| may_notify(&info))
        {
            self.step(Input::Pending { dc, to, from, value });
        }
    }

    /// The process that stood by as `backup` is `endpoint` from now on.
    fn promote(&mut self, dc: DcId, backup: Endpoint, endpoint: Endpoint, inherits: bool) {
        self.rename((dc, backup), (dc, endpoint));
        let Ok(info) = self.kernel.endpoint(dc, endpoint) else { return };
        let promoted = Tell::new(tell::PROMOTED, endpoint).with_data(info.rights.as_bytes());
        self.tell((dc, endpoint), &Tell { flags: inherits.into(), ..promoted });
    }

    /// The process that was `endpoint` is a backup from now on.
    fn demote(&mut self, dc: DcId, endpoint: Endpoint, backup: Endpoint) {
        let place = (dc, endpoint);
        self.forget((dc, endpoint.memory()));
        self.close_channels(place, IpcError::Moved);
        self.close_as_requester(place, IpcError::Moved);
        self.rename(place, (dc, backup));
        self.tell((dc, backup), &Tell::new(tell::DEMOTED, backup));
    }

    fn rename(&mut self, from: Place, to: Place) {
        let Some(process) = self.processes.remove(&from) else { return };
        let connection = process.receiver.as_ref().map(|receiver| receiver.connection);
        self.door.rename(connection, process.watch, to);
        self.processes.insert(to, process);
    }

    /// Closes the channels on which the process at `place` makes calls. Their receivers do not rely on what it can write.
    fn close_as_requester(&mut self, place: Place, error: IpcError) {
        let peers =
            self.processes.get_mut(&place).map(|process| std::mem::take(&mut process.peers));
        for peer in peers.into_iter().flatten() {
            let channels = self
                .processes
                .get_mut(&(place.0, peer))
                .and_then(|peer| peer.channels.remove(&place.1));
            channels.iter().flatten().for_each(|channel| close(channel, error));
            self.tell((place.0, peer), &Tell::new(tell::CUT, place.1));
        }
        self.proxies.close(place, error);
    }

    /// A process is dead, or a receiver has left.
    pub(super) fn died(&mut self, place: Place) {
        let Some(watch) = self.processes.get(&place).map(|process| process.watch) else { return };
        // What it had answered counts.
        self.take_answers_of(place);
        self.step(Input::Died { dc: place.0, endpoint: place.1 });
        self.settle();
        // Another process may be that endpoint by now.
        if self.processes.get(&place).is_some_and(|process| process.watch == watch) {
            self.forget(place);
        }
        if !place.1.is_memory() {
            self.died((place.0, place.1.memory()));
        }
    }

    /// A container is no more: neither are those who are left in it.
    pub(super) fn end(&mut self, dc: DcId) {
        let left: Vec<Place> = self.processes.keys().filter(|(of, _)| *of == dc).copied().collect();
        for place in left {
            self.died(place);
        }
        self.step(Input::DcStop { dc });
        self.settle();
        self.door.shut(dc);
        self.traffic.remove(&dc);
    }

    /// Forgets a process that the kernel has forgotten.
    fn forget(&mut self, place: Place) {
        self.proxies.remove(place);
        self.couriers.remove(place);
        let Some(process) = self.processes.remove(&place) else { return };
        self.door.unwatch(process.watch);
        if self.by_pid.get(&(place.0, process.pid)) == Some(&place.1) {
            self.by_pid.remove(&(place.0, process.pid));
        }
        let user = (place.0, process.uid);
        take_off(&mut self.per_user, user, 1);
        take_off(&mut self.lent_per_user, user, process.lent.len());
        for peer in process.peers {
            if let Some(peer) = self.processes.get_mut(&(place.0, peer)) {
                peer.channels.remove(&place.1);
            }
        }
        if let Some(receiver) = process.receiver {
            self.door.unbind(receiver.connection);
        }
    }

    /// Reads the answers that a receiver has given to calls of other nodes.
    pub(super) fn take_answers_of(&mut self, place: Place) {
        for courier in self.couriers.channels_of(place) {
            self.take_all_answers(&courier);
        }
    }

    /// Number of channels, for the status.
    pub(super) fn channel_count(&self, dc: DcId) -> usize {
        let local = self.processes.iter().filter(|((of, _), _)| *of == dc);
        let local: usize =
            local.map(|(_, process)| process.channels.values().map(Vec::len).sum::<usize>()).sum();
        local + self.proxies.count(dc) + self.couriers.count(dc)
    }
}

/// Counts `number` less of a user's; of a user without any nothing is kept.
pub(super) fn take_off<U: Ord>(counts: &mut BTreeMap<U, usize>, user: U, number: usize) {
    if let Some(count) = counts.get_mut(&user) {
        *count = count.saturating_sub(number);
        if *count == 0 {
            counts.remove(&user);
        }
    }
}

/// Channels between processes of this node that one ordinary user of a container may have.
fn channels_of_user() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let part = limit.unwrap_or(DESCRIPTORS_MAX) / CHANNELS_OF_USER;
    usize::try_from(part).unwrap_or(usize::MAX)
}

/// Is it a channel that neither side has closed?
fn is_in_use(channel: &KeptChannel) -> bool {
    SharedChannel::map(channel.as_fd()).is_ok_and(|channel| channel.closed().is_none())
}

fn close(channel: &KeptChannel, reason: IpcError) {
    match SharedChannel::map(channel.as_fd()) {
        Ok(channel) => channel.close(reason),
        Err(error) => tracing::error!(?error, "cannot close a channel"),
    }
}

/// What the kernel is told at its start.
pub(super) fn kernel_config(
    config: &Config,
    peers: &[u16],
    incarnation: u64,
    first_generation: u32,
) -> kernel::Config {
    kernel::Config {
        node: NodeId(config.node),
        incarnation,
        first_generation,
        peers: peers.iter().copied().map(NodeId).collect(),
        dcs: config.dcs.iter().map(kernel_dc).collect(),
    }
}

/// A container, as the kernel is told of it.
pub(super) fn kernel_dc(dc: &Dc) -> kernel::Dc {
    let servers = super::children::SERVERS.iter();
    kernel::Dc {
        id: DcId(dc.id),
        nodes: dc.nodes.iter().copied().map(NodeId).collect(),
        servers: servers.map(|(_, number)| (*number, NodeId(dc.home))).collect(),
    }
}
