"""What the machine says of itself while figures are taken: energy, and why not to believe them."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
STAT = Path("/proc/stat")
CPUS = Path("/sys/devices/system/cpu")
STOLEN_ALLOWED = 0.02
"""The share of its CPU time that a hypervisor may take: more makes rounds differ."""


class Energy:
    """What all processors of the machine use, by RAPL
    (Documentation/power/powercap/powercap.rst)."""

    def __init__(self, root: Path = POWERCAP) -> None:
        # A package is intel-rapl:N, of any maker; intel-rapl:N:M is a part of it.
        self._packages = [path for path in sorted(root.glob("intel-rapl:*"))
                          if path.name.count(":") == 1
                          and _number(path / "energy_uj") is not None]
        self._before = self._read()

    def _read(self) -> list[int]:
        return [_number(path / "energy_uj") or 0 for path in self._packages]

    def joules(self) -> float | None:
        """Since it was made; None if the machine does not say."""
        if not self._packages:
            return None
        total = 0
        for path, before, now in zip(self._packages, self._before, self._read(), strict=True):
            total += now - before
            if now < before:        # it began anew
                total += _number(path / "max_energy_range_uj") or 0
        return total / 1e6


class Quiet:
    """Whether the machine was left to us, and ran at its own speed."""

    def __init__(self, stat: Path = STAT, cpus: Path = CPUS) -> None:
        self._stat, self._cpus = stat, cpus
        self._times, self._throttled = self._read_times(), self._read_throttled()

    def _read_times(self) -> list[int]:
        """In ticks: user, nice, system, idle, iowait, irq, softirq, steal (proc(5))."""
        return [int(word) for word in self._stat.read_text(encoding="ascii").split()[1:9]]

    def _read_throttled(self) -> int:
        return sum(_number(path) or 0 for path in self._cpus.glob(
            "cpu[0-9]*/thermal_throttle/*_throttle_count"))

    def doubts(self) -> list[str]:
        """Why not to believe what was measured since this was made."""
        found = []
        spent = [now - before for before, now in zip(self._times, self._read_times(), strict=True)]
        stolen = spent[-1] / max(1, sum(spent))
        if stolen > STOLEN_ALLOWED:
            found.append(f"the hypervisor took {stolen:.0%} of the CPU time")
        throttled = self._read_throttled() - self._throttled
        if throttled > 0:
            found.append(f"processors were too hot and slowed down {throttled} times")
        return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
