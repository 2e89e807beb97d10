//! Runs every test in every world that it is for; one lab for all of them, taken down at the end.

mod commands;
mod conformance;
mod dvk;
mod embedded;
mod faults;
mod files;
mod group;
mod hammer;
mod labs;
mod locks;
mod mappings;
mod messages;
mod processes;
mod quotas;
mod semaphores;
mod snapshots;
mod takeover;

use legacy_tests::{World, lab};
use libtest_mimic::{Arguments, Failed, Trial};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// A test: what it is about, the worlds it is for, and itself. It panics if something is wrong.
type Test = (&'static str, &'static [Place], fn(&World));

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Lab,
    Embedded,
    Native,
}

/// For most tests: the same programs, with the same right answers.
const ALL: &[Place] = &[Place::Native, Place::Embedded, Place::Lab];
/// For what is known of Linux: the file systems of this machine are not what is tested.
const OURS: &[Place] = &[Place::Embedded, Place::Lab];
/// For what a machine without a lab does.
const EMBEDDED: &[Place] = &[Place::Embedded];
/// For what only a lab has.
const LAB: &[Place] = &[Place::Lab];

const MODULES: &[&[Test]] = &[
    files::TESTS,
    conformance::TESTS,
    locks::TESTS,
    hammer::TESTS,
    mappings::TESTS,
    semaphores::TESTS,
    messages::TESTS,
    processes::TESTS,
    commands::TESTS,
    dvk::TESTS,
    faults::TESTS,
    quotas::TESTS,
    snapshots::TESTS,
    takeover::TESTS,
    group::TESTS,
    embedded::TESTS,
    labs::TESTS,
];

/// The worlds, each made when a test first needs it.
struct Worlds {
    scratch: PathBuf,
    program: Option<PathBuf>,
    places: [(Place, Option<World>); 3],
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Tests kill servers, and two processors have enough to do with the nodes of one test.
    arguments.test_threads = Some(1);
    // Tests become other users, who must get at the files.
    let scratch = tempfile::Builder::new()
        .prefix("dvs-legacy-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir();
    let scratch = scratch.expect("a folder for this run can be made");
    let obstacle = lab::obstacle();
    if let Some(obstacle) = obstacle.as_ref().filter(|_| !arguments.list) {
        eprintln!("\n*** NOT TESTED: labs and embedded systems. {obstacle}.");
        eprintln!("*** Only Linux itself is tested, which says nothing about DVS.\n");
    }
    let places = [Place::Lab, Place::Embedded, Place::Native].map(|place| (place, None));
    let worlds = Worlds { scratch: scratch.path().to_path_buf(), program: None, places };
    let worlds = Arc::new(Mutex::new(worlds));
    let conclusion = libtest_mimic::run(&arguments, trials(&worlds, obstacle.is_some()));
    // Before the process ends: this takes the lab down.
    let mut worlds = worlds.lock().unwrap_or_else(PoisonError::into_inner);
    worlds.places.iter_mut().for_each(|(_, world)| *world = None);
    conclusion.exit_code()
}

fn trials(worlds: &Arc<Mutex<Worlds>>, native_only: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for place in ALL {
        for (name, places, test) in
            MODULES.iter().copied().flatten().filter(|(_, places, _)| places.contains(place))
        {
            debug_assert!(!places.is_empty(), "{name} runs nowhere");
            let (worlds, place, test) = (Arc::clone(worlds), *place, *test);
            let skipped = native_only && place != Place::Native;
            let trial = Trial::test(format!("{place:?}::{name}").to_lowercase(), move || {
                worlds.lock().unwrap_or_else(PoisonError::into_inner).run(place, test)
            });
            trials.push(trial.with_ignored_flag(skipped));
        }
    }
    trials
}

impl Worlds {
    fn run(&mut self, place: Place, test: fn(&World)) -> Result<(), Failed> {
        let world = self.world(place).map_err(|error| format!("{error:#}"))?;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(world)));
        if result.is_ok() {
            return Ok(());
        }
        let (logs, healthy) = (world.logs(), world.is_healthy());
        if !healthy {
            // The next test gets a new one.
            self.places
                .iter_mut()
                .filter(|(own, _)| *own == place)
                .for_each(|(_, world)| *world = None);
        }
        Err(format!("see above; the logs:{logs}").into())
    }

    fn world(&mut self, place: Place) -> anyhow::Result<&World> {
        let scratch = self.scratch.join(format!("{place:?}").to_lowercase());
        std::fs::create_dir_all(&scratch)?;
        let program = if place == Place::Native { None } else { Some(self.program()?) };
        let slot = self
            .places
            .iter_mut()
            .find(|(own, _)| *own == place)
            .expect("every place is in the list");
        if slot.1.is_none() {
            slot.1 = Some(match (place, program) {
                (Place::Lab, Some(program)) => World::lab(&program, &scratch)?,
                (Place::Embedded, Some(program)) => World::embedded(&program, &scratch)?,
                _ => World::native(&scratch)?,
            });
        }
        Ok(slot.1.as_ref().expect("it has just been made"))
    }

    /// A copy of `dvs`, so that a build in between does not change what is tested.
    fn program(&mut self) -> anyhow::Result<PathBuf> {
        if self.program.is_none() {
            let copy = self.scratch.join("dvs");
            std::fs::copy(lab::program()?, &copy)?;
            self.program = Some(copy);
        }
        Ok(self.program.clone().expect("it has just been set"))
    }
}

/// Runs a script in a new folder here and on Linux itself: it prints the same.
fn same_as_on_linux(world: &World, script: &str) {
    let reference = world.reference();
    let found = world.script(1, script, &[&world.folder()]);
    assert_same_lines(&found, &reference.script(1, script, &[&reference.folder()]));
}

/// Compares two outputs line by line, so that a difference is seen at once.
fn assert_same_lines(found: &str, wanted: &str) {
    let differences: Vec<String> = found
        .lines()
        .zip(wanted.lines())
        .filter(|(found, wanted)| found != wanted)
        .map(|(found, wanted)| format!("  here   {found}\n  Linux  {wanted}"))
        .collect();
    assert!(
        differences.is_empty(),
        "{} lines differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
    assert_eq!(found.lines().count(), wanted.lines().count(), "different numbers of lines");
}
