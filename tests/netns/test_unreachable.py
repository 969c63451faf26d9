"""What programs are told when there is no way through the tunnel."""

import sys

import pytest

from fastpump.lab.networks import INSIDE4, INSIDE6, key_files, tunnel_words

CONNECT = """
import errno, socket, sys, time
begin = time.monotonic()
try:
    socket.create_connection((sys.argv[1], 9), 20)
except OSError as error:
    print(errno.errorcode.get(error.errno, error), time.monotonic() - begin < 10)
"""


def connect(lab, side, address):
    """By what error a TCP connection fails, before SYN was sent for long."""
    return lab.run(side, sys.executable, "-c", CONNECT, address).stdout.strip()


@pytest.fixture
def gateway(lab, tmp_path):
    """Host a, whose peer has not said yet where it is; routes for more than that peer."""
    key = key_files(tmp_path)
    lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], endpoint=False))
    lab.ip("a", "route", "add", "10.99.0.0/16", "dev", "fp0")
    lab.ip("a", "route", "add", "fd99::/64", "dev", "fp0")
    return lab


@pytest.mark.parametrize("address", ["10.99.0.1", "fd99::1", INSIDE4["b"], INSIDE6["b"]],
                         ids=["nobody's", "nobody's, IPv6", "nowhere", "nowhere, IPv6"])
def test_a_connection_fails_at_once(gateway, address):
    assert connect(gateway, "a", address) == "EHOSTUNREACH True"


def test_a_host_behind_is_told_as_well(gateway):
    gateway.add_host("c")
    gateway.ip("a", "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns",
               gateway.names["c"])
    for side, name, address4, address6 in (("a", "lan", "10.5.0.1/24", "fd05::1/64"),
                                           ("c", "eth0", "10.5.0.2/24", "fd05::2/64")):
        gateway.ip(side, "address", "add", address4, "dev", name)
        gateway.ip(side, "address", "add", address6, "dev", name, "nodad")
        gateway.ip(side, "link", "set", name, "up")
    gateway.sysctl("a", {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    gateway.ip("c", "route", "add", "default", "via", "10.5.0.1")
    gateway.ip("c", "-6", "route", "add", "default", "via", "fd05::1")
    assert connect(gateway, "c", "10.99.0.1") == "EHOSTUNREACH True"
    assert connect(gateway, "c", "fd99::1") == "EHOSTUNREACH True"
