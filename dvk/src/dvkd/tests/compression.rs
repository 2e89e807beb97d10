//! Links whose frames are compressed, and those who do not want that.

use super::*;
use crate::dvkd::control::Control;
use crate::dvkd::packing::{self, PACKED_MIN};

/// Bytes that become shorter, and some that do not.
fn payloads() -> Vec<Vec<u8>> {
    let text = |len: usize| (0..len).map(|at| u8::try_from(at / 100 % 251).unwrap()).collect();
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    });
    vec![text(9000), noise.take(PAYLOAD_MAX).collect(), text(PAYLOAD_MAX), text(100)]
}

fn packed_in(cluster: &Cluster, node: usize) -> u64 {
    cluster.daemon(node).status().counters.packed_in
}

#[test]
fn large_frames_are_compressed_between_nodes_that_both_have_it_so() {
    let cluster = Cluster::start_as(3, &[], |config| {
        config.compression = if config.node == 3 { Packing::Never } else { Packing::Always };
    });
    let _server = cluster.server();
    let clients = [2, 3].map(|node| cluster.client(node));
    cluster.wait_for_links();
    std::thread::scope(|scope| {
        for client in clients.iter().cycle().take(8) {
            scope.spawn(|| {
                for payload in payloads().iter().cycle().take(40) {
                    assert_eq!(&client.call(ECHO, payload).unwrap(), payload);
                }
            });
        }
    });
    // Four threads of node 2 with 20 calls that become shorter, and so do their answers.
    assert_eq!([1, 2, 3].map(|node| packed_in(&cluster, node)), [80, 80, 0]);
    assert!((1..=3).all(|node| cluster.daemon(node).status().counters.protocol_errors == 0));
}

#[test]
fn calls_count_once_although_their_compressed_frames_are_lost_with_the_links() {
    let cluster = Cluster::start_as(2, &[], |config| config.compression = Packing::Always);
    let _server = cluster.server();
    let client = cluster.client(2);
    let done = AtomicU64::new(0);
    for _ in 0..20 {
        let before = done.load(Ordering::SeqCst);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        client.call(ADD, &[7; PAYLOAD_MAX]).unwrap();
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            wait_until("calls get on", || done.load(Ordering::SeqCst) > before);
            cluster.cut_links();
        });
    }
    assert_eq!(client.number(GET), 800);
    assert!(packed_in(&cluster, 1) >= 800);
}

#[test]
fn a_compressed_frame_ends_a_link_on_which_it_was_not_agreed_on() {
    let mut cluster = Cluster::start(2);
    cluster.wait_for_links();
    let [_small, bulk] = imposters::Imposter::of(&mut cluster, 1, 2).link();
    let packed = packing::pack(&[0; PACKED_MIN]).unwrap();
    let soon = Instant::now() + Duration::from_secs(10);
    bulk.write_all_by(&Control::Packed(&packed).encode(), soon).unwrap();
    wait_until("the link is ended", || imposters::is_ended(&bulk));
    assert!(cluster.daemon(2).status().counters.protocol_errors > 0);
}
