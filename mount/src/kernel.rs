//! What the kernel remembers, and how it is made to forget.

use std::fmt::Debug;

/// The kernel's side of a mount, which remembers attributes for as long as it is told to, and pages.
pub trait Kernel: Debug + Send + Sync {
    /// Lets it forget the attributes of an inode, and its `pages`: then it waits until those that are being read or written are there.
    /// Replies to what was asked before tell it nothing to remember, either, if it knows the inode. False: it does not.
    fn forget(&self, ino: u64, pages: bool) -> bool;
}
