/* A semaphore shared by processes, of which some run without the shim: with libc's own functions. */
#include "check.h"

enum { PROCESSES = 6, ROUNDS = 5000 };

struct shared {
    sem_t mutex, start;
    long counter;
};

static struct shared *map(const char *path)
{
    int file = open(path, O_RDWR);
    CHECK(file >= 0);
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(shared != MAP_FAILED);
    return shared;
}

static int work(const char *path)
{
    struct shared *shared = map(path);
    CHECK(sem_wait(&shared->start) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        struct timespec deadline = in_ms(CLOCK_REALTIME, 60000);
        CHECK((round % 2 ? sem_wait(&shared->mutex) : sem_timedwait(&shared->mutex, &deadline)) == 0);
        long before = *(volatile long *)&shared->counter;
        if (round % 64 == 0)
            sched_yield();
        *(volatile long *)&shared->counter = before + 1;
        CHECK(sem_post(&shared->mutex) == 0);
    }
    return 0;
}

int main(int argc, char **argv)
{
    char path[] = "/tmp/dvs-shim-test-XXXXXX";
    char *without[] = {NULL};
    pid_t children[PROCESSES];
    if (argc > 1)
        return work(argv[1]);
    int file = mkstemp(path);
    CHECK(file >= 0 && ftruncate(file, sizeof(struct shared)) == 0);
    struct shared *shared = map(path);
    CHECK(sem_init(&shared->mutex, 1, 1) == 0);
    CHECK(sem_init(&shared->start, 1, 0) == 0);
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            if (MIXED && i % 2)
                execle("/proc/self/exe", argv[0], path, NULL, without);
            else if (i % 3 == 0)
                execl("/proc/self/exe", argv[0], path, NULL);
            _exit(work(path));
        }
    }
    for (int i = 0; i < PROCESSES; i++)
        CHECK(sem_post(&shared->start) == 0);
    for (int i = 0; i < PROCESSES; i++)
        child_succeeds(children[i]);
    unlink(path);
    CHECK(shared->counter == (long)PROCESSES * ROUNDS);
    return 0;
}
