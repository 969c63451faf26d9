"""TUN and TAP interfaces: open the queues, switch offloads on (Documentation/networking/tuntap).

The interface exists while a queue's fd is open; the supervisor keeps them all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

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
    TUNGETFEATURES,
    TUNGETIFF,
    TUNSETIFF,
    TUNSETOFFLOAD,
    TUNSETVNETHDRSZ,
    VIRTIO_NET_HDR,
)

DEVICE = "/dev/net/tun"
MISC_DEVICES = Path("/proc/misc")
NO_PERMISSION = "run as root, or with CAP_NET_ADMIN"
IN_A_CONTAINER = "a container is given it at its start (--device /dev/net/tun)"
_UINT = struct.Struct("=I")


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
    fd = _open_device()
    flags |= IFF_NO_PI
    try:
        try:
            _attach_queue(fd, name, flags | (0 if number else IFF_TUN_EXCL))
        except OSError as error:
            # What is no Linux (gVisor) may not know the flag, which guards against taking over an
            # interface that exists.
            if number or error.errno != errno.EINVAL or _exists(name):
                raise
            _attach_queue(fd, name, flags)
    except OSError as error:
        what = f"the {'TAP' if flags & IFF_TAP else 'TUN'} {name}"
        message = _explain(error, fd, name, what, number, flags)
        os.close(fd)
        raise SystemSetupError(message) from None
    return fd


def _attach_queue(fd: int, name: str, flags: int) -> None:
    fcntl.ioctl(fd, TUNSETIFF, IFREQ_FLAGS.pack(os.fsencode(name), flags))


def _exists(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def _open_device() -> int:
    """/dev/net/tun; SystemSetupError says what to do."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if _has_driver():
            problem = (f"{DEVICE} is missing, though the kernel has the driver; {IN_A_CONTAINER}; "
                       f"elsewhere, make it: mkdir -p /dev/net && mknod {DEVICE} c 10 200")
        else:
            problem = (f"{DEVICE} is missing; load the module, on the host if this is a container: "
                       f"modprobe tun; {IN_A_CONTAINER}")
    except OSError as error:
        hint = {errno.EPERM: f"{IN_A_CONTAINER}; elsewhere, {NO_PERMISSION}",
                errno.ENODEV: "load the module, on the host if this is a container: modprobe tun",
                errno.ENXIO: "load the module, on the host if this is a container: modprobe tun"}
        problem = (f"{DEVICE} cannot be opened: {error.strerror}; "
                   f"{hint.get(error.errno or 0, NO_PERMISSION)}")
    raise SystemSetupError(problem)


def _has_driver() -> bool:
    """Whether the kernel has the TUN driver now, built in or loaded."""
    try:
        return any(line.split()[1:] == ["tun"] for line in MISC_DEVICES.read_text().splitlines())
    except OSError:
        return False


def _explain(error: OSError, fd: int, name: str, what: str, number: int, flags: int) -> str:
    # EINVAL: one that is no TUN, or has one queue; or a flag that is not known.
    if number == 0 and (error.errno in (errno.EBUSY, errno.EEXIST)
                        or (error.errno == errno.EINVAL and _exists(name))):
        return f"the interface {name} exists already; choose another name"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{what} cannot be created: {error.strerror}; {NO_PERMISSION}"
    if error.errno == errno.E2BIG:
        return f"the kernel gives an interface no more than {number} queues; ask for fewer"
    missing = _missing_features(fd, flags) if error.errno == errno.EINVAL else ""
    if missing:
        return (f"{what} cannot be created: the TUN driver of this kernel has no {missing}; "
                "fastpump needs Linux's")
    return f"{what} cannot be created: {error.strerror}"


def _missing_features(fd: int, flags: int) -> str:
    """What of the wanted flags the driver does not know, by name."""
    try:
        known = _UINT.unpack(fcntl.ioctl(fd, TUNGETFEATURES, bytes(_UINT.size)))[0]
    except OSError:
        known = 0       # no Linux: gVisor, say
    return " and ".join(name for name, flag in (
        ("queues (IFF_MULTI_QUEUE)", IFF_MULTI_QUEUE), ("vnet headers (IFF_VNET_HDR)",
                                                        IFF_VNET_HDR))
        if flags & flag & ~known)


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
            fcntl.ioctl(self.fds[0], TUNSETVNETHDRSZ, _UINT.pack(VIRTIO_NET_HDR.size))
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
