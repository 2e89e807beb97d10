//! The services of the system group for the programs of a DC: keys and values, leases, locks, elections, barriers, and
//! totally ordered multicast with views.
//!
//! A majority of the cluster's nodes agrees on each change, so what was answered holds when any node dies. Keys and names are
//! the DC's own: no program of another DC, nor the system, shares them. A [`Services`] is a session: what it holds (locks,
//! leaderships, places at barriers, memberships, keys leased to it) ends when it is dropped, when its process dies, or when
//! its node has had no contact to the majority for 3 s ([`Ended::Lost`]).
//!
//! What the calls mean follows etcd (keys, revisions, leases, elections), Chubby (locks with fencing tokens) and the
//! Spread toolkit of the prototype (groups with views; here safe delivery, and one component only).

use crate::bound::default_socket;
use m3ipc::connection::Connection;
use m3ipc::door::{Ask, kind};
use m3ipc::{DcId, IpcError, NodeId};
use services::limits::{OPEN_MAX, PATIENCE};
use services::{Client, Op, Reply};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

pub use services::{Change, Ended, Entry, Failure, Item, Lease, Text};

/// How long dvkd looks for an answer to a request that waits for nobody (`SERVICE_PATIENCE` there).
const ANSWER: Duration = Duration::from_secs(10);

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// There is no dvkd, or it does not let this process in: [`IpcError::NotBound`], [`IpcError::Denied`] (it lives in
    /// another DC), [`IpcError::Protocol`] (what it says is not understood).
    Door(IpcError),
    /// It was refused or not reached, as told.
    Failed(Failure, String),
    /// The session is over: what it held may be somebody else's.
    Ended(Ended),
}

impl GroupError {
    /// What has failed, if the session goes on.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            GroupError::Failed(failure, _) => Some(*failure),
            GroupError::Door(_) | GroupError::Ended(_) => None,
        }
    }
}

impl std::fmt::Display for GroupError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GroupError::Door(error) => f.write_str(match error {
                IpcError::NotBound => "there is no dvkd at the door, or it is of another version",
                IpcError::Denied => "this process lives in another container",
                IpcError::Exhausted => "the door has too many connections",
                _ => "what the door says is not understood; is it another version?",
            }),
            GroupError::Failed(Failure::Unavailable, why) => {
                write!(f, "{why}; what was asked may have happened")
            }
            GroupError::Failed(_, why) => f.write_str(why),
            GroupError::Ended(ended) => ended.fmt(f),
        }
    }
}

impl std::error::Error for GroupError {}

/// What the services answer.
pub type Result<T> = std::result::Result<T, GroupError>;

/// A session of this process with the system group, as a program of its DC. Threads may share it, 32 of them may wait at a
/// time; further ones wait for their turn. A forked child has no part in it, and must not use it.
///
/// Timeouts: `None` waits for ever. They are for others: the group has its time to answer besides (milliseconds; a second
/// while it elects a leader), so with no time at all one gets what is free or there. Requests that wait for nobody end after
/// 10 s at most with [`Failure::Unavailable`]. Signals do not interrupt a wait.
#[derive(Debug)]
pub struct Services {
    client: Client,
    dc: DcId,
    node: NodeId,
}

/// Keys in order, as of `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub revision: u64,
    pub entries: Vec<Entry>,
    /// There are more behind the last.
    pub more: bool,
}

/// Who leads an election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Greater than that of every earlier leader.
    pub epoch: u64,
    /// What it says of itself.
    pub value: Vec<u8>,
    pub session: u64,
}

impl Services {
    /// Opens a session at the door `socket` of a DC; without one, where `DVS_SOCKET` says or where containers have it.
    ///
    /// # Errors
    /// [`GroupError::Door`]; [`Failure::Unavailable`]: the node is alone, or not in the group yet, or dvkd does not answer for
    /// 10 s; [`Failure::Limit`]: the DC has 256 on this node already; [`Failure::Refused`]: dvkd is of another version, as told.
    pub fn open(socket: Option<&Path>) -> Result<Services> {
        let socket = socket.map_or_else(default_socket, Path::to_path_buf);
        Services::open_within(&socket, PATIENCE)
    }

    fn open_within(socket: &Path, patience: Duration) -> Result<Services> {
        let connection =
            Connection::connect(socket.as_os_str().as_bytes()).map_err(GroupError::Door)?;
        let hello = Ask::hello(kind::SERVICES, services::VERSION, 0);
        let welcome = connection.hello_within(hello, patience).map_err(|error| match error {
            IpcError::TimedOut => silent(),
            error => GroupError::Door(error),
        })?;
        let node = u16::try_from(welcome.node).map_err(|_| GroupError::Door(IpcError::Protocol))?;
        let client = Client::new(connection.into());
        let opened = Services { client, dc: DcId(welcome.dc), node: NodeId(node) };
        match opened.wait(0, Some(Instant::now() + patience))? {
            Reply::Ready => Ok(opened),
            _ => Err(broken()),
        }
    }

    /// The DC whose keys and names these are.
    pub fn dc(&self) -> DcId {
        self.dc
    }

    /// The node whose dvkd is asked.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The value of a key, as of now in the whole cluster.
    ///
    /// # Errors
    /// [`Failure::Unavailable`], [`Failure::Fenced`], as for all that follow; [`Failure::Limit`]: a key has 1 024 bytes at
    /// most.
    pub fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        match self.ask(Op::Get { key: text(key) })? {
            Reply::Value { entry } => Ok(entry),
            _ => Err(broken()),
        }
    }

    /// Stores a value of 32 KiB at most. Returns the revision: the number of the DC's changes of keys, of which this is
    /// the last.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::NotHeld`]: the lease has ended; [`Failure::Limit`]: the DC has 8 192 keys or 2 MiB.
    pub fn put(&self, key: &[u8], value: &[u8], lease: Lease) -> Result<u64> {
        let op = Op::Put { key: text(key), value: text(value), lease };
        self.changed(op).map(|(revision, _)| revision)
    }

    /// Deletes a key. Returns whether it was there.
    ///
    /// # Errors
    /// As [`Services::get`].
    pub fn delete(&self, key: &[u8]) -> Result<bool> {
        self.changed(Op::Delete { key: text(key) }).map(|(_, found)| found)
    }

    /// Stores a value, or deletes the key if there is none, if the key's last change was at the revision `expected`; 0:
    /// if there is no such key. Returns the revision.
    ///
    /// # Errors
    /// [`Failure::Revision`] with that of the key's last change; as [`Services::put`].
    pub fn compare_and_swap(
        &self,
        key: &[u8],
        expected: u64,
        value: Option<&[u8]>,
        lease: Lease,
    ) -> Result<u64> {
        let op = Op::Swap { key: text(key), expected, value: value.map(text), lease };
        self.changed(op).map(|(revision, _)| revision)
    }

    /// Keys from `start` up to and without `end` (to the DC's last without one), `limit` and 1 024 at most, and 64 KiB.
    ///
    /// # Errors
    /// As [`Services::get`].
    pub fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Range> {
        let op = Op::Range { start: text(start), end: end.map(text), limit };
        match self.ask(op)? {
            Reply::Range { revision, entries, more } => Ok(Range { revision, entries, more }),
            _ => Err(broken()),
        }
    }

    /// Watches keys from `start` up to and without `end` (to the DC's last without one): all changes from revision
    /// `from` on; without it, those from now on.
    ///
    /// # Errors
    /// As [`Services::get`].
    pub fn watch(&self, start: &[u8], end: Option<&[u8]>, from: Option<u64>) -> Result<Watch<'_>> {
        let (start, end) = (text(start), end.map(text));
        let next = match from {
            Some(from) => from,
            None => self.changes(&start, end.as_ref(), None, None)?.1,
        };
        Ok(Watch { services: self, start, end, next })
    }

    fn changes(
        &self,
        start: &Text,
        end: Option<&Text>,
        from: Option<u64>,
        timeout: Option<Duration>,
    ) -> Result<(Vec<Change>, u64)> {
        let op = Op::Watch { start: start.clone(), end: end.cloned(), from };
        let timeout = if from.is_none() { Some(ANSWER) } else { timeout };
        match self.ask_for(op, timeout)? {
            Reply::Changes { changes, next } => Ok((changes, next)),
            _ => Err(broken()),
        }
    }

    /// The changes from revision `from` on of keys from `start` up to and without `end`, once there are any, none if the time
    /// is over before; and the revision to ask from for those that follow. Without `from`: no changes, and the revision that
    /// follows now.
    ///
    /// # Errors
    /// As [`Watch::next`], but for the timeout.
    pub fn changes_from(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        from: Option<u64>,
        timeout: Option<Duration>,
    ) -> Result<(Vec<Change>, u64)> {
        self.changes(&text(start), end.map(text).as_ref(), from, timeout)
    }

    /// A lease of 100 ms to 24 h, for [`Lease::Held`]: keys that have it are deleted when it ends. It does not end
    /// with the session, but nobody else can renew it, end it, or have keys end with it.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::Limit`]: the time, or the DC has 1 024 leases and sessions.
    pub fn grant(&self, time: Duration) -> Result<u64> {
        match self.ask(Op::Grant { ttl_ms: millis(time) })? {
            Reply::Leased { lease } => Ok(lease),
            _ => Err(broken()),
        }
    }

    /// Gives a lease its time anew.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::NotHeld`]: it has ended, or is another session's.
    pub fn renew(&self, lease: u64) -> Result<()> {
        self.done(Op::Renew { lease, ends: false })
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// As [`Services::renew`].
    pub fn revoke(&self, lease: u64) -> Result<()> {
        self.done(Op::Renew { lease, ends: true })
    }

    /// Takes a lock, for which it waits its turn, `timeout` at most; zero: only if it is free. Returns the fencing token: greater
    /// than that of every earlier holder. Whoever guards something with the lock refuses smaller ones, as a process that
    /// was stopped for long may act although its session is over. A session has a lock once, whichever of its threads asked.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::Taken`] (zero only; or another thread asks for it), [`Failure::Timeout`],
    /// [`Failure::Limit`], [`Failure::Refused`]: another thread waits for it. After none of them has the session it, unless it had
    /// it before: if that cannot be brought about the session ends ([`Ended::Lost`]).
    pub fn lock(&self, name: &str, timeout: Option<Duration>) -> Result<u64> {
        let wait = timeout != Some(Duration::ZERO);
        let timeout = if wait { timeout } else { Some(ANSWER) };
        match self.ask_for(Op::Lock { name: name.into(), wait }, timeout)? {
            Reply::Locked { token } => Ok(token),
            _ => Err(broken()),
        }
    }

    /// Releases a lock.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::NotHeld`].
    pub fn unlock(&self, name: &str) -> Result<()> {
        self.done(Op::Unlock { name: name.into() })
    }

    /// Becomes a candidate that says `value` of itself, and waits until it leads. Returns the epoch: greater than that of
    /// every earlier leader.
    ///
    /// # Errors
    /// As [`Services::lock`], but for [`Failure::Taken`]; [`Failure::Timeout`]: it is no candidate any more.
    pub fn campaign(&self, name: &str, value: &[u8], timeout: Option<Duration>) -> Result<u64> {
        let op = Op::Campaign { name: name.into(), value: text(value) };
        match self.ask_for(op, timeout)? {
            Reply::Elected { epoch } => Ok(epoch),
            _ => Err(broken()),
        }
    }

    /// Ends a leadership or candidacy.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::NotHeld`].
    pub fn resign(&self, name: &str) -> Result<()> {
        self.done(Op::Resign { name: name.into() })
    }

    /// Who leads now.
    ///
    /// # Errors
    /// As [`Services::get`].
    pub fn leader(&self, name: &str) -> Result<Option<Leader>> {
        match self.ask(Op::Leader { name: name.into() })? {
            Reply::Leader { leader } => {
                Ok(leader.map(|(epoch, value, session)| Leader { epoch, value: value.0, session }))
            }
            _ => Err(broken()),
        }
    }

    /// Waits at a barrier until `parties` sessions are there; all of them then go on.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::Broken`]: one of them has died or given up, and nobody passes; [`Failure::Timeout`];
    /// [`Failure::Refused`]: others wait there with another number.
    pub fn barrier(&self, name: &str, parties: u32, timeout: Option<Duration>) -> Result<()> {
        match self.ask_for(Op::Barrier { name: name.into(), parties }, timeout)? {
            Reply::Passed => Ok(()),
            _ => Err(broken()),
        }
    }

    /// Joins a group. The session is one member of it, whichever of its threads joined.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::Limit`]: the DC has 64 groups, the group 256 members, or there is no room as members do not
    /// take what they have been sent.
    pub fn join(&self, group: &str) -> Result<Member<'_>> {
        let (number, _) = self.join_as(group)?;
        Ok(Member { services: self, group: group.into(), number, after: 0 })
    }

    pub(crate) fn join_as(&self, group: &str) -> Result<(u64, u64)> {
        match self.ask(Op::Join { group: group.into() })? {
            Reply::Joined { member, view } => Ok((member, view)),
            _ => Err(broken()),
        }
    }

    pub(crate) fn cast(&self, group: &str, bytes: &[u8]) -> Result<u64> {
        match self.ask(Op::Cast { group: group.into(), bytes: text(bytes) })? {
            Reply::Sent { number } => Ok(number),
            _ => Err(broken()),
        }
    }

    pub(crate) fn receive(
        &self,
        group: &str,
        after: u64,
        timeout: Option<Duration>,
    ) -> Result<(u64, Item)> {
        match self.ask_for(Op::Receive { group: group.into(), after }, timeout)? {
            Reply::Item { number, item } => Ok((number, item)),
            _ => Err(broken()),
        }
    }

    pub(crate) fn give(&self, group: &str, view: u64, state: &[u8]) -> Result<()> {
        self.done(Op::Give { group: group.into(), view, state: text(state) })
    }

    pub(crate) fn leave(&self, group: &str) -> Result<()> {
        self.done(Op::Leave { group: group.into() })
    }

    fn done(&self, op: Op) -> Result<()> {
        match self.ask(op)? {
            Reply::Done => Ok(()),
            _ => Err(broken()),
        }
    }

    fn changed(&self, op: Op) -> Result<(u64, bool)> {
        match self.ask(op)? {
            Reply::Changed { revision, found } => Ok((revision, found)),
            _ => Err(broken()),
        }
    }

    /// Asks for something that waits for nobody.
    fn ask(&self, op: Op) -> Result<Reply> {
        self.ask_for(op, Some(ANSWER))
    }

    fn ask_for(&self, op: Op, timeout: Option<Duration>) -> Result<Reply> {
        // dvkd keeps the time; if it is stopped, this does.
        let until = timeout
            .and_then(|timeout| Instant::now().checked_add(timeout.saturating_add(PATIENCE)));
        let posted = self.client.post(op, timeout.map(millis), until);
        let Some(id) = posted.map_err(GroupError::Ended)? else {
            let why = format!("{OPEN_MAX} requests of this session are open already");
            return Err(GroupError::Failed(Failure::Limit, why));
        };
        let answer = self.wait(id, until);
        if answer.is_err() {
            self.client.forget(id);
        }
        answer
    }

    fn wait(&self, id: u64, until: Option<Instant>) -> Result<Reply> {
        loop {
            return match self.client.next(id, until).map_err(GroupError::Ended)? {
                Some(Reply::Waiting { .. }) => continue,
                Some(Reply::Failed { failure, why }) => Err(GroupError::Failed(failure, why)),
                Some(Reply::Lost { why }) => Err(GroupError::Ended(Ended::Lost(why))),
                Some(reply) => Ok(reply),
                None => Err(silent()),
            };
        }
    }
}

/// A watch of keys. Nothing is queued for it: who comes too late is told so.
#[derive(Debug)]
pub struct Watch<'a> {
    services: &'a Services,
    start: Text,
    end: Option<Text>,
    next: u64,
}

impl Watch<'_> {
    /// The next changes, in order; waits until there are some.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::Timeout`]; [`Failure::Forgotten`]: more than the last 1 024 changes of the DC (or 512 KiB)
    /// were not asked for; read the keys anew, and watch from the revision that [`Services::range`] says, and one.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Vec<Change>> {
        let from = Some(self.next);
        let (changes, next) =
            self.services.changes(&self.start, self.end.as_ref(), from, timeout)?;
        // So far nothing of the kind has changed: others may, without an end, and be forgotten.
        self.next = next;
        if changes.is_empty() {
            return Err(GroupError::Failed(Failure::Timeout, "nothing has changed".into()));
        }
        Ok(changes)
    }

    /// The first revision that [`Watch::next`] looks at: where to go on in another session, when this one is lost.
    pub fn revision(&self) -> u64 {
        self.next
    }
}

/// A member of a group: gets all messages and views, in the one order in which all members get them.
///
/// The first thing that a joiner gets is the group's [`Item::State`], unless it is the first member (`fresh` in its first
/// view). A member whose view says `gives` gives it: [`Member::give`]. One that does not take what is sent, or give
/// what it is to give, for 10 s while half of the group's room (4 096 items, 1 MiB) is full is taken for dead, and its session
/// ends.
#[derive(Debug)]
pub struct Member<'a> {
    services: &'a Services,
    group: String,
    number: u64,
    after: u64,
}

impl Member<'_> {
    /// Its number in views.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next item and its number. That says also that everything before has been dealt with.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::Timeout`]; [`Failure::NotHeld`]: it has left; [`Failure::Refused`]: as told.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<(u64, Item)> {
        let (number, item) = self.services.receive(&self.group, self.after, timeout)?;
        self.after = number;
        Ok((number, item))
    }

    /// Sends 32 KiB at most to all members, itself too. Returns the message's number in the order. The message is
    /// safe: it gets to all members that live, whichever nodes die.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::NotHeld`]: it has left; [`Failure::Limit`]: members have not taken 4 096 items yet,
    /// or those of the DC's groups 1 MiB.
    pub fn cast(&self, bytes: &[u8]) -> Result<u64> {
        self.services.cast(&self.group, bytes)
    }

    /// Gives the state, 64 KiB at most, that this member has after the view with the number `view` to those who have none.
    ///
    /// # Errors
    /// As [`Services::get`]; [`Failure::NotHeld`]: it has left, or has no state itself.
    pub fn give(&self, view: u64, state: &[u8]) -> Result<()> {
        self.services.give(&self.group, view, state)
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// As [`Services::get`]. After [`Failure::Unavailable`] it may be a member still: join again, or end the session.
    pub fn leave(self) -> Result<()> {
        self.services.leave(&self.group)
    }
}

fn text(bytes: &[u8]) -> Text {
    Text(bytes.to_vec())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn silent() -> GroupError {
    GroupError::Failed(Failure::Unavailable, "dvkd does not answer".into())
}

fn broken() -> GroupError {
    GroupError::Ended(Ended::Broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

    #[test]
    fn a_daemon_that_is_stopped_is_not_waited_for_without_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door");
        // As a process that is stopped: the system takes connections and records for it.
        let door = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        bind(&door, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&door, 1).unwrap();
        let opened = Services::open_within(&path, Duration::from_millis(50));
        assert_eq!(opened.unwrap_err(), silent());
    }
}
