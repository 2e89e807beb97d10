//! Where the programs of a test run: on a lab, in an embedded system, or on Linux itself.

use crate::lab::{self, Lab, NODES};
use crate::program;
use crate::running::{Handle, Outcome, Running, Shell, quoted};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Programs, nodes to run them on, and files that they share.
#[derive(Debug)]
pub struct World {
    kind: Kind,
    /// What all programs share: `/dvs`, or a folder of this machine.
    tree: PathBuf,
    /// A folder of this machine, for outputs and compiled programs.
    scratch: PathBuf,
    started: AtomicU32,
    /// The program, and the directory in which it looks for a lab.
    dvs: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug)]
enum Kind {
    /// Three nodes; a program is started by a `dvs-run` of its own.
    Lab(Lab),
    /// One `dvs-run` without a lab, and in it a shell that starts the programs.
    Embedded(Arc<Shell>),
    /// This machine, as it is: what must be right here is what the others are held to.
    Native,
}

/// In the environment of every program: Python leaves no compiled files beside the sources.
const ENVIRONMENT: [(&str, &str); 3] =
    [("PYTHONDONTWRITEBYTECODE", "1"), ("LC_ALL", "C"), ("TZ", "UTC")];

impl World {
    /// Three nodes.
    ///
    /// # Errors
    /// The lab does not come up.
    pub fn lab(program: &Path, scratch: &Path) -> Result<World> {
        let directory = scratch.join("lab");
        let lab = Lab::up(program, &directory)?;
        let dvs = Some((program.to_path_buf(), directory));
        Ok(World { dvs, ..World::new(Kind::Lab(lab), "/dvs".into(), scratch) })
    }

    /// The system of one node that `dvs-run` starts where no lab is.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn embedded(program: &Path, scratch: &Path) -> Result<World> {
        let directory = scratch.join("no-lab");
        let mut command = lab::command(program, &directory);
        command.args(["run", "--", "sh"]).envs(ENVIRONMENT);
        command.stdout(Stdio::null()).stderr(File::create(scratch.join("embedded.errors"))?);
        let shell =
            Shell::start(command).with_context(|| format!("cannot run {}", program.display()))?;
        let dvs = Some((program.to_path_buf(), directory));
        let world = World { dvs, ..World::new(Kind::Embedded(shell), "/dvs".into(), scratch) };
        // From now on its system is there.
        world.run(0, &["true"]);
        Ok(world)
    }

    /// This machine.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn native(scratch: &Path) -> Result<World> {
        let tree = scratch.join("native");
        fs::create_dir_all(&tree)?;
        Ok(World::new(Kind::Native, tree, scratch))
    }

    /// Linux itself beside this world: what it answers is right.
    ///
    /// # Panics
    /// The scratch folder cannot be written.
    pub fn reference(&self) -> World {
        let scratch = self.scratch.join(format!("reference-{}", self.fresh()));
        World::native(&scratch).expect("the scratch folder is ours")
    }

    fn new(kind: Kind, tree: PathBuf, scratch: &Path) -> World {
        World { kind, tree, scratch: scratch.to_path_buf(), started: AtomicU32::new(0), dvs: None }
    }

    /// The lab, if this is one.
    pub fn as_lab(&self) -> Option<&Lab> {
        match &self.kind {
            Kind::Lab(lab) => Some(lab),
            _ => None,
        }
    }

    /// The program `dvs`, which looks for a lab where this world has one, or none.
    ///
    /// # Panics
    /// This world is Linux itself.
    pub fn dvs(&self) -> Command {
        let (program, directory) = self.dvs.as_ref().expect("Linux itself has no dvs");
        lab::command(program, directory)
    }

    /// Runs `dvs` with these arguments to its end: the exit code, and what it says.
    ///
    /// # Panics
    /// As [`World::dvs`]; it cannot be started.
    pub fn dvs_says(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.dvs().args(arguments).output().expect("it can be started");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// The file of the program `dvs`.
    ///
    /// # Panics
    /// This world is Linux itself.
    pub fn program(&self) -> &Path {
        &self.dvs.as_ref().expect("Linux itself has no dvs").0
    }

    /// Is it as it was when it began?
    pub fn is_healthy(&self) -> bool {
        match &self.kind {
            Kind::Lab(lab) => lab.is_healthy(),
            Kind::Embedded(shell) => shell.is_alive(),
            Kind::Native => true,
        }
    }

    /// What its daemons have logged.
    pub fn logs(&self) -> String {
        match &self.kind {
            Kind::Lab(lab) => lab.logs(),
            Kind::Embedded(_) => {
                fs::read_to_string(self.scratch.join("embedded.errors")).unwrap_or_default()
            }
            Kind::Native => String::new(),
        }
    }

    /// A folder of this machine, the same in every world.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A number that no test of this machine has had.
    fn fresh(&self) -> u32 {
        self.started.fetch_add(1, Ordering::Relaxed)
    }

    /// A name for a semaphore or queue, without a slash.
    pub fn name(&self) -> String {
        format!("dvs-legacy-{}-{}", std::process::id(), self.fresh())
    }

    /// A key for semaphores or queues of System V.
    pub fn key(&self) -> String {
        format!("{:#x}", 0x4000_0000 | (std::process::id() & 0x3fff) << 16 | self.fresh())
    }

    /// A new folder that all programs share.
    pub fn folder(&self) -> String {
        let path = self.tree.join(format!("test-{}", self.fresh())).to_string_lossy().into_owned();
        self.run(0, &["mkdir", &path]);
        path
    }

    /// A new file that all programs share.
    pub fn file(&self, text: &str) -> String {
        let path = format!("{}/file", self.folder());
        self.run(0, &["sh", "-c", "printf %s \"$1\" >\"$0\"", &path, text]);
        path
    }

    /// Starts a program on the node with this index (of worlds with nodes).
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(&self, node: usize, argv: &[&str]) -> Running {
        self.start_with(node, argv, None)
    }

    /// As [`World::start`], with a file of this machine as its standard input.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start_with(&self, node: usize, argv: &[&str], input: Option<&Path>) -> Running {
        let number = self.fresh();
        let path = |end: &str| self.scratch.join(format!("run-{number}.{end}"));
        let (output, errors) = (path("out"), path("err"));
        let what = format!("{} on {}", argv.join(" "), NODES[node % NODES.len()]);
        let handle = match &self.kind {
            Kind::Embedded(shell) => {
                let (pid, status) = (path("pid"), path("status"));
                let line = background(argv, input, [&output, &errors, &pid, &status]);
                shell
                    .feed(&line)
                    .unwrap_or_else(|error| panic!("{what}: {error}\n{}", self.logs()));
                Handle::Shell { shell: Arc::clone(shell), pid, status, ended: false }
            }
            Kind::Lab(lab) => {
                let mut command = lab.command();
                command.args(["run", "--node", NODES[node % NODES.len()], "--"]).args(argv);
                Handle::Child(
                    spawn(command, input, &output, &errors)
                        .unwrap_or_else(|e| panic!("{what}: {e:#}")),
                )
            }
            Kind::Native => {
                let mut command = Command::new(argv[0]);
                command.args(&argv[1..]);
                Handle::Child(
                    spawn(command, input, &output, &errors)
                        .unwrap_or_else(|e| panic!("{what}: {e:#}")),
                )
            }
        };
        Running { what, output, errors, handle }
    }

    /// Runs a program to its end.
    pub fn outcome(&self, node: usize, argv: &[&str]) -> Outcome {
        self.start(node, argv).wait()
    }

    /// Runs a program, which must succeed; returns its output.
    pub fn run(&self, node: usize, argv: &[&str]) -> String {
        self.start(node, argv).succeed()
    }

    /// Starts a script of `programs/` on a node: its ending says who runs it.
    pub fn start_script(&self, node: usize, script: &str, arguments: &[&str]) -> Running {
        let path = program::path(script);
        let interpreter: &[&str] = match script.rsplit('.').next() {
            Some("py") => &[program::PYTHON],
            Some("pl") => &["perl"],
            _ => &["sh"],
        };
        self.start(node, &[interpreter, &[&path], arguments].concat())
    }

    /// Runs a script of `programs/`, which must succeed; returns its output.
    pub fn script(&self, node: usize, script: &str, arguments: &[&str]) -> String {
        self.start_script(node, script, arguments).succeed()
    }

    /// Runs a script with the same arguments on all three nodes at the same time; `{node}` in an
    /// argument becomes the node's name. Returns their outputs.
    pub fn on_all(&self, script: &str, arguments: &[&str]) -> Vec<String> {
        let start = |(node, name): (usize, &&str)| {
            let arguments: Vec<String> =
                arguments.iter().map(|word| word.replace("{node}", name)).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            self.start_script(node, script, &arguments)
        };
        let running: Vec<Running> = NODES.iter().enumerate().map(start).collect();
        running.into_iter().map(Running::succeed).collect()
    }
}

fn spawn(
    mut command: Command,
    input: Option<&Path>,
    output: &Path,
    errors: &Path,
) -> Result<std::process::Child> {
    let input = input.map(File::open).transpose()?.map_or(Stdio::null(), Stdio::from);
    command
        .envs(ENVIRONMENT)
        .stdin(input)
        .stdout(File::create(output)?)
        .stderr(File::create(errors)?);
    Ok(command.spawn()?)
}

/// The line for a shell that runs `argv` in the background and keeps everything in files. The status
/// appears at once and whole: as the last step, by a rename.
fn background(
    argv: &[&str],
    input: Option<&Path>,
    [output, errors, pid, status]: [&Path; 4],
) -> String {
    let argv: Vec<String> = argv.iter().map(|word| quoted(word)).collect();
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let input = input.map_or("/dev/null".to_owned(), path);
    let temporary = path(&status.with_extension("part"));
    format!(
        "{{ sh -c 'echo $$ >\"$0\"; exec \"$@\"' {} {} <{input} >{} 2>{}; echo $? >{temporary}; mv {temporary} {}; }} &",
        path(pid),
        argv.join(" "),
        path(output),
        path(errors),
        path(status),
    )
}
