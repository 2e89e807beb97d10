//! The thread that reads blobs while nobody waits for them: to sum them, and to see whether they still are what was summed.
//!
//! It opens the files for itself and changes nothing. Whether a blob has changed while it was read is known to who asks.

use super::blobs::fsync_directory;
use super::checksums::{CHUNK, Still, Summed, first_bad, sum};
use crate::limits::{UPKEEP_BACKLOG, UPKEEP_BATCH, UPKEEP_NICE};
use anyhow::{Context, Result};
use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;

/// What the thread is asked for.
#[derive(Debug)]
pub(crate) enum Job {
    /// Brings a blob to stable storage and sums these chunks of it.
    Sum { path: PathBuf, still: Still },
    /// Reads a chunk from the disk and compares it with its sums.
    Check { path: PathBuf, blob: u64, chunk: u64, row: Vec<u8> },
    /// Lists the blobs of a directory, and where they have data.
    List { directory: PathBuf },
}

/// What it has found.
#[derive(Debug)]
pub(crate) enum Found {
    /// `None`: it could not be flushed or opened, which is in the log.
    Summed {
        still: Still,
        summed: Option<Summed>,
    },
    Checked {
        blob: u64,
        chunk: u64,
        row: Vec<u8>,
        outcome: Outcome,
    },
    /// A blob, and a range of it that has data.
    Data {
        blob: u64,
        range: Range<u64>,
    },
    /// A directory has no more; so many files in it could not be looked at.
    Listed {
        missed: u64,
    },
}

/// How a chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Well,
    /// From this byte of the blob on, at least.
    Bad(u64),
    /// The disk does not give it back.
    Lost(String),
    /// It could not be looked at.
    Unknown(String),
}

/// The thread, which is started with the first job and ends with this.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    running: Option<Running>,
    /// Jobs that are not done.
    open: usize,
}

#[derive(Debug)]
struct Running {
    jobs: Sender<Job>,
    found: Receiver<Found>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Upkeep {
    /// Asks for something.
    pub(crate) fn ask(&mut self, job: Job) -> Result<()> {
        let running = match self.running.take() {
            Some(running) => running,
            None => Running::start()?,
        };
        running.jobs.send(job).context("the thread that reads blobs has ended")?;
        self.running = Some(running);
        self.open += 1;
        Ok(())
    }

    /// How many jobs are not done.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// The next thing that it has found, if there is one.
    pub(crate) fn found(&mut self) -> Result<Option<Found>> {
        let Some(running) = &self.running else { return Ok(None) };
        match running.found.try_recv() {
            Ok(found) => Ok(Some(self.taken(found))),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                anyhow::bail!("the thread that reads blobs has ended")
            }
        }
    }

    /// Waits for the next thing that it finds, as long as there are jobs.
    pub(crate) fn wait(&mut self) -> Result<Option<Found>> {
        let Some(running) = self.running.as_ref().filter(|_| self.open > 0) else {
            return Ok(None);
        };
        let found = running.found.recv().context("the thread that reads blobs has ended")?;
        Ok(Some(self.taken(found)))
    }

    /// All but [`Found::Data`] end a job.
    fn taken(&mut self, found: Found) -> Found {
        if !matches!(found, Found::Data { .. }) {
            self.open -= 1;
        }
        found
    }
}

impl Running {
    fn start() -> Result<Running> {
        let (jobs, asked) = channel();
        let (told, found) = sync_channel(UPKEEP_BACKLOG);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("upkeep".into())
            .spawn(move || work(&asked, &told, &stopped))
            .context("cannot start the thread that reads blobs")?;
        Ok(Running { jobs, found, stop, thread })
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        let Some(Running { jobs, found, stop, thread }) = self.running.take() else { return };
        stop.store(true, Ordering::Relaxed);
        drop((jobs, found));
        drop(thread.join());
    }
}

fn work(jobs: &Receiver<Job>, told: &SyncSender<Found>, stop: &AtomicBool) {
    // Of this thread alone, as Linux has it. If it is not allowed, it is a thread like others.
    rustix::process::nice(UPKEEP_NICE).ok();
    while let Ok(first) = jobs.recv() {
        // Of the jobs that are there each directory is flushed once.
        let mut flushed = BTreeSet::new();
        for job in [first].into_iter().chain(jobs.try_iter()).take(UPKEEP_BATCH) {
            if stop.load(Ordering::Relaxed) || job.run(&mut flushed, told, stop).is_none() {
                return;
            }
        }
    }
}

impl Job {
    /// `None`: nobody listens any more.
    fn run(
        self,
        flushed: &mut BTreeSet<PathBuf>,
        told: &SyncSender<Found>,
        stop: &AtomicBool,
    ) -> Option<()> {
        let found = match self {
            Job::Sum { path, still } => {
                let summed = sum_file(&path, &still, flushed, stop);
                let summed = summed
                    .inspect_err(|error| tracing::error!("no checksums: {error:#}"))
                    .ok()
                    .flatten();
                Found::Summed { still, summed }
            }
            Job::Check { path, blob, chunk, row } => {
                let outcome = check_file(&path, blob, chunk, &row).unwrap_or_else(|error| {
                    let said = format!("{error:#}");
                    let error = error.downcast_ref::<std::io::Error>();
                    // Whatever else goes wrong says nothing about the disk.
                    if error.is_some_and(is_lost) {
                        Outcome::Lost(said)
                    } else {
                        Outcome::Unknown(said)
                    }
                });
                Found::Checked { blob, chunk, row, outcome }
            }
            Job::List { directory } => {
                let missed = list(&directory, told, stop).unwrap_or_else(|error| {
                    tracing::error!("{error:#}");
                    1
                });
                Found::Listed { missed }
            }
        };
        told.send(found).ok()
    }
}

/// The sums of a blob's chunks that have data. `None`: stop.
fn sum_file(
    path: &Path,
    still: &Still,
    flushed: &mut BTreeSet<PathBuf>,
    stop: &AtomicBool,
) -> Result<Option<Summed>> {
    let (blob, window) = still.window;
    let mut summed = Summed::default();
    let file = match File::open(path) {
        Ok(file) => file,
        // It never had data, or is gone.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(summed)),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
    for directory in path.ancestors().skip(1).take(2) {
        if !flushed.contains(directory) {
            fsync_directory(directory)?;
            flushed.insert(directory.to_path_buf());
        }
    }
    let mut bytes = vec![0; usize::try_from(CHUNK)?];
    for chunk in still.chunks.in_window(window) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let from = chunk * CHUNK;
        match seek(&file, SeekFrom::Data(from)) {
            Ok(data) if data < from + CHUNK => {}
            Ok(_) => continue,
            // There is none from there on.
            Err(Errno::NXIO) => break,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
        match read(&file, &mut bytes, from) {
            Ok(count) => drop(summed.rows.insert(chunk, sum(blob, chunk, &bytes[..count]))),
            // The others can be summed.
            Err(_) => summed.unread = summed.unread.and_also(still.chunks.only(chunk)),
        }
    }
    Ok(Some(summed))
}

/// Is that what a disk says of bytes that it does not have any more, or a file system of a file?
fn is_lost(error: &std::io::Error) -> bool {
    let lost = [Errno::IO, Errno::UCLEAN, Errno::BADMSG].map(|errno| Some(errno.raw_os_error()));
    error.kind() == std::io::ErrorKind::NotFound || lost.contains(&error.raw_os_error())
}

fn check_file(path: &Path, blob: u64, chunk: u64, row: &[u8]) -> Result<Outcome> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let from = chunk * CHUNK;
    // What the kernel has in memory says nothing about the disk.
    fadvise(&file, from, NonZeroU64::new(CHUNK), Advice::DontNeed)?;
    let mut bytes = vec![0; usize::try_from(CHUNK)?];
    let count = read(&file, &mut bytes, from)
        .with_context(|| format!("cannot read {} at {from}", path.display()))?;
    Ok(first_bad(blob, chunk, &bytes[..count], row).map_or(Outcome::Well, Outcome::Bad))
}

fn read(file: &File, bytes: &mut [u8], from: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], from + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Returns how many blobs could not be looked at.
fn list(directory: &Path, told: &SyncSender<Found>, stop: &AtomicBool) -> Result<u64> {
    let failed = || format!("cannot list {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries.with_context(failed)?,
    };
    let mut missed = 0;
    for entry in entries {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name();
        let Some(blob) = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok()) else {
            continue;
        };
        let file = match File::open(entry.path()) {
            Ok(file) if file.metadata().is_ok_and(|found| found.is_file()) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            found => {
                tracing::error!("cannot look at {}: {:?}", entry.path().display(), found.err());
                missed += 1;
                continue;
            }
        };
        let mut from = 0;
        while let Ok(start) = seek(&file, SeekFrom::Data(from)) {
            let end = seek(&file, SeekFrom::Hole(start)).unwrap_or(start).max(start + 1);
            // In parts, as who is told looks at each chunk.
            for part in (start..end).step_by(usize::try_from(64 * CHUNK)?) {
                let range = part..end.min(part + 64 * CHUNK);
                if stop.load(Ordering::Relaxed) || told.send(Found::Data { blob, range }).is_err() {
                    return Ok(missed);
                }
            }
            from = end;
        }
    }
    Ok(missed)
}
