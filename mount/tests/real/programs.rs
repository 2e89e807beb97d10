//! Runs real programs on real mounts. The test itself never touches them: it serves them.

use crate::hosted::{Node, Vos};
use mount::{Mounted, Options};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

/// One tree, mounted on some nodes.
pub(crate) struct World {
    pub(crate) vos: Arc<Vos>,
    mounts: Vec<Mounted>,
    places: Vec<tempfile::TempDir>,
}

/// Can a file system be mounted here? If not, says loudly that nothing is tested.
pub(crate) fn can_mount() -> bool {
    let able = rustix::process::geteuid().is_root()
        && std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !able {
        // Written past the capture of the test runner.
        let told = std::io::stderr()
            .write_all(b"SKIPPED, NOT TESTED: mounting needs root and /dev/fuse\n");
        told.unwrap();
    }
    able
}

/// Is `program` installed? If not, says loudly what is not tested.
pub(crate) fn have(program: &str) -> bool {
    let found = std::env::var("PATH")
        .is_ok_and(|path| path.split(':').any(|place| Path::new(place).join(program).is_file()));
    if !found {
        let told = format!("SKIPPED, NOT TESTED: {program} is not installed\n");
        std::io::stderr().write_all(told.as_bytes()).unwrap();
    }
    found
}

impl World {
    /// A fresh tree, mounted on `nodes` nodes; `None` if that is not possible here.
    pub(crate) fn new(nodes: u16) -> Option<World> {
        World::with_features(nodes, u64::MAX)
    }

    /// As [`World::new`], on kernels that have only these features of FUSE.
    pub(crate) fn with_features(nodes: u16, features: u64) -> Option<World> {
        can_mount().then(|| {
            let vos = Vos::new();
            let mut world = World { vos: vos.clone(), mounts: Vec::new(), places: Vec::new() };
            (1..=nodes).for_each(|number| world.mount(vos.node(number), features));
            world
        })
    }

    fn mount(&mut self, node: Node, features: u64) {
        let place = tempfile::Builder::new().prefix("dvs-mount-test-").tempdir().unwrap();
        open_to_all(place.path());
        let options = Options { features, ..Options::new(place.path()) };
        self.mounts.push(mount::mount(&options, node).unwrap());
        self.places.push(place);
    }

    /// Where node `number` (from 1) has it.
    pub(crate) fn place(&self, number: usize) -> &Path {
        self.mounts[number - 1].path()
    }

    /// How many requests node 1's kernel has made.
    pub(crate) fn requests(&self) -> u64 {
        self.mounts[0].requests()
    }

    /// A shell script on node 1 that must succeed; its output. Other nodes' trees are $N2, $N3.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.sh_in(self.place(1), script)
    }

    /// As [`World::sh`], but not in the tree.
    pub(crate) fn sh_outside(&self, script: &str) -> String {
        self.sh_in(Path::new("/"), script)
    }

    fn sh_in(&self, place: &Path, script: &str) -> String {
        let script = format!("{FAILS}\n{script}");
        succeeded(self.command(place, "sh", &["-euc", &script]), &script)
    }

    /// A Python script on node 1 that must succeed; its output.
    pub(crate) fn python(&self, script: &str) -> String {
        let script = format!("{PRELUDE}\n{script}");
        succeeded(self.command(self.place(1), "/usr/bin/python3", &["-c", &script]), &script)
    }

    fn command(&self, place: &Path, program: &str, args: &[&str]) -> Command {
        // If something hangs, the test fails instead.
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "100", "env", "-C"]).arg(place).arg(program).args(args);
        for (index, mount) in self.mounts.iter().enumerate() {
            command.env(format!("N{}", index + 1), mount.path());
        }
        command.env("LC_ALL", "C").env("TZ", "UTC0");
        command
    }
}

/// For shell scripts: a command that must fail. (`! command` would not end a script if it succeeds.)
pub(crate) const FAILS: &str =
    "fails() { if \"$@\" 2>/dev/null; then echo \"succeeded: $*\" >&2; exit 1; fi; }";

/// What every Python script may use: processes as functions, and waiting without sleeping.
const PRELUDE: &str = r#"
import ctypes, errno, fcntl, mmap, multiprocessing, os, signal, stat, struct, sys, time
multiprocessing.set_start_method("fork")
N = [None] + [os.environ[k] for k in sorted(os.environ) if k[0] == "N" and k[1:].isdigit()]
def spawn(f, *args):
    p = multiprocessing.Process(target=f, args=args)
    p.start()
    return p
def join(*ps):
    for p in ps:
        p.join()
        assert p.exitcode == 0, p.exitcode
def waits_in(p, number):
    "until process p sleeps in system call `number`, of a kind that waits for the lock"
    while True:
        words = open(f"/proc/{p.pid}/syscall").read().split()
        if words[0] == str(number) and int(words[2], 16) in WAITING[number]: return
        assert p.is_alive()
        os.sched_yield()
def fails(number, f, *args, **kw):
    try:
        f(*args, **kw)
    except OSError as e:
        assert e.errno == number, e
    else:
        raise AssertionError(f"{f} succeeded, not {errno.errorcode[number]}")
FLOCK, FCNTL = 73, 72
# LOCK_SH, LOCK_EX; F_SETLKW, F_OFD_SETLKW.
WAITING = {FLOCK: (1, 2), FCNTL: (7, 38)}
"#;

/// The output of a command that must succeed.
fn succeeded(mut command: Command, script: &str) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}\n--- script\n{script}\n--- out\n{out}\n--- err\n{err}");
    out.trim_end().to_string()
}

/// Lets everybody pass: a directory for tests is the owner's only.
pub(crate) fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A process of its own that runs `mount::run` at `place`: this test program, started again.
pub(crate) struct AgentProcess {
    pub(crate) child: Child,
}

/// Tells the process started by [`AgentProcess::start`] what it is.
pub(crate) const AGENT_PLACE: &str = "DVS_TEST_AGENT_PLACE";

impl AgentProcess {
    /// Starts one and waits until the tree is there.
    pub(crate) fn start(place: &Path) -> AgentProcess {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent_process::an_agent_of_other_tests", "--nocapture"])
            .env(AGENT_PLACE, place)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !mounted_at(place)
            // Of a dead mount the kernel may remember attributes, but not this.
            || !Command::new("stat").arg("-f").arg(place).output().unwrap().status.success()
        {
            assert_eq!(child.try_wait().unwrap(), None, "the agent ended");
            std::thread::yield_now();
        }
        AgentProcess { child }
    }
}

/// Is something of ours mounted there?
pub(crate) fn mounted_at(place: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        Path::new(words[1]) == place && words[2] == "fuse.dvs"
    })
}
