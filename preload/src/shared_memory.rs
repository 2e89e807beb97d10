//! Named semaphores where there is no DVS: files in /dev/shm that processes map, as libc has them.
#![expect(unsafe_code, reason = "semaphores are mapped files")]

use crate::libc;
use crate::named::Locked;
use crate::unnamed::{self, SemT};
use core::ffi::{CStr, c_int};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use libdvsposix::name::Name;
use m3ipc::Errno;
use m3ipc::errno::numbers::{EEXIST, EINVAL, EMFILE, ENAMETOOLONG, ENOENT};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno as Os;
use rustix::mm::{MapFlags, ProtFlags};

/// Semaphores of this kind that a process may have open: musl's SEM_NSEMS_MAX.
const OPEN_MAX: usize = 256;

/// One that is open: where it is mapped, and which file it is, so that it is mapped once only.
struct Mapped {
    address: AtomicPtr<SemT>,
    references: AtomicU32,
    device: AtomicU64,
    inode: AtomicU64,
}

static OPEN: [Mapped; OPEN_MAX] = [const {
    Mapped {
        address: AtomicPtr::new(ptr::null_mut()),
        references: AtomicU32::new(0),
        device: AtomicU64::new(0),
        inode: AtomicU64::new(0),
    }
}; OPEN_MAX];

const SIZE: usize = size_of::<SemT>();
const O_CREAT: c_int = 0o100;
const O_EXCL: c_int = 0o200;

pub(crate) fn open(name: &[u8], flags: c_int, mode: u32, value: u32) -> Result<*mut SemT, Errno> {
    let path = Path::of_semaphore(name)?;
    if flags & O_CREAT != 0 && value > libdvsposix::sem::SEM_VALUE_MAX {
        return Err(Errno::new(EINVAL));
    }
    loop {
        if flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL {
            let access = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::open(path.c_str()?, access, Mode::empty()) {
                Ok(file) => return map(&file),
                Err(Os::NOENT) if flags & O_CREAT != 0 => {}
                Err(error) => return Err(errno(error)),
            }
        }
        match create(&path, mode, value) {
            Err(error) if error.errno == EEXIST && flags & O_EXCL == 0 => {}
            outcome => return outcome,
        }
    }
}

/// The file gets its name when the semaphore in it is complete.
fn create(path: &Path, mode: u32, value: u32) -> Result<*mut SemT, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(c"/dev/shm", flags, Mode::from_raw_mode(mode & 0o777)).map_err(errno)?;
    let mut bytes = [0; SIZE];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(unnamed::shared(value)) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    rustix::io::write(&file, &bytes).map_err(errno)?;
    let descriptor = Path::of_descriptor(file.as_raw_fd())?;
    rustix::fs::linkat(CWD, descriptor.c_str()?, CWD, path.c_str()?, AtFlags::SYMLINK_FOLLOW)
        .map_err(errno)?;
    map(&file)
}

pub(crate) fn close(semaphore: *mut SemT) -> Result<(), Errno> {
    let locked = Locked::new();
    let mapped = OPEN.iter().find(|mapped| {
        mapped.references.load(Ordering::Relaxed) > 0
            && mapped.address.load(Ordering::Relaxed) == semaphore
    });
    let mapped = mapped.ok_or(Errno::new(EINVAL))?;
    let last = mapped.references.fetch_sub(1, Ordering::Relaxed) == 1;
    drop(locked);
    if last {
        // SAFETY: mapped by `map`, and nobody has it any more.
        unsafe { rustix::mm::munmap(semaphore.cast(), SIZE) }.map_err(errno)?;
    }
    Ok(())
}

pub(crate) fn unlink(name: &[u8]) -> Result<(), Errno> {
    let path = Path::of_semaphore(name).map_err(|error| {
        // libc's answer to what cannot be a name.
        if error.errno == EINVAL { Errno::new(ENOENT) } else { error }
    })?;
    rustix::fs::unlink(path.c_str()?)
        .map_err(|error| errno(if error == Os::PERM { Os::ACCESS } else { error }))
}

/// Maps a semaphore's file, or finds where it is mapped already.
fn map(file: &OwnedFd) -> Result<*mut SemT, Errno> {
    let stat = rustix::fs::fstat(file).map_err(errno)?;
    if u64::try_from(stat.st_size).unwrap_or(0) < SIZE as u64 {
        return Err(Errno::new(EINVAL));
    }
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping of no particular address.
    let fresh =
        unsafe { rustix::mm::mmap(ptr::null_mut(), SIZE, access, MapFlags::SHARED, file, 0) };
    let fresh = fresh.map_err(errno)?;
    let locked = Locked::new();
    let address = enter(fresh.cast(), stat.st_dev, stat.st_ino);
    drop(locked);
    if address != Some(fresh.cast()) {
        // SAFETY: mapped above, and nobody has seen it.
        unsafe { rustix::mm::munmap(fresh, SIZE) }.ok();
    }
    address.ok_or(Errno::new(EMFILE))
}

/// The one address of this file's semaphore: the known one, or `fresh` from now on.
fn enter(fresh: *mut SemT, device: u64, inode: u64) -> Option<*mut SemT> {
    let used = |mapped: &&Mapped| mapped.references.load(Ordering::Relaxed) > 0;
    let same = |mapped: &&Mapped| {
        mapped.device.load(Ordering::Relaxed) == device
            && mapped.inode.load(Ordering::Relaxed) == inode
    };
    if let Some(known) = OPEN.iter().filter(used).find(same) {
        known.references.fetch_add(1, Ordering::Relaxed);
        return Some(known.address.load(Ordering::Relaxed));
    }
    let free = OPEN.iter().find(|mapped| !used(mapped))?;
    free.address.store(fresh, Ordering::Relaxed);
    free.device.store(device, Ordering::Relaxed);
    free.inode.store(inode, Ordering::Relaxed);
    free.references.store(1, Ordering::Relaxed);
    Some(fresh)
}

/// A path with its NUL.
struct Path {
    bytes: [u8; 288],
    len: usize,
}

impl Path {
    /// glibc's files are "sem.NAME", musl's "NAME".
    fn of_semaphore(name: &[u8]) -> Result<Path, Errno> {
        let name = Name::semaphore(name)?;
        let name = name.bytes().get(1..).unwrap_or_default();
        let mut path = Path { bytes: [0; 288], len: 0 };
        path.push(if libc::is_glibc() { b"/dev/shm/sem." } else { b"/dev/shm/" })?;
        path.push(name)?;
        Ok(path)
    }

    fn of_descriptor(descriptor: c_int) -> Result<Path, Errno> {
        let mut path = Path { bytes: [0; 288], len: 0 };
        path.push(b"/proc/self/fd/")?;
        let (mut digits, mut rest, mut at) = ([0u8; 10], descriptor.unsigned_abs(), 10);
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            (rest, at) = (rest / 10, at - 1);
            if rest == 0 {
                break;
            }
        }
        path.push(digits.get(at..).unwrap_or_default())?;
        Ok(path)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let room = self.bytes.get_mut(self.len..self.len + bytes.len());
        room.ok_or(Errno::new(ENAMETOOLONG))?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    fn c_str(&self) -> Result<&CStr, Errno> {
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_| Errno::new(ENAMETOOLONG))
    }
}

fn errno(error: Os) -> Errno {
    Errno::new(error.raw_os_error())
}
