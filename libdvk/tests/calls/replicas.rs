//! Replicas: the nearest one answers, and another when that is gone.

use crate::cluster::{Cluster, NEVER, wait_until};
use dvk_client::{Bound, Endpoint, IpcError, Message};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;
use std::time::Duration;

const NUMBER: u32 = 90;
const ALL: Endpoint = Endpoint::replicated(NUMBER);

fn replica(cluster: &Cluster, node: usize) -> Bound {
    Bound::bind_replica(Some(&cluster.socket(node)), NUMBER).unwrap()
}

/// Who answers.
fn call(from: &Bound) -> Result<Endpoint, IpcError> {
    let mut request = Message::request(0x1004);
    from.sendrec(ALL, &mut request, b"", &mut [], NEVER).map(|_| request.source)
}

fn serve(bound: &Bound, is_over: &AtomicBool) {
    while !is_over.load(Ordering::SeqCst) {
        if let Ok(got) = bound.rcvrqst(&mut [], Some(Duration::from_millis(20))) {
            bound.reply(got.message.source, &got.message, b"").ok();
        }
    }
}

#[test]
fn who_calls_gets_the_replica_of_its_node_and_another_when_that_is_gone() {
    let cluster = Cluster::start();
    let client = cluster.bind(1);
    assert_eq!(call(&client), Err(IpcError::NotBound));
    let two = replica(&cluster, 2);
    assert_eq!(client.wait_bind(ALL, NEVER), Ok(two.endpoint()));
    let is_over = AtomicBool::new(false);
    scope(|threads| {
        threads.spawn(|| serve(&two, &is_over));
        assert_eq!(call(&client), Ok(two.endpoint()));
        let one = replica(&cluster, 1);
        let has_left = AtomicBool::new(false);
        scope(|threads| {
            threads.spawn(|| serve(&one, &has_left));
            for _ in 0..20 {
                assert_eq!(call(&client), Ok(one.endpoint()));
            }
            has_left.store(true, Ordering::SeqCst);
        });
        drop(one);
        for _ in 0..20 {
            assert_eq!(call(&client), Ok(two.endpoint()));
        }
        is_over.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_request_that_a_replica_has_not_received_goes_to_another_and_one_that_it_has_ends() {
    let cluster = Cluster::start();
    let clients = [0, 1].map(|_| cluster.bind(1));
    let two = replica(&cluster, 2);
    let one = replica(&cluster, 1);
    assert_eq!(clients[0].wait_bind(two.endpoint(), NEVER), Ok(two.endpoint()));
    let is_over = AtomicBool::new(false);
    scope(|threads| {
        threads.spawn(|| serve(&two, &is_over));
        let received = threads.spawn(|| call(&clients[0]));
        one.rcvrqst(&mut [], NEVER).unwrap();
        let posted = threads.spawn(|| call(&clients[1]));
        wait_until("the second has a channel", || {
            one.endpoint_info(one.endpoint()).unwrap().requesters == 2
        });
        drop(one);
        assert_eq!(received.join().unwrap(), Err(IpcError::DestinationDied));
        assert_eq!(posted.join().unwrap(), Ok(two.endpoint()));
        is_over.store(true, Ordering::SeqCst);
    });
}

#[test]
fn when_the_node_of_a_replica_goes_down_its_callers_go_to_another() {
    let mut cluster = Cluster::start();
    let client = cluster.bind(2);
    let one = replica(&cluster, 1);
    assert_eq!(client.wait_bind(ALL, NEVER), Ok(one.endpoint()));
    scope(|threads| {
        let called = threads.spawn(|| call(&client));
        let got = one.rcvrqst(&mut [], NEVER).unwrap();
        one.reply(got.message.source, &got.message, b"").unwrap();
        assert_eq!(called.join().unwrap(), Ok(one.endpoint()));
    });
    cluster.stop(1);
    assert_eq!(client.wait_unbind(ALL, NEVER), Ok(()));
    assert_eq!(call(&client), Err(IpcError::NotBound));
    let two = replica(&cluster, 2);
    scope(|threads| {
        let called = threads.spawn(|| call(&client));
        let got = two.rcvrqst(&mut [], NEVER).unwrap();
        two.reply(got.message.source, &got.message, b"").unwrap();
        assert_eq!(called.join().unwrap(), Ok(two.endpoint()));
    });
}
