"""Files in memory: what is written through a shared mapping is in the file, and the other way round.

Usage: map.py FILE (not there)
"""

import mmap
import os
import sys

path = sys.argv[1]
with open(path, "w+b") as file:
    file.truncate(3 * mmap.PAGESIZE)
    with mmap.mmap(file.fileno(), 0) as memory:
        memory[5:9] = b"here"
        memory[2 * mmap.PAGESIZE] = ord("x")
        memory.flush()
    with open(path, "rb") as other:
        content = other.read()
    assert content[:10] == b"\0\0\0\0\0here\0" and content[2 * mmap.PAGESIZE] == ord("x") and len(content) == 3 * mmap.PAGESIZE
with open(path, "rb") as file:
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert memory[5:9] == b"here"
    with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[5:9] = b"mine"
    file.seek(5)
    assert file.read(4) == b"here"
os.unlink(path)
print("mappings: ok")
