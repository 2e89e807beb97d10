//! The services of the system group, asked for by programs on two nodes.

use crate::cluster::{Cluster, NEVER, NOWAIT, SHORT};
use dvk_client::group::{Ended, Failure, GroupError, Item, Lease, Services};
use dvk_client::{DcId, IpcError, NodeId};
use std::time::{Duration, Instant};

/// A session of the DC on a node, when the group is at work there.
fn open(cluster: &Cluster, node: usize, dc: &str) -> Services {
    let limit = Instant::now() + Duration::from_secs(20);
    let socket = cluster.socket_of(node, dc);
    loop {
        let opened = Services::open(Some(&socket)).and_then(|one| one.get(b"k").map(|_| one));
        match opened {
            Ok(services) => return services,
            Err(GroupError::Failed(Failure::Unavailable | Failure::Fenced, _)) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < limit, "the group is never at work");
        std::thread::yield_now();
    }
}

fn failure<T: std::fmt::Debug>(result: Result<T, GroupError>) -> Failure {
    result.unwrap_err().failure().unwrap()
}

#[test]
fn keys_have_revisions_ranges_watches_and_leases_on_every_node() {
    let cluster = Cluster::start();
    let (one, two) = (open(&cluster, 1, "lab"), open(&cluster, 2, "lab"));
    assert_eq!((one.dc(), two.dc(), two.node()), (DcId(1), DcId(1), NodeId(2)));
    let mut watch = two.watch(b"k", None, None).unwrap();
    assert_eq!(failure(watch.next(NOWAIT)), Failure::Timeout);
    assert_eq!(failure(watch.next(SHORT)), Failure::Timeout);
    let bytes = [0xff, 0, b'\n'];
    let first = one.put(b"k", &bytes, Lease::None).unwrap();
    let entry = two.get(b"k").unwrap().unwrap();
    assert_eq!((entry.value.0, entry.modified, entry.version), (bytes.to_vec(), first, 1));
    assert_eq!(failure(two.compare_and_swap(b"k", 0, None, Lease::None)), Failure::Revision(first));
    let second = two.compare_and_swap(b"k", first, Some(b"v"), Lease::None).unwrap();
    let lease = one.grant(Duration::from_secs(60)).unwrap();
    one.put(b"l", b"leased", Lease::Held(lease)).unwrap();
    let all = two.range(b"", None, 1).unwrap();
    assert_eq!((all.entries.len(), all.more), (1, true));
    // Nobody else can renew or end it, or have keys end with it.
    assert_eq!(failure(two.renew(lease)), Failure::NotHeld);
    assert_eq!(failure(two.revoke(lease)), Failure::NotHeld);
    assert_eq!(failure(two.put(b"l", b"theirs", Lease::Held(lease))), Failure::NotHeld);
    one.renew(lease).unwrap();
    one.revoke(lease).unwrap();
    assert_eq!(failure(one.renew(lease)), Failure::NotHeld);
    assert_eq!(two.range(b"l", Some(b"m"), 9).unwrap().entries, []);
    let third = open(&cluster, 1, "lab");
    third.put(b"m", b"own", Lease::Connection).unwrap();
    drop(third);
    let mut seen = Vec::new();
    while seen.len() < 6 {
        seen.extend(watch.next(NEVER).unwrap());
    }
    let keys: Vec<&[u8]> = seen.iter().map(|change| &change.key.0[..]).collect();
    assert_eq!(keys, [b"k", b"k", b"l", b"l", b"m", b"m"]);
    assert_eq!((seen[0].revision, seen[1].revision), (first, second));
    assert!(seen[3].value.is_none() && seen[5].value.is_none());
    assert!(one.delete(b"k").unwrap() && !one.delete(b"k").unwrap());
    assert_eq!(failure(one.put(&[0; 1025], b"", Lease::None)), Failure::Limit);
}

#[test]
fn another_dc_has_the_same_names_and_meets_nobody() {
    let cluster = Cluster::start();
    let (lab, other) = (open(&cluster, 1, "lab"), open(&cluster, 1, "other"));
    lab.put(b"k", b"lab", Lease::None).unwrap();
    assert_eq!(other.get(b"k").unwrap(), None);
    assert_eq!(other.put(b"k", b"other", Lease::None), Ok(1));
    lab.lock("l", NOWAIT).unwrap();
    other.lock("l", NOWAIT).unwrap();
    lab.campaign("e", b"lab", NEVER).unwrap();
    assert_eq!(other.leader("e").unwrap(), None);
    let member = lab.join("g").unwrap();
    assert_eq!(other.join("g").unwrap().receive(NEVER).unwrap().0, 1, "it is alone");
    drop(member);
    assert_eq!(lab.get(b"k").unwrap().unwrap().value, "lab".into());
}

#[test]
fn a_lock_and_a_leadership_go_to_the_next_with_greater_numbers() {
    let cluster = Cluster::start();
    let (one, two) = (open(&cluster, 1, "lab"), open(&cluster, 2, "lab"));
    let token = one.lock("l", NEVER).unwrap();
    assert_eq!(one.lock("l", NOWAIT), Ok(token), "whoever has it has it");
    assert_eq!(failure(two.lock("l", NOWAIT)), Failure::Taken);
    assert_eq!(failure(two.lock("l", SHORT)), Failure::Timeout);
    let epoch = one.campaign("e", b"one", NEVER).unwrap();
    assert_eq!(failure(two.campaign("e", b"two", SHORT)), Failure::Timeout);
    let leader = two.leader("e").unwrap().unwrap();
    assert_eq!((leader.epoch, &leader.value[..]), (epoch, &b"one"[..]));
    std::thread::scope(|scope| {
        // Threads share a session, and one of them lets the others' wishes come true.
        let locked = scope.spawn(|| two.lock("l", NEVER).unwrap());
        let leads = scope.spawn(|| two.campaign("e", b"two", NEVER).unwrap());
        let meets = scope.spawn(|| two.barrier("b", 2, NEVER).unwrap());
        one.barrier("b", 2, NEVER).unwrap();
        one.unlock("l").unwrap();
        one.resign("e").unwrap();
        assert!(locked.join().unwrap() > token);
        assert!(leads.join().unwrap() > epoch);
        meets.join().unwrap();
    });
    assert_eq!(failure(one.unlock("l")), Failure::NotHeld);
    assert_eq!(failure(one.barrier("b", 3, SHORT)), Failure::Timeout);
}

#[test]
fn a_joiner_gets_the_state_first_and_all_see_one_order() {
    let cluster = Cluster::start();
    let (one, two) = (open(&cluster, 1, "lab"), open(&cluster, 2, "lab"));
    let mut elder = one.join("g").unwrap();
    let (number, first) = elder.receive(NEVER).unwrap();
    let members = vec![elder.number()];
    assert_eq!(first, Item::View { members, fresh: false, gives: false });
    let sent = elder.cast(b"before").unwrap();
    assert_eq!(sent, number + 1);
    assert_eq!(elder.receive(NEVER).unwrap().0, sent);
    let mut joiner = two.join("g").unwrap();
    assert_eq!(failure(joiner.give(sent + 1, b"made up")), Failure::NotHeld);
    let both = vec![elder.number(), joiner.number()];
    let (view, item) = elder.receive(NEVER).unwrap();
    assert_eq!(item, Item::View { members: both, fresh: false, gives: true });
    assert_eq!(failure(joiner.receive(SHORT)), Failure::Timeout);
    elder.give(view, b"the state").unwrap();
    assert_eq!(joiner.receive(NEVER).unwrap(), (view, Item::State { bytes: "the state".into() }));
    std::thread::scope(|scope| {
        for member in [&elder, &joiner] {
            scope.spawn(move || (0..20_u8).for_each(|byte| assert!(member.cast(&[byte]).is_ok())));
        }
    });
    let mut all = || (elder.receive(NEVER).unwrap(), joiner.receive(NEVER).unwrap());
    for _ in 0..40 {
        let (left, right) = all();
        assert_eq!(left, right);
    }
    let left_over = vec![joiner.number()];
    elder.leave().unwrap();
    let (_, item) = joiner.receive(NEVER).unwrap();
    assert_eq!(item, Item::View { members: left_over, fresh: false, gives: false });
}

#[test]
fn who_waits_is_told_when_dvkd_ends_and_a_door_that_is_not_there_is_an_error() {
    let mut cluster = Cluster::start();
    let (one, two) = (open(&cluster, 1, "lab"), open(&cluster, 2, "lab"));
    one.lock("l", NEVER).unwrap();
    std::thread::scope(|scope| {
        let (arrived, here) = std::sync::mpsc::channel();
        let two = &two;
        let waits = scope.spawn(move || {
            arrived.send(()).unwrap();
            two.lock("l", None)
        });
        here.recv().unwrap();
        cluster.stop(2);
        let ended = waits.join().unwrap().unwrap_err();
        assert!(matches!(ended, GroupError::Ended(Ended::Gone | Ended::Lost(_))), "{ended:?}");
    });
    assert!(matches!(two.get(b"k"), Err(GroupError::Ended(_))));
    let gone = Services::open(Some(&cluster.socket(2))).unwrap_err();
    assert_eq!(gone, GroupError::Door(IpcError::NotBound));
}
