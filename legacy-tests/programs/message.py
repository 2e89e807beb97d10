"""Messages through one queue that many send to and many receive from.

Usage: message.py posix|sysv NAME send TAG COUNT   sends TAG-0, TAG-1, …
       message.py posix|sysv NAME receive          prints what comes, until it is `end`
       message.py posix|sysv NAME end COUNT        sends `end` COUNT times, behind all others
       message.py posix|sysv NAME remove
"""

import sys

import linux

kind, name, what = sys.argv[1:4]
if what == "remove":
    if kind == "posix":
        linux.checked(linux.libc.mq_unlink(name.encode()))
    else:
        linux.checked(linux.libc.msgctl(linux.SysvQueue(name).id, linux.IPC_RMID, None))
    sys.exit()

queue = linux.PosixQueue(name) if kind == "posix" else linux.SysvQueue(name)
if what == "send":
    for number in range(int(sys.argv[5])):
        queue.send(f"{sys.argv[4]}-{number}", urgent=True)
elif what == "end":
    for _ in range(int(sys.argv[4])):
        queue.send("end", urgent=False)
else:
    while (text := queue.receive()) != "end":
        linux.say(text)
