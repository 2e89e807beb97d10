//! The rows of files: through the mount, beside file systems of Linux, and beside a FUSE with nothing behind it.

use crate::empty_fuse::EmptyFuse;
use crate::network::Network;
use crate::place::{self, Place};
use crate::report::{Group, Report};
use crate::rounds::{Subject, medians};
use crate::system::System;
use anyhow::Result;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is done, as a worker has it.
pub(crate) const OPERATIONS: [&str; 15] = [
    "stat",
    "stat of no file",
    "open and close",
    "create",
    "unlink",
    "make and remove a directory",
    "rename",
    "lock and unlock",
    "list 1000 files with stat",
    "read 4 KiB, opened to read",
    "read 4 KiB",
    "write 4 KiB",
    "write 4 KiB and fsync",
    "read 1 MiB",
    "write 1 MiB",
];

/// Most files that are made in a round: ext4 looks at every inode that was freed in the last five
/// seconds before it makes one, so thousands would measure that.
const FILES_MAX: u32 = 200;
const LISTED: u32 = 1000;

/// What is done with what has been looked at for some time, as long as nobody looked elsewhere for much longer.
const KNOWN: [&str; 5] = [
    "stat",
    "stat of no file",
    "open and close",
    "list 1000 files with stat",
    "read 4 KiB, opened to read",
];
const SOME_TIME: Duration = Duration::from_millis(1500);
const MUCH_LONGER: Duration = Duration::from_secs(5);
const MIB: usize = 1 << 20;

/// All rows of files.
pub(crate) fn rows(
    system: Option<&System>,
    network: &[Network],
    rounds: usize,
    report: &Report,
) -> Result<()> {
    if !report.wants(Group::Files) {
        return Ok(());
    }
    let mut linux =
        vec![Place::native("tmpfs", "/dev/shm")?, Place::native("ext4", place::target()?)?];
    let empty = EmptyFuse::mount();
    match &empty {
        Ok(empty) => linux.push(Place::native("empty FUSE", empty.path())?),
        Err(error) => eprintln!("bench: without an empty FUSE to compare with: {error:#}"),
    }
    let dvs = System::workers(system)?;
    for operation in OPERATIONS {
        let places = linux.iter().chain(network.iter().map(Network::place)).chain(&dvs);
        let mut subjects: Vec<_> = places
            .map(|place| {
                let subject: Box<dyn Subject> = Box::new(OnFiles { place, operation });
                subject
            })
            .collect();
        let times = medians(&mut subjects, rounds)?;
        let (baselines, ours) = times.split_at(linux.len() + network.len());
        report.beside(ours, baselines);
    }
    // The worker in it first: it removes its folder.
    drop(linux);
    Ok(())
}

/// An operation somewhere.
struct OnFiles<'a> {
    place: &'a Place,
    operation: &'static str,
}

impl Subject for OnFiles<'_> {
    fn name(&self) -> String {
        format!("{} on {}", self.operation, self.place.name())
    }

    fn count_max(&self) -> u32 {
        if ["create", "unlink"].contains(&self.operation) { FILES_MAX } else { u32::MAX }
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        self.place.perform(count, self.operation)
    }
}

/// The files of a worker.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    data: File,
    block: Vec<u8>,
    /// When they were last looked at for some time.
    known: Option<Instant>,
}

impl Files {
    /// Makes them in an empty folder.
    pub(crate) fn make(folder: &Path) -> Result<Files> {
        let data =
            OpenOptions::new().read(true).write(true).create_new(true).open(folder.join("data"))?;
        let block = vec![7; MIB];
        data.write_all_at(&block, 0)?;
        fs::create_dir(folder.join("listed"))?;
        for index in 0..LISTED {
            File::create_new(folder.join(format!("listed/{index}")))?;
        }
        Ok(Files { folder: folder.to_path_buf(), data, block, known: None })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Does one of [`OPERATIONS`] `count` times; `None` if it is none.
    pub(crate) fn perform(&mut self, operation: &str, count: u32) -> Result<Option<Duration>> {
        if KNOWN.contains(&operation) {
            self.look_for_some_time();
        }
        let Files { folder, data, block, .. } = self;
        let path = folder.join("data");
        let small = &mut block[..4096];
        let other = folder.join("other");
        Ok(Some(match operation {
            "stat" => timed(count, || fs::metadata(&path).map(drop))?,
            "stat of no file" => timed(count, || match fs::metadata(&other) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                found => Err(std::io::Error::other(format!("{found:?}"))),
            })?,
            "open and close" => timed(count, || File::open(&path).map(drop))?,
            "create" | "unlink" => create_and_unlink(folder, operation, count)?,
            "make and remove a directory" => timed(count, || {
                fs::create_dir(&other)?;
                fs::remove_dir(&other)
            })?,
            "rename" => {
                let names = [folder.join("a"), folder.join("b")];
                File::create(&names[0])?;
                let mut at = 0;
                let time = timed(count, || {
                    at = 1 - at;
                    fs::rename(&names[1 - at], &names[at])
                })?;
                fs::remove_file(&names[at])?;
                time
            }
            "lock and unlock" => {
                // As open(2) has it, since a lock of std is flock(2)'s.
                let locked =
                    OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(&path)?;
                timed(count, || {
                    rustix::fs::fcntl_lock(&locked, rustix::fs::FlockOperation::LockExclusive)?;
                    Ok(rustix::fs::fcntl_lock(&locked, rustix::fs::FlockOperation::Unlock)?)
                })?
            }
            "list 1000 files with stat" => {
                let listed = folder.join("listed");
                timed(count, || {
                    let mut found = 0;
                    for entry in fs::read_dir(&listed)? {
                        entry?.metadata()?;
                        found += 1;
                    }
                    if found == LISTED { Ok(()) } else { Err(std::io::Error::other("not all")) }
                })?
            }
            "read 4 KiB, opened to read" => {
                let file = File::open(&path)?;
                timed(count, || file.read_exact_at(small, 0))?
            }
            "read 4 KiB" => timed(count, || data.read_exact_at(small, 0))?,
            "write 4 KiB" => timed(count, || data.write_all_at(small, 0))?,
            "write 4 KiB and fsync" => timed(count, || {
                data.write_all_at(small, 0)?;
                data.sync_data()
            })?,
            "read 1 MiB" => timed(count, || data.read_exact_at(block, 0))?,
            "write 1 MiB" => timed(count, || data.write_all_at(block, 0))?,
            _ => return Ok(None),
        }))
    }
}

impl Files {
    fn look_for_some_time(&mut self) {
        if self.known.is_none_or(|known| known.elapsed() > MUCH_LONGER) {
            let start = Instant::now();
            while start.elapsed() < SOME_TIME {
                for name in ["data", "other", "listed/0"] {
                    fs::metadata(self.folder.join(name)).ok();
                }
            }
        }
        self.known = Some(Instant::now());
    }
}

/// Creates and removes `count` files; the time is that of `operation`.
fn create_and_unlink(folder: &Path, operation: &str, count: u32) -> Result<Duration> {
    let path = |index: u32| folder.join(format!("f{index}"));
    let mut each = 0..count;
    let create = timed(count, || {
        each.next().map_or(Ok(()), |index| File::create_new(path(index)).map(drop))
    })?;
    let mut each = 0..count;
    let unlink = timed(count, || each.next().map_or(Ok(()), |index| fs::remove_file(path(index))))?;
    Ok(if operation == "create" { create } else { unlink })
}

fn timed(count: u32, mut operation: impl FnMut() -> std::io::Result<()>) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..count {
        operation()?;
    }
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_can_be_done_and_leaves_things_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::make(folder.path()).unwrap();
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let before = count();
        for operation in OPERATIONS {
            assert!(files.perform(operation, 3).unwrap().is_some(), "{operation}");
            assert_eq!(count(), before, "{operation}");
        }
        assert!(files.perform("nothing", 1).unwrap().is_none());
    }
}
