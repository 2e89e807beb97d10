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
use calls::vfs::{
    Attr, Create, Created, IN_SNAPSHOT, Lookup, Mkdir, ROOT_INO, Release, RemoveSnapshot,
    SNAPSHOTS_NAME, SetAttr, Setattr, TakeSnapshot, Write, set,
};
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
/// Files that are changed before and after a snapshot.
const CHANGES: u64 = 10_000;
/// Bytes of a file that is changed then, and from one place that is to the next.
const LARGE: u64 = 128 << 20;
const APART: u64 = 256 << 10;

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
        ensure!(host.find(ROOT_INO, number)?.ino != 0, "file {number} is gone");
        looks.push(look.elapsed());
        host.commit()?;
    }
    looks.sort_unstable();
    say("one that nobody has looked at lately is found in", micros(looks[looks.len() / 2]), "us");
    say("one of a hundred in", micros(looks[looks.len() - 1 - looks.len() / 100]), "us");
    let kib = memory(std::process::id())?;
    say("memory of a server that serves them", kib as f64 / 1024.0, "MiB");
    snapshot(files, &mut host)
}

/// What a snapshot of all files costs, and what a change costs then.
fn snapshot(files: u64, host: &mut Host) -> Result<()> {
    let before = change(files, host)?;
    let start = Instant::now();
    host.call(&TakeSnapshot {}, b"bench")?;
    host.store.commit_sync()?;
    say("a snapshot of all is taken in", micros(start.elapsed()) / 1e3, "ms");
    let (first, next) = (change(files, host)?, change(files, host)?);
    say("a change of one, when there was no snapshot", before, "us");
    say("the first change after one", first, "us");
    say("the next", next, "us");
    let (_, all) = host.call(&Lookup { parent: ROOT_INO }, SNAPSHOTS_NAME)?;
    let parent = Attr::get(&all).context("an attribute")?.ino;
    let (_, root) = host.call(&Lookup { parent }, b"bench")?;
    let root = Attr::get(&root).context("an attribute")?.ino;
    let mut looks = Vec::new();
    for number in changed(files) {
        let look = Instant::now();
        let ino = host.find(root, number)?.ino;
        ensure!(ino & IN_SNAPSHOT != 0, "file {number} is another");
        looks.push(look.elapsed());
    }
    looks.sort_unstable();
    say("one is found in the snapshot in", micros(looks[looks.len() / 2]), "us");
    let start = Instant::now();
    host.call(&RemoveSnapshot {}, b"bench")?;
    let mut longest = Duration::ZERO;
    while let Some(wait) = host.wait() {
        std::thread::sleep(wait);
        let tick = Instant::now();
        host.tick()?;
        longest = longest.max(tick.elapsed());
    }
    let kept = format!("what it had of {} changed files is gone", changed(files).count());
    say(&format!("{kept} after"), micros(start.elapsed()) / 1e3, "ms");
    say("the longest round of that", micros(longest) / 1e3, "ms");
    large(host)
}

/// What changes of a large file cost after a snapshot.
fn large(host: &mut Host) -> Result<()> {
    let row = Create { parent: ROOT_INO, forgotten: 0, mode: 0o644, umask: 0, flags: 2 };
    let (Created { fh, .. }, payload) = host.call(&row, b"large")?;
    let ino = Attr::get(&payload).context("an attribute")?.ino;
    let part = vec![1; 1 << 17];
    for offset in (0..LARGE).step_by(part.len()) {
        host.call(&Write { fh, ino, offset }, &part)?;
        host.commit()?;
    }
    host.store.commit_sync()?;
    let of = |what: &str| format!("4 KiB written to a file of {} MiB, {what}", LARGE >> 20);
    say(&of("when there was no snapshot"), host.write((fh, ino), 0)?, "us");
    host.call(&TakeSnapshot {}, b"large")?;
    host.commit()?;
    say(&of("after one"), host.write((fh, ino), 8192)?, "us");
    say(&of("after one, beside the first"), host.write((fh, ino), 16_384)?, "us");
    Ok(())
}

/// Some files, far apart.
fn changed(files: u64) -> impl Iterator<Item = u64> {
    (0..CHANGES.min(files)).map(move |change| change * (files / CHANGES.min(files)))
}

/// Changes the mode of some files, and returns the median of how long one takes, in microseconds.
fn change(files: u64, host: &mut Host) -> Result<f64> {
    let mut times = Vec::new();
    for number in changed(files) {
        let ino = host.find(ROOT_INO, number)?.ino;
        let change = SetAttr { valid: set::MODE, mode: 0o600, ..SetAttr::default() };
        let start = Instant::now();
        host.call(&Setattr { ino, fh: 0 }, &change.bytes())?;
        host.commit()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(micros(times[times.len() / 2]))
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
    /// The round must end on stable storage.
    must_sync: bool,
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
        Ok(Host { store, hosted, start: Instant::now(), source, calls: 0, must_sync: false })
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
        self.must_sync |= answers.sync;
        let is_good = matches!(answer.message.outcome(), Ok(Ok(())));
        ensure!(is_good, "{}: {:?}", R::NAME, answer.message.outcome());
        Ok((R::Reply::get(&answer.message.args).context("a reply")?, answer.payload))
    }

    /// File `number` below a root directory.
    fn find(&mut self, root: u64, number: u64) -> Result<Attr> {
        let directory = name('d', number / PER_DIRECTORY);
        let (_, payload) = self.call(&Lookup { parent: root }, directory.as_bytes())?;
        let parent = Attr::get(&payload).context("an attribute")?.ino;
        let (_, payload) = self.call(&Lookup { parent }, name('f', number).as_bytes())?;
        Attr::get(&payload).context("an attribute")
    }

    /// How long until the server wants to do something by itself; `None`: it does not.
    fn wait(&self) -> Option<Duration> {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.hosted.deadline().map(|at| Duration::from_nanos(at.saturating_sub(now)))
    }

    /// Lets it.
    fn tick(&mut self) -> Result<()> {
        let mut answers = Answers::default();
        let now = u64::try_from(self.start.elapsed().as_nanos())?;
        let (store, answers_of) = (&mut self.store, &mut answers);
        let mut cx = Context { now, wall: now, entropy: 0, store, answers: answers_of };
        self.hosted.tick(&mut cx);
        self.must_sync |= answers.sync;
        self.commit()
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
        if std::mem::take(&mut self.must_sync) {
            self.store.commit_sync()
        } else {
            self.store.commit()
        }
    }

    /// Writes 4 KiB to places of an open file of [`LARGE`] bytes that are far apart, and returns the median of how long one takes, in microseconds.
    fn write(&mut self, (fh, ino): (u64, u64), first: u64) -> Result<f64> {
        let (data, mut times) = ([7; 4096], Vec::new());
        for place in 0..LARGE / APART {
            let offset = place * APART + first;
            let start = Instant::now();
            self.call(&Write { fh, ino, offset }, &data)?;
            self.commit()?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Ok(micros(times[times.len() / 2]))
    }
}
