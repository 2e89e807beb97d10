//! Many files: what one costs on the disk and in memory, how soon a server with all of them is ready, and how long it is away.
//!
//! A file server in this process, without nodes or kernels: files are made and closed as an agent does it, a few calls a round, each round committed.
#![expect(
    clippy::print_stdout,
    reason = "the figures of a process for the one that has started it"
)]

use crate::idle::memory;
use crate::place;
use crate::report::{Group, Report};
use anyhow::{Context as _, Result, ensure};
use calls::Row;
use calls::vfs::{Attr, Create, Created, Lookup, Mkdir, ROOT_INO, Release};
use calls::wire::Wire;
use dvk::host::disk::{DiskStore, Durable};
use dvk::lanes::Hosted;
use dvk::server::{Answers, Call, Context};
use m3ipc::{CallId, Cred, Endpoint, Message, NodeId, Tag};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use vfs_server::VfsServer;

/// Files of a directory: as many as of a mailbox or a build.
const PER_DIRECTORY: u64 = 1000;
/// Files that are made in a round: what a few agents have asked for meanwhile.
const PER_ROUND: usize = 4;
/// Files that are made when all are there, and of them in a second: what programs of a node reach on this kind of machine
/// (`--only files`).
const PACED: u64 = 100_000;
const PER_SECOND: u64 = 4000;
/// Before that nothing is done: what was written in a burst is still being sorted.
const REST: Duration = Duration::from_secs(10);
/// Files that are looked up when all are there.
const LOOKS: u64 = 20_000;

/// What a process of its own measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Making the files
    Fill,
    /// A server that has them
    Serve,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Fill => "fill",
            Part::Serve => "serve",
        }
    }
}

/// Makes many files, and starts a server that has them.
pub(crate) fn rows(files: u64, report: &Report) -> Result<()> {
    if !report.wants(Group::Scale) {
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("dvs-bench-").tempdir_in(place::target()?)?;
    for role in [Part::Fill, Part::Serve] {
        for (name, value, unit) in part(role, folder.path(), files)? {
            report.figure(&format!("{files} files, {name}"), value, &unit);
        }
    }
    Ok(())
}

/// What a process of its own has measured.
fn part(role: Part, folder: &Path, files: u64) -> Result<Vec<(String, f64, String)>> {
    let program = std::env::current_exe().context("this program has no path")?;
    let mut command = Command::new(program);
    command.args(["scale", role.name(), &files.to_string()]).arg(folder).stderr(Stdio::inherit());
    let output = command.output().context("it cannot start itself")?;
    ensure!(output.status.success(), "{}: {}", role.name(), output.status);
    let lines = String::from_utf8(output.stdout).context("figures are text")?;
    let figure = |line: &str| {
        let mut fields = line.splitn(3, ' ');
        let (value, unit) = (fields.next()?.parse().ok()?, fields.next()?.to_owned());
        Some((fields.next()?.to_owned(), value, unit))
    };
    lines.lines().map(|line| figure(line).context("a figure")).collect()
}

/// The part of a process that [`part`] has started.
///
/// # Errors
/// The disk is full, or a server says something unexpected.
pub(crate) fn work(role: Part, files: u64, folder: &Path) -> Result<()> {
    match role {
        Part::Fill => fill(files, folder),
        Part::Serve => serve(files, folder),
    }
}

fn say(name: &str, value: f64, unit: &str) {
    println!("{value} {unit} {name}");
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn fill(files: u64, folder: &Path) -> Result<()> {
    let mut host = Host::open(folder)?;
    let start = Instant::now();
    let mut said = start;
    for directory in 0..files.div_ceil(PER_DIRECTORY) {
        let parent = host.directory(directory)?;
        let first = directory * PER_DIRECTORY;
        for from in (first..files.min(first + PER_DIRECTORY)).step_by(PER_ROUND) {
            host.round(parent, from)?;
        }
        if said.elapsed() > Duration::from_secs(2) {
            said = Instant::now();
            eprint!("\r\x1b[Kbench: {first} of {files} files made");
        }
    }
    eprint!("\r\x1b[K");
    say("made and closed in", micros(start.elapsed()) / files as f64, "us");
    let kib = memory(std::process::id())?;
    say("memory of the server that has made them", kib as f64 / 1024.0, "MiB");
    std::thread::sleep(REST);
    let mut rounds = paced(files, &mut host)?;
    rounds.sort_unstable();
    let but_for = |rest: usize| micros(rounds[rounds.len() - 1 - rest]) / 1e3;
    let then = format!("then {PER_SECOND} a second: a round");
    say(&format!("{then}, median"), but_for(rounds.len() / 2), "ms");
    say(&format!("{then}, one of 1000"), but_for(rounds.len() / 1000), "ms");
    say(&format!("{then}, longest"), but_for(0), "ms");
    Ok(())
}

/// Makes some more, as fast as programs of a node do, and says how long after its time each round was over.
fn paced(files: u64, host: &mut Host) -> Result<Vec<Duration>> {
    let mut rounds = Vec::new();
    let start = Instant::now();
    let first = files.next_multiple_of(PER_DIRECTORY);
    for directory in 0..PACED / PER_DIRECTORY {
        let parent = host.directory(first / PER_DIRECTORY + directory)?;
        for at in (0..PER_DIRECTORY).step_by(PER_ROUND) {
            let made = directory * PER_DIRECTORY + at;
            let due = start + Duration::from_micros(made * 1_000_000 / PER_SECOND);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            host.round(parent, first + made)?;
            rounds.push(due.elapsed());
        }
    }
    Ok(rounds)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn serve(files: u64, folder: &Path) -> Result<()> {
    let bytes = size_of_all(folder)?;
    say("each on the disk", bytes as f64 / (files + PACED) as f64, "bytes");
    let start = Instant::now();
    let mut host = Host::open(folder)?;
    say("ready after", start.elapsed().as_secs_f64(), "s");
    let mut looks = Vec::new();
    let mut number = 0_u64;
    for _ in 0..LOOKS.min(files) {
        // Steps of a fixed size through all, as far apart as can be.
        number = (number + files * 618 / 1000 + 1) % files;
        let look = Instant::now();
        let directory = name('d', number / PER_DIRECTORY);
        let (_, payload) = host.call(&Lookup { parent: ROOT_INO }, directory.as_bytes())?;
        let parent = Attr::get(&payload).context("an attribute")?.ino;
        let (_, payload) = host.call(&Lookup { parent }, name('f', number).as_bytes())?;
        ensure!(Attr::get(&payload).is_some_and(|attr| attr.ino != 0), "file {number} is gone");
        looks.push(look.elapsed());
        host.commit()?;
    }
    looks.sort_unstable();
    say("one that nobody has looked at lately is found in", micros(looks[looks.len() / 2]), "us");
    say("one of a hundred in", micros(looks[looks.len() - 1 - looks.len() / 100]), "us");
    let kib = memory(std::process::id())?;
    say("memory of a server that serves them", kib as f64 / 1024.0, "MiB");
    Ok(())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn name(kind: char, number: u64) -> String {
    format!("{kind}{number:08}")
}

/// Bytes of all files below `folder`, as the disk has them.
fn size_of_all(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        sum += if found.is_dir() { size_of_all(&entry.path())? } else { found.blocks() * 512 };
    }
    Ok(sum)
}

/// A server and its store.
struct Host {
    store: DiskStore,
    hosted: Hosted<VfsServer>,
    start: Instant,
    source: Endpoint,
    calls: u64,
}

impl Host {
    fn open(folder: &Path) -> Result<Host> {
        let mut store = DiskStore::open(folder)?;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let server = VfsServer::open(&mut store, u64::try_from(wall)?)
            .map_err(|unknown| anyhow::anyhow!("{unknown}"))?;
        store.commit_sync()?;
        let hosted = Hosted::open(server, &store)?;
        // Another life, another endpoint.
        let source = Endpoint::new(NodeId(1), 1, std::process::id());
        Ok(Host { store, hosted, start: Instant::now(), source, calls: 0 })
    }

    /// Makes a call, and takes the answer.
    fn call<R: Row>(&mut self, row: &R, payload: &[u8]) -> Result<(R::Reply, Vec<u8>)> {
        self.calls += 1;
        let source = self.source;
        let mut message = Message::request(R::NUMBER);
        row.put(&mut message.args);
        (message.source, message.tag) = (source, Tag::new(0, self.calls));
        message.payload_len = payload.len().try_into()?;
        let id = CallId { source, tag: message.tag };
        let call = Call { id, cred: &Cred::ROOT, message: &message, payload };
        let mut answers = Answers::default();
        let now = u64::try_from(self.start.elapsed().as_nanos())?;
        let (store, answers_of) = (&mut self.store, &mut answers);
        let mut cx = Context { now, wall: now, entropy: 0, store, answers: answers_of };
        self.hosted.request(&call, &mut cx);
        let answer = answers.list.pop().context("no answer")?;
        let is_good = matches!(answer.message.outcome(), Ok(Ok(())));
        ensure!(is_good, "{}: {:?}", R::NAME, answer.message.outcome());
        Ok((R::Reply::get(&answer.message.args).context("a reply")?, answer.payload))
    }

    /// Makes directory `number`.
    fn directory(&mut self, number: u64) -> Result<u64> {
        let row = Mkdir { parent: ROOT_INO, mode: 0o755, umask: 0 };
        let (_, payload) = self.call(&row, name('d', number).as_bytes())?;
        Ok(Attr::get(&payload).context("an attribute")?.ino)
    }

    /// Makes some files, from number `first` on.
    fn round(&mut self, parent: u64, first: u64) -> Result<()> {
        for file in (first..).take(PER_ROUND) {
            self.make(parent, &name('f', file))?;
        }
        self.commit()
    }

    fn make(&mut self, parent: u64, name: &str) -> Result<()> {
        let row = Create { parent, forgotten: 0, mode: 0o644, umask: 0, flags: 1 };
        let (Created { fh, .. }, payload) = self.call(&row, name.as_bytes())?;
        let ino = Attr::get(&payload).context("an attribute")?.ino;
        self.call(&Release { fh, ino }, &[]).map(drop)
    }

    fn commit(&mut self) -> Result<()> {
        let now = u64::try_from(self.start.elapsed().as_nanos())?;
        if self.store.keep_up_at().is_some_and(|at| at <= now) {
            self.store.keep_up(now)?;
        }
        self.store.commit()
    }
}
