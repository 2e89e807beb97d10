//! `dvs init`: the beginning of a DVS, its certification authority and its first node.

use crate::{state, table};
use anyhow::Result;
use dvk::dvkd::{self, Peer};
use std::net::SocketAddr;

/// Options of `dvs init`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Makes the DVS's own certification authority and the certificate of this node, in a directory that only you can read. \
Links between nodes are mutual TLS 1.3: only nodes that this authority has certified are let in. Whoever can read \
its key (credentials/authority.key) can make nodes: keep it on this machine, and back it up.")]
pub(crate) struct Options {
    /// Where other nodes connect to this one
    #[arg(long, value_name = "IP[:PORT]", value_parser = state::parse_address)]
    listen: SocketAddr,
    /// Name of this node [default: the machine's]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    compression: state::CompressionOption,
    #[command(flatten)]
    state: state::StateOption,
}

/// `dvs init`.
///
/// # Errors
/// One sentence: there is a node already, or the directory cannot be written.
pub(crate) fn main(options: &Options) -> Result<()> {
    let directory = options.state.directory();
    let name = options.name.clone().map_or_else(state::own_name, Ok)?;
    state::make(&directory)?;
    let node = Peer { node: 1, name: name.clone(), address: options.listen };
    dvkd::found(&[(node, state::credentials(&directory))])?;
    let start = state::write(&directory, 1, &name, options.listen, options.compression.value)?;
    table::say(&format!(
        "This machine is node 1 ({name}) of a new DVS.\n\
         Start it:               {start}\n\
         For each other machine: dvs token create\n"
    ))
}
