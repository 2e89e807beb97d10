//! What the kernel remembers, and how it is made to forget.

use std::fmt::Debug;
use std::ops::Range;

/// The kernel's side of a mount, which remembers attributes for as long as it is told to, and keeps pages.
pub trait Kernel: Debug + Send + Sync {
    /// Lets it forget the attributes of an inode. Replies to what was asked before tell it nothing to remember, either, if it knows the inode. False:
    /// it does not.
    fn forget(&self, ino: u64) -> bool;
    /// Lets it lose pages (of [`calls::vfs::PAGE_SIZE`] bytes, to `u64::MAX`: all behind). It writes back what was changed, and waits until those
    /// that are being read or written are there.
    fn lose_pages(&self, ino: u64, pages: &Range<u64>);
    /// Lets it know that an inode has `size` bytes, if it thinks that they are fewer. The last page must not be among those that it has.
    fn grow(&self, ino: u64, size: u64);
}
