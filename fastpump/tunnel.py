"""`fastpump tunnel`: compose interface, sockets, device and workers, and run.

The order matters for the way back: whatever was made is unmade on every exit path, the
interface last (it goes with its fds, and its addresses and routes with it).
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import shlex
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from fastpump import capabilities, endpoint, keys, netlink, paths, stats
from fastpump._core import SharedTables, default_backend
from fastpump.config import (
    Interface,
    PeerConfig,
    TunnelConfig,
    check,
    with_default_allowed_ips,
)
from fastpump.control import ControlServer
from fastpump.device import Device
from fastpump.errors import ConfigError
from fastpump.netdev import TunQueues
from fastpump.sockets import SocketGroup
from fastpump.supervisor import Supervisor, now_ns

log = logging.getLogger("fastpump")


def run(config: TunnelConfig, *, as_json: bool = False) -> None:
    """Run a tunnel in the foreground until SIGINT, SIGTERM or the interface's deletion.

    Prints one line to stdout when it is ready. FastpumpError says what is in the way.
    """
    try:
        default_backend()
    except ValueError as error:
        raise ConfigError(f"FASTPUMP_AEAD: {error}") from None
    check(config)
    peers = with_default_allowed_ips(config.peers, config.addresses)
    endpoints = {peer.public_key: endpoint.resolve(*peer.endpoint)
                 for peer in peers if peer.endpoint is not None}
    _set_limits()
    with ExitStack() as made:
        tun = TunQueues(config.name, config.queue_count)
        made.callback(tun.close)
        if config.private_key_file is None:
            private_key = keys.load_or_create(paths.private_key_file(config.name))
        else:
            private_key = keys.read_file(config.private_key_file, "private key")
        offloads = capabilities.probe(tun, config.offloads)
        sockets = SocketGroup(config.queue_count, config.listen_port, fwmark=config.fwmark,
                              gro=offloads.udp_gro)
        made.callback(sockets.close)
        for where in endpoints.values():
            sockets.check_route(where)
        tables = SharedTables.create(config.queue_count)
        made.callback(tables.close)
        tables.mtu = config.mtu
        tables.offloads = offloads.hot
        index = socket.if_nametoindex(config.name)
        watcher = netlink.LinkWatcher(index)
        made.callback(watcher.close)
        routes = [network for peer in peers for network in peer.allowed_ips or ()]
        netlink.configure(config.name, index, config.addresses, config.mtu,
                          routes if config.routes else ())
        host = None if peers else netlink.likely_address(index) or "THIS_HOST"

        async def start() -> None:
            supervisor = Supervisor(tables, tun, sockets, private_key, pin=config.pin,
                                    busy_poll_us=config.busy_poll_us)
            for peer in peers:
                _add_peer(supervisor.device, peer, endpoints.get(peer.public_key))

            def status() -> dict[str, Any]:
                failed = set(offloads.hot) - set(tables.offloads)
                in_use = [name for name in offloads.names if name not in failed]
                return stats.gather(config.name, index, sockets.port, in_use, tables,
                                    supervisor.device, supervisor.workers)

            def on_ready() -> None:
                hint = None if host is None else other_side_command(config, status(), host)
                _say_ready(status(), hint, as_json=as_json)

            await _serve(config.name, supervisor, tables, watcher, status, on_ready)

        asyncio.run(start())


def _set_limits() -> None:
    """No core dumps, for keys are in this memory; as many fds as may be."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _add_peer(device: Device, peer: PeerConfig, where: endpoint.Endpoint | None) -> None:
    device.add_peer(
        peer.public_key, now_ns(), preshared_key=peer.preshared_key, endpoint=where,
        persistent_keepalive_s=peer.keepalive_s,
        allowed_ips=[(network.network_address.packed, network.prefixlen)
                     for network in peer.allowed_ips or ()])


async def _serve(name: str, supervisor: Supervisor, tables: SharedTables,
                 watcher: netlink.LinkWatcher, status: Callable[[], dict[str, Any]],
                 on_ready: Callable[[], None]) -> None:
    """Run the supervisor, the control socket and the watch over the interface."""
    def on_link() -> None:
        exists, mtu = watcher.read()
        if mtu is not None:
            tables.mtu = mtu
        if not exists:
            supervisor.stop("because the interface was deleted")

    loop = asyncio.get_running_loop()
    control = ControlServer(name, status)
    loop.add_reader(watcher, on_link)
    try:
        await control.start()
        await supervisor.run(on_ready)
    finally:
        loop.remove_reader(watcher)
        await control.stop()
    log.info("stopped %s", supervisor.stop_reason)


def _say_ready(status: dict[str, Any], hint: str | None, *, as_json: bool) -> None:
    """The one line that says that packets flow, and without a peer what to do next."""
    if as_json:
        ready = {key: status[key] for key in
                 ("name", "public_key", "listen_port", "offloads", "mtu", "aead")}
        print(json.dumps({"event": "ready", **ready, "queues": len(status["queues"]),
                          "other_side": hint}), flush=True)
        return
    print(f"{status['name']} is ready: {len(status['queues'])} queues, UDP port "
        f"{status['listen_port']}, public key {status['public_key']}, offloads "
        f"{','.join(status['offloads']) or 'none'}", flush=True)
    if hint is not None:
        print(f"There is no peer yet. On the other host, type:\n\n    {hint}\n\n"
            "It prints its public key. Then start this side again with\n\n"
            f"    {_this_side_command()} --peer ITS_PUBLIC_KEY", flush=True)


def other_side_command(config: TunnelConfig, status: dict[str, Any], host: str) -> str:
    """The command that makes another host the peer of this one, which it finds at `host`."""
    words = ["fastpump", "tunnel", "--queues", str(config.queue_count)]
    for address in config.addresses:
        words += ["--address", f"{_neighbour(address)}/{address.network.prefixlen}"]
    if not config.addresses:
        words += ["--address", "10.9.0.2/24"]
    host = f"[{host}]" if ":" in host else host
    peer = f"{status['public_key']}@{host}:{status['listen_port']}"
    if all(address.network.num_addresses == 1 for address in config.addresses):
        peer += "".join(f"{'+' if number else ',allowed-ips='}{address.network}"
                        for number, address in enumerate(config.addresses))
    return shlex.join([*words, "--peer", peer])


def _neighbour(address: Interface) -> str:
    """Another host's address in the same network; a word to replace if there is none."""
    network = address.network
    for number in (int(address.ip) + 1, int(address.ip) - 1):
        if int(network.network_address) < number < int(network.broadcast_address) or (
                network.prefixlen == network.max_prefixlen - 1
                and int(network.network_address) <= number <= int(network.broadcast_address)):
            return str(type(address.ip)(number))
    return "ITS_ADDRESS"


def _this_side_command() -> str:
    return shlex.join(["fastpump", *sys.argv[1:]])
