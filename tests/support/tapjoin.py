"""A program for tests: makes a TAP, joins it as it is told (JSON), says "joined", and copies
frames between the TAP and a socket until SIGTERM. Then it undoes all, and says what it saw.

    {"tap": NAME, "attachment": {...}, "addresses": [CIDR...], "mtu": N, "socket": FD or null,
     "failing": "MODULE.FUNCTION:N" of fastpump/netlink (its Nth call fails) or null,
     "machine_id": FILE or null: the host's}
"""

import fcntl
import ipaddress
import json
import logging
import os
import select
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from fastpump.errors import FastpumpError, SystemSetupError
from fastpump.host import attach, derived_macs
from fastpump.kernel import (
    IFF_MULTI_QUEUE,
    IFF_TAP,
    IFF_VNET_HDR,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUNSETOFFLOAD,
)
from fastpump.netlink import bridges, links, redirects
from fastpump.tun.queues import open_queue

VNET_LEN = 10       # of a TAP, unless somebody says otherwise
MAX_FRAME_LEN = 70000


def open_tap(name):
    fd = open_queue(name, IFF_TAP | IFF_VNET_HDR | IFF_MULTI_QUEUE)
    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return fd


def let_fail(where):
    place, number = where.split(":")
    module, name = place.split(".")
    module = {"bridges": bridges, "links": links, "redirects": redirects}[module]
    real, calls = getattr(module, name), []

    def failing(*args):
        calls.append(args)
        if len(calls) == int(number):
            raise SystemSetupError("this step was made to fail")
        return real(*args)

    setattr(module, name, failing)


def pump(tap, cable, wake):
    seen = {"frames": 0, "superpackets": 0, "partial_checksums": 0, "largest": 0, "tagged": 0}
    pair = {tap: cable, cable: tap} if cable is not None else {}
    while True:
        ready, _, _ = select.select([*pair, wake], [], [])
        if wake in ready:
            return seen
        for fd in ready:
            try:
                frame = os.read(fd, MAX_FRAME_LEN)
                if fd == tap:
                    seen["frames"] += 1
                    seen["partial_checksums"] += frame[0] & 1
                    seen["superpackets"] += frame[1] != 0
                    seen["largest"] = max(seen["largest"], len(frame) - VNET_LEN)
                    seen["tagged"] += frame[VNET_LEN + 12:VNET_LEN + 14] == b"\x81\x00"
                os.write(pair[fd], frame)
            except OSError:
                pass        # full, or the TAP was deleted: lost, as on any Ethernet


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    said = json.loads(sys.argv[1])
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    if said["machine_id"]:
        derived_macs._MACHINE_ID = Path(said["machine_id"])
    if said["failing"]:
        let_fail(said["failing"])
    attachment = attach.Attachment(
        said["attachment"].get("bridge"), tuple(said["attachment"].get("interfaces", ())),
        said["attachment"].get("mode", "bridge"),
        tuple(map(tuple, said["attachment"].get("vlans", ()))))
    with ExitStack() as made:
        tap = open_tap(said["tap"])
        made.callback(os.close, tap)
        index = socket.if_nametoindex(said["tap"])
        try:
            attach.check(attachment)
            planned = attach.plan_mtu(attachment)
            mtu = said["mtu"] or planned or 1400
            attach.join(attachment, links.get(index), made, mtu=mtu, addresses=tuple(
                map(ipaddress.ip_interface, said["addresses"])))
        except FastpumpError as error:
            print(f"refused: {type(error).__name__}: {error}", flush=True)
            return
        print("joined " + json.dumps({"planned": planned, "foreign": attach.warnings(
            attachment, index, mtu)}), flush=True)
        if said["socket"] is not None:
            os.set_blocking(said["socket"], False)
        print("saw " + json.dumps(pump(tap, said["socket"], wake.fileno())), flush=True)
    print("undone", flush=True)


if __name__ == "__main__":
    main()
