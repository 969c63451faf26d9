"""Keys as `wg` writes them: 32 bytes in base64, a line each."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from fastpump.constants import KEY_LEN
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.noise import StaticKey


def encode(key: bytes) -> str:
    """44 characters of base64."""
    return base64.b64encode(key).decode()


def decode(text: str, what: str = "key") -> bytes:
    """32 bytes; ConfigError names `what` and the form that is expected."""
    text = text.strip()
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    # encode(key) != text: unused bits set, which `wg` refuses too.
    if len(key) != KEY_LEN or encode(key) != text:
        raise ConfigError(f"the {what} is not a key: 44 characters of base64 are expected, as "
                          "`fastpump genkey` prints them")
    return key


def generate_private() -> bytes:
    """A private key, clamped as X25519 wants it (RFC 7748, section 5)."""
    key = bytearray(secrets.token_bytes(KEY_LEN))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


def generate_preshared() -> bytes:
    """A preshared key."""
    return secrets.token_bytes(KEY_LEN)


def public_of(private: bytes) -> bytes:
    """The public key of a private one."""
    return StaticKey(private).public


def read_file(path: Path, what: str) -> bytes:
    """The key in a file that holds just that."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"the {what} cannot be read from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    return decode(text, f"{what} in {path}")


def load_or_create(path: Path) -> bytes:
    """The private key kept at `path`; made on first use, mode 0600."""
    if path.exists():
        return read_file(path, "private key")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = generate_private()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(encode(private) + "\n")
    except FileExistsError:
        return read_file(path, "private key")
    except OSError as error:
        raise SystemSetupError(
            f"the private key cannot be kept at {path}: {error.strerror}; name a file with "
            "--private-key, or a writable directory in FASTPUMP_STATE") from None
    return private
