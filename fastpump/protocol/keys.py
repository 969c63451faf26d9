"""Keys as `wg` writes them: 32 bytes in base64, a line each."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fastpump.constants import KEY_LEN
from fastpump.errors import ConfigError, SystemSetupError, is_like_key

MAX_FILE_LEN = 4096
_MADE_BY = {"private": "genkey", "public": "pubkey", "preshared": "genpsk"}
"""Which of our commands prints a kind of key."""


def encode(key: bytes) -> str:
    """44 characters of base64."""
    return base64.b64encode(key).decode()


def decode(text: str, what: str = "key") -> bytes:
    """32 bytes; ConfigError names `what` and the form that is expected."""
    text = text.strip("\t\n\v\f\r ")     # not Unicode's blanks: wg refuses those
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    # encode(key) != text: unused bits set, which `wg` refuses too.
    if len(key) != KEY_LEN or encode(key) != text:
        command = next((_MADE_BY[word] for word in what.split() if word in _MADE_BY), "genkey")
        raise ConfigError(f"invalid {what}: must be 44 characters of base64, as `fastpump "
                          f"{command}` prints them")
    return key


def generate_private() -> bytes:
    """A private key."""
    return clamp(secrets.token_bytes(KEY_LEN))


def clamp(private: bytes) -> bytes:
    """The private key as X25519 uses it (RFC 7748, section 5)."""
    key = bytearray(private)
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


def generate_preshared() -> bytes:
    """A preshared key."""
    return secrets.token_bytes(KEY_LEN)


def public_of(private: bytes) -> bytes:
    """The public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def read_file(path: Path, what: str) -> bytes:
    """The key in a file that holds just that, and that nobody else may read."""
    try:
        # Not blocking: a FIFO without a writer is an empty file here.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            data = file.read(MAX_FILE_LEN) or b""
    except OSError as error:
        if is_like_key(str(path)):
            raise ConfigError(f"the {what} is given itself: must be the name of a file with it; "
                              "make a new one, for others can see what you typed") from None
        raise ConfigError(f"the {what} cannot be read from {path}: {error.strerror}") from None
    key = decode(data.decode("ascii", "replace"), f"{what} in {path}")
    if stat.S_ISREG(mode) and mode & 0o077:     # said of what is a key only
        raise ConfigError(f"the {what} in {path} can be read by others; make it yours alone: "
                          f"chmod 600 {path}")
    return key


def load_or_create(path: Path) -> bytes:
    """The private key kept at `path`; made on first use, mode 0600."""
    try:
        if path.exists():
            return read_file(path, "private key")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = generate_private()
        # Written whole under another name first: a crash leaves no half of a key.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-",
                                         encoding="ascii") as file:     # mode 0600
            file.write(encode(private) + "\n")
            file.flush()
            os.fsync(file.fileno())
            os.link(file.name, path)
    except FileExistsError:
        return read_file(path, "private key")
    except OSError as error:
        raise SystemSetupError(
            f"the private key cannot be kept at {path}: {error.strerror}; name a file with "
            "--private-key, or a writable directory in FASTPUMP_STATE") from None
    return private
