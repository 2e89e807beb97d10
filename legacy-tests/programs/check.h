/* What the C programs of this folder check with: a wrong answer is told with its line, all are counted. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int check_failures;

/* The value of `expression` is `wanted`. */
#define IS(expression, wanted)                                                                     \
    do {                                                                                           \
        errno = 0;                                                                                 \
        long long value_ = (long long)(expression), wanted_ = (long long)(wanted);                 \
        int errno_ = errno;                                                                        \
        if (value_ != wanted_) {                                                                   \
            printf("line %d: %s is %lld (%s), not %lld\n", __LINE__, #expression, value_,          \
                   errno_ ? strerrorname_np(errno_) : "no errno", wanted_);                        \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

/* `expression` is -1 with errno `wanted`. */
#define FAILS(expression, wanted)                                                                  \
    do {                                                                                           \
        errno = 0;                                                                                 \
        long long value_ = (long long)(expression);                                                \
        int errno_ = errno;                                                                        \
        if (value_ != -1 || errno_ != (wanted)) {                                                  \
            printf("line %d: %s is %lld (%s), not -1 (%s)\n", __LINE__, #expression, value_,       \
                   errno_ ? strerrorname_np(errno_) : "no errno", strerrorname_np(wanted));        \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

/* The program's end: 0 if all was right. */
static inline int check_end(const char *name) {
    if (check_failures == 0)
        printf("%s: ok\n", name);
    return check_failures ? 1 : 0;
}

/* Runs `body` in a child; its failures become ours when it is waited for with `joined`. */
static inline pid_t check_fork(void) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0)
        check_failures = 0;
    return pid;
}

static inline void check_leave(void) {
    fflush(stdout);
    _exit(check_failures ? 1 : 0);
}

static inline int check_joined(pid_t pid) {
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

/* `milliseconds` from now on `clock`. */
static inline struct timespec check_after(clockid_t clock, long milliseconds) {
    struct timespec time;
    clock_gettime(clock, &time);
    time.tv_sec += milliseconds / 1000;
    time.tv_nsec += milliseconds % 1000 * 1000000;
    if (time.tv_nsec >= 1000000000) {
        time.tv_sec++;
        time.tv_nsec -= 1000000000;
    }
    return time;
}

/* Milliseconds since the process began to measure. */
static inline long check_clock(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

#endif
