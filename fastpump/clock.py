"""The one clock of the control plane. Sans-I/O code takes its time as an argument."""

import time


def now_ns() -> int:
    """CLOCK_BOOTTIME, the clock of the data plane."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
