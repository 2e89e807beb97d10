/* Signal handlers: a wait without a deadline goes on after SA_RESTART, all other waits end with EINTR. */
#include "check.h"

static sem_t semaphore;
static volatile sig_atomic_t handled;
static void handler(int signal)
{
    (void)signal;
    handled++;
}

struct waiter {
    pthread_t thread;
    pid_t number;
};

/* Waits until the thread sleeps: its state in proc(5) is S. */
static void wait_until_blocked(pid_t number)
{
    char path[64], stat[256], *state;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)number);
    do {
        FILE *file = fopen(path, "r");
        CHECK(file && fgets(stat, sizeof stat, file) && (state = strrchr(stat, ')')));
        fclose(file);
    } while (state[2] != 'S');
}

static void *post_after_signals(void *argument)
{
    struct waiter *waiter = argument;
    for (int i = 0; i < 5; i++) {
        wait_until_blocked(waiter->number);
        CHECK(pthread_kill(waiter->thread, SIGUSR1) == 0);
        while (handled <= i)
            sched_yield();
    }
    CHECK(sem_post(&semaphore) == 0);
    return NULL;
}

static void install(int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    handled = 0;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

int main(void)
{
    pthread_t poster;
    struct waiter self = {pthread_self(), getpid()};
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
