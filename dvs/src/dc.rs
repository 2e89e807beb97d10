//! `dvs dc`: the distributed containers that can be reached from here, and new ones.

use crate::place::{self, Place};
use crate::state;
use crate::table::{self, Cell, Table};
use anyhow::{Context, Result};
use dvk::dvkd::Description;
use dvk::dvkd::admin::{self, Query};

/// What the help of `dvs dc create` says at its end.
const HELP: &str = "\
Run it on the node where \"dvs init\" was run. The container spans all nodes, and those that join later have it from \
their start; its servers run at its home. On each node its door is run/dc-NAME.sock in the node's state directory.";

/// Options of `dvs dc create`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct CreateOptions {
    /// Its name
    name: String,
    /// The node where its servers run, by name or number [default: this one]
    #[arg(long, value_name = "NODE")]
    home: Option<String>,
    #[command(flatten)]
    state: state::StateOption,
}

/// `dvs dc create`.
///
/// # Errors
/// One sentence: no dvkd answers, it has not the authority, there is one with that name, or no such node.
pub(crate) fn create(options: &CreateOptions) -> Result<()> {
    let config = options.state.config()?;
    let nodes = admin::status(&config.run)?.nodes;
    let find = |name: &String| {
        let known = nodes.iter().find(|one| one.name == *name || one.node.to_string() == *name);
        known.map(|known| known.node).with_context(|| format!("there is no node {name:?}"))
    };
    let home = options.home.as_ref().map_or(Ok(config.node), find)?;
    let query = Query::CreateDc { name: options.name.clone(), home };
    table::say(&(admin::command(&config.run, query)? + "\n"))
}

/// What the help of `dvs dc rm` says at its end.
const REMOVE_HELP: &str = "\
Run it on the node where \"dvs init\" was run. Programs are ended on each node as soon as it hears of it; keys and \
locks of the container are deleted. Its files stay on its home until you delete them: a new container with the same \
name does not see them.";

/// Options of `dvs dc rm`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = REMOVE_HELP)]
pub(crate) struct RemoveOptions {
    /// Its name
    name: String,
    #[command(flatten)]
    state: state::StateOption,
}

/// `dvs dc rm`.
///
/// # Errors
/// One sentence: no dvkd answers, it has not the authority, or there is none of that name.
pub(crate) fn remove(options: &RemoveOptions) -> Result<()> {
    let config = options.state.config()?;
    let query = Query::RemoveDc { name: options.name.clone() };
    table::say(&(admin::command(&config.run, query)? + "\n"))
}

/// All containers of the node of this machine; in a container that one, and outside of one that of the lab.
fn reachable() -> Result<Vec<Description>> {
    match state::own_node()?.filter(|_| place::own_door().is_none()) {
        Some(config) => {
            let dcs = admin::status(&config.run)?.dcs;
            dcs.iter().map(|dc| Description::beside(&dc.socket)).collect()
        }
        None => Ok(vec![Place::required(None, None)?.info]),
    }
}

/// `dvs dc ls`.
///
/// # Errors
/// One sentence: no DVS.
pub(crate) fn list(json: bool) -> Result<()> {
    let mut table = Table::new(&["DC", "NUMBER", "HOME", "NODES"]);
    for known in reachable()? {
        let names: Vec<&str> = known.nodes.iter().map(|node| node.name.as_str()).collect();
        table.row(vec![
            Cell::text(&known.dc),
            Cell::number(known.id),
            Cell::text(known.name_of(known.home)),
            Cell::text(names.join(",")),
        ]);
    }
    table.print(json)
}
