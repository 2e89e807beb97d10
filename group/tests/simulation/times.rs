//! How long it takes: to notice a node's end, to fence oneself, to get a new leader, to replace a voter.

use crate::world::{LEASE, World};
use group::Realm;
use group::command::{ClientId, Op};
use group::fence::{Fence, margin};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Signs of life are given each quarter of the lease; the leader says when somebody is due; and the network.
const SLACK: u64 = 100;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async { timeout(LONG, test).await.expect("it does not get on") })
}

/// All nodes are up, everywhere.
async fn settled(world: &Arc<World>) {
    for node in world.on() {
        let group = world.group(node).unwrap();
        let all = usize::try_from(world.size).unwrap();
        let up = |state: &group::state::State| {
            let up = state.nodes().filter(|(_, node)| node.up.is_some()).count();
            (up == all).then_some(())
        };
        group.wait(up).await;
        let mut fence = group.fence();
        fence.wait_for(|fence| matches!(fence, Fence::Up { .. })).await.unwrap();
    }
}

/// Waits at `observer` until `node` is taken for down; says how long that was from `start`.
async fn down(world: &Arc<World>, observer: u64, node: u64, start: Instant) -> u64 {
    let number = u16::try_from(node).unwrap();
    let group = world.group(observer).unwrap();
    let gone = |state: &group::state::State| {
        state.node(number).is_some_and(|node| node.up.is_none()).then_some(())
    };
    group.wait(gone).await;
    u64::try_from(start.elapsed().as_millis()).unwrap()
}

#[test]
fn a_node_that_is_cut_off_fences_itself_before_the_majority_takes_it_for_down() {
    let (mut fenced_at, mut down_at) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..30 {
        let node = 1 + seed % 3;
        let other = 1 + (node % 3);
        let (fenced, down) = run(async {
            let world = World::start(seed, 3).await;
            settled(&world).await;
            let start = Instant::now();
            world.network.weather(|weather| {
                for other in 1..=3 {
                    weather.cut.extend([(node, other), (other, node)]);
                }
            });
            let mut fence = world.group(node).unwrap().fence();
            let fenced = async {
                fence.wait_for(|fence| *fence == Fence::Fenced).await.unwrap();
                u64::try_from(start.elapsed().as_millis()).unwrap()
            };
            tokio::join!(fenced, down(&world, other, node, start))
        });
        // The time of the leaderless is no time of the group: then it takes longer.
        assert!(fenced + margin(LEASE) <= down + 1, "seed {seed}: fenced {fenced}, down {down}");
        assert!(fenced <= LEASE - margin(LEASE) + 1, "seed {seed}: fenced at {fenced}");
        assert!(down <= LEASE + 1000 + SLACK, "seed {seed}: down at {down}");
        fenced_at.insert(fenced);
        down_at.insert(down);
    }
    println!(
        "cut off: fenced after {:?}..{:?} ms, taken for down after {:?}..{:?} ms",
        fenced_at.first(),
        fenced_at.last(),
        down_at.first(),
        down_at.last()
    );
}

#[test]
fn the_end_of_a_follower_is_noticed_within_its_lease() {
    let mut times = BTreeSet::new();
    for seed in 0..30 {
        times.insert(run(async {
            let world = World::start(seed, 3).await;
            settled(&world).await;
            let leader = world.any().unwrap().leader().unwrap();
            let node = 1 + leader % 3;
            let start = Instant::now();
            world.crash(node);
            down(&world, leader, node, start).await
        }));
    }
    println!("a follower's end was noticed after {:?}..{:?} ms", times.first(), times.last());
    assert!(times.last().is_some_and(|last| *last <= LEASE + SLACK), "{times:?}");
}

#[test]
fn when_the_leader_dies_the_others_serve_again_within_a_second() {
    let mut times = BTreeSet::new();
    for seed in 0..60 {
        times.insert(run(async {
            let world = World::start(seed, 3).await;
            settled(&world).await;
            let leader = world.any().unwrap().leader().unwrap();
            let other = world.group(1 + leader % 3).unwrap();
            let start = Instant::now();
            world.crash(leader);
            let open = Op::Open { nonce: 1, ttl: 1000, realm: Realm::System };
            other.submit(ClientId::default(), 0, 0, open, LONG).await.unwrap().1.unwrap();
            u64::try_from(start.elapsed().as_millis()).unwrap()
        }));
    }
    println!("without the leader: served after {:?}..{:?} ms", times.first(), times.last());
    assert!(times.last().is_some_and(|last| *last < 1000), "{times:?}");
}

#[test]
fn a_voter_that_is_gone_for_good_is_replaced_by_a_node_that_follows() {
    run(async {
        let world = World::start_with(5, 4, 3, Duration::from_secs(5)).await;
        settled(&world).await;
        let group = world.group(4).unwrap();
        assert_eq!(group.members().get(&4), Some(&false), "three of four vote");
        let leader = group.leader().unwrap();
        world.crash(leader);
        let wanted: BTreeSet<u64> = (1..=4).filter(|node| *node != leader).collect();
        while group.voters() != [wanted.clone()] {
            let applied = group.applied();
            // Signs of life are in the log, so it goes on.
            group.reach(applied + 1).await;
        }
        // The new voters are a majority of their own: one of them may die.
        let next = group.leader().unwrap();
        let other = *wanted.iter().find(|node| **node != next).unwrap();
        world.crash(next);
        let open = Op::Open { nonce: 1, ttl: 1000, realm: Realm::System };
        let group = world.group(other).unwrap();
        group.submit(ClientId::default(), 0, 0, open, LONG).await.unwrap().1.unwrap();
    });
}

#[test]
fn a_node_that_was_away_for_long_gets_a_snapshot_and_signs_on_again() {
    run(async {
        let world = World::start(3, 3).await;
        settled(&world).await;
        let leader = world.any().unwrap().leader().unwrap();
        let node = 1 + leader % 3;
        world.crash(node);
        let group = world.group(leader).unwrap();
        // More than the log keeps.
        for _ in 0..300 {
            group.submit(ClientId::default(), 0, 0, Op::Tick, LONG).await.unwrap().1.ok();
        }
        world.turn_on(node).await;
        settled(&world).await;
        assert_eq!(world.violations(), Vec::<String>::new());
    });
}
