/* kill of this node's processes, and syscall(2) for everything that is not the shim's. */
#include "check.h"

static volatile sig_atomic_t caught;
static void handler(int signal)
{
    caught = signal;
}

static void kills(void)
{
    signal(SIGUSR1, handler);
    CHECK(kill(getpid(), SIGUSR1) == 0 && caught == SIGUSR1);
    caught = 0;
    CHECK(syscall(SYS_kill, getpid(), SIGUSR1) == 0 && caught == SIGUSR1);
    CHECK(kill(getpid(), 0) == 0);
    FAILS(kill(getpid(), 65), EINVAL);
    FAILS(kill(getpid(), -1), EINVAL);
    FAILS(kill(0x7ffffff0, 0), ESRCH);
    FAILS(kill(-0x7ffffff0, 0), ESRCH);
    FAILS(killpg(-5, 0), EINVAL);
    int ends[2];
    char byte;
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        CHECK(write(ends[1], "x", 1) == 1);
        pause();
        _exit(1);
    }
    CHECK(read(ends[0], &byte, 1) == 1);
    int status;
    CHECK(killpg(child, SIGTERM) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    FAILS(kill(child, 0), ESRCH);
}

static void others(void)
{
    CHECK(syscall(SYS_getpid) == getpid());
    FAILS(syscall(SYS_close, -1), EBADF);
    FAILS(syscall(100000), ENOSYS);
    FAILS(syscall(-1), ENOSYS);
    int zero = open("/dev/zero", O_RDONLY);
    long page = sysconf(_SC_PAGESIZE);
    char *mapped = (char *)syscall(SYS_mmap, NULL, page, PROT_READ, MAP_PRIVATE, zero, 0L);
    CHECK(mapped != MAP_FAILED && mapped[page - 1] == 0);
    CHECK(syscall(SYS_munmap, mapped, page) == 0);
#ifdef SYS_uname
    char name[6 * 65];
    CHECK(syscall(SYS_uname, name) == 0 && strcmp(name, "Linux") == 0);
#endif
    pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    child_succeeds(child);
    child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    child_succeeds(child);
    FILE *pipe = popen("echo said", "r");
    char line[16];
    CHECK(pipe && fgets(line, sizeof line, pipe) && strcmp(line, "said\n") == 0 && pclose(pipe) == 0);
}

int main(void)
{
    kills();
    others();
    return 0;
}
