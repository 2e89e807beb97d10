//! A process named so that a reused pid is never taken for it: pid, start time, and boot.

use crate::limits::KILL_PATIENCE;
use crate::procfs;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// One process, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks after the boot (field 22 of proc_pid_stat(5)).
    start: u64,
    /// Random number of the boot.
    boot: String,
}

impl ProcessId {
    /// The process that has `pid` now.
    pub(crate) fn of(pid: i32) -> Option<ProcessId> {
        Some(ProcessId { pid, start: procfs::stat(pid)?.start, boot: boot()? })
    }

    /// Is it still there, and not a zombie?
    pub(crate) fn is_alive(&self) -> bool {
        boot().as_deref() == Some(&self.boot)
            && procfs::stat(self.pid)
                .is_some_and(|stat| stat.start == self.start && stat.state != b'Z')
    }

    /// Reads a pid file; `None` if there is none or it is not one.
    pub(crate) fn read(path: &Path) -> Option<ProcessId> {
        ProcessId::parse(&std::fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<ProcessId> {
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        let start = words.next()?.parse().ok()?;
        let boot = words.next()?.to_owned();
        words.next().is_none().then_some(ProcessId { pid, start, boot })
    }

    /// Writes a pid file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, format!("{self}\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Ends the process: SIGTERM, and SIGKILL if it is still there after `patience`.
    ///
    /// # Errors
    /// It may not be signalled, or does not even end by SIGKILL.
    pub(crate) fn end(&self, patience: Duration) -> Result<()> {
        let Some(handle) = self.open()? else { return Ok(()) };
        for (signal, wait) in [(Signal::TERM, patience), (Signal::KILL, KILL_PATIENCE)] {
            match pidfd_send_signal(&handle, signal) {
                Ok(()) => {}
                Err(Errno::SRCH) => return Ok(()),
                Err(error) => bail!("cannot end process {}: {error}", self.pid),
            }
            if ended(&handle, wait)? {
                return Ok(());
            }
        }
        bail!("process {} does not end", self.pid)
    }

    /// A descriptor that stays this process's; `None` if it is gone.
    fn open(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => bail!("cannot look at process {}: {error}", self.pid),
        };
        // Checked after the opening: now the pid cannot pass to another one unnoticed.
        Ok(self.is_alive().then_some(handle))
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pid, self.start, self.boot)
    }
}

fn boot() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// Waits until the process has ended, `wait` at most.
fn ended(handle: &OwnedFd, wait: Duration) -> Result<bool> {
    let limit = Instant::now() + wait;
    loop {
        let left = limit.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left)?;
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> (Child, ProcessId) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        (child, process)
    }

    #[test]
    fn a_pid_file_names_one_process_and_no_later_one() {
        let (mut child, process) = sleeper();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        process.write(&file).unwrap();
        assert_eq!(ProcessId::read(&file), Some(process.clone()));
        assert!(process.is_alive());
        // The same pid with another start or boot is another process, which is left alone.
        let reused = ProcessId { start: process.start + 1, ..process.clone() };
        let rebooted = ProcessId { boot: "another".into(), ..process.clone() };
        for other in [reused, rebooted] {
            assert!(!other.is_alive());
            other.end(Duration::ZERO).unwrap();
        }
        assert!(process.is_alive());
        process.end(Duration::from_secs(10)).unwrap();
        // Ended, though nobody has waited for it yet.
        assert!(!process.is_alive());
        child.wait().unwrap();
        process.end(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_process_that_ignores_sigterm_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo; read end"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let process = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        process.end(Duration::from_millis(50)).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn a_damaged_pid_file_names_nobody() {
        for text in ["", "12", "12 13", "x 1 b", "-1 1 b", "0 1 b", "1 2 b c", "99999999999 1 b"] {
            assert_eq!(ProcessId::parse(text), None, "{text:?}");
        }
        assert!(ProcessId::parse("12 13 boot\n").is_some());
    }
}
