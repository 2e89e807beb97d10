//! Whole clusters by seed: crashes, power failures, cuts, loss; histories are checked. `SEED=7` replays one, `SEEDS=10000` runs more.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod clients;
mod linear;
mod network;
mod random;
#[path = "../seeds/mod.rs"]
mod seeds;
mod services;
mod slots;
mod times;
mod world;

use clients::{History, Machine, SharedOrder};
use linear::is_linearizable;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use world::World;

/// Seeds of an ordinary run of the tests.
const SEEDS: u64 = 1000;

/// How long the cluster is disturbed.
const TROUBLE: Duration = Duration::from_secs(5);

/// When everything works again, the group serves after this time at most.
const RECOVERY: Duration = Duration::from_secs(15);

/// What a run was like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Report {
    operations: usize,
    unanswered: usize,
    delivered: u64,
    crashes: u64,
    sent: u64,
    trace: u64,
}

fn run(seed: u64) -> Result<Report, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(live(seed))
}

async fn live(seed: u64) -> Result<Report, String> {
    let size = if seed.is_multiple_of(4) { 5 } else { 3 };
    let world = World::start(seed, size).await;
    let until = Instant::now() + TROUBLE;
    let (history, order) = (History::default(), SharedOrder::default());
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(tokio::spawn(clients::work(world.clone(), history.clone(), until)));
        tasks.push(tokio::spawn(clients::contend(world.clone(), until)));
    }
    for member in 0..3 {
        let mortal = member > 0;
        tasks.push(tokio::spawn(clients::member(world.clone(), order.clone(), until, mortal)));
    }
    trouble(&world, until).await;
    heal(&world).await;
    let ended = async {
        for task in tasks {
            task.await.map_err(|error| format!("a client has panicked: {error}"))?;
        }
        Ok::<(), String>(())
    };
    timeout(RECOVERY, ended).await.map_err(|_| "the clients do not get on".to_owned())??;
    timeout(RECOVERY, agree(&world)).await.map_err(|_| "no agreement".to_owned())??;
    if let Some(violation) = world.violations().first() {
        return Err(violation.clone());
    }
    let history = history.lock().unwrap().clone();
    if !is_linearizable(Machine::default(), &history) {
        return Err(format!("not linearizable: {history:#?}"));
    }
    let delivered = order.lock().unwrap().delivered;
    Ok(Report {
        operations: history.len(),
        unanswered: history.iter().filter(|operation| operation.output.is_none()).count(),
        delivered,
        crashes: world.crashes(),
        sent: world.network.sent(),
        trace: world.network.trace(),
    })
}

/// Disturbs the cluster until the time is over.
async fn trouble(world: &Arc<World>, until: Instant) {
    sleep(Duration::from_millis(500)).await;
    while Instant::now() < until {
        let (kind, node, other) = world.random(|random| {
            (random.below(10), 1 + random.below(world.size), 1 + random.below(world.size))
        });
        let on = world.on();
        match kind {
            0 | 1 if on.contains(&node) => world.crash(node),
            0..=2 if !on.contains(&node) => world.turn_on(node).await,
            3 => world.network.weather(|weather| {
                for other in (1..=world.size).filter(|other| *other != node) {
                    weather.cut.extend([(node, other), (other, node)]);
                }
            }),
            4 => world.network.weather(|weather| {
                // It hears nobody, or nobody hears it.
                for other in (1..=world.size).filter(|other| *other != node) {
                    weather.cut.insert(if node % 2 == 0 { (node, other) } else { (other, node) });
                }
            }),
            5 => world.network.weather(|weather| weather.cut.extend([(node, other)])),
            6 => world.network.weather(|weather| weather.slow.extend([(node, 40)])),
            7 => world.network.weather(|weather| (weather.loss, weather.doubles) = (50, 50)),
            _ => world.network.weather(|weather| *weather = network::Weather::default()),
        }
        let pause = world.random(|random| 100 + random.below(700));
        sleep(Duration::from_millis(pause)).await;
    }
}

/// Everything works again.
async fn heal(world: &Arc<World>) {
    world.network.weather(|weather| *weather = network::Weather::default());
    for node in 1..=world.size {
        if !world.on().contains(&node) {
            world.turn_on(node).await;
        }
    }
}

/// All nodes come to the same state, which is that of the majority.
async fn agree(world: &Arc<World>) -> Result<(), String> {
    loop {
        let mut states = Vec::new();
        for node in world.on() {
            let Some(group) = world.group(node) else { continue };
            if !group.is_running() {
                return Err(format!("node {node} has given up"));
            }
            states.push((group.applied(), group.look(group::state::State::snapshot)));
        }
        let same_index = states.iter().all(|(index, _)| *index == states[0].0);
        if same_index && world.any().is_some_and(|group| group.leader().is_some()) {
            let same = states.iter().all(|state| *state == states[0]);
            return if same { Ok(()) } else { Err("states differ at one index".into()) };
        }
        sleep(Duration::from_millis(7)).await;
    }
}

#[test]
fn histories_are_linearizable_and_orders_are_one_whatever_happens() {
    let mut total = Report::default();
    let runs = seeds::each(SEEDS, run, |report| {
        total.operations += report.operations;
        total.unanswered += report.unanswered;
        total.delivered += report.delivered;
        total.crashes += report.crashes;
        total.sent += report.sent;
        total.trace ^= report.trace;
    });
    println!("{runs} seeds: {total:?}");
    let tested = total.operations > 0 && (total.delivered > 0 || runs == 1);
    assert!(tested, "nothing was tested: {total:?}");
}

#[test]
fn a_run_is_the_same_each_time() {
    for seed in 0..12 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
