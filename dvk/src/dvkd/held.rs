//! Large messages that wait in their lanes until another node has received what came before them.
//!
//! What goes to another node is kept here until it has been received, and that is bounded. A request could be refused,
//! an answer could not; both stay where they are instead, in memory of their own channel, whose lane is taken as long as
//! that. What is small goes on: it waits for nothing large (`crate::frame::Track`).

use super::node::Node;
use super::proxy::{Courier, Proxy};
use crate::limits::SMALL_MAX;
use m3ipc::limits::PAYLOAD_AREA;
use m3ipc::{DcId, Endpoint, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What waits for each node, in the order it came.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_node: BTreeMap<NodeId, VecDeque<Waiting>>,
}

#[cfg(test)]
impl Held {
    pub(super) fn len(&self) -> usize {
        self.by_node.values().map(VecDeque::len).sum()
    }
}

/// A lane with a message that waits.
#[derive(Debug)]
enum Waiting {
    Request(Arc<Proxy>, usize),
    Answer(Arc<Courier>, usize),
}

/// The lanes of a channel that wait, each once, also if its request has been taken back or replaced meanwhile. Changed
/// by who has the node's lock.
#[derive(Debug, Default)]
pub(super) struct Lanes(AtomicU64);

impl Lanes {
    /// False if it has been among them.
    fn add(&self, lane: usize) -> bool {
        self.0.fetch_or(1 << lane, Ordering::Relaxed) & 1 << lane == 0
    }

    pub(super) fn has(&self, lane: usize) -> bool {
        self.0.load(Ordering::Relaxed) & 1 << lane != 0
    }

    /// False if it is not among them.
    fn remove(&self, lane: usize) -> bool {
        self.0.fetch_and(!(1 << lane), Ordering::Relaxed) & 1 << lane != 0
    }

    pub(super) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Node {
    /// Must a message of so many bytes to `node` wait?
    fn must_wait(&self, node: NodeId, len: usize) -> bool {
        len > SMALL_MAX && self.kernel.is_congested(node)
    }

    /// Holds the request on a lane, if it must wait.
    pub(super) fn hold_request(&mut self, proxy: &Arc<Proxy>, lane: usize, len: usize) -> bool {
        let (dc, to): (DcId, Endpoint) = proxy.way();
        let Some(node) = self.kernel.home(dc, to).filter(|node| self.must_wait(*node, len)) else {
            return false;
        };
        if proxy.held.add(lane) {
            let waiting = Waiting::Request(Arc::clone(proxy), lane);
            self.held.by_node.entry(node).or_default().push_back(waiting);
        }
        true
    }

    /// Holds the answer on a lane, if it must wait.
    pub(super) fn hold_answer(&mut self, courier: &Arc<Courier>, lane: usize, len: usize) -> bool {
        let node = courier.node;
        let waits = self.must_wait(node, len);
        if waits && courier.held.add(lane) {
            let waiting = Waiting::Answer(Arc::clone(courier), lane);
            self.held.by_node.entry(node).or_default().push_back(waiting);
        }
        waits
    }

    /// Takes what need not wait any more. False: there was nothing.
    pub(super) fn take_held(&mut self) -> bool {
        let mut has_taken = false;
        let nodes: Vec<NodeId> = self.held.by_node.keys().copied().collect();
        for node in nodes {
            while !self.kernel.is_congested(node)
                && let Some(waiting) = self.next_held(node)
            {
                has_taken = true;
                match waiting {
                    Waiting::Request(proxy, lane) => {
                        if proxy.held.remove(lane) && self.proxies.has(&proxy) {
                            let mut buffer = vec![0; PAYLOAD_AREA];
                            self.take_request(&proxy, lane, &mut buffer);
                        }
                    }
                    Waiting::Answer(courier, lane) => {
                        if courier.held.remove(lane) {
                            self.take_answers_on(&courier, 1 << lane, true);
                        }
                    }
                }
            }
        }
        has_taken
    }

    fn next_held(&mut self, node: NodeId) -> Option<Waiting> {
        let list = self.held.by_node.get_mut(&node)?;
        let next = list.pop_front();
        if list.is_empty() {
            self.held.by_node.remove(&node);
        }
        next
    }
}
