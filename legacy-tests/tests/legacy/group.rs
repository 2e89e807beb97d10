//! The system group: what all nodes agree on, while nodes are killed and cut off.

use crate::{EMBEDDED, LAB, Test};
use legacy_tests::wait::until;
use legacy_tests::{Lab, World, lab::DC, lab::NODES, program, running::LIMIT, running::code};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("what_is_put_on_one_node_is_read_and_watched_on_another", LAB, put_and_watch),
    ("of_those_who_swap_at_a_time_one_succeeds", LAB, swap),
    ("one_has_a_lock_at_a_time_and_tokens_grow", LAB, locks),
    ("a_killed_holders_lock_and_leadership_go_to_the_next", LAB, killed_holder),
    ("all_come_to_a_barrier_or_none_passes", LAB, barrier),
    ("members_of_a_group_see_the_same_in_the_same_order", LAB, multicast),
    ("c_programs_of_a_container_use_the_services_on_two_nodes", LAB, c_programs),
    ("what_a_killed_program_held_goes_to_another_on_another_node", LAB, killed_program),
    ("a_containers_keys_are_its_own_and_the_administrators_if_he_asks_for_them", LAB, realms),
    ("two_of_three_serve_when_the_leader_is_killed_and_lose_nothing", EMBEDDED, killed_leader),
    ("a_node_that_is_cut_off_refuses_and_has_everything_when_it_is_back", EMBEDDED, cut_off),
];

/// Longer than finding out that a node is gone, choosing a leader, and a busy machine take together.
const SOON: Duration = Duration::from_secs(3);

fn lab(world: &World) -> &Lab {
    world.as_lab().expect("this test is for labs")
}

/// A lab of this test's own, as a world.
fn own(world: &World, name: &str) -> World {
    let scratch = world.scratch().join(name);
    std::fs::create_dir_all(&scratch).expect("the scratch folder is ours");
    World::lab(world.program(), &scratch).unwrap_or_else(|error| panic!("{error:#}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `dvs` on a node; it must succeed. Returns what it prints.
fn dvs(lab: &Lab, node: &str, arguments: &[&str]) -> String {
    let output = on(lab, node, arguments);
    assert!(output.status.success(), "{arguments:?} on {node}: {output:?}");
    text(&output.stdout)
}

/// `dvs` on a node, to its end. Options stand before what belongs to a command.
fn on(lab: &Lab, node: &str, arguments: &[&str]) -> Output {
    let at = arguments.iter().position(|word| *word == "--").unwrap_or(arguments.len());
    let (front, rest) = arguments.split_at(at);
    lab.dvs(&[front, &["--node", node], rest].concat()).expect("dvs runs")
}

/// A `dvs` that has been started, ended with this value, and the lines that it prints.
struct Started(Child, BufReader<std::process::ChildStdout>);

impl Started {
    fn new(lab: &Lab, node: &str, arguments: &[&str]) -> Started {
        let at = arguments.iter().position(|word| *word == "--").unwrap_or(arguments.len());
        let (front, rest) = arguments.split_at(at);
        let mut command = lab.command();
        command.args(front).args(["--node", node]).args(rest);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("dvs runs");
        let output = child.stdout.take().expect("it is a pipe");
        Started(child, BufReader::new(output))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).expect("it is a pipe");
        line.trim_end().to_owned()
    }

    fn kill(&mut self) {
        self.0.kill().expect("it is ours");
        self.0.wait().expect("it is ours");
    }

    /// The exit code, and what it has said on standard error.
    fn end(mut self) -> (i32, String) {
        let status = until(LIMIT, || self.0.try_wait().expect("it is ours")).expect("it ends");
        let errors = self.0.stderr.take().expect("it is a pipe");
        (code(status), std::io::read_to_string(errors).expect("it is a pipe"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn status(lab: &Lab, node: &str) -> Value {
    let output = on(lab, node, &["group", "status", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// All nodes are up in the group, as each of them sees it; the name of the leader.
fn settled(lab: &Lab) -> &'static str {
    let leader = || {
        let all = NODES.map(|node| status(lab, node));
        let up = |status: &Value| {
            status["standing"] == "up"
                && status["members"].as_array().is_some_and(|members| {
                    members.len() == 3 && members.iter().all(|one| one["is_up"] == true)
                })
        };
        let leader = usize::try_from(all[0]["leader"].as_u64()?).ok()?;
        all.iter().all(up).then(|| NODES[leader - 1])
    };
    until(LIMIT, leader).unwrap_or_else(|| panic!("the group does not settle{}", lab.logs()))
}

fn put_and_watch(world: &World) {
    let lab = lab(world);
    settled(lab);
    let (key, other) = (format!("{}.a", world.name()), format!("{}.b", world.name()));
    dvs(lab, "n1", &["kv", "put", &key, "one"]);
    assert_eq!(dvs(lab, "n3", &["kv", "get", &key]), "one\n");
    let from = dvs(lab, "n2", &["kv", "get", "--rev", &key]);
    let mut watch =
        Started::new(lab, "n2", &["kv", "watch", &key, "--rev", from.trim(), "--count", "4"]);
    assert_eq!(watch.line(), format!("{}\tput\t{key}\tone", from.trim()));
    dvs(lab, "n3", &["kv", "put", &other, "unseen"]);
    dvs(lab, "n3", &["kv", "put", &key, "two"]);
    assert!(watch.line().ends_with(&format!("\tput\t{key}\ttwo")));
    assert_eq!(code(on(lab, "n1", &["kv", "del", &key]).status), 0);
    assert!(watch.line().ends_with(&format!("\tdel\t{key}")));
    assert_eq!(code(on(lab, "n2", &["kv", "del", &key]).status), 1);
    assert_eq!(code(on(lab, "n2", &["kv", "get", &key]).status), 1);
    // A lease ends by itself, everywhere.
    dvs(lab, "n1", &["kv", "put", &key, "short", "--lease", "500ms"]);
    assert!(watch.line().ends_with("short"));
    let gone =
        until(LIMIT, || (code(on(lab, "n3", &["kv", "get", &key]).status) == 1).then_some(()));
    assert!(gone.is_some(), "a key outlives its lease");
    dvs(lab, "n2", &["kv", "del", &other]);
}

fn swap(world: &World) {
    let lab = lab(world);
    settled(lab);
    let key = world.name();
    assert_eq!(code(on(lab, "n1", &["kv", "cas", &key, "0", "--rev", "0"]).status), 0);
    assert_eq!(code(on(lab, "n2", &["kv", "cas", &key, "0", "--rev", "0"]).status), 1);
    let add = |node: &str| {
        let mut done = 0;
        while done < 12 {
            let entry = dvs(lab, node, &["kv", "get", "--json", &key]);
            let entry: Value = serde_json::from_str(&entry).expect("it is JSON");
            let value: u32 =
                entry["value"].as_str().and_then(|one| one.parse().ok()).expect("a number");
            let (value, revision) = ((value + 1).to_string(), entry["modified"].to_string());
            let swapped = on(lab, node, &["kv", "cas", &key, &value, "--rev", &revision]);
            assert!([0, 1].contains(&code(swapped.status)), "{swapped:?}");
            done += i32::from(swapped.status.success());
        }
    };
    std::thread::scope(|scope| {
        for node in NODES {
            scope.spawn(move || add(node));
        }
    });
    assert_eq!(dvs(lab, "n2", &["kv", "get", &key]), "36\n");
    dvs(lab, "n2", &["kv", "del", &key]);
}

fn locks(world: &World) {
    let lab = lab(world);
    settled(lab);
    let (name, folder) = (world.name(), world.scratch().join(world.name()));
    let inside = folder.with_extension("inside");
    // Who finds another inside fails.
    let script = format!(
        "set -e; mkdir '{0}'; echo $DVS_LOCK_TOKEN >>'{1}'; rmdir '{0}'",
        inside.display(),
        folder.display()
    );
    std::thread::scope(|scope| {
        for node in NODES {
            let (name, script) = (&name, &script);
            scope.spawn(move || {
                for _ in 0..10 {
                    dvs(lab, node, &["lock", name, "--", "sh", "-c", script]);
                }
            });
        }
    });
    let tokens = std::fs::read_to_string(&folder).expect("they have written it");
    let tokens: Vec<u64> = tokens.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(tokens.len() == 30 && tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    // Its exit code is the command's.
    assert_eq!(code(on(lab, "n1", &["lock", &name, "--", "sh", "-c", "exit 7"]).status), 7);
    assert_eq!(code(on(lab, "n1", &["lock", &name, "--", "/none"]).status), 127);
}

fn killed_holder(world: &World) {
    let lab = lab(world);
    settled(lab);
    let name = world.name();
    let (lock, elect) = (
        "echo $DVS_LOCK_TOKEN; exec tail -f /dev/null",
        "echo $DVS_ELECT_EPOCH; exec tail -f /dev/null",
    );
    for (command, script) in [("lock", lock), ("elect", elect)] {
        let mut first = Started::new(lab, "n1", &[command, &name, "--", "sh", "-c", script]);
        let token: u64 = first.line().parse().expect("a number");
        let mut second = Started::new(lab, "n3", &[command, &name, "--", "sh", "-c", script]);
        let waits = until(LIMIT, || {
            let tried = on(lab, "n2", &[command, &name, "--timeout", "100ms", "--", "true"]);
            (code(tried.status) == 121 && text(&tried.stderr).contains("2 waiting")).then_some(())
        });
        assert!(waits.is_some(), "the second does not wait");
        let begin = Instant::now();
        first.kill();
        let next: u64 = second.line().parse().expect("a number");
        eprintln!(
            "{command}: {} ms from the holder's kill to the next",
            begin.elapsed().as_millis()
        );
        assert!(next > token, "{next} after {token}");
        second.kill();
    }
}

fn barrier(world: &World) {
    let lab = lab(world);
    settled(lab);
    let name = world.name();
    let come = |node| Started::new(lab, node, &["barrier", &name, "3"]);
    // One waits there for three when nobody else can wait there for two. Who tries may be there before it.
    let first_waits = || {
        let mut first = come("n1");
        let waits = until(LIMIT, || {
            if first.0.try_wait().expect("it is ours").is_some() {
                first = come("n1");
            }
            let tried = on(lab, "n3", &["barrier", &name, "2", "--timeout", "100ms"]);
            (code(tried.status) == 125).then_some(())
        });
        assert!(waits.is_some(), "nobody waits");
        first
    };
    let (mut first, second) = (first_waits(), come("n2"));
    assert!(first.0.try_wait().expect("it is ours").is_none(), "it does not wait for the third");
    dvs(lab, "n3", &["barrier", &name, "3"]);
    assert_eq!((first.end().0, second.end().0), (0, 0));
    // One who is killed, or gives up, breaks it for those who wait.
    let (mut first, mut second) = (first_waits(), come("n2"));
    first.kill();
    let broken = until(LIMIT, || {
        let third = on(lab, "n3", &["barrier", &name, "3", "--timeout", "500ms"]);
        assert_ne!(code(third.status), 0);
        second.0.try_wait().expect("it is ours")
    });
    assert_eq!(broken.map(code), Some(1));
}

fn multicast(world: &World) {
    let lab = lab(world);
    settled(lab);
    let name = world.name();
    let listen = |node| Started::new(lab, node, &["group", "listen", &name, "--count", "20"]);
    let mut all: Vec<Started> = Vec::new();
    for node in NODES {
        let mut one = listen(node);
        // It is a member when it prints its first view.
        assert!(one.line().contains("\tview\t"));
        all.push(one);
    }
    std::thread::scope(|scope| {
        for node in ["n2", "n3"] {
            let name = &name;
            scope.spawn(move || {
                let words: Vec<String> = (0..10).map(|number| format!("{node}-{number}")).collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                dvs(lab, node, &[&["group", "send", name], &words[..]].concat());
            });
        }
    });
    let seen: Vec<Vec<String>> = all
        .iter_mut()
        .map(|one| {
            let lines = std::iter::from_fn(|| Some(one.line()).filter(|line| !line.is_empty()));
            lines.collect()
        })
        .collect();
    let from = |lines: &[String]| lines.iter().position(|line| line == &seen[2][0]);
    for lines in &seen[..2] {
        assert_eq!(lines[from(lines).expect("all see it")..], seen[2][..]);
    }
    let messages: Vec<&String> =
        seen[2].iter().filter(|line| line.contains("\tmessage\t")).collect();
    assert_eq!(messages.len(), 20);
    for node in ["n2", "n3"] {
        let own: Vec<&str> = messages
            .iter()
            .filter_map(|line| line.rsplit('\t').next())
            .filter(|word| word.starts_with(node))
            .collect();
        assert_eq!(own, (0..10).map(|number| format!("{node}-{number}")).collect::<Vec<_>>());
    }
}

/// What has been acknowledged, and when.
type Log = Mutex<Vec<(String, Instant)>>;

/// Puts keys until it is told to stop; logs those that are acknowledged.
fn write(lab: &Lab, node: &str, stop: &AtomicBool, log: &Log) {
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let key = format!("load-{node}-{number}");
        if on(lab, node, &["kv", "put", &key, node]).status.success() {
            log.lock().expect("nobody has panicked").push((key, Instant::now()));
        }
    }
}

fn count(log: &Log) -> usize {
    log.lock().expect("nobody has panicked").len()
}

/// The longest time in which nothing was acknowledged.
fn longest_gap(log: &Log) -> Duration {
    let mut times: Vec<Instant> =
        log.lock().expect("nobody has panicked").iter().map(|(_, time)| *time).collect();
    times.sort();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Every key that was acknowledged is there, on this node.
fn check_all(lab: &Lab, node: &str, log: &Log) {
    let rows = lab.rows(&["kv", "range", "--prefix", "load-", "--node", node]).expect("it lists");
    let keys: Vec<&str> = rows.iter().filter_map(|row| row["key"].as_str()).collect();
    for (key, _) in log.lock().expect("nobody has panicked").iter() {
        assert!(keys.contains(&key.as_str()), "{key} was acknowledged and is lost on {node}");
    }
}

fn daemon(lab: &Lab, node: &str) -> Pid {
    let rows = lab.rows(&["lab", "status"]).expect("status lists");
    let row = rows.iter().find(|row| row["node"] == node && row["address"].is_string());
    let pid = row.and_then(|row| row["pid"].as_i64()).expect("every node has a daemon");
    Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid is not 0")
}

fn killed_leader(world: &World) {
    let world = own(world, "killed-leader");
    let lab = lab(&world);
    let leader = settled(lab);
    let rest: Vec<&str> = NODES.into_iter().filter(|node| *node != leader).collect();
    // Whoever holds a lock on the node that dies loses it, and is ended.
    let script = "echo $DVS_LOCK_TOKEN; exec tail -f /dev/null";
    let mut holder = Started::new(lab, leader, &["lock", "l", "--", "sh", "-c", script]);
    let token: u64 = holder.line().parse().expect("a number");
    let mut next = Started::new(lab, rest[0], &["lock", "l", "--", "sh", "-c", script]);
    let (stop, log) = (AtomicBool::new(false), Log::default());
    let pid = daemon(lab, leader);
    std::thread::scope(|scope| {
        for node in &rest {
            scope.spawn(|| write(lab, node, &stop, &log));
        }
        let busy = until(LIMIT, || (count(&log) >= 20).then_some(()));
        let before = count(&log);
        let killed = Instant::now();
        kill_process(pid, Signal::KILL).expect("it runs");
        let goes_on = until(LIMIT, || (count(&log) >= before + 20).then_some(()));
        let greater = next.line().parse::<u64>().unwrap_or_default();
        let freed = killed.elapsed();
        stop.store(true, Ordering::SeqCst);
        assert!(busy.is_some() && goes_on.is_some(), "the others do not serve{}", lab.logs());
        eprintln!("the lock of the dead node was free after {} ms at most", freed.as_millis());
        assert!(greater > token, "{greater} after {token}");
    });
    let gap = longest_gap(&log);
    eprintln!("kill -9 of the leader's dvkd: {} ms without an acknowledgement", gap.as_millis());
    assert!(gap <= SOON, "{gap:?}");
    rest.iter().for_each(|node| check_all(lab, node, &log));
    let (status, errors) = holder.end();
    assert!(status == 124 && errors.contains("dvkd has ended"), "{status}: {errors}");
}

fn cut_off(world: &World) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("*** NOT TESTED: a node that is cut off; only root's labs have a network");
        return;
    }
    let world = own(world, "cut-off");
    let lab = lab(&world);
    let leader = settled(lab);
    let rest: Vec<&str> = NODES.into_iter().filter(|node| *node != leader).collect();
    let script = "echo $DVS_LOCK_TOKEN; exec tail -f /dev/null";
    let mut holder = Started::new(lab, leader, &["lock", "l", "--", "sh", "-c", script]);
    let token: u64 = holder.line().parse().expect("a number");
    let (stop, log) = (AtomicBool::new(false), Log::default());
    std::thread::scope(|scope| {
        scope.spawn(|| write(lab, rest[0], &stop, &log));
        let busy = until(LIMIT, || (count(&log) >= 10).then_some(()));
        let cut = Instant::now();
        let output = lab.dvs(&["lab", "cut", leader]).expect("dvs runs");
        let fenced =
            until(LIMIT, || (status(lab, leader)["standing"] == "fenced").then(|| cut.elapsed()));
        let before = count(&log);
        let goes_on = until(LIMIT, || (count(&log) >= before + 10).then_some(()));
        stop.store(true, Ordering::SeqCst);
        assert!(output.status.success(), "{output:?}");
        assert!(busy.is_some() && goes_on.is_some(), "the others do not serve{}", lab.logs());
        let fenced = fenced.expect("a node that is cut off fences itself");
        eprintln!("a node that was cut off had fenced itself after {} ms", fenced.as_millis());
    });
    let gap = longest_gap(&log);
    eprintln!("the leader cut off: {} ms without an acknowledgement", gap.as_millis());
    assert!(gap <= SOON, "{gap:?}");
    // Its lock goes to another, and its command is ended.
    let next = dvs(lab, rest[0], &["lock", "l", "--", "sh", "-c", "echo $DVS_LOCK_TOKEN"]);
    assert!(next.trim().parse::<u64>().expect("a number") > token);
    let (code_of_holder, errors) = holder.end();
    assert_eq!(code_of_holder, 124, "{errors}");
    // It says what is wrong, and changes nothing.
    let missing = until(LIMIT, || {
        let refused = on(lab, leader, &["kv", "put", "load-refused", "x"]);
        assert_eq!(code(refused.status), 124, "{refused:?}");
        let errors = text(&refused.stderr);
        (errors.contains(&rest.join(", ")) && errors.contains("missing")).then_some(())
    });
    assert!(missing.is_some(), "it does not say who is missing");
    assert_eq!(code(on(lab, leader, &["group", "status"]).status), 1);
    let output = lab.dvs(&["lab", "mend", leader]).expect("dvs runs");
    assert!(output.status.success(), "{output:?}");
    let mended = Instant::now();
    settled(lab);
    eprintln!("the mended node was back after {} ms", mended.elapsed().as_millis());
    check_all(lab, leader, &log);
    assert_eq!(code(on(lab, leader, &["kv", "get", "load-refused"]).status), 1);
    dvs(lab, leader, &["kv", "put", "load-after", "x"]);
    assert_eq!(dvs(lab, rest[1], &["kv", "get", "load-after"]), "x\n");
}

/// The C program of these tests.
fn compiled(world: &World) -> String {
    let compiled = program::compile_with_dvk("dvk_group", world.scratch());
    compiled.expect("gcc compiles the programs of the tests").to_string_lossy().into_owned()
}

fn c_programs(world: &World) {
    settled(lab(world));
    let (compiled, name) = (compiled(world), world.name());
    let first = world.start(0, &[&compiled, &name, "first"]);
    let second = world.start(2, &[&compiled, &name, "second"]);
    // Where one fails the other does too: both are shown.
    let ended = [first.wait(), second.wait()].map(|ended| (ended.code, ended.output));
    assert_eq!(ended, [(0, "ok\n".into()), (0, "ok\n".into())]);
}

fn killed_program(world: &World) {
    settled(lab(world));
    let (compiled, name) = (compiled(world), world.name());
    let mut holder = world.start(0, &[&compiled, &name, "holder"]);
    holder.says("held");
    let mut heir = world.start(1, &[&compiled, &name, "heir"]);
    heir.says("waits");
    kill_process(holder.host_pid(), Signal::KILL).expect("it is ours");
    assert_eq!(heir.succeed(), "waits\nok\n");
}

fn realms(world: &World) {
    let lab = lab(world);
    settled(lab);
    let key = world.name();
    fn of_dc<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--dc", DC]].concat()
    }
    // In the container the command is one of its programs.
    let program = world.program().to_string_lossy();
    world.start(1, &[&program, "kv", "put", &key, "theirs"]).succeed();
    assert_eq!(dvs(lab, "n2", &of_dc(&["kv", "get", &key])), "theirs\n");
    assert_eq!(code(on(lab, "n3", &["kv", "get", &key]).status), 1);
    dvs(lab, "n1", &["kv", "put", &key, "own"]);
    assert_eq!(dvs(lab, "n2", &of_dc(&["kv", "get", &key])), "theirs\n");
    let nowhere = on(lab, "n1", &["kv", "get", &key, "--dc", "nowhere"]);
    assert!(text(&nowhere.stderr).contains("there is no container nowhere"), "{nowhere:?}");
}
