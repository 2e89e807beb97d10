//! The project's own chores: house rules, all tests, long simulations, fuzzing.

mod fuzz;
mod simulate;
mod test;
mod tidy;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  tidy   check the house rules: imports between crates, licences, file heads, purity, …
  test [FILTER]
         install the Debian packages that the tests need, if missing, and run all tests
  simulate [SEEDS]
         every simulation with that many seeds (10000)
  fuzz [SECONDS [TARGET]]
         every fuzz target for that long (600 s); needs a nightly toolchain and cargo-fuzz";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["tidy"] => tidy::run(),
        ["test", filter @ ..] => test::run(filter),
        ["simulate"] => simulate::run("10000"),
        ["simulate", seeds] => simulate::run(seeds),
        ["fuzz"] => fuzz::run("600", ""),
        ["fuzz", seconds] => fuzz::run(seconds, ""),
        ["fuzz", seconds, target] => fuzz::run(seconds, target),
        _ => bail!("{USAGE}"),
    }
}

/// The cargo that runs this program.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The folder of the whole project.
fn root() -> std::path::PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask is a folder of the project").to_path_buf()
}
