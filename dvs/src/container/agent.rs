//! The container's `dvs-mount`: started, watched, and started again when it has died.

use super::{AGENT_PID, TREE};
use crate::limits::{AGENT_RESTART_PAUSE, AGENT_STOP_PATIENCE, MOUNT_PATIENCE};
use crate::{place, procfs};
use anyhow::{Context, Result, anyhow, bail};
use calls::vfs::{ROOT_INO, SetAttr, Setattr, set};
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::{Cred, Endpoint, Wait, door};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The agent's process.
#[derive(Debug)]
pub(super) struct Agent {
    dc: String,
    started: Instant,
    /// When it is to be started again.
    wanted: Option<Instant>,
}

impl Agent {
    pub(super) fn new(dc: String) -> Agent {
        Agent { dc, started: Instant::now(), wanted: None }
    }

    /// Starts the agent and returns when the tree is mounted.
    ///
    /// # Errors
    /// It cannot be started, ends, or the tree does not appear.
    pub(super) fn start_and_wait(&mut self) -> Result<()> {
        self.start()?;
        // The kernel tells with POLLPRI that the table of mounts has changed (proc_pid_mounts(5)).
        let table = File::open("/proc/self/mountinfo")?;
        let limit = Instant::now() + MOUNT_PATIENCE;
        while !is_mounted()? {
            let pid = Pid::from_raw(AGENT_PID.load(Ordering::Relaxed));
            if let Some((_, status)) = waitpid(pid, WaitOptions::NOHANG)? {
                bail!("dvs-mount could not mount the tree ({status:?}); its message is above");
            }
            if Instant::now() > limit {
                bail!("dvs-mount has not mounted the tree within {MOUNT_PATIENCE:?}");
            }
            let pause = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            rustix::io::retry_on_intr(|| {
                poll(&mut [PollFd::new(&table, PollFlags::PRI)], Some(&pause))
            })?;
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let child = Command::new("/proc/self/exe")
            .arg0("dvs-mount")
            .args(["mount-agent", "--socket", door::SOCKET_PATH, "--name", &self.dc, TREE])
            .spawn()
            .context("cannot start dvs-mount")?;
        AGENT_PID.store(i32::try_from(child.id())?, Ordering::Relaxed);
        self.started = Instant::now();
        self.wanted = None;
        Ok(())
    }

    /// Was `pid` the agent? Then what it left is unmounted, and it is wanted again.
    pub(super) fn has_ended(&mut self, pid: i32, status: i32) -> bool {
        if AGENT_PID.compare_exchange(pid, 0, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        tracing::warn!("dvs-mount has ended (status {status:#x}); it is started again");
        // Files that are still open there stay dead; all else finds the new mount.
        unmount(TREE, UnmountFlags::DETACH).ok();
        self.wanted = Some((self.started + AGENT_RESTART_PAUSE).max(Instant::now()));
        true
    }

    /// In how long `start_if_wanted` is to be called, if at all.
    pub(super) fn wanted_in(&self) -> Option<Duration> {
        self.wanted.map(|wanted| wanted.saturating_duration_since(Instant::now()))
    }

    /// Starts the agent again, if it is time.
    pub(super) fn start_if_wanted(&mut self) {
        if self.wanted.is_some_and(|wanted| wanted <= Instant::now())
            && let Err(error) = self.start()
        {
            tracing::error!("{error:#}");
            self.wanted = Some(Instant::now() + AGENT_RESTART_PAUSE);
        }
    }

    /// Ends the agent.
    pub(super) fn stop(&mut self) {
        let Some(pid) = Pid::from_raw(AGENT_PID.load(Ordering::Relaxed)) else { return };
        unmount(TREE, UnmountFlags::DETACH).ok();
        kill_process(pid, Signal::TERM).ok();
        let limit = Instant::now() + AGENT_STOP_PATIENCE;
        while Instant::now() < limit && matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None))
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A new tree belongs to root. In the user namespace of another user's container there is no root,
/// and the kernel lets nobody write to what belongs to a user that it cannot name.
///
/// # Errors
/// vfs-server refuses.
pub(super) fn give_tree_to_user() -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        return Ok(());
    }
    let agent = place::connect(Path::new(door::SOCKET_PATH), door::kind::AGENT)?;
    let mut cred = [0; CRED_SIZE_MAX];
    let cred_len = Cred::ROOT.encode(&mut cred);
    let owner = SetAttr {
        valid: set::UID | set::GID,
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        ..SetAttr::default()
    };
    let payload: [&[u8]; 2] = [&cred[..cred_len], &owner.bytes()];
    let row = Setattr { ino: ROOT_INO, fh: 0 };
    calls::call(&agent, Endpoint::VFS, &row, &payload, &mut [0; 256], Wait::FOREVER)
        .map_err(|errno| anyhow!("the tree cannot be given to its user: {errno}"))?;
    // What the kernel knows of the tree's root is from before.
    std::fs::metadata(TREE).context("the tree cannot be looked at")?;
    Ok(())
}

fn is_mounted() -> Result<bool> {
    let mounts = procfs::mounts()?;
    Ok(mounts.iter().any(|mount| mount.point == TREE.as_bytes() && mount.kind.starts_with(b"fuse")))
}
