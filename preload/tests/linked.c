/* A C program linked to the library. Without a DVS every call says so; with one, it shares a semaphore and a file. */
#include "check.h"
#include "dvsposix.h"

_Static_assert(sizeof(struct dvs_mq_attr) == 32, "dvs_mq_attr");
_Static_assert(sizeof(struct dvs_file) == 32, "dvs_file");
_Static_assert(sizeof(struct dvs_stat) == 96, "dvs_stat");

static void outside(void)
{
    uint64_t number;
    struct dvs_file file;
    struct dvs_stat stat;
    char buffer[8];
    CHECK(dvs_sem_open(&number, "/name", O_CREAT, 0600, 1) == -ENOSYS);
    CHECK(dvs_sem_open(&number, NULL, 0, 0, 0) == -EFAULT);
    CHECK(dvs_sem_open(&number, "/a/b", 0, 0, 0) == -EINVAL);
    CHECK(dvs_sem_post(1) == -ENOSYS);
    CHECK(dvs_mq_open(&number, "/name", O_RDWR | O_CREAT, 0600, NULL) == -ENOSYS);
    CHECK(dvs_mq_receive(1, buffer, sizeof buffer, NULL, NULL) == -ENOSYS);
    CHECK(dvs_semget(IPC_PRIVATE, 1, 0600) == -ENOSYS);
    CHECK(dvs_semget(IPC_PRIVATE, -1, 0600) == -EINVAL);
    CHECK(dvs_semop(1, &(struct sembuf){0, 1, 0}, 1, NULL) == -ENOSYS);
    CHECK(dvs_msgrcv(1, 0, buffer, sizeof buffer, NULL, 0) == -ENOSYS);
    CHECK(dvs_kill(0x7ffffff0, 0) == -ENOSYS);
    CHECK(dvs_open(&file, "/name", O_RDONLY, 0) == -ENOSYS);
    CHECK(dvs_open(&file, "", O_RDONLY, 0) == -ENOENT);
    CHECK(dvs_stat("/", &stat) == -ENOSYS);
}

static void inside(void)
{
    uint64_t number;
    int value;
    struct dvs_file file;
    struct dvs_stat stat;
    char buffer[8];
    CHECK(dvs_sem_open(&number, "/linked", O_CREAT | O_EXCL, 0600, 1) == 0);
    CHECK(dvs_sem_wait(number) == 0 && dvs_sem_trywait(number) == -EAGAIN && dvs_sem_post(number) == 0);
    CHECK(dvs_sem_getvalue(number, &value) == 0 && value == 1);
    CHECK(dvs_sem_close(number) == 0 && dvs_sem_unlink("/linked") == 0);
    CHECK(dvs_mkdir("/linked", 0700) == 0);
    CHECK(dvs_open(&file, "/linked/file", O_RDWR | O_CREAT | O_EXCL, 0600) == 0);
    CHECK(dvs_write(&file, "content", 7) == 7 && dvs_fsync(&file) == 0 && dvs_close(&file) == 0);
    CHECK(dvs_close(&file) == -EBADF);
    CHECK(dvs_stat("/linked/./../linked/file", &stat) == 0 && stat.size == 7 && (stat.mode & 0777) == 0600);
    CHECK(dvs_open(&file, "/linked/file", O_RDONLY, 0) == 0);
    CHECK(dvs_read(&file, buffer, 4) == 4 && dvs_read(&file, buffer + 4, 4) == 3);
    CHECK(memcmp(buffer, "content", 7) == 0 && dvs_read(&file, buffer, 4) == 0);
    CHECK(dvs_write(&file, "x", 1) == -EBADF && dvs_close(&file) == 0);
    CHECK(dvs_open(&file, "/linked/file/below", O_RDONLY, 0) == -ENOTDIR);
    CHECK(dvs_unlink("/linked") == -EISDIR && dvs_rmdir("/linked") == -ENOTEMPTY);
    CHECK(dvs_rename("/linked/file", "/linked/other") == 0 && dvs_unlink("/linked/other") == 0);
    CHECK(dvs_stat("/linked/file", &stat) == -ENOENT);
    CHECK(dvs_rmdir("/linked") == 0);
}

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 1)
        inside();
    else
        outside();
    return 0;
}
