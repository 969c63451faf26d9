"""TUN and TAP interfaces: open the queues, switch offloads on (Documentation/networking/tuntap).

The interface exists while a queue's fd is open; the supervisor keeps them all.
"""

from __future__ import annotations

import errno
import fcntl
import os

from fastpump.constants import MAX_NAME_LEN
from fastpump.errors import SystemSetupError, invalid
from fastpump.kernel import (
    IFF_MULTI_QUEUE,
    IFF_NO_PI,
    IFF_TAP,
    IFF_TUN,
    IFF_TUN_EXCL,
    IFF_VNET_HDR,
    IFREQ_FLAGS,
    TUNGETDEVNETNS,
    TUNGETIFF,
    TUNSETIFF,
    TUNSETOFFLOAD,
)

DEVICE = "/dev/net/tun"
NO_PERMISSION = "run as root, or with CAP_NET_ADMIN"


def check_name(name: str) -> str:
    """The name if Linux takes it (dev_valid_name() in net/core/dev.c), else ConfigError."""
    bad = not name or len(name.encode()) > MAX_NAME_LEN or name in (".", "..")
    if bad or any(c in "/:%" or c.isspace() or not c.isprintable() for c in name):
        raise invalid("interface name", name,
                      f"1 to {MAX_NAME_LEN} bytes without '/', ':', '%' and spaces")
    return name


def open_queue(name: str, flags: int, number: int = 0) -> int:
    """An fd for queue `number` of a TUN or TAP, non-blocking; `flags`: IFF_* of linux/if_tun.h.
    The first queue makes the interface. SystemSetupError says why it cannot be opened."""
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SystemSetupError(f"{DEVICE} is missing; load the module: modprobe tun") from None
    except OSError as error:
        raise SystemSetupError(f"{DEVICE} cannot be opened: {error.strerror}; "
                               f"{NO_PERMISSION}") from None
    try:
        fcntl.ioctl(fd, TUNSETIFF, IFREQ_FLAGS.pack(
            os.fsencode(name), flags | IFF_NO_PI | (0 if number else IFF_TUN_EXCL)))
    except OSError as error:
        os.close(fd)
        what = f"the {'TAP' if flags & IFF_TAP else 'TUN'} {name}"
        raise SystemSetupError(_explain(error, name, what, number, flags)) from None
    return fd


def _explain(error: OSError, name: str, what: str, number: int, flags: int) -> str:
    exists = {errno.EBUSY, errno.EEXIST}
    if flags & IFF_MULTI_QUEUE:
        exists.add(errno.EINVAL)        # of an interface with one queue
    if error.errno in exists and number == 0:
        return f"the interface {name} exists already; choose another name"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{what} cannot be created: {error.strerror}; {NO_PERMISSION}"
    if error.errno == errno.E2BIG:
        return f"the kernel gives an interface no more than {number} queues; ask for fewer"
    return f"{what} cannot be created: {error.strerror}"


class TunQueues:
    """The fds of a new multi-queue TUN or TAP interface, non-blocking, vnet headers on."""

    def __init__(self, name: str, queue_count: int, *, is_tap: bool = False) -> None:
        """Create the interface; SystemSetupError says why it cannot."""
        self.name = check_name(name)
        self.is_tap = is_tap
        self.fds: list[int] = []
        flags = (IFF_TAP if is_tap else IFF_TUN) | IFF_VNET_HDR | IFF_MULTI_QUEUE
        try:
            for number in range(queue_count):
                self.fds.append(open_queue(name, flags, number))
        except BaseException:
            self.close()
            raise

    def current_name(self) -> str | None:
        """What the interface is called now; None when it was deleted."""
        try:
            request = fcntl.ioctl(self.fds[0], TUNGETIFF, bytes(40))
        except OSError:
            return None
        return request[:16].rstrip(b"\0").decode(errors="replace")

    def open_namespace(self) -> int | None:
        """An fd of the network namespace that the interface is in; None if the kernel does not
        support that (before 5.8)."""
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
