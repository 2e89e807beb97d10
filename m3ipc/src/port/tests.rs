//! The rules of a receiver, on channels whose other ends the tests hold.

use super::*;
use crate::channel::{self, Poll, Withdrawn};
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use rustix::fd::AsFd;
use std::rc::Rc;
use std::vec::Vec;

const ALICE: Endpoint = Endpoint { slot: 10, generation: 1 };
const BOB: Endpoint = Endpoint { slot: 11, generation: 1 };

/// A port with a channel from Alice and one from Bob, and their ends.
struct World {
    port: Port<Bell>,
    list: Vec<Inbound<SharedChannel>>,
    ends: [SharedChannel; 2],
}

fn world() -> World {
    let (bell, _) = Bell::create().expect("memfd");
    let fds = [ALICE, BOB].map(|_| channel::create().expect("memfd"));
    let ends = [0, 1].map(|end| SharedChannel::map(fds[end].as_fd()).expect("map"));
    let list = [ALICE, BOB].into_iter().zip(&fds);
    let list =
        list.map(|(peer, fd)| Inbound::new(SharedChannel::map(fd.as_fd()).expect("map"), peer));
    World { port: Port::new(bell), list: list.collect(), ends }
}

impl World {
    fn receive(&mut self, from: Endpoint) -> Result<(Endpoint, Kind, u16), IpcError> {
        let mut payload = [0; 16];
        let got = self.port.receive(&mut self.list, from, &mut payload, Some(Duration::ZERO))?;
        Ok((got.message.source, got.kind, got.message.call))
    }

    /// The next request, of whomever.
    fn requests(&mut self) -> Option<u16> {
        let got = self.port.rcvrqst(&mut self.list, &mut [], Some(Duration::ZERO));
        got.ok().map(|got| got.message.call)
    }
}

fn request(call: u16, lane: u16) -> Message {
    Message { tag: Tag::new(lane, 1), ..Message::request(call) }
}

#[test]
fn notifications_come_first_and_senders_take_turns() {
    let mut world = world();
    for lane in 0..2 {
        world.ends[0].post(lane, &request(7, 0), &[]).expect("posted");
    }
    world.ends[1].post(0, &request(8, 0), &[]).expect("posted");
    world.ends[1].notify(99).expect("left");
    assert_eq!(world.ends[1].notify(98), Err(IpcError::Overrun));
    assert_eq!(world.receive(Endpoint::ANY), Ok((BOB, Kind::Notification(99), kernel::NOTIFY)));
    assert_eq!(world.receive(Endpoint::ANY), Ok((ALICE, Kind::Request, 7)));
    assert_eq!(world.receive(Endpoint::ANY), Ok((BOB, Kind::Request, 8)));
    assert_eq!(world.receive(Endpoint::ANY), Ok((ALICE, Kind::Request, 7)));
    assert_eq!(world.receive(Endpoint::ANY), Err(IpcError::WouldBlock));
}

#[test]
fn receive_from_one_leaves_the_others_waiting() {
    let mut world = world();
    world.ends[0].post(0, &request(7, 0), &[]).expect("posted");
    assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
    assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Request, 7)));
    assert_eq!(world.receive(Endpoint::new(crate::NodeId(9), 9, 9)), Err(IpcError::Stale));
}

#[test]
fn a_one_way_message_frees_its_sender_when_received_and_rcvrqst_passes_it_by() {
    let mut world = world();
    world.ends[0].post(0, &Message { status: ONE_WAY, ..request(7, 0) }, &[b"hi"]).expect("posted");
    let mut payload = [0; 16];
    let zero = Some(Duration::ZERO);
    assert_eq!(
        world.port.rcvrqst(&mut world.list, &mut payload, zero).err(),
        Some(IpcError::WouldBlock)
    );
    assert_eq!(world.ends[0].poll_answered(0), Poll::Open);
    let got = world.port.receive(&mut world.list, ALICE, &mut payload, zero).expect("there");
    assert_eq!((got.kind, &payload[..got.payload_len]), (Kind::OneWay, &b"hi"[..]));
    assert!(
        matches!(world.ends[0].poll_answered(0), Poll::Answered(message) if message.status == 0)
    );
    assert_eq!(
        world.port.reply(&mut world.list, &got, &request(7, 0), &[]),
        Err(IpcError::Protocol)
    );
}

#[test]
fn a_reply_goes_to_its_request_once_and_keeps_its_tag() {
    let mut world = world();
    world.ends[0].post(3, &request(7, 3), &[]).expect("posted");
    let mut payload = [0; 16];
    let got = world.port.rcvrqst(&mut world.list, &mut payload, None).expect("there");
    let answer = Message::request(7);
    assert_eq!(world.port.reply(&mut world.list, &got, &answer, b"yes"), Ok(()));
    assert_eq!(world.port.reply(&mut world.list, &got, &answer, b"no"), Err(IpcError::Protocol));
    let Poll::Answered(message) = world.ends[0].poll_answered(3) else { panic!("answered") };
    assert_eq!((message.tag, message.payload_len), (Tag::new(3, 1), 3));
}

#[test]
fn a_requester_that_posts_twice_or_lies_about_its_payload_harms_only_itself() {
    let mut world = world();
    world.ends[0].post(0, &request(7, 0), &[]).expect("posted");
    assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Request, 7)));
    world.ends[0].post(0, &request(9, 0), &[]).expect("posted again");
    assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
    world.ends[1].post(1, &request(7, 1), &[&[0; 17]]).expect("posted");
    assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
    assert!(matches!(world.ends[1].poll_answered(1), Poll::Answered(message)
        if message.outcome() == Err(IpcError::TooLarge)));
}

#[test]
fn a_call_given_up_is_told_once_and_only_while_it_is_open() {
    let mut world = world();
    world.ends[0].post(0, &request(7, 0), &[]).expect("posted");
    world.ends[0].cancel(0, Tag::new(0, 1));
    world.ends[0].cancel(5, Tag::new(5, 1));
    assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Request, 7)));
    world.ends[0].cancel(0, Tag::new(0, 77));
    assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
    world.ends[0].cancel(0, Tag::new(0, 1));
    assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Cancelled, 0)));
    assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
}

#[test]
fn a_source_that_died_ends_receive_and_a_wait_ends_in_time() {
    let mut world = world();
    let wait = Some(Duration::from_millis(5));
    let ended = world.port.receive(&mut world.list, ALICE, &mut [], wait);
    assert_eq!(ended.err(), Some(IpcError::TimedOut));
    world.ends[0].close(IpcError::SourceDied);
    assert_eq!(world.receive(ALICE), Err(IpcError::SourceDied));
    assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
}

#[test]
fn a_request_is_taken_back_until_it_is_received_and_abandoned_after_that() {
    let mut world = world();
    let end = |world: &World| world.ends[0].withdraw(0);
    world.ends[0].post(0, &request(7, 0), &[]).expect("posted");
    assert_eq!(end(&world), Withdrawn::Unseen);
    assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
    world.ends[0].post(0, &request(8, 0), &[]).expect("posted again");
    let mut payload = [0; 16];
    let got = world.port.rcvrqst(&mut world.list, &mut payload, None).expect("there");
    assert_eq!((end(&world), world.ends[0].is_idle(0)), (Withdrawn::Abandoned, false));
    let reply = world.port.reply(&mut world.list, &got, &request(8, 0), b"late");
    assert_eq!(reply, Err(IpcError::NotWaiting));
    assert_eq!((world.ends[0].poll_answered(0), world.ends[0].is_idle(0)), (Poll::Vacant, true));
    world.ends[0].post(0, &request(9, 0), &[]).expect("the lane is free");
    let got = world.port.rcvrqst(&mut world.list, &mut payload, None).expect("there");
    assert_eq!(world.port.reply(&mut world.list, &got, &request(9, 0), b"in time"), Ok(()));
    assert_eq!(end(&world), Withdrawn::TooLate);
}

#[test]
fn a_request_on_the_first_lane_is_found_without_a_bit_and_is_news_once() {
    let mut world = world();
    world.ends[0].post_first(&request(7, 0), &[]).expect("posted");
    assert!(
        !world.list[0].channel.has_news() && world.list[0].has_news(Endpoint::ANY, Want::Anything)
    );
    assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
    assert!(world.list[0].has_news(Endpoint::ANY, Want::Anything), "nobody has looked at it");
    assert_eq!(world.receive(Endpoint::ANY), Ok((ALICE, Kind::Request, 7)));
    // One that is not wanted waits, and is no reason to look again; the next one is.
    let one_way =
        |sequence| Message { status: ONE_WAY, tag: Tag::new(0, sequence), ..Message::request(8) };
    world.ends[1].post_first(&one_way(1), &[]).expect("posted");
    assert_eq!(world.requests(), None);
    assert!(!world.list[1].has_news(Endpoint::ANY, Want::Anything), "it waits");
    assert_eq!(world.ends[1].withdraw(0), Withdrawn::Unseen);
    world.ends[1].post_first(&one_way(2), &[]).expect("posted");
    assert!(world.list[1].has_news(Endpoint::ANY, Want::Anything), "another one");
    assert!(Port::<Bell>::is_sending(&mut world.list, BOB));
    assert_eq!(world.requests(), None);
    assert!(!world.list[1].has_news(Endpoint::ANY, Want::Anything), "it waits, too");
    assert_eq!(world.receive(BOB), Ok((BOB, Kind::OneWay, 8)));
    // A lane that is open, or of a closed channel, has no news whatever its requester writes there.
    world.ends[0].post_first(&request(9, 0), &[]).expect("posted again");
    assert!(!world.list[0].has_news(Endpoint::ANY, Want::Anything));
    world.ends[1].post_first(&one_way(3), &[]).expect("posted");
    world.ends[1].close(IpcError::Denied);
    world.ends[1].lane_as_posted(0);
    assert!(!world.list[1].has_news(Endpoint::ANY, Want::Anything));
}

/// The requester looks whether the receiver sleeps after it has posted, the receiver at the lane after it has said
/// that it sleeps: one of them sees the other.
#[test]
fn no_request_on_the_first_lane_is_missed_between_deciding_and_sleeping() {
    const ROUNDS: u64 = 20_000;
    let (bell, bell_fd) = Bell::create().expect("memfd");
    let ringer = crate::bell::Ringer::map(bell_fd.as_fd()).expect("a bell");
    let fd = channel::create().expect("memfd");
    let end = SharedChannel::map(fd.as_fd()).expect("map");
    let mut list = [Inbound::new(SharedChannel::map(fd.as_fd()).expect("map"), ALICE)];
    let mut port = Port::new(bell);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when the receiver fails.
        let _over = Over(&is_over);
        scope.spawn(|| {
            for sequence in 1..=ROUNDS {
                let tag = Tag::new(0, sequence);
                let message = Message { tag, ..Message::request(7) };
                end.post_first(&message, &[]).expect("posted");
                while !ringer.ring() && !is_over.load(Ordering::Relaxed) {}
                let mut looks = 0u32;
                while !end.is_answered(0, tag) && !is_over.load(Ordering::Relaxed) {
                    looks += 1;
                    if looks > 10_000 {
                        std::thread::yield_now();
                    }
                }
                // Until about when the receiver goes to sleep, a little sooner or later each time.
                for step in 0..sequence % 512 {
                    std::hint::black_box(step);
                }
            }
        });
        // A minute is "for ever": a ring that gets lost shows as the end of this wait.
        let limit = Some(Duration::from_secs(60));
        for _ in 0..ROUNDS {
            port.spin = Spin::sleepy();
            let start = std::time::Instant::now();
            let got = port.rcvrqst(&mut list, &mut [], limit).expect("a request");
            assert!(start.elapsed() < Duration::from_secs(60), "a ring got lost");
            port.reply(&mut list, &got, &Message::request(7), &[]).expect("it waits");
        }
    });
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts how often the receiver comes to sleep, which takes no time.
struct Sleeps(AtomicU32);

impl Rest for &Sleeps {
    fn prepare(&self) -> u32 {
        0
    }
    fn sleep(&self, _ticket: u32, _timeout: Option<Duration>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn awake(&self) {
        panic!("there is nothing to stay awake for");
    }
}

#[test]
fn who_waits_for_one_thing_sleeps_though_another_has_come() {
    let world = world();
    let (mut list, ends) = (world.list, world.ends);
    ends[0].post_first(&request(1, 0), &[]).expect("posted");
    ends[0].post(3, &request(2, 3), &[]).expect("posted");
    let sleeps = Sleeps(AtomicU32::new(0));
    let mut port = Port::new(&sleeps);
    let soon = Some(Duration::from_millis(5));
    port.spin = Spin::sleepy();
    // Alice's requests are not Bob's; Bob's notification is no request.
    let nothing = port.receive(&mut list, BOB, &mut [], soon);
    assert_eq!(nothing.err(), Some(IpcError::TimedOut));
    assert!(sleeps.0.swap(0, Ordering::Relaxed) > 0);
    ends[1].notify(5).expect("left");
    port.spin = Spin::sleepy();
    let nothing = port.rcvrqst(&mut list[1..], &mut [], soon);
    assert_eq!(nothing.err(), Some(IpcError::TimedOut));
    assert!(sleeps.0.load(Ordering::Relaxed) > 0);
}

/// A channel whose requester gives each request up as soon as it has been claimed.
struct Hasty(SharedChannel);

impl Channel for Hasty {
    fn closed(&self) -> Option<IpcError> {
        self.0.closed()
    }
    fn has_requests(&self) -> bool {
        self.0.has_requests()
    }
    fn take_news(&self) -> News {
        self.0.take_news()
    }
    fn take_notification(&self) -> Option<u64> {
        None
    }
    fn request(&self, lane: usize) -> Option<Message> {
        self.0.request(lane)
    }
    fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError> {
        self.0.read_request(lane, out)
    }
    fn claim(&self, lane: usize) -> bool {
        let is_claimed = self.0.claim(lane);
        assert_eq!(self.0.withdraw(lane), Withdrawn::Abandoned);
        is_claimed
    }
    fn unclaim(&self, lane: usize) -> bool {
        self.0.unclaim(lane)
    }
    fn cancelled(&self, lane: usize) -> Tag {
        self.0.cancelled(lane)
    }
    fn answer(&self, lane: usize, message: &Message, payload: &[u8], by_bell: bool) -> bool {
        self.0.answer(lane, message, payload, by_bell)
    }
}

/// A channel whose requester notifies and calls just after one has looked for notifications.
struct Late {
    channel: SharedChannel,
    end: SharedChannel,
    has_looked: Cell<bool>,
    is_behind: Rc<Cell<bool>>,
}

impl Channel for Late {
    fn closed(&self) -> Option<IpcError> {
        self.channel.closed()
    }
    fn has_requests(&self) -> bool {
        self.channel.has_requests()
    }
    fn take_news(&self) -> News {
        self.channel.take_news()
    }
    fn take_notification(&self) -> Option<u64> {
        let taken = self.channel.take_notification();
        if !self.has_looked.replace(true) {
            self.end.notify(5).expect("left");
            self.end.post(1, &request(7, 1), &[]).expect("posted");
        }
        taken
    }
    fn is_behind(&self) -> bool {
        self.is_behind.get()
    }
    fn request(&self, lane: usize) -> Option<Message> {
        self.channel.request(lane)
    }
    fn read_request(&self, lane: usize, out: &mut [u8]) -> Result<(), IpcError> {
        self.channel.read_request(lane, out)
    }
    fn read_request_at(&self, lane: usize, start: usize, out: &mut [u8]) -> Result<(), IpcError> {
        self.channel.read_request_at(lane, start, out)
    }
    fn cancelled(&self, lane: usize) -> Tag {
        self.channel.cancelled(lane)
    }
    fn answer(&self, lane: usize, message: &Message, payload: &[u8], by_bell: bool) -> bool {
        self.channel.answer(lane, message, payload, by_bell)
    }
}

fn late(is_behind: bool) -> (Late, Rc<Cell<bool>>) {
    let fd = channel::create().expect("memfd");
    let [channel, end] = [(); 2].map(|()| SharedChannel::map(fd.as_fd()).expect("map"));
    let is_behind = Rc::new(Cell::new(is_behind));
    let behind = Rc::clone(&is_behind);
    (Late { channel, end, has_looked: Cell::new(false), is_behind: behind }, is_behind)
}

#[test]
fn a_notification_comes_before_the_request_that_was_made_after_it() {
    let sleeps = Sleeps(AtomicU32::new(0));
    let mut port = Port::new(&sleeps);
    let mut list = [Inbound::new(late(false).0, ALICE)];
    let now = Some(Duration::ZERO);
    let first = port.receive(&mut list, Endpoint::ANY, &mut [], now).expect("a notification");
    assert_eq!((first.kind, first.message.source), (Kind::Notification(5), ALICE));
    let second = port.receive(&mut list, Endpoint::ANY, &mut [], now).expect("a request");
    assert_eq!((second.kind, second.message.call), (Kind::Request, 7));
}

#[test]
fn what_is_behind_a_notification_on_another_way_waits_for_it_and_wakes_nobody() {
    let sleeps = Sleeps(AtomicU32::new(0));
    let mut port = Port::new(&sleeps);
    let (channel, is_behind) = late(true);
    let flags = flag::TRUSTED | call::ALL << flag::CALLS_SHIFT;
    let mut cred = [0; CRED_SIZE_MAX];
    let len = Cred::ROOT.encode(&mut cred);
    channel.has_looked.set(true);
    let message = Message { source: BOB, ..request(7, 1) };
    channel.end.post(1, &message, &[&cred[..len]]).expect("posted");
    let mut list = [Inbound::new(channel, ALICE).with_flags(flags)];
    port.spin = Spin::sleepy();
    let soon = Some(Duration::from_millis(5));
    let nothing = port.receive(&mut list, Endpoint::ANY, &mut [], soon);
    assert_eq!(nothing.err(), Some(IpcError::TimedOut));
    assert!(sleeps.0.load(Ordering::Relaxed) > 0);
    is_behind.set(false);
    let got = port.receive(&mut list, Endpoint::ANY, &mut [], Some(Duration::ZERO));
    assert_eq!(got.expect("a request").message.call, 7);
}

#[test]
fn a_lane_that_is_given_up_between_the_claim_and_the_copy_is_free_again() {
    let (bell, _) = Bell::create().expect("memfd");
    let mut port = Port::new(bell);
    let fd = channel::create().expect("memfd");
    let end = SharedChannel::map(fd.as_fd()).expect("map");
    let mut list = [Inbound::new(Hasty(SharedChannel::map(fd.as_fd()).expect("map")), ALICE)];
    for _ in 0..2 {
        end.post(1, &request(1, 1), &[]).expect("posted");
        let nothing = port.receive(&mut list, Endpoint::ANY, &mut [], Some(Duration::ZERO));
        assert_eq!(nothing.err(), Some(IpcError::WouldBlock));
        assert!(end.is_idle(1));
    }
}

#[test]
fn a_trusted_channel_brings_messages_of_many_behind_their_credentials() {
    let mut world = world();
    let inbound = world.list.remove(0);
    let flags = flag::TRUSTED | call::ALL << flag::CALLS_SHIFT;
    world.list.push(inbound.with_flags(flags));
    let far = Endpoint::new(crate::NodeId(9), 9, 9);
    let mut cred = [0; CRED_SIZE_MAX];
    let len = Cred::new(1, 2, 3).with_groups([4, 5]).encode(&mut cred);
    let message = Message { source: far, ..request(7, 0) };
    world.ends[0].post(0, &message, &[&cred[..len], b"payload"]).expect("posted");
    assert!(Port::<Bell>::is_sending(&mut world.list, far));
    assert!(!Port::<Bell>::is_sending(&mut world.list, BOB));
    assert_eq!(world.receive(BOB), Err(IpcError::WouldBlock));
    let mut payload = [0; 16];
    let got = world.port.receive(&mut world.list, far, &mut payload, None).expect("there");
    assert_eq!((got.message.source, &payload[..got.payload_len]), (far, &b"payload"[..]));
    world.ends[0].post(1, &message, &[&cred[..len - 1]]).expect("posted");
    assert_eq!(world.receive(Endpoint::ANY), Err(IpcError::WouldBlock));
    assert!(matches!(world.ends[0].poll_answered(1), Poll::Answered(message)
        if message.outcome() == Err(IpcError::Protocol)));
}

#[test]
fn what_a_peer_may_not_send_and_what_a_closed_channel_has_is_not_received() {
    let mut world = world();
    let inbound = world.list.remove(0);
    world.list.insert(0, inbound.with_flags(call::SENDREC << flag::CALLS_SHIFT));
    let one_way = Message { status: ONE_WAY, ..request(7, 0) };
    world.ends[0].post(0, &one_way, &[]).expect("posted");
    world.ends[0].notify(5).expect("left");
    assert_eq!(world.receive(ALICE), Err(IpcError::WouldBlock));
    assert!(matches!(world.ends[0].poll_answered(0), Poll::Answered(message)
        if message.outcome() == Err(IpcError::Denied)));
    world.ends[0].post(1, &request(8, 1), &[]).expect("posted");
    assert_eq!(world.receive(ALICE), Ok((ALICE, Kind::Request, 8)));
    world.ends[1].post(0, &request(9, 0), &[]).expect("posted");
    world.ends[1].close(IpcError::Denied);
    assert_eq!(world.receive(Endpoint::ANY), Err(IpcError::WouldBlock));
    assert!(!world.list[1].channel.has_news(), "nothing to look for any more");
}
