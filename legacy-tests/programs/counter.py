"""Adds 1 to the number in a file, many times, under a lock that all who do so share.

Usage: counter.py fcntl|flock|sem|undo FILE TIMES [NAME]
"""

import fcntl
import sys

import linux

kind, path, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
file = open(path, "r+b", buffering=0)


class FileLock:
    def __init__(self, lock):
        self.lock = lock

    def __enter__(self):
        self.lock(file, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self.lock(file, fcntl.LOCK_UN)


if kind == "fcntl":
    lock = FileLock(fcntl.lockf)
elif kind == "flock":
    lock = FileLock(fcntl.flock)
elif kind == "sem":
    lock = linux.Semaphore(sys.argv[4])
else:
    lock = linux.Undo(sys.argv[4])

for _ in range(times):
    with lock:
        file.seek(0)
        number = int(file.read())
        file.seek(0)
        file.write(b"%d\n" % (number + 1))
