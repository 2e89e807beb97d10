/* SysV semaphores and queues, through the functions and through syscall(2). Without a DVS they are the kernel's;
 * every line holds in a DC, too. */
#include "check.h"

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

struct message {
    long type;
    char text[64];
};

static void semaphores(void)
{
    struct semid_ds stat;
    unsigned short values[3] = {4, 5, 6};
    struct sembuf two[2] = {{0, -1, 0}, {1, 1, 0}};
    struct sembuf blocked = {2, -100, 0}, undone = {2, -2, SEM_UNDO}, none = {0, -100, IPC_NOWAIT};
    struct timespec soon = {0, 20000000}, wrong = {0, -1};
    int id = semget(IPC_PRIVATE, 3, IPC_CREAT | 0600);
    CHECK(id >= 0);
    CHECK(semctl(id, 0, SETALL, (union semun){.array = values}) == 0);
    CHECK(semop(id, two, 2) == 0);
    memset(values, 0, sizeof values);
    CHECK(semctl(id, 0, GETALL, (union semun){.array = values}) == 0);
    CHECK(values[0] == 3 && values[1] == 6 && values[2] == 6);
    CHECK(semctl(id, 1, GETVAL) == 6);
    CHECK(semctl(id, 1, GETPID) == getpid());
    CHECK(semctl(id, 1, SETVAL, (union semun){.val = 7}) == 0 && semctl(id, 1, GETVAL) == 7);
    CHECK(semctl(id, 0, IPC_STAT, (union semun){.buf = &stat}) == 0);
    CHECK(stat.sem_nsems == 3 && (stat.sem_perm.mode & 0777) == 0600 && stat.sem_perm.uid == geteuid());
    CHECK(stat.sem_otime != 0 && stat.sem_ctime >= stat.sem_otime - 5);
    stat.sem_perm.mode = 0640;
    CHECK(semctl(id, 0, IPC_SET, (union semun){.buf = &stat}) == 0);
    CHECK(semctl(id, 0, IPC_STAT, (union semun){.buf = &stat}) == 0 && (stat.sem_perm.mode & 0777) == 0640);
    FAILS(semop(id, &none, 1), EAGAIN);
    FAILS(semtimedop(id, &blocked, 1, &soon), EAGAIN);
    FAILS(semtimedop(id, &blocked, 1, &wrong), EINVAL);
    FAILS(semop(id, two, 0), EINVAL);
    FAILS(semop(id, two, 100000), E2BIG);
    FAILS(semop(-1, two, 1), EINVAL);
    FAILS(semctl(id, 3, GETVAL), EINVAL);
    FAILS(semctl(id, 0, SETVAL, (union semun){.val = 40000}), ERANGE);
    FAILS(semctl(id, 0, 999), EINVAL);
    pid_t child = fork();
    if (child == 0) {
        CHECK(semop(id, &undone, 1) == 0 && semctl(id, 2, GETVAL) == 4);
        _exit(0);
    }
    child_succeeds(child);
    /* The kernel has undone it before wait returns; a DC learns of the death at about the same time. */
    while (semctl(id, 2, GETVAL) == 4)
        sched_yield();
    CHECK(syscall(SYS_semctl, id, 2, GETVAL, 0) == 6);
    CHECK(syscall(SYS_semop, id, two, 2L) == 0);
    FAILS(syscall(SYS_semtimedop, id, &blocked, 1L, &soon), EAGAIN);
    CHECK(semctl(id, 0, IPC_RMID) == 0);
    errno = 0;
    CHECK(semop(id, two, 1) == -1 && (errno == EINVAL || errno == EIDRM));
}

static void queues(void)
{
    struct msqid_ds stat;
    struct message message = {.type = 3, .text = "three"}, found;
    int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    CHECK(id >= 0);
    CHECK(msgsnd(id, &message, 6, 0) == 0);
    message.type = 1;
    strcpy(message.text, "one");
    CHECK(syscall(SYS_msgsnd, id, &message, 4L, 0) == 0);
    CHECK(msgctl(id, IPC_STAT, &stat) == 0);
    CHECK(stat.msg_qnum == 2 && stat.msg_lspid == getpid() && stat.msg_stime != 0);
    FAILS(msgrcv(id, &found, 2, 3, 0), E2BIG);
    CHECK(msgrcv(id, &found, 3, 3, MSG_NOERROR) == 3 && memcmp(found.text, "thr", 3) == 0);
    CHECK(syscall(SYS_msgrcv, id, &found, 64L, 0L, 0) == 4 && found.type == 1 && strcmp(found.text, "one") == 0);
    FAILS(msgrcv(id, &found, 64, 0, IPC_NOWAIT), ENOMSG);
    FAILS(msgsnd(id, &(struct message){0}, 1, 0), EINVAL);
    FAILS(msgsnd(id, &message, (size_t)-1, 0), EINVAL);
    FAILS(msgrcv(id, &found, (size_t)-1, 0, 0), EINVAL);
    CHECK(msgsnd(id, &message, 0, 0) == 0 && msgrcv(id, &found, 0, 0, 0) == 0);
    pid_t child = fork();
    if (child == 0) {
        CHECK(msgrcv(id, &found, sizeof found.text, 0, 0) == 4);
        _exit(0);
    }
    CHECK(msgsnd(id, &message, 4, 0) == 0);
    child_succeeds(child);
    CHECK(msgctl(id, IPC_RMID, NULL) == 0);
    FAILS(msgctl(-1, IPC_STAT, &stat), EINVAL);
}

int main(void)
{
    semaphores();
    queues();
    return 0;
}
