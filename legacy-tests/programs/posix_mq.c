/* Message queues of POSIX, call by call: attributes, priorities, errors, deadlines, signals, descriptors.
 * Usage: posix_mq NAME */
#define _GNU_SOURCE
#include "check.h"
#include "interrupt.h"
#include <fcntl.h>
#include <mqueue.h>

static char name[200];

static mqd_t make(int flags, long messages, long size) {
    struct mq_attr attributes = {.mq_maxmsg = messages, .mq_msgsize = size};
    return mq_open(name, flags, 0600, &attributes);
}

/* mq_getattr through the descriptor; the number of messages. */
static long messages(mqd_t queue) {
    struct mq_attr attributes;
    IS(mq_getattr(queue, &attributes), 0);
    return attributes.mq_curmsgs;
}

static void names(void) {
    FAILS(mq_open(name, O_RDWR), ENOENT);
    FAILS(mq_unlink(name), ENOENT);
    FAILS(mq_open("no-slash", O_RDWR | O_CREAT, 0600, NULL), EINVAL);
    FAILS(mq_open("/a/b", O_RDWR | O_CREAT, 0600, NULL), EACCES);
    char longest[400];
    memset(longest, 'x', sizeof longest);
    longest[0] = '/';
    longest[399] = 0;
    FAILS(mq_open(longest, O_RDWR | O_CREAT, 0600, NULL), ENAMETOOLONG);
    FAILS(make(O_RDWR | O_CREAT, 0, 64), EINVAL);
    FAILS(make(O_RDWR | O_CREAT, 4, 0), EINVAL);
    FAILS(make(O_RDWR | O_CREAT, -1, 64), EINVAL);
    FAILS(mq_open(name, O_RDWR), ENOENT);
}

static void attributes(void) {
    mqd_t queue = make(O_RDWR | O_CREAT | O_EXCL, 4, 64);
    IS(queue >= 0, 1);
    FAILS(make(O_RDWR | O_CREAT | O_EXCL, 4, 64), EEXIST);
    struct mq_attr got, old, wanted = {.mq_flags = O_NONBLOCK, .mq_maxmsg = 9, .mq_msgsize = 9};
    IS(mq_getattr(queue, &got), 0);
    IS(got.mq_flags, 0);
    IS(got.mq_maxmsg, 4);
    IS(got.mq_msgsize, 64);
    IS(got.mq_curmsgs, 0);
    /* Only O_NONBLOCK can be set, for this open description only. */
    IS(mq_setattr(queue, &wanted, &old), 0);
    IS(old.mq_flags, 0);
    IS(mq_getattr(queue, &got), 0);
    IS(got.mq_flags, O_NONBLOCK);
    IS(got.mq_maxmsg, 4);
    mqd_t second = mq_open(name, O_RDWR);
    IS(mq_getattr(second, &got), 0);
    IS(got.mq_flags, 0);
    wanted.mq_flags = O_APPEND;
    FAILS(mq_setattr(queue, &wanted, NULL), EINVAL);
    IS(mq_close(second), 0);
    FAILS(mq_close(second), EBADF);
    FAILS(mq_getattr(second, &got), EBADF);
    /* It does not go through exec. */
    IS(fcntl(queue, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    IS(mq_close(queue), 0);
    IS(mq_unlink(name), 0);
}

static void priorities(void) {
    mqd_t queue = make(O_RDWR | O_CREAT, 8, 64);
    const struct {
        const char *text;
        unsigned priority;
    } sent[] = {{"a", 1}, {"b", 5}, {"c", 1}, {"d", 32767}, {"", 0}, {"e", 5}},
      expected[] = {{"d", 32767}, {"b", 5}, {"e", 5}, {"a", 1}, {"c", 1}, {"", 0}};
    for (int i = 0; i < 6; i++)
        IS(mq_send(queue, sent[i].text, strlen(sent[i].text), sent[i].priority), 0);
    IS(messages(queue), 6);
    for (int i = 0; i < 6; i++) {
        char text[64] = "?";
        unsigned priority = 77;
        IS(mq_receive(queue, text, sizeof text, &priority), strlen(expected[i].text));
        IS(priority, expected[i].priority);
        IS(memcmp(text, expected[i].text, strlen(expected[i].text)), 0);
    }
    FAILS(mq_send(queue, "x", 1, 32768), EINVAL);
    IS(messages(queue), 0);
    IS(mq_close(queue), 0);
    IS(mq_unlink(name), 0);
}

static void sizes_and_modes(void) {
    mqd_t queue = make(O_RDWR | O_CREAT, 2, 16);
    mqd_t reader = mq_open(name, O_RDONLY | O_NONBLOCK), writer = mq_open(name, O_WRONLY | O_NONBLOCK);
    char text[64];
    FAILS(mq_send(queue, "12345678901234567", 17, 0), EMSGSIZE);
    FAILS(mq_receive(queue, text, 15, NULL), EMSGSIZE);
    FAILS(mq_send(reader, "x", 1, 0), EBADF);
    FAILS(mq_receive(writer, text, 64, NULL), EBADF);
    FAILS(mq_receive(reader, text, 64, NULL), EAGAIN);
    IS(mq_send(writer, "1234567890123456", 16, 0), 0);
    IS(mq_send(writer, "second", 6, 0), 0);
    FAILS(mq_send(writer, "third", 5, 0), EAGAIN);
    /* O_NONBLOCK belongs to the open description: `queue` waits. */
    struct timespec past = {1, 0}, bad = {1, 1000000000};
    FAILS(mq_timedsend(queue, "third", 5, 0, &past), ETIMEDOUT);
    FAILS(mq_timedsend(queue, "third", 5, 0, &bad), EINVAL);
    IS(mq_timedreceive(reader, text, 64, NULL, &past), 16);
    IS(mq_timedreceive(queue, text, 64, NULL, &past), 6);
    FAILS(mq_timedreceive(queue, text, 64, NULL, &past), ETIMEDOUT);
    long begin = check_clock();
    struct timespec soon = check_after(CLOCK_REALTIME, 60);
    FAILS(mq_timedreceive(queue, text, 64, NULL, &soon), ETIMEDOUT);
    IS(check_clock() - begin >= 59, 1);
    FAILS(mq_send(-1, "x", 1, 0), EBADF);
    FAILS(mq_send(0x7fffff, "x", 1, 0), EBADF);
    IS(mq_close(queue), 0);
    IS(mq_close(reader), 0);
    IS(mq_close(writer), 0);
    IS(mq_unlink(name), 0);
}

static void signals(void) {
    mqd_t queue = make(O_RDWR | O_CREAT, 1, 16);
    char text[16];
    interrupt_soon(0, NULL);
    FAILS(mq_receive(queue, text, 16, NULL), EINTR);
    IS(mq_send(queue, "x", 1, 0), 0);
    FAILS(mq_send(queue, "y", 1, 0), EINTR);
    interrupt_no_more();
    IS(messages(queue), 1);
    IS(mq_close(queue), 0);
    IS(mq_unlink(name), 0);
}

/* A descriptor is inherited and duplicated like a file's. */
static void descriptors(void) {
    mqd_t queue = make(O_RDWR | O_CREAT, 8, 16);
    mqd_t twin = dup(queue);
    IS(twin >= 0, 1);
    char text[16];
    IS(mq_send(queue, "parent", 6, 1), 0);
    pid_t child = check_fork();
    if (child == 0) {
        IS(mq_close(twin), 0);
        IS(mq_receive(queue, text, 16, NULL), 6);
        IS(mq_send(queue, "child", 5, 3), 0);
        check_leave();
    }
    IS(mq_close(queue), 0);
    IS(check_joined(child), 0);
    IS(mq_receive(twin, text, 16, NULL), 5);
    IS(messages(twin), 0);
    /* The name goes at once, the queue with its last descriptor. */
    IS(mq_unlink(name), 0);
    FAILS(mq_open(name, O_RDWR), ENOENT);
    IS(mq_send(twin, "z", 1, 0), 0);
    mqd_t new = make(O_RDWR | O_CREAT | O_EXCL, 1, 1);
    IS(messages(new), 0);
    IS(messages(twin), 1);
    IS(mq_close(new), 0);
    IS(mq_close(twin), 0);
    IS(mq_unlink(name), 0);
}

/* A sender waits for room, a receiver for a message, in two processes. */
static void waiting(void) {
    mqd_t queue = make(O_RDWR | O_CREAT, 2, 16);
    pid_t child = check_fork();
    if (child == 0) {
        for (int i = 0; i < 200; i++)
            IS(mq_send(queue, (const char *)&i, sizeof i, 0), 0);
        check_leave();
    }
    for (int i = 0; i < 200; i++) {
        char text[16];
        int number = -1;
        IS(mq_receive(queue, text, 16, NULL), sizeof i);
        memcpy(&number, text, sizeof number);
        IS(number, i);
    }
    IS(check_joined(child), 0);
    IS(mq_close(queue), 0);
    IS(mq_unlink(name), 0);
}

int main(int count, char **argument) {
    if (count != 2)
        return 2;
    snprintf(name, sizeof name, "/%s", argument[1]);
    names();
    attributes();
    priorities();
    sizes_and_modes();
    signals();
    descriptors();
    waiting();
    return check_end("posix_mq");
}
