//! kill(2) on behalf of a user: with that user's rights, on the processes of this container.
#![expect(unsafe_code, reason = "libc's kill: the safe ones know no real-time signals and no 0")]

use crate::procfs;
use m3ipc::Errno;
use m3ipc::errno::numbers::{EINVAL, EPERM, ESRCH};
use rustix::io::Errno as Os;
use rustix::process::Uid;
use std::path::Path;

/// Highest signal number of Linux.
const SIGNAL_MAX: u32 = 64;

/// Sends `signal` as `uid`: to process `pid`, to group `-pid` if it is negative, to all that `uid`
/// may signal if it is -1. The container's own processes are out of reach, whoever asks.
///
/// # Errors
/// As kill(2): EINVAL, EPERM, ESRCH.
pub(crate) fn kill(pid: i32, signal: u32, uid: u32) -> Result<(), Errno> {
    if signal > SIGNAL_MAX || pid == i32::MIN {
        return Err(Errno::new(EINVAL));
    }
    if pid == 0 || pid == 1 {
        return Err(Errno::new(ESRCH));
    }
    let signal = i32::try_from(signal).map_err(|_| Errno::new(EINVAL))?;
    if pid == -1 { kill_all(signal, uid) } else { as_user(uid, || raw_kill(pid, signal)) }
}

/// Every process but the container's own; succeeds if one could be signalled.
fn kill_all(signal: i32, uid: u32) -> Result<(), Errno> {
    let pids = procfs::pids(Path::new("/proc")).map_err(|_| Errno::new(ESRCH))?;
    let mut outcome = Err(Errno::new(ESRCH));
    for pid in pids.into_iter().filter(|pid| !super::is_own(*pid)) {
        match as_user(uid, || raw_kill(pid, signal)) {
            Ok(()) => outcome = Ok(()),
            Err(errno) if errno.errno == EPERM && outcome.is_err() => outcome = Err(errno),
            Err(_) => {}
        }
    }
    outcome
}

fn raw_kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill(2) takes two numbers and touches no memory of this process.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => {
            let error = std::io::Error::last_os_error();
            Err(Errno::new(error.raw_os_error().unwrap_or(EINVAL)))
        }
    }
}

/// Runs `work` on a thread with the rights of `uid`: of the thread alone, as Linux has it.
fn as_user(uid: u32, work: impl FnOnce() -> Result<(), Errno> + Send) -> Result<(), Errno> {
    if uid == rustix::process::geteuid().as_raw() {
        return work();
    }
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let uid = Uid::from_raw(uid);
            match rustix::thread::set_thread_res_uid(uid, uid, uid) {
                Ok(()) => work(),
                Err(Os::INVAL | Os::PERM) => Err(Errno::new(EPERM)),
                Err(error) => Err(Errno::new(error.raw_os_error())),
            }
        });
        worker.join().unwrap_or(Err(Errno::new(EPERM)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    #[test]
    fn a_signal_is_sent_with_the_rights_of_the_user_who_asks() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: acting as other users needs root");
            return;
        }
        let mut child = Command::new("sleep").arg("1000").uid(12_345).gid(12_345).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let errno = |outcome: Result<(), Errno>| outcome.err().map(|errno| errno.errno);
        assert_eq!(errno(kill(pid, 0, 54_321)), Some(EPERM));
        assert_eq!(errno(kill(pid, 9, 54_321)), Some(EPERM));
        assert_eq!(errno(kill(pid, 0, 12_345)), None);
        assert_eq!(errno(kill(pid, 65, 0)), Some(EINVAL));
        assert_eq!(errno(kill(pid, 34, 12_345)), None, "a real-time signal");
        assert_eq!(child.wait().unwrap().signal(), Some(34));
        assert_eq!(errno(kill(pid, 0, 0)), Some(ESRCH));
        // This thread has kept its rights.
        assert!(rustix::process::geteuid().is_root());
    }

    #[test]
    fn numbers_that_mean_no_process_are_refused() {
        for pid in [0, 1, i32::MIN] {
            assert!(kill(pid, 0, 0).is_err(), "{pid}");
        }
    }
}
