//! send, receive, sendrec, rcvrqst, reply, notify, on one node and between two.

use crate::cluster::{Cluster, NEVER, NOWAIT, SHORT, wait_until, well_known};
use dvk_client::{Bound, Endpoint, IpcError, Kind, Message, NodeId, Rights, call};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

const HELLO: u16 = 0x1001;

fn message(number: u64) -> Message {
    let mut message = Message::request(HELLO);
    message.args[..8].copy_from_slice(&number.to_le_bytes());
    message
}

fn number(message: &Message) -> u64 {
    u64::from_le_bytes(message.args[..8].try_into().unwrap())
}

/// For a pair on one node and for one on two.
fn for_both(test: impl Fn(Bound, Bound)) {
    let cluster = Cluster::start();
    test(cluster.bind(1), cluster.bind(1));
    test(cluster.bind(1), cluster.bind(2));
}

#[test]
fn a_message_sent_arrives_with_its_payload_and_the_true_source() {
    for_both(|one, two| {
        scope(|threads| {
            threads.spawn(|| {
                let forged = Message { source: two.endpoint(), ..message(7) };
                one.send(two.endpoint(), &forged, b"payload", NEVER).unwrap();
            });
            let mut payload = [0; 16];
            let got = two.receive(Endpoint::ANY, &mut payload, NEVER).unwrap();
            assert_eq!((got.message.source, got.kind), (one.endpoint(), Kind::OneWay));
            assert_eq!((number(&got.message), got.message.call), (7, HELLO));
            assert_eq!(&payload[..got.payload_len], b"payload");
            assert_eq!(
                two.reply(one.endpoint(), &message(0), b""),
                Err(IpcError::NotWaiting),
                "a send wants no reply"
            );
        });
    });
}

#[test]
fn a_request_is_answered_to_its_caller() {
    for_both(|one, two| {
        scope(|threads| {
            threads.spawn(|| {
                let mut buffer = vec![0; 70_000];
                for round in 0..200 {
                    let got = two.rcvrqst(&mut buffer, NEVER).unwrap();
                    let payload = buffer[..got.payload_len].to_vec();
                    assert_eq!(number(&got.message), round);
                    two.reply(got.message.source, &message(round + 1), &payload).unwrap();
                }
            });
            for round in 0..200_u64 {
                let mut request = message(round);
                let payload = vec![
                    u8::try_from(round % 251).unwrap();
                    1 + 337 * usize::try_from(round).unwrap()
                ];
                let mut answer = vec![0; 70_000];
                let len = one
                    .sendrec(two.endpoint(), &mut request, &payload, &mut answer, NEVER)
                    .unwrap();
                assert_eq!((number(&request), request.source), (round + 1, two.endpoint()));
                assert_eq!(&answer[..len], &payload[..]);
            }
        });
    });
}

#[test]
fn receive_from_one_leaves_the_others_waiting() {
    let cluster = Cluster::start();
    let receiver = cluster.bind(1);
    let senders = [cluster.bind(1), cluster.bind(2), cluster.bind(1)];
    scope(|threads| {
        for (index, sender) in senders.iter().enumerate() {
            let receiver = &receiver;
            threads.spawn(move || {
                sender.send(receiver.endpoint(), &message(index as u64), b"", NEVER).unwrap()
            });
        }
        for index in [2, 1, 0] {
            let from = senders[index].endpoint();
            let got = receiver.receive(from, &mut [], NEVER).unwrap();
            assert_eq!((got.message.source, number(&got.message)), (from, index as u64));
        }
        assert_eq!(receiver.receive(Endpoint::ANY, &mut [], NOWAIT), Err(IpcError::WouldBlock));
    });
}

#[test]
fn a_send_that_nobody_receives_ends_in_time_and_is_not_received_later() {
    for_both(|one, two| {
        let start = Instant::now();
        assert_eq!(one.send(two.endpoint(), &message(1), b"", SHORT), Err(IpcError::TimedOut));
        assert!(start.elapsed() >= SHORT.unwrap());
        assert_eq!(one.send(two.endpoint(), &message(2), b"", NOWAIT), Err(IpcError::WouldBlock));
        let mut request = message(3);
        let called = one.sendrec(two.endpoint(), &mut request, b"", &mut [], SHORT);
        assert_eq!(called, Err(IpcError::TimedOut));
        assert_eq!(two.receive(Endpoint::ANY, &mut [], NOWAIT), Err(IpcError::WouldBlock));
        assert_eq!(two.receive(Endpoint::ANY, &mut [], SHORT), Err(IpcError::TimedOut));
    });
}

#[test]
fn a_send_that_does_not_wait_reaches_a_receiver_that_does() {
    for_both(|one, two| {
        scope(|threads| {
            let receiver = threads.spawn(|| two.receive(Endpoint::ANY, &mut [], NEVER));
            // Until the receiver waits, nobody takes it.
            wait_until("it is received", || {
                one.send(two.endpoint(), &message(5), b"", NOWAIT).is_ok()
            });
            assert_eq!(number(&receiver.join().unwrap().unwrap().message), 5);
        });
    });
}

#[test]
fn a_caller_that_gave_up_is_not_answered_and_can_call_again() {
    for_both(|one, two| {
        for round in 0..130 {
            let mut request = message(round);
            let wait = Some(Duration::from_millis(2));
            scope(|threads| {
                let server = threads.spawn(|| two.rcvrqst(&mut [], NEVER).unwrap());
                let called = loop {
                    // Only one that was received counts here.
                    let called = one.sendrec(two.endpoint(), &mut request, b"", &mut [], wait);
                    if server.is_finished() {
                        break called;
                    }
                };
                assert_eq!(called, Err(IpcError::TimedOut), "round {round}");
            });
            wait_until("the giving up is known", || {
                match two.reply(one.endpoint(), &message(0), b"") {
                    Err(IpcError::NotWaiting) => true,
                    other => panic!("{other:?}"),
                }
            });
        }
        scope(|threads| {
            threads.spawn(|| {
                let got = two.rcvrqst(&mut [], NEVER).unwrap();
                two.reply(got.message.source, &message(99), b"").unwrap();
            });
            let mut request = message(1);
            one.sendrec(two.endpoint(), &mut request, b"", &mut [], NEVER).unwrap();
            assert_eq!(number(&request), 99);
        });
    });
}

#[test]
fn rcvrqst_passes_by_what_is_not_a_request() {
    for_both(|one, two| {
        scope(|threads| {
            let sender = threads.spawn(|| one.send(two.endpoint(), &message(1), b"", NEVER));
            assert_eq!(two.rcvrqst(&mut [], SHORT), Err(IpcError::TimedOut));
            assert!(!sender.is_finished());
            assert_eq!(number(&two.receive(one.endpoint(), &mut [], NEVER).unwrap().message), 1);
            assert_eq!(sender.join().unwrap(), Ok(()));
        });
    });
}

#[test]
fn a_notification_comes_first_with_its_value_and_does_not_wait() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.bind(1), cluster.bind(1));
    one.notify(two.endpoint(), 42).unwrap();
    assert_eq!(one.notify(two.endpoint(), 43), Err(IpcError::Overrun));
    scope(|threads| {
        threads.spawn(|| one.send(two.endpoint(), &message(1), b"", NEVER).unwrap());
        assert_eq!(two.rcvrqst(&mut [], SHORT), Err(IpcError::TimedOut));
        let first = two.receive(Endpoint::ANY, &mut [], NEVER).unwrap();
        assert_eq!((first.kind, first.message.source), (Kind::Notification(42), one.endpoint()));
        assert_eq!(two.receive(Endpoint::ANY, &mut [], NEVER).unwrap().kind, Kind::OneWay);
    });
    let far = cluster.bind(2);
    for value in 0..100 {
        far.notify(two.endpoint(), value).unwrap();
        let got = two.receive(far.endpoint(), &mut [], NEVER).unwrap();
        assert_eq!((got.kind, got.message.source), (Kind::Notification(value), far.endpoint()));
    }
}

#[test]
fn whoever_dies_is_named_to_those_who_wait() {
    for_both(|one, two| {
        let (first, second) = (one.endpoint(), two.endpoint());
        scope(|threads| {
            let sender = threads.spawn(|| one.send(second, &message(1), b"", NEVER));
            wait_until("it is sent", || one.node_info(one.node()).is_ok() && !sender.is_finished());
            // It is there: `rcvrqst` passes it by.
            assert_eq!(two.rcvrqst(&mut [], SHORT), Err(IpcError::TimedOut));
            two.unbind().unwrap();
            assert_eq!(sender.join().unwrap(), Err(IpcError::DestinationDied));
        });
        assert_eq!(one.send(second, &message(1), b"", NEVER), Err(IpcError::Stale));
        assert_eq!(one.receive(second, &mut [], NEVER), Err(IpcError::Stale));
        // To another node it is under way, and gets lost there.
        let notified = if second.node() == one.node() { Err(IpcError::Stale) } else { Ok(()) };
        assert_eq!(one.notify(second, 1), notified);
        assert_eq!(one.endpoint(), first);
    });
}

#[test]
fn receive_from_one_that_dies_says_that_the_source_did() {
    let cluster = Cluster::start();
    for node in [1, 2] {
        let receiver = cluster.bind(1);
        let source = cluster.bind_as(node, 70);
        let name = source.endpoint();
        scope(|threads| {
            let exact = threads.spawn(|| receiver.receive(name, &mut [], NEVER));
            assert_eq!(
                source.receive(receiver.endpoint(), &mut [], SHORT),
                Err(IpcError::TimedOut)
            );
            drop(source);
            assert_eq!(exact.join().unwrap(), Err(IpcError::SourceDied), "node {node}");
        });
        let by_number = well_known(u16::try_from(node).unwrap(), 70);
        assert_eq!(receiver.receive(by_number, &mut [], NOWAIT), Err(IpcError::NotBound));
    }
}

#[test]
fn two_that_send_to_each_other_are_told_of_the_deadlock() {
    for_both(|one, two| {
        scope(|threads| {
            let sender = threads.spawn(|| one.send(two.endpoint(), &message(1), b"", NEVER));
            assert_eq!(two.rcvrqst(&mut [], SHORT), Err(IpcError::TimedOut));
            assert_eq!(two.send(one.endpoint(), &message(2), b"", NEVER), Err(IpcError::Deadlock));
            two.receive(one.endpoint(), &mut [], NEVER).unwrap();
            assert_eq!(sender.join().unwrap(), Ok(()));
        });
        assert_eq!(one.send(one.endpoint(), &message(1), b"", NEVER), Err(IpcError::Deadlock));
    });
}

#[test]
fn a_node_that_goes_down_ends_what_waits_for_it() {
    let mut cluster = Cluster::start();
    let (near, far) = (cluster.bind(1), cluster.bind(2));
    let name = far.endpoint();
    scope(|threads| {
        let sender = threads.spawn(|| near.send(name, &message(1), b"", NEVER));
        assert_eq!(far.rcvrqst(&mut [], SHORT), Err(IpcError::TimedOut));
        cluster.stop(2);
        assert_eq!(sender.join().unwrap(), Err(IpcError::NodeDown));
    });
    assert_eq!(near.receive(name, &mut [], NEVER), Err(IpcError::NodeDown));
    // What had reached it before is still there; more will not come.
    far.receive(Endpoint::ANY, &mut [], NEVER).unwrap();
    assert_eq!(far.receive(Endpoint::ANY, &mut [], NEVER), Err(IpcError::NotBound));
    assert_eq!(
        near.send(Endpoint::new(NodeId(9), 1, 1), &message(1), b"", NEVER),
        Err(IpcError::NotBound)
    );
}

#[test]
fn a_process_talks_to_more_peers_than_it_keeps_channels() {
    let cluster = Cluster::start();
    let hub = cluster.bind(1);
    let peers: Vec<Bound> = (0..40).map(|index| cluster.bind(1 + index % 2)).collect();
    let received = AtomicU64::new(0);
    scope(|threads| {
        for peer in &peers {
            let (hub, received) = (&hub, &received);
            threads.spawn(move || {
                for _ in 0..3 {
                    let got = peer.rcvrqst(&mut [], NEVER).unwrap();
                    assert_eq!(got.message.source, hub.endpoint());
                    peer.reply(got.message.source, &got.message, b"").unwrap();
                    received.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..3 {
            for peer in &peers {
                let mut request = message(round);
                hub.sendrec(peer.endpoint(), &mut request, b"", &mut [], NEVER).unwrap();
            }
        }
    });
    assert_eq!(received.load(Ordering::SeqCst), 120);
}

#[test]
fn a_relayed_request_is_answered_by_the_third() {
    let cluster = Cluster::start();
    let (client, other) = (cluster.bind(1), cluster.bind(2));
    let (relay, server) = (cluster.bind(2), cluster.bind(1));
    scope(|threads| {
        threads.spawn(|| {
            for _ in 0..2 {
                let got = relay.rcvrqst(&mut [0; 16], NEVER).unwrap();
                assert_eq!(relay.relay(&got.message, Endpoint::PM), Err(IpcError::Denied));
                relay.relay(&got.message, server.endpoint()).unwrap();
                // It has no part in the call any more.
                assert_eq!(
                    relay.reply(got.message.source, &got.message, b""),
                    Err(IpcError::NotWaiting)
                );
            }
        });
        threads.spawn(|| {
            let mut payload = [0; 16];
            for client in [&client, &other] {
                let got = server.rcvrqst(&mut payload, NEVER).unwrap();
                assert_eq!(got.message.source, client.endpoint());
                assert_eq!((number(&got.message), &payload[..3]), (1, &b"abc"[..]));
                let answer = Message { tag: got.message.tag, ..message(8) };
                server.reply(client.endpoint(), &answer, b"xyz").unwrap();
            }
        });
        for client in [&client, &other] {
            let mut request = message(1);
            let mut answer = [0; 16];
            let len = client.sendrec(relay.endpoint(), &mut request, b"abc", &mut answer, NEVER);
            assert_eq!((len, number(&request), &answer[..3]), (Ok(3), 8, &b"xyz"[..]));
            assert_eq!(request.source, server.endpoint());
        }
    });
}

#[test]
fn of_two_requests_of_one_caller_the_one_that_is_named_is_passed_on() {
    for_both(|client, relay| {
        let relayed_to = relay.endpoint();
        scope(|threads| {
            let call = |value| {
                let (client, name) = (&client, relayed_to);
                move || {
                    let mut request = message(value);
                    client
                        .sendrec(name, &mut request, b"", &mut [], NEVER)
                        .map(|_| number(&request))
                }
            };
            let calls = [threads.spawn(call(1)), threads.spawn(call(2))];
            let got = [0, 1].map(|_| relay.rcvrqst(&mut [], NEVER).unwrap().message);
            relay.reply(client.endpoint(), &got[0], b"").unwrap();
            // It has been answered; the other one is not meant.
            assert_eq!(relay.relay(&got[0], client.endpoint()), Err(IpcError::NotWaiting));
            relay.reply(client.endpoint(), &got[1], b"").unwrap();
            assert_eq!(calls.map(|call| call.join().unwrap()), [Ok(1), Ok(2)]);
        });
    });
}

#[test]
fn a_request_in_a_circle_of_relays_ends_and_only_who_may_passes_it_on() {
    let cluster = Cluster::start();
    let client = cluster.bind(1);
    let circle = [cluster.bind(1), cluster.bind(2)];
    let is_over = AtomicBool::new(false);
    scope(|threads| {
        for at in 0..2 {
            let (own, next, is_over) = (&circle[at], circle[1 - at].endpoint(), &is_over);
            threads.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    if let Ok(got) = own.rcvrqst(&mut [], Some(Duration::from_millis(20))) {
                        own.relay(&got.message, next).unwrap();
                    }
                }
            });
        }
        let mut request = message(1);
        let sent = client.sendrec(circle[0].endpoint(), &mut request, b"", &mut [], NEVER);
        assert_eq!(sent, Err(IpcError::Deadlock));
        is_over.store(true, Ordering::SeqCst);
    });
    let rights = Rights { calls: call::ALL & !call::RELAY, ..circle[0].rights() };
    for relay in &circle {
        relay.set_priv(relay.endpoint(), &rights).unwrap();
        wait_until("it is told", || relay.rights() == rights);
        scope(|threads| {
            threads.spawn(|| {
                let mut request = message(1);
                client.sendrec(relay.endpoint(), &mut request, b"", &mut [], NEVER).unwrap();
            });
            let got = relay.rcvrqst(&mut [], NEVER).unwrap().message;
            assert_eq!(relay.relay(&got, client.endpoint()), Err(IpcError::Denied));
            let forged = Message { status: m3ipc::message::RELAYED, ..got };
            assert_eq!(relay.reply(got.source, &forged, b""), Err(IpcError::Protocol));
            relay.reply(got.source, &got, b"").unwrap();
        });
    }
}
