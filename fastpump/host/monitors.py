"""What virtual machine monitors need to know of their guests' TAPs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from fastpump.host.taps import Tap


def rate_limiters(spec: str | None) -> dict[str, Any]:
    """Firecracker's rx_rate_limiter and tx_rate_limiter, as far as there are limits."""
    if spec is None:
        return {}
    from fastpump import ratelimit
    limiters = ratelimit.parse(spec).to_firecracker()
    assert isinstance(limiters, dict)
    return limiters


def firecracker_json(taps: Sequence[Tap], limiters: dict[str, Any]) -> str:
    """The array `network-interfaces` of Firecracker's configuration file. An iface_id has
    letters, digits and '_' only."""
    plain = all(re.fullmatch(r"[A-Za-z0-9_]+", tap.name) for tap in taps)
    return json.dumps([{
        "iface_id": tap.name if plain else f"net{number}",
        "host_dev_name": tap.name,
        "guest_mac": tap.guest_mac,
        **limiters,
    } for number, tap in enumerate(taps)], indent=2)


def qemu_arguments(tap: Tap, queue_count: int) -> str:
    """QEMU's arguments for the guest behind a TAP; `queue_count` is 1 if it has a single one."""
    name = tap.name.replace(",", ",,")      # how QEMU escapes a comma
    net = "net-" + re.sub(r"[^A-Za-z0-9_.-]", "-", tap.name)
    backend = f"tap,id={net},ifname={name},script=no,downscript=no,vhost=off"
    card = f"virtio-net-pci,netdev={net},mac={tap.guest_mac}"
    if queue_count > 1:
        backend += f",queues={queue_count}"
        card += f",mq=on,vectors={2 * queue_count + 2}"
    return " ".join(map(shlex.quote, ("-netdev", backend, "-device", card)))
