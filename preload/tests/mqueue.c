/* POSIX message queues. Without a DVS they are the kernel's; every line holds in a DC, too. */
#include "check.h"
#include <mqueue.h>

static char name[64], buffer[8192];

int main(void)
{
    struct mq_attr attributes = {.mq_maxmsg = 2, .mq_msgsize = 16}, found;
    struct timespec soon = in_ms(CLOCK_REALTIME, 20), wrong = {0, -1}, old = {-1, 0};
    unsigned priority;
    snprintf(name, sizeof name, "/dvs-shim-test-%d", (int)getpid());
    FAILS(mq_open(name, O_RDWR), ENOENT);
    FAILS(mq_open("/a/b", O_RDWR), EACCES);
    FAILS(mq_open("/", O_RDWR), ENOENT);
    umask(027);
    mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0666, &attributes);
    CHECK(queue >= 0);
    CHECK(fcntl(queue, F_GETFD) == FD_CLOEXEC);
    FAILS(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes), EEXIST);
    CHECK(mq_getattr(queue, &found) == 0);
    CHECK(found.mq_flags == 0 && found.mq_maxmsg == 2 && found.mq_msgsize == 16 && found.mq_curmsgs == 0);
    CHECK(mq_send(queue, "low", 3, 1) == 0 && mq_send(queue, "high", 4, 7) == 0);
    FAILS(mq_timedsend(queue, "x", 1, 0, &soon), ETIMEDOUT);
    FAILS(mq_timedsend(queue, "x", 1, 0, &wrong), EINVAL);
    FAILS(mq_timedsend(queue, "x", 1, 0, &old), EINVAL);
    FAILS(mq_send(queue, buffer, 17, 0), EMSGSIZE);
    FAILS(mq_send(queue, "x", 1, 32768), EINVAL);
    FAILS(mq_receive(queue, buffer, 15, NULL), EMSGSIZE);
    mqd_t copy = dup(queue);
    CHECK(mq_receive(copy, buffer, sizeof buffer, &priority) == 4 && priority == 7 && memcmp(buffer, "high", 4) == 0);
    /* O_NONBLOCK is of the description: of both descriptors. */
    attributes.mq_flags = O_NONBLOCK;
    CHECK(mq_setattr(copy, &attributes, &found) == 0 && found.mq_flags == 0 && found.mq_curmsgs == 1);
    CHECK(mq_receive(queue, buffer, sizeof buffer, NULL) == 3);
    FAILS(mq_receive(queue, buffer, sizeof buffer, NULL), EAGAIN);
    FAILS(mq_timedreceive(queue, buffer, sizeof buffer, NULL, &soon), EAGAIN);
    attributes.mq_flags = O_NONBLOCK | O_RDWR;
    FAILS(mq_setattr(copy, &attributes, NULL), EINVAL);
    attributes.mq_flags = 0;
    CHECK(mq_setattr(copy, &attributes, NULL) == 0);
    FAILS(mq_timedreceive(queue, buffer, sizeof buffer, NULL, &soon), ETIMEDOUT);
    pid_t child = fork();
    if (child == 0) {
        CHECK(mq_receive(queue, buffer, sizeof buffer, NULL) == 5);
        _exit(0);
    }
    CHECK(mq_send(queue, "child", 5, 0) == 0);
    child_succeeds(child);
    mqd_t writer = mq_open(name, O_WRONLY);
    CHECK(writer >= 0);
    FAILS(mq_receive(writer, buffer, sizeof buffer, NULL), EBADF);
    CHECK(mq_close(writer) == 0);
    FAILS(mq_send(writer, "x", 1, 0), EBADF);
    FAILS(mq_send(0, "x", 1, 0), EBADF);
    FAILS(mq_getattr(-1, &found), EBADF);
    FAILS(mq_close(-1), EBADF);
    CHECK(syscall(SYS_mq_timedsend, queue, "raw", 3L, 2, NULL) == 0);
    CHECK(syscall(SYS_mq_timedreceive, queue, buffer, sizeof buffer, &priority, NULL) == 3 && priority == 2);
    CHECK(syscall(SYS_mq_getsetattr, queue, NULL, &found) == 0 && found.mq_maxmsg == 2);
    CHECK(mq_close(copy) == 0);
    CHECK(mq_unlink(name) == 0);
    FAILS(mq_unlink(name), ENOENT);
    CHECK(mq_send(queue, "still", 5, 0) == 0 && mq_receive(queue, buffer, sizeof buffer, NULL) == 5);
    CHECK(mq_close(queue) == 0);
    CHECK(syscall(SYS_mq_unlink, name + 1) == -1 && errno == ENOENT);
    return 0;
}
