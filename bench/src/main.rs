//! How fast it is, always beside what Linux itself does in the same run.

mod channel;
mod peer;
mod place;
mod report;
mod rounds;
mod shared;
mod stream;
mod system;
mod worker;

use anyhow::Result;
use clap::{Parser, Subcommand};
use place::Place;
use report::Report;
use rounds::{Subject, Time, medians};
use std::net::IpAddr;
use std::path::PathBuf;
use system::System;

/// Times of DVS, each beside the same of Linux in the same run.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Print one JSON object per row: name, value, unit, baseline, ratio
    #[arg(long)]
    json: bool,
    /// Rounds of each measurement; a row shows their median
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Only rows whose name contains this
    #[arg(default_value = "")]
    filter: String,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the bench starts itself as.
#[derive(Debug, Subcommand)]
enum Role {
    /// The other side of a ping-pong over standard input and output
    #[command(hide = true)]
    Peer { kind: peer::Kind },
    /// The other side of a ping-pong over TCP: prints its address, serves one connection
    #[command(hide = true)]
    Echo { address: IpAddr },
    /// Does what standard input says, and prints how long it took
    #[command(hide = true)]
    Worker { folder: PathBuf },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Peer { kind }) => peer::answer(kind),
        Some(Role::Echo { address }) => stream::serve(address),
        Some(Role::Worker { folder }) => worker::work(&folder),
        None => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let report = Report::new(arguments.json, &arguments.filter);
    let system = match System::up() {
        Ok(system) => Some(system),
        Err(error) => {
            eprintln!("bench: without a lab there is only Linux to measure: {error:#}");
            None
        }
    };
    messages(system.as_ref(), arguments.rounds, &report)?;
    files(system.as_ref(), arguments.rounds, &report)
}

/// One message there and one back.
fn messages(system: Option<&System>, rounds: usize, report: &Report) -> Result<()> {
    let mut linux: Vec<Box<dyn Subject>> = vec![
        Box::new(shared::Shared::start()?),
        Box::new(stream::pipe()?),
        Box::new(stream::unix()?),
        Box::new(stream::tcp()?),
    ];
    let baselines = linux.len();
    linux.push(Box::new(channel::Channel::start()?));
    let Some(system) = system else {
        let times = medians(&mut linux, rounds)?;
        beside(report, &times[baselines..], &times[..baselines]);
        return Ok(());
    };
    let (near, far) = (system.worker("n1", "n1")?, system.worker("n2", "n2")?);
    let (_echo, address) = system.echo()?;
    let tcp = format!("{}{address}", worker::TCP);
    let mut subjects = linux;
    subjects.push(near.subject("sendrec same node", worker::SENDREC));
    subjects.push(far.subject("sendrec across nodes", worker::SENDREC));
    subjects.push(far.subject("tcp across nodes", &tcp));
    let mut times = medians(&mut subjects, rounds)?;
    let across = times.pop().into_iter();
    let far = times.pop().into_iter();
    beside(report, &times[baselines..], &times[..baselines]);
    let far: Vec<Time> = far.collect();
    let tcp: Vec<Time> =
        times.drain(..baselines).filter(|time| time.name == "tcp").chain(across).collect();
    beside(report, &far, &tcp);
    Ok(())
}

/// Small files, through the mount and on file systems of Linux.
fn files(system: Option<&System>, rounds: usize, report: &Report) -> Result<()> {
    let linux = [Place::native("tmpfs", "/dev/shm")?, Place::native("ext4", place::target()?)?];
    let dvs = match system {
        Some(system) => {
            vec![system.worker("/dvs, home node", "n1")?, system.worker("/dvs, other node", "n2")?]
        }
        None => Vec::new(),
    };
    for operation in worker::FILES {
        let places = linux.iter().chain(&dvs);
        let mut subjects: Vec<_> = places.map(|place| place.file_subject(operation)).collect();
        let times = medians(&mut subjects, rounds)?;
        beside(report, &times[linux.len()..], &times[..linux.len()]);
    }
    Ok(())
}

/// A row for each baseline, then for each of ours a row beside each baseline.
fn beside(report: &Report, ours: &[Time], baselines: &[Time]) {
    for baseline in baselines {
        report.row(&baseline.name, baseline.nanos, None);
    }
    for time in ours {
        for baseline in baselines {
            report.row(&time.name, time.nanos, Some(baseline));
        }
    }
}
