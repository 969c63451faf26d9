"""Wait for another process to end."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

_POLL_INTERVAL_S = 0.02
_ENDED = ("Z", "X")     # exited, and perhaps never waited for by its parent (proc_pid_stat(5))


def wait_for_end(pid: int, timeout_s: float) -> bool:
    """Whether a process, which need not be a child, ends in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:         # before Linux 5.3, or a seccomp filter that does not know it
        return _poll(pid, timeout_s)
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        return bool(ended.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def _poll(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not _has_ended(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True


def _has_ended(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return True
    return status.rpartition(") ")[2][:1] in _ENDED
