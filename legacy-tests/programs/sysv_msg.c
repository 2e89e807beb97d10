/* Message queues of System V, call by call: types, sizes, errors, full queues, signals, removal.
 * Usage: sysv_msg KEY */
#define _GNU_SOURCE
#include "check.h"
#include "interrupt.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>

static key_t key;

struct message {
    long type;
    char text[128];
};

static int put(int id, long type, const char *text, int flags) {
    struct message message = {.type = type};
    strcpy(message.text, text);
    return msgsnd(id, &message, strlen(text), flags);
}

/* Receives, and compares the text. */
static ssize_t take(int id, long type, int flags, const char *wanted) {
    struct message message = {.type = -77};
    ssize_t size = msgrcv(id, &message, sizeof message.text, type, flags);
    if (size >= 0)
        IS(memcmp(message.text, wanted, strlen(wanted)), 0);
    return size;
}

static long messages(int id) {
    struct msqid_ds state;
    IS(msgctl(id, IPC_STAT, &state), 0);
    return state.msg_qnum;
}

static void getting(void) {
    FAILS(msgget(key, 0600), ENOENT);
    int id = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
    IS(id >= 0, 1);
    FAILS(msgget(key, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    IS(msgget(key, 0), id);
    int one = msgget(IPC_PRIVATE, 0600), two = msgget(IPC_PRIVATE, 0600);
    IS(one >= 0 && two >= 0 && one != two && one != id, 1);
    IS(msgctl(one, IPC_RMID, NULL), 0);
    IS(msgctl(two, IPC_RMID, NULL), 0);
    FAILS(msgctl(two, IPC_RMID, NULL), EINVAL);
    IS(msgctl(id, IPC_RMID, NULL), 0);
    FAILS(msgget(key, 0), ENOENT);
    FAILS(put(id, 1, "x", 0), EINVAL);
    FAILS(put(-1, 1, "x", 0), EINVAL);
}

static void types(void) {
    int id = msgget(key, IPC_CREAT | 0600);
    FAILS(put(id, 0, "x", 0), EINVAL);
    FAILS(put(id, -1, "x", 0), EINVAL);
    const struct {
        long type;
        const char *text;
    } sent[] = {{3, "c1"}, {1, "a1"}, {2, "b1"}, {1, "a2"}, {5, "e1"}, {3, "c2"}, {9, ""}};
    for (int i = 0; i < 7; i++)
        IS(put(id, sent[i].type, sent[i].text, 0), 0);
    IS(messages(id), 7);
    IS(take(id, 2, 0, "b1"), 2);
    FAILS(take(id, 2, IPC_NOWAIT, ""), ENOMSG);
    /* The lowest type of those up to 3. */
    IS(take(id, -3, 0, "a1"), 2);
    IS(take(id, 0, 0, "c1"), 2);
    IS(take(id, 1, MSG_EXCEPT, "e1"), 2);
    IS(take(id, -3, 0, "a2"), 2);
    FAILS(take(id, -2, IPC_NOWAIT, ""), ENOMSG);
    IS(take(id, 0, 0, "c2"), 2);
    IS(take(id, 0, 0, ""), 0);
    FAILS(take(id, 0, IPC_NOWAIT, ""), ENOMSG);
    IS(msgctl(id, IPC_RMID, NULL), 0);
}

static void sizes(void) {
    int id = msgget(key, IPC_CREAT | 0600);
    struct message message;
    IS(put(id, 7, "1234567890", 0), 0);
    FAILS(msgrcv(id, &message, 4, 0, 0), E2BIG);
    IS(messages(id), 1);
    IS(msgrcv(id, &message, 4, 0, MSG_NOERROR), 4);
    IS(message.type, 7);
    IS(memcmp(message.text, "1234", 4), 0);
    IS(messages(id), 0);
    FAILS(msgsnd(id, &message, (size_t)-1, 0), EINVAL);
    FAILS(msgrcv(id, &message, (size_t)-1, 0, IPC_NOWAIT), EINVAL);
    FAILS(msgsnd(id, &message, 1 << 24, 0), EINVAL);
    struct msqid_ds state;
    IS(msgctl(id, IPC_STAT, &state), 0);
    IS(state.msg_lspid, getpid());
    IS(state.msg_lrpid, getpid());
    IS(state.msg_stime > 0 && state.msg_rtime > 0 && state.msg_ctime > 0, 1);
    IS(state.msg_perm.mode & 0777, 0600);
    state.msg_qbytes = 10;
    IS(msgctl(id, IPC_SET, &state), 0);
    IS(put(id, 1, "123456", IPC_NOWAIT), 0);
    FAILS(put(id, 1, "78901", IPC_NOWAIT), EAGAIN);
    IS(put(id, 1, "7890", IPC_NOWAIT), 0);
    IS(msgctl(id, IPC_STAT, &state), 0);
    IS(state.__msg_cbytes, 10);
    IS(msgctl(id, IPC_RMID, NULL), 0);
}

static void signals(void) {
    int id = msgget(key, IPC_CREAT | 0600);
    interrupt_soon(SA_RESTART, NULL);
    FAILS(take(id, 0, 0, ""), EINTR);
    struct msqid_ds state;
    IS(msgctl(id, IPC_STAT, &state), 0);
    state.msg_qbytes = 1;
    IS(msgctl(id, IPC_SET, &state), 0);
    IS(put(id, 1, "1", 0), 0);
    FAILS(put(id, 1, "2", 0), EINTR);
    interrupt_no_more();
    IS(messages(id), 1);
    IS(msgctl(id, IPC_RMID, NULL), 0);
}

static void waiting(void) {
    int id = msgget(key, IPC_CREAT | 0600);
    struct msqid_ds state;
    IS(msgctl(id, IPC_STAT, &state), 0);
    state.msg_qbytes = 20;
    IS(msgctl(id, IPC_SET, &state), 0);
    pid_t child = check_fork();
    if (child == 0) {
        char text[20];
        for (int i = 0; i < 200; i++) {
            snprintf(text, sizeof text, "message %d", i);
            IS(put(id, 1 + i % 3, text, 0), 0);
        }
        check_leave();
    }
    for (int i = 0; i < 200; i++) {
        char text[20];
        snprintf(text, sizeof text, "message %d", i);
        IS(take(id, 0, 0, text), strlen(text));
    }
    IS(check_joined(child), 0);
    IS(msgctl(id, IPC_RMID, NULL), 0);
}

static void removal(void) {
    int id = msgget(key, IPC_CREAT | 0600);
    pid_t child = check_fork();
    if (child == 0) {
        IS(put(id, 1, "here", 0), 0);
        FAILS(take(id, 2, 0, ""), EIDRM);
        check_leave();
    }
    while (messages(id) != 1)
        sched_yield();
    /* It may not wait yet: then the queue is not there at all for it. */
    interrupt_soon(0, NULL);
    while (interrupt_count == 0)
        sched_yield();
    interrupt_no_more();
    IS(msgctl(id, IPC_RMID, NULL), 0);
    IS(check_joined(child), 0);
}

int main(int count, char **argument) {
    if (count != 2)
        return 2;
    key = (key_t)strtol(argument[1], NULL, 0);
    getting();
    types();
    sizes();
    signals();
    waiting();
    removal();
    return check_end("sysv_msg");
}
