//! A DVS of one node inside dvs-run, for machines where none is running.

use crate::exit::{self, Failure};
use crate::run::Options;
use crate::session::Request;
use anyhow::Result;

/// Runs the program in a private DVS that ends with it; returns the exit code.
///
/// # Errors
/// One sentence.
pub(crate) fn run(_options: &Options, _request: &Request) -> Result<u8> {
    Err(Failure::new(exit::NO_DVS, "no DVS is running here; \"dvs lab up\" starts one"))
}
