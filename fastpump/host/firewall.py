"""nft and resolvconf: both are other programs. They are waited for, for a while, but not for what
they leave running in the background (hooks of resolvconf do).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from fastpump.errors import SystemSetupError

RESOLVCONF_ORDER = Path("/etc/resolvconf/interface-order")
PROGRAM_TIMEOUT_S = 30.0


def _run(command: Sequence[str], text: str, package: str, purpose: str) -> str:
    """Run a program with `text` on its stdin; what it prints. SystemSetupError."""
    if shutil.which(command[0]) is None:
        raise SystemSetupError(f"{command[0]} is missing, which {purpose} needs; install it "
                               f"(Debian: apt install {package})")
    # Not pipes: those end when the last process that has them does.
    with _memory_file("stdout") as stdout, _memory_file("stderr") as stderr:
        try:
            status = subprocess.run(command, input=text.encode(), stdout=stdout, stderr=stderr,
                                    timeout=PROGRAM_TIMEOUT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            raise SystemSetupError(f"{' '.join(command)} did not end within "
                                   f"{PROGRAM_TIMEOUT_S:g} s; find out what it waits "
                                   "for") from None
        except OSError as error:
            raise SystemSetupError(f"{command[0]} cannot be started, which {purpose} needs: "
                                   f"{error.strerror}") from None
        if status != 0:
            reason = next(filter(None, map(_first_line, (stderr, stdout))), "no reason given")
            raise SystemSetupError(f"{' '.join(command)} failed: {reason}")
        stdout.seek(0)
        return stdout.read().decode(errors="replace")


def _memory_file(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "w+b")


def _first_line(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip().partition("\n")[0]


# -- nftables

def run_nft(script: str, purpose: str, *options: str) -> str:
    """Run a script of nft, all of it or nothing; what it prints. SystemSetupError."""
    return _run(["nft", *options, "-f", "-"], script, "nftables", purpose)


# -- resolvconf

def _record(name: str) -> str:
    """The name of our record. Debian's resolvconf orders records by their prefix: that of
    the first pattern like `tun*` in its list. It may have left that list behind where resolvconf is
    a link to another program by now, which wants the interface's name."""
    program = shutil.which("resolvconf")
    if program is not None and Path(program).is_symlink():
        return name
    try:
        lines = RESOLVCONF_ORDER.read_text().splitlines()
    except OSError:
        return name
    found = (re.fullmatch(r"([A-Za-z0-9-]+)\*", line.strip()) for line in lines)
    return next((f"{match[1]}.{name}" for match in found if match), name)


def set_dns(name: str, servers: Sequence[str], domains: Sequence[str]) -> None:
    """Use these servers, before and instead of others."""
    text = "".join(f"nameserver {server}\n" for server in servers)
    text += f"search {' '.join(domains)}\n" if domains else ""
    _run(["resolvconf", "-a", _record(name), "-m", "0", "-x"], text, "openresolv", "DNS")


def unset_dns(name: str) -> None:
    """Remove our record."""
    _run(["resolvconf", "-d", _record(name), "-f"], "", "openresolv", "DNS")
