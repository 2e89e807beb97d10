//! Labs that are damaged on purpose, each a test's own: dead nodes, junk on sockets, a full disk, other users.

use crate::{EMBEDDED, Test};
use legacy_tests::lab::{DC, NODES};
use legacy_tests::wait::until;
use legacy_tests::{Lab, Outcome, Running, World, program, running::LIMIT, running::code};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("a_dead_node_takes_its_processes_and_nobody_elses", EMBEDDED, dead_node),
    ("a_lab_whose_daemons_were_killed_is_cleared_away", EMBEDDED, dead_lab),
    ("junk_on_every_socket_disturbs_nobody", EMBEDDED, junk),
    ("a_full_disk_is_an_error_for_the_writer_only", EMBEDDED, full_disk),
    ("without_fuse_there_is_one_sentence", EMBEDDED, no_fuse),
    ("a_lab_comes_up_for_a_user_who_is_not_root", EMBEDDED, not_root),
];

/// A lab of this test's own, as a world.
fn own(world: &World, name: &str) -> World {
    let scratch = world.scratch().join(name);
    std::fs::create_dir_all(&scratch).expect("the scratch folder is ours");
    World::lab(world.program(), &scratch).unwrap_or_else(|error| panic!("{error:#}"))
}

fn lab(world: &World) -> &Lab {
    world.as_lab().expect("it is a lab")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The daemon of each node.
fn daemons(lab: &Lab) -> Vec<Pid> {
    let rows = lab.rows(&["lab", "status"]).expect("status lists");
    let pid = |name: &str| {
        let row = rows.iter().find(|row| row["node"] == name && row["address"].is_string());
        let pid = row.and_then(|row| row["pid"].as_i64()).expect("every node has a daemon");
        Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid is not 0")
    };
    NODES.iter().map(|name| pid(name)).collect()
}

/// Is there a process of this machine that was started with this directory as its lab's?
fn left_behind(directory: &Path) -> Vec<String> {
    let wanted = format!("DVS_LAB_DIR={}", directory.display());
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").expect("there is a /proc").flatten() {
        let environment = text(&std::fs::read(process.path().join("environ")).unwrap_or_default());
        if environment.split('\0').any(|variable| variable == wanted) {
            found.push(
                text(&std::fs::read(process.path().join("cmdline")).unwrap_or_default())
                    .replace('\0', " "),
            );
        }
    }
    found
}

fn dead_node(world: &World) {
    let world = own(world, "dead-node");
    let lab = lab(&world);
    let (file, key, name) = (world.file("0\n"), world.key(), format!("/{}", world.name()));
    let other = format!("{file}.other");
    world.run(0, &["cp", &file, &other]);
    world.script(0, "undo.py", &[&key, "set", "1"]);
    // On the node that will die: a lock, a semaphore, and one who waits.
    let mut locked = world.start_script(2, "hold.py", &["fcntl", &file]);
    let mut taken = world.start_script(2, "hold.py", &["undo", &key]);
    let mut waiting = world.start_script(2, "sem.py", &[&name, "wait"]);
    locked.says("held");
    taken.says("held");
    waiting.says("waiting");
    // On the others: those who want them.
    let wanting: Vec<Running> = [("fcntl", &file), ("undo", &other)]
        .into_iter()
        .enumerate()
        .map(|(node, (kind, file))| {
            world.start_script(node, "counter.py", &[kind, file, "1", &key])
        })
        .collect();
    kill_process(daemons(lab)[2], Signal::KILL).expect("it runs");
    for lost in [locked, taken, waiting] {
        let Outcome { code, errors, .. } = lost.wait();
        assert!(code == 124 && errors.trim().lines().count() == 1, "{code}: {errors}");
    }
    wanting.into_iter().for_each(|one| drop(one.succeed()));
    assert_eq!(world.run(0, &["cat", &file, &other]), "1\n1\n");
    assert_eq!(world.script(1, "undo.py", &[&key, "get"]), "1\n");
    // The one who waited takes nothing with it.
    world.script(0, "sem.py", &[&name, "post", "1"]);
    world.script(1, "sem.py", &[&name, "wait"]);
    let outcome = world.outcome(2, &["true"]);
    assert!(outcome.code == 124 && outcome.errors.trim().lines().count() == 1, "{outcome:?}");
    let rows = lab.rows(&["ps"]).expect("ps lists");
    assert!(rows.iter().all(|row| row["node"] != "n3"), "{rows:?}");
    assert_eq!(code(lab.dvs(&["lab", "status"]).expect("dvs runs").status), 1);
}

fn dead_lab(world: &World) {
    let world = own(world, "dead-lab");
    let lab = lab(&world);
    let directory = world.scratch().join("lab");
    let mut stays = world.start(1, &["sh", "-c", "echo ready; exec tail -f /dev/null"]);
    stays.says("ready");
    for daemon in daemons(lab) {
        kill_process(daemon, Signal::KILL).expect("it runs");
    }
    assert_eq!(stays.wait().code, 124);
    let output = lab.dvs(&["lab", "up"]).expect("dvs runs");
    assert!(!output.status.success() && text(&output.stderr).contains("lab down"), "{output:?}");
    assert_eq!(code(lab.dvs(&["ps"]).expect("dvs runs").status), 124);
    let output = lab.dvs(&["lab", "down"]).expect("dvs runs");
    assert!(output.status.success(), "{output:?}");
    assert!(!directory.exists());
    let alone = until(LIMIT, || left_behind(&directory).is_empty().then_some(()));
    assert!(alone.is_some(), "still there: {:?}", left_behind(&directory));
    let output = lab.dvs(&["lab", "up", "--dc", DC]).expect("dvs runs");
    assert!(output.status.success(), "{output:?}");
    world.run(2, &["true"]);
}

/// Bytes that follow no protocol: lengths out of bounds, zeros, ones, a stretch of noise.
fn rubbish() -> Vec<Vec<u8>> {
    let mut state: u32 = 1;
    let mut noise = |length: usize| -> Vec<u8> {
        let byte = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..length).map(byte).collect()
    };
    let mut all = vec![vec![], vec![0; 64], vec![255; 4096], b"GET / HTTP/1.0\r\n\r\n".to_vec()];
    all.extend((1..40).map(|length| noise(length * 7)));
    all.push(noise(100_000));
    all
}

fn junk(world: &World) {
    let world = own(world, "junk");
    let lab = lab(&world);
    let before: Vec<Pid> = daemons(lab);
    let server = lab.server("vfs-server").expect("it is there");
    let file = world.file("0\n");
    let counter = world.start_script(1, "counter.py", &["fcntl", &file, "2000"]);
    // The sockets of this machine: the doors take packets, the command line's are streams.
    let script = program::path("junk.py");
    let data = world.scratch().join("rubbish");
    let mut list = std::fs::File::create(&data).expect("the scratch folder is ours");
    for bytes in rubbish() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(list, "{hex}").expect("the scratch folder is ours");
    }
    let data = data.to_string_lossy().into_owned();
    for node in NODES {
        let folder = world.scratch().join("lab").join(node);
        for socket in sockets(&folder) {
            let path = socket.to_string_lossy().into_owned();
            let status = Command::new(program::PYTHON)
                .args([&script, &path, &data])
                .status()
                .expect("python3 runs");
            assert!(status.success(), "{path}");
            // One that connects and says nothing.
            drop(UnixStream::connect(&socket));
        }
    }
    // Between nodes, from a program on another node, and from inside a container at its own door.
    let rows = lab.rows(&["lab", "status"]).expect("status lists");
    for address in rows.iter().filter_map(|row| row["address"].as_str()) {
        world.run(1, &[program::PYTHON, &script, address, &data]);
    }
    counter.succeed();
    assert_eq!(world.run(2, &["cat", &file]), "2000\n");
    assert!(lab.is_healthy(), "{}", lab.logs());
    assert_eq!(daemons(lab), before, "a daemon was started again");
    assert_eq!(lab.server("vfs-server").expect("it is there"), server);
}

/// The sockets in a node's directory.
fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the node has a directory");
    let paths = entries.flatten().map(|entry| entry.path());
    let found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "sock")).collect();
    assert!(!found.is_empty(), "no socket in {}", folder.display());
    found
}

/// A command in a mount namespace of its own, after `preparation` in a shell there.
fn apart(world: &World, preparation: &str, command: &[&str], directory: &Path) -> Output {
    let line = format!("{preparation}; exec \"$0\" \"$@\"");
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", &line]).args(command);
    unshare.env("DVS_LAB_DIR", directory).env("DVS", world.program()).stdin(Stdio::null());
    unshare.output().expect("unshare(1) runs")
}

/// Has this process the rights that the test needs? Says loudly if not.
fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("*** NOT TESTED: {what}; only root can mount");
    }
    root
}

fn full_disk(world: &World) {
    if !is_root("a full disk") {
        return;
    }
    let folder = world.scratch().join("small");
    std::fs::create_dir_all(&folder).expect("the scratch folder is ours");
    // The lab's directory is on a disk of 300 MB, which one file fills.
    let script = "set -e
        \"$DVS\" lab up --nodes 1 >&2
        trap '\"$DVS\" lab down >&2' EXIT
        \"$DVS\" run -- sh -c 'echo before >/dvs/before; sync /dvs/before'
        \"$DVS\" run -- sh -c 'cat /dev/zero >/dvs/big' && echo 'no error'
        \"$DVS\" run -- cat /dvs/before
        \"$DVS\" run -- rm /dvs/big
        \"$DVS\" run -- sh -c 'echo after >/dvs/after; cat /dvs/after; ls /dvs'
        \"$DVS\" lab status >&2";
    let mount = format!("mount -t tmpfs -o size=300M none '{}'", folder.display());
    let script = script.replace("' && echo 'no error'", "' && echo 'no error' || :");
    let output = apart(world, &mount, &["sh", "-c", &script], &folder.join("lab"));
    let (shown, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(shown, "before\nafter\nafter\nbefore\n", "{errors}");
    assert!(errors.contains("No space left"), "{errors}");
    assert!(output.status.success(), "{errors}");
}

fn no_fuse(world: &World) {
    if !is_root("a machine without /dev/fuse") {
        return;
    }
    let directory = world.scratch().join("no-fuse");
    std::fs::create_dir_all(&directory).expect("the scratch folder is ours");
    for command in [&["lab", "up"][..], &["run", "--", "true"]] {
        // An unreadable nothing stands in for a device that is not there.
        let hide = "mount --bind /dev/null /dev/fuse && mount -o remount,bind,nodev /dev/fuse";
        let program = world.program().to_string_lossy().into_owned();
        let output = apart(world, hide, &[&[&*program], command].concat(), &directory.join("lab"));
        let errors = text(&output.stderr);
        assert!(!output.status.success(), "{command:?} succeeds without FUSE");
        assert!(
            errors.trim().lines().count() == 1 && errors.contains("/dev/fuse"),
            "{command:?}: {errors}"
        );
        assert!(!directory.join("lab").exists(), "{command:?} leaves something behind");
    }
}

fn not_root(world: &World) {
    if !is_root("a user who is not root") {
        return;
    }
    // /tmp, and a /dev/fuse for everybody, as Debian's udev makes it.
    let directory =
        tempfile::Builder::new().prefix("dvs-user-").tempdir().expect("a folder for this test");
    let path = directory.path().to_string_lossy().into_owned();
    let device = format!(
        "mknod '{path}/fuse' c 10 229 && chmod 666 '{path}/fuse' && mount --bind '{path}/fuse' /dev/fuse \
         && mkdir '{path}/home' && chown 65534:65534 '{path}/home' && chmod 755 '{path}'"
    );
    let script = "set -e
        export XDG_RUNTIME_DIR=
        \"$DVS\" lab up --nodes 3 >&2
        trap '\"$DVS\" lab down >&2' EXIT
        \"$DVS\" run --node n1 -- sh -c 'echo written; echo shared >/dvs/file'
        \"$DVS\" run --node n3 -- cat /dvs/file
        \"$DVS\" snapshot create s
        \"$DVS\" run --node n2 -- sh -c 'echo later >/dvs/file; cat /dvs/.snapshots/s/file'
        \"$DVS\" scrub >&2
        \"$DVS\" lab status >&2";
    let user =
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", script];
    let output = apart(world, &device, &user, &directory.path().join("home/lab"));
    let (shown, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(shown, "written\nshared\nshared\n", "{errors}");
    assert!(output.status.success(), "{errors}");
}
