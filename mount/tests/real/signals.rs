//! Signals while a program waits: for a lock, and for a server that does not answer.

use crate::programs::World;
use calls::Row as _;
use calls::vfs::{Create, Open, Tmpfile};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};

/// Takes the lock of `kind` as a Python expression on file `f`.
const KINDS: [(&str, &str); 3] = [
    ("FCNTL", "fcntl.lockf(f, fcntl.LOCK_EX)"),
    ("FLOCK", "fcntl.flock(f, fcntl.LOCK_EX)"),
    ("FCNTL", "fcntl.fcntl(f, 38, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))"), // F_OFD_SETLKW
];

#[test]
fn a_handler_runs_at_once_while_its_program_waits_for_a_lock() {
    let Some(world) = World::new(2) else { return };
    for (call, lock) in KINDS {
        world.python(&format!(
            "
def take(f): {lock}
open('a', 'w').close(); holder = open('a', 'r+'); take(holder)
ps = []
class Rung(Exception): pass
def ring(*_): raise Rung
def waiter(place, told):
    holder.close()  # inherited
    f = open(place + '/a', 'r+')
    signal.signal(signal.SIGUSR1, ring)
    for _ in range(5):
        try:
            take(f)
            assert False, 'granted'
        except Rung:
            os.write(told, b'!')
    take(f)
told, tell = os.pipe()
for place in N[1:]:
    p = spawn(waiter, place, tell)
    for _ in range(5):
        waits_in(p, {call})
        os.kill(p.pid, signal.SIGUSR1)
        os.read(told, 1)
    waits_in(p, {call})
    ps.append(p)
holder.close()
join(*ps)
"
        ));
    }
}

#[test]
fn who_waits_for_a_lock_can_be_killed_and_does_not_get_it_afterwards() {
    let Some(world) = World::new(2) else { return };
    for (call, lock) in KINDS {
        world.python(&format!(
            "
def take(f): {lock}
open('a', 'w').close(); holder = open('a', 'r+'); take(holder)
def waiter(place):
    holder.close()
    f = open(place + '/a', 'r+'); take(f)
for place in N[1:]:
    killed = [spawn(waiter, place) for _ in range(5)]
    for p in killed:
        waits_in(p, {call})
        p.kill()
    for p in killed:
        p.join(20)
        assert p.exitcode == -9, p.exitcode
holder.close()
f = open('a', 'r+'); take(f)
"
        ));
    }
}

/// Waits until `child` sleeps in a system call of number `call`.
fn waits_in(child: &Child, call: i64) {
    let path = format!("/proc/{}/syscall", child.id());
    while !std::fs::read_to_string(&path).unwrap().starts_with(&format!("{call} ")) {
        std::thread::yield_now();
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

#[test]
fn a_program_can_be_killed_while_the_server_does_not_answer() {
    let Some(world) = World::new(1) else { return };
    world.sh("mkdir d");
    world.vos.stall(|_| true);
    // A handler that does nothing: Python's own are run after the call.
    let script = "import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
os.statvfs(sys.argv[1])";
    let mut children: Vec<Child> = (0..20)
        .map(|_| {
            Command::new("/usr/bin/python3")
                .args(["-c", script])
                .arg(world.place(1).join("d"))
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in &children {
        // statfs, which no agent remembers
        waits_in(child, 137);
        signal(child, "USR1");
    }
    let mut survivor = children.pop().unwrap();
    for (child, name) in children.iter_mut().zip(["KILL", "TERM"].into_iter().cycle()) {
        signal(child, name);
        let number = if name == "KILL" { 9 } else { 15 };
        assert_eq!(child.wait().unwrap().signal(), Some(number));
    }
    assert_eq!(survivor.try_wait().unwrap(), None, "a handler is no reason to give up");
    world.vos.stall(|_| false);
    assert!(survivor.wait().unwrap().success());
    world.sh("rmdir d");
}

#[test]
fn a_file_that_is_opened_for_a_killed_program_is_closed_again() {
    let Some(world) = World::new(1) else { return };
    world.sh("echo > f; mkdir d");
    while world.vos.has_open_files() {
        std::thread::yield_now();
    }
    let script =
        "import os, sys; os.chdir(sys.argv[1]); os.open(sys.argv[2], int(sys.argv[3]), 0o600)";
    let [create, tmpfile] = [libc::O_CREAT | libc::O_RDWR, libc::O_TMPFILE | libc::O_RDWR];
    for (name, flags) in [("f", libc::O_RDWR), ("new", create), ("d", tmpfile)] {
        world.vos.stall(|call| [Open::NUMBER, Create::NUMBER, Tmpfile::NUMBER].contains(&call));
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", script])
            .arg(world.place(1))
            .args([name, &flags.to_string()])
            .spawn()
            .unwrap();
        while !world.vos.has_stalled() {
            std::thread::yield_now();
        }
        signal(&child, "KILL");
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{name}");
        assert!(world.vos.has_stalled() && !world.vos.has_open_files(), "{name} is not open yet");
        world.vos.stall(|_| false);
        // It is opened at the same moment.
        while world.vos.has_stalled() || world.vos.has_open_files() {
            std::thread::yield_now();
        }
    }
    world.sh("rm f new; rmdir d");
}
