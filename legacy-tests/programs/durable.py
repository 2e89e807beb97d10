"""Writes files one after the other, and says of each when fsync has returned; later checks what was said.

Usage: durable.py write FOLDER TAG [COUNT] | durable.py check FOLDER, with the said names on standard input
"""

import hashlib
import os
import sys

what, folder = sys.argv[1:3]


def content(name):
    return hashlib.sha256(name.encode()).hexdigest().encode() * 300


if what == "write":
    directory = os.open(folder, os.O_RDONLY)
    for number in range(int(sys.argv[4])):
        name = f"{sys.argv[3]}-{number}"
        temporary = os.path.join(folder, f".{name}")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        text = content(name)
        for at in range(0, len(text), 8192):
            part = text[at : at + 8192]
            assert os.write(file, part) == len(part)
        os.fsync(file)
        os.close(file)
        os.rename(temporary, os.path.join(folder, name))
        os.fsync(directory)
        print(name, flush=True)
else:
    said = sys.stdin.read().split()
    there = set(os.listdir(folder))
    for name in said:
        assert name in there, f"{name} is lost"
    for name in there:
        with open(os.path.join(folder, name), "rb") as file:
            found = file.read()
        wanted = content(name.lstrip("."))
        # What was being written may be unfinished, but never torn into something else.
        assert found == wanted if name in said else wanted.startswith(found), f"{name} is damaged"
    print(len(said), "files are whole")
