//! What costs something while nothing happens: nodes, and endpoints that are bound and wait.

use crate::bound::PREFIX;
use crate::report::{Group, Report};
use crate::system::System;
use anyhow::{Context, Result};
use legacy_tests::lab::NODES;
use nix::time::ClockId;
use nix::unistd::Pid;
use std::fs;
use std::time::{Duration, Instant};

/// How long nothing is done. The measurement is of CPU time that the kernel counts in nanoseconds.
const IDLE: Duration = Duration::from_secs(10);

/// Endpoints of the last rows, on all nodes together; how many one process of them has, as each has a thread; and
/// descriptors of a daemon for each: connection, process (twice), bell.
const ENDPOINTS: u32 = 10_000;
const PER_PROCESS: u32 = 500;
const DESCRIPTORS: u32 = 4;
/// What a daemon has open itself: sockets, links, stores.
const OWN_DESCRIPTORS: u32 = 500;

/// CPU and memory of a node's daemon, alone; and of all daemons with endpoints bound on their nodes.
pub(crate) fn rows(system: &System, report: &Report) -> Result<()> {
    if !report.wants(Group::Idle) {
        return Ok(());
    }
    let daemons: Vec<u32> = NODES.iter().map(|node| system.daemon(node)).collect::<Result<_>>()?;
    let alone = Cost::of(&daemons)?;
    let number = f64::from(u32::try_from(daemons.len())?);
    report.figure("idle node, CPU per second", alone.cpu / number, "us");
    report.figure("idle node, memory of its daemon", alone.kib / number, "KiB");
    let mut places = Vec::new();
    let mut endpoints = 0;
    for (index, (node, daemon)) in NODES.iter().zip(&daemons).enumerate() {
        let left = ENDPOINTS - endpoints;
        let nodes_left = u32::try_from(NODES.len() - index)?;
        let most = descriptors(*daemon)? / DESCRIPTORS / PER_PROCESS;
        for _ in 0..most.min(left.div_ceil(nodes_left).div_ceil(PER_PROCESS)) {
            let place = system.worker("idle", node)?;
            place.perform(PER_PROCESS, &format!("{PREFIX}bind"))?;
            places.push(place);
            endpoints += PER_PROCESS;
        }
    }
    let bound = Cost::of(&daemons)?;
    let name = format!("{endpoints} idle endpoints");
    report.figure(&format!("{name}, CPU per second on a node"), bound.cpu / number, "us");
    let each = (bound.kib - alone.kib) / f64::from(endpoints);
    report.figure(&format!("{name}, memory of a daemon for one"), each, "KiB");
    // The processes are in containers, so they measure themselves.
    let own = |what: &str| -> Result<f64> {
        let all = places.iter().map(|place| place.perform(1, what));
        Ok(all.sum::<Result<Duration>>()?.as_secs_f64() * 1e9)
    };
    let (before, start) = (own(OWN_CPU)?, Instant::now());
    std::thread::sleep(IDLE);
    let cpu = (own(OWN_CPU)? - before) / 1e3 / start.elapsed().as_secs_f64();
    report.figure(&format!("{name}, CPU per second of their processes"), cpu, "us");
    let each = own(OWN_MEMORY)? / 1024.0 / f64::from(endpoints);
    report.figure(&format!("{name}, memory of their processes for one"), each, "KiB");
    Ok(())
}

/// What a process says of itself: its CPU time, and its resident memory, a byte for a nanosecond.
pub(crate) const OWN_CPU: &str = "own cpu";
pub(crate) const OWN_MEMORY: &str = "own memory";

/// [`OWN_CPU`] and [`OWN_MEMORY`].
pub(crate) fn own(what: &str) -> Result<Duration> {
    let process = std::process::id();
    if what == OWN_CPU {
        return cpu_time(process);
    }
    Ok(Duration::from_nanos(memory(process)? * 1024))
}

/// Descriptors that a process may still open (a few for itself aside).
fn descriptors(process: u32) -> Result<u32> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let most: u32 =
        line.and_then(|line| line.split_whitespace().next()).context("no limit")?.parse()?;
    Ok(most.saturating_sub(OWN_DESCRIPTORS))
}

/// What processes take.
struct Cost {
    /// Microseconds of CPU per second.
    cpu: f64,
    /// Resident memory.
    kib: f64,
}

impl Cost {
    fn of(processes: &[u32]) -> Result<Cost> {
        let time = || -> Result<Duration> { processes.iter().copied().map(cpu_time).sum() };
        let (before, start) = (time()?, Instant::now());
        std::thread::sleep(IDLE);
        let spent = time()?.saturating_sub(before);
        let cpu = spent.as_secs_f64() * 1e6 / start.elapsed().as_secs_f64();
        let all = processes.iter().copied().map(memory);
        let kib = u32::try_from(all.sum::<Result<u64>>()?)?;
        Ok(Cost { cpu, kib: kib.into() })
    }
}

/// Resident memory of a process in KiB.
pub(crate) fn memory(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(kib.parse()?)
}

/// CPU time of all threads that a process has and has had (`clock_getcpuclockid(3)`): it never runs backwards.
fn cpu_time(process: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(process.try_into()?))?;
    Ok(clock.now()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_does_is_counted() {
        let before = cpu_time(std::process::id()).unwrap();
        let start = Instant::now();
        let mut spent = Duration::ZERO;
        // Threads come and go meanwhile, as those of other tests do.
        while spent < Duration::from_millis(1) && start.elapsed() < Duration::from_secs(60) {
            std::thread::spawn(|| ()).join().unwrap();
            spent = cpu_time(std::process::id()).unwrap() - before;
        }
        assert!(spent >= Duration::from_millis(1), "{spent:?}");
        // Above the kernel's highest (PID_MAX_LIMIT).
        assert!(cpu_time((4 << 20) + 1).is_err(), "there is no such process");
    }
}
