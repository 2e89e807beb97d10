//! What people do with files: programs that work with many, and many that work at once.

use crate::network::{Network, is_installed};
use crate::place::{self, Place};
use crate::report::{Group, Report};
use crate::rounds::{Subject, Time, rounds_of};
use crate::system::System;
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a workload is called by in the line for a worker; its name follows, then `@` and the folder with what it works with.
pub(crate) const PREFIX: &str = "workload ";

/// A workload as a script: run in an empty folder, with the material as `$1`.
struct Workload {
    name: &'static str,
    /// Programs that it needs.
    needs: &'static [&'static str],
    script: &'static str,
}

/// In this order: some work on what one before has left.
const WORKLOADS: [Workload; 8] = [
    Workload {
        name: "tar x of 20000 small files",
        needs: &["tar"],
        script: "mkdir small && tar xf $1/small.tar -C small",
    },
    Workload {
        name: "grep -r in 20000 small files",
        needs: &["grep"],
        script: "grep -r 'nobody wrote this' small || test $? = 1",
    },
    Workload {
        name: "find in 20000 small files",
        needs: &["find"],
        script: "find small -newer small/0 -size +1M",
    },
    Workload { name: "rm -r of 20000 small files", needs: &["rm"], script: "rm -r small" },
    Workload {
        name: "git clone and status",
        needs: &["git"],
        script: "git clone --quiet --no-hardlinks $1/project project && git -C project status --short",
    },
    Workload {
        name: "make -j2 of 60 C files",
        needs: &["git", "make", "gcc"],
        script: "make --silent -j2 -C project",
    },
    Workload { name: "rm -r of the project", needs: &["rm"], script: "rm -rf project" },
    Workload {
        name: "sqlite, 200 transactions",
        needs: &["sqlite3"],
        script: "rm -f db && sqlite3 db < $1/inserts.sql",
    },
];

/// Changes of names and bytes by so many threads, each in a folder of its own.
const STORMS: [(&str, usize); 3] = [("storm of 1", 1), ("storm of 2", 2), ("storm of 8", 8)];
/// Files that each thread of a storm makes, writes, looks at, renames and removes.
const STORM_FILES: usize = 200;
/// Most rounds: each takes a minute.
const ROUNDS_MAX: usize = 3;

/// All rows of workloads.
pub(crate) fn rows(
    system: Option<&System>,
    network: &[Network],
    rounds: usize,
    report: &Report,
) -> Result<()> {
    if !report.wants(Group::Workloads) {
        return Ok(());
    }
    let material = Material::make()?;
    let linux = [Place::native("tmpfs", "/dev/shm")?, Place::native("ext4", place::target()?)?];
    let dvs = System::workers(system)?;
    let places: Vec<&Place> =
        linux.iter().chain(network.iter().map(Network::place)).chain(&dvs).collect();
    let names = WORKLOADS.iter().filter(|workload| workload.is_possible()).map(|one| one.name);
    let names: Vec<_> = names.chain(STORMS.map(|(name, _)| name)).collect();
    // One place does all of its workloads in a round, as they work on each other's files.
    let mut subjects: Vec<Box<dyn Subject + '_>> = Vec::new();
    for place in &places {
        for name in &names {
            let operation = format!("{PREFIX}{name}@{}", material.folder.path().display());
            subjects.push(Box::new(Once { place, name, operation }));
        }
    }
    let times = rounds_of(&mut subjects, rounds.min(ROUNDS_MAX))?;
    let count = linux.len() + network.len();
    for row in by_name(times, names.len()) {
        report.beside(&row[count..], &row[..count]);
    }
    Ok(())
}

/// The times of all workloads, place by place, as rows: the times of all places, name by name.
fn by_name(times: Vec<Time>, names: usize) -> Vec<Vec<Time>> {
    let mut rows: Vec<Vec<Time>> = (0..names).map(|_| Vec::new()).collect();
    for (number, time) in times.into_iter().enumerate() {
        rows[number % names].push(time);
    }
    rows
}

impl Workload {
    fn is_possible(&self) -> bool {
        let missing = self.needs.iter().find(|program| !is_installed(program));
        if let Some(missing) = missing {
            eprintln!("bench: without `{}`: {missing} is not installed", self.name);
        }
        missing.is_none()
    }
}

/// A workload somewhere.
struct Once<'a> {
    place: &'a Place,
    name: &'static str,
    operation: String,
}

impl Subject for Once<'_> {
    fn name(&self) -> String {
        format!("{} on {}", self.name, self.place.name())
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        self.place.perform(count, &self.operation)
    }
}

/// Does a workload, in `folder`.
pub(crate) fn perform(workload: &str, count: u32, folder: &Path) -> Result<Duration> {
    let (name, material) = workload.split_once('@').context("a workload needs material")?;
    let storm = STORMS.iter().find(|(storm, _)| *storm == name);
    let start = Instant::now();
    for _ in 0..count {
        match storm {
            Some((_, threads)) => storm_of(*threads, folder)?,
            None => script(name, material, folder)?,
        }
    }
    Ok(start.elapsed())
}

fn script(name: &str, material: &str, folder: &Path) -> Result<()> {
    let workload = WORKLOADS.iter().find(|workload| workload.name == name);
    let script = workload.with_context(|| format!("no workload {name}"))?.script;
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh", material]).current_dir(folder).stdin(Stdio::null());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ends with {}: {said}", output.status);
    Ok(())
}

fn storm_of(threads: usize, folder: &Path) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || storm(&folder.join(format!("storm-{number}")))))
            .collect();
        threads.into_iter().try_for_each(|thread| Ok(thread.join().expect("it does not panic")?))
    })
}

fn storm(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    for index in 0..STORM_FILES {
        let names = [folder.join(format!("a{index}")), folder.join(format!("b{index}"))];
        File::create_new(&names[0])?.write_all_at(&[7; 4096], 0)?;
        fs::rename(&names[0], &names[1])?;
        let mut found = [0; 4096];
        File::open(&names[1])?.read_exact_at(&mut found, 0)?;
        fs::metadata(&names[1])?;
    }
    for index in 0..STORM_FILES {
        fs::remove_file(folder.join(format!("b{index}")))?;
    }
    fs::remove_dir(folder)
}

/// What the workloads work with, in memory: an archive, a repository, statements of SQL.
struct Material {
    folder: tempfile::TempDir,
}

const SMALL_FILES: usize = 20_000;
const SOURCES: usize = 60;

impl Material {
    fn make() -> Result<Material> {
        let folder = tempfile::Builder::new().prefix("dvs-bench-").tempdir_in("/dev/shm")?;
        let path = folder.path();
        small_files(&path.join("small"))?;
        project(&path.join("project"))?;
        let mut statements = String::from("create table t (n integer primary key, text);\n");
        for number in 0..200 {
            writeln!(
                statements,
                "insert into t values ({number}, 'a row of some length {number}');"
            )?;
        }
        fs::write(path.join("inserts.sql"), statements)?;
        let pack = "tar cf small.tar -C small . && rm -r small
            if command -v git; then
                cd project; git init -q .; git add .
                git -c user.name=bench -c user.email=bench@localhost commit -qm all
            fi";
        let packed = Command::new("sh").args(["-ec", pack]).current_dir(path).output()?;
        ensure!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
        Ok(Material { folder })
    }
}

/// 1 to 8 KiB each, 100 in a directory.
fn small_files(folder: &Path) -> Result<()> {
    for index in 0..SMALL_FILES {
        let directory = folder.join((index / 100).to_string());
        if index % 100 == 0 {
            fs::create_dir_all(&directory)?;
        }
        let text = format!("file {index}, a line of text as any other\n");
        fs::write(directory.join(index.to_string()), text.repeat(25 + index % 175))?;
    }
    Ok(())
}

fn project(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut makefile = String::from("OBJECTS =");
    let mut main = String::from("#include \"all.h\"\nint main(void) { return 0");
    let mut header = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for index in 0..SOURCES {
        write!(makefile, " f{index}.o")?;
        write!(main, " * f{index}(0)")?;
        writeln!(header, "int f{index}(int n);")?;
        let mut source = String::from("#include \"all.h\"\n");
        for part in 0..10 {
            writeln!(
                source,
                "static int g{part}(int n) {{ char text[64]; snprintf(text, sizeof text, \"%d\", n); return (int)strlen(text) + {part}; }}"
            )?;
        }
        writeln!(source, "int f{index}(int n) {{ return g0(n) + g9(n) + {index}; }}")?;
        fs::write(folder.join(format!("f{index}.c")), source)?;
    }
    main.push_str("; }\n");
    makefile.push_str(
        "\nprogram: main.o $(OBJECTS)\n\tgcc -o $@ $^\n%.o: %.c all.h\n\tgcc -O1 -c $<\n",
    );
    for (name, text) in [("Makefile", makefile), ("main.c", main), ("all.h", header)] {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_times_of_all_places() {
        let time = |name: &str| Time { name: name.to_owned(), nanos: 1.0 };
        let times = ["a on x", "b on x", "c on x", "a on y", "b on y", "c on y"].map(time);
        let rows = by_name(times.into(), 3);
        let names = |row: &Vec<Time>| row.iter().map(|time| time.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            rows.iter().map(names).collect::<Vec<_>>().concat(),
            ["a on x", "a on y", "b on x", "b on y", "c on x", "c on y"]
        );
    }

    #[test]
    fn every_workload_can_be_done_and_leaves_nothing() {
        let material = Material::make().unwrap();
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        for workload in WORKLOADS.iter().filter(|workload| workload.is_possible()) {
            let line = format!("{}@{}", workload.name, material.folder.path().display());
            perform(&line, 1, folder.path()).unwrap();
        }
        for (storm, _) in STORMS {
            perform(&format!("{storm}@"), 1, folder.path()).unwrap();
        }
        fs::remove_file(folder.path().join("db")).ok();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
