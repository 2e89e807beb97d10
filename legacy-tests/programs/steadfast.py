#!/usr/bin/env python3
"""Uses files in every way that a file agent keeps something for, until FOLDER/stop is there; whatever is not as on a machine by itself ends it.

steadfast.py FOLDER NAME: says how many rounds each way has had."""

import ctypes, errno, fcntl, mmap, os, signal, struct, subprocess, sys, threading

folder, name = sys.argv[1], sys.argv[2]
own = f"{folder}/{name}"
os.mkdir(own)
libc = ctypes.CDLL(None, use_errno=True)
failed = []


def stop():
    return bool(failed) or os.path.exists(f"{folder}/stop")


def records(path):
    with open(path, "rb") as file:
        return file.read().splitlines()


def small():
    """Writes that are put off, and what others see of them."""
    path, n = f"{own}/small", 0
    while not stop():
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        for part in range(3):
            assert os.write(fd, b"%d-%d\n" % (n, part)) > 0
        if n % 4 == 0:
            os.fchmod(fd, 0o600)
        if n % 8 == 0:
            os.fsync(fd)
        expected = b"".join(b"%d-%d\n" % (n, part) for part in range(3))
        assert os.fstat(fd).st_size == len(expected)
        os.close(fd)
        with open(path, "rb") as file:
            found = file.read()
            assert found == expected, (found, expected)
        assert os.stat(path).st_mode & 0o777 == (0o600 if n % 4 == 0 else 0o644)
        os.rename(path, f"{path}.new")
        os.unlink(f"{path}.new")
        assert not os.path.exists(path)
        n += 1
    return n


def names():
    """Changes that are refused if they are made twice."""
    n = 0
    while not stop():
        d = f"{own}/d{n}"
        os.mkdir(d)
        os.symlink("x", f"{d}/link")
        os.mknod(f"{d}/node", 0o644)
        os.link(f"{d}/node", f"{d}/hard")
        os.setxattr(f"{d}/node", "user.a", b"value", os.XATTR_CREATE)
        os.removexattr(f"{d}/node", "user.a")
        assert os.stat(f"{d}/hard").st_nlink == 2
        for entry in ("link", "node", "hard"):
            os.unlink(f"{d}/{entry}")
        os.rmdir(d)
        n += 1
    return n


def counted(path, lock, unlock):
    """A counter that all nodes count up, each behind a lock."""
    n = 0
    while not stop():
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        lock(fd)
        before = int(os.pread(fd, 20, 0) or b"0")
        os.pwrite(fd, b"%020d" % (before + 1), 0)
        unlock(fd)
        os.close(fd)
        n += 1
    with open(f"{own}.{os.path.basename(path)}", "w") as file:
        file.write(str(n))
    return n


def fcntl_counter():
    return counted(
        f"{folder}/fcntl",
        lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX),
        lambda fd: fcntl.lockf(fd, fcntl.LOCK_UN),
    )


def flock_counter():
    # Closing gives it back.
    return counted(f"{folder}/flock", lambda fd: fcntl.flock(fd, fcntl.LOCK_EX), lambda fd: None)


def held():
    """A lock that is held all the time, and asked for by others all the time."""
    fd = os.open(f"{own}/held", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    n = 0
    while not stop():
        script = "import fcntl,sys; fcntl.lockf(open(sys.argv[1],'r+b'), fcntl.LOCK_EX|fcntl.LOCK_NB)"
        asked = subprocess.run([sys.executable, "-c", script, f"{own}/held"], capture_output=True)
        assert b"BlockingIOError" in asked.stderr, asked.stderr
        n += 1
    return n


def mapped():
    """A page that all nodes write to, each its own word."""
    fd = os.open(f"{folder}/mapped", os.O_RDWR)
    page = mmap.mmap(fd, 4096)
    at, n = 8 * int(name[-1]), 0
    while not stop():
        n += 1
        assert struct.unpack_from("Q", page, at)[0] == n - 1
        struct.pack_into("Q", page, at, n)
        if n % 64 == 0:
            page.flush()
            assert struct.unpack("Q", os.pread(fd, 8, at))[0] == n
    page.flush()
    return n


def nameless():
    """An open file without a name, and one that is open for reading only."""
    fd = os.open(f"{own}/nameless", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"here" * 1000)
    os.unlink(f"{own}/nameless")
    with open(f"{own}/text", "w") as file:
        file.write("text" * 5000)
    reader, n = None, 0
    while not stop():
        if n % 5 == 0:
            if reader:
                reader.close()
            reader = open(f"{own}/text", "rb")
        reader.seek(0)
        assert reader.read() == b"text" * 5000
        assert os.pread(fd, 4000, 0) == b"here" * 1000
        assert os.fstat(fd).st_nlink == 0
        n += 1
    return n


def appended():
    """Records at the end of a file to which all nodes append."""
    fd, n = os.open(f"{folder}/appended", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), 0
    while not stop():
        record = b"%s %d %s\n" % (name.encode(), n, b"x" * (n % 200))
        assert os.write(fd, record) == len(record)
        n += 1
    with open(f"{own}.appended", "w") as file:
        file.write(str(n))
    return n


def alone():
    """Records at the end of a file that nobody else uses: these are put off."""
    fd, n = os.open(f"{own}/alone", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), 0
    while not stop():
        for _ in range(50):
            record = b"%d %s\n" % (n, b"x" * (n % 100))
            assert os.write(fd, record) == len(record)
            n += 1
    assert [int(record.split()[0]) for record in records(f"{own}/alone")] == list(range(n))
    return n


def large():
    """Writes of many messages, and copies in the server."""
    n = 0
    while not stop():
        data = os.urandom(64) * 16384
        with open(f"{own}/large", "wb", buffering=0) as file:
            assert file.write(data) == len(data)
        source, target = (os.open(f"{own}/{f}", os.O_RDWR | os.O_CREAT) for f in ("large", "copy"))
        done = 0
        while done < len(data):
            count = os.copy_file_range(source, target, len(data) - done, done, done)
            assert count > 0
            done += count
        assert os.pread(target, len(data) + 1, 0) == data
        os.close(source)
        os.close(target)
        os.unlink(f"{own}/copy")
        n += 1
    return n


def listed():
    """A directory that is listed a little at a time."""
    d = f"{own}/list"
    os.mkdir(d)
    expected = {f"name-{i:04}-{'x' * 100}" for i in range(200)}
    for entry in expected:
        os.close(os.open(f"{d}/{entry}", os.O_CREAT | os.O_WRONLY))
    n = 0
    while not stop():
        found = []
        with os.scandir(d) as entries:
            for entry in entries:
                found.append(entry.name)
                assert entry.stat().st_size == 0
        assert len(found) == len(expected) and set(found) == expected
        n += 1
    return n


def executed():
    """A program in the tree."""
    subprocess.run(["cp", "/bin/true", f"{own}/true"], check=True)
    n = 0
    while not stop():
        subprocess.run([f"{own}/true"], check=True)
        n += 1
    return n


WAYS = [small, names, fcntl_counter, flock_counter, held, mapped, nameless, appended, alone, large, listed, executed]
counts = {}


def go(way):
    try:
        counts[way.__name__] = way()
    except BaseException as error:
        import traceback

        failed.append(f"{name} {way.__name__}: {error!r}\n{traceback.format_exc()}")


threads = [threading.Thread(target=go, args=(way,)) for way in WAYS]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failed:
    sys.exit("\n".join(failed))
print(name, " ".join(f"{way}={count}" for way, count in counts.items()))
