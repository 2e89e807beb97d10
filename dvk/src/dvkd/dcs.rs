//! The containers that all members agree on, while the daemon runs: those that are made, and the nodes that they come to span.

use super::children;
use super::config::Dc;
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
            Some(earlier) if (earlier.id, &earlier.name) != (dc.id, &dc.name) => {
                tracing::error!(
                    name = dc.name,
                    id = dc.id,
                    "a container of this node's configuration has the name or number of one of the DVS, which is not here"
                );
            }
            Some(earlier) => {
                if earlier.nodes != dc.nodes {
                    span(shared, &dc);
                    earlier.nodes = dc.nodes;
                }
            }
            None => match start(shared, &dc) {
                Ok(()) => known.push(dc),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(name = dc.name, error, "a container cannot be started here");
                }
            },
        }
    }
}

/// The container spans these nodes, too.
fn span(shared: &Shared, dc: &Dc) {
    let nodes: BTreeSet<NodeId> = dc.nodes.iter().copied().map(NodeId).collect();
    shared.with(|node| node.step(Input::DcSpan { dc: DcId(dc.id), nodes: &nodes }));
}

/// A container that is new here.
fn start(shared: &Arc<Shared>, dc: &Dc) -> Result<()> {
    let path = shared.config.socket(&dc.name);
    shared.with(|node| {
        node.door.listen(DcId(dc.id), &path)?;
        node.step(Input::DcStart { dc: &kernel_dc(dc) });
        anyhow::Ok(())
    })?;
    children::start(shared, dc)
}
