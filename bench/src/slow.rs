//! Copies between nodes over links of a given rate: compressed, and as they are.

use crate::bound::{PREFIX, Pair, RECEIVER};
use crate::place::Place;
use crate::report::{Group, Report};
use crate::rounds::{Subject, medians};
use crate::system::System;
use anyhow::{Context, Result, ensure};
use legacy_tests::lab::NODES;
use std::process::{Command, Stdio};

/// What a node sends in a second, as tc(8) has it: none is whatever the machine can do.
const RATES: [Option<&str>; 3] = [Some("100mbit"), Some("1gbit"), None];

/// Bytes of one copy; its contents are those of a program.
const SIZE: usize = 1 << 20;

/// A lab, and who copies from whom in it.
struct Copiers {
    system: System,
    caller: Place,
    receiver: Place,
}

impl Copiers {
    fn start(compression: &str) -> Result<Copiers> {
        let system = System::up_with(&["--compression", compression])?;
        let receiver = system.worker("receiver", NODES[0])?;
        receiver.perform(1, &format!("{PREFIX}serve {RECEIVER}"))?;
        let caller = system.worker("caller", NODES[1])?;
        Ok(Copiers { system, caller, receiver })
    }

    fn subject(&self, name: String) -> Box<dyn Subject + '_> {
        let operation = format!("{PREFIX}vcopy 1 {RECEIVER} {SIZE}");
        Box::new(Pair { name, caller: &self.caller, receiver: &self.receiver, operation })
    }

    /// Limits what both nodes send.
    fn limit(&self, rate: Option<&str>) -> Result<()> {
        for node in &NODES[..2] {
            limit(self.system.daemon(node)?, rate)?;
        }
        Ok(())
    }
}

/// Copies of a program's bytes, with a lab that compresses when that pays beside one that never does.
///
/// # Errors
/// One sentence: no lab, or its network cannot be limited.
pub(crate) fn rows(rounds: usize, report: &Report) -> Result<()> {
    if !report.wants(Group::Slow) {
        return Ok(());
    }
    let (auto, never) = (Copiers::start("auto")?, Copiers::start("never")?);
    for rate in RATES {
        for copiers in [&auto, &never] {
            if let Err(error) = copiers.limit(rate) {
                eprintln!("bench: no link can be made slow here: {error:#}");
                return Ok(());
            }
        }
        let at = rate.map_or("unlimited".to_owned(), |rate| format!("at {rate}"));
        let mut subjects = [
            auto.subject(format!("vcopy across nodes 1024 KiB {at}, compressed if that pays")),
            never.subject(format!("vcopy across nodes 1024 KiB {at}, as it is")),
        ];
        let times = medians(&mut subjects, rounds)?;
        report.beside(&times[..1], &times[1..]);
    }
    Ok(())
}

/// Limits what the node of this daemon sends: in its own network namespace, never in that of this machine.
fn limit(daemon: u32, rate: Option<&str>) -> Result<()> {
    let namespace = format!("/proc/{daemon}/ns/net");
    let (theirs, ours) =
        (std::fs::read_link(&namespace)?, std::fs::read_link("/proc/self/ns/net")?);
    ensure!(theirs != ours, "the lab has no network of its own; that takes root");
    let mut tc = Command::new("nsenter");
    tc.arg(format!("--net={namespace}")).args(["tc", "qdisc", "replace", "dev", "eth0", "root"]);
    match rate {
        Some(rate) => tc.args(["tbf", "rate", rate, "burst", "128kb", "latency", "100ms"]),
        None => tc.arg("pfifo_fast"),
    };
    let output = tc.stdin(Stdio::null()).output().context("nsenter(1) of util-linux is missing")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
