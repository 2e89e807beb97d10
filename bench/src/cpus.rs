//! Which CPUs the sides of a measurement run on: for two that call each other this decides more than anything else.

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeSet;
use std::fs;

/// Where the two sides run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// What the rows call it.
    pub(crate) name: &'static str,
    /// CPU of the side that asks, and of the one that answers.
    pub(crate) asks: usize,
    pub(crate) answers: usize,
}

/// The layouts that this machine has.
pub(crate) fn layouts() -> Result<Vec<Layout>> {
    let set = sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).take(2).collect();
    ensure!(!cpus.is_empty(), "no CPU may be used");
    let mut layouts = Vec::new();
    if let [asks, answers] = cpus[..] {
        layouts.push(Layout { name: "two CPUs", asks, answers });
    }
    layouts.push(Layout { name: "one CPU", asks: cpus[0], answers: cpus[0] });
    Ok(layouts)
}

/// Puts this process, all threads, on one CPU.
pub(crate) fn pin_self(cpu: usize) -> Result<()> {
    pin(std::process::id(), cpu)
}

/// Puts a process, all threads, on one CPU.
pub(crate) fn pin(process: u32, cpu: usize) -> Result<()> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))
        .with_context(|| format!("process {process} is gone"))?;
    let mut set = CpuSet::new();
    set.set(cpu);
    for task in tasks {
        let number: i32 = task?.file_name().to_string_lossy().parse()?;
        // A thread that has ended meanwhile needs no CPU.
        sched_setaffinity(Pid::from_raw(number), &set).ok();
    }
    Ok(())
}

/// Puts a process and all its descendants on one CPU.
pub(crate) fn pin_tree(process: u32, cpu: usize) -> Result<()> {
    let mut tree = BTreeSet::from([process]);
    loop {
        let before = tree.len();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            if parent(pid).is_some_and(|parent| tree.contains(&parent)) {
                tree.insert(pid);
            }
        }
        if tree.len() == before {
            break;
        }
    }
    // One that has ended meanwhile needs no CPU.
    tree.into_iter().for_each(|pid| drop(pin(pid, cpu)));
    Ok(())
}

/// The parent of a process (proc_pid_stat(5)); its name may have spaces and parentheses.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_parent_of_a_child_is_this_process_and_both_can_be_pinned() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert_eq!(parent(child.id()), Some(std::process::id()));
        let cpu = layouts().unwrap()[0].asks;
        pin_tree(child.id(), cpu).unwrap();
        let set = sched_getaffinity(Pid::from_raw(child.id().cast_signed())).unwrap();
        assert!(set.count() == 1 && set.is_set(cpu));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
