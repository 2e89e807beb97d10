//! File systems over a network to compare with: `GlusterFS` and sshfs, client and server on this machine.
//!
//! Each is in namespaces of its own (network, mounts, processes): it is reached by nobody, and ends with the worker in it.

use crate::place::{self, Place};
use anyhow::{Context, Result, ensure};
use std::process::Command;
use tempfile::TempDir;

/// One of them, mounted, with a worker in it.
#[derive(Debug)]
pub(crate) struct Network {
    // The worker first: it removes its folder.
    place: Place,
    _state: TempDir,
}

/// Mounts it on `$1/mount`; `$1` is a folder on a disk. With open-behind a file that has been renamed cannot always be read (EBADFD).
const GLUSTERFS: &str = r#"
ip address add 10.99.0.1/24 dev lo
for kind in state log run brick; do mkdir "$1/$kind"; done
mount --bind "$1/state" /var/lib/glusterd
mount --bind "$1/log" /var/log/glusterfs
mount --bind "$1/run" /run
mkdir /run/gluster
glusterd
tries=0
until gluster --mode=script volume info; do
    tries=$((tries + 1)); test $tries -lt 50; sleep 0.2
done
gluster --mode=script volume create bench "10.99.0.1:$1/brick" force
gluster --mode=script volume set bench performance.open-behind off
gluster --mode=script volume start bench
mount -t glusterfs 10.99.0.1:/bench "$1/mount"
"#;

/// Mounts it in the same way.
const SSHFS: &str = r#"
mkdir "$1/run" "$1/served"
mount --bind "$1/run" /run
mkdir -p /run/sshd
ssh-keygen -q -N '' -t ed25519 -f "$1/key"
"$(command -v sshd)" -f /dev/null -h "$1/key" -o ListenAddress=127.0.0.1 -o AuthorizedKeysFile="$1/key.pub" \
    -o StrictModes=no -o UsePAM=no -o PermitRootLogin=yes -o PidFile=none -o Subsystem='sftp internal-sftp'
sshfs -F /dev/null -o IdentityFile="$1/key",StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR \
    "root@127.0.0.1:$1/served" "$1/mount"
"#;

/// Does a shell find this program?
pub(crate) fn is_installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    found.is_ok_and(|found| found.status.success())
}

/// Any operation: that of a worker which is there.
const READY: &str = "lock and unlock";

impl Network {
    /// Those that are installed here. Without root there is none.
    pub(crate) fn all() -> Vec<Network> {
        let all: [(_, &[&str], _); 2] =
            [("GlusterFS", &["glusterd"], GLUSTERFS), ("sshfs", &["sshfs", "sshd"], SSHFS)];
        let mut found = Vec::new();
        for (name, programs, script) in all {
            match Network::mount(name, programs, script) {
                Ok(network) => found.push(network),
                Err(error) => eprintln!("bench: without {name} to compare with: {error:#}"),
            }
        }
        found
    }

    fn mount(name: &str, programs: &[&str], script: &str) -> Result<Network> {
        ensure!(rustix::process::geteuid().is_root(), "it needs root");
        for program in programs {
            ensure!(is_installed(program), "{program} is not installed");
        }
        // On the disk that the stores of DVS are on.
        let state = tempfile::Builder::new().prefix("dvs-bench-").tempdir_in(place::target()?)?;
        let folder = state.path().to_str().context("the build folder has a strange name")?;
        std::fs::create_dir(state.path().join("mount"))?;
        // What the daemons say goes to a file; the worker has the pipes.
        let script = format!(
            "set -e; exec 3>&1 4<&0 5>&2 >\"$1/said\" 2>&1 </dev/null
             ip link set lo up
             {script}
             shift; exec \"$@\" >&3 <&4 2>&5 3>&- 4<&- 5>&-"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-c", &script, "sh", folder]);
        command.arg(std::env::current_exe()?).arg("worker").arg(state.path().join("mount"));
        let place = Place::of(name, command)?;
        place.perform(0, READY).with_context(|| {
            let said = std::fs::read_to_string(state.path().join("said")).unwrap_or_default();
            said.lines().next_back().unwrap_or("it says nothing").to_owned()
        })?;
        Ok(Network { place, _state: state })
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}
