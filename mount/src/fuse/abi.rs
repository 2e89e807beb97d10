//! What crosses `/dev/fuse`: the structs, numbers and flags of Linux' `include/uapi/linux/fuse.h` (ABI 7.45) that are used
//! here, by the names they have there, in the byte order of the machine.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Version of the protocol. A kernel with another major speaks ours when told so.
pub(crate) const FUSE_KERNEL_VERSION: u32 = 7;
/// The newest minor whose structs are those below.
pub(crate) const FUSE_KERNEL_MINOR_VERSION: u32 = 45;

/// Notifications: `fuse_out_header.error` of a reply to nothing (`enum fuse_notify_code`).
pub(crate) mod notify {
    pub(crate) const INVAL_INODE: i32 = 2;
    pub(crate) const STORE: i32 = 4;
    pub(crate) const RESEND: i32 = 7;
}

/// `fuse_in_header.unique`: the request was read before and not answered, and comes again.
pub(crate) const UNIQUE_RESEND: u64 = 1 << 63;

/// Operations: `fuse_in_header.opcode`.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const TMPFILE: u32 = 51;
}

/// What the two sides of a mount can do: `fuse_init_in.flags`, and above bit 31 `flags2`.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const POSIX_LOCKS: u64 = 1 << 1;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const FLOCK_LOCKS: u64 = 1 << 10;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
}

/// `fuse_setattr_in.valid`.
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// `fuse_open_out.open_flags`: I/O goes around the page cache.
pub(crate) const FOPEN_DIRECT_IO: u32 = 1 << 0;
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `fuse_open_out.open_flags`: such writes that stay inside the file need not wait for each other.
pub(crate) const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
/// `fuse_getattr_in.getattr_flags`: `fh` is an open file.
pub(crate) const FUSE_GETATTR_FH: u32 = 1 << 0;
/// `fuse_lk_in.lk_flags`: it is flock(2).
pub(crate) const FUSE_LK_FLOCK: u32 = 1 << 0;
/// `fuse_read_in.read_flags`: it is a read(2) that goes around the page cache, by somebody who can hold locks.
pub(crate) const FUSE_READ_LOCKOWNER: u32 = 1 << 1;

/// `fuse_write_in.write_flags`: pages of the cache, or of a mapping, are written back.
pub(crate) const FUSE_WRITE_CACHE: u32 = 1 << 0;
/// `fuse_fsync_in.fsync_flags`: fdatasync(2).
pub(crate) const FUSE_FSYNC_FDATASYNC: u32 = 1 << 0;

/// Declares structs of the header. They have no padding: zerocopy would not compile otherwise.
macro_rules! abi_structs {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? })*) => { $(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),* }
    )* };
}

abi_structs! {
    /// In front of each request. `len` includes it; `total_extlen` (of 8 bytes each) are extensions at the end.
    fuse_in_header {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// In front of each reply. `error` is 0 or a negative errno.
    fuse_out_header { len: u32, error: i32, unique: u64 }

    fuse_attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    fuse_entry_out {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: fuse_attr,
    }
    fuse_attr_out { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: fuse_attr }
    fuse_notify_inval_inode_out { ino: u64, off: i64, len: i64 }
    fuse_notify_store_out { nodeid: u64, offset: u64, size: u32, padding: u32 }
    fuse_getattr_in { getattr_flags: u32, dummy: u32, fh: u64 }
    fuse_setattr_in {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    fuse_mknod_in { mode: u32, rdev: u32, umask: u32, padding: u32 }
    fuse_mkdir_in { mode: u32, umask: u32 }
    fuse_rename_in { newdir: u64 }
    fuse_rename2_in { newdir: u64, flags: u32, padding: u32 }
    fuse_link_in { oldnodeid: u64 }
    fuse_open_in { flags: u32, open_flags: u32 }
    fuse_open_out { fh: u64, open_flags: u32, backing_id: i32 }
    fuse_create_in { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    fuse_release_in { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    fuse_flush_in { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    fuse_read_in { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    fuse_write_in { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    fuse_write_out { size: u32, padding: u32 }
    fuse_statfs_out {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    fuse_fsync_in { fh: u64, fsync_flags: u32, padding: u32 }
    /// As it is without `FUSE_SETXATTR_EXT`.
    fuse_setxattr_in { size: u32, flags: u32 }
    fuse_getxattr_in { size: u32, padding: u32 }
    fuse_getxattr_out { size: u32, padding: u32 }
    fuse_lk_in {
        fh: u64, owner: u64, start: u64, end: u64, kind: u32, pid: u32, lk_flags: u32, padding: u32,
    }
    fuse_lk_out { start: u64, end: u64, kind: u32, pid: u32 }
    fuse_access_in { mask: u32, padding: u32 }
    fuse_init_in { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    fuse_init_out {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    fuse_interrupt_in { unique: u64 }
    fuse_fallocate_in { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    fuse_lseek_in { fh: u64, offset: u64, whence: u32, padding: u32 }
    fuse_lseek_out { offset: u64 }
    fuse_copy_file_range_in {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// Head of a directory entry; the name follows, and then zeros up to a multiple of 8.
    fuse_dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sizeof` of each struct as a C compiler says (Linux 6.18, x86-64).
    #[test]
    fn structs_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<fuse_in_header>(), 40);
        assert_eq!(size_of::<fuse_out_header>(), 16);
        assert_eq!(size_of::<fuse_attr>(), 88);
        assert_eq!(size_of::<fuse_entry_out>(), 128);
        assert_eq!(size_of::<fuse_attr_out>(), 104);
        assert_eq!(size_of::<fuse_notify_inval_inode_out>(), 24);
        assert_eq!(size_of::<fuse_notify_store_out>(), 24);
        assert_eq!(size_of::<fuse_getattr_in>(), 16);
        assert_eq!(size_of::<fuse_setattr_in>(), 88);
        assert_eq!(size_of::<fuse_create_in>(), 16);
        assert_eq!(size_of::<fuse_open_out>(), 16);
        assert_eq!(size_of::<fuse_release_in>(), 24);
        assert_eq!(size_of::<fuse_read_in>(), 40);
        assert_eq!(size_of::<fuse_write_in>(), 40);
        assert_eq!(size_of::<fuse_statfs_out>(), 80);
        assert_eq!(size_of::<fuse_lk_in>(), 48);
        assert_eq!(size_of::<fuse_lk_out>(), 24);
        assert_eq!(size_of::<fuse_init_in>(), 64);
        assert_eq!(size_of::<fuse_init_out>(), 64);
        assert_eq!(size_of::<fuse_fallocate_in>(), 32);
        assert_eq!(size_of::<fuse_copy_file_range_in>(), 56);
        assert_eq!(size_of::<fuse_dirent>(), 24);
    }
}
