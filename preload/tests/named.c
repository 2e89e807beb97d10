/* Named semaphores: every line holds with libc, and in a DC. */
#include "check.h"

enum { PROCESSES = 4, ROUNDS = 200 };

static char name[64];
static volatile sig_atomic_t handled;

static void handler(int signal)
{
    (void)signal;
    handled++;
}

static int other(const char *same)
{
    sem_t *semaphore = sem_open(same, 0);
    CHECK(semaphore != SEM_FAILED);
    CHECK(sem_wait(semaphore) == 0);
    CHECK(sem_post(semaphore) == 0 && sem_post(semaphore) == 0);
    CHECK(sem_close(semaphore) == 0);
    return 0;
}

static void *post(void *semaphore)
{
    for (int round = 0; round < ROUNDS; round++)
        CHECK(sem_post(semaphore) == 0);
    return NULL;
}

/* As Python's multiprocessing has them: unlinked at once, and used by children. */
static void inherited(void)
{
    int value;
    pid_t children[PROCESSES];
    long *counter = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sem_t *mutex = sem_open(name, O_CREAT | O_EXCL, 0600, 1);
    CHECK(counter != MAP_FAILED && mutex != SEM_FAILED && sem_unlink(name) == 0);
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            for (int round = 0; round < ROUNDS; round++) {
                CHECK(sem_wait(mutex) == 0);
                long before = *(volatile long *)counter;
                sched_yield();
                *(volatile long *)counter = before + 1;
                CHECK(sem_post(mutex) == 0);
            }
            _exit(0);
        }
    }
    for (int i = 0; i < PROCESSES; i++)
        child_succeeds(children[i]);
    CHECK(*counter == (long)PROCESSES * ROUNDS);
    CHECK(sem_getvalue(mutex, &value) == 0 && value == 1);
    CHECK(sem_close(mutex) == 0);
}

static void threads(void)
{
    pthread_t posters[PROCESSES];
    sem_t *semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 0);
    CHECK(semaphore != SEM_FAILED && sem_unlink(name) == 0);
    for (int i = 0; i < PROCESSES; i++)
        CHECK(pthread_create(&posters[i], NULL, post, semaphore) == 0);
    for (int i = 0; i < PROCESSES * ROUNDS; i++)
        CHECK(sem_wait(semaphore) == 0);
    FAILS(sem_trywait(semaphore), EAGAIN);
    for (int i = 0; i < PROCESSES; i++)
        CHECK(pthread_join(posters[i], NULL) == 0);
    CHECK(sem_close(semaphore) == 0);
}

static void waiting(void)
{
    struct itimerval soon = {.it_value = {.tv_usec = 50000}};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    struct timespec wrong = {.tv_nsec = -1}, old = {.tv_sec = -1}, later = in_ms(CLOCK_REALTIME, 30000);
    struct timespec soonest = in_ms(CLOCK_REALTIME, 20);
    sem_t *semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 0);
    CHECK(semaphore != SEM_FAILED && sem_unlink(name) == 0);
    FAILS(sem_timedwait(semaphore, &soonest), ETIMEDOUT);
    FAILS(sem_timedwait(semaphore, &old), ETIMEDOUT);
    FAILS(sem_timedwait(semaphore, &wrong), EINVAL);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    FAILS(sem_timedwait(semaphore, &later), EINTR);
    CHECK(handled == 1);
    action.sa_flags = 0;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    FAILS(sem_wait(semaphore), EINTR);
    CHECK(handled == 2);
    CHECK(sem_post(semaphore) == 0 && sem_wait(semaphore) == 0);
    CHECK(signal(SIGALRM, SIG_DFL) != SIG_ERR);
    alarm(60);
    CHECK(sem_close(semaphore) == 0);
}

int main(int argc, char **argv)
{
    int value;
    if (argc > 1)
        return other(argv[1]);
    snprintf(name, sizeof name, "/dvs-shim-test-%d", (int)getpid());
    errno = 0;
    CHECK(sem_open(name, 0) == SEM_FAILED && errno == ENOENT);
    CHECK(sem_open("/a/b", O_CREAT, 0600, 1) == SEM_FAILED && errno == EINVAL);
    CHECK(sem_open(name, O_CREAT, 0600, 0x80000000u) == SEM_FAILED && errno == EINVAL);
    sem_t *semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 2);
    CHECK(semaphore != SEM_FAILED);
    CHECK(sem_open(name, O_CREAT | O_EXCL, 0600, 2) == SEM_FAILED && errno == EEXIST);
    CHECK(sem_open(name, O_CREAT, 0600, 9) == semaphore);
    CHECK(sem_getvalue(semaphore, &value) == 0 && value == 2);
    CHECK(sem_wait(semaphore) == 0 && sem_wait(semaphore) == 0);
    FAILS(sem_trywait(semaphore), EAGAIN);
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", argv[0], name, NULL);
        _exit(9);
    }
    CHECK(sem_post(semaphore) == 0);
    child_succeeds(child);
    CHECK(sem_wait(semaphore) == 0 && sem_wait(semaphore) == 0);
    CHECK(sem_close(semaphore) == 0);
    CHECK(sem_post(semaphore) == 0);
    CHECK(sem_close(semaphore) == 0);
    CHECK(sem_unlink(name) == 0);
    FAILS(sem_unlink(name), ENOENT);
    FAILS(sem_unlink("/a/b"), ENOENT);
    inherited();
    threads();
    waiting();
    return 0;
}
