/* What the tests of M3-IPC have in common: who the two programs are, and how they meet. */
#ifndef DVK_MEETING_H
#define DVK_MEETING_H

#include "../check.h"
#include <dvk.h>
#include <pthread.h>

/* Milliseconds after which what has not come will not. */
enum { PATIENCE = 60000 };
enum { HELLO = 0x1001, LOOPS = 2000, PEERS = 4, BIG = 3 * (1 << 20) + 12345 };

static dvk_ep_t self, server;
static int number;
static char buffer[BIG], other[BIG];
/* Another thread of this program is to end. */
static volatile int is_over;

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

#endif
