//! The program `dvs`, and a lab of three nodes.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The nodes of a lab.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The distributed container of a lab.
pub const DC: &str = "legacy";

/// Names the program instead of building it.
const PROGRAM_VARIABLE: &str = "DVS_PROGRAM";
/// In the environment of `dvs`: the directory of the lab.
const LAB_VARIABLE: &str = "DVS_LAB_DIR";

/// `dvs`, built like this test: same profile, same target directory, so one build serves all.
///
/// # Errors
/// It cannot be built.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return Ok(program.into());
    }
    build("dvs", "dvs")
}

/// Builds a package like this test; returns the file of that name that it makes.
///
/// # Errors
/// It cannot be built.
pub fn build(package: &str, file: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut folder = own.parent().context("a program is in a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps is in a folder")?;
    }
    let target = folder.parent().context("a profile's folder is in the target folder")?;
    let profile = if folder.ends_with("release") { "release" } else { "dev" };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--locked",
        "--package",
        package,
        "--profile",
        profile,
        "--target-dir",
    ]);
    command.arg(target).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    for (name, _) in std::env::vars_os() {
        // What cargo says to this test about its own package is not about dvs.
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    let built = command.status().context("cannot run cargo")?.success();
    ensure!(built, "{package} cannot be built");
    Ok(folder.join(file))
}

/// Why neither a lab nor an embedded system can be here, if so.
pub fn obstacle() -> Option<String> {
    let fuse = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    fuse.err().map(|error| format!("/dev/fuse cannot be opened: {error}"))
}

/// A command that looks for its lab in `directory` only.
pub(crate) fn command(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.env(LAB_VARIABLE, directory).env_remove("DVS_SOCKET");
    command
}

/// A lab that is up. It goes down with this value.
#[derive(Debug)]
pub struct Lab {
    program: PathBuf,
    directory: PathBuf,
}

impl Lab {
    /// Brings up a lab of three nodes that has all its files in `directory`.
    ///
    /// # Errors
    /// What `dvs lab up` says, and what its daemons have logged.
    pub fn up(program: &Path, directory: &Path) -> Result<Lab> {
        Lab::up_with(program, directory, &[])
    }

    /// The same, with more options of `dvs lab up`.
    ///
    /// # Errors
    /// As there.
    pub fn up_with(program: &Path, directory: &Path, options: &[&str]) -> Result<Lab> {
        let lab = Lab { program: program.to_path_buf(), directory: directory.to_path_buf() };
        let usual = ["lab", "up", "--nodes", "3", "--dc", DC];
        let output = lab.dvs(&[&usual, options].concat())?;
        if !output.status.success() {
            bail!("dvs lab up: {}{}", String::from_utf8_lossy(&output.stderr), lab.logs());
        }
        Ok(lab)
    }

    /// Runs `dvs` with these arguments to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn dvs(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        command.output().with_context(|| format!("cannot run {}", self.program.display()))
    }

    /// `dvs` of this lab.
    pub fn command(&self) -> Command {
        command(&self.program, &self.directory)
    }

    /// The rows that a command prints with `--json`.
    ///
    /// # Errors
    /// It fails, or does not print JSON.
    pub fn rows(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let output = self.dvs(&[arguments, &["--json"]].concat())?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "dvs {}: {errors}", arguments.join(" "));
        let output = String::from_utf8(output.stdout)?;
        output
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// The process that has this role ("vfs-server", …): the first one in the list of the lab.
    ///
    /// # Errors
    /// There is none.
    pub fn server(&self, role: &str) -> Result<i32> {
        let rows = self.rows(&["lab", "status"])?;
        let row = rows.iter().find(|row| row["process"] == role && row["pid"].as_i64() > Some(0));
        let pid = row
            .and_then(|row| row["pid"].as_i64())
            .with_context(|| format!("no {role}: {rows:?}"))?;
        Ok(i32::try_from(pid)?)
    }

    /// Is every node, server and container there?
    pub fn is_healthy(&self) -> bool {
        self.dvs(&["lab", "status"]).is_ok_and(|output| output.status.success())
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        for path in files(&self.directory)
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "log"))
        {
            let text = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            logs.push_str(&format!("\n--- {}\n{end}", path.display()));
        }
        logs
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        match self.dvs(&["lab", "down"]) {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("dvs lab down: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("dvs lab down: {error:#}"),
        }
    }
}

/// All files below `folder`, not following links or entering the mounts of the nodes.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && entry.file_name() != "store" => {
                found.extend(files(&entry.path()))
            }
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    found
}
