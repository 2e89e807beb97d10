//! The kernel, the lanes and the simulator itself, with a server made for the purpose: a counter and a lock.
//! The servers of the project are simulated in `muk2/tests/simulation.rs`.

use super::{Ended, Faults, MILLISECOND, Program, Random, SECOND, Sim, Step, check_seeds};
use crate::kernel::{Dc, Event};
use crate::limits::SMALL_MAX;
use crate::server::{Call, Context, Gone, Nanos, Server};
use crate::store::Store;
use m3ipc::{CallId, Cred, DcId, Endpoint, IpcError, Message, NodeId};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Adds 1 to the counter, answers its value. Not to be repeated.
const ADD: u16 = 0x901;
/// Answers the counter.
const GET: u16 = 0x902;
/// Waits until nobody has the lock, then takes it. Not to be repeated.
const LOCK: u16 = 0x903;
/// Gives the lock back; status 1 if the caller does not have it. Not to be repeated.
const UNLOCK: u16 = 0x904;

#[derive(Default)]
struct Tally {
    waiting: VecDeque<CallId>,
}

fn tally(_: u32, _: &mut dyn Store) -> Box<dyn Server> {
    Box::new(Tally::default())
}

fn number(store: &dyn Store, key: &[u8]) -> u64 {
    store.get(key).map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()))
}

/// Who has the lock: endpoint and lane of the call that took it.
fn holder(store: &dyn Store) -> Option<(Endpoint, u16)> {
    let value: [u8; 10] = store.get(b"holder")?.try_into().unwrap();
    let (endpoint, lane) = value.split_first_chunk::<8>().unwrap();
    Some((
        Endpoint::from_bits(u64::from_le_bytes(*endpoint)),
        u16::from_le_bytes(lane.try_into().unwrap()),
    ))
}

impl Tally {
    fn grant(&mut self, cx: &mut Context<'_>) {
        if holder(cx.store).is_none()
            && let Some(id) = self.waiting.pop_front()
        {
            let value =
                [&id.source.to_bits().to_le_bytes()[..], &id.tag.lane().to_le_bytes()].concat();
            cx.store.put(b"holder", &value);
            cx.answer(id, Message::request(LOCK), []);
        }
    }
}

impl Server for Tally {
    fn serve(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
        match call.message.call {
            ADD => {
                let value = (number(cx.store, b"count") + 1).to_le_bytes();
                cx.store.put(b"count", &value);
                // As long as the request, so that both ways there is something to overtake.
                let answer = [&value[..], call.payload].concat();
                cx.answer(call.id, Message::request(ADD), answer);
            }
            LOCK => {
                self.waiting.push_back(call.id);
                self.grant(cx);
            }
            UNLOCK => {
                let is_holder = holder(cx.store) == Some((call.id.source, call.id.tag.lane()));
                if is_holder {
                    cx.store.remove(b"holder");
                }
                let message = Message { status: u16::from(!is_holder), ..Message::request(UNLOCK) };
                cx.answer(call.id, message, []);
                self.grant(cx);
            }
            _ => {
                let value = number(cx.store, b"count").to_le_bytes();
                cx.answer(call.id, Message::request(GET), value);
            }
        }
    }

    fn cancel(&mut self, id: CallId, cx: &mut Context<'_>) {
        if self.waiting.contains(&id) {
            self.waiting.retain(|waiting| *waiting != id);
            cx.end(id, LOCK, IpcError::Interrupted);
        }
    }

    fn gone(&mut self, gone: Gone, cx: &mut Context<'_>) {
        let is_gone = |endpoint: Endpoint| match gone {
            Gone::Endpoint(dead) => dead == endpoint,
            Gone::Node(node) => endpoint.node() == node,
        };
        self.waiting.retain(|id| !is_gone(id.source));
        if holder(cx.store).is_some_and(|(endpoint, _)| is_gone(endpoint)) {
            cx.store.remove(b"holder");
        }
        self.grant(cx);
    }

    fn tick(&mut self, _: &mut Context<'_>) {}

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn once(&self, message: &Message) -> bool {
        message.call != GET
    }
}

/// What the programs know of what they did.
#[derive(Default)]
struct World {
    /// Additions sent, and those that were answered, with the values.
    sent: u64,
    values: Vec<u64>,
    /// Who believes to have the lock of which server.
    holder: BTreeMap<Endpoint, u64>,
    /// A lock that was had by two, or lost: fine if somebody was given up meanwhile, else not.
    doubts: Vec<String>,
    interrupted: u64,
    undelivered: u64,
}

/// Adds, or locks and unlocks, `left` times.
struct Worker {
    name: u64,
    to: Endpoint,
    left: u64,
    doing: Option<u16>,
    lock: Held,
    world: Rc<RefCell<World>>,
}

/// Does a worker have the lock?
#[derive(Clone, Copy, PartialEq)]
enum Held {
    No,
    Yes,
    /// The call ended without its answer.
    Perhaps,
}

impl Worker {
    fn ended(&mut self, ended: &Ended) {
        let world = &mut *self.world.borrow_mut();
        let was = self.lock;
        match (self.doing.take(), ended.message.outcome()) {
            (Some(ADD), Ok(Ok(()))) => {
                world.values.push(u64::from_le_bytes(*ended.payload.first_chunk().unwrap()))
            }
            (Some(LOCK), Ok(Ok(()))) => {
                self.lock = Held::Yes;
                if let Some(other) = world.holder.insert(self.to, self.name) {
                    world.doubts.push(format!("{} and {other} have the lock", self.name));
                }
            }
            (Some(UNLOCK), Ok(answer)) => {
                self.lock = Held::No;
                if answer.is_err() && was == Held::Yes {
                    world.doubts.push(format!("{} has lost the lock", self.name));
                }
            }
            (Some(LOCK), Err(IpcError::Interrupted)) => world.interrupted += 1,
            (doing, Err(error)) => {
                assert!(
                    matches!(error, IpcError::NodeDown | IpcError::DestinationDied),
                    "{error:?}"
                );
                world.undelivered += 1;
                if doing != Some(ADD) {
                    self.lock = Held::Perhaps;
                }
            }
            _ => {}
        }
    }

    fn give_back(&mut self) {
        let mut world = self.world.borrow_mut();
        if self.lock == Held::Yes && world.holder.get(&self.to) == Some(&self.name) {
            world.holder.remove(&self.to);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Program for Worker {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(ended) = ended {
            self.ended(&ended);
            if random.chance(300) {
                return Step::Pause(random.below(30 * MILLISECOND));
            }
        }
        let call = if self.lock != Held::No {
            self.give_back();
            UNLOCK
        } else if self.left == 0 {
            return Step::Exit;
        } else if random.chance(500) {
            self.world.borrow_mut().sent += 1;
            ADD
        } else {
            LOCK
        };
        self.left = self.left.saturating_sub(1);
        self.doing = Some(call);
        let payload = vec![7; if random.chance(400) { SMALL_MAX + 1 } else { 0 }];
        Step::Call { to: self.to, message: Message::request(call), payload }
    }
}

fn dc() -> Dc {
    let nodes = [NodeId(1), NodeId(2), NodeId(3)];
    Dc { id: DcId(1), nodes: nodes.into(), servers: [(1, NodeId(1)), (3, NodeId(2))].into() }
}

/// Every kind of fault, some of them in some runs; a third of the runs without any that makes nodes give each other up.
fn faults(seed: u64) -> Faults {
    let random = &mut Random::new(!seed);
    let gentle = seed.is_multiple_of(3);
    Faults {
        until: random.between(SECOND, 6 * SECOND),
        breaks: random.below(8),
        silences: random.below(4),
        silence_max: if gentle { SECOND } else { 8 * SECOND },
        server_kills: random.below(6),
        process_kills: random.below(4),
        peer_kills: 0,
        node_crashes: if gentle { 0 } else { random.below(3) },
        power_fails: false,
        signals: random.below(200),
        doubles: random.below(100),
        cuts: if gentle { 0 } else { random.below(2) },
    }
}

fn cluster(seed: u64, faults: Faults, world: &Rc<RefCell<World>>) -> Sim {
    let mut sim = Sim::new(seed, dc(), tally);
    sim.begin(faults);
    let random = &mut Random::new(seed ^ 0x5eed);
    for process in 0..6 {
        let node = NodeId(1 + u16::try_from(process % 3).unwrap());
        let threads = (0..random.between(1, 4)).map(|thread| {
            let to = if random.chance(500) { Endpoint::VFS } else { Endpoint::IPC };
            let (name, left, world) = (process * 10 + thread, random.between(5, 40), world.clone());
            Box::new(Worker { name, to, left, doing: None, lock: Held::No, world })
                as Box<dyn Program>
        });
        let threads = threads.collect();
        sim.spawn(random.below(faults.until.max(1)), node, Cred::ROOT, threads);
    }
    sim
}

fn run(seed: u64, print: bool) -> Result<(), String> {
    let world = Rc::new(RefCell::new(World::default()));
    let mut sim = cluster(seed, faults(seed), &world);
    if print {
        sim.keep_log();
    }
    let result = sim.run().and_then(|()| check(&mut sim, &world));
    if print && result.is_err() {
        return result.map_err(|error| format!("{}\n{error}", sim.log().join("\n")));
    }
    result
}

fn check(sim: &mut Sim, world: &Rc<RefCell<World>>) -> Result<(), String> {
    let mut total = 0;
    for to in [Endpoint::VFS, Endpoint::IPC] {
        let (answer, payload) = sim.ask(NodeId(3), to, Message::request(GET), &[])?;
        answer
            .outcome()
            .map_err(|error| format!("asking for the count: {error:?}"))?
            .map_err(|_| "errno")?;
        total += u64::from_le_bytes(payload.try_into().map_err(|_| "no count")?);
    }
    let world = world.borrow();
    let (answered, sent) = (world.values.len() as u64, world.sent);
    if !(answered..=sent).contains(&total) {
        return Err(format!(
            "{sent} additions, {answered} answered, but the counters have {total}"
        ));
    }
    let is_strict = sim.stats.given_up == 0 && sim.stats.node_crashes == 0;
    if is_strict && !world.doubts.is_empty() {
        return Err(world.doubts.join("; "));
    }
    Ok(())
}

#[test]
fn without_faults_every_call_is_answered() {
    let world = Rc::new(RefCell::new(World::default()));
    let mut sim = cluster(1, Faults::NONE, &world);
    sim.run().unwrap();
    check(&mut sim, &world).unwrap();
    let world = world.borrow();
    assert_eq!(world.values.len() as u64, world.sent);
    assert_eq!((world.undelivered, world.interrupted, sim.stats.given_up), (0, 0, 0));
    assert!(world.sent > 50 && sim.stats.links >= 3);
}

#[test]
fn bulk_frames_come_before_small_ones_and_wait_for_them() {
    let held = |seed| {
        let world = Rc::default();
        let mut sim = cluster(seed, faults(seed), &world);
        sim.run().unwrap();
        sim.stats.held
    };
    assert!((1..20).map(held).sum::<u64>() > 20);
}

#[test]
fn a_run_is_the_same_each_time() {
    let stats = |seed| {
        let world = Rc::default();
        let mut sim = cluster(seed, faults(seed), &world);
        sim.keep_log();
        sim.run().unwrap();
        (sim.stats, sim.log().join("\n"))
    };
    assert_eq!(stats(5), stats(5));
    assert_ne!(stats(5).0, stats(6).0);
}

#[test]
fn whatever_goes_wrong_calls_end_once_and_count_once() {
    check_seeds(&[], 400, run);
}

/// Waits for servers to come and go.
struct Watcher {
    left: u64,
    to: Endpoint,
    event: Event,
}

impl Program for Watcher {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(Ended { message, .. }) = ended {
            match message.outcome() {
                Ok(_) if self.event == Event::Bound => {
                    assert_eq!(message.source.slot, self.to.slot);
                    assert_ne!(message.source.generation, 0, "a server is one process");
                }
                Ok(_) => assert_eq!(message.source, Endpoint::NONE),
                Err(IpcError::NodeDown | IpcError::TimedOut) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        if self.left == 0 {
            return Step::Exit;
        }
        self.left -= 1;
        self.to = if random.chance(500) { Endpoint::VFS } else { Endpoint::IPC };
        self.event = if random.chance(500) { Event::Bound } else { Event::Unbound };
        // A server is always started again, but perhaps not killed.
        let timeout = (self.event == Event::Unbound).then(|| random.between(1, SECOND));
        Step::Await { to: self.to, event: self.event, timeout }
    }
}

#[test]
fn whoever_waits_for_an_endpoint_is_told_or_the_node_is_down_and_no_question_is_left() {
    check_seeds(&[], 300, |seed, is_told| {
        let mut sim = Sim::new(seed, dc(), tally);
        if is_told {
            sim.keep_log();
        }
        sim.begin(faults(seed));
        for process in 0..6 {
            let node = NodeId(1 + u16::try_from(process % 3).unwrap());
            let watcher = || {
                let (to, event) = (Endpoint::VFS, Event::Bound);
                Box::new(Watcher { left: 20, to, event }) as Box<dyn Program>
            };
            sim.spawn(0, node, Cred::ROOT, vec![watcher(), watcher()]);
        }
        let ended = sim.run();
        sim.log().iter().for_each(|line| eprintln!("{line}"));
        ended
    });
}
