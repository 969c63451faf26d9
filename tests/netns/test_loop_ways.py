"""Ways into a loop: datagrams of ours that would enter the tunnel, be sealed and sent again."""

import json

import pytest

from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    OUTSIDE4,
    OUTSIDE6,
    key_files,
    stop,
    tunnel_words,
    wait_for_line,
)
from support.hosts import FASTPUMP, is_reachable, until

FEW = 10
TRANSPORTS = pytest.mark.parametrize("transport", ["auto", "wireguard"])


def sent(lab, side="a"):
    """Datagrams that a host's workers have sealed."""
    return sum(queue["udp_tx_datagrams"] for queue in lab.status(side)["queues"])


def looped(lab, side="a"):
    """Those that were on their way back into the tunnel."""
    return lab.status(side)["verdicts"].get("DROP_LOOP", 0) + sum(
        queue["verdicts"].get("DROP_LOOP", 0) for queue in lab.status(side)["queues"])


def with_all(words):
    """The peer owns the addresses of the host outside, too."""
    at = words.index("--peer") + 1
    return [*words[:at], f"{words[at]},allowed-ips=0.0.0.0/0+::/0", *words[at + 1:],
            "--no-routes"]


def start(lab, directory, *words, v6_outside=False, endpoint=True, owns_all=False):
    """A tunnel between both hosts; the process on host a. `endpoint`: a is told where b is.
    `owns_all`: b's allowed IPs are everything, on a."""
    key, processes = key_files(directory), {}
    for side, other in ("ab", "ba"):
        line = tunnel_words(side, key[side], key[other][1], "--queues", "2", *words,
                            v6_outside=v6_outside, endpoint=endpoint or side == "b")
        processes[side] = lab.fastpump(side, *(with_all(line) if owns_all and side == "a"
                                               else line))
    return processes["a"]


def pings(lab, to, *options, count=3):
    """Some that get no answer."""
    lab.run("a", "ping", "-n", "-c", str(count), "-i", "0.2", "-W", "0.2", *options, to,
            check=False)


def ends_without(lab, process, before, *said):
    """Few datagrams were sent since, the loop was counted and said once."""
    until(lambda: looped(lab))
    assert sent(lab) - before < FEW
    log = ""
    while not all(text in log for text in said):
        log += wait_for_line(process, "") + "\n"
    lab.processes.remove(process)
    log += stop(process)
    assert "Traceback" not in log
    for text in said:
        assert log.count(text) == 1, log


INTO_THE_TUNNEL = f"the way to {OUTSIDE4['b']} leads into this tunnel; give it another route"


def more_specific(lab):
    lab.ip("a", "route", "add", f"{OUTSIDE4['b']}/32", "dev", "fp0")


def connected(lab):
    lab.ip("a", "address", "add", f"{OUTSIDE4['a']}/30", "dev", "fp0")


def metric(lab):
    """The host's own route, learned by DHCP say, has a worse one."""
    lab.ip("a", "route", "delete", "192.0.2.0/24", "dev", "wire")
    lab.ip("a", "route", "add", "192.0.2.0/24", "dev", "wire", "metric", "600")
    lab.ip("a", "route", "add", "192.0.2.0/24", "dev", "fp0", "metric", "50")


def rule(lab):
    """Somebody's policy routing."""
    lab.ip("a", "route", "add", "default", "dev", "fp0", "table", "777")
    lab.ip("a", "rule", "add", "to", OUTSIDE4["b"], "table", "777", "priority", "50")


@pytest.mark.parametrize("way", [more_specific, connected, metric, rule],
                         ids=lambda way: way.__name__)
@TRANSPORTS
def test_a_route_leads_into_the_tunnel(lab, tmp_path, transport, way):
    process = start(lab, tmp_path, "--transport", transport)
    assert is_reachable(lab, INSIDE4["b"])
    before = sent(lab)
    way(lab)
    pings(lab, INSIDE4["b"])
    ends_without(lab, process, before, INTO_THE_TUNNEL)


@TRANSPORTS
def test_when_the_route_is_gone_the_tunnel_works(lab, tmp_path, transport):
    start(lab, tmp_path, "--transport", transport)
    assert is_reachable(lab, INSIDE4["b"])
    more_specific(lab)
    pings(lab, INSIDE4["b"])
    until(lambda: looped(lab))
    lab.ip("a", "route", "delete", f"{OUTSIDE4['b']}/32", "dev", "fp0")
    assert is_reachable(lab, INSIDE4["b"])


def test_sockets_that_come_later_are_guarded_too(lab, tmp_path):
    """After the interface was down."""
    process = start(lab, tmp_path, "--transport", "wireguard")
    lab.ip("a", "link", "set", "fp0", "down")
    lab.ip("a", "link", "set", "fp0", "up")
    assert is_reachable(lab, INSIDE4["b"])
    before = sent(lab)
    more_specific(lab)
    pings(lab, INSIDE4["b"])
    ends_without(lab, process, before, INTO_THE_TUNNEL)


@TRANSPORTS
def test_over_ipv6(lab, tmp_path, transport):
    process = start(lab, tmp_path, "--transport", transport, v6_outside=True)
    assert is_reachable(lab, INSIDE4["b"])
    before = sent(lab)
    lab.ip("a", "-6", "route", "add", f"{OUTSIDE6['b']}/128", "dev", "fp0")
    pings(lab, INSIDE6["b"])
    ends_without(lab, process, before, f"the way to {OUTSIDE6['b']} leads into this tunnel")


@TRANSPORTS
@pytest.mark.parametrize("v6", [False, True], ids=["outside4", "outside6"])
def test_datagrams_in_fragments(lab, tmp_path, transport, v6):
    """All fragments: a later one says nothing of what it is."""
    start(lab, tmp_path, "--transport", transport, "--mtu", "1420", v6_outside=v6)
    assert is_reachable(lab, INSIDE4["b"])
    before = sent(lab)
    if v6:
        lab.ip("a", "-6", "route", "add", f"{OUTSIDE6['b']}/128", "dev", "fp0")
    else:
        more_specific(lab)
    pings(lab, INSIDE4["b"], "-s", "1392")
    until(lambda: looped(lab) >= 2)
    assert sent(lab) - before < FEW


def test_a_tap_with_the_address_on_the_bridge(lab, tmp_path):
    process = start(lab, tmp_path, "--tap", "--bridge", "br0", "--mtu", "1382")
    assert is_reachable(lab, INSIDE4["b"])
    before = sent(lab)
    lab.ip("a", "address", "add", f"{OUTSIDE4['a']}/30", "dev", "br0")
    lab.ip("a", "neighbour", "replace", OUTSIDE4["b"], "lladdr", "02:00:00:00:00:77", "dev", "br0")
    pings(lab, INSIDE4["b"])
    ends_without(lab, process, before, INTO_THE_TUNNEL)


@TRANSPORTS
@pytest.mark.parametrize("rp_filter", [0, 2])
@pytest.mark.parametrize("is_told", [True, False], ids=["told", "untold"])
def test_somebody_on_the_path_rewrites_the_source_of_one_datagram(lab, tmp_path, transport,
                                                                  rp_filter, is_told):
    """To an address inside: the endpoint follows, and is given up."""
    process = start(lab, tmp_path, "--transport", transport, endpoint=is_told)
    assert is_reachable(lab, INSIDE4["a"], "b")
    lab.sysctl("a", {f"net.ipv4.conf.{name}.rp_filter": rp_filter for name in ("all", "wire")})
    before = sent(lab)
    lab.run("b", "nft", "-f", "-", input="table ip path { chain post { type filter hook "
            "postrouting priority 300; oifname wire udp dport 51820 "
            f"ip saddr set {INSIDE4['b']}\n}}\n}}\n")
    lab.run("b", "ping", "-n", "-c", "2", "-i", "0.2", "-W", "0.2", INSIDE4["a"], check=False)
    until(lambda: looped(lab))
    assert sent(lab) - before < FEW
    said = f"was heard from {INSIDE4['b']}, but the way there leads into this tunnel: it is "
    log = wait_for_line(process, said)
    lab.run("b", "nft", "delete", "table", "ip", "path")
    assert is_reachable(lab, INSIDE4["a"], "b") and is_reachable(lab, INSIDE4["b"])
    lab.processes.remove(process)
    log += stop(process)
    assert log.count(said) == 1, log
    if is_told:
        assert f"it is at {OUTSIDE4['b']}:51820 again" in log


@TRANSPORTS
def test_a_detour_over_another_host(lab, tmp_path, transport):
    """There the datagram loses the socket that it belongs to, and is a stranger's when it comes
    back to be forwarded."""
    process = start(lab, tmp_path, "--transport", transport, owns_all=True)
    assert is_reachable(lab, INSIDE4["b"])
    lab.add_host("c")
    lab.ip("a", "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", lab.names["c"])
    lab.ip("a", "address", "add", "198.51.100.1/24", "dev", "out")
    lab.ip("c", "address", "add", "198.51.100.2/24", "dev", "in")
    for side, name in (("a", "out"), ("c", "in")):
        lab.ip(side, "link", "set", name, "up")
        lab.sysctl(side, {"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.rp_filter": 0,
                          f"net.ipv4.conf.{name}.rp_filter": 0})
    lab.ip("c", "route", "add", "default", "via", "198.51.100.1")
    lab.ip("a", "route", "add", "default", "dev", "fp0", "table", "777")
    lab.ip("a", "rule", "add", "iif", "out", "table", "777", "priority", "50")
    lab.sysctl("a", {"net.ipv4.conf.out.accept_local": 1})
    before = sent(lab)
    lab.ip("a", "route", "add", f"{OUTSIDE4['b']}/32", "via", "198.51.100.2")
    pings(lab, INSIDE4["b"])
    ends_without(lab, process, before, INTO_THE_TUNNEL)


def test_a_tunnel_in_a_tunnel_is_no_loop(lab, tmp_path):
    """Also with one firewall mark for both."""
    start(lab, tmp_path, "--fwmark", "0x77")
    assert is_reachable(lab, INSIDE4["b"])
    (tmp_path / "second").mkdir()
    key = key_files(tmp_path / "second")
    for side, other in ("ab", "ba"):
        process = lab.spawn(side, *FASTPUMP, "tunnel", "fp1", "--private-key", str(key[side][0]),
                            "--listen-port", "51999", "--fwmark", "0x77", "--mtu", "1300",
                            "--address", f"10.99.0.{'ab'.index(side) + 1}/24", "--peer",
                            f"{key[other][1]}@{INSIDE4[other]}:51999,allowed-ips=10.99.0.0/24")
        wait_for_line(process, " is ready: ")
    assert is_reachable(lab, "10.99.0.2")
    for name in ("fp0", "fp1"):
        (status,) = json.loads(lab.run("a", *FASTPUMP, "status", name, "--json").stdout)[
            "interfaces"]
        assert "DROP_LOOP" not in status["verdicts"]


def test_where_the_kernel_takes_no_filter(lab, tmp_path):
    """What is in the datagrams is enough, as long as they come whole."""
    key = key_files(tmp_path)
    words = with_all(tunnel_words("a", key["a"], key["b"][1], "--queues", "2"))
    process = lab.spawn("a", "setpriv", "--bounding-set=-bpf,-sys_admin", *FASTPUMP, "tunnel",
                        *words)
    assert "no filter against loops" in wait_for_line(process, "loops")
    wait_for_line(process, " is ready: ")
    lab.fastpump("b", *tunnel_words("b", key["b"], key["a"][1]))
    assert is_reachable(lab, INSIDE4["b"])
    before = sent(lab)
    more_specific(lab)
    pings(lab, INSIDE4["b"])
    ends_without(lab, process, before, INTO_THE_TUNNEL)
