"""So many threads wait for one lock, until a file appears; then each gets it, and gives it back.

Usage: crowd.py FILE COUNT
"""

import fcntl
import os
import sys
import threading

path, count = sys.argv[1], int(sys.argv[2])
threading.stack_size(256 * 1024)
holder = open(path)
fcntl.flock(holder, fcntl.LOCK_EX)
granted = []


def wait():
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        granted.append(1)


threads = [threading.Thread(target=wait) for _ in range(count)]
for thread in threads:
    thread.start()


def is_waiting(thread):
    with open(f"/proc/self/task/{thread.native_id}/syscall") as file:
        return file.read().startswith("73 ")


for thread in threads:
    while not is_waiting(thread):
        os.sched_yield()
print("all wait", flush=True)
while not os.path.exists(path + ".go"):
    os.sched_yield()
assert not granted
holder.close()
for thread in threads:
    thread.join()
assert len(granted) == count
