//! `dvs dc ls`: the distributed containers that can be reached from here.

use crate::place::Place;
use crate::table::{Cell, Table};
use anyhow::Result;

/// `dvs dc ls`.
///
/// # Errors
/// One sentence: no DVS.
pub(crate) fn list(json: bool) -> Result<()> {
    let info = Place::required(None, None)?.info;
    let names: Vec<&str> = info.nodes.iter().map(|node| node.name.as_str()).collect();
    let mut table = Table::new(&["DC", "NUMBER", "HOME", "NODES"]);
    table.row(vec![
        Cell::text(&info.dc),
        Cell::number(info.id),
        Cell::text(info.name_of(info.home)),
        Cell::text(names.join(",")),
    ]);
    table.print(json)
}
