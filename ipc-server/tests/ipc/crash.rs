//! kill -9 of the server: a history with a restart after every step is the same as one without.

use crate::host::{Host, on_node};
use calls::Row;
use calls::ipc::{
    FOREVER, MqAttr, MqAttributes, MqClose, MqOpen, MqReceive, MqSend, MqUnlink, MsgCtl, MsgGet,
    MsgReceive, MsgSend, SemClose, SemCtl, SemGet, SemGetvalue, SemOp, SemOpen, SemOps, SemPost,
    SemUnlink, SemWait,
};
use dvk::server::Gone;
use ipc_server::flags::{
    IPC_CREAT, IPC_NOWAIT, IPC_RMID, IPC_STAT, O_CREAT, O_RDWR, SEM_UNDO, SETVAL,
};
use m3ipc::{CallId, Message, NodeId};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Call { node: u16, process: u32, what: usize, a: u8, b: u8, wait: bool },
    Dies(u16, u32),
    NodeDies(u16),
}

fn request<R: Row>(row: R) -> Message {
    let mut message = Message::request(R::NUMBER);
    row.put(&mut message.args);
    message
}

/// Call number `what` with small random arguments. `ids` are those that opens have returned.
fn build(what: usize, a: u8, b: u8, wait: bool, ids: &[u64]) -> (Message, Vec<u8>) {
    let name = format!("/{}", a % 2).into_bytes();
    let id = ids.get(usize::from(a) % ids.len().max(1)).copied().unwrap_or(1);
    let sysv = i32::from(a % 3) + 32_768 * i32::from(b % 3);
    let wait_ns = if wait { FOREVER } else { 0 };
    let flags = if wait { 0 } else { IPC_NOWAIT };
    let (kind, op) = (i64::from(b % 4), i32::from(b % 5) - 2);
    let attr = MqAttr { max_messages: 1, message_size: 8, ..MqAttr::default() };
    let undo = if a.is_multiple_of(2) { SEM_UNDO } else { 0 };
    match what {
        0 => (request(SemOpen { flags: O_CREAT, mode: 0o600, value: u32::from(b % 2) }), name),
        1 => (request(SemClose { id }), vec![]),
        2 => (request(SemUnlink {}), name),
        3 => (request(SemWait { id, wait_ns }), vec![]),
        4 => (request(SemPost { id }), vec![]),
        5 => (request(SemGetvalue { id }), vec![]),
        6 => {
            let row = MqOpen { flags: O_CREAT | O_RDWR, mode: 0o600, attr_len: 32 };
            (request(row), [&attr.bytes()[..], &name].concat())
        }
        7 => (request(MqClose { id }), vec![]),
        8 => (request(MqUnlink {}), name),
        9 => (request(MqSend { id, priority: u32::from(b % 3), wait_ns }), vec![b; 3]),
        10 => (request(MqReceive { id, size: 8, wait_ns }), vec![]),
        11 => (request(MqAttributes { id, set: 0, flags: 0 }), vec![]),
        12 => {
            (request(SemGet { key: i32::from(a % 3), count: 2, flags: IPC_CREAT | 0o600 }), vec![])
        }
        13 | 14 => {
            let ops = [(u16::from(a % 2), op), (u16::from(b % 2), 1)];
            let ops = ops.map(|(number, op)| SemOp { number, op, flags: undo }.bytes());
            (request(SemOps { id: sysv, wait_ns }), ops[..=usize::from(b % 2)].concat())
        }
        15 => {
            let command = [SETVAL, IPC_STAT, IPC_RMID][usize::from(b % 3)];
            (request(SemCtl { id: sysv, number: 1, command, value: 1 }), vec![])
        }
        16 => (request(MsgGet { key: i32::from(a % 3), flags: IPC_CREAT | 0o600 }), vec![]),
        17 => (request(MsgSend { id: sysv, kind: kind + 1, flags }), vec![b; 6000]),
        18 => (request(MsgReceive { id: sysv, kind: kind - 2, size: 8192, flags }), vec![]),
        _ => {
            let command = [IPC_STAT, IPC_STAT, IPC_RMID][usize::from(b % 3)];
            (request(MsgCtl { id: sysv, command }), vec![])
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let call = (1u16..3, 1u32..4, 0usize..20, any::<u8>(), any::<u8>(), any::<bool>());
    let step = prop_oneof![
        20 => call.prop_map(|(node, process, what, a, b, wait)| {
            Step::Call { node, process, what, a, b, wait }
        }),
        1 => (1u16..3, 1u32..4).prop_map(|(node, process)| Step::Dies(node, process)),
        1 => (1u16..3).prop_map(Step::NodeDies),
    ];
    prop::collection::vec(step, 1..120)
}

/// Runs the steps; returns the calls in the order of their answers, with their answers.
fn run(steps: &[Step], restarts: bool) -> Vec<(CallId, Message, Vec<u8>)> {
    let mut host = Host::new();
    let mut ids: Vec<u64> = Vec::new();
    let mut waiting: Vec<CallId> = Vec::new();
    for step in steps {
        match step {
            Step::Call { node, process, what, a, b, wait } => {
                let process = on_node(*node, *process, 0);
                // A process that waits makes no other call.
                waiting.retain(|call| host.waits(*call));
                if waiting.iter().any(|call| call.source == process.endpoint) {
                    continue;
                }
                let (message, payload) = build(*what, *a, *b, *wait, &ids);
                let call = host.send_raw(process, message, &payload);
                waiting.push(call);
                if let Some((answer, _)) = host.raw_answer(call)
                    && [SemOpen::NUMBER, MqOpen::NUMBER].contains(&answer.call)
                    && answer.status == 0
                {
                    ids.push(u64::from_le_bytes(*answer.args.first_chunk().unwrap()));
                }
            }
            Step::Dies(node, process) => host.dies(on_node(*node, *process, 0)),
            Step::NodeDies(node) => host.gone(Gone::Node(NodeId(*node))),
        }
        if restarts {
            host.restart();
        }
    }
    let answer = |call: &CallId| {
        let (message, payload) = host.raw_answer(*call).unwrap();
        (*call, *message, payload.clone())
    };
    host.order.iter().map(answer).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_restart_after_every_step_changes_nothing(steps in steps()) {
        prop_assert_eq!(run(&steps, true), run(&steps, false));
    }
}
