"""UDP flows between hosts: so many that all queues have some, and where they are answered.

What an echo server says in answer is its own name, so that a test sees who answered.
"""

from __future__ import annotations

import sys

from fastpump.lab.networks import wait_for_line

COUNT = 8
PORT = "7000"

_SERVER = """
import contextlib, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    _, where = sock.recvfrom(100)
    with contextlib.suppress(OSError):
        sock.sendto(sys.argv[3].encode(), where)
"""

# Every flow sends every 20 ms until it is answered.
_CLIENT = """
import contextlib, select, socket, sys, time
where, seconds = (sys.argv[1], int(sys.argv[2])), float(sys.argv[3])
waiting = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(sys.argv[4]))]
began, names = time.monotonic(), set()
while waiting and time.monotonic() < began + seconds:
    for sock in waiting:
        with contextlib.suppress(OSError):
            sock.sendto(b"?", where)
    until = time.monotonic() + 0.02
    while waiting and (left := until - time.monotonic()) > 0:
        for sock in select.select(waiting, [], [], left)[0]:
            names.add(sock.recv(100).decode())
            waiting.remove(sock)
print(*sorted(names), f"and {len(waiting)} flows without" if waiting else "")
"""


def answer(lab, side, address, name, port=PORT):
    """Answer what comes to an address of a host, with a name."""
    server = lab.spawn(side, sys.executable, "-S", "-c", _SERVER, address, port, name)
    wait_for_line(server, "listening")


def answered(lab, side, address, *, within_s=1, port=PORT):
    """Who answers new flows from a host, all of them within that time; else how many are left."""
    return lab.run(side, sys.executable, "-S", "-c", _CLIENT, address, port, str(within_s),
                   str(COUNT)).stdout.strip()
