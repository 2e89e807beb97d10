//! What containers are to do: a line of orders per node, and the calls in which containers wait for them.

use crate::limits::{AWAITS_PER_NODE, ORDERS_PER_NODE};
use crate::record;
use calls::pm::{Await, Order, order};
use calls::{Row, answer};
use dvk::server::Context;
use dvk::store::Store;
use m3ipc::errno::numbers::{EAGAIN, ESRCH};
use m3ipc::{CallId, Errno, IpcError, NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Why an order was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// This call wants a signal delivered.
    Kill(CallId),
    /// Somebody wants to know the node's processes.
    Report,
}

/// An order that is not done yet.
#[derive(Debug)]
struct Open {
    node: NodeId,
    order: Order,
    purpose: Purpose,
}

/// A node whose container has joined.
#[derive(Debug, Default)]
struct Node {
    /// Orders that the container has not fetched yet.
    line: VecDeque<u64>,
    /// All its orders that are not done.
    open: BTreeSet<u64>,
    awaits: VecDeque<CallId>,
}

#[derive(Debug)]
pub(crate) struct Orders {
    nodes: BTreeMap<NodeId, Node>,
    open: BTreeMap<u64, Open>,
}

impl Orders {
    pub(crate) fn open(store: &dyn Store) -> Orders {
        let nodes = record::all::<(), 1>(store, b'j', |_| Some(())).into_iter();
        let nodes = nodes.map(|([node], ())| {
            (NodeId(u16::try_from(node).expect("a node has 12 bits")), Node::default())
        });
        Orders { nodes: nodes.collect(), open: BTreeMap::new() }
    }

    pub(crate) fn join(&mut self, node: NodeId, store: &mut dyn Store) {
        self.nodes.entry(node).or_default();
        record::put(store, b'j', &[u64::from(node.0)], b"");
    }

    pub(crate) fn is_joined(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// The node's container is gone: its orders will not be carried out. `told` says whether its
    /// waiting calls are still to be answered.
    pub(crate) fn leave(
        &mut self,
        node: NodeId,
        told: bool,
        cx: &mut Context<'_>,
    ) -> Vec<(u64, Purpose)> {
        let Some(left) = self.nodes.remove(&node) else { return Vec::new() };
        record::remove(cx.store, b'j', &[u64::from(node.0)]);
        if told {
            left.awaits.iter().for_each(|id| cx.end(*id, Await::NUMBER, IpcError::Interrupted));
        }
        let orders = left.open.iter().filter_map(|id| Some((*id, self.open.remove(id)?.purpose)));
        orders.collect()
    }

    /// The container waits for an order: it gets the next at once (the answer, and why), or is kept.
    pub(crate) fn wait(
        &mut self,
        node: NodeId,
        call: CallId,
    ) -> Result<Option<(Order, Purpose)>, Errno> {
        let waiting = self.nodes.get_mut(&node).ok_or(Errno::new(ESRCH))?;
        if let Some(id) = waiting.line.pop_front() {
            let open = &self.open[&id];
            return Ok(Some((open.order, open.purpose)));
        }
        if waiting.awaits.len() >= AWAITS_PER_NODE {
            return Err(Errno::new(EAGAIN));
        }
        waiting.awaits.push_back(call);
        Ok(None)
    }

    /// Gives an order to a node that has joined. Says whether its container has it already.
    pub(crate) fn give(
        &mut self,
        node: NodeId,
        order: Order,
        purpose: Purpose,
        cx: &mut Context<'_>,
    ) -> Result<bool, Errno> {
        let to = self.nodes.get_mut(&node).ok_or(Errno::new(ESRCH))?;
        if to.open.len() >= ORDERS_PER_NODE {
            return Err(Errno::new(EAGAIN));
        }
        to.open.insert(order.id);
        self.open.insert(order.id, Open { node, order, purpose });
        match to.awaits.pop_front() {
            Some(call) => {
                cx.answer(call, answer::<Await>(&order), []);
                Ok(true)
            }
            None => {
                to.line.push_back(order.id);
                Ok(false)
            }
        }
    }

    /// Puts an order back that was given before a restart; if its container has not fetched it, it
    /// stands in the line again.
    pub(crate) fn restore(&mut self, node: NodeId, order: Order, purpose: Purpose, fetched: bool) {
        let to = self.nodes.get_mut(&node).expect("a node that leaves ends its orders");
        to.open.insert(order.id);
        if !fetched {
            to.line.push_back(order.id);
        }
        self.open.insert(order.id, Open { node, order, purpose });
    }

    /// A report that the node will make anyway: if `fresh`, one that it has not begun yet.
    pub(crate) fn report_of(&self, node: NodeId, fresh: bool) -> Option<u64> {
        let node = self.nodes.get(&node)?;
        let is_report = |id: &&u64| self.open[*id].order.kind == order::REPORT;
        let found = match fresh {
            true => node.line.iter().find(is_report),
            false => node.open.iter().find(is_report),
        };
        found.copied()
    }

    /// The node has done an order, or will not: why it was given. None if it is not open there.
    pub(crate) fn done(&mut self, node: NodeId, id: u64) -> Option<Purpose> {
        self.open.get(&id).filter(|open| open.node == node)?;
        self.forget(id)
    }

    /// Nobody wants this order done any longer.
    pub(crate) fn forget(&mut self, id: u64) -> Option<Purpose> {
        let open = self.open.remove(&id)?;
        if let Some(node) = self.nodes.get_mut(&open.node) {
            node.open.remove(&id);
            node.line.retain(|waiting| *waiting != id);
        }
        Some(open.purpose)
    }

    /// A number for an order: not used, and not before a crash either.
    pub(crate) fn unused_id(&self, entropy: u64) -> u64 {
        let mut id = entropy;
        while id == 0 || self.open.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        id
    }

    pub(crate) fn is_kept(&self, call: CallId) -> bool {
        self.nodes.values().any(|node| node.awaits.contains(&call))
    }

    /// Forgets a waiting call of a container; says whether there was one.
    pub(crate) fn cancel(&mut self, call: CallId) -> bool {
        let waiting = self.nodes.values_mut().find(|node| node.awaits.contains(&call));
        waiting.map(|node| node.awaits.retain(|id| *id != call)).is_some()
    }
}
