//! What costs something while nothing happens: nodes, and endpoints that are bound and wait.

use crate::bound::PREFIX;
use crate::place::Place;
use crate::report::{Group, Report};
use crate::system::System;
use anyhow::{Context, Result};
use legacy_tests::lab::NODES;
use std::fs;
use std::time::{Duration, Instant};

/// How long nothing is done. The measurement is of CPU time that the kernel counts in nanoseconds.
const IDLE: Duration = Duration::from_secs(10);

/// Endpoints of the last rows, if the daemon may have so many descriptors; how many one process of them has, as each
/// has a thread; and descriptors of the daemon for each: connection, process (twice), bell.
const ENDPOINTS: u32 = 10_000;
const PER_PROCESS: u32 = 500;
const DESCRIPTORS: u32 = 4;
/// What it has open itself: sockets, links, stores.
const OWN_DESCRIPTORS: u32 = 500;

/// CPU and memory of a node's daemon: alone, and with endpoints bound there.
pub(crate) fn rows(system: &System, report: &Report) -> Result<()> {
    if !report.wants(Group::Idle) {
        return Ok(());
    }
    let home = NODES[0];
    let daemon = system.daemon(home)?;
    let alone = Cost::of(daemon)?;
    report.figure("idle node, CPU per second", alone.cpu, "us");
    report.figure("idle node, memory of its daemon", alone.kib, "KiB");
    let number = ENDPOINTS.min(descriptors(daemon)? / DESCRIPTORS) / PER_PROCESS;
    let endpoints = number * PER_PROCESS;
    let places: Vec<Place> =
        (0..number).map(|_| system.worker("idle", home)).collect::<Result<_>>()?;
    for place in &places {
        place.perform(PER_PROCESS, &format!("{PREFIX}bind"))?;
    }
    let bound = Cost::of(daemon)?;
    report.figure(&format!("idle node, {endpoints} endpoints, CPU per second"), bound.cpu, "us");
    let each = (bound.kib - alone.kib) / f64::from(endpoints);
    let name = format!("idle node, {endpoints} endpoints, daemon's memory for one");
    report.figure(&name, each, "KiB");
    Ok(())
}

/// Descriptors that a process may still open (a few for itself aside).
fn descriptors(process: u32) -> Result<u32> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let most: u32 =
        line.and_then(|line| line.split_whitespace().next()).context("no limit")?.parse()?;
    Ok(most.saturating_sub(OWN_DESCRIPTORS))
}

/// What a daemon takes.
struct Cost {
    /// Microseconds of CPU per second.
    cpu: f64,
    /// Resident memory.
    kib: f64,
}

impl Cost {
    fn of(process: u32) -> Result<Cost> {
        let (before, start) = (cpu_time(process)?, Instant::now());
        std::thread::sleep(IDLE);
        let spent = cpu_time(process)?.saturating_sub(before);
        let cpu = spent.as_secs_f64() * 1e6 / start.elapsed().as_secs_f64();
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
        Ok(Cost { cpu, kib: kib.parse()? })
    }
}

/// CPU time of all threads of a process (schedstat in proc(5), its first number).
fn cpu_time(process: u32) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        // One that has ended meanwhile is not idle either.
        let Ok(line) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let nanos = line.split_whitespace().next().context("schedstat is empty")?;
        all += Duration::from_nanos(nanos.parse()?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_does_is_counted() {
        let before = cpu_time(std::process::id()).unwrap();
        let start = Instant::now();
        let mut spent = Duration::ZERO;
        while spent < Duration::from_millis(1) && start.elapsed() < Duration::from_secs(60) {
            spent = cpu_time(std::process::id()).unwrap() - before;
        }
        assert!(spent >= Duration::from_millis(1), "{spent:?}");
    }
}
