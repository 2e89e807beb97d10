//! The system group inside the daemon: its thread, its messages over the links, and who begins it.
//!
//! The group's work is done by one thread with a runtime of its own. Messages come in on the threads that read links
//! and go out on the group's; both are bounded, and what is too much gets lost, which the group expects. Those who use
//! its services are served by another thread: however much they ask, the group gives its signs of life in time.

use super::control::Control;
use super::credentials::{Founders, founders, write_founders};
use super::directory::{self, Directory};
use super::links::{self, Linking};
use super::node::Shared;
use super::programs::Seats;
use super::services::{GroupStatus, MemberStatus, Standing};
use super::serving::{self, Context as Serving};
use crate::kernel::NodeState;
use crate::limits::{GROUP_BYTES, GROUP_RESTART};
use ::group::command::{Op, TableOp};
use ::group::disk::FjallDisk;
use ::group::fence::Fence;
use ::group::{Config, Group, Realm, Session, Transport};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// Where the group's log is, in the directory of stores. No container can have this name.
const DIRECTORY: &str = "system.group";

/// How often it is looked whether the group is still at work.
const LOOK: Duration = Duration::from_secs(1);

/// How long who has removed a container waits for its keys to be deleted.
const FORGETTING: Duration = Duration::from_secs(2);

/// How long an end may take that nobody waits for.
const STOP: Duration = Duration::from_secs(2);

/// The system group of a daemon.
#[derive(Debug, Default)]
pub(super) struct System {
    running: Mutex<Option<Running>>,
    /// Where the services are rendered.
    serving: OnceLock<Handle>,
    stop: Notify,
    /// The group's thread has ended.
    ended: Notify,
    /// Connections that use the services.
    pub(super) seats: Seats,
    pub(super) directory: Directory,
}

/// The group while it is at work; those who use it look whether `_alive` is still there.
#[derive(Debug)]
struct Running {
    group: Group,
    alive: watch::Receiver<()>,
    _alive: watch::Sender<()>,
}

impl System {
    /// The group, if it is at work.
    pub(super) fn group(&self) -> Option<Group> {
        self.with(|running| running.group.clone())
    }

    fn with<T>(&self, look: impl FnOnce(&Running) -> T) -> Option<T> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(look)
    }

    fn set(&self, running: Option<Running>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
    }

    /// A message of `from`, whose link has brought it.
    pub(super) fn deliver(&self, from: u16, bytes: &[u8]) {
        if let Some(group) = self.group() {
            group.deliver(from.into(), bytes);
        }
    }

    /// Makes the thread end.
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Tells the group of another list of members.
    pub(super) fn members_changed(&self, linking: &Linking) {
        if let Some(group) = self.group() {
            tell_members(&group, linking);
        }
    }

    /// The group, whether it still is at work, and where its work is done.
    ///
    /// # Errors
    /// One sentence: it is not at work.
    pub(super) fn at_work(&self) -> Result<(Group, watch::Receiver<()>, &Handle), String> {
        let found = self.with(|running| (running.group.clone(), running.alive.clone()));
        let (Some((group, alive)), Some(runtime)) = (found, self.serving.get()) else {
            return Err("the system group is being started on this node; try again".into());
        };
        Ok((group, alive, runtime))
    }

    /// Serves a connection of the command line until it ends.
    ///
    /// # Errors
    /// The group is not at work, or there are too many.
    pub(super) fn serve(
        &self,
        shared: &Arc<Shared>,
        stream: UnixStream,
        realm: Realm,
    ) -> Result<(), String> {
        let (group, alive, runtime) = self.at_work()?;
        let (seat, share) = self.seats.take(None)?;
        let shared = Arc::downgrade(shared);
        let serving = Serving { group, shared, realm, share, is_talkative: true };
        runtime.spawn(async move {
            serving::serve(stream.into(), None, serving, alive).await;
            drop(seat);
        });
        Ok(())
    }
}

/// Has the group forget a container that is no more: as soon as it decides, also if it is not at work now. True if it has.
///
/// # Errors
/// One sentence: nobody could do that. It is asked before there is anything to forget.
pub(super) fn forgetter(shared: &Arc<Shared>) -> Result<impl FnOnce(u32) -> bool> {
    let runtime = shared.linking.as_ref().and_then(|linking| linking.system.serving.get().cloned());
    let runtime = runtime.context("this node is being started; try again")?;
    let shared = Arc::downgrade(shared);
    Ok(move |dc| {
        let (done, is_done) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            while let Some(shared) = shared.upgrade().filter(|shared| !shared.is_stopping()) {
                let group = shared.linking.as_ref().and_then(|linking| linking.system.group());
                drop(shared);
                if let Some(group) = group
                    && forget(&group, dc).await
                {
                    // Nobody may be waiting for it any more.
                    done.send(()).ok();
                    return;
                }
                sleep(LOOK).await;
            }
        });
        is_done.recv_timeout(FORGETTING).is_ok()
    })
}

async fn forget(group: &Group, dc: u32) -> bool {
    let Ok(session) = Session::open(group, ::group::millis(FORGETTING)).await else { return false };
    let forgotten = session.run(Op::Table(TableOp::RemoveDc { dc })).await;
    session.close().await;
    forgotten.is_ok()
}

/// Sends the group's messages over whatever link there is.
struct Links(Weak<Shared>);

impl Transport for Links {
    fn send(&self, to: u64, bytes: Vec<u8>) {
        let (Some(shared), Ok(to)) = (self.0.upgrade(), u16::try_from(to)) else { return };
        if bytes.len() > GROUP_BYTES {
            tracing::error!(length = bytes.len(), "a message of the system group is too long");
            return;
        }
        links::offer(&shared, to, Control::Group(&bytes).encode());
    }
}

/// The body of the thread that renders the services.
pub(super) fn serve(shared: &Shared) {
    let Some(linking) = &shared.linking else { return };
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "nobody can use the system group's services"),
    };
    // Of this thread, too: sessions are told apart by random numbers.
    ::group::seed(super::random());
    if linking.system.serving.set(runtime.handle().clone()).is_ok() {
        runtime.block_on(linking.system.ended.notified());
    }
}

/// The body of the group's thread.
pub(super) fn run(shared: &Arc<Shared>) {
    let Some(linking) = &shared.linking else { return };
    match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => work(shared, linking, &runtime),
        Err(error) => tracing::error!(%error, "the system group cannot be started"),
    }
    linking.system.ended.notify_one();
}

fn work(shared: &Arc<Shared>, linking: &Linking, runtime: &Runtime) {
    ::group::seed(super::random());
    runtime.block_on(async {
        while !shared.is_stopping() {
            match start(shared, linking).await {
                Ok(group) => keep(shared, linking, group).await,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(error, "the system group cannot be started");
                }
            }
            if !shared.is_stopping() {
                timeout(GROUP_RESTART, linking.system.stop.notified()).await.ok();
            }
        }
    });
}

async fn start(shared: &Arc<Shared>, linking: &Linking) -> Result<Group> {
    let own = &shared.config;
    let credentials = own.credentials.as_ref().context("this node is alone")?;
    let founders = founders(credentials, linking.membership.members().authority)?;
    let voters = founders.voters.iter().map(|node| u64::from(*node)).collect();
    let config = Config {
        incarnation: shared.with(|node| node.kernel.incarnation()),
        name: own.name.clone(),
        address: own.listen.to_string(),
        founds: !founders.begun,
        ..Config::new(own.node.into(), voters)
    };
    let directory = shared.config.store.join(DIRECTORY);
    let shown = directory.display();
    let disk = std::fs::create_dir_all(&directory).and_then(|()| FjallDisk::open(&directory));
    let disk = disk.with_context(|| format!("cannot open {shown}"))?;
    let links = Links(Arc::downgrade(shared));
    let group = Group::start(config, Arc::new(disk), Arc::new(links)).await;
    let group = group.with_context(|| format!("cannot use {shown}"))?;
    tell_members(&group, linking);
    if !founders.begun
        && let Err(error) = write_founders(credentials, &Founders { begun: true, ..founders })
    {
        tracing::error!(
            error = format!("{error:#}"),
            "should this disk get lost, another group is made"
        );
    }
    Ok(group)
}

fn tell_members(group: &Group, linking: &Linking) {
    let peers = linking.membership.peers();
    group.set_peers(peers.iter().map(|peer| peer.node.into()).collect());
    let members = linking.membership.members();
    let revoked = members.nodes.iter().filter(|one| one.revoked).map(|one| one.node.into());
    group.set_expelled(revoked.collect());
}

/// Lets the group work until the daemon stops, or it has ended by itself: its disk has failed.
async fn keep(shared: &Arc<Shared>, linking: &Linking, group: Group) {
    let (sender, alive) = watch::channel(());
    let running = Running { group: group.clone(), alive, _alive: sender };
    linking.system.set(Some(running));
    let following = directory::follow(shared, &linking.system, &group);
    let mut following = std::pin::pin!(following);
    while !shared.is_stopping() {
        tokio::select! {
            () = &mut following => {}
            () = linking.system.stop.notified() => {}
            () = sleep(LOOK) => {
                if !group.is_running() {
                    let why = group.failure().unwrap_or_default();
                    tracing::error!(why, "the system group has ended here; it is started again");
                    break;
                }
            }
        }
    }
    linking.system.directory.fence(shared);
    linking.system.set(None);
    // Those who use it end their sessions first.
    let done = async {
        while linking.system.seats.taken() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(STOP, done).await.ok();
    timeout(STOP, group.stop()).await.ok();
}

/// What this node knows of the group.
pub(super) fn status(shared: &Shared) -> Option<GroupStatus> {
    let linking = shared.linking.as_ref()?;
    let names = names(shared, linking);
    let links = linked(shared);
    let own = shared.config.node;
    let mut status =
        GroupStatus { node: own, name: shared.config.name.clone(), ..GroupStatus::default() };
    let Some(group) = linking.system.group() else { return Some(status) };
    status.standing = match *group.fence().borrow() {
        Fence::Joining => Standing::Joining,
        Fence::Up { .. } => Standing::Up,
        Fence::Fenced => Standing::Fenced,
    };
    let number = |node: u64| u16::try_from(node).ok();
    // One that is cut off does not know.
    let is_fenced = status.standing == Standing::Fenced;
    status.leader = group.leader().and_then(number).filter(|_| !is_fenced);
    status.term = group.term();
    status.applied = group.applied();
    let voters: BTreeSet<u16> = group.voters().into_iter().flatten().filter_map(number).collect();
    let up: BTreeMap<u16, bool> = group.look(|state| {
        status.sessions = state.session_count();
        status.revision = state.revision(Realm::System);
        state.nodes().map(|(node, entry)| (node, entry.up.is_some())).collect()
    });
    let all: BTreeSet<u16> = names.keys().chain(&voters).chain(up.keys()).copied().collect();
    let members = all.into_iter().map(|node| MemberStatus {
        node,
        name: names.get(&node).cloned().unwrap_or_else(|| format!("node{node}")),
        is_voter: voters.contains(&node),
        is_up: up.get(&node).copied().unwrap_or(false),
        is_linked: node == own || links.contains(&node),
        contact_ms: group.last_contact(node.into()).map(::group::millis),
    });
    status.members = members.collect();
    status.trouble = trouble(&status);
    Some(status)
}

/// Why nothing can be decided here, if so, with the nodes that are missing.
fn trouble(status: &GroupStatus) -> Option<String> {
    let voters: Vec<&MemberStatus> = status.members.iter().filter(|one| one.is_voter).collect();
    let missing: Vec<&str> =
        voters.iter().filter(|one| !one.is_linked).map(|one| one.name.as_str()).collect();
    let is_fenced = status.standing == Standing::Fenced;
    let names = missing.join(", ");
    if voters.is_empty() {
        return Some("this node has not been taken into the system group yet".into());
    }
    if 2 * (voters.len() - missing.len()) <= voters.len() {
        let fenced = if is_fenced { ", this node has fenced itself" } else { "" };
        let all = voters.len();
        return Some(format!(
            "no majority of the system group's voters can be reached{fenced}: {names} missing, of {all}; \
             start them, or mend the network"
        ));
    }
    let missing = if names.is_empty() { names } else { format!(" ({names} missing)") };
    match (status.leader, is_fenced) {
        (_, true) => Some(format!(
            "this node has fenced itself: the system group has not answered it in time{missing}"
        )),
        (None, _) => Some(format!("the system group is choosing a leader{missing}")),
        _ => None,
    }
}

/// The names of all nodes that are members.
fn names(shared: &Shared, linking: &Linking) -> BTreeMap<u16, String> {
    let own = (shared.config.node, shared.config.name.clone());
    let peers = linking.membership.peers().into_iter().map(|peer| (peer.node, peer.name));
    peers.chain([own]).collect()
}

/// The nodes to which there is a link.
fn linked(shared: &Shared) -> BTreeSet<u16> {
    shared.with(|node| {
        let up = node.kernel.nodes().filter(|info| matches!(info.state, NodeState::Up { .. }));
        up.map(|info| info.node.0).collect()
    })
}
