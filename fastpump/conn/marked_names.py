"""Host names, asked for by sockets with the tunnel's mark: under a kill switch no other question to
a name server leaves the host in clear.

The names in /etc/hosts come first. Then the name servers that the operator named, or those of the
host, but for those at a loopback address (such as systemd-resolved's, whose servers are used): such
a forwarder's own questions have no mark.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fastpump.conn.endpoint import Endpoint, EndpointError, interleaved, is_name
from fastpump.errors import ConfigError

HOSTS = Path("/etc/hosts")
RESOLV_CONF = Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")
ANSWER_TIMEOUT_S = 10.0
_PORT = 53


def check(hosts: Iterable[str]) -> None:
    """ConfigError if there are names among these hosts of endpoints, and they cannot be
    resolved."""
    if any(map(is_name, hosts)) and not _has_library():
        raise ConfigError("a kill switch with an endpoint that is a host name needs dnspython, to "
                          "ask for it outside of the tunnel: pip install 'fastpump[killswitch]' "
                          "(Debian: apt install python3-dnspython), or give the address")


def _has_library() -> bool:
    """Whether dnspython is installed."""
    try:
        import dns.resolver  # noqa: F401 (only few need it)
    except ImportError:
        return False
    return True


class MarkedNames:
    """Resolves names as conn/endpoint.py: resolve does."""

    def __init__(self, servers: Sequence[str], mark: Callable[[], int]) -> None:
        """`servers`: addresses; none: the host's, as `take_servers` finds them. `mark`: of the
        sockets."""
        self.servers = tuple(servers)
        """Whom it asks."""
        self._mark = mark

    def take_servers(self) -> None:
        """Unless some were named, ask the host's from now on: before the tunnel's own take their
        place, and after what a killed tunnel left there is undone."""
        self.servers = self.servers or _servers_of_host()

    def resolve(self, host: str, port: int) -> tuple[Endpoint, ...]:
        """All addresses of a name, in the order in which they are to be tried; EndpointError.
        Blocks during the lookup."""
        addresses = _in_hosts(host) or self._ask(host, port)
        known = [Endpoint(ipaddress.ip_address(each), port) for each in addresses]
        return interleaved(sorted(known, key=lambda each: not self._has_way(each)))

    def _has_way(self, endpoint: Endpoint) -> bool:
        """Whether the host has a route there."""
        family = socket.AF_INET if endpoint.address.version == 4 else socket.AF_INET6
        try:
            with self._socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(endpoint.to_python(family))
        except OSError:
            return False
        return True

    def _ask(self, host: str, port: int) -> list[str]:
        import dns.exception
        import dns.query
        import dns.resolver

        if not self.servers:
            raise EndpointError(
                f"the endpoint host {host!r} cannot be resolved: under the kill switch a name "
                "server must be named that can be reached outside of the tunnel (EndpointDNS)",
                (host, port))
        # The library's only way to give its sockets options.
        dns.query.socket_factory = self._socket
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = list(self.servers)
        resolver.lifetime = ANSWER_TIMEOUT_S
        found: list[str] = []
        problems: list[Exception] = []
        for kind in ("AAAA", "A"):      # a server may refuse one of them
            try:
                found += [str(each.address) for each in resolver.resolve(host, kind)]
            except dns.exception.DNSException as error:
                problems.append(error)
        if not found:
            raise EndpointError(f"the endpoint host {host!r} cannot be resolved: "
                                f"{_reason(problems[-1], self.servers)}", (host, port))
        return found

    def _socket(self, *args: Any, **kwargs: Any) -> socket.socket:
        made = socket.socket(*args, **kwargs)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark())
        return made


def _reason(error: Exception, servers: Iterable[str]) -> str:
    import dns.resolver

    if isinstance(error, dns.resolver.NXDOMAIN):
        return "there is no such name"
    if isinstance(error, dns.resolver.NoAnswer):
        return "the name has no address"
    return f"no answer from {' or '.join(servers)}"


def _servers_of_host() -> tuple[str, ...]:
    """The name servers that are not at a loopback address."""
    for path in RESOLV_CONF:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        named = [words[1] for words in map(str.split, lines)
                 if len(words) > 1 and words[0] == "nameserver"]
        found = tuple(each for each in named if _is_elsewhere(each))
        if found:
            return found
    return ()


def _is_elsewhere(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _in_hosts(host: str) -> list[str]:
    """The addresses of a name in /etc/hosts."""
    try:
        lines = HOSTS.read_text(errors="replace").splitlines()
    except OSError:
        return []
    wanted, found = host.rstrip(".").lower(), []
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if wanted in map(str.lower, names) and not is_name(address):
            found.append(address.partition("%")[0])
    return found
