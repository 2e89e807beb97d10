/* What can be asked and set: privileges, information, nodes and the links to them. */
#ifndef DVK_INFO_H
#define DVK_INFO_H

#include "meeting.h"

/* ---- test_priv, test_set_priv, test_priv_info, test_dc_info ---- */

static void priv_server(void) {
    dvk_priv rights, wrong;
    IS(dvk_getpriv(self, &rights), 0);
    IS(rights.version, DVK_INFO_VERSION);
    IS(rights.calls, DVK_CALL_ALL);
    wrong = rights;
    wrong.calls = 1 << 20;
    IS(dvk_setpriv(self, &wrong), -EDVSBADREQUEST);
    meet_client();
    rights.calls = DVK_CALL_RCVRQST;
    IS(dvk_setpriv(self, &rights), 0);
    dvk_message message = request(0);
    IS(dvk_send_T(server, &message, 10), -EDVSCALLDENIED);
    IS(dvk_reply(self, &message), -EDVSCALLDENIED);
    IS(dvk_ntfy_value(server, 1), -EDVSCALLDENIED);
    rights.calls = DVK_CALL_ALL;
    rights.from.all = 0;
    IS(dvk_setpriv(self, &rights), 0);
    /* The client calls all the time: one request may have arrived before. No other does. */
    int result = dvk_rcvrqst_T(&message, 200);
    if (result == 0)
        result = dvk_rcvrqst_T(&message, 200);
    IS(result, -EDVSTIMEDOUT);
    rights.from.all = 1;
    IS(dvk_setpriv(self, &rights), 0);
    /* Some of what it asks it has given up. */
    do {
        IS(dvk_rcvrqst(&message), 0);
        dvk_reply(message.source, &message);
    } while (message.m.l[0] != 1);
}

static void priv_client(void) {
    meet();
    /* Refused while the server takes messages of nobody. */
    dvk_message message = request(0);
    int result;
    while ((result = dvk_sendrec_T(server, &message, 20)) == -EDVSTIMEDOUT || result == -EDVSCALLDENIED)
        message = request(0);
    IS(result, 0);
    message = request(1);
    IS(dvk_sendrec(server, &message), 0);
}

static void info_server(void) {
    dvk_dc_info dc;
    dvk_proc_info proc;
    dvk_node_info node;
    IS(dvk_getdcinfo(0, &dc), 0);
    IS(dc.version, DVK_INFO_VERSION);
    IS(dc.node, DVK_EP_NODE(self));
    IS(dc.copy_max, 1 << 20);
    IS(dvk_getdcinfo(99, &dc), -EDVSBADDCID);
    IS(dvk_getprocinfo(self, &proc), 0);
    IS(proc.pid, getpid());
    IS(proc.endpoint == self, 1);
    IS(proc.level, DVK_LEVEL_SERVER);
    IS(dvk_getnodeinfo(DVK_EP_NODE(self), &node), 0);
    IS(node.link, DVK_LINK_SELF);
    IS(dvk_getnodeinfo(4000, &node), -EDVSNOTBIND);
    dvk_ep_t client = meet_client();
    IS(dvk_getnodeinfo(DVK_EP_NODE(client), &node), 0);
    IS(node.link, DVK_EP_NODE(client) == DVK_EP_NODE(self) ? DVK_LINK_SELF : DVK_LINK_UP);
}

/* ---- test_proxy_bind, test_node_down: the link between the two nodes ---- */

static void link_errors(int nodeid) {
    IS(dvk_proxy_conn(nodeid, DVK_DISCONNECT_SPROXY), -EDVSNOTBIND);
    IS(dvk_node_down(nodeid), -EDVSNOTBIND);
    IS(dvk_node_up(nodeid), -EDVSNOTBIND);
    IS(dvk_proxy_conn(nodeid, 0), -EDVSINVAL);
}

static void proxy_client(void) {
    int node = DVK_EP_NODE(server);
    dvk_message message = request(5);
    link_errors(4000);
    meet();
    if (node == DVK_EP_NODE(self)) {
        link_errors(node);
    } else {
        dvk_node_info info;
        IS(dvk_proxy_conn(node, DVK_DISCONNECT_SPROXY), 0);
        IS(dvk_getnodeinfo(node, &info), 0);
        IS(info.link, DVK_LINK_CUT);
        IS(dvk_sendrec_T(server, &message, 300), -EDVSTIMEDOUT);
        IS(dvk_proxy_conn(node, DVK_CONNECT_SPROXY), 0);
    }
    message = request(6);
    IS(dvk_sendrec(server, &message), 0);
    IS(message.m.l[0], 6);
}

static void proxy_server_rest(void) {
    dvk_message message;
    /* What was given up may have come before it was. */
    do {
        IS(dvk_rcvrqst(&message), 0);
        dvk_reply(message.source, &message);
    } while (message.m.l[0] != 6);
}

static void proxy_server(void) {
    meet_client();
    proxy_server_rest();
}

static void node_down_client(void) {
    int node = DVK_EP_NODE(server);
    dvk_message message = request(5);
    meet();
    if (node == DVK_EP_NODE(self))
        return;
    IS(dvk_node_down(node), 0);
    IS(dvk_sendrec(server, &message), -EDVSNONODE);
    IS(dvk_wait4bindep_T(server, NULL, 1000), -EDVSNONODE);
    IS(dvk_node_up(node), 0);
    /* It is there again when the link is. */
    int result;
    while ((result = dvk_wait4bindep_T(server, NULL, 1000)) == -EDVSNONODE)
        sched_yield();
    IS(result, 0);
    message = request(6);
    IS(dvk_sendrec(server, &message), 0);
}

static void node_down_server(void) {
    dvk_ep_t client = meet_client();
    if (DVK_EP_NODE(client) != DVK_EP_NODE(self))
        proxy_server_rest();
}

/* ---- test_priv, test_priv_info: what an endpoint has to begin with ---- */

static void priv_info_server(void) {
    dvk_priv rights;
    IS(dvk_getpriv(self, &rights), 0);
    IS(rights.level, DVK_LEVEL_SERVER);
    IS(rights.to.all && rights.from.all, 1);
    IS(dvk_getpriv(self, NULL), -EDVSFAULT);
    IS(dvk_getpriv(DVK_EP(DVK_EP_NODE(self), 1021), &rights), -EDVSNOTBIND);
    meet_client();
}

/* ---- test_priv: the calls that are left without the right ---- */

static void *without_rights(void *place) {
    dvk_ep_t *own = place;
    dvk_priv rights;
    dvk_message message = request(0);
    IS(dvk_tbind(0, 0, own), 0);
    IS(dvk_getpriv(*own, &rights), 0);
    rights.level = DVK_LEVEL_USER;
    rights.calls = DVK_CALL_SENDREC;
    IS(dvk_setpriv(*own, &rights), 0);
    /* What an ordinary process may: ask, and be answered. */
    IS(dvk_sendrec(server, &message), 0);
    IS(dvk_send(server, &message), -EDVSCALLDENIED);
    IS(dvk_ntfy_value(server, 1), -EDVSCALLDENIED);
    IS(dvk_receive_T(DVK_ANY, &message, DVK_NOWAIT), -EDVSCALLDENIED);
    IS(dvk_rcvrqst_T(&message, DVK_NOWAIT), -EDVSCALLDENIED);
    IS(dvk_reply(server, &message), -EDVSCALLDENIED);
    IS(dvk_relay(server, &message), -EDVSCALLDENIED);
    IS(dvk_vcopy(server, NULL, *own, buffer, 1), -EDVSCALLDENIED);
    rights.to.all = 0;
    rights.to.count = 1;
    rights.to.slots[0] = (uint32_t)DVK_EP(DVK_EP_NODE(server), 1021);
    IS(dvk_setpriv(*own, &rights), 0);
    IS(dvk_sendrec(server, &message), -EDVSCALLDENIED);
    return NULL;
}

static void priv_only_client(void) {
    dvk_ep_t own;
    pthread_t thread;
    IS(pthread_create(&thread, NULL, without_rights, &own), 0);
    IS(pthread_join(thread, NULL), 0);
    meet();
}

static void priv_only_server(void) {
    meet_client();
    meet_client();
}

/* ---- test_dvs_init, test_dvs_info, test_dc_init, test_getdcinfo, test_getnodeinfo, test_getproxyinfo ---- */

static void dvs_init_client(void) {
    dvk_dvs_info dvs = {0};
    IS(dvk_dvs_init(DVK_EP_NODE(self), NULL), -EDVSDVSINIT);
    IS(dvk_dvs_init(DVK_EP_NODE(self), &dvs), -EDVSDVSINIT);
    IS(dvs.node, DVK_EP_NODE(self));
    IS(dvk_dvs_init(DVK_EP_NODE(self) + 1, &dvs), -EDVSBADNODEID);
    IS(dvk_dvs_init(-1, &dvs), -EDVSBADNODEID);
    meet();
}

static void dvs_info_client(void) {
    dvk_dvs_info dvs;
    IS(dvk_getdvsinfo(NULL), -EDVSFAULT);
    IS(dvk_getdvsinfo(&dvs), 0);
    IS(dvs.version, DVK_INFO_VERSION);
    IS(dvs.node, DVK_EP_NODE(self));
    IS(dvs.node_max, 4095);
    IS(dvs.payload_max, DVK_PAYLOAD_MAX);
    IS(dvs.copy_max, 1 << 20);
    IS(dvs.well_known_max, 1023);
    IS(dvs.door > 0 && dvs.link > 0 && dvs.endpoint_max > dvs.well_known_max, 1);
    meet();
}

/* The DC is there; its end is that of its endpoints on this node. */
static void dc_init_client(void) {
    dvk_dc_info dc;
    dvk_message message = request(0);
    dvk_ep_t exact, before = self;
    int is_here = DVK_EP_NODE(server) == DVK_EP_NODE(self);
    IS(dvk_wait4bindep_T(server, &exact, 0), 0);
    IS(dvk_getdcinfo(0, &dc), 0);
    IS(dvk_dc_init((int)dc.dc), -EDVSDCRUN);
    IS(dvk_dc_init((int)dc.dc + 1), -EDVSCALLDENIED);
    IS(dvk_dc_end((int)dc.dc + 1), -EDVSCALLDENIED);
    meet();
    IS(dvk_dc_end((int)dc.dc), 0);
    IS(dvk_sendrec(server, &message), -EDVSNOTBIND);
    /* The DC goes on. */
    IS(dvk_bind(0, 0, &self), 0);
    IS(self == before, 0);
    if (is_here)
        IS(dvk_sendrec(exact, &message), -EDVSENDPOINT);
    else
        meet();
}

static void dc_init_server(void) {
    dvk_message message;
    dvk_ep_t client = meet_client();
    if (DVK_EP_NODE(client) == DVK_EP_NODE(self))
        IS(dvk_rcvrqst(&message), -EDVSNOTBIND);
    else
        meet_client();
}

static void getdcinfo_client(void) {
    dvk_dc_info dc, again;
    IS(dvk_getdcinfo(0, NULL), -EDVSFAULT);
    IS(dvk_getdcinfo(0, &dc), 0);
    IS(dvk_getdcinfo((int)dc.dc, &again), 0);
    IS(again.dc, dc.dc);
    IS(dc.node_count > 0 && dc.endpoint_count > 0 && dc.endpoint_max >= dc.endpoint_count, 1);
    IS(dc.system_max, 63);
    meet();
}

static void getnodeinfo_client(void) {
    dvk_node_info node;
    int there = DVK_EP_NODE(server), here = DVK_EP_NODE(self);
    meet();
    IS(dvk_getnodeinfo(there, NULL), -EDVSFAULT);
    IS(dvk_getnodeinfo(there, &node), 0);
    IS(node.node, there);
    IS(node.link, there == here ? DVK_LINK_SELF : DVK_LINK_UP);
    IS((node.incarnation != 0) == (there != here), 1);
    IS(dvk_getnodeinfo(-1, &node), -EDVSNOTBIND);
    meet();
}

static void twice_server(void) {
    meet_client();
    meet_client();
}

/* A pair of proxies has the number of its node. */
static void getproxyinfo_client(void) {
    dvk_node_info proxies;
    int there = DVK_EP_NODE(server), here = DVK_EP_NODE(self);
    meet();
    IS(dvk_getproxyinfo(there, &proxies), 0);
    IS(proxies.link, there == here ? DVK_LINK_SELF : DVK_LINK_UP);
    IS(dvk_getproxyinfo(4000, &proxies), -EDVSNOTBIND);
    meet();
}

/* ---- test_node_up, test_add_node ---- */

static void node_up_client(void) {
    int node = DVK_EP_NODE(server);
    dvk_node_info info;
    meet();
    /* One that is up stays so, one that is none is none, and this one is no other. */
    IS(dvk_node_up(4000), -EDVSNOTBIND);
    IS(dvk_node_up(DVK_EP_NODE(self)), -EDVSNOTBIND);
    if (node != DVK_EP_NODE(self)) {
        IS(dvk_node_up(node), 0);
        IS(dvk_getnodeinfo(node, &info), 0);
        IS(info.link, DVK_LINK_UP);
    }
    meet();
}

/* Where the servers of the lab's DC are: without it there would be no DC. */
enum { SERVERS_NODE = 1 };

static void *asks_for_long(void *unused) {
    (void)unused;
    dvk_message message = request(1);
    IS(dvk_tbind(0, 0, NULL), 0);
    IS(dvk_sendrec(server, &message), -EDVSNONODE);
    return NULL;
}

/* This node's part of the DC without the server's, and with it again. */
static void add_node_client(void) {
    int there = DVK_EP_NODE(server), here = DVK_EP_NODE(self);
    dvk_node_info info;
    dvk_message message = request(0);
    pthread_t thread;
    meet();
    IS(dvk_add_node(0, here), -EDVSNOTBIND);
    IS(dvk_del_node(0, here), -EDVSNODEBUSY);
    IS(dvk_add_node(0, 4000), -EDVSNOTBIND);
    IS(dvk_del_node(0, 4000), -EDVSNOTBIND);
    IS(dvk_del_node(99, there), -EDVSBADDCID);
    IS(dvk_del_node(0, -1), -EDVSBADNODEID);
    if (there == here) {
        meet();
        return;
    }
    IS(dvk_add_node(0, there), -EDVSDCNODE);
    if (there == SERVERS_NODE) {
        IS(dvk_del_node(0, there), -EDVSNODEBUSY);
        meet();
        return;
    }
    IS(pthread_create(&thread, NULL, asks_for_long, NULL), 0);
    /* The server says when it has received that. */
    IS(dvk_receive_T(server, &message, PATIENCE), 0);
    IS(dvk_del_node(0, there), 0);
    IS(pthread_join(thread, NULL), 0);
    IS(dvk_sendrec(server, &message), -EDVSNOTBIND);
    IS(dvk_wait4bindep_T(server, NULL, PATIENCE), -EDVSNOTBIND);
    IS(dvk_getnodeinfo(there, &info), -EDVSNOTBIND);
    IS(dvk_add_node(0, there), 0);
    IS(dvk_getnodeinfo(there, &info), 0);
    meet();
}

static void add_node_server(void) {
    dvk_message message;
    dvk_ep_t client = meet_client();
    if (DVK_EP_NODE(client) != DVK_EP_NODE(self) && DVK_EP_NODE(self) != SERVERS_NODE) {
        IS(dvk_rcvrqst(&message), 0);
        IS(message.m.l[0], 1);
        IS(dvk_ntfy_value(client, 1), 0);
        /* The other's node has forgotten it. */
        meet_client();
        IS(dvk_reply(message.source, &message), -EDVSPROCSTS);
    } else {
        meet_client();
    }
}

#endif
