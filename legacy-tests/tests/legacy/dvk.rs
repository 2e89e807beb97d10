//! The prototype's own tests and loops of M3-IPC, by their names: on one node, and between two.

use crate::{EMBEDDED, LAB, Test};
use legacy_tests::{World, program};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const TESTS: &[Test] = &[
    ("the_prototypes_tests_pass_by_name_on_one_node", EMBEDDED, |world| run_all(world, 0, 0)),
    ("the_prototypes_tests_pass_by_name_on_one_node_of_three", LAB, |world| run_all(world, 1, 1)),
    ("the_prototypes_tests_pass_by_name_between_nodes", LAB, |world| run_all(world, 0, 2)),
];

/// As `dvk-tests` and `dvk-loops` of the prototype have them.
const NAMES: [&str; 29] = [
    "test_bind",
    "test_tbind",
    "test_rmtbind",
    "test_unbind",
    "test_wait4bind",
    "test_sendrec",
    "test_sendrcv",
    "test_receive",
    "test_ntfyrcv",
    "test_rr_rply",
    "test_lclvcopy",
    "test_lclvcopy3",
    "test_set_priv",
    "test_dc_info",
    "test_wakeup",
    "test_bkupbind",
    "test_migrate",
    "test_priv_info",
    "test_proxy_bind",
    "test_node_down",
    "client_server",
    "latency",
    "loop_dvk_copy1",
    "loop_dvk_ipc1",
    "loop_dvk_ipc2",
    "loop_dvk_ipc3",
    "loop_dvk_ipc4",
    "loop_sr_mpeer",
    "loop_rr_mpeer",
];

/// Runs each with its server on one node and its client on another (by index).
fn run_all(world: &World, server: usize, client: usize) {
    let compiled = program::compile_with_dvk("dvk", world.scratch())
        .expect("gcc compiles the programs of the tests");
    let compiled = compiled.to_string_lossy();
    // Numbers of nodes begin with 1.
    let node = (server + 1).to_string();
    for name in NAMES {
        let number = fresh_number();
        let mut serves = world.start(server, &[&compiled, name, "server", &number]);
        serves.says("bound");
        let calls = world.start(client, &[&compiled, name, "client", &number, &node]);
        assert_eq!(calls.succeed(), format!("{name}: ok\n"));
        assert_eq!(serves.succeed(), format!("bound\n{name}: ok\n"));
    }
}

/// A well-known number that no test has had.
fn fresh_number() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(100);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}
