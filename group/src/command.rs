//! What is asked of the replicated state, what it answers, and the bytes of both.

use crate::limits::COMMAND_MAX;
use crate::realm::Realm;
use serde::{Deserialize, Serialize};

/// A time or duration in milliseconds of the group's clock.
///
/// The clock is a number in the log: the leader stamps each command with it. It goes on from the last
/// stamp when another becomes leader, so it never runs faster than real time, and nobody's wall clock matters.
pub type Millis = u64;

/// Number of a node, as in endpoints.
pub type NodeId = u16;

/// A session: who asks. It is also a lease, because what it holds ends with it. Never used again.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ClientId(pub u64);

/// One command of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// When the leader took it.
    pub now: Millis,
    /// The node that it came from, as the leader knows it. Sessions are the node's through which they were opened.
    pub from: u64,
    /// Session of whoever asks; nobody's, 0, for those operations that need none.
    pub client: ClientId,
    /// Number of the command in its session, from 1; 0 for operations that may happen twice.
    pub sequence: u64,
    /// The client has the answers of all commands up to this number: they are forgotten.
    pub acked: u64,
    pub op: Op,
}

impl Command {
    /// What is said in no session. The leader stamps it.
    pub(crate) fn alone(op: Op) -> Command {
        Command { now: 0, from: 0, client: ClientId::default(), sequence: 0, acked: 0, op }
    }

    /// May another node, `from`, say this?
    pub(crate) fn may_be_of(&self, from: u64) -> bool {
        match &self.op {
            Op::Table(TableOp::NodeUp { node, .. } | TableOp::PutNode { node, .. }) => {
                u64::from(*node) == from
            }
            Op::Table(TableOp::Place { by, .. }) => u64::from(by.node) == from,
            Op::Table(TableOp::RemoveNode { .. }) | Op::Alive { .. } => false,
            _ => true,
        }
    }
}

/// What shall happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Nothing but the time. The leader says it when a session is due.
    Tick,
    /// Opens a session that lives `ttl` after its last sign of life. The same `nonce` (random) while
    /// the session lives gives the same session. It counts as one of `realm`'s.
    Open { nonce: u64, ttl: Millis, realm: Realm },
    /// Signs of life that the leader has gathered.
    Alive { signs: Vec<Sign> },
    /// Ends the session and what it holds.
    Close,
    /// Stores a value. With a lease, the session itself or one that it was granted, it is deleted when that ends.
    Put { key: Vec<u8>, value: Vec<u8>, lease: Option<ClientId> },
    /// Deletes a key, if it is there.
    Delete { key: Vec<u8> },
    /// Stores `value`, or deletes the key if there is none, if the key's last change was at the
    /// revision `expected` (0: the key is not there).
    Swap { key: Vec<u8>, expected: u64, value: Option<Vec<u8>>, lease: Option<ClientId> },
    /// Takes a lock or, with `wait`, a place in its line. Taking what one has is no change.
    Lock { name: String, wait: bool },
    /// Releases a lock, or leaves its line.
    Unlock { name: String },
    /// Becomes a candidate; the first of them leads. `value` is what others read of the leader.
    Campaign { name: String, value: Vec<u8> },
    /// Ends a candidacy or leadership.
    Resign { name: String },
    /// Arrives at a barrier for so many.
    Arrive { name: String, parties: u32 },
    /// Does not want to wait at the barrier any more: breaks it for those who do.
    Abandon { name: String },
    /// Joins a group (it begins with its first member).
    Join { group: String },
    /// Leaves a group.
    Leave { group: String },
    /// Sends to all members of the group, the sender too.
    Cast { group: String, bytes: Vec<u8> },
    /// The member has dealt with all items up to this number.
    Acknowledge { group: String, number: u64 },
    /// The group's state after the view with this number, for those who have joined with it or before.
    GiveState { group: String, view: u64, bytes: Vec<u8> },
    /// A change of the cluster's tables.
    Table(TableOp),
    /// A lease of this session's: it ends `ttl` after it was granted or last renewed, not with the session.
    Grant { ttl: Millis },
    /// Gives a lease that this session was granted its time anew, or ends it and the keys that have it.
    Renew { lease: ClientId, ends: bool },
}

/// A sign of life of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sign {
    pub client: ClientId,
    /// The node that it came from.
    pub from: u64,
    /// When the leader got it.
    pub at: Millis,
}

/// A change of the tables of nodes, containers and the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableOp {
    /// Adds a node or changes its name and address.
    PutNode { node: NodeId, name: String, address: String },
    /// Removes a node for good.
    RemoveNode { node: NodeId },
    /// The node is up, for as long as the session that says so lives.
    NodeUp { node: NodeId, incarnation: u64 },
    /// Adds a container or changes it.
    PutDc { dc: u32, name: String, nodes: Vec<NodeId> },
    /// Forgets a container that is no more: its entry, where its endpoints are, and the keys of its programs.
    RemoveDc { dc: u32 },
    /// Says where an endpoint is, if the entry's epoch is `expected` (0: there is no entry). As long as the node is up where
    /// it was, in that incarnation, only that can say so; and it can be only where a node is up. It needs no session.
    Place { dc: u32, slot: u32, by: Life, to: Whereabouts, expected: u64 },
}

/// A node from one start to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    pub node: NodeId,
    pub incarnation: u64,
}

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// Which of the owners that its slot has had.
    pub generation: u32,
    pub life: Life,
    /// It was there, and is no more.
    pub is_over: bool,
}

/// The answer to a command.
pub type Answer = Result<Done, Refusal>;

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// It is so; there is nothing to say about it.
    Fine,
    Opened {
        client: ClientId,
    },
    /// The signs in these places of the list are of sessions that have ended, or are another node's.
    Alive {
        ended: Vec<u32>,
    },
    /// A change of a key; `found` says whether the key was there before.
    Changed {
        revision: u64,
        found: bool,
    },
    /// The lock is the client's. Tokens only grow: a resource refuses those smaller than it has seen.
    Locked {
        fence: u64,
    },
    /// The candidate leads. No two leaders, of any election, ever have the same epoch.
    Elected {
        epoch: u64,
    },
    /// There is a place in line; others are before.
    Waiting,
    /// Whether all have arrived is found under this number.
    Arrived {
        generation: u64,
    },
    /// The membership of a group as of the view with this number.
    Joined {
        view: u64,
    },
    /// The message has this number in its group.
    Sent {
        number: u64,
    },
    /// The epoch of the entry, or of the membership.
    Epoch {
        epoch: u64,
    },
}

/// Why nothing has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// It has ended, or never was: whatever it held is free.
    #[error("the session has ended")]
    NoSession,
    /// The client has said that it has the answer.
    #[error("the command was answered before")]
    Answered,
    #[error("the operation needs a number in its session")]
    NoSequence,
    #[error("{what} is limited to {limit}")]
    Limit { what: Limit, limit: u64 },
    /// The key's last change, 0 if it is not there.
    #[error("the key is at revision {revision}")]
    Revision { revision: u64 },
    /// Held by somebody else.
    #[error("it is taken")]
    Taken,
    #[error("it is not held")]
    NotHeld,
    #[error("the barrier is for {parties}")]
    Parties { parties: u32 },
    #[error("not a member of the group")]
    NotMember,
    /// The entry has another epoch, 0 if there is none.
    #[error("the entry is at epoch {epoch}")]
    Epoch { epoch: u64 },
    #[error("there is no such node, container or group")]
    NotFound,
    /// Another with the same name, or an incarnation that lives.
    #[error("there is another of this name")]
    Exists,
    /// A container's share.
    #[error("{what} is limited to {limit} for each container")]
    Quota { what: Limit, limit: u64 },
    #[error("{what} is limited to {limit} for all containers together")]
    Quotas { what: Limit, limit: u64 },
    #[error(
        "keys that begin with the byte 0xff, and names that begin with the character 1, are kept for containers"
    )]
    Reserved,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    KeyBytes,
    ValueBytes,
    NameBytes,
    StoreBytes,
    Keys,
    Sessions,
    Unacknowledged,
    Holds,
    Ttl,
    Names,
    Line,
    Groups,
    Members,
    Queue,
    StateBytes,
    Nodes,
    Directory,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::KeyBytes => "the length of a key",
            Limit::ValueBytes => "the length of a value",
            Limit::NameBytes => "the length of a name (and it is not empty)",
            Limit::StoreBytes => "the size of all keys and values",
            Limit::Keys => "the number of keys",
            Limit::Sessions => "the number of sessions",
            Limit::Unacknowledged => "the number of answers not acknowledged",
            Limit::Holds => "the number of things that a session holds",
            Limit::Ttl => "the time to live (at least 100 ms)",
            Limit::Names => "the number of names",
            Limit::Line => "the number of those who wait",
            Limit::Groups => "the number of groups",
            Limit::Members => "the number of members of a group",
            Limit::Queue => "what a group keeps for members that do not read",
            Limit::StateBytes => "the size of a group's state",
            Limit::Nodes => "the number of nodes and containers",
            Limit::Directory => "the number of entries of the directory",
        })
    }
}

/// Why bytes are no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{length} bytes are more than the {limit} of the longest")]
    Length { length: usize, limit: usize },
    #[error("malformed bytes")]
    Malformed,
}

impl Command {
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// # Errors
    /// The bytes are too many, are not a command, or have something behind it.
    pub fn decode(bytes: &[u8]) -> Result<Command, DecodeError> {
        decode(bytes, COMMAND_MAX)
    }
}

/// The bytes of an answer.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    encode(answer)
}

/// # Errors
/// The bytes are too many, are not an answer, or have something behind it.
pub fn decode_answer(bytes: &[u8]) -> Result<Answer, DecodeError> {
    decode(bytes, COMMAND_MAX)
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("memory does not fail and lengths are known")
}

/// The one decoder: at most `limit` bytes, all of them used.
pub(crate) fn decode<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    limit: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::Length { length: bytes.len(), limit });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError::Malformed),
    }
}
