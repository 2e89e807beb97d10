//! The node daemon: the door to local processes, the links to other nodes, and the children.

pub mod admin;
mod answers;
mod authority;
mod certificate;
mod children;
mod config;
mod confine;
mod control;
mod credentials;
mod dcs;
mod description;
mod directory;
mod door;
pub mod figures;
mod heap;
mod held;
mod identity;
mod join;
mod link;
mod links;
mod load;
mod log_limit;
mod members;
mod membership;
mod node;
pub mod outside;
mod packing;
mod programs;
mod proxy;
mod questions;
mod quota;
mod sensing;
pub mod services;
mod serving;
mod system;
mod tcp_busy;
mod tls;
mod token;

pub use children::{CONTAINER, SERVERS};
pub use config::{Config, Dc, Peer};
pub use credentials::found;
pub use description::Description;
pub use join::{Joined, join};
pub use packing::Packing;
pub use token::{Token, create as create_token};

use crate::host::solo::monotonic;
use crate::kernel::{Kernel, NodeState};
use crate::limits::DESCRIPTORS_MAX;
use crate::lock_file;
use crate::server::Nanos;
use ::group::Realm;
use admin::{DcStatus, NodeStatus, Query, Status};
use anyhow::{Context, Result, ensure};
use certificate::{Clock, system_clock};
use children::Keeper;
use door::Door;
use links::Linking;
use m3ipc::DcId;
use membership::Membership;
use nix::sys::signal::{SigSet, Signal};
use node::Shared;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

/// Minutes of history that are told at most: so many are kept.
const HISTORY_MINUTES: u16 = 10;
const MINUTE: Nanos = 60_000_000_000;

/// Runs the node daemon until SIGTERM, SIGINT or an admin's `Stop`.
///
/// Children are started as `COMMAND vfs-server|pm-server|ipc-server --socket PATH --store DIR` and
/// `COMMAND container --dc NAME --dc-id ID --node NODE --socket PATH --run DIR [--map PATH]...`.
///
/// # Errors
/// One sentence: the address or a socket is in use, a directory cannot be made.
pub fn run(config: Config) -> Result<()> {
    heap::keep_freed();
    // Blocked in all threads, so that the one below gets them; children unblock them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block().context("cannot block signals")?;
    let daemon = Daemon::start(config)?;
    let wish = daemon.wish.clone();
    spawn("signals", move || {
        while let Ok(signal) = signals.wait() {
            tracing::info!(%signal, "stopping");
            wish.stop();
        }
    })?;
    daemon.wish.wait();
    daemon.stop();
    Ok(())
}

/// A running daemon. `run` is one for a process; tests have several.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<Shared>,
    wish: Arc<Wish>,
    threads: Vec<JoinHandle<()>>,
    listener: Option<Arc<TcpListener>>,
    admin: Arc<UnixListener>,
    _lock: File,
}

/// That somebody wants the daemon to stop.
#[derive(Debug, Default)]
struct Wish {
    stop: Mutex<bool>,
    changed: Condvar,
    /// Those who asked for it: their connections end when it has stopped.
    waiting: Mutex<Vec<UnixStream>>,
}

impl Wish {
    fn stop(&self) {
        *locked(&self.stop) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let stop = locked(&self.stop);
        drop(self.changed.wait_while(stop, |stop| !*stop).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Daemon {
    /// Starts a daemon and its children.
    ///
    /// # Errors
    /// As [`run`].
    pub fn start(config: Config) -> Result<Daemon> {
        Daemon::start_at(config, system_clock())
    }

    /// As [`Daemon::start`], with another clock for certificates and tokens.
    fn start_at(mut config: Config, clock: Clock) -> Result<Daemon> {
        config.check()?;
        raise_descriptor_limit();
        let lock = lock(&config.run)?;
        let directory = config.credentials.as_deref();
        let membership =
            directory.map(|directory| Membership::open(&config, directory, clock)).transpose()?;
        let peers = membership.as_ref().map(Membership::others).unwrap_or_default();
        let configured = config.dcs.len();
        dcs::join(&mut config.dcs, membership.iter().flat_map(Membership::dcs).collect());
        config.check_spans(&peers)?;
        let listener =
            membership.is_some().then(|| links::listen(config.listen)).transpose()?.map(Arc::new);
        let admin = Arc::new(admin_listener(&config.admin_socket())?);
        let mut door = Door::new(config.node)?;
        let mut without_door = BTreeSet::new();
        for (index, dc) in config.dcs.iter().enumerate() {
            match door.listen(DcId(dc.id), &config.socket(&dc.name)) {
                Err(error) if index >= configured => {
                    dcs::tell_of_failure(dc, &error);
                    without_door.insert(dc.id);
                }
                listens => listens?,
            }
        }
        config.dcs.retain(|dc| !without_door.contains(&dc.id));
        let first_generation = first_generation(&config.store)?;
        let kernel = node::kernel_config(&config, &peers, random(), first_generation);
        let kernel = Kernel::new(kernel, monotonic());
        let linking = membership.map(Linking::new);
        let mut daemon = Daemon {
            shared: Arc::new(Shared::new(config, configured, linking, kernel, door)?),
            wish: Arc::default(),
            threads: Vec::new(),
            listener,
            admin,
            _lock: lock,
        };
        let dcs = daemon.shared.known();
        dcs.iter().for_each(|known| Description::publish(&daemon.shared, &known.dc));
        dcs.iter().try_for_each(|known| children::start(&daemon.shared, known))?;
        daemon.start_threads()?;
        Ok(daemon)
    }

    fn start_threads(&mut self) -> Result<()> {
        let shared = || self.shared.clone();
        let mut threads = Vec::new();
        let door = shared();
        threads.push(spawn("door", move || door::run(&door))?);
        let proxy = shared();
        threads.push(spawn("proxy", move || proxy::run(&proxy))?);
        let sensing = shared();
        threads.push(spawn("sensing", move || sensing::run(&sensing))?);
        if let Some(listener) = self.listener.clone() {
            let accepting = shared();
            threads.push(spawn("accept", move || links::accept(&accepting, &listener))?);
            let hearing = shared();
            threads.push(spawn("members", move || links::hear_members(&hearing))?);
            let renewing = shared();
            threads.push(spawn("renewal", move || links::renew(&renewing))?);
            let grouping = shared();
            threads.push(spawn("group", move || system::run(&grouping))?);
            let serving = shared();
            threads.push(spawn("services", move || system::serve(&serving))?);
            let peers = self.shared.linking.as_ref().map(|linking| linking.membership.peers());
            let peers: Vec<u16> = peers.iter().flatten().map(|peer| peer.node).collect();
            links::connect_to(&self.shared, &peers);
        }
        let (answering, wish, listener) = (shared(), self.wish.clone(), self.admin.clone());
        threads.push(spawn("admin", move || {
            let uid = rustix::process::geteuid().as_raw();
            let answer = move |query: Query, stream: UnixStream| match query {
                Query::Status => admin::answer(&stream, &status(&answering)),
                Query::Stop => {
                    locked(&wish.waiting).push(stream);
                    wish.stop();
                    Ok(())
                }
                Query::Revoke { node } => admin::answer(&stream, &revoke(&answering, node)),
                Query::CreateDc { name, home } => {
                    admin::answer(&stream, &create_dc(&answering, &name, home))
                }
                Query::RemoveDc { name } => admin::answer(&stream, &remove_dc(&answering, &name)),
                Query::Renew => admin::answer(&stream, &renew(&answering)),
                Query::Group => admin::answer(&stream, &system::status(&answering)),
                Query::Loads => admin::answer(&stream, &sensing::figures(&answering, None)),
                Query::History { node, minutes } => {
                    let span = MINUTE * Nanos::from(minutes.min(HISTORY_MINUTES));
                    admin::answer(&stream, &sensing::figures(&answering, Some((node, span))))
                }
                Query::Services => serve(&answering, stream, Realm::System),
                Query::ServicesOf { dc } => serve(&answering, stream, Realm::Dc(dc)),
            };
            admin::serve(&listener, uid, &(Arc::new(answer) as admin::Answer));
        })?);
        self.threads = threads;
        Ok(())
    }

    /// Stops the children, then everything else.
    pub fn stop(mut self) {
        children::stop(&self.shared);
        self.shared.halt();
        // accept(2) then returns; nothing to do if it has.
        if let Some(listener) = &self.listener {
            rustix::net::shutdown(&**listener, rustix::net::Shutdown::Both).ok();
        }
        rustix::net::shutdown(&*self.admin, rustix::net::Shutdown::Both).ok();
        if let Some(linking) = &self.shared.linking {
            linking.stop();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of dvkd has panicked");
            }
        }
        let config = &self.shared.config;
        let doors: Vec<PathBuf> =
            self.shared.dcs().iter().map(|dc| config.socket(&dc.name)).collect();
        let descriptions: Vec<PathBuf> = doors.iter().map(|door| Description::path(door)).collect();
        for file in doors.into_iter().chain(descriptions).chain([config.admin_socket()]) {
            // Whoever comes next replaces a socket that nobody listens at.
            std::fs::remove_file(file).ok();
        }
        locked(&self.wish.waiting).clear();
    }

    /// What an admin would be told.
    pub fn status(&self) -> Status {
        status(&self.shared)
    }
}

fn revoke(shared: &Arc<Shared>, node: u16) -> admin::Outcome {
    let revoked = || -> Result<String> {
        let linking = shared.linking.as_ref().context("this node is alone: it has no members")?;
        let change = linking.membership.revoke(node)?;
        links::apply(shared, linking, &change);
        Ok(format!("Node {node} has been revoked."))
    };
    revoked().map_err(|error| format!("{error:#}"))
}

fn create_dc(shared: &Arc<Shared>, name: &str, home: u16) -> admin::Outcome {
    let created = || -> Result<String> {
        let linking = shared.linking.as_ref().context("this node is alone: it has no members")?;
        let change = linking.membership.create_dc(name, home, &shared.dcs())?;
        links::apply(shared, linking, &change);
        let socket = shared.config.socket(name);
        ensure!(
            shared.dcs().iter().any(|dc| dc.name == name),
            "container {name} is made, but could not be started on this node; its log says why"
        );
        Ok(format!("Container {name} spans all nodes; here its door is {}.", socket.display()))
    };
    created().map_err(|error| format!("{error:#}"))
}

fn remove_dc(shared: &Arc<Shared>, name: &str) -> admin::Outcome {
    let removed = || -> Result<String> {
        let linking = shared.linking.as_ref().context("this node is alone: it has no members")?;
        let forget = system::forgetter(shared)?;
        let (dc, change) = linking.membership.remove_dc(name)?;
        links::apply(shared, linking, &change);
        let keys = if forget(dc.id) {
            ""
        } else {
            " Its keys are deleted as soon as the system group decides, if this dvkd runs until then."
        };
        Ok(format!(
            "Container {name} is removed: its programs end on all nodes. Its files stay on node {}, in {name}.{} of its \
             stores.{keys}",
            dc.home, dc.id
        ))
    };
    removed().map_err(|error| format!("{error:#}"))
}

fn renew(shared: &Shared) -> admin::Outcome {
    let renewed = || -> Result<String> {
        let linking =
            shared.linking.as_ref().context("this node is alone: it has no certificate")?;
        let until = linking.membership.renew_now()?.until_text()?;
        Ok(format!("The certificate of node {} counts until {until}.", shared.config.node))
    };
    renewed().map_err(|error| format!("{error:#}"))
}

/// Hands a connection over to the system group.
fn serve(shared: &Arc<Shared>, stream: UnixStream, realm: Realm) -> Result<()> {
    let refused = match &shared.linking {
        Some(linking) => {
            let kept = stream.try_clone()?;
            linking.system.serve(shared, kept, realm).err()
        }
        None => Some("this node is alone: it has no system group".into()),
    };
    refused.map_or(Ok(()), |why| {
        let failure = services::Failure::Unavailable;
        let reply = services::Reply::Failed { failure, why };
        admin::answer(&stream, &services::Told { id: 0, reply })
    })
}

fn status(shared: &Shared) -> Status {
    let (config, dcs) = (&shared.config, shared.dcs());
    let mut status = shared.with(|node| {
        let up: BTreeSet<u16> = node
            .kernel
            .nodes()
            .filter(|info| matches!(info.state, NodeState::Up { .. }))
            .map(|info| info.node.0)
            .collect();
        let children = locked(&shared.children);
        let dcs = dcs.iter().map(|dc| dc_status(config, dc, node, &children.keepers)).collect();
        let members = shared.linking.as_ref().map(|linking| linking.membership.peers());
        let peers = members.into_iter().flatten().map(|peer| NodeStatus {
            up: up.contains(&peer.node),
            node: peer.node,
            name: peer.name,
            address: peer.address,
        });
        Status { nodes: peers.collect(), dcs, counters: node.counters, ..Status::default() }
    });
    let this = NodeStatus {
        node: config.node,
        name: config.name.clone(),
        address: config.listen,
        up: true,
    };
    status.nodes.insert(0, this);
    if let Some(linking) = &shared.linking {
        status.members_revision = linking.membership.members().revision;
        status.certificate_until = Some(linking.membership.validity().until);
    }
    status.node = config.node;
    status.name.clone_from(&config.name);
    status.pid = std::process::id();
    status.version = env!("CARGO_PKG_VERSION").into();
    status
}

fn dc_status(config: &Config, dc: &Dc, node: &node::Node, keepers: &[Keeper]) -> DcStatus {
    let bound: Vec<u32> =
        node.kernel.endpoints(DcId(dc.id)).map(|info| info.endpoint.slot).collect();
    let own = keepers.iter().filter(|keeper| keeper.dc == dc.name);
    let children =
        own.map(|keeper| keeper.status(bound.contains(&keeper.endpoint(config.node).slot)));
    DcStatus {
        id: dc.id,
        name: dc.name.clone(),
        home: dc.home,
        nodes: dc.nodes.clone(),
        socket: config.socket(&dc.name),
        endpoints: bound.len(),
        channels: node.channel_count(DcId(dc.id)),
        placed: node.kernel.placed_count(DcId(dc.id)),
        children: children.collect(),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(body).context("cannot start a thread")
}

/// Makes the run directory and makes sure that no other dvkd uses it.
fn lock(run: &Path) -> Result<File> {
    std::fs::create_dir_all(run).with_context(|| format!("cannot create {}", run.display()))?;
    lock_file::lock(run, &format!("another dvkd runs in {}", run.display()))
}

fn admin_listener(path: &Path) -> Result<UnixListener> {
    if path.exists() {
        // This daemon holds the lock, so whoever made it is gone.
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .with_context(|| format!("cannot change the mode of {}", path.display()))?;
    Ok(listener)
}

/// The generation of this daemon's first endpoints: higher than any that an earlier one of this node gave out, so
/// that no endpoint ever names two processes. Each start gets 65 536; the clock helps if the file got lost.
fn first_generation(store: &Path) -> Result<u32> {
    std::fs::create_dir_all(store).with_context(|| format!("cannot create {}", store.display()))?;
    let path = store.join("generation");
    let last = match std::fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse::<u32>()
            .with_context(|| format!("{} is no number", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let next = last.saturating_add(1 << 16).max(u32::try_from(clock).unwrap_or(0));
    let fresh = store.join("generation.new");
    let written = File::create(&fresh).and_then(|mut file| {
        writeln!(file, "{next}")?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)
    });
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(next)
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Eight bytes are never cut short (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("the kernel has randomness after boot");
    u64::from_ne_bytes(bytes) | 1
}

/// Each channel and each process is a descriptor here. Children get the old limit back.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    children::DESCRIPTORS.get_or_init(|| Rlimit { current, maximum });
    // Root may have more than its hard limit; others what they have.
    let most = maximum.max(Some(DESCRIPTORS_MAX));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of descriptors");
    }
}

#[cfg(test)]
mod tests;
