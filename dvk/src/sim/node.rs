//! The daemon of a simulated node: it feeds its kernel and does what that wants.

use super::process::{Question, Told, Wish};
use super::service::{Item, Origin, Service};
use super::system_group::{Proposal, Standing};
use super::{Event, MILLISECOND, SECOND, Sim};
use crate::kernel::{Asker, Config, Input, Kernel, LinkId, Output, Role};
use crate::server::Nanos;
use m3ipc::{Endpoint, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// A machine and its daemon.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// `None` while the machine is down.
    pub(super) kernel: Option<Kernel>,
    /// How often it has started.
    pub(super) incarnation: u64,
    pub(super) services: BTreeMap<u32, Service>,
    /// Connections that are up, by the node at the other end.
    pub(super) links: BTreeMap<NodeId, LinkId>,
    ticks_at: Option<Nanos>,
    /// The incarnation of its kernel.
    pub(super) life: u64,
    pub(super) standing: Standing,
    askers: BTreeMap<Asker, u32>,
    /// Bound processes: endpoint and pid.
    pub(super) bound: BTreeMap<Endpoint, u32>,
    /// Receivers whose channels are closed.
    closed: BTreeSet<Endpoint>,
    /// How often the channels of a peer have been closed.
    pub(super) vacated: BTreeMap<Endpoint, u64>,
}

/// What a process asks of its daemon (`m3ipc::door`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    Hello(Role),
    Open { from: Endpoint, to: Endpoint },
    Await { from: Endpoint, question: Question, thread: usize },
}

impl Node {
    pub(super) fn describe(&self) -> String {
        let Some(kernel) = &self.kernel else { return "down".to_owned() };
        let nodes: Vec<_> = kernel.nodes().collect();
        format!("{nodes:?}, services {:?}", self.services)
    }

    pub(super) fn is_closed(&self, receiver: Endpoint) -> bool {
        self.closed.contains(&receiver)
    }
}

impl Sim {
    pub(super) fn start_node(&mut self, id: NodeId) {
        let now = self.now;
        let random = self.random.next();
        let (dc, peers) = (self.dc.clone(), self.dc.nodes.clone());
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.kernel.is_some() {
            return;
        }
        let incarnation = node.incarnation + 1;
        let first_generation = u32::try_from(incarnation << 16).expect("few restarts");
        let standing = Standing::new(now);
        *node = Node { incarnation, life: random, standing, ..Node::default() };
        let config =
            Config { node: id, incarnation: random, first_generation, peers, dcs: vec![dc] };
        node.kernel = Some(Kernel::new(config, now));
        self.step(id, Input::Standing { until: 0, up: &BTreeMap::new() });
        for peer in self.dc.nodes.clone() {
            if peer != id {
                self.want_link(id, peer);
            }
        }
        for (number, home) in self.dc.servers.clone() {
            if home == id {
                self.after(
                    MILLISECOND,
                    100 * MILLISECOND,
                    Event::StartServer { node: id, number, incarnation },
                );
            }
        }
        self.plan_tick(id);
    }

    pub(super) fn crash_some_node(&mut self) {
        let up: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.kernel.is_some())
            .map(|(id, _)| *id)
            .collect();
        if up.is_empty() {
            return;
        }
        self.stats.node_crashes += 1;
        let id = up[self.random.index(up.len())];
        self.note(format!("{id:?} crashes"));
        self.cut_all(id);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.kernel = None;
        node.links.clear();
        for number in std::mem::take(&mut node.services).into_keys() {
            if let Some(disk) = self.disks.get_mut(&number) {
                disk.kill();
                if self.faults.power_fails {
                    disk.power_failure(&mut self.random);
                }
            }
        }
        self.processes.retain(|_, process| process.node != id || !process.is_alive);
        self.forget_peers(id);
        let most = if self.random.chance(500) { SECOND } else { 8 * SECOND };
        self.after(50 * MILLISECOND, most, Event::StartNode(id));
    }

    pub(super) fn tick(&mut self, id: NodeId, incarnation: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.incarnation == incarnation && node.kernel.is_some() {
            node.ticks_at = None;
            self.step(id, Input::Tick);
        }
    }

    fn plan_tick(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(deadline) = node.kernel.as_ref().and_then(Kernel::next_deadline) else { return };
        if node.ticks_at.is_none_or(|at| at > deadline) {
            node.ticks_at = Some(deadline);
            let incarnation = node.incarnation;
            self.at(deadline, Event::Tick { node: id, incarnation });
        }
    }

    /// One step of the kernel, and everything it wants.
    pub(super) fn step(&mut self, id: NodeId, input: Input<'_>) {
        let mut out = Vec::new();
        let now = self.now;
        let Some(kernel) = self.nodes.get_mut(&id).and_then(|node| node.kernel.as_mut()) else {
            return;
        };
        kernel.step(now, input, &mut out);
        let mut appeared = Vec::new();
        for output in out {
            if let Output::Promote { endpoint, .. }
            | Output::Thaw { endpoint, .. }
            | Output::Welcome { endpoint, .. } = output
            {
                appeared.push(endpoint);
            }
            if self.log.is_some() {
                self.note(format!("    {id:?} {output:?}"));
            }
            self.carry_out(id, output);
        }
        appeared.into_iter().for_each(|endpoint| self.check_alone(endpoint));
        self.plan_tick(id);
    }

    fn carry_out(&mut self, id: NodeId, output: Output) {
        match output {
            Output::Welcome { asker, endpoint, .. } => {
                let Some(pid) = self.asker_pid(id, asker) else { return };
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.bound.retain(|_, bound| *bound != pid);
                    node.bound.insert(endpoint, pid);
                }
                if !self.server_welcome(id, pid, endpoint) && !self.peer_welcome(pid, endpoint) {
                    self.soon(Event::Told { pid, told: Told::Welcome(endpoint) });
                }
            }
            Output::Refused { asker, error } => {
                let Some(pid) = self.asker_pid(id, asker) else { return };
                if self.nodes[&id].services.values().any(|service| service.pid == pid) {
                    return self.wrong(format!("the server with pid {pid} was refused: {error:?}"));
                }
                if self.peer_refused(pid) {
                    return;
                }
                self.soon(Event::Told { pid, told: Told::Refused(asker, error) });
            }
            Output::Channel { asker, receiver, via, .. } => {
                if let Some(pid) = self.asker_pid(id, asker) {
                    let era = self.nodes[&id].vacated.get(&receiver).copied().unwrap_or(0);
                    self.soon(Event::Told {
                        pid,
                        told: Told::Channel { asker, receiver, via, era },
                    });
                }
            }
            Output::Done { asker, endpoint } => {
                if let Some(pid) = self.asker_pid(id, asker) {
                    self.soon(Event::Told { pid, told: Told::Done(asker, endpoint) });
                }
            }
            // Its programs have the rights they begin with.
            Output::Reopen { .. } => {}
            Output::Freeze { endpoint, .. } => self.freeze_peer(id, endpoint),
            // Its processes stop when they are told.
            Output::CutOff { .. } => {}
            Output::Thaw { endpoint, .. } => self.thaw_peer(id, endpoint),
            Output::TakeOver { endpoint, .. } => self.take_over_peer(id, endpoint),
            Output::Promote { backup, endpoint, inherits, .. } => {
                self.rename_peer(id, backup, endpoint, Some(inherits));
            }
            Output::Demote { endpoint, backup, .. } => self.rename_peer(id, endpoint, backup, None),
            Output::Retire { to, .. } => self.retire_channels(id, to),
            // Its programs wait for as long as it takes.
            Output::Wake { .. } => {}
            Output::CloseChannels { receiver, .. } if !receiver.is_server() => {
                self.vacate_dead(id, receiver);
            }
            Output::CloseChannels { receiver, .. } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.closed.insert(receiver);
                }
                self.close_channels(id, receiver);
            }
            Output::Gone { to, gone, number, .. } => self.post(id, to, Item::Gone(number, gone)),
            Output::Deliver { to, cred, message, payload, .. } => {
                let payload = payload.to_vec();
                self.post(id, to, Item::Request { origin: Origin::Daemon, cred, message, payload });
            }
            Output::DeliverCancel { to, id: call, .. } => self.post(id, to, Item::Cancel(call)),
            Output::DeliverNotify { .. } => {}
            Output::AnswerLocal { id: call, message, payload, .. } => {
                let pid =
                    self.nodes.get(&id).and_then(|node| node.bound.get(&call.source).copied());
                self.lane_answered(pid, call, message, payload.to_vec());
            }
            Output::Propose { entry, expected, .. } => {
                let Some(node) = self.nodes.get(&id) else { return };
                let (incarnation, life) = (node.incarnation, node.life);
                self.propose(Proposal { node: id, incarnation, life, entry, expected });
            }
            Output::Send { link, track, bytes, .. } => self.send(id, link, track, bytes),
            // A node may have heard of a move before this one has.
            Output::Forged { forgery: crate::kernel::Forgery::NotThere, .. } => {}
            Output::Forged { node, endpoint, forgery, .. } => {
                self.wrong(format!("{id:?} takes {endpoint:?} of {node:?} for forged: {forgery}"));
            }
            Output::DropLink { node, link, reason } => {
                use crate::kernel::LinkError::{Outdated, Replaced, Silent};
                if !matches!(reason, Silent | Replaced | Outdated) {
                    self.wrong(format!("{id:?} drops its link with {node:?}: {reason}"));
                }
                if let Some(side) = self.side(id, link) {
                    self.close(link, side);
                    self.want_link(id, node);
                }
            }
        }
    }

    pub(super) fn asked(&mut self, id: NodeId, incarnation: u64, pid: u32, ask: Ask) {
        let asker = self.asker();
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.incarnation == incarnation)
        else {
            return;
        };
        let is_server = node.services.values().any(|service| service.pid == pid);
        let is_peer = self.peers.contains_key(&pid);
        if !is_server
            && !is_peer
            && !self.processes.get(&pid).is_some_and(|process| process.is_alive)
        {
            return;
        }
        node.askers.insert(asker, pid);
        let dc = self.dc.id;
        match ask {
            Ask::Hello(role) => {
                self.step(
                    id,
                    Input::Hello {
                        asker,
                        dc,
                        role,
                        pid,
                        nonce: 1,
                        privileged: is_server || is_peer,
                    },
                );
            }
            Ask::Await { from, question, thread } => {
                self.asking(pid, thread, asker);
                let Question { to, wish, timeout, .. } = question;
                self.step(
                    id,
                    match wish {
                        Wish::Event(event) => Input::Await { asker, dc, from, to, event, timeout },
                        Wish::Order(order) => {
                            Input::Order { asker, dc, from, to, order, privileged: true }
                        }
                    },
                );
            }
            Ask::Open { from, to } => {
                self.opening(pid, to, asker);
                self.step(id, Input::Open { asker, dc, from, to });
            }
        }
    }

    /// Nobody waits for answers to what a dead process has asked.
    pub(super) fn withdraw_all(&mut self, id: NodeId, pid: u32) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let of_it = node.askers.iter().filter(|(_, of)| **of == pid).map(|(asker, _)| *asker);
        let asked: Vec<Asker> = of_it.collect();
        for asker in asked {
            self.asker_pid(id, asker);
            self.step(id, Input::Withdraw { asker });
        }
    }

    fn asker_pid(&mut self, id: NodeId, asker: Asker) -> Option<u32> {
        self.nodes.get_mut(&id)?.askers.remove(&asker)
    }

    /// The daemon learns (pidfd) that a process is dead.
    pub(super) fn notice_death(&mut self, id: NodeId, incarnation: u64, pid: u32) {
        self.processes.remove(&pid);
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.incarnation == incarnation)
        else {
            return;
        };
        let endpoint =
            node.bound.iter().find(|(_, bound)| **bound == pid).map(|(endpoint, _)| *endpoint);
        if let Some(endpoint) = endpoint {
            node.bound.remove(&endpoint);
            self.step(id, Input::Died { dc: self.dc.id, endpoint });
        }
    }
}
