//! Processes: one table, signals across nodes, and what dvs-run says of a program's end.

use crate::{ALL, LAB, Test};
use legacy_tests::{Running, World, lab::NODES};
use serde_json::Value;

pub(crate) const TESTS: &[Test] = &[
    ("a_signal_reaches_a_process_on_another_node", ALL, kill),
    ("kill_answers_for_processes_that_are_not_there", ALL, kill_nobody),
    ("a_handler_runs_for_a_signal_from_another_node", ALL, handler),
    ("dvs_run_says_which_signal_ended_its_program", LAB, says),
    ("every_node_lists_the_processes_of_all_nodes", LAB, listing),
    ("pids_are_unique_in_the_whole_system", ALL, pids),
];

/// Starts a process that stays; returns its pid too.
fn victim(world: &World, node: usize) -> (Running, String) {
    let mut victim = world.start(node, &["sh", "-c", "echo pid $$; exec tail -f /dev/null"]);
    let pid = victim.says("pid");
    (victim, pid)
}

/// The row of the process with this pid, in what `dvs ps --json` printed.
pub(crate) fn row_of<'a>(rows: &'a [Value], pid: &str) -> Option<&'a Value> {
    let pid: i64 = pid.parse().expect("a pid is a number");
    rows.iter().find(|row| row["pid"] == pid)
}

fn kill(world: &World) {
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10)] {
        let (victim, pid) = victim(world, 2);
        // The program kill(1), the shell's own, and Python's.
        match number {
            15 => world.run(0, &["kill", "-TERM", &pid]),
            9 => world.run(0, &["sh", "-c", "kill -KILL \"$0\"", &pid]),
            _ => world.run(
                0,
                &["/usr/bin/python3", "-c", &format!("import os; os.kill({pid}, {number})")],
            ),
        };
        assert_eq!(victim.wait().code, 128 + number, "SIG{signal}");
    }
}

fn kill_nobody(world: &World) {
    let (victim, pid) = victim(world, 1);
    world.run(0, &["kill", "-0", &pid]);
    world.run(2, &["kill", &pid]);
    assert_eq!(victim.wait().code, 128 + 15);
    let script = format!(
        "import errno, os\ntry:\n    os.kill({pid}, 0)\nexcept OSError as error:\n    print(errno.errorcode[error.errno])"
    );
    for node in 0..3 {
        assert_eq!(world.run(node, &["/usr/bin/python3", "-c", &script]), "ESRCH\n");
    }
}

fn handler(world: &World) {
    // It looks again after each second: one run saw dash in `wait` miss a signal, without DVS.
    let script = r#"$| = 1; $SIG{HUP} = sub { print "caught\n"; exit 7 }; print "pid $$\n"; select undef, undef, undef, 1 while 1"#;
    let mut catcher = world.start(1, &["perl", "-e", script]);
    let pid = catcher.says("pid");
    world.run(2, &["kill", "-HUP", &pid]);
    let outcome = catcher.wait();
    assert!(outcome.code == 7 && outcome.output.ends_with("caught\n"), "{outcome:?}");
}

fn says(world: &World) {
    for (signal, number, text) in
        [("TERM", 15, "Terminated"), ("KILL", 9, "Killed"), ("SEGV", 11, "Segmentation fault")]
    {
        let (victim, pid) = victim(world, 2);
        world.run(0, &["kill", &format!("-{signal}"), &pid]);
        let outcome = victim.wait();
        assert_eq!(outcome.code, 128 + number);
        assert!(outcome.errors.contains(text), "SIG{signal}: {:?}", outcome.errors);
    }
}

fn listing(world: &World) {
    let lab = world.as_lab().expect("this test is for labs");
    let victims: Vec<(Running, String)> = (0..3).map(|node| victim(world, node)).collect();
    let check = |rows: &[Value], from: &str| {
        for ((_, pid), node) in victims.iter().zip(NODES) {
            let row = row_of(rows, pid);
            let row =
                row.unwrap_or_else(|| panic!("dvs ps from {from} does not list {pid}: {rows:#?}"));
            assert_eq!(row["node"], node, "{row}");
            assert!(
                row["command"].as_str().is_some_and(|command| command.contains("tail")),
                "{row}"
            );
        }
    };
    for node in NODES {
        check(&lab.rows(&["ps", "--node", node]).expect("ps lists"), node);
    }
    // And from inside.
    let program = world.scratch().parent().expect("it is in the run's folder").join("dvs");
    let output = world.run(1, &[&program.to_string_lossy(), "ps", "--json"]);
    let rows: Vec<_> =
        output.lines().map(|line| serde_json::from_str(line).expect("a row is JSON")).collect();
    check(&rows, "inside n2");
    for (victim, pid) in victims {
        world.run(0, &["kill", "-KILL", &pid]);
        victim.wait();
        let rows = lab.rows(&["ps"]).expect("ps lists");
        assert!(row_of(&rows, &pid).is_none(), "{pid} has ended but is listed");
    }
}

fn pids(world: &World) {
    let script = "for i in $(seq 1 50); do sh -c 'echo $$; echo $PPID'; done";
    let mut all = Vec::new();
    let running: Vec<Running> =
        (0..3).map(|node| world.start(node, &["sh", "-c", script])).collect();
    for one in running {
        let output = one.succeed();
        let mut own: Vec<u64> = output.lines().map(|line| line.parse().expect("a pid")).collect();
        own.sort_unstable();
        own.dedup();
        all.extend(own);
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "two processes had the same pid at the same time");
}
