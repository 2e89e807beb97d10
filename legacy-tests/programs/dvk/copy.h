/* Copies between memories. */
#ifndef DVK_COPY_H
#define DVK_COPY_H

#include "meeting.h"

/* ---- test_lclvcopy, test_lclvcopy3 ---- */

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

/* ---- test_vcopy1 to test_vcopy4: from the caller, to the caller, between two others, and what may not be ---- */

static char *lend_me(void) {
    dvk_message message = request(0);
    IS(dvk_sendrec(server, &message), 0);
    return (char *)(uintptr_t)message.m.u[0];
}

/* Lends, and looks at what is there at the end. */
static void vcopy_server(int access, int in_the_end) {
    dvk_message message;
    fill(buffer, 1);
    IS(dvk_rcvrqst(&message), 0);
    IS(dvk_grant(message.source, buffer, BIG, access) > 0, 1);
    message.m.u[0] = (uint64_t)(uintptr_t)buffer;
    IS(dvk_reply(message.source, &message), 0);
    meet_client();
    fill(other, in_the_end);
    IS(memcmp(buffer, other, BIG), 0);
    meet_client();
}

static void vcopy1_server(void) {
    vcopy_server(DVK_WRITE, 2);
}

static void vcopy1_client(void) {
    char *theirs = lend_me();
    fill(buffer, 2);
    IS(dvk_vcopy(self, buffer, server, theirs, BIG), BIG);
    /* It may be written, not read. */
    IS(dvk_vcopy(server, theirs, self, buffer, 10), -EDVSCALLDENIED);
    meet();
    meet();
}

static void vcopy2_server(void) {
    vcopy_server(DVK_READ, 1);
}

static void vcopy2_client(void) {
    char *theirs = lend_me();
    IS(dvk_vcopy(server, theirs, self, buffer, BIG), BIG);
    fill(other, 1);
    IS(memcmp(buffer, other, BIG), 0);
    IS(dvk_vcopy(self, buffer, server, theirs, 10), -EDVSCALLDENIED);
    meet();
    meet();
}

static void vcopy4_server(void) {
    vcopy_server(DVK_READ, 1);
}

static void vcopy4_client(void) {
    dvk_ep_t nobody = DVK_EP(DVK_EP_NODE(server), 1021);
    IS(dvk_vcopy(server, buffer, self, buffer, 10) < 0, 1);
    char *theirs = lend_me();
    IS(dvk_vcopy(nobody, theirs, self, buffer, 10) < 0, 1);
    IS(dvk_vcopy(self, buffer, nobody, theirs, 10) < 0, 1);
    IS(dvk_vcopy(server, theirs, self, buffer, -1), -EDVSINVAL);
    IS(dvk_vcopy(server, theirs, self, buffer, 0), 0);
    IS(dvk_vcopy(server, theirs + BIG - 5, self, buffer, 10), -EDVSCALLDENIED);
    IS(dvk_vcopy(server, theirs + BIG - 5, self, buffer, 5), 5);
    meet();
    meet();
}

#endif
