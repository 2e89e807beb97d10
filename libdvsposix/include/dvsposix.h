/*
 * The C API of DVS: semaphores, message queues, processes and files of a distributed container.
 *
 * A program that is not linked to this needs nothing of it: the shim gives it the same objects under their
 * POSIX names. This is for programs that want the DC's objects beside the local ones, or no interposition.
 *
 * The functions are in libdvs_preload.so. They answer 0 or a number >= 0, or a negative errno; they leave
 * `errno` alone. -ENOSYS: there is no DVS here. -EHOSTDOWN: a node or server is gone, and the call may or
 * may not have been executed. Flags, modes and commands are Linux's.
 *
 * A child of fork may use everything its parent opened. Exec closes it.
 */
#ifndef DVSPOSIX_H
#define DVSPOSIX_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sembuf;

/* As struct mq_attr. */
struct dvs_mq_attr {
    int64_t flags;
    int64_t max_messages;
    int64_t message_size;
    int64_t messages;
};

/* An open file. The caller keeps it; nothing of it may be changed. */
struct dvs_file {
    uint64_t handle;
    uint64_t ino;
    uint64_t offset;
    uint32_t flags;
    uint32_t reserved;
};

/* As struct stat; blocks are of 512 bytes. */
struct dvs_stat {
    uint64_t ino;
    uint64_t size;
    uint64_t blocks;
    struct timespec atime;
    struct timespec mtime;
    struct timespec ctime;
    uint32_t mode;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint32_t rdev;
    uint32_t block_size;
};

/* sem_open(3): flags O_CREAT, O_EXCL. The semaphore's number goes to *sem. Close as often as opened. */
int dvs_sem_open(uint64_t *sem, const char *name, int flags, unsigned int mode, unsigned int value);
int dvs_sem_close(uint64_t sem);
int dvs_sem_unlink(const char *name);
int dvs_sem_wait(uint64_t sem);
int dvs_sem_trywait(uint64_t sem);
int dvs_sem_timedwait(uint64_t sem, const struct timespec *deadline); /* of CLOCK_REALTIME */
int dvs_sem_post(uint64_t sem);
int dvs_sem_getvalue(uint64_t sem, int *value);

/* mq_open(3): the number of the open queue description goes to *queue. attributes, deadline, priority, new
 * and old may be null. */
int dvs_mq_open(uint64_t *queue, const char *name, int flags, unsigned int mode,
                const struct dvs_mq_attr *attributes);
int dvs_mq_close(uint64_t queue);
int dvs_mq_unlink(const char *name);
int dvs_mq_send(uint64_t queue, const void *message, size_t len, unsigned int priority,
                const struct timespec *deadline);
long dvs_mq_receive(uint64_t queue, void *buffer, size_t len, unsigned int *priority,
                    const struct timespec *deadline);
int dvs_mq_attr(uint64_t queue, const struct dvs_mq_attr *new_attr, struct dvs_mq_attr *old_attr);

/* semget(2), semtimedop(2) (timeout may be null), semctl(2) with GETVAL, GETPID, GETNCNT, GETZCNT, SETVAL
 * or IPC_RMID. */
int dvs_semget(int key, int count, int flags);
int dvs_semop(int id, const struct sembuf *operations, size_t count, const struct timespec *timeout);
int dvs_semctl(int id, int semaphore, int command, int value);

/* msgget(2), msgsnd(2), msgrcv(2) with the type beside the text, msgctl(2) with IPC_RMID. */
int dvs_msgget(int key, int flags);
int dvs_msgsnd(int id, int64_t type, const void *text, size_t len, int flags);
long dvs_msgrcv(int id, int64_t type, void *text, size_t len, int64_t *received, int flags);
int dvs_msgctl(int id, int command);

/* kill(2) of a process, -1 or a process group (< -1) on any node. */
int dvs_kill(int pid, int signal);

/* Files by their path in the VOS tree, which programs see at /dvs: "/a" here is "/dvs/a" there. Read and
 * write move at most 128 KiB a call. */
int dvs_open(struct dvs_file *file, const char *path, int flags, unsigned int mode);
int dvs_close(struct dvs_file *file);
long dvs_read(struct dvs_file *file, void *buffer, size_t len);
long dvs_write(struct dvs_file *file, const void *data, size_t len);
int dvs_fsync(struct dvs_file *file);
int dvs_stat(const char *path, struct dvs_stat *stat);
int dvs_mkdir(const char *path, unsigned int mode);
int dvs_unlink(const char *path);
int dvs_rmdir(const char *path);
int dvs_rename(const char *old_path, const char *new_path);

#ifdef __cplusplus
}
#endif

#endif
