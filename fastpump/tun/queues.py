"""TUN and TAP interfaces: open the queues, switch offloads on (Documentation/networking/tuntap).

The interface exists while a queue's fd is open; the supervisor keeps them all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from fastpump.constants import MAX_NAME_LEN
from fastpump.errors import SystemSetupError, invalid

# include/uapi/linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40

TUNGETIFF = 0x800454D2
TUNGETDEVNETNS = 0x54E3

DEVICE = "/dev/net/tun"


def check_name(name: str) -> str:
    """The name if Linux takes it (dev_valid_name() in net/core/dev.c), else ConfigError."""
    bad = not name or len(name.encode()) > MAX_NAME_LEN or name in (".", "..")
    if bad or any(c in "/:%" or c.isspace() or not c.isprintable() for c in name):
        raise invalid("interface name", name,
                      f"1 to {MAX_NAME_LEN} bytes without '/', ':', '%' and spaces")
    return name


class TunQueues:
    """The fds of a new multi-queue TUN or TAP interface, non-blocking, vnet headers on."""

    def __init__(self, name: str, queue_count: int, *, is_tap: bool = False) -> None:
        """Create the interface; SystemSetupError says what stands in the way."""
        self.name = check_name(name)
        self.is_tap = is_tap
        self.fds: list[int] = []
        flags = (IFF_TAP if is_tap else IFF_TUN) | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE
        try:
            for queue in range(queue_count):
                self._open_queue(flags | (0 if queue else IFF_TUN_EXCL))
        except BaseException:
            self.close()
            raise

    def _open_queue(self, flags: int) -> None:
        try:
            fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SystemSetupError(f"{DEVICE} is missing; load the module: modprobe tun") from None
        except OSError as error:
            raise SystemSetupError(f"{DEVICE} cannot be opened: {error.strerror}; run as root, or "
                                   "with CAP_NET_ADMIN") from None
        self.fds.append(fd)
        request = struct.pack("16sH22x", self.name.encode(), flags)
        try:
            fcntl.ioctl(fd, TUNSETIFF, request)
        except OSError as error:
            raise SystemSetupError(self._explain(error)) from None

    def _explain(self, error: OSError) -> str:
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL) and len(self.fds) == 1:
            return (f"the interface {self.name} exists already; choose another name, or delete "
                    f"it: ip link delete {self.name}")
        if error.errno == errno.EPERM:
            return (f"the interface {self.name} cannot be created: {error.strerror}; run as "
                    "root, or with CAP_NET_ADMIN")
        if error.errno == errno.E2BIG:
            return (f"the kernel gives an interface no more than {len(self.fds) - 1} queues; ask "
                    "for fewer with --queues")
        return f"the interface {self.name} cannot be created: {error.strerror}"

    def current_name(self) -> str | None:
        """What the interface is called now; None when it was deleted."""
        try:
            request = fcntl.ioctl(self.fds[0], TUNGETIFF, bytes(40))
        except OSError:
            return None
        return request[:16].rstrip(b"\0").decode(errors="replace")

    def open_namespace(self) -> int | None:
        """An fd of the network namespace that the interface is in; None when the kernel
        does not tell (before 5.8)."""
        try:
            return fcntl.ioctl(self.fds[0], TUNGETDEVNETNS)
        except OSError:
            return None

    def set_offloads(self, mask: int) -> bool:
        """TUNSETOFFLOAD, which is device-wide but wants the same on every queue; False if
        the kernel does not know a bit."""
        try:
            for fd in self.fds:
                fcntl.ioctl(fd, TUNSETOFFLOAD, mask)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise SystemSetupError(f"offloads of {self.name} cannot be set: "
                                   f"{error.strerror}") from None
        return True

    def close(self) -> None:
        """Close all queues: the interface goes away."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
