//! `dvs quota`: programs on all nodes meet one limit, as on a disk that small.

use crate::faults::kill_server;
use crate::{LAB, Test};
use legacy_tests::World;
use legacy_tests::running::LIMIT;
use legacy_tests::wait::until;

pub(crate) const TESTS: &[Test] = &[
    ("a_directory_with_a_quota_is_a_small_disk_on_every_node", LAB, small_disk),
    ("what_is_there_already_is_counted_also_if_the_server_is_killed", LAB, counted),
];

/// `dvs quota ...`: the exit code, and what it says.
fn quota(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    world.dvs_says(&[&["quota"], arguments].concat())
}

/// As [`quota`], which must be a success.
fn done(world: &World, arguments: &[&str]) -> String {
    let (code, said) = quota(world, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    said
}

/// KiB and inodes that the quota of `path` counts.
fn used(world: &World, path: &str) -> (u64, u64) {
    let said = done(world, &["ls", "--json"]);
    let rows = said.lines().map(|row| serde_json::from_str(row).expect("a row"));
    let rows: Vec<serde_json::Value> = rows.collect();
    let row = rows.iter().find(|row| row["path"] == path).expect("it has a quota");
    let number = |name: &str| row[name].as_u64().expect("a number");
    (number("kib"), number("inodes"))
}

fn small_disk(world: &World) {
    let folder = world.folder();
    let small = format!("{folder}/small");
    let path = |name: &str| format!("{small}/{name}");
    world.run(0, &["mkdir", &small]);
    world.run(0, &["chmod", "777", &folder, &small]);
    done(world, &["set", &small, "--size", "1M", "--inodes", "8"]);
    for node in 0..3 {
        let said = world.run(node, &["df", "--output=size,used,avail,itotal", "-k", &small]);
        let numbers = said.lines().nth(1).expect("a line below the title");
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        assert_eq!(numbers, ["1024", "0", "1024", "8"], "{said}");
    }
    // Whoever comes first has the room, the others are told by write(2).
    let fill = |node: usize, name: &str| {
        let of = format!("of={}", path(name));
        world.outcome(node, &["dd", "if=/dev/zero", &of, "bs=100k", "count=8", "status=none"])
    };
    assert_eq!(fill(0, "a").code, 0);
    let outcome = fill(1, "b");
    assert!(outcome.errors.contains("Disk quota exceeded"), "{outcome:?}");
    let size = world.run(2, &["stat", "-c", "%s", &path("b")]);
    assert_eq!(size.trim(), ((1 << 20) - 800 * 1024).to_string());
    let more = format!("of={}", path("b"));
    let argv = ["dd", "if=/dev/zero", &more, "bs=1", "count=1", "oflag=append", "conv=notrunc"];
    let more = world.outcome(2, &argv);
    assert!(more.errors.contains("Disk quota exceeded"), "{more:?}");
    assert_eq!(used(world, &small), (1024, 3));
    // What one node frees another has at once.
    world.run(2, &["rm", &path("a")]);
    assert_eq!(fill(1, "c").code, 0);
    let files = (0..9).map(|number| path(&number.to_string()));
    let files: Vec<String> = ["touch".to_owned()].into_iter().chain(files).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let outcome = world.outcome(0, &files);
    assert!(outcome.errors.contains("Disk quota exceeded"), "{outcome:?}");
    assert_eq!(used(world, &small).1, 8);
    // Also what has just been closed and removed, by who goes on at once.
    world.run(1, &["rm", &path("b"), &path("0"), &path("1"), &path("2")]);
    let turn = "dd if=/dev/zero of=more bs=100k count=2 status=none && rm more || exit 1";
    let again = format!("cd {small}; for turn in $(seq 30); do {turn}; done");
    world.run(1, &["sh", "-c", &again]);
    // What moves in is counted, or does not move.
    world.run(0, &["mkdir", &format!("{folder}/full")]);
    let inner = format!("{folder}/full/file");
    world.run(1, &["sh", "-c", &format!("echo content > {inner}")]);
    let linked = world.outcome(1, &["ln", &inner, &path("link")]);
    assert!(linked.errors.contains("Invalid cross-device link"), "{linked:?}");
    world.run(1, &["mv", &format!("{folder}/full"), &path("copied")]);
    assert_eq!(world.run(2, &["ls", &path("copied")]), "file\n");
    // What was removed is not counted any more a little later.
    let counted = until(LIMIT, || (used(world, &small) == (804, 6)).then_some(()));
    assert!(counted.is_some(), "{:?}", used(world, &small));
    // Users cannot change it, and it says what is wrong.
    if rustix::process::geteuid().is_root() {
        let program = world.program().to_string_lossy().into_owned();
        let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", &program];
        let argv = [&user[..], &["quota", "set", &small, "--size", "1G"]].concat();
        let outcome = world.outcome(0, &argv);
        assert!(outcome.errors.contains("does not let this user"), "{outcome:?}");
    }
    assert_eq!(quota(world, &["set", &path("c"), "--size", "1M"]).0, Some(1));
    let (code, said) = quota(world, &["rm", &format!("{folder}/none")]);
    assert!(code == Some(1) && said.contains("there is no"), "{said}");
    done(world, &["rm", &small]);
    assert_eq!(quota(world, &["rm", &small]).0, Some(1));
    assert_eq!(fill(2, "d").code, 0);
}

fn counted(world: &World) {
    let folder = world.folder();
    let script = format!(
        "cd {folder}; for d in 1 2 3; do mkdir $d; for f in $(seq 200); do echo x > $d/$f; done; done"
    );
    world.run(1, &["sh", "-c", &script]);
    let mut setter = world.dvs();
    let setter = setter.args(["quota", "set", &folder, "--inodes", "700"]);
    let mut setter = setter.spawn().expect("it runs");
    kill_server(world, "vfs-server");
    assert!(setter.wait().expect("it ends").success());
    assert_eq!(used(world, &folder), (600 * 4, 604));
    world.run(2, &["rm", "-r", &format!("{folder}/2")]);
    let script = format!("cd {folder}/1; for f in $(seq 300); do echo x > new$f || exit 1; done");
    let outcome = world.outcome(0, &["sh", "-c", &script]);
    assert!(outcome.code == 1 && outcome.errors.contains("quota exceeded"), "{outcome:?}");
    assert_eq!(used(world, &folder).1, 700);
    done(world, &["rm", &folder]);
}
