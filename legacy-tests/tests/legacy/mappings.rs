//! Files that programs of three nodes have mapped: one memory.

use crate::faults::{agent_of, kill_server};
use crate::{ALL, LAB, Test};
use legacy_tests::wait::until;
use legacy_tests::{Running, World, lab::NODES, program, running::LIMIT};
use rustix::process::{Signal, kill_process};

pub(crate) const TESTS: &[Test] = &[
    ("memory_that_nodes_share_is_one_memory", ALL, |world| shared_memory(world, false)),
    ("it_is_while_the_server_is_killed", LAB, |world| shared_memory(world, true)),
    ("sqlite_in_wal_mode_on_three_nodes_loses_no_update", ALL, write_ahead_log),
    ("who_loses_its_pages_sees_what_others_have_written", LAB, fenced),
];

/// Runs `shared_memory.c` on all nodes.
fn shared_memory(world: &World, kill: bool) {
    let compiled = program::compile("shared_memory", world.scratch(), &["-static"]);
    let compiled = compiled.expect("gcc compiles the programs of the tests");
    let (compiled, file) = (compiled.to_string_lossy(), format!("{}/memory", world.folder()));
    let rounds = if kill { "150" } else { "60" };
    let start =
        |node: usize| world.start(node, &[&compiled, &file, &node.to_string(), "3", rounds]);
    let mut running: Vec<Running> = (0..NODES.len()).map(start).collect();
    if kill {
        // All of them are in the middle of it.
        let is_there = || world.outcome(0, &["test", "-s", &file]).code == 0;
        until(LIMIT, || is_there().then_some(())).expect("they have begun");
        for _ in 0..3 {
            kill_server(world, "vfs-server");
        }
        assert!(running.iter_mut().any(|one| one.ended().is_none()), "they ended too soon");
    }
    for one in running {
        assert_eq!(one.succeed(), "shared memory: ok\n");
    }
}

/// As `files::sqlite`; the log's index is in memory that all three share.
fn write_ahead_log(world: &World) {
    let database = format!("{}/database", world.folder());
    let tables = "PRAGMA journal_mode=WAL; CREATE TABLE total (value INTEGER); INSERT INTO total VALUES (0); \
                  CREATE TABLE entry (tag TEXT, number INTEGER)";
    assert_eq!(world.run(0, &["sqlite3", &database, tables]), "wal\n");
    world.on_all("sqlite_add.py", &[&database, "{node}", "60"]);
    let question = "SELECT value FROM total; SELECT COUNT(DISTINCT tag || number) FROM entry; \
                    PRAGMA integrity_check; PRAGMA journal_mode";
    for node in 0..3 {
        assert_eq!(world.run(node, &["sqlite3", &database, question]), "180\n180\nok\nwal\n");
    }
}

/// A node whose agent is stopped is waited for, once and not for ever; what it has stored since nobody gets to see, and it sees the rest.
fn fenced(world: &World) {
    let file = world.file("");
    let mut holder = world.start_script(1, "fenced.py", &["hold", &file]);
    holder.says("held");
    let agent = agent_of(world, NODES[1]);
    kill_process(agent, Signal::STOP).expect("it runs");
    let took = world.script(0, "fenced.py", &["write", &file]);
    assert_eq!(world.run(2, &["od", "-An", "-tu1", "-N6", &file]).trim(), "2   0   0   0   0   0");
    kill_process(agent, Signal::CONT).expect("it is there");
    let took: f64 = took.trim().parse().expect("a time");
    assert!(took > 0.1 && took < 5.0, "it was waited for {took} s");
    assert_eq!(holder.succeed(), "held\n2 0\n");
    for node in 0..3 {
        assert_eq!(
            world.run(node, &["od", "-An", "-tu1", "-N6", &file]).trim(),
            "2   0   0   0   0   0"
        );
    }
}
