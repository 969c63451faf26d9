"""Compose interface, sockets, device and workers, and run: what `fastpump tunnel`,
`fastpump up` and `fastpump-wg` have in common.

The order matters for the way back: whatever was made is unmade on every exit path, the
interface last (it goes with its fds, and its addresses and routes with it).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastpump import capabilities, endpoint, keys, netlink, paths, stats, steering, upgrade
from fastpump._core import HAS_NULL_CIPHER, SharedTables, default_backend
from fastpump.config import (
    Interface,
    PeerConfig,
    TunnelConfig,
    check,
    with_default_allowed_ips,
)
from fastpump.constants import KEY_LEN
from fastpump.control import Command, ControlServer
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.lanes import Options
from fastpump.linkwatch import LinkState, LinkWatcher
from fastpump.netdev import TunQueues
from fastpump.resolver import Resolver
from fastpump.sockets import check_route, lane_socket_count, preferred_family
from fastpump.supervisor import Supervisor, now_ns
from fastpump.uapiserver import UapiServer

log = logging.getLogger("fastpump")

NULL_CIPHER_CONSENT = "I-want-no-encryption"

Configure = Callable[[str, int, ExitStack], None]
"""Give the new interface (name, index) what it needs; what must be undone goes on the stack."""
TunnelCommand = Callable[["Tunnel"], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class Tunnel:
    """A running tunnel."""

    config: TunnelConfig
    tables: SharedTables
    supervisor: Supervisor
    resolver: Resolver
    offloads: capabilities.Capabilities
    link: LinkState
    configuration_file: Path | None = None

    @property
    def is_at_home(self) -> bool:
        """Whether the interface is in the network namespace that we are in."""
        return self.link.namespace == paths.namespace_inode()

    def status(self) -> dict[str, Any]:
        """One entry of `fastpump status --json`."""
        failed = set(self.offloads.hot) - set(self.tables.offloads)
        in_use = [name for name in self.offloads.names if name not in failed]
        file = None if self.configuration_file is None else str(self.configuration_file)
        return {**stats.gather(self.link, in_use, self.tables, self.supervisor),
                "configuration_file": file}

    def add_peer(self, peer: PeerConfig, where: endpoint.Endpoint | None) -> None:
        """Configure a new peer; its endpoint's name was resolved to `where`."""
        try:
            self.supervisor.device.add_peer(peer.public_key)
        except MemoryError as error:
            raise SystemSetupError(str(error)) from None
        self.change_peer(peer, where)

    def change_peer(self, peer: PeerConfig, where: endpoint.Endpoint | None) -> None:
        """Configure a peer that is there; its endpoint stays if `where` is None, and its
        session in any case."""
        device = self.supervisor.device
        changed = device.peers[peer.public_key]
        changed.preshared_key = peer.preshared_key or bytes(KEY_LEN)
        if where is not None:
            device.set_endpoint(changed, where)
            self.resolver.note_resolved(changed)
        changed.endpoint_name = peer.endpoint if peer.endpoint is not None and endpoint.is_name(
            peer.endpoint[0]) else None
        wanted = {(network.network_address.packed, network.prefixlen)
                  for network in peer.allowed_ips or ()}
        for prefix in changed.allowed_ips - wanted:
            device.remove_allowed_ip(changed, prefix)
        try:
            for prefix in wanted - changed.allowed_ips:
                device.add_allowed_ip(changed, prefix)
        except MemoryError as error:
            raise SystemSetupError(str(error)) from None
        if peer.keepalive_s != changed.persistent_keepalive_s:
            device.set_persistent_keepalive(changed, peer.keepalive_s, now_ns())


def run(config: TunnelConfig, configure: Configure, on_ready: Callable[[Tunnel], None], *,
        commands: Mapping[str, TunnelCommand] = MappingProxyType({}),
        configuration_file: Path | None = None, must_serve_wg: bool = False,
        must_reach_endpoints: bool = False) -> None:
    """Run a tunnel until SIGINT, SIGTERM, `fastpump down` or the interface's deletion.

    `on_ready` is called once, when packets flow (or could, if the interface were up).
    `commands`: more of them for the control socket. `must_reach_endpoints`: fail if there
    is no route to one, instead of a warning. `must_serve_wg`: fail if another
    WireGuard has wg's socket of that name, and end when that socket is removed.
    FastpumpError says what is in the way.
    """
    try:
        default_backend()
    except ValueError as error:
        raise ConfigError(f"FASTPUMP_AEAD: {error}") from None
    if HAS_NULL_CIPHER and os.environ.get("FASTPUMP_NULL_CIPHER") != NULL_CIPHER_CONSENT:
        raise SystemSetupError(
            "this build encrypts nothing: it is for measuring only (setup.py: "
            "FASTPUMP_BUILD_NULL_CIPHER); build again without that")
    check(config)
    endpoints = {peer.public_key: endpoint.resolve(*peer.endpoint)
                 for peer in config.peers if peer.endpoint is not None}
    _set_limits()
    with ExitStack() as made:
        tun = TunQueues(config.name, config.queue_count)
        made.callback(tun.close)
        private_key = _private_key(config)
        offloads = capabilities.probe(tun, config.offloads)
        for where in endpoints.values():
            try:
                check_route(where, preferred_family(), config.fwmark)
            except SystemSetupError as error:
                if must_reach_endpoints:
                    raise
                log.warning("%s", error)
        tables = SharedTables.create(config.queue_count)
        made.callback(tables.close)
        tables.offloads = offloads.hot
        is_steered = config.queue_count == 1 or steering.attach(tun)
        watcher = LinkWatcher(tun)
        made.callback(watcher.close)
        link = watcher.read()
        if link is not None:
            configure(config.name, link.index, made)
            link = watcher.read()
        if link is None:
            raise SystemSetupError(f"the interface {config.name} was deleted as it was made")
        tables.mtu = link.mtu

        async def start() -> None:
            resolver = Resolver(config.resolve_every_s)
            lanes = _lanes(config, offloads)
            supervisor = Supervisor(
                tables, tun, listen_port=config.listen_port, fwmark=config.fwmark,
                gro=offloads.udp_gro, pin=config.pin, busy_poll_us=config.busy_poll_us,
                lanes=lanes, is_steered=is_steered, is_unanswered=resolver.is_unanswered)
            resolver.device = supervisor.device
            tunnel = Tunnel(config, tables, supervisor, resolver, offloads, link,
                            configuration_file)
            supervisor.set_private_key(private_key)
            for peer in config.peers:
                tunnel.add_peer(peer, endpoints.get(peer.public_key))
            await _serve(tunnel, watcher, lambda: on_ready(tunnel), commands, must_serve_wg)

        asyncio.run(start())


def _lanes(config: TunnelConfig, offloads: capabilities.Capabilities) -> Options | None:
    """What peers are told of lanes; None for WireGuard only."""
    if config.transport == "wireguard":
        return None
    if not upgrade.kem_is_supported():
        what = "no lanes: the cryptography library has no ML-KEM here; update it"
        if config.transport == "lanes":
            raise SystemSetupError(what)
        log.warning("%s", what)
        return None
    return Options(config.transport, capabilities.lane_ciphers(config.cipher),
                   offloads.lane_features, upgrade.Mode.TUN,
                   lane_socket_count(config.queue_count))


def _private_key(config: TunnelConfig) -> bytes:
    if config.private_key is not None:
        return config.private_key
    if config.private_key_file is not None:
        return keys.read_file(config.private_key_file, "private key")
    if config.keeps_key:
        return keys.load_or_create(paths.private_key_file(config.name))
    return bytes(KEY_LEN)


def _set_limits() -> None:
    """No core dumps, for keys are in this memory; as many fds as may be."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(tunnel: Tunnel, watcher: LinkWatcher, on_ready: Callable[[], None],
                 more: Mapping[str, TunnelCommand], must_serve_wg: bool) -> None:
    """Run the supervisor, the sockets for control and wg, and the watch over the interface."""
    supervisor, name = tunnel.supervisor, tunnel.link.name
    loop = asyncio.get_running_loop()

    async def status() -> dict[str, Any]:
        return tunnel.status()

    async def stop() -> dict[str, Any]:
        supervisor.stop("because it was asked to")
        return {"pid": os.getpid()}

    commands: dict[str, Command] = {"status": status, "stop": stop, **{
        name: partial(command, tunnel) for name, command in more.items()}}
    control = ControlServer(name, commands)
    wg = UapiServer(name, supervisor)

    def on_link() -> None:
        before, fd = tunnel.link, watcher.fileno()
        link = watcher.read()
        if watcher.fileno() != fd:
            loop.remove_reader(fd)
            loop.add_reader(watcher, on_link)
        if link is None:
            supervisor.stop("because the interface was deleted")
            return
        tunnel.link = link
        tunnel.tables.mtu = link.mtu
        if link.name != before.name:
            wg.rename(link.name)
        if (link.name, link.namespace) != (before.name, before.namespace):
            log.info("the interface is %s in network namespace %d now", link.name, link.namespace)
            control.rename(link.name, link.namespace)
        supervisor.interface_changed(is_up=link.is_up)

    hidden = ""
    loop.add_reader(watcher, on_link)
    try:
        await control.start()
        try:
            await wg.start()
            if must_serve_wg:
                wg.watch(lambda: supervisor.stop("because its socket was removed"))
        except SystemSetupError as error:
            if must_serve_wg:
                raise
            hidden = str(error)

        def ready() -> None:
            on_ready()
            if hidden:
                log.info("wg does not see this tunnel: %s", hidden)

        await supervisor.run(ready, is_up=tunnel.link.is_up)
    finally:
        loop.remove_reader(watcher)
        await wg.stop()
        await control.stop()
    log.info("stopped %s", supervisor.stop_reason)


def run_in_foreground(config: TunnelConfig, *, as_json: bool = False) -> None:
    """`fastpump tunnel`: prints one line to stdout when it is ready."""
    config = with_default_allowed_ips(config)
    host: str | None = None

    def configure(name: str, index: int, _made: ExitStack) -> None:
        nonlocal host
        routes = [network for peer in config.peers for network in peer.allowed_ips or ()]
        netlink.configure(name, index, config.addresses, config.mtu,
                          routes if config.routes else ())
        if not config.peers:
            host = netlink.likely_address(index) or "THIS_HOST"

    def on_ready(tunnel: Tunnel) -> None:
        hint = None if host is None else other_side_command(config, tunnel.status(), host)
        _say_ready(tunnel.status(), hint, as_json=as_json)

    run(config, configure, on_ready, must_reach_endpoints=True)


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
