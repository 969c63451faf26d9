"""The standard streams of a command."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Fill 0, 1 and 2 if they are closed, or the next file opened would be taken for one."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)
    if sys.stdin is None:
        sys.stdin = open(0)     # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w")       # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w")       # noqa: SIM115
