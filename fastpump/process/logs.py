"""Logging to stderr, as lines or as JSON, or to syslog.

A peer causes log lines, by handshakes or by what it says of itself. It must not fill a disk with
them, nor stop the tunnel:

bounded        Of one kind of line about one peer there are BURST at once, and then one in
               INTERVAL_S, which says how many were left out.
non-blocking   What stderr or syslog does not take at once is lost, and counted: whoever reads them
               may be slow, or stopped.

Stderr is shared with others, who may have it blocking: it is not changed, but a terminal or pipe is
opened anew for each line. What cannot be opened anew (a terminal of another user, a socket) is
asked whether there is room first; then a line can still block, if somebody else takes the room.

Every line names the interface of the tunnel that the process runs. The values of a line have names,
by logging's own means: log.info("%(peer)s is at %(endpoint)s", {"peer": peer, "endpoint": where}).
In JSON they are members of the object, beside the sentence. An object that has a `json_value` is
represented by that, else by its text.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import select
import socket
import stat
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
SYSLOG = Path("/dev/log")

BURST = 10
INTERVAL_S = 10.0
MAX_KINDS = 4096
"""That are remembered; the one that was logged least recently is forgotten."""

_ONE_VALUE = re.compile(r"%\(\w+\)s")


class RateLimit(logging.Filter):
    """Lets so many records of a kind pass (GCRA, ITU-T I.371). A kind is a format string, and the
    value of `peer` that it is filled in with."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        # When the kind's bucket will be full again, and how many were left out since the last
        # that passed; the kind that was logged least recently first.
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record passes; it is given the count of those that did not."""
        now, kind = self._clock(), _kind(record)
        full_at, left_out = self._kinds.pop(kind, (now, 0))
        full_at = max(full_at, now)
        passes = full_at - now <= (BURST - 1) * INTERVAL_S
        self._kinds[kind] = (full_at + INTERVAL_S, 0) if passes else (full_at, left_out + 1)
        if len(self._kinds) > MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        if passes and left_out:
            fields = _fields(record)
            message = record.msg if fields else record.getMessage().replace("%", "%%")
            record.msg = f"{message} (and %(left_out)d more like it)"
            record.args = {**fields, "left_out": left_out}
        return passes


def _kind(record: logging.LogRecord) -> Hashable:
    if _ONE_VALUE.fullmatch(record.msg):
        return record.getMessage()
    return record.msg, getattr(_fields(record).get("peer"), "public_key", None)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """The values of a line, by their names."""
    return record.args if isinstance(record.args, Mapping) else {}


class _Losses:
    """How many lines a handler has lost; the next that is not lost is preceded by one that says
    so."""

    def __init__(self) -> None:
        self._count = 0

    def emit(self, record: logging.LogRecord,
             write: Callable[[logging.LogRecord], bool]) -> None:
        """Write a line; `write` says whether it was taken."""
        if self._count and write(logging.makeLogRecord({
                "name": record.name, "levelno": logging.WARNING, "levelname": "WARNING",
                "msg": "%(lost)d log lines were lost, as nobody read them",
                "args": {"lost": self._count}})):
            self._count = 0
        self._count += not write(record)


class StreamHandler(logging.StreamHandler):     # type: ignore[type-arg]
    """Writes lines to a stream, and loses those that would block."""

    def __init__(self) -> None:
        super().__init__()
        self._losses = _Losses()
        self._is_cut = False
        """The last bytes that were written are a part of a line that was lost."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            fd = self.stream.fileno()
        except (OSError, ValueError):       # not a file: a test's
            super().emit(record)
            return
        own = _open_anew(fd)
        try:
            self._losses.emit(record, partial(self._write, fd if own is None else own))
        finally:
            if own is not None:
                os.close(own)

    def _write(self, fd: int, record: logging.LogRecord) -> bool:
        """Whether there was room. A pipe takes PIPE_BUF bytes as a whole, and if it is writable it
        has room for them (pipe(7)); a terminal may take a part, and be writable without room."""
        line = (self.format(record) + self.terminator).encode(errors="backslashreplace")
        line = b"\n" * self._is_cut + line
        while line:
            if not _is_writable(fd):
                return False
            try:
                line = line[os.write(fd, line[:select.PIPE_BUF]):]
            except OSError:                 # no room after all, or the reader is gone
                return False
            self._is_cut = bool(line)
        return True


def _open_anew(fd: int) -> int | None:
    """The same terminal or pipe, with a file status of our own: non-blocking. None for what is
    something else, and for what may not be opened."""
    try:
        if os.isatty(fd) or stat.S_ISFIFO(os.fstat(fd).st_mode):
            return os.open(f"/proc/self/fd/{fd}",
                           os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        pass
    return None


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))


class SyslogHandler(logging.handlers.SysLogHandler):
    """Sends lines to syslog, and loses those that would block."""

    def __init__(self) -> None:
        self._losses = _Losses()
        self._is_lost = False
        super().__init__(str(SYSLOG))
        self.ident = f"fastpump[{os.getpid()}]: "
        self.setFormatter(_LineFormatter(with_level=False))

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line."""
        self._losses.emit(record, self._send)

    def _send(self, record: logging.LogRecord) -> bool:
        self._is_lost = False
        super().emit(record)
        return not self._is_lost

    def _connect_unixsocket(self, address: str) -> None:
        """By datagrams, or a stream; that may have no room for us either, hence non-blocking."""
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            self.socket = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
            try:
                self.socket.connect(address)
                return
            except OSError:
                self.socket.close()
                if kind == socket.SOCK_STREAM:
                    raise

    def handleError(self, record: logging.LogRecord) -> None:
        """It is lost."""
        self._is_lost = True


class _Process:
    """Of this process: a tunnel's, or a command's."""

    interface = ""


def name_interface(name: str) -> None:
    """The interface of this process's tunnel has that name from now on."""
    _Process.interface = name


class _LineFormatter(logging.Formatter):
    """WARNING wg0: what happened; without the level for syslog, which has its own."""

    def __init__(self, *, with_level: bool = True) -> None:
        super().__init__("%(levelname)s %(interface)s%(message)s" if with_level
                         else "%(interface)s%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.interface = f"{_Process.interface}: " if _Process.interface else ""
        return super().formatMessage(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(),
                "logger": record.name, "interface": _Process.interface or None,
                "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        for name, value in _fields(record).items():
            line.setdefault(name, _plain(value))
        return json.dumps(line)


def _plain(value: Any) -> Any:
    """As JSON can have it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return _plain(getattr(value, "json_value", str(value)))


def set_up(level: str, *, as_json: bool = False) -> None:
    """Log what is at least as important as `level` (of LEVELS) to stderr."""
    handler = StreamHandler()
    handler.setFormatter(_JsonFormatter() if as_json else _LineFormatter())
    _log_by(handler)
    logger = logging.getLogger("fastpump")
    logger.propagate = False
    logger.setLevel(level.upper())


def to_syslog() -> None:
    """Log to syslog from now on; nowhere if there is none."""
    _log_by(SyslogHandler() if SYSLOG.exists() else logging.NullHandler())


def _log_by(handler: logging.Handler) -> None:
    handler.addFilter(RateLimit())
    logging.getLogger("fastpump").handlers = [handler]
