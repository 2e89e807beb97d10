//! The programs of the tests: scripts and C sources in `programs/`, and what runs them.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's own Python, not one that a version manager puts in front of it.
pub const PYTHON: &str = "/usr/bin/python3";

/// The path of a file in `programs/`.
pub fn path(name: &str) -> String {
    format!("{}/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The path of a program that `cargo xtask test` has built of a crate, `package` being its name and version.
///
/// # Panics
/// It is not there.
pub fn tool(package: &str, name: &str) -> String {
    let test = std::env::current_exe().expect("this program has a file");
    let target = test.ancestors().nth(3).expect("it is in target/PROFILE/deps");
    let program = target.join("tools").join(package).join("bin").join(name);
    assert!(program.is_file(), "{} is missing: `cargo xtask test` installs it", program.display());
    program.to_string_lossy().into_owned()
}

/// The C programs, each a call family.
pub const C_PROGRAMS: [&str; 4] = ["posix_sem", "posix_mq", "sysv_sem", "sysv_msg"];

/// Compiles `name`.c into `folder`; returns the program.
///
/// # Errors
/// There is no gcc, or it refuses.
pub fn compile(name: &str, folder: &Path, options: &[&str]) -> Result<PathBuf> {
    compile_with(name, folder, options, &[])
}

/// The same for a program over `libdvk`, which is linked into it.
///
/// # Errors
/// The library cannot be built; there is no gcc, or it refuses.
pub fn compile_with_dvk(name: &str, folder: &Path) -> Result<PathBuf> {
    let dvk = concat!(env!("CARGO_MANIFEST_DIR"), "/../libdvk");
    let archive = crate::lab::build("libdvk", "libdvk_client.a")?;
    let archive = archive.to_string_lossy();
    compile_with(name, folder, &["-I", &format!("{dvk}/include")], &[&archive, "-lm", "-ldl"])
}

fn compile_with(
    name: &str,
    folder: &Path,
    options: &[&str],
    libraries: &[&str],
) -> Result<PathBuf> {
    let program = folder.join(name);
    let output = Command::new("gcc")
        .args(["-std=gnu17", "-O1", "-Wall", "-Wextra", "-pthread"])
        .args(options)
        .arg("-o")
        .arg(&program)
        .arg(path(&format!("{name}.c")))
        .args(libraries)
        .output()
        .context("cannot run gcc")?;
    ensure!(output.status.success(), "gcc {name}.c:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}
