//! Who may do what: mode bits and access control lists against the caller's credentials, as path_resolution(7),
//! acl(5) and capabilities(7) say. uid 0 has all capabilities.

use crate::acl;
use crate::answer::{Result, err};
use crate::keys::Inode;
use crate::linux::{R_OK, S_IFDIR, S_IFMT, S_IRWXG, S_ISGID, S_ISVTX, S_IXGRP, W_OK, X_OK};
use crate::snapshot::refuse_change;
use dvk::store::Store;
use m3ipc::Cred;
use m3ipc::errno::numbers::{EACCES, ENOENT, EPERM};

/// May `cred` access `inode` in every way of `mask` (R_OK, W_OK, X_OK)?
///
/// # Errors
/// EACCES.
pub(crate) fn access(inode: &Inode, cred: &Cred, mask: u32, store: &dyn Store) -> Result<()> {
    let granted = if cred.uid == 0 {
        superuser_bits(inode)
    } else if cred.uid == inode.uid {
        inode.mode >> 6
    // As Linux has it, a list whose mask grants nothing is not looked at.
    } else if inode.mode & S_IRWXG != 0
        && let Some(is_granted) = acl::grants(inode, cred, mask, store)
    {
        if is_granted { mask } else { 0 }
    } else if cred.in_group(inode.gid) {
        inode.mode >> 3
    } else {
        inode.mode
    };
    if mask & !granted & 7 == 0 { Ok(()) } else { err(EACCES) }
}

/// uid 0 reads and writes everything, searches every directory, but executes only what somebody
/// may execute.
fn superuser_bits(inode: &Inode) -> u32 {
    let executable = inode.mode & S_IFMT == S_IFDIR || inode.mode & 0o111 != 0;
    R_OK | W_OK | if executable { X_OK } else { 0 }
}

/// May `cred` make a name in `dir`?
///
/// # Errors
/// ENOENT if the directory itself has been removed, EROFS, EACCES.
pub(crate) fn add_entry(dir: &Inode, cred: &Cred, store: &dyn Store) -> Result<()> {
    refuse_change(dir.ino)?;
    if dir.nlink == 0 {
        return err(ENOENT);
    }
    access(dir, cred, W_OK | X_OK, store)
}

/// May `cred` remove or replace the name of `inode` in `dir`?
///
/// # Errors
/// EACCES; EPERM if the directory is sticky and both belong to others.
pub(crate) fn remove_entry(
    dir: &Inode,
    inode: &Inode,
    cred: &Cred,
    store: &dyn Store,
) -> Result<()> {
    access(dir, cred, W_OK | X_OK, store)?;
    let sticky = dir.mode & S_ISVTX != 0;
    if sticky && !owner(inode, cred) && !owner(dir, cred) { err(EPERM) } else { Ok(()) }
}

/// Is `cred` the owner, or the superuser?
pub(crate) fn owner(inode: &Inode, cred: &Cred) -> bool {
    cred.uid == 0 || cred.uid == inode.uid
}

/// Is `cred` of group `gid`, or the superuser?
pub(crate) fn group(gid: u32, cred: &Cred) -> bool {
    cred.uid == 0 || cred.in_group(gid)
}

/// The owner of a new inode in `dir`: the caller; its group is the directory's if that is setgid.
pub(crate) fn new_group(dir: &Inode, cred: &Cred) -> u32 {
    if dir.mode & S_ISGID != 0 { dir.gid } else { cred.gid }
}

/// The mode of a new inode in `dir`. In a setgid directory a new directory is setgid too, and a
/// file cannot be made to run with a group that its maker is not in.
pub(crate) fn new_mode(dir: &Inode, mode: u32, cred: &Cred) -> u32 {
    if dir.mode & S_ISGID == 0 {
        return mode;
    }
    if mode & S_IFMT == S_IFDIR {
        return mode | S_ISGID;
    }
    let runs_with_group = mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP;
    if runs_with_group && !group(dir.gid, cred) { mode & !S_ISGID } else { mode }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::S_IFREG;
    use dvk::store::MemoryStore;

    fn check(mode: u32, cred: Cred, allowed: &str) {
        let inode = Inode { mode, uid: 10, gid: 20, ..Inode::default() };
        for (mask, letter) in [(R_OK, 'r'), (W_OK, 'w'), (X_OK, 'x')] {
            let want = allowed.contains(letter);
            let granted = access(&inode, &cred, mask, &MemoryStore::default());
            assert_eq!(granted.is_ok(), want, "{mode:o} {cred:?} {letter}");
        }
    }

    #[test]
    fn the_first_class_that_fits_decides_even_if_a_later_one_gives_more() {
        let (owner, group, member, other) = (
            Cred::new(1, 10, 99),
            Cred::new(1, 11, 20),
            Cred::new(1, 11, 99).with_groups([5, 20]),
            Cred::new(1, 11, 99).with_groups([5]),
        );
        check(S_IFREG | 0o750, owner, "rwx");
        check(S_IFREG | 0o750, group, "rx");
        check(S_IFREG | 0o750, member, "rx");
        check(S_IFREG | 0o750, other, "");
        check(S_IFREG | 0o077, owner, "");
        check(S_IFREG | 0o707, member, "");
        check(S_IFREG | 0o007, other, "rwx");
    }

    #[test]
    fn the_superuser_needs_one_execute_bit_on_a_file_and_none_on_a_directory() {
        check(S_IFREG, Cred::ROOT, "rw");
        check(S_IFREG | 0o001, Cred::ROOT, "rwx");
        check(S_IFDIR, Cred::ROOT, "rwx");
    }
}
