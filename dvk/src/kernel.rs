//! The kernel of a node: who is bound where, which channel may be opened, and what travels between nodes.
//!
//! A pure state machine: everything that happens is an [`Input`], everything it wants is an [`Output`].
//! The daemon feeds it from sockets, the simulator from a seed. It never looks into a message beyond
//! its source, tag and length.
//!
//! The daemon does the rest: it owns sockets, processes and channels (memfds). Calls between processes of one
//! node do not pass here. For a receiver on another node the daemon is the receiver of the channel
//! (a *proxy*), and makes a [`Input::LocalRequest`] of each request it finds there.

mod awaits;
mod calls;
mod container;
mod directory;
mod link;
mod replicas;
mod shares;
mod slots;

pub use crate::frame::Order;
use crate::frame::{Hello, Packet, Track};
use crate::limits::PLACING_MAX;
use crate::server::{Gone, Nanos};
use awaits::Awaits;
pub use awaits::Event;
use bytes::Bytes;
use container::Container;
use directory::{Binder, Number};
use link::Peer;
use m3ipc::door::kind;
use m3ipc::limits::WELL_KNOWN_MAX;
use m3ipc::rights::{Rights, level};
use m3ipc::{CallId, Cred, DcId, Endpoint, IpcError, Message, NodeId};
use shares::Shares;
use std::collections::{BTreeMap, BTreeSet};

/// What a kernel knows from its start on.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Random at each start of the daemon.
    pub incarnation: u64,
    /// Generation of the first owner of each slot: higher than any that an earlier incarnation gave out,
    /// so that no endpoint ever names two processes. Seconds of the wall clock will do, or a
    /// counter on disk times 65 536.
    pub first_generation: u32,
    /// The other nodes of the cluster.
    pub peers: BTreeSet<NodeId>,
    pub dcs: Vec<Dc>,
}

/// A distributed container. Every node of it must be told the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dc {
    pub id: DcId,
    pub nodes: BTreeSet<NodeId>,
    /// The directory: on which node each server (by number, `Endpoint::server`) runs.
    pub servers: BTreeMap<u32, NodeId>,
}

/// What a process is bound as (`m3ipc::door::kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Makes calls only.
    Process,
    /// The server with this number. Privileged.
    Server(u32),
    /// The container of the DC on this node. Privileged.
    Container,
    /// Makes calls for others, with their credentials. Privileged.
    Agent,
    /// Also receives. With this well-known number, or any (0). A process may be several.
    Peer(u32),
    /// The memory side of that peer of the same process.
    Memory(Endpoint),
    /// Stands by for an endpoint with a number, on any node, to become it; by itself when that dies, or its node does,
    /// if so asked. Privileged.
    Backup(Endpoint, bool),
    /// As a peer with that number, and one of its replicas. Privileged.
    Replica(u32),
}

impl Role {
    /// The role in a HELLO of the door; `None` if there is no such kind.
    pub fn from_kind(kind: u32, number: u32, of: Endpoint) -> Option<Role> {
        Some(match kind {
            kind::PROCESS => Role::Process,
            kind::SERVER => Role::Server(number),
            kind::CONTAINER => Role::Container,
            kind::AGENT => Role::Agent,
            kind::PEER => Role::Peer(number),
            kind::MEMORY => Role::Memory(of),
            kind::BACKUP => Role::Backup(of, number != 0),
            kind::REPLICA => Role::Replica(number),
            _ => return None,
        })
    }

    /// The slot of a process of `node` that names its number; none if it does not.
    fn slot(self, node: NodeId) -> Option<u32> {
        match self {
            Role::Peer(number @ 1..=WELL_KNOWN_MAX) | Role::Replica(number) => {
                Some(Endpoint::well_known(node, number).slot)
            }
            _ => None,
        }
    }

    /// Can whoever is it move, if it has a number?
    fn can_move(self) -> bool {
        matches!(self, Role::Peer(1..))
    }

    /// May others open channels to it?
    pub fn receives(self) -> bool {
        !matches!(self, Role::Process | Role::Backup(..))
    }

    /// Is it only for the daemon's own user?
    pub fn is_privileged(self) -> bool {
        matches!(
            self,
            Role::Server(_)
                | Role::Container
                | Role::Agent
                | Role::Backup(..)
                | Role::Replica(_)
                | Role::Peer(1..=m3ipc::limits::SYSTEM_MAX)
        )
    }

    /// Is its life that of a connection? Then a process may be several (a thread each, or muk2's servers). The
    /// others are their process's one endpoint.
    pub fn is_bound_to_connection(self) -> bool {
        self.is_rendezvous() || matches!(self, Role::Server(_))
    }

    /// Does it claim what it receives (`m3ipc::door::flag::RENDEZVOUS`)?
    pub fn is_rendezvous(self) -> bool {
        matches!(self, Role::Peer(_) | Role::Memory(_) | Role::Backup(..) | Role::Replica(_))
    }

    /// What it may do when it is bound.
    fn first_rights(self, privileged: bool) -> Rights {
        Rights::of_level(match self {
            Role::Server(_) | Role::Container | Role::Agent => level::SYSTEM,
            _ if self.is_rendezvous() && privileged => level::SERVER,
            _ => level::USER,
        })
    }
}

/// Who waits for the answer to a HELLO or an OPEN: a connection of the daemon. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asker(pub u64);

/// One link to another node: two connections. The daemon numbers them; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// [`Kernel::next_deadline`] has come, or perhaps not.
    Tick,

    /// A process wants to be bound. `pid` is as the daemon sees it (SO_PEERCRED); `nonce` tells apart
    /// the programs that one pid runs one after the other: the same pid with another nonce has
    /// executed a new program, and its old endpoint is gone. `privileged`: it runs as the daemon's own user.
    /// Ends in `Welcome` or `Refused`; later, if it is not known yet whether the last owner of its number has ended.
    Hello { asker: Asker, dc: DcId, role: Role, pid: u32, nonce: u64, privileged: bool },
    /// The process bound as `from` wants a channel to `to`. Ends in `Channel` or `Refused`; later, if
    /// `to` is a server of this node that is not bound at the moment.
    Open { asker: Asker, dc: DcId, from: Endpoint, to: Endpoint },
    /// Nobody waits for the answer to that HELLO, BIND, OPEN or AWAIT any more.
    Withdraw { asker: Asker },
    /// The process bound as `from` wants to know when `to` is bound or unbound, within `timeout` (0: is it now?).
    /// Ends in `Done` or `Refused`.
    Await {
        asker: Asker,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        event: Event,
        timeout: Option<Nanos>,
    },
    /// The administrator binds a process of this node as peer `number`; it says hello later. `pid` as the daemon
    /// sees it. Ends in `Done` or `Refused`; later, as `Hello`.
    Reserve { asker: Asker, dc: DcId, number: u32, pid: u32, privileged: bool },
    /// The endpoint `to`, bound on this node, has these rights from now on. Ends in `Done` or `Refused`, at once.
    SetRights { asker: Asker, dc: DcId, to: Endpoint, rights: &'a Rights, privileged: bool },
    /// An administrator orders something about the endpoint `to`, on whatever node. Ends in `Done` or `Refused`.
    Order { asker: Asker, dc: DcId, from: Endpoint, to: Endpoint, order: Order, privileged: bool },
    /// An administrator of `dc` steers the link to one of its nodes. Ends in `Done` or `Refused`, at once.
    Steer { asker: Asker, dc: DcId, node: NodeId, steer: Steer, privileged: bool },
    /// An administrator leaves a notification for `to` as if `source` had: a peer of this node; or the hardware
    /// (`Endpoint::HARDWARE`), for a receiver of this node. Ends in `Done` or `Refused`, at once.
    NotifyAs {
        asker: Asker,
        dc: DcId,
        source: Endpoint,
        to: Endpoint,
        value: u64,
        privileged: bool,
    },
    /// After `Freeze`: the process has stopped. After `TakeOver`: it is known what the dead had received.
    Frozen { dc: DcId, endpoint: Endpoint },
    /// After `Freeze` or `TakeOver`: that call, which was delivered to `to`, has not been received.
    Unreceived { dc: DcId, to: Endpoint, id: CallId },
    /// After `Freeze`: that notification has not been received.
    Pending { dc: DcId, to: Endpoint, from: Endpoint, value: u64 },
    /// A process of this node has died, or a receiver has closed its connection. What it had
    /// answered before has been read from its channels already.
    Died { dc: DcId, endpoint: Endpoint },

    /// A request found on a channel whose receiver is this daemon as proxy of `to`. The daemon has set
    /// `message.source` to the channel's requester. `payload` has the length the message says.
    /// Ends in exactly one `AnswerLocal`, unless the caller dies.
    LocalRequest { dc: DcId, to: Endpoint, cred: &'a Cred, message: &'a Message, payload: &'a [u8] },
    /// The caller of such a request wants it ended.
    LocalCancel { dc: DcId, to: Endpoint, id: CallId },
    /// A receiver of this node, `from`, has answered a request that came by `Deliver`.
    LocalAnswer { dc: DcId, from: Endpoint, id: CallId, message: &'a Message, payload: &'a [u8] },
    /// A notification to an endpoint of this or another node. It may get lost if that is not there.
    LocalNotify { dc: DcId, from: Endpoint, to: Endpoint, value: u64 },

    /// The system group has a new entry in its directory. Those of one endpoint come with growing epochs; of each the latest
    /// comes again at the start.
    Placed { dc: DcId, entry: Entry },
    /// The group has not done what an [`Output::Propose`] asked for, and will not. `is_full`: the directory is.
    Unplaced { dc: DcId, slot: u32, expected: u64, is_full: bool },
    /// How the nodes stand with the group: until when it does not take this one for down (what only one node may do rests
    /// from then on: the node is fenced; 0: it is so now), and which are up, in which of their lives
    /// ([`Config::incarnation`]). Every entry that was there when this node signed on comes before it is not fenced.
    Standing { until: Nanos, up: &'a BTreeMap<NodeId, u64> },

    /// Both connections of a link to another node have exchanged Hellos; the one sent was made by [`Kernel::hello`].
    /// Replaces the link that the node had, if any. When one of the two connections ends, the link does.
    LinkUp { link: LinkId, sent: &'a Hello, received: &'a Hello },
    /// A link is gone.
    LinkDown { node: NodeId, link: LinkId },
    /// A frame (not a Hello) came on a track of a link. Not one that is early ([`Kernel::is_early`]).
    Packet { node: NodeId, link: LinkId, track: Track, packet: &'a Packet<'a> },

    /// A node has become a member of the cluster. Nothing if it is one already.
    NodeJoined { node: NodeId },
    /// A node is no member any more: it is given up at once. The daemon makes no link with it from now on.
    NodeRevoked { node: NodeId },
    /// A connection to the address where the node listens was refused by its machine.
    NodeRefused { node: NodeId },

    /// A container is there, on this node and the others it names.
    DcStart { dc: &'a Dc },
    /// A container spans these nodes, too: they have just become members.
    DcSpan { dc: DcId, nodes: &'a BTreeSet<NodeId> },
    /// A container of this node is over; its processes are dead or soon will be.
    DcStop { dc: DcId },
}

/// An entry of the directory: where an endpoint is that has moved, or has backups elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub endpoint: Endpoint,
    pub node: NodeId,
    /// Of that node: in its next life the endpoint is not there any more.
    pub incarnation: u64,
    /// From entry to entry of an endpoint it grows. The group gives it; in a proposal it means nothing.
    pub epoch: u64,
    /// Nobody is the endpoint any more, and its number is its home's again.
    pub is_over: bool,
}

/// What an administrator does to the link with another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// There is no link until `Connect`. As one that is lost, it costs nothing if it is back before the node is given up.
    Disconnect,
    /// Given up at once, and no link until `Connect`.
    Down,
    Connect,
    /// The container, on this node, has nothing to do with that node any more: as if it were down, for this container. But
    /// that has to be down for the group before a backup takes over from an endpoint there.
    Leave,
    /// The container spans it.
    Enter,
}

/// Something the daemon shall do. In this order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "the large one, Deliver, is the common one")]
pub enum Output {
    /// HELLO: you are `endpoint`.
    Welcome { asker: Asker, dc: DcId, endpoint: Endpoint },
    /// HELLO or OPEN: no.
    Refused { asker: Asker, error: IpcError },
    /// AWAIT, and what the administrator asks: yes.
    Done { asker: Asker, endpoint: Endpoint },
    /// OPEN: make a channel between the two and hand it to both. With `via` the receiver is on that other
    /// node (or on this one and moving), and the daemon itself is the channel's receiver.
    /// `receiver` is the bound endpoint, or with `via` the one asked for.
    Channel { asker: Asker, dc: DcId, requester: Endpoint, receiver: Endpoint, via: Option<NodeId> },
    /// The rights of `endpoint` have changed: close its channels, with `IpcError::Denied`; who may opens a new one.
    Reopen { dc: DcId, endpoint: Endpoint },
    /// The process at `endpoint` is to make no call until `Thaw`, `Demote` or its death. Close its channels with `Moved`: who
    /// has a call there makes it again, over a channel whose receiver is the daemon. Then say which of the calls that
    /// were delivered have not been received, and which notifications, and `Frozen` when the process has stopped.
    Freeze { dc: DcId, endpoint: Endpoint },
    /// The process at `endpoint` has not stopped in time: close the channels on which it calls others, so that it can do no
    /// more as that.
    CutOff { dc: DcId, endpoint: Endpoint },
    /// It goes on.
    Thaw { dc: DcId, endpoint: Endpoint },
    /// The process at `endpoint` is dead and another will be it: as `Freeze`, but the calls that it had received end with
    /// `DestinationDied`.
    TakeOver { dc: DcId, endpoint: Endpoint },
    /// The process that is the endpoint `backup` is `endpoint` from now on. `inherits`: it answers what was received
    /// before.
    Promote { dc: DcId, backup: Endpoint, endpoint: Endpoint, inherits: bool },
    /// The process that was `endpoint` is `backup` from now on. Its calls end with `Moved`.
    Demote { dc: DcId, endpoint: Endpoint, backup: Endpoint },
    /// Channels of this node's processes with `to` over the daemon are to be opened anew: it is on this node, or not where
    /// it was, or there is a better replica. They are closed with `Moved` when no call is open there.
    Retire { dc: DcId, to: Endpoint },
    /// The blocked calls of the process end with `WokenUp`.
    Wake { dc: DcId, endpoint: Endpoint },
    /// A receiver of this node is gone: end every open lane of every channel with it by `error`. Its
    /// requesters open a new channel and send their calls again. Calls that came by
    /// `Deliver` are delivered again when it is back: the daemon forgets them.
    CloseChannels { dc: DcId, receiver: Endpoint, error: IpcError },
    /// Tell the receiver `to`, bound on this node, that others it has to do with are gone. `number` grows from death to
    /// death, also over restarts of the daemon (see [`Config::first_generation`]). A server that is bound is told
    /// again of all that its predecessor may not have finished with; its host drops what that has
    /// committed ([`crate::lanes::Hosted::told`]).
    ///
    /// A node that was given up comes back with the same endpoints. What was delivered to `to` before this must reach it
    /// before this, and what is delivered later must reach it later: requests of that node go over new
    /// channels from now on.
    Gone { dc: DcId, to: Endpoint, gone: Gone, number: u64 },

    /// A call from another node, for `to`, bound here. It ends in exactly one `LocalAnswer`, or with `CloseChannels` or `Gone`.
    Deliver { dc: DcId, to: Endpoint, cred: Cred, message: Message, payload: Bytes },
    /// The caller of a delivered call has been interrupted.
    DeliverCancel { dc: DcId, to: Endpoint, id: CallId },
    /// A notification for `to`, bound here.
    DeliverNotify { dc: DcId, to: Endpoint, from: Endpoint, value: u64 },
    /// The end of a `LocalRequest` to `from`.
    AnswerLocal { dc: DcId, from: Endpoint, id: CallId, message: Message, payload: Bytes },

    /// Ask the group to put `entry` in place of the one with the epoch `expected` (0: of none), until it has done so or
    /// refused. It refuses if there is another entry by now, or the one there is of a node that is up and not this one, or
    /// the new one of a node that is not up. Answered by `Placed` or `Unplaced`.
    Propose { dc: DcId, entry: Entry, expected: u64 },
    /// Write these bytes, one encoded frame, to that track of the link.
    Send { node: NodeId, link: LinkId, track: Track, bytes: Bytes },
    /// Close that connection, and try anew. The kernel has already forgotten it.
    DropLink { node: NodeId, link: LinkId, reason: LinkError },
    /// Say to the operator that `node` has sent a frame for `endpoint` that it may not send. Nothing came of it.
    Forged { node: NodeId, dc: DcId, endpoint: Endpoint, forgery: Forgery },
}

/// Why a link is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("nothing has come for too long")]
    Silent,
    #[error("another connection to the same node has replaced it")]
    Replaced,
    #[error("the node was given up while the connection was made")]
    Outdated,
    #[error("the other side is not the node that was meant, or not of this cluster")]
    WrongNode,
    #[error("frame {got} came where {expected} was due")]
    Gap { got: u64, expected: u64 },
    #[error("it says it has received {got} frames of {sent}")]
    ReceivedTooMany { got: u64, sent: u64 },
    #[error("a frame speaks in container {} for endpoint {endpoint:?}, which is not the node's", .dc.0)]
    Forged { dc: DcId, endpoint: Endpoint },
    #[error("the node is no member any more")]
    Revoked,
    #[error("the administrator has cut it")]
    Cut,
    #[error("no daemon listens there any more")]
    Refused,
    #[error("a second Hello on one link")]
    SecondHello,
    #[error("a limit of what is kept for the node is reached")]
    Exhausted,
}

/// Why a frame of another node has no effect, though it may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forgery {
    #[error("the node is not in that container")]
    Outsider,
    #[error("this node is not in that container")]
    Elsewhere,
    #[error("as far as this node knows, the endpoint is not there")]
    NotThere,
}

/// Another node, as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    pub node: NodeId,
    pub state: NodeState,
    /// Incarnation of the session with it, 0 if there is none.
    pub incarnation: u64,
    /// How often this node has given it up.
    pub epoch: u64,
    /// Calls of this node that wait for its answer.
    pub calls_out: usize,
    /// Calls of that node that are open here.
    pub calls_in: usize,
    /// The administrator wants no link with it.
    pub is_cut: bool,
}

/// How another node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// `round_trip` of the last ping, if there was one.
    Up { since: Nanos, round_trip: Option<Nanos> },
    /// There is no link. Calls wait.
    Lost { since: Nanos },
    /// Given up. Calls fail at once.
    Down { since: Nanos },
}

/// A process bound on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointInfo {
    pub endpoint: Endpoint,
    pub role: Role,
    pub pid: u32,
    pub rights: Rights,
    /// Its process has not said hello yet.
    pub is_reserved: bool,
    /// Requesters that have had a channel with it, and receivers of this node that it has had one with.
    pub requesters: usize,
    pub receivers: usize,
}

/// A server of a container, and the endpoint bound as it if it is on this node and there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    pub number: u32,
    pub node: NodeId,
    pub bound: Option<Endpoint>,
}

/// The kernel of one node.
#[derive(Debug)]
pub struct Kernel {
    node: NodeId,
    incarnation: u64,
    first_generation: u32,
    containers: BTreeMap<DcId, Container>,
    peers: BTreeMap<NodeId, Peer>,
    awaits: Awaits,
    /// Calls between processes of this node that are open here all the same, as their receiver is moving or has moved,
    /// and bytes of their payload.
    own_open: Shares,
    /// As [`Input::Standing`] says. Without a group nothing ends it.
    until: Nanos,
    is_fenced: bool,
    /// It was not fenced once: it knows the directory.
    has_stood: bool,
    up: BTreeMap<NodeId, u64>,
    /// Entries of containers that are not here (yet).
    entries_of_others: BTreeMap<(DcId, u32), Entry>,
}

impl Kernel {
    /// A kernel that has no link yet. It waits for the other nodes as if it had just lost them.
    pub fn new(config: Config, now: Nanos) -> Kernel {
        let mut kernel = Kernel {
            node: config.node,
            incarnation: config.incarnation,
            first_generation: config.first_generation,
            containers: BTreeMap::new(),
            awaits: Awaits::default(),
            own_open: Shares::default(),
            until: Nanos::MAX,
            is_fenced: false,
            has_stood: false,
            up: BTreeMap::new(),
            entries_of_others: BTreeMap::new(),
            peers: config
                .peers
                .iter()
                .filter(|peer| **peer != config.node)
                .map(|n| (*n, Peer::new(*n, now)))
                .collect(),
        };
        for dc in &config.dcs {
            kernel.dc_start(dc);
        }
        kernel
    }

    /// Takes one input at time `now`, which never goes back, and appends what is to be done.
    pub fn step(&mut self, now: Nanos, input: Input<'_>, out: &mut Vec<Output>) {
        if now >= self.until {
            self.fence(now, true, out);
        }
        match input {
            Input::Tick => self.tick(now, out),
            Input::Hello { asker, dc, role, pid, nonce, privileged } => {
                let (nonce, until) = (Some(nonce), now + PLACING_MAX);
                let binder = Binder { asker, role, pid, nonce, privileged, until };
                self.bind_or_park(now, dc, binder, out);
            }
            Input::Open { asker, dc, from, to } => {
                if let Err(error) = self.open(now, asker, dc, from, to, out) {
                    out.push(Output::Refused { asker, error });
                }
            }
            Input::Withdraw { asker } => {
                self.withdraw(asker);
                self.withdraw_await(now, asker, out);
            }
            Input::Await { asker, dc, from, to, event, timeout } => {
                if let Err(error) = self.ask_await(now, asker, dc, from, to, event, timeout, out) {
                    out.push(Output::Refused { asker, error });
                }
            }
            Input::Reserve { asker, dc, number, pid, privileged } => {
                let (role, nonce, until) = (Role::Peer(number), None, now + PLACING_MAX);
                let binder = Binder { asker, role, pid, nonce, privileged, until };
                self.bind_or_park(now, dc, binder, out);
            }
            Input::SetRights { asker, dc, to, rights, privileged } => {
                match self.set_rights(dc, to, rights, privileged, out) {
                    Ok(endpoint) => out.push(Output::Done { asker, endpoint }),
                    Err(error) => out.push(Output::Refused { asker, error }),
                }
            }
            Input::Order { asker, dc, from, to, order, privileged } => {
                let asked = self.ask_order(now, asker, dc, from, to, order, privileged, out);
                if let Err(error) = asked {
                    out.push(Output::Refused { asker, error });
                }
            }
            Input::Steer { asker, dc, node, steer, privileged } => {
                match self.steer(now, dc, node, steer, privileged, out) {
                    Ok(()) => out.push(Output::Done { asker, endpoint: Endpoint::NONE }),
                    Err(error) => out.push(Output::Refused { asker, error }),
                }
            }
            Input::NotifyAs { asker, dc, source, to, value, privileged } => {
                match self.notify_as(now, dc, source, to, value, privileged, out) {
                    Ok(endpoint) => out.push(Output::Done { asker, endpoint }),
                    Err(error) => out.push(Output::Refused { asker, error }),
                }
            }
            Input::Placed { dc, entry } => self.placed(now, dc, entry, out),
            Input::Unplaced { dc, slot, expected, is_full } => {
                self.unplaced(now, dc, slot, expected, is_full, out);
            }
            Input::Standing { until, up } => self.standing(now, until, up, out),
            Input::Frozen { dc, endpoint } => self.frozen(now, dc, endpoint, out),
            Input::Unreceived { dc, to, id } => self.unreceived(dc, to, id),
            Input::Pending { dc, to, from, value } => {
                if let Some(container) = self.containers.get_mut(&dc) {
                    container.directory.keep_notification(to.slot, from, value);
                }
            }
            Input::Died { dc, endpoint } => self.died(now, dc, endpoint, out),
            Input::LocalRequest { dc, to, cred, message, payload } => {
                self.local_request(now, dc, to, cred, message, payload, out);
            }
            Input::LocalCancel { dc, to, id } => self.local_cancel(now, dc, to, id, out),
            Input::LocalAnswer { dc, from, id, message, payload } => {
                self.local_answer(now, dc, from, id, message, payload, out);
            }
            Input::LocalNotify { dc, from, to, value } => {
                self.local_notify(now, dc, from, to, value, out)
            }
            Input::LinkUp { link, sent, received } => self.link_up(now, link, sent, received, out),
            Input::LinkDown { node, link } => self.link_down(now, node, link, out),
            Input::Packet { node, link, track, packet } => {
                self.packet(now, node, link, track, packet, out);
            }
            Input::NodeJoined { node } => self.node_joined(now, node),
            Input::NodeRevoked { node } => self.node_revoked(now, node, out),
            Input::NodeRefused { node } => self.node_refused(now, node, out),
            Input::DcStart { dc } => {
                self.dc_start(dc);
                self.place_early(now, dc.id, out);
            }
            Input::DcSpan { dc, nodes } => self.dc_span(dc, nodes),
            Input::DcStop { dc } => self.dc_stop(now, dc, out),
        }
        self.give_up_overfull(now, out);
    }

    /// When `Tick` is wanted at the latest. `None`: no time is of interest (no other node, nobody waits).
    pub fn next_deadline(&self) -> Option<Nanos> {
        let containers = self.containers.values().filter_map(Container::deadline);
        let peers = self.peers.values().filter_map(Peer::deadline);
        let fence = (!self.is_fenced && self.until != Nanos::MAX).then_some(self.until);
        containers.chain(peers).chain(self.awaits.deadline()).chain(fence).min()
    }

    /// Of this life of the node: [`Config::incarnation`].
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The Hello for a new connection to `node`; `None` if it is not of this cluster, or the administrator wants no
    /// link. It is for one connection: make it when it is sent.
    pub fn hello(&self, node: NodeId) -> Option<Hello> {
        self.peers
            .get(&node)
            .filter(|peer| !peer.is_cut)
            .map(|peer| peer.hello(self.node, self.incarnation))
    }

    pub fn nodes(&self) -> impl Iterator<Item = NodeInfo> {
        self.peers.values().map(Peer::info)
    }

    /// The node where messages to an endpoint go, as far as is known here.
    pub fn home(&self, dc: DcId, to: Endpoint) -> Option<NodeId> {
        self.containers.get(&dc)?.home(to)
    }

    pub fn dcs(&self) -> impl Iterator<Item = &Dc> {
        self.containers.values().map(|container| &container.dc)
    }

    /// The processes bound on this node, in the order of their slots.
    pub fn endpoints(&self, dc: DcId) -> impl Iterator<Item = EndpointInfo> {
        let container = self.containers.get(&dc);
        container
            .into_iter()
            .flat_map(|container| container.slots.iter().map(|binding| container.info(binding)))
    }

    /// Of how many endpoints it is known where the system group has placed them.
    pub fn placed_count(&self, dc: DcId) -> usize {
        self.containers.get(&dc).map_or(0, |container| container.directory.placed_count())
    }

    /// Is a process of this node `endpoint`, of whatever generation, and going on as it?
    pub fn acts_as(&self, dc: DcId, endpoint: Endpoint) -> bool {
        self.containers.get(&dc).is_some_and(|container| {
            let bound = container.slots.by_slot(endpoint.slot);
            bound.is_some_and(|binding| binding.role.can_move())
                && container.directory.moving(endpoint.slot).is_none()
        })
    }

    /// The process bound as `to` on this node.
    ///
    /// # Errors
    /// [`IpcError::NotBound`], [`IpcError::Stale`].
    pub fn endpoint(&self, dc: DcId, to: Endpoint) -> Result<EndpointInfo, IpcError> {
        let container = self.containers.get(&dc).ok_or(IpcError::NotBound)?;
        container.resolve(to).map(|binding| container.info(binding))
    }

    /// The node where `endpoint` of `dc` is.
    pub fn place_of(&self, dc: DcId, endpoint: Endpoint) -> NodeId {
        let container = self.containers.get(&dc);
        container.and_then(|container| container.home(endpoint)).unwrap_or(endpoint.node())
    }

    /// Calls between processes of this node that pass through the kernel.
    pub fn own_call_count(&self) -> usize {
        self.own_open.calls()
    }

    /// Questions that wait for an endpoint to be bound or unbound, of this node and of others here.
    pub fn await_count(&self) -> usize {
        self.awaits.count()
    }

    pub fn servers(&self, dc: DcId) -> impl Iterator<Item = ServerInfo> {
        let container = self.containers.get(&dc);
        container.into_iter().flat_map(|container| {
            container.dc.servers.iter().map(|(&number, &node)| {
                let bound = container.slots.by_slot(number).map(|binding| binding.endpoint);
                ServerInfo { number, node, bound }
            })
        })
    }

    fn tick(&mut self, now: Nanos, out: &mut Vec<Output>) {
        self.refuse_overdue(now, out);
        self.refuse_overdue_awaits(now, out);
        self.end_overdue(now, out);
        self.end_overdue_moves(now, out);
        self.watch_links(now, out);
    }
}

#[cfg(test)]
mod tests;
