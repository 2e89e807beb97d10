//! What a process and its node's `dvkd` say to each other over the Unix socket: fixed records.
//!
//! The socket is SOCK_SEQPACKET; one record is one packet. A DC has a socket of its own on each
//! node, so the socket a process can reach decides which DC it belongs to; pid, uid and gid come
//! from SO_PEERCRED. Descriptors ride along with SCM_RIGHTS, in the order given below.
//!
//! ```text
//! process                                  dvkd
//!   Hello {kind, nonce}          + [bell]   →            bell: only kinds that receive
//!                                           ←  Welcome {endpoint, node, dc} | Refused {error}
//!   Open {to}                               →
//!                                           ←  Channel {peer, flags} + [channel, bell of the peer] | Refused
//!                                           ←  Accept {peer, flags, cred} + [channel, bell of the peer?]   (receivers)
//!                                           ←  Gone {peer} | NodeGone {node} | Stop                          (receivers)
//! ```
//! An ordinary process (the shim) closes the socket after each exchange: dvkd watches its pidfd.
//! A receiver (server, container, file agent) keeps it: its end is the receiver's end.

use crate::cred::{CRED_SIZE_MAX, Cred};
use crate::endpoint::{DcId, Endpoint, NodeId};
use crate::errno::IpcError;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of this protocol and of the channel's layout. Both sides must have the same.
pub const VERSION: u32 = 1;

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
    /// A peer that also receives (M3-IPC between processes).
    pub const PEER: u32 = 5;
}

/// Bits of `flags` in [`Tell`] records.
pub mod flag {
    /// The other end is trusted: credentials stand in front of each request's payload, and
    /// `source` and the lane in its tag are to be believed.
    pub const TRUSTED: u32 = 1;
    /// The requester of this channel is woken by its bell, not by each lane's own word.
    pub const REQUESTER_BELL: u32 = 2;
}

/// Opcodes of [`Ask`].
pub mod ask {
    pub const HELLO: u32 = 1;
    pub const OPEN: u32 = 2;
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
}

/// A record from a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ask {
    pub op: u32,
    pub version: u32,
    /// HELLO: one of [`kind`].
    pub kind: u32,
    /// HELLO of a server: its number.
    pub number: u32,
    /// HELLO: told apart are the images that one pid runs one after the other (exec).
    pub nonce: u64,
    /// OPEN: the peer wanted.
    pub to: Endpoint,
}

/// A record from dvkd; for ACCEPT the encoded credentials of the peer stand in `cred`.
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
    pub number: u64,
    pub cred: [u8; CRED_SIZE_MAX],
}

const _: () = assert!(size_of::<Ask>() == 32);

impl Ask {
    pub fn hello(kind: u32, number: u32, nonce: u64) -> Ask {
        Ask { op: ask::HELLO, version: VERSION, kind, number, nonce, to: Endpoint::NONE }
    }

    pub fn open(to: Endpoint) -> Ask {
        Ask { op: ask::OPEN, version: VERSION, kind: 0, number: 0, nonce: 0, to }
    }

    /// A record from a packet; `None` if it has another size, version or opcode.
    pub fn decode(packet: &[u8]) -> Option<Ask> {
        let ask = Ask::read_from_bytes(packet).ok()?;
        (ask.version == VERSION && matches!(ask.op, ask::HELLO | ask::OPEN)).then_some(ask)
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
        (tell::WELCOME..=tell::STOP).contains(&tell.op).then_some(tell)
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
        assert_eq!(Tell::refused(IpcError::Denied).expect(tell::WELCOME), Err(IpcError::Denied));
    }
}
