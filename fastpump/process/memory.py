"""What others may see of this process's memory, in which keys are."""

from __future__ import annotations

import ctypes
import os

from fastpump.kernel import PR_SET_DUMPABLE


def hide() -> None:
    """No core dump, also not into a program's pipe, for which a limit of zero bytes does not count
    (core(5)); and no other process of the same user may look into the memory or trace us. (Root
    may.) Programs that we start are not concerned."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot hide the memory: {os.strerror(error)}")
