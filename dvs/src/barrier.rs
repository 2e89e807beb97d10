//! `dvs barrier`: waits until so many are there.

use crate::services::{self, Options, unexpected};
use anyhow::Result;
use dvk::dvkd::services::{Op, Reply};

/// Options of `dvs barrier`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = services::HELP)]
pub(crate) struct BarrierOptions {
    /// The barrier: any name, for the whole cluster
    name: String,
    /// How many must come before all go on. If one that waits is killed or gives up, the others fail (status 1)
    count: u32,
    #[command(flatten)]
    options: Options,
}

/// `dvs barrier`.
///
/// # Errors
/// One sentence with its exit code.
pub(crate) fn main(options: &BarrierOptions) -> Result<()> {
    let BarrierOptions { name, count, options } = options;
    let op = Op::Barrier { name: name.clone(), parties: *count };
    match options.connect()?.ask(op)? {
        Reply::Passed => Ok(()),
        other => unexpected(&other),
    }
}
