"""The status of a tunnel: gather (in the tunnel) and show (in the terminal).

The JSON keys are stable and documented in docs/fastpump.1.md.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastpump import ratelimit
from fastpump._core import SharedTables
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND
from fastpump.device.device import Device
from fastpump.device.lanes import PeerLanes
from fastpump.device.peer import Peer
from fastpump.ip import prefix_text
from fastpump.protocol import keys
from fastpump.ratelimit import RateLimits
from fastpump.tun.linkwatch import TunState
from fastpump.tunnel.supervisor import Supervisor

MOST_NAMED = 3      # settings, in a line


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
        "aead": tables.aead_backend,
        "worker_restarts": sum(worker.restarts for worker in supervisor.workers),
        "handshakes_dropped": handshakes_dropped,
        "queues": queues,
        "peers": [_peer(tables, device, peer, macs.get(peer.slot, 0), resolving(peer))
                  for peer in device.peers.values()],
        "verdicts": dict(sorted((verdict, n) for verdict, n in verdicts.items() if n)),
    }


def amount(count: float) -> str:
    """1.50 MiB"""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def ago(unix_s: int, now_s: float) -> str:
    """1 minute, 5 seconds ago"""
    if unix_s == 0:
        return "never"
    seconds = max(0, int(now_s) - unix_s)
    parts = []
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {unit}{'s' * (count != 1)}")
    return ", ".join(parts) + " ago" if parts else "now"


def _limit_lines(limits: dict[str, Any]) -> list[str]:
    found = RateLimits.from_json(limits)
    return [] if found.is_empty else [f"  rate limits: {ratelimit.show(found)}"]


def _switch_lines(switch: dict[str, Any] | None) -> list[str]:
    if switch is None:
        return []
    storm = f"{switch['storm_limit']} flooded frames a second" if switch["storm_limit"] else "none"
    return [f"  MAC addresses: {switch['macs']} of at most {switch['mac_table']}, "
            f"{switch['macs_on_this_side']} on this side; forgotten after "
            f"{switch['mac_ageing_s']} s",
            f"  relay: {'on' if switch['relay'] else 'off'}; storm limit: {storm}"]


def _gateway_lines(gateway: dict[str, Any] | None) -> list[str]:
    if gateway is None:
        return []
    off, lacks, missing = (gateway[each] for each in (
        "forwarding_off", "table_lacks", "interfaces_missing"))
    by = ", ".join(gateway["interfaces"])
    parts = [part + (f" on {by}" if part == "nat" and by else "")
             for part in ("forward", "nat", "mss") if gateway[part]]
    lines = [f"  gateway: {', '.join(parts)}"]
    if missing:
        lines.append(f"    there is no interface {', '.join(missing)}")
    if gateway["table"] is not None:
        state = ("not known, as nft fails" if lacks is None else
                 f"lacks {', '.join(lacks)}" if lacks else "complete")
        lines.append(f"    nftables table {gateway['table']}: {state}")
    if off is not None:
        more = f" and {len(off) - MOST_NAMED} more" if len(off) > MOST_NAMED else ""
        lines.append("    forwarding: " + (
            f"off by {', '.join(off[:MOST_NAMED])}{more}" if off else "on"))
    return lines


def _problem_lines(peer: dict[str, Any]) -> list[str]:
    """Of a peer with which there is no new handshake, or to which nothing can be sent."""
    lines = []
    if peer["endpoint_problem"]:
        lines.append(f"  resolving: {peer['endpoint_problem']}")
    if peer["endpoint_tried"]:
        lines.append(f"  trying: {peer['endpoint_tried']}")
    if peer["handshake_problem"]:
        tries = peer["handshake_tries"]
        lines.append(f"  handshake: tried {tries} time{'s' * (tries != 1)}: "
                     f"{peer['handshake_problem']}")
    elif peer["send_error"]:
        lines.append(f"  sending fails: {peer['send_error']}")
    return lines


def _path_lines(peer: dict[str, Any]) -> list[str]:
    if peer["path_mtu"] is None:
        return []
    lost = ("; larger datagrams get lost, or travel in fragments"
            if peer["loses_large_datagrams"] else "")
    return [f"  path MTU: {peer['path_mtu']}{lost}"]


def _dropped_lines(status: dict[str, Any]) -> list[str]:
    """What the kernel lost before the tunnel saw it, or behind its back."""
    sockets = [f"{queue['udp_rx_dropped']} at queue {queue['queue']}"
               for queue in status["queues"] if queue["udp_rx_dropped"]]
    found = {"full interface queues (tx_dropped)": status["tun_rx_dropped"],
             "full UDP sockets (RcvbufErrors)": ", ".join(sockets),
             "handshake socket": status["handshakes_dropped"]}
    lines = [f"  {where}: {count}" for where, count in found.items() if count]
    return ["", "dropped by the kernel:", *lines] if lines else []


def show(status: dict[str, Any]) -> str:
    """The status of one interface for a terminal."""
    lines = [
        f"interface: {status['name']} ({status['mode']}, MTU {status['mtu']}"
        f"{'' if status['is_up'] else ', down'})",
        f"  public key: {status['public_key'] or '(none)'}",
        f"  listening port: {status['listen_port']}",
        f"  offloads: {', '.join(status['offloads']) or 'none'}",
        f"  ciphers by: {status['aead']}",
        *_switch_lines(status["switch"]),
        *_gateway_lines(status["gateway"]),
        *_limit_lines(status["rate_limits"]),
        "",
        f"  {'queue':>5} {'worker':>8} {'restarts':>8} {'from interface':>16} {'sent':>12} "
        f"{'received':>12} {'to interface':>16}",
    ]
    for queue in status["queues"]:
        lines.append(
            f"  {queue['queue']:>5} {queue['pid'] or 'dead':>8} {queue['restarts']:>8} "
            f"{amount(queue['tun_rx_bytes']):>16} {amount(queue['udp_tx_bytes']):>12} "
            f"{amount(queue['udp_rx_bytes']):>12} {amount(queue['tun_tx_bytes']):>16}")
        if queue["unresponsive_s"]:
            lines.append(f"        has not moved for {queue['unresponsive_s']} seconds")
    for peer in status["peers"]:
        lines += [
            "",
            f"peer: {peer['public_key']}",
            f"  endpoint: {peer['endpoint'] or 'not known yet'}",
            f"  MAC addresses: {peer['macs']}" if status["mode"] == "tap" else
            f"  allowed ips: {', '.join(peer['allowed_ips']) or '(none)'}",
            f"  latest handshake: {ago(peer['latest_handshake'], time.time())}",
            *_problem_lines(peer),
            f"  transfer: {amount(peer['rx_bytes'])} received, {amount(peer['tx_bytes'])} sent",
            f"  transport: {peer['transport']}, {peer['cipher']}"
            f"{', post-quantum' if peer['post_quantum'] else ''}",
            *_path_lines(peer),
        ]
        lines += [f"    lane {lane['lane']}: {lane['state']}, worker {lane['worker']}, "
                  f"{lane['endpoint'] or 'not known yet'}, {amount(lane['rx_bytes'])} received, "
                  f"{amount(lane['tx_bytes'])} sent" for lane in peer["lanes"]]
        lines += _limit_lines(peer["rate_limits"])
        if peer["verdicts"]:
            lines.append("  verdicts: " + ", ".join(
                f"{verdict} {n}" for verdict, n in peer["verdicts"].items()))
        if peer["no_lanes_because"]:
            lines.append(f"  no lanes: {peer['no_lanes_because']}")
        if peer["preshared_key"]:
            lines.append("  preshared key: (hidden)")
        if peer["persistent_keepalive"]:
            lines.append(f"  persistent keepalive: every {peer['persistent_keepalive']} seconds")
    if status["verdicts"]:
        lines += ["", "verdicts:"]
        lines += [f"  {verdict}: {n}" for verdict, n in status["verdicts"].items()]
    lines += _dropped_lines(status)
    if status["repairs"]:
        lines += ["", "restored after somebody had removed them:"]
        lines += [f"  {what}: {n} time{'s' * (n != 1)}" for what, n in status["repairs"].items()]
    return "\n".join(lines)
