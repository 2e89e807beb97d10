//! All tests with one command: what the programs of legacy-tests come in, Debian packages and crates, then cargo test.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the tests run, and the Debian package it comes in. Everything else they need is in the
/// system itself or in this project.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/python3", "python3"),
    ("/usr/bin/perl", "perl"),
    ("/usr/share/perl", "perl"),
    ("/usr/bin/sqlite3", "sqlite3"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("/usr/bin/flock", "util-linux"),
    ("/usr/bin/ps", "procps"),
    ("/usr/bin/diff", "diffutils"),
    ("/usr/bin/find", "findutils"),
    ("/usr/bin/strace", "strace"),
];

/// Crates with programs that the tests run, and their versions. Each is in `target/tools/NAME-VERSION`.
const CRATES: &[(&str, &str)] = &[("pjdfstest", "0.2.2")];

/// Runs all tests, or those whose names contain `filter`.
pub(crate) fn run(filter: &[&str]) -> Result<()> {
    let missing = missing(PROGRAMS, |path| Path::new(path).exists());
    if !missing.is_empty() {
        install(&missing)?;
    }
    for (name, version) in CRATES {
        install_crate(name, version)?;
    }
    cargo(["test", "--release", "--workspace", "--locked", "--no-run"], &[])?;
    cargo(["test", "--release", "--workspace", "--locked"], filter)?;
    if crate::root().join("preload/Cargo.toml").is_file() {
        cargo(["test", "--release", "--locked", "--manifest-path=preload/Cargo.toml"], filter)?;
    }
    Ok(())
}

/// The packages of the programs that are not there, each once.
fn missing(programs: &[(&str, &'static str)], exists: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        programs.iter().filter(|(path, _)| !exists(path)).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Installs Debian packages, as root or by sudo.
fn install(packages: &[&str]) -> Result<()> {
    let advice = || {
        format!(
            "the tests run programs of these Debian packages; please install: {}",
            packages.join(" ")
        )
    };
    let user = Command::new("id").arg("-u").output().context("cannot run id")?.stdout;
    let sudo: &[&str] = if user.trim_ascii() == b"0" { &[] } else { &["sudo"] };
    for command in [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends"]] {
        let packages = if command[0] == "install" { packages } else { &[] };
        let line = [sudo, &["apt-get"], command, packages].concat();
        eprintln!("+ {}", line.join(" "));
        let status = Command::new(line[0])
            .args(&line[1..])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status();
        ensure!(status.with_context(advice)?.success(), "{}", advice());
    }
    Ok(())
}

/// Builds a crate's programs, with the versions of its dependencies that it was published with.
fn install_crate(name: &str, version: &str) -> Result<()> {
    let target = target().context("this program is in no target folder")?;
    let place = target.join(format!("tools/{name}-{version}"));
    if place.join("bin").join(name).is_file() {
        return Ok(());
    }
    let place = place.to_string_lossy();
    cargo(["install", name, "--version", version, "--locked", "--root", &place], &[])
}

/// The target folder, in which this program is.
fn target() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.parent()?.to_path_buf())
}

/// The `dvs` that `cargo test --workspace` makes.
fn built_program() -> Option<PathBuf> {
    let program = target()?.join("release/dvs");
    program.is_file().then_some(program)
}

fn cargo<const N: usize>(arguments: [&str; N], filter: &[&str]) -> Result<()> {
    eprintln!("+ cargo {} {}", arguments.join(" "), filter.join(" "));
    let mut command = Command::new(crate::cargo());
    if let Some(program) = built_program().filter(|_| !arguments.contains(&"--no-run")) {
        // Else legacy-tests would build it once more, with the features that it alone needs.
        command.env("DVS_PROGRAM", program);
    }
    let status = command.args(arguments).args(filter).current_dir(crate::root()).status()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn only_the_packages_of_missing_programs_are_installed_and_each_once() {
        let programs = &[("/a", "one"), ("/b", "two"), ("/c", "two"), ("/d", "three")];
        assert_eq!(missing(programs, |_| true), [""; 0]);
        assert_eq!(missing(programs, |path| path == "/d"), ["one", "two"]);
    }
}
