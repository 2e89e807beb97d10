/* The loops, as the prototype measures with them. */
#ifndef DVK_LOOPS_H
#define DVK_LOOPS_H

#include "meeting.h"
#include "message.h"

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

/* ---- loop_dvk_ipc3: notifications; loop_sr_client against loop_r-s_server: send-receive against receive-send ---- */

static void rs_server(void) {
    dvk_message message;
    for (int loop = 0; loop < LOOPS; loop++) {
        IS(dvk_receive(DVK_ANY, &message), 0);
        IS(dvk_send(message.source, &message), 0);
    }
}

static void sr_client(void) {
    for (int loop = 0; loop < LOOPS; loop++) {
        dvk_message message = request(loop);
        IS(dvk_send(server, &message), 0);
        IS(dvk_receive(server, &message), 0);
        IS(message.m.l[0], loop);
    }
}

/* ---- loop_mol_bind, loop_mol_getep ---- */

static void mol_bind_client(void) {
    for (int loop = 0; loop < 200; loop++) {
        dvk_ep_t endpoint;
        IS(dvk_umbind(0, 0, &endpoint), 0);
        IS(dvk_umswitch(endpoint), 0);
        IS(dvk_unbind(0, endpoint), 0);
    }
    meet();
}

static void mol_getep_client(void) {
    for (int loop = 0; loop < LOOPS; loop++) {
        dvk_ep_t endpoint;
        IS(dvk_getep(getpid(), &endpoint), 0);
        IS(endpoint == self, 1);
    }
    meet();
}

#endif
