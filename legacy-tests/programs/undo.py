"""A semaphore of System V by key: undo.py KEY set VALUE | get | remove"""

import sys

import linux

semaphore = linux.Undo(sys.argv[1])
if sys.argv[2] == "set":
    semaphore.set(int(sys.argv[3]))
elif sys.argv[2] == "get":
    linux.say(semaphore.value())
else:
    semaphore.remove()
