"""Takes a lock, says so with its pid, and keeps it until a signal ends it.

Usage: hold.py fcntl|flock|undo FILE-OR-KEY
"""

import fcntl
import os
import sys

import linux

kind, name = sys.argv[1:]
if kind == "undo":
    linux.Undo(name).operate(-1)
else:
    file = open(name, "a+b")
    (fcntl.lockf if kind == "fcntl" else fcntl.flock)(file, fcntl.LOCK_EX)
linux.say("held", os.getpid())
linux.stay()
