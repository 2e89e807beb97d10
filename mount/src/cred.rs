//! Who is calling: the ids are in the request, the supplementary groups in /proc.

use crate::agent::Caller;
use crate::status::Status;
use m3ipc::Cred;

/// Without groups: for calls whose permission was decided when the file was opened, or that need none.
pub(crate) fn plain(caller: Caller) -> Cred {
    Cred::new(caller.pid, caller.uid, caller.gid)
}

/// With supplementary groups. The superuser has no use for them.
pub(crate) fn with_groups(caller: Caller) -> Cred {
    let cred = plain(caller);
    if caller.uid == 0 {
        return cred;
    }
    match Status::read(caller.pid) {
        Some(status) => cred.with_groups(status.groups()),
        None => cred,
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
        let mut found = with_groups(Caller { pid: tid, uid: 1000, gid: 1000 }).groups().to_vec();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_process_that_is_gone_has_no_groups() {
        assert!(with_groups(Caller { pid: u32::MAX, uid: 1000, gid: 1000 }).groups().is_empty());
    }
}
