//! What others hold file systems to: pjdfstest, whole, on the home node of the files and on another.

use crate::{OURS, Test};
use legacy_tests::{World, program};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

pub(crate) const TESTS: &[Test] = &[("pjdfstest_passes", OURS, pjdfstest)];

/// All tests of this version.
const COUNT: usize = 398;

/// What it is told of the file system and the system's users. Its clock ticks finer than `naptime` (seconds).
const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// The tests that mount the file system read-only for a while.
const REMOUNTING: &str = "erofs";
/// A file system may have no most number of links: as tmpfs, ours has none.
const LINK_MAX: &str = "link::link_count_max";

/// Runs the tests whose names contain `filter`; returns how many passed, and the names of those that were skipped.
fn run(world: &World, node: usize, remount: bool, filter: &str) -> (usize, Vec<String>) {
    let settings = world.scratch().join(format!("pjdfstest-{remount}.toml"));
    std::fs::write(&settings, SETTINGS.replace("REMOUNT", &remount.to_string()))
        .expect("the scratch folder is ours");
    let folder = world.folder();
    let program = program::tool("pjdfstest-0.2.2", "pjdfstest");
    let settings = settings.to_string_lossy();
    let paths = ["-c", &settings, "-p", &folder, "-s", "/dev/shm"];
    let path = format!("PATH={}:/usr/bin:/bin:/usr/sbin:/sbin", mounting(world));
    let argv = [&["env", &*path, &*program][..], &paths, &[filter]].concat();
    let outcome = world.outcome(node, &argv);
    let named = |how: &str| -> Vec<String> {
        let lines = outcome.output.lines().filter_map(|line| line.strip_suffix(how));
        lines.map(|name| name.trim().to_owned()).collect()
    };
    let passed = named(" ok").len();
    let failed = named(" FAILED");
    assert!(outcome.code == 0 && failed.is_empty(), "{failed:?}\n{}", outcome.output);
    (passed, named(" skipped"))
}

/// A folder with a mount(8) that does it itself. Where the package fuse3 is installed, its helper mount.fuse would take a
/// remount for a wish to start the file system, as a program by the name of its type.
fn mounting(world: &World) -> String {
    let folder = world.scratch().join("mounting");
    let script = folder.join("mount");
    let made = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&script, "#!/bin/sh\nexec /bin/mount -i \"$@\"\n"))
        .and_then(|()| std::fs::set_permissions(&script, Permissions::from_mode(0o755)));
    made.expect("the scratch folder is ours");
    folder.to_string_lossy().into_owned()
}

fn pjdfstest(world: &World) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("*** NOT TESTED: pjdfstest; only root can become others");
        return;
    }
    for node in [0, 2] {
        let (passed, skipped) = run(world, node, false, "");
        assert_eq!(passed + skipped.len(), COUNT);
        let (remounting, others): (Vec<String>, Vec<String>) =
            skipped.into_iter().partition(|name| name.contains(REMOUNTING));
        assert_eq!(others, [LINK_MAX]);
        // A program mounts what its container has, and nobody else's.
        assert_eq!(run(world, node, true, REMOUNTING), (remounting.len(), Vec::new()));
    }
}
