//! How fast it is, always beside what Linux itself does in the same run.

mod bound;
mod channel;
mod cpus;
mod peer;
mod place;
mod plot;
mod queue;
mod report;
mod rounds;
mod shared;
mod stream;
mod system;
mod worker;

use anyhow::Result;
use bound::Pair;
use clap::{Parser, Subcommand};
use cpus::Layout;
use legacy_tests::lab::NODES;
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
    /// Draw the rows to this SVG file as well
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
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
    Peer { kind: peer::Kind, numbers: Vec<i32> },
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
        Some(Role::Peer { kind, numbers }) => peer::answer(kind, &numbers),
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
    files(system.as_ref(), arguments.rounds, &report)?;
    match &arguments.plot {
        Some(path) => report.draw(path),
        None => Ok(()),
    }
}

/// One message there and one back.
fn messages(system: Option<&System>, rounds: usize, report: &Report) -> Result<()> {
    let mut linux: Vec<Box<dyn Subject>> = vec![
        Box::new(shared::Shared::start(shared::SPINS)?),
        Box::new(shared::Shared::start(0)?),
        Box::new(stream::pipe()?),
        Box::new(stream::fifo()?),
        Box::new(stream::unix()?),
        Box::new(stream::seqpacket()?),
        queue::posix()?,
        queue::sysv()?,
        Box::new(stream::tcp()?),
    ];
    let baselines = linux.len();
    linux.push(Box::new(channel::Channel::start()?));
    let layouts = cpus::layouts()?;
    let Some(system) = system else {
        for layout in layouts {
            let times = pinned(&mut linux, layout, rounds)?;
            beside(report, &times[baselines..], &times[..baselines]);
        }
        return Ok(());
    };
    let (home, other) = (NODES[0], NODES[1]);
    let (near, far) = (system.worker(home, home)?, system.worker(other, other)?);
    let (_echo, address) = system.echo()?;
    let tcp = format!("{}{address}", worker::TCP);
    let receiver = system.worker("receiver", home)?;
    receiver.perform(1, bound::SERVE)?;
    let pair = |name, caller, operation| -> Box<dyn Subject + '_> {
        Box::new(Pair { name, caller, receiver: &receiver, operation })
    };
    let mut subjects = linux;
    subjects.push(pair("sendrec same node", &near, bound::SENDREC));
    subjects.push(pair("send same node", &near, bound::SEND));
    subjects.push(near.subject("call to ipc-server same node", worker::SENDREC));
    let here = subjects.len();
    subjects.push(pair("sendrec across nodes", &far, bound::SENDREC));
    subjects.push(pair("send across nodes", &far, bound::SEND));
    subjects.push(far.subject("call to ipc-server across nodes", worker::SENDREC));
    let there = subjects.len();
    subjects.push(far.subject("tcp across nodes", &tcp));
    for layout in layouts {
        // The servers are on the home node; each worker then moves to the CPU of those who ask.
        system.pin(home, layout.answers)?;
        system.pin(other, layout.asks)?;
        let times = pinned(&mut subjects, layout, rounds)?;
        beside(report, &times[baselines..here], &times[..baselines]);
        beside(report, &times[here..there], &times[there..]);
    }
    Ok(())
}

/// The median times, with both sides where `layout` says.
fn pinned(
    subjects: &mut [Box<dyn Subject + '_>],
    layout: Layout,
    rounds: usize,
) -> Result<Vec<Time>> {
    for subject in subjects.iter_mut() {
        subject.pin(layout)?;
    }
    let times = medians(subjects, rounds)?.into_iter();
    Ok(times.map(|time| Time { name: format!("{}, {}", time.name, layout.name), ..time }).collect())
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
