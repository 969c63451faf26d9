"""Records in /run/fastpump/<network namespace>: what must be undone, written down before it is
done.

A process has its records locked while it lives. So a process that gets the lock of a record with
content knows that the one before was killed, and undoes what is in it. Records have mode 0600, as
there may be secrets in the commands of a file.
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
            try:
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue        # its owner removed the directory just now
            except OSError as error:
                raise SystemSetupError(f"{path} cannot be written: {error.strerror}; name a "
                                       "writable directory in FASTPUMP_RUN") from None
            file = os.fdopen(fd, "r+", encoding="utf-8")
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
        return cls(path, os.fdopen(fd, "r", encoding="utf-8"))

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
        try:
            content = json.loads(self._file.readline() or "{}")
            if not isinstance(content, dict):
                raise ValueError("not an object")
        except ValueError as error:
            log.warning("%(path)s cannot be read (%(error)s): what it records is not undone",
                        {"path": self.path, "error": error})
            return {}
        return content

    def write(self, content: dict[str, Any]) -> None:
        """Replace its content. Whenever we are killed, its first line is the old or the new."""
        line = json.dumps(content).encode() + b"\n"
        os.pwrite(self._file.fileno(), line, 0)
        os.ftruncate(self._file.fileno(), len(line))

    def release(self) -> None:
        """Leave it to the next process that takes it."""
        self._file.close()

    def remove(self) -> None:
        """All is undone."""
        self.path.unlink(missing_ok=True)
        self._file.close()
        for directory in (self.path.parent, self.path.parent.parent):
            with contextlib.suppress(OSError):      # it has other records
                directory.rmdir()


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
    has removed it."""
    fd = -1
    while fd < 0:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
