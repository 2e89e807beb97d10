//! Whatever arrives, the server answers or keeps it, and goes on.

use crate::host::{Caller, Host, SECOND, container, pid, process};
use calls::pm::Kill;
use dvk::server::Gone;
use m3ipc::errno::numbers::ENOSYS;
use m3ipc::message::ARGS_SIZE;
use m3ipc::{Message, NodeId};
use proptest::prelude::*;

fn callers() -> impl Strategy<Value = Caller> {
    prop_oneof![
        (0u16..4).prop_map(container),
        (1u16..4, 1u32..4).prop_map(|(node, index)| process(node, index))
    ]
}

/// Arguments: random bytes, or small words and pids of nodes, which hit things more often.
fn arguments() -> impl Strategy<Value = [u8; ARGS_SIZE]> {
    let word = prop_oneof![4 => 0u32..4, 2 => (1u16..4, 0u32..4).prop_map(|(node, index)| pid(node, index))];
    let words = prop::collection::vec(word, ARGS_SIZE / 4).prop_map(|words| {
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        *bytes.first_chunk().unwrap()
    });
    prop_oneof![1 => any::<[u8; ARGS_SIZE]>(), 4 => words]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every call ends, at the latest with the nodes.
    #[test]
    fn junk_is_answered(
        steps in prop::collection::vec(
            (callers(), 0x1fe_u16..0x20c, arguments(), prop::collection::vec(0u8..3, 0..100), 0u8..20),
            1..80,
        ),
    ) {
        let mut host = Host::with_nodes(2);
        let mut calls = Vec::new();
        for (caller, number, args, payload, event) in steps {
            let mut message = Message::request(number);
            message.args = args;
            calls.push(host.send_raw(caller, message, &payload));
            match event {
                0 => host.restart(),
                1 => host.gone(Gone::Node(NodeId(1))),
                2 => host.dies(caller),
                3 => host.join(2),
                4..7 => host.pass(SECOND),
                _ => {}
            }
        }
        for node in 1..4 {
            host.gone(Gone::Node(NodeId(node)));
        }
        prop_assert!(calls.into_iter().all(|call| !host.waits(call) || call.source.node().0 == 0));
        host.join(1);
        let row = Kill { pid: i32::try_from(pid(1, 7)).unwrap(), signal: 9 };
        host.send(process(1, 1), row, b"");
        prop_assert!(host.order(1).is_some());
    }
}

#[test]
fn a_call_of_another_server_is_not_implemented() {
    for number in [0, 0x101, 0x20a, 0x301, u16::MAX] {
        let mut host = Host::new();
        let call = host.send_raw(process(1, 1), Message::request(number), b"");
        let (answer, _) = host.raw_answer(call).unwrap();
        assert_eq!(answer.status, u16::try_from(ENOSYS).unwrap(), "{number:#x}");
    }
}
