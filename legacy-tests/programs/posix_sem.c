/* Named semaphores of POSIX, call by call: values, errors, signals, fork, threads, unlink. And unnamed
 * ones, which must go on working in the same process. Usage: posix_sem NAME */
#define _GNU_SOURCE
#include "check.h"
#include "interrupt.h"
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>

static char name[200], other[210];
static sem_t *interrupted;

/* sem_open's failure as -1, for FAILS. */
static long opened(sem_t *semaphore) {
    return semaphore == SEM_FAILED ? -1 : 1;
}

static int value_of(sem_t *semaphore) {
    int value = -77;
    IS(sem_getvalue(semaphore, &value), 0);
    return value;
}

static void names(void) {
    char longest[400];
    memset(longest, 'x', sizeof longest);
    longest[0] = '/';
    longest[399] = 0;
    FAILS(opened(sem_open(name, 0)), ENOENT);
    FAILS(sem_unlink(name), ENOENT);
    FAILS(opened(sem_open("/a/b", O_CREAT, 0600, 1)), EINVAL);
    FAILS(opened(sem_open("/", O_CREAT, 0600, 1)), EINVAL);
    IS(opened(sem_open(longest, O_CREAT, 0600, 1)), -1);
    FAILS(opened(sem_open(name, O_CREAT, 0600, (unsigned)SEM_VALUE_MAX + 1)), EINVAL);
    FAILS(opened(sem_open(name, 0)), ENOENT);
}

static void counting(void) {
    sem_t *semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 2);
    IS(opened(semaphore), 1);
    FAILS(opened(sem_open(name, O_CREAT | O_EXCL, 0600, 2)), EEXIST);
    /* A semaphore that is there keeps its value, and is at the same address in this process. */
    sem_t *again = sem_open(name, O_CREAT, 0600, 9);
    IS(again == semaphore, 1);
    IS(value_of(semaphore), 2);
    IS(sem_trywait(semaphore), 0);
    IS(sem_wait(semaphore), 0);
    IS(value_of(semaphore), 0);
    FAILS(sem_trywait(semaphore), EAGAIN);
    IS(sem_post(semaphore), 0);
    IS(value_of(semaphore), 1);
    IS(sem_close(again), 0);
    /* Opened twice, closed once: still there. */
    IS(sem_wait(semaphore), 0);
    IS(sem_close(semaphore), 0);
    IS(sem_unlink(name), 0);
}

static void limits(void) {
    sem_t *semaphore = sem_open(name, O_CREAT, 0600, SEM_VALUE_MAX);
    IS(opened(semaphore), 1);
    IS(value_of(semaphore), SEM_VALUE_MAX);
    FAILS(sem_post(semaphore), EOVERFLOW);
    IS(sem_wait(semaphore), 0);
    IS(sem_post(semaphore), 0);
    IS(sem_close(semaphore), 0);
    IS(sem_unlink(name), 0);
}

static void deadlines(void) {
    sem_t *semaphore = sem_open(name, O_CREAT, 0600, 0);
    struct timespec past = {1, 0}, bad = {1, 1000000000};
    FAILS(sem_timedwait(semaphore, &past), ETIMEDOUT);
    FAILS(sem_timedwait(semaphore, &bad), EINVAL);
    bad.tv_nsec = -1;
    FAILS(sem_timedwait(semaphore, &bad), EINVAL);
    long begin = check_clock();
    struct timespec soon = check_after(CLOCK_REALTIME, 60);
    FAILS(sem_timedwait(semaphore, &soon), ETIMEDOUT);
    IS(check_clock() - begin >= 59, 1);
    begin = check_clock();
    soon = check_after(CLOCK_MONOTONIC, 60);
    FAILS(sem_clockwait(semaphore, CLOCK_MONOTONIC, &soon), ETIMEDOUT);
    IS(check_clock() - begin >= 59, 1);
    FAILS(sem_clockwait(semaphore, CLOCK_PROCESS_CPUTIME_ID, &soon), EINVAL);
    /* One that is to be had is had, however late it is. */
    IS(sem_post(semaphore), 0);
    IS(sem_timedwait(semaphore, &past), 0);
    IS(value_of(semaphore), 0);
    IS(sem_close(semaphore), 0);
    IS(sem_unlink(name), 0);
}

static void post_interrupted(void) {
    if (interrupt_count == 3)
        sem_post(interrupted);
}

static void signals(void) {
    interrupted = sem_open(name, O_CREAT, 0600, 0);
    interrupt_soon(0, NULL);
    FAILS(sem_wait(interrupted), EINTR);
    struct timespec late = check_after(CLOCK_REALTIME, 20000);
    FAILS(sem_timedwait(interrupted, &late), EINTR);
    /* With SA_RESTART the wait goes on; sem_post may be called in a handler and ends it. */
    interrupt_soon(SA_RESTART, post_interrupted);
    IS(sem_wait(interrupted), 0);
    IS(interrupt_count >= 3, 1);
    interrupt_no_more();
    IS(value_of(interrupted), 0);
    IS(sem_close(interrupted), 0);
    IS(sem_unlink(name), 0);
}

static void processes(void) {
    sem_t *there = sem_open(name, O_CREAT, 0600, 0), *back = sem_open(other, O_CREAT, 0600, 0);
    pid_t child = check_fork();
    if (child == 0) {
        /* Inherited. */
        for (int i = 0; i < 100; i++) {
            IS(sem_wait(there), 0);
            IS(sem_post(back), 0);
        }
        /* And opened by name. */
        sem_t *own = sem_open(name, 0);
        IS(opened(own), 1);
        IS(sem_post(own), 0);
        check_leave();
    }
    for (int i = 0; i < 100; i++) {
        IS(sem_post(there), 0);
        IS(sem_wait(back), 0);
    }
    IS(check_joined(child), 0);
    /* A semaphore outlives the process that had it open. */
    IS(value_of(there), 1);
    IS(sem_close(there), 0);
    IS(sem_close(back), 0);
    IS(sem_unlink(name), 0);
    IS(sem_unlink(other), 0);
}

static void unlinking(void) {
    sem_t *old = sem_open(name, O_CREAT, 0600, 0);
    IS(sem_unlink(name), 0);
    FAILS(opened(sem_open(name, 0)), ENOENT);
    sem_t *new = sem_open(name, O_CREAT | O_EXCL, 0600, 5);
    IS(opened(new), 1);
    IS(new != old, 1);
    IS(sem_post(old), 0);
    IS(value_of(old), 1);
    IS(value_of(new), 5);
    IS(sem_close(old), 0);
    IS(sem_close(new), 0);
    IS(sem_unlink(name), 0);
    FAILS(sem_unlink(name), ENOENT);
}

static void *wait_in_thread(void *semaphore) {
    return (void *)(long)sem_wait(semaphore);
}

static void threads(void) {
    sem_t *semaphore = sem_open(name, O_CREAT, 0600, 0);
    pthread_t thread[8];
    for (int i = 0; i < 8; i++)
        IS(pthread_create(&thread[i], NULL, wait_in_thread, semaphore), 0);
    for (int i = 0; i < 8; i++)
        IS(sem_post(semaphore), 0);
    for (int i = 0; i < 8; i++) {
        void *result = (void *)1L;
        IS(pthread_join(thread[i], &result), 0);
        IS((long)result, 0);
    }
    IS(value_of(semaphore), 0);
    IS(sem_close(semaphore), 0);
    IS(sem_unlink(name), 0);
}

static void unnamed(void) {
    sem_t local;
    IS(sem_init(&local, 0, 1), 0);
    IS(sem_wait(&local), 0);
    FAILS(sem_trywait(&local), EAGAIN);
    struct timespec past = {1, 0};
    FAILS(sem_timedwait(&local, &past), ETIMEDOUT);
    IS(sem_post(&local), 0);
    IS(value_of(&local), 1);
    IS(sem_destroy(&local), 0);
    sem_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    IS(sem_init(shared, 1, 0), 0);
    pid_t child = check_fork();
    if (child == 0) {
        IS(sem_post(shared), 0);
        check_leave();
    }
    IS(sem_wait(shared), 0);
    IS(check_joined(child), 0);
}

int main(int count, char **argument) {
    if (count != 2)
        return 2;
    snprintf(name, sizeof name, "/%s", argument[1]);
    snprintf(other, sizeof other, "/%s-other", argument[1]);
    names();
    counting();
    limits();
    deadlines();
    signals();
    processes();
    unlinking();
    threads();
    unnamed();
    return check_end("posix_sem");
}
