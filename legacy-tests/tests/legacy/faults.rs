//! Servers and programs that are killed: nothing that was acknowledged is lost, nobody else sees an error.

use crate::processes::row_of;
use crate::{LAB, Test};
use legacy_tests::wait::until;
use legacy_tests::{Running, World, lab::NODES, running::LIMIT};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_vfs_server_loses_nothing_that_fsync_acknowledged", LAB, vfs_server),
    ("a_killed_ipc_server_keeps_those_who_wait", LAB, ipc_server),
    ("a_killed_pm_server_knows_all_processes_again", LAB, pm_server),
    ("counters_go_on_while_servers_are_killed", LAB, counters),
    ("a_killed_dvs_run_leaves_nobody_behind", LAB, killed_run),
];

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
