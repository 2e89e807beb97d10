"""Record locks and whole-file locks between processes: prints what each question answers.

Usage: locks.py FILE (ours, empty). The output is the same on every file system that is right.
"""

import errno
import fcntl
import os
import struct
import sys

path = sys.argv[1]
FLOCK = "hhqqi4x"
NAMES = {fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write", fcntl.F_UNLCK: "none"}


def lock(file, kind, start, length, wait=False):
    record = struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0)
    fcntl.fcntl(file, fcntl.F_SETLKW if wait else fcntl.F_SETLK, record)
    return "locked"


def who(file, kind, start, length):
    """The lock in the way."""
    record = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0))
    kind, _, start, length, pid = struct.unpack(FLOCK, record)
    return NAMES[kind], start, length, {0: "nobody", os.getppid(): "parent"}.get(pid, "another")


def ask(text, **names):
    try:
        answer = eval(text, globals(), names)
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(f"{text}: {answer}", flush=True)


def in_child(*lines):
    """Asks in a child that has opened the file itself, and waits for it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        file = os.open(path, os.O_RDWR)
        for line in lines:
            ask(line, file=file)
        os._exit(0)
    os.waitpid(child, 0)


R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
file = os.open(path, os.O_RDWR | os.O_CREAT)
ask("lock(file, W, 10, 10)", file=file)
in_child("lock(file, W, 10, 1)", "lock(file, R, 19, 1)", "lock(file, W, 20, 5)", "lock(file, W, 0, 10)",
         "who(file, W, 0, 0)", "who(file, R, 15, 1)", "who(file, W, 5, 5)")
# Part of it becomes a read lock, part is given back.
ask("lock(file, R, 12, 2)", file=file)
ask("lock(file, U, 16, 2)", file=file)
in_child("lock(file, R, 12, 2)", "lock(file, W, 12, 2)", "lock(file, W, 16, 2)", "who(file, W, 10, 2)",
         "who(file, W, 14, 10)", "who(file, W, 18, 10)")
# To the end of the file, wherever that will be.
ask("lock(file, W, 100, 0)", file=file)
in_child("lock(file, W, 1 << 40, 1)", "who(file, W, 1 << 40, 1)", "lock(file, W, 90, 10)")
ask("lock(file, W, -1, 1)", file=file)
ask("lock(os.open(path, os.O_RDONLY), W, 500, 1)", file=file)
# That descriptor was not closed; closing any of the file's gives back all record locks.
os.close(os.open(path, os.O_RDONLY))
in_child("lock(file, W, 0, 0)")
# A child does not inherit record locks; what it held goes with it.
ask("lock(file, W, 0, 0)", file=file)
in_child("lock(file, W, 0, 1)")
ask("lock(file, U, 0, 0)", file=file)

# Whole-file locks belong to the open description, and know nothing of record locks.
ask("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", file=file)
in_child("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
         "lock(file, W, 0, 0)")
second = os.open(path, os.O_RDWR)
ask("fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)", file=second)
ask("fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)", file=file)
ask("fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)", file=second)
ask("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", file=file)
twin = os.dup(second)
os.close(second)
in_child("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)")
os.close(twin)
ask("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", file=file)
ask("fcntl.flock(file, fcntl.LOCK_UN)", file=file)

# Two processes that wait for each other: one of them is told.
ask("lock(file, W, 0, 1)", file=file)
read_end, write_end = os.pipe()
child = os.fork()
if child == 0:
    mine = os.open(path, os.O_RDWR)
    lock(mine, W, 1, 1)
    os.write(write_end, b"x")
    try:
        lock(mine, W, 0, 1, wait=True)
        answer = 0
    except OSError as error:
        answer = error.errno
    os._exit(answer)
os.read(read_end, 1)
try:
    lock(file, W, 1, 1, wait=True)
    told = 0
except OSError as error:
    told = error.errno
lock(file, U, 0, 0)
_, status = os.waitpid(child, 0)
answers = sorted([told, os.WEXITSTATUS(status)])
print("deadlock:", [errno.errorcode.get(answer, answer) for answer in answers])
