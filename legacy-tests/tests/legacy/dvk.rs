//! The prototype's own tests and loops of M3-IPC, by their names: on one node, and between two.
//!
//! The programs are `programs/dvk.c` and `programs/dvk/`, written anew: of the prototype there are the names and what is
//! known of their purpose. A name of `dvk-tests` and `dvk-loops` is a test of that name here, and each is run on one node
//! and between two, so what the prototype has a second test for ("rmt", "proxy") is the same test between nodes.
//!
//! | historical | here |
//! |---|---|
//! | `test_{bind, tbind, umbind, rmtbind, unbind, wait4bind, wakeup, sendrec, sendrcv, receive, ntfyrcv, rr_rply, lclvcopy, lclvcopy3, priv, set_priv, priv_info, dvs_init, dvs_info, dc_init, dc_info, add_node, node_up, node_down, proxy_bind}` | the same |
//! | `client_server` | the same: messages with payload |
//! | `latency_client`, `latency_server` | `latency`: its two programs |
//! | `loop_dvk_ipc1` to `ipc4`, `loop_dvk_copy1`, `loop_sr_mpeer`, `loop_rr_mpeer` | the same |
//! | `loop_sr_client` with `loop_r-s_server` | `loop_sr_client`: its two programs |
//! | `loop_copy_client`, `loop_copy_server`; `copy_client`, `copy_server` | `loop_dvk_copy1` between nodes |
//! | MOL-IPC `test_{bkupbind, migrate, hdw_notify, src_notify, vcopy1 to 4, unbind1 to 5, notify1, notify2}` | the same |
//! | MOL-IPC `test_getdvsinfo` | `test_dvs_info` |
//! | MOL-IPC `test_{getdcinfo, getnodeinfo, getproxyinfo}` | the same |
//! | `migr_client`, `migr_server` (dvs_run) | `test_migrate`: its two programs |
//! | replica bind, relay (no test is known) | `test_replbind`, `test_relay` |
//! | MOL-IPC `test_proxy3` to `6`, `n`, `r`, `s`, `sr`; `proxy_rmt{sendrec, sendrcv, rqstrply, notify}` | `test_sendrec`, `test_sendrcv`, `test_rr_rply`, `test_ntfyrcv` between nodes |
//! | MOL-IPC `test_proxy_vcopy1` to `4`, `proxy_rmt{datain, dataout}` | `test_vcopy1` to `test_vcopy4` between nodes |
//! | MOL-IPC `loop_mol_ipc1` to `ipc4`, `copy1`, `rqrp`, `mpeer` | `loop_dvk_ipc1` to `ipc4`, `loop_dvk_copy1`, `loop_dvk_ipc4`, `loop_sr_mpeer` |
//! | MOL-IPC `loop_mol_bind`, `loop_mol_getep` | the same |
//! | MOL-IPC `loop_mol_mthreads` | `test_tbind`, `loop_sr_mpeer`: a thread each |
//!
//! Without a meaning here:
//!
//! | historical | why |
//! |---|---|
//! | `uml_test`, `vm_read`, `demo_clone`, `namespaces` | of the prototype's kernel module and of user-mode Linux, not of M3-IPC |
//! | `loop_mol_copy2`, `zcopy1`, `zcopy2`; affinity, aligned and size variants; `loop_{tcp, mq, unix, pipe, fifo, simpl, srr, tipc, lpc}.sh`, `mperf` | measurements: `bench` has them, beside the same of Linux |
//! | `rdisktests`, `cliente_dev*`, `loop_readimg`, `loop_writeimg`, `m3ftp`, `test_rs*` | of servers (RDISK, M3FTP, RS), not of M3-IPC |
//! | `tests*.sh`, `muk*.sh`, `test_lb.sh`, `test_dsp.sh`, `test_uml.sh`, `test_radar` | scripts and services of their own |

use crate::{EMBEDDED, LAB, Test};
use legacy_tests::{World, program};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const TESTS: &[Test] = &[
    ("the_prototypes_tests_pass_by_name_on_one_node", EMBEDDED, |world| run_all(world, 0, 0)),
    ("the_prototypes_tests_pass_by_name_on_one_node_of_three", LAB, |world| run_all(world, 1, 1)),
    ("the_prototypes_tests_pass_by_name_between_nodes", LAB, |world| run_all(world, 0, 2)),
    ("the_prototypes_tests_pass_by_name_between_nodes_without_servers", LAB, |world| {
        run_all(world, 1, 2);
    }),
];

/// As `programs/dvk.c` has them.
const NAMES: [&str; 57] = [
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
    "test_umbind",
    "test_replbind",
    "test_unbind1",
    "test_unbind2",
    "test_unbind3",
    "test_unbind4",
    "test_unbind5",
    "test_notify1",
    "test_notify2",
    "test_src_notify",
    "test_hdw_notify",
    "test_relay",
    "test_vcopy1",
    "test_vcopy2",
    "test_vcopy3",
    "test_vcopy4",
    "test_priv",
    "test_dvs_init",
    "test_dvs_info",
    "test_dc_init",
    "test_getdcinfo",
    "test_getnodeinfo",
    "test_getproxyinfo",
    "test_node_up",
    "test_add_node",
    "client_server",
    "latency",
    "loop_dvk_copy1",
    "loop_dvk_ipc1",
    "loop_dvk_ipc2",
    "loop_dvk_ipc3",
    "loop_dvk_ipc4",
    "loop_sr_client",
    "loop_mol_bind",
    "loop_mol_getep",
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
