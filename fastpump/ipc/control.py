"""The control socket of a running tunnel: one JSON request a line, one answer a line.

    {"command": "status"}  ->  {"status": {...}}      (docs/fastpump.1.md has the keys)
    {"command": "reload"}  ->  {"reload": {...}}      (of `fastpump up` only)
    {"command": "configuration"}  ->  {"configuration": {"text": ...}}    (likewise)
    {"command": "stop"}    ->  {"stop": {"pid": N}}   the tunnel ends, and its process
        "post_down": [...]      what the client is about to run then (of `fastpump up` only)
    {"command": "fdb", "action": ...}  ->  {"fdb": {...}}       (of a TAP; fdb.py)
    {"command": "limit", ...}  ->  {"limit": {...}}             (Tunnel.limit)
    anything else          ->  {"error": "..."}

A blank goes before the answer at once, when a command begins. A client waits ANSWER_TIMEOUT_S for
it: a tunnel that is stopped, or has no file descriptor left for a client, takes no command. One
whose client has left before it could be taken is not carried out.

The socket is /run/fastpump/<network namespace>/<interface>.sock, mode 0600.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from fastpump import paths
from fastpump.errors import FastpumpError, SystemSetupError
from fastpump.ipc.unix_server import (
    MAX_PATH_LEN,
    AlreadyServed,
    UnixServer,
    has_left,
    is_answered,
)

log = logging.getLogger("fastpump.ipc")

MAX_REQUEST = 16 << 20
"""Of `stop`, which has all PostDown of a file."""
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 3.0
COMMAND_TIMEOUT_S = 60.0
"""Of a request that was taken: `reload` may change many routes."""
TAKEN = b" "
"""JSON may begin with blanks."""

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Takes the request: {"command": ..., and what else it has}."""


class ControlServer:
    """Answers `fastpump status` and its like. Bad requests get an error, slow clients time
    out."""

    def __init__(self, name: str, commands: dict[str, Command],
                 report: Callable[[Exception], None]) -> None:
        """`report`: logs an error of a command that nobody foresaw."""
        self._commands = commands
        self._report = report
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
        before, path = self._server.path, _path(name, namespace)
        try:
            self._server.rename(path)
        except (AlreadyServed, OSError) as error:
            log.warning("the control socket stays %(before)s, as it cannot become %(path)s: "
                        "%(error)r", {"before": before, "path": path, "error": error})
        else:
            _remove_empty(before.parent)

    async def stop(self) -> None:
        """Stop listening and leave nothing behind."""
        await self._server.stop()
        _remove_empty(self._server.path.parent)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_S)
        if has_left(writer):
            return
        answer = await self._answer(line, lambda: writer.write(TAKEN))
        writer.write(answer.encode() + b"\n")
        await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)

    async def _answer(self, line: bytes, on_taken: Callable[[], None]) -> str:
        """`on_taken`: it is a command, which begins now."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _error("the request is not JSON")
        name = request.get("command") if isinstance(request, dict) else None
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            return _error("unknown command: must be one of " + ", ".join(sorted(self._commands)))
        on_taken()
        try:
            return json.dumps({str(name): await command(request)})
        except FastpumpError as error:
            return _error(str(error))
        except OSError as error:
            return _error(f"system error: {str(error) or repr(error)}")
        except Exception as error:
            self._report(error)
            return _error("internal error; the log has more about it")


def _error(text: str) -> str:
    return json.dumps({"error": text})


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


class _Question:
    """A command that was sent to a tunnel, and its answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._deadline = time.monotonic() + ANSWER_TIMEOUT_S
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._command = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def send(self, command: str, arguments: dict[str, object]) -> bool:
        """Whether somebody listens there."""
        self._command = command
        path = _path(self._name)
        if len(os.fsencode(path)) > MAX_PATH_LEN:
            raise SystemSetupError(
                f"the tunnel {self._name} cannot be queried: the path {path} is too long for a "
                "socket; name a directory with a short path in FASTPUMP_RUN")
        try:
            self._socket.connect(str(path))
            self._socket.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (BlockingIOError, TimeoutError, ConnectionError):
            raise self._no_answer() from None
        except OSError as error:
            raise SystemSetupError(f"the tunnel {self._name} cannot be queried: {error.strerror}; "
                                   "run as the user who runs it") from None
        return True

    def answer(self) -> Any:
        """What it answers; SystemSetupError if that is nothing, or an error."""
        try:
            self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
            taken = self._socket.recv(1)
        except TimeoutError:
            raise self._no_answer() from None
        except OSError:
            taken = b""
        try:
            self._socket.settimeout(COMMAND_TIMEOUT_S)
            with self._socket.makefile("rb") as rest:
                reply = json.loads(taken + rest.readline())
        except TimeoutError:
            raise SystemSetupError(
                f"the tunnel {self._name} has not done `{self._command}` within "
                f"{COMMAND_TIMEOUT_S:g} s, and goes on with it") from None
        except (OSError, ValueError):
            raise SystemSetupError(
                f"the tunnel {self._name} has closed the connection without an answer: it has "
                "ended, or has too many clients") from None
        if "error" in reply:
            raise SystemSetupError(f"the tunnel {self._name}: {reply['error']}")
        return reply[self._command]

    def _no_answer(self) -> SystemSetupError:
        return SystemSetupError(f"the tunnel {self._name} does not answer{self._why()}")

    def _why(self) -> str:
        try:        # of the process that listens, also if it has not accepted us
            credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid = struct.unpack("3i", credentials)[0]
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        if fields[0] in "Tt":
            return f": its process {pid} is stopped; `kill -CONT {pid}` continues it"
        return f": its process {pid} is busy, or has no file descriptor left"


def ask(name: str, command: str, **arguments: object) -> Any:
    """Send a command to a running tunnel; None if nobody listens there. SystemSetupError, after
    ANSWER_TIMEOUT_S at most, if it does not take the command."""
    with _Question(name) as question:
        return question.answer() if question.send(command, arguments) else None


def ask_all(command: str) -> tuple[list[Any], list[SystemSetupError]]:
    """Send a command to all running tunnels at once: the answers, and what is wrong with tunnels
    that give none."""
    answers, errors = [], []
    with contextlib.ExitStack() as cleanup:
        sent = []
        for name in running():
            question = cleanup.enter_context(_Question(name))
            try:
                if question.send(command, {}):
                    sent.append(question)
            except SystemSetupError as error:
                errors.append(error)
        for question in sent:
            try:
                answers.append(question.answer())
            except SystemSetupError as error:
                errors.append(error)
    return answers, errors
