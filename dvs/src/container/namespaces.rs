//! The namespaces of a container: pid, mounts, host name, System V IPC; as a user, also users.
#![expect(unsafe_code, reason = "fork: the first process of a pid namespace must be a child")]

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    /// The one that dvkd started; it waits for the other.
    Outside(Pid),
    /// Process 1 of the new pid namespace.
    Inside,
}

/// Enters new namespaces.
///
/// # Errors
/// One sentence: what the kernel does not allow, and what to do.
pub(super) fn enter() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        enter_as_user()?;
    }
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(flags).context("cannot make the container's namespaces")
}

/// A user namespace in which this user is the same one, with all rights over what is made in it.
fn enter_as_user() -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "this machine does not let users make namespaces; run DVS as root, or allow it \
         (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
    )?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    keep_rights_over_exec().context("cannot keep the rights in the new user namespace")
}

/// `dvs-mount` and `dvs start` are executed anew and need the rights, too: ambient capabilities.
fn keep_rights_over_exec() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.inheritable = sets.permitted;
    set_capabilities(None, sets)?;
    for capability in [CapabilitySet::SYS_ADMIN, CapabilitySet::SYS_CHROOT] {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Goes on as two processes.
///
/// # Errors
/// The kernel has no process left.
pub(super) fn split() -> Result<Side> {
    // SAFETY: this process has one thread, so the child finds no lock taken.
    match unsafe { fork() }.context("cannot make the container's first process")? {
        ForkResult::Child => Ok(Side::Inside),
        ForkResult::Parent { child } => {
            Pid::from_raw(child.as_raw()).map(Side::Outside).ok_or_else(|| anyhow!("no child"))
        }
    }
}

/// Outside: passes a request to stop on, waits for the other's end, and ends in the same way.
///
/// # Errors
/// The container failed.
pub(super) fn wait_for(inside: Pid) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    loop {
        if let Some((_, status)) = rustix::process::waitpid(Some(inside), WaitOptions::NOHANG)? {
            return ended(status);
        }
        if signals.wait()? != Signal::SIGCHLD {
            rustix::process::kill_process(inside, rustix::process::Signal::TERM)?;
        }
    }
}

fn ended(status: WaitStatus) -> Result<()> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => std::process::exit(code),
        (None, signal) => Err(anyhow!("the container was ended by signal {}", signal.unwrap_or(0))),
    }
}
