/* Being bound: test_bind and what belongs to it. */
#ifndef DVK_BIND_H
#define DVK_BIND_H

#include "meeting.h"

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

/* ---- test_umbind: endpoints inside one process that are no thread's ---- */

static void *as_third(void *place) {
    dvk_ep_t own, *third = place;
    dvk_message message = request(30);
    /* A thread without one of its own is the process, until it switches. */
    IS(dvk_getself(&own), 0);
    IS(own == self, 1);
    IS(dvk_umswitch(*third), 0);
    IS(dvk_sendrec(server, &message), 0);
    IS(message.m.u[1] == *third, 1);
    return NULL;
}

static void umbind_client(void) {
    dvk_ep_t users[PEERS], own;
    for (int user = 0; user < PEERS; user++) {
        IS(dvk_umbind(0, 0, &users[user]), 0);
        IS(users[user] == self, 0);
    }
    IS(dvk_umbind(99, 0, NULL), -EDVSBADDCID);
    for (int user = 0; user < PEERS; user++) {
        IS(dvk_umswitch(users[user]), 0);
        IS(dvk_getself(&own), 0);
        IS(own == users[user], 1);
        dvk_message message = request(user);
        IS(dvk_sendrec(server, &message), 0);
        IS(message.m.u[1] == users[user], 1);
    }
    IS(dvk_umswitch(self), -EDVSENDPOINT);
    IS(dvk_umswitch(DVK_NONE), 0);
    pthread_t thread;
    IS(pthread_create(&thread, NULL, as_third, &users[2]), 0);
    IS(pthread_join(thread, NULL), 0);
    /* The thread is gone; the endpoint is not. */
    IS(dvk_wait4unbind_T(users[2], DVK_NOWAIT), -EDVSAGAIN);
    IS(dvk_umswitch(users[2]), 0);
    IS(dvk_unbind(0, users[2]), 0);
    IS(dvk_getself(&own), 0);
    IS(own == self, 1);
    IS(dvk_wait4unbind_T(users[2], DVK_NOWAIT), 0);
    IS(dvk_umswitch(users[2]), -EDVSENDPOINT);
    meet();
}

static void umbind_server(void) {
    dvk_message message;
    for (int user = 0; user < PEERS + 1; user++) {
        IS(dvk_rcvrqst(&message), 0);
        message.m.u[1] = message.source;
        IS(dvk_reply(message.source, &message), 0);
    }
    meet_client();
}

/* ---- test_unbind1 to test_unbind5: who waits for somebody that is unbound ---- */

/* 1: who sends to it, and 2: who has sent a request that it has received. */
static void unbind1_server(void) {
    meet_client();
    dvk_message message;
    IS(dvk_rcvrqst_T(&message, 100), -EDVSTIMEDOUT);
    IS(dvk_unbind(0, self), 0);
}

static void unbind1_client(void) {
    dvk_ep_t exact;
    IS(dvk_wait4bindep_T(server, &exact, 0), 0);
    meet();
    dvk_message message = request(1);
    IS(dvk_send(exact, &message), -EDVSDSTDIED);
}

static void unbind2_server(void) {
    dvk_message message;
    meet_client();
    IS(dvk_rcvrqst(&message), 0);
    IS(dvk_unbind(0, self), 0);
    IS(dvk_reply(message.source, &message), -EDVSNOTBIND);
}

static void unbind2_client(void) {
    meet();
    dvk_message message = request(1);
    IS(dvk_sendrec(server, &message), -EDVSDSTDIED);
}

/* 3: who receives from it. */
static void unbind3_client(void) {
    dvk_message message;
    dvk_ep_t exact;
    IS(dvk_wait4bindep_T(server, &exact, 0), 0);
    /* From now on it is known whose end this is. */
    IS(dvk_receive_T(exact, &message, 1), -EDVSTIMEDOUT);
    meet();
    IS(dvk_receive(exact, &message), -EDVSSRCDIED);
    IS(dvk_receive(exact, &message), -EDVSSRCDIED);
}

static void unbind3_server(void) {
    meet_client();
    IS(dvk_unbind(0, self), 0);
}

/* 4: itself, as the administrator unbinds it while it waits. */
static void *unbound_by_another(void *place) {
    dvk_ep_t *own = place;
    dvk_message message = request(0);
    IS(dvk_tbind(0, 0, own), 0);
    IS(dvk_sendrec(server, &message), 0);
    is_over = 1;
    IS(dvk_receive(DVK_ANY, &message), -EDVSNOTBIND);
    IS(dvk_send(server, &message), -EDVSNOTBIND);
    return NULL;
}

static void unbind4_client(void) {
    dvk_ep_t other;
    pthread_t thread;
    IS(pthread_create(&thread, NULL, unbound_by_another, &other), 0);
    meet();
    while (!is_over)
        sched_yield();
    IS(dvk_unbind(0, other), 0);
    IS(dvk_unbind(0, other), -EDVSENDPOINT);
    IS(dvk_unbind(99, other), -EDVSBADDCID);
    IS(pthread_join(thread, NULL), 0);
    meet();
}

static void unbind4_server(void) {
    dvk_message message[2];
    /* One of them is the thread's. */
    for (int at = 0; at < 2; at++)
        IS(dvk_rcvrqst(&message[at]), 0);
    for (int at = 0; at < 2; at++)
        IS(dvk_reply(message[at].source, &message[at]), 0);
    meet_client();
}

/* 5: as its process ends. */
static void unbind5_client(void) {
    dvk_ep_t exact;
    IS(dvk_wait4bindep_T(server, &exact, 0), 0);
    meet();
    dvk_message message = request(1);
    int result = dvk_send(exact, &message);
    IS(result == -EDVSDSTDIED || result == -EDVSENDPOINT, 1);
    IS(dvk_wait4unbind(exact), 0);
}

/* ---- test_replbind: the same number on the nodes of the server and of the client ---- */

enum { REPLICA_STOP = 0x1003 };

/* Says who it is, until it is told to stop. */
static void serve_replica(void) {
    dvk_message message;
    int is_last = 0;
    while (!is_last) {
        IS(dvk_rcvrqst_T(&message, PATIENCE), 0);
        is_last = message.type == REPLICA_STOP;
        IS(dvk_getself((dvk_ep_t *)&message.m.u[1]), 0);
        IS(dvk_reply(message.source, &message), 0);
    }
}

static void *replica(void *place) {
    dvk_ep_t *own = place;
    IS(dvk_treplbind(0, 63, NULL), -EDVSNOTBIND);
    IS(dvk_treplbind(0, number + 500, own), 0);
    *(volatile int *)(own + 1) = 1;
    serve_replica();
    IS(dvk_unbind(0, *own), 0);
    return NULL;
}

typedef struct {
    dvk_ep_t endpoint;
    volatile int is_ready;
} started;

static void replbind_server(void) {
    static started own;
    pthread_t thread;
    meet_client();
    IS(pthread_create(&thread, NULL, replica, &own), 0);
    while (!own.is_ready)
        sched_yield();
    dvk_message message;
    IS(dvk_rcvrqst(&message), 0);
    message.m.u[1] = own.endpoint;
    IS(dvk_reply(message.source, &message), 0);
    IS(pthread_join(thread, NULL), 0);
    meet_client();
}

/* Which replica answers now. */
static dvk_ep_t who(int type) {
    dvk_message message = {.type = type};
    IS(dvk_sendrec_T(DVK_REPLICAS(number + 500), &message, PATIENCE), 0);
    return message.m.u[1];
}

static void replbind_client(void) {
    static started own;
    pthread_t thread;
    dvk_message message = request(0);
    dvk_ep_t all = DVK_REPLICAS(number + 500), found;
    IS(dvk_sendrec(all, &message), -EDVSNOTBIND);
    IS(dvk_wait4bindep_T(all, NULL, DVK_NOWAIT), -EDVSAGAIN);
    IS(dvk_wait4unbind_T(all, DVK_NOWAIT), 0);
    meet();
    message = request(0);
    IS(dvk_sendrec(server, &message), 0);
    dvk_ep_t theirs = message.m.u[1];
    IS(dvk_wait4bindep_T(all, &found, PATIENCE), 0);
    IS(found == theirs, 1);
    for (int round = 0; round < 10; round++)
        IS(who(HELLO) == theirs, 1);
    if (DVK_EP_NODE(server) != DVK_EP_NODE(self)) {
        IS(pthread_create(&thread, NULL, replica, &own), 0);
        while (!own.is_ready)
            sched_yield();
        /* The one beside the caller, from now on. */
        for (int round = 0; round < 10; round++)
            IS(who(HELLO) == own.endpoint, 1);
        IS(DVK_EP_NODE(own.endpoint), DVK_EP_NODE(self));
        IS(dvk_migr_start(0, own.endpoint), -EDVSCALLDENIED);
        IS(who(REPLICA_STOP) == own.endpoint, 1);
        IS(pthread_join(thread, NULL), 0);
        /* It is gone: the other one. */
        for (int round = 0; round < 10; round++)
            IS(who(HELLO) == theirs, 1);
    } else {
        IS(dvk_treplbind(0, number + 500, NULL), -EDVSSLOTUSED);
    }
    IS(who(REPLICA_STOP) == theirs, 1);
    IS(dvk_wait4unbind_T(all, PATIENCE), 0);
    message = request(0);
    IS(dvk_sendrec(all, &message), -EDVSNOTBIND);
    meet();
}

#endif
