//! SLOTS over whole clusters: members on nodes that crash and are cut off; no slot is taken twice.

use crate::world::World;
use crate::{TROUBLE, heal, seeds, trouble};
use group::slots::Shares;
use group::{Group, SlotMember};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Seeds of a run of the tests.
const SEEDS: u64 = 40;

const TOTAL: u16 = 24;

/// A member that says nothing is taken out after this time, in milliseconds.
const TTL: u64 = 1000;

/// Who has a process in a slot. One whose node is off or who is fenced has none any more.
#[derive(Default)]
struct InUse {
    slots: BTreeMap<u16, (u64, Group, SlotMember)>,
    granted: u64,
    refused: u64,
    violation: Option<String>,
}

type Shared = Arc<Mutex<InUse>>;

impl InUse {
    fn take(&mut self, slot: u16, node: u64, group: &Group, member: &SlotMember) {
        self.granted += 1;
        if !group.is_running() || *member.fenced().borrow() {
            return;
        }
        let holder = (node, group.clone(), member.clone());
        if let Some((other, group, member)) = self.slots.insert(slot, holder)
            && group.is_running()
            && !*member.fenced().borrow()
        {
            self.violation = Some(format!("slot {slot} is taken on node {other} and on {node}"));
        }
    }

    fn give_back(&mut self, slot: u16, member: &SlotMember) {
        if self.slots.get(&slot).is_some_and(|(_, _, holder)| holder.client() == member.client()) {
            self.slots.remove(&slot);
        }
    }
}

/// Keeps a member on a node, anew whenever it is fenced, and processes in slots.
async fn node(world: Arc<World>, node: u64, shared: Shared, until: Instant) {
    while Instant::now() < until {
        let joined = async {
            let group = world.group(node)?;
            let shares = Shares::new(TOTAL, 3).unwrap();
            Some((group.clone(), SlotMember::join(&group, 7, shares, TTL).await.ok()?))
        };
        let Ok(Some((group, member))) = timeout(Duration::from_secs(3), joined).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut processes = Vec::new();
        for _ in 0..8 {
            let (world, group, member) = (world.clone(), group.clone(), member.clone());
            let work = processes_of(world, node, group, member, shared.clone(), until);
            processes.push(tokio::spawn(work));
        }
        for process in processes {
            process.await.unwrap();
        }
    }
}

async fn processes_of(
    world: Arc<World>,
    node: u64,
    group: Group,
    member: SlotMember,
    shared: Shared,
    until: Instant,
) {
    while Instant::now() < until && group.is_running() && !*member.fenced().borrow() {
        let wait = world.random(|random| random.one_in(2));
        match timeout(Duration::from_secs(2), member.allocate(wait)).await {
            Ok(Ok(slot)) => {
                shared.lock().unwrap().take(slot, node, &group, &member);
                let life = world.random(|random| 20 + random.below(300));
                let mut fenced = member.fenced();
                let ends = timeout(Duration::from_millis(life), fenced.wait_for(|fenced| *fenced));
                if ends.await.is_err() {
                    shared.lock().unwrap().give_back(slot, &member);
                    member.free(slot);
                }
            }
            Ok(Err(_)) => shared.lock().unwrap().refused += 1,
            Err(_) => {}
        }
        let pause = world.random(|random| random.below(100));
        sleep(Duration::from_millis(pause)).await;
    }
}

async fn live(seed: u64) -> (u64, u64) {
    let world = World::start(seed, 3).await;
    let shared = Shared::default();
    let until = Instant::now() + TROUBLE;
    let long = until + Duration::from_secs(8);
    let nodes: Vec<_> =
        (1..=3).map(|n| tokio::spawn(node(world.clone(), n, shared.clone(), long))).collect();
    trouble(&world, until).await;
    heal(&world).await;
    // All get on again, on each node.
    sleep(Duration::from_secs(6)).await;
    for node in 1..=3 {
        let group = world.group(node).unwrap();
        let shares = Shares::new(TOTAL, 3).unwrap();
        let member = SlotMember::join(&group, 8, shares, TTL).await.unwrap();
        let slot = timeout(Duration::from_secs(10), member.allocate(true)).await;
        assert!(matches!(slot, Ok(Ok(_))), "seed {seed}: node {node} gets no slot");
    }
    for node in nodes {
        timeout(Duration::from_secs(30), node).await.expect("it does not end").unwrap();
    }
    let shared = shared.lock().unwrap();
    assert_eq!(shared.violation, None, "seed {seed}");
    assert!(shared.granted > 100, "seed {seed}: {} slots were granted", shared.granted);
    (shared.granted, shared.refused)
}

#[test]
fn no_slot_is_taken_twice_on_nodes_that_crash_and_are_cut_off() {
    let mut total = (0, 0);
    let on_its_own_clock = |seed| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        Ok(runtime.map_err(|error| error.to_string())?.block_on(live(seed)))
    };
    seeds::each(SEEDS, on_its_own_clock, |(granted, refused)| {
        total = (total.0 + granted, total.1 + refused);
    });
    println!("{} slots were granted, {} wanted in vain", total.0, total.1);
}
