"""The calls that Python's own library does not have: semaphores and message queues, straight from libc."""

import ctypes
import ctypes.util
import os
import signal

libc = ctypes.CDLL(None, use_errno=True)
O_CREAT, IPC_CREAT, IPC_RMID, SETVAL, GETVAL = 0o100, 0o1000, 0, 16, 12
SEM_UNDO = 0x1000

libc.sem_open.restype = ctypes.c_void_p
for name in "sem_wait", "sem_post", "sem_close":
    getattr(libc, name).argtypes = [ctypes.c_void_p]
libc.mq_receive.restype = ctypes.c_ssize_t
libc.msgrcv.restype = ctypes.c_ssize_t
libc.msgsnd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.msgrcv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long, ctypes.c_int]


def checked(result):
    """The result of a call, or the error it set."""
    if result is None or result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


class Semaphore:
    """A named semaphore of POSIX; made with `value` if it is not there."""

    def __init__(self, name, value=1):
        self.address = libc.sem_open(name.encode(), O_CREAT, 0o666, value)
        if not self.address:
            checked(-1)

    def __enter__(self):
        checked(libc.sem_wait(self.address))

    def __exit__(self, *_):
        checked(libc.sem_post(self.address))

    wait = __enter__
    post = __exit__


class SemBuf(ctypes.Structure):
    _fields_ = [("number", ctypes.c_ushort), ("change", ctypes.c_short), ("flags", ctypes.c_short)]


class Undo:
    """A semaphore of System V that goes back if its holder dies."""

    def __init__(self, key):
        self.id = checked(libc.semget(int(key, 0), 1, IPC_CREAT | 0o666))

    def operate(self, change):
        checked(libc.semop(self.id, ctypes.byref(SemBuf(0, change, SEM_UNDO)), 1))

    def __enter__(self):
        self.operate(-1)

    def __exit__(self, *_):
        self.operate(1)

    def set(self, value):
        checked(libc.semctl(self.id, 0, SETVAL, value))

    def value(self):
        return checked(libc.semctl(self.id, 0, GETVAL, 0))

    def remove(self):
        checked(libc.semctl(self.id, 0, IPC_RMID, 0))


class MqAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("flags", "maxmsg", "msgsize", "curmsgs", "a", "b", "c", "d")]


class PosixQueue:
    """A message queue of POSIX. Urgent messages come first."""

    SIZE = 64

    def __init__(self, name):
        attributes = MqAttr(maxmsg=10, msgsize=self.SIZE)
        self.queue = checked(libc.mq_open(name.encode(), os.O_RDWR | O_CREAT, 0o666, ctypes.byref(attributes)))

    def send(self, text, urgent):
        checked(libc.mq_send(self.queue, text.encode(), len(text), 1 if urgent else 0))

    def receive(self):
        buffer = ctypes.create_string_buffer(self.SIZE)
        size = checked(libc.mq_receive(self.queue, buffer, self.SIZE, None))
        return buffer.raw[:size].decode()


class SysvQueue:
    """A message queue of System V. Urgent messages come first: they have the lower type."""

    SIZE = 64

    def __init__(self, key):
        self.id = checked(libc.msgget(int(key, 0), IPC_CREAT | 0o666))

    def send(self, text, urgent):
        message = ctypes.create_string_buffer((1 if urgent else 2).to_bytes(8, "little") + text.encode())
        checked(libc.msgsnd(self.id, message, len(text), 0))

    def receive(self):
        buffer = ctypes.create_string_buffer(8 + self.SIZE)
        size = checked(libc.msgrcv(self.id, buffer, self.SIZE, -2, 0))
        return buffer.raw[8 : 8 + size].decode()


def say(*words):
    print(*words, flush=True)


def stay():
    """Until a signal ends the process."""
    while True:
        signal.pause()
