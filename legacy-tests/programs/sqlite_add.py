"""Adds to a database that others add to: sqlite_add.py DATABASE TAG TIMES"""

import sqlite3
import sys

database = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
for number in range(int(sys.argv[3])):
    database.execute("BEGIN IMMEDIATE")
    database.execute("UPDATE total SET value = value + 1")
    database.execute("INSERT INTO entry VALUES (?, ?)", (sys.argv[2], number))
    database.execute("COMMIT")
