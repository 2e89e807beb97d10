/* Semaphores of sem_init between threads: no post is lost, none is counted twice. */
#include "check.h"

enum { THREADS = 8, ROUNDS = 20000 };

static sem_t semaphore, mutex;
static long counter;

static void *post(void *unused)
{
    for (int round = 0; round < ROUNDS; round++)
        CHECK(sem_post(&semaphore) == 0);
    return unused;
}

static void *take(void *kind)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct timespec deadline;
        switch ((round + (long)kind) % 4) {
        case 0:
            CHECK(sem_wait(&semaphore) == 0);
            break;
        case 1:
            while (sem_trywait(&semaphore) != 0) {
                CHECK(errno == EAGAIN);
                sched_yield();
            }
            break;
        case 2:
            do
                deadline = in_ms(CLOCK_REALTIME, 5);
            while (sem_timedwait(&semaphore, &deadline) != 0 && errno == ETIMEDOUT);
            break;
        case 3:
            deadline = in_ms(CLOCK_REALTIME, 60000);
            CHECK(sem_timedwait(&semaphore, &deadline) == 0);
            break;
        }
        CHECK(sem_wait(&mutex) == 0);
        counter++;
        CHECK(sem_post(&mutex) == 0);
    }
    return NULL;
}

static void edges(void)
{
    sem_t edge;
    int value;
    struct timespec wrong = {.tv_sec = 0, .tv_nsec = 1000000000L};
    struct timespec old = {.tv_sec = -5, .tv_nsec = 0};
    struct timespec soon = in_ms(CLOCK_REALTIME, 20);
    CHECK(sem_init(&edge, 0, 0x7fffffff) == 0);
    CHECK(sem_getvalue(&edge, &value) == 0 && value == 0x7fffffff);
    FAILS(sem_post(&edge), EOVERFLOW);
    CHECK(sem_destroy(&edge) == 0);
    CHECK(sem_init(&edge, 0, 0) == 0);
    FAILS(sem_trywait(&edge), EAGAIN);
    FAILS(sem_timedwait(&edge, &soon), ETIMEDOUT);
    FAILS(sem_timedwait(&edge, &old), ETIMEDOUT);
    FAILS(sem_timedwait(&edge, &wrong), EINVAL);
#if defined(__GLIBC__)
    struct timespec monotonic = in_ms(CLOCK_MONOTONIC, 20);
    FAILS(sem_clockwait(&edge, CLOCK_MONOTONIC, &monotonic), ETIMEDOUT);
    FAILS(sem_clockwait(&edge, CLOCK_PROCESS_CPUTIME_ID, &monotonic), EINVAL);
#endif
    CHECK(sem_post(&edge) == 0);
    CHECK(sem_timedwait(&edge, &old) == 0);
    CHECK(sem_getvalue(&edge, &value) == 0 && value == 0);
    CHECK(sem_destroy(&edge) == 0);
}

int main(void)
{
    pthread_t posters[THREADS], takers[THREADS];
    int value;
    edges();
    CHECK(sem_init(&semaphore, 0, 0) == 0);
    CHECK(sem_init(&mutex, 0, 1) == 0);
    for (long i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&takers[i], NULL, take, (void *)i) == 0);
        CHECK(pthread_create(&posters[i], NULL, post, NULL) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(posters[i], NULL) == 0);
        CHECK(pthread_join(takers[i], NULL) == 0);
    }
    CHECK(counter == (long)THREADS * ROUNDS);
    CHECK(sem_getvalue(&semaphore, &value) == 0 && value == 0);
    return 0;
}
