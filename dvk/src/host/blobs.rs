//! Blobs: one sparse file each, so that the file system keeps holes, space and read-ahead.

use crate::limits::BLOB_FILES_OPEN;
use crate::store::StoreError;
use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, ftruncate, seek};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Sub-directories, so that no directory gets long.
const FANOUT: u64 = 256;

/// The blobs of one store.
#[derive(Debug)]
pub(crate) struct Blobs {
    directory: PathBuf,
    open: RefCell<OpenFiles>,
    /// Blobs to be fsynced with the next sync.
    sync: BTreeSet<u64>,
    /// Blobs whose directory entry may not be on stable storage.
    fresh: BTreeSet<u64>,
}

impl Blobs {
    pub(crate) fn open(directory: PathBuf) -> Result<Blobs> {
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        // Which entries a predecessor has not brought to stable storage nobody knows any more.
        for parent in std::fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?
        {
            fsync_directory(&parent?.path())?;
        }
        fsync_directory(&directory)?;
        Ok(Blobs {
            directory,
            open: RefCell::default(),
            sync: BTreeSet::new(),
            fresh: BTreeSet::new(),
        })
    }

    fn parent(&self, blob: u64) -> PathBuf {
        self.directory.join(format!("{:02x}", blob % FANOUT))
    }

    /// The directories that blobs may be in, from 0 on.
    pub(crate) fn directory(&self, number: u64) -> Option<PathBuf> {
        (number < FANOUT).then(|| self.parent(number))
    }

    pub(crate) fn path(&self, blob: u64) -> PathBuf {
        self.parent(blob).join(format!("{blob:016x}"))
    }

    /// The blob's file, if it is there.
    fn file(&self, blob: u64) -> Result<Option<Rc<File>>, StoreError> {
        if let Some(file) = self.open.borrow_mut().get(blob) {
            return Ok(Some(file));
        }
        match OpenOptions::new().read(true).write(true).open(self.path(blob)) {
            Ok(file) => Ok(Some(self.open.borrow_mut().insert(blob, file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open", blob, &error)),
        }
    }

    /// The blob's file, made if it is not there.
    fn file_made(&mut self, blob: u64) -> Result<Rc<File>, StoreError> {
        if let Some(file) = self.file(blob)? {
            return Ok(file);
        }
        let make =
            || OpenOptions::new().read(true).write(true).create_new(true).open(self.path(blob));
        let made = make().or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(self.parent(blob)).and_then(|()| make())
            }
            _ => Err(error),
        });
        let file = made.map_err(|error| failed("create", blob, &error))?;
        self.fresh.insert(blob);
        Ok(self.open.borrow_mut().insert(blob, file))
    }

    pub(crate) fn read(
        &self,
        blob: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StoreError> {
        let Some(file) = self.file(blob)? else { return Ok(0) };
        if offset > i64::MAX as u64 {
            return Ok(0);
        }
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", blob, &error)),
            }
        }
        Ok(done)
    }

    pub(crate) fn write(&mut self, blob: u64, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let end = offset.checked_add(data.len() as u64);
        end.filter(|end| *end <= i64::MAX as u64).ok_or(StoreError::Full)?;
        let file = self.file_made(blob)?;
        if data.is_empty() {
            // A write of nothing at some offset grows the blob to there, as a write of something would.
            let length = length(&file, blob)?;
            return if length < offset { self.truncate(blob, offset) } else { Ok(()) };
        }
        file.write_all_at(data, offset).map_err(|error| failed("write", blob, &error))
    }

    pub(crate) fn truncate(&mut self, blob: u64, length: u64) -> Result<(), StoreError> {
        if length > i64::MAX as u64 {
            return Err(StoreError::Full);
        }
        ftruncate(&self.file_made(blob)?, length)
            .map_err(|error| failed("truncate", blob, &error.into()))
    }

    pub(crate) fn punch(&mut self, blob: u64, offset: u64, count: u64) -> Result<(), StoreError> {
        let Some(file) = self.file(blob)? else { return Ok(()) };
        let end = offset.saturating_add(count).min(length(&file, blob)?);
        if offset >= end {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&file, flags, offset, end - offset) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(&file, blob, offset, end),
            Err(error) => Err(failed("punch a hole into", blob, &error.into())),
        }
    }

    pub(crate) fn seek(&self, blob: u64, offset: u64, hole: bool) -> Option<u64> {
        let file = self.file(blob).ok().flatten().filter(|_| offset <= i64::MAX as u64)?;
        let target = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        // ENXIO: there is none.
        seek(&file, target).ok()
    }

    /// How long the blob is.
    pub(crate) fn length(&self, blob: u64) -> Result<u64, StoreError> {
        self.file(blob)?.map_or(Ok(0), |file| length(&file, blob))
    }

    /// Bytes of storage that the blob uses.
    pub(crate) fn used(&self, blob: u64) -> u64 {
        let blocks =
            |file: Rc<File>| fstat(&file).ok().and_then(|stat| u64::try_from(stat.st_blocks).ok());
        self.file(blob).ok().flatten().and_then(blocks).unwrap_or(0) * 512
    }

    pub(crate) fn remove(&mut self, blob: u64) -> Result<()> {
        self.open.borrow_mut().remove(blob);
        self.sync.remove(&blob);
        self.fresh.remove(&blob);
        match std::fs::remove_file(self.path(blob)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path(blob).display()))
            }
            _ => Ok(()),
        }
    }

    /// Marks a blob for the next [`Blobs::sync_marked`].
    pub(crate) fn mark(&mut self, blob: u64) {
        self.sync.insert(blob);
    }

    /// Brings all marked blobs to stable storage, with their directory entries.
    pub(crate) fn sync_marked(&mut self) -> Result<()> {
        let mut parents = BTreeSet::new();
        for blob in std::mem::take(&mut self.sync) {
            let file =
                self.file(blob).map_err(|_| anyhow::anyhow!("cannot open blob {blob:016x}"))?;
            let Some(file) = file else { continue };
            file.sync_data()
                .with_context(|| format!("cannot sync {}", self.path(blob).display()))?;
            if self.fresh.remove(&blob) {
                parents.insert(self.parent(blob));
                parents.insert(self.directory.clone());
            }
        }
        parents.iter().try_for_each(|parent| fsync_directory(parent))
    }

    /// Bytes of the file system in all, and free.
    pub(crate) fn space(&self) -> (u64, u64) {
        rustix::fs::statvfs(&self.directory)
            .map_or((0, 0), |stat| (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
    }
}

fn length(file: &File, blob: u64) -> Result<u64, StoreError> {
    file.metadata().map(|metadata| metadata.len()).map_err(|error| failed("stat", blob, &error))
}

fn write_zeros(file: &File, blob: u64, mut from: u64, end: u64) -> Result<(), StoreError> {
    while from < end {
        let count = usize::try_from(end - from).unwrap_or(ZEROS.len()).min(ZEROS.len());
        file.write_all_at(&ZEROS[..count], from).map_err(|error| failed("write", blob, &error))?;
        from += count as u64;
    }
    Ok(())
}

static ZEROS: [u8; 65536] = [0; 65536];

/// What a server is told; what the operator needs is logged.
fn failed(what: &str, blob: u64, error: &std::io::Error) -> StoreError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => StoreError::Full,
        _ => {
            tracing::error!(blob = format!("{blob:016x}"), %error, "cannot {what} a blob");
            StoreError::Io
        }
    }
}

pub(crate) fn fsync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync {}", path.display()))
}

/// The open files used last, at most `BLOB_FILES_OPEN`.
#[derive(Debug, Default)]
struct OpenFiles {
    files: BTreeMap<u64, (Rc<File>, u64)>,
    /// Blobs by when they were used.
    order: BTreeMap<u64, u64>,
    clock: u64,
}

impl OpenFiles {
    fn get(&mut self, blob: u64) -> Option<Rc<File>> {
        let (file, used) = self.files.get_mut(&blob)?;
        self.order.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.order.insert(self.clock, blob);
        Some(file.clone())
    }

    fn insert(&mut self, blob: u64, file: File) -> Rc<File> {
        if self.files.len() >= BLOB_FILES_OPEN
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.files.remove(&oldest);
        }
        self.clock += 1;
        self.order.insert(self.clock, blob);
        let file = Rc::new(file);
        self.files.insert(blob, (file.clone(), self.clock));
        file
    }

    fn remove(&mut self, blob: u64) {
        if let Some((_, used)) = self.files.remove(&blob) {
            self.order.remove(&used);
        }
    }
}
