"""Sends bytes that follow no protocol, each line of a list of hexadecimal on a connection of its own.

Usage: junk.py ADDRESS:PORT|SOCKET LIST
"""

import socket
import sys

place, path = sys.argv[1:]


def connect():
    if not place.startswith("/"):
        host, port = place.rsplit(":", 1)
        return socket.create_connection((host, int(port)), 10)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(place)
    except OSError:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(place)
    connection.settimeout(10)
    return connection


with open(path) as lines:
    for line in lines:
        with connect() as connection:
            try:
                connection.send(bytes.fromhex(line))
                connection.shutdown(socket.SHUT_WR)
                # Until it is refused, or answered with whatever there is to say.
                connection.recv(4096)
            except OSError:
                pass
