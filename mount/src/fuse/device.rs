//! `/dev/fuse`: one read(2) is one request, one write(2) one reply.
#![expect(unsafe_code, reason = "the ioctl that gives a further descriptor of the same mount")]

use super::abi;
use crate::kernel::Kernel;
use calls::vfs::PAGE_SIZE;
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use zerocopy::{Immutable, IntoBytes};

/// `FUSE_DEV_IOC_CLONE` of `linux/fuse.h`.
const CLONE: rustix::ioctl::Opcode = opcode::read::<u32>(229, 0);

/// A descriptor of `/dev/fuse` that belongs to a mount. Requests are read from any of them, and answered where they were
/// read.
#[derive(Debug)]
pub(crate) struct Device(OwnedFd);

/// What one read of a device brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A request of that length.
    Request(usize),
    /// Nothing this time.
    Nothing,
    /// The mount is gone.
    End,
}

impl Device {
    pub(crate) fn new(descriptor: OwnedFd) -> Device {
        Device(descriptor)
    }

    /// A further descriptor of the mount, with a queue of its own for what is being served, so that threads on different
    /// CPUs do not meet there.
    pub(crate) fn another(&self) -> io::Result<Device> {
        let fresh = File::options().read(true).write(true).open("/dev/fuse")?;
        let number = self.0.as_raw_fd().cast_unsigned();
        // SAFETY: the ioctl of this number reads one u32 (fuse_dev_ioctl_clone), which a Setter of u32 passes.
        let clone = unsafe { Setter::<CLONE, u32>::new(number) };
        // SAFETY: as above, and `fresh` is a descriptor of /dev/fuse.
        unsafe { ioctl(&fresh, clone) }?;
        Ok(Device(fresh.into()))
    }

    /// The same descriptor once more, to notify the kernel through.
    pub(crate) fn same(&self) -> io::Result<Device> {
        self.0.try_clone().map(Device)
    }

    /// Tells the kernel something of which nothing was asked. False: it does not know what it is about.
    pub(crate) fn notify<T: IntoBytes + Immutable>(&self, code: i32, what: &T) -> bool {
        self.notify_with(code, what, &[])
    }

    /// What has been read from any descriptor of the mount and is not answered comes again.
    pub(crate) fn resend(&self) {
        let head = abi::fuse_out_header {
            len: u32::try_from(size_of::<abi::fuse_out_header>()).unwrap_or(u32::MAX),
            error: abi::notify::RESEND,
            unique: 0,
        };
        if let Err(error) = rustix::io::write(&self.0, head.as_bytes()) {
            tracing::error!(%error, "the kernel does not ask again");
        }
    }

    /// As [`Device::notify`], with data.
    fn notify_with<T: IntoBytes + Immutable>(&self, code: i32, what: &T, data: &[u8]) -> bool {
        let len = size_of::<abi::fuse_out_header>() + size_of::<T>() + data.len();
        let head = abi::fuse_out_header {
            len: u32::try_from(len).unwrap_or(u32::MAX),
            error: code,
            unique: 0,
        };
        let parts = [head.as_bytes(), what.as_bytes(), data].map(io::IoSlice::new);
        !matches!(rustix::io::writev(&self.0, &parts), Err(Errno::NOENT))
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// The device is broken.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        match rustix::io::read(&self.0, buffer) {
            Ok(0) | Err(Errno::NODEV) => Ok(Arrival::End),
            Ok(len) => Ok(Arrival::Request(len)),
            // Its program has given up before it could be read; or a signal.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => Ok(Arrival::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a whole reply. False: nobody waits for it any more.
    ///
    /// # Errors
    /// The kernel does not take it, and who waits for it goes on waiting.
    pub(crate) fn write(&self, reply: &[u8]) -> io::Result<bool> {
        match rustix::io::write(&self.0, reply) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Kernel for Device {
    fn forget(&self, ino: u64) -> bool {
        // A negative offset: no pages.
        let what = abi::fuse_notify_inval_inode_out { ino, off: -1, len: 0 };
        self.notify(abi::notify::INVAL_INODE, &what)
    }

    fn lose_pages(&self, ino: u64, pages: &Range<u64>) {
        let bytes = |pages: u64| i64::try_from(pages.saturating_mul(PAGE_SIZE)).unwrap_or(i64::MAX);
        // Without a length: all behind.
        let len = if pages.end == u64::MAX { 0 } else { bytes(pages.end - pages.start) };
        let what = abi::fuse_notify_inval_inode_out { ino, off: bytes(pages.start), len };
        // One that it does not know has no pages.
        self.notify(abi::notify::INVAL_INODE, &what);
    }

    fn grow(&self, ino: u64, size: u64) {
        // Data that it is given beyond the end make a file longer. A page of which it has only part it reads before it uses it; but a first byte that
        // is the last one would be all of it.
        let Some(offset) = size.checked_sub(1).filter(|last| !last.is_multiple_of(PAGE_SIZE))
        else {
            return;
        };
        let store = abi::fuse_notify_store_out { nodeid: ino, offset, size: 1, padding: 0 };
        self.notify_with(abi::notify::STORE, &store, &[0]);
    }
}
