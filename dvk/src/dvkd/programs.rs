//! Programs of a container at the door to the services of the system group: who they are, and how many.
//!
//! A program connects to its container's socket and says HELLO as [`m3ipc::door::kind::SERVICES`]. The door finds out who that is and
//! whether it may enter, and hands the connection over to the group's thread. From then on lines of the crate
//! `services` are exchanged.

use super::door::Door;
use super::identity::Identity;
use super::node::{Node, Shared};
use super::services::{Failure, Reply, Told};
use super::serving::{self, Context};
use crate::limits::{DC_SERVICES_MAX, DC_SERVICES_OPEN, PROGRAMS_SERVICES_MAX, SERVICES_MAX};
use ::group::Realm;
use m3ipc::door::{Ask, Tell};
use m3ipc::{DcId, IpcError};
use rustix::fd::OwnedFd;
use rustix::net::SendFlags;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

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
    let (seat, gate) = match system.seats.take(Some(dc.0)) {
        Ok(taken) => taken,
        Err(why) => return Err((Failure::Limit, why, socket)),
    };
    let shared = Arc::downgrade(shared);
    let cx = Context { group, shared, realm: Realm::Dc(dc.0), gate, is_talkative: false };
    runtime.spawn(async move {
        serving::serve(socket, Some(identity.pidfd), cx, alive).await;
        drop(seat);
    });
    Ok(())
}

/// Connections that use the services of the group.
#[derive(Clone, Debug, Default)]
pub(super) struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    programs: usize,
    of: BTreeMap<u32, Table>,
}

/// Those of a container.
#[derive(Debug)]
struct Table {
    count: usize,
    /// Lets so many of their commands through at a time, in turn.
    gate: Arc<Semaphore>,
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
    pub(super) fn take(&self, dc: Option<u32>) -> Result<(Seat, Option<Arc<Semaphore>>), String> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let too_many = |count: usize, limit: usize, who: &str| {
            let why = format!("{limit} {who} use the system group on this node already");
            if count < limit { Ok(()) } else { Err(why) }
        };
        too_many(taken.all, SERVICES_MAX, "programs")?;
        let gate = match dc {
            None => None,
            Some(dc) => {
                too_many(taken.programs, PROGRAMS_SERVICES_MAX, "programs of containers")?;
                let count = taken.of.get(&dc).map_or(0, |table| table.count);
                too_many(count, DC_SERVICES_MAX, "programs of this container")?;
                let gate = || Arc::new(Semaphore::new(DC_SERVICES_OPEN));
                let table = taken.of.entry(dc).or_insert_with(|| Table { count: 0, gate: gate() });
                table.count += 1;
                let gate = table.gate.clone();
                taken.programs += 1;
                Some(gate)
            }
        };
        taken.all += 1;
        Ok((Seat { seats: self.clone(), dc }, gate))
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
