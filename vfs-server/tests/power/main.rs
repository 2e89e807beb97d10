//! Power failures, at every write and every flush of a recorded run: what was synced is there, and the tree is one that was.
//!
//! A child runs calls on a store on disk (`workload`), under strace(1). From its system calls follows what the disk may hold when
//! the power fails after any of them (`trace`, `disk`): all that was written, only what was flushed, or any part of the
//! rest. From each of these the store is opened. Its map must be exactly what the same calls on a store in memory had made of it
//! after some round: the last that was answered as synced, or a later one. And the bytes of a file that was synced, and not
//! changed since, must be what they were.
//!
//! `POWER_ROUNDS` and `POWER_SEED` make longer and other runs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod check;
mod disk;
mod trace;
mod workload;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where the child has its store; set for it alone.
const PLACE: &str = "DVS_TEST_POWER_PLACE";

/// Rounds of a run, unless told otherwise: some seconds.
const ROUNDS: usize = 150;

fn number<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    let said = std::env::var(name).ok();
    said.map_or(otherwise, |said| said.parse().ok().unwrap_or_else(|| panic!("{name}={said}")))
}

/// What the child does. By itself it is nothing.
#[test]
fn the_run_that_is_recorded() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    workload::on_disk(Path::new(&place), number("POWER_SEED", 1), number("POWER_ROUNDS", ROUNDS));
}

#[test]
fn after_a_power_failure_at_any_moment_the_tree_is_one_that_was_and_synced_files_are_whole() {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        let told = b"SKIPPED, NOT TESTED: power failures; strace is not installed\n";
        std::io::stderr().write_all(told).unwrap();
        return;
    }
    let (seed, rounds) = (number("POWER_SEED", 1), number("POWER_ROUNDS", ROUNDS));
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().join("store");
    std::fs::create_dir(&place).unwrap();
    let log = scratch.path().join("trace");
    let recorded = Command::new("strace")
        .args(["-f", "-xx", "-s", "16777216", "-e", trace::CALLS, "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_run_that_is_recorded", "--nocapture"])
        .env(PLACE, &place)
        .env("POWER_SEED", u64::to_string(&seed))
        .env("POWER_ROUNDS", rounds.to_string())
        .output()
        .unwrap();
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    let events = trace::read(&log, &place);
    let truth = workload::in_memory(seed, rounds);
    let checked = check::check(&events, &truth, seed);
    // Seen in the output of a long run.
    println!("{rounds} rounds, {} events, {checked} states of the disk", events.len());
    assert!(checked > 3 * rounds, "{checked} states for {rounds} rounds");
}
