"""`fastpump up`, `down`, `reload` and `check`: a tunnel from a file of wg-quick(8)'s format.

up      PreUp; then, in the background process that runs the tunnel: interface, addresses, MTU,
        DNS, routes, rules, firewall (host/network.py); PostUp when packets can flow.
down    PreDown; SaveConfig; the background process ends and undoes what it did; PostDown.
reload  in the background process: what differs between the file and what is done.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastpump.config import file as config_file
from fastpump.config.file import FileConfig
from fastpump.config.model import TAP_FIELDS, Network, PeerConfig, TunnelConfig, check
from fastpump.conn import endpoint
from fastpump.constants import DEFAULT_PORT
from fastpump.device.peer_change import PeerChange, Presence
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import attach, ethernet
from fastpump.host.network import HostNet, HostState, recover
from fastpump.ip import Address, network_of
from fastpump.ipc import control
from fastpump.netlink import links, routes
from fastpump.process.daemon import detach
from fastpump.protocol import keys
from fastpump.ratelimit import NO_LIMITS
from fastpump.tunnel.peer_changes import peer_change_of
from fastpump.tunnel.resolver import look_up
from fastpump.tunnel.run import Program, run
from fastpump.tunnel.tunnel import Tunnel

log = logging.getLogger("fastpump")

END_TIMEOUT_MS = 10_000
# What `reload` cannot change: the interface must be made anew.
FIXED = ("table", "queues", "pin", "busy_poll_us", "offloads", "transport", "cipher", "mode",
         *TAP_FIELDS)


# -- the tunnel that a file describes

def tunnel_config(name: str, file: FileConfig) -> TunnelConfig:
    """What the file says of the tunnel itself; ConfigError."""
    peers = file.peers
    if file.private_key is not None:
        # Our own key is passed over, so that one file can serve all sides (as wg does).
        own = keys.public_of(file.private_key)
        peers = tuple(peer for peer in peers if peer.public_key != own)
    config = TunnelConfig(
        name=name, queue_count=file.queues or len(os.sched_getaffinity(0)),
        addresses=file.addresses, listen_port=file.listen_port or 0,
        private_key=file.private_key, keeps_key=False, peers=peers,
        mtu=file.mtu, fwmark=file.fwmark or 0,
        pin=file.pin, busy_poll_us=file.busy_poll_us, resolve_every_s=file.resolve_every_s,
        transport=file.transport, cipher=file.cipher, offloads=dict(file.offloads),
        rate_limits=file.rate_limits, mode=file.mode,
        **{name: getattr(file, name) for name in TAP_FIELDS})
    check(config)
    return config


@dataclass(slots=True)
class Quick:
    """A tunnel of a file: what the background process knows."""

    path: Path
    name: str
    file: FileConfig
    """As it was last read."""
    applied: FileConfig
    """That, but what only `up` can change is as it was then."""
    config: TunnelConfig
    default_table: int = 0
    """Where default routes go; 0 when there were none, or the file names a table."""
    host: HostState | None = None

    # -- up

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Run the tunnel to its end."""
        run(self.config, Program(
            configure=self._configure, on_ready=lambda _: on_ready(), commands={
                "reload": self._reload, "configuration": self._configuration},
            configuration_file=self.path))

    def _configure(self, name: str, index: int, made: ExitStack,
                   endpoints: Collection[Address]) -> None:
        self.host = HostState(name)
        made.callback(self.host.undo)
        if self.config.mode == "tap":
            ethernet.configure(self.config, index, made, endpoints)
            self.host.change(index, self._host_net(self.applied, None))
        else:
            links.set_up(links.get(index))
            self.host.change(index, self._host_net(self.applied, endpoints))

    def _host_net(self, file: FileConfig,
                  endpoints: Iterable[Address] | None) -> HostNet:
        """`endpoints`: the addresses that the MTU shall fit the ways to, if the file says
        none; None: it stays."""
        mtu = file.mtu or (0 if endpoints is None else routes.fitting_mtu(endpoints))
        addresses = () if self._is_attached else file.addresses
        return HostNet(addresses, mtu, tuple(self._routes(file)), self.default_table,
                       file.dns, file.dns_search)

    @property
    def _is_attached(self) -> bool:
        return bool(ethernet.attachment_of(self.config))

    def _routes(self, file: FileConfig) -> Iterator[tuple[Network, int]]:
        """(destination, routing table) of all routes, the longest prefixes first."""
        if file.table == "off":
            return
        table = routes.TABLE_MAIN if file.table == "auto" else routes.table_number(file.table)
        connected = {address.network for address in file.addresses}
        networks = {network for peer in file.peers for network in peer.allowed_ips or ()}
        for network in sorted(networks, key=lambda each: (-each.prefixlen, each.version, each)):
            if file.table != "auto":
                yield network, table
            elif network.prefixlen == 0:
                if self.default_table:
                    yield network, self.default_table
            elif network not in connected:
                yield network, table

    # -- while it runs

    async def _configuration(self, running: Tunnel) -> dict[str, Any]:
        """The file as it would be written now (SaveConfig)."""
        device, supervisor = running.supervisor.device, running.supervisor
        said = {peer.public_key: peer.rate_limits for peer in self.applied.peers}
        peers = []
        for peer in device.peers.values():
            where = peer.endpoint_name
            if where is None and peer.endpoint is not None:
                where = peer.endpoint.host, peer.endpoint.port
            allowed_ips = sorted(peer.allowed_ips) if self.file.mode == "tun" else ()
            peers.append(PeerConfig(
                peer.public_key, where, tuple(map(network_of, allowed_ips)),
                peer.preshared_key if any(peer.preshared_key) else None,
                peer.persistent_keepalive_s, said.get(peer.public_key, NO_LIMITS)))
        addresses = self.file.addresses
        if running.is_at_home and not self._is_attached:     # those are the bridge's
            addresses = tuple(await asyncio.to_thread(routes.addresses_of, running.link.index))
        return {"text": config_file.emit(replace(
            self.file, private_key=device.private_key if any(device.private_key) else None,
            addresses=addresses, listen_port=supervisor.listen_port or None,
            fwmark=self.file.fwmark if self.default_table else supervisor.fwmark or None,
            peers=tuple(peers), mtu=None if self.file.mtu is None else running.link.mtu))}

    async def _reload(self, running: Tunnel) -> dict[str, Any]:
        """Apply the file as it is now; what changed, and what needs down and up."""
        if not running.is_at_home:
            raise ConfigError("the interface is in another network namespace than it was brought "
                              "up in; `wg syncconf` changes its peers")
        file = await asyncio.to_thread(config_file.load, self.path)
        config = tunnel_config(self.name, file)
        fixed = [field for field in FIXED if getattr(file, field) != getattr(self.applied, field)]
        if "mode" in fixed:     # packets and frames: next to nothing means the same in both
            return {"changed": [], "needs_restart": ["mode"], "warnings": list(file.warnings)}
        if self.default_table and file.fwmark != self.applied.fwmark:
            fixed.append("fwmark")
        if self._is_attached and file.addresses != self.applied.addresses:
            fixed.append("addresses")
        new = replace(file, peers=config.peers,
                      **{field: getattr(self.applied, field) for field in fixed})
        if _has_default_route(new) and not self.default_table:
            fixed.append("the default route")
        device = running.supervisor.device
        known = {peer.public_key: peer for peer in self.applied.peers}
        moved = [peer for peer in new.peers if peer.endpoint is not None
                 and (peer.public_key not in device.peers or peer.public_key not in known
                      or peer.endpoint != known[peer.public_key].endpoint)]
        found = await asyncio.gather(*(
            look_up(*peer.endpoint) for peer in moved if peer.endpoint is not None))
        where = {peer.public_key: place for peer, place in zip(moved, found, strict=True)}
        changed = self._reload_interface(running, new)
        changed += self._reload_peers(running, known, new, where)
        old, self.file, self.applied = self.applied, file, new
        assert self.host is not None
        # An MTU that was found stays: the ways to the peers may differ by now.
        endpoints = None if old.mtu is None or self.config.mode == "tap" else [
            peer.endpoint.address for peer in device.peers.values() if peer.endpoint is not None]
        host_net = await asyncio.to_thread(self._host_net, new, endpoints)
        changed += await asyncio.to_thread(self.host.change, running.link.index, host_net)
        return {"changed": changed, "needs_restart": fixed, "warnings": list(file.warnings)}

    def _reload_interface(self, running: Tunnel, new: FileConfig) -> list[str]:
        supervisor, changed = running.supervisor, []
        if new.private_key is not None and new.private_key != self.applied.private_key:
            supervisor.set_private_key(new.private_key)
            changed.append("the private key")
        if new.listen_port is not None and new.listen_port != self.applied.listen_port:
            supervisor.set_listen_port(new.listen_port)
            changed.append("the port")
        if new.fwmark != self.applied.fwmark:
            supervisor.set_fwmark(new.fwmark or 0)
            changed.append("the firewall mark")
        if new.rate_limits != self.applied.rate_limits:
            running.set_rate_limits(None, new.rate_limits)
            changed.append("the rate limits")
        running.resolver.interval_s = new.resolve_every_s
        return changed

    @staticmethod
    def _reload_peers(running: Tunnel, known: dict[bytes, PeerConfig], new: FileConfig,
                      where: dict[bytes, endpoint.Endpoint]) -> list[str]:
        """Change what the file changes, and nothing that it does not: a peer keeps its
        session and the endpoint that it roamed to."""
        device, changed = running.supervisor.device, []
        wanted = {peer.public_key for peer in new.peers}
        for peer in list(device.peers.values()):
            if peer.public_key not in wanted:
                changed.append(f"{peer} removed")
                running.configure_peer(PeerChange(peer.public_key, Presence.REMOVE))
        for said in new.peers:
            is_new = said.public_key not in device.peers
            before = None if is_new else known.get(said.public_key)
            if said != before:
                running.configure_peer(
                    peer_change_of(said, where.get(said.public_key), before=before))
                done = "added" if is_new else "changed"
                changed.append(f"{device.peers[said.public_key]} {done}")
        return changed


def _has_default_route(file: FileConfig) -> bool:
    """Whether all traffic shall go through the tunnel, by rules of ours."""
    return file.table == "auto" and any(
        network.prefixlen == 0 for peer in file.peers for network in peer.allowed_ips or ())


# -- commands

def _load(word: str) -> tuple[Path, str, FileConfig]:
    path = config_file.find(word)
    file = config_file.load(path)
    for warning in file.warnings:
        log.warning("%s", warning)
    return path.resolve(), config_file.interface_name(path), file


def _run_hooks(hooks: Iterable[str], name: str) -> None:
    """Run shell commands as wg-quick does: %i is the interface, the first failure ends it."""
    for hook in hooks:
        command = hook.replace("%i", name)
        print(f"[#] {command}", file=sys.stderr, flush=True)
        status = subprocess.run(["bash", "-c", command], check=False).returncode
        if status != 0:
            raise SystemSetupError(f"the command {command!r} of the configuration failed with "
                                   f"status {status}")


def check_file(word: str) -> str:
    """Read a file and complain; one line about it if all is well."""
    path, name, file = _load(word)
    attach.check(ethernet.attachment_of(tunnel_config(name, file)))
    if file.table not in ("auto", "off"):
        routes.table_number(file.table)
    return (f"{path} is good: interface {name}, {len(file.addresses)} addresses, "
            f"{len(file.peers)} peers")


def up(word: str) -> None:
    """Bring a tunnel up in the background; return when packets can flow."""
    path, name, file = _load(word)
    status = control.ask(name, "status")
    if status is not None:
        hint = (f"`fastpump reload {word}` applies a changed file" if status["configuration_file"]
                else "it was not brought up from a file")
        raise ConfigError(f"{name} is up already: {hint}, `fastpump down {word}` ends it")
    if recover(name):
        log.warning("%s was killed when it last ran; what it left behind is undone now", name)
    if name in (each for _, each in socket.if_nameindex()):
        raise ConfigError(f"the interface {name} exists already; name the file otherwise, or "
                          f"delete it: ip link delete {name}")
    config = tunnel_config(name, file)
    attach.check(ethernet.attachment_of(config))
    quick = Quick(path, name, file, file, config)
    if _has_default_route(file):
        # The mark keeps our own datagrams out of the tunnel; the table has the same number.
        quick.default_table = config.fwmark or routes.unused_table(DEFAULT_PORT)
        quick.config = replace(config, fwmark=quick.default_table)
    _run_hooks(file.pre_up, name)
    detach(quick.serve)
    try:
        _run_hooks(file.post_up, name)
    except BaseException:
        _end(name)
        raise


def reload(word: str) -> dict[str, Any]:
    """Apply a changed file to a running tunnel: {"changed": [...], "needs_restart": [...],
    "warnings": [...]}."""
    name = config_file.interface_name(config_file.find(word))
    answer = control.ask(name, "reload")
    if answer is None:
        raise ConfigError(f"{name} is not up; bring it up with `fastpump up {word}`")
    assert isinstance(answer, dict)
    return answer


def down(word: str) -> None:
    """End a tunnel, and leave nothing of it behind."""
    path, file = Path(), FileConfig()
    try:
        path, name, file = _load(word)
    except ConfigError as error:
        # A tunnel whose file is gone or broken can be ended all the same.
        name = Path(word).name.removesuffix(config_file.SUFFIX)
        if control.ask(name, "status") is None and not recover(name):
            raise
        log.warning("%s; its PreDown and PostDown are not run", error)
    status = control.ask(name, "status")
    if status is None:
        if not recover(name):
            raise ConfigError(f"{name} is not up; `fastpump status` lists the tunnels that are")
        control.forget(name)
        log.warning("%s was killed; what it left behind is undone now", name)
    elif status["configuration_file"] is None:
        _end(name)      # of `fastpump tunnel` or fastpump-wg: the file is not about it
        return
    else:
        _run_hooks(file.pre_down, name)
        if file.save_config:
            _save(path, name)
        _end(name)
    _run_hooks(file.post_down, name)


def _end(name: str) -> None:
    """Have the background process end, and wait until it has."""
    answer = control.ask(name, "stop")
    if answer is None:
        return
    try:
        pidfd = os.pidfd_open(answer["pid"])
    except ProcessLookupError:
        return
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        if not ended.poll(END_TIMEOUT_MS):
            raise SystemSetupError(f"{name} does not end; its process is {answer['pid']}")
    finally:
        os.close(pidfd)


def _save(path: Path, name: str) -> None:
    """Write the running configuration to the file, whole or not at all."""
    answer = control.ask(name, "configuration")
    if answer is None:
        return
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.",
                                         delete=False) as file:     # mode 0600
            file.write(answer["text"])
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        raise SystemSetupError(f"{path} cannot be written: {error.strerror}") from None
