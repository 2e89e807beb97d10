"""Appends records to one file: append.py FILE TAG TIMES. Or: append.py FILE check TAG=TIMES… tells what is wrong."""

import collections
import os
import sys

path, tag = sys.argv[1:3]
SIZE = 100


def record(tag, number):
    return f"{tag}-{number}".encode().ljust(SIZE - 1, b".") + b"\n"


if tag == "check":
    with open(path, "rb") as file:
        content = file.read()
    expected = collections.Counter()
    for pair in sys.argv[3:]:
        name, times = pair.split("=")
        expected.update(record(name, number) for number in range(int(times)))
    found = collections.Counter(content[at : at + SIZE] for at in range(0, len(content), SIZE))
    assert found == expected, f"missing {list((expected - found))[:3]}, too many {list((found - expected))[:3]}"
else:
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(int(sys.argv[3])):
        assert os.write(file, record(tag, number)) == SIZE
