"""Does what it is told to one directory and two files that others use as well, and says when, and what came of it.

Usage: hammer.py SOCKET FOLDER

A line on the socket is a command: `work SEED COUNT`, or `look`. Each operation is answered by a line: when it was called and
when it returned (nanoseconds of the machine's monotonic clock), what it was, and its result (an errno by name); then `done`.
"""

import ctypes
import errno
import os
import random
import socket
import struct
import sys
import time

NAMES = ["a", "b", "c", "d"]
CELLS = 4
NOREPLACE, EXCHANGE = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Hammer:
    def __init__(self, folder):
        self.folder = folder
        self.data = os.open(f"{folder}/data", os.O_RDWR | os.O_CREAT, 0o666)
        self.log = os.open(f"{folder}/log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self.names = f"{folder}/names"
        self.written = 0

    def path(self, name):
        return os.path.join(self.names, name)

    def create(self, name):
        file = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            return os.fstat(file).st_ino
        finally:
            os.close(file)

    def unlink(self, name):
        os.unlink(self.path(name))

    def rename(self, name, other):
        os.rename(self.path(name), self.path(other))

    def renameat2(self, name, other, flags):
        old, new = self.path(name).encode(), self.path(other).encode()
        checked(libc.renameat2(-100, old, -100, new, flags))

    def noreplace(self, name, other):
        self.renameat2(name, other, NOREPLACE)

    def exchange(self, name, other):
        self.renameat2(name, other, EXCHANGE)

    def stat(self, name):
        return os.stat(self.path(name)).st_ino

    def list(self):
        """One getdents64(2), as several do not show one moment."""
        folder = os.open(self.names, os.O_RDONLY | os.O_DIRECTORY)
        buffer = ctypes.create_string_buffer(4096)
        try:
            size = checked(libc.syscall(ctypes.c_long(217), folder, buffer, 4096))
        finally:
            os.close(folder)
        at, names = 0, []
        while at < size:
            length = struct.unpack_from("H", buffer.raw, at + 16)[0]
            name = buffer.raw[at + 19 : at + length].split(b"\0")[0].decode()
            if name not in (".", ".."):
                names.append(name)
            at += length
        return ",".join(sorted(names)) or "-"

    def write(self, cell, value):
        assert os.pwrite(self.data, struct.pack("Q", value), 8 * cell) == 8

    def read(self, cell):
        return struct.unpack("Q", os.pread(self.data, 8, 8 * cell).ljust(8, b"\0"))[0]

    def append(self, record):
        assert os.write(self.log, struct.pack("QQ", record, ~record & (2**64 - 1))) == 16

    def size(self):
        size = os.fstat(self.log).st_size
        assert size % 16 == 0, "a torn record"
        return size // 16

    def fresh(self):
        """A number that no other worker writes."""
        self.written += 1
        return self.written << 32 | os.getpid()

    def choose(self, chance):
        kind = chance.choice(
            "create create unlink rename noreplace exchange stat stat list write write read read append size".split()
        )
        if kind in ("rename", "noreplace", "exchange"):
            return kind, chance.sample(NAMES, 2)
        if kind in ("create", "unlink", "stat"):
            return kind, [chance.choice(NAMES)]
        if kind == "write":
            return kind, [chance.randrange(CELLS), self.fresh()]
        if kind == "read":
            return kind, [chance.randrange(CELLS)]
        return kind, [self.fresh()] if kind == "append" else []

    def do(self, kind, arguments):
        called = time.monotonic_ns()
        try:
            result = getattr(self, kind)(*arguments)
        except OSError as error:
            result = errno.errorcode[error.errno]
        returned = time.monotonic_ns()
        words = [called, returned, kind, *arguments, 0 if result is None else result]
        return " ".join(map(str, words)) + "\n"

    def work(self, seed, count):
        chance = random.Random(seed)
        return [self.do(*self.choose(chance)) for _ in range(count)]

    def look(self):
        everything = [("stat", [name]) for name in NAMES]
        everything += [("read", [cell]) for cell in range(CELLS)]
        return [self.do(*one) for one in [*everything, ("list", []), ("size", [])]]


connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
hammer = Hammer(sys.argv[2])
for line in connection.makefile():
    command, *numbers = line.split()
    history = hammer.work(*map(int, numbers)) if command == "work" else hammer.look()
    connection.sendall("".join(history).encode() + b"done\n")
