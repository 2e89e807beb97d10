//! What the requests of one session with the system group mean for each other.

use super::programs::{
    ask, enter, failure, first, hear, post, program, put, send_raw, soon, start,
};
use super::system::settled;
use super::*;
use crate::dvkd::services::{Failure, Op, Reply};
use ::services::{Client, Ended};

fn lock(wait: bool) -> Op {
    Op::Lock { name: "l".into(), wait }
}

fn campaign(value: &str) -> Op {
    Op::Campaign { name: "e".into(), value: value.into() }
}

#[test]
fn what_a_session_holds_it_keeps_when_it_asks_again_with_no_time() {
    let cluster = start();
    let client = program(&cluster, 1);
    let Reply::Locked { token } = ask(&client, lock(true)) else { panic!("no lock") };
    let Reply::Elected { epoch } = ask(&client, campaign("a")) else { panic!("no leader") };
    for _ in 0..20 {
        let again = |op| hear(&client, client.post(op, Some(0), None).unwrap().unwrap());
        assert_eq!(again(lock(true)), Reply::Locked { token });
        assert_eq!(again(campaign("b")), Reply::Elected { epoch });
    }
    let Reply::Leader { leader } = ask(&client, Op::Leader { name: "e".into() }) else {
        panic!("no answer")
    };
    assert!(matches!(&leader, Some((now, value, _)) if *now == epoch && *value == "b".into()));
    assert_eq!(ask(&client, Op::Unlock { name: "l".into() }), Reply::Done);
    assert_eq!(ask(&client, Op::Resign { name: "e".into() }), Reply::Done);
}

#[test]
fn whoever_has_no_time_to_wait_for_others_has_it_for_the_groups_answer() {
    let cluster = start();
    let holder = program(&cluster, 1);
    ask(&holder, put("k", "v"));
    let at_once =
        |client: &Client, op| hear(client, client.post(op, Some(0), None).unwrap().unwrap());
    let barrier = |parties| Op::Barrier { name: "b".into(), parties };
    // The first of a session, which has to be opened too.
    assert!(matches!(at_once(&holder, lock(true)), Reply::Locked { .. }));
    assert!(matches!(at_once(&holder, campaign("a")), Reply::Elected { .. }));
    assert_eq!(at_once(&holder, barrier(1)), Reply::Passed);
    for op in [lock(true), campaign("b"), barrier(2)] {
        assert_eq!(failure(at_once(&program(&cluster, 1), op)), Failure::Timeout);
    }
    let receive = Op::Receive { group: "g".into(), after: 0 };
    assert_eq!(failure(at_once(&program(&cluster, 1), receive)), Failure::NotHeld);
    // Who gave up is in nobody's way.
    assert_eq!(ask(&holder, Op::Unlock { name: "l".into() }), Reply::Done);
    assert!(matches!(at_once(&program(&cluster, 1), lock(true)), Reply::Locked { .. }));
}

#[test]
fn a_lock_that_a_request_of_the_session_waits_for_is_taken_for_its_others() {
    let cluster = start();
    drop(program(&cluster, 1));
    let socket = enter(&cluster, 1);
    let lines = b"{\"id\":1,\"op\":{\"Lock\":{\"name\":\"l\",\"wait\":true}}}\n\
        {\"id\":2,\"op\":{\"Lock\":{\"name\":\"l\",\"wait\":false}}}\n";
    send_raw(&socket, lines);
    let mut heard = String::new();
    let mut bytes = [0; 4096];
    while !(heard.contains("\"id\":1") && heard.contains("\"id\":2")) {
        let (length, _) =
            rustix::net::recv(&socket, &mut bytes, rustix::net::RecvFlags::empty()).unwrap();
        assert!(length > 0, "{heard}");
        heard.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    let answer = |id: &str| heard.lines().find(|line| line.contains(id)).unwrap();
    assert!(answer("\"id\":2").contains("Taken"), "{heard}");
    assert!(answer("\"id\":1").contains("Locked"), "{heard}");
}

#[test]
fn giving_up_that_nobody_hears_ends_the_session() {
    let mut cluster = Cluster::start(3);
    settled(&cluster, &[1, 2, 3]);
    let (holder, waiter) = (program(&cluster, 1), program(&cluster, 1));
    assert!(matches!(ask(&holder, lock(true)), Reply::Locked { .. }));
    let waiting = post(&waiter, lock(true));
    // It has a place in line when a later one of the same session is answered.
    assert!(matches!(ask(&waiter, put("k", "v")), Reply::Changed { .. }));
    cluster.stop(2);
    cluster.stop(3);
    post(&waiter, Op::Cancel { id: waiting });
    let heard = waiter.next(waiting, soon());
    assert!(matches!(heard, Ok(Some(Reply::Lost { .. })) | Err(Ended::Lost(_))), "{heard:?}");
    let end = std::iter::repeat_with(|| waiter.next(0, soon())).take(3).find_map(Result::err);
    assert!(matches!(end, Some(Ended::Lost(_))), "{end:?}");
}

#[test]
fn a_member_cannot_have_dealt_with_what_has_not_come() {
    let cluster = start();
    let client = program(&cluster, 1);
    let join = Op::Join { group: "g".into() };
    assert!(matches!(ask(&client, join), Reply::Joined { view: 1, .. }));
    let receive = |after| {
        let op = Op::Receive { group: "g".into(), after };
        hear(&client, client.post(op, Some(300), None).unwrap().unwrap())
    };
    assert_eq!(failure(receive(2)), Failure::Refused);
    assert!(matches!(receive(0), Reply::Item { number: 1, .. }));
    assert_eq!(failure(receive(1)), Failure::Timeout);
}

#[test]
fn a_member_that_was_not_told_that_it_has_joined_is_one_like_any_other() {
    let cluster = start();
    let client = program(&cluster, 1);
    ask(&client, put("k", "v"));
    // It is not waited for, but happens. One that is quick is answered; then another is not.
    let is_unanswered = |group: &String| {
        let join = client.post(Op::Join { group: group.clone() }, Some(0), None).unwrap().unwrap();
        let reply = hear(&client, join);
        if matches!(reply, Reply::Failed { failure: Failure::Unavailable, .. }) {
            return true;
        }
        ask(&client, Op::Leave { group: group.clone() });
        false
    };
    let group = (0_u64..).map(|number| format!("g{number}")).find(is_unanswered).unwrap();
    let receive = |after| {
        let op = Op::Receive { group: group.clone(), after };
        hear(&client, client.post(op, Some(0), None).unwrap().unwrap())
    };
    let first = std::iter::repeat_with(|| receive(0))
        .find(|reply| !matches!(reply, Reply::Failed { failure: Failure::NotHeld, .. }));
    assert!(matches!(first, Some(Reply::Item { number: 1, .. })), "{first:?}");
    assert_eq!(failure(receive(1)), Failure::Timeout);
    let linking = cluster.daemon(1).shared.linking.as_ref().unwrap();
    let (state, ..) = linking.system.at_work().unwrap();
    let name = ::group::Realm::Dc(1).name(&group).unwrap();
    assert_eq!(state.look(|state| state.queued(&name)), 0, "nobody has acknowledged anything");
}

#[test]
fn a_watcher_need_not_remember_what_it_does_not_watch() {
    let cluster = start();
    let (client, watcher) = (program(&cluster, 1), Client::new(enter(&cluster, 1)));
    assert_eq!(first(&watcher), Some(Reply::Ready));
    let watch = Op::Watch { start: "w".into(), end: None, from: Some(1) };
    let watching = post(&watcher, watch.clone());
    let big = "x".repeat(32 << 10);
    for _ in 0..20 {
        assert!(matches!(ask(&client, put("k", &big)), Reply::Changed { .. }));
        // It has seen that.
        ask(&watcher, Op::Get { key: "k".into() });
    }
    assert!(matches!(failure(ask(&client, watch)), Failure::Forgotten(_)));
    ask(&client, put("w", "v"));
    let Reply::Changes { changes, next } = hear(&watcher, watching) else { panic!("no changes") };
    assert_eq!((changes.len(), changes[0].revision, next), (1, 21, 22));
}
