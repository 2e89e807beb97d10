//! A machine without a lab: the private system of one program, and the demo, which has a lab of its own.

use crate::{EMBEDDED, Test};
use legacy_tests::wait::until;
use legacy_tests::{World, running::LIMIT, running::code};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Output, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("a_private_system_ends_with_its_program", EMBEDDED, private),
    ("two_private_systems_share_nothing", EMBEDDED, two),
    ("a_killed_dvs_run_takes_its_private_system_with_it", EMBEDDED, killed),
    ("a_node_without_a_lab_is_one_sentence_and_a_code_of_its_own", EMBEDDED, no_lab),
    ("lab_demo_shows_what_it_promises_and_leaves_nothing", EMBEDDED, demo),
];

fn run(world: &World, arguments: &[&str]) -> Output {
    world.dvs().args(arguments).stdin(Stdio::null()).output().expect("dvs runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The directories of private systems: this world has one itself.
fn private_systems(world: &World) -> usize {
    let entries = std::fs::read_dir(world.scratch()).expect("the scratch folder is ours");
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("private-"))
        .count()
}

/// Is there a process of this machine with `word` in its command line?
fn is_running(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("there is a /proc");
    processes.flatten().any(|process| {
        let command = std::fs::read(Path::new(&process.path()).join("cmdline")).unwrap_or_default();
        text(&command).contains(word)
    })
}

fn private(world: &World) {
    let before = private_systems(world);
    let script = "ls -A /dvs; echo here >/dvs/file; cat /dvs/file; exit 7";
    let output = run(world, &["run", "--", "sh", "-c", script]);
    assert_eq!(
        (code(output.status), &*text(&output.stdout), &*text(&output.stderr)),
        (7, "here\n", "")
    );
    let output = run(world, &["run", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(code(output.status), 128 + 15, "{output:?}");
    assert_eq!(code(run(world, &["run", "--", "no-such-command"]).status), 127);
    assert_eq!(private_systems(world), before, "something is left");
    assert!(!Path::new("/dvs/file").exists());
}

/// Starts a program that says something and stays; returns when it has.
fn stays(world: &World, script: &str) -> (Child, String) {
    let mut command = world.dvs();
    command.args(["run", "--", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("dvs runs");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("it is piped"))
        .read_line(&mut line)
        .expect("it is text");
    (child, line)
}

fn two(world: &World) {
    let (mut one, said) = stays(world, "echo mine >/dvs/file; echo ready; exec tail -f /dev/null");
    assert_eq!(said, "ready\n");
    let output = run(world, &["run", "--", "sh", "-c", "ls -A /dvs"]);
    assert_eq!((code(output.status), &*text(&output.stdout)), (0, ""));
    // Passed on to its program, whose end is the system's.
    let pid = i32::try_from(one.id()).ok().and_then(Pid::from_raw).expect("a pid is positive");
    kill_process(pid, Signal::TERM).expect("it runs");
    assert_eq!(code(one.wait().expect("it is our child")), 128 + 15);
}

fn killed(world: &World) {
    let before = private_systems(world);
    let marker = format!("/tmp/no-such-file-{}", world.name());
    let script = format!("echo ready; exec tail --retry -f /dev/null {marker} 2>&1");
    let (mut one, said) = stays(world, &script);
    assert_eq!(said, "ready\n");
    assert!(until(LIMIT, || is_running(&marker).then_some(())).is_some());
    one.kill().expect("it runs");
    one.wait().expect("it is our child");
    assert!(until(LIMIT, || (!is_running(&marker)).then_some(())).is_some(), "its program goes on");
    // What it could not clean away, the next one does, or the daemons have done.
    run(world, &["run", "--", "true"]);
    assert!(
        until(LIMIT, || (private_systems(world) == before).then_some(())).is_some(),
        "its files stay"
    );
}

fn no_lab(world: &World) {
    for arguments in [
        &["run", "--node", "n1", "--", "true"][..],
        &["run", "--dc", "x", "--", "true"],
        &["ps"],
        &["ipcs"],
    ] {
        let output = run(world, arguments);
        let errors = text(&output.stderr);
        assert_eq!(code(output.status), 123, "{arguments:?}: {errors}");
        assert!(
            errors.trim().lines().count() == 1 && errors.contains("lab up"),
            "{arguments:?}: {errors}"
        );
    }
    assert_eq!(
        code(run(world, &["lab", "down"]).status),
        0,
        "without a lab there is nothing to do"
    );
    assert_eq!(code(run(world, &["lab", "status"]).status), 123);
}

fn demo(world: &World) {
    let directory = world.scratch().join("demo");
    std::fs::create_dir_all(&directory).expect("the scratch folder is ours");
    let mut command = world.dvs();
    command.args(["lab", "demo"]).env("DVS_LAB_DIR", directory.join("lab")).stdin(Stdio::null());
    let output = command.output().expect("dvs runs");
    let shown = text(&output.stdout);
    assert_eq!(code(output.status), 0, "{shown}{}", text(&output.stderr));
    assert!(!shown.contains('\x1b'), "colours in a pipe: {shown}");
    for word in ["n1", "n2", "n3", "600", "$ dvs run", "$ dvs ps"] {
        assert!(shown.contains(word), "no {word} in\n{shown}");
    }
    assert!(!shown.contains("FAIL") && !shown.contains("failed"), "{shown}");
    assert!(!directory.join("lab").exists(), "the demo's lab is still there");
}
