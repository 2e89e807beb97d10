//! Replies: what the kernel reads, in its structs.

use super::abi;
use crate::agent::{Told, tellable};
use calls::vfs::{Attr, DirEntry, FsStats, Lock, Time};
use m3ipc::Errno;
use m3ipc::errno::numbers::EIO;
use std::time::Duration;
use zerocopy::{Immutable, IntoBytes};

/// In front of every reply.
pub(crate) const HEADER_SIZE: usize = size_of::<abi::fuse_out_header>();
/// Inode numbers are never used again, so one generation is enough.
const GENERATION: u64 = 0;
/// File type bits of a mode (S_IFMT).
const TYPE_BITS: u32 = 0o170_000;

/// The head of the reply to request `unique`, with `payload` bytes behind it.
pub(crate) fn header(unique: u64, payload: usize, outcome: Result<(), i32>) -> [u8; HEADER_SIZE] {
    let len = u32::try_from(HEADER_SIZE + payload).unwrap_or(u32::MAX);
    let error = outcome.err().map_or(0, |errno| -errno);
    let head = abi::fuse_out_header { len, error, unique };
    let mut bytes = [0; HEADER_SIZE];
    bytes.copy_from_slice(head.as_bytes());
    bytes
}

/// An errno for the kernel. Of an operation that we have it must never hear ENOSYS: it would not ask again, for the life of
/// the mount.
pub(crate) fn number(error: Errno) -> i32 {
    match tellable(error) {
        libc::ENOSYS => EIO,
        number => number,
    }
}

/// Copies structs to the front of `out`, one after the other; returns their length.
///
/// # Panics
/// If `out` is shorter: every reply's buffer is as long as the largest.
pub(crate) fn put<T: IntoBytes + Immutable>(out: &mut [u8], value: &T) -> usize {
    let bytes = value.as_bytes();
    out[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

/// An inode's attributes.
///
/// # Errors
/// EIO if its type is none that the kernel knows.
fn attr(attr: &Attr) -> Result<abi::fuse_attr, Errno> {
    match attr.mode & TYPE_BITS {
        libc::S_IFREG
        | libc::S_IFDIR
        | libc::S_IFLNK
        | libc::S_IFIFO
        | libc::S_IFSOCK
        | libc::S_IFCHR
        | libc::S_IFBLK => {}
        _ => return Err(Errno::new(EIO)),
    }
    let seconds = |time: Time| time.seconds.cast_unsigned();
    Ok(abi::fuse_attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: seconds(attr.atime),
        mtime: seconds(attr.mtime),
        ctime: seconds(attr.ctime),
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.block_size,
        flags: 0,
    })
}

/// A name's inode. The name may be remembered for that long.
///
/// # Errors
/// As [`attr`].
pub(crate) fn entry(of: &Told, lent: Duration) -> Result<abi::fuse_entry_out, Errno> {
    Ok(abi::fuse_entry_out {
        nodeid: of.attr.ino,
        generation: GENERATION,
        attr_valid: of.lent.as_secs(),
        attr_valid_nsec: of.lent.subsec_nanos(),
        attr: attr(&of.attr)?,
        ..no_entry(lent)
    })
}

/// A name that is not there, which may be remembered for that long.
pub(crate) fn no_entry(lent: Duration) -> abi::fuse_entry_out {
    abi::fuse_entry_out {
        entry_valid: lent.as_secs(),
        entry_valid_nsec: lent.subsec_nanos(),
        ..Default::default()
    }
}

/// Attributes that may be remembered for a time.
///
/// # Errors
/// As [`attr`].
pub(crate) fn attributes(of: &Attr, lent: Duration) -> Result<abi::fuse_attr_out, Errno> {
    let attr = attr(of)?;
    Ok(abi::fuse_attr_out {
        attr_valid: lent.as_secs(),
        attr_valid_nsec: lent.subsec_nanos(),
        attr,
        ..Default::default()
    })
}

pub(crate) fn statfs(stats: &FsStats) -> abi::fuse_statfs_out {
    abi::fuse_statfs_out {
        blocks: stats.blocks,
        bfree: stats.blocks_free,
        bavail: stats.blocks_available,
        files: stats.files,
        ffree: stats.files_free,
        bsize: stats.block_size,
        namelen: stats.name_max,
        frsize: stats.block_size,
        ..Default::default()
    }
}

pub(crate) fn lock(lock: &Lock) -> abi::fuse_lk_out {
    abi::fuse_lk_out { start: lock.start, end: lock.end, kind: lock.kind, pid: lock.pid }
}

/// Adds an entry to a directory's listing in `out`, of which `len` bytes are in use. `plus`: with what its name stands for, or nothing
/// of that. Returns how many are in use then; `None`: there is no room.
pub(crate) fn add_entry(
    out: &mut [u8],
    len: usize,
    entry: &DirEntry,
    name: &[u8],
    plus: Option<&abi::fuse_entry_out>,
) -> Option<usize> {
    let head = abi::fuse_dirent {
        ino: entry.ino,
        off: entry.next,
        namelen: u32::try_from(name.len()).ok()?,
        kind: entry.kind.into(),
    };
    let plus = plus.map_or(&[][..], |plus| plus.as_bytes());
    let parts = [plus, head.as_bytes(), name];
    let size = parts.iter().map(|part| part.len()).sum::<usize>().next_multiple_of(8);
    let mut place = out.get_mut(len..len + size)?;
    for part in parts {
        let (front, rest) = place.split_at_mut(part.len());
        front.copy_from_slice(part);
        place = rest;
    }
    place.fill(0);
    Some(len + size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use m3ipc::errno::numbers::ENOENT;

    #[test]
    fn an_error_is_told_negative_and_nosys_never() {
        let told = |error| -> i32 {
            let head = header(7, 0, Err(number(Errno::new(error))));
            i32::from_ne_bytes(head[4..8].try_into().unwrap())
        };
        assert_eq!(told(ENOENT), -2);
        assert_eq!(told(libc::ENOSYS), -EIO);
        for strange in [512, 0, -5, i32::MIN] {
            assert_eq!(told(strange), -EIO, "{strange}");
        }
        assert_eq!(header(7, 5, Ok(()))[..8], [21, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn attributes_are_passed_on_and_an_inode_without_a_type_is_an_error() {
        let before_epoch = Time { seconds: -1, nanos: 5 };
        let of = Attr {
            ino: 3,
            size: 4,
            atime: before_epoch,
            mode: libc::S_IFIFO | 0o640,
            rdev: 6,
            ..Attr::default()
        };
        let lent = Duration::from_millis(1200);
        let told = entry(&Told { attr: of, lent }, Duration::from_millis(2300)).unwrap();
        assert_eq!((told.nodeid, told.entry_valid, told.attr_valid), (3, 2, 1));
        assert_eq!((told.entry_valid_nsec, told.attr_valid_nsec), (300_000_000, 200_000_000));
        let none = no_entry(lent);
        assert_eq!((none.nodeid, none.entry_valid, none.attr_valid), (0, 1, 0));
        assert_eq!((told.attr.atime, told.attr.atimensec), (u64::MAX, 5));
        assert_eq!((told.attr.mode, told.attr.size, told.attr.rdev), (of.mode, 4, 6));
        assert_eq!(
            attributes(&Attr { mode: 0o640, ..of }, Duration::ZERO).err(),
            Some(Errno::new(EIO))
        );
    }

    #[test]
    fn entries_are_aligned_and_end_where_the_room_ends() {
        let mut out = [0xff; 70];
        let entry = DirEntry { ino: 3, next: 4, kind: libc::DT_DIR, name_len: 3 };
        let first = add_entry(&mut out, 0, &entry, b"abc", None).unwrap();
        assert_eq!(first, 32);
        assert_eq!(&out[24..32], b"abc\0\0\0\0\0");
        assert_eq!(add_entry(&mut out, first, &entry, &[b'x'; 8], None), Some(64));
        assert_eq!(add_entry(&mut out, 64, &entry, b"y", None), None);
        assert_eq!(
            add_entry(&mut out, first, &entry, &[b'x'; 9], None),
            None,
            "34 bytes of 38 padded"
        );
        // The kernel wants the name 152 bytes behind, and all of it a multiple of 8.
        let mut out = [0xff; 168];
        let plus = no_entry(Duration::from_secs(7));
        assert_eq!(add_entry(&mut out, 0, &entry, b"abc", Some(&plus)), Some(160));
        assert_eq!((out[16], &out[152..160]), (7, &b"abc\0\0\0\0\0"[..]));
        assert_eq!(add_entry(&mut out, 16, &entry, b"abc", Some(&plus)), None);
    }
}
