//! The 64-byte message and the tag that makes a call repeatable.

use crate::endpoint::Endpoint;
use crate::errno::{Errno, IpcError};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of arguments a message carries itself; more rides along as payload.
pub const ARGS_SIZE: usize = 40;

/// Sequence number of a call: lane (16 bits, high) and count on that lane (48 bits).
///
/// With the caller's endpoint it names a call for ever, so that a call repeated after a failover
/// or a broken link is recognised and not executed twice.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Tag(pub u64);

impl Tag {
    /// Tag number `sequence` of `lane`.
    pub const fn new(lane: u16, sequence: u64) -> Tag {
        Tag((lane as u64) << 48 | sequence & ((1 << 48) - 1))
    }

    /// The caller's lane (one per thread that may have a call open).
    pub const fn lane(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The count on the lane. Grows by one from call to call.
    pub const fn sequence(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

/// A call's name: who made it, and which one of theirs it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    pub source: Endpoint,
    pub tag: Tag,
}

/// What is exchanged by send, receive, sendrec, reply: 64 bytes, the same on every node.
///
/// Little-endian. In a request `status` is 0 or `port::ONE_WAY`; in a reply 0 is success, 1..=4095 the server's errno,
/// and from 4096 on an [`IpcError`] made by the DVK because no answer will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Message {
    /// Who sent it. Written by the DVK, never believed from a process.
    pub source: Endpoint,
    pub tag: Tag,
    /// Number of the call (`calls`), or a kernel number from [`kernel`].
    pub call: u16,
    pub status: u16,
    /// Bytes of payload that ride along, at most `limits::PAYLOAD_MAX`.
    pub payload_len: u32,
    pub args: [u8; ARGS_SIZE],
}

const _: () = assert!(size_of::<Message>() == 64 && align_of::<Message>() == 8);
const _: () = assert!(cfg!(target_endian = "little"), "messages are little-endian in memory");

/// Call numbers below 0x100 belong to the DVK.
pub mod kernel {
    /// An asynchronous notification; the arguments are the value (u64).
    pub const NOTIFY: u16 = 0x01;
    /// To the memory side of an endpoint: answer the bytes at an address (`vcopy`). If they can be mapped
    /// (`crate::lent`), the arguments of the answer say how the memory is named, where it begins, how long it is, whether it
    /// may be written, and whether it may be read; of COPY_IN, too.
    pub const COPY_OUT: u16 = 0x02;
    /// To the memory side of an endpoint: write the payload to an address (`vcopy`).
    pub const COPY_IN: u16 = 0x03;
}

/// `status` of an answer that is none: the request is to be made of the endpoint in the arguments (`relay`). It is no
/// errno of Linux's, which end at 133.
pub const RELAYED: u16 = 4095;

impl Message {
    /// A request for call number `call` without arguments.
    pub const fn request(call: u16) -> Message {
        Message {
            source: Endpoint::NONE,
            tag: Tag(0),
            call,
            status: 0,
            payload_len: 0,
            args: [0; ARGS_SIZE],
        }
    }

    /// A reply that carries only an error of the server.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "errno is 1..=4095"
    )]
    pub const fn failed(call: u16, errno: Errno) -> Message {
        let mut message = Message::request(call);
        message.status = errno.errno as u16;
        message
    }

    /// A reply made by the DVK: the call ended without the server's answer.
    pub const fn undelivered(call: u16, error: IpcError) -> Message {
        let mut message = Message::request(call);
        message.status = error.status();
        message
    }

    /// What a reply says: success, the server's errno, or that no answer came.
    pub fn outcome(&self) -> Result<Result<(), Errno>, IpcError> {
        match self.status {
            0 => Ok(Ok(())),
            errno @ 1..=4095 => Ok(Err(Errno::new(i32::from(errno)))),
            status => Err(IpcError::from_status(status)),
        }
    }
}
