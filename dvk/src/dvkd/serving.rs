//! One connection that uses the system group's services, served by the group's thread.

use super::node::Shared;
use super::services::{Change, Entry, Failure, Item, Lease, Op, Reply, Request, Text};
use super::system;
use crate::limits::{
    SERVICE_LINE_MAX, SERVICE_PATIENCE, SERVICE_SILENCE, SERVICE_TTL, SERVICE_WRITE_MAX,
};
use ::group::command::{ClientId, Done, Op as Command, Refusal};
use ::group::fence::Fence;
use ::group::state::{self, Delivery, State};
use ::group::{Failure as Refused, Group, Session, Unavailable};
use std::io::{Error, ErrorKind, Result};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};

/// What a connection is served with.
pub(super) struct Context {
    pub(super) group: Group,
    pub(super) shared: Weak<Shared>,
}

/// A connection.
struct Served {
    cx: Arc<Context>,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    session: Option<Session>,
    /// The groups that it has joined to send to them.
    joined: Vec<String>,
}

/// Why there is no answer of the usual kind.
enum Trouble {
    /// To be said; the connection goes on.
    Failed(Failure, String),
    /// The other side has gone, or does not read.
    Gone,
}

impl From<Error> for Trouble {
    fn from(_: Error) -> Trouble {
        Trouble::Gone
    }
}

type Answered = std::result::Result<Reply, Trouble>;

/// Serves a connection until it ends, its session is lost, or the group is not `alive` any more.
pub(super) async fn serve(
    stream: std::os::unix::net::UnixStream,
    cx: Context,
    mut alive: watch::Receiver<()>,
) {
    let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
    let Ok(stream) = stream else { return };
    let (reader, writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let (cx, writer) = (Arc::new(cx), Arc::new(Mutex::new(writer)));
    let mut served = Served { cx, writer, session: None, joined: Vec::new() };
    tokio::select! {
        // A conversation that fails has ended.
        done = served.converse(&mut reader) => drop(done),
        _ = alive.changed() => {}
    }
    if let Some(session) = served.session.take() {
        session.close().await;
    }
}

/// The next line, or none at the end.
async fn line(reader: &mut BufReader<OwnedReadHalf>) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = SERVICE_LINE_MAX as u64;
    reader.take(limit).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(ErrorKind::InvalidData.into()),
    }
}

/// Waits for the session to be lost; for ever if there is none.
async fn lost(session: Option<Session>) {
    match session {
        Some(session) => session.lost().await,
        None => std::future::pending().await,
    }
}

impl Served {
    async fn converse(&mut self, reader: &mut BufReader<OwnedReadHalf>) -> Result<()> {
        self.say(&Reply::Ready).await?;
        loop {
            let line = tokio::select! {
                line = line(reader) => line?,
                () = lost(self.session.clone()) => return self.say_lost().await,
            };
            let Some(line) = line else { return Ok(()) };
            let Ok(request) = serde_json::from_slice::<Request>(&line) else {
                let why = "a request that is not understood; is it another version?".into();
                return self.say(&Reply::Failed { failure: Failure::Refused, why }).await;
            };
            let Some(answered) = self.attend(request, reader).await? else { return Ok(()) };
            match answered {
                Ok(reply @ Reply::Lost { .. }) => return self.say(&reply).await,
                Ok(reply) => self.say(&reply).await?,
                Err(Trouble::Failed(failure, why)) => {
                    self.say(&Reply::Failed { failure, why }).await?;
                }
                Err(Trouble::Gone) => return Ok(()),
            }
        }
    }

    /// Answers a request; none if whoever made it has hung up. Says meanwhile what it waits for.
    async fn attend(
        &mut self,
        request: Request,
        reader: &mut BufReader<OwnedReadHalf>,
    ) -> Result<Option<Answered>> {
        let what = Awaited::of(&request.op);
        let (cx, writer) = (self.cx.clone(), self.writer.clone());
        let mut said = String::new();
        let mut answering = pin!(self.answer(request));
        loop {
            tokio::select! {
                answered = &mut answering => return Ok(Some(answered)),
                // Whoever says something now does not want to wait any more either.
                _ = reader.fill_buf() => return Ok(None),
                why = cx.notice(what.as_ref(), &said) => said = why,
            }
            // What is being said just now goes before.
            if let Ok(mut writer) = writer.try_lock() {
                say(&mut writer, &Reply::Waiting { why: said.clone() }).await?;
            }
        }
    }

    async fn say(&mut self, reply: &Reply) -> Result<()> {
        say(&mut *self.writer.lock().await, reply).await
    }

    async fn say_lost(&mut self) -> Result<()> {
        let reply = self.cx.lost();
        self.say(&reply).await
    }

    async fn answer(&mut self, request: Request) -> Answered {
        let timeout_ms = request.timeout_ms.map(Duration::from_millis);
        let patience = timeout_ms.unwrap_or(SERVICE_PATIENCE);
        self.cx.check_fence()?;
        match request.op {
            Op::Get { .. } | Op::Range { .. } | Op::Leader { .. } => {
                self.cx.look(request.op, patience).await
            }
            Op::Watch { start, end, from } => self.watch(start, end, from, patience).await,
            Op::Lock { name, wait: true } => self.wait_for(Awaited::Lock(name), timeout_ms).await,
            Op::Campaign { name, value } => {
                self.wait_for(Awaited::Election(name, value), timeout_ms).await
            }
            Op::Barrier { name, parties } => {
                self.wait_for(Awaited::Barrier(name, parties), timeout_ms).await
            }
            Op::Listen { group } => self.listen(group, patience).await,
            Op::Cast { group, bytes } => self.cast(group, bytes, patience).await,
            op => self.change(op, patience).await,
        }
    }

    /// The session, opened when it is first needed.
    async fn session(&mut self, patience: Duration) -> std::result::Result<Session, Trouble> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        let opened = timeout(patience, Session::open(&self.cx.group, SERVICE_TTL)).await;
        let session = self.cx.explain(opened.unwrap_or(Err(Unavailable.into())))?;
        self.session = Some(session.clone());
        Ok(session)
    }

    /// Has a command carried out.
    async fn run(
        &mut self,
        command: Command,
        patience: Duration,
    ) -> std::result::Result<Done, Trouble> {
        let until = Instant::now() + patience;
        let session = self.session(patience).await?;
        let done = tokio::time::timeout_at(until, session.run(command)).await;
        self.cx.explain(done.unwrap_or(Err(Unavailable.into())))
    }

    async fn change(&mut self, op: Op, patience: Duration) -> Answered {
        let command = match op {
            Op::Put { key, value, lease } => {
                let lease = self.lease(lease, patience).await?;
                Command::Put { key: key.0, value: value.0, lease }
            }
            Op::Delete { key } => Command::Delete { key: key.0 },
            Op::Swap { key, expected, value, lease } => {
                let lease = self.lease(lease, patience).await?;
                let value = value.map(|value| value.0);
                Command::Swap { key: key.0, expected, value, lease }
            }
            Op::Lock { name, .. } => Command::Lock { name, wait: false },
            Op::Unlock { name } => Command::Unlock { name },
            Op::Resign { name } => Command::Resign { name },
            Op::Leave { group } => {
                self.joined.retain(|joined| *joined != group);
                Command::Leave { group }
            }
            // `answer` deals with them.
            _ => return Ok(Reply::Done),
        };
        Ok(match self.run(command, patience).await? {
            Done::Changed { revision, found } => Reply::Changed { revision, found },
            Done::Locked { fence } => Reply::Locked { token: fence },
            _ => Reply::Done,
        })
    }

    async fn lease(
        &mut self,
        lease: Lease,
        patience: Duration,
    ) -> std::result::Result<Option<ClientId>, Trouble> {
        match lease {
            Lease::None => Ok(None),
            Lease::Connection => Ok(Some(self.session(patience).await?.client())),
            Lease::After(ttl) => {
                let granted = timeout(patience, Session::grant(&self.cx.group, ttl)).await;
                self.cx.explain(granted.unwrap_or(Err(Unavailable.into()))).map(Some)
            }
        }
    }

    /// Waits for something that depends on others, also while the group has no majority.
    async fn wait_for(&mut self, what: Awaited, limit: Option<Duration>) -> Answered {
        let until = limit.map(|limit| Instant::now() + limit);
        let session = self.session(limit.unwrap_or(SERVICE_PATIENCE)).await?;
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            taken = what.take(&session) => return self.cx.explain(taken),
            () = session.lost() => return Ok(self.cx.lost()),
            () = over => {}
        }
        let why = self.cx.why(&what);
        // If that is not heard, the end of the session does it.
        timeout(SERVICE_TIDY, session.run(what.give_up())).await.ok();
        Err(Trouble::Failed(Failure::Timeout, format!("gave up: {why}")))
    }

    async fn watch(
        &mut self,
        start: Text,
        end: Option<Text>,
        from: Option<u64>,
        patience: Duration,
    ) -> Answered {
        let (start, end) = (start.0, end.map(|end| end.0));
        let mut from = match from {
            Some(from) => from.max(1),
            None => {
                let revision = self.cx.group.read(State::revision, patience).await;
                self.cx.explain(revision.map_err(Refused::from))? + 1
            }
        };
        self.say(&Reply::Watching { from }).await?;
        loop {
            let found =
                self.cx.group.wait(|state| match state.changes(&start, end.as_deref(), from) {
                    Ok(changes) => {
                        from = changes.next;
                        (!changes.events.is_empty()).then_some(Ok(changes.events))
                    }
                    Err(first) => Some(Err(first)),
                });
            let events = found.await.map_err(|first| {
                let why = format!("changes are remembered from revision {first} on only");
                Trouble::Failed(Failure::Forgotten(first), why)
            })?;
            let changes = events.into_iter().map(|event| Change {
                revision: event.revision,
                key: Text(event.key),
                value: event.value.map(Text),
            });
            self.say(&Reply::Changes { changes: changes.collect() }).await?;
        }
    }

    async fn join(
        &mut self,
        group: &str,
        patience: Duration,
    ) -> std::result::Result<(Session, u64), Trouble> {
        let joined = self.run(Command::Join { group: group.to_owned() }, patience).await?;
        let session = self.session(patience).await?;
        let view = if let Done::Joined { view } = joined { view } else { 0 };
        Ok((session, view))
    }

    async fn listen(&mut self, group: String, patience: Duration) -> Answered {
        let (session, view) = self.join(&group, patience).await?;
        let member = session.client();
        self.say(&Reply::Joined { member: member.0, view }).await?;
        let mut after = 0;
        loop {
            let delivery = tokio::select! {
                delivery = session.receive(&group, after) => self.cx.explain(delivery)?,
                () = session.lost() => return Ok(self.cx.lost()),
            };
            after = delivery.number();
            let (number, item) = match delivery {
                // What a joiner is given is the view that it begins with.
                Delivery::State { number, bytes } => (
                    number,
                    Item::View { members: serde_json::from_slice(&bytes).unwrap_or_default() },
                ),
                Delivery::Item { number, item: state::Item::Message { from, bytes } } => {
                    (number, Item::Message { from: from.0, bytes: Text(bytes) })
                }
                Delivery::Item { number, item: state::Item::View(view) } => {
                    let members = view.members.iter().map(|member| member.client.0);
                    let members: Vec<u64> = members.collect();
                    if view.donor() == Some(member) {
                        let bytes = serde_json::to_vec(&members).unwrap_or_default();
                        let give = Command::GiveState { group: group.clone(), view: number, bytes };
                        self.run(give, SERVICE_PATIENCE).await?;
                    }
                    (number, Item::View { members })
                }
            };
            self.say(&Reply::Item { number, item }).await?;
            let acknowledged = session.acknowledge(&group, after).await;
            self.cx.explain(acknowledged)?;
        }
    }

    async fn cast(&mut self, group: String, bytes: Text, patience: Duration) -> Answered {
        if !self.joined.contains(&group) {
            self.join(&group, patience).await?;
            self.joined.push(group.clone());
        }
        let cast = Command::Cast { group: group.clone(), bytes: bytes.0 };
        let sent = self.run(cast, patience).await?;
        let Done::Sent { number } = sent else { return Ok(Reply::Done) };
        Ok(Reply::Sent { number })
    }
}

/// How long tidying up may take; the end of the session does it otherwise.
const SERVICE_TIDY: Duration = Duration::from_secs(1);

async fn say(writer: &mut OwnedWriteHalf, reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let written = timeout(SERVICE_WRITE_MAX, writer.write_all(&line)).await;
    written.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// What somebody waits for.
enum Awaited {
    Lock(String),
    Election(String, Text),
    Barrier(String, u32),
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

impl Context {
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
                Refused::Refused(Refusal::Taken) => Failure::Taken,
                Refused::Refused(Refusal::Revision { revision }) => Failure::Revision(*revision),
                Refused::Refused(_) => Failure::Refused,
            };
            let trouble = matches!(error, Refused::Unavailable(_)).then(|| self.trouble());
            let why = trouble.flatten().unwrap_or_else(|| error.to_string());
            Trouble::Failed(failure, why)
        })
    }

    async fn look(&self, op: Op, patience: Duration) -> Answered {
        let look = |state: &State| match &op {
            Op::Get { key } => {
                let found = state.get(&key.0).cloned();
                Reply::Value { entry: found.map(|found| entry(key.0.clone(), found)) }
            }
            Op::Range { start, end, limit } => {
                let end = end.as_ref().map(|end| &end.0[..]);
                let range = state.range(&start.0, end, *limit);
                let entries = range.entries.into_iter().map(|(key, found)| entry(key, found));
                let (revision, more) = (range.revision, range.more);
                Reply::Range { revision, entries: entries.collect(), more }
            }
            Op::Leader { name } => {
                let leader = state.leader(name);
                let leader = leader.map(|one| (one.token, Text(one.value), one.client.0));
                Reply::Leader { leader }
            }
            _ => Reply::Done,
        };
        let read = self.group.read(look, patience).await;
        self.explain(read.map_err(Refused::from))
    }

    /// What somebody waits for, for people.
    fn why(&self, what: &Awaited) -> String {
        if let Some(trouble) = self.trouble() {
            return trouble;
        }
        let line = |of: &str, name: &str, holder: Option<state::Holder>| match holder {
            Some(holder) => {
                let (client, count) = (holder.client.0, holder.waiting);
                format!("{of} {name} is held by session {client}, {count} waiting")
            }
            None => format!("{of} {name}"),
        };
        match what {
            Awaited::Lock(name) => {
                line("lock", name, self.group.look(|state| state.lock_holder(name)))
            }
            Awaited::Election(name, _) => {
                line("leadership of", name, self.group.look(|state| state.leader(name)))
            }
            Awaited::Barrier(name, _) => format!("others are not at barrier {name} yet"),
        }
    }
}

fn entry(key: Vec<u8>, found: state::Entry) -> Entry {
    let state::Entry { value, created, modified, version, lease } = found;
    let lease = lease.map(|client| client.0);
    Entry { key: Text(key), value: Text(value), created, modified, version, lease }
}
