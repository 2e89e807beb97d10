//! Labs with real programs: what dvs-run carries, what it says, what ends with what, and what is left.
//!
//! Each test has a lab of its own. Root and /dev/fuse are needed; without them the tests say so and pass.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long something may take that takes no time at all on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

const DVS: &str = env!("CARGO_BIN_EXE_dvs");

/// A lab that ends with the test.
struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    /// `None`: this machine does not let us have one.
    fn up(nodes: u16) -> Option<Lab> {
        let lab = Lab::prepared()?;
        let output = lab.dvs(&["lab", "up", "--nodes", &nodes.to_string()]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Some(lab)
    }

    /// A directory for a lab that is not up yet.
    fn prepared() -> Option<Lab> {
        let fuse = fs::File::options().read(true).write(true).open("/dev/fuse");
        if !rustix::process::geteuid().is_root() || fuse.is_err() {
            eprintln!("SKIPPED: a lab with network namespaces needs root and /dev/fuse");
            return None;
        }
        Some(Lab { directory: tempfile::tempdir().unwrap() })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("lab")
    }

    fn dvs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(DVS);
        command.args(arguments).env("DVS_LAB_DIR", self.path()).stdin(Stdio::null());
        command
    }

    /// A program on a node. SIGHUP has its usual effect, also when the tests run under nohup(1).
    fn command(&self, node: &str, program: &[&str]) -> Command {
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", DVS, "run", "--node", node, "--"]).args(program);
        command.env("DVS_LAB_DIR", self.path()).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    fn run(&self, node: &str, program: &[&str]) -> Output {
        self.command(node, program).output().unwrap()
    }

    fn shell(&self, node: &str, script: &str) -> Output {
        self.run(node, &["sh", "-c", script])
    }

    /// What a script writes; it must succeed.
    fn text(&self, node: &str, script: &str) -> String {
        let output = self.shell(node, script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a script that says something as soon as it runs, and waits for that.
    fn start(&self, node: &str, script: &str) -> (Child, String) {
        let mut command = self.command(node, &["sh", "-c", script]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (child, line.trim().to_owned())
    }

    fn status(&self) -> Vec<serde_json::Value> {
        let output = self.dvs(&["lab", "status", "--json"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The process number of a daemon's child.
    fn child(&self, role: &str, node: &str) -> i32 {
        let status = self.status();
        let row = status.iter().find(|row| row["process"] == role && row["node"] == node);
        i32::try_from(row.unwrap()["pid"].as_i64().unwrap()).unwrap()
    }

    fn dvkd(&self, node: &str) -> i32 {
        let file = fs::read_to_string(self.path().join(node).join("dvkd.pid")).unwrap();
        file.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.dvs(&["lab", "down"]).output().unwrap();
    }
}

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn signal(child: &Child, signal: Signal) {
    kill(i32::try_from(child.id()).unwrap(), signal);
}

/// Waits for a state, not for a time.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The processes of this machine that belong to the lab in `directory`, by the mark that they all carry.
fn processes_of(directory: &Path) -> Vec<String> {
    let mark = format!("DVS_LAB_DIR={}", directory.display());
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.map(|entry| entry.file_name().into_string().unwrap());
    pids.filter(|pid| pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id()))
        .filter(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes())
        })
        .collect()
}

#[test]
fn the_exit_code_is_the_programs_own_or_says_what_failed() {
    let Some(lab) = Lab::up(2) else { return };
    let check = |arguments: &[&str], code: i32, says: &str| {
        let output = lab.dvs(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(says), "{arguments:?}: {output:?}");
        assert!(stderr(&output).lines().count() <= 1, "{arguments:?}: {output:?}");
    };
    check(&["run", "--node", "n2", "--", "sh", "-c", "exit 7"], 7, "");
    check(&["run", "--node", "2", "true"], 0, "");
    check(&["run", "sh", "-c", "kill -KILL $$"], 137, "Killed");
    check(&["run", "sh", "-c", "kill -TERM $$"], 143, "Terminated");
    check(&["run", "sh", "-c", "kill -INT $$"], 130, "");
    check(&["run", "--node", "n9", "true"], 121, "no node \"n9\", only n1, n2");
    check(&["run", "--dc", "shop", "true"], 122, "no distributed container \"shop\"");
    check(&["run", "--node", "n2", "no-such-command"], 127, "no such command on node n2");
    check(&["run", "/no/such/command"], 127, "no such command");
    check(&["run", "/etc/passwd"], 126, "cannot be executed");
    check(&["run", "/"], 126, "cannot be executed");
    check(&["run", "--map", "/etc/passwd", "true"], 125, "--map");
    let nowhere = Command::new(DVS)
        .args(["run", "--node", "n1", "true"])
        .env("DVS_LAB_DIR", "/nonexistent/lab")
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(123), "{nowhere:?}");
}

#[test]
fn streams_are_carried_whole_in_both_directions() {
    let Some(lab) = Lab::up(2) else { return };
    let mut child = lab
        .command("n2", &["sh", "-c", "cat; echo the end >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..3_000_001u32).flat_map(|n| n.to_le_bytes()).collect();
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            input.write_all(&bytes).unwrap();
            drop(input);
        });
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    assert!(output.stdout == bytes, "{} of {} bytes", output.stdout.len(), bytes.len());
    assert_eq!(stderr(&output), "the end\n");
}

#[test]
fn a_program_that_nobody_reads_any_more_gets_sigpipe() {
    let Some(lab) = Lab::up(1) else { return };
    let mut child = lab.command("n1", &["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(&some, b"y\ny\n");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
}

#[test]
fn the_end_of_the_program_is_the_end_even_if_it_leaves_somebody_who_writes() {
    let Some(lab) = Lab::up(1) else { return };
    let output = lab.shell("n1", "yes & echo $!");
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    let left = text.lines().find(|line| *line != "y").unwrap().to_owned();
    // It has gone on without a reader since.
    wait_until("yes has ended", || {
        !lab.shell("n1", &format!("kill -0 {left} 2>/dev/null")).status.success()
    });
}

#[test]
fn surroundings_are_the_callers() {
    let Some(lab) = Lab::up(2) else { return };
    let output = lab
        .command(
            "n2",
            &["sh", "-c", "pwd; echo $COLOUR $DVS_NODE $DVS_DC; umask; uname -n; cat /proc/1/comm"],
        )
        .current_dir("/usr/share")
        .env("COLOUR", "blue")
        .output()
        .unwrap();
    let umask =
        String::from_utf8(Command::new("sh").args(["-c", "umask"]).output().unwrap().stdout);
    let expected = format!("/usr/share\nblue n2 lab\n{}n2\ndvs-container\n", umask.unwrap());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    // A directory that is not there: the root.
    let gone = tempfile::tempdir().unwrap();
    let mut command = lab.command("n1", &["pwd"]);
    command.current_dir(gone.path());
    gone.close().unwrap_or_default();
    let many = "x".repeat(100_000);
    let output = lab
        .command("n1", &["sh", "-c", "echo ${#A} ${#B} ${#C}"])
        .envs([("A", &many), ("B", &many), ("C", &many)])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "100000 100000 100000\n");
}

#[test]
fn a_caller_stays_the_user_it_is_and_gets_no_more_rights() {
    let Some(lab) = Lab::up(1) else { return };
    // Other users must be able to execute the program and to enter the lab's directory.
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let program = directory.path().join("dvs");
    fs::copy(DVS, &program).unwrap();
    for path in [directory.path(), lab.directory.path()] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, open).unwrap();
    }
    let as_user = |arguments: &[&str]| {
        Command::new(&program)
            .args(arguments)
            .env("DVS_LAB_DIR", lab.path())
            .current_dir("/")
            .uid(12_345)
            .gid(54_321)
            .output()
            .unwrap()
    };
    let text = |output: &Output| String::from_utf8(output.stdout.clone()).unwrap();
    let who = as_user(&[
        "run",
        "sh",
        "-c",
        "id -u; id -g; id -G; grep -E 'CapEff|CapPrm' /proc/self/status",
    ]);
    assert_eq!(
        text(&who),
        "12345\n54321\n54321\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n",
        "{who:?}"
    );
    let file = as_user(&["run", "sh", "-c", "echo x > /dvs/mine; stat -c '%u %g' /dvs/mine"]);
    assert_eq!(text(&file), "12345 54321\n", "{file:?}");
    assert!(!as_user(&["run", "cat", "/etc/shadow"]).status.success());
    // Other files in place of /etc must not lead a set-uid program astray.
    let mapped = as_user(&["run", "--map", "/etc", "grep", "NoNewPrivs", "/proc/self/status"]);
    assert_eq!(text(&mapped), "NoNewPrivs:\t1\n", "{mapped:?}");
    // Nor may another user signal root's programs, or end the lab.
    let (mut roots, pid) = lab.start("n1", "echo $$; exec sleep infinity");
    assert!(!as_user(&["run", "sh", "-c", &format!("kill -KILL {pid}")]).status.success());
    assert!(roots.try_wait().unwrap().is_none());
    assert!(!as_user(&["lab", "down"]).status.success());
    signal(&roots, Signal::TERM);
    assert_eq!(roots.wait().unwrap().code(), Some(143));
}

#[test]
fn signals_of_dvs_run_are_the_programs() {
    let Some(lab) = Lab::up(2) else { return };
    let (child, _) =
        lab.start("n2", "trap 'echo got usr1; exit 3' USR1; echo there; while :; do :; done");
    signal(&child, Signal::USR1);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "got usr1\n");
    let (mut child, pid) = lab.start("n2", "echo $$; exec sleep infinity");
    signal(&child, Signal::TSTP);
    let state = || {
        let output = lab.dvs(&["ps", "--json"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let rows = text.lines().map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap());
        let row = rows.into_iter().find(|row| row["pid"].as_u64() == pid.parse().ok());
        row.map_or(String::new(), |row| row["state"].as_str().unwrap().to_owned())
    };
    wait_until("the program stops", || state() == "T");
    let own = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    wait_until("dvs-run stops itself", own);
    signal(&child, Signal::CONT);
    wait_until("the program goes on", || state() == "S");
    signal(&child, Signal::HUP);
    assert_eq!(child.wait().unwrap().code(), Some(129));
}

#[test]
fn a_program_is_hung_up_when_its_dvs_run_dies() {
    let Some(lab) = Lab::up(2) else { return };
    let script = "trap 'echo hung up > /dvs/said; exit' HUP; echo there; while :; do read x < /dvs/none; done 2>&-";
    let (mut child, _) = lab.start("n2", script);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the program has been hung up", || {
        lab.shell("n1", "cat /dvs/said").stdout == b"hung up\n"
    });
    let ps = lab.dvs(&["ps"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ps.stdout).lines().count(), 1, "{ps:?}");
}

#[test]
fn on_a_terminal_the_program_has_one_too() {
    let Some(lab) = Lab::up(2) else { return };
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    let set_size = |rows: u16, columns: u16| {
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).unwrap();
    };
    let before = rustix::termios::tcgetattr(&slave).unwrap();
    set_size(31, 77);
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size; \
                  trap 'stty size' WINCH; echo ready; while read line; do echo \"<$line>\"; done; echo over; exec sleep infinity";
    let mut command = lab.command("n2", &["sh", "-c", script]);
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap());
    let mut child = command.stderr(slave.try_clone().unwrap()).spawn().unwrap();
    let mut terminal = fs::File::from(master.try_clone().unwrap());
    let mut seen = String::new();
    let mut expect = |text: &str| {
        let mut bytes = [0; 256];
        while !seen.contains(text) {
            let count = terminal.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        seen = seen.split_off(seen.find(text).unwrap() + text.len());
    };
    expect("31 77\r\n");
    expect("ready\r\n");
    let mut keys = fs::File::from(master.try_clone().unwrap());
    keys.write_all(b"hello\n").unwrap();
    // Echoed once, by the terminal there, not by the one here.
    expect("hello\r\n<hello>\r\n");
    set_size(50, 100);
    signal(&child, Signal::WINCH);
    keys.write_all(b"\n").unwrap();
    expect("50 100\r\n");
    // End of file, then interrupt: keys, which the terminal there makes a signal of.
    keys.write_all(b"\x04").unwrap();
    expect("over\r\n");
    keys.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let after = rustix::termios::tcgetattr(&slave).unwrap();
    assert_eq!(after.local_modes, before.local_modes, "the terminal is as before");
}

#[test]
fn a_map_is_in_its_run_only() {
    let Some(lab) = Lab::up(2) else { return };
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("beside"), "seen").unwrap();
    let deep = scratch.path().join("not/there/yet");
    let deep = deep.to_str().unwrap();
    let script = format!(
        "echo mapped > {deep}/file; cat /mapped/file /dvs/file; cat {}/beside",
        scratch.path().display()
    );
    let output = lab
        .dvs(&["run", "--node", "n2", "--map", deep, "--map", "/mapped", "--", "sh", "-c", &script])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "mapped\nmapped\nseen", "{output:?}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1, "nothing was made on the host");
    assert!(!Path::new("/mapped").exists());
    assert!(!lab.shell("n2", &format!("test -e {deep}")).status.success());
    assert_eq!(lab.text("n1", "cat /dvs/file"), "mapped\n");
}

#[test]
fn process_numbers_are_of_the_nodes_own_range() {
    let Some(lab) = Lab::up(3) else { return };
    for (node, base) in [("n1", 100_000), ("n2", 200_000), ("n3", 300_000)] {
        let pid: u32 = lab.text(node, "echo $$").trim().parse().unwrap();
        if fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().as_str() >= "6.14" {
            assert!((base + 1..base + 100_000).contains(&pid), "{node}: {pid}");
        }
    }
    let (mut child, pid) = lab.start("n3", "echo $$; exec sleep infinity");
    assert!(lab.text("n1", &format!("{DVS} ps")).contains(&pid), "listed on every node");
    assert!(lab.shell("n1", &format!("kill -TERM {pid}")).status.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn dvs_run_works_from_inside_to_another_node() {
    let Some(lab) = Lab::up(2) else { return };
    assert_eq!(lab.text("n1", &format!("{DVS} run --node n2 -- uname -n")), "n2\n");
    assert_eq!(lab.text("n1", &format!("echo through | {DVS} run --node n2 -- cat")), "through\n");
    assert_eq!(lab.text("n2", &format!("{DVS} run -- uname -n")), "n2\n");
    // The doors of other nodes and containers cannot be seen from inside.
    let lab_there = format!("ls -A {} 2>/dev/null | wc -l", lab.path().display());
    assert_eq!(lab.text("n1", &lab_there), "0\n");
}

#[test]
fn what_was_killed_is_back() {
    let Some(lab) = Lab::up(2) else { return };
    lab.text("n1", "echo kept > /dvs/file; sync");
    let is_back = |what: &str| {
        wait_until(what, || lab.shell("n2", "cat /dvs/file").stdout == b"kept\n");
    };
    kill(lab.child("vfs-server", "n1"), Signal::KILL);
    is_back("the file server");
    // Nobody notices that the file agent is another.
    let agent = "grep -lx dvs-agent /proc/[0-9]*/comm | cut -d / -f 3";
    let open = format!("exec 3> /dvs/open; kill -KILL $({agent}); echo on >&3; cat /dvs/open");
    let before = lab.text("n2", agent);
    assert_eq!(lab.text("n2", &open), "on\n");
    assert_ne!(lab.text("n2", agent), before);
    // dvs-mount has number 2, and what is open goes with it.
    assert_eq!(lab.text("n2", "cat /proc/2/comm"), "dvs-mount\n");
    assert!(lab.shell("n2", "kill -KILL 2").status.success());
    is_back("the file agent");
    let (mut child, _) = lab.start("n2", "echo there; exec sleep infinity");
    kill(lab.child("container", "n2"), Signal::KILL);
    assert_eq!(child.wait().unwrap().code(), Some(124), "its programs ended with it");
    is_back("the container");
}

#[test]
fn without_its_dvkd_a_program_ends_and_dvs_run_says_so() {
    let Some(lab) = Lab::up(2) else { return };
    let (child, _) = lab.start("n2", "echo there; exec sleep infinity");
    kill(lab.dvkd("n2"), Signal::KILL);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(stderr(&output).contains("dvkd is gone"), "{output:?}");
    // The rest goes on, and says what has become of the node.
    assert_eq!(lab.text("n1", "echo on"), "on\n");
    let status = lab.status();
    assert!(status.iter().any(|row| row["node"] == "n2" && row["health"] == "dead"), "{status:?}");
    assert_eq!(lab.dvs(&["lab", "status"]).status().unwrap().code(), Some(1));
    let up = lab.dvs(&["lab", "up", "--nodes", "2"]).output().unwrap();
    assert!(!up.status.success() && stderr(&up).contains("n2 is dead"), "{up:?}");
    // And all of it can be cleared away.
    assert!(lab.dvs(&["lab", "down"]).status().unwrap().success());
    assert!(!lab.path().exists());
}

#[test]
fn up_and_down_can_be_said_twice_and_leave_nothing() {
    let Some(lab) = Lab::prepared() else { return };
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let root_before = fs::read_dir("/").unwrap().count();
    let say = |arguments: &[&str]| {
        let output = lab.dvs(arguments).output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output),
        )
    };
    assert!(say(&["lab", "status"]).1.contains("no lab is up"));
    assert_eq!(say(&["lab", "down"]), (0, "No lab is up.\n".into()));
    assert_eq!(say(&["lab", "up", "--nodes", "2", "--dc", "shop"]).0, 0);
    let (code, text) = say(&["lab", "up", "--nodes", "2", "--dc", "shop"]);
    assert!(code == 0 && text.contains("up already"), "{text}");
    let (code, text) = say(&["lab", "up", "--nodes", "3"]);
    assert!(code == 1 && text.contains("a lab with 2 nodes"), "{text}");
    assert_eq!(say(&["lab", "status"]).0, 0);
    assert!(say(&["dc", "ls"]).1.contains("shop"));
    assert!(!processes_of(&lab.path()).is_empty());
    assert_eq!(say(&["lab", "down"]), (0, "The lab is down.\n".into()));
    assert_eq!(processes_of(&lab.path()), Vec::<String>::new());
    assert!(!lab.path().exists());
    assert_eq!(mounts(), before);
    assert_eq!(fs::read_dir("/").unwrap().count(), root_before);
}

#[test]
fn an_interrupted_up_leaves_nothing() {
    let Some(lab) = Lab::prepared() else { return };
    let mut child =
        lab.dvs(&["lab", "up", "--nodes", "30"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the first daemon is there", || lab.path().join("n1/dvkd.pid").exists());
    signal(&child, Signal::INT);
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.code() == Some(1) && said.contains("interrupted"), "{status:?}: {said}");
    assert_eq!(status.signal(), None);
    assert!(!lab.path().exists());
    assert_eq!(processes_of(&lab.path()), Vec::<String>::new());
}

#[test]
fn a_daemon_that_fails_is_named_with_its_last_words() {
    let Some(lab) = Lab::prepared() else { return };
    // A socket's path has 108 bytes at most (unix(7)). Of several daemons any may be the first to fail.
    let long = lab.directory.path().join("x".repeat(100)).join("lab");
    let output =
        lab.dvs(&["lab", "up", "--nodes", "1"]).env("DVS_LAB_DIR", &long).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("dvkd of node n1 has ended"), "{output:?}");
    assert!(!long.exists());
    assert_eq!(processes_of(&long), Vec::<String>::new());
}

#[test]
fn a_tree_can_be_mounted_on_the_host_and_goes_with_the_lab() {
    let Some(lab) = Lab::up(2) else { return };
    let place = tempfile::tempdir().unwrap();
    let path = place.path().to_str().unwrap();
    assert!(lab.dvs(&["mount", path]).status().unwrap().success());
    fs::write(place.path().join("file"), "from the host").unwrap();
    assert_eq!(lab.text("n2", "cat /dvs/file"), "from the host");
    let twice = lab.dvs(&["mount", path]).output().unwrap();
    assert!(!twice.status.success() && stderr(&twice).contains("already"), "{twice:?}");
    assert!(lab.dvs(&["lab", "down"]).status().unwrap().success());
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn each_node_tells_how_busy_all_are() {
    let Some(lab) = Lab::up(2) else { return };
    let rows = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let output = lab.dvs(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (mut child, _) =
        lab.start("n2", "echo here; while sleep 0.01; do ls /dvs; done >/dev/null");
    for asked in ["n1", "n2"] {
        wait_until("calls of n2's program to n1's file server are seen", || {
            let rows = rows(&["top", "--json", "--node", asked]);
            let is_busy = |row: &&serde_json::Value| row["vfs"].as_u64() > Some(0);
            let served = rows.iter().find(is_busy);
            let nodes = rows.iter().filter(|row| row["rtt-us"].as_u64() > Some(0));
            served.is_some_and(|row| row["dc"] == "lab" && row["node"] == "n1")
                && nodes.count() == 2
        });
    }
    // Without --json both tables, each with its heading, and once.
    let output = lab.dvs(&["top"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("NODE ") && text.contains("\n\nDC "), "{text}");
    wait_until("n1's past is there", || {
        let rows = rows(&["history", "n1", "--json"]);
        rows.iter().filter(|row| row["load1"].is_string()).count() >= 2
    });
    let unknown = lab.dvs(&["history", "n9"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("no node \"n9\""), "{unknown:?}");
    signal(&child, Signal::TERM);
    child.wait().unwrap();
}
