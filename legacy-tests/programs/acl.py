"""Sets access control lists and says who may do what then, and what the lists of new files are.

Usage: acl.py FOLDER, as root
"""

import errno
import os
import stat
import struct
import sys

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
OWNER, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 2**32 - 1
folder = sys.argv[1]
os.chdir(folder)
os.chmod(".", 0o755)
os.umask(0o022)


def acl(*entries):
    packed = [struct.pack("<HHI", tag, permissions, who) for tag, permissions, who in entries]
    return struct.pack("<I", 2) + b"".join(packed)


def plain(owner, group, other):
    return acl((OWNER, owner, NOBODY), (GROUP_OBJ, group, NOBODY), (OTHER, other, NOBODY))


def shown(path, name):
    try:
        value = os.getxattr(path, name)
    except OSError as error:
        return errno.errorcode[error.errno]
    letters = {OWNER: "u:", USER: "u", GROUP_OBJ: "g:", GROUP: "g", MASK: "m:", OTHER: "o:"}
    return " ".join(
        f"{letters[tag]}{'' if who == NOBODY else who}:{permissions}"
        for tag, permissions, who in struct.iter_unpack("<HHI", value[4:])
    )


def tell(path, what=""):
    mode = stat.filemode(os.stat(path).st_mode)
    print(what, path, mode, "access", shown(path, ACCESS), "default", shown(path, DEFAULT))
    print("  names", sorted(os.listxattr(path)))


def tried(f, *arguments):
    try:
        f(*arguments)
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]


def as_user(uid, gids, f):
    """Runs f in a child that is this user; its output comes in order."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setgroups(gids)
        os.setgid(gids[0])
        os.setuid(uid)
        f()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def access(path):
    def f():
        found = "".join(
            letter
            for letter, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY))
            if tried(lambda: os.close(os.open(path, flags))) == "ok"
        )
        asked = "".join(l for l, bit in (("r", 4), ("w", 2), ("x", 1)) if os.access(path, bit))
        print("  ", os.getuid(), os.getgroups(), "opens", found or "-", "may", asked or "-")

    for uid, gids in ((1000, [100]), (1001, [100]), (1002, [200]), (1003, [300]), (1004, [300, 200]), (1005, [400])):
        as_user(uid, gids, f)


rich = [(OWNER, 7, NOBODY), (USER, 6, 1001), (USER, 0, 1005), (GROUP_OBJ, 4, NOBODY), (GROUP, 6, 200), (GROUP, 5, 300)]
open("f", "w").close()
os.chown("f", 1000, 100)
os.setxattr("f", ACCESS, acl(*rich, (MASK, 7, NOBODY), (OTHER, 1, NOBODY)))
tell("f", "rich")
access("f")
for mode in (0o640, 0o4777, 0o707, 0o070):
    os.chmod("f", mode)
    tell("f", oct(mode))
    access("f")
os.setxattr("f", ACCESS, plain(6, 4, 0))
tell("f", "no more than a mode")
os.setxattr("f", ACCESS, acl(*rich, (MASK, 5, NOBODY), (OTHER, 0, NOBODY)))
os.removexattr("f", ACCESS)
tell("f", "removed")
print(tried(os.removexattr, "f", ACCESS), tried(os.removexattr, "f", DEFAULT))
print("bad:", *[tried(os.setxattr, "f", ACCESS, value) for value in (
    b"", b"\2\0\0", b"\1\0\0\0", b"\2\0\0\0x", acl((OWNER, 7, NOBODY)),
    acl(*rich, (OTHER, 1, NOBODY)), acl((OWNER, 9, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 1, NOBODY)),
)])
print("default of a file:", tried(os.setxattr, "f", DEFAULT, plain(7, 5, 5)))
os.symlink("f", "l")
print("of a link:", tried(lambda: os.setxattr("l", ACCESS, plain(7, 5, 5), follow_symlinks=False)))
as_user(1002, [200], lambda: print("another's:", tried(os.setxattr, "f", ACCESS, plain(7, 7, 7))))
as_user(1000, [100], lambda: print("the owner's:", tried(os.setxattr, "f", ACCESS, plain(7, 7, 7))))
as_user(1000, [300], lambda: print("not of its group:", tried(os.setxattr, "f", ACCESS, plain(7, 7, 7))))
os.chmod("f", 0o2770)
as_user(1000, [300], lambda: print("setgid goes:", tried(os.setxattr, "f", ACCESS, plain(7, 7, 0))))
tell("f")

os.mkdir("d")
os.setxattr("d", DEFAULT, acl(*rich, (MASK, 6, NOBODY), (OTHER, 5, NOBODY)))
tell("d", "default")
open("d/f", "w").close()
os.close(os.open("d/g", os.O_CREAT | os.O_WRONLY, 0o600))
os.mkdir("d/e")
os.mkdir("d/e/e", 0o700)
os.mkfifo("d/p", 0o666)
os.symlink("f", "d/l")
os.link("f", "d/h")
for path in ("d/f", "d/g", "d/e", "d/e/e", "d/p", "d/h"):
    tell(path, "in it")
access("d/f")
os.setxattr("d", DEFAULT, plain(7, 7, 7))
os.close(os.open("d/q", os.O_CREAT | os.O_WRONLY, 0o664))
os.mkdir("d/r", 0o750)
tell("d/q", "a plain default")
tell("d/r", "a plain default")
os.removexattr("d", DEFAULT)
os.close(os.open("d/s", os.O_CREAT | os.O_WRONLY, 0o666))
tell("d/s", "none any more")

os.mkdir("way", 0o700)
os.setxattr("way", ACCESS, acl((OWNER, 7, NOBODY), (USER, 1, 1002), (GROUP_OBJ, 0, NOBODY), (MASK, 1, NOBODY), (OTHER, 0, NOBODY)))
open("way/f", "w").close()
as_user(1002, [200], lambda: print("through:", tried(os.stat, "way/f"), tried(os.listdir, "way"), tried(os.unlink, "way/f")))
as_user(1003, [300], lambda: print("not through:", tried(os.stat, "way/f")))
