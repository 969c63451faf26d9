"""Sites with hosts behind them: namespaces for tests of the switch.

    host -- br0 | site s1 | wire -- the underlay's bridge -- wire | site s2 | br0 -- host ...

Host h12 is the second behind site s1. The hosts share 10.8.0.0/24 and fd00:8::/64.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from fastpump.lab.networks import Lab, ip, need, stop
from fastpump.protocol import keys
from support.hosts import until

MTU = 1390      # of everything inside


def inside4(host):
    return f"10.8.0.{host[1:]}"


def inside6(host):
    return f"fd00:8::{host[1:]}"


@dataclass
class Sites(Lab):
    """`count` sites with two hosts each; `keys`: (private key file, public key) by site."""

    count: int = 3

    @property
    def sites(self):
        return [f"s{n}" for n in range(1, self.count + 1)]

    @property
    def hosts(self):
        return [f"h{n}{m}" for n in range(1, self.count + 1) for m in (1, 2)]

    def __enter__(self):
        need("ip")
        try:
            for name in ("net", *self.sites, *self.hosts):
                self.add_host(name)
            self.ip("net", "link", "add", "under", "type", "bridge")
            self.ip("net", "link", "set", "under", "up")
            for number, site in enumerate(self.sites, 1):
                self._cable(site, "wire", "net", f"to-{site}")
                self.ip("net", "link", "set", f"to-{site}", "master", "under")
                self.ip(site, "address", "add", f"192.0.2.{number}/24", "dev", "wire")
                self.ip(site, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
                self.ip(site, "link", "set", "br0", "up")
            for host in self.hosts:
                site = f"s{host[1]}"
                self._cable(host, "eth0", site, host)
                self.ip(site, "link", "set", host, "master", "br0")
                self.ip(host, "address", "add", f"{inside4(host)}/24", "dev", "eth0")
                self.ip(host, "address", "add", f"{inside6(host)}/64", "dev", "eth0", "nodad")
        except BaseException:
            self.close()
            raise
        return self

    def _cable(self, one, name, two, other_name):
        ip("link", "add", name, "netns", self.names[one], "mtu", "1500", "type", "veth", "peer",
           "name", other_name, "netns", self.names[two])
        inner = MTU if name == "eth0" else 1500
        for where, link in ((one, name), (two, other_name)):
            self.ip(where, "link", "set", link, "mtu", str(inner), "up")

    def move(self, host, site):
        """Plug a host's cable into another site's bridge."""
        before = next(each for each in self.sites
                      if self.ip(each, "link", "show", host, check=False))
        self.ip(before, "link", "set", host, "netns", self.names[site])
        self.ip(site, "link", "set", host, "master", "br0", "up")

    @contextlib.contextmanager
    def unplugged(self, host, site):
        """Nothing that a host sends by itself (ARP, neighbour discovery) comes to its site."""
        self.ip(site, "link", "set", host, "down")
        try:
            yield
        finally:
            self.ip(site, "link", "set", host, "up")

    def pings(self, host, to, *options):
        """Whether a ping is answered."""
        return self.run(host, "ping", "-c", "1", "-W", "2", *options, to,
                        check=False).returncode == 0


@contextlib.contextmanager
def switched(lab, directory, *options, links=None, relays=()):
    """`fastpump tunnel --tap` at all sites, each the peer of each other, or of those of `links`
    (pairs of sites): lanes are up."""
    key = {}
    for site in lab.sites:
        private = keys.generate_private()
        path = directory / f"{site}.key"
        path.touch(mode=0o600)
        path.write_text(keys.encode(private))
        key[site] = path, keys.encode(keys.public_of(private))
    pairs = links or [(a, b) for a in lab.sites for b in lab.sites if a < b]
    processes = {}
    try:
        for site in lab.sites:
            words = []
            for other in lab.sites:
                if (site, other) in pairs or (other, site) in pairs:
                    words += ["--peer", f"{key[other][1]}@192.0.2.{other[1:]}:51820"]
            processes[site] = lab.fastpump(
                site, "--tap", "--bridge", "br0", "--mtu", str(MTU), "--private-key",
                str(key[site][0]), *words, *options, *["--relay"] * (site in relays))
        for host in lab.hosts:      # a broadcast from everywhere brings all sessions up
            lab.run(host, "ping", "-c", "1", "-W", "1", "-b", "10.8.0.255", check=False)
        until(lambda: all(peer["transport"] == "lanes" for site in lab.sites
                          for peer in lab.status(site)["peers"]), 20)
        yield processes
    finally:
        for process in processes.values():
            stop(process)
            lab.processes.remove(process)


RECEIVE = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
sock.bind(("", 9000))
print("receiving", flush=True)
numbers = []
try:
    while True:
        numbers.append(int(sock.recv(2000).split(b" ")[0]))
        sock.settimeout(float(sys.argv[1]))
except TimeoutError:
    pass
print("received", *numbers, flush=True)
"""
SEND = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for number in range(int(sys.argv[2])):
    sock.sendto(b"%d " % number + bytes(int(sys.argv[3])), (sys.argv[1], 9000))
    time.sleep(0.002)
"""


def broadcast(lab, sender, receivers, count, size=100):
    """Numbers of broadcast datagrams from one host: {host: those that came, in order}."""
    from fastpump.lab.networks import wait_for_line
    listening = {host: lab.spawn(host, sys.executable, "-c", RECEIVE, "2") for host in receivers}
    for process in listening.values():
        wait_for_line(process, "receiving")
    lab.run(sender, sys.executable, "-c", SEND, "10.8.0.255", str(count), str(size))
    got = {}
    for host, process in listening.items():
        got[host] = list(map(int, wait_for_line(process, "received", 20).split()[1:]))
        stop(process)
        lab.processes.remove(process)
    return got
