//! Who is calling: the ids are in the request, the supplementary groups in /proc.
//!
//! The thread that made a request sleeps until it is answered (a fatal signal does not end the sleep
//! either once the request has been read), so its pid cannot be another process's by now and its
//! groups cannot change while they are read. Nothing is cached: a program started by newgrp(1) has
//! the pid, start time and uid of the one before, but other groups.

use crate::agent::Caller;
use crate::limits::STATUS_SIZE;
use m3ipc::Cred;
use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;

/// Without groups: for calls whose permission was decided when the file was opened, or that need none.
pub(crate) fn plain(caller: Caller) -> Cred {
    Cred::new(caller.pid, caller.uid, caller.gid)
}

/// With supplementary groups. The superuser has no use for them.
pub(crate) fn with_groups(caller: Caller) -> Cred {
    let cred = plain(caller);
    if caller.uid == 0 || caller.pid == 0 || !proc_is_ours() {
        return cred;
    }
    let mut status = [0; STATUS_SIZE];
    match read_status(caller.pid, &mut status) {
        Ok(len) => cred.with_groups(groups(&status[..len])),
        Err(error) => {
            tracing::warn!(%error, pid = caller.pid, "groups not known");
            cred
        }
    }
}

/// Is /proc that of our pid namespace? If not, a pid names another process there.
fn proc_is_ours() -> bool {
    static OURS: OnceLock<bool> = OnceLock::new();
    *OURS.get_or_init(|| {
        let own = std::process::id().to_string();
        let ours = std::fs::read_link("/proc/self").is_ok_and(|target| target.as_os_str() == own.as_str());
        if !ours {
            tracing::warn!("/proc is not that of this pid namespace: supplementary groups are not seen; mount it anew");
        }
        ours
    })
}

fn read_status(pid: u32, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut file = File::open(format!("/proc/{pid}/status"))?;
    let mut len = 0;
    loop {
        let more = file.read(&mut buffer[len..])?;
        len += more;
        if more == 0 {
            return Ok(len);
        }
    }
}

/// The numbers of the line `Groups:` in the text of a status file.
fn groups(status: &[u8]) -> impl Iterator<Item = u32> {
    let line = status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Groups:"))
        .unwrap_or_default();
    line.split(u8::is_ascii_whitespace).filter_map(|word| str::from_utf8(word).ok()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn a_status_file_is_read_for_its_groups_only() {
        let check = |text: &str, expected: &[u32]| {
            assert_eq!(groups(text.as_bytes()).collect::<Vec<_>>(), expected, "{text:?}");
        };
        check("Name:\tsh\nTgid:\t7\nGroups:\t4 24 27 \nNStgid:\t7\n", &[4, 24, 27]);
        check("Name:\tGroups:\nGroups:\t \n", &[]);
        check("Groups:\t1 2 x 99999999999 3", &[1, 2, 3]);
        check("", &[]);
    }

    #[test]
    fn a_process_that_is_gone_has_no_groups() {
        assert!(with_groups(Caller { pid: u32::MAX, uid: 1000, gid: 1000 }).groups().is_empty());
    }

    proptest! {
        #[test]
        fn no_status_text_makes_the_reader_panic(text: Vec<u8>) {
            groups(&text).for_each(drop);
        }
    }
}
