//! A requester that does not obey: it goes on with a channel that has been closed, and does not listen to dvkd.

use crate::cluster::{Cluster, wait_until};
use dvk_client::{Endpoint, IpcError, Message};
use m3ipc::Tag;
use m3ipc::bell::{Bell, Ringer};
use m3ipc::channel::SharedChannel;
use m3ipc::connection::{Connection, Opened};
use m3ipc::door::{Ask, kind, tell};
use m3ipc::port::ONE_WAY;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// Where in a channel it says that it is closed.
const CLOSED_AT: u64 = 8;

pub(crate) struct Liar {
    pub(crate) endpoint: Endpoint,
    memory: File,
    channel: SharedChannel,
    bell: Ringer,
    sent: u64,
    connection: Connection,
    _own_bell: Bell,
}

impl Liar {
    /// As `number` on node 1, with a channel to `to`.
    pub(crate) fn open(cluster: &Cluster, number: u32, to: Endpoint) -> Liar {
        let connection = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
        let (own_bell, descriptor) = Bell::create().unwrap();
        let hello = Ask::hello(kind::PEER, number, to.to_bits() | 1);
        let endpoint = connection.hello(hello, Some(descriptor.as_fd())).unwrap().endpoint;
        let Opened { channel, bell, .. } = connection.open(to).unwrap();
        Liar {
            endpoint,
            channel: SharedChannel::map(channel.as_fd()).unwrap(),
            memory: File::from(channel),
            bell: Ringer::map(bell.as_fd()).unwrap(),
            sent: 0,
            connection,
            _own_bell: own_bell,
        }
    }

    /// A message that nobody answers, and a notification.
    pub(crate) fn send(&mut self) {
        self.sent += 1;
        let tag = Tag::new(0, self.sent);
        let message = Message { tag, status: ONE_WAY, ..Message::request(0x1001) };
        self.channel.post_first(&message, &[]).unwrap();
        assert!(self.channel.notify(7).is_ok());
        assert!(self.bell.ring());
    }

    /// Takes back that the channel is closed, when it is.
    pub(crate) fn reopen(&self) {
        wait_until("it is closed", || self.channel.closed().is_some());
        self.memory.write_all_at(&[0; 4], CLOSED_AT).unwrap();
        assert_eq!(self.channel.closed(), None);
    }

    /// Another channel.
    pub(crate) fn ask_for(&self, to: Endpoint) -> Result<(), IpcError> {
        self.connection.ask(&Ask::open(to), None)?;
        loop {
            let (record, _) = self.connection.hear()?;
            if matches!(record.op, tell::CHANNEL | tell::REFUSED) {
                return record.expect(tell::CHANNEL).map(drop);
            }
        }
    }
}
