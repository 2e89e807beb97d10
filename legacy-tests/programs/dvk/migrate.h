/* Endpoints that go from one process to another. */
#ifndef DVK_MIGRATE_H
#define DVK_MIGRATE_H

#include "meeting.h"

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

/* A test that waits for what does not come ends, and says so. */
static void calls_go_on(void) {
    int64_t before = __atomic_load_n(&calls_made, __ATOMIC_SEQ_CST);
    long end = check_clock() + PATIENCE;
    while (__atomic_load_n(&calls_made, __ATOMIC_SEQ_CST) < before + 20) {
        if (check_clock() > end) {
            IS(calls_made - before, 20);
            exit(check_end("calls"));
        }
        sched_yield();
    }
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
    int place = there;
    for (int round = 0; round < 12; round++) {
        IS(dvk_migr_start(0, server), 0);
        IS(dvk_migr_start(0, server), -EDVSMIGRATE);
        IS(dvk_migr_commit(0, server, 4000, DVK_NONE), -EDVSNOTBIND);
        /* Where it is there is no backup of it, if the nodes are two. */
        if (here != there)
            IS(dvk_migr_commit(0, server, place, DVK_NONE), -EDVSNOTBIND);
        if (round % 3 == 2) {
            IS(dvk_migr_rollback(0, server), 0);
        } else {
            place = place == there ? here : there;
            IS(dvk_migr_commit(0, server, place, DVK_NONE), 0);
        }
        calls_go_on();
    }
    is_over = 1;
    IS(pthread_join(caller, NULL), 0);
    /* Eight commits: the first process is the endpoint again. */
    dvk_message message = {.type = STOP};
    IS(dvk_sendrec(server, &message), 0);
    IS(pthread_join(other, NULL), 0);
}

static void migrate_server(void) {
    dvk_message message;
    int is_last = 0;
    while (!is_last) {
        answer_inherited();
        int result = dvk_rcvrqst_T(&message, 50);
        if (result == -EDVSMIGRATE) {
            IS(dvk_wait4promote_T(NULL, PATIENCE), 0);
            continue;
        }
        if (result == -EDVSTIMEDOUT)
            continue;
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

#endif
