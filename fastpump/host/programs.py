"""Other programs that change the host for us: nft, resolvconf, resolvectl. They are waited for,
for a while, but not for what they leave running in the background (hooks of resolvconf do).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import BinaryIO

from fastpump.errors import SystemSetupError

TIMEOUT_S = 30.0


def run(command: Sequence[str], text: str, package: str, purpose: str) -> str:
    """Run a program with `text` on its stdin; what it prints. SystemSetupError."""
    if shutil.which(command[0]) is None:
        raise SystemSetupError(f"{command[0]} is missing, which {purpose} needs; install it "
                               f"(Debian: apt install {package})")
    # Not pipes: those end when the last process that has them does.
    with _memory_file("stdout") as stdout, _memory_file("stderr") as stderr:
        try:
            status = subprocess.run(command, input=text.encode(), stdout=stdout, stderr=stderr,
                                    timeout=TIMEOUT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            raise SystemSetupError(f"{' '.join(command)} did not end within {TIMEOUT_S:g} s; find "
                                   "out what it waits for") from None
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
