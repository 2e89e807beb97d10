//! Semaphores of POSIX and System V, from C, Python and Perl, one node and three.

use crate::{ALL, LAB, Test};
use legacy_tests::wait::until;
use legacy_tests::{Running, World, lab::NODES, program, running::LIMIT};

pub(crate) const TESTS: &[Test] = &[
    ("posix_semaphores_call_by_call", ALL, posix_in_c),
    ("sysv_semaphores_call_by_call", ALL, sysv_in_c),
    ("a_counter_under_a_named_semaphore_loses_no_addition", ALL, counter),
    ("a_semaphore_with_undo_survives_its_killed_holder", ALL, undo),
    ("perl_adds_under_a_semaphore_and_a_lock", ALL, perl),
    ("multiprocessing_works_with_fork_and_with_spawn", ALL, multiprocessing),
    ("a_post_wakes_as_many_as_it_says", ALL, wake),
    ("a_killed_waiter_takes_no_post_with_it", ALL, killed_waiter),
    ("ipcs_lists_what_is_there", LAB, listing),
];

fn posix_in_c(world: &World) {
    run_c(world, "posix_sem", &world.name());
}

fn sysv_in_c(world: &World) {
    run_c(world, "sysv_sem", &world.key());
}

/// Compiles and runs a C program of `programs/`.
pub(crate) fn run_c(world: &World, name: &str, argument: &str) {
    let compiled = program::compile(name, world.scratch(), &[])
        .expect("gcc compiles the programs of the tests");
    let output = world.run(1, &[&compiled.to_string_lossy(), argument]);
    assert_eq!(output, format!("{name}: ok\n"));
}

fn counter(world: &World) {
    let (file, name) = (world.file("0\n"), format!("/{}", world.name()));
    world.on_all("counter.py", &["sem", &file, "1000", &name]);
    assert_eq!(world.run(1, &["cat", &file]), "3000\n");
    world.script(2, "sem.py", &[&name, "unlink"]);
    let gone = world.start_script(2, "sem.py", &[&name, "unlink"]).wait();
    assert!(gone.code == 1 && gone.errors.contains("No such file"), "{gone:?}");
}

fn undo(world: &World) {
    let (file, key) = (world.file("0\n"), world.key());
    world.script(0, "undo.py", &[&key, "set", "1"]);
    let mut holder = world.start_script(2, "hold.py", &["undo", &key]);
    let pid = holder.says("held");
    let counters: Vec<Running> = (0..3)
        .map(|node| world.start_script(node, "counter.py", &["undo", &file, "1000", &key]))
        .collect();
    world.run(0, &["kill", "-KILL", &pid]);
    assert_eq!(holder.wait().code, 128 + 9);
    counters.into_iter().for_each(|counter| drop(counter.succeed()));
    assert_eq!(world.run(1, &["cat", &file]), "3000\n");
    assert_eq!(world.script(1, "undo.py", &[&key, "get"]), "1\n");
    world.script(2, "undo.py", &[&key, "remove"]);
}

fn perl(world: &World) {
    let (file, key) = (world.file("0\n"), world.key());
    world.script(0, "sysv_keys.pl", &[&key, "make"]);
    world.on_all("sysv.pl", &[&key, &file, "100"]);
    assert_eq!(world.run(1, &["cat", &file]), "300\n");
    world.script(2, "sysv_keys.pl", &[&key, "remove"]);
}

fn multiprocessing(world: &World) {
    assert_eq!(world.script(1, "multi.py", &["fork", "spawn"]), "multiprocessing: ok\n");
}

fn wake(world: &World) {
    let name = format!("/{}", world.name());
    let mut waiting: Vec<Running> =
        (0..3).map(|node| world.start_script(node, "sem.py", &[&name, "wait"])).collect();
    waiting.iter_mut().for_each(|one| drop(one.says("waiting")));
    world.script(1, "sem.py", &[&name, "post", "2"]);
    let two = until(LIMIT, || (ended(&mut waiting) == 2).then_some(())).is_some();
    assert!(two, "two posts do not wake two");
    world.script(0, "sem.py", &[&name, "post", "1"]);
    for one in waiting {
        assert_eq!(one.succeed(), "waiting\ngot it\n");
    }
    world.script(0, "sem.py", &[&name, "unlink"]);
}

fn killed_waiter(world: &World) {
    let name = format!("/{}", world.name());
    let script = "import os, sys; print('pid', os.getpid(), flush=True); os.execv(sys.argv[1], sys.argv[1:])";
    let waiter = |node: usize| {
        let path = program::path("sem.py");
        let argv = [program::PYTHON, "-c", script, program::PYTHON, &path, &name, "wait"];
        let mut waiter = world.start(node, &argv);
        let pid = waiter.says("pid");
        waiter.says("waiting");
        (waiter, pid)
    };
    let ((first, pid), (second, _)) = (waiter(2), waiter(0));
    world.run(1, &["kill", "-KILL", &pid]);
    assert_eq!(first.wait().code, 128 + 9);
    world.script(1, "sem.py", &[&name, "post", "1"]);
    assert_eq!(second.succeed().lines().last(), Some("got it"));
    world.script(1, "sem.py", &[&name, "unlink"]);
}

/// How many of these have ended.
fn ended(running: &mut [Running]) -> usize {
    running.iter_mut().filter_map(Running::ended).count()
}

fn listing(world: &World) {
    let lab = world.as_lab().expect("this test is for labs");
    let (name, key) = (world.name(), world.key());
    world.script(0, "sem.py", &[&format!("/{name}"), "post", "3"]);
    world.script(1, "undo.py", &[&key, "set", "7"]);
    world.script(1, "message.py", &["posix", &format!("/{name}"), "send", "x", "2"]);
    world.script(2, "message.py", &["sysv", &key, "send", "x", "4"]);
    for node in NODES {
        let rows = lab.rows(&["ipcs", "--node", node]).expect("ipcs lists");
        let has = |what: &str, pairs: &[(&str, i64)]| {
            let named = |row: &&serde_json::Value| {
                row["name"].as_str() == Some(what) || row["key"].as_str() == Some(what)
            };
            let right =
                |row: &serde_json::Value| pairs.iter().all(|(key, value)| row[*key] == *value);
            assert!(rows.iter().filter(named).any(right), "no {what} with {pairs:?} in {rows:#?}");
        };
        has(&format!("/{name}"), &[("value", 3), ("waiting", 0)]);
        has(&format!("/{name}"), &[("messages", 2), ("maximum", 10)]);
        has(&key, &[("nsems", 1)]);
        has(&key, &[("messages", 4)]);
    }
    let text = lab.dvs(&["ipcs"]).expect("ipcs runs").stdout;
    let text = String::from_utf8(text).expect("it is text");
    assert!(text.contains(&name) && text.contains(&key), "{text}");
    world.script(0, "sem.py", &[&format!("/{name}"), "unlink"]);
    world.script(0, "undo.py", &[&key, "remove"]);
    world.script(0, "message.py", &["posix", &format!("/{name}"), "remove"]);
    world.script(0, "message.py", &["sysv", &key, "remove"]);
    let text = lab.dvs(&["ipcs"]).expect("ipcs runs").stdout;
    let text = String::from_utf8(text).expect("it is text");
    assert!(!text.contains(&name) && !text.contains(&key), "removed, but listed:\n{text}");
}
