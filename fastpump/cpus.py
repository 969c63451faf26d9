"""How many CPUs this process can keep busy: those that it may run on (affinity, cpuset), or the
share of them that its control groups leave it, if that is less.

A control group's quota is CPU time per period. It holds for all groups below, so the least one from
the process's group up to the root counts: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max)
and Documentation/scheduler/sched-bwc.rst (version 1: cpu.cfs_quota_us). In a container, what is
mounted may begin at the container's own group (proc_pid_mountinfo(5): root), and what is above it
cannot be seen.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_PROC = Path("/proc/self")


class _Mount(NamedTuple):
    root: PurePosixPath
    directory: Path
    kind: str
    options: list[str]


def usable_count() -> int:
    """At least 1; a part of a CPU counts as one."""
    allowed = len(os.sched_getaffinity(0))
    share = quota()
    return allowed if share is None else max(1, min(allowed, math.ceil(share)))


def quota(proc: Path = _PROC) -> float | None:
    """The CPUs' worth of time that control groups allow; None: there is no limit."""
    limits = []
    for read, directory in _groups(proc):
        try:
            limit = read(directory)
        except (OSError, ValueError):       # the root has no such file
            continue
        if limit is not None:
            limits.append(limit)
    return min(limits, default=None)


def _groups(proc: Path) -> Iterator[tuple[Callable[[Path], float | None], Path]]:
    """The directories of the process's groups, and of those above, each with what reads it."""
    try:
        mounts = [_mount_of(line) for line in (proc / "mountinfo").read_text().splitlines()]
        lines = (proc / "cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_v2 = controllers == ""
        if not is_v2 and "cpu" not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.kind == "cgroup2" if is_v2 else (
                    mount.kind == "cgroup" and "cpu" in mount.options):
                below = _below(mount.root, PurePosixPath(path))
                for group in (below, *below.parents):
                    yield _limit_v2 if is_v2 else _limit_v1, mount.directory / group


def _below(root: PurePosixPath, path: PurePosixPath) -> PurePosixPath:
    """Where a group is below what is mounted; at its root if it cannot be seen."""
    if ".." not in path.parts and path.is_relative_to(root):
        return path.relative_to(root)
    return PurePosixPath()


def _mount_of(line: str) -> _Mount:
    """A line of mountinfo, in which blanks and backslashes are octal."""
    before, _, after = line.partition(" - ")
    root, directory = (re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
                       for field in before.split(" ")[3:5])
    kind, _, options = after.split(" ", 2)
    return _Mount(PurePosixPath(root), Path(directory), kind, options.split(","))


def _limit_v2(directory: Path) -> float | None:
    share, period = (directory / "cpu.max").read_text().split()
    return None if share == "max" else int(share) / int(period)


def _limit_v1(directory: Path) -> float | None:
    share = int((directory / "cpu.cfs_quota_us").read_text())
    return None if share < 0 else share / int((directory / "cpu.cfs_period_us").read_text())
