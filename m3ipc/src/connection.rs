//! One connection through the door: records and descriptors over the DC's Unix socket.

use crate::door::{Ask, Tell, tell};
use crate::endpoint::Endpoint;
use crate::errno::IpcError;
use core::mem::MaybeUninit;
use core::time::Duration;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno as Os;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use zerocopy::IntoBytes;

/// Descriptors that ride along with one record at most: a channel and a bell.
pub const FDS_MAX: usize = 2;

/// A process's end of a connection to its dvkd.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

/// Descriptors that came with a record.
pub type Fds = [Option<OwnedFd>; FDS_MAX];

/// A channel handed out by dvkd: its memory, the receiver's bell, and `door::flag`s.
#[derive(Debug)]
pub struct Opened {
    pub channel: OwnedFd,
    pub bell: OwnedFd,
    pub flags: u32,
}

impl Connection {
    /// Connects to the DC's socket at `path`.
    ///
    /// # Errors
    /// [`IpcError::NotBound`] if nobody listens there.
    pub fn connect(path: &[u8]) -> Result<Connection, IpcError> {
        let address = SocketAddrUnix::new(path).map_err(|_| IpcError::NotBound)?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|_| IpcError::Exhausted)?;
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => return Ok(Connection { socket }),
                Err(Os::INTR) => {}
                Err(_) => return Err(IpcError::NotBound),
            }
        }
    }

    /// Says hello as `kind`, with one's bell if one receives; returns the welcome.
    ///
    /// # Errors
    /// As dvkd refuses it, or [`IpcError::NotBound`] if the connection breaks.
    pub fn hello(&self, ask: Ask, bell: Option<BorrowedFd<'_>>) -> Result<Tell, IpcError> {
        self.ask(&ask, bell)?;
        self.hear().and_then(|(tell, _)| tell.expect(tell::WELCOME))
    }

    /// As [`Connection::hello`], without a bell, for whoever does not wait longer than `patience`: a dvkd that is stopped takes
    /// the record and does not answer.
    ///
    /// # Errors
    /// As [`Connection::hello`], or [`IpcError::TimedOut`].
    pub fn hello_within(&self, ask: Ask, patience: Duration) -> Result<Tell, IpcError> {
        self.ask(&ask, None)?;
        let timeout: Option<Timespec> = patience.try_into().ok();
        loop {
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => return Err(IpcError::TimedOut),
                Ok(_) => break,
                Err(Os::INTR) => {}
                Err(_) => return Err(IpcError::NotBound),
            }
        }
        self.hear().and_then(|(tell, _)| tell.expect(tell::WELCOME))
    }

    /// Asks for a channel to `peer`. dvkd answers when the peer is there.
    ///
    /// # Errors
    /// As dvkd refuses it, or [`IpcError::NotBound`] if the connection breaks.
    pub fn open(&self, peer: Endpoint) -> Result<Opened, IpcError> {
        self.ask(&Ask::open(peer), None)?;
        let (tell, [channel, bell]) = self.hear()?;
        let tell = tell.expect(tell::CHANNEL)?;
        let (Some(channel), Some(bell)) = (channel, bell) else { return Err(IpcError::Protocol) };
        Ok(Opened { channel, bell, flags: tell.flags })
    }

    /// Sends one record.
    ///
    /// # Errors
    /// [`IpcError::NotBound`] if the connection is broken.
    pub fn ask(&self, ask: &Ask, fd: Option<BorrowedFd<'_>>) -> Result<(), IpcError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        loop {
            let bytes = [rustix::io::IoSlice::new(ask.as_bytes())];
            match rustix::net::sendmsg(&self.socket, &bytes, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Os::INTR) => {}
                Err(_) => return Err(IpcError::NotBound),
            }
        }
    }

    /// Waits for one record.
    ///
    /// # Errors
    /// [`IpcError::NotBound`] when dvkd has closed the connection, [`IpcError::Protocol`] if it is no record.
    pub fn hear(&self) -> Result<(Tell, Fds), IpcError> {
        let mut packet = [0u8; size_of::<Tell>()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut bytes = [rustix::io::IoSliceMut::new(&mut packet)];
            match rustix::net::recvmsg(
                &self.socket,
                &mut bytes,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received,
                Err(Os::INTR) => {}
                Err(_) => return Err(IpcError::NotBound),
            }
        };
        let mut fds: Fds = [None, None];
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                for (place, fd) in fds.iter_mut().zip(rights) {
                    *place = Some(fd);
                }
            }
        }
        if received.bytes == 0 {
            return Err(IpcError::NotBound);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(IpcError::Protocol);
        }
        Ok((Tell::decode(&packet[..received.bytes]).ok_or(IpcError::Protocol)?, fds))
    }
}

/// A connection that another process has made, and said hello on.
impl From<OwnedFd> for Connection {
    fn from(socket: OwnedFd) -> Connection {
        Connection { socket }
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> OwnedFd {
        connection.socket
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
