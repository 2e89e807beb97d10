/* Signals that arrive while a call waits. */
#ifndef INTERRUPT_H
#define INTERRUPT_H

#include <signal.h>
#include <string.h>
#include <sys/time.h>

static volatile sig_atomic_t interrupt_count;
static void (*interrupt_action)(void);

static void interrupt_handler(int signal) {
    (void)signal;
    interrupt_count++;
    if (interrupt_action)
        interrupt_action();
}

/* SIGALRM after 100 ms and every 100 ms from then on (so one that came too early does no harm),
 * handled with `flags`, doing `action`. */
static void interrupt_soon(int flags, void (*action)(void)) {
    struct sigaction handler;
    memset(&handler, 0, sizeof handler);
    handler.sa_handler = interrupt_handler;
    handler.sa_flags = flags;
    interrupt_action = action;
    interrupt_count = 0;
    sigaction(SIGALRM, &handler, NULL);
    struct itimerval timer = {{0, 100000}, {0, 100000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void interrupt_no_more(void) {
    struct itimerval timer = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

#endif
