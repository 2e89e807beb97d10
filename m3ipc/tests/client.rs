//! A client against a small daemon in the same process: many threads, a receiver that dies, signals, the size limits.
#![expect(unsafe_code, reason = "installing a signal handler and sending a thread a signal")]

use m3ipc::bell::{Bell, Ringer};
use m3ipc::channel::{self, SharedChannel};
use m3ipc::client::{Client, Identity, Opener, Process};
use m3ipc::connection::Opened;
use m3ipc::door::{Ask, Tell, ask, flag, kind, tell};
use m3ipc::limits::{LANES, PAYLOAD_AREA, PAYLOAD_MAX};
use m3ipc::{DcId, Endpoint, Interrupt, IpcError, Message, NodeId, Note, Part, Sendrec, Tag, Wait};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zerocopy::IntoBytes;

const ECHO: u16 = 0x999;
const KEEP: u16 = 0x998;
const FREE: u16 = 0x997;

/// A daemon with one receiver: answers ECHO with the payload, keeps KEEP until FREE comes or it is cancelled.
struct Daemon {
    bell: Bell,
    bell_fd: OwnedFd,
    channels: Mutex<Vec<Arc<SharedChannel>>>,
    stop: AtomicBool,
    served: AtomicU64,
    kept: AtomicU64,
}

impl Daemon {
    fn start(path: &std::path::Path) -> Arc<Daemon> {
        let (bell, bell_fd) = Bell::create().expect("memfd");
        let daemon = Arc::new(Daemon {
            bell,
            bell_fd,
            channels: Mutex::default(),
            stop: AtomicBool::new(false),
            served: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        });
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socket");
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).expect("path")).expect("bind");
        rustix::net::listen(&socket, 64).expect("listen");
        let door = Arc::clone(&daemon);
        std::thread::spawn(move || {
            while let Ok(connection) = rustix::net::accept(&socket) {
                let door = Arc::clone(&door);
                std::thread::spawn(move || door.attend(&connection));
            }
        });
        let receiver = Arc::clone(&daemon);
        std::thread::spawn(move || receiver.receive());
        daemon
    }

    fn attend(&self, connection: &OwnedFd) {
        let mut packet = [0; size_of::<Ask>()];
        while let Ok((len, _)) = rustix::net::recv(connection, &mut packet[..], RecvFlags::empty())
        {
            let Some(request) = Ask::decode(&packet[..len]) else { return };
            if request.op == ask::HELLO {
                say(
                    connection,
                    &Tell::welcome(Endpoint::new(NodeId(1), 7, 1), NodeId(1), DcId(1)),
                    &[],
                );
            } else {
                let fd = channel::create().expect("memfd");
                self.channels
                    .lock()
                    .expect("lock")
                    .push(Arc::new(SharedChannel::map(fd.as_fd()).expect("map")));
                let told = Tell { flags: flag::TRUSTED, ..Tell::new(tell::CHANNEL, request.to) };
                say(connection, &told, &[fd.as_fd(), self.bell_fd.as_fd()]);
            }
        }
    }

    fn receive(&self) {
        let mut kept: Vec<(Arc<SharedChannel>, usize, Message)> = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let ticket = self.bell.prepare();
            let channels = self.channels.lock().expect("lock").clone();
            if !channels.iter().any(|channel| channel.has_news()) {
                self.bell.sleep(ticket, None);
                continue;
            }
            self.bell.awake();
            for channel in &channels {
                let news = channel.take_news();
                for lane in (0..LANES).filter(|lane| news.pending & 1 << lane != 0) {
                    let Some(message) = channel.request(lane) else { continue };
                    // It may be said twice that there is one.
                    if kept.iter().any(|(on, at, it)| {
                        Arc::ptr_eq(on, channel) && *at == lane && it.tag == message.tag
                    }) {
                        continue;
                    }
                    let mut payload = vec![0; message.payload_len as usize];
                    channel.read_request(lane, &mut payload).expect("fits");
                    self.served.fetch_add(1, Ordering::SeqCst);
                    match message.call {
                        KEEP => kept.push((Arc::clone(channel), lane, message)),
                        _ => {
                            channel.answer(lane, &message, &payload, false);
                        }
                    }
                    if message.call == FREE {
                        for (on, lane, message) in kept.drain(..) {
                            on.answer(lane, &message, &[], false);
                        }
                    }
                }
                kept.retain(|(on, lane, message)| {
                    let asked =
                        news.cancelled & 1 << lane != 0 && on.cancelled(*lane) == message.tag;
                    let give_up = Arc::ptr_eq(on, channel) && asked;
                    if give_up {
                        let ended = Message::undelivered(message.call, IpcError::Interrupted);
                        on.answer(*lane, &Message { tag: message.tag, ..ended }, &[], false);
                    }
                    !give_up
                });
                self.kept.store(kept.len() as u64, Ordering::SeqCst);
            }
        }
    }

    /// The receiver "dies": every channel so far is closed, and it forgets them.
    fn die(&self) {
        for channel in self.channels.lock().expect("lock").drain(..) {
            channel.close(IpcError::DestinationDied);
        }
    }

    fn wait_for_kept(&self, count: u64) {
        while self.kept.load(Ordering::SeqCst) != count {
            std::thread::yield_now();
        }
    }
}

fn say(connection: &OwnedFd, told: &Tell, fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let bytes = [rustix::io::IoSlice::new(told.as_bytes())];
    // The client may be gone again.
    rustix::net::sendmsg(connection, &bytes, &mut control, SendFlags::NOSIGNAL).ok();
}

fn world() -> (tempfile::TempDir, Arc<Daemon>, Arc<Process>) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("dc.sock");
    let daemon = Daemon::start(&path);
    let client = Process::new(Identity::new(kind::PROCESS, 0, path.as_os_str().as_encoded_bytes()));
    (dir, daemon, Arc::new(client))
}

fn echo(client: &Process, payload: &[u8], room: usize) -> Result<Vec<u8>, IpcError> {
    let mut message = Message::request(ECHO);
    let mut receive = vec![0; room];
    let len =
        client.sendrec(Endpoint::IPC, &mut message, &[payload], &mut receive, Wait::FOREVER)?;
    receive.truncate(len);
    Ok(receive)
}

#[test]
fn every_thread_gets_its_own_answers_while_the_receiver_dies_again_and_again() {
    let (_dir, daemon, client) = world();
    let threads: Vec<_> = (0..6u32)
        .map(|thread| {
            let client = Arc::clone(&client);
            std::thread::spawn(move || {
                for round in 0..3_000u32 {
                    let payload = [thread, round].map(u32::to_le_bytes).concat();
                    assert_eq!(
                        echo(&client, &payload, 64),
                        Ok(payload),
                        "thread {thread} round {round}"
                    );
                }
            })
        })
        .collect();
    // Some calls each time, or hardly anything but dying would happen.
    let mut next = 0;
    while threads.iter().any(|thread| !thread.is_finished()) {
        if daemon.served.load(Ordering::SeqCst) >= next {
            next = daemon.served.load(Ordering::SeqCst) + 20;
            daemon.die();
        }
        std::thread::yield_now();
    }
    for thread in threads {
        thread.join().expect("all answers right");
    }
    assert!(daemon.served.load(Ordering::SeqCst) >= 18_000);
}

#[test]
fn more_threads_can_wait_than_one_channel_has_lanes() {
    let (_dir, daemon, client) = world();
    let waiting: Vec<_> = (0..LANES + 20)
        .map(|_| {
            let client = Arc::clone(&client);
            std::thread::spawn(move || {
                client.sendrec(
                    Endpoint::IPC,
                    &mut Message::request(KEEP),
                    &[],
                    &mut [],
                    Wait::FOREVER,
                )
            })
        })
        .collect();
    daemon.wait_for_kept(LANES as u64 + 20);
    client
        .sendrec(Endpoint::IPC, &mut Message::request(FREE), &[], &mut [], Wait::FOREVER)
        .expect("freed");
    for thread in waiting {
        assert_eq!(thread.join().expect("no panic"), Ok(0));
    }
}

extern "C" fn nothing(_: libc::c_int) {}

#[test]
fn a_signal_gives_a_waiting_call_up_unless_it_is_to_be_restarted() {
    let (_dir, daemon, client) = world();
    let handler: extern "C" fn(libc::c_int) = nothing;
    for (restarting, wait, interrupted) in [
        (false, Wait::RESTART, true),
        (true, Wait::RESTART, false),
        (true, Wait::INTERRUPT, true),
        (false, Wait::FOREVER, false),
    ] {
        // SAFETY: an all-zero sigaction is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = if restarting { libc::SA_RESTART } else { 0 };
        // SAFETY: the handler does nothing.
        let installed =
            unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
        assert_eq!(installed, 0);
        let caller = Arc::clone(&client);
        let waiting = std::thread::spawn(move || {
            caller.sendrec(Endpoint::IPC, &mut Message::request(KEEP), &[], &mut [], wait)
        });
        daemon.wait_for_kept(1);
        let thread = std::os::unix::thread::JoinHandleExt::as_pthread_t(&waiting);
        if interrupted {
            while !waiting.is_finished() {
                // SAFETY: the thread has not been joined, so its id is valid.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                std::thread::yield_now();
            }
            assert_eq!(waiting.join().expect("no panic"), Err(IpcError::Interrupted));
        } else {
            for _ in 0..50 {
                // SAFETY: as above.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                std::thread::yield_now();
            }
            client
                .sendrec(Endpoint::IPC, &mut Message::request(FREE), &[], &mut [], Wait::FOREVER)
                .expect("freed");
            assert_eq!(waiting.join().expect("no panic"), Ok(0));
        }
        daemon.wait_for_kept(0);
    }
}

#[test]
fn an_interrupt_gives_up_its_call_and_no_other() {
    let (_dir, daemon, client) = world();
    let keep = |client: &Process, interrupt: &Interrupt| {
        let mut message = Message::request(KEEP);
        client.sendrec_until(Endpoint::IPC, &mut message, &[], &mut [], interrupt)
    };
    let others: Vec<_> = (0..4)
        .map(|_| {
            let caller = Arc::clone(&client);
            std::thread::spawn(move || keep(&caller, &Interrupt::new()))
        })
        .collect();
    daemon.wait_for_kept(4);
    for _ in 0..100 {
        let interrupt = Arc::new(Interrupt::new());
        let (caller, theirs) = (Arc::clone(&client), Arc::clone(&interrupt));
        let waiting = std::thread::spawn(move || keep(&caller, &theirs));
        // At any moment: before it is made, under way, kept.
        while !waiting.is_finished() {
            client.interrupt(&interrupt);
            std::thread::yield_now();
        }
        assert_eq!(waiting.join().expect("no panic"), Err(IpcError::WokenUp));
        // Its lane is another call's now.
        client.interrupt(&interrupt);
        assert_eq!(echo(&client, b"x", 1), Ok(b"x".to_vec()));
        assert_eq!(keep(&client, &interrupt), Err(IpcError::WokenUp), "it stays interrupted");
    }
    daemon.wait_for_kept(4);
    client
        .sendrec(Endpoint::IPC, &mut Message::request(FREE), &[], &mut [], Wait::FOREVER)
        .expect("freed");
    for other in others {
        assert_eq!(other.join().expect("no panic"), Ok(0));
    }
}

#[test]
fn several_calls_are_under_way_at_once_and_each_has_its_answer() {
    let (_dir, daemon, client) = world();
    let texts: Vec<Vec<u8>> = (0..20).map(|number| vec![number; 100]).collect();
    let sends: Vec<[&[u8]; 1]> = texts.iter().map(|text| [&text[..]]).collect();
    let mut rooms = vec![[0; 100]; 20];
    let mut parts: Vec<Part<'_>> = sends
        .iter()
        .zip(&mut rooms)
        .map(|(send, room)| {
            let message = Message::request(ECHO);
            Part { message, send, receive: room, outcome: Ok(0) }
        })
        .collect();
    client.sendrec_all(Endpoint::IPC, &mut parts, Wait::FOREVER);
    assert!(parts.iter().all(|part| part.outcome == Ok(100)));
    drop(parts);
    assert!(rooms.iter().zip(&texts).all(|(room, text)| room[..] == text[..]));
    // Eight that are kept, from one thread: none is made after another.
    let caller = Arc::clone(&client);
    let waiting = std::thread::spawn(move || {
        let part = || {
            let message = Message::request(KEEP);
            Part { message, send: &[], receive: &mut [], outcome: Err(IpcError::Protocol) }
        };
        let mut parts: Vec<Part<'_>> = (0..8).map(|_| part()).collect();
        caller.sendrec_all(Endpoint::IPC, &mut parts, Wait::FOREVER);
        parts.iter().all(|part| part.outcome == Ok(0))
    });
    daemon.wait_for_kept(8);
    client
        .sendrec(Endpoint::IPC, &mut Message::request(FREE), &[], &mut [], Wait::FOREVER)
        .expect("freed");
    assert!(waiting.join().expect("no panic"));
}

#[test]
fn a_call_with_a_timeout_ends_by_itself() {
    let (_dir, daemon, client) = world();
    let wait = Wait { timeout_ms: Some(20), signals: m3ipc::port::Signals::Restart };
    let start = std::time::Instant::now();
    let ended = client.sendrec(Endpoint::IPC, &mut Message::request(KEEP), &[], &mut [], wait);
    assert_eq!(ended, Err(IpcError::TimedOut));
    assert!(start.elapsed() >= Duration::from_millis(20));
    daemon.wait_for_kept(0);
    let none = Wait { timeout_ms: Some(0), ..wait };
    let ended = client.sendrec(Endpoint::IPC, &mut Message::request(KEEP), &[], &mut [], none);
    assert_eq!(ended, Err(IpcError::WouldBlock));
}

#[test]
fn payloads_up_to_the_limit_pass_and_larger_ones_are_refused() {
    let (_dir, _daemon, client) = world();
    let payload: Vec<u8> =
        (0..PAYLOAD_MAX).map(|at| u8::try_from(at % 251).expect("small")).collect();
    assert_eq!(echo(&client, &payload, PAYLOAD_MAX), Ok(payload.clone()));
    assert_eq!(echo(&client, &payload, 10), Err(IpcError::TooLarge));
    assert_eq!(echo(&client, &[0; PAYLOAD_AREA + 1], 10), Err(IpcError::TooLarge));
    assert_eq!(echo(&client, b"still works", 64), Ok(b"still works".to_vec()));
}

#[test]
fn without_a_daemon_the_process_is_not_bound() {
    let client = Process::new(Identity::new(kind::PROCESS, 0, b"/nonexistent/dc.sock"));
    assert_eq!(echo(&client, b"", 0), Err(IpcError::NotBound));
}

/// Opens channels, and keeps a descriptor of each for who comes later.
struct Keeping {
    identity: Identity,
    kept: Mutex<Vec<(usize, Opened)>>,
}

impl Opener for Keeping {
    fn open(&self, client: &Client, to: Endpoint, slot: usize) -> Result<Opened, IpcError> {
        let opened = self.identity.open(client, to, slot)?;
        let same = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        let (channel, bell) = (same(&opened.channel), same(&opened.bell));
        self.kept.lock().expect("lock").push((slot, Opened { channel, bell, flags: opened.flags }));
        Ok(opened)
    }
}

/// A process that has a channel, and dies when it has made calls.
struct Dead {
    opened: Opened,
    channel: SharedChannel,
}

impl Dead {
    fn new(identity: &Identity) -> Dead {
        let opened = identity.open(&Client::new(), Endpoint::IPC, 0).expect("opened");
        let channel = SharedChannel::map(opened.channel.as_fd()).expect("a channel");
        Dead { opened, channel }
    }

    /// Makes its first call on a lane.
    fn call(&self, lane: u16, call: u16) -> Tag {
        let tag = Tag::new(lane, 1);
        let message = Message { tag, ..Message::request(call) };
        self.channel.post(lane.into(), &message, &[b"sent"]).expect("posted");
        let ringer = Ringer::map(self.opened.bell.as_fd()).expect("a bell");
        while !ringer.ring() {}
        tag
    }

    /// What its successor has of it: its channel in slot 0.
    fn successor(&self, identity: Identity, tags: &[Tag]) -> Process<Keeping> {
        let next = Process::new(Keeping { identity, kept: Mutex::default() });
        next.client().number_from(1000);
        next.client().adopt(Endpoint::new(NodeId(1), 7, 1), NodeId(1));
        let inherit = || next.client().inherit(0, Endpoint::IPC, &self.opened, tags);
        assert_eq!((inherit(), inherit()), (Ok(()), Err(IpcError::Protocol)), "once");
        next
    }
}

#[test]
fn a_process_goes_on_with_the_calls_of_one_that_is_dead() {
    let (dir, daemon, _) = world();
    let path = dir.path().join("dc.sock");
    let identity = Identity::new(kind::PROCESS, 0, path.as_os_str().as_encoded_bytes());
    let dead = Dead::new(&identity);
    let (noted, _orphan) = (dead.call(0, KEEP), dead.call(1, KEEP));
    daemon.wait_for_kept(2);
    let answered = dead.call(2, ECHO);
    while !dead.channel.is_answered(2, answered) {
        std::thread::yield_now();
    }
    let next = dead.successor(identity, &[noted, answered]);
    // What nobody goes on with is given up.
    daemon.wait_for_kept(1);
    let unmade = Tag::new(noted.lane() + 9, 5);
    assert_eq!(resumed(&next, unmade, KEEP), None);
    let (message, payload) = resumed(&next, answered, ECHO).expect("made").expect("answered");
    assert_eq!((message.tag, &payload[..]), (answered, &b"sent"[..]));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| resumed(&next, noted, KEEP));
        // Others have lanes of their own, and numbers that none had before.
        let mut message = Message::request(FREE);
        let freed = next.sendrec(Endpoint::IPC, &mut message, &[b"x"], &mut [0; 8], Wait::FOREVER);
        assert_eq!((freed, message.tag.sequence()), (Ok(1), 1001));
        let (message, payload) = waits.join().expect("joined").expect("made").expect("answered");
        assert_eq!((message.tag, message.call, payload.len()), (noted, KEEP, 0));
    });
    // A lane of which it is known what has become is free; so is that of the orphan.
    assert_eq!(resumed(&next, noted, KEEP), None, "once");
    let mut lanes = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let mut message = Message::request(ECHO);
        next.sendrec(Endpoint::IPC, &mut message, &[], &mut [], Wait::FOREVER).expect("answered");
        lanes.insert(message.tag.lane());
    }
    assert_eq!(lanes.len(), 1);
}

/// What a note is told.
#[derive(Default)]
struct Heard {
    tags: Vec<Tag>,
    end: Option<Result<(Message, Vec<u8>), IpcError>>,
}

impl Note for Heard {
    fn asked(&mut self, tag: Tag) {
        self.tags.push(tag);
    }

    fn answered(&mut self, answer: &Message, payload: &[u8]) {
        self.end = Some(Ok((*answer, payload.to_vec())));
    }

    fn failed(&mut self, error: IpcError) {
        self.end = Some(Err(error));
    }
}

type Answer = Result<(Message, Vec<u8>), IpcError>;

/// Goes on with a call; `None`: it is not known to have been made.
fn resumed(client: &Process<Keeping>, tag: Tag, call: u16) -> Option<Answer> {
    let mut heard = Heard::default();
    let is_made = client.resume(tag, call, &mut [0; 64], &mut [0; 64], &mut heard);
    assert_eq!(is_made, heard.end.is_some());
    heard.end
}

#[test]
fn a_call_that_may_have_been_made_is_made_with_the_same_tag_until_it_is_left() {
    let (dir, daemon, _) = world();
    let path = dir.path().join("dc.sock");
    let identity = Identity::new(kind::PROCESS, 0, path.as_os_str().as_encoded_bytes());
    let dead = Dead::new(&identity);
    dead.call(0, KEEP);
    daemon.wait_for_kept(1);
    // Its channel was replaced by this one before it died.
    let (first, second) = (Tag::new(20, 5), Tag::new(21, 6));
    let next = dead.successor(identity, &[first, second]);
    assert_eq!((resumed(&next, first, ECHO), resumed(&next, second, ECHO)), (None, None));
    let repeat = |tag| {
        let (mut message, mut heard) = (Message::request(ECHO), Heard::default());
        let room = &mut [0; 8];
        message.tag = tag;
        let len = next.repeat(Endpoint::IPC, &mut message, &[b"x"], room, &mut heard);
        assert_eq!((len, heard.tags.len()), (Ok(1), 1));
        assert_eq!(heard.tags[0], message.tag);
        message.tag
    };
    assert_eq!(repeat(first), first);
    assert_ne!(repeat(first), first, "once: the lane is another call's by now");
    next.leave(second);
    assert_ne!(repeat(second), second);
}

#[test]
fn a_call_that_is_gone_on_with_is_made_again_when_its_receiver_dies() {
    let (dir, daemon, _) = world();
    let path = dir.path().join("dc.sock");
    let identity = Identity::new(kind::PROCESS, 0, path.as_os_str().as_encoded_bytes());
    let dead = Dead::new(&identity);
    let noted = dead.call(0, KEEP);
    daemon.wait_for_kept(1);
    let next = dead.successor(identity, &[noted]);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| resumed(&next, noted, ECHO));
        let served = daemon.served.load(Ordering::SeqCst);
        // The number of the call is of who goes on: that of an answered request is not known.
        daemon.die();
        let (message, payload) = waits.join().expect("joined").expect("made").expect("answered");
        assert_eq!((message.tag, &payload[..]), (noted, &b"sent"[..]));
        assert!(daemon.served.load(Ordering::SeqCst) > served);
    });
    assert_eq!(next.opener().kept.lock().expect("lock").len(), 1, "the new one is kept, too");
}

/// Makes a call as soon as it is told of an answer.
struct Asks<'a>(&'a Process, Vec<u16>);

impl Note for Asks<'_> {
    fn asked(&mut self, tag: Tag) {
        self.1.push(tag.lane());
    }

    fn answered(&mut self, _: &Message, _: &[u8]) {
        let mut message = Message::request(ECHO);
        self.0.sendrec(Endpoint::IPC, &mut message, &[], &mut [], Wait::FOREVER).expect("answered");
        self.1.push(message.tag.lane());
    }

    fn failed(&mut self, _: IpcError) {
        self.1.clear();
    }
}

#[test]
fn an_answer_is_noted_before_another_call_has_its_lane() {
    let (_dir, _daemon, client) = world();
    let mut asks = Asks(&client, Vec::new());
    let mut message = Message::request(ECHO);
    let len = client.sendrec_noted(Endpoint::IPC, &mut message, &[b"x"], &mut [0; 8], &mut asks);
    assert_eq!((len, asks.1.len()), (Ok(1), 2));
    assert_ne!(asks.1[0], asks.1[1]);
    let none = &mut [];
    let failed = client.sendrec_noted(Endpoint::IPC, &mut message, &[b"x"], none, &mut asks);
    assert_eq!((failed, asks.1.len()), (Err(IpcError::TooLarge), 0));
}
