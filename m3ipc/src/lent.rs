//! Memory that a process lends as such: the borrower maps it, and copies without a call.
//!
//! ```text
//! page 0   whether it is lent (not 0); who may write to the memory can change that, too
//! page 1…  the bytes
//! ```
//! The owner makes it, and says through dvkd who may have it (`door::ask::LEND`, `MAP`). What is lent for reading is
//! sealed so that nobody else can map it writable. A mapping cannot be taken back: a borrower that keeps to the rules looks
//! at the first word before each copy, one that does not sees the bytes as long as it has them mapped. Whatever others write
//! there, a borrower copies these bytes and no others, and none can be missing: the memory cannot shrink.
#![expect(unsafe_code, reason = "the memory is shared with another process")]

use crate::errno::IpcError;
use crate::limits::LENT_SIZE_MAX;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

const PAGE: usize = 4096;

/// `f_type` of memfds in pages of the usual size (statfs(2)): from others a page may be missing, which ends a process.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A mapping of lent memory, unmapped when dropped.
#[derive(Debug)]
pub struct Lent {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the first word is an atomic, the bytes are only handed out as raw pointers.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    /// Makes `len` bytes, zero, to be lent; for reading only if not `is_writable`. Returns the descriptor for borrowers.
    ///
    /// # Errors
    /// [`IpcError::TooLarge`]: none, or more than [`LENT_SIZE_MAX`]. [`IpcError::Exhausted`]: the kernel has no memory or
    /// descriptor for it.
    pub fn create(len: usize, is_writable: bool) -> Result<(Lent, OwnedFd), IpcError> {
        let size = size(len)?;
        let fd =
            rustix::fs::memfd_create(c"dvs-lent", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
                .map_err(|_| IpcError::Exhausted)?;
        rustix::fs::ftruncate(&fd, size as u64).map_err(|_| IpcError::Exhausted)?;
        let lent = Lent::map_as(fd.as_fd(), len, ProtFlags::READ | ProtFlags::WRITE)?;
        let fixed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        let seals = if is_writable { fixed } else { fixed | SealFlags::FUTURE_WRITE };
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|_| IpcError::Exhausted)?;
        lent.word().store(1, Ordering::Release);
        Ok((lent, fd))
    }

    /// Maps memory of `len` bytes that somebody else lends.
    ///
    /// # Errors
    /// [`IpcError::Protocol`]: `fd` is not that. [`IpcError::Denied`]: it may only be read.
    /// [`IpcError::Exhausted`]: there is no memory.
    pub fn map(fd: BorrowedFd<'_>, len: usize, is_writable: bool) -> Result<Lent, IpcError> {
        if check(fd)? != size(len)? as u64 {
            return Err(IpcError::Protocol);
        }
        let write = if is_writable { ProtFlags::WRITE } else { ProtFlags::empty() };
        Lent::map_as(fd, len, ProtFlags::READ | write)
    }

    fn map_as(fd: BorrowedFd<'_>, len: usize, protection: ProtFlags) -> Result<Lent, IpcError> {
        let flags = MapFlags::SHARED;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            rustix::mm::mmap(core::ptr::null_mut(), size(len)?, protection, flags, fd, 0)
        };
        let base = base.map_err(|error| match error {
            rustix::io::Errno::PERM => IpcError::Denied,
            _ => IpcError::Exhausted,
        })?;
        let base = NonNull::new(base.cast()).ok_or(IpcError::Exhausted)?;
        let lent = Lent { base, len };
        // SAFETY: advice about our own mapping of this size. A child would merely hold the memory longer.
        unsafe { rustix::mm::madvise(base.as_ptr().cast(), size(len)?, DONT_FORK) }.ok();
        Ok(lent)
    }

    /// Is it still lent?
    pub fn is_lent(&self) -> bool {
        self.word().load(Ordering::Acquire) != 0
    }

    /// Its owner does not lend it any more.
    pub fn end(&self) {
        self.word().store(0, Ordering::SeqCst);
    }

    /// Where the bytes are. Others write to them, or read them, at any time.
    pub fn bytes(&self) -> NonNull<u8> {
        // SAFETY: the mapping is a page longer than the bytes.
        unsafe { self.base.add(PAGE) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: mapped as long as `self`, aligned, and every process uses this word atomically.
        unsafe { self.base.cast().as_ref() }
    }
}

const DONT_FORK: rustix::mm::Advice = rustix::mm::Advice::LinuxDontFork;

impl Drop for Lent {
    fn drop(&mut self) {
        let size = self.len.next_multiple_of(PAGE) + PAGE;
        // SAFETY: mapped by `map_as` with this size, and nothing refers to it any more.
        unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), size) }.ok();
    }
}

/// The size of what may be lent: a memfd that is sealed against shrinking, in pages that are always there.
///
/// # Errors
/// [`IpcError::Protocol`]: it is something else.
pub fn check(fd: BorrowedFd<'_>) -> Result<u64, IpcError> {
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| IpcError::Protocol)?;
    let system = rustix::fs::fstatfs(fd).map_err(|_| IpcError::Protocol)?;
    let stat = rustix::fs::fstat(fd).map_err(|_| IpcError::Protocol)?;
    let is_fit = seals.contains(SealFlags::SHRINK) && system.f_type == TMPFS_MAGIC;
    let size = u64::try_from(stat.st_size).map_err(|_| IpcError::Protocol)?;
    if is_fit { Ok(size) } else { Err(IpcError::Protocol) }
}

/// Bytes of the memory behind `len` that are lent.
fn size(len: usize) -> Result<usize, IpcError> {
    if len == 0 || len > LENT_SIZE_MAX {
        return Err(IpcError::TooLarge);
    }
    Ok(len.next_multiple_of(PAGE) + PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_seen_by_the_borrower_until_it_ends_and_written_only_if_it_may_be() {
        for is_writable in [false, true] {
            let (own, fd) = Lent::create(5000, is_writable).expect("memfd");
            let theirs = Lent::map(fd.as_fd(), 5000, false).expect("to read");
            // SAFETY: inside the mapping.
            let last = [&own, &theirs].map(|lent| unsafe { lent.bytes().add(4999) });
            // SAFETY: mapped writable, and nobody else writes to it.
            unsafe { last[0].write(7) };
            // SAFETY: mapped, and nobody writes to it now.
            assert_eq!(unsafe { last[1].read() }, 7);
            assert!(theirs.is_lent());
            own.end();
            assert!(!theirs.is_lent());
            let writable = Lent::map(fd.as_fd(), 5000, true).map(|_| ());
            assert_eq!(writable, if is_writable { Ok(()) } else { Err(IpcError::Denied) });
        }
    }

    #[test]
    fn what_could_end_the_borrower_is_refused() {
        let (_own, fd) = Lent::create(5000, true).expect("memfd");
        assert_eq!(Lent::map(fd.as_fd(), 9000, false).err(), Some(IpcError::Protocol));
        let unsealed = rustix::fs::memfd_create(c"x", MemfdFlags::ALLOW_SEALING).expect("memfd");
        rustix::fs::ftruncate(&unsealed, 3 * PAGE as u64).expect("sized");
        assert_eq!(check(unsealed.as_fd()), Err(IpcError::Protocol));
        let null = std::fs::File::open("/dev/null").expect("it is there");
        assert_eq!(check(null.as_fd()), Err(IpcError::Protocol));
        for len in [0, LENT_SIZE_MAX + 1, usize::MAX] {
            assert_eq!(Lent::create(len, true).err(), Some(IpcError::TooLarge));
        }
    }
}
