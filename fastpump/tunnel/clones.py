"""Another machine may go on with our keys and counters: this virtual machine was cloned, or
restored from a snapshot. A (key, counter) pair that is used twice gives messages away, and with
AES-GCM the authentication key. So nothing that was sealed with the keys of before is sent from then
on, and all sessions, lanes and handshakes under way are dropped. The kernel's WireGuard does as
much.

The hypervisor tells the kernel (driver vmgenid, Linux 5.18), whose random numbers differ from then
on; the kernel tells us, by one of:

    a line in its log       every kernel, if /dev/kmsg is there and may be read (CAP_SYSLOG)
    uevent NEW_VMGENID=1    Linux 6.8 (6.9 took it out), and those of some vendors; in network
                            namespaces of the initial user namespace only

A thread of its own waits for both, since the event loop may be busy for long. It stops all sending
(SharedTables.halt: workers look before each sendmmsg, the supervisor before each message); the
event loop then drops the keys and lets sending go on. What leaves between the clone and `halt` is
not prevented: docs/ARCHITECTURE.md has how long that takes.

Who may forge this: a line of the kernel's log nobody, since it has to begin so: what the kernel
repeats there of others (the name of a USB device, say) stands behind words of its own; the uevent
whoever has CAP_SYS_ADMIN over the network namespace, who could do worse than to make us shake
hands.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import signal
import socket
import stat
import threading
from pathlib import Path

from fastpump._core import SharedTables
from fastpump.clock import now_ns
from fastpump.device.device import Device
from fastpump.kernel import NETLINK_KOBJECT_UEVENT, SO_RCVBUFFORCE, UEVENT_GROUP_KERNEL

log = logging.getLogger("fastpump")

KERNEL_LOG = Path("/dev/kmsg")
_KERNEL_LOG_DEVICE = os.makedev(1, 11)
_FORK_LINE = b"random: crng reseeded due to virtual machine fork"
_FORK_FIELD = b"NEW_VMGENID=1"
_RECEIVE_BUFFER_LEN = 1 << 20
_MESSAGE_LEN = 1 << 16


def is_fork_record(record: bytes) -> bool:
    """Whether a record of /dev/kmsg ("priority,number,time,flags;text") says so from its beginning,
    and is the kernel's: what programs write there has another facility."""
    head, _, text = record.partition(b";")
    priority = head.partition(b",")[0]
    return priority.isdigit() and int(priority) >> 3 == 0 and text.startswith(_FORK_LINE)


def is_fork_uevent(message: bytes, sender_pid: int) -> bool:
    """Whether a uevent (fields that end in NUL) says so, and comes from the kernel, whose netlink
    port is 0."""
    return sender_pid == 0 and _FORK_FIELD in message.split(b"\0")


def open_kernel_log() -> int | None:
    """The kernel's log from now on; None where it may not be read, or is something else (in
    containers)."""
    try:
        fd = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    status = os.fstat(fd)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == _KERNEL_LOG_DEVICE:
        with contextlib.suppress(OSError):
            os.lseek(fd, 0, os.SEEK_END)
            return fd
    os.close(fd)
    return None


def open_uevents() -> socket.socket | None:
    """Gets the kernel's uevents; None where that is forbidden."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
                             NETLINK_KOBJECT_UEVENT)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BUFFER_LEN)
    try:
        sock.bind((0, UEVENT_GROUP_KERNEL))
    except OSError:
        sock.close()
        return None
    return sock


class CloneGuard:
    """Drops a device's keys when the kernel says that this machine was cloned."""

    def __init__(self, tables: SharedTables, device: Device) -> None:
        self._tables = tables
        self._device = device
        self._loop: asyncio.AbstractEventLoop | None = None
        self._uevents = open_uevents()
        self._kernel_log = open_kernel_log()
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="clones", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch; `loop` is the device's."""
        self._loop = loop
        self._thread.start()

    def close(self) -> None:
        """Watch no more; to be called in the device's loop."""
        os.eventfd_write(self._end, 1)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._end)
        if self._uevents is not None:
            self._uevents.close()
        if self._kernel_log is not None:
            os.close(self._kernel_log)

    # -- in the thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())    # the main thread's
        waiting = select.poll()
        waiting.register(self._end, select.POLLIN)
        if self._uevents is not None:
            waiting.register(self._uevents, select.POLLIN)
        if self._kernel_log is not None:
            waiting.register(self._kernel_log, select.POLLIN)
        while True:
            ready = [fd for fd, _ in waiting.poll()]
            if self._end in ready:
                return
            if self.must_assume_a_clone():
                self._on_clone()

    def must_assume_a_clone(self) -> bool:
        """Read all that waits, and judge it."""
        return self._read_uevents() | self._read_kernel_log()

    def _read_uevents(self) -> bool:
        """Whether we were cloned. If messages were lost (many links come and go, say), the log
        says it all the same; without a log, one of them may have been the one."""
        is_clone = False
        while self._uevents is not None:
            try:
                message, (pid, _groups) = self._uevents.recvfrom(_MESSAGE_LEN)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    break
                is_clone |= self._kernel_log is None
                continue
            is_clone |= is_fork_uevent(message, pid)
        return is_clone

    def _read_kernel_log(self) -> bool:
        is_clone = False
        while self._kernel_log is not None:
            try:
                record = os.read(self._kernel_log, _MESSAGE_LEN)
            except BrokenPipeError:     # overwritten before we read it; the next follows
                continue
            except OSError:             # EAGAIN
                break
            is_clone |= is_fork_record(record)
        return is_clone

    def _on_clone(self) -> None:
        self._tables.halt()
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):     # the loop has ended
            self._loop.call_soon_threadsafe(self._drop_keys)

    # -- in the event loop

    def _drop_keys(self) -> None:
        log.warning("this virtual machine was cloned or restored, and another may have its keys: "
                    "all sessions are dropped, and made anew")
        is_up = self._device.is_up
        if is_up:
            self._device.stop()
        self._tables.resume()
        if is_up:
            self._device.start(now_ns())
