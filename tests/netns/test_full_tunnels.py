"""Full tunnels: routes that cover the peer's own address, and what leaves the host when the tunnel
does not carry it. Packets that b receives on the wire for a host behind it were sent in clear."""

import json

import pytest

from fastpump.lab.networks import INSIDE4, OUTSIDE4
from fastpump.netlink.routes import CLOSED_METRIC, NOBODY
from fastpump.protocol import keys
from support.hosts import FASTPUMP, is_reachable, until
from support.leaks import Started, passes, seen, traffic, watch
from support.quick import ADDRESSES, EVERYWHERE, FAR

HALVES = "0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"
ENDPOINTS = {4: "198.51.100.2", 6: "2001:db8:99::2"}
# Also networks that hold an endpoint, of different lengths, and one with nothing to do with that.
HOLDING = "198.0.0.0/8", "198.51.0.0/16", "203.0.113.0/24", "2001::/16"

@pytest.fixture
def world(quick, lab):
    """b is the way of a to everywhere, and has other addresses, at which it is a peer."""
    watch(lab, "metric", "600")
    for address in ENDPOINTS.values():
        lab.ip("b", "address", "add", address, "dev", "lo")
    return quick


def write(world, *interface, allowed):
    """A file whose peer is at such an endpoint."""
    world.write(*interface, peer=(f"AllowedIPs = {', '.join(allowed)}",), endpoint=ENDPOINTS[4])


def test_a_file_without_a_mark_keeps_our_datagrams_out_of_the_tunnel(world, lab):
    """`wg setconf` and `syncconf` set fwmark to 0 then; the rules go by the mark."""
    write(world, allowed=EVERYWHERE)
    tunnel = started(world, "up", EVERYWHERE)
    assert is_reachable(lab, FAR[0])
    mark = lab.run("a", "wg", "show", world.name, "fwmark").stdout
    stripped = world.directory / "stripped"
    stripped.write_text(lab.run("a", "wg", "showconf", world.name).stdout)
    stripped.write_text("".join(line for line in stripped.read_text().splitlines(True)
                                if not line.startswith("FwMark")))
    for verb in ("syncconf", "setconf"):
        lab.run("a", "wg", verb, world.name, str(stripped))
        assert lab.run("a", "wg", "show", world.name, "fwmark").stdout == mark != "off\n"
        assert is_reachable(lab, FAR[0])
    tunnel.end()


def started(world, way, allowed, version=4):
    """A tunnel without a kill switch to such a peer."""
    return Started(world, way, allowed=allowed, endpoint=ENDPOINTS[version])


WAYS = pytest.mark.parametrize("way", ["up", "tunnel"])


@pytest.mark.parametrize("allowed", [EVERYWHERE, HALVES, HOLDING],
                         ids=["default", "halves", "holding"])
@pytest.mark.parametrize("version", [4, 6])
@WAYS
def test_networks_that_hold_the_endpoint_are_carried(world, lab, way, allowed, version):
    before = world.state()
    tunnel = started(world, way, (*allowed, "10.9.0.0/24"), version)
    assert is_reachable(lab, INSIDE4["b"]) and is_reachable(lab, FAR[0])
    if allowed != HOLDING:
        assert is_reachable(lab, FAR[1])
    assert is_reachable(lab, ENDPOINTS[4])          # through the tunnel, as it is asked for
    assert is_reachable(lab, OUTSIDE4["b"])         # beside it: the host has a longer prefix
    assert seen(lab, "clear") == 0
    assert "DROP_LOOP" not in json.dumps(lab.status("a"))
    tunnel.end()
    assert world.state() == before


@WAYS
def test_the_longest_prefix_wins_also_between_the_host_and_the_tunnel(world, lab, way):
    for network in ("198.51.0.0/17", "198.0.0.0/12", "203.0.0.0/16"):
        lab.ip("a", "route", "add", network, "via", OUTSIDE4["b"])
    before = world.state()
    tunnel = started(world, way, ("198.51.0.0/16", "198.51.100.0/24", "203.0.0.0/6", "10.9.0.0/24"))
    ways = {host: world.name if f"dev {world.name}" in lab.ip("a", "route", "get", host) else "wire"
            for host in ("198.51.100.7", "198.51.1.1", "198.51.200.1", "198.5.0.1", "203.0.113.7",
                         "202.0.0.1", "8.8.8.8", "10.9.0.2")}
    assert ways == {"198.51.100.7": world.name, "198.51.1.1": "wire", "198.51.200.1": world.name,
                    "198.5.0.1": "wire", "203.0.113.7": "wire", "202.0.0.1": world.name,
                    "8.8.8.8": "wire", "10.9.0.2": world.name}
    assert is_reachable(lab, INSIDE4["b"])
    tunnel.end()
    assert world.state() == before


@WAYS
def test_datagrams_follow_the_way_out(world, lab, way):
    """Another uplink with a better metric; then the first one goes, with its address."""
    tunnel = started(world, way, (*EVERYWHERE, "10.9.0.0/24"))
    assert is_reachable(lab, FAR[0])
    lab.ip("a", "link", "add", "wire2", "type", "veth", "peer", "name", "wire2", "netns",
           lab.names["b"])
    for side, number in (("a", 1), ("b", 2)):
        lab.ip(side, "address", "add", f"192.0.3.{number}/24", "dev", "wire2")
        lab.ip(side, "link", "set", "wire2", "up")
    lab.ip("a", "route", "add", "default", "via", "192.0.3.2", "metric", "50")
    lab.ip("a", "address", "delete", f"{OUTSIDE4['a']}/24", "dev", "wire")
    lab.ip("a", "link", "set", "wire", "down")
    assert is_reachable(lab, FAR[0], timeout_s=20)
    assert "192.0.3.1:" in json.dumps(lab.status("b")) and seen(lab, "clear") == 0
    tunnel.end()


@WAYS
def test_a_killed_tunnel_fails_closed_until_down(world, lab, way):
    """The next one takes it over: nothing leaves in clear before `down`."""
    before = world.state()
    tunnel = started(world, way, (*EVERYWHERE, "10.9.0.0/24"))
    running = world.state()
    with traffic(lab):
        passes(lab)
        for _ in range(2):
            tunnel.kill()
            assert not is_reachable(lab, FAR[0], timeout_s=1)
            assert "unreachable default" in lab.ip("a", "-6", "route", "show", "table", "51820")
            tunnel.up()
            passes(lab)
        assert seen(lab, "clear") == 0
    assert {**world.state(), "processes": 0} == {**running, "processes": 0}
    assert tunnel.said.count("was killed; what it left behind is taken over now") == 2
    tunnel.end()
    assert world.state() == before


@WAYS
def test_one_that_is_killed_while_connections_are_told_leaves_nothing(world, lab, way):
    """The route that tells them is there for a moment only."""
    route = "unreachable", str(NOBODY), "metric", str(CLOSED_METRIC)
    before = world.state()
    lab.ip("a", "-6", "route", "add", *route)           # of another one, or of one that was killed
    tunnel = started(world, way, EVERYWHERE)
    assert str(NOBODY.network_address) not in lab.ip("a", "-6", "route")
    tunnel.kill()
    lab.ip("a", "-6", "route", "add", *route)
    world("down")
    assert world.state() == before


@WAYS
def test_after_down_packets_go_as_before(world, lab, way):
    before = world.state()
    tunnel = started(world, way, HALVES)
    tunnel.kill()
    assert not is_reachable(lab, FAR[0], timeout_s=1) and seen(lab, "clear") == 0
    assert "was killed" in world("down").stderr
    assert world.state() == before
    assert all(is_reachable(lab, host) for host in FAR) and seen(lab, "clear") == 2


@pytest.mark.parametrize("failing", ["PreUp = false", "DNS = 10.9.0.2", "PostUp = false"])
def test_a_start_that_fails_leaves_it_closed(world, lab, failing):
    before = world.state()
    tunnel = started(world, "up", EVERYWHERE)
    tunnel.kill()
    with traffic(lab):
        write(world, ADDRESSES, failing, "PostDown = false", allowed=EVERYWHERE)
        resolvconf = world.directory / "bin" / "resolvconf"
        text = resolvconf.read_text()
        resolvconf.write_text("#!/bin/sh\necho no >&2; exit 1\n")
        assert world("up", check=False).returncode == 1
        assert not any(is_reachable(lab, host, timeout_s=1) for host in FAR)
        resolvconf.write_text(text)
        write(world, ADDRESSES, allowed=EVERYWHERE)
        world("up")
        passes(lab)
        assert seen(lab, "clear") == 0
        world("down")
    assert world.state() == before


@WAYS
def test_a_name_that_cannot_be_resolved_behind_the_closed_tunnel(world, lab, way):
    """Its last address is tried. (Here the name server is a file.)"""
    hosts = world.directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{ENDPOINTS[4]} b.test\n")
    world.prefix = ["sh", "-euc", f'mount --bind {hosts} /etc/hosts; exec "$@"', "sh"]
    tunnel = Started(world, way, endpoint="b.test")
    tunnel.kill()
    hosts.write_text("127.0.0.1 localhost\n")
    tunnel.up()
    assert "198.51.100.2 is tried, where it was before" in tunnel.said
    assert all(is_reachable(lab, host) for host in FAR) and seen(lab, "clear") == 0
    assert world.peers()[world.public_b][1] == "198.51.100.2:51820"
    tunnel.end()


def test_one_that_is_not_full_any_more_opens_what_was_closed(world, lab):
    before = world.state()
    tunnel = started(world, "up", EVERYWHERE)
    tunnel.kill()
    write(world, ADDRESSES, allowed=("10.9.0.0/24",))
    world("up")
    state = world.state()
    assert {each: state[each] for each in ("-4 rule", "-6 rule", "nft")} == {
        each: before[each] for each in ("-4 rule", "-6 rule", "nft")}
    assert is_reachable(lab, INSIDE4["b"]) and is_reachable(lab, FAR[0])
    world("down")
    assert world.state() == before


@WAYS
def test_routes_come_back_when_the_interface_was_down(world, lab, way):
    tunnel = started(world, way, (*EVERYWHERE, "10.9.0.0/24", "10.77.0.0/16"))
    running = world.state()
    with traffic(lab):
        passes(lab)
        for _ in range(3):
            lab.ip("a", "link", "set", world.name, "down")
            lab.ip("a", "link", "set", world.name, "up")
            until(lambda: f"default dev {world.name}" in lab.ip(
                "a", "-6", "route", "show", "table", "51820"))
            passes(lab)
        assert seen(lab, "clear") == 0
    assert world.state() == running
    tunnel.end()


def test_reload_to_a_full_tunnel_and_back(world, lab):
    before = world.state()
    write(world, ADDRESSES, allowed=("10.9.0.0/24",))
    world("up")
    narrow = world.state()
    for allowed in (EVERYWHERE, HALVES, HOLDING):
        write(world, ADDRESSES, allowed=allowed)
        assert "the routes" in world("reload").stdout
        assert is_reachable(lab, FAR[0]) and seen(lab, "clear") == 0
    write(world, ADDRESSES, allowed=("10.9.0.0/24",))
    assert "the routes, the rules" in world("reload").stdout
    assert world.state() == narrow
    world("down")
    assert world.state() == before


@WAYS
def test_an_endpoint_that_is_given_later(world, lab, way):
    """It lies in a network behind the peer; nobody knew at the start."""
    before = world.state()
    lab.ip("b", "address", "add", "172.16.0.2", "dev", "lo")
    tunnel = started(world, way, ("172.16.0.0/12", "10.9.0.0/24"))
    assert is_reachable(lab, INSIDE4["b"])
    assert world.routes() >= {"172.16.0.0/12"} and world.state()["nft"] == before["nft"]
    lab.run("a", "wg", "set", world.name, "peer", world.public_b, "endpoint", "172.16.0.2:51820")
    until(lambda: world.routes("51820") == {"172.16.0.0/12"})
    assert is_reachable(lab, INSIDE4["b"]) and is_reachable(lab, "172.16.0.2")
    assert world.peers()[world.public_b][1] == "172.16.0.2:51820"
    tunnel.end()
    assert world.state() == before


def test_the_routes_of_peers_that_pre_up_added_stay(world, lab):
    """Also when something else changes on the host."""
    stranger = keys.encode(keys.public_of(keys.generate_private()))
    write(world, ADDRESSES, f"PreUp = wg set %i peer {stranger} allowed-ips 0.0.0.0/0,::/0",
          allowed=("10.9.0.0/24",))
    world("up")
    routes = world.routes("51820")
    assert routes == {"default"}
    lab.run("a", "wg", "set", world.name, "peer", world.public_b, "endpoint",
            f"{OUTSIDE4['b']}:51820")
    assert is_reachable(lab, INSIDE4["b"])
    lab.ip("a", "link", "set", world.name, "down")
    lab.ip("a", "link", "set", world.name, "up")
    until(lambda: world.routes("51820") == routes)
    world("down")


def test_a_peer_that_contacts_us_from_inside_of_a_wide_network(world, lab):
    """It roams there: no route of a wide network leads into the tunnel what goes to it."""
    world.write(ADDRESSES, "ListenPort = 51820", peer=(f"AllowedIPs = {', '.join(HALVES)}",))
    world.path.write_text("".join(line for line in world.path.read_text().splitlines(True)
                                  if not line.startswith("Endpoint")))
    world("up")
    public_a = lab.status("a")["public_key"]
    name_b = lab.status("b")["name"]
    lab.run("b", "wg", "set", name_b, "peer", public_a, "endpoint", f"{OUTSIDE4['a']}:51820")
    assert is_reachable(lab, INSIDE4["a"], side="b") and is_reachable(lab, FAR[0])
    world("down")


@WAYS
def test_a_tunnel_without_ipv6_says_so_once(world, lab, way):
    tunnel = started(world, way, ("0.0.0.0/0",))
    if way == "up":
        world("reload")
    tunnel.end()
    assert tunnel.said.count("only IPv4 goes through the tunnel") == 1
    lab.ip("a", "-6", "route", "delete", "default")
    tunnel.said = ""
    tunnel.up()
    tunnel.end()
    assert "only IPv4" not in tunnel.said


def test_a_killed_tunnel_that_left_nothing_is_not_up(world, lab):
    tunnel = started(world, "tunnel", ("10.9.0.0/24",))
    before = {each: world.state()[each] for each in ("-4 rule", "nft")}
    tunnel.kill()
    assert {each: world.state()[each] for each in ("-4 rule", "nft")} == before
    assert "is not up" in world.fails("down")
    assert not lab.run("a", *FASTPUMP, "status").stdout.count(world.name)
