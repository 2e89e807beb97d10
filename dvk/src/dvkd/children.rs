//! The processes that a daemon starts and keeps running: the servers of containers that are at home here, and
//! the container of each.
#![expect(unsafe_code, reason = "what a child does between fork and exec")]

use super::admin::ChildStatus;
use super::config::{Config, Dc};
use super::confine::Confined;
use super::dcs::Known;
use super::node::Shared;
use crate::limits::{CHILD_STOP_TIMEOUT, RESTART_MAX, RESTART_MIN};
use anyhow::{Context, Result};
use m3ipc::{DcId, Endpoint, NodeId};
use rustix::fd::OwnedFd;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal, setrlimit,
};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// The servers of a container: the role by which they are started, and their well-known number.
pub const SERVERS: [(&str, u32); 3] = [("vfs-server", 1), ("pm-server", 2), ("ipc-server", 3)];

/// A role that is not a server's.
pub const CONTAINER: &str = "container";

/// The limit of descriptors that children get: the one that dvkd was started with.
pub(super) static DESCRIPTORS: OnceLock<Rlimit> = OnceLock::new();

/// A child, kept running by a thread of its own.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) dc: String,
    id: DcId,
    pub(super) role: &'static str,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    child: Option<(u32, OwnedFd)>,
    restarts: u32,
    last_exit: Option<String>,
    stopping: bool,
    over: bool,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All children of a daemon.
#[derive(Debug, Default)]
pub(super) struct Children {
    pub(super) keepers: Vec<Keeper>,
    /// The daemon stops: there will be no more.
    is_closed: bool,
}

/// Starts the children that a container has on this node.
pub(super) fn start(shared: &Arc<Shared>, known: &Known) -> Result<()> {
    let (config, dc) = (&shared.config, &known.dc);
    let mut children = shared.children.lock().unwrap_or_else(PoisonError::into_inner);
    if config.command.is_empty() || children.is_closed {
        return Ok(());
    }
    let servers = SERVERS.iter().filter(|_| dc.home == config.node && !config.servers_inside);
    for (role, _) in servers {
        let keeper = Keeper::start(shared, dc, role, server_arguments(config, known, role))?;
        children.keepers.push(keeper);
    }
    let keeper = Keeper::start(shared, dc, CONTAINER, container_arguments(config, dc))?;
    children.keepers.push(keeper);
    Ok(())
}

fn server_arguments(config: &Config, known: &Known, role: &str) -> Vec<PathBuf> {
    let (socket, store) = (config.socket(&known.dc.name), known.store(config).join(role));
    vec![role.into(), "--socket".into(), socket, "--store".into(), store]
}

fn container_arguments(config: &Config, dc: &Dc) -> Vec<PathBuf> {
    let mut arguments: Vec<PathBuf> = vec![
        CONTAINER.into(),
        "--dc".into(),
        (&dc.name).into(),
        "--dc-id".into(),
        dc.id.to_string().into(),
        "--node".into(),
        config.node.to_string().into(),
        "--socket".into(),
        config.socket(&dc.name),
        "--run".into(),
        config.run.clone(),
    ];
    for hidden in [&config.run, &config.store].into_iter().chain(&config.credentials) {
        arguments.extend(["--hide".into(), hidden.clone()]);
    }
    for map in &dc.maps {
        arguments.extend(["--map".into(), map.clone()]);
    }
    arguments
}

impl Keeper {
    fn start(
        shared: &Arc<Shared>,
        dc: &Dc,
        role: &'static str,
        arguments: Vec<PathBuf>,
    ) -> Result<Keeper> {
        let state = Arc::new(State::default());
        let (command, kept, name) = (shared.config.command.clone(), state.clone(), dc.name.clone());
        let confined = (role == CONTAINER).then(|| (Arc::clone(&shared.confined), DcId(dc.id)));
        // One thread per child: the child dies with the thread that started it (PR_SET_PDEATHSIG), and so with the daemon.
        let thread = Builder::new()
            .name(role.into())
            .spawn(move || {
                keep(&name, role, &kept, || {
                    run_once(&command, &arguments, &kept, confined.as_ref())
                });
            })
            .context("cannot start a thread")?;
        Ok(Keeper { dc: dc.name.clone(), id: DcId(dc.id), role, state, thread: Some(thread) })
    }

    /// Where it is bound when it is ready. Not by its pid: a container is a child of the process started here.
    pub(super) fn endpoint(&self, node: u16) -> Endpoint {
        let server = SERVERS.iter().find(|(role, _)| *role == self.role);
        server.map_or(Endpoint::container(NodeId(node)), |(_, number)| Endpoint::server(*number))
    }

    pub(super) fn status(&self, bound: bool) -> ChildStatus {
        let now = self.state.lock();
        let pid = now.child.as_ref().map(|(pid, _)| *pid);
        ChildStatus {
            role: self.role.into(),
            pid,
            restarts: now.restarts,
            bound: bound && pid.is_some(),
            last_exit: now.last_exit.clone(),
        }
    }

    pub(super) fn is_server(&self) -> bool {
        self.role != CONTAINER
    }

    /// Asks the child to end, and does not start it again.
    pub(super) fn stop(&self, signal: Option<Signal>) {
        let mut now = self.state.lock();
        now.stopping = true;
        if let (Some(signal), Some((_, pidfd))) = (signal, &now.child) {
            // It may have ended by itself.
            pidfd_send_signal(pidfd, signal).ok();
        }
        self.state.changed.notify_all();
    }

    /// Waits until the child has ended; kills it when that takes too long.
    pub(super) fn join(&mut self, deadline: Instant) {
        let mut now = self.state.lock();
        while !now.over {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(dc = self.dc, role = self.role, "does not stop and is killed");
                if let Some((_, pidfd)) = &now.child {
                    pidfd_send_signal(pidfd, Signal::KILL).ok();
                }
                break;
            }
            now = self
                .state
                .changed
                .wait_timeout(now, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(now);
        if let Some(thread) = self.thread.take() {
            // It cannot panic; if it did, there is nothing left to stop.
            thread.join().ok();
        }
    }
}

/// Stops all children: first the containers, which need the servers to end well, then the servers.
pub(super) fn stop(shared: &Shared) {
    let mut children = shared.children.lock().unwrap_or_else(PoisonError::into_inner);
    children.is_closed = true;
    // Whoever asks for the status locks the node first, and then these.
    let keepers = std::mem::take(&mut children.keepers);
    drop(children);
    stop_these(shared, keepers, None);
}

/// Stops those of a container, in the same order.
pub(super) fn stop_of(shared: &Shared, dc: DcId) {
    let mut children = shared.children.lock().unwrap_or_else(PoisonError::into_inner);
    let keepers = children.keepers.extract_if(.., |keeper| keeper.id == dc).collect();
    drop(children);
    stop_these(shared, keepers, Some(dc));
}

/// These are all, or all of `dc`.
fn stop_these(shared: &Shared, mut keepers: Vec<Keeper>, dc: Option<DcId>) {
    for servers in [false, true] {
        let deadline = Instant::now() + CHILD_STOP_TIMEOUT;
        for keeper in keepers.iter().filter(|keeper| keeper.is_server() == servers) {
            // A server is told by its connection, so that it can end its round.
            keeper.stop((!servers).then_some(Signal::TERM));
        }
        if servers {
            shared.with(|node| node.door.stop_servers(dc));
        }
        for keeper in keepers.iter_mut().filter(|keeper| keeper.is_server() == servers) {
            keeper.join(deadline);
        }
    }
}

/// The body of a keeper's thread.
fn keep(dc: &str, role: &str, state: &State, run_once: impl Fn() -> Result<ExitStatus>) {
    let mut pause = RESTART_MIN;
    loop {
        let started = Instant::now();
        let ended = run_once();
        let text = match &ended {
            Ok(status) => status.to_string(),
            Err(error) => format!("{error:#}"),
        };
        let mut now = state.lock();
        now.child = None;
        if now.stopping {
            now.over = true;
            state.changed.notify_all();
            return;
        }
        tracing::error!(dc, role, "ended and is started again: {text}");
        now.last_exit = Some(text);
        now.restarts += 1;
        // What ran for a while has not failed at its start.
        pause = if started.elapsed() > RESTART_MAX {
            RESTART_MIN
        } else {
            (pause * 2).min(RESTART_MAX)
        };
        let until = Instant::now() + pause;
        while !now.stopping && Instant::now() < until {
            let left =
                until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            now = state.changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if now.stopping {
            now.over = true;
            state.changed.notify_all();
            return;
        }
    }
}

fn run_once(
    command: &[String],
    arguments: &[PathBuf],
    state: &State,
    confined: Option<&(Arc<Confined>, DcId)>,
) -> Result<ExitStatus> {
    let mut child = {
        let mut now = state.lock();
        if now.stopping {
            return Ok(ExitStatus::default());
        }
        let child = spawn(command, arguments)?;
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a strange pid")?;
        // It is our child and has not been waited for, so its pid is its own.
        now.child = Some((child.id(), pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?));
        if let Some((confined, dc)) = confined {
            confined.started(child.id(), *dc);
        }
        child
    };
    let pid = child.id();
    let status = child.wait().context("cannot wait for it");
    if let Some((confined, _)) = confined {
        confined.ended(pid);
    }
    status
}

fn spawn(command: &[String], arguments: &[PathBuf]) -> Result<Child> {
    let (program, prefix) = command.split_first().context("no command is configured")?;
    let parent = rustix::process::getpid();
    let descriptors = DESCRIPTORS.get().cloned();
    let mut builder = Command::new(program);
    builder.args(prefix).args(arguments).stdin(Stdio::null());
    // SAFETY: the closure makes system calls only, which may be made between fork and exec.
    unsafe { builder.pre_exec(move || prepare(parent, descriptors.as_ref())) };
    builder.spawn().with_context(|| format!("cannot start {program}"))
}

/// Runs in the child before exec.
fn prepare(parent: Pid, descriptors: Option<&Rlimit>) -> std::io::Result<()> {
    if let Some(limit) = descriptors {
        setrlimit(Resource::Nofile, Rlimit { current: limit.current, maximum: limit.maximum })?;
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The daemon may have died before that.
    if rustix::process::getppid() != Some(parent) {
        return Err(std::io::ErrorKind::NotConnected.into());
    }
    // The daemon blocks the signals that it waits for.
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}
