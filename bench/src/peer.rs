//! The other side of a ping-pong: a second process that sends back what it gets.

use crate::cpus::{self, Layout};
use crate::{channel, queue, shared, stream};
use anyhow::Result;
use rustix::stdio;
use std::fs::File;
use std::process::{Child, Command, Stdio};

/// How the two processes are joined.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A memfd at standard input.
    Shared,
    /// The same, without a look before sleeping.
    Futex,
    /// A channel of M3-IPC at standard input.
    Channel,
    /// A pipe at standard input, one at standard output.
    Pipes,
    /// A socket at standard input.
    Socket,
    /// A POSIX queue at standard input, one at standard output.
    PosixQueues,
    /// SysV queues with these numbers.
    SysVQueues,
}

/// Runs the other side until this one is gone.
pub(crate) fn answer(kind: Kind, numbers: &[i32]) -> Result<()> {
    let input = stdio::stdin().try_clone_to_owned()?;
    match kind {
        Kind::Shared => shared::echo(&input, shared::SPINS),
        Kind::Futex => shared::echo(&input, 0),
        Kind::Channel => channel::echo(&input),
        Kind::Pipes => stream::echo(
            &mut File::from(input),
            &mut File::from(stdio::stdout().try_clone_to_owned()?),
        ),
        Kind::PosixQueues => queue::echo_posix(input, stdio::stdout().try_clone_to_owned()?),
        Kind::SysVQueues => queue::echo_sysv(numbers),
        Kind::Socket => {
            let input = File::from(input);
            stream::echo(&mut &input, &mut &input)
        }
    }
}

/// A peer that ends with its owner.
#[derive(Debug)]
pub(crate) struct Peer(pub(crate) Child);

impl Peer {
    pub(crate) fn start(
        kind: &str,
        numbers: &[String],
        input: Stdio,
        output: Stdio,
    ) -> Result<Peer> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["peer", kind]).args(numbers).stdin(input).stdout(output);
        Ok(Peer(command.spawn()?))
    }

    /// Moves this process and the peer to their CPUs.
    pub(crate) fn pin(&self, layout: Layout) -> Result<()> {
        cpus::pin_self(layout.asks)?;
        cpus::pin(self.0.id(), layout.answers)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already, then there is nothing to kill; either way it is reaped.
        if self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}
