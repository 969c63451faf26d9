"""What `fastpump status` prints: the answer of a tunnel (tunnel/status.py) for a terminal.

Nothing of a tunnel is imported: people look again and again, and at many tunnels.
"""

from __future__ import annotations

import time
from typing import Any

from fastpump import ratelimit
from fastpump.ratelimit import RateLimits

MOST_NAMED = 3      # settings, in a line


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


def libraries(aead: dict[str, str]) -> str:
    """Who gives the ciphers."""
    if len(set(aead.values())) == 1:
        return next(iter(aead.values()))
    return ", ".join(f"{name} ({cipher})" for cipher, name in aead.items())


def show(status: dict[str, Any]) -> str:
    """The status of one interface for a terminal."""
    lines = [
        f"interface: {status['name']} ({status['mode']}, MTU {status['mtu']}"
        f"{'' if status['is_up'] else ', down'})",
        f"  public key: {status['public_key'] or '(none)'}",
        f"  listening port: {status['listen_port']}",
        f"  offloads: {', '.join(status['offloads']) or 'none'}",
        f"  ciphers by: {libraries(status['aead'])}",
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
