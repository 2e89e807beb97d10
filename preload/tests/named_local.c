/* Named semaphores where there is no DVS: as libc has them, and shared with processes without the shim. */
#include "check.h"

static char name[64];

static int other(const char *same)
{
    sem_t *semaphore = sem_open(same, 0);
    CHECK(semaphore != SEM_FAILED);
    CHECK(sem_wait(semaphore) == 0);
    CHECK(sem_post(semaphore) == 0 && sem_post(semaphore) == 0);
    CHECK(sem_close(semaphore) == 0);
    return 0;
}

int main(int argc, char **argv)
{
    char *without[] = {NULL};
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
    for (int with = MIXED ? 0 : 1; with < 2; with++) {
        pid_t child = fork();
        if (child == 0) {
            if (with)
                execl("/proc/self/exe", argv[0], name, NULL);
            execle("/proc/self/exe", argv[0], name, NULL, without);
            _exit(9);
        }
        CHECK(sem_post(semaphore) == 0);
        child_succeeds(child);
        CHECK(sem_wait(semaphore) == 0 && sem_wait(semaphore) == 0);
    }
    CHECK(sem_close(semaphore) == 0);
    CHECK(sem_post(semaphore) == 0);
    CHECK(sem_close(semaphore) == 0);
    FAILS(sem_close(semaphore), EINVAL);
    CHECK(sem_unlink(name) == 0);
    FAILS(sem_unlink(name), ENOENT);
    FAILS(sem_unlink("/a/b"), ENOENT);
    return 0;
}
