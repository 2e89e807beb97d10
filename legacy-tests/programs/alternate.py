"""Two processes change one folder in turn; each change must be there when the other looks, at once.

The turn is passed by semaphores, so that nothing has time to settle. Usage: alternate.py a|b FOLDER NAME ROUNDS
"""

import os
import sys

import linux

side, folder, name, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
mine, theirs = (linux.Semaphore(f"/{name}-{x}", 0) for x in (side, "b" if side == "a" else "a"))
path = lambda last: os.path.join(folder, last)
data = open(path("data"), "r+b", buffering=0)


def read(last):
    with open(path(last), "rb") as file:
        return file.read()


def write(last, text):
    with open(path(last), "wb") as file:
        file.write(text)


def exists(last):
    try:
        os.stat(path(last))
        return True
    except FileNotFoundError:
        return False


def change(n):
    """What is done in round n: each kind of change in turn."""
    tag = b"%d" % n
    data.seek(0)
    data.write(tag.rjust(8))
    write("whole", tag * (1 + n % 3))
    write(f"new-{n}", tag)
    if n:
        os.unlink(path(f"moved-{n - 1}"))
    os.rename(path(f"new-{n}"), path(f"moved-{n}"))
    os.truncate(path("size"), n)
    os.chmod(path("size"), 0o600 | n & 0o77)
    os.utime(path("size"), (n, n))
    os.mkdir(path(f"folder-{n}"))
    os.symlink(f"target-{n}", path(f"folder-{n}/link"))
    if n:
        os.unlink(path(f"folder-{n - 1}/link"))
        os.rmdir(path(f"folder-{n - 1}"))


def look(n):
    """All changes of round n are there, and nothing of round n - 1."""
    tag = b"%d" % n
    data.seek(0)
    assert data.read() == tag.rjust(8), f"data of round {n}"
    assert read("whole") == tag * (1 + n % 3), f"whole of round {n}"
    assert not exists(f"new-{n}") and read(f"moved-{n}") == tag, f"renamed in round {n}"
    assert not exists(f"moved-{n - 1}"), f"unlinked in round {n}"
    state = os.stat(path("size"))
    assert (state.st_size, state.st_mode & 0o777, state.st_mtime) == (n, 0o600 | n & 0o77, n), f"{state} in round {n}"
    assert os.readlink(path(f"folder-{n}/link")) == f"target-{n}", f"linked in round {n}"
    assert not exists(f"folder-{n - 1}"), f"removed in round {n}"
    names = sorted(os.listdir(folder))
    assert names == sorted(["data", "whole", "size", f"moved-{n}", f"folder-{n}"]), f"{names} in round {n}"


for n in range(rounds):
    if (n % 2 == 0) == (side == "a"):
        if n:
            mine.wait()
            look(n - 1)
        change(n)
        theirs.post()
if (rounds % 2 == 0) == (side == "a"):
    mine.wait()
    look(rounds - 1)
