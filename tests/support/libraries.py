"""The libraries of ciphers: where they are, and how a program does not find one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def ipsec_mb() -> tuple[Path, str]:
    """The file of Intel's library, and the name that it is loaded by."""
    found = subprocess.run(["cc", "-print-file-name=libIPSec_MB.so"], capture_output=True,
                           text=True, check=True).stdout.strip()
    headers = subprocess.run(["objdump", "-p", found], capture_output=True, text=True,
                             check=True).stdout
    return Path(found).resolve(), re.search(r"SONAME +(\S+)", headers)[1]


def boringssl() -> Path:
    """The file of Debian's BoringSSL."""
    (found,) = Path("/usr/lib").glob("*/android/libcrypto.so.0")
    return found


def without_ipsec_mb(directory: Path) -> dict[str, str]:
    """The environment of a machine without it: an empty file of its name comes first."""
    (directory / ipsec_mb()[1]).touch()
    return {"LD_LIBRARY_PATH": str(directory)}
