//! Programs of a container at the door to the services of the system group: who they are, and how many.
//!
//! A program connects to its container's socket and says HELLO as [`m3ipc::door::kind::SERVICES`]. The door finds out who that is and
//! whether it may enter, and hands the connection over to the services' thread. From then on lines of the crate
//! `services` are exchanged.

use super::door::Door;
use super::identity::Identity;
use super::node::{Node, Shared};
use super::services::{Failure, Reply, Told};
use super::serving::{self, Context};
use crate::limits::{
    DC_SERVICES_LONG, DC_SERVICES_MAX, DC_SERVICES_OPEN, DC_SERVICES_TURNS, PROGRAMS_SERVICES_MAX,
    PROGRAMS_SERVICES_OPEN, SERVICES_MAX,
};
use ::group::Realm;
use m3ipc::door::{Ask, Tell};
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use rustix::fd::OwnedFd;
use rustix::net::SendFlags;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A program that wants to use the services.
#[derive(Debug)]
pub(super) struct Program {
    socket: OwnedFd,
    dc: DcId,
    identity: Identity,
    /// Of its records.
    version: u32,
}

impl Node {
    /// A process says HELLO as one that uses the services.
    pub(super) fn hello_services(&mut self, number: u64, ask: &Ask) -> Result<(), IpcError> {
        let (dc, identity, socket) = self.door.take(number).ok_or(IpcError::NotBound)?;
        if self.may_enter(dc, identity.pid, identity.uid) {
            Door::send_once(&socket, &Tell::welcome(Endpoint::NONE, NodeId(self.door.node), dc));
            self.door.programs.push(Program { socket, dc, identity, version: ask.number });
        } else {
            Door::send_once(&socket, &Tell::refused(IpcError::Denied));
        }
        Ok(())
    }
}

/// Serves those that the door has let in.
pub(super) fn serve(shared: &Arc<Shared>, programs: Vec<Program>) {
    for program in programs {
        let (pid, dc) = (program.identity.pid, program.dc.0);
        let Err((failure, why, socket)) = serve_one(shared, program) else { continue };
        tracing::debug!(pid, dc, why, "a program may not use the services");
        let line = serde_json::to_vec(&Told { id: 0, reply: Reply::Failed { failure, why } });
        let line = [line.unwrap_or_default(), b"\n".to_vec()].concat();
        // If it has gone, that is its business.
        rustix::net::send(&socket, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).ok();
    }
}

fn serve_one(shared: &Arc<Shared>, program: Program) -> Result<(), (Failure, String, OwnedFd)> {
    let Program { socket, dc, identity, version } = program;
    if version != ::services::VERSION {
        let own = ::services::VERSION;
        let why = format!(
            "the program speaks version {version} of the services, this dvkd version {own}: both need the same dvs"
        );
        return Err((Failure::Refused, why, socket));
    }
    let Some(linking) = &shared.linking else {
        let why = "this node is alone: it has no system group".into();
        return Err((Failure::Unavailable, why, socket));
    };
    let system = &linking.system;
    let (group, alive, runtime) = match system.at_work() {
        Ok(found) => found,
        Err(why) => return Err((Failure::Unavailable, why, socket)),
    };
    let (seat, share) = match system.seats.take(Some(dc.0)) {
        Ok(taken) => taken,
        Err(why) => return Err((Failure::Limit, why, socket)),
    };
    let shared = Arc::downgrade(shared);
    let cx = Context { group, shared, realm: Realm::Dc(dc.0), share, is_talkative: false };
    runtime.spawn(async move {
        serving::serve(socket, Some(identity.pidfd), cx, alive).await;
        drop(seat);
    });
    Ok(())
}

/// Connections that use the services of the group.
#[derive(Clone, Debug)]
pub(super) struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    all: usize,
    programs: usize,
    of: BTreeMap<u32, Table>,
    /// Requests that those of all containers may have open.
    open: Arc<Semaphore>,
}

/// Those of a container.
#[derive(Debug)]
struct Table {
    count: usize,
    share: Arc<Share>,
}

/// What the connections of a container have in common on this node, so that they cannot take everything.
#[derive(Debug)]
pub(super) struct Share {
    /// Lets so many of their commands through at a time, in turn.
    pub(super) gate: Arc<Semaphore>,
    /// Requests that may be open; with those of other containers together.
    open: Arc<Semaphore>,
    all_open: Arc<Semaphore>,
    /// Long lines that may be in memory: requests that have not come whole yet, and answers that are being written.
    pub(super) requests: Arc<Semaphore>,
    pub(super) answers: Semaphore,
}

impl Share {
    fn new(all_open: Arc<Semaphore>) -> Share {
        let of = |count| Arc::new(Semaphore::new(count));
        Share {
            gate: of(DC_SERVICES_TURNS),
            open: of(DC_SERVICES_OPEN),
            all_open,
            requests: of(DC_SERVICES_LONG),
            answers: Semaphore::new(DC_SERVICES_LONG),
        }
    }

    /// One request more, as long as this lives.
    ///
    /// # Errors
    /// One sentence: there are too many.
    pub(super) fn open(&self) -> Result<[OwnedSemaphorePermit; 2], String> {
        let take = |of: &Arc<Semaphore>, limit, who| {
            let full = |_| format!("{limit} requests of {who} are open on this node already");
            of.clone().try_acquire_owned().map_err(full)
        };
        let own = take(&self.open, DC_SERVICES_OPEN, "this container")?;
        Ok([own, take(&self.all_open, PROGRAMS_SERVICES_OPEN, "all containers")?])
    }
}

impl Default for Seats {
    fn default() -> Seats {
        let open = Arc::new(Semaphore::new(PROGRAMS_SERVICES_OPEN));
        Seats(Arc::new(Mutex::new(Taken { all: 0, programs: 0, of: BTreeMap::new(), open })))
    }
}

/// The place of one connection, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    dc: Option<u32>,
}

impl Seats {
    /// A place for the administrator, or for a program of a container and what it shares with the others there.
    ///
    /// # Errors
    /// One sentence: there are too many.
    pub(super) fn take(&self, dc: Option<u32>) -> Result<(Seat, Option<Arc<Share>>), String> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let too_many = |count: usize, limit: usize, who: &str| {
            let why = format!("{limit} {who} use the system group on this node already");
            if count < limit { Ok(()) } else { Err(why) }
        };
        too_many(taken.all, SERVICES_MAX, "programs")?;
        let share = match dc {
            None => None,
            Some(dc) => {
                too_many(taken.programs, PROGRAMS_SERVICES_MAX, "programs of containers")?;
                let count = taken.of.get(&dc).map_or(0, |table| table.count);
                too_many(count, DC_SERVICES_MAX, "programs of this container")?;
                let open = taken.open.clone();
                let new = || Table { count: 0, share: Arc::new(Share::new(open)) };
                let table = taken.of.entry(dc).or_insert_with(new);
                table.count += 1;
                let share = table.share.clone();
                taken.programs += 1;
                Some(share)
            }
        };
        taken.all += 1;
        Ok((Seat { seats: self.clone(), dc }, share))
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        let Some(dc) = self.dc else { return };
        taken.programs -= 1;
        if let Some(table) = taken.of.get_mut(&dc) {
            table.count -= 1;
            if table.count == 0 {
                taken.of.remove(&dc);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_per_container_and_for_all_of_them_and_free_again() {
        let seats = Seats::default();
        let take = |dc, count: usize| -> Vec<Seat> {
            (0..count).map_while(|_| seats.take(dc).ok().map(|(seat, _)| seat)).collect()
        };
        let first = take(Some(1), usize::MAX);
        assert_eq!(first.len(), DC_SERVICES_MAX);
        let why = seats.take(Some(1)).unwrap_err();
        assert!(why.contains("of this container"), "{why}");
        let others: Vec<_> = (2..9).flat_map(|dc| take(Some(dc), usize::MAX)).collect();
        assert_eq!(first.len() + others.len(), PROGRAMS_SERVICES_MAX);
        // The administrator still has room.
        let own = take(None, usize::MAX);
        assert_eq!(seats.taken(), SERVICES_MAX);
        drop((first, own));
        assert_eq!(take(Some(1), usize::MAX).len(), DC_SERVICES_MAX);
        drop(others);
        assert_eq!(seats.taken(), 0);
    }
}
