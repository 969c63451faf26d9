"""A tunnel starts without what is not there yet, and finds its peer by itself: names without an
answer, addresses that are dead, a clock that went back."""

import json
import signal
import time

import pytest

from fastpump.constants import SECOND
from fastpump.lab.networks import INSIDE4, OUTSIDE4, stop, tunnel_words, wait_for_line
from support.hosts import FASTPUMP, is_reachable, until
from support.pretence import Hosts, pretending
from support.road import Road

YEAR_NS = 365 * 86400 * SECOND
DEAD4, DEAD6, SPARE4 = "192.0.2.66", "2001:db8::66", "192.0.2.3"
NEVER_AGAIN = {"REKEY_TIMEOUT": 60 * SECOND, "REKEY_TIMEOUT_JITTER": 1}
"""Whoever waits for another try waits too long."""
SOON = {"REKEY_TIMEOUT": SECOND // 2, "REKEY_TIMEOUT_JITTER": 1, "KEEPALIVE_TIMEOUT": SECOND}


@pytest.fixture
def hosts(tmp_path):
    return Hosts(tmp_path)


@pytest.fixture
def road(lab, tmp_path):
    return Road(lab, tmp_path)


# -- names

def test_a_name_that_is_not_known_yet_does_not_stop_the_tunnel(road, hosts):
    process = road.start(hosts, "vpn.example:51820")
    peer = road.peer
    assert peer["endpoint"] is None
    assert peer["endpoint_problem"].startswith("the endpoint host 'vpn.example' cannot be resolved")
    shown = road.lab.run("a", *FASTPUMP, "status").stdout
    assert "  endpoint: not known yet\n" in shown
    assert "  resolving: the endpoint host 'vpn.example' cannot be resolved: " in shown
    hosts.say(vpn=[OUTSIDE4["b"]])
    road.meets(f"{OUTSIDE4['b']}:51820")
    assert road.peer["endpoint_problem"] is None
    said = road.said + stop(process)
    assert said.count("vpn.example is 192.0.2.2 now") == 1


def test_packets_that_found_no_endpoint_are_reason_enough_for_a_handshake(road, hosts):
    road.start(hosts, "vpn.example:51820", keepalive=False)
    assert not is_reachable(road.lab, INSIDE4["b"], timeout_s=0.1)
    hosts.say(vpn=[OUTSIDE4["b"]])
    until(lambda: road.peer["latest_handshake"])


def test_up_and_reload_do_not_wait_for_a_name(road, hosts, lab):
    up = lab.run("a", *hosts.within(*FASTPUMP, "up", road.file("vpn.example:51820")))
    assert up.stderr.count("cannot be resolved") == 1 and "fp0 is up" in up.stdout
    hosts.say(vpn=[OUTSIDE4["b"]])
    road.meets("192.0.2.2:51820")
    reload = lab.run("a", *FASTPUMP, "reload", road.file("other.example:51820"))
    assert "changed" in reload.stdout
    assert road.peer["endpoint"] == "192.0.2.2:51820"       # until there is another place
    assert "other.example" in road.peer["endpoint_problem"]
    hosts.say(other=[SPARE4])
    until(lambda: road.peer["endpoint"] == f"{SPARE4}:51820")
    lab.run("a", *FASTPUMP, "down", "fp0", check=False)


def test_a_full_tunnel_waits_for_a_name(road, hosts, lab):
    """Once it is up, it is the only way to a name server."""
    words = road.words("vpn.example:51820")
    words[-1] += ",allowed-ips=0.0.0.0/0+::/0"
    process = lab.spawn("a", *hosts.within(*FASTPUMP, "tunnel", *words),
                        env=pretending(road.directory))
    wait_for_line(process, "not up before its peers have an address")
    assert "51820" not in lab.ip("a", "rule")
    hosts.say(vpn=[OUTSIDE4["b"]])
    wait_for_line(process, " is ready: ")
    assert "lookup 51820" in lab.ip("a", "rule") and is_reachable(lab, INSIDE4["b"])


@pytest.mark.parametrize("host", ["vpn..example", "a" * 64 + ".example", "192.0.2.256"])
def test_a_name_that_can_never_be_is_a_mistake(road, lab, host):
    for verb, words in (("tunnel", road.words(f"{host}:51820")),
                        ("up", [road.file(f"{host}:51820")])):
        result = lab.run("a", *FASTPUMP, verb, *words, check=False)
        assert result.returncode != 0 and "fp0" not in json.dumps(lab.ip("a", "link"))
        assert "invalid endpoint host" in result.stderr.splitlines()[-1]


# -- several places

def test_a_dead_address_of_a_name_does_not_keep_the_living_one_waiting(road, hosts, lab):
    hosts.say(vpn=[DEAD6, OUTSIDE4["b"]])
    found = lab.run("a", *hosts.within("getent", "ahosts", "vpn.example")).stdout
    assert found.startswith(DEAD6)
    road.start(hosts, "vpn.example:51820", **SOON)
    road.meets("192.0.2.2:51820", timeout_s=10)


def test_of_three_endpoints_one_that_lives_is_found_whichever_dies(road, hosts, lab):
    """The third is another tunnel with b's key, which has not heard of a."""
    spare = lab.fastpump("b", "fp1", *tunnel_words(
        "b", road.key["b"], road.key["a"][1], "--queues", "1", "--no-routes", "--listen-port",
        "51821", endpoint=False))
    where = [f"{DEAD4}:51820", f"{OUTSIDE4['b']}:51820", f"{OUTSIDE4['b']}:51821"]
    road.start(hosts, *where, **SOON)
    road.meets(where[1])
    stop(road.process_b)
    lab.spawn("a", "ping", "-q", "-i", "0.1", INSIDE4["b"])
    until(lambda: road.peer["endpoint"] == where[2])
    assert is_reachable(lab, INSIDE4["b"]) and spare.poll() is None


def test_status_shows_what_is_tried(road, hosts, lab):
    road.start(hosts, f"{DEAD4}:51820", f"[{DEAD6}]:51820", **SOON)
    until(lambda: road.peer["endpoint_tried"] == f"[{DEAD6}]:51820")
    assert road.peer["endpoint"] == f"{DEAD4}:51820"
    until(lambda: f"  trying: [{DEAD6}]:51820\n" in lab.run("a", *FASTPUMP, "status").stdout)


def test_a_host_without_ipv6_does_not_try_it(road, hosts, lab):
    lab.sysctl("a", {f"net.ipv6.conf.{name}.disable_ipv6": 1 for name in ("all", "default",
                                                                          "wire")})
    hosts.say(vpn=["2001:db8::2", OUTSIDE4["b"]])
    road.start(hosts, "[2001:db8::2]:51820", "vpn.example:51820", **NEVER_AGAIN)
    road.meets("192.0.2.2:51820", timeout_s=20)


def test_none_of_several_that_can_be_reached_is_a_mistake(road, lab):
    result = lab.run("a", *FASTPUMP, "tunnel", *road.words("203.0.113.9:1", "203.0.113.10:1"),
                     check=False)
    assert result.returncode == 1
    assert "203.0.113.9:1 cannot be reached from this host" in result.stderr.splitlines()[-1]


# -- the clock

@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_clock_that_goes_back_over_a_restart_shuts_nobody_out(road, hosts, how):
    where = f"{OUTSIDE4['b']}:51820"
    process = road.start(hosts, where)
    road.meets(where)
    stop(process, how)
    until(lambda: "fp0" not in road.lab.ip("a", "link"))
    road.start(hosts, where, clock_ahead_ns=-YEAR_NS, **NEVER_AGAIN)
    until(lambda: road.peer["latest_handshake"])
    assert road.peer["latest_handshake"] < time.time() - YEAR_NS / SECOND + 600
    assert is_reachable(road.lab, INSIDE4["b"])


def test_without_what_was_kept_it_does(road, hosts, tmp_path):
    """So the test above shows what it is to show."""
    where = f"{OUTSIDE4['b']}:51820"
    process = road.start(hosts, where)
    road.meets(where)
    stop(process)
    (kept,) = (tmp_path / "state" / "timestamps").iterdir()
    kept.unlink()
    road.start(hosts, where, clock_ahead_ns=-YEAR_NS, **SOON)
    until(lambda: road.lab.status("b")["peers"][0]["verdicts"].get("DROP_REPLAYED_INITIATION", 0))
    assert road.peer["latest_handshake"] == 0
