//! `dvs node ls`: the nodes of a DC, and which of them answer.

use crate::limits::NODE_ANSWER_MS;
use crate::place::{Connected, Place};
use crate::table::{Cell, Table};
use anyhow::Result;
use calls::call;
use calls::container::Resize;
use m3ipc::errno::numbers::ESRCH;
use m3ipc::port::Signals;
use m3ipc::{Endpoint, NodeId, Wait};

/// `dvs node ls`.
///
/// # Errors
/// One sentence: no DVS.
pub(crate) fn list(json: bool) -> Result<()> {
    let place = Place::required(None, None)?;
    let client = place.connect(|| ())?;
    let mut table = Table::new(&["NODE", "NUMBER", "ADDRESS", "STATE"]);
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
        table.row(vec![
            Cell::text(&node.name),
            Cell::number(node.node),
            Cell::text(node.address),
            Cell::text(if up { "up" } else { "down" }),
        ]);
    }
    table.print(json)
}

/// Does the container of `node` answer? A call about a session that nobody has: its answer is ESRCH.
fn is_up(client: &Connected, node: NodeId) -> bool {
    let wait = Wait { timeout_ms: Some(NODE_ANSWER_MS), signals: Signals::Ignore };
    let row = Resize { id: 0, rows: 0, columns: 0 };
    let answer = call(client, Endpoint::container(node), &row, &[], &mut [], wait);
    answer.is_err_and(|errno| errno.errno == ESRCH)
}
