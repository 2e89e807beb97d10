//! Whatever arrives, the server answers or keeps it, and goes on.

use crate::host::{Host, on_node};
use calls::Row;
use calls::ipc::SemOpen;
use dvk::server::Gone;
use ipc_server::flags::O_CREAT;
use m3ipc::errno::numbers::ENOSYS;
use m3ipc::message::ARGS_SIZE;
use m3ipc::{Message, NodeId};
use proptest::prelude::*;

/// Call numbers around and in the table of ipc-server.
fn numbers() -> impl Strategy<Value = u16> {
    prop_oneof![9 => 0x2fe_u16..0x345, 1 => any::<u16>()]
}

/// Arguments: random bytes, or mostly small words, which hit objects more often.
fn arguments() -> impl Strategy<Value = [u8; ARGS_SIZE]> {
    let small = prop::collection::vec(prop_oneof![4 => 0u8..4, 1 => any::<u8>()], ARGS_SIZE);
    let sparse = small.prop_map(|bytes| {
        let mut args = [0; ARGS_SIZE];
        for (place, byte) in bytes.into_iter().enumerate() {
            if place % 4 == 0 {
                args[place] = byte;
            }
        }
        args
    });
    prop_oneof![any::<[u8; ARGS_SIZE]>(), sparse]
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        prop::sample::select(vec![b"/a".to_vec(), b"/b".to_vec(), vec![0; 8], vec![0; 16]]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn junk_is_answered(
        calls in prop::collection::vec((numbers(), arguments(), payloads(), 1u32..5), 1..60),
    ) {
        let mut host = Host::new();
        for (number, args, payload, process) in calls {
            let mut message = Message::request(number);
            message.args = args;
            host.send_raw(on_node(1, process, process % 2), message, &payload);
            if payload.len() % 7 == 0 {
                host.restart();
            }
            host.pass(u64::from(number));
        }
        host.gone(Gone::Node(NodeId(1)));
        let row = SemOpen { flags: O_CREAT, mode: 0o600, value: 1 };
        prop_assert!(host.call(on_node(2, 1, 0), row, b"/still-there").is_ok());
    }
}

#[test]
fn a_call_of_another_server_is_not_implemented() {
    for number in [0, 0x101, 0x205, 0x3ff, u16::MAX] {
        let mut host = Host::new();
        let call = host.send_raw(on_node(1, 1, 0), Message::request(number), b"");
        let (answer, _) = host.raw_answer(call).unwrap();
        assert_eq!(answer.status, u16::try_from(ENOSYS).unwrap(), "{number:#x}");
    }
    assert_eq!(SemOpen::NUMBER, 0x301);
}
