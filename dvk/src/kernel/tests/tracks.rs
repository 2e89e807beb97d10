//! The two tracks of a link: what overtakes what, and what does not.

use super::*;
use crate::limits::SMALL_MAX;

const LONG: usize = SMALL_MAX + 1;

/// Node 1 makes a call with a payload of `length` bytes.
fn call(pair: &mut Pair, message: Message, length: usize) {
    let message = Message { payload_len: u32::try_from(length).unwrap(), ..message };
    let out = pair.at(N1).request(BLUE, Endpoint::IPC, &message, &vec![7; length]);
    pair.sort(N1, out);
}

/// The tracks of the frames with a number that node 1 has sent and that are under way.
fn tracks(pair: &Pair) -> Vec<Track> {
    let of = |(track, bytes): &(Track, Bytes)| {
        (decode(bytes).unwrap().0.sequence != 0).then_some(*track)
    };
    pair.wires[&N1].iter().filter_map(of).collect()
}

use Track::{Bulk, Small};

#[test]
fn a_small_frame_overtakes_bulk_ones_and_no_bulk_frame_a_small_one() {
    let (mut pair, client, _) = pair();
    call(&mut pair, message(client, 0, 1), SMALL_MAX);
    call(&mut pair, message(client, 1, 2), LONG);
    call(&mut pair, message(client, 2, 3), 0);
    assert_eq!(tracks(&pair), [Small, Bulk, Small]);
    // The bulk one comes first, but not before what was sent before it.
    let (track, bytes) = pair.wires[&N1][1].clone();
    assert_eq!(track, Bulk);
    let (packet, _) = decode(&bytes).unwrap();
    assert!(pair.at(N2).kernel.is_early(N1, Bulk, &packet));
    assert!(!pair.at(N2).kernel.is_early(N1, Small, &packet));
    assert_eq!(delivered(&pair.arrive_on(N1, Small)), [1, 3]);
    assert!(!pair.at(N2).kernel.is_early(N1, Bulk, &packet));
    assert_eq!(delivered(&pair.arrive_on(N1, Bulk)), [2]);
}

#[test]
fn a_lane_keeps_its_order() {
    let (mut pair, client, _) = pair();
    call(&mut pair, message(client, 0, 1), LONG);
    let cancelled = |lane, sequence| Input::LocalCancel {
        dc: BLUE,
        to: Endpoint::IPC,
        id: id(&message(client, lane, sequence)),
    };
    call(&mut pair, message(client, 1, 2), 0);
    for (lane, sequence) in [(0, 1), (1, 2)] {
        let out = pair.at(N1).step(cancelled(lane, sequence));
        pair.sort(N1, out);
    }
    // The lane is used again before its bulk request has been received.
    call(&mut pair, message(client, 0, 3), 0);
    assert_eq!(tracks(&pair), [Bulk, Small, Bulk, Small, Bulk]);
    assert_eq!(delivered(&pair.arrive_on(N1, Small)), [2, -2]);
    assert_eq!(delivered(&pair.arrive_on(N1, Bulk)), [1, -1, 3]);
    pair.settle();
    // Received: from now on it is as any other.
    pair.wait(N2, PING_EVERY);
    pair.settle();
    call(&mut pair, message(client, 0, 4), 0);
    assert_eq!(tracks(&pair), [Small]);
}

#[test]
fn a_death_comes_after_all_that_the_dead_has_sent() {
    let (mut pair, client, ipc) = pair();
    call(&mut pair, message(client, 0, 1), LONG);
    let died = pair.at(N1).died(BLUE, client);
    pair.sort(N1, died);
    assert_eq!(tracks(&pair), [Bulk, Bulk]);
    let out = pair.arrive_on(N1, Small);
    assert!(gone(&out).is_empty() && delivered(&out).is_empty());
    let out = pair.arrive_on(N1, Bulk);
    assert_eq!((delivered(&out), gone(&out)), (vec![1], vec![(ipc, Gone::Endpoint(client))]));
    // With nothing to wait for it goes with the small ones.
    let other = pair.at(N1).bind(BLUE, Role::Process, 21);
    call(&mut pair, message(other, 0, 2), 0);
    pair.settle();
    pair.wait(N2, PING_EVERY);
    pair.settle();
    let died = pair.at(N1).died(BLUE, other);
    pair.sort(N1, died);
    assert_eq!(tracks(&pair), [Small]);
}

#[test]
fn nothing_overtakes_news_of_the_directory() {
    let (mut pair, client, _) = pair();
    let number = Endpoint::well_known(N2, 70);
    let admin = pair.at(N1).bind(BLUE, Role::Agent, 22);
    pair.settle();
    call(&mut pair, message(client, 0, 1), LONG);
    let order = Input::Order {
        asker: Asker(1000),
        dc: BLUE,
        from: admin,
        to: number,
        order: Order::Wake,
        privileged: true,
    };
    let out = pair.at(N1).step(order);
    pair.sort(N1, out);
    call(&mut pair, message(client, 1, 2), 0);
    assert_eq!(tracks(&pair), [Bulk, Bulk, Bulk]);
    pair.settle();
    pair.wait(N2, PING_EVERY);
    pair.settle();
    call(&mut pair, message(client, 2, 3), 0);
    assert_eq!(tracks(&pair), [Small]);
}

#[test]
fn what_a_broken_link_has_lost_of_either_track_comes_again_and_once() {
    for first in Track::ALL {
        let (mut pair, client, _) = pair();
        call(&mut pair, message(client, 0, 1), LONG);
        call(&mut pair, message(client, 1, 2), 0);
        // Of two frames one arrives.
        let mut all = delivered(&pair.arrive_on(N1, first));
        assert_eq!(all, [if first == Bulk { 1 } else { 2 }]);
        let (one, two) = pair.connect();
        assert!(dropped(&one).is_empty() && dropped(&two).is_empty());
        assert_eq!(tracks(&pair).len(), 1, "what was received is not sent again");
        all.extend(delivered(&pair.settle().1));
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    }
}
