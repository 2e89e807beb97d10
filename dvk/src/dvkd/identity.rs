//! Who is at the other end of a local socket, as the operating system's kernel says.
#![expect(unsafe_code, reason = "SO_PEERGROUPS has no safe wrapper")]

use anyhow::{Context, Result, ensure};
use m3ipc::Cred;
use m3ipc::limits::GROUPS_MAX;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};

/// A process at the door.
#[derive(Debug)]
pub(super) struct Identity {
    /// As this daemon sees it.
    pub(super) pid: u32,
    /// Its user, as this daemon sees it.
    pub(super) uid: u32,
    /// For servers: with the pid in its own pid namespace.
    pub(super) cred: Cred,
    /// Readable when the process is dead. It cannot name another process.
    pub(super) pidfd: OwnedFd,
}

impl Identity {
    /// Asks the kernel about the process that connected `socket`.
    pub(super) fn of(socket: &OwnedFd) -> Result<Identity> {
        let peer = getsockopt(socket, sockopt::PeerCredentials).context("SO_PEERCRED")?;
        let pid = u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0);
        let pid = pid.context("the process is in a pid namespace that this dvkd cannot see")?;
        let pidfd =
            getsockopt(socket, sockopt::PeerPidfd).or_else(|_| open_pidfd(pid)).context("pidfd")?;
        let groups = groups(socket).context("SO_PEERGROUPS")?;
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).context("/proc/PID/status")?;
        // What was read is of this process and not of a later one with its pid.
        ensure!(!is_dead(&pidfd), "the process is dead");
        let inner = innermost_pid(&status).unwrap_or(pid);
        let cred = Cred::new(inner, peer.uid(), peer.gid()).with_groups(groups);
        Ok(Identity { pid, uid: peer.uid(), cred, pidfd })
    }
}

/// The pid behind a pidfd that a process has sent, as this daemon sees it, and as that process itself does.
pub(super) fn of_pidfd(pidfd: &OwnedFd) -> Result<(u32, u32)> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).context("fdinfo of a pidfd")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:")).context("no pidfd")?;
    // -1: the process is dead; 0: it is in a pid namespace that this daemon cannot see.
    let pid: u32 = line.trim().parse().ok().filter(|pid| *pid != 0).context("no process")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(!is_dead(pidfd), "the process is dead");
    Ok((pid, innermost_pid(&status).unwrap_or(pid)))
}

/// Before Linux 6.5. The pid may be another process's by now; `is_dead` below and the socket's end tell.
fn open_pidfd(pid: u32) -> Result<OwnedFd, nix::Error> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or(nix::Error::ESRCH)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|error| nix::Error::from_raw(error.raw_os_error()))
}

/// Is the process of this pidfd dead?
pub(super) fn is_dead(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The pid in the innermost namespace: the last number of `NSpid:` (proc(5)).
fn innermost_pid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

/// The supplementary groups of the process at the time it connected, `GROUPS_MAX` at most.
fn groups(socket: &OwnedFd) -> std::io::Result<Vec<u32>> {
    // As many as Linux allows, so that none of the first is lost to ERANGE.
    const NGROUPS_MAX: usize = 65_536;
    let mut groups = vec![0_u32; GROUPS_MAX];
    loop {
        let mut len = libc::socklen_t::try_from(groups.len() * 4).expect("at most 256 KiB");
        // SAFETY: the kernel writes at most `len` bytes, which `groups` has, and the length it has written.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result == 0 {
            groups.truncate((len as usize / 4).min(GROUPS_MAX));
            return Ok(groups);
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || groups.len() >= NGROUPS_MAX {
            return Err(error);
        }
        groups.resize(NGROUPS_MAX, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn this_process_is_recognised() {
        let (one, _other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let identity = Identity::of(&one).unwrap();
        assert_eq!(identity.pid, std::process::id());
        assert_eq!(identity.uid, rustix::process::getuid().as_raw());
        assert_eq!(identity.cred.gid, rustix::process::getgid().as_raw());
        assert!(!is_dead(&identity.pidfd));
    }

    #[test]
    fn the_innermost_pid_is_the_last() {
        assert_eq!(innermost_pid("Name:\tx\nNSpid:\t1234\t77\t3\nNSpgid:\t1\n"), Some(3));
        assert_eq!(innermost_pid("Name:\tx\nNSpid:\t1234\n"), Some(1234));
        assert_eq!(innermost_pid("Name:\tx\n"), None);
    }
}
