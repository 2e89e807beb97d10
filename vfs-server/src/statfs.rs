//! statfs(2).

use crate::VfsServer;
use crate::answer::Result;
use crate::limits::{INODES_CLAIMED, STATFS_BLOCK_SIZE};
use crate::reclaim::available;
use calls::vfs::{FsStats, NAME_MAX, Statfs};
use dvk::server::Context;

impl VfsServer {
    /// The tree is one file system; below a directory with a quota, one of that size (as with the project quotas of XFS).
    pub(crate) fn statfs(&mut self, row: Statfs, cx: &mut Context<'_>) -> Result<Vec<u8>> {
        let inode = self.inode(row.ino, cx)?;
        let (total, free) = cx.store.space();
        let block = u64::from(STATFS_BLOCK_SIZE);
        let stats = FsStats {
            blocks: total / block,
            blocks_free: free / block,
            blocks_available: available(cx.store) / block,
            files: INODES_CLAIMED,
            files_free: INODES_CLAIMED.saturating_sub(self.numbers.inodes()),
            block_size: STATFS_BLOCK_SIZE,
            name_max: u32::try_from(NAME_MAX).expect("a name has 255 bytes"),
        };
        Ok(self.trees.bound(inode.tree, stats).bytes().into())
    }
}
