//! A lab, and workers on its nodes.

use crate::cpus;
use crate::place::Place;
use anyhow::{Context, Result, ensure};
use legacy_tests::{Lab, lab};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::peer::Peer;

/// A lab that is up, with the bench's own program where every node finds it.
#[derive(Debug)]
pub(crate) struct System {
    lab: Lab,
    program: PathBuf,
    _scratch: tempfile::TempDir,
}

impl System {
    /// Brings up a lab of three nodes.
    ///
    /// # Errors
    /// One sentence: what is missing here, or what `dvs lab up` says.
    pub(crate) fn up() -> Result<System> {
        System::up_with(&[])
    }

    /// The same, with more options of `dvs lab up`.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn up_with(options: &[&str]) -> Result<System> {
        if let Some(obstacle) = lab::obstacle() {
            anyhow::bail!(obstacle);
        }
        let scratch = tempfile::Builder::new().prefix("dvs-bench-").tempdir()?;
        let program = scratch.path().join("bench");
        std::fs::copy(std::env::current_exe()?, &program)?;
        let lab = Lab::up_with(&lab::program()?, &scratch.path().join("lab"), options)?;
        Ok(System { lab, program, _scratch: scratch })
    }

    /// The bench as a program on `node`, in this role.
    fn command(&self, node: &str, role: &[&str]) -> Command {
        let mut command = self.lab.command();
        command.args(["run", "--node", node, "--"]).arg(&self.program).args(role);
        command
    }

    /// Puts everything of `node` on one CPU, as if it were a machine with no more.
    pub(crate) fn pin(&self, node: &str, cpu: usize) -> Result<()> {
        cpus::pin_tree(self.daemon(node)?, cpu)
    }

    /// A worker on `node`, in the shared tree.
    pub(crate) fn worker(&self, name: &str, node: &str) -> Result<Place> {
        Place::of(name, self.command(node, &["worker", "/dvs"]))
    }

    /// Workers on the node that is the home of the files and on another, if there is a system.
    pub(crate) fn workers(system: Option<&System>) -> Result<Vec<Place>> {
        let Some(system) = system else { return Ok(Vec::new()) };
        Ok(vec![system.worker("/dvs, home node", "n1")?, system.worker("/dvs, other node", "n2")?])
    }

    /// An echo on the first node, and the address where the other nodes reach it.
    pub(crate) fn echo(&self) -> Result<(Peer, String)> {
        self.listener(&[])
    }

    /// The same over TLS; the address is followed by the file with its certificate.
    pub(crate) fn tls_echo(&self) -> Result<(Peer, String)> {
        let certificate = self.program.with_file_name("certificate");
        let path = certificate.to_str().context("the temporary folder has a strange name")?;
        let (peer, address) = self.listener(&["--tls", path])?;
        Ok((peer, format!("{address} {path}")))
    }

    fn listener(&self, arguments: &[&str]) -> Result<(Peer, String)> {
        let rows = self.lab.rows(&["lab", "status"])?;
        let address = rows
            .iter()
            .find(|row| row["node"] == lab::NODES[0])
            .and_then(|row| row["address"].as_str());
        let (host, _) =
            address.and_then(|address| address.rsplit_once(':')).context("n1 has no address")?;
        let mut command = self.command(lab::NODES[0], &[&["echo", host], arguments].concat());
        let mut peer = Peer(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        BufReader::new(peer.0.stdout.take().expect("it is piped")).read_line(&mut line)?;
        ensure!(!line.trim().is_empty(), "the echo on n1 does not start");
        Ok((peer, line.trim().to_owned()))
    }

    /// The daemon of a node.
    pub(crate) fn daemon(&self, node: &str) -> Result<u32> {
        let rows = self.lab.rows(&["lab", "status"])?;
        let row = rows.iter().find(|row| row["node"] == node && row["address"].is_string());
        let pid = row.and_then(|row| row["pid"].as_u64()).context("the node has no daemon")?;
        Ok(u32::try_from(pid)?)
    }
}
