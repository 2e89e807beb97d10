//! Files: coreutils and sh on three nodes, errors, permissions, appending, and that every change is seen at once.

use crate::{ALL, OURS, Test, assert_same_lines, same_as_on_linux};
use legacy_tests::World;

pub(crate) const TESTS: &[Test] = &[
    ("access_control_lists_are_obeyed_as_on_linux", OURS, |world| {
        same_as_on_linux(world, "acl.py");
    }),
    ("what_sh_and_coreutils_do_on_one_node_goes_on_on_the_next", ALL, steps),
    ("errors_are_those_of_linux", ALL, |world| same_as_on_linux(world, "errors.py")),
    ("users_may_do_what_they_may_on_linux", ALL, users),
    ("a_change_on_one_node_is_there_at_once_on_another", ALL, alternate),
    ("appended_records_are_neither_lost_nor_torn", ALL, append),
    ("sqlite_on_three_nodes_loses_no_update", ALL, sqlite),
    ("the_sqlite3_shell_reads_what_python_wrote", ALL, sqlite_shell),
    ("a_shared_mapping_is_the_file", ALL, mappings),
    ("a_big_file_arrives_whole", ALL, big),
    ("a_directory_of_a_thousand_files_is_listed_whole", ALL, crowded),
    ("gcc_works_in_the_shared_tree", ALL, compiler),
];

/// Three scripts one after the other, each on another node: what they print is what they print here.
fn steps(world: &World) {
    let folder = world.folder();
    let native = world.reference();
    let native_folder = native.folder();
    for (node, script) in ["files_1.sh", "files_2.sh", "files_3.sh"].iter().enumerate() {
        let found = world.script(node, script, &[&folder]);
        assert_same_lines(&found, &native.script(node, script, &[&native_folder]));
    }
}

fn users(world: &World) {
    if rustix::process::geteuid().is_root() {
        same_as_on_linux(world, "users.py");
    } else {
        eprintln!("*** NOT TESTED: users; only root can become others");
    }
}

fn alternate(world: &World) {
    let (folder, name) = (world.folder(), world.name());
    for file in ["data", "whole", "size"] {
        world.run(0, &["touch", &format!("{folder}/{file}")]);
    }
    let start = |node: usize, side: &str| {
        world.start_script(node, "alternate.py", &[side, &folder, &name, "200"])
    };
    let (a, b) = (start(0, "a"), start(2, "b"));
    a.succeed();
    b.succeed();
    for side in ["a", "b"] {
        world.script(1, "sem.py", &[&format!("/{name}-{side}"), "unlink"]);
    }
}

fn append(world: &World) {
    let file = world.file("");
    world.on_all("append.py", &[&file, "{node}", "500"]);
    world.script(1, "append.py", &[&file, "check", "n1=500", "n2=500", "n3=500"]);
}

/// Three processes add to one table; returns the database.
fn filled(world: &World) -> String {
    let database = format!("{}/database", world.folder());
    let tables = "CREATE TABLE total (value INTEGER); INSERT INTO total VALUES (0); \
                  CREATE TABLE entry (tag TEXT, number INTEGER)";
    world.run(0, &["sqlite3", &database, tables]);
    world.on_all("sqlite_add.py", &[&database, "{node}", "40"]);
    database
}

fn sqlite(world: &World) {
    let database = filled(world);
    let question = "SELECT value FROM total; SELECT COUNT(DISTINCT tag || number) FROM entry; PRAGMA integrity_check";
    for node in 0..3 {
        assert_eq!(world.run(node, &["sqlite3", &database, question]), "120\n120\nok\n");
    }
}

fn sqlite_shell(world: &World) {
    let database = filled(world);
    let dump = world.run(1, &["sqlite3", &database, ".dump"]);
    assert_eq!(dump.matches("INSERT INTO entry").count(), 120, "{dump}");
    world.run(2, &["sh", "-c", "sqlite3 \"$0\" .dump | sqlite3 \"$0.copy\"", &database]);
    let sum = "SELECT SUM(number) FROM entry";
    let copy = format!("{database}.copy");
    assert_eq!(world.run(0, &["sqlite3", &copy, sum]), world.run(0, &["sqlite3", &database, sum]));
}

fn mappings(world: &World) {
    let file = format!("{}/mapped", world.folder());
    assert_eq!(world.script(2, "map.py", &[&file]), "mappings: ok\n");
}

fn big(world: &World) {
    let folder = world.folder();
    let make = "seq 1 3000000 >\"$0/big\" && cksum <\"$0/big\"";
    let sum = world.run(0, &["sh", "-c", make, &folder]);
    assert_eq!(sum, world.run(2, &["sh", "-c", "cksum <\"$0/big\"", &folder]));
    let copy = "cp \"$0/big\" \"$0/copy\" && dd if=\"$0/copy\" bs=1M 2>/dev/null | cksum";
    assert_eq!(sum, world.run(1, &["sh", "-c", copy, &folder]));
    world.run(2, &["sh", "-c", "cmp \"$0/big\" \"$0/copy\"", &folder]);
}

fn crowded(world: &World) {
    let folder = world.folder();
    let make = "cd \"$0\" && for i in $(seq 1 1000); do : >\"file-$i\"; done";
    world.run(0, &["sh", "-c", make, &folder]);
    assert_eq!(world.run(2, &["sh", "-c", "ls \"$0\" | sort -u | wc -l", &folder]).trim(), "1000");
    // Removing while listing must miss nothing.
    world.run(1, &["find", &folder, "-name", "file-*5", "-delete"]);
    assert_eq!(world.run(2, &["sh", "-c", "ls \"$0\" | wc -l", &folder]).trim(), "900");
    world.run(2, &["rm", "-r", &folder]);
}

fn compiler(world: &World) {
    let folder = world.folder();
    let make = "cd \"$0\" && printf '#include <stdio.h>\\nint main(void) { return puts(\"compiled\") < 0; }\\n' \
                >a.c && gcc -o a a.c";
    world.run(0, &["sh", "-c", make, &folder]);
    assert_eq!(world.run(1, &[&format!("{folder}/a")]), "compiled\n");
}
