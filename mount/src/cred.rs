//! Who is calling: the ids are in the request, the supplementary groups in /proc.

use crate::agent::Caller;
use crate::estate::calls::Key;
use crate::status::Status;
use m3ipc::Cred;

/// For whom a call is made, and what it belongs to.
#[derive(Clone, Debug)]
pub(crate) struct By {
    pub(crate) cred: Cred,
    pub(crate) key: Key,
    /// The inode that is opened; 0: none.
    pub(crate) ino: u64,
}

impl By {
    /// The agent itself: process 0.
    pub(crate) const fn agent() -> By {
        By { cred: Cred::new(0, 0, 0), key: Key::NONE, ino: 0 }
    }
}

/// Without groups: for calls whose permission was decided when the file was opened, or that need none.
pub(crate) fn plain(caller: Caller) -> By {
    let cred = Cred::new(caller.pid, caller.uid, caller.gid);
    By { cred, key: Key::request(caller.request), ino: 0 }
}

/// With supplementary groups. The superuser has no use for them.
pub(crate) fn with_groups(caller: Caller) -> By {
    let by = plain(caller);
    if caller.uid == 0 {
        return by;
    }
    match Status::read(caller.pid) {
        Some(status) => By { cred: by.cred.with_groups(status.groups()), ..by },
        None => by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_of_the_thread_that_asks() {
        let tid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let mut expected: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|gid| gid.as_raw()).take(64).collect();
        expected.sort_unstable();
        let mut found = with_groups(Caller { pid: tid, uid: 1000, gid: 1000, request: 0 })
            .cred
            .groups()
            .to_vec();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_process_that_is_gone_has_no_groups() {
        assert!(
            with_groups(Caller { pid: u32::MAX, uid: 1000, gid: 1000, request: 0 })
                .cred
                .groups()
                .is_empty()
        );
    }
}
