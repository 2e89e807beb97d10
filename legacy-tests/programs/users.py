"""What users may do with the files of others: prints each question with its answer. Started by root.

Usage: users.py FOLDER (empty, ours). The output is the same on every file system that is right.
"""

import errno
import os
import stat
import sys

os.chdir(sys.argv[1])
os.chmod(".", 0o777)


def ask(uid, gid, groups, text):
    """Evaluates `text` in a process of that user; prints its value or its errno's name."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        try:
            answer = eval(text)
        except OSError as error:
            answer = errno.errorcode[error.errno]
        print(f"{uid}:{gid}{groups} {text}: {answer}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)


def write(path):
    file = os.open(path, os.O_WRONLY)
    return os.write(file, b"x")


def read(path):
    return os.read(os.open(path, os.O_RDONLY), 100)


def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
    state = os.stat(path)
    return state.st_uid, state.st_gid


def mode(path):
    return stat.filemode(os.stat(path).st_mode)


for path, uid, gid, bits in (
    ("private", 1001, 1001, 0o600),
    ("group", 1001, 2000, 0o640),
    ("none", 1001, 1001, 0o000),
    ("owner-last", 1001, 2000, 0o077),
    ("suid", 1001, 1001, 0o6755),
):
    open(path, "w").write("text")
    os.chown(path, uid, gid)
    os.chmod(path, bits)
for path, bits in (("closed", 0o700), ("search", 0o711), ("list", 0o744), ("sticky", 0o1777), ("open", 0o777)):
    os.mkdir(path)
    open(path + "/inside", "w").write("text")
    os.chown(path + "/inside", 1001, 1001)
    os.chown(path, 1001, 1001)
    os.chmod(path, bits)

for line in """
read("private")
write("private")
read("group")
write("group")
read("none")
read("owner-last")
read("closed/inside")
read("search/inside")
os.listdir("search")
os.listdir("list")
os.stat("list/inside").st_size
create("closed/new")
create("open/new")
os.unlink("open/new")
os.unlink("sticky/inside")
os.rename("sticky/inside", "sticky/renamed")
os.chmod("private", 0o600)
os.chown("private", 1002, -1)
os.chown("private", -1, 2000)
os.utime("private", (1, 1))
os.utime("group")
os.truncate("group", 4)
os.access("group", os.R_OK)
os.access("closed/inside", os.F_OK)
os.setxattr("private", "user.a", b"x")
os.setxattr("private", "trusted.a", b"x")
os.link("private", "private-link")
os.mkdir("closed/folder")
""".strip().splitlines():
    for uid, gid, groups in ((1002, 1002, []), (1002, 1002, [2000]), (1001, 1001, []), (0, 0, [])):
        ask(uid, gid, groups, line)

# Writing and changing the owner take the set-id bits away.
ask(1001, 1001, [], 'mode("suid")')
os.chmod("suid", 0o6757)
ask(1002, 1002, [], '(write("suid"), mode("suid"))')
os.chmod("suid", 0o6755)
ask(1001, 1001, [], '(os.truncate("suid", 1), mode("suid"))')
os.chmod("suid", 0o6755)
ask(0, 0, [], '(os.chown("suid", 1002, 1002), mode("suid"))')
ask(1002, 1002, [], '(os.chmod("suid", 0o2755), mode("suid"))')
os.chown("suid", 1002, 3000)
ask(1002, 1002, [], '(os.chmod("suid", 0o2755), mode("suid"))')
