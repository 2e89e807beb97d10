//! A node's lease: it is up while the group hears of it, and knows in time when the group does not.
//!
//! A node signs on with a session of `lease` milliseconds and gives signs of life. One that it sent at its
//! time `s` and that was answered is stamped by the leader at some later time, and the group's clock never
//! runs faster than real time, so the group does not take the node for down before `s + lease`. The node fences
//! itself at `s + lease - margin(lease)`; the margin is for clocks that run at different rates:
//!
//! ```text
//!   fenced at  s + lease - margin  <  s + lease  <=  stamp + lease  <=  taken for down
//! ```

use crate::command::{ClientId, Done, Millis, NodeId, Op, Refusal, TableOp};
use crate::group::{Group, Unavailable};
use crate::realm::Realm;
use crate::signs::pause;
use crate::types::Jitter;
use rand_core::RngCore;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Whether a node may act for the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fence {
    /// Not signed on yet.
    #[default]
    Joining,
    /// Up: nobody else takes over what is this node's before `until`, which sign of life after sign of life is later.
    /// `epoch` of the membership in which it came.
    Up { client: ClientId, epoch: u64, until: Instant },
    /// The majority may take this node for down soon, or has: it must stop what only one may do.
    Fenced,
}

/// What is taken off the lease for clocks that differ by up to an eighth.
pub fn margin(lease: Millis) -> Millis {
    lease / 8
}

/// Signs on, gives signs of life, and again if the session has ended.
pub(crate) async fn live(group: Group) {
    let lease = group.0.config.lease;
    let trust = Duration::from_millis(lease - margin(lease));
    while group.is_running() {
        let sent = Instant::now();
        // Not now if an earlier incarnation is still taken for up, or nobody answers.
        if let Ok(Some((client, epoch))) = sign_on(&group).await {
            let until = sent + trust;
            if Instant::now() < until {
                group.0.fence.send_replace(Fence::Up { client, epoch, until });
                keep_alive(&group, client, epoch, until, trust).await;
                group.0.fence.send_replace(Fence::Fenced);
                // What it is for stops now, and has the margin for that.
                sleep(Duration::from_millis(margin(lease))).await;
                // If it can be told: else nobody may sign on for this node until the lease is over.
                leave(&group, client).await;
            } else {
                leave(&group, client).await;
            }
        }
        sleep(Duration::from_millis(lease / 8)).await;
    }
}

/// A session in which this node is up, and the epoch since when; none if an earlier one of this node still is.
async fn sign_on(group: &Group) -> Result<Option<(ClientId, u64)>, Unavailable> {
    let config = &group.0.config;
    let Ok(node) = NodeId::try_from(config.node) else { return Ok(None) };
    let patience = Duration::from_millis(config.lease);
    let open = Op::Open { nonce: Jitter.next_u64(), ttl: config.lease, realm: Realm::System };
    let (_, opened) = group.submit(ClientId::default(), 0, 0, open, patience).await?;
    let Ok(Done::Opened { client }) = opened else { return Ok(None) };
    let epoch = go_up(group, client, node, patience).await;
    if !matches!(epoch, Ok(Some(_))) {
        // Else nobody may sign on for this node until the session's time is over.
        leave(group, client).await;
    }
    Ok(epoch?.map(|epoch| (client, epoch)))
}

/// Says in its session that the node is up; none if that is refused.
async fn go_up(
    group: &Group,
    client: ClientId,
    node: NodeId,
    patience: Duration,
) -> Result<Option<u64>, Unavailable> {
    let config = &group.0.config;
    let known =
        TableOp::PutNode { node, name: config.name.clone(), address: config.address.clone() };
    group.submit(client, 1, 0, Op::Table(known), patience).await?.1.ok();
    let up = Op::Table(TableOp::NodeUp { node, incarnation: config.incarnation });
    match group.submit(client, 2, 1, up, patience).await?.1 {
        Ok(Done::Epoch { epoch }) => Ok(Some(epoch)),
        refused => {
            tracing::info!(node, ?refused, "cannot sign on yet");
            Ok(None)
        }
    }
}

async fn leave(group: &Group, client: ClientId) {
    let patience = Duration::from_millis(group.0.config.lease / 4);
    group.submit(client, 0, 0, Op::Close, patience).await.ok();
}

/// Until the node must fence itself, or the session has ended.
async fn keep_alive(
    group: &Group,
    client: ClientId,
    epoch: u64,
    mut until: Instant,
    trust: Duration,
) {
    // The first at once: to sign on may have taken most of the time. One that is not answered is sent again.
    while group.is_running() {
        let sent = Instant::now();
        match timeout_at(until, group.keep_alive(client, trust)).await {
            Ok(Ok(Ok(()))) => {
                until = sent + trust;
                group.0.fence.send_replace(Fence::Up { client, epoch, until });
            }
            Ok(Ok(Err(Refusal::NoSession))) | Err(_) => return,
            Ok(Ok(Err(_)) | Err(Unavailable)) => {}
        }
        if timeout_at(until, sleep(pause(group.0.config.lease))).await.is_err() {
            return;
        }
    }
}
