//! SLOTS by seed: members over the group's multicast are disturbed, starved, left alone. `SEED=7` replays one, `SEEDS=10000` runs more.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod experiment;
#[path = "../simulation/random.rs"]
mod random;
#[path = "../seeds/mod.rs"]
mod seeds;
mod world;

use world::{Load, Report, World};

/// Seeds of an ordinary run of the tests.
const SEEDS: u64 = 1000;

/// How long members are disturbed, have to come back, contend, and are left alone; in milliseconds.
const TROUBLE: u64 = 1500;
const RECOVERY: u64 = 1500;
const CONTENTION: u64 = 2000;
const REST: u64 = 8000;

fn size(seed: u64) -> usize {
    match seed % 100 {
        99 => 32,
        other if other % 4 == 0 => 8,
        _ => 3,
    }
}

fn run(seed: u64) -> Result<Report, String> {
    let late = seed % 4 == 1;
    let mut world = World::new(seed, size(seed), late);
    if late {
        // One has all slots in use and wants more of them when the others come.
        world.set_load(Load::Contention);
        world.run(CONTENTION)?;
        world.check_waits()?;
    }
    world.set_load(Load::Mixed);
    for _ in 0..10 {
        world.run(world.now + TROUBLE / 10)?;
        world.disturb();
    }
    // All come back.
    world.run(world.now + RECOVERY)?;
    world.set_load(Load::Contention);
    world.run(world.now + CONTENTION)?;
    world.check_waits()?;
    world.set_load(Load::None);
    world.run(world.now + REST)?;
    if !world.is_quiet() {
        return Err("it goes on though nobody wants anything".into());
    }
    // A question and its answers: each member sends one, and is slow now and then.
    world.fill_one((12 + size(seed) as u64) * world.pace)?;
    Ok(world.report)
}

#[test]
fn slots_are_safe_and_nobody_starves_whatever_happens() {
    let mut total = Report::default();
    let runs = seeds::each(SEEDS, run, |report| {
        total.granted += report.granted;
        total.failed += report.failed;
        total.casts += report.casts;
        total.deaths += report.deaths;
        total.refused += report.refused;
        total.longest_wait = total.longest_wait.max(report.longest_wait);
        total.longest_rounds = total.longest_rounds.max(report.longest_rounds);
    });
    println!("{runs} seeds: {total:?}");
    assert!(total.granted > 0 && total.casts > 0 && total.deaths > 0, "nothing was tested");
}

#[test]
fn a_run_is_the_same_each_time() {
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
