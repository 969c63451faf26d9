"""The files in which a device keeps how far its timestamps may have gone (device/timestamps.py).

One for each key: a timestamp in TAI64's external format, and a checksum. It is written whole under
another name, is on disk, and then takes the place of the one before. What cannot be read or written
is a warning: the tunnel goes by the clock then, as it would without a file.

Two tunnels with one key have one file, in which the later timestamp wins.
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from pathlib import Path

from fastpump import paths
from fastpump.constants import TIMESTAMP_LEN
from fastpump.protocol import tai64n

log = logging.getLogger("fastpump")

_NONE = bytes(TIMESTAMP_LEN)
_TEXT = re.compile(rb"@([0-9a-f]{24}) ([0-9a-f]{8})\n")
_MAX_LEN = 64


class TimestampFiles:
    """Reads and writes them; each kind of trouble is told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def load(self, public_key: bytes) -> bytes:
        """What is kept for a key; zeros for nothing."""
        path = paths.timestamp_file(public_key)
        try:
            return _read(path)
        except FileNotFoundError:
            return _NONE
        except OSError as error:
            why = error.strerror or str(error)
        except ValueError as error:
            why = str(error)
        self._tell("%(path)s cannot be used: %(why)s; if the clock was set back since the tunnel "
                   "ran last, peers do not answer until it is right again", path, why)
        return _NONE

    def keep(self, public_key: bytes, before: bytes, timestamp: bytes) -> None:
        """Keep a timestamp in place of `before`. If somebody else has kept a later one meanwhile,
        that stays."""
        path = paths.timestamp_file(public_key)
        try:
            if self._found(path) <= max(before, timestamp):
                _write(path, timestamp)
        except OSError as error:
            self._tell("%(path)s cannot be written: %(why)s; should the clock be set back before "
                       "the tunnel starts again, peers will not answer until it is right; make "
                       "room, or name a writable directory in FASTPUMP_STATE", path,
                       error.strerror or str(error))

    @staticmethod
    def _found(path: Path) -> bytes:
        try:
            return _read(path)
        except (OSError, ValueError):
            return _NONE

    def _tell(self, message: str, path: Path, why: str) -> None:
        if message not in self._told:
            self._told.add(message)
            log.warning(message, {"path": path, "why": why})


def _read(path: Path) -> bytes:
    """OSError, and ValueError for what is none of ours."""
    # Not blocking, and no link: the name is ours alone.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        text = _TEXT.fullmatch(file.read(_MAX_LEN) or b"")
    if text is None or zlib.crc32(text[1]) != int(text[2], 16):
        raise ValueError("it is damaged")
    timestamp = bytes.fromhex(text[1].decode("ascii"))
    if not tai64n.is_valid(timestamp):
        raise ValueError("it is damaged")
    return timestamp


def _write(path: Path, timestamp: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digits = timestamp.hex().encode("ascii")
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(b"@%b %08x\n" % (digits, zlib.crc32(digits)))
        file.flush()
        os.fsync(fd)
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
