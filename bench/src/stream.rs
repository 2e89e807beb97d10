//! Ping-pong over pipes and sockets: what a message costs when the kernel carries it.

use crate::cpus::Layout;
use crate::peer::Peer;
use crate::rounds::Subject;
use anyhow::Result;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Bytes of a message: as many as one of DVS has.
pub(crate) const MESSAGE: usize = 64;

/// A peer at the other end of two byte streams.
#[derive(Debug)]
pub(crate) struct Stream {
    name: &'static str,
    read: File,
    write: File,
    peer: Peer,
}

/// Two pipes.
pub(crate) fn pipe() -> Result<Stream> {
    let mut peer = Peer::start("pipes", &[], Stdio::piped(), Stdio::piped())?;
    let write = OwnedFd::from(peer.0.stdin.take().expect("it is piped")).into();
    let read = OwnedFd::from(peer.0.stdout.take().expect("it is piped")).into();
    Ok(Stream { name: "pipe", read, write, peer })
}

/// Two named pipes. Both ends are open for both directions, so that no open waits for the other side (fifo(7)).
pub(crate) fn fifo() -> Result<Stream> {
    let folder = tempfile::tempdir()?;
    let open = |name: &str| -> Result<File> {
        let path = folder.path().join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        Ok(File::options().read(true).write(true).open(&path)?)
    };
    let (write, read) = (open("there")?, open("back")?);
    let peer = Peer::start("pipes", &[], write.try_clone()?.into(), read.try_clone()?.into())?;
    Ok(Stream { name: "fifo", read, write, peer })
}

/// A pair of Unix sockets that keep messages apart.
pub(crate) fn seqpacket() -> Result<Stream> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
    socket("unix seqpacket", ours, theirs)
}

/// A pair of Unix stream sockets.
pub(crate) fn unix() -> Result<Stream> {
    let (ours, theirs) = UnixStream::pair()?;
    socket("unix socket", ours.into(), theirs.into())
}

/// A TCP connection over the loopback device.
pub(crate) fn tcp() -> Result<Stream> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    ours.set_nodelay(true)?;
    theirs.set_nodelay(true)?;
    socket("tcp", ours.into(), theirs.into())
}

fn socket(name: &'static str, ours: OwnedFd, theirs: OwnedFd) -> Result<Stream> {
    let peer = Peer::start("socket", &[], theirs.into(), Stdio::null())?;
    let write = File::from(ours);
    Ok(Stream { name, read: write.try_clone()?, write, peer })
}

impl Subject for Stream {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.peer.pin(layout)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        let mut message = [7; MESSAGE];
        let start = Instant::now();
        for _ in 0..count {
            self.write.write_all(&message)?;
            self.read.read_exact(&mut message)?;
        }
        Ok(start.elapsed())
    }
}

/// Sends back each message until the other side closes.
pub(crate) fn echo(read: &mut impl Read, write: &mut impl Write) -> Result<()> {
    let mut message = [0; MESSAGE];
    while read.read_exact(&mut message).is_ok() {
        write.write_all(&message)?;
    }
    Ok(())
}

/// Listens at `address`, prints where, and sends back the messages of one connection.
pub(crate) fn serve(address: IpAddr) -> Result<()> {
    let listener = TcpListener::bind((address, 0))?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    echo(&mut &stream, &mut &stream)
}
