//! What a node does all the time: signs of life, the group's clock, and who are its members.

use crate::command::{ClientId, NodeId, Op, TableOp};
use crate::group::{Group, SIGN, millis};
use crate::session::Session;
use crate::state::State;
use crate::types::{Jitter, RaftId};
use crate::voters::{Liveness, Standing, wanted};
use crate::wire::{Leads, Wire};
use openraft::{ChangeMembers, EmptyNode, ServerState};
use rand_core::RngCore;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a change of the members may take before it is tried again.
const CHANGE: Duration = Duration::from_secs(5);

/// Tells those who wait for a leader who it is.
pub(crate) async fn leader(group: Group) {
    let mut metrics = group.0.raft.metrics();
    while group.is_running() {
        let leader = metrics.borrow_and_update().current_leader.unwrap_or(0);
        if leader != group.0.leader.get() {
            group.0.leader.set(leader);
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// How long one who has lost its leader waits for another to be elected, for each that should stand before it: as long as
/// that takes, from the moment when the leader is missed.
const TURN: Duration = Duration::from_millis(550);

/// Who was not elected stands again after this time or up to twice that: as long as one that had a leader has no vote for
/// another.
const ELECTION: Duration = Duration::from_millis(200);

/// Voters that are led give each other only each so many of their signs of life, within the time of contact.
const SIGNS: u32 = 2;

/// Tells the voters that this node is here and whom it hears; without a majority of them it neither stands for
/// election nor speaks as a leader.
pub(crate) async fn contact(group: Group) {
    let (mut missed, mut pause, mut sign) = (None, Duration::ZERO, 0_u32);
    while group.is_running() {
        let now = group.local_time();
        let voters = group.voters();
        let everybody: BTreeSet<RaftId> = voters.iter().flatten().copied().collect();
        let (vote, leads) = {
            let metrics = group.0.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.vote, metrics.state == ServerState::Leader)
        };
        let last = group.0.log.last();
        let (hears, majority, leader, last_leader) = group.with_contact(|contact| {
            let majority = contact.has_majority(&voters, now);
            (contact.hears(now), majority, contact.leader(now), contact.last_leader())
        });
        sign = sign.wrapping_add(1);
        let is_due = |node: RaftId| {
            leads || leader.is_none_or(|leader| leader == node) || sign.is_multiple_of(SIGNS)
        };
        if everybody.contains(&group.node()) {
            let says = leads && majority;
            let leads = says.then(|| Leads { vote, committed: group.applied() });
            for node in everybody.iter().filter(|node| **node != group.node() && is_due(**node)) {
                let ping = Wire::Ping { hears: hears.clone(), last, leads };
                group.0.network.send(*node, &ping);
            }
        }
        let is_led = leads || leader.is_some();
        let others = everybody.iter().copied().filter(|node| Some(*node) != last_leader);
        let ahead = group.with_contact(|contact| contact.ahead(&others.collect(), last, now));
        if is_led {
            (missed, pause) = (None, Duration::ZERO);
        } else {
            let since = *missed.get_or_insert_with(Instant::now);
            let patience = pause + TURN * u32::try_from(ahead).unwrap_or(u32::MAX);
            if majority && since.elapsed() >= patience {
                // Who is not elected stands again, but not at the same time as another each time.
                let other = u32::try_from(Jitter.next_u64() % 1024).unwrap_or(0);
                (missed, pause) = (Some(Instant::now()), ELECTION + ELECTION * other / 1024);
                group.0.raft.trigger().elect().await.ok();
            }
        }
        group.0.network.mute(!majority);
        // All that its ticks are for here: a leader that is no voter any more lets go.
        let is_leaving = leads && (voters.len() > 1 || !everybody.contains(&group.node()));
        group.0.raft.runtime_config().tick(is_leaving);
        sleep(SIGN).await;
    }
}

/// How often those who wait for news look whether the node is still at work.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// The leader says the time when a session is due: so sessions end though nobody says anything.
pub(crate) async fn time(group: Group) {
    while group.is_running() {
        let (leader, applied) = (group.0.leader.get(), group.applied());
        let left = group.clock().zip(group.look(State::deadline));
        match left.map(|(now, deadline)| deadline.saturating_sub(now)) {
            // If it fails, another leads by now and does it.
            Some(0) => {
                group.submit(ClientId::default(), 0, 0, Op::Tick, SIGN * 2).await.ok();
            }
            // Another session may be due earlier, and another node may lead.
            left => {
                let left = left.map_or(LOOK, |left| LOOK.min(Duration::from_millis(left)));
                let news = async {
                    tokio::select! {
                        biased;
                        () = group.0.leader.find(|now| (now != leader).then_some(())) => {}
                        () = group.reach(applied + 1) => {}
                    }
                };
                timeout(left, news).await.ok();
            }
        }
    }
}

/// The leader lets the nodes of the table follow the log, and replaces voters that are gone.
pub(crate) async fn members(group: Group) {
    let mut down_since: BTreeMap<RaftId, Instant> = BTreeMap::new();
    while group.is_running() {
        sleep(SIGN * 5).await;
        if !group.is_leader() {
            down_since.clear();
            continue;
        }
        let table: BTreeMap<RaftId, bool> = group.look(|state| {
            state.nodes().map(|(number, node)| (number.into(), node.up.is_some())).collect()
        });
        down_since.retain(|node, _| table.get(node) == Some(&false));
        let now = Instant::now();
        for (node, _) in table.iter().filter(|(_, up)| !**up) {
            down_since.entry(*node).or_insert(now);
        }
        let expelled = group.expelled();
        change(&group, &table, &down_since, &expelled).await;
        if let Some(node) = table.keys().find(|node| expelled.contains(node)) {
            remove(&group, *node).await;
        }
    }
}

/// Takes an expelled node off the table.
async fn remove(group: &Group, node: RaftId) {
    let Ok(number) = NodeId::try_from(node) else { return };
    let Ok(session) = Session::open(group, millis(CHANGE)).await else { return };
    let removed = session.run(Op::Table(TableOp::RemoveNode { node: number }));
    // If it fails, another leads and does it.
    if let Ok(Ok(_)) = timeout(CHANGE, removed).await {
        tracing::info!(node, "a node has left the system group");
    }
    session.close().await;
}

/// Does the one change of the members that is most wanted, if any.
async fn change(
    group: &Group,
    table: &BTreeMap<RaftId, bool>,
    down_since: &BTreeMap<RaftId, Instant>,
    expelled: &BTreeSet<RaftId>,
) {
    let members = group.members();
    if group.voters().len() > 1 {
        // openraft is in the middle of one, perhaps begun by another leader: it goes on when it is asked again.
        let goal = group.voters().pop().unwrap_or_default();
        timeout(CHANGE, group.0.raft.change_membership(goal, true)).await.ok();
        return;
    }
    // A node that follows: it has signed on, so it is in the table and up.
    let follows = |node: &RaftId| !members.contains_key(node) && !expelled.contains(node);
    for node in table.iter().filter(|(node, up)| **up && follows(node)) {
        let added = group.0.raft.add_learner(*node.0, EmptyNode {}, false);
        if timeout(CHANGE, added).await.is_err() {
            return;
        }
    }
    let gone = |node: &RaftId| {
        down_since.get(node).is_some_and(|since| since.elapsed() >= group.0.config.gone)
    };
    let standing = |node: &RaftId| match table.get(node) {
        _ if expelled.contains(node) => Standing::Expelled,
        Some(true) => Standing::Alive,
        Some(false) if gone(node) => Standing::Gone,
        Some(false) => Standing::Silent,
        // A first voter that has never signed on is not known to be gone; one taken off the table is.
        None if group.0.config.first_voters.contains(node) => Standing::Silent,
        None => Standing::Gone,
    };
    let nodes: Vec<Liveness> = members
        .iter()
        .map(|(node, voter)| Liveness { node: *node, voter: *voter, standing: standing(node) })
        .collect();
    let goal = wanted(&nodes);
    let voters: BTreeSet<RaftId> =
        members.iter().filter(|(_, voter)| **voter).map(|(node, _)| *node).collect();
    if goal != voters {
        tracing::info!(?voters, ?goal, "changing the voters of the system group");
        timeout(CHANGE, group.0.raft.change_membership(goal, true)).await.ok();
        return;
    }
    let out: BTreeSet<RaftId> = members
        .iter()
        .filter(|(node, voter)| !**voter && expelled.contains(node))
        .map(|(node, _)| *node)
        .collect();
    if !out.is_empty() {
        let change = ChangeMembers::RemoveNodes(out);
        timeout(CHANGE, group.0.raft.change_membership(change, true)).await.ok();
    }
}
