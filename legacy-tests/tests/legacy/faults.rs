//! Servers and programs that are killed: nothing that was acknowledged is lost, nobody else sees an error.

use crate::processes::row_of;
use crate::{LAB, Test};
use legacy_tests::wait::until;
use legacy_tests::{Running, World, lab::NODES, running::LIMIT};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_vfs_server_loses_nothing_that_fsync_acknowledged", LAB, vfs_server),
    ("a_killed_ipc_server_keeps_those_who_wait", LAB, ipc_server),
    ("a_killed_pm_server_knows_all_processes_again", LAB, pm_server),
    ("counters_go_on_while_servers_are_killed", LAB, counters),
    ("a_killed_dvs_run_leaves_nobody_behind", LAB, killed_run),
    ("a_stopped_file_agent_delays_others_and_shows_nothing_old", LAB, stopped_agent),
    ("a_bit_that_the_disk_has_changed_is_an_error_and_scrub_names_its_file", LAB, flipped_bit),
];

/// Seconds that a file agent's session lasts without a word of it (`vfs_server::limits::LEASE`).
const LEASE: f64 = 2.0;

/// Kills a server, and waits until another one is there. Returns the new one's pid.
pub(crate) fn kill_server(world: &World, role: &str) -> i32 {
    let lab = world.as_lab().expect("this test is for labs");
    let old = lab.server(role).expect("it is there");
    kill_process(Pid::from_raw(old).expect("a pid is not 0"), Signal::KILL).expect("it runs");
    let new = until(LIMIT, || lab.server(role).ok().filter(|pid| *pid != old && lab.is_healthy()));
    new.unwrap_or_else(|| panic!("{role} is not started again\n{}", lab.logs()))
}

fn vfs_server(world: &World) {
    let folder = world.folder();
    let count = "60";
    let mut writers: Vec<Running> = NODES
        .iter()
        .enumerate()
        .map(|(node, name)| {
            world.start_script(node, "durable.py", &["write", &folder, name, count])
        })
        .collect();
    let mut kills = 0;
    for at in [5, 15, 25] {
        // Each kill in the middle of the load, not before it or after it.
        let reached = until(LIMIT, || (writers[0].output().lines().count() >= at).then_some(()));
        assert!(reached.is_some(), "the writers do not go on: {}", writers[0].errors());
        if writers.iter_mut().any(|writer| writer.ended().is_none()) {
            kill_server(world, "vfs-server");
            kills += 1;
        }
    }
    assert!(kills > 0, "the load was over before anything was killed");
    let said: String = writers.into_iter().map(Running::succeed).collect();
    assert_eq!(said.lines().count(), 180);
    let path = world.scratch().join("said");
    for node in 0..3 {
        std::fs::write(&path, &said).expect("the scratch folder is ours");
        let script = legacy_tests::program::path("durable.py");
        let argv = [legacy_tests::program::PYTHON, &script, "check", &folder];
        assert_eq!(world.start_with(node, &argv, Some(&path)).succeed(), "180 files are whole\n");
    }
    // The tree is consistent: everything can be walked, and removed.
    world.run(1, &["rm", "-r", &folder]);
}

/// Children of a process with such a name.
fn children(parent: Pid, name: &str) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero();
    let text = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let started = text(format!("/proc/{parent}/task/{parent}/children"));
    let named = started.split_whitespace().filter(|pid| {
        // One that is dead and not waited for has a name, too.
        let is_dead = text(format!("/proc/{pid}/stat")).contains(") Z ");
        !is_dead && text(format!("/proc/{pid}/comm")).trim_end() == name
    });
    named.filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw)).collect()
}

/// The `dvs-mount` of a node's container.
pub(crate) fn holder_of(world: &World, node: &str) -> Pid {
    let lab = world.as_lab().expect("this test is for labs");
    let rows = lab.rows(&["lab", "status"]).expect("the lab is up");
    let row = rows.iter().find(|row| row["process"] == "container" && row["node"] == node);
    let container = row.and_then(|row| row["pid"].as_i64()).expect("its container is there");
    let container = Pid::from_raw(i32::try_from(container).expect("a pid")).expect("not 0");
    // Its second half has started it.
    let halves = children(container, "dvs-container");
    let holders = halves.into_iter().flat_map(|half| children(half, "dvs-mount"));
    holders.last().expect("it has a mount")
}

/// The file agent of such a process: waits for the one that follows on one that was killed.
pub(crate) fn agent_held_by(holder: Pid) -> Pid {
    let agent = until(LIMIT, || children(holder, "dvs-agent").pop());
    agent.expect("it has an agent")
}

/// The file agent of a node's container.
pub(crate) fn agent_of(world: &World, node: &str) -> Pid {
    agent_held_by(holder_of(world, node))
}

/// The file agents of all nodes, of which one after the other is killed.
pub(crate) struct Agents {
    /// How long each is left alone.
    lives_for: Duration,
    holders: [Pid; 3],
    killed: [Option<Instant>; 3],
}

impl Agents {
    pub(crate) fn new(world: &World, lives_for: Duration) -> Agents {
        Agents { lives_for, holders: NODES.map(|node| holder_of(world, node)), killed: [None; 3] }
    }

    /// Kills one that has had time to serve. False: none has.
    pub(crate) fn kill(&mut self, round: u64) -> bool {
        let node = usize::try_from(round % 3).expect("it is less than 3");
        let is_due = self.killed[node].is_none_or(|killed| killed.elapsed() > self.lives_for);
        if is_due {
            self.killed[node] = Some(Instant::now());
            kill_process(agent_held_by(self.holders[node]), Signal::KILL).expect("it runs");
        }
        is_due
    }
}

/// How long an agent lives that is not taken for one that cannot.
pub(crate) const AGENT_LIVES_FOR: Duration = Duration::from_millis(1100);

/// Where vfs-server has an inode's bytes.
fn blob_of(world: &World, inode: u64) -> PathBuf {
    let server = world.as_lab().expect("this test is for labs").server("vfs-server");
    let arguments = format!("/proc/{}/cmdline", server.expect("it is there"));
    let arguments = std::fs::read(arguments).expect("it is ours");
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.find(|argument| *argument == b"--store").expect("it has a store");
    let store = arguments.next().expect("a path follows");
    let blobs = Path::new(OsStr::from_bytes(store)).join("blobs");
    blobs.join(format!("{:02x}/{inode:016x}", inode % 256))
}

/// Silent corruption: other files, and other blocks, are as they were; writing it anew mends the file.
fn flipped_bit(world: &World) {
    let folder = world.folder();
    let path = |name: &str| format!("{folder}/{name}");
    let make = |name: &str| {
        let of = format!("of={}", path(name));
        world.run(0, &["dd", "if=/dev/urandom", &of, "bs=64k", "count=8", "status=none"]);
    };
    make("good");
    make("bad");
    let sums = world.run(0, &["sha256sum", &path("good"), &path("bad")]);
    let inode = world.run(0, &["stat", "-c", "%i", &path("bad")]);
    let inode = inode.trim().parse().expect("a number");
    let scrub = |arguments: &[&str]| world.dvs_says(&[&["scrub"], arguments].concat());
    let (status, said) = scrub(&[]);
    assert_eq!(status, Some(0), "{said}");
    // What the disk does: nobody is told.
    let blob = OpenOptions::new().read(true).write(true).open(blob_of(world, inode));
    let blob = blob.expect("it is there");
    let place = 5 * 4096 + 77;
    let mut byte = [0];
    blob.read_exact_at(&mut byte, place).expect("it is that long");
    blob.write_all_at(&[byte[0] ^ 4], place).expect("it is ours");
    // No kernel has the file's pages yet but that of who has written it.
    let read = |node, skip: &str| {
        let (from, skip) = (format!("if={}", path("bad")), format!("skip={skip}"));
        let argv = ["dd", &from, "of=/dev/null", "bs=4k", "count=1", &skip, "status=none"];
        world.outcome(node, &argv)
    };
    let outcome = read(2, "5");
    assert!(outcome.code == 1 && outcome.errors.contains("Input/output error"), "{outcome:?}");
    assert_eq!(read(2, "100").code, 0);
    for arguments in [&["--json"][..], &["--status", "--json"]] {
        let (status, said) = scrub(arguments);
        let expected = format!("{{\"INODE\":{inode},\"OFFSET\":{}}}", 5 * 4096).to_lowercase();
        assert_eq!((status, said.trim().to_lowercase()), (Some(1), expected));
    }
    // In the same file, as `cp` writes it.
    world.run(1, &["cp", &path("good"), &path("bad")]);
    assert_eq!(scrub(&[]).0, Some(0));
    let sums_now = world.run(2, &["sha256sum", &path("good"), &path("bad")]);
    assert_eq!(sums_now.lines().next(), sums.lines().next());
    assert_eq!(sums_now.lines().nth(1).map(|line| &line[..64]), Some(&sums[..64]));
}

/// What a file agent remembers, others may change after a while when it is stopped; and it tells nobody of it then.
fn stopped_agent(world: &World) {
    let folder = world.folder();
    world.run(0, &["touch", &format!("{folder}/f")]);
    let mut looker = world.start_script(1, "look.py", &["look", &folder]);
    looker.says("looked");
    let agent = agent_of(world, NODES[1]);
    kill_process(agent, Signal::STOP).expect("it runs");
    let said = world.script(0, "look.py", &["change", &folder]);
    kill_process(agent, Signal::CONT).expect("it is there");
    let times = |said: &str| -> Vec<f64> {
        said.split_whitespace().map(|word| word.parse().expect("a time")).collect()
    };
    let (change, old) = (times(&said), looker.succeed());
    let old = times(old.trim_start_matches("looked"));
    assert!(old[0] < change[1], "an old size was seen at {}, after {}", old[0], change[1]);
    assert!(old[1] < change[2], "an old name was seen at {}, after {}", old[1], change[2]);
    assert!(change[2] - change[0] < 2.0 * LEASE + 1.0, "the changes took {change:?}");
    assert!(change[1] - change[0] > 0.1, "nobody was waited for: {change:?}");
}

fn ipc_server(world: &World) {
    let name = format!("/{}", world.name());
    let mut waiting: Vec<Running> =
        (0..3).map(|node| world.start_script(node, "sem.py", &[&name, "wait"])).collect();
    waiting.iter_mut().for_each(|one| drop(one.says("waiting")));
    let queue = format!("/{}", world.name());
    let receiver = world.start_script(2, "message.py", &["posix", &queue, "receive"]);
    kill_server(world, "ipc-server");
    world.script(0, "sem.py", &[&name, "post", "3"]);
    waiting.into_iter().for_each(|one| drop(one.succeed()));
    // What is in a queue survives too.
    let kept = format!("/{}", world.name());
    world.script(0, "message.py", &["posix", &kept, "send", "kept", "5"]);
    kill_server(world, "ipc-server");
    world.script(1, "message.py", &["posix", &kept, "end", "1"]);
    let output = world.script(2, "message.py", &["posix", &kept, "receive"]);
    assert_eq!(output, "kept-0\nkept-1\nkept-2\nkept-3\nkept-4\n");
    world.script(1, "message.py", &["posix", &queue, "send", "x", "1"]);
    world.script(1, "message.py", &["posix", &queue, "end", "1"]);
    assert_eq!(receiver.succeed(), "x-0\n");
    world.script(0, "sem.py", &[&name, "unlink"]);
    for queue in [queue, kept] {
        world.script(0, "message.py", &["posix", &queue, "remove"]);
    }
}

fn pm_server(world: &World) {
    let lab = world.as_lab().expect("this test is for labs");
    let mut victim = world.start(2, &["sh", "-c", "echo pid $$; exec tail -f /dev/null"]);
    let pid = victim.says("pid");
    kill_server(world, "pm-server");
    let listed = until(LIMIT, || {
        let rows = lab.rows(&["ps"]).ok()?;
        row_of(&rows, &pid).is_some().then_some(())
    });
    assert!(listed.is_some(), "{pid} is not in the table again");
    world.run(0, &["kill", &pid]);
    assert_eq!(victim.wait().code, 128 + 15);
}

fn counters(world: &World) {
    let (file, other, key) = (world.file("0\n"), world.file("0\n"), world.key());
    world.script(0, "undo.py", &[&key, "set", "1"]);
    let start = |node: usize| {
        [
            world.start_script(node, "counter.py", &["fcntl", &file, "400"]),
            world.start_script(node, "counter.py", &["undo", &other, "400", &key]),
        ]
    };
    let running: Vec<Running> = (0..3).flat_map(start).collect();
    for role in ["vfs-server", "ipc-server", "vfs-server"] {
        kill_server(world, role);
    }
    running.into_iter().for_each(|one| drop(one.succeed()));
    assert_eq!(world.run(0, &["cat", &file, &other]), "1200\n1200\n");
    assert_eq!(world.script(1, "undo.py", &[&key, "get"]), "1\n");
    world.script(2, "undo.py", &[&key, "remove"]);
}

fn killed_run(world: &World) {
    let lab = world.as_lab().expect("this test is for labs");
    let mut victim = world.start(2, &["sh", "-c", "echo pid $$; exec tail -f /dev/null"]);
    let pid = victim.says("pid");
    kill_process(victim.host_pid(), Signal::KILL).expect("it runs");
    let gone = until(LIMIT, || {
        let rows = lab.rows(&["ps"]).ok()?;
        row_of(&rows, &pid).is_none().then_some(())
    });
    assert!(gone.is_some(), "{pid} goes on without its dvs-run");
}
