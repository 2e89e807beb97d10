//! The containers that all members agree on, while the daemon runs: those that are made, and the nodes that they come to span.

use super::children;
use super::config::Dc;
use super::description::Description;
use super::links::Linking;
use super::node::{Shared, kernel_dc};
use crate::kernel::Input;
use anyhow::Result;
use m3ipc::{DcId, NodeId};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

/// Goes by the list of members that counts now. Before its new nodes are known to the kernel, so that no call of theirs
/// comes too early.
pub(super) fn follow(shared: &Arc<Shared>, linking: &Linking) {
    let mut known = shared.dcs.lock().unwrap_or_else(PoisonError::into_inner);
    for dc in linking.membership.dcs() {
        let earlier = known.iter_mut().find(|one| one.id == dc.id || one.name == dc.name);
        match earlier {
            Some(earlier) if !is_same(earlier, &dc) => {
                tell_of_clash(&dc);
            }
            Some(earlier) => {
                // Not those that it spanned before: the administrator may have taken one out of it here.
                let is_new = |node: &&u16| !earlier.nodes.contains(*node);
                let new: BTreeSet<NodeId> =
                    dc.nodes.iter().filter(is_new).copied().map(NodeId).collect();
                if !new.is_empty() {
                    let id = DcId(dc.id);
                    shared.with(|node| node.step(Input::DcSpan { dc: id, nodes: &new }));
                }
                earlier.nodes = dc.nodes;
            }
            None => match open(shared, &dc) {
                Ok(()) => {
                    // Its children look for it.
                    Description::publish(shared, &dc);
                    if let Err(error) = children::start(shared, &dc) {
                        let error = format!("{error:#}");
                        tracing::error!(name = dc.name, error, "a container has no servers here");
                    }
                    known.push(dc);
                }
                Err(error) => tell_of_failure(&dc, &error),
            },
        }
    }
    // A node that has come, or gone, is told of in all that it was to be in.
    known.iter().for_each(|dc| Description::publish(shared, dc));
}

/// Those of this node's configuration, `known`, and those that all members agree on. What must not be here twice is here
/// as it is configured: a list that others have made never keeps this node from starting.
pub(super) fn join(known: &mut Vec<Dc>, agreed: Vec<Dc>) {
    for dc in agreed {
        match known.iter_mut().find(|one| one.id == dc.id || one.name == dc.name) {
            Some(earlier) if is_same(earlier, &dc) => earlier.nodes = dc.nodes,
            Some(_) => tell_of_clash(&dc),
            None => known.push(dc),
        }
    }
}

fn tell_of_clash(dc: &Dc) {
    tracing::error!(
        name = dc.name,
        id = dc.id,
        "a container of this node's configuration has the name or number of one of the DVS, which is not here"
    );
}

/// A container of the DVS is not here, for this reason.
pub(super) fn tell_of_failure(dc: &Dc, error: &anyhow::Error) {
    let error = format!("{error:#}");
    tracing::error!(name = dc.name, error, "a container cannot be started here");
}

/// Is it one and the same, whatever it spans?
fn is_same(one: &Dc, other: &Dc) -> bool {
    (one.id, &one.name, one.home) == (other.id, &other.name, other.home)
}

/// Opens the door of a container that is new here.
fn open(shared: &Shared, dc: &Dc) -> Result<()> {
    let path = shared.config.socket(&dc.name);
    shared.with(|node| {
        node.door.listen(DcId(dc.id), &path)?;
        node.step(Input::DcStart { dc: &kernel_dc(dc) });
        Ok(())
    })
}
