"""A named semaphore that is made with 0: sem.py NAME wait | post TIMES | unlink"""

import sys

import linux

name, what = sys.argv[1:3]
if what == "unlink":
    linux.checked(linux.libc.sem_unlink(name.encode()))
    sys.exit()
semaphore = linux.Semaphore(name, 0)
if what == "wait":
    linux.say("waiting")
    semaphore.wait()
    linux.say("got it")
else:
    for _ in range(int(sys.argv[3])):
        semaphore.post()
