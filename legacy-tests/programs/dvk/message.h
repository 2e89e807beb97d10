/* Messages and notifications. */
#ifndef DVK_MESSAGE_H
#define DVK_MESSAGE_H

#include "meeting.h"

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

/* ---- test_wakeup ---- */

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

/* ---- test_notify1, test_notify2, test_src_notify, test_hdw_notify ---- */

/* 1: to one that receives, and to one that has one pending. */
static void notify1_server(void) {
    dvk_message message;
    dvk_ep_t client = meet_client();
    IS(dvk_receive(client, &message), 0);
    IS(message.type, DVK_NOTIFY);
    IS(message.m.u[0], 0);
    IS(message.source == client, 1);
    meet_client();
    /* What one source does comes in its order, whichever way it comes. */
    for (int round = 0; round < LOOPS; round++) {
        IS(dvk_receive(DVK_ANY, &message), 0);
        IS(message.type, DVK_NOTIFY);
        if (message.type != DVK_NOTIFY) {
            IS(dvk_reply(client, &message), 0);
            IS(dvk_receive(client, &message), 0);
            continue;
        }
        IS(message.m.u[0], round);
        meet_client();
    }
    /* Of two notifications of one source there is one. (A request is here after both.) */
    dvk_message asked;
    IS(dvk_rcvrqst(&asked), 0);
    IS(dvk_receive_T(client, &message, PATIENCE), 0);
    IS(message.m.u[0], 7);
    IS(dvk_receive_T(client, &message, DVK_NOWAIT), -EDVSAGAIN);
    IS(dvk_reply(client, &asked), 0);
}

static void notify1_client(void) {
    meet();
    IS(dvk_notify(server), 0);
    IS(dvk_ntfy_value(DVK_EP(DVK_EP_NODE(self), 1021), 1), -EDVSNOTBIND);
    meet();
    for (int round = 0; round < LOOPS; round++) {
        IS(dvk_ntfy_value(server, round), 0);
        meet();
    }
    IS(dvk_ntfy_value(server, 7), 0);
    int result = dvk_ntfy_value(server, 8);
    /* Of another node's nothing is known but what has not left this one. */
    int is_here = DVK_EP_NODE(server) == DVK_EP_NODE(self);
    IS(result == -EDVSOVERRUN || (result == 0 && !is_here), 1);
    meet();
}

/* 2: what is pending comes before messages, whoever sent first. */
static void *notify_and_send(void *unused) {
    (void)unused;
    dvk_message message = request(9);
    IS(dvk_tbind(0, 0, NULL), 0);
    IS(dvk_ntfy_value(server, 5), 0);
    IS(dvk_sendrec(server, &message), 0);
    return NULL;
}

static void notify2_client(void) {
    pthread_t threads[PEERS];
    meet();
    for (int peer = 0; peer < PEERS; peer++)
        IS(pthread_create(&threads[peer], NULL, notify_and_send, NULL), 0);
    for (int peer = 0; peer < PEERS; peer++)
        IS(pthread_join(threads[peer], NULL), 0);
}

static void notify2_server(void) {
    dvk_message message, requests[PEERS];
    meet_client();
    /* A request is here after the notification of its sender. */
    for (int peer = 0; peer < PEERS; peer++)
        IS(dvk_rcvrqst(&requests[peer]), 0);
    for (int peer = 0; peer < PEERS; peer++) {
        IS(dvk_receive_T(requests[peer].source, &message, DVK_NOWAIT), 0);
        IS(message.type, DVK_NOTIFY);
        IS(message.m.u[0], 5);
    }
    for (int peer = 0; peer < PEERS; peer++)
        IS(dvk_reply(requests[peer].source, &requests[peer]), 0);
}

/* In the name of another endpoint of the same node. */
static void *bound_beside(void *place) {
    dvk_ep_t *own = place;
    IS(dvk_tbind(0, 0, own), 0);
    *(volatile int *)(own + 1) = 1;
    while (!is_over)
        sched_yield();
    return NULL;
}

static void src_notify_client(void) {
    static struct {
        dvk_ep_t endpoint;
        volatile int is_ready;
    } beside;
    pthread_t thread;
    IS(pthread_create(&thread, NULL, bound_beside, &beside), 0);
    while (!beside.is_ready)
        sched_yield();
    dvk_message message = request(0);
    message.m.u[1] = beside.endpoint;
    IS(dvk_sendrec(server, &message), 0);
    IS(dvk_src_notify(beside.endpoint, server, 11), 0);
    IS(dvk_src_notify(DVK_EP(DVK_EP_NODE(self), 1021), server, 11), -EDVSNOTBIND);
    IS(dvk_src_notify(beside.endpoint, DVK_EP(DVK_EP_NODE(self), 1021), 11), -EDVSNOTBIND);
    if (DVK_EP_NODE(server) != DVK_EP_NODE(self))
        /* It speaks for its own node's endpoints only. */
        IS(dvk_src_notify(server, self, 11), -EDVSNOTBIND);
    meet();
    is_over = 1;
    IS(pthread_join(thread, NULL), 0);
}

static void src_notify_server(void) {
    dvk_message message;
    IS(dvk_rcvrqst(&message), 0);
    dvk_ep_t beside = (dvk_ep_t)message.m.u[1];
    IS(beside == message.source, 0);
    IS(dvk_reply(message.source, &message), 0);
    IS(dvk_receive_T(beside, &message, PATIENCE), 0);
    IS(message.source == beside, 1);
    IS(message.m.u[0], 11);
    meet_client();
}

/* Of hardware: of this node, for this node. */
static void hdw_notify_server(void) {
    dvk_message message;
    IS(dvk_receive_T(DVK_HARDWARE, &message, DVK_NOWAIT), -EDVSAGAIN);
    IS(dvk_hdw_notify(0, self, 14), 0);
    IS(dvk_hdw_notify(99, self, 14), -EDVSBADDCID);
    IS(dvk_receive_T(DVK_HARDWARE, &message, PATIENCE), 0);
    IS(message.source == DVK_HARDWARE, 1);
    IS(message.m.u[0], 14);
    meet_client();
    meet_client();
}

static void hdw_notify_client(void) {
    int result = dvk_hdw_notify(0, server, 14);
    IS(result, DVK_EP_NODE(server) == DVK_EP_NODE(self) ? 0 : -EDVSNOTBIND);
    meet();
    meet();
}

/* ---- relay ---- */

static void *answer_relayed(void *place) {
    dvk_ep_t *own = place;
    dvk_message message;
    char payload[8];
    IS(dvk_tbind(0, 0, own), 0);
    *(volatile int *)(own + 1) = 1;
    for (int round = 0; round < 10; round++) {
        IS(dvk_rcvrqstp_T(&message, payload, sizeof payload, PATIENCE), 3);
        IS(memcmp(payload, "abc", 3), 0);
        /* It is the client's, and as it came. */
        IS(message.m.u[1] == message.source, 1);
        message.m.l[0]++;
        IS(dvk_reply(message.source, &message), 0);
    }
    return NULL;
}

static void relay_server(void) {
    static struct {
        dvk_ep_t endpoint;
        volatile int is_ready;
    } third;
    pthread_t thread;
    dvk_message message;
    IS(pthread_create(&thread, NULL, answer_relayed, &third), 0);
    while (!third.is_ready)
        sched_yield();
    for (int round = 0; round < 10; round++) {
        IS(dvk_rcvrqstp_T(&message, buffer, BIG, PATIENCE), 3);
        IS(dvk_relay(third.endpoint, NULL), -EDVSFAULT);
        IS(dvk_relay(third.endpoint, &message), 0);
        IS(dvk_relay(third.endpoint, &message), -EDVSPROCSTS);
    }
    IS(pthread_join(thread, NULL), 0);
    meet_client();
}

static void relay_client(void) {
    for (int round = 0; round < 10; round++) {
        dvk_message message = request(round);
        message.m.u[1] = self;
        IS(dvk_sendrecp_T(server, &message, "abc", 3, NULL, 0, PATIENCE), 0);
        IS(message.m.l[0], round + 1);
        IS(DVK_EP_NUMBER(message.source) == number, 0);
    }
    meet();
}

#endif
