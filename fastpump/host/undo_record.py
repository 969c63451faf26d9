"""Records in /run/fastpump/<network namespace>: what must be undone, written down before it is
done.

A process has its records locked while it lives. So a process that gets the lock of a record with
content knows that the one before was killed, and undoes what is in it. Records have mode 0600, as
there may be secrets in the commands of a file; and locks, as whoever may open a file may lock it.

A record is one line of JSON, or for a moment several: the last whole one counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from fastpump.errors import SystemSetupError
from fastpump.kernel import SO_NETNS_COOKIE

log = logging.getLogger("fastpump")

LOCK = ".lock"
"""In a directory of records: there while somebody has it locked."""


class Record:
    """One record, locked."""

    def __init__(self, path: Path, file: TextIO) -> None:
        """`take` makes them."""
        self.path = path
        self._file = file

    @classmethod
    def take(cls, path: Path) -> Record | None:
        """Open a record, or make it, and lock it; None if a living process has it."""
        while True:
            file = os.fdopen(_open_or_make(path), "r+", encoding="utf-8", errors="replace")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return cls(path, file)
            file.close()        # its owner removed it just now

    @classmethod
    def peek(cls, path: Path) -> Record | None:
        """Open a record to read it, whoever has it; None if there is none."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        return cls(path, os.fdopen(fd, "r", encoding="utf-8", errors="replace"))

    @property
    def is_trusted(self) -> bool:
        """Whether nobody else can have written it, so that commands in it may be run."""
        status = os.fstat(self._file.fileno())
        return status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def is_held(self) -> bool:
        """Whether a living process has it; of one that `peek` opened."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False

    def read(self) -> dict[str, Any]:
        """Its content; none, and a line in the log, if it cannot be read."""
        self._file.seek(0)
        lines = [line for line in self._file.read().split("\n") if line.strip("\0")]
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                content = json.loads(line)
                if isinstance(content, dict):
                    return content
        if lines:
            log.warning("%(path)s cannot be read: what it records is not undone",
                        {"path": self.path})
        return {}

    def write(self, content: dict[str, Any]) -> None:
        """Replace its content. Whenever we are killed, it is the old or the new: the kernel may
        stop at the end of any page, so the new line is written behind the old one first.
        SystemSetupError if there is no room: then it is the old."""
        fd, line = self._file.fileno(), json.dumps(content).encode() + b"\n"
        size = os.fstat(fd).st_size
        try:
            _write_all(fd, b"\n" + line, max(size, len(line)))
        except OSError as error:
            os.ftruncate(fd, size)
            raise SystemSetupError(f"{self.path} cannot be written: {error.strerror}") from None
        _write_all(fd, line, 0)
        os.ftruncate(fd, len(line))

    def release(self) -> None:
        """Leave it to the next process that takes it."""
        self._file.close()

    def remove(self) -> None:
        """All is undone."""
        self.path.unlink(missing_ok=True)
        self._file.close()
        _remove_if_empty(self.path.parent)


def _open_or_make(path: Path) -> int:
    while True:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue            # its owner removed the directory just now
        except OSError as error:
            raise SystemSetupError(f"{path} cannot be written: {error.strerror}; name a writable "
                                   "directory in FASTPUMP_RUN") from None


def _write_all(fd: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written


def _remove_if_empty(directory: Path) -> None:
    for each in (directory, directory.parent):
        with contextlib.suppress(OSError):      # it has other records
            each.rmdir()


def namespace_cookie() -> int:
    """What distinguishes this network namespace from all others since the boot, as its inode does
    not; 0 before Linux 5.14."""
    try:
        with socket.socket(socket.AF_UNIX) as any_socket:
            return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8),
                                  "little")
    except OSError:
        return 0


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """No other process is in a block like this one, for the same directory. It is made if somebody
    has removed it. SystemSetupError."""
    path = directory / LOCK
    fd = _open_locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)
        _remove_if_empty(directory)


def _open_locked(path: Path) -> int:
    while True:
        fd = _open_or_make(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(fd)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)            # its owner removed it just now
