//! Endpoints that move while programs call them, and everything goes wrong that can.

use super::{Ended, Faults, MILLISECOND, Program, Random, SECOND, Sim, Step, check_seeds};
use crate::kernel::{Dc, Order, Role};
use crate::server::{Answers, Call, Context, Gone, Nanos, Server};
use crate::store::Store;
use m3ipc::{CallId, Cred, DcId, Endpoint, IpcError, Message, NodeId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const CALL: u16 = 0x901;
const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
/// The endpoint that moves; its home is node 1.
const MOVER: Endpoint = Endpoint::well_known(NodeId(1), 70);

/// There are no servers here.
struct Nothing;

impl Server for Nothing {
    fn serve(&mut self, _: &Call<'_>, _: &mut Context<'_>) {}
    fn cancel(&mut self, _: CallId, _: &mut Context<'_>) {}
    fn gone(&mut self, _: Gone, _: &mut Context<'_>) {}
    fn tick(&mut self, _: &mut Context<'_>) {}
    fn deadline(&self) -> Option<Nanos> {
        None
    }
    fn once(&self, _: &Message) -> bool {
        true
    }
}

fn nothing(_: u32, _: &mut dyn Store) -> Box<dyn Server> {
    let _ = Answers::default();
    Box::new(Nothing)
}

/// How the calls ended, by their arguments.
#[derive(Default)]
struct World {
    ended: BTreeMap<u64, Result<(), IpcError>>,
    committed: u64,
}

fn args(number: u64) -> [u8; super::ARGS] {
    let mut args = [0; super::ARGS];
    args[..8].copy_from_slice(&number.to_le_bytes());
    args
}

/// Calls the endpoint `left` times.
struct Caller {
    name: u64,
    left: u64,
    open: Option<u64>,
    world: Rc<RefCell<World>>,
}

impl Program for Caller {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let (Some(Ended { message, .. }), Some(number)) = (ended, self.open.take()) {
            let outcome = message.outcome().map(|_| ());
            assert!(outcome.is_err() || message.args == args(number), "another call's answer");
            let earlier = self.world.borrow_mut().ended.insert(number, outcome);
            assert!(earlier.is_none(), "{number} ended twice");
            if random.chance(300) {
                return Step::Pause(random.below(20 * MILLISECOND));
            }
        }
        if self.left == 0 {
            return Step::Exit;
        }
        self.left -= 1;
        let number = self.name * 1_000_000 + self.left;
        self.open = Some(number);
        let message = Message { args: args(number), ..Message::request(CALL) };
        let payload = vec![1; if random.chance(300) { crate::limits::SMALL_MAX + 1 } else { 3 }];
        Step::Call { to: MOVER, message, payload }
    }
}

/// Moves the endpoint about `left` times.
struct Manager {
    left: u64,
    is_started: bool,
    world: Rc<RefCell<World>>,
}

impl Program for Manager {
    fn next(&mut self, ended: Option<Ended>, random: &mut Random) -> Step {
        if let Some(Ended { message, .. }) = ended {
            let is_done = message.outcome().is_ok();
            if is_done && self.is_started {
                self.world.borrow_mut().committed += 1;
            }
            // Whatever went wrong, somebody may have to go on with it: a rollback is always tried.
            self.is_started = is_done && !self.is_started;
            return Step::Pause(random.below(30 * MILLISECOND));
        }
        if self.left == 0 {
            return Step::Exit;
        }
        self.left -= 1;
        let order = if self.is_started && random.chance(800) {
            let node = NODES[random.index(NODES.len())];
            Order::Commit { node, backup: Endpoint::NONE }
        } else if random.chance(500) {
            Order::Rollback
        } else {
            Order::Start
        };
        if order != (Order::Start) && !matches!(order, Order::Commit { .. }) {
            self.is_started = false;
        }
        Step::Order { to: MOVER, order }
    }
}

fn cluster(seed: u64, faults: Faults, takes_over: bool) -> (Sim, Rc<RefCell<World>>) {
    let world = Rc::new(RefCell::new(World::default()));
    let dc = Dc { id: DcId(1), nodes: NODES.into(), servers: BTreeMap::new() };
    let mut sim = Sim::new(seed, dc, nothing);
    sim.begin(faults);
    let random = &mut Random::new(seed ^ 0x5eed);
    sim.spawn_peer(0, NODES[0], Role::Peer(MOVER.index()));
    for node in NODES {
        sim.spawn_peer(20 * MILLISECOND, node, Role::Backup(MOVER, takes_over));
    }
    // Its home wants the number again, whoever has it meanwhile.
    for _ in 0..2 {
        let after = random.between(SECOND, 6 * SECOND);
        sim.spawn_peer(after, NODES[0], Role::Peer(MOVER.index()));
    }
    for process in 0..6 {
        let node = NODES[process % 3];
        let callers = (0..random.between(1, 4)).map(|thread| {
            let (name, left) = (process as u64 * 10 + thread, random.between(20, 80));
            Box::new(Caller { name, left, open: None, world: world.clone() }) as Box<dyn Program>
        });
        sim.spawn(SECOND, node, Cred::ROOT, callers.collect());
    }
    let node = NODES[random.index(3)];
    let manager = Manager { left: 60, is_started: false, world: world.clone() };
    sim.spawn(SECOND, node, Cred::ROOT, vec![Box::new(manager)]);
    (sim, world)
}

/// Every call has ended (or its caller was killed), was received at most once, and if it was answered, exactly once.
fn check(sim: &Sim, world: &World) -> Result<(), String> {
    for (args, count) in &sim.received {
        let number = u64::from_le_bytes(*args.first_chunk().expect("eight bytes"));
        if *count > 1 {
            return Err(format!("call {number} was received {count} times"));
        }
    }
    for (number, outcome) in &world.ended {
        let count = sim.received.get(&args(*number)).copied().unwrap_or(0);
        match outcome {
            Ok(()) if count != 1 => {
                return Err(format!("call {number} was answered and never received"));
            }
            Err(IpcError::Stale | IpcError::NotBound) if count != 0 => {
                return Err(format!("call {number} ended with {outcome:?}, and was received"));
            }
            Err(IpcError::Moved | IpcError::Denied | IpcError::Protocol | IpcError::InUse) => {
                return Err(format!("call {number} ended with {outcome:?}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn run(seed: u64, print: bool, faults: Faults, takes_over: bool) -> Result<u64, String> {
    let (mut sim, world) = cluster(seed, faults, takes_over);
    if print {
        sim.keep_log();
    }
    let result = sim.run().and_then(|()| judge(&sim, &world.borrow(), faults));
    if print && result.is_err() {
        sim.log().iter().for_each(|line| eprintln!("{line}"));
    }
    result
}

fn judge(sim: &Sim, world: &World, faults: Faults) -> Result<u64, String> {
    check(sim, world)?;
    let stats = &sim.stats;
    let is_quiet = stats.given_up + stats.taken_for_down + stats.fenced + stats.node_crashes == 0
        && faults.peer_kills == 0;
    // The endpoint is not bound before its node can sign on.
    let fine = |outcome: &Result<(), IpcError>| match outcome {
        Ok(()) | Err(IpcError::Interrupted) => true,
        outcome => faults.cuts > 0 && *outcome == Err(IpcError::NotBound),
    };
    let failed = world.ended.iter().find(|(_, outcome)| !fine(outcome));
    match failed {
        Some((number, outcome)) if is_quiet => {
            Err(format!("nothing has died, and call {number} ended with {outcome:?}"))
        }
        _ => Ok(world.committed),
    }
}

#[test]
fn without_faults_clients_see_only_pauses() {
    let mut committed = 0;
    for seed in 0..30 {
        committed += run(seed, false, Faults::NONE, false).unwrap();
    }
    assert!(committed > 100, "{committed} moves");
}

#[test]
fn links_that_break_cost_no_call() {
    check_seeds(&[], 200, |seed, print| {
        let faults = Faults {
            until: 3 * SECOND,
            breaks: 10,
            silences: 3,
            silence_max: SECOND,
            doubles: 50,
            ..Faults::NONE
        };
        run(seed, print, faults, false).map(|_| ())
    });
}

#[test]
fn whatever_goes_wrong_a_call_ends_once_and_is_received_once() {
    check_seeds(&[], 400, |seed, print| {
        let random = &mut Random::new(!seed);
        let faults = Faults {
            until: random.between(SECOND, 5 * SECOND),
            breaks: random.below(8),
            silences: random.below(4),
            silence_max: 8 * SECOND,
            cuts: random.below(3),
            process_kills: random.below(3),
            peer_kills: random.below(3),
            node_crashes: random.below(3),
            signals: random.below(100),
            doubles: random.below(100),
            ..Faults::NONE
        };
        run(seed, print, faults, seed.is_multiple_of(2)).map(|_| ())
    });
}
