//! Small files: 4 KiB reads and writes, create, stat and unlink, in any folder and any process.

use crate::peer::Peer;
use crate::rounds::Subject;
use anyhow::{Context, Result, bail};
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What is measured.
pub(crate) const OPERATIONS: [&str; 5] = ["write 4 KiB", "read 4 KiB", "create", "stat", "unlink"];

/// Most files that are made in a round: ext4 looks at every inode that was freed in the last five
/// seconds before it makes one, so thousands would measure that.
const FILES_MAX: u32 = 200;

/// The worker: reads lines `count operation`, does that, prints the nanoseconds.
pub(crate) fn work(folder: &Path) -> Result<()> {
    let folder = folder.join(format!("bench-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let result = serve(&folder);
    fs::remove_dir_all(&folder)?;
    result
}

fn serve(folder: &Path) -> Result<()> {
    let path = folder.join("data");
    let data = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    data.write_all_at(&[7; 4096], 0)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (count, operation) = line.split_once(' ').context("a line is `count operation`")?;
        let time = perform(folder, &data, operation, count.parse()?)?;
        writeln!(std::io::stdout(), "{}", time.as_nanos())?;
    }
    Ok(())
}

fn perform(folder: &Path, data: &File, operation: &str, count: u32) -> Result<Duration> {
    let mut block = [7; 4096];
    match operation {
        "write 4 KiB" => timed(count, |_| data.write_all_at(&block, 0)),
        "read 4 KiB" => timed(count, |_| data.read_exact_at(&mut block, 0)),
        "stat" => timed(count, |_| fs::metadata(folder.join("data")).map(drop)),
        "create" | "unlink" => create_and_unlink(folder, operation, count),
        _ => bail!("no operation {operation}"),
    }
}

/// Creates and removes `count` files; the time is that of `operation`.
fn create_and_unlink(folder: &Path, operation: &str, count: u32) -> Result<Duration> {
    let path = |index: u32| folder.join(format!("f{index}"));
    let create = timed(count, |index| File::create_new(path(index)).map(drop))?;
    let unlink = timed(count, |index| fs::remove_file(path(index)))?;
    Ok(if operation == "create" { create } else { unlink })
}

fn timed(count: u32, mut operation: impl FnMut(u32) -> std::io::Result<()>) -> Result<Duration> {
    let start = Instant::now();
    for index in 0..count {
        operation(index)?;
    }
    Ok(start.elapsed())
}

/// A folder, and the process that works in it.
#[derive(Debug)]
pub(crate) struct Place {
    name: String,
    worker: RefCell<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
    _process: Peer,
}

impl Place {
    /// A folder of this machine.
    pub(crate) fn native(name: &str, folder: impl AsRef<Path>) -> Result<Place> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("files").arg(folder.as_ref());
        Place::of(name, command)
    }

    /// A worker started by `command`.
    pub(crate) fn of(name: &str, mut command: Command) -> Result<Place> {
        let mut process = Peer(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let input = process.0.stdin.take().expect("it is piped");
        let output = BufReader::new(process.0.stdout.take().expect("it is piped")).lines();
        Ok(Place {
            name: name.to_owned(),
            worker: RefCell::new((input, output)),
            _process: process,
        })
    }

    pub(crate) fn subject(&self, operation: &'static str) -> impl Subject + '_ {
        Operation { place: self, operation }
    }
}

struct Operation<'a> {
    place: &'a Place,
    operation: &'static str,
}

impl Subject for Operation<'_> {
    fn name(&self) -> String {
        format!("{} on {}", self.operation, self.place.name)
    }

    fn count_max(&self) -> u32 {
        if ["create", "unlink"].contains(&self.operation) { FILES_MAX } else { u32::MAX }
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        let mut worker = self.place.worker.borrow_mut();
        writeln!(worker.0, "{count} {}", self.operation)?;
        let line = worker
            .1
            .next()
            .with_context(|| format!("the worker on {} has ended", self.place.name))??;
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
