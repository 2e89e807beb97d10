/* The prototype's tests and loops of M3-IPC, by their names, written anew over dvk.h.
 *
 *     dvk NAME server NUMBER
 *     dvk NAME client NUMBER SERVER_NODE
 *
 * The server binds itself as NUMBER of its node, the client looks for it there. Both check what they get. */
#define _GNU_SOURCE
#include "check.h"
#include <dvk.h>
#include <pthread.h>

enum { HELLO = 0x1001, LOOPS = 2000, PEERS = 4, BIG = 3 * (1 << 20) + 12345 };

static dvk_ep_t self, server;
static int number;

static dvk_message request(int64_t value) {
    dvk_message message = {.type = HELLO};
    message.m.l[0] = value;
    return message;
}

/* Tells the server to go on, and waits until it has. */
static void meet(void) {
    dvk_message message = request(0);
    IS(dvk_sendrec(server, &message), 0);
}

/* The server's side: waits for the client, which then goes on. Returns who it is. */
static dvk_ep_t meet_client(void) {
    dvk_message message;
    IS(dvk_rcvrqst(&message), 0);
    dvk_ep_t client = message.source;
    IS(dvk_reply(client, &message), 0);
    return client;
}

/* ---- test_bind, test_tbind, test_rmtbind, test_unbind, test_wait4bind ---- */

static void bind_server(void) {
    dvk_ep_t again;
    IS(DVK_EP_NUMBER(self), number);
    IS(dvk_bind(0, number, &again), -EDVSSLOTUSED);
    IS(dvk_bind(99, 0, NULL), -EDVSBADDCID);
    IS(dvk_bind(0, 1024, NULL), -EDVSNOTBIND);
    IS(dvk_bind(0, -1, NULL), -EDVSINVAL);
    IS(dvk_getself(NULL), -EDVSFAULT);
    IS(dvk_getself(&again), 0);
    IS(again == self, 1);
    IS(dvk_getep(getpid(), &again), 0);
    IS(again == self, 1);
    IS(dvk_getep(1 << 30, &again), -EDVSNOTBIND);
    meet_client();
}

static void *bound_thread(void *place) {
    dvk_ep_t *own = place;
    IS(dvk_tbind(0, 0, own), 0);
    IS(dvk_tbind(0, 0, NULL), -EDVSSLOTUSED);
    dvk_message message = request(5);
    IS(dvk_sendrec(server, &message), 0);
    return NULL;
}

static void tbind_server(void) {
    dvk_message message;
    dvk_ep_t sources[PEERS];
    for (int peer = 0; peer < PEERS; peer++) {
        IS(dvk_rcvrqst(&message), 0);
        sources[peer] = message.source;
        for (int other = 0; other < peer; other++)
            IS(sources[other] == message.source, 0);
        IS(dvk_reply(message.source, &message), 0);
    }
}

static void tbind_client(void) {
    pthread_t threads[PEERS];
    dvk_ep_t endpoints[PEERS];
    for (int peer = 0; peer < PEERS; peer++)
        IS(pthread_create(&threads[peer], NULL, bound_thread, &endpoints[peer]), 0);
    for (int peer = 0; peer < PEERS; peer++) {
        IS(pthread_join(threads[peer], NULL), 0);
        IS(dvk_wait4unbind_T(endpoints[peer], 20000), 0);
    }
}

static void rmtbind_client(void) {
    IS(dvk_rmtbind(0, "server", server, DVK_EP_NODE(server)), 0);
    IS(dvk_rmtbind(0, NULL, server, DVK_EP_NODE(server) + 1), -EDVSINVAL);
    IS(dvk_rmtbind(0, NULL, DVK_EP(DVK_EP_NODE(server), 1023), DVK_EP_NODE(server)), -EDVSNOTBIND);
    IS(dvk_rmtbind(0, NULL, DVK_EP(4000, 70), 4000), -EDVSNOTBIND);
    meet();
}

static void unbind_server(void) {
    meet_client();
    /* The client sends meanwhile; nobody receives. */
    dvk_message message;
    IS(dvk_rcvrqst_T(&message, 200), -EDVSTIMEDOUT);
    IS(dvk_unbind(0, self), 0);
    IS(dvk_getself(&self), -EDVSNOTBIND);
    IS(dvk_receive_T(DVK_ANY, &message, DVK_NOWAIT), -EDVSNOTBIND);
}

static void unbind_client(void) {
    dvk_ep_t exact;
    IS(dvk_wait4bindep_T(server, &exact, DVK_NOWAIT), 0);
    meet();
    dvk_message message = request(1);
    IS(dvk_send_T(exact, &message, 20000), -EDVSDSTDIED);
    IS(dvk_send(exact, &message), -EDVSENDPOINT);
    IS(dvk_receive(exact, &message), -EDVSENDPOINT);
    IS(dvk_wait4unbind(exact), 0);
    IS(dvk_wait4bindep(exact), -EDVSENDPOINT);
}

static void wait4bind_client(void) {
    dvk_ep_t owner, nobody = DVK_EP(DVK_EP_NODE(server), 1022);
    IS(dvk_wait4bindep_T(server, &owner, 1000), 0);
    IS(DVK_EP_NUMBER(owner), number);
    IS(dvk_wait4bindep_T(nobody, NULL, DVK_NOWAIT), -EDVSAGAIN);
    IS(dvk_wait4bindep_T(nobody, NULL, 50), -EDVSTIMEDOUT);
    IS(dvk_wait4unbind_T(server, DVK_NOWAIT), -EDVSAGAIN);
    IS(dvk_wait4unbind_T(server, 50), -EDVSTIMEDOUT);
    IS(dvk_wait4unbind_T(nobody, DVK_FOREVER), 0);
    meet();
    IS(dvk_wait4unbind(owner), 0);
}

static void meet_server(void) {
    meet_client();
}

/* ---- test_sendrec, test_sendrcv, test_receive, test_ntfyrcv, test_rr_rply ---- */

static void sendrec_server(void) {
    dvk_message message;
    for (int round = 0; round < 100; round++) {
        IS(dvk_receive(DVK_ANY, &message), 0);
        IS(message.m.l[0], round);
        message.m.l[0]++;
        /* It waits for a reply, and receives nothing else. */
        IS(round % 10 || dvk_send_T(message.source, &message, 5) == -EDVSTIMEDOUT, 1);
        IS(dvk_reply(message.source, &message), 0);
    }
    IS(dvk_reply(message.source, &message), -EDVSPROCSTS);
}

static void sendrec_client(void) {
    for (int round = 0; round < 100; round++) {
        dvk_message message = request(round);
        IS(dvk_sendrec(server, &message), 0);
        IS(message.m.l[0], round + 1);
        IS(DVK_EP_NUMBER(message.source), number);
    }
    IS(dvk_sendrec(server, NULL), -EDVSFAULT);
}

static void sendrcv_server(void) {
    dvk_message message;
    for (int round = 0; round < 100; round++) {
        IS(dvk_receive(DVK_ANY, &message), 0);
        IS(message.m.l[0], round);
        IS(dvk_reply(message.source, &message), -EDVSPROCSTS);
        IS(dvk_send(message.source, &message), 0);
    }
}

static void sendrcv_client(void) {
    for (int round = 0; round < 100; round++) {
        dvk_message message = request(round);
        IS(dvk_send(server, &message), 0);
        IS(dvk_receive(server, &message), 0);
        IS(message.m.l[0], round);
    }
}

/* As an endpoint to which nobody sends. */
static void *receive_alone(void *unused) {
    (void)unused;
    dvk_message message;
    IS(dvk_tbind(0, 0, NULL), 0);
    IS(dvk_receive_T(DVK_ANY, &message, DVK_NOWAIT), -EDVSAGAIN);
    IS(dvk_receive_T(DVK_ANY, &message, 30), -EDVSTIMEDOUT);
    IS(dvk_receive_T(self, &message, 30), -EDVSTIMEDOUT);
    IS(dvk_receive_T(DVK_EP(DVK_EP_NODE(self), 1021), &message, 30), -EDVSNOTBIND);
    return NULL;
}

static void receive_server(void) {
    dvk_message message;
    pthread_t thread;
    IS(pthread_create(&thread, NULL, receive_alone, NULL), 0);
    IS(pthread_join(thread, NULL), 0);
    dvk_ep_t client = meet_client();
    IS(dvk_receive(client, &message), 0);
    IS(message.m.l[0], 7);
    IS(dvk_receive(client, &message), -EDVSSRCDIED);
}

static void receive_client(void) {
    meet();
    dvk_message message = request(7);
    IS(dvk_send(server, &message), 0);
}

static void ntfyrcv_server(void) {
    dvk_ep_t client = meet_client();
    dvk_message message;
    for (int round = 0; round < 100; round++) {
        IS(dvk_receive(client, &message), 0);
        IS(message.type, DVK_NOTIFY);
        IS(message.m.u[0], round);
        IS(dvk_ntfy_value(client, 1000 + round), 0);
    }
    /* Notifications of the dead are not received (as in MINIX): it stays until the last one is. */
    meet_client();
}

static void ntfyrcv_client(void) {
    meet();
    dvk_message message;
    for (int round = 0; round < 100; round++) {
        IS(dvk_ntfy_value(server, round), 0);
        IS(dvk_receive(server, &message), 0);
        IS(message.type, DVK_NOTIFY);
        IS(message.m.u[0], 1000 + round);
    }
    meet();
}

static void rr_rply_server(void) {
    dvk_message message;
    for (int round = 0; round < 100; round++) {
        IS(dvk_rcvrqst(&message), 0);
        message.m.l[0]++;
        IS(dvk_reply(message.source, &message), 0);
    }
    /* What is sent is no request. */
    IS(dvk_rcvrqst_T(&message, 100), -EDVSTIMEDOUT);
    IS(dvk_receive(DVK_ANY, &message), 0);
}

static void rr_rply_client(void) {
    for (int round = 0; round < 100; round++) {
        dvk_message message = request(round);
        IS(dvk_sendrec(server, &message), 0);
        IS(message.m.l[0], round + 1);
    }
    dvk_message message = request(0);
    IS(dvk_send(server, &message), 0);
}

/* ---- test_lclvcopy, test_lclvcopy3, loop_dvk_copy1 ---- */

static char buffer[BIG], other[BIG];

static void fill(char *bytes, int from) {
    for (int at = 0; at < BIG; at++)
        bytes[at] = (char)(at % 251 + from);
}

/* Lends its buffer, says where it is, and looks at it afterwards. */
static void lclvcopy_server(void) {
    dvk_message message;
    fill(buffer, 1);
    IS(dvk_rcvrqst(&message), 0);
    dvk_ep_t client = message.source;
    long grant = dvk_grant(client, buffer, BIG, DVK_READ | DVK_WRITE);
    IS(grant > 0, 1);
    message.m.u[0] = (uint64_t)(uintptr_t)buffer;
    void *start = NULL;
    long lent = dvk_lend(client, BIG, DVK_READ, &start);
    IS(lent > 0, 1);
    fill(start, 1);
    message.m.u[1] = (uint64_t)(uintptr_t)start;
    IS(dvk_reply(client, &message), 0);
    meet_client();
    fill(other, 2);
    IS(memcmp(buffer, other, BIG), 0);
    IS(dvk_revoke(grant), 0);
    IS(dvk_revoke(grant), -EDVSENDPOINT);
    IS(dvk_revoke(lent), 0);
    IS(dvk_revoke(lent), -EDVSENDPOINT);
    meet_client();
    meet_client();
}

static void lclvcopy_client(void) {
    dvk_message message = request(0);
    IS(dvk_sendrec(server, &message), 0);
    char *theirs = (char *)(uintptr_t)message.m.u[0], *lent = (char *)(uintptr_t)message.m.u[1];
    fill(other, 1);
    IS(dvk_vcopy(server, theirs, self, buffer, BIG), BIG);
    IS(memcmp(buffer, other, BIG), 0);
    /* The first copy is a call, the others are made out of a mapping, on the same node. */
    for (int round = 0; round < 3; round++) {
        memset(buffer, 0, BIG);
        IS(dvk_vcopy(server, lent, self, buffer, BIG), BIG);
        IS(memcmp(buffer, other, BIG), 0);
        IS(dvk_vcopy(self, buffer, server, lent, 10), -EDVSCALLDENIED);
    }
    fill(buffer, 2);
    for (int size = 512; size <= 1 << 20; size *= 2)
        IS(dvk_vcopy(self, buffer, server, theirs, size), size);
    IS(dvk_vcopy(self, buffer, server, theirs, BIG), BIG);
    IS(dvk_vcopy(self, buffer, server, theirs + 1, BIG) > 0, 1);
    IS(dvk_vcopy(self, buffer, server, theirs, BIG), BIG);
    IS(dvk_vcopy(self, buffer, server, theirs - 1, 10), -EDVSCALLDENIED);
    meet();
    meet();
    IS(dvk_vcopy(self, buffer, server, theirs, 10), -EDVSCALLDENIED);
    IS(dvk_vcopy(server, lent, self, buffer, 10), -EDVSCALLDENIED);
    meet();
}

/* The requester is a third: this process's second endpoint, between the server and the first. */
static void *copies(void *place) {
    char *theirs = place;
    IS(dvk_tbind(0, 0, NULL), 0);
    IS(dvk_vcopy(server, theirs, self, buffer, BIG), BIG);
    IS(dvk_vcopy(self, buffer, server, theirs, BIG), BIG);
    return NULL;
}

static void lclvcopy3_server(void) {
    dvk_message message;
    fill(buffer, 1);
    IS(dvk_grant(DVK_ANY, buffer, BIG, DVK_READ | DVK_WRITE) > 0, 1);
    IS(dvk_rcvrqst(&message), 0);
    message.m.u[0] = (uint64_t)(uintptr_t)buffer;
    IS(dvk_reply(message.source, &message), 0);
    meet_client();
    fill(other, 1);
    IS(memcmp(buffer, other, BIG), 0);
}

static void lclvcopy3_client(void) {
    dvk_message message = request(0);
    IS(dvk_sendrec(server, &message), 0);
    IS(dvk_grant(DVK_ANY, buffer, BIG, DVK_READ | DVK_WRITE) > 0, 1);
    pthread_t thread;
    IS(pthread_create(&thread, NULL, copies, (void *)(uintptr_t)message.m.u[0]), 0);
    IS(pthread_join(thread, NULL), 0);
    fill(other, 1);
    IS(memcmp(buffer, other, BIG), 0);
    meet();
}

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
    meet_client();
}

static void priv_client(void) {
    meet();
    /* Refused while the server takes messages of nobody. */
    dvk_message message = request(0);
    int result;
    while ((result = dvk_sendrec_T(server, &message, 20)) == -EDVSTIMEDOUT || result == -EDVSCALLDENIED)
        message = request(0);
    IS(result, 0);
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

/* ---- test_wakeup ---- */

static volatile int is_over;

/* Wakes the server's main thread until it has seen it. */
static void *wake(void *unused) {
    (void)unused;
    IS(dvk_tbind(0, 0, NULL), 0);
    while (!is_over) {
        IS(dvk_wakeup(0, self), 0);
        sched_yield();
    }
    IS(dvk_wakeup(99, self), -EDVSBADDCID);
    IS(dvk_wakeup(0, DVK_EP(DVK_EP_NODE(self), 1021)), -EDVSNOTBIND);
    return NULL;
}

static void woken(int result) {
    IS(result, -EDVSWOKENUP);
}

/* The client takes nothing from the server, and waits until it has ended. */
static void wakeup_server(void) {
    dvk_ep_t client = meet_client();
    dvk_message message = request(0);
    pthread_t thread;
    IS(pthread_create(&thread, NULL, wake, NULL), 0);
    woken(dvk_receive(DVK_ANY, &message));
    woken(dvk_receive(client, &message));
    woken(dvk_rcvrqst(&message));
    message = request(0);
    woken(dvk_send(client, &message));
    woken(dvk_sendrec(client, &message));
    woken(dvk_wait4unbind(client));
    is_over = 1;
    IS(pthread_join(thread, NULL), 0);
}

static void wakeup_client(void) {
    meet();
    IS(dvk_wait4unbind(server), 0);
}

/* ---- test_bkupbind, test_migrate ---- */

enum { STOP = 0x1002 };

/* Answers what the other had received when the endpoint came here. */
static void answer_inherited(void) {
    dvk_message list[PEERS];
    int count = dvk_inherited(list, PEERS);
    for (int at = 0; at < count; at++) {
        list[at].m.l[0]++;
        dvk_reply(list[at].source, &list[at]);
    }
}

/* Answers with the value and one more, whenever it is the endpoint, until it is told to stop. */
static void serve_moving(void) {
    dvk_message message;
    for (;;) {
        answer_inherited();
        int result = dvk_rcvrqst_T(&message, 50);
        if (result == -EDVSMIGRATE) {
            dvk_wait4promote_T(NULL, 50);
            if (is_over)
                return;
            continue;
        }
        if (result == -EDVSTIMEDOUT)
            continue;
        IS(result, 0);
        message.m.l[0]++;
        int is_last = message.type == STOP;
        result = dvk_reply(message.source, &message);
        IS(result == 0 || result == -EDVSMIGRATE, 1);
        if (is_last)
            return;
    }
}

static void *stand_in(void *place) {
    dvk_ep_t *own = place;
    IS(dvk_tbkupbind(0, DVK_EP(1, 2000), 0, NULL), -EDVSNOTBIND);
    IS(dvk_tbkupbind(0, server, 0, own), 0);
    IS(dvk_tbkupbind(0, server, 0, NULL), -EDVSSLOTUSED);
    dvk_message message = request(0);
    IS(dvk_send(server, &message), -EDVSMIGRATE);
    IS(dvk_receive_T(DVK_ANY, &message, 10), -EDVSMIGRATE);
    IS(dvk_wait4promote_T(NULL, 10), -EDVSTIMEDOUT);
    *(volatile int *)(own + 1) = 1;
    serve_moving();
    return NULL;
}

static int64_t calls_made;

static void *call_moving(void *unused) {
    (void)unused;
    IS(dvk_tbind(0, 0, NULL), 0);
    for (int64_t value = 0; !is_over; value++) {
        dvk_message message = request(value);
        IS(dvk_sendrec(server, &message), 0);
        IS(message.m.l[0], value + 1);
        __atomic_fetch_add(&calls_made, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void calls_go_on(void) {
    int64_t before = __atomic_load_n(&calls_made, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&calls_made, __ATOMIC_SEQ_CST) < before + 20)
        sched_yield();
}

static void migrate_client(void) {
    static struct {
        dvk_ep_t endpoint;
        volatile int is_ready;
    } backup;
    pthread_t caller, other;
    int here = DVK_EP_NODE(self), there = DVK_EP_NODE(server);
    IS(pthread_create(&other, NULL, stand_in, &backup), 0);
    while (!backup.is_ready)
        sched_yield();
    IS(pthread_create(&caller, NULL, call_moving, NULL), 0);
    calls_go_on();
    IS(dvk_migr_commit(0, server, here, DVK_NONE), -EDVSPROCSTS);
    IS(dvk_migr_rollback(0, server), -EDVSPROCSTS);
    IS(dvk_migr_start(0, DVK_EP(there, 1021)), -EDVSNOTBIND);
    IS(dvk_migr_start(99, server), -EDVSBADDCID);
    for (int round = 0; round < 10; round++) {
        IS(dvk_migr_start(0, server), 0);
        IS(dvk_migr_start(0, server), -EDVSMIGRATE);
        IS(dvk_migr_commit(0, server, 4000, DVK_NONE), -EDVSNOTBIND);
        if (round % 3 == 2)
            IS(dvk_migr_rollback(0, server), 0);
        else
            IS(dvk_migr_commit(0, server, round % 2 ? there : here, DVK_NONE), 0);
        calls_go_on();
    }
    is_over = 1;
    IS(pthread_join(caller, NULL), 0);
    /* On one node both are there, and who is the endpoint changes at each commit; so the last is made for that. */
    dvk_message message = {.type = STOP};
    IS(dvk_sendrec(server, &message), 0);
    IS(pthread_join(other, NULL), 0);
}

/* It may be a backup when the test ends: then nobody tells it to stop. */
static void migrate_server(void) {
    dvk_message message;
    int is_last = 0;
    while (!is_last) {
        answer_inherited();
        int result = dvk_rcvrqst_T(&message, 50);
        if (result == -EDVSTIMEDOUT || result == -EDVSMIGRATE) {
            if (result == -EDVSMIGRATE && dvk_wait4promote_T(NULL, 5000) == -EDVSTIMEDOUT)
                return;
            continue;
        }
        IS(result, 0);
        message.m.l[0]++;
        is_last = message.type == STOP;
        result = dvk_reply(message.source, &message);
        IS(result == 0 || result == -EDVSMIGRATE, 1);
    }
}

/* The client's thread takes over when this process ends. */
static void bkupbind_server(void) {
    dvk_ep_t client = meet_client();
    dvk_message message;
    IS(dvk_rcvrqst(&message), 0);
    IS(message.source == client, 1);
    IS(dvk_reply(client, &message), 0);
    meet_client();
}

static void *take_over(void *place) {
    dvk_ep_t *own = place, endpoint;
    dvk_message message;
    char payload[8];
    IS(dvk_tbkupbind(0, server, 1, own), 0);
    *(volatile int *)(own + 1) = 1;
    IS(dvk_wait4promote_T(&endpoint, 60000), 0);
    IS(DVK_EP_NUMBER(endpoint), number);
    IS(dvk_rcvrqstp_T(&message, payload, sizeof payload, 60000), 5);
    IS(dvk_replyp(message.source, &message, payload, 5), 0);
    return NULL;
}

static void bkupbind_client(void) {
    static struct {
        dvk_ep_t endpoint;
        volatile int is_ready;
    } backup;
    pthread_t thread;
    dvk_ep_t exact;
    IS(dvk_wait4bindep_T(server, &exact, 60000), 0);
    IS(pthread_create(&thread, NULL, take_over, &backup), 0);
    while (!backup.is_ready)
        sched_yield();
    meet();
    dvk_proc_info info;
    IS(dvk_getprocinfo(backup.endpoint, &info), 0);
    IS(info.state & DVK_STATE_BACKUP, DVK_STATE_BACKUP);
    dvk_message message = request(3);
    IS(dvk_sendrec(exact, &message), 0);
    meet();
    /* It goes; who calls it by the same address gets the other. */
    char answer[8] = "";
    message = request(4);
    IS(dvk_sendrecp_T(exact, &message, "hello", 5, answer, sizeof answer, 60000), 5);
    IS(memcmp(answer, "hello", 5), 0);
    IS(pthread_join(thread, NULL), 0);
}

/* ---- client_server: messages with payload ---- */

static void payload_server(void) {
    dvk_message message;
    for (long size = 0; size <= DVK_PAYLOAD_MAX; size = size * 4 + 1) {
        IS(dvk_rcvrqstp_T(&message, buffer, BIG, -1), size);
        for (long at = 0; at < size; at++)
            buffer[at]++;
        IS(dvk_replyp(message.source, &message, buffer, size), 0);
    }
    /* Refused, with the sender told; and not received. */
    IS(dvk_receivep_T(DVK_ANY, &message, buffer, 4, -1), 3);
    IS(memcmp(buffer, "abc", 3), 0);
    IS(dvk_replyp(message.source, &message, NULL, 1), -EDVSFAULT);
}

static void payload_client(void) {
    dvk_message message = request(0);
    for (long size = 0; size <= DVK_PAYLOAD_MAX; size = size * 4 + 1) {
        memset(buffer, 'a', size);
        IS(dvk_sendrecp_T(server, &message, buffer, size, other, BIG, -1), size);
        memset(buffer, 'b', size);
        IS(memcmp(buffer, other, size), 0);
    }
    IS(dvk_sendp_T(server, &message, "abcde", 5, 60000), -EDVSMSGSIZE);
    IS(dvk_sendp_T(server, &message, NULL, 5, 60000), -EDVSFAULT);
    IS(dvk_sendp_T(server, &message, buffer, DVK_PAYLOAD_MAX + 1, 60000), -EDVSMSGSIZE);
    IS(dvk_sendp_T(server, &message, "abc", 3, 60000), 0);
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

/* ---- latency ---- */

static void latency_client(void) {
    struct timespec start, end;
    enum { ROUNDS = 200 };
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int round = 0; round < ROUNDS; round++) {
        dvk_message message = request(round);
        IS(dvk_sendrec(server, &message), 0);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double each = ((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) / ROUNDS;
    IS(each > 0 && each < 1e9, 1);
}

static void latency_server(void) {
    dvk_message message;
    for (int round = 0; round < 200; round++) {
        IS(dvk_rcvrqst(&message), 0);
        IS(dvk_reply(message.source, &message), 0);
    }
}

/* ---- loop_dvk_copy1 ---- */

static void copy1_client(void) {
    dvk_message message = request(0);
    IS(dvk_sendrec(server, &message), 0);
    char *theirs = (char *)(uintptr_t)message.m.u[0];
    for (int loop = 0; loop < 100; loop++) {
        IS(dvk_vcopy(server, theirs, self, buffer, 1 << 16), 1 << 16);
        IS(dvk_vcopy(self, buffer, server, theirs, 1 << 16), 1 << 16);
    }
    meet();
}

static void copy1_server(void) {
    dvk_message message;
    fill(buffer, 1);
    IS(dvk_grant(DVK_ANY, buffer, BIG, DVK_READ | DVK_WRITE) > 0, 1);
    IS(dvk_rcvrqst(&message), 0);
    message.m.u[0] = (uint64_t)(uintptr_t)buffer;
    IS(dvk_reply(message.source, &message), 0);
    meet_client();
    fill(other, 1);
    IS(memcmp(buffer, other, BIG), 0);
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

/* ---- loops ---- */

/* send-receive */
static void loop1_server(void) {
    dvk_message message;
    for (int loop = 0; loop < LOOPS; loop++)
        IS(dvk_receive(DVK_ANY, &message), 0);
    IS(message.m.l[0], LOOPS - 1);
}

static void loop1_client(void) {
    for (int loop = 0; loop < LOOPS; loop++) {
        dvk_message message = request(loop);
        IS(dvk_send(server, &message), 0);
    }
}

/* sendrec against receive-reply */
static void loop2_server(void) {
    dvk_message message;
    for (int loop = 0; loop < LOOPS; loop++) {
        IS(dvk_receive(DVK_ANY, &message), 0);
        IS(dvk_reply(message.source, &message), 0);
    }
}

static void loop2_client(void) {
    for (int loop = 0; loop < LOOPS; loop++) {
        dvk_message message = request(loop);
        IS(dvk_sendrec(server, &message), 0);
        IS(message.m.l[0], loop);
    }
}

/* sendrec against rcvrqst-reply */
static void loop4_server(void) {
    dvk_message message;
    for (int loop = 0; loop < LOOPS; loop++) {
        IS(dvk_rcvrqst(&message), 0);
        IS(dvk_reply(message.source, &message), 0);
    }
}

static void *peer_loop(void *role) {
    (void)role;
    IS(dvk_tbind(0, 0, NULL), 0);
    loop2_client();
    return NULL;
}

static void mpeer_client(void) {
    pthread_t threads[PEERS];
    for (int peer = 0; peer < PEERS; peer++)
        IS(pthread_create(&threads[peer], NULL, peer_loop, NULL), 0);
    for (int peer = 0; peer < PEERS; peer++)
        IS(pthread_join(threads[peer], NULL), 0);
}

static void sr_mpeer_server(void) {
    for (int peer = 0; peer < PEERS; peer++)
        loop2_server();
}

static void rr_mpeer_server(void) {
    for (int peer = 0; peer < PEERS; peer++)
        loop4_server();
}

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
    {"client_server", payload_server, payload_client},
    {"latency", latency_server, latency_client},
    {"loop_dvk_copy1", copy1_server, copy1_client},
    {"loop_dvk_ipc1", loop1_server, loop1_client},
    {"loop_dvk_ipc2", loop2_server, loop2_client},
    {"loop_dvk_ipc3", ntfyrcv_server, ntfyrcv_client},
    {"loop_dvk_ipc4", loop4_server, loop2_client},
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
