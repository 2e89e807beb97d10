//! Message queues of POSIX and System V: each message is received once, wherever both ends are.

use crate::semaphores::run_c;
use crate::{ALL, Test};
use legacy_tests::{Running, World, lab::NODES};
use std::collections::BTreeSet;

pub(crate) const TESTS: &[Test] = &[
    ("posix_queues_call_by_call", ALL, |world| run_c(world, "posix_mq", &world.name())),
    ("sysv_queues_call_by_call", ALL, |world| run_c(world, "sysv_msg", &world.key())),
    ("each_posix_message_is_received_once", ALL, |world| {
        each_once(world, "posix", &format!("/{}", world.name()));
    }),
    ("each_sysv_message_is_received_once", ALL, |world| each_once(world, "sysv", &world.key())),
];

/// What each node sends.
const COUNT: usize = 200;

/// Three send to one queue, three receive from it.
fn each_once(world: &World, kind: &str, name: &str) {
    let receivers: Vec<Running> = (0..3)
        .map(|node| world.start_script(node, "message.py", &[kind, name, "receive"]))
        .collect();
    world.on_all("message.py", &[kind, name, "send", "{node}", &COUNT.to_string()]);
    world.script(1, "message.py", &[kind, name, "end", "3"]);
    let output: String = receivers.into_iter().map(Running::succeed).collect();
    let received: BTreeSet<&str> = output.lines().collect();
    assert_eq!(output.lines().count(), 3 * COUNT, "some were received twice or never");
    let sent =
        NODES.iter().flat_map(|node| (0..COUNT).map(move |number| format!("{node}-{number}")));
    let lost: Vec<String> = sent.filter(|text| !received.contains(text.as_str())).collect();
    assert!(lost.is_empty(), "never received: {lost:?}");
    world.script(2, "message.py", &[kind, name, "remove"]);
}
