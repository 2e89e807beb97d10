//! Writes that are too large for one message.
#![expect(clippy::cast_possible_truncation, reason = "numbers of a few parts")]

use crate::limits::{
    LEASE, SPACE_RESERVE, STAGED_BYTES_MAX, STAGED_FOR, STAGED_PARTS_MAX, STAGED_PER_AGENT_MAX,
};
use crate::tests::driver::{Client, Got, MATE, ROOT, World};
use crate::tests::leases::{agent, message};
use calls::vfs::{
    Getattr, Read, Stage, WRITE_APPEND, WRITE_AT, WRITE_SIZE_MAX, Write, WriteStaged,
};
use dvk::server::Gone;
use dvk::store::StoreError;
use m3ipc::errno::numbers::{EAGAIN, EBADF, EINVAL, ENOSPC};
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, NodeId};

struct Writer {
    w: World,
    ino: u64,
    fh: u64,
}

impl Writer {
    fn new() -> Writer {
        let mut w = World::new();
        w.put(&ROOT, "/f", 0o666, b"before").unwrap();
        let ino = w.stat(&ROOT, "/f").unwrap().ino;
        let fh = w.open(&ROOT, "/f", 2).unwrap().fh;
        Writer { w, ino, fh }
    }

    fn stage(&mut self, client: &Client, token: u64, index: u32, data: &[u8]) -> Got<()> {
        let row = Stage { token, index, total: 3 * PAYLOAD_MAX as u32 };
        self.w.call(client, &row, data).map(drop)
    }

    fn row(&self, token: u64, parts: u32, offset: u64) -> WriteStaged {
        WriteStaged { fh: self.fh, ino: self.ino, offset, token, parts }
    }

    fn write(&mut self, token: u64, parts: u32, last: &[u8]) -> Got<u64> {
        let row = self.row(token, parts, WRITE_APPEND);
        self.w.call(&ROOT, &row, last).map(|(reply, _)| reply.count)
    }

    fn content(&mut self) -> Vec<u8> {
        let row = Read { fh: self.fh, ino: self.ino, offset: 0, size: u32::MAX };
        let mut content = self.w.call(&ROOT, &row, &[]).unwrap().1;
        let row = Read { offset: content.len() as u64, ..row };
        content.extend(self.w.call(&ROOT, &row, &[]).unwrap().1);
        content
    }
}

#[test]
fn parts_are_written_when_the_last_one_comes() {
    let mut writer = Writer::new();
    let part = vec![7; PAYLOAD_MAX];
    writer.stage(&ROOT, 1, 1, b"two").unwrap();
    writer.stage(&ROOT, 1, 0, &part).unwrap();
    writer.stage(&ROOT, 1, 0, &part).unwrap();
    writer.stage(&MATE, 1, 0, b"another's").unwrap();
    assert_eq!(writer.content(), b"before");
    for parts in [0, 1, 3] {
        let token = if parts == 0 { 9 } else { 1 };
        let outcome = writer.write(token, parts.max(1), b"!");
        assert_eq!(outcome, Err(EAGAIN), "not all are there, or more");
    }
    assert_eq!(writer.write(1, 2, b"three"), Ok(PAYLOAD_MAX as u64 + 8));
    assert_eq!(writer.content(), [b"before", &part[..], b"twothree"].concat());
    assert_eq!(writer.write(1, 2, b"again"), Err(EAGAIN), "they are gone");
    // An error takes them too.
    writer.stage(&ROOT, 2, 0, b"x").unwrap();
    let row = WriteStaged { fh: 99, ..writer.row(2, 1, WRITE_AT) };
    assert_eq!(writer.w.call(&ROOT, &row, b"y").map(drop), Err(EBADF));
    assert_eq!(writer.write(2, 1, b"y"), Err(EAGAIN));
}

/// Who looks for room cuts what is behind the ends of files: of this one, not what has just been written.
#[test]
fn what_is_written_stays_when_the_disk_gets_full_behind_it() {
    let mut writer = Writer::new();
    let (ino, fh) = (writer.ino, writer.fh);
    let file = crate::tests::driver::File { fh, ino, client: ROOT };
    writer.w.restart(); // forgets how much was free
    writer.w.store.free = Some(SPACE_RESERVE + 2000);
    writer.w.ftruncate(&file, 2).unwrap();
    writer.stage(&ROOT, 1, 0, &[7; 1000]).unwrap();
    assert_eq!(writer.write(1, 1, &[8; 3000]), Ok(1000));
    assert_eq!(writer.content(), [b"be", &[7; 1000][..]].concat());
}

#[test]
fn parts_wait_with_the_write_that_is_put_off() {
    let mut writer = Writer::new();
    let other = agent(2);
    writer.w.begin(&other);
    let row = Getattr { ino: writer.ino, fh: 0 };
    assert_ne!(writer.w.call(&other, &row, &[]).unwrap().0.attr, 0);
    writer.stage(&ROOT, 1, 0, b"one").unwrap();
    let row = writer.row(1, 1, WRITE_AT);
    let id = writer.w.send(&ROOT, message(&row), b"two");
    assert!(writer.w.answer(id).is_none(), "another remembers the file");
    writer.w.clock += LEASE;
    writer.w.tick();
    assert!(writer.w.answer(id).unwrap().is_ok());
    assert_eq!(writer.content(), b"onetwo");
}

#[test]
fn what_is_staged_is_bounded_and_goes_with_who_staged_it() {
    let mut writer = Writer::new();
    let size = 3 * PAYLOAD_MAX;
    let of = |number| Client { endpoint: Endpoint::new(NodeId(9), number, 1), ..MATE };
    let room = STAGED_PER_AGENT_MAX / size;
    let mut staged = 0;
    while staged < STAGED_BYTES_MAX / size {
        let client = of(u32::try_from(staged / room).unwrap());
        writer.stage(&client, (staged % room) as u64, 0, b"x").unwrap();
        staged += 1;
        if staged == room {
            assert_eq!(writer.stage(&of(0), room as u64, 0, b"x"), Err(EAGAIN), "one's own");
        }
    }
    assert_eq!(writer.stage(&ROOT, 0, 0, b"x"), Err(EAGAIN));
    // What has begun can go on.
    writer.stage(&of(0), 1, 1, &vec![1; PAYLOAD_MAX]).unwrap();
    writer.w.gone(Gone::Endpoint(of(0).endpoint));
    writer.stage(&ROOT, 0, 0, b"x").unwrap();
    writer.w.gone(Gone::Node(NodeId(9)));
    for token in 1..room as u64 {
        writer.stage(&ROOT, token, 0, b"x").unwrap();
    }
    assert_eq!(writer.stage(&ROOT, room as u64, 0, b"x"), Err(EAGAIN));
    writer.w.clock += STAGED_FOR;
    writer.stage(&ROOT, 100, 0, b"x").unwrap();
    assert_eq!(writer.write(0, 1, b"y"), Err(EAGAIN), "nobody came for it");
    assert_eq!(writer.write(100, 1, b"y"), Ok(2));
    for _ in 0..3 {
        writer.stage(&ROOT, 5, 3, &vec![1; PAYLOAD_MAX]).unwrap();
    }
    writer.stage(&ROOT, 5, 4, &vec![1; PAYLOAD_MAX]).unwrap();
    writer.stage(&ROOT, 5, 5, &vec![1; PAYLOAD_MAX]).unwrap();
    assert_eq!(writer.stage(&ROOT, 5, 6, b"x"), Err(EAGAIN), "more than was said");
    for (index, total, len) in
        [(0, WRITE_SIZE_MAX + 1, 1), (0, 5, 6), (0, 0, 1), (0, 5, 0), (STAGED_PARTS_MAX, 5, 1)]
    {
        let row = Stage { token: 6, index, total: total as u32 };
        assert_eq!(writer.w.call(&ROOT, &row, &vec![0; len]).map(drop), Err(EINVAL));
    }
    writer.w.restart();
    assert_eq!(writer.write(5, 3, b"x"), Err(EAGAIN));
}

#[test]
fn a_large_write_that_fails_changes_nothing() {
    let mut writer = Writer::new();
    writer.stage(&ROOT, 1, 0, b"one").unwrap();
    writer.w.store.broken = Some(StoreError::Full);
    assert_eq!(writer.write(1, 1, b"two"), Err(ENOSPC));
    writer.w.store.broken = None;
    assert_eq!(writer.content(), b"before");
    let row = Write { fh: writer.fh, ino: writer.ino, offset: WRITE_AT };
    assert_eq!(writer.w.call(&ROOT, &row, b"after!").unwrap().0.count, 6);
    assert_eq!(writer.content(), b"after!");
}
