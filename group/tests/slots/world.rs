//! Members of one seed over the group's own multicast ([`State`]), with delays, doubles, crashes and cuts; what must be true at every step.

use crate::random::Random;
use group::Realm;
use group::command::{Answer, ClientId, Command, Done, Op, Refusal};
use group::limits::{SLOTS_PAUSE, TTL_MAX};
use group::slots::{Output, Shares, Slots};
use group::state::{Delivery, Item, State};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Name of the group.
const GROUP: &str = "slots";

/// How long the group takes at least to notice that a node is gone, and at most more; in milliseconds.
const NOTICED: u64 = 100;

#[derive(Clone, Debug)]
enum Event {
    /// The first of what the member has to send is in the order.
    Arrive(Who),
    /// The member looks for deliveries.
    Pull(Who),
    Tick(Who),
    /// It wants a slot.
    Work(Who),
    /// A process ends.
    Exit(Who, u16),
    /// It has noticed that it is cut off.
    Fence(Who),
    /// A message of one that is gone was on its way.
    Late(ClientId, Op),
    /// The group takes the session for ended.
    Close(ClientId),
    Start(usize),
}

/// A node in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Who {
    node: usize,
    client: ClientId,
}

struct Running {
    client: ClientId,
    slots: Slots,
    after: u64,
    outbox: VecDeque<Op>,
    arriving: bool,
    pulling: bool,
    cut: bool,
    tick: Option<u64>,
    /// Since when callers wait.
    asked: BTreeMap<u64, u64>,
}

/// How slots are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    None,
    /// Now and then, some with patience.
    Mixed,
    /// By all, always, with patience.
    Contention,
}

/// What a run was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) granted: u64,
    pub(crate) failed: u64,
    pub(crate) casts: u64,
    pub(crate) deaths: u64,
    /// Casts that the group refused because somebody did not read.
    pub(crate) refused: u64,
    /// Longest that a caller waited under contention, in milliseconds.
    pub(crate) longest_wait: u64,
    pub(crate) longest_rounds: u64,
    pub(crate) trace: u64,
}

pub(crate) struct World {
    random: Random,
    pub(crate) now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    events: u64,
    group: State,
    sequences: BTreeMap<ClientId, u64>,
    nodes: Vec<Option<Running>>,
    shares: Shares,
    pub(crate) total: u16,
    /// Longest way to the order, and from it, in milliseconds.
    pub(crate) pace: u64,
    life: u64,
    load: Load,
    /// Whose process is in a slot.
    in_use: BTreeMap<u16, Who>,
    /// What members had behind items.
    behind: BTreeMap<u64, u64>,
    callers: u64,
    pub(crate) report: Report,
    violation: Option<String>,
}

impl World {
    /// A world whose nodes start one behind the other; with `late`, when the first has had time to take all slots.
    pub(crate) fn new(seed: u64, size: usize, late: bool) -> World {
        let mut random = Random::new(seed);
        let nodes = u16::try_from(size).unwrap();
        let total = nodes * (4 + u16::try_from(random.below(12)).unwrap());
        let mut world = World {
            now: 0,
            queue: BTreeMap::new(),
            events: 0,
            group: State::default(),
            sequences: BTreeMap::new(),
            nodes: (0..size).map(|_| None).collect(),
            shares: Shares::new(total, nodes).unwrap(),
            total,
            pace: 1 + random.below(20),
            life: 100 + random.below(200),
            load: Load::None,
            in_use: BTreeMap::new(),
            behind: BTreeMap::new(),
            callers: 0,
            report: Report::default(),
            violation: None,
            random,
        };
        for node in 0..size {
            let after = if late && node > 0 { 300 } else { 0 } + world.random.below(50);
            world.at(after, Event::Start(node));
        }
        world
    }

    fn at(&mut self, after: u64, event: Event) {
        self.events += 1;
        self.queue.insert((self.now + after, self.events), event);
    }

    fn soon(&mut self, event: Event) {
        let after = 1 + self.random.below(self.pace);
        self.at(after, event);
    }

    fn violate(&mut self, what: String) {
        let now = self.now;
        self.violation.get_or_insert_with(|| format!("at {now} ms: {what}"));
    }

    /// Lives until `until`, or nothing more happens.
    pub(crate) fn run(&mut self, until: u64) -> Result<(), String> {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= until) {
            self.now = entry.key().0;
            let event = entry.remove();
            let mixed = self.now ^ self.queue.len() as u64;
            self.report.trace = (self.report.trace ^ mixed).wrapping_mul(0x0100_0000_01b3);
            self.step(event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        self.now = until;
        Ok(())
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Arrive(who) => self.arrive(who),
            Event::Pull(who) => self.pull(who),
            Event::Tick(who) => {
                let now = self.now;
                self.with(who, |member| {
                    member.tick = None;
                    member.slots.tick(now)
                });
            }
            Event::Work(who) => self.work(who),
            Event::Exit(who, slot) => self.exit(who, slot),
            Event::Fence(who) => self.stop(who),
            Event::Late(client, op) => drop(self.apply(client, op)),
            Event::Close(client) => drop(self.apply(client, Op::Close)),
            Event::Start(node) => self.start(node),
        }
    }

    fn member(&mut self, who: Who) -> Option<&mut Running> {
        self.nodes[who.node].as_mut().filter(|member| member.client == who.client)
    }

    /// Has a member do something, and carries its outputs out.
    fn with(&mut self, who: Who, input: impl FnOnce(&mut Running) -> Vec<Output>) {
        let Some(member) = self.member(who) else { return };
        let outputs = input(member);
        for output in outputs {
            self.carry_out(who, output);
        }
        let now = self.now;
        let Some(member) = self.member(who) else { return };
        let Some(deadline) = member.slots.deadline() else { return };
        if member.tick != Some(deadline) {
            member.tick = Some(deadline);
            self.at(deadline.saturating_sub(now), Event::Tick(who));
        }
    }

    fn carry_out(&mut self, who: Who, output: Output) {
        match output {
            Output::Cast(bytes) => {
                self.report.casts += 1;
                self.send(who, Op::Cast { group: GROUP.into(), bytes });
            }
            Output::GiveState { view, bytes } => {
                let give = Op::GiveState { group: GROUP.into(), view, bytes };
                self.soon(Event::Late(who.client, give));
            }
            Output::Granted { caller, slot } => self.granted(who, caller, slot),
            Output::Failed { caller } => {
                self.report.failed += 1;
                self.waited(who, caller);
                self.want_more(who);
                if self.load == Load::Contention {
                    self.violate(format!("{who:?} starves"));
                }
            }
        }
    }

    fn send(&mut self, who: Who, op: Op) {
        let Some(member) = self.member(who) else { return };
        member.outbox.push_back(op);
        if !std::mem::replace(&mut member.arriving, true) {
            self.soon(Event::Arrive(who));
        }
    }

    fn waited(&mut self, who: Who, caller: u64) {
        let now = self.now;
        let since = self.member(who).and_then(|member| member.asked.remove(&caller));
        if let Some(since) = since.filter(|_| self.load == Load::Contention) {
            self.report.longest_wait = self.report.longest_wait.max(now - since);
            self.check_wait(who, since);
        }
    }

    /// Processes end, so who goes on asking is served: after a process's life, a request for a claim, and a pause if
    /// the one before was in vain.
    fn check_wait(&mut self, who: Who, since: u64) {
        let waited = self.now - since;
        if waited > SLOTS_PAUSE + self.life + 20 * self.pace {
            self.violate(format!("{who:?} starves: it has waited for {waited} ms"));
        }
    }

    /// Those who still wait have not waited for too long either.
    pub(crate) fn check_waits(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let Some(member) = &self.nodes[node] else { continue };
            let who = Who { node, client: member.client };
            for since in member.asked.values().copied().collect::<Vec<_>>() {
                self.check_wait(who, since);
            }
        }
        self.violation.take().map_or(Ok(()), Err)
    }

    fn granted(&mut self, who: Who, caller: u64, slot: u16) {
        self.report.granted += 1;
        self.waited(who, caller);
        if let Some(other) = self.in_use.insert(slot, who) {
            self.violate(format!("slot {slot} is taken by {other:?} and by {who:?}"));
        }
        if self.load != Load::None {
            let life = 1 + self.random.below(self.life);
            self.at(life, Event::Exit(who, slot));
            self.want_more(who);
        }
    }

    fn exit(&mut self, who: Who, slot: u16) {
        if self.member(who).is_none() {
            return;
        }
        self.in_use.remove(&slot);
        let now = self.now;
        let mut refused = None;
        self.with(who, |member| {
            member.slots.free(slot, now).unwrap_or_else(|not| {
                refused = Some(not);
                Vec::new()
            })
        });
        if let Some(not) = refused {
            self.violate(format!("{who:?}: {not}"));
        }
    }

    fn apply(&mut self, client: ClientId, op: Op) -> Answer {
        let sequence = self.sequences.entry(client).or_default();
        *sequence += 1;
        let (sequence, acked) = (*sequence, *sequence - 1);
        let answer = self.group.apply(Command { now: 0, from: 1, client, sequence, acked, op });
        if self.group.view(GROUP).is_none() {
            // All have gone: it begins again, and its numbers do.
            self.behind.clear();
        }
        for node in 0..self.nodes.len() {
            self.look(node);
        }
        answer
    }

    /// Something may be there for a node.
    fn look(&mut self, node: usize) {
        let Some(member) = &mut self.nodes[node] else { return };
        let who = Who { node, client: member.client };
        if !std::mem::replace(&mut member.pulling, true) {
            self.soon(Event::Pull(who));
        }
    }

    fn arrive(&mut self, who: Who) {
        loop {
            let again = self.random.one_in(16);
            let Some(member) = self.member(who).filter(|member| !member.cut) else { return };
            let Some(op) = member.outbox.front().cloned() else {
                member.arriving = false;
                return;
            };
            match self.apply(who.client, op.clone()) {
                // Somebody does not read, so it is not there.
                Err(Refusal::Limit { .. }) => {
                    self.report.refused += 1;
                    return self.soon(Event::Arrive(who));
                }
                Err(refusal) => self.violate(format!("{who:?}: {refusal} to {op:?}")),
                // It is not certain, so it is sent again.
                Ok(_) if again => return self.soon(Event::Arrive(who)),
                Ok(_) => {
                    let member = self.member(who).expect("it was there");
                    member.outbox.pop_front();
                }
            }
            if self.random.one_in(4) {
                return self.soon(Event::Arrive(who));
            }
        }
    }

    fn pull(&mut self, who: Who) {
        loop {
            let Some(member) = self.member(who).filter(|member| !member.cut) else { return };
            let after = member.after;
            let Ok(Some(delivery)) = self.group.delivery(who.client, GROUP, after) else { break };
            self.deliver(who, &delivery);
            if self.random.one_in(4) {
                // It is slower than others.
                return self.soon(Event::Pull(who));
            }
        }
        if let Some(member) = self.member(who) {
            member.pulling = false;
            let number = member.after;
            let op = Op::Acknowledge { group: GROUP.into(), number };
            let (client, now, sequence, acked) = (who.client, 0, 0, 0);
            drop(self.group.apply(Command { now, from: 1, client, sequence, acked, op }));
        }
    }

    fn deliver(&mut self, who: Who, delivery: &Delivery) {
        let now = self.now;
        let number = delivery.number();
        let twice = self.random.one_in(16);
        let mut broken = None;
        self.with(who, |member| {
            member.after = number;
            let mut outputs = Vec::new();
            for _ in 0..if twice { 2 } else { 1 } {
                match member.slots.deliver(delivery, now) {
                    Ok(more) => outputs.extend(more),
                    Err(error) => broken = Some(error),
                }
            }
            outputs
        });
        if let Some(broken) = broken {
            self.violate(format!("{who:?}: {broken}"));
        }
        let view = matches!(delivery, Delivery::Item { item: Item::View(_), .. });
        if view || number.is_multiple_of(4) || self.nodes.len() < 4 {
            self.check(who, number);
        }
    }

    /// Members agree on who owns what behind an item; each slot is owned by one of them, and known to its owner
    /// as one that is free, used or given.
    fn check(&mut self, who: Who, number: u64) {
        let total = self.total;
        let Some(member) = self.nodes[who.node].as_ref() else { return };
        let Some(state) = member.slots.state() else { return };
        let slots = &member.slots;
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let hash = hasher.finish();
        let owned: Vec<u16> =
            (0..total).filter(|slot| slots.owner(*slot) == Some(who.client)).collect();
        let mut mine: Vec<u16> =
            slots.used().chain(slots.given()).chain(slots.free_slots()).collect();
        mine.sort_unstable();
        let orphans = (0..total).filter(|slot| slots.owner(*slot).is_none()).count();
        let ready = slots.is_ready();
        if *self.behind.entry(number).or_insert(hash) != hash {
            self.violate(format!("{who:?} has another table behind item {number}"));
        }
        if owned != mine {
            self.violate(format!("{who:?} owns {owned:?} and knows {mine:?}"));
        }
        if ready && orphans > 0 {
            self.violate(format!("{orphans} slots are nobody's"));
        }
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].is_some() {
            return;
        }
        let nonce = self.random.next();
        let open = Op::Open { nonce, ttl: TTL_MAX, realm: Realm::System };
        let command =
            Command { now: 0, from: 1, client: ClientId(0), sequence: 0, acked: 0, op: open };
        let Ok(Done::Opened { client }) = self.group.apply(command) else { panic!("no session") };
        let join = self.apply(client, Op::Join { group: GROUP.into() });
        if let Err(Refusal::Limit { .. }) = join {
            // Somebody does not read, so there is no room for the view.
            self.report.refused += 1;
            return self.at(NOTICED, Event::Start(node));
        }
        let Ok(Done::Joined { view }) = join else { panic!("{join:?}") };
        self.nodes[node] = Some(Running {
            client,
            slots: Slots::new(client, self.shares),
            after: view - 1,
            outbox: VecDeque::new(),
            arriving: false,
            pulling: false,
            cut: false,
            tick: None,
            asked: BTreeMap::new(),
        });
        self.look(node);
        for _ in 0..match self.load {
            Load::None => 0,
            Load::Mixed => 1,
            Load::Contention => 2,
        } {
            self.soon(Event::Work(Who { node, client }));
        }
    }

    fn who(&self, node: usize) -> Option<Who> {
        self.nodes[node].as_ref().map(|member| Who { node, client: member.client })
    }

    /// A node crashes, is cut off, or leaves; it comes back later.
    pub(crate) fn disturb(&mut self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        let Some(who) = self.random.pick(&all).and_then(|node| self.who(node)) else { return };
        let kind = self.random.below(3);
        let Some(member) = self.member(who).filter(|member| !member.cut) else { return };
        let first = member.outbox.front().cloned();
        self.report.deaths += 1;
        if kind == 0 {
            self.apply(who.client, Op::Leave { group: GROUP.into() }).expect("it is a member");
            return self.stop(who);
        }
        // What it sent last may come yet.
        if let Some(op) = first.filter(|_| kind == 1 || self.random.one_in(2)) {
            let after = self.random.below(NOTICED);
            self.at(after, Event::Late(who.client, op));
        }
        if kind == 1 {
            self.stop(who);
        } else if let Some(member) = self.member(who) {
            member.cut = true;
            let after = self.random.below(NOTICED);
            self.at(after, Event::Fence(who));
        }
    }

    /// The node's processes end; the group notices, then it comes back.
    fn stop(&mut self, who: Who) {
        let Some(mut member) = self.nodes[who.node].take_if(|member| member.client == who.client)
        else {
            return;
        };
        self.in_use.retain(|_, user| *user != who);
        member.slots.fence();
        assert!(member.slots.is_fenced() && member.slots.deadline().is_none());
        let noticed = NOTICED + self.random.below(NOTICED);
        self.at(noticed, Event::Close(who.client));
        let back = self.random.below(5 * NOTICED);
        self.at(back, Event::Start(who.node));
    }

    fn work(&mut self, who: Who) {
        if self.load == Load::None || self.member(who).is_none() {
            return;
        }
        let patient = self.load == Load::Contention || self.random.one_in(3);
        self.want(who, patient);
        if self.load == Load::Mixed {
            // On the whole about as many as there are slots: sometimes more, sometimes fewer.
            let nodes = self.nodes.len() as u64;
            let mean = self.life * nodes / (2 * u64::from(self.total));
            let pause = 1 + self.random.below(2 * mean.max(1));
            self.at(pause, Event::Work(who));
        }
    }

    /// Somebody who has got a slot, or none, wants another at once.
    fn want_more(&mut self, who: Who) {
        if self.load == Load::Contention {
            self.at(1, Event::Work(who));
        }
    }

    fn want(&mut self, who: Who, patient: bool) {
        self.callers += 1;
        let (caller, now) = (self.callers, self.now);
        self.with(who, |member| {
            member.asked.insert(caller, now);
            member.slots.allocate(caller, patient, now)
        });
    }

    /// How slots are wanted from here on.
    pub(crate) fn set_load(&mut self, load: Load) {
        let before = std::mem::replace(&mut self.load, load);
        for node in 0..self.nodes.len() {
            let Some(who) = self.who(node) else { continue };
            if before == Load::None || load == Load::Contention {
                self.soon(Event::Work(who));
            }
        }
        // Who waits from before does not count.
        for member in self.nodes.iter_mut().flatten() {
            for caller in std::mem::take(&mut member.asked).into_keys() {
                member.slots.abandon(caller);
            }
        }
    }

    /// Nothing will happen any more, and everybody is ready.
    pub(crate) fn is_quiet(&self) -> bool {
        let ready =
            |node: &Option<Running>| node.as_ref().is_some_and(|node| node.slots.is_ready());
        self.queue.is_empty() && self.nodes.iter().all(ready)
    }

    /// One node alone wants as many slots as it may own: as long as others have a surplus it gets each in time.
    pub(crate) fn fill_one(&mut self, limit: u64) -> Result<(), String> {
        let node = usize::try_from(self.random.below(self.nodes.len() as u64)).unwrap();
        let who = self.who(node).unwrap();
        let least = usize::from(self.total) / (2 * self.nodes.len());
        let most = usize::from(self.total) - least * (self.nodes.len() - 1);
        for taken in 0..most {
            let start = self.now;
            let granted = self.report.granted;
            self.want(who, true);
            while self.report.granted == granted {
                let Some(next) = self.queue.keys().next().map(|(at, _)| *at) else { break };
                self.run(next)?;
            }
            let took = self.now - start;
            self.report.longest_rounds = self.report.longest_rounds.max(took / (2 * self.pace));
            if self.report.granted == granted || took > limit {
                return Err(format!("slot {taken} of {most} after {took} ms: {who:?}"));
            }
        }
        Ok(())
    }
}
