"""Which processes have a TUN or TAP open.

The kernel shows it for each fd: /proc/PID/fdinfo/FD of an open /dev/net/tun has a line "iff: NAME".
That is the interface's name where the interface is, which need not be this network namespace: every
guest's namespace may have its own `tap0`. So we borrow the fd for a moment (pidfd_getfd, Linux 5.6)
and ask the kernel for its interface's namespace (TUNGETDEVNETNS, Linux 5.8). Where that is not
allowed or not known, the namespace of the process stands in for it.

Accepted limit: only root sees processes of other users, and nobody those of other PID namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fastpump import paths
from fastpump.kernel import SYS_PIDFD_GETFD, TUNGETDEVNETNS

_PROC = Path("/proc")
_FIELD = "iff:"


@dataclass(frozen=True, slots=True)
class TunUser:
    """A process that has an interface open, `fds` times (a queue each, or copies of one)."""

    pid: int
    command: str
    fds: int

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def find(names: Collection[str]) -> dict[str, list[TunUser]]:
    """The processes that have these TUNs and TAPs of this network namespace open, by name."""
    own = paths.namespace_inode()
    found: dict[str, list[TunUser]] = {}
    if not names:
        return found
    for pid in sorted(int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()):
        with contextlib.suppress(OSError):      # it ended, or is not ours to look at
            opened = [name for fd, name in _tun_fds(pid)
                      if name in names and _namespace_of(pid, fd) == own]
            command = _command(pid) if opened else ""
            for name in dict.fromkeys(opened):
                found.setdefault(name, []).append(TunUser(pid, command, opened.count(name)))
    return found


def _tun_fds(pid: int) -> list[tuple[int, str]]:
    """(fd, interface) of a process's open TUNs and TAPs."""
    found = []
    for fd in (_PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(OSError):      # closed meanwhile
            # Not always /dev/net/tun: jailed programs have it under a root of their own.
            if "/net/tun" in str(fd.readlink()):
                info = os.fsdecode((_PROC / str(pid) / "fdinfo" / fd.name).read_bytes())
                names = [line.removeprefix(_FIELD).strip("\t") for line in info.splitlines()
                         if line.startswith(_FIELD)]
                found += [(int(fd.name), name) for name in names if name]    # "": it was deleted
    return found


def _command(pid: int) -> str:
    return printable(os.fsdecode((_PROC / str(pid) / "comm").read_bytes().rstrip(b"\n")))


def printable(text: str) -> str:
    """Names of interfaces and commands are others' choice, and may have control characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _namespace_of(pid: int, fd: int) -> int:
    """The inode of the network namespace that the interface behind a process's fd is in."""
    with contextlib.suppress(OSError):
        borrowed = _borrow(pid, fd)
        try:
            namespace = fcntl.ioctl(borrowed, TUNGETDEVNETNS)
        finally:
            os.close(borrowed)
        try:
            return os.fstat(namespace).st_ino
        finally:
            os.close(namespace)
    return (_PROC / str(pid) / "ns" / "net").stat().st_ino


def _borrow(pid: int, fd: int) -> int:
    """A copy of another process's fd."""
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        copy = int(libc.syscall(SYS_PIDFD_GETFD, process, fd, 0))
        if copy < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return copy
    finally:
        os.close(process)
