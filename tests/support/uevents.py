"""Uevents as the kernel and as programs send them (netlink(7), lib/kobject_uevent.c).

    python uevents.py kernel    whoever may (CAP_SYS_ADMIN over the network namespace) gives the
                                kernel a message, which it sends to all listeners of this namespace
    python uevents.py user      a program sends it to them: its sender's port is not 0
"""

import os
import socket
import struct
import sys

NETLINK_KOBJECT_UEVENT = 15
GROUP = 1
NLM_F_REQUEST, NLM_F_ACK = 1, 4
FIRST_TYPE, ERROR_TYPE = 16, 2
FIELDS = (b"change@/devices/LNXSYSTM:00/QEMUVGID:00", b"ACTION=change",
          b"DEVPATH=/devices/LNXSYSTM:00/QEMUVGID:00", b"SUBSYSTEM=acpi", b"NEW_VMGENID=1")


def send(sender, fields=FIELDS):
    """Send one to this network namespace; OSError if that is not allowed."""
    data = b"".join(field + b"\0" for field in fields)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as sock:
        sock.bind((0, 0))
        if sender == "user":
            sock.sendto(data, (0, GROUP))
            return
        sock.sendto(struct.pack("=IHHII", 16 + len(data), FIRST_TYPE, NLM_F_REQUEST | NLM_F_ACK, 1,
                                0) + data, (0, 0))
        answer = sock.recv(4096)
        error, = struct.unpack("=i", answer[16:20])
        if error:
            raise OSError(-error, os.strerror(-error))


if __name__ == "__main__":
    send(sys.argv[1])
