"""A program for a guest, whose kernel filters VLANs: joins a TAP to a bridge that does, without and
with VLANs of its own, and finds out which frames pass between the TAP and another port. It prints
what it found as JSON.

    TAP (a fd) -- fp0 | vmbr0 | trunk -- veth0, the station

Called with "modules" it only prints which modules Python has loaded for all that, and where from.
"""

import json
import os
import select
import socket
import struct
import sys
from contextlib import ExitStack

from fastpump.host import attach
from fastpump.host.attach import Attachment
from fastpump.kernel import IFF_TAP, SOL_PACKET
from fastpump.netlink import bridges, links
from fastpump.tun.queues import open_queue

PACKET_AUXDATA = 8
TPACKET_AUXDATA = struct.Struct("=IIIHHHH")
EXPERIMENTAL = 0x88B5
ADDRESSES = b"\xff" * 6 + b"\2\0\0\0\0\1"
ID = 100
VLANS = ((2, 50), (100, 4094))


def frame(vlan=None, text=b"frame"):
    """Tagged or not."""
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    return ADDRESSES + tag + struct.pack(">H", EXPERIMENTAL) + text + bytes(60)


def received(station):
    """The VLANs of the frames that came to the station, None for untagged, up to the last one."""
    vlans = []
    while True:
        if not select.select([station], [], [], 20)[0]:
            return [*vlans, "nothing more"]
        data, about, _, _ = station.recvmsg(2000, 100)
        if data[12:14] != struct.pack(">H", EXPERIMENTAL):
            continue
        vlan = TPACKET_AUXDATA.unpack_from(about[0][2])[5]
        if data[14:18] == b"last":
            return vlans
        vlans.append(vlan or None)


def read(tap):
    """The same of the TAP."""
    vlans = []
    while select.select([tap], [], [], 20)[0]:
        data = os.read(tap, 2000)
        is_tagged = data[12:14] == b"\x81\0"
        at = 16 if is_tagged else 12
        if data[at:at + 2] != struct.pack(">H", EXPERIMENTAL):
            continue
        if data[at + 2:at + 6] == b"last":
            return vlans
        vlans.append(int.from_bytes(data[14:16], "big") if is_tagged else None)
    return [*vlans, "nothing more"]


def passing(tap, station):
    """Which VLANs of 3, 60 and 100 pass each way, and whether untagged frames do."""
    frames = [frame(3), frame(60), frame(ID), frame(), frame(text=b"last")]
    for each in frames:
        os.write(tap, each)
    to_station = received(station)
    for each in frames:
        station.send(each)
    return {"to_station": to_station, "to_tap": read(tap)}


def joined(vlans, station):
    """What passes with a TAP that is joined so, and what is said about it."""
    with ExitStack() as cleanup:
        tap = open_queue("fp0", IFF_TAP)
        cleanup.callback(os.close, tap)
        link = links.find("fp0")
        attachment = Attachment("vmbr0", vlans=vlans)
        attach.join(attachment, link, cleanup, mtu=1500)
        return {**passing(tap, station), "tagged": bridges.tagged_vlans(link),
                "warnings": attach.warnings(attachment, link.index, 1500)}


def main():
    if sys.argv[1:] == ["modules"]:
        links.read_all()
        print(json.dumps([module.__file__ for module in list(sys.modules.values())
                          if getattr(module, "__file__", None)]))
        return
    bridge, trunk = links.find("vmbr0"), links.find("trunk")
    bridges.add_vlans(bridge, trunk, [(2, 4094)])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as station:
        station.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        station.bind(("veth0", 3))       # as the kernel calls it
        found = {"filters": bridge.filters_vlans, "without": joined((), station),
                 "with": joined(VLANS, station)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
