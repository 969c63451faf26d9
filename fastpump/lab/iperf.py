"""iperf3's reports, read: what arrived, and what about it is not plausible.

A report (`iperf3 --client ... --json --get-server-output`, the server with --json too) has totals,
and an entry for each second from both ends. A total is believed if something passed in every
whole second at both ends, and if the ends disagree by no more than can be on the way when
the clock stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """What arrived: bytes, bytes per second, packets per second (UDP only); and why not to
    believe it, in words."""

    bytes: int
    bytes_per_s: float
    packets_per_s: float
    doubts: tuple[str, ...] = ()

    @property
    def gbit_per_s(self) -> float:
        """10^9 bits per second."""
        return self.bytes_per_s * 8e-9

    def __add__(self, other: Load) -> Load:
        """Both at the same time."""
        return Load(self.bytes + other.bytes, self.bytes_per_s + other.bytes_per_s,
                    self.packets_per_s + other.packets_per_s, self.doubts + other.doubts)


def tcp_load(report: Report, in_flight: int | None = None) -> Load:
    """What arrived by TCP; `in_flight` bytes may be on the way when the clock stops (as many as
    this kernel's socket buffers hold)."""
    if in_flight is None:
        in_flight = most_in_flight(report["start"]["test_start"]["num_streams"])
    sent, received = (report["end"][f"sum_{what}"] for what in ("sent", "received"))
    doubts = empty_seconds(report)
    if abs(sent["bytes"] - received["bytes"]) > in_flight:
        doubts += (f"the sender counts {sent['bytes']:,} bytes, "
                   f"the receiver {received['bytes']:,}",)
    return Load(received["bytes"], received["bytes"] / received["seconds"], 0.0, doubts)


def udp_load(report: Report, size: int) -> Load:
    """What arrived in UDP datagrams of `size` bytes; losses are usual."""
    total = report["end"]["sum"]
    received = total["packets"] - total["lost_packets"]
    return Load(received * size, received * size / total["seconds"], received / total["seconds"],
                empty_seconds(report))


def empty_seconds(report: Report) -> tuple[str, ...]:
    """Ends of the connection at which nothing passed for a second or more, in words."""
    test = report["start"]["test_start"]
    ends = ("receiver", "sender") if test["reverse"] else ("sender", "receiver")
    found = []
    for end, output in zip(ends, (report, report.get("server_output_json", {})), strict=True):
        sums = [each["sum"] for each in output.get("intervals", ())]
        # What is shorter than a second is the rest at the end of the test.
        whole = [each for each in sums if not each["omitted"]
                 and each["seconds"] > 0.9 * min(1, test["duration"])]
        empty = sum(each["bytes"] == 0 for each in whole)
        if empty:
            found.append(f"nothing passed in {empty} of {len(whole)} s at the {end}")
    return tuple(found)


def most_in_flight(stream_count: int) -> int:
    """Bytes that the kernel's socket buffers hold at most: tcp_wmem, tcp_rmem of tcp(7)."""
    settings = (Path(f"/proc/sys/net/ipv4/tcp_{which}mem") for which in "rw")
    return stream_count * sum(int(each.read_text(encoding="ascii").split()[2])
                              for each in settings)
