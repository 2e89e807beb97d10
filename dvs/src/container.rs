//! `dvs-container`: the part of a DC on one node. Process 1 of a pid namespace, started by dvkd.
//!
//! It makes the namespaces and the file tree, keeps `dvs-mount` running, runs programs for dvs-run
//! (`sessions`), carries out pm-server's orders (`orders`), and reaps. When it ends, for whatever
//! reason, the kernel ends everything in its pid namespace; and it ends with its dvkd.

mod agent;
mod door;
mod elf;
mod kill;
mod namespaces;
mod orders;
mod pids;
mod root;
mod sessions;
pub(crate) mod start;

use crate::limits::STOP_PATIENCE;
use crate::procfs;
use agent::Agent;
use anyhow::{Context, Result};
use door::{Answerer, Door, Handler};
use dvk::dvkd::Description;
use dvk::server::{Answers, Call, Gone};
use m3ipc::CallId;
use m3ipc::client::{Identity, Process as Client};
use m3ipc::door as records;
use namespaces::Side;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use orders::Pm;
use pids::PidRange;
use root::Plan;
pub(crate) use root::TREE;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::process::{WaitOptions, set_parent_process_death_signal};
use sessions::{Event, Sessions};
use start::Starter;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How dvkd starts a container.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Name of the distributed container
    #[arg(long)]
    dc: String,
    /// Its number
    #[arg(long)]
    dc_id: u32,
    /// Number of this node
    #[arg(long)]
    node: u16,
    /// The distributed container's socket on this node
    #[arg(long)]
    socket: PathBuf,
    /// This node's run directory
    #[arg(long)]
    run: PathBuf,
    /// Directories of this machine that no program may see: the node's sockets, stores and secrets
    #[arg(long)]
    hide: Vec<PathBuf>,
    /// Absolute paths where every program sees the tree, beside /dvs
    #[arg(long)]
    map: Vec<PathBuf>,
}

/// The process number of dvs-mount, which no program may signal; 0 if there is none.
static AGENT_PID: AtomicI32 = AtomicI32::new(0);

/// Is `pid` a process of the container itself, not a program?
pub(crate) fn is_own(pid: i32) -> bool {
    let agent = AGENT_PID.load(Ordering::Relaxed);
    // dvs-mount has dvs-agent beside it.
    pid == 1
        || pid == agent
        || agent != 0 && procfs::stat(pid).is_some_and(|stat| stat.ppid == agent)
}

/// Runs the container until dvkd ends or says stop.
///
/// # Errors
/// One sentence: a namespace or mount that the kernel refuses, `/dev/fuse` missing.
pub(crate) fn main(options: &Options) -> Result<()> {
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    rustix::thread::set_name(c"dvs-container")?;
    check_fuse()?;
    namespaces::enter()?;
    // The pid namespace is for children: this process stays outside, and is what dvkd sees.
    match namespaces::split()? {
        Side::Outside(inside) => namespaces::wait_for(inside),
        Side::Inside => run(options),
    }
}

/// Says early, and once, what every mount would fail with.
///
/// # Errors
/// `/dev/fuse` cannot be opened.
pub(crate) fn check_fuse() -> Result<()> {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    device.map(|_| ()).context(
        "cannot open /dev/fuse, through which programs see the files of DVS (\"modprobe fuse\" \
         makes it; other users than root need its mode to be 0666)",
    )
}

/// Process 1.
fn run(options: &Options) -> Result<()> {
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let signals = own_signals()?;
    let description = Description::beside(&options.socket)?;
    let name = description.name_of(options.node);
    rustix::system::sethostname(name.as_bytes()).context("cannot name the container")?;
    let earlier = count_starts(&options.run.join(format!("starts-{}", options.dc)));
    let shim = root::build(&Plan {
        socket: options.socket.clone(),
        stage: options.run.join(format!("root-{}", options.dc)),
        hidden: crate::lab::directory_of_this().into_iter().chain(options.hide.clone()).collect(),
    })?;
    let mut agent = Agent::new(options.dc.clone());
    agent.start_and_wait()?;
    agent::give_tree_to_user()?;
    for path in &options.map {
        root::bind_tree(path).with_context(|| format!("cannot map {}", path.display()))?;
    }
    let range = PidRange::claim(options.node, earlier);
    if range.is_none() {
        tracing::warn!("process numbers here are not unique in the DC: the kernel has no own ones");
    }
    let environment = vec![("DVS_DC".into(), options.dc.clone()), ("DVS_NODE".into(), name)];
    let sessions = Arc::new(Mutex::new(Sessions::new(Starter { shim, environment })?));
    Container::new(options.node, sessions, range, agent)?.run(&signals)
}

/// Adds one to the number in a file; returns what it was. Without the file it is 0.
fn count_starts(file: &Path) -> u32 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let earlier: u32 = text.trim().parse().unwrap_or(0);
    if let Err(error) = std::fs::write(file, format!("{}\n", earlier.wrapping_add(1))) {
        tracing::warn!("cannot write {}: {error}", file.display());
    }
    earlier
}

/// From now on these arrive by a descriptor, in every thread.
fn own_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// The main thread: signals, streams that are ready, and the agent.
struct Container {
    sessions: Arc<Mutex<Sessions>>,
    epoll: OwnedFd,
    answerer: Answerer,
    events: Sender<Event>,
    range: Option<PidRange>,
    agent: Agent,
    /// Readable when the serving thread has ended: dvkd says stop, or is gone.
    stopped: OwnedFd,
}

impl Container {
    /// Binds, joins, and starts the other threads.
    fn new(
        node: u16,
        sessions: Arc<Mutex<Sessions>>,
        range: Option<PidRange>,
        agent: Agent,
    ) -> Result<Container> {
        let path = Path::new(records::SOCKET_PATH).as_os_str().as_bytes();
        let client = Client::new(Identity::new(records::kind::CONTAINER, 0, path));
        let (door, answerer) = Door::open(Path::new(records::SOCKET_PATH), client.nonce())?;
        let pm = Arc::new(Pm { client, node });
        let (events, told) = channel();
        let (stopped, stopper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let served = Served { sessions: Arc::clone(&sessions), events: events.clone() };
        spawn("serve", move || {
            door.serve(&mut { served });
            drop(stopper);
        })?;
        spawn("events", move || {
            pm.join_until_there();
            let orders = Arc::clone(&pm);
            if let Err(error) = spawn("orders", move || orders.obey()) {
                tracing::error!("no orders of pm-server are carried out here: {error:#}");
            }
            tell_events(&pm, &told);
        })?;
        let epoll = lock(&sessions).epoll()?;
        Ok(Container { sessions, epoll, answerer, events, range, agent, stopped })
    }

    fn run(mut self, signals: &SignalFd) -> Result<()> {
        loop {
            let timeout = self.agent.wanted_in().map(Timespec::try_from).transpose()?;
            let mut fds = [
                PollFd::new(signals, PollFlags::IN),
                PollFd::new(&self.epoll, PollFlags::IN),
                PollFd::new(&self.stopped, PollFlags::IN),
            ];
            rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))?;
            if !fds[2].revents().is_empty() {
                return self.stop();
            }
            while let Some(signal) = signals.read_signal()? {
                if i32::try_from(signal.ssi_signo) != Ok(libc::SIGCHLD) {
                    return self.stop();
                }
            }
            self.reap();
            self.streams()?;
            {
                // While a program is being started its descriptors could be inherited by the agent.
                let _none_starts = lock(&self.sessions);
                self.agent.start_if_wanted();
            }
            if let Some(range) = self.range {
                range.keep();
            }
        }
    }

    /// Streams of sessions that can be read or written again.
    fn streams(&mut self) -> Result<()> {
        let mut ready = Vec::with_capacity(64);
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&none))?;
        if ready.is_empty() {
            return Ok(());
        }
        let mut answers = Answers::default();
        let mut sessions = lock(&self.sessions);
        for event in &ready {
            sessions.ready(event.data.u64(), &mut answers);
        }
        self.pass_on(sessions, answers);
        Ok(())
    }

    /// Waits for the ends of children: programs, the agent, and whatever was orphaned.
    fn reap(&mut self) {
        let mut answers = Answers::default();
        // Locked all the while: a program that is being started must not be reaped unknown.
        let mut sessions = lock(&self.sessions);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let (pid, status) = (pid.as_raw_nonzero().get(), status.as_raw());
            if !self.agent.has_ended(pid, status) {
                sessions.reaped(pid, status, &mut answers);
            }
        }
        self.pass_on(sessions, answers);
    }

    fn pass_on(&self, mut sessions: MutexGuard<'_, Sessions>, answers: Answers) {
        let events = sessions.events();
        drop(sessions);
        self.answerer.send(answers);
        for event in events {
            // The thread that tells them runs as long as this process.
            self.events.send(event).ok();
        }
    }

    /// Ends the programs, politely at first. What remains ends with this process.
    fn stop(mut self) -> Result<()> {
        let programs = || -> Vec<i32> {
            let pids = procfs::pids(Path::new("/proc")).unwrap_or_default();
            pids.into_iter().filter(|pid| !is_own(*pid)).collect()
        };
        for pid in programs() {
            for signal in [libc::SIGTERM, libc::SIGCONT] {
                // It may be gone already, which is what is wanted.
                kill::kill(pid, signal.unsigned_abs(), 0).ok();
            }
        }
        let limit = Instant::now() + STOP_PATIENCE;
        while !programs().is_empty() && Instant::now() < limit {
            self.reap();
            std::thread::sleep(Duration::from_millis(10));
        }
        self.agent.stop();
        Ok(())
    }
}

/// The serving thread's handler.
struct Served {
    sessions: Arc<Mutex<Sessions>>,
    events: Sender<Event>,
}

impl Handler for Served {
    fn serve(&mut self, call: &Call<'_>, answers: &mut Answers) {
        let events = {
            let mut sessions = lock(&self.sessions);
            sessions.serve(call, answers);
            sessions.events()
        };
        for event in events {
            self.events.send(event).ok();
        }
    }

    fn cancel(&mut self, id: CallId, answers: &mut Answers) {
        lock(&self.sessions).cancel(id, answers);
    }

    fn gone(&mut self, gone: Gone) {
        lock(&self.sessions).gone(gone);
    }
}

/// Tells pm-server what happens, in order, without making anybody wait for it.
fn tell_events(pm: &Pm, events: &Receiver<Event>) {
    for event in events {
        let outcome = match &event {
            Event::Started { pid, command } => pm.started(*pid, command),
            Event::Exited { pid, status } => pm.exited(*pid, *status),
        };
        if let Err(error) = outcome {
            tracing::debug!("pm-server was not told of {event:?}: {error}");
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).context("no thread left")?;
    Ok(())
}

/// A panic of one thread leaves the sessions as they are: each step is small.
fn lock(sessions: &Mutex<Sessions>) -> MutexGuard<'_, Sessions> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}
