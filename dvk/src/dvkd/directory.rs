//! Between the node's kernel and the system group: what the kernel asks the group's directory for, what it learns of it,
//! and how this node stands.

use super::node::Shared;
use super::system::System;
use crate::host::solo::monotonic;
use crate::kernel::{Entry, Input};
use crate::server::Nanos;
use ::group::command::{ClientId, Life, Op, Refusal, TableOp, Whereabouts};
use ::group::fence::Fence;
use ::group::state::Place;
use ::group::{Group, Unavailable};
use m3ipc::{DcId, Endpoint, NodeId};
use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout};

/// How long the group may take to answer before it is asked again.
const PATIENCE: Duration = Duration::from_secs(2);

// The group and the kernel mean the same by a slot.
const _: () = assert!(Endpoint::well_known(NodeId(77), 70).slot >> 20 == 77);

/// What a kernel asks for: `Output::Propose`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proposal {
    pub(super) dc: DcId,
    pub(super) entry: Entry,
    pub(super) expected: u64,
}

/// What goes one way and the other.
#[derive(Debug)]
pub(super) struct Directory {
    told: Mutex<Told>,
    /// Bounded by the kernel, which asks for one thing at a time for each endpoint that can move.
    asks: UnboundedSender<Proposal>,
    asked: tokio::sync::Mutex<UnboundedReceiver<Proposal>>,
}

/// What the kernel has been told.
#[derive(Debug, Default)]
struct Told {
    /// Epoch of the last entry.
    epoch: u64,
    /// Epoch of the membership, when it was told who is up, and until when this node may act, if it may.
    standing: Option<(u64, Option<Instant>)>,
}

impl Default for Directory {
    fn default() -> Directory {
        let (asks, asked) = unbounded_channel();
        Directory { told: Mutex::default(), asks, asked: tokio::sync::Mutex::new(asked) }
    }
}

impl Directory {
    /// The kernel asks for something. The group is asked when it is at work.
    pub(super) fn propose(&self, proposal: Proposal) {
        // The receiver lives as long as this does.
        self.asks.send(proposal).ok();
    }

    /// Epochs of the directory and of the membership that the kernel has been told of.
    fn known(&self) -> (u64, Option<u64>) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        (told.epoch, told.standing.map(|(membership, _)| membership))
    }

    /// Tells the kernel what it does not know yet: first where endpoints are, then how the nodes stand.
    fn tell(&self, shared: &Shared, group: &Group) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let own = shared.config.node;
        let fence = *group.fence().borrow();
        let known = told.epoch;
        let (places, last, membership, up, client) = group.look(|state| {
            let client = state.node(own).and_then(|node| node.up).map(|(client, _)| client);
            let up: BTreeMap<NodeId, u64> =
                state.up().map(|(node, incarnation)| (NodeId(node), incarnation)).collect();
            let last = state.directory_epoch();
            (state.places_since(known), last, state.membership_epoch(), up, client)
        });
        told.epoch = told.epoch.max(last);
        let until = match fence {
            // Only when this node has seen itself come does it know what happened before.
            Fence::Up { client: one, until, .. } if Some(one) == client => Some(until),
            _ => None,
        };
        let standing = Some((membership, until));
        let is_new = std::mem::replace(&mut told.standing, standing) != standing;
        drop(told);
        shared.with(|node| {
            for (dc, slot, place) in places {
                node.step(Input::Placed { dc: DcId(dc), entry: entry(slot, &place) });
            }
            if is_new {
                node.step(Input::Standing { until: until.map_or(0, on_the_nodes_clock), up: &up });
            }
        });
    }

    /// The group is not at work here: nobody hears that this node is alive.
    pub(super) fn fence(&self, shared: &Shared) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.standing = None;
        drop(told);
        let up = BTreeMap::new();
        shared.with(|node| node.step(Input::Standing { until: 0, up: &up }));
    }
}

/// Never later than it is.
fn on_the_nodes_clock(time: Instant) -> Nanos {
    let now = monotonic();
    let left = time.saturating_duration_since(Instant::now());
    now.saturating_add(Nanos::try_from(left.as_nanos()).unwrap_or(0))
}

fn entry(slot: u32, place: &Place) -> Entry {
    let Place { to: Whereabouts { generation, life, is_over }, epoch } = *place;
    let endpoint = Endpoint { slot, generation };
    let (node, incarnation) = (NodeId(life.node), life.incarnation);
    Entry { endpoint, node, incarnation, epoch, is_over }
}

/// Keeps the kernel and the group in touch, as long as it is polled.
pub(super) async fn follow(shared: &Arc<Shared>, system: &System, group: &Group) {
    let directory = &system.directory;
    let mut fence = group.fence();
    let mut asked = directory.asked.lock().await;
    loop {
        fence.borrow_and_update();
        directory.tell(shared, group);
        let known = directory.known();
        let news = group.wait(|state| {
            let (epoch, membership) = (state.directory_epoch(), state.membership_epoch());
            ((epoch, Some(membership)) != known).then_some(())
        });
        tokio::select! {
            // It is there as long as the group, which this is about.
            changed = fence.changed() => if changed.is_err() { pending().await },
            () = news => {}
            Some(proposal) = asked.recv() => {
                tokio::spawn(ask(shared.clone(), group.clone(), proposal));
            }
        }
    }
}

/// Asks the group until it has done or refused it. This node's kernel has learned everything that was before by then.
async fn ask(shared: Arc<Shared>, group: Group, proposal: Proposal) {
    let Some(linking) = &shared.linking else { return };
    let directory = &linking.system.directory;
    let Proposal { dc, entry, expected } = proposal;
    let slot = entry.endpoint.slot;
    let incarnation = shared.with(|node| node.kernel.incarnation());
    let by = Life { node: shared.config.node, incarnation };
    let life = Life { node: entry.node.0, incarnation: entry.incarnation };
    let to = Whereabouts { generation: entry.endpoint.generation, life, is_over: entry.is_over };
    let op = Op::Table(TableOp::Place { dc: dc.0, slot, by, to, expected });
    loop {
        let asked = group.submit(ClientId::default(), 0, 0, op.clone(), PATIENCE).await;
        let decided = match asked {
            Ok((index, answer)) => {
                timeout(PATIENCE, group.reach(index)).await.map(|()| answer).ok()
            }
            Err(Unavailable) => None,
        };
        match decided {
            None if group.is_running() => {}
            // The next one is asked.
            None => return directory.propose(proposal),
            Some(answer) => {
                directory.tell(&shared, &group);
                if let Err(refusal) = answer {
                    tell_of_refusal(dc, entry.endpoint, &refusal);
                    let is_full = matches!(refusal, Refusal::Limit { .. });
                    let input = Input::Unplaced { dc, slot, expected, is_full };
                    shared.with(|node| node.step(input));
                }
                return;
            }
        }
    }
}

fn tell_of_refusal(dc: DcId, endpoint: Endpoint, refusal: &Refusal) {
    let (dc, endpoint) = (dc.0, format!("{endpoint:?}"));
    match refusal {
        Refusal::Limit { .. } => {
            tracing::error!(dc, endpoint, %refusal, "an endpoint cannot move or be taken over");
        }
        // Another was first, or a node came or went.
        _ => tracing::debug!(dc, endpoint, %refusal, "the directory stays as it is"),
    }
}
