"""Looks at a file and at a name that is not there, or changes both.

Usage: look.py look FOLDER    says when it has looked often, and when it began the last looks that saw nothing new
       look.py change FOLDER  says when it began and when each change was done
"""

import os
import sys
import threading
import time

import linux

what, folder = sys.argv[1:]
path, name = folder + "/f", folder + "/new"
now = time.monotonic
if what == "change":
    begin = now()
    with open(path, "ab") as file:
        file.write(b"changed")
    changed = now()
    os.mkdir(name)
    linux.say(begin, changed, now())
else:
    file = open(path, "a+b")
    looks = [
        lambda: os.stat(path).st_size,
        lambda: os.fstat(file.fileno()).st_size,
        lambda: os.path.isdir(name),
    ]
    old = [0.0] * len(looks)
    often = threading.Barrier(len(looks) + 1)

    def look_on(at):
        count = 0
        begin = now()
        while not looks[at]():
            old[at] = begin
            count += 1
            if count == 500:
                often.wait()
            begin = now()

    # Each by itself: one that must ask waits, one that need not goes on.
    threads = [threading.Thread(target=look_on, args=(at,)) for at in range(len(looks))]
    for thread in threads:
        thread.start()
    often.wait()
    linux.say("looked")
    for thread in threads:
        thread.join()
    linux.say(max(old[0], old[1]), old[2])
