"""Interfaces that we make send nothing by themselves, and let nobody choose the host's routes."""

import json
import sys

import pytest

from fastpump.lab.networks import OUTSIDE4, key_files, wait_for_line
from support.hosts import FASTPUMP, interface_names, until

# A router that waits for nothing; its groups are announced at once.
EAGER = {"net.ipv6.conf.all.forwarding": 1, "net.ipv6.conf.all.accept_ra": 2,
         "net.ipv6.conf.default.accept_ra": 2,
         "net.ipv6.conf.default.router_solicitation_delay": 0}

# As a host's own program sees what the kernel sends through a TUN by itself.
SOLICITATION = """
import fcntl, os, struct, subprocess, sys
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("=16sH22x", b"control", 0x1001))
subprocess.run(["ip", "link", "set", "control", "up"], check=True)
print("up", flush=True)
kinds = set()
while kinds < {133, 143}:
    packet = os.read(tun, 2000)
    if packet[0] >> 4 == 6:
        options = packet[6] == 0            # hop by hop, of a report
        kinds.add(packet[48 if options else 40])
print("solicited and reported", flush=True)
"""
ADVERTISE = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
    index = socket.if_nametoindex(sys.argv[1])
    router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    # lifetime 1800 s; and a prefix for everybody's addresses
    router.sendto(bytes((134, 0, 0, 0, 64, 0)) + (1800).to_bytes(2, "big") + bytes(8)
                  + bytes((3, 4, 64, 0xC0)) + bytes((0, 0, 255, 255)) * 2 + bytes(4)
                  + bytes.fromhex("20010db8000000bb") + bytes(8), ("ff02::1", 0, 0, index))
"""


def advertised_routes(lab, side):
    return [line for line in lab.ip(side, "-6", "route", "show").splitlines() if "proto ra" in line]


def link(lab, side, name):
    return json.loads(lab.ip(side, "-json", "-d", "-s", "link", "show", name))[0]


def with_a_guest(lab):
    """A guest behind host a, plugged into nothing yet: a's end is `port`."""
    lab.add_host("guest")
    lab.ip("a", "link", "add", "port", "type", "veth", "peer", "name", "eth0", "netns",
           lab.names["guest"])
    lab.sysctl("guest", {"net.ipv6.conf.eth0.accept_dad": 0})
    lab.ip("guest", "link", "set", "eth0", "up")
    lab.ip("guest", "address", "add", "fd07::1/64", "dev", "eth0", "nodad")
    lab.ip("guest", "address", "add", "10.7.0.1/24", "dev", "eth0")


def advertise(lab, side, name):
    lab.run(side, sys.executable, "-c", ADVERTISE, name)


@pytest.mark.parametrize("address", [(), ("10.7.0.9/24",), ("fd07::9/64",)], ids=str)
def test_a_guest_does_not_become_the_hosts_router(lab, tmp_path, address):
    with_a_guest(lab)
    lab.sysctl("a", {"net.ipv6.conf.default.accept_dad": 0})
    lab.fastpump("a", "--tap", "--queues", "1", "--bridge", "br7", "--attach", "port",
                 *(word for each in address for word in ("--address", each)))
    until(lambda: link(lab, "guest", "eth0")["operstate"] == "UP")
    before = link(lab, "a", "br7")["stats64"]["rx"]["packets"]
    advertise(lab, "guest", "eth0")
    until(lambda: link(lab, "a", "br7")["stats64"]["rx"]["packets"] > before)
    has_ipv6 = address == ("fd07::9/64",)
    if has_ipv6:        # behind the advertisement
        assert lab.run("guest", "ping", "-c", "1", "-W", "5", "fd07::9").returncode == 0
    assert advertised_routes(lab, "a") == []
    assert ("inet6" in lab.ip("a", "address", "show", "br7")) == has_ipv6
    assert "bb::" not in lab.ip("a", "address", "show", "br7")


def test_what_has_no_ipv6_can_be_given_some_by_the_next_tunnel(lab, tmp_path):
    with_a_guest(lab)
    lab.sysctl("a", {"net.ipv6.conf.default.accept_dad": 0})
    lab.fastpump("a", "one", "--tap", "--queues", "1", "--bridge", "br7", "--attach", "port")
    assert "inet6" not in lab.ip("a", "address", "show", "br7")
    lab.fastpump("a", "two", "--tap", "--queues", "1", "--bridge", "br7", "--address",
                 "fd07::9/64")
    assert lab.run("guest", "ping", "-c", "3", "-i", "0.2", "-W", "5", "fd07::9",
                   check=False).returncode == 0
    assert "fe80::" in lab.ip("a", "address", "show", "br7")


def test_an_idle_tunnel_with_all_allowed_ips_stays_idle(lab, tmp_path):
    key = key_files(tmp_path)
    lab.sysctl("a", EAGER)
    lab.fastpump("a", "--queues", "1", "--no-routes", "--private-key", str(key["a"][0]),
                 "--address", "10.9.0.1/24", "--address", "fd00:9::1/64", "--peer",
                 f"{key['b'][1]}@192.0.2.2:51820,allowed-ips=0.0.0.0/0+::/0")
    control = lab.spawn("a", sys.executable, "-c", SOLICITATION)
    wait_for_line(control, "solicited and reported")
    status = lab.status("a")
    assert status["queues"][0]["tun_rx_packets"] == 0
    assert status["queues"][0]["udp_tx_datagrams"] == 0
    assert status["verdicts"] == {}
    flags = link(lab, "a", "fp0")["flags"]
    assert "MULTICAST" not in flags and "UP" in flags
    assert "fe80" not in lab.ip("a", "address", "show", "fp0")


def test_the_far_side_of_a_tunnel_does_not_become_the_hosts_router(lab, tmp_path):
    """Even if its allowed IPs let it advertise."""
    key = key_files(tmp_path)
    for number, (side, other) in enumerate(("ab", "ba"), 1):
        lab.fastpump(side, "--queues", "1", "--no-routes", "--private-key", str(key[side][0]),
                     "--address", f"fd00:9::{number}/64", "--address", f"fe80::{side}/64",
                     "--peer", f"{key[other][1]}@{OUTSIDE4[other]}:51820,allowed-ips=::/0")
    assert "fe80::a/64" in lab.ip("a", "address", "show", "fp0")
    advertise(lab, "b", "fp0")
    # Behind the advertisement on its way.
    assert lab.run("b", "ping", "-c", "1", "-W", "10", "fd00:9::1").returncode == 0
    assert advertised_routes(lab, "a") == []
    assert "bb::" not in lab.ip("a", "address", "show", "fp0")


def test_a_wg_interface_looks_as_the_kernels(lab):
    with interface_names(1) as (name,):
        lab.run("a", sys.executable, "-m", "fastpump.cli.wg", name)
        lab.ip("a", "link", "set", name, "up")
        shown = link(lab, "a", name)
        assert shown["link_type"] == "none" and shown["inet6_addr_gen_mode"] == "none"
        assert set(shown["flags"]) == {"POINTOPOINT", "NOARP", "UP", "LOWER_UP"}
        lab.run("a", *FASTPUMP, "down", name)


def test_a_wg_interface_is_as_quiet_in_another_namespace(lab):
    with interface_names(1) as (name,):
        lab.run("a", sys.executable, "-m", "fastpump.cli.wg", name)
        lab.ip("a", "link", "set", name, "netns", lab.names["b"])
        until(lambda: link(lab, "b", name)["inet6_addr_gen_mode"] == "none")
        lab.ip("b", "link", "set", name, "up")
        assert "MULTICAST" not in link(lab, "b", name)["flags"]
        assert "inet6" not in lab.ip("b", "address", "show", name)
        until(lambda: lab.run("b", "cat", f"/proc/sys/net/ipv6/conf/{name}/accept_ra"
                              ).stdout == "0\n")
        lab.ip("b", "link", "delete", name)
