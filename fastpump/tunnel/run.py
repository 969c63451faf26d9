"""Compose interface, sockets, device and workers, and run: what `fastpump tunnel`,
`fastpump up` and `fastpump-wg` have in common.

`run` goes through the steps of `_Start` in order. Each puts what undoes it on one stack, so that
on every exit path all is undone in the reverse order, the interface last: it goes with its fds,
and its addresses and routes with it. The last step, `serve`, is an event loop: there the control
socket and wg's are served from the beginning, then the interface is configured, then workers run.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fastpump import paths
from fastpump._core import (
    BACKENDS,
    HAS_NULL_CIPHER,
    SharedTables,
    backend_problem,
    choose_backends,
)
from fastpump.config.gateway import Gateway
from fastpump.config.model import TunnelConfig, check
from fastpump.config.wording import OptionError
from fastpump.conn import marked_names
from fastpump.conn.endpoint import Endpoint
from fastpump.conn.marked_names import MarkedNames
from fastpump.conn.sockets import check_route, lane_socket_count
from fastpump.constants import KEY_LEN
from fastpump.device.lane_context import Options
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import attach, ethernet, gateway, own_ipv6, taps
from fastpump.host.network import Closed
from fastpump.ip import Address, network_of
from fastpump.netlink import links
from fastpump.process import logs, memory, signals
from fastpump.protocol import keys, lane_messages
from fastpump.tun import loop_guard, steering
from fastpump.tun.linkwatch import LinkWatcher, TunState
from fastpump.tun.loop_guard import LoopGuard
from fastpump.tun.offloads import Offloads, lane_ciphers, probe
from fastpump.tun.queues import TunQueues
from fastpump.tunnel import kept_endpoints, peer_changes
from fastpump.tunnel.names import Names
from fastpump.tunnel.resolver import FIRST_RETRY_S, Resolver
from fastpump.tunnel.service import Service, TunnelCommand
from fastpump.tunnel.supervisor import Supervisor, SupervisorOptions
from fastpump.tunnel.tunnel import Tunnel
from fastpump.tunnel.workers import WorkerOptions

log = logging.getLogger("fastpump")

NULL_CIPHER_CONSENT = "I-want-no-encryption"

MAX_PAUSES_US = {"low": 0, "balanced": 100, "throughput": 200}
"""How long a worker waits for more packets, where many come, by `Latency` (hot/moderation.pxd)."""

Configure = Callable[[Tunnel, ExitStack, Collection[Address]], None]
"""Give the interface of a new tunnel what it needs; what must be undone goes on the stack. The
addresses are those of the peers' endpoints. Called in a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What `fastpump tunnel`, `fastpump up` and `fastpump-wg` do differently."""

    configure: Configure
    before_configure: Callable[[Tunnel, ExitStack], Awaitable[None]] | None = None
    """Awaited when the interface exists and wg can change it, but nothing is configured yet. What
    the configuration does not say stays as it is set then."""
    on_ready: Callable[[Tunnel], None]
    """Called once, when packets flow (or could, if the interface were up)."""
    commands: Mapping[str, TunnelCommand] = field(default_factory=dict)
    """Of the control socket, besides those that every tunnel has."""
    configuration_file: Path | None = None
    must_serve_wg: bool = False
    """Fail if another WireGuard has wg's socket of that name, and stop when it is removed."""
    closed: Closed = field(default_factory=Closed)
    """A killed tunnel of that name, which this one will take over."""
    needs_names: bool = False
    """Once it is configured, the host may reach name servers only through the tunnel: the names of
    the peers' endpoints are waited for."""
    must_reach_endpoints: bool = False
    """Fail if there is no route to an endpoint; else that is a warning."""


def run(config: TunnelConfig, program: Program) -> None:
    """Run a tunnel until SIGINT, SIGTERM, `fastpump down` or the interface's deletion.
    FastpumpError says why it cannot run."""
    logs.name_interface(config.name)
    config = replace(config, queues=config.queue_count)     # the CPUs may change meanwhile
    _check(config)
    start = _Start(config, program)
    memory.hide()
    _set_rlimits()
    with start.cleanup:
        start.cleanup.enter_context(signals.unwinding())
        if not Gateway.of(config.gateway).masquerades:     # else `set_up` does
            gateway.recover(config.name)
        start.open_queues()
        start.read_private_key()
        start.probe_offloads()
        start.create_tables()
        start.steer_flows()
        start.guard_against_loops()
        start.watch_interface()
        try:
            asyncio.run(start.serve())
        finally:
            signals.ignore()


def _check(config: TunnelConfig) -> None:
    """What can be checked before anything is made."""
    _check_ciphers()
    if HAS_NULL_CIPHER and os.environ.get("FASTPUMP_NULL_CIPHER") != NULL_CIPHER_CONSENT:
        raise SystemSetupError(
            "this build encrypts nothing: it is for measuring only (setup.py: "
            "FASTPUMP_BUILD_NULL_CIPHER); build again without that")
    check(config)
    attach.check(ethernet.attachment_of(config))
    if config.kill_switch:
        marked_names.check(host for peer in config.peers for host, _ in peer.endpoints)


def _warn_of_another_key(file: Path, key: bytes, kept: Path) -> None:
    """The peers of an interface know the key that was kept for its name."""
    with contextlib.suppress(ConfigError):
        if kept.exists() and keys.read_file(kept, "private key") != key:
            log.warning("the key is that of %(file)s, not the one that was made for this interface "
                        "(%(kept)s): the peers need the new public key, %(public_key)s",
                        {"file": file, "kept": kept,
                         "public_key": keys.encode(keys.public_of(key))})


def _check_ciphers() -> None:
    """Say so if a library is missing that was built with or named, though nobody chose another."""
    try:
        chosen = choose_backends()
    except (ValueError, OSError) as error:
        raise ConfigError(f"FASTPUMP_AEAD: {error}") from None
    if os.environ.get("FASTPUMP_AEAD"):
        return
    wanted = [BACKENDS[-1], *(["boringssl"] if os.environ.get("FASTPUMP_BORINGSSL") else [])]
    for library in wanted:
        problem = backend_problem(library)
        if problem is not None:
            log.warning("%(library)s cannot be used (%(problem)s): %(used)s gives the ciphers, "
                        "slower", {"library": library, "problem": problem,
                                   "used": " and ".join(dict.fromkeys(chosen.values()))})


def _set_rlimits() -> None:
    """No core dumps, also of the workers before they are confined; as many fds as the hard limit
    allows."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Start:
    """The steps of a tunnel's start, and what each has made for the next."""

    def __init__(self, config: TunnelConfig, program: Program) -> None:
        self._config = config
        self._program = program
        self.cleanup = ExitStack()
        """What undoes the steps."""
        self._names: dict[bytes, Names] = {}
        self._kept_endpoints = kept_endpoints.load(config.name) if config.kill_switch else {}
        self._marked_names: MarkedNames | None = None
        self._candidates: dict[bytes, tuple[Endpoint, ...]] = {}
        """Where the peers may be, by their public keys, as far as that is known."""
        self._is_tap = config.mode == "tap"
        self._private_key = bytes(KEY_LEN)
        self._is_steered = False
        self._loop_guard: LoopGuard | None = None
        # Made by the steps.
        self._queues: TunQueues
        self._offloads: Offloads
        self._tables: SharedTables
        self._watcher: LinkWatcher
        self._link: TunState

    def open_queues(self) -> None:
        """Make the interface: it exists from here on, and is down."""
        name = self._config.name
        try:
            self._queues = TunQueues(name, self._config.queue_count, is_tap=self._is_tap)
        except SystemSetupError as error:
            user = taps.users_of(name) if self._is_tap else None
            if user is None:
                raise
            raise OptionError(
                f"the interface {name} is in use by {user}: end that, or choose another "
                f"name; to join a guest's TAP, use <attach={name}>") from error
        self.cleanup.callback(self._queues.close)

    def read_private_key(self) -> None:
        """From the configuration, a file, or the one that is kept for the interface's name."""
        config = self._config
        if config.private_key is not None:
            self._private_key = config.private_key
        elif config.private_key_file is not None:
            self._private_key = keys.read_file(config.private_key_file, "private key")
            _warn_of_another_key(config.private_key_file, self._private_key,
                                 paths.private_key_file(config.name))
        elif config.keeps_key:
            self._private_key = keys.load_or_create(paths.private_key_file(config.name))

    def probe_offloads(self) -> None:
        """What the kernel really does, by writing to the interface."""
        wanted = self._config.offloads
        if self._config.relay:      # what is flooded again needs an id for each frame
            wanted = {**wanted, "records": False}
        self._offloads = probe(self._queues, wanted)

    def create_tables(self) -> None:
        """The shared memory."""
        config = self._config
        self._tables = SharedTables.create(config.queue_count, is_tap=self._is_tap,
                                           mac_limit=config.mac_table)
        self.cleanup.callback(self._tables.close)
        if self._is_tap:
            self._tables.configure_switch(
                is_relay=config.relay, ageing_s=config.mac_ageing_s,
                limit_per_peer=config.mac_limit, storm_limit=config.storm_limit)
        self._tables.offloads = self._offloads.hot

    def guard_against_loops(self) -> None:
        """Have the kernel drop our own datagrams before the interface, where it lets us."""
        self._loop_guard = loop_guard.guard(self._queues)
        if self._loop_guard is not None:
            self.cleanup.callback(self._loop_guard.close)

    def steer_flows(self) -> None:
        """Give both directions of a flow to one queue, where the kernel lets us."""
        self._is_steered = self._config.queue_count == 1 or steering.steer_by_flow(self._queues)

    def watch_interface(self) -> None:
        """Notice what becomes of the interface."""
        self._watcher = (LinkWatcher(self._queues) if self._is_tap else
                         LinkWatcher(self._queues, on_moved=own_ipv6.quieten_moved_tun))
        self.cleanup.callback(self._watcher.close)
        link = self._watcher.read()
        if link is not None and not self._is_tap:
            own_ipv6.quieten_tun(links.get(link.index))
        if link is None:
            raise SystemSetupError(
                f"the interface {self._config.name} was deleted while it was being made")
        self._link = link
        self._tables.mtu = link.mtu

    async def serve(self) -> None:
        """Run the tunnel until it is stopped."""
        config, program = self._config, self._program
        def mark() -> int:
            return supervisor.fwmark

        if config.kill_switch:
            self._marked_names = MarkedNames(config.endpoint_dns, mark)
        resolver = Resolver(config.resolve_every_s, resolve=None if self._marked_names is None
                            else self._marked_names.resolve)
        supervisor = Supervisor(self._tables, self._queues, self._supervisor_options(),
                                on_unanswered=resolver.on_unanswered)
        resolver.device = supervisor.device
        supervisor.ways.on_change = resolver.hurry
        tunnel = Tunnel(config, self._tables, supervisor, resolver, self._offloads, self._link,
                        self._watcher, program.configuration_file)
        service = Service(tunnel, self._watcher, program.commands,
                          must_serve_wg=program.must_serve_wg)
        await service.run(partial(self._configure, tunnel), lambda: program.on_ready(tunnel))

    async def _configure(self, tunnel: Tunnel) -> None:
        """Add what the configuration says to what the tunnel is by now, as `wg addconf` does."""
        config, program, supervisor = self._config, self._program, tunnel.supervisor
        if program.before_configure is not None and not await supervisor.unless_stopped(
                program.before_configure(tunnel, self.cleanup)):
            return
        if self._marked_names is not None:
            self._marked_names.take_servers()
        if not await supervisor.unless_stopped(self._resolve(tunnel.resolver)):
            return
        self._configure_interface(tunnel)
        self._check_routes(supervisor)
        self._configure_peers(tunnel)
        # Not to be interrupted: what is made must be noted, to be undone.
        if config.gateway:      # before a packet can come
            tunnel.restore_gateway = await asyncio.to_thread(
                gateway.set_up, Gateway.of(config.gateway), tunnel.link.index,
                self._versions(supervisor), self.cleanup, lambda: tunnel.leaves_all)
        await asyncio.to_thread(program.configure, tunnel, self.cleanup,
                                tunnel.addresses_of_peers())

    async def _resolve(self, resolver: Resolver) -> None:
        """Ask for the names of the peers' endpoints."""
        self._names = await resolver.ask({peer.public_key: peer.endpoints
                                          for peer in self._config.peers if peer.endpoints})
        self._note_candidates(resolver)
        delay_s = FIRST_RETRY_S
        if self._program.needs_names and not all(self._candidates.values()):
            log.warning("the tunnel is not up before its peers have an address: then name servers "
                        "may be reached through it only")
        while self._program.needs_names and not all(self._candidates.values()):
            delay_s = await resolver.pause(delay_s)
            await resolver.ask_again(self._names[key] for key, known in self._candidates.items()
                                     if not known)
            self._note_candidates(resolver)

    def _note_candidates(self, resolver: Resolver) -> None:
        self._candidates = {
            public_key: tuple(dict.fromkeys((*resolver.candidates(names),
                                             *self._known_before(names))))
            for public_key, names in self._names.items()}

    def _known_before(self, names: Names) -> tuple[Endpoint, ...]:
        """Where a peer was by those of its names that have no answer now: under a kill switch the
        last time, else when the process before this one was killed, whose routes keep us from all
        name servers."""
        known = self._kept_endpoints | dict(self._program.closed.endpoints)
        found = []
        for host, port in names.missing:
            address = known.get(f"{host}:{port}")
            if address is not None:
                log.warning("%(host)s: %(address)s is tried, where it was before",
                            {"host": host, "address": address})
                found.append(Endpoint(ipaddress.ip_address(address), port))
        return tuple(found)

    def _versions(self, supervisor: Supervisor) -> set[int]:
        """The IP versions that the tunnel carries."""
        prefixes = [prefix for peer in supervisor.device.peers.values()
                    for prefix in peer.allowed_ips]
        return {each.version for each in (*self._config.addresses, *map(network_of, prefixes))}

    def _configure_interface(self, tunnel: Tunnel) -> None:
        config, supervisor = self._config, tunnel.supervisor
        tunnel.set_rate_limits(None, config.rate_limits)
        if any(self._private_key):
            supervisor.set_private_key(self._private_key)
        if config.fwmark:
            supervisor.set_fwmark(config.fwmark)
        if config.listen_port:
            supervisor.set_listen_port(config.listen_port)

    def _configure_peers(self, tunnel: Tunnel) -> None:
        own = tunnel.supervisor.device.public_key
        for change in peer_changes.of_new_peers(self._config.peers, self._candidates):
            # One file can serve all sides, also if it was PreUp that set the key.
            if change.public_key != own or self._program.configuration_file is None:
                tunnel.configure_peer(change, self._names.get(change.public_key))

    def _check_routes(self, supervisor: Supervisor) -> None:
        """Whether the host can send to one of each peer's endpoints. Without IPv6, those of IPv6
        are left out."""
        for public_key, candidates in self._candidates.items():
            problem = self._route_problem(supervisor, candidates)
            if problem is None:
                continue
            if self._program.must_reach_endpoints:
                raise problem
            log.warning("%(problem)s", {"problem": problem})
            self._candidates[public_key] = tuple(
                each for each in candidates if each.is_of(supervisor.family))

    def _route_problem(self, supervisor: Supervisor,
                       candidates: Sequence[Endpoint]) -> SystemSetupError | None:
        """Why none of them can be reached."""
        first = None
        for each in candidates:
            try:
                check_route(each, supervisor.family,
                            supervisor.fwmark or self._program.closed.table)
            except SystemSetupError as error:
                first = first or error
            else:
                return None
        return first

    def _supervisor_options(self) -> SupervisorOptions:
        config = self._config
        return SupervisorOptions(
            listen_port=config.listen_port, fwmark=config.fwmark, dscp=config.dscp,
            max_pause_us=MAX_PAUSES_US[config.latency],
            gro=self._offloads.has_udp_gro,
            lanes=self._lane_options(), is_steered=self._is_steered, loop_guard=self._loop_guard,
            workers=WorkerOptions(pin=config.pin, busy_poll_us=config.busy_poll_us))

    def _lane_options(self) -> Options | None:
        """What lanes offer to peers; None for WireGuard only."""
        config = self._config
        if config.transport == "wireguard":
            return None
        transport = "lanes" if self._is_tap else config.transport   # frames travel on lanes only
        if not lane_messages.kem_is_supported():
            problem = "no lanes: the cryptography library has no ML-KEM here; update it"
            if transport == "lanes":
                raise SystemSetupError(problem)
            log.warning("%(problem)s", {"problem": problem})
            return None
        mode = lane_messages.Mode.TAP if self._is_tap else lane_messages.Mode.TUN
        return Options(transport, lane_ciphers(config.cipher), self._offloads.lane_features, mode,
                       lane_socket_count(config.queue_count))
