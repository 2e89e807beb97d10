//! Ping-pong over a channel of M3-IPC, without a node around it: what the data path itself takes.

use crate::cpus::Layout;
use crate::peer::Peer;
use crate::rounds::Subject;
use anyhow::{Context, Result, anyhow};
use m3ipc::bell::{Bell, Ringer};
use m3ipc::channel::{self, Poll, SharedChannel};
use m3ipc::spin::Spin;
use m3ipc::{IpcError, Message, Tag};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A requester; its peer is the receiver.
#[derive(Debug)]
pub(crate) struct Channel {
    channel: SharedChannel,
    bell: Ringer,
    spin: Spin,
    sent: u64,
    peer: Peer,
}

fn failed(error: IpcError) -> anyhow::Error {
    anyhow!("channel: {error:?}")
}

impl Channel {
    pub(crate) fn start() -> Result<Channel> {
        let memory = channel::create().map_err(failed)?;
        let input = memory.try_clone()?;
        let mut peer = Peer::start("channel", &[], input.into(), Stdio::piped())?;
        // The receiver makes its bell and says which descriptor it is; a node would hand it over.
        let mut line = String::new();
        BufReader::new(peer.0.stdout.take().expect("it is piped")).read_line(&mut line)?;
        let bell = File::open(format!("/proc/{}/fd/{}", peer.0.id(), line.trim()))
            .context("the peer's bell")?;
        let bell = Ringer::map(bell.as_fd()).map_err(failed)?;
        let channel = SharedChannel::map(memory.as_fd()).map_err(failed)?;
        Ok(Channel { channel, bell, spin: Spin::new(), sent: 0, peer })
    }

    fn exchange(&mut self, message: &Message) -> Result<Message> {
        self.sent += 1;
        let tag = Tag::new(0, self.sent);
        self.channel.post(0, &Message { tag, ..*message }, &[]).map_err(failed)?;
        let mut rung = self.bell.ring();
        self.spin.until(|| self.channel.is_answered(0, tag));
        loop {
            match self.channel.poll(0, tag) {
                Poll::Answered(answer) => return Ok(answer),
                Poll::Open if rung => self.channel.sleep(0, None).map_err(failed)?,
                Poll::Open => rung = self.bell.ring(),
                Poll::Closed | Poll::Vacant => return Err(anyhow!("the channel is closed")),
            }
        }
    }
}

impl Subject for Channel {
    fn name(&self) -> String {
        "m3ipc channel".to_owned()
    }

    fn pin(&mut self, layout: Layout) -> Result<()> {
        self.peer.pin(layout)
    }

    fn run(&mut self, count: u32) -> Result<Duration> {
        let message = Message::request(0x100);
        let start = Instant::now();
        for _ in 0..count {
            self.exchange(&message)?;
        }
        Ok(start.elapsed())
    }
}

/// The receiver: answers each request with itself; ends only by being killed.
pub(crate) fn echo(memory: &OwnedFd) -> Result<()> {
    let (bell, descriptor) = Bell::create().map_err(failed)?;
    let channel = SharedChannel::map(memory.as_fd()).map_err(failed)?;
    writeln!(std::io::stdout(), "{}", descriptor.as_raw_fd())?;
    let spin = Spin::new();
    loop {
        if !spin.until(|| channel.has_news()) {
            let ticket = bell.prepare();
            if channel.has_news() {
                bell.awake();
            } else {
                bell.sleep(ticket, None);
            }
        }
        channel.take_news();
        if let Some(message) = channel.request(0) {
            channel.answer(0, &message, &[], false);
        }
    }
}
