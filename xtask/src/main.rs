//! The project's own chores: `cargo xtask tidy` keeps the house rules, `cargo xtask test` runs all tests.

mod test;
mod tidy;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  tidy   check the house rules: imports between crates, licences, file heads, purity, …
  test   install the Debian packages that the tests need, if missing, and run all tests";

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
        _ => bail!("{USAGE}"),
    }
}

/// The folder of the whole project.
fn root() -> std::path::PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask is a folder of the project").to_path_buf()
}
