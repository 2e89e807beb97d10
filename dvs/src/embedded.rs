//! A DVS of one node for one program, on machines where none is running: muk2, with its container.

use crate::lab;
use crate::place::Place;
use crate::run::{self, Options};
use crate::session::Request;
use anyhow::{Context, Result};
use dvk::dvkd::Description;

/// Runs the program in a private DVS that ends with it; returns the exit code.
///
/// # Errors
/// One sentence.
pub(crate) fn run(options: &Options, request: &Request) -> Result<u8> {
    let lab = lab::up_privately().context("no private system could be started")?;
    let ended = attend(&lab, options, request);
    // The program's own end matters more than a directory that stays.
    if let Err(error) = lab::take_down(&lab) {
        eprintln!("dvs-run: the private system could not be cleaned up: {error:#}");
    }
    ended
}

fn attend(lab: &lab::Lab, options: &Options, request: &Request) -> Result<u8> {
    let node = lab.nodes.first().context("a lab has a node")?;
    let socket = lab.run(node).join(format!("dc-{}.sock", lab.dc));
    let info = Description::beside(&socket)?;
    let place = Place { target: info.node, socket, info };
    run::attend(options, &place, request)
}
