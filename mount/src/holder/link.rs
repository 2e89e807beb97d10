//! What `dvs-mount` and the file agent that it has started say to each other: records with descriptors, over a socket pair.

use m3ipc::connection::{Connection, Opened};
use m3ipc::{Endpoint, IpcError, NodeId, client};
use rustix::io::Errno as Os;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Descriptors of one record at most: a channel and a bell.
const FDS_MAX: usize = 2;

/// One record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub(super) struct Record {
    pub(super) kind: u32,
    /// A minor version, a slot of the client, a node.
    pub(super) number: u32,
    /// An endpoint.
    pub(super) endpoint: u64,
    /// Features of FUSE, or flags of a channel.
    pub(super) flags: u64,
}

/// Kinds of records.
pub(super) mod kind {
    /// To a new agent, first: how many threads, what is agreed with the kernel, and the estate.
    pub(in crate::holder) const BEGIN: u32 = 1;
    /// Then: which endpoint it is, on which node.
    pub(in crate::holder) const ENDPOINT: u32 = 2;
    /// A descriptor of the mount.
    pub(in crate::holder) const DEVICE: u32 = 3;
    /// A channel and its bell; from the agent, too, when it has opened one.
    pub(in crate::holder) const CHANNEL: u32 = 4;
    /// That was all: serve.
    pub(in crate::holder) const GO: u32 = 5;
    /// From the agent: a connection to dvkd is wanted.
    pub(in crate::holder) const CONNECT: u32 = 6;
    /// This is one; without a descriptor there is none, or with a flag not yet.
    pub(in crate::holder) const CONNECTED: u32 = 7;
    /// From the agent: a descriptor that tells when it begins to die.
    pub(in crate::holder) const LIFE: u32 = 8;
    /// From the agent: the mount is gone. `number` is an errno, or 0.
    pub(in crate::holder) const ENDED: u32 = 9;
}

/// One end.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// A record with its descriptors.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) record: Record,
    pub(super) fds: Vec<OwnedFd>,
}

impl Link {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Link, OwnedFd)> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (own, other) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok((Link(own), other))
    }

    pub(super) fn of(end: OwnedFd) -> Link {
        Link(end)
    }

    /// Says something.
    ///
    /// # Errors
    /// The other is gone.
    pub(super) fn say(&self, record: Record, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let bytes = [io::IoSlice::new(record.as_bytes())];
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &bytes, &mut control, SendFlags::NOSIGNAL)
        });
        Ok(sent.map(drop)?)
    }

    /// Waits for what the other says. `None`: it is gone.
    ///
    /// # Errors
    /// It is no record.
    pub(super) fn hear(&self) -> io::Result<Option<Heard>> {
        let mut record = Record::default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut bytes = [io::IoSliceMut::new(record.as_mut_bytes())];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.0, &mut bytes, &mut control, flags) {
                Ok(received) => break received,
                Err(Os::INTR) => {}
                Err(Os::CONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        match received.bytes {
            0 => Ok(None),
            size if size == size_of::<Record>() && !received.flags.contains(ReturnFlags::TRUNC) => {
                Ok(Some(Heard { record, fds }))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Channels for an agent: over connections that `dvs-mount` makes, whose endpoint it is.
#[derive(Debug)]
pub(super) struct Channels(Mutex<Link>);

impl Channels {
    pub(super) fn new(link: Link) -> Channels {
        Channels(Mutex::new(link))
    }

    pub(super) fn say(&self, record: Record, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).say(record, fds)
    }
}

impl client::Opener for Channels {
    fn open(&self, _: &client::Client, to: Endpoint, slot: usize) -> Result<Opened, IpcError> {
        let lost = |_| IpcError::NotBound;
        let link = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = loop {
            link.say(Record { kind: kind::CONNECT, ..Record::default() }, &[]).map_err(lost)?;
            let heard = link.hear().map_err(lost)?.ok_or(IpcError::NotBound)?;
            if heard.record.flags == 0 {
                break heard;
            }
        };
        drop(link);
        let socket = heard.fds.into_iter().next().ok_or(IpcError::NotBound)?;
        let opened = Connection::from(socket).open(to)?;
        let record = Record {
            kind: kind::CHANNEL,
            number: u32::try_from(slot).map_err(|_| IpcError::Exhausted)?,
            endpoint: to.to_bits(),
            flags: opened.flags.into(),
        };
        self.say(record, &[opened.channel.as_fd(), opened.bell.as_fd()]).map_err(lost)?;
        Ok(opened)
    }
}

/// The node of a record.
pub(super) fn node(record: Record) -> NodeId {
    NodeId(u16::try_from(record.number).unwrap_or(0))
}
