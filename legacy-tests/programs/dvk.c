/* The prototype's tests and loops of M3-IPC, by their names, written anew over dvk.h.
 *
 *     dvk NAME server NUMBER
 *     dvk NAME client NUMBER SERVER_NODE
 *
 * The server binds itself as NUMBER of its node, the client looks for it there. Both check what they get. */
#define _GNU_SOURCE
#include "dvk/bind.h"
#include "dvk/copy.h"
#include "dvk/info.h"
#include "dvk/loops.h"
#include "dvk/message.h"
#include "dvk/migrate.h"

static const struct {
    const char *name;
    void (*server)(void), (*client)(void);
} tests[] = {
    {"test_bind", bind_server, meet},
    {"test_tbind", tbind_server, tbind_client},
    {"test_rmtbind", meet_server, rmtbind_client},
    {"test_unbind", unbind_server, unbind_client},
    {"test_wait4bind", meet_server, wait4bind_client},
    {"test_sendrec", sendrec_server, sendrec_client},
    {"test_sendrcv", sendrcv_server, sendrcv_client},
    {"test_receive", receive_server, receive_client},
    {"test_ntfyrcv", ntfyrcv_server, ntfyrcv_client},
    {"test_rr_rply", rr_rply_server, rr_rply_client},
    {"test_lclvcopy", lclvcopy_server, lclvcopy_client},
    {"test_lclvcopy3", lclvcopy3_server, lclvcopy3_client},
    {"test_set_priv", priv_server, priv_client},
    {"test_dc_info", info_server, meet},
    {"test_wakeup", wakeup_server, wakeup_client},
    {"test_bkupbind", bkupbind_server, bkupbind_client},
    {"test_migrate", migrate_server, migrate_client},
    {"test_priv_info", priv_info_server, meet},
    {"test_proxy_bind", proxy_server, proxy_client},
    {"test_node_down", node_down_server, node_down_client},
    {"test_umbind", umbind_server, umbind_client},
    {"test_replbind", replbind_server, replbind_client},
    {"test_unbind1", unbind1_server, unbind1_client},
    {"test_unbind2", unbind2_server, unbind2_client},
    {"test_unbind3", unbind3_server, unbind3_client},
    {"test_unbind4", unbind4_server, unbind4_client},
    {"test_unbind5", meet_server, unbind5_client},
    {"test_notify1", notify1_server, notify1_client},
    {"test_notify2", notify2_server, notify2_client},
    {"test_src_notify", src_notify_server, src_notify_client},
    {"test_hdw_notify", hdw_notify_server, hdw_notify_client},
    {"test_relay", relay_server, relay_client},
    {"test_vcopy1", vcopy1_server, vcopy1_client},
    {"test_vcopy2", vcopy2_server, vcopy2_client},
    {"test_vcopy3", lclvcopy3_server, lclvcopy3_client},
    {"test_vcopy4", vcopy4_server, vcopy4_client},
    {"test_priv", priv_only_server, priv_only_client},
    {"test_dvs_init", meet_server, dvs_init_client},
    {"test_dvs_info", meet_server, dvs_info_client},
    {"test_dc_init", dc_init_server, dc_init_client},
    {"test_getdcinfo", meet_server, getdcinfo_client},
    {"test_getnodeinfo", twice_server, getnodeinfo_client},
    {"test_getproxyinfo", twice_server, getproxyinfo_client},
    {"test_node_up", twice_server, node_up_client},
    {"test_add_node", add_node_server, add_node_client},
    {"client_server", payload_server, payload_client},
    {"latency", latency_server, latency_client},
    {"loop_dvk_copy1", copy1_server, copy1_client},
    {"loop_dvk_ipc1", loop1_server, loop1_client},
    {"loop_dvk_ipc2", loop2_server, loop2_client},
    {"loop_dvk_ipc3", ntfyrcv_server, ntfyrcv_client},
    {"loop_dvk_ipc4", loop4_server, loop2_client},
    {"loop_sr_client", rs_server, sr_client},
    {"loop_mol_bind", meet_server, mol_bind_client},
    {"loop_mol_getep", meet_server, mol_getep_client},
    {"loop_sr_mpeer", sr_mpeer_server, mpeer_client},
    {"loop_rr_mpeer", rr_mpeer_server, mpeer_client},
};

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    number = atoi(argv[3]);
    int is_server = strcmp(argv[2], "server") == 0;
    IS(dvk_open(), 0);
    IS(dvk_bind(0, is_server ? number : 0, &self), 0);
    if (is_server) {
        printf("bound\n");
        fflush(stdout);
    } else {
        server = DVK_EP(atoi(argv[4]), number);
        IS(dvk_wait4bindep_T(server, NULL, 60000), 0);
    }
    for (size_t at = 0; at < sizeof tests / sizeof *tests; at++)
        if (strcmp(tests[at].name, argv[1]) == 0) {
            (is_server ? tests[at].server : tests[at].client)();
            return check_end(argv[1]);
        }
    printf("there is no %s\n", argv[1]);
    return 2;
}
