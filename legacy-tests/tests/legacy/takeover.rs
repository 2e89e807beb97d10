//! A file agent that is killed is followed by another, and no program notices.

use crate::faults::{Agents, kill_server};
use crate::{LAB, Test};
use legacy_tests::wait::until;
use legacy_tests::{Running, World, lab::NODES, running::LIMIT};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("programs_do_not_notice_that_file_agents_are_killed", LAB, |world| steadfast(world, false)),
    ("programs_do_not_notice_that_file_agents_and_their_server_are_killed", LAB, |world| {
        steadfast(world, true);
    }),
];

/// How long: `TAKEOVER_SECONDS`, or this.
const SECONDS: u64 = 15;
/// How long an agent lives: long enough to have leases for a while.
const LIVES_FOR: Duration = Duration::from_millis(3500);

fn steadfast(world: &World, kills_server: bool) {
    let folder = world.folder();
    world.run(0, &["truncate", "-s", "4096", &format!("{folder}/mapped")]);
    let mut programs: Vec<Running> = NODES
        .iter()
        .enumerate()
        .map(|(node, name)| world.start_script(node, "steadfast.py", &[&folder, name]))
        .collect();
    let has_begun = |name: &str| {
        let list = format!("{folder}/{name}/list");
        world.outcome(0, &["test", "-d", &list]).code == 0
    };
    let begun = until(LIMIT, || NODES.iter().all(|name| has_begun(name)).then_some(()));
    assert!(begun.is_some(), "{}", programs[0].errors());

    let seconds = std::env::var("TAKEOVER_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    let mut agents = Agents::new(world, LIVES_FOR);
    let (mut round, mut kills) = (0, 0);
    while Instant::now() < end {
        round += 1;
        let killed = until(LIMIT, || agents.kill(round).then_some(()));
        kills += u64::from(killed.is_some());
        if kills_server && round.is_multiple_of(4) {
            kill_server(world, "vfs-server");
        }
        for program in &mut programs {
            assert!(program.ended().is_none(), "after {kills} kills: {}", program.errors());
        }
    }
    world.run(1, &["touch", &format!("{folder}/stop")]);
    for program in programs {
        eprint!("{} ... ", program.succeed().trim_end());
    }
    let number =
        |path: String| -> u64 { world.run(1, &["cat", &path]).trim().parse().expect("a number") };
    for kind in ["fcntl", "flock"] {
        let all: u64 = NODES.map(|name| number(format!("{folder}/{name}.{kind}"))).iter().sum();
        assert_eq!(number(format!("{folder}/{kind}")), all, "{kind}");
    }
    let records = world.run(2, &["cut", "-d", " ", "-f", "1,2", &format!("{folder}/appended")]);
    for name in NODES {
        let prefix = format!("{name} ");
        let found: Vec<u64> =
            records.lines().filter_map(|line| line.strip_prefix(&prefix)?.parse().ok()).collect();
        let expected: Vec<u64> = (0..number(format!("{folder}/{name}.appended"))).collect();
        assert!(found == expected, "records of {name}: {} of {}", found.len(), expected.len());
    }
    // Nothing is open: what was removed is gone.
    world.run(1, &["rm", "-r", &folder]);
    eprint!("{kills} kills ... ");
}
