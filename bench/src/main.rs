//! How fast it is, always beside what Linux itself does in the same run.

mod files;
mod peer;
mod report;
mod rounds;
mod shared;
mod stream;

use anyhow::Result;
use clap::{Parser, Subcommand};
use rounds::Subject;
use std::path::PathBuf;

/// Times of DVS, each beside the same of Linux in the same run.
#[derive(Debug, Parser)]
struct Arguments {
    /// Print one JSON object per row: name, value, unit, baseline, ratio.
    #[arg(long)]
    json: bool,
    /// Rounds of each measurement; the row shows their median.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Only rows whose name contains this.
    #[arg(default_value = "")]
    filter: String,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the bench starts itself as.
#[derive(Debug, Subcommand)]
enum Role {
    /// The other side of a ping-pong over standard input and output.
    #[command(hide = true)]
    Peer { kind: peer::Kind },
    /// Works on files in a folder as standard input says, and prints how long it took.
    #[command(hide = true)]
    Files { folder: PathBuf },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Peer { kind }) => peer::answer(kind),
        Some(Role::Files { folder }) => files::work(&folder),
        None => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let mut report = report::Report::new(arguments.json, &arguments.filter);
    messages(arguments, &mut report)?;
    files(arguments, &mut report)
}

fn messages(arguments: &Arguments, report: &mut report::Report) -> Result<()> {
    let mut linux: Vec<Box<dyn Subject>> = vec![
        Box::new(shared::Shared::start()?),
        Box::new(stream::pipe()?),
        Box::new(stream::unix()?),
        Box::new(stream::tcp()?),
    ];
    let times = rounds::medians(&mut linux, arguments.rounds)?;
    for time in &times {
        report.row(&format!("ping-pong {}", time.name), time.nanos, None);
    }
    Ok(())
}

fn files(arguments: &Arguments, report: &mut report::Report) -> Result<()> {
    let places = [
        files::Place::native("tmpfs", "/dev/shm")?,
        files::Place::native("ext4", files::target()?)?,
    ];
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for operation in files::OPERATIONS {
        for place in &places {
            subjects.push(Box::new(place.subject(operation)));
        }
    }
    for time in rounds::medians(&mut subjects, arguments.rounds)? {
        report.row(&time.name, time.nanos, None);
    }
    Ok(())
}
