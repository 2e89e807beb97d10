//! How fast it is, always beside what Linux itself does in the same run.

mod alongside;
mod beside;
mod bound;
mod budget;
mod channel;
mod cpus;
mod empty_fuse;
mod files;
mod idle;
mod ipc;
mod mapped;
mod network;
mod parallel;
mod peer;
mod place;
mod plot;
mod queue;
mod report;
mod rounds;
mod scale;
mod shared;
mod slow;
mod stream;
mod system;
mod takeover;
mod tls;
mod worker;
mod workloads;

use anyhow::Result;
use clap::{Parser, Subcommand};
use network::Network;
use report::{Group, Report};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
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
    /// Measure only this group of rows; may be given several times
    #[arg(long, value_enum, value_name = "GROUP")]
    only: Vec<Group>,
    /// Files that "--only scale" makes
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    files: u64,
    /// End with status 1 unless every budget is met; a budget whose rows were not measured is not
    #[arg(long)]
    check: bool,
    /// Print only rows whose name contains this
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
    Echo {
        address: IpAddr,
        /// TLS over it; where to write the certificate to
        #[arg(long)]
        tls: Option<PathBuf>,
    },
    /// Does what standard input says, and prints how long it took
    #[command(hide = true)]
    Worker { folder: PathBuf },
    /// A file server with many files: makes them, or serves them
    #[command(hide = true)]
    Scale { part: scale::Part, files: u64, folder: PathBuf },
    /// A file system in memory, until it is unmounted
    #[command(hide = true)]
    EmptyFuse { folder: PathBuf },
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Peer { kind, numbers }) => peer::answer(kind, &numbers)?,
        Some(Role::Echo { address, tls: Some(certificate) }) => tls::serve(address, &certificate)?,
        Some(Role::Echo { address, tls: None }) => stream::serve(address)?,
        Some(Role::Worker { folder }) => worker::work(&folder)?,
        Some(Role::EmptyFuse { folder }) => empty_fuse::serve(&folder)?,
        Some(Role::Scale { part, files, folder }) => scale::work(part, files, &folder)?,
        None => return measure(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(arguments: &Arguments) -> Result<ExitCode> {
    let report = Report::new(arguments.json, &arguments.filter, &arguments.only);
    let system = match System::up() {
        Ok(system) => Some(system),
        Err(error) => {
            eprintln!("bench: without a lab there is only Linux to measure: {error:#}");
            None
        }
    };
    ipc::rows(system.as_ref(), arguments.rounds, &report)?;
    let network = if report.wants(Group::Files) || report.wants(Group::Workloads) {
        Network::all()
    } else {
        Vec::new()
    };
    files::rows(system.as_ref(), &network, arguments.rounds, &report)?;
    workloads::rows(system.as_ref(), &network, arguments.rounds, &report)?;
    drop(network);
    mapped::rows(system.as_ref(), arguments.rounds, &report)?;
    if let Some(system) = &system {
        idle::rows(system, &report)?;
        takeover::rows(system, arguments.rounds, &report)?;
        slow::rows(arguments.rounds, &report)?;
    }
    drop(system);
    scale::rows(arguments.files, &report)?;
    if let Some(path) = &arguments.plot {
        report.draw(path)?;
    }
    let are_met = report.budgets();
    Ok(if are_met || !arguments.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
