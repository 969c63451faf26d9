"""What a report measures, in which unit, and which end of the scale is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure of a load."""

    name: str
    unit: str
    more_is_better: bool
    digits: int = 3

    def text(self, value: float) -> str:
        """The value as the table has it, without the unit."""
        return f"{value:,.{self.digits}f}"


def throughput(load: str) -> Figure:
    """Of payload that arrived."""
    return Figure(f"{load}: throughput", "Gbit/s", True, 2)


def cpu_per_gb(load: str) -> Figure:
    """Of the tunnel's processes at both ends; a GB is 10^9 bytes of payload that arrived."""
    return Figure(f"{load}: CPU", "s/GB", False, 2)


def energy_per_gb(load: str) -> Figure:
    """Of all processors, load and all; where the machine says it (RAPL)."""
    return Figure(f"{load}: energy", "J/GB", False, 1)


def packets(load: str) -> Figure:
    """That arrived."""
    return Figure(f"{load}: received", "packets/s", True, 0)


def lost(load: str) -> Figure:
    """Of those that were sent."""
    return Figure(f"{load}: lost", "%", False, 2)


def reordered(load: str) -> Figure:
    """Of those that arrived: after a later one of the same flow (RFC 4737, 3)."""
    return Figure(f"{load}: reordered", "%", False, 2)


def delay(load: str, percent: float) -> Figure:
    """From the sender's system call to the receiver's kernel, which so many percent do not
    exceed."""
    return Figure(f"{load}: delay {'median' if percent == 50 else f'p{percent:g}'}", "us", False,
                  0)


def highest_rate(load: str) -> Figure:
    """At which no more is lost than LOSS_ALLOWED of loads.py."""
    return Figure(f"{load}: highest rate", "packets/s", True, 0)


def cpu_per_packet(load: str) -> Figure:
    """Of the tunnel's processes at both ends, per packet that arrived."""
    return Figure(f"{load}: CPU", "us/packet", False, 2)


def connections(load: str) -> Figure:
    """That were made."""
    return Figure(f"{load}: rate", "per s", True, 0)


def cpu_per_connection(load: str) -> Figure:
    """Of the tunnel's processes at both ends."""
    return Figure(f"{load}: CPU", "us/conn.", False, 0)


def cpu_per_handshake(load: str) -> Figure:
    """Of the tunnel's processes; but for one, they are the gateway's."""
    return Figure(f"{load}: CPU", "us/shake", False, 0)


def time_median(load: str) -> Figure:
    """Of a ping, there and back; of a connection, from its first segment to the answer."""
    return Figure(f"{load}: median", "ms", False)


def time_tail(load: str) -> Figure:
    """Which 99 of 100 do not exceed."""
    return Figure(f"{load}: p99", "ms", False)


START = Figure("start to first answer", "ms", False, 0)
"""From the start of the tunnel's programs, its keys and addresses among it, to the answer to the
first ping."""
MEMORY = Figure("memory, both ends", "MB", False, 0)
"""Resident; what processes share counts in parts."""
