"""WireGuard's habits, of two fastpumps on lanes or by sessions alone, and of one with wireguard-go:
whatever moves (endpoints, addresses, interfaces, a NAT's ports, peers, prefixes), data flows again
within one second, in both directions, on all queues.

Both kinds of tunnel are configured by wg. Host a always has a fastpump.
"""

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastpump.lab.networks import (
    INSIDE4,
    OUTSIDE4,
    OUTSIDE6,
    Lab,
    ip,
    key_files,
    need,
    tunnel_words,
    wait_until,
)
from fastpump.protocol import keys
from support.flows import answer, answered
from support.hosts import FASTPUMP, WG_SOCKETS, interface_names, is_reachable, until

KINDS = ("lanes", "wireguard", "wireguard-go")
PORT = 51820
AWAY4 = {"a": "192.0.2.11", "b": "192.0.2.12"}
NOBODY = "192.0.2.99"
WAN = {"n": "198.51.100.1", "b": "198.51.100.2", "other": "198.51.100.3"}
LAN = {"n": "10.1.0.1", "a": "10.1.0.2"}
AWAY6 = {"a": "2001:db8::11", "b": "2001:db8::12"}
NETWORK = "10.50.0.0/24"
IN_NETWORK = "10.50.0.1"
INSIDE = {**INSIDE4, "c": "10.9.0.3"}
OTHER = {"a": "b", "b": "a", "c": "a"}


def at(address, port=PORT):
    """An endpoint as wg writes it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass
class Tunnel:
    """Of two hosts or more, in which UDP flows are answered."""

    lab: Lab
    kind: str
    directory: Path
    names: dict[str, str]
    keys: dict[str, tuple[Path, str]] = field(default_factory=dict)

    def start(self, side):
        """An interface without peers."""
        name, (key, _) = self.names[side], self.keys[side]
        if self.kind == "wireguard-go" and side != "a":
            self.lab.spawn(side, "wireguard-go", "--foreground", name)
            until((WG_SOCKETS / f"{name}.sock").exists)
            self.wg(side, "private-key", str(key), "listen-port", str(PORT))
            self.lab.ip(side, "address", "add", f"{INSIDE[side]}/24", "dev", name)
            self.lab.ip(side, "link", "set", name, "mtu", "1420", "up")
        else:
            transport = "auto" if self.kind == "wireguard-go" else self.kind
            self.lab.fastpump(side, name, "--queues", "2", "--transport", transport,
                              "--address", f"{INSIDE[side]}/24", "--private-key", str(key))
        answer(self.lab, side, INSIDE[side], side)

    def wg(self, side, *words):
        self.lab.run(side, "wg", "set", self.names[side], *words)

    def set(self, side, *words, other=""):
        """Change its peer, the other side."""
        self.wg(side, "peer", self.keys[other or OTHER[side]][1], *words)

    def know(self, *sides, **endpoints):
        """Make both sides peers; `sides` are told where the other one is."""
        for side, other in (("a", "b"), ("b", "a")):
            where = at(endpoints.get(other) or OUTSIDE4[other])
            self.set(side, "allowed-ips", f"{INSIDE[other]}/32",
                     *(("endpoint", where) if side in sides else ()))

    def flows(self, side, within_s=1):
        """Whether flows from a side to the other move, all within that time."""
        other = OTHER[side]
        return answered(self.lab, side, INSIDE[other], within_s=within_s) == other

    def flow_both_ways(self, first="a"):
        return [self.flows(side) for side in (first, OTHER[first])] == [True] * 2

    def connect(self, first="a"):
        """The first packets make a session; and lanes, if it is to be lanes."""
        until(lambda: self.flows(first))
        if self.kind == "lanes":
            until(self.has_lanes)

    def lanes(self, side):
        (peer,) = self.lab.status(side)["peers"]
        return peer["lanes"]

    def has_lanes(self):
        return all([lane["state"] for lane in self.lanes(side)] == ["up"] * 2 for side in "ab")

    def shows(self, side, where):
        """Whether wg says soon that the other side is there."""
        def endpoint():
            return self.lab.run(side, "wg", "show", self.names[side], "endpoints").stdout.split()[1]

        with contextlib.suppress(AssertionError):
            until(lambda: endpoint() == where, 5)
        assert endpoint() == where
        return True


def renumber(lab, side, *addresses):
    """Give a host other addresses, in place of those that it has."""
    wire = ("dev", "wire")
    old = re.findall(r" inet6? (\S+)/\d+ .*scope global", lab.ip(side, "address", "show", *wire))
    for address in addresses:
        lab.ip(side, "address", "add", f"{address}/{64 if ':' in address else 24}", *wire,
               *(("nodad",) if ":" in address else ()))
    for address in old:
        lab.ip(side, "address", "delete", f"{address}/{64 if ':' in address else 24}", *wire)


@pytest.fixture(params=KINDS)
def tunnel(request, lab, tmp_path):
    """Two interfaces, up, without peers."""
    need("wg", "wireguard-go")
    for side in "ab":
        lab.sysctl(side, {"net.ipv4.conf.all.promote_secondaries": 1})
    with interface_names(3) as names:
        made = Tunnel(lab, request.param, tmp_path, dict(zip("abc", names, strict=True)),
                      key_files(tmp_path))
        for side in "ab":
            made.start(side)
        yield made


def is_up(lab, side, name):
    return " state UP " in lab.ip(side, "link", "show", name)


# -- endpoints

@pytest.mark.parametrize("told", ["a", "b"])
def test_both_hosts_move_and_one_is_told(tunnel, told):
    tunnel.know("a", "b")
    tunnel.connect()
    other = OTHER[told]
    for side in "ab":
        renumber(tunnel.lab, side, AWAY4[side])
    tunnel.set(told, "endpoint", at(AWAY4[other]))
    assert tunnel.flow_both_ways(told)
    assert tunnel.shows(told, at(AWAY4[other])) and tunnel.shows(other, at(AWAY4[told]))


@pytest.mark.parametrize("told", ["a", "b"])
def test_an_endpoint_moves_between_families_and_ports(tunnel, told):
    tunnel.know("a", "b")
    tunnel.connect()
    other = OTHER[told]
    tunnel.set(told, "endpoint", at(OUTSIDE6[other]))
    assert tunnel.flow_both_ways(told)
    assert tunnel.shows(told, at(OUTSIDE6[other])) and tunnel.shows(other, at(OUTSIDE6[told]))

    tunnel.set(told, "endpoint", at(OUTSIDE4[other]))
    assert tunnel.flow_both_ways(told)
    assert tunnel.shows(told, at(OUTSIDE4[other])) and tunnel.shows(other, at(OUTSIDE4[told]))

    tunnel.wg(other, "listen-port", "4242")
    tunnel.set(told, "endpoint", at(OUTSIDE4[other], 4242))
    assert tunnel.flow_both_ways(told)
    assert tunnel.shows(told, at(OUTSIDE4[other], 4242))

    # The other side moves without a word, and speaks first.
    tunnel.wg(other, "listen-port", "4343")
    assert tunnel.flow_both_ways(other)
    assert tunnel.shows(told, at(OUTSIDE4[other], 4343))


@pytest.mark.parametrize("transport", ["lanes", "wireguard"])
def test_reload_moves_data_as_wg_does(lab, tmp_path, transport):
    """Of a side that did not open the lanes."""
    key = key_files(tmp_path)
    lab.fastpump("b", *tunnel_words("b", key["b"], key["a"][1], "--queues", "2", "--transport",
                                    transport))
    with interface_names(1) as (name,):
        file = tmp_path / f"{name}.conf"
        file.touch(mode=0o600)

        def configure(verb, endpoint):
            file.write_text(
                f"[Interface]\nPrivateKey = {key['a'][0].read_text()}Queues = 2\n"
                f"Address = {INSIDE['a']}/24\nListenPort = {PORT}\n"
                f"Transport = {transport}\n[Peer]\n"
                f"PublicKey = {key['b'][1]}\nAllowedIPs = {INSIDE['b']}/32\n"
                f"Endpoint = {at(endpoint)}\n")
            lab.run("a", *FASTPUMP, verb, str(file))

        configure("up", OUTSIDE4["b"])
        for side in "ab":
            answer(lab, side, INSIDE[side], side)
        until(lambda: answered(lab, "b", INSIDE["a"]) == "a")
        for side in "ab":
            lab.sysctl(side, {"net.ipv4.conf.all.promote_secondaries": 1})
            renumber(lab, side, AWAY4[side])
        configure("reload", AWAY4["b"])
        assert answered(lab, "a", INSIDE["b"]) == "b" and answered(lab, "b", INSIDE["a"]) == "a"
        lab.run("a", *FASTPUMP, "down", str(file))


def test_an_endpoint_that_was_wrong(tunnel):
    """While handshakes are under way, the next try would be five seconds later."""
    tunnel.know()
    assert not tunnel.flows("a")
    tunnel.set("a", "endpoint", at(NOBODY))
    assert not tunnel.flows("a")
    tunnel.set("a", "endpoint", at(OUTSIDE4["b"]))
    assert tunnel.flow_both_ways()


def test_what_roams_after_a_set_is_followed(tunnel):
    """Also if each side was told another IP version."""
    tunnel.know("a", "b")
    tunnel.connect()
    tunnel.set("a", "endpoint", at(OUTSIDE6["b"]))
    tunnel.set("b", "endpoint", at(OUTSIDE4["a"]))
    assert tunnel.flow_both_ways("b")
    tunnel.set("b", "endpoint", at(OUTSIDE6["a"]))
    assert tunnel.flow_both_ways("b")
    renumber(tunnel.lab, "b", AWAY6["b"])
    assert tunnel.flow_both_ways("b")
    assert tunnel.shows("a", at(AWAY6["b"]))


# -- addresses and links of the host

@pytest.mark.parametrize("version", [4, 6])
def test_addresses_come_and_go_under_way(tunnel, version):
    outside, away = (OUTSIDE4, AWAY4) if version == 4 else (OUTSIDE6, AWAY6)
    tunnel.know("a", "b", **outside)
    tunnel.connect()
    # wireguard-go goes on to send from an IPv4 address that is gone.
    for side in "a" if tunnel.kind == "wireguard-go" and version == 4 else "ab":
        other = OTHER[side]
        renumber(tunnel.lab, side, away[side])
        assert tunnel.flow_both_ways(side)
        assert tunnel.shows(other, at(away[side]))
        # A while without any.
        renumber(tunnel.lab, side)
        assert not tunnel.flows(side, within_s=0.2)
        renumber(tunnel.lab, side, outside[side])
        assert tunnel.flow_both_ways(side)
        assert tunnel.shows(other, at(outside[side]))


def test_the_cable_is_pulled_and_put_in_again(tunnel):
    tunnel.know("a", "b")
    tunnel.connect()
    lab = tunnel.lab
    for side in "ab":
        lab.ip(side, "link", "set", "wire", "down")
        assert not any(tunnel.flows(each, within_s=0.2) for each in "ab")
        lab.ip(side, "link", "set", "wire", "up")
        until(lambda: all(is_up(lab, each, "wire") for each in "ab"))
        assert tunnel.flow_both_ways(side)


def test_another_uplink_is_better_for_a_while(tunnel):
    """The address that a sent from is still there, but nobody takes datagrams from it there."""
    lab, far = tunnel.lab, "203.0.113.1"
    ip("link", "add", "second", "netns", lab.names["a"], "type", "veth", "peer", "name", "second",
       "netns", lab.names["b"])
    for side in "ab":
        lab.ip(side, "address", "add", f"{WAN[{'a': 'n', 'b': 'b'}[side]]}/24", "dev", "second")
        lab.ip(side, "link", "set", "second", "up")
    assert is_reachable(lab, WAN["b"])      # ARP's retries would take a second
    lab.ip("b", "address", "add", far, "dev", "lo")
    lab.sysctl("b", {f"net.ipv4.conf.{name}.rp_filter": 1 for name in ("all", "wire", "second")})
    lab.ip("a", "route", "add", "default", "via", OUTSIDE4["b"], "metric", "100")
    tunnel.know("a", b=far)
    tunnel.connect()
    other = "default", "via", WAN["b"], "metric", "50"
    for verb, where in (("add", WAN["n"]), ("delete", OUTSIDE4["a"])) * 2:
        lab.ip("a", "route", verb, *other)
        assert tunnel.flow_both_ways()
        assert tunnel.shows("b", at(where))


@pytest.mark.parametrize("side", ["a", "b"])
def test_an_interface_goes_down_and_up(tunnel, side):
    tunnel.know("a", "b")
    tunnel.connect()
    tunnel.lab.ip(side, "link", "set", tunnel.names[side], "down")
    assert not tunnel.flows(side, within_s=0.2)
    tunnel.lab.ip(side, "link", "set", tunnel.names[side], "up")
    assert tunnel.flow_both_ways(side)


# -- between the hosts

def masquerade(lab, ports):
    lab.run("n", "nft", "-f", "-", input=(
        "table ip nat\ndelete table ip nat\ntable ip nat {\n"
        "chain postrouting { type nat hook postrouting priority 100; policy accept;\n"
        f"oifname \"wan\" udp dport {PORT} masquerade to :{ports}\n}}\n}}\n"))


@pytest.fixture
def nat(tunnel):
    """Host n, behind which host a is for WAN."""
    lab = tunnel.lab
    need("nft")
    lab.add_host("n")
    for side, name, far, far_name in (("a", "lan", "n", "lan"), ("n", "wan", "b", "wan")):
        ip("link", "add", name, "netns", lab.names[side], "type", "veth", "peer", "name",
           far_name, "netns", lab.names[far])
    for side, name, address in (("a", "lan", LAN["a"]), ("n", "lan", LAN["n"]),
                                ("n", "wan", WAN["n"]), ("b", "wan", WAN["b"])):
        lab.ip(side, "address", "add", f"{address}/24", "dev", name)
        lab.ip(side, "link", "set", name, "up")
    lab.sysctl("n", {"net.ipv4.ip_forward": 1})
    lab.ip("a", "route", "add", "198.51.100.0/24", "via", LAN["n"])
    masquerade(lab, "20000-29999")
    for side, name in (("a", "lan"), ("n", "wan")):
        wait_until(lambda side=side, name=name: is_up(lab, side, name), "no carrier")


@pytest.mark.usefixtures("nat")
def test_a_nat_gives_other_ports_and_then_another_address(tunnel):
    """Its table is forgotten when its link or its address goes (net/netfilter/nf_nat_masquerade.c).
    Nobody in the tunnel is told."""
    lab = tunnel.lab
    tunnel.know("a", b=WAN["b"])
    tunnel.connect()

    masquerade(lab, "30000-39999")
    lab.ip("n", "link", "set", "wan", "down")
    lab.ip("n", "link", "set", "wan", "up")
    until(lambda: is_up(lab, "n", "wan") and is_up(lab, "b", "wan"))
    assert tunnel.flow_both_ways()
    lanes = tunnel.lanes("b") if tunnel.kind == "lanes" else []
    assert all(30000 <= int(lane["endpoint"].rpartition(":")[2]) < 40000 for lane in lanes)

    lab.ip("n", "address", "delete", f"{WAN['n']}/24", "dev", "wan")
    lab.ip("n", "address", "add", f"{WAN['other']}/24", "dev", "wan")
    assert tunnel.flow_both_ways()
    assert until(lambda: lab.run("b", "wg", "show", tunnel.names["b"], "endpoints").stdout.split()[
        1].startswith(WAN["other"]), 5)


def test_the_answer_comes_from_the_address_that_was_asked(tunnel):
    """Host b has two; a's firewall lets in what comes from the one that a sends to."""
    lab = tunnel.lab
    need("nft")
    lab.ip("b", "address", "add", f"{AWAY4['b']}/24", "dev", "wire")
    tunnel.know("a")
    tunnel.connect()
    for asked, other in ((AWAY4["b"], OUTSIDE4["b"]), (OUTSIDE4["b"], AWAY4["b"])):
        lab.run("a", "nft", "-f", "-", input=(
            "table ip only\ndelete table ip only\ntable ip only {\n"
            "chain input { type filter hook input priority 0; policy accept;\n"
            f"ip saddr {other} counter drop\n}}\n}}\n"))
        tunnel.set("a", "endpoint", at(asked))
        assert tunnel.flow_both_ways()
        assert tunnel.shows("a", at(asked))


# -- peers

def test_a_peer_is_removed_and_added_again(tunnel):
    tunnel.know("a", "b")
    tunnel.connect()
    for side in "ab":
        tunnel.set(side, "remove")
        assert not tunnel.flows(side)
        tunnel.know(side)
        assert tunnel.flow_both_ways(side)


def test_a_prefix_moves_to_another_peer_and_back(tunnel):
    lab = tunnel.lab
    lab.add_host("c")
    ip("link", "add", "third", "netns", lab.names["a"], "type", "veth", "peer", "name", "third",
       "netns", lab.names["c"])
    for side, number in (("a", 1), ("c", 3)):
        lab.ip(side, "address", "add", f"203.0.113.{number}/24", "dev", "third")
        lab.ip(side, "link", "set", "third", "up")
    key = tunnel.directory / "c.key"
    key.touch(mode=0o600)
    key.write_text(keys.encode(keys.generate_private()))
    tunnel.keys["c"] = key, keys.encode(keys.public_of(keys.read_file(key, "key")))
    tunnel.start("c")
    tunnel.know("a", "b")
    tunnel.set("c", "allowed-ips", f"{INSIDE['a']}/32")
    tunnel.set("a", "endpoint", at("203.0.113.3"), other="c")
    lab.ip("a", "route", "add", NETWORK, "dev", tunnel.names["a"])
    for side in "bc":
        lab.ip(side, "address", "add", f"{IN_NETWORK}/32", "dev", "lo")
        answer(lab, side, IN_NETWORK, side, port="7001")
    for owner in "bcbc":
        tunnel.set("a", "allowed-ips", f"{INSIDE[owner]}/32,{NETWORK}", other=owner)
        assert answered(lab, "a", IN_NETWORK, port="7001") == owner


def test_a_packet_that_is_not_allowed_moves_its_peer_too(tunnel):
    """As in the kernel: it is authentic, so that is where the peer is."""
    tunnel.know("a", "b", **OUTSIDE6)
    tunnel.connect()
    lab = tunnel.lab
    lab.ip("b", "address", "add", f"{IN_NETWORK}/32", "dev", "lo")
    renumber(tunnel.lab, "b", AWAY6["b"])
    lab.run("b", "ping", "-q", "-c", "3", "-i", "0.1", "-W", "0.1", "-I", IN_NETWORK, INSIDE["a"],
            check=False)
    assert tunnel.shows("a", at(AWAY6["b"]))
