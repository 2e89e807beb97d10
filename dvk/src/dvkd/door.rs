//! The door: the local sockets of all containers, and the processes behind them.
//!
//! One thread waits for all of it with epoll: new connections, records, processes that end. Nothing a client does
//! makes it wait: what a client does not read is dropped, a malformed record closes its connection.

use super::identity::Identity;
use super::node::{Node, Place, Receiver, Shared, take_off};
use super::programs::{self, Program};
use crate::kernel::{Asker, Input, Role};
use crate::limits::{
    CONNECTIONS_MAX, CONNECTIONS_PER_USER, PACKETS_PER_TURN, QUESTIONS_PER_USER, TELLS_QUEUED,
};
use anyhow::{Context, Result, bail, ensure};
use m3ipc::bell::Ringer;
use m3ipc::door::{Ask, Tell, ask, flag, kind, tell};
use m3ipc::limits::QUESTIONS_MAX;
use m3ipc::{Cred, DcId, Endpoint, IpcError, NodeId, Rights};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::collections::{BTreeMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// What the door's thread waits for, by the number that epoll carries.
#[derive(Debug)]
enum Source {
    Listener(DcId, OwnedFd),
    Connection(Box<Connection>),
    /// A pidfd.
    Process(Place, OwnedFd),
    /// To be woken by the other threads.
    Wake(OwnedFd),
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) node: u16,
    /// This daemon's own user.
    user: u32,
    epoll: Arc<OwnedFd>,
    sources: BTreeMap<u64, Source>,
    next: u64,
    /// Where each question came from: the connection, and its number there.
    askers: BTreeMap<Asker, (u64, u64)>,
    per_user: BTreeMap<u32, usize>,
    /// How many of the questions are each user's.
    asked_per_user: BTreeMap<u32, usize>,
    connections: usize,
    /// Processes that have come to use the services of the system group, until they are handed over.
    pub(super) programs: Vec<Program>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    dc: DcId,
    pub(super) identity: Identity,
    /// After HELLO.
    role: Option<Role>,
    endpoint: Option<Endpoint>,
    /// The bell that came with HELLO, until it is known who it is.
    bell: Option<OwnedFd>,
    /// The end of this connection is the end of the process, as a receiver.
    is_receiver: bool,
    /// What it waits for, by its own numbers.
    asking: BTreeMap<u64, Asker>,
    /// Records that the socket has no room for, for receivers only.
    queue: VecDeque<(Tell, Vec<Arc<OwnedFd>>)>,
}

const WAKE: u64 = 0;

impl Door {
    pub(super) fn new(node: u16) -> Result<Door> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
        let wake = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )
        .context("cannot make an eventfd")?;
        let mut door = Door {
            node,
            user: rustix::process::geteuid().as_raw(),
            epoll: Arc::new(epoll),
            sources: BTreeMap::new(),
            next: WAKE,
            askers: BTreeMap::new(),
            per_user: BTreeMap::new(),
            asked_per_user: BTreeMap::new(),
            connections: 0,
            programs: Vec::new(),
        };
        door.add(Source::Wake(wake))?;
        Ok(door)
    }

    /// Opens the socket of a container.
    pub(super) fn listen(&mut self, dc: DcId, path: &Path) -> Result<()> {
        let socket = bind(path)?;
        self.add(Source::Listener(dc, socket))?;
        Ok(())
    }

    /// Nobody comes into a container any more. Those who are in it stay.
    pub(super) fn close(&mut self, dc: DcId) {
        let of = |source: &Source| matches!(source, Source::Listener(of, _) if *of == dc);
        let listeners: Vec<u64> = self
            .sources
            .iter()
            .filter(|(_, source)| of(source))
            .map(|(number, _)| *number)
            .collect();
        for number in listeners {
            self.remove(number);
        }
    }

    /// Ends the connections of a container's processes; the door's thread finds that they have.
    pub(super) fn shut(&self, dc: DcId) {
        for source in self.sources.values() {
            if let Source::Connection(connection) = source
                && connection.dc == dc
            {
                shut(&connection.socket);
            }
        }
    }

    pub(super) fn is_privileged(&self, uid: u32) -> bool {
        uid == 0 || uid == self.user
    }

    fn add(&mut self, source: Source) -> Result<u64> {
        let number = self.next;
        epoll::add(&self.epoll, source.fd(), EventData::new_u64(number), EventFlags::IN)
            .context("epoll")?;
        self.next += 1;
        self.sources.insert(number, source);
        Ok(number)
    }

    fn remove(&mut self, number: u64) -> Option<Source> {
        let source = self.sources.remove(&number)?;
        // The descriptor is closed now, but copies of it may be elsewhere.
        epoll::delete(&self.epoll, source.fd()).ok();
        if let Source::Connection(connection) = &source {
            self.connections -= 1;
            let uid = connection.identity.uid;
            take_off(&mut self.per_user, uid, 1);
            take_off(&mut self.asked_per_user, uid, connection.asking.len());
            for asker in connection.asking.values() {
                self.askers.remove(asker);
            }
        }
        Some(source)
    }

    /// Gives a connection away that has not said who it is.
    pub(super) fn take(&mut self, number: u64) -> Option<(DcId, Identity, OwnedFd)> {
        // One that has is not just forgotten: its end is an endpoint's end.
        if self.connection(number)?.role.is_some() {
            return None;
        }
        let Some(Source::Connection(connection)) = self.remove(number) else { return None };
        let Connection { dc, identity, socket, .. } = *connection;
        Some((dc, identity, socket))
    }

    /// Sends a record to whom the door does not care about any more.
    pub(super) fn send_once(socket: &OwnedFd, record: &Tell) {
        // If it has gone, that is its business.
        send(socket, record, &[]).ok();
    }

    fn connection(&mut self, number: u64) -> Option<&mut Connection> {
        match self.sources.get_mut(&number) {
            Some(Source::Connection(connection)) => Some(connection),
            _ => None,
        }
    }

    pub(super) fn connection_of(&self, asker: Asker) -> Option<&Connection> {
        let (number, _) = self.askers.get(&asker)?;
        match self.sources.get(number) {
            Some(Source::Connection(connection)) => Some(connection),
            _ => None,
        }
    }

    /// The credentials of who asks, and the flags of its channels.
    pub(super) fn credentials(&self, asker: Asker) -> Option<(Cred, u32)> {
        let connection = self.connection_of(asker)?;
        let flags = if connection.role == Some(Role::Agent) { flag::TRUSTED } else { 0 };
        Some((connection.identity.cred, flags))
    }

    /// Tells a process who it is; returns its receiving side, if it has one.
    pub(super) fn welcome(
        &mut self,
        asker: Asker,
        dc: DcId,
        endpoint: Endpoint,
        node: NodeId,
        rights: &Rights,
    ) -> Option<Receiver> {
        let (number, _) = *self.askers.get(&asker)?;
        let connection = self.connection(number)?;
        connection.endpoint = Some(endpoint);
        let receiver = connection.bell.take().and_then(|bell| {
            let ringer = Arc::new(Ringer::map(bell.as_fd()).ok()?);
            let takes_trusted = matches!(connection.role, Some(Role::Server(_) | Role::Container));
            let is_rendezvous = connection.role.is_some_and(Role::is_rendezvous);
            connection.is_receiver = true;
            let bell = Arc::new(bell);
            Some(Receiver {
                connection: number,
                bell,
                ringer,
                takes_trusted,
                is_rendezvous,
                told: 0,
            })
        });
        let welcome = Tell::welcome(endpoint, node, dc).with_data(rights.as_bytes());
        self.answer(asker, &welcome, &[]);
        receiver
    }

    /// Answers who asked. If it is gone, that is its business.
    pub(super) fn answer(&mut self, asker: Asker, record: &Tell, fds: &[Arc<OwnedFd>]) {
        let Some((number, id)) = self.askers.remove(&asker) else { return };
        if let Some(connection) = self.connection(number) {
            connection.asking.remove(&id);
            let uid = connection.identity.uid;
            take_off(&mut self.asked_per_user, uid, 1);
        }
        self.tell(number, &Tell { number: id, ..*record }, fds);
    }

    /// Sends a record, without waiting. A receiver gets it later if it must be; who just does not read, never.
    pub(super) fn tell(&mut self, number: u64, record: &Tell, fds: &[Arc<OwnedFd>]) {
        let Some(connection) = self.connection(number) else { return };
        if connection.queue.is_empty() {
            match send(&connection.socket, record, fds) {
                Ok(()) => return,
                Err(Errno::AGAIN) if connection.is_receiver => {}
                // Its end, which the door's thread finds; a process that does not read its one answer has none.
                Err(_) => return shut(&connection.socket),
            }
        }
        if connection.queue.len() >= TELLS_QUEUED {
            tracing::warn!(
                pid = connection.identity.pid,
                "a receiver does not listen to dvkd; it is given up"
            );
            return shut(&connection.socket);
        }
        connection.queue.push_back((*record, fds.to_vec()));
        let flags = EventFlags::IN | EventFlags::OUT;
        let modified = epoll::modify(
            &*self.epoll.clone(),
            self.sources[&number].fd(),
            EventData::new_u64(number),
            flags,
        );
        if let Err(error) = modified {
            tracing::error!(%error, "epoll");
        }
    }

    fn flush(&mut self, number: u64) {
        let Some(connection) = self.connection(number) else { return };
        while let Some((record, fds)) = connection.queue.front() {
            match send(&connection.socket, record, fds) {
                Ok(()) => connection.queue.pop_front(),
                Err(Errno::AGAIN) => return,
                Err(_) => return shut(&connection.socket),
            };
        }
        let modified = epoll::modify(
            &*self.epoll.clone(),
            self.sources[&number].fd(),
            EventData::new_u64(number),
            EventFlags::IN,
        );
        if let Err(error) = modified {
            tracing::error!(%error, "epoll");
        }
    }

    /// Watches a process; the number is for `unwatch`.
    pub(super) fn watch(&mut self, place: Place, pidfd: OwnedFd) -> Result<u64> {
        self.add(Source::Process(place, pidfd))
    }

    pub(super) fn unwatch(&mut self, number: u64) {
        self.remove(number);
    }

    /// The process behind a connection, watched by `watch`, is another endpoint from now on.
    pub(super) fn rename(&mut self, connection: Option<u64>, watch: u64, (dc, endpoint): Place) {
        if let Some(connection) = connection.and_then(|number| self.connection(number)) {
            connection.endpoint = Some(endpoint);
        }
        if let Some(Source::Process(place, _)) = self.sources.get_mut(&watch) {
            *place = (dc, endpoint);
        }
    }

    /// The receiver behind a connection is not bound any more.
    pub(super) fn unbind(&mut self, number: u64) {
        if let Some(connection) = self.connection(number) {
            connection.is_receiver = false;
            connection.endpoint = None;
            shut(&connection.socket);
        }
    }

    /// Asks all servers, or those of a container, to stop.
    pub(super) fn stop_servers(&mut self, dc: Option<DcId>) {
        let is_meant = |connection: &Connection| {
            connection.is_server() && dc.is_none_or(|dc| dc == connection.dc)
        };
        let servers: Vec<u64> = self
            .sources
            .iter()
            .filter_map(|(number, source)| match source {
                Source::Connection(connection) if is_meant(connection) => Some(*number),
                _ => None,
            })
            .collect();
        for number in servers {
            self.tell(number, &Tell::new(tell::STOP, Endpoint::NONE), &[]);
        }
    }

    /// Makes the door's thread look up.
    pub(super) fn wake(&self) {
        if let Some(Source::Wake(wake)) = self.sources.get(&WAKE) {
            // Full means that it is awake already.
            rustix::io::write(wake, &1_u64.to_ne_bytes()).ok();
        }
    }
}

impl Connection {
    fn is_server(&self) -> bool {
        self.is_receiver && matches!(self.role, Some(Role::Server(_)))
    }
}

impl Source {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Listener(_, fd) | Source::Process(_, fd) | Source::Wake(fd) => fd.as_fd(),
            Source::Connection(connection) => connection.socket.as_fd(),
        }
    }
}

/// The body of the door's thread.
pub(super) fn run(shared: &Arc<Shared>) {
    let epoll = shared.with(|node| node.door.epoll.clone());
    let mut events = Vec::with_capacity(64);
    while !shared.is_stopping() {
        events.clear();
        match epoll::wait(&*epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "epoll"),
        }
        for event in &events {
            let (number, flags) = (event.data.u64(), event.flags);
            let programs = shared.with(|node| {
                node.door_event(number, flags);
                std::mem::take(&mut node.door.programs)
            });
            programs::serve(shared, programs);
        }
    }
}

impl Node {
    fn door_event(&mut self, number: u64, flags: EventFlags) {
        match self.door.sources.get(&number) {
            Some(Source::Listener(dc, listener)) => match accept(listener) {
                Ok(Some(socket)) => {
                    let dc = *dc;
                    self.arrive(dc, socket);
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "cannot accept a connection"),
            },
            Some(Source::Connection(_)) => {
                if flags.contains(EventFlags::OUT) {
                    self.door.flush(number);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.read_packets(number);
                }
            }
            Some(Source::Process(place, _)) => {
                let place = *place;
                self.died(place);
            }
            Some(Source::Wake(_)) | None => {}
        }
    }

    fn arrive(&mut self, dc: DcId, socket: OwnedFd) {
        let identity = match Identity::of(&socket) {
            Ok(identity) => identity,
            Err(error) => {
                return tracing::debug!(
                    error = format!("{error:#}"),
                    "a process at the door is gone"
                );
            }
        };
        let uid = identity.uid;
        let of_user = self.door.per_user.get(&uid).copied().unwrap_or(0);
        let too_many = of_user >= CONNECTIONS_PER_USER && !self.door.is_privileged(uid);
        if too_many || self.door.connections >= CONNECTIONS_MAX {
            tracing::warn!(uid, "too many connections");
            send(&socket, &Tell::refused(IpcError::Exhausted), &[]).ok();
            return;
        }
        let connection = Connection {
            socket,
            dc,
            identity,
            role: None,
            endpoint: None,
            bell: None,
            is_receiver: false,
            asking: BTreeMap::new(),
            queue: VecDeque::new(),
        };
        match self.door.add(Source::Connection(Box::new(connection))) {
            Ok(_) => {
                self.door.connections += 1;
                *self.door.per_user.entry(uid).or_default() += 1;
            }
            Err(error) => tracing::error!(%error, "cannot accept a connection"),
        }
    }

    fn read_packets(&mut self, number: u64) {
        for _ in 0..PACKETS_PER_TURN {
            let Some(connection) = self.door.connection(number) else { return };
            match receive(&connection.socket) {
                Ok(Some((ask, bell))) => {
                    if let Err(error) = self.ask(number, &ask, bell) {
                        tracing::debug!(?error, "a client breaks the door's protocol");
                        self.counters.protocol_errors += 1;
                        return self.leave(number);
                    }
                    self.settle();
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                Ok(None) => {
                    self.counters.protocol_errors += 1;
                    return self.leave(number);
                }
                // EBADMSG stands for the end of the connection, which is no packet.
                Err(_) => return self.leave(number),
            }
        }
    }

    fn ask(&mut self, number: u64, ask: &Ask, bell: Option<OwnedFd>) -> Result<(), IpcError> {
        let asker = Asker(self.door.next);
        self.door.next += 1;
        let connection = self.door.connection(number).ok_or(IpcError::NotBound)?;
        let id = if ask.op == ask::HELLO { 0 } else { ask.nonce };
        if let (ask::STOPPED | ask::PENDING, Some(endpoint)) = (ask.op, connection.endpoint) {
            let dc = connection.dc;
            self.step(if ask.op == ask::STOPPED {
                Input::Frozen { dc, endpoint }
            } else {
                Input::Pending { dc, to: endpoint, from: ask.to, value: ask.value }
            });
            return Ok(());
        }
        if ask.op == ask::WITHDRAW {
            // Perhaps it has been answered meanwhile.
            if let Some(asker) = connection.asking.get(&id).copied() {
                self.step(Input::Withdraw { asker });
                self.settle();
                self.reserving.remove(&asker);
                self.door.answer(asker, &Tell::refused(IpcError::Interrupted), &[]);
            }
            return Ok(());
        }
        // Who asks twice by the same number cannot tell the answers apart.
        if connection.asking.contains_key(&id) || connection.asking.len() > QUESTIONS_MAX {
            return Err(IpcError::Protocol);
        }
        connection.asking.insert(id, asker);
        let (dc, pid, uid) = (connection.dc, connection.identity.pid, connection.identity.uid);
        let bound = connection.endpoint;
        self.door.askers.insert(asker, (number, id));
        let asked = self.door.asked_per_user.entry(uid).or_default();
        *asked += 1;
        if *asked > QUESTIONS_PER_USER && !self.door.is_privileged(uid) {
            self.door.answer(asker, &Tell::refused(IpcError::Exhausted), &[]);
            return Ok(());
        }
        if (ask.op, ask.kind) == (ask::HELLO, kind::SERVICES) {
            return self.hello_services(number, ask);
        }
        if ask.op == ask::HELLO {
            return self.hello(asker, number, ask, bell, pid, uid);
        }
        let from = bound.ok_or(IpcError::Protocol)?;
        self.question(asker, (dc, from), ask, bell)
    }

    fn hello(
        &mut self,
        asker: Asker,
        number: u64,
        ask: &Ask,
        bell: Option<OwnedFd>,
        pid: u32,
        uid: u32,
    ) -> Result<(), IpcError> {
        let role = Role::from_kind(ask.kind, ask.number, ask.to).ok_or(IpcError::Protocol)?;
        if role.is_bound_to_connection() && bell.is_none()
            || role == Role::Process && bell.is_some()
        {
            return Err(IpcError::Protocol);
        }
        let bell = bell.map(|bell| Ringer::map(bell.as_fd()).map(|_| bell)).transpose()?;
        let privileged = self.door.is_privileged(uid);
        let connection = self.door.connection(number).ok_or(IpcError::NotBound)?;
        if connection.endpoint.is_some() {
            return Err(IpcError::Protocol);
        }
        let dc = connection.dc;
        if !self.may_enter(dc, pid, uid) {
            self.door.answer(asker, &Tell::refused(IpcError::Denied), &[]);
            return Ok(());
        }
        let connection = self.door.connection(number).ok_or(IpcError::NotBound)?;
        connection.role = Some(role);
        connection.bell = bell;
        if !self.has_room_for(dc, uid) {
            self.door.answer(asker, &Tell::refused(IpcError::Exhausted), &[]);
            return Ok(());
        }
        self.step(Input::Hello { asker, dc, role, pid, nonce: ask.nonce, privileged });
        Ok(())
    }

    /// Does the process live in this container, or in none?
    pub(super) fn may_enter(&self, dc: DcId, pid: u32, uid: u32) -> bool {
        let home = self.confined.home_of(pid);
        if !home.may_enter(dc) {
            tracing::warn!(pid, uid, dc = dc.0, ?home, "a process of another container is refused");
        }
        home.may_enter(dc)
    }

    /// A connection is over.
    fn leave(&mut self, number: u64) {
        let Some(Source::Connection(connection)) = self.door.remove(number) else { return };
        for asker in connection.asking.into_values() {
            self.step(Input::Withdraw { asker });
            self.reserving.remove(&asker);
        }
        if let (true, Some(endpoint)) = (connection.is_receiver, connection.endpoint) {
            let place = (connection.dc, endpoint);
            let receiver = self.processes.get(&place).and_then(|process| process.receiver.as_ref());
            if receiver.is_some_and(|receiver| receiver.connection == number) {
                self.died(place);
            }
        }
    }
}

/// Makes a listening socket at `path`. A file that nobody listens at any more is replaced.
pub(super) fn bind(path: &Path) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)
        .with_context(|| format!("{} is too long for a socket's path", path.display()))?;
    let socket = || {
        rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .context("cannot make a socket")
    };
    if let Ok(metadata) = path.symlink_metadata() {
        ensure!(metadata.file_type().is_socket(), "{} is there and is no socket", path.display());
        match rustix::net::connect(&socket()?, &address) {
            Err(Errno::CONNREFUSED) => {
                std::fs::remove_file(path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
            _ => bail!("somebody listens at {}; is another dvkd running?", path.display()),
        }
    }
    let listener = socket()?;
    rustix::net::bind(&listener, &address)
        .with_context(|| format!("cannot listen at {}", path.display()))?;
    // Every process of the container may come; who it is, the kernel says.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .with_context(|| format!("cannot change the mode of {}", path.display()))?;
    rustix::net::listen(&listener, 1024)
        .with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok(listener)
}

fn accept(listener: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ends a connection; the door's thread then finds its end.
fn shut(socket: &OwnedFd) {
    // It may have ended already.
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).ok();
}

fn send(socket: &OwnedFd, record: &Tell, fds: &[Arc<OwnedFd>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    let bytes = [IoSlice::new(record.as_bytes())];
    rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        .map(|_| ())
}

/// A record and the descriptor with it; `None` if it is none. The end of the connection is `EBADMSG`.
fn receive(socket: &OwnedFd) -> Result<Option<(Ask, Option<OwnedFd>)>, Errno> {
    let mut packet = [0; size_of::<Ask>() + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(&mut packet)];
    let received = rustix::net::recvmsg(
        socket,
        &mut bytes,
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            // Further ones are closed.
            fd = rights.into_iter().next();
        }
    }
    if received.bytes == 0 {
        return Err(Errno::BADMSG);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(None);
    }
    Ok(Ask::decode(&packet[..received.bytes]).map(|ask| (ask, fd)))
}
