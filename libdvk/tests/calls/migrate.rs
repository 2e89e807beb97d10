//! Endpoints that move from one process to another, on one node and between two, while others call them.

use crate::cluster::{Cluster, NEVER, NOWAIT, SHORT, wait_until, well_known};
use crate::liar::Liar;
use dvk_client::{Bound, Endpoint, IpcError, Kind, Message, NodeId};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;

const NUMBER: u32 = 70;

fn request(value: u64) -> Message {
    let mut message = Message::request(0x1001);
    message.args[..8].copy_from_slice(&value.to_le_bytes());
    message
}

fn value(message: &Message) -> u64 {
    u64::from_le_bytes(*message.args.first_chunk().unwrap())
}

fn call(from: &Bound, to: Endpoint, number: u64) -> Result<u64, IpcError> {
    let mut message = request(number);
    from.sendrec(to, &mut message, b"", &mut [], NEVER).map(|_| value(&message))
}

fn backup(cluster: &Cluster, node: usize, takes_over: bool) -> Bound {
    let home = well_known(1, NUMBER);
    Bound::bind_backup(Some(&cluster.socket(node)), home, takes_over).unwrap()
}

fn node(number: usize) -> NodeId {
    NodeId(u16::try_from(number).unwrap())
}

/// Answers requests with their value and one more until there are none; returns how many.
fn serve(bound: &Bound, stop: &AtomicBool, sum: &AtomicU64) {
    while !stop.load(Ordering::SeqCst) {
        // What the other had received, and counted, when the endpoint came here.
        for request in bound.inherited().unwrap_or_default() {
            let reply = Message { tag: request.tag, ..self::request(value(&request) + 1) };
            bound.reply(request.source, &reply, b"").ok();
        }
        match bound.rcvrqst(&mut [], SHORT) {
            Ok(got) => {
                let number = value(&got.message);
                sum.fetch_add(number, Ordering::SeqCst);
                let mut reply = request(number + 1);
                reply.tag = got.message.tag;
                let replied = bound.reply(got.message.source, &reply, b"");
                assert!(matches!(replied, Ok(()) | Err(IpcError::Moved)), "{replied:?}");
            }
            Err(IpcError::TimedOut) => {}
            Err(IpcError::Moved) => {
                if bound.wait_promoted(SHORT).is_err() {
                    continue;
                }
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Clients on both nodes call all the time while the endpoint goes to and fro: every call is answered once and executed
/// once.
#[test]
fn clients_see_only_a_pause_while_the_endpoint_goes_to_and_fro() {
    for to in [1, 2] {
        let cluster = Cluster::start();
        let first = cluster.bind_as(1, NUMBER);
        let name = first.endpoint();
        let second = backup(&cluster, to, false);
        let manager = cluster.bind(2);
        let (stop, sum) = (AtomicBool::new(false), AtomicU64::new(0));
        let (calling, total) = (AtomicBool::new(true), AtomicU64::new(0));
        let clients = [1, 2, 1, 2].map(|at| cluster.bind(at));
        scope(|scope| {
            scope.spawn(|| serve(&first, &stop, &sum));
            scope.spawn(|| serve(&second, &stop, &sum));
            let calls: Vec<_> = clients
                .iter()
                .enumerate()
                .map(|(index, client)| {
                    let (calling, total) = (&calling, &total);
                    // By its number, and by its exact address.
                    let to = if index < 2 { name } else { well_known(1, NUMBER) };
                    scope.spawn(move || {
                        let mut number = 0;
                        while calling.load(Ordering::SeqCst) {
                            number += 1;
                            assert_eq!(call(client, to, number), Ok(number + 1));
                            total.fetch_add(number, Ordering::SeqCst);
                        }
                        number
                    })
                })
                .collect();
            let mut places = [to, 1].into_iter().cycle();
            for round in 0..10 {
                manager.migrate_start(name).unwrap();
                if round % 3 == 2 {
                    manager.migrate_rollback(name).unwrap();
                    continue;
                }
                let place = node(places.next().unwrap());
                assert_eq!(manager.migrate_commit(name, place, None), Ok(name), "round {round}");
                let before = total.load(Ordering::SeqCst);
                wait_until("calls go on", || total.load(Ordering::SeqCst) > before + 20);
            }
            calling.store(false, Ordering::SeqCst);
            for thread in calls {
                assert!(thread.join().unwrap() > 0, "each got on");
            }
            stop.store(true, Ordering::SeqCst);
        });
        assert_eq!(sum.load(Ordering::SeqCst), total.load(Ordering::SeqCst), "once each, to {to}");
    }
}

/// Takes a request in, leaves others and a notification waiting, and moves.
#[test]
fn what_waits_goes_along_and_what_was_received_is_answered_where_it_is_then() {
    for (to, from) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let cluster = Cluster::start();
        let first = cluster.bind_as(1, NUMBER);
        let name = first.endpoint();
        let second = backup(&cluster, to, false);
        let clients = [0, 1, 2].map(|_| cluster.bind(from));
        let manager = cluster.bind(1);
        scope(|scope| {
            let received = scope.spawn(|| call(&clients[0], name, 10));
            let got = first.rcvrqst(&mut [], NEVER).unwrap();
            assert_eq!(value(&got.message), 10);
            let waits = scope.spawn(|| call(&clients[1], name, 20));
            clients[2].notify(name, 7).unwrap();
            manager.migrate_start(name).unwrap();
            let sends = scope.spawn(|| clients[2].send(name, &request(30), b"", NEVER));
            manager.migrate_commit(name, node(to), Some(second.endpoint())).unwrap();
            assert_eq!(second.wait_promoted(NEVER), Ok(name));
            assert_eq!(second.endpoint(), name);
            wait_until("it is a backup", || first.is_backup() && first.endpoint() != name);
            assert_eq!(first.rcvrqst(&mut [], NOWAIT).err(), Some(IpcError::Moved));
            assert_eq!(first.reply(got.message.source, &got.message, b""), Err(IpcError::Moved));
            let mut values = Vec::new();
            for _ in 0..3 {
                let next = second.receive(Endpoint::ANY, &mut [], NEVER).unwrap();
                values.push(match next.kind {
                    Kind::Notification(value) => value,
                    _ => value(&next.message),
                });
                if next.kind == Kind::Request {
                    second.reply(next.message.source, &next.message, b"").unwrap();
                }
            }
            values.sort_unstable();
            assert_eq!(values, [7, 20, 30], "from {from} to {to}: not what had been received");
            // The one that moved has its memory, and so knows what it had received.
            let reply = Message { tag: got.message.tag, ..request(11) };
            second.reply(got.message.source, &reply, b"").unwrap();
            assert_eq!(second.inherited(), Ok(Vec::new()));
            assert_eq!(received.join().unwrap(), Ok(11));
            assert_eq!(waits.join().unwrap(), Ok(20));
            assert_eq!(sends.join().unwrap(), Ok(()));
            assert_eq!(
                second.receive(Endpoint::ANY, &mut [], NOWAIT).err(),
                Some(IpcError::WouldBlock)
            );
        });
    }
}

#[test]
fn after_a_rollback_all_goes_on_as_if_nothing_had_happened() {
    for from in [1, 2] {
        let cluster = Cluster::start();
        let first = cluster.bind_as(1, NUMBER);
        let name = first.endpoint();
        let clients = [0, 1].map(|_| cluster.bind(from));
        let manager = cluster.bind(2);
        let is_stopped = AtomicBool::new(true);
        assert_eq!(manager.migrate_rollback(name), Err(IpcError::NotWaiting));
        assert_eq!(manager.migrate_commit(name, node(1), None), Err(IpcError::NotWaiting));
        scope(|scope| {
            let received = scope.spawn(|| call(&clients[0], name, 10));
            let got = first.rcvrqst(&mut [], NEVER).unwrap();
            clients[1].notify(name, 7).unwrap();
            manager.migrate_start(name).unwrap();
            assert_eq!(manager.migrate_start(name), Err(IpcError::Moved), "it is on the move");
            assert_eq!(manager.migrate_commit(name, node(2), None), Err(IpcError::NotBound));
            let waits = scope.spawn(|| call(&clients[1], name, 20));
            let (first, is_stopped) = (&first, &is_stopped);
            let replies = scope.spawn(move || {
                let replied = first.reply(got.message.source, &got.message, b"");
                assert!(!is_stopped.load(Ordering::SeqCst), "it makes no call meanwhile");
                replied
            });
            std::thread::yield_now();
            is_stopped.store(false, Ordering::SeqCst);
            manager.migrate_rollback(name).unwrap();
            assert_eq!(replies.join().unwrap(), Ok(()));
            assert_eq!(received.join().unwrap(), Ok(10));
            let mut next = first.receive(Endpoint::ANY, &mut [], NEVER).unwrap();
            // A notification of another node comes another way than a request.
            if next.kind == Kind::Notification(7) {
                next = first.receive(Endpoint::ANY, &mut [], NEVER).unwrap();
            } else {
                let late = first.receive(Endpoint::ANY, &mut [], NEVER).unwrap();
                assert_eq!(late.kind, Kind::Notification(7));
            }
            first.reply(next.message.source, &next.message, b"").unwrap();
            assert_eq!(waits.join().unwrap(), Ok(20));
        });
    }
}

#[test]
fn who_waits_ends_in_time_though_the_endpoint_is_on_the_move() {
    for from in [1, 2] {
        let cluster = Cluster::start();
        let first = cluster.bind_as(1, NUMBER);
        let name = first.endpoint();
        let client = cluster.bind(from);
        let manager = cluster.bind(1);
        manager.migrate_start(name).unwrap();
        let mut message = request(1);
        let sent = client.sendrec(name, &mut message, b"", &mut [], SHORT);
        assert_eq!(sent, Err(IpcError::TimedOut));
        assert_eq!(client.send(name, &request(2), b"", NOWAIT), Err(IpcError::WouldBlock));
        assert_eq!(client.wait_bind(name, NOWAIT), Ok(name), "it is bound");
        assert_eq!(client.wait_unbind(name, NOWAIT), Err(IpcError::WouldBlock));
        manager.migrate_rollback(name).unwrap();
        assert_eq!(first.receive(Endpoint::ANY, &mut [], SHORT).err(), Some(IpcError::TimedOut));
    }
}

#[test]
fn only_the_administrator_moves_and_only_what_has_a_number() {
    let cluster = Cluster::start();
    let (any, manager) = (cluster.bind(2), cluster.bind(1));
    assert_eq!(manager.migrate_start(any.endpoint()), Err(IpcError::Denied));
    assert_eq!(manager.migrate_start(well_known(2, 99)), Err(IpcError::NotBound));
    assert_eq!(manager.migrate_start(well_known(9, 99)), Err(IpcError::NotBound));
    let socket = cluster.socket(1);
    let none = Bound::bind_backup(Some(&socket), any.endpoint(), false).err();
    assert_eq!(none, Some(IpcError::NotBound));
}

#[test]
fn who_watches_an_endpoint_hears_of_its_end_where_it_is_then_and_its_number_is_free_again() {
    for from in [1, 2] {
        let cluster = Cluster::start();
        let first = cluster.bind_as(1, NUMBER);
        let name = first.endpoint();
        let second = backup(&cluster, 2, false);
        let (watcher, manager) = (cluster.bind(from), cluster.bind(1));
        scope(|scope| {
            let ends = scope.spawn(|| watcher.wait_unbind(name, NEVER));
            let receiver = cluster.bind(from);
            let dies = scope.spawn(move || receiver.receive(name, &mut [], NEVER).err());
            manager.migrate_start(name).unwrap();
            manager.migrate_commit(name, node(2), None).unwrap();
            second.wait_promoted(NEVER).unwrap();
            drop(first);
            let taken = Bound::bind(Some(&cluster.socket(1)), NUMBER);
            assert_eq!(taken.err(), Some(IpcError::InUse), "it lives elsewhere");
            assert_eq!(watcher.wait_bind(well_known(1, NUMBER), NEVER), Ok(name));
            second.unbind().unwrap();
            assert_eq!(ends.join().unwrap(), Ok(()));
            assert_eq!(dies.join().unwrap(), Some(IpcError::SourceDied));
        });
        // Node 1 hears of it a moment after whoever watches on node 2.
        let mut next = None;
        wait_until("its number is free again", || {
            next = Bound::bind(Some(&cluster.socket(1)), NUMBER).ok();
            next.is_some()
        });
        let next = next.expect("it is bound");
        assert!(next.endpoint().generation > name.generation, "another owner");
        assert_eq!(watcher.wait_bind(well_known(1, NUMBER), NEVER), Ok(next.endpoint()));
        assert_eq!(call(&watcher, name, 1), Err(IpcError::Stale));
    }
}

#[test]
fn a_backup_takes_over_when_the_process_dies_and_what_that_had_received_ends() {
    for to in [1, 2] {
        for from in [1, 2] {
            let cluster = Cluster::start();
            let second = backup(&cluster, to, true);
            let first = cluster.bind_as(1, NUMBER);
            let name = first.endpoint();
            let clients = [0, 1].map(|_| cluster.bind(from));
            let herald = cluster.bind(to);
            scope(|scope| {
                // What comes from the backup's node after it says that it stands by.
                let told = scope.spawn(|| call(&herald, name, 1));
                let got = first.rcvrqst(&mut [], NEVER).unwrap();
                first.reply(got.message.source, &got.message, b"").unwrap();
                assert_eq!(told.join().unwrap(), Ok(1));
                let received = scope.spawn(|| call(&clients[0], name, 10));
                first.rcvrqst(&mut [], NEVER).unwrap();
                let waits = scope.spawn(|| call(&clients[1], name, 20));
                drop(first);
                assert_eq!(second.wait_promoted(NEVER), Ok(name), "from {from} to {to}");
                assert_eq!(received.join().unwrap(), Err(IpcError::DestinationDied));
                let got = second.rcvrqst(&mut [], NEVER).unwrap();
                second.reply(got.message.source, &got.message, b"").unwrap();
                assert_eq!(waits.join().unwrap(), Ok(20));
            });
        }
    }
}

#[test]
fn a_backup_takes_over_when_the_node_goes_down() {
    let mut cluster = Cluster::start();
    let second = backup(&cluster, 2, true);
    let first = cluster.bind_as(1, NUMBER);
    let name = first.endpoint();
    let client = cluster.bind(2);
    scope(|scope| {
        let answered = scope.spawn(|| call(&client, name, 1));
        let got = first.rcvrqst(&mut [], NEVER).unwrap();
        first.reply(got.message.source, &got.message, b"").unwrap();
        assert_eq!(answered.join().unwrap(), Ok(1));
    });
    // Only what the system group knows of can be taken over, and it is told at its leisure.
    wait_until("the group has its place", || cluster.placed(2) == 1);
    cluster.stop(1);
    assert_eq!(second.wait_promoted(NEVER), Ok(name));
    scope(|scope| {
        let answered = scope.spawn(|| call(&client, name, 2));
        let got = second.rcvrqst(&mut [], NEVER).unwrap();
        second.reply(got.message.source, &got.message, b"").unwrap();
        assert_eq!(answered.join().unwrap(), Ok(2));
    });
}

#[test]
fn a_process_that_does_not_stop_when_its_node_is_fenced_reaches_nobody() {
    let mut cluster = Cluster::start();
    let other = cluster.bind(1);
    let mut liar = Liar::open(&cluster, NUMBER, other.endpoint());
    let second = backup(&cluster, 2, true);
    // What comes from the backup's node after it says that it stands by.
    let herald = cluster.bind(2);
    herald.notify(other.endpoint(), 1).unwrap();
    other.receive(herald.endpoint(), &mut [], NEVER).unwrap();
    liar.send();
    let got = other.receive(Endpoint::ANY, &mut [], NEVER).unwrap();
    assert_eq!(got.message.source, liar.endpoint);
    other.receive(Endpoint::ANY, &mut [], NEVER).unwrap();
    // A majority that is gone is as one that cannot be reached.
    cluster.stop(3);
    cluster.stop(2);
    drop(second);
    liar.reopen();
    liar.send();
    // Whatever dvkd had told it before it answers this has come.
    other.get_priv(other.endpoint()).unwrap();
    assert_eq!(other.receive(Endpoint::ANY, &mut [], SHORT).err(), Some(IpcError::TimedOut));
    assert_eq!(liar.ask_for(other.endpoint()), Err(IpcError::Moved));
}

#[test]
fn whoever_is_blocked_can_be_woken() {
    for (at, to) in [(1, 1), (1, 2), (2, 1)] {
        let cluster = Cluster::start();
        let (blocked, silent, manager) = (cluster.bind(at), cluster.bind(to), cluster.bind(1));
        let name = blocked.endpoint();
        assert_eq!(manager.wakeup(name), Ok(name), "nothing is blocked: nothing happens");
        let far = Endpoint::well_known(NodeId(2), 99);
        type Wait<'a> = &'a (dyn Fn() -> Option<IpcError> + Sync);
        let waits: [Wait<'_>; 4] = [
            &|| blocked.receive(Endpoint::ANY, &mut [], NEVER).err(),
            &|| blocked.rcvrqst(&mut [], NEVER).err(),
            &|| call(&blocked, silent.endpoint(), 1).err(),
            &|| blocked.wait_bind(far, NEVER).err(),
        ];
        for wait in waits {
            let is_over = AtomicBool::new(false);
            scope(|scope| {
                let woken = scope.spawn(|| {
                    let ended = wait();
                    is_over.store(true, Ordering::SeqCst);
                    ended
                });
                while !is_over.load(Ordering::SeqCst) {
                    manager.wakeup(name).unwrap();
                    std::thread::yield_now();
                }
                assert_eq!(woken.join().unwrap(), Some(IpcError::WokenUp));
            });
        }
    }
}
