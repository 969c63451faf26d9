"""A tunnel of a configuration file, in the background process that `fastpump up` starts: what it
sets up on the host, and what `fastpump reload` and SaveConfig do by the control socket.

`reload` reads the file, and compares it with what is applied of what it read before: what differs
is changed, all else is left alone, also what wg(8) changed meanwhile. But a peer that differs is
made what the file says, with its allowed IPs, and one that is not in the file is removed, whoever
added it. What only `up` can set (Option.needs_restart, and what a default route or an attached
interface depends on) stays as it is, and is reported.

Reloads are done one after the other, each to its end, and none before the tunnel is up. One that
fails leaves what it had done: that is applied from then on, so another reload goes on, or back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fastpump.config import file as config_file
from fastpump.config.file import FileConfig, tunnel_config
from fastpump.config.file_emit import emit
from fastpump.config.model import PeerConfig, TunnelConfig
from fastpump.config.options import OPTIONS, Option
from fastpump.config.wording import OptionError
from fastpump.device.peer import Peer
from fastpump.device.peer_change import PeerChange, Presence
from fastpump.errors import ConfigError, FastpumpError, SystemSetupError
from fastpump.host import attach, ethernet, full_tunnel, ipv6
from fastpump.host.down_commands import DownCommands
from fastpump.host.network import HostNet, HostState, find_closed
from fastpump.ip import Address, Network, network_of
from fastpump.netlink import links, routes
from fastpump.netlink.default_routes import TABLE_MAIN
from fastpump.process.daemon import Foreground
from fastpump.ratelimit import NO_LIMITS
from fastpump.tunnel.host_changes import HostChanges, kill_switch_of
from fastpump.tunnel.names import Names
from fastpump.tunnel.peer_changes import peer_change_of
from fastpump.tunnel.run import Program, run
from fastpump.tunnel.supervisor import ON_REQUEST
from fastpump.tunnel.tunnel import Tunnel

log = logging.getLogger("fastpump")


@dataclass(slots=True)
class FileTunnel:
    """What the background process knows."""

    path: Path
    name: str
    file: FileConfig
    """As it was last read."""
    applied: FileConfig
    """The same, but with what only `up` can set as it was then. After a reload that failed: what
    it has done."""
    config: TunnelConfig
    host: HostState | None = None

    _routed: FileConfig = field(default_factory=FileConfig)
    """What the host was last changed for: `applied`, and at first the peers that PreUp added."""
    _changes: HostChanges | None = None
    _running: Tunnel | None = None
    _was_ready: bool = False
    _down_follows: bool = False
    """Whether `down` runs the commands that are in the record now."""
    _has_failed: bool = False
    """The last change of peers: an allowed IP may have left one peer, and not come to another."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of whoever reads or changes what is applied."""

    @classmethod
    def of(cls, path: Path, name: str, file: FileConfig) -> FileTunnel:
        """The tunnel of that file, not started yet; ConfigError."""
        config = checked(name, file)
        return cls(path, name, file, file, config)

    # -- up

    def serve(self, foreground: Foreground) -> None:
        """Run the tunnel to its end."""
        async def pre_up(running: Tunnel, cleanup: ExitStack) -> None:
            self._take_host(running, cleanup)
            assert self._changes is not None
            await asyncio.to_thread(self._changes.close)
            if self.file.pre_up:
                await foreground.take_turn()

        def on_ready(_running: Tunnel) -> None:
            foreground.ready()
            self._was_ready = True
            assert self._changes is not None
            self._changes.ready()

        try:
            run(self.config, Program(
                before_configure=pre_up if self.file.pre_up or self.config.kill_switch else None,
                configure=self._configure,
                on_ready=on_ready, commands={
                    "reload": self._reload, "configuration": self._configuration,
                    "stop": self._stop},
                configuration_file=self.path, closed=find_closed(self.name),
                needs_names=self._is_full))
        except FastpumpError as error:
            raise self.file.located(error) from None

    @property
    def _is_full(self) -> bool:
        """Whether name servers may be reached through the tunnel only."""
        if self.config.kill_switch:     # they are asked outside of it
            return False
        return bool(self.file.dns_servers) or (self.file.table == "auto" and any(
            full_tunnel.is_wide(network) for peer in self.config.peers
            for network in peer.allowed_ips or ()))

    def _take_host(self, running: Tunnel, cleanup: ExitStack) -> None:
        self._running = running
        self._changes = HostChanges(running, self.name, self._down_commands(running), self._turn,
                                    lambda: self._host_net(self._routed, None))
        self.host = self._changes.state
        cleanup.callback(self._undo_host)
        running.supervisor.on_port_or_mark = self._note_commands

    def _note_commands(self) -> None:
        """What `down` is to run if we are killed; it may ask for the port and the mark then."""
        assert self.host is not None
        assert self._running is not None
        if self._down_follows:
            return
        try:
            self.host.set_commands(self._down_commands(self._running))
        except OSError as error:
            log.warning("PreDown and PostDown cannot be written down: %(error)s", {"error": error})

    async def _stop(self, running: Tunnel, request: dict[str, Any]) -> dict[str, Any]:
        """End. `down` has run PreDown, and says what it will run when we have ended: that is left
        to do until it has, which may give up waiting for us. It finds it in the record of the
        interface's own name and network namespace."""
        running.leaves_all = bool(request.get("leaves_all", False))
        left = tuple(map(str, request.get("post_down", ())))
        if left and self._was_ready and running.is_at_home and running.link.name == self.name:
            assert self.host is not None
            self.host.set_commands(replace(self._down_commands(running), pre_down=(),
                                           post_down=left))
            self._down_follows = True
        running.supervisor.stop(ON_REQUEST)
        return {"pid": os.getpid()}

    def _undo_host(self) -> None:
        """Only `down` runs what the file wants at the end: if it has not yet, that is still to be
        done. A tunnel that has never been ready has never been up."""
        assert self._changes is not None
        assert self._running is not None
        self._changes.end(keeps_commands=self._was_ready and (
            self._down_follows or self._running.supervisor.stop_reason != ON_REQUEST))

    def _down_commands(self, running: Tunnel) -> DownCommands:
        return DownCommands(str(self.path), self.file.pre_down, self.file.post_down,
                            running.supervisor.fwmark, running.supervisor.listen_port)

    def _configure(self, running: Tunnel, cleanup: ExitStack,
                   endpoints: Collection[Address]) -> None:
        if self.host is None:
            self._take_host(running, cleanup)
        assert self.host is not None
        file, index = self._with_peers_of(running), running.link.index
        self._routed = file
        if self.config.mode == "tap":
            ethernet.configure(self.config, index, cleanup, endpoints)
            self.host.change(index, self._host_net(file, None))
        else:
            links.set_up(links.get(index))
            self.host.change(index, self._host_net(file, endpoints))

    def _with_peers_of(self, running: Tunnel) -> FileConfig:
        """The file, and the peers that PreUp added."""
        known = _by_key(self.applied)
        added = (self._peer_config(peer, None) for key, peer in
                 running.supervisor.device.peers.items() if key not in known)
        return self.applied.having(peers=(*self.applied.tunnel.peers, *added))

    def _host_net(self, file: FileConfig, endpoints: Iterable[Address] | None) -> HostNet:
        """`endpoints`: without an MTU in the file, it must fit the paths to these addresses;
        None: it stays."""
        addresses = () if self._is_attached else file.tunnel.addresses
        wanted = tuple(self._routes(file))
        of_ip = (*addresses, *(network for network, _ in wanted))
        mtu = file.tunnel.mtu or 0
        if not mtu and endpoints is not None:
            mtu = ipv6.fitting_mtu(routes.fitting_mtu(endpoints, self._table), of_ip)
        if ipv6.is_left_out(self.name, of_ip):
            addresses = tuple(each for each in addresses if each.version == 4)
            wanted = tuple(each for each in wanted if each[0].version == 4)
        return HostNet(addresses, mtu, wanted, self._table, file.dns_servers, file.dns_search,
                       kill_switch_of(file.tunnel))

    @property
    def _is_attached(self) -> bool:
        return bool(ethernet.attachment_of(self.config))

    @property
    def _table(self) -> int:
        """Where the routes are that rules lead to; 0: nowhere."""
        return 0 if self._changes is None else self._changes.table

    def _routes(self, file: FileConfig) -> Iterator[tuple[Network, int]]:
        """(destination, routing table) of all routes, the longest prefixes first."""
        if file.table == "off":
            return
        table = TABLE_MAIN if file.table == "auto" else _table_number(file)
        connected = {address.network for address in file.tunnel.addresses}
        networks = {network for peer in file.tunnel.peers for network in peer.allowed_ips or ()}
        apart: Collection[Network] = ()
        if file.table == "auto":
            assert self._changes is not None
            # Under a kill switch nothing goes by the main table, where those are.
            networks = networks | connected if self.config.kill_switch else networks - connected
            apart = self._changes.apart(networks)
        for network in sorted(networks, key=lambda each: (-each.prefixlen, each.version, each)):
            yield network, self._table if network in apart else table

    # -- SaveConfig

    async def _configuration(self, running: Tunnel, _request: dict[str, Any]) -> dict[str, Any]:
        """The file as it would be written now. Before the tunnel is up, that is as it was read."""
        if not self._was_ready:
            return {"text": emit(self.file)}
        async with self._turn:
            return {"text": emit(await self._saved(running))}

    async def _saved(self, running: Tunnel) -> FileConfig:
        device, supervisor = running.supervisor.device, running.supervisor
        tunnel, known = self.file.tunnel, _by_key(self.applied)
        addresses = tunnel.addresses
        if running.is_at_home and not self._is_attached:     # those are the bridge's
            found = await asyncio.to_thread(routes.addresses_of, running.link.index,
                                            link_local=True)
            # A TUN has none but those that it was given; a TAP has the kernel's, too.
            addresses = tuple(address for address in found if self.config.mode == "tun"
                              or address in tunnel.addresses or address.version == 4
                              or not address.is_link_local)
        return replace(self.file, tunnel=replace(
            tunnel, addresses=addresses, listen_port=supervisor.listen_port or None,
            private_key=device.private_key if any(device.private_key) else None,
            fwmark=tunnel.fwmark if self._table else supervisor.fwmark,
            mtu=None if tunnel.mtu is None else running.link.mtu,
            peers=tuple(self._peer_config(peer, known.get(peer.public_key))
                        for peer in device.peers.values())))

    def _peer_config(self, peer: Peer, applied: PeerConfig | None) -> PeerConfig:
        """A peer as it is now; its rate limits as they are in the file."""
        endpoints = peer.endpoint_names
        if not endpoints and peer.endpoint is not None:
            endpoints = ((peer.endpoint.host, peer.endpoint.port),)
        return PeerConfig(
            public_key=peer.public_key, endpoints=endpoints,
            allowed_ips=tuple(network_of(prefix) for prefix in (
                sorted(peer.allowed_ips) if self.config.mode == "tun" else ())),
            preshared_key=peer.preshared_key if any(peer.preshared_key) else None,
            keepalive_s=peer.persistent_keepalive_s,
            rate_limits=NO_LIMITS if applied is None else applied.rate_limits)

    # -- reload

    async def _reload(self, running: Tunnel, request: dict[str, Any]) -> dict[str, Any]:
        """Apply the file as it is now; what changed, and what needs down and up. The request may
        name another file than before."""
        if not self._was_ready:
            raise ConfigError("it is not up yet, and will be what its file said when "
                              "`fastpump up` began; reload it when it is up")
        # Whoever asked for it may be gone before its end.
        return await asyncio.shield(self._reload_in_turn(running, request))

    async def _reload_in_turn(self, running: Tunnel, request: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            return await self._reload_now(running, request)

    async def _reload_now(self, running: Tunnel, request: dict[str, Any]) -> dict[str, Any]:
        if not running.is_at_home:
            raise ConfigError("the interface is not in the network namespace that it was brought "
                              "up in; change its peers with `wg syncconf`")
        path = Path(str(request.get("file", self.path)))
        file = await asyncio.to_thread(config_file.load, path)
        config = tunnel_config(self.name, file)
        changed: list[str] = []
        if config.mode != self.config.mode:
            fixed = ["mode"]        # packets and frames: hardly anything means the same in both
        else:
            new, fixed = self._applicable(file, config)
            if path != self.path:
                changed.append(f"the file is {path} from now on")
                self.path = running.configuration_file = path
            try:
                changed += await self._apply(running, file, new)
            except FastpumpError as error:
                raise file.located(error) from None
        return {"changed": changed, "needs_restart": fixed, "warnings": list(file.warnings)}

    def _applicable(self, file: FileConfig, config: TunnelConfig) -> tuple[FileConfig, list[str]]:
        """The file, but with what cannot be changed as it is applied; and what that is."""
        fixed = [option for option in OPTIONS
                 if self._is_fixed(option) and file.get(option) != self.applied.get(option)]
        new = file.having(peers=config.peers, **{
            option.name: self.applied.get(option) for option in fixed})
        return new, [option.name for option in fixed]

    def _is_fixed(self, option: Option) -> bool:
        """Whether an option cannot be changed while the tunnel runs."""
        if option.name == "fwmark":
            return bool(self._table)            # the rules have it
        if option.name == "addresses":
            return self._is_attached            # the bridge has them
        return option.needs_restart

    async def _apply(self, running: Tunnel, file: FileConfig, new: FileConfig) -> list[str]:
        """Change what differs between what is applied and `new`, which was made of `file`."""
        names = await self._ask_for(running, new)
        changed = self.change_interface(running, new.tunnel)
        changed += self.change_peers(running, new, names)
        self.file = file
        self._note_commands()
        # An MTU that was found stays, though the paths to the peers may differ by now.
        fitted = None if self.applied.tunnel.mtu is None or self.config.mode == "tap" else (
            running.addresses_of_peers())
        if new.tunnel.mtu is not None:
            self.applied = self.applied.having(mtu=new.tunnel.mtu)
        assert self.host is not None
        self._routed = new
        host_net = await asyncio.to_thread(self._host_net, new, fitted)
        changed += await asyncio.to_thread(self.host.change, running.link.index, host_net)
        self.applied = new
        return changed

    async def _ask_for(self, running: Tunnel, new: FileConfig) -> dict[bytes, Names]:
        """The endpoints that the file changed, by public key."""
        known, present = _by_key(self.applied), running.supervisor.device.peers
        return await running.resolver.ask({
            peer.public_key: peer.endpoints for peer in new.tunnel.peers
            if peer.endpoints and (peer.public_key not in present or peer.public_key not in known
                                   or peer.endpoints != known[peer.public_key].endpoints)})

    def change_interface(self, running: Tunnel, new: TunnelConfig) -> list[str]:
        """Change what the file changes of the interface; what that is, in words."""
        supervisor, changed = running.supervisor, []
        for name, what, change in (
                ("private_key", "the private key", supervisor.set_private_key),
                ("listen_port", "the port", supervisor.set_listen_port),
                ("fwmark", "the firewall mark", supervisor.set_fwmark),
                ("rate_limits", "the rate limits", partial(running.set_rate_limits, None))):
            value = getattr(new, name)
            if value is not None and value != getattr(self.applied.tunnel, name):
                change(value)
                self.applied = self.applied.having(**{name: value})
                changed.append(what)
        running.resolver.interval_s = new.resolve_every_s
        return changed

    def change_peers(self, running: Tunnel, new: FileConfig,
                     names: Mapping[bytes, Names]) -> list[str]:
        """Change what the file changes, and nothing else: a peer keeps its session, and the
        endpoint that it roamed to. After a failure all allowed IPs are set again."""
        device, known, changed = running.supervisor.device, _by_key(self.applied), []
        wanted = {key: peer for key, peer in _by_key(new).items() if key != device.public_key}
        had_failed, self._has_failed = self._has_failed, True
        try:
            for peer in list(device.peers.values()):
                if peer.public_key not in wanted:
                    changed.append(f"{peer} removed")
                    running.configure_peer(PeerChange(peer.public_key, Presence.REMOVE))
            for key, config in wanted.items():
                is_new = key not in device.peers
                before = None if is_new else known.get(key)
                if had_failed or config != before:
                    try:
                        self._configure_peer(running, config, names.get(key), before)
                    except SystemSetupError:
                        known[key] = config     # but for some of its allowed IPs
                        raise
                    known[key] = config
                    changed.append(f"{device.peers[key]} {'added' if is_new else 'changed'}")
        finally:
            self.applied = self.applied.having(peers=tuple(known.values()))
        self._has_failed = False
        return changed

    @staticmethod
    def _configure_peer(running: Tunnel, config: PeerConfig, names: Names | None,
                        before: PeerConfig | None) -> None:
        peer = running.supervisor.device.peers.get(config.public_key)
        running.configure_peer(peer_change_of(
            config, None if names is None else running.resolver.candidates(names),
            at=None if peer is None else peer.endpoint, before=before), names)


def checked(name: str, file: FileConfig) -> TunnelConfig:
    """The tunnel of a file, as far as it can be checked before anything is made; ConfigError."""
    config = tunnel_config(name, file)
    try:
        attach.check(ethernet.attachment_of(config))
        if file.table not in ("auto", "off"):
            _table_number(file)
        if file.table != "auto" and config.kill_switch:
            raise OptionError("<kill_switch> needs routes in a table of its own, which "
                              f"<table={file.table}> leaves out; leave out one of them")
    except ConfigError as error:
        raise file.located(error) from None
    return config


def _table_number(file: FileConfig) -> int:
    """That of the routing table that a file names."""
    try:
        return routes.table_number(file.table)
    except ConfigError as error:
        raise OptionError(f"<table={file.table}>: {error}") from None


def _by_key(file: FileConfig) -> dict[bytes, PeerConfig]:
    return {peer.public_key: peer for peer in file.tunnel.peers}
