//! Locks on files: fcntl, flock, flock(1) and perl's, from three nodes, and their holders' deaths.

use crate::{ALL, OURS, Test, assert_same_lines};
use legacy_tests::World;

pub(crate) const TESTS: &[Test] = &[
    ("a_counter_under_fcntl_locks_loses_no_addition", ALL, |world| counter(world, "fcntl")),
    ("a_counter_under_flock_loses_no_addition", ALL, |world| counter(world, "flock")),
    ("flock_the_program_excludes_others_on_other_nodes", ALL, flock_program),
    ("a_killed_holder_of_an_fcntl_lock_gives_it_back", ALL, |world| killed_holder(world, "fcntl")),
    ("a_killed_holder_of_a_flock_gives_it_back", ALL, |world| killed_holder(world, "flock")),
    ("locks_between_processes_answer_as_on_linux", ALL, questions),
    ("a_crowd_that_waits_for_a_lock_is_in_nobodys_way", OURS, crowd),
];

fn counter(world: &World, kind: &str) {
    let file = world.file("0\n");
    world.on_all("counter.py", &[kind, &file, "1000"]);
    assert_eq!(world.run(1, &["cat", &file]), "3000\n");
}

fn flock_program(world: &World) {
    let file = world.file("0\n");
    world.on_all("flock_add.sh", &[&file, "20"]);
    assert_eq!(world.run(1, &["cat", &file]), "60\n");
    let mut holder = world.start_script(0, "hold.py", &["flock", &file]);
    let pid = holder.says("held");
    assert_eq!(
        world.outcome(2, &["flock", "--nonblock", "--conflict-exit-code", "9", &file, "true"]).code,
        9
    );
    // Its SIGALRM, and a SIGKILL, end a wait at once.
    let flock = ["flock", "--timeout", "0.2", "--conflict-exit-code", "9", &file, "true"];
    let killed = ["timeout", "--signal", "KILL", "0.2", "flock", &file, "true"];
    for node in 0..3 {
        assert_eq!(world.outcome(node, &flock).code, 9);
        assert_eq!(world.outcome(node, &killed).code, 128 + 9);
    }
    world.run(1, &["kill", &pid]);
    assert_eq!(holder.wait().code, 128 + 15);
    world.run(2, &["flock", "--nonblock", &file, "true"]);
}

/// More than a channel has lanes, and than sixteen have.
fn crowd(world: &World) {
    let file = world.file("");
    let mut waiting = world.start_script(1, "crowd.py", &[&file, "1100"]);
    waiting.says("all wait");
    // The same node, the same mount.
    let copy = format!("{}/copy", world.folder());
    world.run(1, &["dd", "if=/dev/zero", &format!("of={copy}"), "bs=1M", "count=4", "status=none"]);
    assert_eq!(world.run(1, &["stat", "-c", "%s", &copy]), "4194304\n");
    world.run(1, &["cmp", "-n", "4194304", "/dev/zero", &copy]);
    world.run(2, &["touch", &format!("{file}.go")]);
    waiting.succeed();
}

fn killed_holder(world: &World, kind: &str) {
    let file = world.file("0\n");
    let mut holder = world.start_script(2, "hold.py", &[kind, &file]);
    let pid = holder.says("held");
    let waiting = world.start_script(0, "counter.py", &[kind, &file, "1"]);
    world.run(1, &["kill", "-KILL", &pid]);
    assert_eq!(holder.wait().code, 128 + 9);
    waiting.succeed();
    assert_eq!(world.run(1, &["cat", &file]), "1\n");
}

fn questions(world: &World) {
    let native = world.reference();
    let wanted = native.script(0, "locks.py", &[&format!("{}/locked", native.folder())]);
    let found = world.script(1, "locks.py", &[&format!("{}/locked", world.folder())]);
    assert_same_lines(&found, &wanted);
}
