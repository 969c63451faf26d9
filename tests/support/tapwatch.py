"""Counts what a guest and its host exchange on a TAP interface: `python tapwatch.py TAP`.

Says "watching", and at SIGTERM what it saw, as JSON, by direction. A packet socket with
PACKET_VNET_HDR shows the headers that offloads travel by: linux/virtio_net.h, packet(7).
"""

import json
import signal
import socket
import struct
import sys

from packets import NEEDS_CSUM  # a program: its neighbours are found by their names

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR = 263, 15
PACKET_OUTGOING = 4     # linux/if_packet.h
SO_RCVBUFFORCE = 33     # asm-generic/socket.h
HEADER = struct.Struct("=BBHHHH")


def main(tap):
    counts = {way: {"packets": 0, "bytes": 0, "largest": 0, "superpackets": 0, "unsummed": 0}
              for way in ("from_guest", "to_guest")}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
            packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
            packets.bind((tap, ETH_P_ALL))
            print("watching", flush=True)
            while True:
                data, address = packets.recvfrom(1 << 17)
                flags, gso_type, *_ = HEADER.unpack_from(data)
                size = len(data) - HEADER.size
                seen = counts["to_guest" if address[2] == PACKET_OUTGOING else "from_guest"]
                seen["packets"] += 1
                seen["bytes"] += size
                seen["largest"] = max(seen["largest"], size)
                seen["superpackets"] += gso_type != 0
                seen["unsummed"] += bool(flags & NEEDS_CSUM)
    finally:
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
