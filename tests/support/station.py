"""A host on an Ethernet that sends and hears whole frames, vnet header first, on "eth0" of its
network namespace: run as a program.

    station.py send HEX...          each is a vnet header (24 bytes) and a frame
    station.py listen               prints "listening", then those that come, in hex, until SIGTERM
                                    and until nothing comes any more

Of a vnet header, a packet socket knows the first HEADER_LEN bytes only.
"""

import select
import signal
import socket
import struct
import sys

HEADER_LEN = 10
MORE_LEN = 14
ETH_P_ALL = 3
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 8, 15
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 0x10, 0x40
PACKET_OUTGOING = 4


def open_socket():
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind(("eth0", ETH_P_ALL))
    return sock


def tagged(data, control):
    """The frame with the outer tag that the kernel keeps beside it; the vnet header, too, counts
    from the frame's beginning then."""
    for level, kind, value in control:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", value)
            if status & TP_STATUS_VLAN_VALID:
                tpid = tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                flags, gso_type, hdr_len, gso_size, start, offset = struct.unpack(
                    "=BBHHHH", data[:10])
                vnet = struct.pack("=BBHHHH", flags, gso_type, hdr_len and hdr_len + 4, gso_size,
                                   start + 4 if flags & 1 else start, offset)
                return vnet + data[10:22] + struct.pack("!HH", tpid, tci) + data[22:]
    return data


QUIET_S = 0.3


def listen(sock):
    signals = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    print("listening", flush=True)
    while True:
        if select.select([sock], [], [], QUIET_S)[0]:
            data, control, _, source = sock.recvmsg(1 << 17, 200)
            if source[2] != PACKET_OUTGOING:
                frame = tagged(data, control)
                print("frame", (frame[:HEADER_LEN] + bytes(MORE_LEN) + frame[HEADER_LEN:]).hex(),
                      flush=True)
        elif signals:
            break
    print("end", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        with open_socket() as sender:
            for each in sys.argv[2:]:
                frame = bytes.fromhex(each)
                sender.send(frame[:HEADER_LEN] + frame[HEADER_LEN + MORE_LEN:])
    else:
        with open_socket() as hearer:
            listen(hearer)
