//! The agent as a process of its own: how it ends, and what it leaves behind.

use crate::hosted::Vos;
use crate::programs::{AGENT_PLACE, AgentProcess, can_mount, mounted_at};
use mount::Options;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;

fn signal(process: &AgentProcess, name: &str) {
    let pid = process.child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

/// What the processes that other tests start do. By itself it is nothing.
#[test]
fn an_agent_of_other_tests() {
    let Some(place) = std::env::var_os(AGENT_PLACE) else { return };
    mount::run(Options::new(PathBuf::from(place)), Vos::new().node(1)).unwrap();
}

#[test]
fn a_signal_unmounts_and_ends_the_agent_well() {
    if !can_mount() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    for name in ["TERM", "INT", "HUP"] {
        let mut process = AgentProcess::start(place.path());
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.child.id())).unwrap();
        assert_eq!(cwd.to_str(), Some("/"));
        signal(&process, name);
        assert!(process.child.wait().unwrap().success());
        assert!(!mounted_at(place.path()), "{name}");
    }
}

#[test]
fn an_agent_whose_mount_is_taken_away_ends_well() {
    if !can_mount() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut process = AgentProcess::start(place.path());
    assert!(Command::new("umount").arg(place.path()).status().unwrap().success());
    assert!(process.child.wait().unwrap().success());
}

#[test]
fn the_mount_of_an_agent_that_was_killed_is_replaced_and_a_live_one_is_not() {
    if !can_mount() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut killed = AgentProcess::start(place.path());
    let refused = mount::mount(&Options::new(place.path()), Vos::new().node(1)).unwrap_err();
    assert!(refused.to_string().contains("already"), "{refused:#}");
    signal(&killed, "KILL");
    assert_eq!(killed.child.wait().unwrap().signal(), Some(9));
    assert!(mounted_at(place.path()), "a dead mount stays");
    let mut second = AgentProcess::start(place.path());
    assert!(Command::new("ls").arg(place.path()).status().unwrap().success());
    signal(&second, "TERM");
    assert!(second.child.wait().unwrap().success());
    assert!(!mounted_at(place.path()));
}
