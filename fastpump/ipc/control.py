"""The control socket of a running tunnel: one JSON request a line, one answer a line.

    {"command": "status"}  ->  {"status": {...}}      (docs/fastpump.1.md has the keys)
    {"command": "reload"}  ->  {"reload": {...}}      (of `fastpump up` only)
    {"command": "configuration"}  ->  {"configuration": {"text": ...}}    (likewise)
    {"command": "stop"}    ->  {"stop": {"pid": N}}   the tunnel ends, and its process
    {"command": "fdb", "action": ...}  ->  {"fdb": {...}}       (of a TAP; fdb.py)
    {"command": "limit", ...}  ->  {"limit": {...}}             (Tunnel.limit)
    anything else          ->  {"error": "..."}

The socket is /run/fastpump/<network namespace>/<interface>.sock, mode 0600.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump.errors import FastpumpError, SystemSetupError
from fastpump.ipc.unix_server import AlreadyServed, UnixServer, is_answered

MAX_REQUEST = 65536
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Takes the request: {"command": ..., and what else it has}."""


class ControlServer:
    """Answers `fastpump status` and its like. Bad requests get an error, slow clients time
    out."""

    def __init__(self, name: str, commands: dict[str, Command]) -> None:
        self._commands = commands
        self._server = UnixServer(_path(name), self._serve, limit=MAX_REQUEST)

    async def start(self) -> None:
        """Listen; SystemSetupError if that cannot be."""
        path = self._server.path
        try:
            await self._server.start()
        except AlreadyServed:
            raise SystemSetupError(
                f"a tunnel that was started as {path.stem} still runs (its interface was "
                "renamed?); stop it, or choose another name") from None
        except OSError as error:
            raise SystemSetupError(
                f"the control socket {path} cannot be made: {error}; name a writable "
                "directory with a short path in FASTPUMP_RUN") from None

    def rename(self, name: str, namespace: int) -> None:
        """The interface has another name, or is in another network namespace."""
        before = self._server.path.parent
        with contextlib.suppress(AlreadyServed, OSError):
            self._server.rename(_path(name, namespace))
            _remove_empty(before)

    async def stop(self) -> None:
        """Stop listening and leave nothing behind."""
        await self._server.stop()
        _remove_empty(self._server.path.parent)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_S)
        writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
        await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"error": "the request is not JSON"}
        name = request.get("command") if isinstance(request, dict) else None
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            return {"error": "unknown command: must be one of " + ", ".join(sorted(self._commands))}
        try:
            return {str(name): await command(request)}
        except FastpumpError as error:
            return {"error": str(error)}


def _path(name: str, namespace: int | None = None) -> Path:
    return paths.runtime_dir(namespace) / f"{name}.sock"


def _remove_empty(directory: Path) -> None:
    for each in (directory, directory.parent):
        with contextlib.suppress(OSError):      # other tunnels use it
            each.rmdir()


def running() -> list[str]:
    """The names of the tunnels of this network namespace that have a control socket."""
    try:
        return sorted(path.stem for path in paths.runtime_dir().glob("*.sock"))
    except OSError:
        return []


def forget(name: str) -> None:
    """Remove the socket that a killed tunnel left behind."""
    path = _path(name)
    if not is_answered(path):
        path.unlink(missing_ok=True)
        _remove_empty(path.parent)


def ask(name: str, command: str, **arguments: object) -> Any:
    """Send a command to a running tunnel; None if nobody listens there."""
    path = _path(name)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_TIMEOUT_S)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise SystemSetupError(f"the tunnel {name} cannot be queried: {error.strerror}; run as "
                                   "the user who runs it") from None
        client.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        with client.makefile("rb") as answer:
            try:
                reply = json.loads(answer.readline())
            except (OSError, ValueError):
                raise SystemSetupError(f"the tunnel {name} does not answer") from None
    if "error" in reply:
        raise SystemSetupError(f"the tunnel {name}: {reply['error']}")
    return reply[command]
