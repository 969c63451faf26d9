"""A UNIX socket with a path, and clients: what the control socket and wg's have in common."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

log = logging.getLogger("fastpump.ipc")

MAX_CLIENTS = 32
MAX_PATH_LEN = 107      # bytes of sockaddr_un.sun_path, less the NUL
DIRECTORY_TRIES = 100
RETRY_S = 1.0
"""Until a client that could not be accepted is accepted, or not."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class AlreadyServed(Exception):
    """Another process listens at that path."""


class UnixServer:
    """Serves clients at a path, mode 0600, each in a task of its own."""

    def __init__(self, path: Path, serve: Serve, *, limit: int) -> None:
        """`serve` may end by any OSError, ValueError or TimeoutError of reading or writing: the
        client is dropped. What goes wrong with a request it reports itself. `limit`: bytes of one
        line or request."""
        self.path = path
        self._serve = serve
        self._limit = limit
        self._listener: socket.socket | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._is_full = False
        self._inode = 0
        self._clients: dict[asyncio.Task[None], None] = {}      # the oldest first

    async def start(self) -> None:
        """Listen; a socket that a killed process left behind is replaced. AlreadyServed,
        or OSError."""
        _check_length(self.path)
        # Bound and listening under a name of its own before it is put at its place, which
        # fails if something is there: of two that start at once, the second fails.
        private = self.path.with_name(f".{os.getpid()}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _in_directory(private.parent, lambda: _bind(listener, private))
            listener.listen(MAX_CLIENTS)
            self._inode = private.stat().st_ino
            try:
                self.path.hardlink_to(private)
            except FileExistsError:
                if is_answered(self.path):
                    raise AlreadyServed from None
                self.path.unlink(missing_ok=True)
                self.path.hardlink_to(private)
            self._listener = listener
            self._listen()
        except BaseException:
            listener.close()
            raise
        finally:
            private.unlink(missing_ok=True)

    def rename(self, path: Path) -> None:
        """Move to another path; OSError, or AlreadyServed if another process listens there."""
        if self._listener is None or path == self.path:
            return
        if is_answered(path):
            raise AlreadyServed
        _check_length(path)
        if self._is_ours():
            _in_directory(path.parent, lambda: self.path.rename(path))
        self.path = path

    def is_there(self) -> bool:
        """Whether the path still leads to us: a user may remove it."""
        return self._listener is None or self._is_ours()

    def _is_ours(self) -> bool:
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    async def stop(self) -> None:
        """Stop listening, drop all clients, remove the path."""
        if self._listener is None:
            return
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def _listen(self) -> None:
        assert self._listener is not None
        self._retry_timer = None
        asyncio.get_running_loop().add_reader(self._listener, self._on_connection)

    def _on_connection(self) -> None:
        """A client has connected. (asyncio's own server tries, and logs, a hundred times a second
        while no file descriptor is left.)"""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if not self._is_full:
                log.warning("clients of %(socket)s have to wait: %(error)s",
                            {"socket": self.path, "error": error.strerror})
            self._is_full = True
            loop.remove_reader(self._listener)
            self._retry_timer = loop.call_later(RETRY_S, self._listen)
            return
        self._is_full = False
        client.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).cancel()      # the oldest is dropped
        task = loop.create_task(self._serve_client(client))
        self._clients[task] = None
        task.add_done_callback(self._clients.pop)

    async def _serve_client(self, client: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=client, limit=self._limit)
        except BaseException:
            client.close()
            raise
        with contextlib.suppress(TimeoutError, ValueError, OSError, asyncio.IncompleteReadError):
            try:
                await self._serve(reader, writer)
            finally:
                writer.close()


def _check_length(path: Path) -> None:
    """OSError if no client can connect to that path (a link to a socket could be made there)."""
    if len(os.fsencode(path)) > MAX_PATH_LEN:
        raise OSError(errno.ENAMETOOLONG, "its path has more bytes than the "
                                          f"{MAX_PATH_LEN} that a socket's may have")


def _in_directory(directory: Path, step: Callable[[], object]) -> None:
    """Make the directory, and do what needs it. Others remove it whenever it is empty."""
    for tries_left in reversed(range(DIRECTORY_TRIES)):
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            step()
            return
        except FileNotFoundError:
            if not tries_left:
                raise


def _bind(listener: socket.socket, path: Path) -> None:
    """Make the socket, mode 0600, in place of any other."""
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def has_left(writer: asyncio.StreamWriter) -> bool:
    """Whether a client has closed its socket. It may have sent a request before, while we could
    not take it: nobody waits for that any more. (One that has only shut down its sending side
    waits.)"""
    events = select.poll()
    events.register(writer.get_extra_info("socket").fileno(), 0)
    return any(event & select.POLLHUP for _, event in events.poll(0))


def is_answered(path: Path) -> bool:
    """Whether a process listens at the socket; not so if it was killed."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:         # as many wait as may: it is stopped, or has no fds left
            return True
        except OSError:
            return False
    return True
