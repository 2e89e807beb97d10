/* A thread that waits for a semaphore can be cancelled, as with libc's functions; so can one that is about to. */
#include "check.h"

static sem_t never, ready;
static int cleaned;

static void clean(void *unused)
{
    (void)unused;
    cleaned++;
}

static void *wait_for_ever(void *timed)
{
    pthread_cleanup_push(clean, NULL);
    struct timespec deadline = in_ms(CLOCK_REALTIME, 60000);
    CHECK(sem_post(&ready) == 0);
    if (timed)
        sem_timedwait(&never, &deadline);
    else
        sem_wait(&never);
    pthread_cleanup_pop(0);
    return NULL;
}

static void *wait_without_need(void *unused)
{
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL) == 0);
    CHECK(sem_wait(&ready) == 0);
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL) == 0);
    sem_wait(&ready);
    return unused;
}

int main(void)
{
    pthread_t thread;
    void *outcome;
    int value;
    CHECK(sem_init(&never, 0, 0) == 0 && sem_init(&ready, 0, 0) == 0);
    for (long timed = 0; timed < 2; timed++) {
        CHECK(pthread_create(&thread, NULL, wait_for_ever, (void *)timed) == 0);
        CHECK(sem_wait(&ready) == 0);
        CHECK(pthread_cancel(thread) == 0);
        CHECK(pthread_join(thread, &outcome) == 0);
        CHECK(outcome == PTHREAD_CANCELED && cleaned == timed + 1);
    }
    CHECK(sem_post(&never) == 0 && sem_wait(&never) == 0);
    CHECK(pthread_create(&thread, NULL, wait_without_need, NULL) == 0);
    CHECK(pthread_cancel(thread) == 0);
    CHECK(sem_post(&ready) == 0 && sem_post(&ready) == 0);
    CHECK(pthread_join(thread, &outcome) == 0);
    CHECK(outcome == PTHREAD_CANCELED);
    CHECK(sem_getvalue(&ready, &value) == 0 && value == 1);
    return 0;
}
