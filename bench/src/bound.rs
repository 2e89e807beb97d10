//! M3-IPC between two programs: bound endpoints that call each other.

use crate::cpus::Layout;
use crate::place::Place;
use crate::rounds::Subject;
use anyhow::{Result, anyhow};
use dvk_client::{Bound, Endpoint, IpcError, Kind, Message, NodeId};
use std::time::{Duration, Instant};

/// Operations of a worker: become the receiver, then call it in one of the ways.
pub(crate) const SERVE: &str = "m3ipc serve";
pub(crate) const SENDREC: &str = "m3ipc sendrec ";
pub(crate) const SEND: &str = "m3ipc send ";

/// The number that the receiver is bound under, and the call that it answers.
const NUMBER: u32 = 900;
const CALL: u16 = 0x1001;

fn failed(error: IpcError) -> anyhow::Error {
    anyhow!("M3-IPC: {error:?}")
}

/// Binds the receiver; a thread answers until the process ends.
pub(crate) fn serve() -> Result<Duration> {
    let bound = Bound::bind(None, NUMBER).map_err(failed)?;
    std::thread::spawn(move || {
        let answer = Message::request(CALL);
        while let Ok(got) = bound.receive(Endpoint::ANY, &mut [], None) {
            if got.kind == Kind::Request && bound.reply(got.message.source, &answer, &[]).is_err() {
                break;
            }
        }
    });
    Ok(Duration::ZERO)
}

/// One who calls the receiver on a node.
#[derive(Debug)]
pub(crate) struct Caller {
    bound: Bound,
}

impl Caller {
    pub(crate) fn bind() -> Result<Caller> {
        Bound::bind(None, 0).map(|bound| Caller { bound }).map_err(failed)
    }

    /// `operation` is [`SENDREC`] or [`SEND`] and the number of the receiver's node.
    pub(crate) fn call(&self, operation: &str, count: u32) -> Result<Duration> {
        let waits = operation.starts_with(SENDREC);
        let node = operation.rsplit_once(' ').and_then(|(_, node)| node.parse().ok());
        let node = NodeId(node.ok_or_else(|| anyhow!("{operation:?} names no node"))?);
        let to = Endpoint::well_known(node, NUMBER);
        let start = Instant::now();
        for _ in 0..count {
            let mut message = Message::request(CALL);
            let done = if waits {
                self.bound.sendrec(to, &mut message, &[], &mut [], None).map(drop)
            } else {
                self.bound.send(to, &message, &[], None)
            };
            done.map_err(failed)?;
        }
        Ok(start.elapsed())
    }
}

/// A worker that calls another one.
pub(crate) struct Pair<'a> {
    pub(crate) name: &'static str,
    pub(crate) caller: &'a Place,
    pub(crate) receiver: &'a Place,
    /// [`SENDREC`] or [`SEND`].
    pub(crate) operation: &'static str,
}

impl Subject for Pair<'_> {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.caller.pin(layout.asks)?;
        self.receiver.pin(layout.answers)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        // The receivers are on the home node.
        self.caller.perform(count, &format!("{}1", self.operation))
    }
}
