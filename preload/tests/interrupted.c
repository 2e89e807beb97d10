/* Signal handlers: a wait without a deadline goes on after SA_RESTART, all other waits end with EINTR. */
#include "check.h"

static sem_t semaphore;
static void handler(int signal)
{
    (void)signal;
}

static void *post_after_signals(void *waiter)
{
    /* The waiter must be asleep when it is signalled; if it is not yet, it will be at one of these. */
    for (int i = 0; i < 50; i++) {
        pthread_kill(*(pthread_t *)waiter, SIGUSR1);
        usleep(1000);
    }
    CHECK(sem_post(&semaphore) == 0);
    return NULL;
}

static void install(int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

int main(void)
{
    pthread_t self = pthread_self(), poster;
    struct timespec deadline = in_ms(CLOCK_REALTIME, 60000);
    CHECK(sem_init(&semaphore, 0, 0) == 0);
    install(SA_RESTART);
    CHECK(pthread_create(&poster, NULL, post_after_signals, &self) == 0);
    CHECK(sem_wait(&semaphore) == 0);
    CHECK(pthread_join(poster, NULL) == 0);
    install(0);
    CHECK(pthread_create(&poster, NULL, post_after_signals, &self) == 0);
    FAILS(sem_timedwait(&semaphore, &deadline), EINTR);
    FAILS(sem_wait(&semaphore), EINTR);
    while (sem_wait(&semaphore) != 0)
        CHECK(errno == EINTR);
    CHECK(pthread_join(poster, NULL) == 0);
    return 0;
}
