//! `dvs join`: this machine becomes a node of a DVS.

use crate::{state, table};
use anyhow::Result;
use dvk::dvkd::{self, Joined, Token};
use std::net::SocketAddr;

/// Options of `dvs join`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
The machine makes its own key, which never leaves it. It checks by the token that it talks to the right DVS before \
it says anything, and is given a number, a certificate and the list of the other nodes. Their links come up by \
themselves.")]
pub(crate) struct Options {
    /// The node where \"dvs init\" was run
    #[arg(value_name = "IP[:PORT]", value_parser = state::parse_address)]
    address: SocketAddr,
    /// What \"dvs token create\" has printed there
    #[arg(long, value_parser = str::parse::<Token>)]
    token: Token,
    /// Where other nodes connect to this one [default: the address that it has towards that node]
    #[arg(long, value_name = "IP[:PORT]", value_parser = state::parse_address)]
    listen: Option<SocketAddr>,
    /// Name of this node [default: the machine's]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    compression: state::CompressionOption,
    #[command(flatten)]
    state: state::StateOption,
}

/// `dvs join`.
///
/// # Errors
/// One sentence that says what to do.
pub(crate) fn main(options: &Options) -> Result<()> {
    let directory = options.state.directory();
    let name = options.name.clone().map_or_else(state::own_name, Ok)?;
    state::make(&directory)?;
    let listen =
        |own: SocketAddr| options.listen.unwrap_or_else(|| SocketAddr::new(own.ip(), state::PORT));
    let credentials = state::credentials(&directory);
    let Joined { node, name, address } =
        dvkd::join(options.address, &options.token, &name, listen, &credentials)?;
    let start = state::write(&directory, node, &name, address, options.compression.value)?;
    table::say(&format!("This machine is node {node} ({name}).\nStart it: {start}\n"))
}
