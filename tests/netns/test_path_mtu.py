"""Paths whose MTU is smaller than the hosts think: it is found, and what is larger gets through all
the same, or its sender is told. Every router may keep quiet, and drop fragments."""

import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    Lab,
    fastpump_pair,
    key_files,
    stop,
    tunnel_words,
    wait_for_line,
)
from support.hosts import is_reachable, transfer, until
from support.paths import NarrowPath
from support.wireguard_go import start_wireguard_go

PATHS = [
    (1280, {"v6_outside": True}, ()),
    (1300, {}, ("--transport", "wireguard")),
    (1400, {"icmp": True}, ("--tap",)),
    (1492, {"fragments": True}, ()),
    (9000, {}, ()),
]


@pytest.fixture
def narrow(tmp_path):
    """Tunnels over a path: `start(MTU, options of the tunnels...)` is it."""
    with Lab() as lab:
        pairs = []

        def start(mtu, *options, v6_outside=False, icmp=False, fragments=False):
            path = NarrowPath(lab, mtu=mtu, outside=9000 if mtu > 1500 else 1500, icmp=icmp,
                              fragments=fragments)
            pair = fastpump_pair(lab, tmp_path, "--queues", "2", *options, v6_outside=v6_outside)
            path.processes = pair.__enter__()
            pairs.append(pair)
            return path

        yield start
        for pair in pairs:
            pair.__exit__(None, None, None)


def found(path):
    """What both sides know of the path."""
    return [path.lab.status(side)["peers"][0]["path_mtu"] for side in "ab"]


def is_found(path, mtu):
    return until(lambda: found(path) == [mtu, mtu])


@pytest.mark.parametrize("mtu, path, options", PATHS, ids=[
    f"{mtu} {' '.join((*path, *options))}" for mtu, path, options in PATHS])
def test_tcp_passes_a_narrow_path(narrow, mtu, path, options):
    """Both ways and both versions of IP, while neither ICMP nor fragments come through, unless the
    path says so."""
    way = narrow(mtu, *options, **path)
    assert is_reachable(way.lab, INSIDE4["b"], timeout_s=10)
    assert is_found(way, mtu)
    for sender, receiver in ("ab", "ba"):   # a TAP has IPv6 when DAD is over
        assert until(lambda s=sender, r=receiver: is_reachable(way.lab, INSIDE6[r], s, 1))
    for sender, receiver in ("ab", "ba"):
        for inside in (INSIDE4, INSIDE6):
            assert transfer(way.lab, sender, inside[receiver], 5 << 20)


@pytest.mark.parametrize("mtu, v6_outside", [(1300, False), (1400, True)])
def test_a_black_hole_before_a_wireguard_peer_is_found_by_tcp(tmp_path, mtu, v6_outside):
    """It cannot be probed. The first connection stands still for some seconds; from then on the
    peer's TCP, too, is made to fit."""
    with Lab() as lab:
        NarrowPath(lab, mtu=mtu, icmp=False, fragments=False)
        key = key_files(tmp_path)
        start_wireguard_go(lab, "b", key["b"], key["a"][1], endpoint=False)
        log = lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--queues", "2",
                                              v6_outside=v6_outside))
        assert until(lambda: is_reachable(lab, INSIDE4["b"], "a", 1))
        assert transfer(lab, "a", INSIDE4["b"], 5 << 20)
        wait_for_line(log, "seem to get lost on the way")
        for sender, receiver in ("ab", "ba"):
            for inside in (INSIDE4, INSIDE6):
                assert transfer(lab, sender, inside[receiver], 5 << 20)
        assert lab.status("a")["peers"][0]["path_mtu"] == 1280


@pytest.mark.parametrize("options", [(), ("--transport", "wireguard")], ids=["lanes", "wireguard"])
def test_a_path_that_gets_narrower_is_noticed_while_data_flows(narrow, options):
    """A black hole: nobody says anything."""
    path = narrow(1500, *options)
    assert is_reachable(path.lab, INSIDE4["b"], timeout_s=10)
    assert is_found(path, 1500)
    with ThreadPoolExecutor() as pool:
        moved = pool.submit(transfer, path.lab, "a", INSIDE4["b"], 20 << 20, seconds=4)
        until(lambda: path.lab.status("b")["peers"][0]["rx_bytes"] > 1 << 20)
        path.set_mtu(1300)
        begun = time.monotonic()
        wait_for_line(path.processes["a"], "got lost: its path takes 1300 bytes")
        assert time.monotonic() - begun < 5
        assert moved.result()
    assert is_found(path, 1300)
    assert transfer(path.lab, "b", INSIDE6["a"], 20 << 20)


def test_datagrams_that_do_not_fit_are_answered(narrow):
    """With the MTU that fits; those that may be fragmented travel."""
    path = narrow(1400, fragments=True)
    assert is_reachable(path.lab, INSIDE4["b"], timeout_s=10)
    assert is_found(path, 1400)
    lab, fits = path.lab, 1400 - 28 - 32
    for ping in (("-4", INSIDE4["b"]), ("-6", INSIDE6["b"])):
        answer = lab.run("a", "ping", ping[0], "-c", "1", "-W", "2", "-M", "do", "-s", "1340",
                         ping[1], check=False)
        assert re.search(rf"mtu ?[=:] ?{fits}\b", answer.stdout, re.IGNORECASE), answer.stdout
    assert lab.run("a", "ping", "-c", "1", "-W", "5", "-M", "dont", "-s", "1380",
                   INSIDE4["b"], check=False).returncode == 0
    status = lab.status("a")
    assert status["peers"][0]["verdicts"]["DROP_PATH_MTU"] >= 2
    assert status["peers"][0]["loses_large_datagrams"]
    assert "path MTU: 1400; larger datagrams get lost" in lab.run(
        "a", sys.executable, "-m", "fastpump", "status").stdout


def test_a_probe_that_came_in_fragments_is_not_answered(narrow):
    """A router that clears DF: then the kernel of the other side puts probes together."""
    path = narrow(1300, fragments=True)
    for router in "rs":
        path.lab.run(router, "nft", "-f", "-", input=CLEAR_DF)
    assert is_reachable(path.lab, INSIDE4["b"], timeout_s=10)
    assert is_found(path, 1300)
    for side in "ab":
        assert path.lab.status(side)["peers"][0]["verdicts"]["DROP_FRAGMENTED_PROBE"] > 0
    assert transfer(path.lab, "a", INSIDE4["b"], 1 << 20)


def test_probes_leave_with_df_and_data_without(narrow):
    """The sniffer sees lane messages by their first byte; probes have the flag EXTENSION."""
    path = narrow(1500)
    watch = path.lab.spawn("a", sys.executable, "-c", SNIFFER)
    wait_for_line(watch, "watching")
    assert is_reachable(path.lab, INSIDE4["b"], timeout_s=10)
    assert is_found(path, 1500)
    transfer(path.lab, "a", INSIDE4["b"], 1 << 20)
    seen = json.loads(stop(watch).splitlines()[-1])
    assert seen["large probes"] == seen["large probes with DF"] > 0
    assert seen["data"] > 0 == seen["data with DF"]


CLEAR_DF = """table ip clear { chain in { type filter hook prerouting priority -500
ip protocol udp ip frag-off & 0x4000 != 0 ip frag-off set 0
}
}
"""
SNIFFER = """
import collections, json, signal, socket, sys
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sniffer.bind(("wire", 0))
seen = collections.Counter()
def end(*_):
    print(json.dumps({"data": 0, "data with DF": 0, "large probes": 0, "large probes with DF": 0,
                      **seen}), flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("watching", flush=True)
while True:
    frame, address = sniffer.recvfrom(1 << 16)
    if address[2] != 4 or frame[12:14] != b"\\x08\\x00" or frame[23] != 17 or frame[42] != 5:
        continue
    kind = "data"
    if frame[43] & 0x40:
        kind = "large probes" if len(frame) > 1000 else "acks"
    seen[kind] += 1
    seen[kind + " with DF"] += frame[20] >> 6 & 1
"""
