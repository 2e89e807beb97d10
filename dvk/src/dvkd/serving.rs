//! One connection that uses the system group's services, served by the group's thread.
//!
//! Each request is a task. What it has found is written by itself, and looked up only when it is its turn to write: a
//! connection that is not read has one answer in memory, not as many as it has asked for.

use super::node::Shared;
use super::services::{Change, Entry, Failure, Item, Lease, Op, Reply, Request, Text, Told};
use super::system;
use crate::limits::{
    SERVICE_ACKNOWLEDGED, SERVICE_PATIENCE, SERVICE_SILENCE, SERVICE_TTL, SERVICE_WRITE_MAX,
};
use ::group::command::{ClientId, Done, Op as Command, Refusal};
use ::group::fence::Fence;
use ::group::state::{self, Delivery, State};
use ::group::{Failure as Refused, Group, Realm, Session, Unavailable};
use ::services::Lines;
use ::services::limits::{CHUNK, OPEN_MAX, REQUEST_MAX};
use rustix::fd::OwnedFd;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Result};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OnceCell, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// What a connection is served with.
pub(super) struct Context {
    pub(super) group: Group,
    pub(super) shared: Weak<Shared>,
    /// Whose keys and names it sees.
    pub(super) realm: Realm,
    /// How many of those of a container ask the group at a time; none for the administrator.
    pub(super) gate: Option<Arc<Semaphore>>,
    /// It is told what its requests wait for.
    pub(super) is_talkative: bool,
}

/// A connection.
struct Served {
    cx: Context,
    socket: AsyncFd<OwnedFd>,
    /// Whose turn it is to write.
    writing: tokio::sync::Mutex<()>,
    session: OnceCell<Session>,
    /// The session has been opened.
    opened: Notify,
    notes: Mutex<Notes>,
}

/// What is remembered between requests.
#[derive(Default)]
struct Notes {
    /// What requests wait for.
    awaited: BTreeSet<(u8, String)>,
    /// Up to which item the members of this session have acknowledged.
    acknowledged: BTreeMap<String, u64>,
}

/// Why there is no answer of the usual kind.
enum Trouble {
    /// To be said; the connection goes on.
    Failed(Failure, String),
}

/// What is to be said.
enum Answer {
    Say(Reply),
    /// What the state shows when it is said: of [`Op::Get`], `Range`, `Leader`, `Watch` or `Receive`.
    Look(Op),
}

type Answered = std::result::Result<Answer, Trouble>;

/// Serves a connection until it ends, its process is dead, its session is lost, or the group is not `alive` any more.
pub(super) async fn serve(
    socket: OwnedFd,
    process: Option<OwnedFd>,
    cx: Context,
    mut alive: watch::Receiver<()>,
) {
    let Ok(socket) = AsyncFd::new(socket) else { return };
    let watched = |process| AsyncFd::with_interest(process, Interest::READABLE);
    let Ok(process) = process.map(watched).transpose() else { return };
    let (writing, session, opened) = Default::default();
    let notes = Mutex::default();
    let served = Arc::new(Served { cx, socket, writing, session, opened, notes });
    tokio::select! {
        ended = served.clone().converse() => if let Err(error) = ended {
            tracing::warn!(%error, realm = ?served.cx.realm, "a connection to the services is given up");
        },
        _ = alive.changed() => {}
        // A child may have inherited the connection: the session is the process's.
        () = death(process) => {}
    }
    if let Some(session) = served.session.get() {
        session.clone().close().await;
    }
}

async fn death(process: Option<AsyncFd<OwnedFd>>) {
    match process {
        // A pidfd is readable from its process's death on.
        Some(process) => drop(process.readable().await),
        None => std::future::pending().await,
    }
}

impl Served {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn converse(self: Arc<Served>) -> Result<()> {
        self.say(0, &Reply::Ready).await?;
        let mut lines = Lines::new(REQUEST_MAX);
        let mut piece = vec![0; CHUNK + 1];
        // They end with this function.
        let mut tasks = JoinSet::new();
        let mut open: BTreeMap<u64, Arc<Notify>> = BTreeMap::new();
        loop {
            tokio::select! {
                got = self.read(&mut piece) => match got? {
                    0 => return Ok(()),
                    length => lines.push(&piece[..length]),
                },
                Some(done) = tasks.join_next() => {
                    let (id, written): (u64, Result<()>) = done.map_err(Error::other)?;
                    open.remove(&id);
                    written?;
                }
                () = self.lost() => return self.say(0, &self.cx.lost()).await,
            }
            let too_long = || Error::new(ErrorKind::InvalidData, "a request is too long");
            while let Some(line) = lines.next().map_err(|()| too_long())? {
                let request = serde_json::from_slice::<Request>(&line);
                let Some(request) = request.ok().filter(|one| !open.contains_key(&one.id)) else {
                    let why = "a request that is not understood; is it another version?";
                    self.refuse(0, Failure::Refused, why.into()).await?;
                    return Err(Error::new(ErrorKind::InvalidData, "a request is not understood"));
                };
                match request.op {
                    Op::Cancel { id } => open.get(&id).into_iter().for_each(|one| one.notify_one()),
                    _ if open.len() >= OPEN_MAX => {
                        let why = format!("a connection has {OPEN_MAX} requests open at most");
                        self.refuse(request.id, Failure::Limit, why).await?;
                    }
                    _ => {
                        let (id, cancelled) = (request.id, Arc::new(Notify::new()));
                        open.insert(id, cancelled.clone());
                        let served = self.clone();
                        tasks.spawn(async move { (id, served.attend(request, &cancelled).await) });
                    }
                }
            }
        }
    }

    /// A piece of lines; 0 bytes are the end.
    async fn read(&self, piece: &mut [u8]) -> Result<usize> {
        loop {
            let mut ready = self.socket.readable().await?;
            let flags = RecvFlags::DONTWAIT;
            let got = ready.try_io(|socket| Ok(recv(socket.get_ref(), &mut *piece, flags)?.0));
            match got {
                // A packet that is longer than any may be was cut.
                Ok(Ok(length)) if length > CHUNK => {
                    return Err(Error::new(ErrorKind::InvalidData, "a packet is too long"));
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody reads what it was told; that is its end.
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => return Ok(0),
                Ok(got) => return got,
                Err(_) => {}
            }
        }
    }

    /// Waits for the session to be lost; for ever if there is none.
    async fn lost(&self) {
        loop {
            if let Some(session) = self.session.get() {
                return session.lost().await;
            }
            self.opened.notified().await;
        }
    }

    /// Answers a request. Says meanwhile what it waits for.
    async fn attend(&self, request: Request, cancelled: &Notify) -> Result<()> {
        let what = Awaited::of(&request.op);
        let id = request.id;
        let mut said = String::new();
        let mut answering = pin!(self.answer(request, cancelled));
        loop {
            tokio::select! {
                answered = &mut answering => return self.finish(id, answered).await,
                why = self.cx.notice(what.as_ref(), &said), if self.cx.is_talkative => said = why,
            }
            // What is being said just now goes before.
            if let Ok(_turn) = self.writing.try_lock() {
                self.write(id, &Reply::Waiting { why: said.clone() }).await?;
            }
        }
    }

    async fn finish(&self, id: u64, answered: Answered) -> Result<()> {
        let _turn = self.writing.lock().await;
        let found = match answered {
            Ok(Answer::Say(reply)) => Ok(reply),
            Ok(Answer::Look(op)) => self.cx.look(&op, self.session.get()),
            Err(trouble) => Err(trouble),
        };
        let reply =
            found.unwrap_or_else(|Trouble::Failed(failure, why)| Reply::Failed { failure, why });
        self.write(id, &reply).await
    }

    async fn refuse(&self, id: u64, failure: Failure, why: String) -> Result<()> {
        self.say(id, &Reply::Failed { failure, why }).await
    }

    async fn say(&self, id: u64, reply: &Reply) -> Result<()> {
        let _turn = self.writing.lock().await;
        self.write(id, reply).await
    }

    /// Writes, whose turn it is.
    async fn write(&self, id: u64, reply: &Reply) -> Result<()> {
        let mut line = serde_json::to_vec(&Told { id, reply: reply.clone() })?;
        line.push(b'\n');
        let written = timeout(SERVICE_WRITE_MAX, self.write_all(&line)).await;
        let slow = || Error::new(ErrorKind::TimedOut, "it does not read its answers");
        written.unwrap_or_else(|_| Err(slow()))
    }

    async fn write_all(&self, mut rest: &[u8]) -> Result<()> {
        while !rest.is_empty() {
            let piece = &rest[..rest.len().min(CHUNK)];
            let mut ready = self.socket.writable().await?;
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = ready.try_io(|socket| Ok(send(socket.get_ref(), piece, flags)?));
            match sent {
                Ok(Ok(length)) => rest = &rest[length..],
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                // It has gone: the reader finds the end.
                Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    async fn answer(&self, request: Request, cancelled: &Notify) -> Answered {
        let limit = request.timeout_ms.map(Duration::from_millis);
        self.cx.check_fence()?;
        if let Some(what) = Awaited::of(&request.op) {
            return self.wait_for(what.placed(self.cx.realm)?, limit, cancelled).await;
        }
        tokio::select! {
            answered = self.carry_out(request.op, limit) => answered,
            () = cancelled.notified() => {
                Err(Trouble::Failed(Failure::Timeout, "it was cancelled".into()))
            }
        }
    }

    async fn carry_out(&self, op: Op, limit: Option<Duration>) -> Answered {
        let patience = limit.unwrap_or(SERVICE_PATIENCE);
        match op {
            Op::Watch { from: Some(_), .. } => self.watch(op, limit).await,
            Op::Get { .. } | Op::Range { .. } | Op::Leader { .. } | Op::Watch { .. } => {
                let _turn = self.cx.turn().await;
                let read = self.cx.group.read(|_| (), patience).await;
                self.cx.explain(read.map_err(Refused::from))?;
                Ok(Answer::Look(op))
            }
            Op::Receive { group, after } => self.receive(group, after, limit).await,
            Op::Join { group } => {
                let name = self.cx.name(&group)?;
                let joined = self.run(Command::Join { group: name }, patience).await?;
                let member = self.session(patience).await?.client().0;
                let view = if let Done::Joined { view } = joined { view } else { 0 };
                Ok(Answer::Say(Reply::Joined { member, view }))
            }
            Op::Grant { ttl_ms } => {
                let lease = self.lease(Lease::After(ttl_ms), patience).await?;
                let lease = lease.map_or(0, |lease| lease.0);
                Ok(Answer::Say(Reply::Leased { lease }))
            }
            Op::Renew { lease, ends } => {
                let session = self.session(patience).await?;
                let renewed = timeout(patience, session.renew(ClientId(lease), ends)).await;
                self.cx.explain(renewed.unwrap_or(Err(Unavailable.into())))?;
                Ok(Answer::Say(Reply::Done))
            }
            op => self.change(op, patience).await,
        }
    }

    /// The session, opened when it is first needed.
    async fn session(&self, patience: Duration) -> std::result::Result<&Session, Trouble> {
        let open =
            || Session::open_in(&self.cx.group, SERVICE_TTL, self.cx.realm, self.cx.gate.clone());
        let opened = timeout(patience, self.session.get_or_try_init(open)).await;
        let session = self.cx.explain(opened.unwrap_or(Err(Unavailable.into())))?;
        self.opened.notify_one();
        Ok(session)
    }

    /// Has a command carried out.
    async fn run(
        &self,
        command: Command,
        patience: Duration,
    ) -> std::result::Result<Done, Trouble> {
        let until = Instant::now() + patience;
        let session = self.session(patience).await?;
        let done = tokio::time::timeout_at(until, session.run(command)).await;
        self.cx.explain(done.unwrap_or(Err(Unavailable.into())))
    }

    async fn change(&self, op: Op, patience: Duration) -> Answered {
        let cx = &self.cx;
        let command = match op {
            Op::Put { key, value, lease } => {
                let lease = self.lease(lease, patience).await?;
                Command::Put { key: cx.key(&key)?, value: value.0, lease }
            }
            Op::Delete { key } => Command::Delete { key: cx.key(&key)? },
            Op::Swap { key, expected, value, lease } => {
                let lease = self.lease(lease, patience).await?;
                let value = value.map(|value| value.0);
                Command::Swap { key: cx.key(&key)?, expected, value, lease }
            }
            Op::Lock { name, .. } => Command::Lock { name: cx.name(&name)?, wait: false },
            Op::Unlock { name } => Command::Unlock { name: cx.name(&name)? },
            Op::Resign { name } => Command::Resign { name: cx.name(&name)? },
            Op::Cast { group, bytes } => Command::Cast { group: cx.name(&group)?, bytes: bytes.0 },
            Op::Give { group, view, state } => {
                Command::GiveState { group: cx.name(&group)?, view, bytes: state.0 }
            }
            Op::Leave { group } => {
                let group = cx.name(&group)?;
                self.notes().acknowledged.remove(&group);
                Command::Leave { group }
            }
            // `carry_out` and its callers deal with them.
            _ => return Ok(Answer::Say(Reply::Done)),
        };
        let is_try = matches!(command, Command::Lock { .. });
        Ok(Answer::Say(match self.run(command, patience).await? {
            Done::Changed { revision, found } => Reply::Changed { revision, found },
            Done::Locked { fence } => Reply::Locked { token: fence },
            Done::Sent { number } => Reply::Sent { number },
            // This session is in its line already, for another request.
            Done::Waiting if is_try => return cx.explain(Err(Refusal::Taken.into())),
            _ => Reply::Done,
        }))
    }

    async fn lease(
        &self,
        lease: Lease,
        patience: Duration,
    ) -> std::result::Result<Option<ClientId>, Trouble> {
        let cx = &self.cx;
        let unavailable = |_| Err(Unavailable.into());
        match lease {
            Lease::None => Ok(None),
            Lease::Connection => Ok(Some(self.session(patience).await?.client())),
            Lease::After(ttl) => {
                let _turn = cx.turn().await;
                let granted = timeout(patience, Session::grant(&cx.group, ttl, cx.realm)).await;
                cx.explain(granted.unwrap_or_else(unavailable)).map(Some)
            }
            Lease::Held(lease) => {
                let lease = ClientId(lease);
                let session = self.session(patience).await?;
                let checked = timeout(patience, session.check_lease(lease)).await;
                let known = checked.unwrap_or_else(|_| Err(Unavailable.into()));
                cx.explain(known).map(|()| Some(lease))
            }
        }
    }

    /// Waits for something that depends on others, also while the group has no majority.
    async fn wait_for(
        &self,
        what: Awaited,
        limit: Option<Duration>,
        cancelled: &Notify,
    ) -> Answered {
        let until = limit.map(|limit| Instant::now() + limit);
        let Some(_waiting) = Waiting::begin(self, &what) else {
            let why = "this session waits for that already, in another thread";
            return Err(Trouble::Failed(Failure::Refused, why.into()));
        };
        let session = self.session(limit.unwrap_or(SERVICE_PATIENCE)).await?;
        tokio::select! {
            taken = what.take(session) => return self.cx.explain(taken).map(Answer::Say),
            () = session.lost() => return Ok(Answer::Say(self.cx.lost())),
            () = over(until) => {}
            () = cancelled.notified() => {}
        }
        let why = self.cx.why(&what);
        // If that is not heard, the end of the session does it.
        timeout(SERVICE_TIDY, session.run(what.give_up())).await.ok();
        Err(Trouble::Failed(Failure::Timeout, format!("gave up: {why}")))
    }

    /// Waits for changes; what they are is looked up when it is said.
    async fn watch(&self, op: Op, limit: Option<Duration>) -> Answered {
        let Op::Watch { start, end, from: Some(first) } = &op else { return Ok(Answer::Look(op)) };
        let (start, end) = self.cx.bounds(start, end.as_ref());
        let mut from = (*first).max(1);
        let found = self.cx.group.wait(|state| match state.changes(&start, end.as_deref(), from) {
            Ok(changes) => {
                from = changes.next;
                (!changes.events.is_empty()).then_some(())
            }
            Err(_) => Some(()),
        });
        tokio::select! {
            () = found => {}
            () = over(limit.map(|limit| Instant::now() + limit)) => {
                return Err(Trouble::Failed(Failure::Timeout, "nothing has changed".into()));
            }
        }
        Ok(Answer::Look(op))
    }

    /// Waits for what a member gets next. What it has dealt with is acknowledged when it has nothing else to do, or that
    /// has become much.
    async fn receive(&self, group: String, after: u64, limit: Option<Duration>) -> Answered {
        let until = limit.map(|limit| Instant::now() + limit);
        let session = self.session(limit.unwrap_or(SERVICE_PATIENCE)).await?;
        let name = self.cx.name(&group)?;
        let known = self.notes().acknowledged.get(&name).copied().unwrap_or(0);
        let next = self.cx.group.look(|state| state.delivery(session.client(), &name, after));
        let next = self.cx.explain(next.map_err(Refused::from))?;
        if after > known && (next.is_none() || after - known >= SERVICE_ACKNOWLEDGED) {
            self.cx.explain(session.acknowledge(&name, after).await)?;
            self.notes().acknowledged.insert(name.clone(), after);
        }
        tokio::select! {
            found = session.receive(&name, after) => drop(self.cx.explain(found)?),
            () = session.lost() => return Ok(Answer::Say(self.cx.lost())),
            () = over(until) => {
                return Err(Trouble::Failed(Failure::Timeout, "nothing has come".into()));
            }
        }
        Ok(Answer::Look(Op::Receive { group, after }))
    }
}

/// How long tidying up may take; the end of the session does it otherwise.
const SERVICE_TIDY: Duration = Duration::from_secs(1);

async fn over(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// What somebody waits for.
enum Awaited {
    Lock(String),
    Election(String, Text),
    Barrier(String, u32),
}

/// A session that waits for something; it does so once at a time, as giving up is for all of it.
struct Waiting<'a>(&'a Served, (u8, String));

impl Waiting<'_> {
    fn begin<'a>(served: &'a Served, what: &Awaited) -> Option<Waiting<'a>> {
        let key = match what {
            Awaited::Lock(name) => (0, name.clone()),
            Awaited::Election(name, _) => (1, name.clone()),
            Awaited::Barrier(name, _) => (2, name.clone()),
        };
        let is_first = served.notes().awaited.insert(key.clone());
        is_first.then_some(Waiting(served, key))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.notes().awaited.remove(&self.1);
    }
}

impl Awaited {
    fn of(op: &Op) -> Option<Awaited> {
        match op {
            Op::Lock { name, wait: true } => Some(Awaited::Lock(name.clone())),
            Op::Campaign { name, value } => Some(Awaited::Election(name.clone(), value.clone())),
            Op::Barrier { name, parties } => Some(Awaited::Barrier(name.clone(), *parties)),
            _ => None,
        }
    }

    /// With its name as the state has it.
    fn placed(self, realm: Realm) -> std::result::Result<Awaited, Trouble> {
        let place = |name: String| realm.name(&name).map_err(|refusal| refused(&refusal));
        Ok(match self {
            Awaited::Lock(name) => Awaited::Lock(place(name)?),
            Awaited::Election(name, value) => Awaited::Election(place(name)?, value),
            Awaited::Barrier(name, parties) => Awaited::Barrier(place(name)?, parties),
        })
    }

    async fn take(&self, session: &Session) -> std::result::Result<Reply, Refused> {
        loop {
            let taken = match self {
                Awaited::Lock(name) => {
                    session.lock(name).await.map(|token| Reply::Locked { token })
                }
                Awaited::Election(name, value) => {
                    let elected = session.campaign(name, &value.0).await;
                    elected.map(|epoch| Reply::Elected { epoch })
                }
                Awaited::Barrier(name, parties) => {
                    session.barrier(name, *parties).await.map(|()| Reply::Passed)
                }
            };
            // One who has perhaps been at a barrier must not wait at the next one.
            let again = !matches!(self, Awaited::Barrier(..));
            if !again || !matches!(taken, Err(Refused::Unavailable(_))) {
                return taken;
            }
        }
    }

    fn give_up(&self) -> Command {
        match self {
            Awaited::Lock(name) => Command::Unlock { name: name.clone() },
            Awaited::Election(name, _) => Command::Resign { name: name.clone() },
            Awaited::Barrier(name, _) => Command::Abandon { name: name.clone() },
        }
    }
}

fn refused(refusal: &Refusal) -> Trouble {
    Trouble::Failed(sorted(refusal), refusal.to_string())
}

/// Who must act.
fn sorted(refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::Taken => Failure::Taken,
        Refusal::Revision { revision } => Failure::Revision(*revision),
        Refusal::NotHeld | Refusal::NotMember | Refusal::NoSession => Failure::NotHeld,
        Refusal::Limit { .. } | Refusal::Quota { .. } => Failure::Limit,
        _ => Failure::Refused,
    }
}

impl Context {
    async fn turn(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // It is never closed.
        self.gate.as_ref()?.acquire().await.ok()
    }

    fn key(&self, key: &Text) -> std::result::Result<Vec<u8>, Trouble> {
        self.realm.key(&key.0).map_err(|refusal| refused(&refusal))
    }

    fn name(&self, name: &str) -> std::result::Result<String, Trouble> {
        self.realm.name(name).map_err(|refusal| refused(&refusal))
    }

    fn bounds(&self, start: &Text, end: Option<&Text>) -> (Vec<u8>, Option<Vec<u8>>) {
        self.realm.bounds(&start.0, end.map(|end| &end.0[..]))
    }

    /// A node that is cut off says so at once: nothing that it is asked for could be done in time, or be true.
    fn check_fence(&self) -> std::result::Result<(), Trouble> {
        if *self.group.fence().borrow() != Fence::Fenced {
            return Ok(());
        }
        let why = self.trouble().unwrap_or_else(|| "this node has fenced itself".into());
        Err(Trouble::Failed(Failure::Fenced, why))
    }

    /// Why nothing can be decided, if so.
    fn trouble(&self) -> Option<String> {
        let shared = self.shared.upgrade()?;
        system::status(&shared).and_then(|status| status.trouble)
    }

    /// Waits until there is something to say to somebody who waits, other than what was `said`.
    async fn notice(&self, what: Option<&Awaited>, said: &str) -> String {
        loop {
            sleep(SERVICE_SILENCE).await;
            let why = what.map_or_else(|| self.trouble(), |what| Some(self.why(what)));
            if let Some(why) = why.filter(|why| why != said) {
                return why;
            }
        }
    }

    fn lost(&self) -> Reply {
        let why = self.trouble().unwrap_or_else(|| "the system group has not heard of it".into());
        Reply::Lost { why: format!("the session may have ended: {why}") }
    }

    fn explain<T>(
        &self,
        outcome: std::result::Result<T, Refused>,
    ) -> std::result::Result<T, Trouble> {
        outcome.map_err(|error| {
            let failure = match &error {
                Refused::Unavailable(_) => Failure::Unavailable,
                Refused::Broken => Failure::Broken,
                Refused::Refused(refusal) => sorted(refusal),
            };
            let trouble = matches!(error, Refused::Unavailable(_)).then(|| self.trouble());
            let why = trouble.flatten().unwrap_or_else(|| error.to_string());
            Trouble::Failed(failure, why)
        })
    }

    /// What the state of this node shows. `session` is the asker's.
    fn look(&self, op: &Op, session: Option<&Session>) -> std::result::Result<Reply, Trouble> {
        self.group.look(|state| match op {
            Op::Get { key } => {
                let found = state.get(&self.key(key)?).cloned();
                Ok(Reply::Value { entry: found.map(|found| entry(key.0.clone(), found)) })
            }
            Op::Range { start, end, limit } => {
                let (start, end) = self.bounds(start, end.as_ref());
                let range = state.range(&start, end.as_deref(), *limit);
                let own = |key: &[u8]| Realm::of_key(key).1.to_vec();
                let entries = range.entries.into_iter().map(|(key, found)| entry(own(&key), found));
                let (revision, more) = (range.revision, range.more);
                Ok(Reply::Range { revision, entries: entries.collect(), more })
            }
            Op::Leader { name } => {
                let leader = state.leader(&self.name(name)?);
                let leader = leader.map(|one| (one.token, Text(one.value), one.client.0));
                Ok(Reply::Leader { leader })
            }
            Op::Watch { start, end, from } => self.changes(state, start, end.as_ref(), *from),
            Op::Receive { group, after } => self.item(state, group, *after, session),
            _ => Ok(Reply::Done),
        })
    }

    fn changes(
        &self,
        state: &State,
        start: &Text,
        end: Option<&Text>,
        from: Option<u64>,
    ) -> std::result::Result<Reply, Trouble> {
        let Some(from) = from else {
            return Ok(Reply::Changes { changes: Vec::new(), next: state.revision() + 1 });
        };
        let (start, end) = self.bounds(start, end);
        let found = state.changes(&start, end.as_deref(), from.max(1)).map_err(|first| {
            let why = format!("changes are remembered from revision {first} on only");
            Trouble::Failed(Failure::Forgotten(first), why)
        })?;
        let changes = found.events.into_iter().map(|event| Change {
            revision: event.revision,
            key: Text(Realm::of_key(&event.key).1.to_vec()),
            value: event.value.map(Text),
        });
        Ok(Reply::Changes { changes: changes.collect(), next: found.next })
    }

    fn item(
        &self,
        state: &State,
        group: &str,
        after: u64,
        session: Option<&Session>,
    ) -> std::result::Result<Reply, Trouble> {
        let member = session.map(Session::client).unwrap_or_default();
        let delivery = state.delivery(member, &self.name(group)?, after);
        let nothing = || refused(&Refusal::NotMember);
        let delivery = delivery.map_err(|refusal| refused(&refusal))?.ok_or_else(nothing)?;
        let number = delivery.number();
        let item = match delivery {
            Delivery::State { bytes, .. } => Item::State { bytes: Text(bytes) },
            Delivery::Item { item: state::Item::Message { from, bytes }, .. } => {
                Item::Message { from: from.0, bytes: Text(bytes) }
            }
            Delivery::Item { item: state::Item::View(view), .. } => Item::View {
                members: view.members.iter().map(|member| member.client.0).collect(),
                fresh: view.fresh,
                gives: view.donor() == Some(member),
            },
        };
        Ok(Reply::Item { number, item })
    }

    /// What somebody waits for, for people.
    fn why(&self, what: &Awaited) -> String {
        if let Some(trouble) = self.trouble() {
            return trouble;
        }
        let line = |of: &str, name: &str, holder: Option<state::Holder>| match holder {
            Some(holder) => {
                let (_, name) = Realm::of_name(name);
                let (client, count) = (holder.client.0, holder.waiting);
                format!("{of} {name} is held by session {client}, {count} waiting")
            }
            None => format!("{of} {}", Realm::of_name(name).1),
        };
        match what {
            Awaited::Lock(name) => {
                line("lock", name, self.group.look(|state| state.lock_holder(name)))
            }
            Awaited::Election(name, _) => {
                line("leadership of", name, self.group.look(|state| state.leader(name)))
            }
            Awaited::Barrier(name, _) => {
                format!("others are not at barrier {} yet", Realm::of_name(name).1)
            }
        }
    }
}

fn entry(key: Vec<u8>, found: state::Entry) -> Entry {
    let state::Entry { value, created, modified, version, lease } = found;
    let lease = lease.map(|client| client.0);
    Entry { key: Text(key), value: Text(value), created, modified, version, lease }
}
