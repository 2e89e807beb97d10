//! Programs in one process share files, semaphores and queues; they wait for each other and for time.

use calls::ipc::{FOREVER, MqOpen, MqReceive, MqSend, SemOpen, SemPost, SemWait};
use calls::vfs::{Create, ROOT_INO, Read, Write};
use calls::{Row, call};
use m3ipc::errno::numbers::{EAGAIN, ETIMEDOUT};
use m3ipc::{Cred, Endpoint, Errno, Wait};
use muk2::world::{Clock, Stuck};
use muk2::{Program, World};
use std::cell::RefCell;
use std::rc::Rc;

const O_CREAT: u32 = 0o100;
const O_RDWR: u32 = 2;

fn ask<R: Row>(
    program: &Program<'_>,
    to: Endpoint,
    row: &R,
    send: &[u8],
) -> Result<(R::Reply, Vec<u8>), Errno> {
    let mut receive = vec![0; 64 * 1024];
    let (reply, len) = call(program, to, row, &[send], &mut receive, Wait::FOREVER)?;
    receive.truncate(len);
    Ok((reply, receive))
}

fn semaphore(program: &Program<'_>, name: &[u8], value: u32) -> u64 {
    let row = SemOpen { flags: O_CREAT, mode: 0o600, value };
    ask(program, Endpoint::IPC, &row, name).expect("opened").0.id
}

/// A program of a test: what it does, and where it notes what it saw.
type Body = Box<dyn FnOnce(&Program<'_>, &dyn Fn(String))>;

/// Runs programs as root in a fresh world with simulated time; returns what they noted, in order.
fn run(programs: Vec<Body>) -> (Vec<String>, Result<(), Stuck>) {
    let notes = Rc::new(RefCell::new(Vec::new()));
    let mut world = World::new(Clock::Simulated).expect("memory");
    for program in programs {
        let notes = Rc::clone(&notes);
        let body = move |own: &Program<'_>| program(own, &|note| notes.borrow_mut().push(note));
        world.spawn(Cred::new(1, 0, 0), body).expect("memory");
    }
    let ended = world.run();
    (notes.take(), ended)
}

#[test]
fn what_one_program_writes_the_other_reads_after_the_semaphore() {
    let (notes, ended) = run(vec![
        Box::new(|own, note| {
            let gate = semaphore(own, b"/gate", 0);
            ask(own, Endpoint::IPC, &SemWait { id: gate, wait_ns: FOREVER }, b"").expect("granted");
            let open = Create {
                parent: ROOT_INO,
                forgotten: 0,
                mode: 0o600,
                umask: 0,
                flags: O_RDWR | O_CREAT,
            };
            let (opened, attr) = ask(own, Endpoint::VFS, &open, b"letter").expect("there");
            let ino = u64::from_le_bytes(attr[..8].try_into().expect("an attr"));
            let read = Read { fh: opened.fh, ino, offset: 0, size: 100 };
            let text = ask(own, Endpoint::VFS, &read, b"").expect("read").1;
            note(String::from_utf8(text).expect("text"));
        }),
        Box::new(|own, note| {
            let gate = semaphore(own, b"/gate", 0);
            let open = Create {
                parent: ROOT_INO,
                forgotten: 0,
                mode: 0o600,
                umask: 0,
                flags: O_RDWR | O_CREAT,
            };
            let (opened, attr) = ask(own, Endpoint::VFS, &open, b"letter").expect("created");
            let ino = u64::from_le_bytes(attr[..8].try_into().expect("an attr"));
            ask(own, Endpoint::VFS, &Write { fh: opened.fh, ino, offset: 0 }, b"dear reader")
                .expect("written");
            note("written".into());
            ask(own, Endpoint::IPC, &SemPost { id: gate }, b"").expect("posted");
        }),
    ]);
    assert_eq!((notes, ended), (vec!["written".into(), "dear reader".into()], Ok(())));
}

#[test]
fn a_thousand_messages_arrive_in_order_though_the_queue_holds_ten() {
    const COUNT: u32 = 1_000;
    let open = |own: &Program<'_>| {
        let row = MqOpen { flags: O_CREAT | O_RDWR, mode: 0o600, attr_len: 0 };
        ask(own, Endpoint::IPC, &row, b"/q").expect("opened").0.id
    };
    let (notes, ended) = run(vec![
        Box::new(move |own, note| {
            let id = open(own);
            for number in 0..COUNT {
                let row = MqReceive { id, size: 8192, wait_ns: FOREVER };
                let (got, text) = ask(own, Endpoint::IPC, &row, b"").expect("received");
                assert_eq!((got.len, text), (4, number.to_le_bytes().to_vec()));
            }
            note("all".into());
        }),
        Box::new(move |own, _| {
            let id = open(own);
            for number in 0..COUNT {
                let row = MqSend { id, priority: 0, wait_ns: FOREVER };
                ask(own, Endpoint::IPC, &row, &number.to_le_bytes()).expect("sent");
            }
        }),
    ]);
    assert_eq!((notes, ended), (vec!["all".into()], Ok(())));
}

#[test]
fn a_deadline_comes_when_nobody_can_run() {
    let (notes, ended) = run(vec![Box::new(|own, note| {
        let id = semaphore(own, b"/never", 0);
        for wait_ns in [0, 5_000_000_000] {
            let ended = ask(own, Endpoint::IPC, &SemWait { id, wait_ns }, b"").map(|_| ());
            note(format!("{:?}", ended.map_err(|error| error.errno)));
        }
    })]);
    let want = [EAGAIN, ETIMEDOUT].map(|errno| format!("Err({errno})"));
    assert_eq!((notes, ended), (want.to_vec(), Ok(())));
}

#[test]
fn a_world_in_which_all_wait_for_ever_says_so() {
    let (_, ended) = run(vec![Box::new(|own, _| {
        let id = semaphore(own, b"/never", 0);
        ask(own, Endpoint::IPC, &SemWait { id, wait_ns: FOREVER }, b"").expect("never");
    })]);
    assert_eq!(ended, Err(Stuck));
}
