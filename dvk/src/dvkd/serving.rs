//! One connection that uses the system group's services, served by a thread that they have together.
//!
//! Each request is a task. What it has found is written by itself, and looked up only when it is its turn to write: a
//! connection that is not read has one answer in memory, not as many as it has asked for.
#![expect(unsafe_code, reason = "tokio polls a descriptor of ours")]

mod waits;

pub(super) use waits::Awaited;

use super::answers::{refused, sorted};
use super::node::Shared;
use super::programs::Share;
use super::services::{Failure, Lease, Op, Reply, Request, Text, Told};
use super::system;
use crate::limits::{
    SERVICE_ACKNOWLEDGED, SERVICE_OPENING, SERVICE_PATIENCE, SERVICE_SILENCE, SERVICE_TTL,
    SERVICE_WRITE_MAX,
};
use ::group::command::{ClientId, Done, Op as Command};
use ::group::fence::Fence;
use ::group::limits::{KEY_MAX, NAME_MAX, STATE_MAX, VALUE_MAX};
use ::group::state::Debt;
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
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// What a connection is served with.
pub(super) struct Context {
    pub(super) group: Group,
    pub(super) shared: Weak<Shared>,
    /// Whose keys and names it sees.
    pub(super) realm: Realm,
    /// What it has in common with the others of its container; none for the administrator.
    pub(super) share: Option<Arc<Share>>,
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
    /// What requests ask for that one waits for.
    asked: BTreeSet<(u8, String)>,
    /// How far it is in the groups that it takes items of, by their names in the state. (Which it has joined, the state says.)
    progress: BTreeMap<String, Progress>,
}

/// How far a member is.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// It has dealt with what it got up to here, as it says.
    asked: u64,
    /// So much of that the group has been told, and has heard.
    acknowledged: u64,
}

/// Why there is no answer of the usual kind.
pub(super) enum Trouble {
    /// To be said; the connection goes on.
    Failed(Failure, String),
    /// It is not known what the session has: the connection ends, and the session with it.
    Lost(String),
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
    let Some(socket) = polled(socket, Interest::READABLE | Interest::WRITABLE) else { return };
    let process = match process {
        None => None,
        Some(process) => match polled(process, Interest::READABLE) {
            None => return,
            polled => polled,
        },
    };
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

fn polled(fd: OwnedFd, interest: Interest) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and the same descriptor, until it is dropped, which the `AsyncFd` does.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.ok()
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
        let mut open = Open::new();
        let mut long = None;
        let mut stalled = pin!(self.stalled());
        loop {
            tokio::select! {
                got = self.read(&mut piece, lines.waiting(), &mut long) => match got? {
                    0 => return Ok(()),
                    length => lines.push(&piece[..length]),
                },
                Some(done) = tasks.join_next() => close(&mut open, done)?,
                () = self.lost() => return self.say(0, &self.cx.lost()).await,
                why = &mut stalled => {
                    return self.say(0, &Reply::Lost { why: format!("{why}: its session is ended") }).await;
                }
            }
            while let Some(line) = lines.take().map_err(|()| invalid("a request is too long"))? {
                long = None;
                // What has been answered is open no more, and its number free.
                while let Some(done) = tasks.try_join_next() {
                    close(&mut open, done)?;
                }
                let request = serde_json::from_slice::<Request>(&line);
                let Some(request) = request.ok().filter(|one| !open.contains_key(&one.id)) else {
                    let why = "a request that is not understood; is it another version?";
                    self.refuse(0, Failure::Refused, why.into()).await?;
                    return Err(invalid("a request is not understood"));
                };
                self.clone().begin(request, &mut open, &mut tasks).await?;
            }
        }
    }

    /// Begins to answer a request.
    async fn begin(
        self: Arc<Served>,
        request: Request,
        open: &mut Open,
        tasks: &mut JoinSet<(u64, Result<()>)>,
    ) -> Result<()> {
        if let Op::Cancel { id } = request.op {
            open.get(&id).into_iter().for_each(|one| one.notify_one());
            return Ok(());
        }
        let id = request.id;
        if open.len() >= OPEN_MAX {
            let why = format!("a connection has {OPEN_MAX} requests open at most");
            return self.refuse(id, Failure::Limit, why).await;
        }
        if let Err((failure, why)) = fits(&request.op) {
            return self.refuse(id, failure, why).await;
        }
        let permit = match self.cx.share.as_ref().map(|share| share.open()).transpose() {
            Ok(permit) => permit,
            Err(why) => return self.refuse(id, Failure::Limit, why).await,
        };
        let cancelled = Arc::new(Notify::new());
        open.insert(id, cancelled.clone());
        tasks.spawn(async move {
            let written = self.attend(request, &cancelled).await;
            drop(permit);
            (id, written)
        });
        Ok(())
    }

    /// A piece of lines; 0 bytes are the end. Of a line so many bytes are waiting for the rest; if they are many, it must
    /// be its turn to have a `long` one, and come soon.
    async fn read(
        &self,
        piece: &mut [u8],
        waiting: usize,
        long: &mut Option<Long>,
    ) -> Result<usize> {
        if let (None, Some(share)) = (&long, self.cx.share.as_ref().filter(|_| waiting > CHUNK)) {
            let permit = share.requests.clone().acquire_owned().await.map_err(Error::other)?;
            *long = Some(Long { until: Instant::now() + SERVICE_WRITE_MAX, _permit: permit });
        }
        let Some(long) = long else { return self.receive_piece(piece).await };
        let come = timeout_at(long.until, self.receive_piece(piece)).await;
        come.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::TimedOut, "a long request does not come whole"))
        })
    }

    async fn receive_piece(&self, piece: &mut [u8]) -> Result<usize> {
        loop {
            let mut ready = self.socket.readable().await?;
            let flags = RecvFlags::DONTWAIT;
            let got = ready.try_io(|socket| Ok(recv(socket.get_ref(), &mut *piece, flags)?.0));
            match got {
                // A packet that is longer than any may be was cut.
                Ok(Ok(length)) if length > CHUNK => return Err(invalid("a packet is too long")),
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody reads what it was told; that is its end.
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => return Ok(0),
                Ok(got) => return got,
                Err(_) => {}
            }
        }
    }

    /// Waits until a group has had little room left for more for long because this session does not do its part: a process that
    /// is stopped, or hangs, would stop all others for ever. Says what it did not do.
    async fn stalled(&self) -> String {
        let mut stalls = Stalls::default();
        loop {
            sleep(SERVICE_SILENCE).await;
            let Some(client) = self.session.get().map(Session::client) else { continue };
            let debts: BTreeMap<String, Option<Debt>> = self.cx.group.look(|state| {
                let debt = |name: &str| (name.to_owned(), state.holds_up(client, name));
                state.memberships(client).map(debt).collect()
            });
            let mut notes = self.notes();
            // Of a group that it has left, and comes to again, the numbers may begin anew.
            notes.progress.retain(|name, _| debts.contains_key(name));
            let held_up = debts.into_iter().filter_map(|(name, debt)| {
                let asked = notes.progress.get(&name).map_or(0, |progress| progress.asked);
                Some((name, (debt?, asked)))
            });
            let held_up = held_up.collect();
            drop(notes);
            if let Some((name, debt)) = stalls.look(held_up, Instant::now()) {
                let (_, name) = Realm::of_name(&name);
                return match debt {
                    Debt::Take => format!("it did not take what its group {name} sends"),
                    Debt::Give { .. } => {
                        format!("it did not give its state to those who joined its group {name}")
                    }
                };
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
        let _long = match (&answered, &self.cx.share) {
            (Ok(Answer::Look(_)), Some(share)) => share.answers.acquire().await.ok(),
            _ => None,
        };
        let found = match answered {
            Ok(Answer::Say(reply)) => Ok(reply),
            Ok(Answer::Look(op)) => self.cx.look(&op, self.session.get()),
            Err(trouble) => Err(trouble),
        };
        match found {
            Ok(reply) => self.write(id, &reply).await,
            Err(Trouble::Failed(failure, why)) => {
                self.write(id, &Reply::Failed { failure, why }).await
            }
            Err(Trouble::Lost(why)) => {
                self.write(0, &Reply::Lost { why: why.clone() }).await?;
                Err(Error::new(ErrorKind::ConnectionAborted, why))
            }
        }
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
            Op::Lock { name, .. } => self.try_lock(&name, patience).await,
            Op::Join { group } => {
                let name = self.cx.name(&group)?;
                let joined = self.run(Command::Join { group: name.clone() }, patience).await?;
                self.notes().progress.remove(&name);
                let Done::Joined { view } = joined else { return Err(strange(&joined)) };
                let member = self.session(patience).await?.client().0;
                Ok(Answer::Say(Reply::Joined { member, view }))
            }
            Op::Grant { ttl_ms } => {
                let lease = self.grant(ttl_ms, patience).await?.0;
                Ok(Answer::Say(Reply::Leased { lease }))
            }
            Op::Renew { lease, ends } => {
                let renew = Command::Renew { lease: ClientId(lease), ends };
                match self.run(renew, patience).await? {
                    Done::Fine => Ok(Answer::Say(Reply::Done)),
                    other => Err(strange(&other)),
                }
            }
            op => self.change(op, patience).await,
        }
    }

    /// The session, opened when it is first needed.
    async fn session(&self, patience: Duration) -> std::result::Result<&Session, Trouble> {
        let open = || Session::open_in(&self.cx.group, SERVICE_TTL, self.cx.realm, self.cx.gate());
        let opened = timeout(patience, self.session.get_or_try_init(open)).await;
        let session = self.cx.explain(opened.unwrap_or(Err(Unavailable.into())))?;
        self.opened.notify_one();
        Ok(session)
    }

    /// The session, for a request that has `limit` to wait for others: to open it may take as long as to elect a leader.
    async fn session_within(
        &self,
        limit: Option<Duration>,
    ) -> std::result::Result<&Session, Trouble> {
        let patience = limit.unwrap_or(SERVICE_PATIENCE).max(SERVICE_OPENING);
        match self.session(patience).await {
            // Nothing was asked, so nothing can have happened.
            Err(Trouble::Failed(Failure::Unavailable, why)) if patience < SERVICE_PATIENCE => {
                Err(Trouble::Failed(Failure::Timeout, format!("gave up: {why}")))
            }
            opened => opened,
        }
    }

    /// Has a command carried out.
    async fn run(
        &self,
        command: Command,
        patience: Duration,
    ) -> std::result::Result<Done, Trouble> {
        let until = Instant::now() + patience;
        let session = self.session(patience).await?;
        let done = timeout_at(until, session.run(command)).await;
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
            Op::Unlock { name } => Command::Unlock { name: cx.name(&name)? },
            Op::Resign { name } => Command::Resign { name: cx.name(&name)? },
            Op::Cast { group, bytes } => Command::Cast { group: cx.name(&group)?, bytes: bytes.0 },
            Op::Give { group, view, state } => {
                Command::GiveState { group: cx.name(&group)?, view, bytes: state.0 }
            }
            Op::Leave { group } => Command::Leave { group: cx.name(&group)? },
            other => return Err(strange(&other)),
        };
        Ok(Answer::Say(match self.run(command, patience).await? {
            Done::Changed { revision, found } => Reply::Changed { revision, found },
            Done::Sent { number } => Reply::Sent { number },
            Done::Fine => Reply::Done,
            other => return Err(strange(&other)),
        }))
    }

    /// With what a key ends. Whether that is this session's to say, the state knows.
    async fn lease(
        &self,
        lease: Lease,
        patience: Duration,
    ) -> std::result::Result<Option<ClientId>, Trouble> {
        match lease {
            Lease::None => Ok(None),
            Lease::Connection => Ok(Some(self.session(patience).await?.client())),
            Lease::After(ttl) => self.grant(ttl, patience).await.map(Some),
            Lease::Held(lease) => Ok(Some(ClientId(lease))),
        }
    }

    async fn grant(&self, ttl: u64, patience: Duration) -> std::result::Result<ClientId, Trouble> {
        match self.run(Command::Grant { ttl }, patience).await? {
            Done::Opened { client } => Ok(client),
            other => Err(strange(&other)),
        }
    }

    /// Waits for changes; what they are is looked up when it is said: from where on nothing of the kind has been seen. If
    /// time is over that is said too, so that who asks again need not go back to where it began.
    async fn watch(&self, op: Op, limit: Option<Duration>) -> Answered {
        let Op::Watch { start, end, from: Some(first) } = op else { return Ok(Answer::Look(op)) };
        let (first_key, behind) = self.cx.bounds(&start, end.as_ref());
        let mut from = first.max(1);
        let found =
            self.cx.group.wait(|state| match state.changes(&first_key, behind.as_deref(), from) {
                Ok(changes) if changes.events.is_empty() => {
                    from = changes.next;
                    None
                }
                Ok(_) | Err(_) => Some(()),
            });
        tokio::select! {
            // Whoever does not want to wait gets what is there.
            biased;
            () = found => {}
            () = over(limit.map(|limit| Instant::now() + limit)) => {}
        }
        Ok(Answer::Look(Op::Watch { start, end, from: Some(from) }))
    }

    /// Waits for what a member gets next. What it has dealt with is acknowledged when it has nothing else to do, or that
    /// has become much.
    async fn receive(&self, group: String, after: u64, limit: Option<Duration>) -> Answered {
        let until = limit.map(|limit| Instant::now() + limit);
        let session = self.session_within(limit).await?;
        let name = self.cx.name(&group)?;
        let client = session.client();
        let (next, last) = self
            .cx
            .group
            .look(|state| (state.has_delivery(client, &name, after), state.last_item(&name)));
        let has_next = self.cx.explain(next.map_err(Refused::from))?;
        if after > last {
            let why = format!("the last item of the group is {last}: {after} cannot be dealt with");
            return Err(Trouble::Failed(Failure::Refused, why));
        }
        if let Some(number) = self.dealt_with(&name, after, !has_next) {
            tokio::select! {
                told = session.acknowledge(&name, number) => self.cx.explain(told)?,
                () = session.lost() => return Ok(Answer::Say(self.cx.lost())),
            }
            self.has_told(&name, number);
        }
        let found = self.cx.group.wait(|state| match state.has_delivery(client, &name, after) {
            Ok(false) => None,
            found => Some(found.map(drop)),
        });
        tokio::select! {
            biased;
            found = found => self.cx.explain(found.map_err(Refused::from))?,
            () = session.lost() => return Ok(Answer::Say(self.cx.lost())),
            () = over(until) => {
                return Err(Trouble::Failed(Failure::Timeout, "nothing has come".into()));
            }
        }
        Ok(Answer::Look(Op::Receive { group, after }))
    }

    /// A member has dealt with everything up to `after`: up to which number shall the group be told?
    fn dealt_with(&self, name: &str, after: u64, is_idle: bool) -> Option<u64> {
        let mut notes = self.notes();
        let progress = notes.progress.entry(name.to_owned()).or_default();
        progress.asked = progress.asked.max(after);
        let news = progress.asked.saturating_sub(progress.acknowledged);
        let tell = news >= SERVICE_ACKNOWLEDGED || (news > 0 && is_idle);
        tell.then_some(progress.asked)
    }

    /// The group has heard that.
    fn has_told(&self, name: &str, number: u64) {
        // Unless it has left, and come again, meanwhile.
        if let Some(progress) = self.notes().progress.get_mut(name).filter(|it| it.asked >= number)
        {
            progress.acknowledged = progress.acknowledged.max(number);
        }
    }
}

/// The groups that wait for this session, for what, how far it was when that was first seen, and when.
#[derive(Debug, Default)]
struct Stalls(BTreeMap<String, ((Debt, u64), Instant)>);

impl Stalls {
    /// These groups wait for it to do that, and it is so far; gives one in which it has not got on for [`SERVICE_WRITE_MAX`].
    fn look(
        &mut self,
        held_up: BTreeMap<String, (Debt, u64)>,
        now: Instant,
    ) -> Option<(String, Debt)> {
        let known = std::mem::take(&mut self.0);
        for (name, (debt, asked)) in held_up {
            // Who is to give its state does not get on by taking what is sent.
            let far = if debt == Debt::Take { (debt, asked) } else { (debt, 0) };
            let before = known.get(&name).filter(|(then, _)| *then == far);
            let since = before.map_or(now, |(_, since)| *since);
            if now.duration_since(since) >= SERVICE_WRITE_MAX {
                return Some((name, debt));
            }
            self.0.insert(name, (far, since));
        }
        None
    }
}

/// Open requests by their numbers, and how to cancel them.
type Open = BTreeMap<u64, Arc<Notify>>;

/// A request has been answered.
fn close(
    open: &mut Open,
    done: std::result::Result<(u64, Result<()>), tokio::task::JoinError>,
) -> Result<()> {
    let (id, written) = done.map_err(Error::other)?;
    open.remove(&id);
    written
}

/// The right to have a long request in memory that is not whole yet.
struct Long {
    until: Instant,
    _permit: OwnedSemaphorePermit,
}

/// It cannot be: a mistake in this program. Nothing is done, or nobody knows what was.
pub(super) fn strange(what: &dyn std::fmt::Debug) -> Trouble {
    tracing::error!(?what, "the services do not fit each other");
    let why = format!("dvkd made a mistake ({what:?}); please report it");
    Trouble::Failed(Failure::Unavailable, why)
}

fn invalid(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// Is what stands in a request as long as it may be? What waits is kept in memory.
fn fits(op: &Op) -> std::result::Result<(), (Failure, String)> {
    let check = |what: &str, length: usize, limit: usize| {
        let why = || (Failure::Limit, format!("{what} has {limit} bytes at most"));
        if length <= limit { Ok(()) } else { Err(why()) }
    };
    let key = |key: &Text| check("a key", key.0.len(), KEY_MAX);
    let value = |value: &Text| check("a value", value.0.len(), VALUE_MAX);
    let name = |name: &String| check("a name", name.len(), NAME_MAX);
    match op {
        Op::Get { key: one } | Op::Delete { key: one } => key(one),
        Op::Put { key: one, value: new, .. } | Op::Swap { key: one, value: Some(new), .. } => {
            key(one).and_then(|()| value(new))
        }
        Op::Swap { key: one, value: None, .. } => key(one),
        Op::Range { start, end, .. } | Op::Watch { start, end, .. } => {
            key(start).and_then(|()| end.as_ref().map_or(Ok(()), key))
        }
        Op::Campaign { name: of, value: new } => name(of).and_then(|()| value(new)),
        Op::Cast { group, bytes } => name(group).and_then(|()| value(bytes)),
        Op::Give { group, state, .. } => {
            name(group).and_then(|()| check("a state", state.0.len(), STATE_MAX))
        }
        Op::Lock { name: of, .. }
        | Op::Unlock { name: of }
        | Op::Resign { name: of }
        | Op::Leader { name: of }
        | Op::Barrier { name: of, .. }
        | Op::Join { group: of }
        | Op::Receive { group: of, .. }
        | Op::Leave { group: of } => name(of),
        Op::Grant { .. } | Op::Renew { .. } | Op::Cancel { .. } => Ok(()),
    }
}

async fn over(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Context {
    async fn turn(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // It is never closed.
        self.share.as_ref()?.gate.acquire().await.ok()
    }

    fn gate(&self) -> Option<Arc<Semaphore>> {
        self.share.as_ref().map(|share| share.gate.clone())
    }

    pub(super) fn key(&self, key: &Text) -> std::result::Result<Vec<u8>, Trouble> {
        self.realm.key(&key.0).map_err(|refusal| refused(&refusal))
    }

    pub(super) fn name(&self, name: &str) -> std::result::Result<String, Trouble> {
        self.realm.name(name).map_err(|refusal| refused(&refusal))
    }

    pub(super) fn bounds(&self, start: &Text, end: Option<&Text>) -> (Vec<u8>, Option<Vec<u8>>) {
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
    pub(super) fn trouble(&self) -> Option<String> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_stalls_when_it_holds_up_a_group_and_does_not_get_on() {
        let start = Instant::now();
        let mut stalls = Stalls::default();
        let mut look = |held_up: &[(&str, Debt, u64)], seconds| {
            let held_up =
                held_up.iter().map(|(name, debt, asked)| ((*name).into(), (*debt, *asked)));
            stalls.look(held_up.collect(), start + Duration::from_secs(seconds))
        };
        let limit = SERVICE_WRITE_MAX.as_secs();
        let (take, give) = (Debt::Take, Debt::Give { view: 3 });
        assert_eq!(look(&[("a", take, 1), ("b", take, 1)], 0), None);
        assert_eq!(look(&[("a", take, 1), ("b", take, 1)], limit - 1), None);
        // One gets on, the other is not waited for any more.
        assert_eq!(look(&[("a", take, 2)], limit), None);
        assert_eq!(look(&[("a", take, 2), ("b", take, 1)], 2 * limit - 1), None);
        assert_eq!(look(&[("a", take, 2), ("b", take, 1)], 2 * limit), Some(("a".into(), take)));
        // Who takes everything, and gives nothing, does not get on.
        assert_eq!(look(&[("c", give, 1)], 3 * limit), None);
        assert_eq!(look(&[("c", give, 2)], 4 * limit), Some(("c".into(), give)));
    }

    #[test]
    fn what_is_longer_than_it_may_be_is_refused_before_it_waits() {
        let long = |length| Text(vec![0; length]);
        let check = |op: Op, is_fine: bool| assert_eq!(fits(&op).is_ok(), is_fine, "{op:?}");
        for (length, is_fine) in [(0, true), (1, false)] {
            let name = "n".repeat(NAME_MAX + length);
            check(Op::Get { key: long(KEY_MAX + length) }, is_fine);
            let put = |key, value| Op::Put { key, value, lease: Lease::None };
            check(put(long(KEY_MAX + length), long(0)), is_fine);
            check(put(long(0), long(VALUE_MAX + length)), is_fine);
            check(Op::Campaign { name: "n".into(), value: long(VALUE_MAX + length) }, is_fine);
            check(Op::Campaign { name: name.clone(), value: long(0) }, is_fine);
            check(Op::Cast { group: "g".into(), bytes: long(VALUE_MAX + length) }, is_fine);
            check(
                Op::Give { group: "g".into(), view: 1, state: long(STATE_MAX + length) },
                is_fine,
            );
            check(Op::Lock { name: name.clone(), wait: true }, is_fine);
            check(Op::Receive { group: name, after: 0 }, is_fine);
            let watch = |start, end| Op::Watch { start, end, from: Some(1) };
            check(watch(long(KEY_MAX + length), None), is_fine);
            check(watch(long(0), Some(long(KEY_MAX + length))), is_fine);
        }
    }
}
