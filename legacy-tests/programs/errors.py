"""What files answer when they are asked for what they cannot: prints each question with its answer.

Usage: errors.py FOLDER (empty, ours). The output is the same on every file system that is right.
"""

import errno
import fcntl
import os
import stat
import sys

os.chdir(sys.argv[1])


def ask(text):
    """Evaluates `text`; prints its value or its errno's name."""
    try:
        answer = eval(text)
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(f"{text}: {answer}")
    return answer


def make(name, content=b"", mode=0o644):
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)
    os.write(file, content)
    return file


LONG = "x" * 255
file = make("file", b"0123456789")
reader, writer = os.open("file", os.O_RDONLY), os.open("file", os.O_WRONLY)
append = os.open("file", os.O_RDWR | os.O_APPEND)
os.mkdir("folder")
os.mkdir("full")
make("full/inside")
os.symlink("file", "link")
os.symlink("nowhere", "dangling")
os.symlink("loop", "loop")
os.mkfifo("fifo", 0o600)

for line in """
os.open("none", os.O_RDONLY)
os.open("none/none", os.O_RDONLY)
os.open("none/none", os.O_CREAT)
os.open("file/none", os.O_RDONLY)
os.open("", os.O_RDONLY)
os.open("file", os.O_CREAT | os.O_EXCL)
os.open("link", os.O_CREAT | os.O_EXCL)
os.open("dangling", os.O_CREAT | os.O_EXCL)
os.open("dangling", os.O_RDONLY)
os.open("loop", os.O_RDONLY)
os.open("link", os.O_RDONLY | os.O_NOFOLLOW)
os.open("file", os.O_RDONLY | os.O_DIRECTORY)
os.open("folder", os.O_WRONLY)
os.open("folder", os.O_RDWR | os.O_CREAT)
os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
os.open(LONG + "x", os.O_CREAT)
os.close(os.open(LONG, os.O_CREAT))
os.unlink(LONG)
os.open("x/" * 3000, os.O_RDONLY)
os.mkdir("folder")
os.mkdir("file")
os.mkdir("link")
os.mkdir("none/none")
os.mkdir("file/none")
os.mkdir(".")
os.mkdir("..")
os.mkdir("deep/")
os.rmdir("deep/")
os.rmdir("full")
os.rmdir("file")
os.rmdir("link")
os.rmdir("none")
os.rmdir(".")
os.rmdir("full/..")
os.unlink("none")
os.unlink("folder")
os.unlink("file/")
os.unlink("link/")
os.link("file", "link")
os.link("folder", "hard")
os.link("none", "hard")
os.link("file", "folder/hard")
os.stat("file").st_nlink
os.unlink("folder/hard")
os.stat("file").st_nlink
os.symlink("", "empty")
os.symlink("x", "file")
os.symlink("x" * 4095, "longest")
len(os.readlink("longest"))
os.symlink("x" * 4096, "too-long")
os.readlink("file")
os.readlink("none")
os.rename("none", "other")
os.rename("file", "none/other")
os.rename("file", "folder")
os.rename("folder", "file")
os.rename("folder", "full")
os.rename("full", "folder")
sorted(os.listdir("folder"))
os.rename("folder", "full")
os.rename("full", "full/inside2")
os.rename(".", "other")
os.rename("file", "file")
os.rename("file", "renamed")
os.rename("renamed", "file")
os.rename("file", "other/")
os.stat("file/")
os.lstat("link").st_size
os.stat("link").st_size
os.stat("dangling")
stat.filemode(os.lstat("fifo").st_mode)
stat.filemode(os.lstat("link").st_mode)
os.chdir("file")
os.listdir("file")
os.read(writer, 1)
os.write(reader, b"x")
os.read(os.open(".", os.O_RDONLY), 1)
os.pread(reader, 4, 8)
os.pread(reader, 4, 100)
os.pread(reader, 4, -1)
os.lseek(reader, -1, os.SEEK_SET)
os.lseek(reader, 5, os.SEEK_SET)
os.read(reader, 100)
os.lseek(reader, 0, os.SEEK_END)
os.lseek(reader, 3, os.SEEK_CUR)
os.read(reader, 1)
os.lseek(reader, 2, os.SEEK_DATA)
os.lseek(reader, 2, os.SEEK_HOLE)
os.lseek(reader, 20, os.SEEK_DATA)
os.pwrite(writer, b"xy", 20)
os.fstat(reader).st_size
os.pread(reader, 12, 9)
os.lseek(append, 0, os.SEEK_SET)
os.write(append, b"end")
os.lseek(append, 0, os.SEEK_CUR)
os.fstat(append).st_size
os.pread(append, 3, 22)
os.ftruncate(reader, 1)
os.ftruncate(writer, -1)
os.ftruncate(writer, 5)
os.pread(reader, 100, 0)
os.truncate("full", 0)
os.truncate("none", 0)
os.truncate("file", 10)
os.pread(reader, 100, 0)
os.close(os.open("file", os.O_WRONLY | os.O_TRUNC))
os.fstat(reader).st_size
os.posix_fallocate(writer, 0, 100)
os.fstat(reader).st_size
os.posix_fallocate(reader, 0, 100)
os.posix_fallocate(writer, -1, 100)
os.fsync(reader)
os.fdatasync(writer)
os.fsync(os.open(".", os.O_RDONLY))
os.chmod("none", 0o600)
os.chmod("file", 0o7777)
oct(os.stat("file").st_mode)
os.chmod("file", 0o644)
os.chmod("link", 0o600)
oct(os.stat("file").st_mode)
os.utime("file", ns=(1_000_000_001, 2_000_000_002))
(os.stat("file").st_atime_ns, os.stat("file").st_mtime_ns)
os.utime("none")
os.utime("link", (5, 6), follow_symlinks=False)
(os.lstat("link").st_mtime, os.stat("link").st_mtime)
os.access("file", os.R_OK | os.W_OK)
os.access("none", os.F_OK)
os.getxattr("file", "user.none")
os.setxattr("file", "user.a", b"value")
os.setxattr("file", "user.a", b"other", os.XATTR_CREATE)
os.setxattr("file", "user.b", b"other", os.XATTR_REPLACE)
os.getxattr("file", "user.a")
os.setxattr("file", "user.empty", b"")
os.getxattr("file", "user.empty")
sorted(name for name in os.listxattr("file") if name.startswith("user."))
os.removexattr("file", "user.a")
os.removexattr("file", "user.a")
os.setxattr("file", "nonsense", b"x")
os.setxattr("file", "user." + "x" * 251, b"x")
os.mknod("file", 0o600 | stat.S_IFREG)
os.mknod("regular", 0o600 | stat.S_IFREG)
os.stat("regular").st_size
os.sendfile(writer, reader, 0, 10)
os.copy_file_range(reader, writer, 10, 0, 50)
fcntl.fcntl(append, fcntl.F_GETFL) & os.O_APPEND == os.O_APPEND
fcntl.fcntl(append, fcntl.F_SETFL, 0)
os.write(append, b"now at the offset")
os.path.realpath("full/inside2") == os.path.join(os.getcwd(), "full/inside2")
sorted(os.listdir("."))
sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in os.scandir("."))
""".strip().splitlines():
    ask(line)

# Removed, but open: it can still be used, and is nobody's any more.
os.unlink("file")
for line in """
os.stat("file")
os.fstat(reader).st_nlink
os.pwrite(writer, b"still here", 0)
os.pread(reader, 10, 0)
os.stat(f"/proc/self/fd/{reader}").st_nlink
""".strip().splitlines():
    ask(line)

# The umask counts, the set-group bit of a folder is inherited, and a folder's links are its folders.
os.umask(0o027)
make("masked", mode=0o666)
os.mkdir("shared")
os.chmod("shared", 0o2775)
os.chown("shared", 0, 12)
os.mkdir("shared/inner")
make("shared/file")
for line in """
oct(os.stat("masked").st_mode)
(os.stat("shared/inner").st_gid, oct(os.stat("shared/inner").st_mode))
os.stat("shared/file").st_gid
os.stat("shared").st_nlink
""".strip().splitlines():
    ask(line)
