/* Semaphores of System V, call by call: arrays, atomic operations, undo, errors, deadlines, removal.
 * Usage: sysv_sem KEY */
#define _GNU_SOURCE
#include "check.h"
#include "interrupt.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/sem.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

static key_t key;

static int control(int id, int number, int command, int value) {
    return semctl(id, number, command, (union semun){.val = value});
}

/* One operation on one semaphore. */
static int operate(int id, int number, int change, int flags) {
    struct sembuf operation = {number, change, flags};
    return semop(id, &operation, 1);
}

static void getting(void) {
    FAILS(semget(key, 1, 0600), ENOENT);
    FAILS(semget(key, 0, IPC_CREAT | 0600), EINVAL);
    FAILS(semget(key, -1, IPC_CREAT | 0600), EINVAL);
    FAILS(semget(key, 1000000, IPC_CREAT | 0600), EINVAL);
    int id = semget(key, 3, IPC_CREAT | IPC_EXCL | 0600);
    IS(id >= 0, 1);
    FAILS(semget(key, 3, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    IS(semget(key, 3, 0), id);
    IS(semget(key, 0, 0), id);
    IS(semget(key, 2, IPC_CREAT | 0600), id);
    FAILS(semget(key, 4, 0), EINVAL);
    int one = semget(IPC_PRIVATE, 1, 0600), two = semget(IPC_PRIVATE, 1, 0600);
    IS(one >= 0 && two >= 0 && one != two && one != id, 1);
    IS(control(one, 0, IPC_RMID, 0), 0);
    IS(control(two, 0, IPC_RMID, 0), 0);
    FAILS(control(two, 0, IPC_RMID, 0), EINVAL);
    IS(control(id, 0, IPC_RMID, 0), 0);
    FAILS(semget(key, 1, 0), ENOENT);
    FAILS(operate(id, 0, 1, 0), EINVAL);
    FAILS(operate(-1, 0, 1, 0), EINVAL);
}

static void controlling(void) {
    int id = semget(key, 3, IPC_CREAT | 0640);
    unsigned short values[3] = {4, 0, 32767}, got[3] = {9, 9, 9};
    IS(semctl(id, 0, SETALL, (union semun){.array = values}), 0);
    IS(semctl(id, 0, GETALL, (union semun){.array = got}), 0);
    IS(got[0] == 4 && got[1] == 0 && got[2] == 32767, 1);
    IS(control(id, 1, SETVAL, 7), 0);
    IS(control(id, 1, GETVAL, 0), 7);
    FAILS(control(id, 1, SETVAL, 32768), ERANGE);
    FAILS(control(id, 1, SETVAL, -1), ERANGE);
    FAILS(control(id, 3, GETVAL, 0), EINVAL);
    FAILS(control(id, -1, GETVAL, 0), EINVAL);
    FAILS(control(id, 0, 12345, 0), EINVAL);
    IS(operate(id, 0, 1, 0), 0);
    IS(control(id, 0, GETPID, 0), getpid());
    IS(control(id, 0, GETNCNT, 0), 0);
    IS(control(id, 0, GETZCNT, 0), 0);
    struct semid_ds state;
    IS(semctl(id, 0, IPC_STAT, (union semun){.buf = &state}), 0);
    IS(state.sem_nsems, 3);
    IS(state.sem_perm.mode & 0777, 0640);
    IS(state.sem_perm.uid, geteuid());
    IS(state.sem_perm.cuid, geteuid());
    IS(state.sem_perm.__key, key);
    IS(state.sem_otime > 0 && state.sem_ctime > 0, 1);
    state.sem_perm.mode = 0600;
    IS(semctl(id, 0, IPC_SET, (union semun){.buf = &state}), 0);
    IS(semctl(id, 0, IPC_STAT, (union semun){.buf = &state}), 0);
    IS(state.sem_perm.mode & 0777, 0600);
    IS(control(id, 0, IPC_RMID, 0), 0);
}

static void operating(void) {
    int id = semget(key, 3, IPC_CREAT | 0600);
    FAILS(operate(id, 3, 1, 0), EFBIG);
    FAILS(semop(id, NULL, 0), EINVAL);
    static struct sembuf many[100000];
    FAILS(semop(id, many, 100000), E2BIG);
    FAILS(operate(id, 0, -1, IPC_NOWAIT), EAGAIN);
    IS(operate(id, 0, 2, 0), 0);
    IS(operate(id, 0, -1, IPC_NOWAIT), 0);
    FAILS(operate(id, 0, 0, IPC_NOWAIT), EAGAIN);
    FAILS(operate(id, 0, 32767, 0), ERANGE);
    IS(control(id, 0, GETVAL, 0), 1);
    /* All or nothing: the second cannot be, so the first is not. */
    struct sembuf both[2] = {{0, -1, IPC_NOWAIT}, {1, -1, IPC_NOWAIT}};
    FAILS(semop(id, both, 2), EAGAIN);
    IS(control(id, 0, GETVAL, 0), 1);
    /* In order: take what the first has just put. */
    struct sembuf relay[3] = {{2, 1, 0}, {2, -1, IPC_NOWAIT}, {2, 0, IPC_NOWAIT}};
    IS(semop(id, relay, 3), 0);
    IS(control(id, 2, GETVAL, 0), 0);
    struct timespec no_time = {0, 0}, some_time = {0, 60000000}, bad = {0, 1000000000};
    struct sembuf take = {1, -1, 0};
    FAILS(semtimedop(id, &take, 1, &no_time), EAGAIN);
    long begin = check_clock();
    FAILS(semtimedop(id, &take, 1, &some_time), EAGAIN);
    IS(check_clock() - begin >= 59, 1);
    FAILS(semtimedop(id, &take, 1, &bad), EINVAL);
    IS(control(id, 0, IPC_RMID, 0), 0);
}

static void signals(void) {
    int id = semget(key, 1, IPC_CREAT | 0600);
    /* Never started again, whatever the handler's flags say. */
    interrupt_soon(SA_RESTART, NULL);
    FAILS(operate(id, 0, -1, 0), EINTR);
    interrupt_no_more();
    IS(control(id, 0, GETNCNT, 0), 0);
    IS(control(id, 0, IPC_RMID, 0), 0);
}

/* Waits until `command` (GETNCNT, GETZCNT) of semaphore 0 is `wanted`. */
static void until(int id, int command, int wanted) {
    while (control(id, 0, command, 0) != wanted)
        sched_yield();
}

static void waiting(void) {
    int id = semget(key, 2, IPC_CREAT | 0600);
    pid_t child = check_fork();
    if (child == 0) {
        struct sembuf both[2] = {{0, -2, 0}, {1, 3, 0}};
        IS(semop(id, both, 2), 0);
        IS(operate(id, 1, 0, 0), 0);
        check_leave();
    }
    until(id, GETNCNT, 1);
    IS(operate(id, 0, 1, 0), 0);
    IS(control(id, 0, GETNCNT, 0), 1);
    IS(operate(id, 0, 1, 0), 0);
    IS(operate(id, 1, -3, 0), 0);
    IS(check_joined(child), 0);
    IS(control(id, 0, GETVAL, 0), 0);
    IS(control(id, 0, IPC_RMID, 0), 0);
}

static void removal(void) {
    int id = semget(key, 1, IPC_CREAT | 0600);
    pid_t child = check_fork();
    if (child == 0) {
        FAILS(operate(id, 0, -1, 0), EIDRM);
        check_leave();
    }
    until(id, GETNCNT, 1);
    IS(control(id, 0, IPC_RMID, 0), 0);
    IS(check_joined(child), 0);
}

static void undoing(void) {
    int id = semget(key, 2, IPC_CREAT | 0600);
    IS(control(id, 0, SETVAL, 1), 0);
    for (int killed = 0; killed < 2; killed++) {
        pid_t child = check_fork();
        if (child == 0) {
            IS(operate(id, 0, -1, SEM_UNDO), 0);
            IS(operate(id, 1, 1, 0), 0);
            if (killed)
                raise(SIGKILL);
            check_leave();
        }
        /* The child has it, until it ends: then it is given back. */
        IS(operate(id, 1, -1, 0), 0);
        IS(operate(id, 0, -1, 0), 0);
        IS(check_joined(child), killed ? SIGKILL : 0);
        IS(operate(id, 0, 1, 0), 0);
        IS(control(id, 0, GETVAL, 0), 1);
    }
    /* What was put with undo is taken again. What is done and undone by the process leaves nothing. */
    pid_t child = check_fork();
    if (child == 0) {
        IS(operate(id, 0, 4, SEM_UNDO), 0);
        IS(operate(id, 0, -1, SEM_UNDO), 0);
        check_leave();
    }
    IS(check_joined(child), 0);
    struct timespec long_time = {20, 0};
    struct sembuf back[2] = {{0, -1, 0}, {0, 0, 0}};
    IS(semtimedop(id, back, 2, &long_time), 0);
    IS(control(id, 0, IPC_RMID, 0), 0);
}

int main(int count, char **argument) {
    if (count != 2)
        return 2;
    key = (key_t)strtol(argument[1], NULL, 0);
    getting();
    controlling();
    operating();
    signals();
    waiting();
    removal();
    undoing();
    return check_end("sysv_sem");
}
