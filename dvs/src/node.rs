//! `dvs node`: the nodes of a DC, and which of them answer; a node's end, and its certificate.

use crate::limits::NODE_ANSWER_MS;
use crate::place::{self, Connected, Place};
use crate::state;
use crate::table::{self, Cell, Table};
use anyhow::{Context, Result};
use calls::call;
use calls::container::Resize;
use dvk::dvkd::admin::{self, Query};
use m3ipc::errno::numbers::ESRCH;
use m3ipc::port::Signals;
use m3ipc::{Endpoint, NodeId, Wait};
use std::net::SocketAddr;

/// `dvs node ls`.
///
/// # Errors
/// One sentence: no DVS.
pub(crate) fn list(json: bool) -> Result<()> {
    let mut table = Table::new(&["NODE", "NUMBER", "ADDRESS", "STATE"]);
    let mut row = |name: &str, number: u16, address: SocketAddr, up: bool| {
        table.row(vec![
            Cell::text(name),
            Cell::number(number),
            Cell::text(address),
            Cell::text(if up { "up" } else { "down" }),
        ]);
    };
    if let Some(config) = state::own_node()?.filter(|_| place::own_door().is_none()) {
        for node in admin::status(&config.run)?.nodes {
            row(&node.name, node.node, node.address, node.up);
        }
        return table.print(json);
    }
    let place = Place::required(None, None)?;
    let client = place.connect(|| ())?;
    let states: Vec<bool> = std::thread::scope(|scope| {
        let asked: Vec<_> = place
            .info
            .nodes
            .iter()
            .map(|node| scope.spawn(|| is_up(&client, NodeId(node.node))))
            .collect();
        asked.into_iter().map(|answer| answer.join().unwrap_or(false)).collect()
    });
    for (node, up) in place.info.nodes.iter().zip(states) {
        row(&node.name, node.node, node.address, up);
    }
    table.print(json)
}

/// What the help of `dvs node revoke` says at its end.
pub(crate) const REVOKE_HELP: &str = "\
Run it on the node where \"dvs init\" was run. All other nodes drop their links with the node within a second and \
refuse it from then on; its calls end, and what its programs held is released. Its number is never used again: to \
come back it joins anew, with a new token and an empty state directory.";

/// Options of `dvs node revoke`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RevokeOptions {
    /// The node, by its number or its name
    node: String,
    #[command(flatten)]
    state: state::StateOption,
}

/// `dvs node revoke`.
///
/// # Errors
/// One sentence: no dvkd answers, it has not the authority, or there is no such node.
pub(crate) fn revoke(options: &RevokeOptions) -> Result<()> {
    let config = options.state.config()?;
    let name = &options.node;
    let nodes = admin::status(&config.run)?.nodes;
    let named = nodes.iter().find(|node| node.name == *name).map(|node| node.node);
    let node = named.or_else(|| name.parse().ok());
    let node = node.with_context(|| format!("there is no node {name:?}"))?;
    table::say(&(admin::command(&config.run, Query::Revoke { node })? + "\n"))
}

/// `dvs node renew`.
///
/// # Errors
/// One sentence: no dvkd answers, or the node with the authority does not.
pub(crate) fn renew(options: &state::StateOption) -> Result<()> {
    let config = options.config()?;
    table::say(&(admin::command(&config.run, Query::Renew)? + "\n"))
}

/// Does the container of `node` answer? A call about a session that nobody has: its answer is ESRCH.
fn is_up(client: &Connected, node: NodeId) -> bool {
    let wait = Wait { timeout_ms: Some(NODE_ANSWER_MS), signals: Signals::Ignore };
    let row = Resize { id: 0, rows: 0, columns: 0 };
    let answer = call(client, Endpoint::container(node), &row, &[], &mut [], wait);
    answer.is_err_and(|errno| errno.errno == ESRCH)
}
