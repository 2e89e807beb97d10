//! TLS 1.3 as a [`Stream`]: neither side waits in it, and both have shown a certificate of this DVS.

mod verify;

pub(super) use verify::{Pinned, Trust};

use super::certificate::{Clock, Subject};
use super::link::Stream;
use super::tcp_busy;
use crate::limits::{TLS_READ, TLS_UNSENT};
use crate::server::Nanos;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{Acceptor, NoServerSessionStorage};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a connection is for, said in the first message of the handshake (ALPN, RFC 7301): a link between two members,
const LINK: &[u8] = b"dvs-link";
/// or a node that wants to become one and has no certificate yet.
const JOIN: &[u8] = b"dvs-join";

/// How a node shows itself, and whom it trusts. Made anew when its certificate changes.
#[derive(Clone, Debug)]
pub(super) struct Configs {
    connect: Arc<ClientConfig>,
    accept: Arc<ServerConfig>,
    /// Only where the authority is.
    admit: Option<Arc<ServerConfig>>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl Configs {
    /// `admits`: nodes may join here; they are shown the certificate of the authority, too.
    pub(super) fn new(
        trust: &Arc<Trust>,
        certificate: &CertificateDer<'static>,
        key: &PrivateKeyDer<'static>,
        clock: &Clock,
        admits: bool,
    ) -> Result<Configs> {
        let own = vec![certificate.clone()];
        let mut connect = client(clock)?
            .with_custom_certificate_verifier(trust.clone())
            .with_client_auth_cert(own.clone(), key.clone_key())?;
        set_client(&mut connect, LINK);
        let server = || {
            ServerConfig::builder_with_details(provider(), clock.clone())
                .with_protocol_versions(&[&TLS13])
        };
        let mut accept = server()?
            .with_client_cert_verifier(trust.clone())
            .with_single_cert(own.clone(), key.clone_key())?;
        set_server(&mut accept, LINK);
        let mut admit = None;
        if admits {
            let chain = vec![certificate.clone(), trust.authority.clone()];
            let mut config =
                server()?.with_no_client_auth().with_single_cert(chain, key.clone_key())?;
            set_server(&mut config, JOIN);
            admit = Some(Arc::new(config));
        }
        Ok(Configs { connect: Arc::new(connect), accept: Arc::new(accept), admit })
    }
}

fn client(clock: &Clock) -> Result<rustls::client::danger::DangerousClientConfigBuilder> {
    let builder = ClientConfig::builder_with_details(provider(), clock.clone())
        .with_protocol_versions(&[&TLS13])?;
    Ok(builder.dangerous())
}

fn set_client(config: &mut ClientConfig, purpose: &[u8]) {
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![purpose.to_vec()];
}

fn set_server(config: &mut ServerConfig, purpose: &[u8]) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![purpose.to_vec()];
}

/// A connection that somebody has made to this node.
#[derive(Debug)]
pub(super) enum Accepted {
    /// Of the member that its certificate names.
    Link(Tls, Subject),
    /// Of somebody without a certificate.
    Join(Tls),
}

/// Connects to a member; returns also whom its certificate names.
pub(super) fn connect(
    configs: &Configs,
    stream: TcpStream,
    expected: Subject,
    deadline: Instant,
) -> Result<(Tls, Subject)> {
    let name = ServerName::try_from(expected.name())?;
    let connection = ClientConnection::new(configs.connect.clone(), name)?;
    let tls = Tls::new(stream, connection.into())?;
    tls.shake_hands(deadline).context("TLS handshake")?;
    let subject = tls.subject()?;
    Ok((tls, subject))
}

/// Connects to the node with the authority in order to join; its certificate is `pinned`.
pub(super) fn connect_to_join(
    stream: TcpStream,
    pinned: Pinned,
    clock: &Clock,
    deadline: Instant,
) -> Result<Tls> {
    let mut config =
        client(clock)?.with_custom_certificate_verifier(Arc::new(pinned)).with_no_client_auth();
    set_client(&mut config, JOIN);
    let name = ServerName::try_from("join.dvs")?;
    let tls = Tls::new(stream, ClientConnection::new(Arc::new(config), name)?.into())?;
    tls.shake_hands(deadline)?;
    Ok(tls)
}

/// Accepts a connection: reads what it is for, and requires a certificate of those that want a link.
pub(super) fn accept(configs: &Configs, stream: TcpStream, deadline: Instant) -> Result<Accepted> {
    let mut socket = Socket::new(stream)?;
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        socket.receive_by(deadline).context("TLS handshake")?;
        while socket.has_unread() {
            acceptor.read_tls(&mut socket)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {}
            Err((error, mut alert)) => {
                alert.write_all(&mut &socket.stream).ok();
                return Err(error).context("TLS handshake");
            }
        }
    };
    let wants = |purpose| {
        accepted.client_hello().alpn().is_some_and(|mut all| all.any(|one| one == purpose))
    };
    let (joins, links) = (wants(JOIN), wants(LINK));
    let config = match &configs.admit {
        Some(admit) if joins && !links => admit.clone(),
        // Without the right purpose it is refused by an alert.
        _ => configs.accept.clone(),
    };
    let connection = match accepted.into_connection(config) {
        Ok(connection) => connection,
        Err((error, mut alert)) => {
            alert.write_all(&mut &socket.stream).ok();
            return Err(error).context("TLS handshake");
        }
    };
    let tls = Tls::with_socket(socket, connection.into())?;
    tls.shake_hands(deadline).context("TLS handshake")?;
    let purpose = tls.lock().connection.alpn_protocol().map(<[u8]>::to_vec);
    match purpose.as_deref() {
        Some(JOIN) => Ok(Accepted::Join(tls)),
        Some(LINK) => {
            let subject = tls.subject()?;
            Ok(Accepted::Link(tls, subject))
        }
        _ => bail!("it does not say what the connection is for"),
    }
}

/// A socket that does not wait, and what came from it and has not been decrypted.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    incoming: Vec<u8>,
    start: usize,
    end: usize,
}

impl Socket {
    fn new(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Socket { stream, incoming: vec![0; TLS_READ], start: 0, end: 0 })
    }

    fn has_unread(&self) -> bool {
        self.start < self.end
    }

    /// Reads what there is, once, when all that came before has been taken. 0 is the end.
    fn receive(&mut self) -> io::Result<usize> {
        debug_assert!(!self.has_unread(), "what came first is taken first");
        (self.start, self.end) = (0, 0);
        self.end = (&self.stream).read(&mut self.incoming)?;
        Ok(self.end)
    }

    /// As [`Socket::receive`], but waits for it until `deadline`.
    fn receive_by(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            match self.receive() {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if is_later(&error) => {
                    wait(&self.stream, PollFlags::IN, Some(time_left(deadline)?))?;
                }
                result => return result.map(|_| ()),
            }
        }
    }
}

/// The bytes that have been received.
impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.incoming[self.start..self.end]).read(buffer)?;
        self.start += count;
        Ok(count)
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Waits for the socket; true if it is ready, false if the time is over or a signal came.
fn wait(stream: &TcpStream, flags: PollFlags, timeout: Option<Duration>) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream, flags)];
    let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// A TLS connection, after its handshake.
#[derive(Debug)]
pub(super) struct Tls {
    /// For those who wait, and those who close: they do not take the lock.
    stream: TcpStream,
    state: Mutex<State>,
    /// Something has been received that the next read gives out without the socket.
    buffered: AtomicBool,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    connection: Connection,
}

impl Tls {
    fn new(stream: TcpStream, connection: Connection) -> io::Result<Tls> {
        Tls::with_socket(Socket::new(stream)?, connection)
    }

    fn with_socket(socket: Socket, mut connection: Connection) -> io::Result<Tls> {
        connection.set_buffer_limit(Some(TLS_UNSENT));
        Ok(Tls {
            stream: socket.stream.try_clone()?,
            state: Mutex::new(State { socket, connection }),
            buffered: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handshake, until `deadline` however the other side dawdles.
    fn shake_hands(&self, deadline: Instant) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            match state.send() {
                Err(error) if is_later(&error) => {
                    wait(&self.stream, PollFlags::OUT, Some(time_left(deadline)?))?;
                    continue;
                }
                result => result?,
            }
            if !state.connection.is_handshaking() {
                break;
            }
            if !state.socket.has_unread() {
                state.socket.receive_by(deadline)?;
            }
            state.decrypt()?;
        }
        self.note_buffered(&mut state);
        Ok(())
    }

    /// Whom the other's certificate names. Its verification has been part of the handshake.
    fn subject(&self) -> Result<Subject> {
        let state = self.lock();
        let shown = state.connection.peer_certificates().and_then(<[_]>::first);
        Subject::of(shown.context("it has shown no certificate")?)
    }

    /// Ciphertext that came with what was asked for, or plaintext that did not fit.
    fn note_buffered(&self, state: &mut State) {
        let plain = state
            .connection
            .process_new_packets()
            .is_ok_and(|state| state.plaintext_bytes_to_read() > 0);
        self.buffered.store(plain || state.socket.has_unread(), Ordering::SeqCst);
    }

    /// Reads exactly `buffer`, until `deadline`.
    pub(super) fn read_exact_by(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if is_later(&error) => {
                    self.await_readable(Some(time_left(deadline)?))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says nothing more.
    #[cfg(test)]
    pub(super) fn end_writing(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Writes all of `bytes` to the socket, until `deadline`.
    pub(super) fn write_all_by(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        loop {
            let result = match bytes {
                [] => self.flush().map(|()| 0),
                _ => self.write(&[IoSlice::new(bytes)]),
            };
            match result {
                Ok(_) if bytes.is_empty() => return Ok(()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_later(&error) => {
                    self.await_writable(Some(time_left(deadline)?))?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl State {
    /// Sends the ciphertext that waits, without waiting.
    fn send(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut &self.socket.stream) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Takes some of what has been received. Plaintext that had come out before must have been read.
    fn decrypt(&mut self) -> io::Result<()> {
        if self.connection.read_tls(&mut self.socket)? == 0 {
            // The other side has ended the connection, and goes on talking.
            self.socket.start = self.socket.end;
        }
        if let Err(error) = self.connection.process_new_packets() {
            // The alert that says why.
            self.send().ok();
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(())
    }

    /// Moves plaintext to `buffer`. `None`: the other side has ended the connection.
    fn take_plaintext(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.connection.reader().read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Some(filled))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        let mut is_last = false;
        loop {
            match self.take_plaintext(&mut buffer[filled..])? {
                None => return Ok(filled),
                Some(count) => filled += count,
            }
            if filled == buffer.len() {
                return Ok(filled);
            }
            if self.socket.has_unread() {
                self.decrypt()?;
                continue;
            }
            if is_last {
                break;
            }
            match self.socket.receive() {
                Ok(0) => return Ok(filled),
                // Less than there was room for is all there was.
                Ok(count) => is_last = count < self.socket.incoming.len(),
                Err(error) if is_later(&error) => break,
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if filled == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(filled) }
    }
}

impl Stream for Tls {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.lock();
        let result = state.read(buffer);
        // An answer of the protocol itself; what cannot be sent goes with the next write.
        if state.connection.wants_write() {
            state.send().ok();
        }
        self.note_buffered(&mut state);
        result
    }

    /// Takes no more while ciphertext of an earlier write waits.
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.lock();
        state.send()?;
        let count = state.connection.writer().write_vectored(parts)?;
        match state.send() {
            Err(error) if !is_later(&error) => Err(error),
            _ => Ok(count),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.lock().send()
    }

    fn await_readable(&self, timeout: Option<Duration>) -> io::Result<()> {
        if self.buffered.load(Ordering::SeqCst) {
            return Ok(());
        }
        wait(&self.stream, PollFlags::IN, timeout).map(|_| ())
    }

    fn await_writable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        wait(&self.stream, PollFlags::OUT, timeout)
    }

    fn close(&self) {
        // Already closed by the other side: nothing to do.
        self.stream.shutdown(Shutdown::Both).ok();
    }

    fn busy(&self) -> Option<Nanos> {
        tcp_busy::busy(&self.stream)
    }
}

#[cfg(test)]
mod tests;
