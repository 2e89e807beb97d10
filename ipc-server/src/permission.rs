//! Who may do what: the mode bits of files (POSIX objects) and of `ipc_perm` (SysV objects).

use calls::ipc::Perm;
use m3ipc::errno::numbers::{EACCES, EPERM};
use m3ipc::{Cred, Errno};

/// Bits of one class of a mode.
pub(crate) const READ: u32 = 4;
pub(crate) const WRITE: u32 = 2;

/// Owner and mode of a POSIX object.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

impl Owner {
    /// The owner of what `cred` makes now. The umask has already been applied by the client.
    pub(crate) fn new(cred: &Cred, mode: u32) -> Owner {
        Owner { uid: cred.uid, gid: cred.gid, mode: mode & 0o777 }
    }

    /// May `cred` open this for all of `wanted`? Only the first class that fits counts, as for files.
    pub(crate) fn allows(&self, cred: &Cred, wanted: u32) -> Result<(), Errno> {
        let granted = match cred {
            cred if cred.uid == 0 => 7,
            cred if cred.uid == self.uid => self.mode >> 6,
            cred if cred.in_group(self.gid) => self.mode >> 3,
            _ => self.mode,
        };
        if wanted & !granted == 0 { Ok(()) } else { Err(Errno::new(EACCES)) }
    }

    /// May `cred` take the name away? /dev/shm and /dev/mqueue are sticky directories; sem_unlink(3)
    /// and mq_unlink(3) make EACCES of their EPERM.
    pub(crate) fn allows_unlink(&self, cred: &Cred) -> Result<(), Errno> {
        if cred.uid == 0 || cred.uid == self.uid { Ok(()) } else { Err(Errno::new(EACCES)) }
    }
}

/// May `cred` do `wanted` (bits of any class: a mode, or 0444 to read)? As Linux' `ipcperms`.
pub(crate) fn sysv_allows(perm: &Perm, cred: &Cred, wanted: u32) -> Result<(), Errno> {
    let requested = wanted >> 6 | wanted >> 3 | wanted;
    let granted = match cred {
        cred if cred.uid == 0 => 7,
        cred if cred.uid == perm.cuid || cred.uid == perm.uid => perm.mode >> 6,
        cred if cred.in_group(perm.cgid) || cred.in_group(perm.gid) => perm.mode >> 3,
        _ => perm.mode,
    };
    if requested & !granted & 7 == 0 { Ok(()) } else { Err(Errno::new(EACCES)) }
}

/// May `cred` remove the object or change its owner?
pub(crate) fn sysv_owns(perm: &Perm, cred: &Cred) -> Result<(), Errno> {
    if [0, perm.uid, perm.cuid].contains(&cred.uid) { Ok(()) } else { Err(Errno::new(EPERM)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_class_that_fits_counts() {
        let group = Cred::new(1, 7, 100);
        let supplementary = Cred::new(1, 7, 9).with_groups([100]);
        let table = [
            (0o600, Cred::new(1, 5, 100), READ | WRITE, true),
            (0o066, Cred::new(1, 5, 100), READ, false),
            (0o060, group, READ | WRITE, true),
            (0o060, supplementary, READ | WRITE, true),
            (0o606, group, READ, false),
            (0o004, Cred::new(1, 7, 9), READ, true),
            (0o004, Cred::new(1, 7, 9), READ | WRITE, false),
            (0o000, Cred::ROOT, READ | WRITE, true),
        ];
        for (mode, cred, wanted, expected) in table {
            let owner = Owner { uid: 5, gid: 100, mode };
            assert_eq!(owner.allows(&cred, wanted).is_ok(), expected, "{mode:o} {cred:?}");
            let perm = Perm { uid: 5, gid: 100, cuid: 5, cgid: 100, mode, ..Perm::default() };
            assert_eq!(sysv_allows(&perm, &cred, wanted).is_ok(), expected, "{mode:o} {cred:?}");
        }
    }

    #[test]
    fn a_creator_keeps_rights_on_what_it_gave_away() {
        let perm = Perm { uid: 5, cuid: 6, mode: 0o600, ..Perm::default() };
        for (uid, owns) in [(0, true), (5, true), (6, true), (7, false)] {
            let cred = Cred::new(1, uid, 50);
            assert_eq!(sysv_owns(&perm, &cred).is_ok(), owns, "uid {uid}");
            assert_eq!(sysv_allows(&perm, &cred, 0o600).is_ok(), owns, "uid {uid}");
        }
    }
}
