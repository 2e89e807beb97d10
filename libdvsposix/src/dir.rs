//! Calls on directories, and the entries that readdir answers.

use crate::file::{attr, done, quick};
use calls::vfs::{
    Attr, DirEntry, FsStats, Link, Mkdir, Mknod, Readdir, Rename, Rmdir, Statfs, Symlink, Unlink,
};
use calls::wire::Wire;
use m3ipc::errno::numbers::{ENAMETOOLONG, EPROTO};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Errno, Sendrec};

/// symlink(2).
///
/// # Errors
/// EACCES, EEXIST, ENAMETOOLONG, ENOSPC.
pub fn symlink(
    port: &impl Sendrec,
    parent: u64,
    name: &[u8],
    target: &[u8],
) -> Result<Attr, Errno> {
    attr(port, &Symlink { parent, name_len: length(name)? }, &[name, target])
}

/// mknod(2).
///
/// # Errors
/// EACCES, EEXIST, EPERM.
pub fn mknod(
    port: &impl Sendrec,
    parent: u64,
    name: &[u8],
    mode: u32,
    umask: u32,
    rdev: u32,
) -> Result<Attr, Errno> {
    attr(port, &Mknod { parent, mode, umask, rdev }, &[name])
}

/// mkdir(2).
///
/// # Errors
/// EACCES, EEXIST, EMLINK.
pub fn mkdir(
    port: &impl Sendrec,
    parent: u64,
    name: &[u8],
    mode: u32,
    umask: u32,
) -> Result<Attr, Errno> {
    attr(port, &Mkdir { parent, mode, umask }, &[name])
}

/// unlink(2).
///
/// # Errors
/// EACCES, EISDIR, ENOENT, EPERM.
pub fn unlink(port: &impl Sendrec, parent: u64, name: &[u8]) -> Result<(), Errno> {
    done(port, &Unlink { parent, forgotten: 0 }, &[name])
}

/// rmdir(2).
///
/// # Errors
/// EACCES, ENOENT, ENOTDIR, ENOTEMPTY.
pub fn rmdir(port: &impl Sendrec, parent: u64, name: &[u8]) -> Result<(), Errno> {
    done(port, &Rmdir { parent, forgotten: 0 }, &[name])
}

/// renameat2(2).
///
/// # Errors
/// EACCES, EEXIST, EINVAL, ENOENT, ENOTEMPTY.
pub fn rename(
    port: &impl Sendrec,
    parent: u64,
    name: &[u8],
    new_parent: u64,
    new_name: &[u8],
    flags: u32,
) -> Result<(), Errno> {
    let name_len = length(name)?;
    let row = Rename { parent, new_parent, forgotten: 0, new_forgotten: 0, name_len, flags };
    done(port, &row, &[name, new_name])
}

/// link(2).
///
/// # Errors
/// EEXIST, EMLINK, EPERM.
pub fn link(
    port: &impl Sendrec,
    ino: u64,
    new_parent: u64,
    new_name: &[u8],
) -> Result<Attr, Errno> {
    attr(port, &Link { ino, new_parent }, &[new_name])
}

/// getdents(2) from cookie `offset` into `buffer`: the bytes for [`Entries`]; 0 at the end.
///
/// # Errors
/// EBADF, ENOTDIR.
pub fn readdir(
    port: &impl Sendrec,
    fh: u64,
    ino: u64,
    offset: u64,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    let room = buffer.len().min(PAYLOAD_MAX);
    let buffer = buffer.get_mut(..room).unwrap_or_default();
    let row = Readdir { fh, ino, offset, size: u32::try_from(room).unwrap_or(0) };
    quick(port, &row, &[], buffer).map(|(_, len)| len)
}

/// statfs(2).
///
/// # Errors
/// ESTALE.
pub fn statfs(port: &impl Sendrec, ino: u64) -> Result<FsStats, Errno> {
    let mut bytes = [0; FsStats::SIZE];
    let (_, len) = quick(port, &Statfs { ino }, &[], &mut bytes)?;
    FsStats::get(bytes.get(..len).unwrap_or_default()).ok_or(Errno::new(EPROTO))
}

/// The entries of a [`readdir`] payload. Stops at the first that is cut short.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    pub fn new(payload: &'a [u8]) -> Entries<'a> {
        Entries { rest: payload }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (DirEntry, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = DirEntry::get(self.rest)?;
        let (name, rest) =
            self.rest.get(DirEntry::SIZE..)?.split_at_checked(usize::from(entry.name_len))?;
        self.rest = rest;
        Some((entry, name))
    }
}

fn length(name: &[u8]) -> Result<u16, Errno> {
    u16::try_from(name.len()).map_err(|_| Errno::new(ENAMETOOLONG))
}

#[cfg(test)]
mod tests {
    use super::{DirEntry, Entries};
    use std::vec::Vec;

    #[test]
    fn entries_are_read_back_and_a_cut_payload_gives_the_whole_ones() {
        let names: [&[u8]; 3] = [b".", b"..", b"file"];
        let mut payload = Vec::new();
        let mut ends = Vec::new();
        for (next, name) in (1u64..).zip(names) {
            let entry = DirEntry {
                ino: next * 10,
                next,
                kind: 4,
                name_len: u8::try_from(name.len()).unwrap(),
            };
            payload.extend_from_slice(&entry.bytes());
            payload.extend_from_slice(name);
            ends.push(payload.len());
        }
        for cut in 0..=payload.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let found: Vec<_> = Entries::new(&payload[..cut]).map(|(_, name)| name).collect();
            assert_eq!(found, names[..whole], "cut at {cut}");
        }
    }
}
