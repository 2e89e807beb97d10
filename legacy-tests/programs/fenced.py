"""Holds a page of a mapping that others change meanwhile.

Usage: fenced.py hold FILE   maps it, stores 1 and 9 there, says when it has, and goes on until it finds a 2; then says what it finds beside it
       fenced.py write FILE  writes a 2 there, and says how many seconds that took
"""

import mmap
import os
import sys
import time

import linux

what, path = sys.argv[1:]
file = os.open(path, os.O_RDWR)
if what == "hold":
    os.ftruncate(file, mmap.PAGESIZE)
    memory = mmap.mmap(file, mmap.PAGESIZE)
    memory[0] = 1
    memory.flush()
    memory[5] = 9
    linux.say("held")
    end = time.monotonic() + 60
    while memory[0] != 2:
        assert time.monotonic() < end, "it never sees what others have written"
    linux.say(memory[0], memory[5])
else:
    begin = time.monotonic()
    os.pwrite(file, b"\2", 0)
    linux.say(time.monotonic() - begin)
