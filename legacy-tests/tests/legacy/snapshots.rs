//! `dvs snapshot`: programs on all nodes find the files as they were.

use crate::faults::kill_server;
use crate::{LAB, Test};
use legacy_tests::World;

pub(crate) const TESTS: &[Test] = &[
    ("a_snapshot_shows_on_every_node_what_all_had_written", LAB, shown),
    ("a_large_file_is_as_it_was_however_it_changes_and_whoever_is_killed", LAB, large),
];

/// `dvs snapshot ...`: the exit code, and what it says.
fn snapshot(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    world.dvs_says(&[&["snapshot"], arguments].concat())
}

/// As [`snapshot`], which must be a success.
fn done(world: &World, arguments: &[&str]) -> String {
    let (code, said) = snapshot(world, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    said
}

/// Where `path` is in snapshot `name`.
fn then(name: &str, path: &str) -> String {
    path.replacen("/dvs", &format!("/dvs/.snapshots/{name}"), 1)
}

/// Names are the container's, which the tests share.
fn name_of(folder: &str, name: &str) -> String {
    format!("{}-{name}", folder.trim_start_matches('/').replace('/', "-"))
}

fn shown(world: &World) {
    let folder = world.folder();
    let name = name_of(&folder, "shown");
    let script = format!(
        "cd {folder}; mkdir d; cp /bin/true d/program; ln -s program d/link; chmod 700 d/program; \
         for f in $(seq 50); do echo before > d/$f; done"
    );
    world.run(1, &["sh", "-c", &script]);
    // What it has written, and not closed, is in it.
    let open = format!("exec 3> {folder}/d/open; echo written >&3; dvs snapshot create {name}");
    let open = open.replace("dvs snapshot", &format!("{} snapshot", world.program().display()));
    world.run(1, &["sh", "-c", &open]);
    let (code, said) = snapshot(world, &["create", &name]);
    assert!(code == Some(1) && said.contains("there is a snapshot"), "{said}");
    let script = format!(
        "cd {folder}; for f in d/*[0-9]; do echo after > $f; done; rm -r d/1* d/program; mv d e"
    );
    world.run(2, &["sh", "-c", &script]);

    let old = then(&name, &folder);
    for node in 0..3 {
        let cat = format!("cat {old}/d/*[0-9] | sort | uniq -c | tr -s ' '");
        assert_eq!(world.run(node, &["sh", "-c", &cat]), " 50 before\n");
        let now = format!("cat {folder}/e/*[0-9] | sort | uniq -c | tr -s ' '");
        assert_eq!(world.run(node, &["sh", "-c", &now]), " 39 after\n");
        assert_eq!(world.run(node, &["cat", &format!("{old}/d/open")]), "written\n");
        assert_eq!(
            world.run(node, &["stat", "-c", "%a %F", &format!("{old}/d/program")]),
            "700 regular file\n"
        );
        world.run(node, &[&format!("{old}/d/link")]);
        let listed = world.run(node, &["ls", "-a", "/dvs"]);
        assert!(!listed.contains(".snapshots"), "{listed}");
        // Also when all names of the root directory are known.
        assert!(world.run(node, &["ls", "/dvs/.snapshots"]).contains(&name));
        let outcome = world.outcome(node, &["touch", &format!("{old}/d/2")]);
        assert!(outcome.errors.contains("Read-only file system"), "{outcome:?}");
        let outcome = world.outcome(node, &["rm", "-rf", &format!("{old}/d")]);
        assert!(outcome.errors.contains("Read-only file system"), "{outcome:?}");
    }
    // It comes back.
    world.run(2, &["cp", "-a", &format!("{old}/d"), &folder]);
    world.run(0, &["diff", "-r", &format!("{old}/d"), &format!("{folder}/d")]);
    let listed = done(world, &["ls", "--json"]);
    let row = listed.lines().find(|row| row.contains(&name)).expect("it is listed");
    assert!(row.contains("there") && row.contains("T"), "{row}");

    done(world, &["rm", &name]);
    for node in 0..3 {
        let outcome = world.outcome(node, &["ls", &old]);
        assert!(outcome.errors.contains("No such file"), "{outcome:?}");
    }
    let (code, said) = snapshot(world, &["rm", &name]);
    assert!(code == Some(1) && said.contains("there is no snapshot"), "{said}");
    world.run(1, &["diff", "-r", &format!("{folder}/d/2"), &format!("{folder}/d/3")]);
    if rustix::process::geteuid().is_root() {
        let program = world.program().to_string_lossy().into_owned();
        let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", &program];
        let argv = [&user[..], &["snapshot", "create", &name]].concat();
        let outcome = world.outcome(0, &argv);
        assert!(outcome.errors.contains("does not let this user"), "{outcome:?}");
        // Everybody may ask which there are.
        let argv = [&user[..], &["snapshot", "ls"]].concat();
        assert!(world.run(0, &argv).contains("TAKEN"));
    }
}

fn large(world: &World) {
    let folder = world.folder();
    let (first, second) = (name_of(&folder, "first"), name_of(&folder, "second"));
    let file = format!("{folder}/file");
    let sum = |node: usize, path: &str| {
        let said = world.run(node, &["sha256sum", path]);
        said.split_whitespace().next().expect("a sum").to_owned()
    };
    let dd = |node: usize, from: &str, arguments: &str| {
        let script = format!("dd if={from} of={file} conv=notrunc status=none {arguments}");
        world.run(node, &["sh", "-c", &script]);
    };
    dd(0, "/dev/urandom", "bs=1M count=24");
    let one = sum(1, &file);
    done(world, &["create", &first]);
    for (node, block) in [(1, 5), (2, 1000), (0, 2222), (1, 5999)] {
        dd(node, "/dev/urandom", &format!("bs=4k count=1 seek={block}"));
    }
    dd(2, "/dev/urandom", "bs=1M count=2 seek=23");
    let two = sum(0, &file);
    assert_ne!(one, two);
    done(world, &["create", &second]);
    kill_server(world, "vfs-server");
    world.run(1, &["fallocate", "-p", "-o", "1M", "-l", "3M", &file]);
    world.run(2, &["truncate", "-s", "20M", &file]);
    dd(0, "/dev/urandom", "bs=4k count=3 seek=700");
    let three = sum(2, &file);
    for node in 0..3 {
        assert_eq!(sum(node, &then(&first, &file)), one, "node {node}");
        assert_eq!(sum(node, &then(&second, &file)), two, "node {node}");
    }
    // What the first one had is given to the second while the server is killed.
    let mut remover = world.dvs();
    let mut remover = remover.args(["snapshot", "rm", &first]).spawn().expect("it runs");
    kill_server(world, "vfs-server");
    dd(1, "/dev/urandom", "bs=4k count=1 seek=4000");
    let three = [three, sum(1, &file)];
    assert_ne!(three[0], three[1]);
    assert!(remover.wait().expect("it ends").success());
    assert_eq!(sum(0, &then(&second, &file)), two);
    assert_eq!(sum(2, &file), three[1]);
    done(world, &["rm", &second]);
    assert_eq!(sum(2, &file), three[1]);
}
