"""A UNIX socket with a path, and clients: what the control socket and wg's have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

MAX_CLIENTS = 32

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class AlreadyServed(Exception):
    """Another process listens at that path."""


class UnixServer:
    """Serves clients at a path, mode 0600, each in a task of its own."""

    def __init__(self, path: Path, serve: Serve, *, limit: int) -> None:
        """`serve` may end by any OSError, ValueError or TimeoutError: the client is
        dropped. `limit`: bytes of one line or request."""
        self.path = path
        self._serve = serve
        self._limit = limit
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._clients: dict[asyncio.Task[None], None] = {}      # the oldest first

    async def start(self) -> None:
        """Listen; a socket that a killed process left behind is replaced. AlreadyServed,
        or OSError."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Bound and listening under a name of its own before it is put at its place, which
        # fails if something is there: of two that start at once, the second fails.
        private = self.path.with_name(f".{os.getpid()}")
        private.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            before = os.umask(0o177)
            try:
                listener.bind(str(private))
            finally:
                os.umask(before)
            listener.listen(MAX_CLIENTS)
            self._inode = private.stat().st_ino
            try:
                self.path.hardlink_to(private)
            except FileExistsError:
                if is_answered(self.path):
                    raise AlreadyServed from None
                self.path.unlink(missing_ok=True)
                self.path.hardlink_to(private)
            self._server = await asyncio.start_unix_server(self._accept, sock=listener,
                                                           limit=self._limit)
        except BaseException:
            listener.close()
            raise
        finally:
            private.unlink(missing_ok=True)

    def rename(self, path: Path) -> None:
        """Move to another path; OSError, or AlreadyServed if another process listens there."""
        if self._server is None or path == self.path:
            return
        if is_answered(path):
            raise AlreadyServed
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self._is_ours():
            self.path.rename(path)
        self.path = path

    def is_there(self) -> bool:
        """Whether the path still leads to us: a user may remove it."""
        return self._server is None or self._is_ours()

    def _is_ours(self) -> bool:
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    async def stop(self) -> None:
        """Stop listening, drop all clients, remove the path."""
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).cancel()      # the oldest is dropped
        self._clients[task] = None
        try:
            await self._serve(reader, writer)
        except (TimeoutError, ValueError, OSError, asyncio.IncompleteReadError,
                asyncio.CancelledError):
            pass
        finally:
            self._clients.pop(task, None)
            with contextlib.suppress(OSError):
                writer.close()


def is_answered(path: Path) -> bool:
    """Whether a process listens at the socket; not so if it was killed."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
