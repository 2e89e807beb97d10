//! The replicated state, service by service.

use super::*;
use crate::command::{
    Done, Life, NodeId, Sign, TableOp, Whereabouts, decode_answer, encode_answer,
};
use crate::limits::{ANSWERS_MAX, COMMAND_MAX, KEY_MAX, QUEUE_MAX, TTL_MIN, VALUE_MAX};
use proptest::prelude::*;

const TTL: Millis = 1000;

/// A state and the clients that use it.
#[derive(Clone, Default)]
struct World {
    state: State,
    now: Millis,
    /// The node that speaks.
    from: u64,
    sequence: u64,
}

impl World {
    fn open(&mut self, nonce: u64) -> ClientId {
        match self.send(
            ClientId::default(),
            0,
            0,
            Op::Open { nonce, ttl: TTL, realm: Realm::System },
        ) {
            Ok(Done::Opened { client }) => client,
            other => panic!("{other:?}"),
        }
    }

    fn clients<const N: usize>(&mut self) -> [ClientId; N] {
        std::array::from_fn(|index| self.open(1000 + index as u64))
    }

    fn send(&mut self, client: ClientId, sequence: u64, acked: u64, op: Op) -> Answer {
        self.state.apply(Command { now: self.now, from: self.from, client, sequence, acked, op })
    }

    /// A sign of life that has not waited.
    fn keep_alive(&mut self, client: ClientId) -> Result<(), Refusal> {
        let sign = Sign { client, from: self.from, at: self.now };
        match self.send(ClientId::default(), 0, 0, Op::Alive { signs: vec![sign] }) {
            Ok(Done::Alive { ended }) if ended.is_empty() => Ok(()),
            Ok(Done::Alive { ended }) if ended == [0] => Err(Refusal::NoSession),
            other => panic!("{other:?}"),
        }
    }

    /// The client's next command; it has all answers before.
    fn ask(&mut self, client: ClientId, op: Op) -> Answer {
        self.sequence += 1;
        self.send(client, self.sequence, self.sequence - 1, op)
    }

    /// Lets time pass for all but those who give a sign of life.
    fn only_these_live(&mut self, living: &[ClientId]) {
        for _ in 0..2 {
            self.now += TTL / 2;
            for client in living {
                self.keep_alive(*client).unwrap();
            }
        }
        self.send(ClientId::default(), 0, 0, Op::Tick).unwrap();
    }

    fn fence(&self, name: &str, client: ClientId) -> Option<u64> {
        let holder = self.state.lock_holder(name)?;
        (holder.client == client).then_some(holder.token)
    }

    /// All that a member gets from the number `after`, in order.
    fn deliveries(&self, client: ClientId, group: &str, mut after: u64) -> Vec<Delivery> {
        let mut all = Vec::new();
        while let Some(delivery) = self.state.delivery(client, group, after).unwrap() {
            after = delivery.number();
            all.push(delivery);
        }
        all
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: None }
}

fn lock(name: &str) -> Op {
    Op::Lock { name: name.into(), wait: true }
}

fn cast(group: &str, text: &str) -> Op {
    Op::Cast { group: group.into(), bytes: text.into() }
}

fn join(group: &str) -> Op {
    Op::Join { group: group.into() }
}

fn limit(answer: Answer) -> Limit {
    match answer {
        Err(Refusal::Limit { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

/// A node that has heard, or guessed, the number of another's session.
#[test]
fn a_session_is_spoken_for_by_its_node_only() {
    let mut world = World { from: 1, ..World::default() };
    let [holder] = world.clients();
    let fence = world.ask(holder, Op::Lock { name: "l".into(), wait: false });
    assert!(matches!(fence, Ok(Done::Locked { .. })), "{fence:?}");
    let alive_until = world.state.deadline();
    let mut other = World { from: 2, now: 10, ..world.clone() };
    assert_eq!(other.keep_alive(holder), Err(Refusal::NoSession));
    for op in [
        Op::Close,
        Op::Unlock { name: "l".into() },
        put("k", "v"),
        Op::Grant { ttl: TTL },
        Op::Acknowledge { group: "g".into(), number: 1 },
        Op::Table(TableOp::NodeUp { node: 1, incarnation: 1 }),
    ] {
        assert_eq!(other.ask(holder, op.clone()), Err(Refusal::NoSession), "{op:?}");
    }
    assert_eq!((other.state.deadline(), other.fence("l", holder).is_some()), (alive_until, true));
    // The same random number through another node is another session, also after a snapshot.
    let mut other = World { state: State::restore(&world.state.snapshot()).unwrap(), ..other };
    let [second] = other.clients();
    assert_ne!(second, holder);
    assert_eq!(World { from: 1, ..other }.clients(), [holder]);
}

#[test]
fn a_repeated_command_is_executed_once_and_gets_the_same_answer() {
    let mut world = World::default();
    let client = world.open(1);
    let first = world.send(client, 1, 0, put("a", "1"));
    assert_eq!(first, Ok(Done::Changed { revision: 1, found: false }));
    assert_eq!(
        world.send(client, 2, 0, put("a", "2")),
        Ok(Done::Changed { revision: 2, found: true })
    );
    assert_eq!(world.send(client, 1, 0, put("a", "1")), first);
    assert_eq!(world.state.get(b"a").unwrap().value, b"2");
    // Who has said that it has the answer does not get it again, and nothing happens.
    world.send(client, 3, 2, put("b", "3")).unwrap();
    assert_eq!(world.send(client, 1, 0, put("a", "1")), Err(Refusal::Answered));
    assert_eq!(world.send(client, 0, 0, put("a", "1")), Err(Refusal::NoSequence));
    assert_eq!(world.state.get(b"a").unwrap().value, b"2");
}

#[test]
fn a_command_of_an_ended_session_is_refused_and_its_number_never_comes_back() {
    let mut world = World::default();
    let old = world.open(7);
    world.only_these_live(&[]);
    assert!(!world.state.is_alive(old));
    let new = world.open(7);
    assert!(new > old);
    assert_eq!(world.send(old, 1, 0, put("a", "1")), Err(Refusal::NoSession));
}

#[test]
fn opening_with_the_same_nonce_gives_the_same_session() {
    let mut world = World::default();
    assert_eq!(world.open(7), world.open(7));
    assert_ne!(world.open(7), world.open(8));
    assert_eq!(world.state.session_count(), 2);
}

#[test]
fn a_session_lives_exactly_its_time_after_the_last_sign_of_life() {
    let mut world = World::default();
    let client = world.open(1);
    world.now = TTL - 1;
    world.keep_alive(client).unwrap();
    assert_eq!(world.state.deadline(), Some(2 * TTL - 1));
    world.now = 2 * TTL - 2;
    world.send(ClientId::default(), 0, 0, Op::Tick).unwrap();
    assert!(world.state.is_alive(client));
    world.now = 2 * TTL - 1;
    assert_eq!(world.keep_alive(client), Err(Refusal::NoSession));
    assert_eq!(world.state.deadline(), None);
}

#[test]
fn time_never_goes_back() {
    let mut world = World { now: 500, ..World::default() };
    let client = world.open(1);
    world.now = 100;
    world.keep_alive(client).unwrap();
    assert_eq!((world.state.now(), world.state.deadline()), (500, Some(500 + TTL)));
}

#[test]
fn a_container_that_is_no_more_leaves_no_keys() {
    let mut world = World::default();
    let client = world.open(1);
    let own = put("own", "1");
    let of = |dc: u32, key: &str| Realm::Dc(dc).key(key.as_bytes()).unwrap();
    for key in [of(1, "a"), of(1, ""), of(2, "a")] {
        let lease = Some(client);
        world.ask(client, Op::Put { key, value: b"1".to_vec(), lease }).unwrap();
    }
    world.ask(client, own).unwrap();
    world.ask(client, Op::Table(TableOp::RemoveDc { dc: 1 })).unwrap();
    let has = |key: Vec<u8>| world.state.get(&key).is_some();
    assert!(!has(of(1, "a")) && !has(of(1, "")) && has(of(2, "a")) && has(b"own".to_vec()));
    let revisions = [Realm::Dc(1), Realm::Dc(2)].map(|realm| world.state.revision(realm));
    assert_eq!(revisions, [0, 1]);
    check(&world.state);
    // Of one that nobody has heard of, as well.
    world.ask(client, Op::Table(TableOp::RemoveDc { dc: 9 })).unwrap();
}

#[test]
fn compare_and_swap_obeys_the_revision() {
    let mut world = World::default();
    let client = world.open(1);
    let swap = |expected, value: Option<&str>| Op::Swap {
        key: b"k".to_vec(),
        expected,
        value: value.map(|value| value.into()),
        lease: None,
    };
    assert_eq!(world.ask(client, swap(5, Some("x"))), Err(Refusal::Revision { revision: 0 }));
    world.ask(client, swap(0, Some("x"))).unwrap();
    assert_eq!(world.ask(client, swap(0, Some("y"))), Err(Refusal::Revision { revision: 1 }));
    world.ask(client, put("other", "")).unwrap();
    world.ask(client, swap(1, Some("y"))).unwrap();
    let entry = world.state.get(b"k").unwrap().clone();
    assert_eq!((entry.created, entry.modified, entry.version), (1, 3, 2));
    world.ask(client, swap(3, None)).unwrap();
    assert_eq!(world.state.get(b"k"), None);
    assert_eq!(world.state.revision(Realm::System), 4);
    // Deleting what is not there changes nothing.
    let nothing = world.ask(client, Op::Delete { key: b"k".to_vec() });
    assert_eq!(nothing, Ok(Done::Changed { revision: 4, found: false }));
}

#[test]
fn a_range_is_in_order_cut_at_the_limit_and_without_its_end() {
    let mut world = World::default();
    let client = world.open(1);
    for key in ["b", "d", "a", "c"] {
        world.ask(client, put(key, key)).unwrap();
    }
    let keys = |start: &str, end: Option<&str>, limit| {
        let range = world.state.range(start.as_bytes(), end.map(str::as_bytes), limit);
        let keys: Vec<u8> = range.entries.iter().map(|(key, _)| key[0]).collect();
        (String::from_utf8(keys).unwrap(), range.more)
    };
    assert_eq!(keys("", None, 9), ("abcd".into(), false));
    assert_eq!(keys("b", Some("d"), 9), ("bc".into(), false));
    assert_eq!(keys("", None, 3), ("abc".into(), true));
    assert_eq!(keys("c", Some("b"), 9), (String::new(), false));
}

#[test]
fn a_watcher_gets_each_change_from_its_revision_and_learns_when_it_is_too_late() {
    let mut world = World::default();
    let client = world.open(1);
    for revision in 1..=5u64 {
        world.ask(client, put(if revision % 2 == 0 { "even" } else { "odd" }, "v")).unwrap();
    }
    let changes = world.state.changes(b"even", Some(b"evenz"), 3).unwrap();
    assert_eq!(changes.events.iter().map(|event| event.revision).collect::<Vec<_>>(), [4]);
    assert_eq!(changes.next, 6);
    assert_eq!(world.state.changes(b"", None, 6).unwrap().events, []);
    for _ in 0..crate::limits::HISTORY_MAX {
        world.ask(client, put("odd", "v")).unwrap();
    }
    assert_eq!(world.state.changes(b"", None, 5), Err(6));
    assert_eq!(world.state.changes(b"", None, 6).unwrap().events[0].revision, 6);
}

#[test]
fn a_key_ends_with_its_lease_unless_it_was_put_without() {
    let mut world = World::default();
    let [owner, other] = world.clients();
    let Ok(Done::Opened { client: lease }) = world.ask(owner, Op::Grant { ttl: TTL }) else {
        panic!("no lease")
    };
    for key in ["gone", "kept", "deleted"] {
        let op = Op::Put { key: key.into(), value: b"1".to_vec(), lease: Some(lease) };
        world.ask(owner, op).unwrap();
    }
    world.ask(owner, put("kept", "2")).unwrap();
    world.ask(owner, Op::Delete { key: b"deleted".to_vec() }).unwrap();
    let before = world.state.revision(Realm::System);
    // Whoever else knows its number, or a session's, can do nothing with it, and as itself it asks nothing.
    for (client, lease) in [(other, lease), (other, owner), (owner, other)] {
        for ends in [false, true] {
            assert_eq!(world.ask(client, Op::Renew { lease, ends }), Err(Refusal::NotHeld));
        }
        let put = Op::Put { key: b"y".to_vec(), value: vec![], lease: Some(lease) };
        assert_eq!(world.ask(client, put), Err(Refusal::NotHeld));
    }
    assert_eq!(world.keep_alive(lease), Err(Refusal::NoSession));
    for op in [Op::Close, put("y", ""), Op::Grant { ttl: TTL }] {
        assert_eq!(world.ask(lease, op), Err(Refusal::NoSession));
    }
    world.now += TTL / 2;
    world.keep_alive(owner).unwrap();
    assert_eq!(world.ask(owner, Op::Renew { lease, ends: false }), Ok(Done::Fine));
    world.now += TTL / 2;
    world.keep_alive(owner).unwrap();
    world.now += TTL / 4;
    world.send(ClientId::default(), 0, 0, Op::Tick).unwrap();
    assert!(world.state.is_alive(lease) && !world.state.is_alive(other));
    world.only_these_live(&[owner]);
    assert_eq!(world.state.get(b"gone"), None);
    assert_eq!(world.state.get(b"kept").unwrap().lease, None);
    // Its end is a change that a watcher sees, and the only one.
    let events = world.state.changes(b"", None, before + 1).unwrap().events;
    assert_eq!(events, [Event { revision: before + 1, key: b"gone".to_vec(), value: None }]);
    let dead = Op::Put { key: b"x".to_vec(), value: vec![], lease: Some(lease) };
    assert_eq!(world.ask(owner, dead), Err(Refusal::NotHeld));
    // It outlives the session that it was granted to.
    let Ok(Done::Opened { client: lease }) = world.ask(owner, Op::Grant { ttl: 4 * TTL }) else {
        panic!("no lease")
    };
    let key = Op::Put { key: b"z".to_vec(), value: vec![], lease: Some(lease) };
    world.ask(owner, key).unwrap();
    world.send(owner, 0, 0, Op::Close).unwrap();
    assert!(world.state.get(b"z").is_some());
    world.only_these_live(&[]);
    world.only_these_live(&[]);
    world.only_these_live(&[]);
    world.only_these_live(&[]);
    assert_eq!(world.state.get(b"z"), None);
}

#[test]
fn a_lock_goes_down_its_line_and_its_tokens_grow() {
    let mut world = World::default();
    let [a, b, c, d] = world.clients();
    let Ok(Done::Locked { fence: first }) = world.ask(a, lock("l")) else { panic!() };
    assert_eq!(world.ask(b, lock("l")), Ok(Done::Waiting));
    assert_eq!(world.ask(c, lock("l")), Ok(Done::Waiting));
    assert_eq!(world.ask(d, Op::Lock { name: "l".into(), wait: false }), Err(Refusal::Taken));
    assert_eq!(world.ask(a, lock("l")), Ok(Done::Locked { fence: first }));
    assert_eq!(world.ask(d, Op::Unlock { name: "l".into() }), Err(Refusal::NotHeld));
    // One that waits may go; the holder's death gives the lock to the next.
    world.ask(b, Op::Unlock { name: "l".into() }).unwrap();
    world.only_these_live(&[b, c, d]);
    let second = world.fence("l", c).unwrap();
    assert!(second > first);
    world.ask(c, Op::Unlock { name: "l".into() }).unwrap();
    assert_eq!(world.state.lock_holder("l"), None);
    let Ok(Done::Locked { fence: third }) = world.ask(d, lock("l")) else { panic!() };
    assert!(third > second, "a lock that nobody had for a while begins above");
}

#[test]
fn one_that_dies_in_line_never_gets_the_lock() {
    let mut world = World::default();
    let [a, b, c] = world.clients();
    for client in [a, b, c] {
        world.ask(client, lock("l")).unwrap();
    }
    world.only_these_live(&[a, c]);
    world.send(a, 0, 0, Op::Close).unwrap();
    assert!(world.fence("l", c).is_some());
}

#[test]
fn no_two_leaders_have_one_epoch_not_even_of_two_elections() {
    let mut world = World::default();
    let [a, b] = world.clients();
    let campaign =
        |name: &str, value: &str| Op::Campaign { name: name.into(), value: value.into() };
    let mut epochs = BTreeSet::new();
    for _ in 0..3 {
        for name in ["x", "y"] {
            world.ask(a, campaign(name, "a")).unwrap();
            assert_eq!(world.ask(b, campaign(name, "b")), Ok(Done::Waiting));
            assert!(epochs.insert(world.state.leader(name).unwrap().token));
            world.ask(a, Op::Resign { name: name.into() }).unwrap();
            let leader = world.state.leader(name).unwrap();
            assert_eq!((leader.client, leader.value.as_slice()), (b, &b"b"[..]));
            assert!(epochs.insert(leader.token));
            world.ask(b, Op::Resign { name: name.into() }).unwrap();
            assert_eq!(world.state.leader(name), None);
        }
    }
    assert_eq!(world.ask(a, Op::Resign { name: "x".into() }), Err(Refusal::NotHeld));
}

#[test]
fn a_barrier_lets_all_go_at_once_and_again() {
    let mut world = World::default();
    let [a, b] = world.clients();
    let arrive = |parties| Op::Arrive { name: "b".into(), parties };
    for _ in 0..3 {
        let Ok(Done::Arrived { generation }) = world.ask(a, arrive(2)) else { panic!() };
        assert_eq!(world.state.passage("b", a, generation), Some(Passage::Waiting));
        assert_eq!(world.ask(b, arrive(3)), Err(Refusal::Parties { parties: 2 }));
        assert_eq!(world.ask(b, arrive(2)), Ok(Done::Arrived { generation }));
        for client in [a, b] {
            // Too late to give up: the other has passed.
            let abandon = Op::Abandon { name: "b".into() };
            assert_eq!(world.ask(client, abandon), Err(Refusal::NotHeld));
            assert_eq!(world.state.passage("b", client, generation), Some(Passage::Passed));
        }
    }
    world.only_these_live(&[]);
    assert!(world.state.barriers.is_empty(), "nobody is left who could ask");
}

#[test]
fn a_death_breaks_the_barrier_for_those_who_wait_and_for_nobody_else() {
    let mut world = World::default();
    let [a, b, c] = world.clients();
    let arrive = || Op::Arrive { name: "b".into(), parties: 3 };
    let Ok(Done::Arrived { generation }) = world.ask(a, arrive()) else { panic!() };
    world.ask(b, arrive()).unwrap();
    world.only_these_live(&[a, c]);
    assert_eq!(world.state.passage("b", a, generation), Some(Passage::Broken));
    let Ok(Done::Arrived { generation: next }) = world.ask(c, arrive()) else { panic!() };
    assert!(next > generation);
    assert_eq!(world.state.passage("b", c, next), Some(Passage::Waiting));
    // One that gave up waiting breaks it too; one that was through does not.
    assert_eq!(world.ask(a, Op::Abandon { name: "b".into() }), Err(Refusal::NotHeld));
    assert_eq!(world.state.passage("b", c, next), Some(Passage::Waiting));
    world.ask(a, arrive()).unwrap();
    world.ask(a, Op::Abandon { name: "b".into() }).unwrap();
    assert_eq!(world.state.passage("b", c, next), Some(Passage::Broken));
}

#[test]
fn members_see_the_same_items_in_the_same_order() {
    let mut world = World::default();
    let [a, b] = world.clients();
    world.ask(a, join("g")).unwrap();
    world.ask(a, cast("g", "before")).unwrap();
    let Ok(Done::Joined { view }) = world.ask(b, join("g")) else { panic!() };
    world.ask(a, cast("g", "1")).unwrap();
    world.ask(b, cast("g", "2")).unwrap();
    // The joiner gets nothing until a member has given its state.
    assert_eq!(world.deliveries(b, "g", 0), []);
    let all = world.deliveries(a, "g", 0);
    let Delivery::Item { number, item: Item::View(joined) } = &all[2] else { panic!("{all:?}") };
    assert_eq!((*number, joined.donor(), joined.members.len()), (view, Some(a), 2));
    let state = Op::GiveState { group: "g".into(), view, bytes: b"state".to_vec() };
    world.ask(a, state).unwrap();
    let late = world.deliveries(b, "g", view - 1);
    assert_eq!(late[0], Delivery::State { number: view, bytes: b"state".to_vec() });
    assert_eq!(late[1..], all[3..]);
    assert_eq!(late.len(), 3);
    // The state is forgotten when it has arrived, items when everybody has them.
    let acknowledge = |number| Op::Acknowledge { group: "g".into(), number };
    assert_eq!(world.state.queued("g"), 5 + 1);
    world.send(b, 0, 0, acknowledge(view)).unwrap();
    assert_eq!(world.state.queued("g"), 5);
    world.send(a, 0, 0, acknowledge(u64::MAX)).unwrap();
    assert_eq!(world.state.queued("g"), 2);
    assert_eq!(world.deliveries(a, "g", 0), []);
    assert_eq!(world.deliveries(b, "g", 0), late[1..]);
}

#[test]
fn who_is_not_in_the_view_gets_nothing() {
    let mut world = World::default();
    let [a, b, c] = world.clients();
    world.ask(a, join("g")).unwrap();
    assert_eq!(world.state.delivery(b, "g", 0), Err(Refusal::NotMember));
    assert_eq!(world.ask(b, cast("g", "x")), Err(Refusal::NotMember));
    world.ask(c, join("g")).unwrap();
    world.ask(c, Op::Leave { group: "g".into() }).unwrap();
    world.ask(a, cast("g", "after")).unwrap();
    assert_eq!(world.state.delivery(c, "g", 0), Err(Refusal::NotMember));
    // It comes back as another: what was sent in between is not its business.
    let Ok(Done::Joined { view }) = world.ask(c, join("g")) else { panic!() };
    world.ask(a, Op::GiveState { group: "g".into(), view, bytes: vec![] }).unwrap();
    let got = world.deliveries(c, "g", view - 1);
    assert_eq!(got, [Delivery::State { number: view, bytes: vec![] }]);
}

#[test]
fn a_crash_is_a_view_and_the_next_member_gives_the_state() {
    let mut world = World::default();
    let [a, b, c] = world.clients();
    let Ok(Done::Joined { view: first }) = world.ask(a, join("g")) else { panic!() };
    let Ok(Done::Joined { view: second }) = world.ask(b, join("g")) else { panic!() };
    assert_eq!(first, 1);
    world.ask(a, Op::GiveState { group: "g".into(), view: second, bytes: vec![1] }).unwrap();
    world.ask(c, join("g")).unwrap();
    world.ask(a, cast("g", "x")).unwrap();
    world.only_these_live(&[b, c]);
    let last = world.deliveries(b, "g", 0).pop().unwrap();
    let Delivery::Item { number, item: Item::View(view) } = last else { panic!("{last:?}") };
    assert_eq!((view.donor(), view.fresh), (Some(b), false));
    world.ask(b, Op::GiveState { group: "g".into(), view: number, bytes: vec![2] }).unwrap();
    let state = Delivery::State { number, bytes: vec![2] };
    assert_eq!(world.deliveries(c, "g", 0), [state]);
}

#[test]
fn when_all_who_had_the_state_are_gone_the_group_begins_afresh_and_says_so() {
    let mut world = World::default();
    let [a, b, c] = world.clients();
    for client in [a, b, c] {
        world.ask(client, join("g")).unwrap();
    }
    world.only_these_live(&[b, c]);
    let got = world.deliveries(b, "g", 0);
    let [Delivery::Item { number, item: Item::View(view) }] = got.as_slice() else {
        panic!("{got:?}")
    };
    assert_eq!((view.fresh, view.donor(), *number), (true, Some(b), 4));
    world.ask(b, Op::GiveState { group: "g".into(), view: *number, bytes: vec![] }).unwrap();
    assert_eq!(world.deliveries(c, "g", 0)[0].number(), *number);
}

#[test]
fn a_member_that_does_not_read_stops_the_senders_not_the_memory_bounded() {
    let mut world = World::default();
    let [a, b] = world.clients();
    world.ask(a, join("g")).unwrap();
    world.ask(b, join("g")).unwrap();
    let refusal = loop {
        if let Err(refusal) = world.ask(a, cast("g", "x")) {
            break refusal;
        }
    };
    assert_eq!(limit(Err(refusal)), Limit::Queue);
    assert_eq!(world.state.queued("g"), QUEUE_MAX);
    // When it dies, the others go on.
    world.only_these_live(&[a]);
    world.send(a, 0, 0, Op::Acknowledge { group: "g".into(), number: u64::MAX }).unwrap();
    world.ask(a, cast("g", "x")).unwrap();
    world.ask(a, Op::Leave { group: "g".into() }).unwrap();
    assert_eq!(world.state.groups, Groups::default());
}

#[test]
fn a_node_is_up_with_its_session_and_its_coming_and_going_changes_the_epoch() {
    let mut world = World::default();
    let [a, b] = world.clients();
    let node = |node: NodeId, name: &str| {
        Op::Table(TableOp::PutNode { node, name: name.into(), address: "10.0.0.1:1".into() })
    };
    let up = |incarnation| Op::Table(TableOp::NodeUp { node: 1, incarnation });
    assert_eq!(world.ask(a, up(5)), Err(Refusal::NotFound));
    world.ask(a, node(1, "one")).unwrap();
    assert_eq!(world.ask(a, node(2, "one")), Err(Refusal::Exists));
    world.ask(a, up(5)).unwrap();
    assert_eq!(world.ask(b, up(6)), Err(Refusal::Exists));
    let before = world.state.membership_epoch();
    world.only_these_live(&[b]);
    assert_eq!(world.state.node(1).unwrap().up, None);
    assert!(world.state.membership_epoch() > before);
    world.ask(b, up(6)).unwrap();
    assert_eq!(world.state.node(1).unwrap().up, Some((b, 6)));
}

#[test]
fn a_directory_entry_changes_only_for_those_who_know_it_and_while_its_node_is_up_only_for_that() {
    // Of node 1.
    const SLOT: u32 = (1 << 20) + 3;
    let mut world = World::default();
    let lives = [1, 2].map(|node| Life { node, incarnation: 7 });
    let clients = [1, 2].map(|nonce| world.open(nonce));
    let up = |world: &mut World, at: usize| {
        let Life { node, incarnation } = lives[at];
        let (name, address) = (format!("n{node}"), String::new());
        world.ask(clients[at], Op::Table(TableOp::PutNode { node, name, address })).unwrap();
        world.ask(clients[at], Op::Table(TableOp::NodeUp { node, incarnation })).unwrap();
    };
    let place = |world: &mut World, by: Life, to: Life, is_over: bool, expected: u64| {
        let to = Whereabouts { generation: 9, life: to, is_over };
        let op = Op::Table(TableOp::Place { dc: 1, slot: SLOT, by, to, expected });
        world.state.apply(Command {
            now: 0,
            from: 1,
            client: ClientId(0),
            sequence: 0,
            acked: 0,
            op,
        })
    };
    let [one, two] = lives;
    up(&mut world, 0);
    assert_eq!(place(&mut world, two, one, false, 0), Err(Refusal::NotFound), "it is node 1's");
    assert_eq!(place(&mut world, one, one, true, 0), Err(Refusal::NotFound), "nobody was there");
    let Ok(Done::Epoch { epoch }) = place(&mut world, one, one, false, 0) else { panic!() };
    assert_eq!(place(&mut world, one, one, false, 0), Err(Refusal::Epoch { epoch }));
    assert_eq!(place(&mut world, one, two, false, epoch), Err(Refusal::NotFound), "it is not up");
    up(&mut world, 1);
    assert_eq!(place(&mut world, two, two, false, epoch), Err(Refusal::Exists), "it is node 1's");
    let earlier = Life { incarnation: 6, ..one };
    assert_eq!(place(&mut world, earlier, two, false, epoch), Err(Refusal::Exists));
    let Ok(Done::Epoch { epoch: moved }) = place(&mut world, one, two, false, epoch) else {
        panic!()
    };
    assert!(moved > epoch && world.state.directory_epoch() == moved);
    assert_eq!(place(&mut world, one, one, true, moved), Err(Refusal::Exists), "not any more");
    // When its node is down, others may: here the first who asks.
    world.only_these_live(&clients[..1]);
    let Ok(Done::Epoch { epoch: ended }) = place(&mut world, one, one, true, moved) else {
        panic!()
    };
    assert_eq!(place(&mut world, two, two, false, moved), Err(Refusal::Epoch { epoch: ended }));
    let places = world.state.places_since(moved);
    assert!(matches!(places[..], [(1, SLOT, Place { epoch, .. })] if epoch == ended), "{places:?}");
    assert_eq!(world.state.places_since(ended), []);
    assert_eq!(place(&mut world, two, one, false, ended), Err(Refusal::NotFound));
    assert_eq!(world.state.up().collect::<Vec<_>>(), [(1, 7)]);
}

#[test]
fn sizes_and_numbers_are_bounded() {
    let mut world = World::default();
    let client = world.open(1);
    let long = |length| vec![0; length];
    let key = Op::Put { key: long(KEY_MAX + 1), value: vec![], lease: None };
    assert_eq!(limit(world.ask(client, key)), Limit::KeyBytes);
    let value = Op::Put { key: vec![], value: long(VALUE_MAX + 1), lease: None };
    assert_eq!(limit(world.ask(client, value)), Limit::ValueBytes);
    assert_eq!(limit(world.ask(client, lock(""))), Limit::NameBytes);
    assert_eq!(limit(world.ask(client, lock(&"n".repeat(NAME_MAX + 1)))), Limit::NameBytes);
    let short = Op::Open { nonce: 3, ttl: TTL_MIN - 1, realm: Realm::System };
    assert_eq!(limit(world.send(ClientId::default(), 0, 0, short)), Limit::Ttl);
    for number in 0..HOLDS_MAX {
        world.ask(client, lock(&number.to_string())).unwrap();
    }
    assert_eq!(limit(world.ask(client, lock("one more"))), Limit::Holds);
    let other = world.open(2);
    for sequence in 1..=ANSWERS_MAX as u64 {
        world.send(other, sequence, 0, put("k", "v")).unwrap();
    }
    let more = world.send(other, ANSWERS_MAX as u64 + 1, 0, put("k", "v"));
    assert_eq!(limit(more), Limit::Unacknowledged);
}

#[test]
fn the_store_is_bounded_and_deleting_makes_room_bounded() {
    let mut world = World::default();
    let client = world.open(1);
    let big = |key: usize| Op::Put {
        key: key.to_be_bytes().to_vec(),
        value: vec![0; VALUE_MAX],
        lease: None,
    };
    let full = (0..).find(|key| world.ask(client, big(*key)).is_err()).unwrap();
    assert_eq!(limit(world.ask(client, big(full))), Limit::StoreBytes);
    world.ask(client, big(0)).unwrap();
    world.ask(client, Op::Delete { key: 0usize.to_be_bytes().to_vec() }).unwrap();
    world.ask(client, big(full)).unwrap();
}

#[test]
fn a_snapshot_of_another_version_is_refused_with_both_versions() {
    let mut bytes = State::default().snapshot();
    bytes[0] = 9;
    let error = State::restore(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "snapshot version 9, this dvs reads 6");
}

#[test]
fn a_container_that_takes_all_it_can_leaves_room_for_others_and_gets_it_back() {
    use crate::limits::{
        DC_GROUPS_MAX, DC_KEYS_MAX, DC_KV_BYTES_MAX, DC_NAMES_MAX, DC_QUEUES_BYTES_MAX,
        DC_SESSIONS_MAX,
    };
    let mut world = World::default();
    let (greedy, other) = (Realm::Dc(1), Realm::Dc(2));
    let mut open = |realm, nonce| match world.send(
        ClientId::default(),
        0,
        0,
        Op::Open { nonce, ttl: TTL, realm },
    ) {
        Ok(Done::Opened { client }) => Ok(client),
        Err(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    };
    let clients: Vec<_> = (0..).map_while(|nonce| open(greedy, nonce).ok()).collect();
    assert_eq!(clients.len(), DC_SESSIONS_MAX);
    let refused = open(greedy, u64::MAX).unwrap_err();
    assert_eq!(refused.to_string(), "the number of sessions is limited to 1024 for each container");
    let (own, system) = (open(other, 1 << 40).unwrap(), open(Realm::System, 1 << 41).unwrap());
    let first = clients[0];
    let count = |world: &mut World, op: &dyn Fn(Realm, usize) -> Op| {
        let taken =
            (0..).take_while(|number| world.ask(first, op(greedy, *number)).is_ok()).count();
        let refusal = world.ask(first, op(greedy, taken)).unwrap_err();
        assert!(matches!(refusal, Refusal::Quota { .. }), "{refusal}");
        world.ask(own, op(other, taken)).unwrap();
        world.ask(system, op(Realm::System, taken)).unwrap();
        taken
    };
    let put = |realm: Realm, number: usize, value: usize| {
        let key = realm.key(&number.to_le_bytes()).unwrap();
        Op::Put { key, value: vec![0; value], lease: None }
    };
    assert_eq!(count(&mut world, &|realm, number| put(realm, number, 0)), DC_KEYS_MAX);
    for number in 0..DC_KEYS_MAX {
        world.ask(first, Op::Delete { key: greedy.key(&number.to_le_bytes()).unwrap() }).unwrap();
    }
    let big = VALUE_MAX - 13;
    let fit = count(&mut world, &|realm, number| put(realm, number, big));
    assert_eq!(fit, DC_KV_BYTES_MAX / VALUE_MAX);
    // Another value in the place of an old one is no more.
    world.ask(first, put(greedy, 0, big)).unwrap();
    let lock = |realm: Realm, number: usize| Op::Lock {
        name: realm.name(&number.to_string()).unwrap(),
        wait: false,
    };
    assert_eq!(count(&mut world, &lock), DC_NAMES_MAX);
    let name = |realm: Realm, number: usize| realm.name(&format!("g{number}")).unwrap();
    let join = |realm: Realm, number: usize| Op::Join { group: name(realm, number) };
    assert_eq!(count(&mut world, &join), DC_GROUPS_MAX);
    let cast = |realm: Realm, _: usize| Op::Cast {
        group: name(realm, DC_GROUPS_MAX * usize::from(realm != greedy)),
        bytes: vec![0; VALUE_MAX],
    };
    let casts = count(&mut world, &cast);
    assert!(
        (DC_QUEUES_BYTES_MAX / VALUE_MAX - 1..=DC_QUEUES_BYTES_MAX / VALUE_MAX).contains(&casts)
    );
    assert_eq!(State::restore(&world.state.snapshot()).as_ref(), Ok(&world.state));
    // With its sessions all but its keys is free again.
    world.only_these_live(&[own, system]);
    let Ok(Done::Opened { client }) =
        world.send(ClientId::default(), 0, 0, Op::Open { nonce: 5, ttl: TTL, realm: greedy })
    else {
        panic!("no room")
    };
    world.ask(client, lock(greedy, 0)).unwrap();
    world.ask(client, join(greedy, 0)).unwrap();
    world.ask(client, cast(greedy, 0)).unwrap();
    assert_eq!(world.state.realm_of(client), Some(greedy));
}

#[test]
fn a_realm_sees_its_own_changes_and_forgets_none_for_anothers() {
    use crate::limits::{DC_HISTORY_BYTES_MAX, DC_HISTORY_MAX, HISTORY_BYTES_MAX};
    let mut world = World::default();
    let client = world.open(1);
    let (quiet, busy) = (Realm::Dc(1), Realm::Dc(2));
    let put = |realm: Realm, key: &[u8], length: usize| {
        let (key, value) = (realm.key(key).unwrap(), vec![7; length]);
        Op::Put { key, value, lease: None }
    };
    let own = |state: &State, realm: Realm, from| {
        let (start, end) = realm.bounds(b"", None);
        let changes = state.changes(&start, end.as_deref(), from)?;
        Ok::<_, u64>(changes.events.into_iter().map(|event| event.revision).collect::<Vec<_>>())
    };
    for realm in [quiet, Realm::System] {
        world.ask(client, put(realm, b"k", 1)).unwrap();
    }
    for number in 0..=DC_HISTORY_MAX {
        world.ask(client, put(busy, b"k", number % 2)).unwrap();
    }
    assert_eq!(own(&world.state, busy, 1), Err(2));
    for _ in 0..2 * HISTORY_BYTES_MAX / VALUE_MAX {
        world.ask(client, put(busy, b"k", VALUE_MAX)).unwrap();
    }
    let last = world.state.revision(busy);
    let kept = (DC_HISTORY_BYTES_MAX / VALUE_MAX - 1) as u64;
    assert_eq!(own(&world.state, busy, 1), Err(last - kept + 1));
    // Many together have as much as there is for all; whoever has most forgets first.
    for dc in 10..30 {
        for _ in 0..2 * kept {
            world.ask(client, put(Realm::Dc(dc), b"k", VALUE_MAX)).unwrap();
        }
    }
    for realm in [quiet, Realm::System] {
        assert_eq!((world.state.revision(realm), own(&world.state, realm, 1)), (1, Ok(vec![1])));
    }
    assert_eq!(State::restore(&world.state.snapshot()).as_ref(), Ok(&world.state));
}

#[test]
fn containers_together_leave_room_for_the_system() {
    let mut world = World::default();
    let client = world.open(1);
    let put = |realm: Realm, number: u8| {
        let key = realm.key(&[number]).unwrap();
        Op::Put { key, value: vec![0; VALUE_MAX - 32], lease: None }
    };
    let refusal = (1..).find_map(|dc| {
        let refused = |number| world.ask(client, put(Realm::Dc(dc), number)).err();
        (0..60).find_map(refused)
    });
    let refusal = refusal.unwrap().to_string();
    assert!(refusal.ends_with("is limited to 12582912 for all containers together"), "{refusal}");
    for number in 0..60 {
        world.ask(client, put(Realm::System, number)).unwrap();
    }
}

#[test]
fn a_member_that_takes_nothing_holds_its_group_up_when_half_the_room_is_full() {
    use crate::limits::{DC_QUEUES_BYTES_MAX, QUEUE_MAX};
    let realm = Realm::Dc(1);
    let check = |length: usize, casts: usize| {
        let mut world = World::default();
        let (reads, sleeps) = (world.open(1), world.open(2));
        let name = || realm.name("g").unwrap();
        for client in [reads, sleeps] {
            world.ask(client, Op::Join { group: name() }).unwrap();
        }
        let give = Op::GiveState { group: name(), view: 2, bytes: vec![] };
        world.ask(reads, give).unwrap();
        let cast = |world: &mut World| {
            let cast = Op::Cast { group: name(), bytes: vec![0; length] };
            let sent = world.ask(reads, cast);
            let Ok(Done::Sent { number }) = sent else { panic!("{sent:?}") };
            world.ask(reads, Op::Acknowledge { group: name(), number }).unwrap();
        };
        (1..casts).for_each(|_| cast(&mut world));
        assert_eq!(world.state.holds_up(sleeps, &name()), None, "{length}");
        cast(&mut world);
        cast(&mut world);
        assert_eq!(world.state.holds_up(sleeps, &name()), Some(Debt::Take), "{length}");
        assert_eq!(world.state.holds_up(reads, &name()), None, "{length}");
        world.ask(sleeps, Op::Leave { group: name() }).unwrap();
        assert_eq!(world.state.holds_up(sleeps, &name()), None, "{length}");
    };
    check(1, QUEUE_MAX / 2 - 2);
    check(VALUE_MAX, DC_QUEUES_BYTES_MAX / 2 / VALUE_MAX - 1);
}

#[test]
fn whoever_should_give_a_joiner_its_state_holds_the_group_up() {
    use crate::limits::{DC_QUEUES_BYTES_MAX, QUEUE_MAX};
    let mut world = World::default();
    let (donor, other, joiner) = (world.open(1), world.open(2), world.open(3));
    let name = || Realm::Dc(1).name("g").unwrap();
    let give = |view| Op::GiveState { group: name(), view, bytes: vec![] };
    let acknowledge = |number| Op::Acknowledge { group: name(), number };
    let cast = |world: &mut World, length: usize| {
        let cast = Op::Cast { group: name(), bytes: vec![0; length] };
        let Ok(Done::Sent { number }) = world.ask(donor, cast) else { panic!("not sent") };
        for client in [donor, other] {
            world.ask(client, acknowledge(number)).unwrap();
        }
    };
    let blamed =
        |world: &World| [donor, other, joiner].map(|one| world.state.holds_up(one, &name()));
    let (take, give_it) = (Some(Debt::Take), Some(Debt::Give { view: 3 }));
    for client in [donor, other] {
        world.ask(client, Op::Join { group: name() }).unwrap();
    }
    world.ask(donor, give(2)).unwrap();
    world.ask(other, acknowledge(2)).unwrap();
    world.ask(joiner, Op::Join { group: name() }).unwrap();
    (0..QUEUE_MAX / 2).for_each(|_| cast(&mut world, 1));
    assert_eq!(blamed(&world), [give_it, None, None]);
    // What is given is the joiner's to take.
    let mut given = world.clone();
    given.ask(donor, give(3)).unwrap();
    assert_eq!(blamed(&given), [None, None, take]);
    // Nobody can be blamed for a state that there is no room for.
    (0..DC_QUEUES_BYTES_MAX / VALUE_MAX - 2).for_each(|_| cast(&mut world, VALUE_MAX));
    assert_eq!(blamed(&world), [None, None, take]);
}

fn any_op() -> impl Strategy<Value = Op> {
    let dc = Realm::Dc(7);
    let name = move || {
        prop_oneof![Just("a".to_owned()), Just("b".to_owned()), Just(dc.name("a").unwrap())]
    };
    let key = move || {
        prop_oneof![
            Just(b"k".to_vec()),
            Just(b"l".to_vec()),
            Just(vec![]),
            Just(dc.key(b"k").unwrap())
        ]
    };
    let realm = prop_oneof![Just(Realm::System), Just(dc)];
    let client = || (0..8u64).prop_map(ClientId);
    let bytes = || proptest::collection::vec(any::<u8>(), 0..4);
    prop_oneof![
        Just(Op::Tick),
        (0..4u64, 50..2000u64, realm).prop_map(|(nonce, ttl, realm)| Op::Open {
            nonce,
            ttl,
            realm
        }),
        proptest::collection::vec((client(), 1..3u64, 0..3000u64), 0..3).prop_map(|signs| {
            let sign = |(client, from, at)| Sign { client, from, at };
            Op::Alive { signs: signs.into_iter().map(sign).collect() }
        }),
        Just(Op::Close),
        (key(), bytes(), proptest::option::of(client())).prop_map(|(key, value, lease)| Op::Put {
            key,
            value,
            lease
        }),
        key().prop_map(|key| Op::Delete { key }),
        (key(), 0..6u64, proptest::option::of(bytes()), proptest::option::of(client()))
            .prop_map(|(key, expected, value, lease)| Op::Swap { key, expected, value, lease }),
        (name(), any::<bool>()).prop_map(|(name, wait)| Op::Lock { name, wait }),
        name().prop_map(|name| Op::Unlock { name }),
        (name(), bytes()).prop_map(|(name, value)| Op::Campaign { name, value }),
        name().prop_map(|name| Op::Resign { name }),
        (name(), 0..4u32).prop_map(|(name, parties)| Op::Arrive { name, parties }),
        name().prop_map(|name| Op::Abandon { name }),
        name().prop_map(|group| Op::Join { group }),
        name().prop_map(|group| Op::Leave { group }),
        (name(), bytes()).prop_map(|(group, bytes)| Op::Cast { group, bytes }),
        (name(), 0..9u64).prop_map(|(group, number)| Op::Acknowledge { group, number }),
        (name(), 0..9u64, bytes()).prop_map(|(group, view, bytes)| Op::GiveState {
            group,
            view,
            bytes
        }),
        any_table_op().prop_map(Op::Table),
        (50..2000u64).prop_map(|ttl| Op::Grant { ttl }),
        (client(), any::<bool>()).prop_map(|(lease, ends)| Op::Renew { lease, ends }),
    ]
}

fn any_table_op() -> impl Strategy<Value = TableOp> {
    let node = || 1..4u16;
    prop_oneof![
        (node(), node()).prop_map(|(node, name)| TableOp::PutNode {
            node,
            name: name.to_string(),
            address: String::new()
        }),
        node().prop_map(|node| TableOp::RemoveNode { node }),
        (node(), 0..3u64).prop_map(|(node, incarnation)| TableOp::NodeUp { node, incarnation }),
        (1..3u32, proptest::collection::vec(node(), 0..3)).prop_map(|(dc, nodes)| TableOp::PutDc {
            dc,
            name: dc.to_string(),
            nodes
        }),
        (1..3u32).prop_map(|dc| TableOp::RemoveDc { dc }),
        ((1 << 20)..(1 << 20) + 2u32, node(), node(), any::<bool>(), 0..9u64).prop_map(
            |(slot, by, to, is_over, expected)| {
                let life = |node| Life { node, incarnation: 1 };
                let to = Whereabouts { generation: 1, life: life(to), is_over };
                TableOp::Place { dc: 1, slot, by: life(by), to, expected }
            }
        ),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    (0..3000u64, 1..3u64, 0..8u64, 0..40u64, 0..40u64, any_op()).prop_map(
        |(now, from, client, sequence, acked, op)| Command {
            now,
            from,
            client: ClientId(client),
            sequence,
            acked,
            op,
        },
    )
}

/// What must be true of every state.
fn check(state: &State) {
    for client in state.holds.0.keys() {
        assert!(state.is_alive(*client), "{client:?} is dead and holds something");
    }
    let clone = State::restore(&state.snapshot()).unwrap();
    assert_eq!(&clone, state, "a snapshot, and what is made anew from it, is the state");
}

proptest! {
    #[test]
    fn any_commands_leave_a_state_whose_snapshot_is_the_state(
        commands in proptest::collection::vec(any_command(), 1..120)
    ) {
        let mut state = State::default();
        for command in commands {
            let answer = state.apply(command.clone());
            prop_assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer));
            prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
            check(&state);
        }
    }

    #[test]
    fn a_replica_that_starts_from_a_snapshot_answers_as_the_others(
        before in proptest::collection::vec(any_command(), 1..80),
        after in proptest::collection::vec(any_command(), 1..80),
    ) {
        let mut one = State::default();
        for command in before {
            drop(one.apply(command));
        }
        let mut other = State::restore(&one.snapshot()).unwrap();
        for command in after {
            prop_assert_eq!(one.apply(command.clone()), other.apply(command));
        }
        prop_assert_eq!(one, other);
    }

    #[test]
    fn no_bytes_make_the_decoders_panic_nor_what_is_done_with_them(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        command in any_command(),
    ) {
        drop(Command::decode(&bytes));
        drop(decode_answer(&bytes));
        let mut snapshot = SNAPSHOT_VERSION.to_le_bytes().to_vec();
        snapshot.extend(&bytes);
        if let Ok(mut state) = State::restore(&snapshot) {
            drop(state.apply(command));
        }
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_a_state_that_goes_on(
        before in proptest::collection::vec(any_command(), 1..60),
        after in proptest::collection::vec(any_command(), 1..20),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut state = State::default();
        for command in before {
            drop(state.apply(command));
        }
        let mut bytes = state.snapshot();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(mut state) = State::restore(&bytes) {
            for command in after {
                drop(state.apply(command));
            }
        }
    }
}

#[test]
fn a_cut_command_and_one_with_something_behind_it_are_refused() {
    let command = Command {
        now: 300,
        from: 2,
        client: ClientId(9),
        sequence: 4,
        acked: 3,
        op: Op::Table(TableOp::PutDc { dc: 1, name: "name".into(), nodes: vec![1, 2, 3] }),
    };
    let bytes = command.encode();
    for length in 0..bytes.len() {
        assert_eq!(Command::decode(&bytes[..length]), Err(DecodeError::Malformed));
    }
    assert_eq!(Command::decode(&[&bytes[..], &[0]].concat()), Err(DecodeError::Malformed));
    let long = vec![0; COMMAND_MAX + 1];
    assert!(matches!(Command::decode(&long), Err(DecodeError::Length { .. })));
}
