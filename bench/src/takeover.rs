//! How long programs wait for files when a file agent is killed, and another one goes on.

use crate::place::Place;
use crate::report::{Group, Report};
use crate::system::System;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Operation of a worker: what it does with a file for so many milliseconds, and the longest time that one of them took. What and which file follow.
pub(crate) const LONGEST: &str = "longest ";

/// How long each measurement looks, and how long after its begin the agent is killed.
const LOOKS: u32 = 3000;
const BEFORE: Duration = Duration::from_millis(1500);
const FILE: &str = "/dvs/bench-takeover";

/// Rows of the node whose agent is killed, and of another one with the same file.
pub(crate) fn rows(system: &System, rounds: usize, report: &Report) -> Result<()> {
    if !report.wants(Group::Takeover) {
        return Ok(());
    }
    let daemon = system.daemon("n2")?;
    let (own, other) = (system.worker("own", "n2")?, system.worker("other", "n3")?);
    for (what, name) in [("write", "writes"), ("look", "looks at"), ("mode", "changes")] {
        // Who changes the file on another node waits for who remembers it.
        let does = [(&own, if what == "mode" { "look" } else { what }), (&other, "mode")];
        let (index, who) =
            if what == "mode" { (1, "another node") } else { (0, "the node itself") };
        for (is_killed, when) in [(false, "nothing happens"), (true, "a file agent is killed")] {
            let mut times = Vec::new();
            for _ in 0..rounds {
                times.push(measure(daemon, does, is_killed)?[index]);
            }
            times.sort();
            let millis = times[times.len() / 2].as_secs_f64() * 1e3;
            let row = format!("longest wait when {who} {name} a file, {when}");
            report.figure(&row, millis, "ms");
        }
    }
    Ok(())
}

/// Two workers use the file at once: the longest wait of each.
fn measure(daemon: u32, does: [(&Place, &str); 2], is_killed: bool) -> Result<[Duration; 2]> {
    std::thread::scope(|scope| {
        let workers = does.map(|(place, what)| {
            scope.spawn(move || place.perform(LOOKS, &format!("{LONGEST}{what} {FILE}")))
        });
        std::thread::sleep(BEFORE);
        if is_killed {
            let agent = descendant(daemon, "dvs-agent").context("the node has no file agent")?;
            kill(Pid::from_raw(i32::try_from(agent)?), Signal::SIGKILL)?;
        }
        let [own, other] = workers.map(|worker| worker.join().expect("it does not panic"));
        Ok([own?, other?])
    })
}

/// A process of that name among those that a process has started.
fn descendant(pid: u32, name: &str) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.filter_map(Result::ok);
    let children = threads.filter_map(|it| fs::read_to_string(it.path().join("children")).ok());
    let children: Vec<String> = children.collect();
    let mut children = children.iter().flat_map(|children| children.split_whitespace());
    children.find_map(|child| {
        let child: u32 = child.parse().ok()?;
        let comm = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if comm.trim_end() == name { Some(child) } else { descendant(child, name) }
    })
}

/// [`LONGEST`]: `arguments` as there.
pub(crate) fn longest(arguments: &str, millis: u32) -> Result<Duration> {
    let (what, path) = arguments.split_once(' ').context("what is done with which file")?;
    let path = Path::new(path);
    let mut own: PathBuf = path.into();
    own.as_mut_os_string().push(format!("-{}", std::process::id()));
    if !path.exists() {
        fs::write(path, "here")?;
    }
    let end = Instant::now() + Duration::from_millis(millis.into());
    let (mut longest, mut count) = (Duration::ZERO, 0);
    while Instant::now() < end {
        count += 1;
        let begun = Instant::now();
        match what {
            "write" => fs::write(&own, "new")?,
            "look" => _ = fs::metadata(path)?,
            _ => fs::set_permissions(path, fs::Permissions::from_mode(0o600 + count % 8))?,
        }
        longest = longest.max(begun.elapsed());
        if what != "write" {
            // As a program that also does other things.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    fs::remove_file(&own).ok();
    Ok(longest)
}
