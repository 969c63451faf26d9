"""wg's socket of an interface, /var/run/wireguard/NAME.sock (uapi.py has the protocol).

All network namespaces share the directory, and a name belongs to whoever has the socket: of two
interfaces with one name in two namespaces, wg sees the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from fastpump.clock import now_ns
from fastpump.errors import SystemSetupError
from fastpump.ipc.unix_server import AlreadyServed, UnixServer, has_left

log = logging.getLogger("fastpump.uapi")

DIRECTORY = Path("/var/run/wireguard")      # where wg looks, whatever the distribution
IN_DELETE = 0x200           # include/uapi/linux/inotify.h
MAX_REQUEST = 64 << 20
TIMEOUT_S = 60.0


class UapiServer:
    """Serves wg's socket while the tunnel runs."""

    def __init__(self, name: str, answer: Callable[[bytes, int], bytes],
                 report: Callable[[Exception], None]) -> None:
        """`answer`: to a request at a time (CLOCK_BOOTTIME, ns), as of uapi.py. `report`: logs an
        error of it that nobody foresaw."""
        self._answer = answer
        self._report = report
        self._inotify = -1
        self._server = UnixServer(DIRECTORY / f"{name}.sock", self._serve, limit=MAX_REQUEST)

    async def start(self) -> None:
        """Listen; SystemSetupError if the name is taken or the socket cannot be made."""
        path = self._server.path
        try:
            await self._server.start()
        except AlreadyServed:
            raise SystemSetupError(
                f"another WireGuard already listens at {path}; choose another interface "
                "name") from None
        except OSError as error:
            raise SystemSetupError(f"the socket {path} for wg cannot be made: {error}") from None

    def rename(self, name: str) -> None:
        """Move the socket: the interface has another name."""
        try:
            self._server.rename(DIRECTORY / f"{name}.sock")
        except (AlreadyServed, OSError) as error:
            log.warning("wg still finds this interface as %(name)s: %(error)r",
                        {"name": self._server.path.stem, "error": error})

    def watch(self, on_removed: Callable[[], None]) -> None:
        """Call `on_removed` when somebody removes the socket: that is how userspace WireGuards are
        stopped. Costs nothing meanwhile (inotify(7))."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(DIRECTORY), IN_DELETE) < 0:
            raise SystemSetupError(f"{DIRECTORY} cannot be watched: "
                                   f"{os.strerror(ctypes.get_errno())}")
        self._inotify = fd
        asyncio.get_running_loop().add_reader(fd, self._on_removal, on_removed)

    def _on_removal(self, on_removed: Callable[[], None]) -> None:
        os.read(self._inotify, 1 << 16)
        if not self._server.is_there():
            on_removed()

    async def stop(self) -> None:
        """Stop listening, remove the socket."""
        if self._inotify >= 0:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1
        await self._server.stop()
        with contextlib.suppress(OSError):
            DIRECTORY.rmdir()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = await asyncio.wait_for(reader.readuntil(b"\n\n"), TIMEOUT_S)
            except asyncio.LimitOverrunError:
                return
            if has_left(writer):
                return
            writer.write(self._answer_contained(request))
            await asyncio.wait_for(writer.drain(), TIMEOUT_S)

    def _answer_contained(self, request: bytes) -> bytes:
        try:
            return self._answer(request, now_ns())
        except Exception as error:
            self._report(error)
            return f"errno={-errno.EIO}\n\n".encode()
