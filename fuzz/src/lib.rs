//! Turns bytes into what happens to a server: calls, cancels, deaths, and time.

use dvk::server::{Answers, Call, Context, Gone, Server};
use dvk::store::MemoryStore;
use m3ipc::{CallId, Cred, Endpoint, Message, NodeId, Tag};

/// Feeds `data` to the server that `open` makes. Whatever it says, nothing may panic.
pub fn feed<S: Server>(base: u16, open: impl Fn(&mut MemoryStore) -> S, data: &[u8]) {
    let mut store = MemoryStore::default();
    let mut server = open(&mut store);
    let mut bytes = Bytes(data);
    let mut now = 0;
    let mut sequence = 0;
    while let Some(kind) = bytes.next() {
        now += 1_000_000 * u64::from(kind >> 4);
        let mut answers = Answers::default();
        let mut cx =
            Context { now, wall: now, entropy: now | 1, store: &mut store, answers: &mut answers };
        let source = Endpoint::from_bits(bytes.number(2) % 4 + 0x0001_0000_0000);
        let id = |sequence| CallId { source, tag: Tag::new(0, sequence) };
        match kind & 15 {
            0 => server.cancel(id(bytes.number(1)), &mut cx),
            1 => server.gone(Gone::Endpoint(source), &mut cx),
            2 => server.gone(Gone::Node(NodeId(1)), &mut cx),
            3 => server.tick(&mut cx),
            _ => {
                sequence += 1;
                let mut message = Message::request(base + u16::from(bytes.next().unwrap_or(0)));
                message.source = source;
                message.tag = Tag::new(0, sequence);
                for byte in &mut message.args {
                    *byte = bytes.next().unwrap_or(0);
                }
                let length = usize::try_from(bytes.number(2)).unwrap_or(0) % 2048;
                let payload = bytes.take(length);
                message.payload_len = u32::try_from(payload.len()).unwrap_or(0);
                // Process 0 is an agent.
                let cred = Cred::new(u32::from(kind & 32 != 0), u32::from(kind >> 6), 0);
                server.serve(
                    &Call { id: id(sequence), cred: &cred, message: &message, payload },
                    &mut cx,
                );
            }
        }
        let _ = server.deadline();
    }
    // What it has stored must be something that it can open again.
    drop(server);
    drop(open(&mut store));
}

/// What is left of the input.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self, size: usize) -> u64 {
        (0..size).fold(0, |number, _| number << 8 | u64::from(self.next().unwrap_or(0)))
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
