//! What a bound process asks its daemon beside calls: wait for an endpoint, pids, information, rights, binding others.

use super::identity;
use super::load::Report;
use super::node::{Node, Place, take_off};
use crate::host::solo::monotonic;
use crate::kernel::{self, Asker, Event, Input, NodeState, Order, Role, Steer};
use crate::limits::{ENDPOINTS_MAX, LENT_PER_USER};
use m3ipc::door::{Ask, Tell, ask, event, info, node, order};
use m3ipc::info::{DcInfo, DvsInfo, EndpointInfo, NodeInfo, link, state};
use m3ipc::limits::{COPY_MAX, LENT_MAX, PAYLOAD_MAX, SYSTEM_MAX, WELL_KNOWN_MAX};
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use rustix::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Nanoseconds of a millisecond, and of a second.
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;

/// A process that is to be bound, and who waits for that.
#[derive(Debug)]
pub(super) struct Reserving {
    dc: DcId,
    pid: u32,
    inner_pid: u32,
    uid: u32,
    pidfd: OwnedFd,
}

impl Node {
    /// Answers a question of the process at `from`, at once or later. `fd` came with it.
    pub(super) fn question(
        &mut self,
        asker: Asker,
        from: Place,
        asked: &Ask,
        fd: Option<OwnedFd>,
    ) -> Result<(), IpcError> {
        let (dc, endpoint) = from;
        let to = asked.to;
        let answer = match asked.op {
            ask::OPEN => {
                self.step(Input::Open { asker, dc, from: endpoint, to });
                return Ok(());
            }
            ask::AWAIT => {
                let event = match asked.number {
                    event::BOUND => Event::Bound,
                    event::UNBOUND => Event::Unbound,
                    _ => return Err(IpcError::Protocol),
                };
                let timeout = (asked.value != event::FOREVER)
                    .then(|| asked.value.saturating_mul(MILLISECOND));
                let from = endpoint;
                self.step(Input::Await { asker, dc, from, to, event, timeout });
                return Ok(());
            }
            ask::SET_RIGHTS => {
                let rights = asked.rights().ok_or(IpcError::Protocol)?;
                let privileged = self.is_administrator(asker);
                self.step(Input::SetRights { asker, dc, to, rights: &rights, privileged });
                return Ok(());
            }
            ask::ORDER => {
                let privileged = self.is_administrator(asker);
                let order = match asked.number {
                    order::START => Order::Start,
                    order::ROLLBACK => Order::Rollback,
                    order::COMMIT => {
                        let node = u16::try_from(asked.value).map_err(|_| IpcError::Protocol)?;
                        Order::Commit { node: NodeId(node), backup: asked.second() }
                    }
                    order::WAKE => Order::Wake,
                    _ => return Err(IpcError::Protocol),
                };
                self.step(Input::Order { asker, dc, from: endpoint, to, order, privileged });
                return Ok(());
            }
            ask::NODE => {
                let privileged = self.is_administrator(asker);
                let steer = match asked.number {
                    node::DISCONNECT => Steer::Disconnect,
                    node::DOWN => Steer::Down,
                    node::CONNECT | node::UP => Steer::Connect,
                    node::LEAVE => Steer::Leave,
                    node::ENTER => Steer::Enter,
                    _ => return Err(IpcError::Protocol),
                };
                let node = NodeId(u16::try_from(asked.value).map_err(|_| IpcError::Protocol)?);
                self.step(Input::Steer { asker, dc, node, steer, privileged });
                return Ok(());
            }
            ask::NOTIFY_AS => {
                let privileged = self.is_administrator(asker);
                let (source, value) = (asked.second(), asked.value);
                self.step(Input::NotifyAs { asker, dc, source, to, value, privileged });
                return Ok(());
            }
            ask::UNBIND if asked.number != 0 => return self.unbind_all(asker, from),
            ask::UNBIND => return self.unbind(asker, from, to),
            ask::BIND => return self.reserve(asker, from, asked.number, fd),
            ask::GET_EP => self.endpoint_of(from, asked.value).map(|found| Tell::done(found, &[])),
            ask::GET_RIGHTS => self
                .kernel
                .endpoint(dc, to)
                .map(|info| Tell::done(info.endpoint, info.rights.as_bytes())),
            ask::INFO => self.information(from, asked),
            ask::LEND => self.lend(from, asked, fd),
            ask::MAP => match self.lent(from, asked) {
                Ok(memory) => {
                    self.door.answer(asker, &Tell::done(to, &[]), &[memory]);
                    return Ok(());
                }
                Err(error) => Err(error),
            },
            _ => return Err(IpcError::Protocol),
        };
        let record = answer.unwrap_or_else(Tell::refused);
        self.door.answer(asker, &record, &[]);
        Ok(())
    }

    /// Does the daemon's own user, or root, ask?
    fn is_administrator(&self, asker: Asker) -> bool {
        let connection = self.door.connection_of(asker);
        connection.is_some_and(|connection| self.door.is_privileged(connection.identity.uid))
    }

    /// Unbinds the asker itself, or another endpoint of this node.
    fn unbind(&mut self, asker: Asker, from: Place, to: Endpoint) -> Result<(), IpcError> {
        let (dc, own) = from;
        let found = self.kernel.endpoint(dc, if to == Endpoint::NONE { own } else { to });
        let allowed = match found {
            Ok(info) if info.endpoint == own || self.is_administrator(asker) => Ok(info),
            Ok(_) => Err(IpcError::Denied),
            Err(error) => Err(error),
        };
        match allowed {
            // A server or a container is not an endpoint that comes and goes: its process is to be stopped.
            Ok(info)
                if !matches!(
                    info.role,
                    Role::Peer(_)
                        | Role::Memory(_)
                        | Role::Process
                        | Role::Backup(..)
                        | Role::Replica(_)
                ) =>
            {
                self.door.answer(asker, &Tell::refused(IpcError::Denied), &[]);
            }
            Ok(info) => {
                self.door.answer(asker, &Tell::done(info.endpoint, &[]), &[]);
                self.died((dc, info.endpoint));
            }
            Err(error) => self.door.answer(asker, &Tell::refused(error), &[]),
        }
        Ok(())
    }

    /// Unbinds all peers of the container on this node, the asker too. Servers, container and shim processes stay; an endpoint
    /// with a backup on another node lives on there.
    fn unbind_all(&mut self, asker: Asker, (dc, _): Place) -> Result<(), IpcError> {
        if !self.is_administrator(asker) {
            self.door.answer(asker, &Tell::refused(IpcError::Denied), &[]);
            return Ok(());
        }
        self.door.answer(asker, &Tell::done(Endpoint::NONE, &[]), &[]);
        let is_peer =
            |role: Role| matches!(role, Role::Peer(_) | Role::Backup(..) | Role::Replica(_));
        let of = self.kernel.endpoints(dc).filter(|info| is_peer(info.role));
        let mut peers: Vec<_> = of.map(|info| (info.role, info.endpoint)).collect();
        // Backups first: they would take over.
        peers.sort_by_key(|(role, _)| !matches!(role, Role::Backup(..)));
        for (_, endpoint) in peers {
            self.died((dc, endpoint));
        }
        Ok(())
    }

    /// Binds the process of the pidfd `fd`. It is watched from now on.
    fn reserve(
        &mut self,
        asker: Asker,
        from: Place,
        number: u32,
        fd: Option<OwnedFd>,
    ) -> Result<(), IpcError> {
        let pidfd = fd.ok_or(IpcError::Protocol)?;
        let Ok((pid, inner_pid)) = identity::of_pidfd(&pidfd) else {
            self.door.answer(asker, &Tell::refused(IpcError::Stale), &[]);
            return Ok(());
        };
        let uid = self.door.connection_of(asker).map_or(0, |connection| connection.identity.uid);
        let (dc, privileged) = (from.0, self.is_administrator(asker));
        // The kernel may take its time.
        self.reserving.insert(asker, Reserving { dc, pid, inner_pid, uid, pidfd });
        self.step(Input::Reserve { asker, dc, number, pid, privileged });
        Ok(())
    }

    /// The kernel has bound an endpoint, if it is for a process that was to be bound.
    pub(super) fn reserved(&mut self, asker: Asker, endpoint: Endpoint) {
        let Some(reserving) = self.reserving.remove(&asker) else { return };
        let Reserving { dc, pid, inner_pid, uid, pidfd } = reserving;
        if let Err(error) = self.note((dc, endpoint), pid, inner_pid, uid, pidfd) {
            tracing::warn!(pid, %error, "cannot watch a process");
            self.step(Input::Died { dc, endpoint });
        }
    }

    /// Takes note of memory that a memory side lends, or does not lend any more.
    fn lend(&mut self, from: Place, asked: &Ask, fd: Option<OwnedFd>) -> Result<Tell, IpcError> {
        let process = self.processes.get_mut(&from).filter(|_| from.1.is_memory());
        let process = process.ok_or(IpcError::Protocol)?;
        let user = (from.0, process.uid);
        let Some(fd) = fd else {
            if process.lent.remove(&asked.value).is_some() {
                take_off(&mut self.lent_per_user, user, 1);
            }
            return Ok(Tell::done(from.1, &[]));
        };
        let of_user = self.lent_per_user.get(&user).copied().unwrap_or(0);
        let has_room = self.door.is_privileged(process.uid) || of_user < LENT_PER_USER;
        if process.lent.len() >= LENT_MAX || !has_room {
            return Err(IpcError::Exhausted);
        }
        // Nothing else: a socket would keep a connection open that has ended.
        m3ipc::lent::check(fd.as_fd())?;
        if process.lent.insert(asked.value, (asked.to, Arc::new(fd))).is_none() {
            *self.lent_per_user.entry(user).or_default() += 1;
        }
        Ok(Tell::done(from.1, &[]))
    }

    /// Memory that a process of this node lends the asker. Whether it may have to do with that process at all was found
    /// out when it got its channel.
    fn lent(&self, (dc, by): Place, asked: &Ask) -> Result<Arc<OwnedFd>, IpcError> {
        let owner = self.kernel.endpoint(dc, asked.to)?.endpoint;
        let process = self.processes.get(&(dc, owner)).ok_or(IpcError::NotBound)?;
        if !process.channels.contains_key(&by) {
            return Err(IpcError::Denied);
        }
        let (to, memory) = process.lent.get(&asked.value).ok_or(IpcError::Stale)?;
        let is_for = *to == Endpoint::ANY || to.names(by);
        if is_for { Ok(Arc::clone(memory)) } else { Err(IpcError::Denied) }
    }

    /// The endpoint of a process of this node: the one that it receives at, if it does.
    fn endpoint_of(&self, from: Place, pid: u64) -> Result<Endpoint, IpcError> {
        let of = self.processes.iter().filter(|((dc, endpoint), process)| {
            *dc == from.0 && u64::from(process.inner_pid) == pid && !endpoint.is_memory()
        });
        let places: Vec<_> = of.map(|((_, endpoint), process)| (endpoint, process)).collect();
        let receives = places.iter().find(|(_, process)| process.receiver.is_some());
        receives.or(places.first()).map(|(endpoint, _)| **endpoint).ok_or(IpcError::NotBound)
    }

    fn information(&self, from: Place, asked: &Ask) -> Result<Tell, IpcError> {
        let (dc, _) = from;
        match asked.number {
            info::DVS => Ok(Tell::done(Endpoint::NONE, self.dvs_info().as_bytes())),
            info::DC => self.dc_info(from).map(|info| Tell::done(Endpoint::NONE, info.as_bytes())),
            info::ENDPOINT => {
                let info = self.kernel.endpoint(dc, asked.to)?;
                Ok(Tell::done(info.endpoint, self.endpoint_info(from, &info).as_bytes()))
            }
            info::NODE => {
                let node = u16::try_from(asked.value).map_err(|_| IpcError::NotBound)?;
                let info = self.node_info(from, NodeId(node))?;
                Ok(Tell::done(Endpoint::NONE, info.as_bytes()))
            }
            info::NODE_LOAD => self
                .load(from, asked)
                .map(|found| Tell::done(Endpoint::NONE, found.node.as_bytes())),
            info::DC_LOAD => {
                let report = self.load(from, asked)?;
                let part = report.dc(dc).ok_or(IpcError::WouldBlock)?;
                Ok(Tell::done(Endpoint::NONE, part.as_bytes()))
            }
            _ => Err(IpcError::Protocol),
        }
    }

    fn dvs_info(&self) -> DvsInfo {
        DvsInfo {
            version: m3ipc::info::VERSION,
            node: self.door.node.into(),
            node_max: crate::frame::NODE_MAX.into(),
            endpoint_max: count(ENDPOINTS_MAX),
            well_known_max: WELL_KNOWN_MAX,
            system_max: SYSTEM_MAX,
            copy_max: count(COPY_MAX),
            payload_max: count(PAYLOAD_MAX),
            door: m3ipc::door::VERSION,
            link: crate::frame::VERSION,
        }
    }

    /// What a node of the asker's DC has reported of how busy it is.
    fn load(&self, (dc, _): Place, asked: &Ask) -> Result<Report, IpcError> {
        let node = u16::try_from(asked.value).map(NodeId).map_err(|_| IpcError::NotBound)?;
        if !self.spans(dc, node) {
            return Err(IpcError::NotBound);
        }
        let ago = u64::from(asked.kind) * SECOND;
        let found = self.loads.at(monotonic(), NodeId(self.door.node), node, ago);
        found.ok_or(IpcError::WouldBlock)
    }

    fn spans(&self, dc: DcId, node: NodeId) -> bool {
        self.kernel.dcs().any(|known| known.id == dc && known.nodes.contains(&node))
    }

    fn dc_info(&self, (dc, _): Place) -> Result<DcInfo, IpcError> {
        let of = self.kernel.dcs().find(|known| known.id == dc).ok_or(IpcError::NotBound)?;
        Ok(DcInfo {
            version: m3ipc::info::VERSION,
            dc: dc.0,
            node: self.door.node.into(),
            node_count: count(of.nodes.len()),
            endpoint_count: count(self.kernel.endpoints(dc).count()),
            endpoint_max: count(ENDPOINTS_MAX),
            well_known_max: WELL_KNOWN_MAX,
            system_max: SYSTEM_MAX,
            copy_max: count(COPY_MAX),
            payload_max: count(PAYLOAD_MAX),
        })
    }

    fn endpoint_info(&self, (dc, _): Place, info: &kernel::EndpointInfo) -> EndpointInfo {
        let process = self.processes.get(&(dc, info.endpoint));
        let bit = |is: bool, bit: u32| if is { bit } else { 0 };
        let is_server = matches!(info.role, Role::Server(_) | Role::Container);
        EndpointInfo {
            version: m3ipc::info::VERSION,
            state: bit(info.role.receives(), state::RECEIVES)
                | bit(info.is_reserved, state::RESERVED)
                | bit(is_server, state::SERVER)
                | bit(matches!(info.role, Role::Backup(..)), state::BACKUP)
                | bit(matches!(info.role, Role::Replica(_)), state::REPLICA),
            endpoint: info.endpoint,
            pid: process.map_or(0, |process| process.inner_pid),
            host_pid: info.pid,
            node: self.door.node.into(),
            level: info.rights.level,
            requesters: count(info.requesters),
            receivers: count(info.receivers),
        }
    }

    /// Only nodes of the asker's DC are told of.
    fn node_info(&self, (dc, _): Place, node: NodeId) -> Result<NodeInfo, IpcError> {
        if !self.spans(dc, node) {
            return Err(IpcError::NotBound);
        }
        let mut record = NodeInfo {
            version: m3ipc::info::VERSION,
            node: node.0.into(),
            link: link::SELF,
            reserved: 0,
            incarnation: 0,
            epoch: 0,
            calls_out: 0,
            calls_in: 0,
            round_trip: 0,
        };
        if let Some(info) = self.kernel.nodes().find(|info| info.node == node) {
            record.link = match info.state {
                NodeState::Up { .. } => link::UP,
                NodeState::Lost { .. } => link::LOST,
                NodeState::Down { .. } => link::DOWN,
            };
            if let NodeState::Up { round_trip: Some(time), .. } = info.state {
                record.round_trip = time;
            }
            if info.is_cut {
                record.link = link::CUT;
            }
            record.incarnation = info.incarnation;
            record.epoch = info.epoch;
            record.calls_out = info.calls_out as u64;
            record.calls_in = info.calls_in as u64;
        }
        Ok(record)
    }
}

/// A number for a record.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
