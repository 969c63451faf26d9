"""Compose interface, sockets, device and workers, and run: what `fastpump tunnel`,
`fastpump up` and `fastpump-wg` have in common.

The order matters for the way back: whatever was made is unmade on every exit path, the
interface last (it goes with its fds, and its addresses and routes with it).
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastpump import paths
from fastpump._core import HAS_NULL_CIPHER, SharedTables, default_backend
from fastpump.clock import now_ns
from fastpump.config.model import (
    PeerConfig,
    TunnelConfig,
    check,
)
from fastpump.conn import endpoint
from fastpump.conn.sockets import check_route, lane_socket_count, preferred_family
from fastpump.constants import KEY_LEN, MILLISECOND
from fastpump.device.lanes import Options
from fastpump.device.peer import Peer
from fastpump.errors import ConfigError, FastpumpError, SystemSetupError
from fastpump.host import attach, ethernet, taps
from fastpump.ip import Address, prefix_of
from fastpump.ipc.control import Command, ControlServer
from fastpump.ipc.fdb import Macs
from fastpump.ipc.uapi_server import UapiServer
from fastpump.process import signals
from fastpump.protocol import keys, lane_messages
from fastpump.ratelimit import NO_LIMITS, RateLimits, TokenBucket
from fastpump.tun import steering
from fastpump.tun.linkwatch import LinkWatcher, TunState
from fastpump.tun.offloads import Offloads, lane_ciphers, probe
from fastpump.tun.queues import TunQueues
from fastpump.tunnel import status as tunnel_status
from fastpump.tunnel.resolver import Resolver
from fastpump.tunnel.supervisor import Supervisor

log = logging.getLogger("fastpump")

SWEEP_INTERVAL_S = 5.0
"""Of a TAP: aged MAC addresses count for the limits until then, and MTUs are looked at."""
NULL_CIPHER_CONSENT = "I-want-no-encryption"

Configure = Callable[[str, int, ExitStack, Collection[Address]], None]
"""Give the new interface (name, index) what it needs; what must be undone goes on the stack. The
addresses are those of the peers' endpoints."""
TunnelCommand = Callable[["Tunnel"], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class Tunnel:
    """A running tunnel."""

    config: TunnelConfig
    tables: SharedTables
    supervisor: Supervisor
    resolver: Resolver
    offloads: Offloads
    link: TunState
    configuration_file: Path | None = None
    rate_limits: RateLimits = NO_LIMITS
    """Of the interface; a peer's are its own."""

    @property
    def is_at_home(self) -> bool:
        """Whether the interface is in the network namespace that we are in."""
        return self.link.namespace == paths.namespace_inode()

    def status(self) -> dict[str, Any]:
        """One entry of `fastpump status --json`."""
        failed = set(self.offloads.hot) - set(self.tables.offloads)
        in_use = [name for name in self.offloads.names if name not in failed]
        file = None if self.configuration_file is None else str(self.configuration_file)
        return {**tunnel_status.gather(self.link, in_use, self.tables, self.supervisor),
                "attachment": ethernet.attachment_of(self.config).to_json(),
                "rate_limits": self.rate_limits.to_json(), "configuration_file": file}

    def add_peer(self, peer: PeerConfig, where: endpoint.Endpoint | None) -> None:
        """Configure a new peer; its endpoint's name was resolved to `where`."""
        try:
            self.supervisor.device.add_peer(peer.public_key)
        except MemoryError as error:
            raise SystemSetupError(str(error)) from None
        self.change_peer(peer, where)
        if not peer.rate_limits.is_empty:
            self.set_rate_limits(peer.public_key, peer.rate_limits)

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
        wanted = set(map(prefix_of, peer.allowed_ips or ()))
        for prefix in changed.allowed_ips - wanted:
            device.remove_allowed_ip(changed, prefix)
        try:
            for prefix in wanted - changed.allowed_ips:
                device.add_allowed_ip(changed, prefix)
        except MemoryError as error:
            raise SystemSetupError(str(error)) from None
        if peer.keepalive_s != changed.persistent_keepalive_s:
            device.set_persistent_keepalive(changed, peer.keepalive_s, now_ns())

    def set_rate_limits(self, public_key: bytes | None, limits: RateLimits) -> None:
        """Limit a peer, or the interface (None), from now on; buckets begin full. ConfigError
        if there is no such peer."""
        slot = None
        if public_key is None:
            self.rate_limits = limits
        else:
            peer = self._peer(public_key)
            peer.rate_limits, slot = limits, peer.slot
        for way, limiter in (("tx", limits.tx), ("rx", limits.rx)):
            self.tables.set_limits(slot, way, _bucket(limiter.bandwidth), _bucket(limiter.ops),
                                   now_ns())

    async def limit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer {"peer": KEY or null, "limits": as RateLimits.to_json(), or null to ask}."""
        key = request.get("peer")
        public_key = None if key is None else keys.decode(str(key), "peer's public key")
        if request.get("limits") is not None:
            self.set_rate_limits(public_key, RateLimits.from_json(request["limits"]))
        if public_key is None:
            return {"limits": self.rate_limits.to_json()}
        return {"limits": self._peer(public_key).rate_limits.to_json()}

    def _peer(self, public_key: bytes) -> Peer:
        peer = self.supervisor.device.peers.get(public_key)
        if peer is None:
            raise ConfigError(f"there is no peer {keys.encode(public_key)}; `fastpump status` "
                              "lists the peers")
        return peer


def _bucket(bucket: TokenBucket | None) -> tuple[int, int, int] | None:
    """(tokens, refill time in ns, one-time burst)."""
    if bucket is None:
        return None
    return bucket.size, bucket.refill_ms * MILLISECOND, bucket.one_time_burst


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
    attach.check(ethernet.attachment_of(config))
    endpoints = {peer.public_key: endpoint.resolve(*peer.endpoint)
                 for peer in config.peers if peer.endpoint is not None}
    _set_limits()
    with ExitStack() as made:
        is_tap = config.mode == "tap"
        made.enter_context(signals.unwinding())
        try:
            tun = TunQueues(config.name, config.queue_count, is_tap=is_tap)
        except SystemSetupError as error:
            users = taps.users_of(config.name) if is_tap else None
            if users is None:
                raise
            raise SystemSetupError(
                f"the interface {config.name} is in use by {users}: end that, or choose another "
                f"name; a guest's TAP is joined by --attach {config.name}") from error
        made.callback(tun.close)
        private_key = _private_key(config)
        offloads = probe(tun, config.offloads)
        for where in endpoints.values():
            try:
                check_route(where, preferred_family(), config.fwmark)
            except SystemSetupError as error:
                if must_reach_endpoints:
                    raise
                log.warning("%s", error)
        tables = SharedTables.create(config.queue_count, is_tap=is_tap,
                                     mac_limit=config.mac_table)
        made.callback(tables.close)
        if is_tap:
            tables.switch_configure(is_relay=config.relay, ageing_s=config.mac_ageing_s,
                                    limit_per_peer=config.mac_limit,
                                    storm_limit=config.storm_limit)
        tables.offloads = offloads.hot
        is_steered = config.queue_count == 1 or steering.steer_by_flow(tun)
        watcher = LinkWatcher(tun)
        made.callback(watcher.close)
        link = watcher.read()
        if link is not None:
            with signals.deferred():
                configure(config.name, link.index, made,
                          [where.address for where in endpoints.values()])
            link = watcher.read()
        if link is None:
            raise SystemSetupError(f"the interface {config.name} was deleted as it was made")
        tables.mtu = link.mtu

        async def start() -> None:
            resolver = Resolver(config.resolve_every_s)
            lanes = _lanes(config, offloads)
            supervisor = Supervisor(
                tables, tun, listen_port=config.listen_port, fwmark=config.fwmark,
                gro=offloads.has_udp_gro, pin=config.pin, busy_poll_us=config.busy_poll_us,
                lanes=lanes, is_steered=is_steered, is_unanswered=resolver.is_unanswered)
            resolver.device = supervisor.device
            tunnel = Tunnel(config, tables, supervisor, resolver, offloads, link,
                            configuration_file)
            tunnel.set_rate_limits(None, config.rate_limits)
            supervisor.set_private_key(private_key)
            for peer in config.peers:
                tunnel.add_peer(peer, endpoints.get(peer.public_key))
            await _serve(tunnel, watcher, lambda: on_ready(tunnel), commands, must_serve_wg)

        made.callback(signals.ignore)
        asyncio.run(start())


def _lanes(config: TunnelConfig, offloads: Offloads) -> Options | None:
    """What peers are told of lanes; None for WireGuard only."""
    if config.transport == "wireguard":
        return None
    is_tap = config.mode == "tap"       # frames travel on lanes only
    transport = "lanes" if is_tap else config.transport
    if not lane_messages.kem_is_supported():
        what = "no lanes: the cryptography library has no ML-KEM here; update it"
        if transport == "lanes":
            raise SystemSetupError(what)
        log.warning("%s", what)
        return None
    return Options(transport, lane_ciphers(config.cipher),
                   offloads.lane_features,
                   lane_messages.Mode.TAP if is_tap else lane_messages.Mode.TUN,
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


async def _take_care(tunnel: Tunnel, links_changed: asyncio.Event) -> None:
    """What a TAP needs from time to time; what it is joined to is looked at when links changed."""
    join = ethernet.JoinWatch(tunnel.config)
    while True:
        tunnel.tables.macs_sweep(now_ns())
        if links_changed.is_set() and tunnel.is_at_home:
            links_changed.clear()
            try:
                await asyncio.to_thread(join.check, tunnel.link.index, tunnel.link.mtu)
            except (FastpumpError, OSError) as error:
                log.debug("what the tunnel is joined to cannot be looked at: %s", error)
        await asyncio.sleep(SWEEP_INTERVAL_S)


async def _serve(tunnel: Tunnel, watcher: LinkWatcher, on_ready: Callable[[], None],
                 more: Mapping[str, TunnelCommand], must_serve_wg: bool) -> None:
    """Run the supervisor, the sockets for control and wg, and the watch over the interface."""
    supervisor, name = tunnel.supervisor, tunnel.link.name
    loop = asyncio.get_running_loop()

    macs = Macs(tunnel.tables, supervisor.device, now_ns)

    async def status(_request: dict[str, Any]) -> dict[str, Any]:
        return tunnel.status()

    async def stop(_request: dict[str, Any]) -> dict[str, Any]:
        supervisor.stop("because it was asked to")
        return {"pid": os.getpid()}

    async def fdb(request: dict[str, Any]) -> dict[str, Any]:
        return macs.serve(request)

    async def command_of(command: TunnelCommand, _request: dict[str, Any]) -> dict[str, Any]:
        return await command(tunnel)

    commands: dict[str, Command] = {
        "status": status, "stop": stop, "fdb": fdb, "limit": tunnel.limit,
        **{name: partial(command_of, command) for name, command in more.items()}}
    control = ControlServer(name, commands)
    wg = UapiServer(name, supervisor)

    links_changed = asyncio.Event()

    def on_link() -> None:
        links_changed.set()
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
    links_changed.set()
    caretaker = (loop.create_task(_take_care(tunnel, links_changed))
                 if tunnel.tables.is_tap else None)
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
        if caretaker is not None:
            caretaker.cancel()
        loop.remove_reader(watcher)
        await wg.stop()
        await control.stop()
    log.info("stopped %s", supervisor.stop_reason)
