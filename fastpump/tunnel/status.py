"""The status of a tunnel, as cli/status_text.py shows it.

The JSON keys are stable and documented in docs/fastpump.1.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from fastpump._core import SharedTables
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND
from fastpump.device.device import Device
from fastpump.device.lanes import PeerLanes
from fastpump.device.peer import Peer
from fastpump.ip import prefix_text
from fastpump.protocol import keys
from fastpump.tun.linkwatch import TunState
from fastpump.tunnel.supervisor import Supervisor


def _lane(tables: SharedTables, slot: int, dead: bool) -> dict[str, Any]:
    lane = tables.lanes.status(slot)
    sockaddr = lane["endpoint"]
    return {
        "lane": lane["number"],
        "worker": lane["worker"],
        "state": "up" if lane["is_usable"] else "dead" if dead else "probing",
        "endpoint": str(Endpoint.from_sockaddr(sockaddr)) if sockaddr else None,
        **{key: lane[key] for key in ("tx_messages", "tx_bytes", "rx_bytes")},
        "rx_counter": lane["rx_newest"],
        "records": lane["has_records"],
    }


def _transport(tables: SharedTables, state: PeerLanes) -> dict[str, Any]:
    """How data travels to a peer now: on the newest set of lanes of which one is up."""
    for lane_set in state.sets:
        lanes = [_lane(tables, lane.slot, lane.is_dead) for lane in lane_set.lanes]
        if any(lane["state"] == "up" for lane in lanes):
            return {"transport": "lanes", "cipher": lane_set.cipher,
                    "post_quantum": state.sets.carry_all(), "lanes": lanes,
                    "no_lanes_because": None}
    return {"transport": "wireguard", "cipher": "chacha20-poly1305", "post_quantum": False,
            "lanes": [], "no_lanes_because": state.refusal or None}


def _peer(tables: SharedTables, device: Device, peer: Peer, macs: int,
          resolving: str | None) -> dict[str, Any]:
    rx_bytes, tx_bytes = device.transferred(peer)
    where = device.endpoints.of_data(peer)
    paths = device.lanes.of(peer).paths
    ordered = sorted(peer.allowed_ips, key=lambda prefix: (len(prefix[0]), prefix))
    return {
        "public_key": keys.encode(peer.public_key),
        "endpoint": None if where is None else str(where),
        "endpoint_tried": None if peer.trying is None else str(peer.trying),
        "endpoint_problem": resolving,
        "allowed_ips": [prefix_text(prefix) for prefix in ordered],
        "latest_handshake": peer.latest_handshake_unix_ns // SECOND,
        "handshake_tries": peer.handshake_tries,
        "handshake_problem": device.handshake_problems.of(peer),
        "send_error": device.send_errors.of(peer),
        "rx_bytes": rx_bytes,
        "tx_bytes": tx_bytes,
        **_transport(tables, device.lanes.of(peer)),
        "path_mtu": paths.mtu,
        "loses_large_datagrams": paths.loses_large,
        "macs": macs,
        "rate_limits": peer.rate_limits.to_json(),
        "persistent_keepalive": peer.persistent_keepalive_s,
        "preshared_key": any(peer.preshared_key),
        "worker": peer.worker,
        "verdicts": dict(sorted((peer.verdicts + Counter(tables.peers.verdicts(peer.slot)))
                                .items())),
    }


def _switch(tables: SharedTables) -> dict[str, Any] | None:
    """Of a TAP."""
    if not tables.is_tap:
        return None
    count, local, _ = tables.fdb.counts()
    return {"macs": count, "macs_on_this_side": local, **tables.switch_configuration}


def gather(link: TunState, offloads: list[str], tables: SharedTables,
           supervisor: Supervisor, resolving: Callable[[Peer], str | None]) -> dict[str, Any]:
    """One entry of `interfaces`. `resolving`: why a peer waits for an address."""
    device = supervisor.device
    verdicts: Counter[str] = supervisor.verdicts
    macs = tables.fdb.counts()[2] if tables.is_tap else {}
    queues = []
    *dropped, handshakes_dropped = supervisor.drops.counts()
    for worker in supervisor.workers:
        shared = tables.workers.counters(worker.number)
        verdicts.update(shared["verdicts"])
        queues.append({
            "queue": worker.number,
            "pid": worker.pid,
            "restarts": worker.restarts,
            "unresponsive_s": worker.pulse.unresponsive_s,
            "cpu": worker.cpu,
            **shared["counters"],
            "udp_rx_dropped": dropped[worker.number],
            "tx_batches": shared["tx_batches"],
            "rx_batches": shared["rx_batches"],
            "verdicts": {verdict: n for verdict, n in shared["verdicts"].items() if n},
        })
    return {
        "name": link.name,
        "ifindex": link.index,
        "mode": "tap" if tables.is_tap else "tun",
        "switch": _switch(tables),
        "is_up": link.is_up,
        "public_key": None if device.public_key is None else keys.encode(device.public_key),
        "listen_port": supervisor.listen_port,
        "fwmark": supervisor.fwmark,
        "mtu": link.mtu,
        "offloads": offloads,
        "aead": tables.aead_backends,
        "worker_restarts": sum(worker.restarts for worker in supervisor.workers),
        "handshakes_dropped": handshakes_dropped,
        "queues": queues,
        "peers": [_peer(tables, device, peer, macs.get(peer.slot, 0), resolving(peer))
                  for peer in device.peers.values()],
        "verdicts": dict(sorted((verdict, n) for verdict, n in verdicts.items() if n)),
    }
