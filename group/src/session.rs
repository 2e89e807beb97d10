//! A program's session with the system group: its services as functions.

use crate::command::{ClientId, Done, Millis, Op, Refusal};
use crate::group::{Group, Unavailable};
use crate::realm::Realm;
use crate::signal::Signal;
use crate::signs::pause;
use crate::state::{Delivery, Holder, Passage, State};
use crate::types::Jitter;
use rand_core::RngCore;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Why a service was not rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It may have happened, or may happen yet.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// One who was at the barrier died or went away.
    #[error("the barrier is broken")]
    Broken,
}

/// How long a command is tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// A session. Signs of life are given in the background; what it holds ends with it, a while after the last clone.
#[derive(Clone, Debug)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    group: Group,
    client: ClientId,
    gate: Option<Arc<Semaphore>>,
    numbers: Mutex<Numbers>,
    life: Life,
}

/// How long it is known to live. As a node's fence: a sign of life sent at `s` and answered means that the group does
/// not end the session before `s + ttl`, and an eighth is for clocks of different rates.
#[derive(Debug)]
struct Life {
    until: Mutex<Instant>,
    /// 1: the group has said that it has ended. 2: it was closed here.
    ended: Signal,
}

/// Numbers of commands.
#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

/// A number in use. When it is dropped the client does not want its answer any more.
struct Number<'a> {
    of: &'a Inner,
    number: u64,
}

impl Inner {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next number, and up to which all answers are there.
    fn number(&self) -> (Number<'_>, u64) {
        let mut numbers = self.numbers();
        numbers.last += 1;
        let number = numbers.last;
        numbers.open.insert(number);
        let acked = numbers.open.first().map_or(number, |first| *first) - 1;
        (Number { of: self, number }, acked)
    }
}

impl Life {
    fn until(&self) -> MutexGuard<'_, Instant> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        self.of.numbers().open.remove(&self.number);
    }
}

impl Session {
    /// Opens a session that lives `ttl` milliseconds after its last sign of life.
    ///
    /// # Errors
    /// The group cannot be reached, or refuses the time.
    pub async fn open(group: &Group, ttl: Millis) -> Result<Session, Failure> {
        Session::open_in(group, ttl, Realm::System, None).await
    }

    /// The same for somebody of a realm: its names are of that realm, and of those who share a `gate` so many at a time
    /// have a command under way as it lets through. (Signs of life and the end pass.)
    ///
    /// # Errors
    /// As [`Session::open`]; the realm has too many.
    pub async fn open_in(
        group: &Group,
        ttl: Millis,
        realm: Realm,
        gate: Option<Arc<Semaphore>>,
    ) -> Result<Session, Failure> {
        let open = Op::Open { nonce: Jitter.next_u64(), ttl, realm };
        let trust = Duration::from_millis(ttl - ttl / 8);
        let turn = match &gate {
            // It is never closed.
            Some(gate) => gate.clone().acquire_owned().await.ok(),
            None => None,
        };
        let until = Instant::now() + trust;
        let (index, answer) = group.submit(ClientId::default(), 0, 0, open, PATIENCE).await?;
        drop(turn);
        let Done::Opened { client } = answer? else { return Err(Refusal::NoSession.into()) };
        group.reach(index).await;
        let life = Life { until: Mutex::new(until), ended: Signal::new(0) };
        let (group, numbers) = (group.clone(), Mutex::default());
        let inner = Inner { group: group.clone(), client, gate, numbers, life };
        let session = Session(Arc::new(inner));
        let weak = Arc::downgrade(&session.0);
        tokio::spawn(async move {
            let patience = Duration::from_millis(ttl / 4);
            while weak.strong_count() > 0 && group.is_running() {
                tokio::time::sleep(pause(ttl)).await;
                let until = Instant::now() + trust;
                let sign = group.keep_alive(client, patience).await;
                let Some(inner) = weak.upgrade() else { break };
                match sign {
                    _ if inner.life.ended.get() != 0 => return,
                    Ok(Ok(())) => *inner.life.until() = until,
                    Ok(Err(Refusal::NoSession)) => return inner.life.ended.set(1),
                    Ok(Err(_)) | Err(Unavailable) => {}
                }
            }
            group.submit(client, 0, 0, Op::Close, patience).await.ok();
        });
        Ok(session)
    }

    /// A lease for keys, of `ttl` milliseconds. It does not end with the session; nobody else can renew it.
    ///
    /// # Errors
    /// The group cannot be reached, or refuses the time; the realm has too many.
    pub async fn grant(&self, ttl: Millis) -> Result<ClientId, Failure> {
        match self.run(Op::Grant { ttl }).await? {
            Done::Opened { client } => Ok(client),
            _ => Err(Refusal::NoSession.into()),
        }
    }

    /// Gives a lease that this session was granted its time anew, or (`ends`) ends it and the keys that it has.
    ///
    /// # Errors
    /// [`Refusal::NotHeld`]: it has ended, or is another's; not reached.
    pub async fn renew(&self, lease: ClientId, ends: bool) -> Result<(), Failure> {
        self.run(Op::Renew { lease, ends }).await.map(drop)
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.0.gate.as_ref()?.acquire().await.ok()
    }

    pub fn client(&self) -> ClientId {
        self.0.client
    }

    pub fn group(&self) -> &Group {
        &self.0.group
    }

    /// Ends the session and what it holds, now. If the group cannot be reached, it ends by itself.
    pub async fn close(self) {
        self.0.life.ended.set(2);
        let patience = PATIENCE / 4;
        self.0.group.submit(self.0.client, 0, 0, Op::Close, patience).await.ok();
    }

    /// Waits until the session may have ended: what it holds may be somebody else's.
    pub async fn lost(&self) {
        let life = &self.0.life;
        loop {
            let until = *life.until();
            if until <= Instant::now() {
                return;
            }
            let ended = life.ended.find(|ended| (ended != 0).then_some(()));
            if tokio::time::timeout_at(until, ended).await.is_ok() {
                return;
            }
        }
    }

    /// Has an operation carried out once, and waits until this node's state shows it.
    ///
    /// # Errors
    /// It was refused, or there was no answer in time.
    pub async fn run(&self, op: Op) -> Result<Done, Failure> {
        let turn = self.turn().await;
        let (number, acked) = self.0.number();
        let group = &self.0.group;
        let asked = group.submit(self.0.client, number.number, acked, op, PATIENCE).await?;
        let (index, answer) = asked;
        drop(number);
        drop(turn);
        tokio::time::timeout(PATIENCE, group.reach(index)).await.map_err(|_| Unavailable)?;
        Ok(answer?)
    }

    /// Waits until `look` finds something, or the session ends.
    async fn until<T>(
        &self,
        mut look: impl FnMut(&State) -> Option<Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let client = self.0.client;
        self.0
            .group
            .wait(|state| {
                if state.is_alive(client) {
                    look(state)
                } else {
                    Some(Err(Refusal::NoSession.into()))
                }
            })
            .await
    }

    /// Takes a lock; waits until it is free. Gives the fencing token. Whoever does not want to wait any more says
    /// [`Session::unlock`].
    ///
    /// # Errors
    /// Refused, not reached, or the session has ended.
    pub async fn lock(&self, name: &str) -> Result<u64, Failure> {
        let op = Op::Lock { name: name.to_owned(), wait: true };
        if let Done::Locked { fence } = self.run(op).await? {
            return Ok(fence);
        }
        let client = self.0.client;
        self.until(|state| match state.lock_token(name, client) {
            Some(token) => Some(Ok(token)),
            _ if state.is_in_lock_line(name, client) => None,
            _ => Some(Err(Refusal::NotHeld.into())),
        })
        .await
    }

    /// Takes a lock if it is free. Gives the fencing token.
    ///
    /// # Errors
    /// [`Refusal::Taken`] if it is not; as [`Session::lock`].
    pub async fn try_lock(&self, name: &str) -> Result<u64, Failure> {
        match self.run(Op::Lock { name: name.to_owned(), wait: false }).await? {
            Done::Locked { fence } => Ok(fence),
            _ => Err(Refusal::Taken.into()),
        }
    }

    /// Releases a lock, or stops waiting for it.
    ///
    /// # Errors
    /// It was neither held nor waited for; refused, not reached.
    pub async fn unlock(&self, name: &str) -> Result<(), Failure> {
        self.run(Op::Unlock { name: name.to_owned() }).await.map(drop)
    }

    /// Becomes a candidate and waits until it leads. Gives the epoch.
    ///
    /// # Errors
    /// Refused, not reached, or the session has ended.
    pub async fn campaign(&self, name: &str, value: &[u8]) -> Result<u64, Failure> {
        let op = Op::Campaign { name: name.to_owned(), value: value.to_vec() };
        if let Done::Elected { epoch } = self.run(op).await? {
            return Ok(epoch);
        }
        let client = self.0.client;
        self.until(|state| match state.epoch(name, client) {
            Some(epoch) => Some(Ok(epoch)),
            _ if state.is_candidate(name, client) => None,
            _ => Some(Err(Refusal::NotHeld.into())),
        })
        .await
    }

    /// Ends a candidacy or leadership.
    ///
    /// # Errors
    /// There was none; refused, not reached.
    pub async fn resign(&self, name: &str) -> Result<(), Failure> {
        self.run(Op::Resign { name: name.to_owned() }).await.map(drop)
    }

    /// Waits for a leader of another epoch than `known`; none if there is no leader any more.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn observe(&self, name: &str, known: Option<u64>) -> Result<Option<Holder>, Failure> {
        self.until(|state| {
            let leader = state.leader(name);
            (leader.as_ref().map(|leader| leader.token) != known).then_some(Ok(leader))
        })
        .await
    }

    /// Waits at a barrier until `parties` are there.
    ///
    /// # Errors
    /// [`Failure::Broken`] if one of them dies or gives up; refused, not reached.
    pub async fn barrier(&self, name: &str, parties: u32) -> Result<(), Failure> {
        let arrived = self.run(Op::Arrive { name: name.to_owned(), parties }).await?;
        let Done::Arrived { generation } = arrived else { return Err(Failure::Broken) };
        let client = self.0.client;
        self.until(|state| match state.passage(name, client, generation) {
            Some(Passage::Waiting) => None,
            Some(Passage::Passed) => Some(Ok(())),
            Some(Passage::Broken) | None => Some(Err(Failure::Broken)),
        })
        .await
    }

    /// What a member of a group gets behind `after`; waits for it.
    ///
    /// # Errors
    /// Not a member; the session has ended.
    pub async fn receive(&self, group: &str, after: u64) -> Result<Delivery, Failure> {
        let client = self.0.client;
        self.until(|state| match state.delivery(client, group, after) {
            Ok(delivery) => delivery.map(Ok),
            Err(refusal) => Some(Err(refusal.into())),
        })
        .await
    }

    /// Says that everything up to a number was dealt with, so the group may forget it.
    ///
    /// # Errors
    /// Not a member; not reached.
    pub async fn acknowledge(&self, group: &str, number: u64) -> Result<(), Failure> {
        let op = Op::Acknowledge { group: group.to_owned(), number };
        let _turn = self.turn().await;
        let (_, answer) = self.0.group.submit(self.0.client, 0, 0, op, PATIENCE).await?;
        answer?;
        Ok(())
    }
}
