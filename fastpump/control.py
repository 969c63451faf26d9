"""The control socket of a running tunnel: one JSON request a line, one answer a line.

    {"command": "status"}  ->  {"status": {...}}      (docs/fastpump.1.md has the keys)
    anything else          ->  {"error": "..."}

The socket is /run/fastpump/<network namespace>/<interface>.sock, mode 0600.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump.errors import SystemSetupError

MAX_REQUEST = 65536
MAX_CLIENTS = 32
REQUEST_TIMEOUT_S = 5.0


class ControlServer:
    """Answers `fastpump status`. Bad requests get an error, slow clients time out."""

    def __init__(self, name: str, status: Callable[[], dict[str, Any]]) -> None:
        self._path = paths.runtime_dir() / f"{name}.sock"
        self._status = status
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket that a killed tunnel left behind is replaced."""
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if _is_answered(self._path):
                raise SystemSetupError(
                    f"a tunnel that was started as {self._path.stem} still runs (its interface "
                    "was renamed?); stop it, or choose another name")
            self._path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(
                    self._serve, self._path, limit=MAX_REQUEST)
            finally:
                os.umask(before)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            raise SystemSetupError(
                f"the control socket {self._path} cannot be made: {error}; name a writable "
                "directory with a short path in FASTPUMP_RUN") from None

    async def stop(self) -> None:
        """Stop listening and leave nothing behind."""
        if self._server is not None:
            self._server.close()
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            for directory in (self._path.parent, self._path.parent.parent):
                with contextlib.suppress(OSError):      # others live there
                    directory.rmdir()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_S)
            writer.write(json.dumps(self._answer(line)).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)
        except (TimeoutError, ValueError, OSError, asyncio.CancelledError):
            pass        # ValueError: a line longer than MAX_REQUEST
        finally:
            self._clients.discard(task)
            writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"error": "the request is not JSON"}
        if not isinstance(request, dict) or request.get("command") != "status":
            return {"error": "unknown command; there is: status"}
        return {"status": self._status()}


def _is_answered(path: Path) -> bool:
    """Whether a process listens at the socket; not so if it was killed."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def running() -> list[str]:
    """The names of the tunnels of this network namespace that have a control socket."""
    try:
        return sorted(path.stem for path in paths.runtime_dir().glob("*.sock"))
    except OSError:
        return []


def ask(name: str, command: str) -> Any:
    """Send a command to a running tunnel; None if nobody listens there."""
    path: Path = paths.runtime_dir() / f"{name}.sock"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(REQUEST_TIMEOUT_S)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise SystemSetupError(f"the tunnel {name} cannot be asked: {error.strerror}; run as "
                                   "the user who runs it") from None
        client.sendall(json.dumps({"command": command}).encode() + b"\n")
        with client.makefile("rb") as answer:
            try:
                reply = json.loads(answer.readline())
            except (OSError, ValueError):
                raise SystemSetupError(f"the tunnel {name} does not answer") from None
    if "error" in reply:
        raise SystemSetupError(f"the tunnel {name}: {reply['error']}")
    return reply[command]
