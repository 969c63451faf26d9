"""`fastpump tunnel`: a tunnel in the foreground, and what to type on the other host."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import sys
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastpump.cli.leftovers import recover
from fastpump.config.command_line import with_default_allowed_ips
from fastpump.config.gateway import Gateway
from fastpump.config.model import TunnelConfig, check
from fastpump.constants import DEFAULT_NAME, DEFAULT_PORT
from fastpump.host import ethernet, full_tunnel, ipv6
from fastpump.host.down_commands import DownCommands
from fastpump.host.network import HostNet, find_closed
from fastpump.ip import Address, Interface
from fastpump.netlink import links, routes
from fastpump.netlink.default_routes import TABLE_MAIN
from fastpump.tunnel.host_changes import HostChanges, kill_switch_of
from fastpump.tunnel.run import Program, run
from fastpump.tunnel.tunnel import Tunnel


def run_in_foreground(config: TunnelConfig, *, as_json: bool = False) -> None:
    """`fastpump tunnel`: prints one line to stdout when it is ready."""
    check(config)
    foreground = _Foreground(with_default_allowed_ips(config), as_json)
    if config.name not in (name for _, name in socket.if_nameindex()):  # else it may be running
        recover(config.name, takes_over=config.mode == "tun",
                masquerades=Gateway.of(config.gateway).masquerades)
    run(foreground.config, Program(configure=foreground.configure, on_ready=foreground.on_ready,
                                   before_configure=(foreground.close if config.kill_switch
                                                     else None),
                                   must_reach_endpoints=True,
                                   needs_names=foreground.is_full,
                                   closed=find_closed(config.name)))


@dataclass(slots=True)
class _Foreground:
    """What the program does at the start, and when it is ready."""

    config: TunnelConfig
    as_json: bool
    host: str | None = None
    """Without peers: where another host would find this one."""
    changes: HostChanges | None = None
    endpoints: Collection[Address] = ()
    """The peers' at the start."""
    mtu: int | None = None
    """Once it is known. The paths to the peers may differ later; it stays."""

    @property
    def is_full(self) -> bool:
        """Whether it is for more than some networks."""
        return self.config.routes and not self.config.kill_switch and any(
            full_tunnel.is_wide(network) for peer in self.config.peers
            for network in peer.allowed_ips or ())

    async def close(self, tunnel: Tunnel, cleanup: ExitStack) -> None:
        """Let nothing leave in clear, from now on."""
        self._take_host(tunnel, cleanup)
        assert self.changes is not None
        await asyncio.to_thread(self.changes.close)

    def _take_host(self, tunnel: Tunnel, cleanup: ExitStack) -> None:
        self.changes = HostChanges(
            tunnel, self.config.name, DownCommands(), asyncio.Lock(), self._host_net)
        cleanup.callback(partial(self.changes.end, keeps_commands=False))

    def configure(self, tunnel: Tunnel, cleanup: ExitStack,
                  endpoints: Collection[Address]) -> None:
        """Give the interface its MTU, addresses and routes, and bring it up."""
        config, index = self.config, tunnel.link.index
        if config.mode == "tap":
            ethernet.configure(config, index, cleanup, endpoints)
        else:
            self.endpoints, self.mtu = endpoints, config.mtu
            links.set_up(links.get(index))
            if self.changes is None:
                self._take_host(tunnel, cleanup)
            assert self.changes is not None
            self.changes.state.change(index, self._host_net())
        if not config.peers:
            self.host = routes.likely_address(
                index, [address.ip for address in config.addresses]) or "THIS_HOST"

    def _host_net(self) -> HostNet:
        assert self.changes is not None
        config = self.config
        networks = [network for peer in config.peers for network in peer.allowed_ips or ()
                    if config.routes]
        versions = (4,) if ipv6.is_left_out(config.name, (*config.addresses, *networks)) else (4, 6)
        connected = {address.network for address in config.addresses}
        if config.kill_switch:      # nothing goes by the main table, where those are
            networks = list(dict.fromkeys((*networks, *connected)))
            connected = set()
        networks = [each for each in networks
                    if each.version in versions and each not in connected]
        addresses = tuple(each for each in config.addresses if each.version in versions)
        apart = self.changes.apart(networks)
        if self.mtu is None:
            self.mtu = ipv6.fitting_mtu(routes.fitting_mtu(self.endpoints, self.changes.table),
                                        (*addresses, *networks))
        return HostNet(
            addresses, self.mtu,
            tuple((each, self.changes.table if each in apart else TABLE_MAIN) for each in networks),
            self.changes.table, kill_switch=kill_switch_of(config))

    def on_ready(self, tunnel: Tunnel) -> None:
        """Say so, and what to type on the other host."""
        if self.changes is not None:
            self.changes.ready()
        status = tunnel.status()
        hint = None if self.host is None else other_side_command(self.config, status, self.host)
        _say_ready(status, hint, as_json=self.as_json)


def _say_ready(status: dict[str, Any], hint: str | None, *, as_json: bool) -> None:
    """Print the one line that says that packets flow; without a peer, also what to do next."""
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
            "It prints its public key. Then restart this side with\n\n"
            f"    {_this_side_command(status['listen_port'])} --peer ITS_PUBLIC_KEY", flush=True)


def other_side_command(config: TunnelConfig, status: dict[str, Any], host: str) -> str:
    """The command that makes another host the peer of this one, which it finds at `host`."""
    is_tap = config.mode == "tap"
    words = ["fastpump", "tunnel", *[config.name] * (config.name != DEFAULT_NAME),
             *["--tap"] * is_tap, "--queues", str(len(status["queues"]))]
    if config.bridge is not None:
        words += ["--bridge", config.bridge]
    for address in config.addresses:
        words += ["--address", f"{_neighbour(address)}/{address.network.prefixlen}"]
    if not config.addresses and not is_tap:
        words += ["--address", "10.9.0.2/24"]
    host = f"[{host}]" if ":" in host else host
    peer = f"{status['public_key']}@{host}:{status['listen_port']}"
    if not is_tap and all(address.network.num_addresses == 1 for address in config.addresses):
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


def _this_side_command(port: int) -> str:
    """The command that was typed; with the port, if it would not be the same again: the other host
    is told this one."""
    words = sys.argv[1:]
    is_fixed = port == DEFAULT_PORT or str(port) in words
    return shlex.join(["fastpump", *words, *["--listen-port", str(port)] * (not is_fixed)])
