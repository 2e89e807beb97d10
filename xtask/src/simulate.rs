//! The simulations, with more seeds than `cargo xtask test` has time for.

use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::Instant;

/// Every test that goes through seeds: the test program it is in (none: beside the code), and its name.
const SIMULATIONS: &[(Option<&str>, &str)] = &[
    (None, "sim::"),
    (Some("simulation"), "whatever_goes_wrong_nothing_is_lost_doubled_or_stuck"),
    (Some("simulation"), "what_was_synced_survives_a_power_failure"),
    (Some("simulation"), "histories_are_linearizable_and_orders_are_one_whatever_happens"),
    (Some("simulation"), "no_slot_is_taken_twice_on_nodes_that_crash_and_are_cut_off"),
    (Some("slots"), "slots_are_safe_and_nobody_starves_whatever_happens"),
];

/// Runs each simulation with as many seeds as the text `seeds` says.
pub(crate) fn run(seeds: &str) -> Result<()> {
    let count: u64 = seeds.parse().with_context(|| format!("{seeds} is not a number of seeds"))?;
    for (program, name) in SIMULATIONS {
        let began = Instant::now();
        // The whole workspace, as in `cargo xtask test`: else cargo builds its dependencies again with fewer features.
        let mut line = vec!["test", "--release", "--workspace", "--locked"];
        line.extend(program.map_or(vec!["--lib"], |program| vec!["--test", program]));
        line.extend([name, "--", "--nocapture"]);
        eprintln!("+ SEEDS={count} cargo {}", line.join(" "));
        let status = Command::new(crate::cargo())
            .args(line)
            .env("SEEDS", count.to_string())
            .current_dir(crate::root())
            .status()?;
        ensure!(status.success(), "{name} failed; its output names the seed that repeats it");
        eprintln!("{name}: {count} seeds, {:.0} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}
