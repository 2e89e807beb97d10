//! The containers that all members agree on, while the daemon runs: those that are made, the nodes that they come to span, and their end.

use super::children;
use super::config::{Config, Dc};
use super::description::Description;
use super::links::Linking;
use super::node::{Shared, kernel_dc};
use crate::kernel::Input;
use anyhow::Result;
use m3ipc::{DcId, NodeId};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::thread::Builder;

/// A container that spans this node.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) dc: Dc,
    /// All members agree on it, and may agree that it is no more; else this node's configuration has it.
    pub(super) is_agreed: bool,
}

impl Known {
    /// Where its servers' stores are. A name, in which there is no dot, may come back, and what was made under it does not.
    pub(super) fn store(&self, config: &Config) -> PathBuf {
        let Dc { name, id, .. } = &self.dc;
        config.store.join(if self.is_agreed { format!("{name}.{id}") } else { name.clone() })
    }
}

/// Goes by the list of members that counts now. Before its new nodes are known to the kernel, so that no call of theirs
/// comes too early.
pub(super) fn follow(shared: &Arc<Shared>, linking: &Linking) {
    let mut known = shared.dcs.lock().unwrap_or_else(PoisonError::into_inner);
    let agreed = linking.membership.dcs();
    let is_over =
        |known: &mut Known| known.is_agreed && agreed.iter().all(|dc| dc.id != known.dc.id);
    // First: the name may be another's.
    for over in known.extract_if(.., is_over).collect::<Vec<_>>() {
        end(shared, over.dc);
    }
    for dc in agreed {
        let earlier = known.iter_mut().find(|one| one.dc.id == dc.id || one.dc.name == dc.name);
        match earlier.map(|earlier| &mut earlier.dc) {
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
                    let new = Known { dc, is_agreed: true };
                    // Its children look for it.
                    Description::publish(shared, &new.dc);
                    if let Err(error) = children::start(shared, &new) {
                        let (error, name) = (format!("{error:#}"), &new.dc.name);
                        tracing::error!(name, error, "a container has no servers here");
                    }
                    known.push(new);
                }
                Err(error) => tell_of_failure(&dc, &error),
            },
        }
    }
    // A node that has come, or gone, is told of in all that it was to be in.
    known.iter().for_each(|known| Description::publish(shared, &known.dc));
}

/// Ends a container here: nobody comes in any more, its programs end, then its servers, then whoever is left is out.
fn end(shared: &Arc<Shared>, dc: Dc) {
    let socket = shared.config.socket(&dc.name);
    let id = DcId(dc.id);
    shared.with(|node| node.door.close(id));
    for file in [Description::path(&socket), socket] {
        // Nobody listens there any more.
        std::fs::remove_file(file).ok();
    }
    let ending = Arc::clone(shared);
    let ended = Builder::new().name("dc-end".into()).spawn(move || {
        children::stop_of(&ending, id);
        ending.with(|node| node.end(id));
        tracing::info!(name = dc.name, id = dc.id, "a container has ended here");
    });
    if let Err(error) = ended {
        tracing::error!(%error, "a container that has been removed goes on here");
    }
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
