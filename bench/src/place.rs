//! Where a worker runs, and its operations as subjects of the measurement.

use crate::cpus::Layout;
use crate::peer::Peer;
use crate::rounds::Subject;
use crate::worker::PIN;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A worker: a folder, and the process that works in it.
#[derive(Debug)]
pub(crate) struct Place {
    name: String,
    worker: Mutex<(Option<ChildStdin>, Lines<BufReader<ChildStdout>>)>,
    process: Peer,
}

impl Place {
    /// A worker on this machine.
    pub(crate) fn native(name: &str, folder: impl AsRef<Path>) -> Result<Place> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").arg(folder.as_ref());
        Place::of(name, command)
    }

    /// A worker started by `command`.
    pub(crate) fn of(name: &str, mut command: Command) -> Result<Place> {
        let mut process = Peer(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let input = process.0.stdin.take();
        let output = BufReader::new(process.0.stdout.take().expect("it is piped")).lines();
        Ok(Place { name: name.to_owned(), worker: Mutex::new((input, output)), process })
    }

    /// One of its operations; `name` is what the rows call it.
    pub(crate) fn subject<'a>(&'a self, name: &str, operation: &'a str) -> Box<dyn Subject + 'a> {
        Box::new(Operation { place: self, name: name.to_owned(), operation })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // At the end of its input it removes its folder and ends.
        self.worker.get_mut().unwrap_or_else(PoisonError::into_inner).0 = None;
        drop(self.process.0.wait());
    }
}

struct Operation<'a> {
    place: &'a Place,
    name: String,
    operation: &'a str,
}

impl Subject for Operation<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.place.pin(layout.asks)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        self.place.perform(count, self.operation)
    }
}

impl Place {
    /// Moves the worker to a CPU.
    pub(crate) fn pin(&self, cpu: usize) -> Result<()> {
        self.perform(u32::try_from(cpu)?, PIN).map(drop)
    }

    /// Has the worker do something `count` times; returns how long that took.
    pub(crate) fn perform(&self, count: u32, operation: &str) -> Result<Duration> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let input = worker.0.as_mut().expect("it is open until the place is dropped");
        writeln!(input, "{count} {operation}")?;
        let line =
            worker.1.next().with_context(|| format!("the worker on {} has ended", self.name))??;
        Ok(Duration::from_nanos(
            line.trim().parse().with_context(|| format!("the worker says {line:?}"))?,
        ))
    }
}

/// The folder that cargo builds in: on the disk.
pub(crate) fn target() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.parent().context("a program is in a folder")?.to_path_buf())
}
