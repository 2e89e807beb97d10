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
//! Pages have leases of their own (`pages`), and so have calls that wait for them; they are told and put off here.
//!
//! An inode over which agents had to forget is *contested*: nobody gets a lease on it for a while, twice as long each time.

use crate::VfsServer;
use crate::answer::{Outcome, RESTART, Result, err};
use crate::keys::{self, Inode, mark};
use crate::limits::{
    AGENTS_MAX, CONTESTED_FIRST, CONTESTED_LONGEST, CONTESTED_MAX, GIVE_BACK_TIME, LEASE,
    LEASES_PER_AGENT_MAX, POLL_TIME, PUT_OFF_BYTES_MAX, PUT_OFF_MAX, RECALLS_PER_ANSWER,
};
use crate::pages::{Own, PageClaim, Pages, is_behind};
use crate::snapshot::{is_in_snapshot, refuse_change};
use calls::answer;
use calls::vfs::{FAREWELL, Forget, Leased, Parent, Recalled, Recalls, attributes, search};
use dvk::server::{Call, Context, Gone, Nanos};
use dvk::store::Store;
use m3ipc::errno::numbers::{ENOLCK, ENOSPC, EPERM};
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message};
use rangemap::RangeSet;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
        if known == Some(0)
            && let Some(agent) = self.leases.agents.get_mut(&source)
        {
            // It was there before the server was, and is about to begin anew: perhaps it is writing pages back.
            agent.until = cx.now.saturating_add(LEASE).min(agent.latest);
        }
        if known != Some(row.session) {
            return Ok(told(Recalled::default(), &[], &[]));
        }
        if row.forgotten == FAREWELL {
            self.end_session(source, cx);
            return Ok(told(Recalled::default(), &[], &[]));
        }
        let Some(agent) = self.leases.agents.get_mut(&source) else { return err(EPERM) };
        agent.until = cx.now.saturating_add(LEASE);
        agent.begun = cx.now;
        let before = agent.poll.replace(call.id).filter(|before| *before != call.id);
        if let Some(before) = before {
            cx.answer(before, answer::<Recalls>(&Recalled::default()), []);
        }
        if agent.is_full() || self.leases.pages.is_full(source) {
            self.leases.end_if_full(source, cx);
            return Ok(Outcome::Kept);
        }
        if row.forgotten == agent.batch {
            agent.telling_pages.clear();
            for ino in std::mem::take(&mut agent.telling) {
                agent.held.remove(&ino);
                release(&mut self.leases.of_inode, ino, source);
                if let Some((fh, writer)) = self.opens.sole(ino)
                    && writer == source
                {
                    self.opens.set_sole(fh, false, cx.store);
                }
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
        // It has written back what it had put off.
        for ino in self.opens.soles_of(source) {
            self.end_sole(ino, cx);
        }
        // Never the number of an earlier one of this agent: it would not notice that it has been given up.
        let session = cx.entropy | 1;
        let agent = Agent { session, until: cx.now.saturating_add(LEASE), ..Agent::default() };
        self.leases.agents.insert(source, agent);
        cx.store.put(&keys::agent(source), &[]);
        let lease = u32::try_from(LEASE / 1_000_000).unwrap_or(u32::MAX);
        Ok(told(Recalled { session, batch: 0, lease }, &[], &[]))
    }

    /// An agent has forgotten everything, or is waited for no longer.
    fn end_session(&mut self, source: Endpoint, cx: &mut Context<'_>) {
        let Some(agent) = self.leases.agents.remove(&source) else { return };
        self.leases.unknown.remove(&source);
        cx.store.remove(&keys::agent(source));
        for ino in agent.held.keys() {
            release(&mut self.leases.of_inode, *ino, source);
        }
        self.drop_all_pages(source, cx);
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
        attributes::KEPT
            | if is_readable { attributes::READABLE } else { 0 }
            | if inode.is_plain() { attributes::PLAIN } else { 0 }
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

    /// The [`Parent`] of a name that has just been changed and may be remembered if `leased`.
    pub(crate) fn parent_after(
        &mut self,
        dir: u64,
        leased: u8,
        call: &Call<'_>,
        cx: &Context<'_>,
    ) -> Vec<u8> {
        let dir = if leased == 0 { None } else { self.inode(dir, cx).ok() };
        dir.map_or_else(Vec::new, |dir| {
            let leased = self.lease(&dir, call, cx);
            Parent { leased, attr: dir.attr(cx.store) }.bytes().into()
        })
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
        self.claim_all(inodes, &[], call, cx)
    }

    /// As [`VfsServer::claim`], with pages that are read or changed.
    ///
    /// # Errors
    /// As there; EROFS: one of the inodes belongs to a snapshot; ENOSPC: the disk is full, and snapshots would have to keep what changes.
    pub(crate) fn claim_all(
        &mut self,
        inodes: &[(u64, bool)],
        pages: &[PageClaim],
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        inodes.iter().try_for_each(|(ino, _)| refuse_change(*ino))?;
        if !inodes.is_empty() && self.has_no_room_to_keep(cx) {
            // What is kept of what changes takes room, also if something is removed.
            return err(ENOSPC);
        }
        self.wait_for(inodes, pages, call, cx)
    }

    /// As [`VfsServer::claim_all`], of who only looks.
    pub(crate) fn wait_for(
        &mut self,
        inodes: &[(u64, bool)],
        pages: &[PageClaim],
        call: &Call<'_>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let source = call.id.source;
        let claims = Claims { inodes, pages };
        let is_behind = self.leases.is_behind(pages, source, self.leases.taken_up);
        if !is_behind && self.leases.are_free(claims, source, self.leases.taken_up) {
            for (ino, _) in inodes {
                // Who was given up does not know what happens here.
                if self.opens.sole(*ino).is_some_and(|(_, writer)| writer != source) {
                    self.end_sole(*ino, cx);
                }
            }
            return Ok(());
        }
        self.leases.claimed = (inodes.to_vec(), pages.to_vec());
        for (ino, is_forgotten) in inodes {
            self.leases.recall(*ino, source, *is_forgotten, cx);
        }
        // Who waits behind others lets them have their pages first.
        if !is_behind {
            self.leases.recall_for(pages, source, cx);
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
        if is_in_snapshot(inode.ino) || self.has_no_room_to_keep(cx) {
            return;
        }
        self.save(inode, cx);
        self.recall_late(inode.ino, Some(call.id.source), cx);
    }

    /// Keeps a call whose [`VfsServer::claim`] was refused.
    ///
    /// # Errors
    /// [`RESTART`]: there is no more room. The agent comes again.
    pub(crate) fn put_off(&mut self, call: &Call<'_>, cx: &mut Context<'_>) -> Result<()> {
        let leases = &mut self.leases;
        let bytes = leases.bytes + call.payload.len();
        if leases.put_off.len() >= PUT_OFF_MAX || bytes > PUT_OFF_BYTES_MAX {
            return err(RESTART);
        }
        leases.bytes = bytes;
        // One that has waited before keeps its place.
        let number = leases.taken_up.unwrap_or(leases.next + 1);
        leases.next = leases.next.max(number);
        let (inodes, pages) = std::mem::take(&mut leases.claimed);
        let put_off = PutOff {
            id: call.id,
            cred: *call.cred,
            message: *call.message,
            payload: call.payload.to_vec(),
            inodes,
            pages,
        };
        for claim in &put_off.pages {
            leases.waiting.entry(claim.ino).or_default().insert(number);
        }
        let is_cut = put_off.pages.iter().any(|claim| claim.own == Own::Cut);
        for (ino, _) in &put_off.inodes {
            *leases.awaited.entry(*ino).or_default() += 1;
        }
        leases.number_of.insert(call.id, number);
        leases.put_off.insert(number, put_off);
        // An earlier one may not have to wait for this caller's pages any more.
        if is_cut && self.leases.taken_up.is_none() {
            self.take_up(cx);
        }
        Ok(())
    }

    /// Handles those calls anew that nothing is in the way of any more, in the order they came.
    pub(crate) fn take_up(&mut self, cx: &mut Context<'_>) {
        let mut at = 0;
        while let Some((number, call)) = self.leases.put_off.range(at..).next() {
            let (number, source) = (*number, call.id.source);
            at = number + 1;
            let claims = Claims { inodes: &call.inodes, pages: &call.pages };
            if !self.leases.is_behind(claims.pages, source, Some(number))
                && self.leases.are_free(claims, source, Some(number))
                && let Some(PutOff { id, cred, message, payload, .. }) =
                    self.leases.drop_call(number)
            {
                let call = Call { id, cred: &cred, message: &message, payload: &payload };
                let before = self.leases.taken_up.replace(number);
                self.serve_call(&call, cx);
                self.leases.taken_up = before;
            } else {
                self.recall_if_first(number, cx);
            }
        }
    }

    /// Who was behind others until now has its pages recalled.
    fn recall_if_first(&mut self, number: u64, cx: &mut Context<'_>) {
        let Some(call) = self.leases.put_off.get(&number) else { return };
        if call.pages.is_empty() || self.leases.is_behind(&call.pages, call.id.source, Some(number))
        {
            return;
        }
        let (claims, source) = (call.pages.clone(), call.id.source);
        self.leases.recall_for(&claims, source, cx);
    }

    /// The caller of a call that is put off has been interrupted. False: it is not.
    pub(crate) fn cancel_put_off(&mut self, id: CallId, cx: &mut Context<'_>) -> bool {
        let Some(number) = self.leases.number_of.get(&id).copied() else { return false };
        if let Some(call) = self.leases.drop_call(number) {
            cx.end(id, call.message.call, IpcError::Interrupted);
        }
        self.take_up(cx);
        true
    }

    /// An agent that is gone is waited for all the same: of what it has told its kernel, programs may still be told.
    pub(crate) fn drop_calls_of(&mut self, gone: Gone, cx: &mut Context<'_>) {
        for (source, agent) in &mut self.leases.agents {
            if gone.includes(*source) {
                agent.poll = None;
            }
        }
        let theirs: Vec<u64> = self
            .leases
            .number_of
            .iter()
            .filter(|(id, _)| gone.includes(id.source))
            .map(|(_, number)| *number)
            .collect();
        for number in theirs {
            self.leases.drop_call(number);
        }
        self.take_up(cx);
    }

    /// The clock's part: answers who has waited long enough for recalls, and gives up who has not called in time.
    pub(crate) fn lease_tick(&mut self, cx: &mut Context<'_>) {
        self.leases.date(cx.now);
        let late = self.leases.those(|agent| agent.until <= cx.now);
        let debtors = self.leases.pages.debtors(cx.now);
        for source in late.into_iter().chain(debtors) {
            self.end_session(source, cx);
        }
        for source in self.leases.those(|agent| agent.poll_ends().is_some_and(|end| end <= cx.now))
        {
            self.leases.answer_poll(source, cx);
        }
    }
}

fn told(recalled: Recalled, inodes: &[u64], pages: &[Forget]) -> Outcome {
    let inodes = inodes.iter().map(|ino| Forget { ino: *ino, ..Forget::default() });
    let payload = inodes.chain(pages.iter().copied()).flat_map(|forget| forget.bytes()).collect();
    Outcome::Answer(answer::<Recalls>(&recalled), payload)
}

/// What an agent holds.
#[derive(Debug, Default)]
struct Agent {
    /// 0: it was there before the server was.
    session: u64,
    /// When it is given up.
    until: Nanos,
    /// Of one that was there before the server was: when it is given up at the latest.
    latest: Nanos,
    /// Its inodes, and whether each has been recalled.
    held: BTreeMap<u64, bool>,
    /// Recalled, and not told yet.
    pending: BTreeSet<u64>,
    /// What it was told last and has not said that it has forgotten, and the number of that.
    telling: Vec<u64>,
    batch: u64,
    /// As `pending` and `telling`, of pages: that they are gone is told by a `LetGo`.
    pending_pages: VecDeque<Forget>,
    telling_pages: Vec<Forget>,
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
    pages: Vec<PageClaim>,
}

/// What a call must have: inodes that others have forgotten, and pages that others have given back.
#[derive(Clone, Copy, Debug)]
struct Claims<'a> {
    inodes: &'a [(u64, bool)],
    pages: &'a [PageClaim],
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
    /// The claims that were refused last.
    claimed: (Vec<(u64, bool)>, Vec<PageClaim>),
    /// The number of the call that is handled anew.
    taken_up: Option<u64>,
    pub(crate) pages: Pages,
    /// Those of `put_off` that claim pages of an inode.
    waiting: BTreeMap<u64, BTreeSet<u64>>,
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
        leases.pages = Pages::open(store, |agent| leases.agents.contains_key(&agent));
        leases
    }

    /// Counts the time of agents from before the server's start from now on.
    pub(crate) fn date(&mut self, now: Nanos) {
        if !self.is_dated {
            self.is_dated = true;
            for agent in self.agents.values_mut() {
                agent.until = now.saturating_add(LEASE);
                agent.latest = now.saturating_add(GIVE_BACK_TIME);
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
        // Nobody is told when a snapshot is removed.
        if is_in_snapshot(ino) {
            return false;
        }
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

    /// Nobody holds any of these, or might, but `source` those that it has forgotten. `number`: of the call, if it has waited.
    fn are_free(&self, claims: Claims<'_>, source: Endpoint, number: Option<u64>) -> bool {
        let inodes_are_free = claims.inodes.iter().all(|(ino, is_forgotten)| {
            let has_forgotten = |holder: &Endpoint| *is_forgotten && *holder == source;
            self.unknown.iter().all(has_forgotten)
                && self.of_inode.get(ino).is_none_or(|holders| holders.iter().all(has_forgotten))
        });
        // After a crash of the server nobody knows who shares a page.
        let shared_is_known = self.unknown.iter().all(|holder| *holder == source);
        inodes_are_free
            && claims.pages.iter().all(|claim| !claim.is_exclusive || shared_is_known)
            && claims.pages.iter().all(|claim| {
                let is_passed_over = |holder| self.cuts_later(claim, holder, number);
                self.pages.in_the_way(claim, source, is_passed_over).is_empty()
            })
    }

    /// Two that make a file shorter do not wait for each other's pages, which neither kernel gives back before: the first goes first.
    fn cuts_later(&self, claim: &PageClaim, holder: Endpoint, number: Option<u64>) -> bool {
        let is_cut = |claim: &PageClaim| claim.own == Own::Cut;
        is_cut(claim)
            && number.is_some_and(|number| {
                let its = |call: &PutOff| {
                    call.id.source == holder
                        && call.pages.iter().any(|its| is_cut(its) && its.ino == claim.ino)
                };
                let waiting = self.waiting.get(&claim.ino).into_iter().flatten();
                let later = waiting.filter(|later| **later > number);
                later.filter_map(|later| self.put_off.get(later)).any(its)
            })
    }

    /// Has one that waits come earlier for what these pages are claimed for? `number` as above. Who makes a file shorter goes first: until it has,
    /// its kernel gives back none of the pages that others may wait for.
    fn is_behind(&self, pages: &[PageClaim], source: Endpoint, number: Option<u64>) -> bool {
        pages.iter().any(|claim| {
            let Some(waiting) = self.waiting.get(&claim.ino) else { return false };
            let earlier = waiting.range(..number.unwrap_or(u64::MAX));
            let mut calls = earlier.filter_map(|number| self.put_off.get(number));
            claim.own != Own::Cut
                && !self.pages.has(source, claim)
                && calls.any(|call| is_behind(claim, &call.pages))
        })
    }

    /// Would a call with such a claim wait?
    pub(crate) fn is_taken(&self, claim: &PageClaim, source: Endpoint) -> bool {
        let pages = std::slice::from_ref(claim);
        self.is_behind(pages, source, self.taken_up)
            || !self.are_free(Claims { inodes: &[], pages }, source, self.taken_up)
    }

    /// Does nobody but `source` remember anything of inode `ino`, and nobody at all have pages of it?
    pub(crate) fn is_of_nobody_but(&self, ino: u64, source: Endpoint) -> bool {
        self.unknown.is_empty()
            && self.of_inode.get(&ino).is_none_or(|holders| *holders == [source])
            && self.pages.holders(ino).is_empty()
    }

    /// Has `source` a lease on inode `ino`, though perhaps one that it is to give up?
    pub(crate) fn holds(&self, source: Endpoint, ino: u64) -> bool {
        self.agents.get(&source).is_some_and(|agent| agent.held.contains_key(&ino))
    }

    /// Has `source` a session that lasts?
    pub(crate) fn has_session(&self, source: Endpoint, now: Nanos) -> bool {
        self.agents.get(&source).is_some_and(|agent| agent.session != 0 && now < agent.until)
    }

    pub(crate) fn is_session(&self, source: Endpoint, session: u64) -> bool {
        session != 0 && self.agents.get(&source).is_some_and(|agent| agent.session == session)
    }

    /// Lets those give pages back that are in the way of `source`'s claims.
    fn recall_for(&mut self, claims: &[PageClaim], source: Endpoint, cx: &mut Context<'_>) {
        for claim in claims {
            for (holder, part) in self.pages.in_the_way(claim, source, |_| false) {
                self.recall_pages(claim.ino, holder, &part, cx);
            }
        }
    }

    /// Lets an agent give pages back.
    pub(crate) fn recall_pages(
        &mut self,
        ino: u64,
        holder: Endpoint,
        pages: &RangeSet<u64>,
        cx: &mut Context<'_>,
    ) {
        let new = self.pages.recall(ino, holder, pages, cx.now);
        if let Some(agent) = self.agents.get_mut(&holder)
            && !new.is_empty()
        {
            let forget = |run: std::ops::Range<u64>| Forget {
                ino,
                first: run.start,
                count: run.end - run.start,
            };
            agent.pending_pages.extend(new.into_iter().map(forget));
            self.tell(holder, cx);
        }
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

    /// An agent that has too much is to forget everything, and to begin again; until it has, it is waited for as before.
    pub(crate) fn end_if_full(&mut self, source: Endpoint, cx: &mut Context<'_>) {
        if let Some(agent) = self.agents.get_mut(&source)
            && (agent.is_full() || self.pages.is_full(source))
            && let Some(poll) = agent.poll.take()
        {
            cx.answer(poll, answer::<Recalls>(&Recalled::default()), []);
        }
    }

    /// If there is something to be told to an agent that waits for it: tells it.
    fn tell(&mut self, source: Endpoint, cx: &mut Context<'_>) {
        let has_news = |agent: &Agent| {
            !(agent.telling.is_empty()
                && agent.pending.is_empty()
                && agent.telling_pages.is_empty()
                && agent.pending_pages.is_empty())
        };
        if self.agents.get(&source).is_some_and(has_news) {
            self.answer_poll(source, cx);
        }
    }

    /// Answers the call that waits for recalls, if there is one.
    fn answer_poll(&mut self, source: Endpoint, cx: &mut Context<'_>) {
        let Some(agent) = self.agents.get_mut(&source) else { return };
        let Some(poll) = agent.poll.take() else { return };
        // What has been told and not confirmed is told again.
        if agent.telling.is_empty() && agent.telling_pages.is_empty() {
            agent.batch += 1;
            while agent.telling.len() < RECALLS_PER_ANSWER
                && let Some(ino) = agent.pending.pop_first()
            {
                agent.telling.push(ino);
            }
            let room = RECALLS_PER_ANSWER - agent.telling.len();
            let count = room.min(agent.pending_pages.len());
            agent.telling_pages.extend(agent.pending_pages.drain(..count));
        }
        let lease = u32::try_from(LEASE / 1_000_000).unwrap_or(u32::MAX);
        let recalled = Recalled { session: agent.session, batch: agent.batch, lease };
        if let Outcome::Answer(message, payload) =
            told(recalled, &agent.telling, &agent.telling_pages)
        {
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
        for claim in &call.pages {
            if let Some(waiting) = self.waiting.get_mut(&claim.ino) {
                waiting.remove(&number);
                if waiting.is_empty() {
                    self.waiting.remove(&claim.ino);
                }
            }
        }
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
