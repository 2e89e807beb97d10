//! Replicas: processes of several nodes that are one endpoint to those who call it.
//!
//! Each is a peer with the same number on a node of its own, and known to every node of the DC. Who opens a channel to
//! `Endpoint::replicated(number)` gets one with the replica of its own node, or else with one that lives. When a replica is
//! gone its channels end, and whoever calls again gets another.

use super::container::Container;
use super::{Kernel, Output};
use crate::frame::Frame;
use crate::server::Nanos;
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use std::collections::BTreeMap;

/// By number and node: those that are bound, as far as this node knows. Bounded by the numbers and the nodes.
pub(super) type Replicas = BTreeMap<(u32, NodeId), Endpoint>;

impl Container {
    /// The replica of `number` that a process of this node gets.
    pub(super) fn replica(&self, number: u32) -> Option<Endpoint> {
        let all = (number, NodeId(0))..=(number, NodeId(u16::MAX));
        // Beginning with the next node, so that not all choose the same one.
        let next = (number, self.node)..=(number, NodeId(u16::MAX));
        let mut from_here = self.replicas.range(next).chain(self.replicas.range(all));
        from_here.next().map(|(_, replica)| *replica)
    }
}

impl Kernel {
    /// Whom `to` stands for, for a process of this node.
    pub(super) fn actual(&self, dc: DcId, to: Endpoint) -> Result<Endpoint, IpcError> {
        if !to.is_replicated() {
            return Ok(to);
        }
        let container = self.containers.get(&dc).ok_or(IpcError::NotBound)?;
        container.replica(to.index()).ok_or(IpcError::NotBound)
    }

    /// A replica of this node is there, or not any more.
    pub(super) fn own_replica(
        &mut self,
        now: Nanos,
        dc: DcId,
        replica: Endpoint,
        is_over: bool,
        out: &mut Vec<Output>,
    ) {
        self.note_replica(now, dc, replica, is_over, out);
        for node in self.others(dc) {
            self.send(now, node, &Frame::Replica { dc, endpoint: replica, is_over }, out);
        }
    }

    /// Another node tells of one of its own.
    pub(super) fn remote_replica(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        replica: Endpoint,
        is_over: bool,
        out: &mut Vec<Output>,
    ) {
        let spans = |container: &Container| container.dc.nodes.contains(&node);
        if self.containers.get(&dc).is_some_and(spans) && replica.node() == node {
            self.note_replica(now, dc, replica, is_over, out);
        }
    }

    fn note_replica(
        &mut self,
        now: Nanos,
        dc: DcId,
        replica: Endpoint,
        is_over: bool,
        out: &mut Vec<Output>,
    ) {
        let own = self.node;
        let Some(container) = self.containers.get_mut(&dc) else { return };
        let (number, node) = (replica.index(), replica.node());
        if is_over {
            if container.replicas.get(&(number, node)) != Some(&replica) {
                return;
            }
            container.replicas.remove(&(number, node));
            // Over the daemon nobody is told that a receiver is gone; so its channels are closed.
            out.push(Output::Retire { dc, to: replica });
        } else {
            container.replicas.insert((number, node), replica);
            if node == own {
                // Processes of this node leave those of others for it.
                let all = (number, NodeId(0))..=(number, NodeId(u16::MAX));
                let others = container.replicas.range(all).filter(|((_, node), _)| *node != own);
                out.extend(others.map(|(_, other)| Output::Retire { dc, to: *other }));
            }
        }
        self.tell_awaits(now, dc, Endpoint::replicated(number).slot, out);
    }

    /// A container has nothing to do with `node` any more.
    pub(super) fn replicas_without(
        &mut self,
        now: Nanos,
        dc: DcId,
        node: NodeId,
        out: &mut Vec<Output>,
    ) {
        let of = self.containers.get(&dc).into_iter().flat_map(|container| &container.replicas);
        let gone: Vec<Endpoint> =
            of.filter(|((_, at), _)| *at == node).map(|(_, replica)| *replica).collect();
        for replica in gone {
            self.note_replica(now, dc, replica, true, out);
        }
    }

    /// A new session with `node`, or a container spans it again: it may not know of this node's replicas.
    pub(super) fn introduce_replicas(&mut self, now: Nanos, node: NodeId, out: &mut Vec<Output>) {
        let own = self.node;
        let mut known = Vec::new();
        for (dc, container) in &self.containers {
            if container.dc.nodes.contains(&node) {
                let mine = container.replicas.iter().filter(|((_, at), _)| *at == own);
                known.extend(mine.map(|(_, replica)| (*dc, *replica)));
            }
        }
        for (dc, endpoint) in known {
            self.send(now, node, &Frame::Replica { dc, endpoint, is_over: false }, out);
        }
    }
}
