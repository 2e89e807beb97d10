//! How busy nodes are, and the DC on them: what programs are told.

use crate::cluster::{Cluster, NEVER, wait_until};
use dvk_client::{Bound, DcId, IpcError, Message, NodeId};
use std::thread::scope;
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

/// So many calls from one to the other.
fn call(one: &Bound, two: &Bound, count: usize) {
    scope(|threads| {
        threads.spawn(|| {
            for _ in 0..count {
                let got = two.rcvrqst(&mut [0; 64], NEVER).unwrap();
                two.reply(got.message.source, &got.message, b"").unwrap();
            }
        });
        for _ in 0..count {
            let mut request = Message::request(0x1001);
            one.sendrec(two.endpoint(), &mut request, b"0123456789", &mut [0; 64], NEVER).unwrap();
        }
    });
}

#[test]
fn each_node_knows_how_busy_all_are_and_who_calls_whom() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.bind(1), cluster.bind(2));
    let nodes = [NodeId(1), NodeId(2)];
    // As both see it: calls leave the first node and come to the second.
    wait_until("all is known", || {
        call(&one, &two, 10);
        [&one, &two].iter().all(|asker| {
            let [Ok(from), Ok(to)] = nodes.map(|node| asker.dc_load(node, NOW)) else {
                return false;
            };
            let is_linked = |node| asker.node_load(node, NOW).is_ok_and(|load| load.links == 2);
            // Ten bytes each.
            from.calls_out > 0
                && from.bytes_out >= 9 * from.calls_out
                && to.calls_in > 0
                && nodes.into_iter().all(is_linked)
        })
    });
    for node in nodes {
        let load = one.node_load(node, NOW).unwrap();
        assert_eq!((load.node, load.links), (node.0.into(), 2));
        assert!(load.cpus > 0 && load.busy <= 1000 * load.cpus, "{load:?}");
        assert!(load.memory_available > 0 && load.memory_available <= load.memory_total);
        assert!(load.span_ms > 0 && load.endpoints >= 1, "{load:?}");
        let dc = one.dc_load(node, NOW).unwrap();
        assert_eq!((DcId(dc.dc), dc.node, dc.endpoints), (one.dc(), node.0.into(), 1));
        assert!(dc.processes == 1 && dc.memory > 0, "this process is bound there: {dc:?}");
    }
    let to = one.dc_load(NodeId(2), NOW).unwrap();
    assert!(to.served[..3] == [0; 3] && to.calls_out == 0, "no server was called: {to:?}");
    assert_eq!(one.node_load(NodeId(4), NOW), Err(IpcError::NotBound));
    assert_eq!(one.dc_load(NodeId(4), NOW), Err(IpcError::NotBound));
    // Nothing was known then.
    let before = Duration::from_secs(600);
    assert_eq!(one.node_load(NodeId(1), before), Err(IpcError::WouldBlock));
}
