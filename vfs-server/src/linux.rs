//! Numbers of Linux's interface on x86-64 that the rows carry.

// open(2)
pub(crate) const O_ACCMODE: u32 = 3;
/// Set by the kernel when it opens a program to execute it.
pub(crate) const FMODE_EXEC: u32 = 0x20;
pub(crate) const O_CREAT: u32 = 0o100;
pub(crate) const O_EXCL: u32 = 0o200;
pub(crate) const O_TRUNC: u32 = 0o1000;
pub(crate) const O_APPEND: u32 = 0o2000;
/// O_SYNC contains it.
pub(crate) const O_DSYNC: u32 = 0o10000;
pub(crate) const O_DIRECT: u32 = 0o40000;
pub(crate) const O_DIRECTORY: u32 = 0o200_000;
pub(crate) const O_NOATIME: u32 = 0o1_000_000;
/// The bit of O_TMPFILE beside O_DIRECTORY.
pub(crate) const O_TMPFILE_BIT: u32 = 0o20_000_000;

// mode_t
pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFSOCK: u32 = 0o140_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFBLK: u32 = 0o060_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFCHR: u32 = 0o020_000;
pub(crate) const S_IFIFO: u32 = 0o010_000;
pub(crate) const S_ISUID: u32 = 0o4000;
pub(crate) const S_ISGID: u32 = 0o2000;
pub(crate) const S_ISVTX: u32 = 0o1000;
pub(crate) const S_IXGRP: u32 = 0o010;
/// All bits that chmod(2) sets.
pub(crate) const S_IALLUGO: u32 = 0o7777;
/// All permission bits.
pub(crate) const S_IRWXG: u32 = 0o070;
pub(crate) const S_IRWXUGO: u32 = 0o777;

// access(2)
pub(crate) const R_OK: u32 = 4;
pub(crate) const W_OK: u32 = 2;
pub(crate) const X_OK: u32 = 1;

// renameat2(2)
pub(crate) const RENAME_NOREPLACE: u32 = 1;
pub(crate) const RENAME_EXCHANGE: u32 = 2;

// fcntl(2)
pub(crate) const F_RDLCK: u32 = 0;
pub(crate) const F_WRLCK: u32 = 1;
pub(crate) const F_UNLCK: u32 = 2;

// setxattr(2)
pub(crate) const XATTR_CREATE: u32 = 1;
pub(crate) const XATTR_REPLACE: u32 = 2;

// fallocate(2)
pub(crate) const FALLOC_FL_KEEP_SIZE: u32 = 1;
pub(crate) const FALLOC_FL_PUNCH_HOLE: u32 = 2;
pub(crate) const FALLOC_FL_ZERO_RANGE: u32 = 16;

// lseek(2)
pub(crate) const SEEK_DATA: u32 = 3;
pub(crate) const SEEK_HOLE: u32 = 4;
