//! Leases: what file agents may remember, until they are told to forget it.
//!
//! An agent that has a *session* gets a lease on an inode with each answer that tells of it: it may answer from memory what it
//! was told of the inode's attributes, and, of a directory, of its names and of those it has not, and who may search it. Before
//! an inode changes for anybody else, its leases are recalled: the changing call is put off, unchanged, until every agent has
//! forgotten ([`VfsServer::claim`]). An agent's own changes recall nothing of its own; it knows of them. Only access times
//! change at once, and are told late.
//!
//! A session lasts [`LEASE`] from the last call of its agent. An agent counts from when it sent that call, the server from when it
//! came, so the agent stops first. Who has not called in time, because it is stopped, cut off or dead, is waited for no
//! longer. So one that fails delays others by that much, once.
//!
//! Agents with a session are in the store (`H`), their leases are not: after a crash of the server every agent that was there may
//! hold any lease, and changes wait until it has begun a new session, or for [`LEASE`].
//!
//! An inode over which agents had to forget is *contested*: nobody gets a lease on it for a while, twice as long each time.

use crate::VfsServer;
use crate::answer::{Outcome, RESTART, Result, err};
use crate::keys::{self, Inode, mark};
use crate::limits::{
    AGENTS_MAX, CONTESTED_FIRST, CONTESTED_LONGEST, CONTESTED_MAX, LEASE, LEASES_PER_AGENT_MAX,
    POLL_TIME, PUT_OFF_BYTES_MAX, PUT_OFF_MAX, RECALLS_PER_ANSWER,
};
use calls::answer;
use calls::vfs::{FAREWELL, Leased, Recalled, Recalls, attributes, search};
use dvk::server::{Call, Context, Gone, Nanos};
use dvk::store::Store;
use m3ipc::errno::numbers::{ENOLCK, EPERM};
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message};
use std::collections::{BTreeMap, BTreeSet};

impl VfsServer {
    /// A file agent says what it has forgotten, and waits for what it is to forget next.
    pub(crate) fn recalls(
        &mut self,
        row: Recalls,
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Outcome> {
        // An agent speaks for itself as process 0, which no program is: else any could make others wait.
        if (call.cred.pid, call.cred.uid) != (0, 0) {
            return err(EPERM);
        }
        let source = call.id.source;
        let known = self.leases.agents.get(&source).map(|agent| agent.session);
        if row.session == 0 {
            return self.begin_session(call.id, cx);
        }
        if known != Some(row.session) {
            return Ok(told(Recalled::default(), &[]));
        }
        if row.forgotten == FAREWELL {
            self.end_session(source, cx);
            return Ok(told(Recalled::default(), &[]));
        }
        let Some(agent) = self.leases.agents.get_mut(&source) else { return err(EPERM) };
        agent.until = cx.now.saturating_add(LEASE);
        agent.begun = cx.now;
        let before = agent.poll.replace(call.id).filter(|before| *before != call.id);
        if let Some(before) = before {
            cx.answer(before, answer::<Recalls>(&Recalled::default()), []);
        }
        if agent.is_full() {
            // It is to forget everything, and to begin again; until it has, it is waited for as before.
            agent.poll = None;
            return Ok(told(Recalled::default(), &[]));
        }
        if row.forgotten == agent.batch {
            for ino in std::mem::take(&mut agent.telling) {
                agent.held.remove(&ino);
                release(&mut self.leases.of_inode, ino, source);
            }
        }
        self.leases.tell(source, cx);
        self.take_up(cx);
        Ok(Outcome::Kept)
    }

    fn begin_session(&mut self, id: CallId, cx: &mut Context<'_>) -> Result<Outcome> {
        let source = id.source;
        if self.leases.agents.len() >= AGENTS_MAX && !self.leases.agents.contains_key(&source) {
            return err(ENOLCK);
        }
        self.end_session(source, cx);
        // Never the number of an earlier one of this agent: it would not notice that it has been given up.
        let session = cx.entropy | 1;
        let agent = Agent { session, until: cx.now.saturating_add(LEASE), ..Agent::default() };
        self.leases.agents.insert(source, agent);
        cx.store.put(&keys::agent(source), &[]);
        let lease = u32::try_from(LEASE / 1_000_000).unwrap_or(u32::MAX);
        Ok(told(Recalled { session, batch: 0, lease }, &[]))
    }

    /// An agent has forgotten everything, or is waited for no longer.
    fn end_session(&mut self, source: Endpoint, cx: &mut Context<'_>) {
        let Some(agent) = self.leases.agents.remove(&source) else { return };
        self.leases.unknown.remove(&source);
        cx.store.remove(&keys::agent(source));
        for ino in agent.held.keys() {
            release(&mut self.leases.of_inode, *ino, source);
        }
        if let Some(poll) = agent.poll {
            cx.answer(poll, answer::<Recalls>(&Recalled::default()), []);
        }
        self.take_up(cx);
    }

    /// What the caller of `call` may remember of `inode`, whose attributes are in the answer: of [`attributes`].
    pub(crate) fn lease(&mut self, inode: &Inode, call: &Call<'_>, cx: &Context<'_>) -> u8 {
        if !self.leases.lease(inode.ino, call.id.source, cx.now) {
            return 0;
        }
        let is_readable = inode.mode & 0o444 == 0o444 && inode.marks & mark::ACL_ACCESS == 0;
        attributes::KEPT | if is_readable { attributes::READABLE } else { 0 }
    }

    /// Who may be told from the memory of the caller of `call` what is under a name in `dir`; 0: it may not remember it.
    pub(crate) fn lease_names(&mut self, dir: &Inode, call: &Call<'_>, cx: &Context<'_>) -> u8 {
        if !self.leases.lease(dir.ino, call.id.source, cx.now) {
            return 0;
        }
        // Whoever a list speaks of asks the server.
        let is_open = dir.mode & 0o111 == 0o111 && dir.marks & mark::ACL_ACCESS == 0;
        let owner = if dir.mode & 0o100 == 0 { 0 } else { search::OWNER };
        search::SUPERUSER | owner | if is_open { search::EVERYBODY } else { 0 }
    }

    /// What the caller of `call`, which has just made something of a name in directory `dir`, may remember of it, and of the
    /// attributes of `ino` (0: none), which are in the answer.
    pub(crate) fn lease_after(
        &mut self,
        dir: u64,
        ino: u64,
        call: &Call<'_>,
        cx: &Context<'_>,
    ) -> Leased {
        if !self.leases.agents.contains_key(&call.id.source) {
            return Leased::default();
        }
        let Ok(dir) = self.inode(dir, cx) else { return Leased::default() };
        let name = self.lease_names(&dir, call, cx);
        // Whoever may not remember the name has no use for its attributes before it asks for them.
        let inode = if name == 0 || ino == 0 { None } else { self.inode(ino, cx).ok() };
        let attr = inode.map_or(0, |inode| self.lease(&inode, call, cx));
        Leased { name, attr, owner: dir.uid }
    }

    /// Inode `ino` is no more, and the caller of `call` has forgotten it.
    pub(crate) fn let_go(&mut self, ino: u64, call: &Call<'_>) {
        let source = call.id.source;
        if let Some(agent) = self.leases.agents.get_mut(&source)
            && agent.held.get(&ino) == Some(&false)
        {
            agent.held.remove(&ino);
            release(&mut self.leases.of_inode, ino, source);
        }
    }

    /// To be called before the first change to any of `inodes`, when nothing but that is left to do; with each, whether the caller
    /// knows that it changes, and so has forgotten it.
    ///
    /// # Errors
    /// [`RESTART`]: somebody holds leases on some of them. `serve_call` puts the call off, and handles it anew when nobody does.
    pub(crate) fn claim(
        &mut self,
        inodes: &[(u64, bool)],
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        if self.leases.are_free(inodes, call.id.source) {
            return Ok(());
        }
        self.leases.claimed = inodes.to_vec();
        for (ino, is_forgotten) in inodes {
            self.leases.recall(*ino, call.id.source, *is_forgotten, cx);
        }
        err(RESTART)
    }

    /// Something of inode `ino` has changed that others may be told a little late, or it is no more. `knows` knows it.
    pub(crate) fn recall_late(&mut self, ino: u64, knows: Option<Endpoint>, cx: &mut Context<'_>) {
        for source in self.leases.holders(ino) {
            if Some(source) != knows {
                self.leases.recall_from(ino, source, cx);
            }
        }
    }

    /// As [`VfsServer::save`] of an inode whose access time has changed. No reader waits for others to forget it.
    pub(crate) fn save_accessed(&mut self, inode: &Inode, call: &Call<'_>, cx: &mut Context<'_>) {
        self.save(inode, cx);
        self.recall_late(inode.ino, Some(call.id.source), cx);
    }

    /// Keeps a call whose [`VfsServer::claim`] was refused.
    ///
    /// # Errors
    /// [`RESTART`]: there is no more room. The agent comes again.
    pub(crate) fn put_off(&mut self, call: &Call<'_>) -> Result<()> {
        let leases = &mut self.leases;
        let bytes = leases.bytes + call.payload.len();
        if leases.put_off.len() >= PUT_OFF_MAX || bytes > PUT_OFF_BYTES_MAX {
            return err(RESTART);
        }
        leases.bytes = bytes;
        leases.next += 1;
        let put_off = PutOff {
            id: call.id,
            cred: *call.cred,
            message: *call.message,
            payload: call.payload.to_vec(),
            inodes: std::mem::take(&mut leases.claimed),
        };
        for (ino, _) in &put_off.inodes {
            *leases.awaited.entry(*ino).or_default() += 1;
        }
        leases.number_of.insert(call.id, leases.next);
        leases.put_off.insert(leases.next, put_off);
        Ok(())
    }

    /// Handles those calls anew that nothing is in the way of any more, in the order they came.
    fn take_up(&mut self, cx: &mut Context<'_>) {
        let mut at = 0;
        while let Some((number, call)) = self.leases.put_off.range(at..).next() {
            at = number + 1;
            if self.leases.are_free(&call.inodes, call.id.source)
                && let Some(PutOff { id, cred, message, payload, .. }) =
                    self.leases.drop_call(at - 1)
            {
                let call = Call { id, cred: &cred, message: &message, payload: &payload };
                self.serve_call(&call, cx);
            }
        }
    }

    /// The caller of a call that is put off has been interrupted. False: it is not.
    pub(crate) fn cancel_put_off(&mut self, id: CallId, cx: &mut Context<'_>) -> bool {
        let Some(number) = self.leases.number_of.get(&id).copied() else { return false };
        if let Some(call) = self.leases.drop_call(number) {
            cx.end(id, call.message.call, IpcError::Interrupted);
        }
        true
    }

    /// An agent that is gone is waited for all the same: of what it has told its kernel, programs may still be told.
    pub(crate) fn drop_calls_of(&mut self, gone: Gone) {
        let is_gone = |source: Endpoint| match gone {
            Gone::Endpoint(endpoint) => source == endpoint,
            Gone::Node(node) => source.node() == node,
        };
        for (source, agent) in &mut self.leases.agents {
            if is_gone(*source) {
                agent.poll = None;
            }
        }
        let theirs: Vec<u64> = self
            .leases
            .number_of
            .iter()
            .filter(|(id, _)| is_gone(id.source))
            .map(|(_, number)| *number)
            .collect();
        for number in theirs {
            self.leases.drop_call(number);
        }
    }

    /// The clock's part: answers who has waited long enough for recalls, and gives up who has not called in time.
    pub(crate) fn lease_tick(&mut self, cx: &mut Context<'_>) {
        self.leases.date(cx.now);
        let late: Vec<Endpoint> = self.leases.those(|agent| agent.until <= cx.now);
        for source in late {
            self.end_session(source, cx);
        }
        for source in self.leases.those(|agent| agent.poll_ends().is_some_and(|end| end <= cx.now))
        {
            self.leases.answer_poll(source, cx);
        }
    }
}

fn told(recalled: Recalled, inodes: &[u64]) -> Outcome {
    let payload = inodes.iter().flat_map(|ino| ino.to_le_bytes()).collect();
    Outcome::Answer(answer::<Recalls>(&recalled), payload)
}

/// What an agent holds.
#[derive(Debug, Default)]
struct Agent {
    /// 0: it was there before the server was.
    session: u64,
    /// When it is given up.
    until: Nanos,
    /// Its inodes, and whether each has been recalled.
    held: BTreeMap<u64, bool>,
    /// Recalled, and not told yet.
    pending: BTreeSet<u64>,
    /// What it was told last and has not said that it has forgotten, and the number of that.
    telling: Vec<u64>,
    batch: u64,
    /// The call that waits for recalls, and since when.
    poll: Option<CallId>,
    begun: Nanos,
}

impl Agent {
    fn is_full(&self) -> bool {
        self.held.len() >= LEASES_PER_AGENT_MAX
    }

    fn poll_ends(&self) -> Option<Nanos> {
        self.poll.map(|_| self.begun.saturating_add(POLL_TIME))
    }
}

/// A call that waits until agents have forgotten what it changes.
#[derive(Debug)]
struct PutOff {
    id: CallId,
    cred: Cred,
    message: Message,
    payload: Vec<u8>,
    inodes: Vec<(u64, bool)>,
}

/// Until when nobody gets a lease, and how long that is.
#[derive(Clone, Copy, Debug)]
struct Contested {
    until: Nanos,
    pause: Nanos,
}

/// All leases, and the calls that wait for the end of some.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    agents: BTreeMap<Endpoint, Agent>,
    /// Those that were there before the server was, and may hold anything.
    unknown: BTreeSet<Endpoint>,
    /// Has their time been counted from the first moment the server has heard of?
    is_dated: bool,
    /// Who holds an inode.
    of_inode: BTreeMap<u64, Vec<Endpoint>>,
    contested: BTreeMap<u64, Contested>,
    put_off: BTreeMap<u64, PutOff>,
    number_of: BTreeMap<CallId, u64>,
    /// What they wait for, and how many do: nobody gets a lease on these.
    awaited: BTreeMap<u64, usize>,
    next: u64,
    /// Payloads of those calls.
    bytes: usize,
    /// The inodes of the claim that was refused last.
    claimed: Vec<(u64, bool)>,
}

impl Leases {
    pub(crate) fn open(store: &dyn Store) -> Leases {
        let mut leases = Leases::default();
        keys::collect(store, &keys::agents(), |key, _| {
            if let Some([endpoint]) = keys::numbers(key) {
                let endpoint = Endpoint::from_bits(endpoint);
                leases.agents.insert(endpoint, Agent::default());
                leases.unknown.insert(endpoint);
            }
        });
        leases.is_dated = leases.unknown.is_empty();
        leases
    }

    /// Counts the time of agents from before the server's start from now on.
    pub(crate) fn date(&mut self, now: Nanos) {
        if !self.is_dated {
            self.is_dated = true;
            for agent in self.agents.values_mut() {
                agent.until = now.saturating_add(LEASE);
            }
        }
    }

    /// When the clock's part is wanted next.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        let of = |agent: &Agent| agent.poll_ends().map_or(agent.until, |end| end.min(agent.until));
        self.agents.values().map(of).min()
    }

    /// Is this call among those that wait?
    pub(crate) fn is_put_off(&self, id: CallId) -> bool {
        self.number_of.contains_key(&id)
    }

    fn those(&self, is: impl Fn(&Agent) -> bool) -> Vec<Endpoint> {
        self.agents.iter().filter(|(_, agent)| is(agent)).map(|(source, _)| *source).collect()
    }

    fn lease(&mut self, ino: u64, source: Endpoint, now: Nanos) -> bool {
        let Some(agent) = self.agents.get_mut(&source) else { return false };
        if agent.session == 0 || agent.until <= now {
            return false;
        }
        match agent.held.get(&ino) {
            Some(is_recalled) => return !is_recalled,
            None if agent.is_full() || self.awaited.contains_key(&ino) => return false,
            None => {}
        }
        if let Some(contested) = self.contested.get(&ino) {
            if now < contested.until {
                return false;
            }
            if now >= contested.until.saturating_add(contested.pause) {
                self.contested.remove(&ino);
            }
        }
        agent.held.insert(ino, false);
        self.of_inode.entry(ino).or_default().push(source);
        true
    }

    /// Nobody holds any of `inodes`, or might, but `source` those that it has forgotten.
    fn are_free(&self, inodes: &[(u64, bool)], source: Endpoint) -> bool {
        inodes.iter().all(|(ino, is_forgotten)| {
            let has_forgotten = |holder: &Endpoint| *is_forgotten && *holder == source;
            self.unknown.iter().all(has_forgotten)
                && self.of_inode.get(ino).is_none_or(|holders| holders.iter().all(has_forgotten))
        })
    }

    fn holders(&self, ino: u64) -> Vec<Endpoint> {
        self.of_inode.get(&ino).cloned().unwrap_or_default()
    }

    /// Lets everybody forget inode `ino`, but `source` if it has.
    fn recall(&mut self, ino: u64, source: Endpoint, is_forgotten: bool, cx: &mut Context<'_>) {
        let mut is_contested = false;
        for holder in self.holders(ino) {
            if holder != source || !is_forgotten {
                is_contested |= self.recall_from(ino, holder, cx) && holder != source;
            }
        }
        if is_contested {
            self.contest(ino, cx.now);
        }
    }

    /// False: it has been recalled already.
    fn recall_from(&mut self, ino: u64, holder: Endpoint, cx: &mut Context<'_>) -> bool {
        let Some(agent) = self.agents.get_mut(&holder) else { return false };
        if agent.held.insert(ino, true) == Some(true) {
            return false;
        }
        agent.pending.insert(ino);
        self.tell(holder, cx);
        true
    }

    fn contest(&mut self, ino: u64, now: Nanos) {
        let pause = match self.contested.get(&ino) {
            Some(before) => (before.pause * 2).min(CONTESTED_LONGEST),
            None => CONTESTED_FIRST,
        };
        if self.contested.len() >= CONTESTED_MAX {
            self.contested.retain(|_, one| now < one.until);
        }
        if self.contested.len() < CONTESTED_MAX {
            self.contested.insert(ino, Contested { until: now.saturating_add(pause), pause });
        }
    }

    /// If there is something to be told to an agent that waits for it: tells it.
    fn tell(&mut self, source: Endpoint, cx: &mut Context<'_>) {
        let has_news = |agent: &Agent| !agent.telling.is_empty() || !agent.pending.is_empty();
        if self.agents.get(&source).is_some_and(has_news) {
            self.answer_poll(source, cx);
        }
    }

    /// Answers the call that waits for recalls, if there is one.
    fn answer_poll(&mut self, source: Endpoint, cx: &mut Context<'_>) {
        let Some(agent) = self.agents.get_mut(&source) else { return };
        let Some(poll) = agent.poll.take() else { return };
        // What has been told and not confirmed is told again.
        if agent.telling.is_empty() {
            agent.batch += 1;
            while agent.telling.len() < RECALLS_PER_ANSWER
                && let Some(ino) = agent.pending.pop_first()
            {
                agent.telling.push(ino);
            }
        }
        let lease = u32::try_from(LEASE / 1_000_000).unwrap_or(u32::MAX);
        let recalled = Recalled { session: agent.session, batch: agent.batch, lease };
        if let Outcome::Answer(message, payload) = told(recalled, &agent.telling) {
            cx.answer(poll, message, payload);
        }
    }

    /// Gives an agent leases on `count` inodes from `first` on.
    #[cfg(test)]
    pub(crate) fn fill(&mut self, source: Endpoint, first: u64, count: usize) {
        for ino in (first..).take(count) {
            assert!(self.lease(ino, source, 0));
        }
    }

    fn drop_call(&mut self, number: u64) -> Option<PutOff> {
        let call = self.put_off.remove(&number)?;
        self.number_of.remove(&call.id);
        self.bytes -= call.payload.len();
        for (ino, _) in &call.inodes {
            if let Some(count) = self.awaited.get_mut(ino) {
                *count -= 1;
                if *count == 0 {
                    self.awaited.remove(ino);
                }
            }
        }
        Some(call)
    }
}

/// `source` holds inode `ino` no more.
fn release(of_inode: &mut BTreeMap<u64, Vec<Endpoint>>, ino: u64, source: Endpoint) {
    if let Some(holders) = of_inode.get_mut(&ino) {
        holders.retain(|holder| *holder != source);
        if holders.is_empty() {
            of_inode.remove(&ino);
        }
    }
}
