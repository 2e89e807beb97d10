//! What a process and its node's `dvkd` say to each other over the Unix socket: fixed records.
//!
//! The socket is SOCK_SEQPACKET; one record is one packet. A DC has a socket of its own on each
//! node, so the socket a process can reach decides which DC it belongs to; pid, uid and gid come
//! from SO_PEERCRED. Descriptors ride along with SCM_RIGHTS, in the order given below.
//!
//! ```text
//! process                                  dvkd
//!   Hello {kind, nonce}          + [bell]   →            bell: only kinds that receive
//!                                           ←  Welcome {endpoint, node, dc, rights} | Refused {error}
//!   Open {id, to}                           →
//!                                           ←  Channel {id, peer, flags} + [channel, bell of the peer] | Refused {id}
//!   Await {id, to, what, timeout}           →
//!                                           ←  Done {id, endpoint} | Refused {id}
//!   Withdraw {id}                           →            the question `id` is answered now, if it has not been
//!   Unbind | GetEp | Info | SetRights | Order →
//!                                           ←  Done {id, endpoint, data} | Refused {id}
//!                                           ←  Accept {peer, flags, cred} + [channel, bell of the peer?]   (receivers)
//!                                           ←  Gone {peer} | NodeGone {node} | Stop                          (receivers)
//!                                           ←  Notify {from, value} | Rights {rights} | Woken               (peers)
//!                                           ←  Freeze | Thaw                                                 (peers)
//!   Pending {source, value}… Stopped        →            after Freeze: notifications not received, and: no call is made
//!                                           ←  Promoted {endpoint, flags, rights} | Demoted {endpoint}       (peers)
//! ```
//! An ordinary process (the shim) closes the socket after each exchange: dvkd watches its pidfd.
//! A receiver (server, container, file agent, peer) keeps it: its end is the receiver's end. A question has a number
//! of the asker's choice, so that a peer can have several open.

use crate::cred::{CRED_SIZE_MAX, Cred};
use crate::endpoint::{DcId, Endpoint, NodeId};
use crate::errno::IpcError;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of this protocol and of the channel's layout. Both sides must have the same.
pub const VERSION: u32 = 7;

/// Environment variable with the path of the DC's socket; [`SOCKET_PATH`] if it is not set.
pub const SOCKET_ENV: &str = "DVS_SOCKET";
/// Where a container mounts the DC's socket.
pub const SOCKET_PATH: &str = "/run/dvs/dc.sock";

/// What a process wants to be.
pub mod kind {
    /// Makes calls only: a program with the shim, a command.
    pub const PROCESS: u32 = 1;
    /// Serves the well-known endpoint `Endpoint::server(number)`. Only for the dvkd's own user.
    pub const SERVER: u32 = 2;
    /// The container of this node. Only for the dvkd's own user.
    pub const CONTAINER: u32 = 3;
    /// Makes calls on behalf of others, whose credentials it puts in front of each payload: a file
    /// agent, `dvs-run`. Only for the dvkd's own user.
    pub const AGENT: u32 = 4;
    /// A peer that also receives (M3-IPC between processes). It is bound to its connection, so a process may be
    /// several, one per thread. `number` is the fixed number that it wants, 0 for any.
    pub const PEER: u32 = 5;
    /// The memory side of the peer `to` of the same process: answers `vcopy`.
    pub const MEMORY: u32 = 6;
    /// Stands by for the endpoint `to`, to become it. `number` not 0: by itself when that dies. Only for the dvkd's own
    /// user.
    pub const BACKUP: u32 = 7;
    /// As PEER, with a number, and one of the replicas that [`Endpoint::replicated`] stands for. Only for the dvkd's own
    /// user.
    pub const REPLICA: u32 = 8;
    /// Uses the services of the system group. `number` is the version of their records; after WELCOME they are what is
    /// exchanged.
    pub const SERVICES: u32 = 9;
}

/// Bits of `flags` in [`Tell`] records.
pub mod flag {
    /// The other end is trusted: credentials stand in front of each request's payload, and
    /// `source` and the lane in its tag are to be believed.
    pub const TRUSTED: u32 = 1;
    /// The requester of this channel is woken by its bell, not by each lane's own word.
    pub const REQUESTER_BELL: u32 = 2;
    /// The receiver claims a lane before it reads it, so a request that it has not received can be taken back, and one
    /// that it has can be abandoned.
    pub const RENDEZVOUS: u32 = 4;
    /// In CHANNEL: the receiver may pass requests on (`rights::call::RELAY`), or its node sees to it that it does not
    /// without the right.
    pub const RELAYS: u32 = 8;
    /// What the requester may do on this channel, in ACCEPT: `rights::call` from this bit on.
    pub const CALLS_SHIFT: u32 = 8;
}

/// Opcodes of [`Ask`].
pub mod ask {
    pub const HELLO: u32 = 1;
    pub const OPEN: u32 = 2;
    /// Answer question `nonce` now.
    pub const WITHDRAW: u32 = 3;
    /// Answer when `to` is bound or unbound (`number`: [`super::event`]), or after `value` milliseconds.
    pub const AWAIT: u32 = 4;
    /// `to` is not bound any more. Another's: only for the DC's administrator. With `number` 1: no peer of this node is.
    pub const UNBIND: u32 = 5;
    /// Which endpoint has the process with pid `value` on this node?
    pub const GET_EP: u32 = 6;
    /// Tell about `to`, or the DC, or a node (`number`: [`super::info`]).
    pub const INFO: u32 = 7;
    /// `to` has these rights from now on (`data`). Only for the DC's administrator.
    pub const SET_RIGHTS: u32 = 8;
    /// Which rights has `to`?
    pub const GET_RIGHTS: u32 = 9;
    /// Binds the process with pid `value` of this node, for when it says hello. Only for the DC's administrator.
    pub const BIND: u32 = 10;
    /// `number` ([`super::order`]) about `to`, an endpoint of any node. Only for the DC's administrator.
    pub const ORDER: u32 = 11;
    /// After FREEZE: no call is under way. Has no answer.
    pub const STOPPED: u32 = 12;
    /// After FREEZE: the notification `value` of `to` has not been received. Has no answer.
    pub const PENDING: u32 = 13;
    /// `number` ([`super::node`]) about the node `value`. Only for the DC's administrator.
    pub const NODE: u32 = 14;
    /// Leaves the notification `value` for `to`, as if the endpoint in `data` had: one of this node, or
    /// [`Endpoint::HARDWARE`]. Only for the DC's administrator.
    pub const NOTIFY_AS: u32 = 15;
    /// From a memory side: `to` may map the memory that comes along (`crate::lent`), named `value`. Without a descriptor:
    /// nobody may any more.
    pub const LEND: u32 = 16;
    /// The memory named `value` of the memory side `to`, with which the asker has a channel. The answer brings it.
    pub const MAP: u32 = 17;
}

/// What [`ask::ORDER`] orders.
pub mod order {
    /// The endpoint is going to move: it stops, messages wait.
    pub const START: u32 = 1;
    /// It goes on where it is.
    pub const ROLLBACK: u32 = 2;
    /// Its backup in `data` (an endpoint; `NONE`: any) on node `value` becomes it.
    pub const COMMIT: u32 = 3;
    /// Its blocked calls end.
    pub const WAKE: u32 = 4;
}

/// What [`ask::NODE`] does. Together they are what the prototype does with nodes and the proxies to them.
pub mod node {
    /// No frame is sent or taken; the session is kept as long as the node is not given up.
    pub const DISCONNECT: u32 = 1;
    pub const CONNECT: u32 = 2;
    /// Given up at once, and no link is made until it is up again.
    pub const DOWN: u32 = 3;
    pub const UP: u32 = 4;
    /// This node's part of the DC has nothing to do with that node any more, and again.
    pub const LEAVE: u32 = 5;
    pub const ENTER: u32 = 6;
}

/// What [`ask::AWAIT`] waits for.
pub mod event {
    pub const BOUND: u32 = 1;
    pub const UNBOUND: u32 = 2;
    /// In `value`: wait without a limit.
    pub const FOREVER: u64 = u64::MAX;
}

/// What [`ask::INFO`] tells: a record of [`crate::info`].
pub mod info {
    pub const DC: u32 = 1;
    pub const ENDPOINT: u32 = 2;
    /// The node `value`.
    pub const NODE: u32 = 3;
    /// The DVS.
    pub const DVS: u32 = 4;
    /// How busy the node `value` was `kind` seconds ago, and the DC's part on it: records of [`crate::load`].
    pub const NODE_LOAD: u32 = 5;
    pub const DC_LOAD: u32 = 6;
}

/// Opcodes of [`Tell`].
pub mod tell {
    pub const WELCOME: u32 = 1;
    pub const REFUSED: u32 = 2;
    pub const CHANNEL: u32 = 3;
    pub const ACCEPT: u32 = 4;
    pub const GONE: u32 = 5;
    pub const NODE_GONE: u32 = 6;
    pub const STOP: u32 = 7;
    /// A question that is neither HELLO nor OPEN has this answer.
    pub const DONE: u32 = 8;
    /// A notification from another node.
    pub const NOTIFY: u32 = 9;
    /// The rights of this endpoint have changed.
    pub const RIGHTS: u32 = 10;
    /// The endpoint is going to move: make no call, hand back what is pending, say STOPPED.
    pub const FREEZE: u32 = 11;
    /// It stays: go on.
    pub const THAW: u32 = 12;
    /// You are `endpoint` from now on, with the rights in the data. `flags` 1: what was received before is yours to answer.
    pub const PROMOTED: u32 = 13;
    /// You are a backup from now on, and this is your own endpoint.
    pub const DEMOTED: u32 = 14;
    /// Blocked calls end.
    pub const WOKEN: u32 = 15;
    /// Channels from `endpoint` ([`Endpoint::ANY`](crate::Endpoint::ANY): from all others of this node) that were handed
    /// over before this bring nothing any more, whatever is written in them.
    pub const CUT: u32 = 16;
}

/// A record from a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ask {
    pub op: u32,
    pub version: u32,
    /// HELLO: one of [`kind`]. INFO of a load: seconds ago.
    pub kind: u32,
    /// HELLO of a server or a peer: its number; of SERVICES: a version. AWAIT: [`event`]. INFO: [`info`]. ORDER: [`order`]. NODE: [`node`].
    pub number: u32,
    /// HELLO: told apart are the images that one pid runs one after the other (exec). Else the question's number.
    pub nonce: u64,
    /// OPEN: the peer wanted. Else whom the question is about.
    pub to: Endpoint,
    /// AWAIT: milliseconds or [`event::FOREVER`]. GET_EP, BIND: a pid. INFO, ORDER, NODE: a node. PENDING, NOTIFY_AS: the
    /// value. LEND, MAP: which memory.
    pub value: u64,
    /// SET_RIGHTS: a [`crate::Rights`]. ORDER: the backup. NOTIFY_AS: the source.
    pub data: [u8; ASK_DATA],
}

/// Bytes of data that an [`Ask`] carries.
pub const ASK_DATA: usize = 128;

/// A record from dvkd; for ACCEPT the encoded credentials of the peer stand in `cred`, for DONE the data asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tell {
    pub op: u32,
    /// REFUSED: the `IpcError`'s status.
    pub error: u32,
    /// WELCOME: who you are. CHANNEL, ACCEPT, GONE: the peer.
    pub endpoint: Endpoint,
    /// WELCOME: this node; NODE_GONE: that node.
    pub node: u32,
    pub dc: u32,
    pub flags: u32,
    pub cred_len: u32,
    /// GONE, NODE_GONE: the number of the death. A receiver may be told of it again, in its next life.
    /// CHANNEL, DONE, REFUSED: the question's number. NOTIFY: the value.
    pub number: u64,
    pub cred: [u8; CRED_SIZE_MAX],
}

const _: () = assert!(size_of::<Ask>() == 168);
const _: () = assert!(ASK_DATA >= size_of::<crate::Rights>() && CRED_SIZE_MAX >= ASK_DATA);

impl Ask {
    /// A question `op` about `to`.
    pub fn new(op: u32, to: Endpoint) -> Ask {
        let data = [0; ASK_DATA];
        Ask { op, version: VERSION, kind: 0, number: 0, nonce: 0, to, value: 0, data }
    }

    pub fn hello(kind: u32, number: u32, nonce: u64) -> Ask {
        Ask { kind, number, nonce, ..Ask::new(ask::HELLO, Endpoint::NONE) }
    }

    pub fn open(to: Endpoint) -> Ask {
        Ask::new(ask::OPEN, to)
    }

    /// Sets rights.
    pub fn with_rights(mut self, rights: &crate::Rights) -> Ask {
        self.data[..size_of::<crate::Rights>()].copy_from_slice(rights.as_bytes());
        self
    }

    /// With a second endpoint: the backup of a COMMIT, the source of a NOTIFY_AS.
    pub fn with_second(mut self, endpoint: Endpoint) -> Ask {
        self.data[..size_of::<Endpoint>()].copy_from_slice(endpoint.as_bytes());
        self
    }

    /// The endpoint in the data.
    pub fn second(&self) -> Endpoint {
        let bytes = self.data.first_chunk::<{ size_of::<Endpoint>() }>().copied();
        zerocopy::transmute!(bytes.unwrap_or_default())
    }

    /// The rights in the data, if they are well-formed.
    pub fn rights(&self) -> Option<crate::Rights> {
        crate::Rights::decode(self.data.get(..size_of::<crate::Rights>())?)
    }

    /// A record from a packet; `None` if it has another size, version or opcode.
    pub fn decode(packet: &[u8]) -> Option<Ask> {
        let ask = Ask::read_from_bytes(packet).ok()?;
        (ask.version == VERSION && (ask::HELLO..=ask::MAP).contains(&ask.op)).then_some(ask)
    }
}

impl Tell {
    /// A record that says `op` about `endpoint`.
    pub fn new(op: u32, endpoint: Endpoint) -> Tell {
        Tell {
            op,
            error: 0,
            endpoint,
            node: 0,
            dc: 0,
            flags: 0,
            cred_len: 0,
            number: 0,
            cred: [0; CRED_SIZE_MAX],
        }
    }

    pub fn welcome(endpoint: Endpoint, node: NodeId, dc: DcId) -> Tell {
        Tell { node: node.0.into(), dc: dc.0, ..Tell::new(tell::WELCOME, endpoint) }
    }

    pub fn refused(error: IpcError) -> Tell {
        Tell { error: error.status().into(), ..Tell::new(tell::REFUSED, Endpoint::NONE) }
    }

    /// The answer to a question, with a record.
    pub fn done(endpoint: Endpoint, record: &[u8]) -> Tell {
        Tell::new(tell::DONE, endpoint).with_data(record)
    }

    /// With a record, [`CRED_SIZE_MAX`] bytes at most.
    #[expect(clippy::cast_possible_truncation, reason = "at most CRED_SIZE_MAX")]
    pub fn with_data(mut self, record: &[u8]) -> Tell {
        let len = record.len().min(CRED_SIZE_MAX);
        self.cred[..len].copy_from_slice(&record[..len]);
        self.cred_len = len as u32;
        self
    }

    /// The record that rides along.
    pub fn data(&self) -> Option<&[u8]> {
        self.cred.get(..self.cred_len as usize)
    }

    pub fn node_gone(node: NodeId) -> Tell {
        Tell { node: node.0.into(), ..Tell::new(tell::NODE_GONE, Endpoint::NONE) }
    }

    /// With the credentials of the peer.
    #[expect(clippy::cast_possible_truncation, reason = "at most CRED_SIZE_MAX")]
    pub fn with_cred(mut self, cred: &Cred) -> Tell {
        self.cred_len = cred.encode(&mut self.cred) as u32;
        self
    }

    /// The credentials that ride along, if they are well-formed.
    pub fn cred(&self) -> Option<Cred> {
        Cred::decode(self.cred.get(..self.cred_len as usize)?).map(|(cred, _)| cred)
    }

    /// A record from a packet; `None` if it has another size or opcode.
    pub fn decode(packet: &[u8]) -> Option<Tell> {
        let tell = Tell::read_from_bytes(packet).ok()?;
        (tell::WELCOME..=tell::CUT).contains(&tell.op).then_some(tell)
    }

    /// REFUSED as an error, anything but `op` as a broken protocol.
    ///
    /// # Errors
    /// As told.
    pub fn expect(self, op: u32) -> Result<Tell, IpcError> {
        match self.op {
            tell::REFUSED => {
                Err(u16::try_from(self.error).map_or(IpcError::Protocol, IpcError::from_status))
            }
            told if told == op => Ok(self),
            _ => Err(IpcError::Protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_wire_and_strange_ones_are_refused() {
        let ask = Ask::open(Endpoint::IPC);
        assert_eq!(Ask::decode(ask.as_bytes()), Some(ask));
        assert_eq!(Ask::decode(&ask.as_bytes()[1..]), None);
        assert_eq!(Ask::decode(Ask { version: 9, ..ask }.as_bytes()), None);
        let tell = Tell::new(tell::ACCEPT, Endpoint::VFS).with_cred(&Cred::new(1, 2, 3));
        assert_eq!(
            Tell::decode(tell.as_bytes()).and_then(|tell| tell.cred()),
            Some(Cred::new(1, 2, 3))
        );
        assert_eq!(Tell { cred_len: u32::MAX, ..tell }.cred(), None);
        assert_eq!(Tell { cred_len: u32::MAX, ..tell }.data(), None);
        assert_eq!(Ask::decode(Ask { op: ask::MAP + 1, ..ask }.as_bytes()), None);
        let rights = crate::Rights::of_level(crate::rights::level::USER);
        assert_eq!(
            Ask::new(ask::SET_RIGHTS, Endpoint::NONE).with_rights(&rights).rights(),
            Some(rights)
        );
        assert_eq!(ask.rights(), None, "zeros are no rights");
        assert_eq!(Tell::done(Endpoint::VFS, &[1, 2]).data(), Some(&[1, 2][..]));
        assert_eq!(Tell::refused(IpcError::Denied).expect(tell::WELCOME), Err(IpcError::Denied));
    }
}
