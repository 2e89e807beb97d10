//! The agent in front of a port that answers what the test says.

use super::*;
use crate::limits::PARTS_MAX;
use calls::vfs::{Stage, WriteStaged};
use m3ipc::errno::numbers::{EHOSTDOWN, EIO, ENOENT};
use m3ipc::{IpcError, Message};
use proptest::prelude::*;
use std::ops::ControlFlow;
use std::sync::Mutex;

/// Messages and what rode along with them.
type Sent = Vec<(Message, Vec<u8>)>;
/// Status, arguments and payload of an answer, or that none comes.
type Outcome = Result<(u16, [u8; 40], Vec<u8>), IpcError>;

/// A port that keeps what is sent and answers always the same.
#[derive(Debug)]
struct Echo {
    sent: Mutex<Sent>,
    answer: Outcome,
}

impl Sendrec for Echo {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        _: Wait,
    ) -> Result<usize, IpcError> {
        assert_eq!(to, Endpoint::VFS);
        self.sent.lock().unwrap().push((*message, send.concat()));
        let (status, args, payload) = self.answer.clone()?;
        (message.status, message.args) = (status, args);
        let len = payload.len().min(receive.len());
        receive[..len].copy_from_slice(&payload[..len]);
        Ok(len)
    }
}

fn agent(answer: Outcome) -> VosAgent<Echo> {
    VosAgent::new(Echo { sent: Mutex::default(), answer })
}

fn sent(agent: &VosAgent<Echo>) -> Sent {
    std::mem::take(&mut agent.port.sent.lock().unwrap())
}

const CALLER: Caller = Caller { pid: 0, uid: 7, gid: 8, request: 0 };
const FILE: OpenFile = OpenFile { ino: 2, fh: 3 };

#[test]
fn the_credentials_stand_in_front_of_the_payload() {
    let agent = agent(Ok((0, [0; 40], Vec::new())));
    let (from, to) = (Entry { parent: 1, name: b"old" }, Entry { parent: 2, name: b"new" });
    agent.rename(CALLER, from, to, 1).unwrap();
    let (message, payload) = sent(&agent).remove(0);
    assert_eq!(Cred::decode(&payload), Some((Cred::new(0, 7, 8), &b"oldnew"[..])));
    let row = Rename::get(&message.args);
    assert_eq!(
        row,
        Some(Rename {
            parent: 1,
            new_parent: 2,
            forgotten: 0,
            new_forgotten: 0,
            name_len: 3,
            flags: 1
        })
    );
}

#[test]
fn what_does_not_fit_one_message_goes_in_several() {
    let mut args = [0; 40];
    args[..8].copy_from_slice(&(CALL_SIZE_MAX as u64).to_le_bytes());
    let agent = agent(Ok((0, args, vec![7; CALL_SIZE_MAX])));
    let size = CALL_SIZE_MAX * 2;
    let mut data = vec![0; size];
    assert_eq!(agent.read(CALLER, FILE, 100, &mut data), Ok(size));
    assert!(data.iter().all(|byte| *byte == 7));
    // The server's word.
    assert_eq!(agent.write(CALLER, FILE, Place::Offset(5), &data), Ok(CALL_SIZE_MAX));
    let sent = &sent(&agent)[2..];
    assert_eq!(
        sent.iter().map(|(message, _)| message.call).collect::<Vec<_>>(),
        [Stage::NUMBER, WriteStaged::NUMBER]
    );
    let staged = Stage::get(&sent[0].0.args).unwrap();
    assert_eq!((staged.index, staged.total as usize), (0, size));
    let row = WriteStaged::get(&sent[1].0.args).unwrap();
    assert_eq!((row.offset & !WRITE_AT, row.token, row.parts), (5, staged.token, 1));
    assert!(sent.iter().all(|(_, payload)| payload.len() > CALL_SIZE_MAX));
}

#[test]
fn a_read_of_several_parts_ends_where_one_is_short_or_fails() {
    /// Answers the parts of a read, in this order, by so many bytes or an error.
    #[derive(Debug)]
    struct Parts(Mutex<Vec<Result<usize, i32>>>);

    impl Sendrec for Parts {
        fn sendrec(
            &self,
            _: Endpoint,
            message: &mut Message,
            _: &[&[u8]],
            _: &mut [u8],
            _: Wait,
        ) -> Result<usize, IpcError> {
            let outcome = self.0.lock().unwrap().remove(0);
            message.status = outcome.err().map_or(0, |errno| u16::try_from(errno).unwrap());
            Ok(outcome.unwrap_or(0))
        }
    }

    let whole = CALL_SIZE_MAX;
    let check = |parts: [Result<usize, i32>; 3], expected: Result<usize, i32>| {
        let agent = VosAgent::new(Parts(Mutex::new(parts.to_vec())));
        let mut buffer = vec![0; 3 * whole];
        let read = agent.read(CALLER, FILE, 0, &mut buffer).map_err(|error| error.errno);
        assert_eq!(read, expected, "{parts:?}");
    };
    check([Ok(whole), Ok(whole), Ok(whole)], Ok(3 * whole));
    check([Ok(whole), Ok(5), Ok(0)], Ok(whole + 5));
    check([Ok(whole), Ok(5), Ok(whole)], Ok(whole + 5));
    check([Ok(0), Ok(0), Ok(0)], Ok(0));
    check([Ok(whole), Err(EIO), Ok(whole)], Ok(whole));
    check([Err(EIO), Ok(whole), Ok(whole)], Err(EIO));
}

#[test]
fn what_a_read_takes_more_is_bounded_and_given_back() {
    let agent = agent(Ok((0, [0; 40], vec![7; CALL_SIZE_MAX])));
    let mut buffer = vec![0; 3 * CALL_SIZE_MAX];
    let all = agent.more.take(usize::MAX);
    assert_eq!((all.count, agent.more.take(1).count), (MORE_CALLS_MAX, 0));
    let size = buffer.len();
    assert_eq!(agent.read(CALLER, FILE, 0, &mut buffer), Ok(size), "one by one");
    drop(all);
    assert_eq!(agent.read(CALLER, FILE, 0, &mut buffer), Ok(size));
    // More than are under way at once.
    let mut buffer = vec![0; (2 * PARTS_MAX + 1) * CALL_SIZE_MAX];
    let size = buffer.len();
    assert_eq!(agent.read(CALLER, FILE, 0, &mut buffer), Ok(size));
    assert_eq!(agent.more.take(usize::MAX).count, MORE_CALLS_MAX);
}

#[test]
fn only_a_lock_that_is_not_free_is_waited_for() {
    let lock = Lock { end: 9, kind: 1, ..Lock::default() };
    let interrupt = Interrupt::new();
    let check = |status: u16, wait: bool, outcome: Result<(), i32>, calls: usize| {
        let agent = agent(Ok((status, [0; 40], Vec::new())));
        let wait = wait.then_some(&interrupt);
        let found = agent.setlk(CALLER, FILE, lock, LockKind::Record, wait);
        assert_eq!(found.map_err(|error| error.errno), outcome);
        assert_eq!(sent(&agent).len(), calls);
    };
    let again = u16::try_from(EAGAIN).unwrap();
    check(0, true, Ok(()), 1);
    check(again, false, Err(EAGAIN), 1);
    check(again, true, Err(EAGAIN), 2);
}

#[test]
fn those_who_wait_for_locks_are_bounded() {
    let again = u16::try_from(EAGAIN).unwrap();
    let agent = agent(Ok((again, [0; 40], Vec::new())));
    let places: Vec<_> = (0..LOCK_WAITS_MAX).map(|_| agent.place_to_wait().unwrap()).collect();
    let lock = Lock { end: 9, kind: 1, ..Lock::default() };
    let wait = || {
        let interrupt = Interrupt::new();
        agent.setlk(CALLER, FILE, lock, LockKind::Record, Some(&interrupt)).unwrap_err().errno
    };
    assert_eq!(wait(), ENOLCK);
    drop(places);
    assert_eq!(wait(), EAGAIN, "the server's word");
}

#[test]
fn a_call_without_an_answer_is_an_error_of_the_program() {
    let error = |agent: &VosAgent<Echo>| agent.statfs(CALLER, 1).unwrap_err().errno;
    assert_eq!(error(&agent(Err(IpcError::NodeDown))), EHOSTDOWN);
    assert_eq!(error(&agent(Ok((2, [0; 40], Vec::new())))), ENOENT);
    assert_eq!(error(&agent(Ok((0, [0; 40], vec![0; 3])))), EPROTO);
}

proptest! {
    #[test]
    fn no_answer_makes_the_agent_panic_or_run_for_ever(
        status in prop_oneof![3 => Just(0u16), 1 => any::<u16>()],
        args in any::<[u8; 32]>(),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut wide = [0; 40];
        wide[..32].copy_from_slice(&args);
        let agent = agent(Ok((status, wide, payload)));
        let entry = Entry { parent: 1, name: b"n" };
        let new = NewMode { mode: 0, umask: 0 };
        let mut buffer = [0; 64];
        agent.lookup(CALLER, entry).ok();
        agent.readlink(CALLER, 1).ok();
        agent.create(CALLER, entry, new, 0).ok();
        agent.open(CALLER, 1, 0).ok();
        agent.read(CALLER, FILE, 0, &mut buffer).ok();
        prop_assert!(agent.write(CALLER, FILE, Place::End, &[0; 9]).unwrap_or(0) <= 9);
        let mut entries = 0;
        let mut visit = |_: DirEntry, _: &[u8]| {
            entries += 1;
            if entries < 1000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        agent.readdir(CALLER, FILE, 0, 4096, &mut visit).ok();
        agent.statfs(CALLER, 1).ok();
        agent.getlk(CALLER, FILE, Lock::default()).ok();
        agent.seek(CALLER, FILE, 0, 3).ok();
        prop_assert!(agent.copy_range(CALLER, (FILE, 0), (FILE, 9), 9).unwrap_or(0) <= 9);
        prop_assert!(agent.getxattr(CALLER, 1, b"user.x", &mut buffer).unwrap_or(0) <= 64);
        agent.listxattr(CALLER, 1, &mut []).ok();
    }
}
