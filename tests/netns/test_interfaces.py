"""`fastpump interfaces`: what there is, how it hangs together, who holds it."""

import errno
import grp
import json
import os
import pwd
import re
import socket
import sys
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from fastpump.errors import SystemSetupError
from fastpump.host import interfaces
from fastpump.lab.networks import stop, wait_for_line
from fastpump.netlink.links import link_of
from support.hosts import FASTPUMP, until

MANUAL = Path(__file__).parents[2] / "docs" / "fastpump.1.md"

# Opens an interface as often as told, says so, keeps it until it is stopped.
HOLD = """
import ctypes, fcntl, os, struct, sys, time
name, flags, count = sys.argv[1], int(sys.argv[2], 0), int(sys.argv[3])
fds = [os.open("/dev/net/tun", os.O_RDWR) for _ in range(count)]
for fd in fds:
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))
if len(sys.argv) > 4:
    assert ctypes.CDLL(None).setns(os.open(sys.argv[4], os.O_RDONLY), 0x40000000) == 0
print("open", flush=True)
time.sleep(600)
"""
TUN, TAP, NO_PI, MULTI_QUEUE, VNET_HDR = 0x0001, 0x0002, 0x1000, 0x0100, 0x4000
# In every namespace of a host that has their modules: net.core.fb_tunnels_only_for_init_net.
UNASKED = {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "sit0", "ip6tnl0", "ip6gre0",
           "ip6_vti0"}
# Those of the numbers 1 and 2 have other names elsewhere.
USER, GROUP = pwd.getpwuid(1).pw_name, grp.getgrgid(2).gr_name


def hold(lab, side, name, flags, count=1, *more):
    """A process of a namespace that has an interface open."""
    process = lab.spawn(side, sys.executable, "-c", HOLD, name, hex(flags), str(count), *more)
    wait_for_line(process, "open")
    return process


def let_go(lab, process):
    stop(process)
    lab.processes.remove(process)


def seen(lab, side="a"):
    """The interfaces of a namespace, by name."""
    found = json.loads(lab.run(side, *FASTPUMP, "interfaces", "--json").stdout)["interfaces"]
    assert [entry["ifindex"] for entry in found] == sorted(entry["ifindex"] for entry in found)
    return {entry["name"]: entry for entry in found if entry["name"] not in UNASKED}


def shown(lab, side="a"):
    return lab.run(side, *FASTPUMP, "interfaces").stdout


def try_link(lab, *words):
    """Add a link of a kind that not every kernel has."""
    try:
        lab.ip("a", "link", "add", *words)
    except SystemSetupError as error:
        pytest.skip(f"not in this kernel: {error}")


@pytest.mark.netns
def test_addresses_state_and_the_ends_of_cables(lab):
    lab.ip("a", "link", "add", "left", "type", "veth", "peer", "name", "right")
    found = seen(lab)
    lo, wire, left = found["lo"], found["wire"], found["left"]
    assert (lo["kind"], lo["mac"], lo["is_up"]) == ("loopback", None, True)
    assert "127.0.0.1/8" in lo["addresses"]
    assert wire["kind"] == "veth" and wire["is_up"] and wire["has_carrier"]
    assert {"192.0.2.1/24", "2001:db8::1/64"} <= set(wire["addresses"])
    assert wire["mtu"] == 1500 and wire["tx_queues"] == wire["rx_queues"] == 1
    # Its other end is in the other host, whose name `ip netns` knows.
    assert wire["peer"] == "wire" and wire["namespace"] == lab.names["b"]
    assert wire["namespace_id"] is not None and wire["parent"] is None
    assert left["peer"] == "right" and left["namespace_id"] is left["namespace"] is None
    assert not left["is_up"] and not left["has_carrier"]
    text = shown(lab)
    assert f"other end: wire in namespace {lab.names['b']}" in text
    assert "other end: right" in text
    assert "\nveth:     a cable with two ends" in text and "tap:" not in text


@pytest.mark.netns
def test_a_bridge_has_its_ports_below_it_and_knows_who_is_behind_them(lab):
    lab.ip("a", "link", "add", "br0", "type", "bridge")
    assert "no ports yet: ip link set NAME master br0" in shown(lab)
    lab.ip("a", "address", "flush", "dev", "wire")
    lab.ip("a", "link", "set", "wire", "master", "br0")
    lab.ip("a", "link", "set", "br0", "up")
    lab.ip("a", "address", "add", "192.0.2.1/24", "dev", "br0")
    lab.run("a", "bridge", "fdb", "add", "02:00:00:00:00:99", "dev", "wire", "master", "static")
    lab.run("b", "ping", "-c", "1", "-W", "5", "192.0.2.1")
    found, far = seen(lab), seen(lab, "b")["wire"]["mac"]
    bridge = found["br0"]
    assert bridge["kind"] == "bridge" and found["wire"]["master"] == "br0"
    assert bridge["bridge"]["ports"] == ["wire"]
    macs = {entry["mac"]: entry for entry in bridge["bridge"]["macs"]}
    assert macs[far]["origin"] == "learned" and macs[far]["port"] == "wire"
    assert 0 <= macs[far]["age_seconds"] < 60
    assert macs["02:00:00:00:00:99"]["origin"] == "static"
    assert macs["02:00:00:00:00:99"]["age_seconds"] is None
    assert macs[found["wire"]["mac"]]["origin"] == "local"
    text = shown(lab)
    assert re.search(rf"^br0  bridge, up.*\n(│.*\n)*│ +knows {far} behind wire, seen \d+ s ago\n"
                     r"(│.*\n)*└─ wire  veth, up", text, re.MULTILINE), text
    assert "knows 02:00:00:00:00:99 behind wire, set by hand" in text


@pytest.mark.netns
def test_who_holds_a_tun(lab):
    first = hold(lab, "a", "tun0", TUN | NO_PI)
    entry = seen(lab)["tun0"]
    assert entry["kind"] == "tun" and entry["mac"] is None
    assert entry["tuntap"] == {
        "is_persistent": False, "is_multi_queue": False, "has_vnet_header": False, "owner": None,
        "group": None, "attached_queues": 1,
        "holders": [{"pid": first.pid, "command": Path(f"/proc/{first.pid}/comm").read_text()
                     .strip(), "fds": 1}]}
    assert re.search(rf"tun0  tun, down.*\n.*single queue, gone when it is closed\n +in use by "
                     rf"\S+ \(pid {first.pid}\)", shown(lab))
    let_go(lab, first)
    until(lambda: "tun0" not in seen(lab))


@pytest.mark.netns
def test_a_multi_queue_tap_of_two_processes(lab):
    flags = TAP | NO_PI | MULTI_QUEUE | VNET_HDR
    pids = [hold(lab, "a", "tap0", flags, count).pid for count in (3, 1)]
    tuntap = seen(lab)["tap0"]["tuntap"]
    assert tuntap["is_multi_queue"] and tuntap["has_vnet_header"]
    assert tuntap["attached_queues"] == 4
    assert {holder["pid"]: holder["fds"] for holder in tuntap["holders"]} == dict(
        zip(pids, (3, 1), strict=True))
    assert "multi-queue, 4 attached, vnet header" in shown(lab)


@pytest.mark.netns
def test_a_persistent_tap_that_nobody_has_open(lab):
    lab.ip("a", "tuntap", "add", "tap0", "mode", "tap", "user", "1", "group", "2")
    lab.ip("a", "link", "set", "tap0", "up")
    entry = seen(lab)["tap0"]
    assert entry["tuntap"]["is_persistent"] and entry["is_up"] and not entry["has_carrier"]
    assert (entry["tuntap"]["owner"], entry["tuntap"]["group"]) == (1, 2)
    assert entry["tuntap"]["holders"] == [] and entry["tuntap"]["attached_queues"] == 0
    text = shown(lab)
    assert "nobody has it open" in text and f"owner {USER}, group {GROUP}" in text
    assert "tap:      whole Ethernet frames" in text


@pytest.mark.netns
def test_an_interface_of_the_same_name_elsewhere_is_another_one(lab):
    """Both hosts have a tap0, and each is held from the other host's namespace."""
    held = {side: hold(lab, side, "tap0", TAP | NO_PI, 1, f"/run/netns/{lab.names[other]}")
            for side, other in (("a", "b"), ("b", "a"))}
    for side in "ab":
        (holder,) = seen(lab, side)["tap0"]["tuntap"]["holders"]
        assert holder["pid"] == held[side].pid


@pytest.mark.netns
def test_where_fds_may_not_be_borrowed_the_processs_namespace_counts(lab):
    """As before Linux 5.8."""
    held = {side: hold(lab, side, "tap0", TAP | NO_PI) for side in "ab"}
    program = ("from fastpump.host import tun_users\n"
               "def refuse(pid, fd): raise PermissionError\n"
               "tun_users._borrow = refuse\n"
               "print(*(user.pid for user in tun_users.find({'tap0'})['tap0']))")
    for side in "ab":
        output = lab.run(side, sys.executable, "-c", program).stdout
        assert output.split() == [str(held[side].pid)]


@pytest.mark.netns
def test_a_holder_that_cannot_be_seen(lab):
    hold(lab, "a", "tap0", TAP | NO_PI)
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    text = lab.run("a", *alone, *FASTPUMP, "interfaces").stdout
    assert "in use by a program that cannot be seen from here" in text


@pytest.mark.netns
@pytest.mark.parametrize(("kind", "words"), [
    ("vxlan", ("type", "vxlan", "id", "7", "dstport", "4789")),
    ("dummy", ("type", "dummy")), ("bond", ("type", "bond")), ("wireguard", ("type", "wireguard")),
    ("macvlan", ("link", "wire", "type", "macvlan")),
])
def test_other_kinds_keep_the_kernels_name(lab, kind, words):
    try_link(lab, "other0", *words)
    entry = seen(lab)["other0"]
    assert (entry["kind"], entry["kernel_kind"]) == ("other", kind)
    assert entry["parent"] == ("wire" if kind == "macvlan" else None)
    assert f"{kind}:" in shown(lab)


@pytest.mark.netns
def test_a_vlan_is_below_its_parent(lab):
    try_link(lab, "link", "wire", "name", "wire.5", "type", "vlan", "id", "5")
    entry = seen(lab)["wire.5"]
    assert (entry["kind"], entry["vlan_id"], entry["parent"]) == ("vlan", 5, "wire")
    assert re.search(r"^└─ wire\.5  vlan 5 of wire", shown(lab), re.MULTILINE)


def test_a_vlan_as_the_kernel_tells_of_it():
    """Not every kernel has VLANs."""
    message = ifinfmsg()
    message["index"], message["ifi_type"], message["flags"] = 9, 1, 1
    message["attrs"] = [
        ("IFLA_IFNAME", "eth0.5"), ("IFLA_MTU", 1500), ("IFLA_LINK", 2), ("IFLA_CARRIER", 1),
        ("IFLA_ADDRESS", "02:00:00:00:00:05"), ("IFLA_LINKINFO", {"attrs": [
            ("IFLA_INFO_KIND", "vlan"),
            ("IFLA_INFO_DATA", {"attrs": [("IFLA_VLAN_ID", 5)]})]})]
    message.encode()
    decoded = ifinfmsg(message.data)
    decoded.decode()
    link = link_of(decoded)
    assert (link.name, link.vlan_id, link.lower, link.lower_namespace) == ("eth0.5", 5, 2, None)
    assert interfaces.kind_of(link) == "vlan" and link.is_up and link.has_carrier


@pytest.mark.netns
def test_a_name_of_any_bytes(lab):
    """The kernel takes names that no terminal should see as they are."""
    name = b"\x1b[2J\xff"
    lab.ip("a", "link", "add", os.fsdecode(name), "type", "veth", "peer", "name", "x")
    assert os.fsdecode(name) in seen(lab)
    assert "\n?[2J?  veth" in shown(lab)


@pytest.mark.netns
def test_a_terminal_without_line_drawing(lab):
    lab.ip("a", "link", "add", "br0", "type", "bridge")
    lab.ip("a", "link", "set", "wire", "master", "br0")
    text = lab.run("a", "env", "PYTHONIOENCODING=ascii", *FASTPUMP, "interfaces").stdout
    assert "\n`- wire  veth" in text and text.isascii()


def entry(name, **what):
    """An interface as `gather` has it."""
    return {"name": name, "ifindex": 1, "kind": "physical", "kernel_kind": None, "mac": None,
            "addresses": [], "mtu": 1500, "is_up": True, "has_carrier": True, "tx_queues": 1,
            "rx_queues": 1, "master": None, "parent": None, "peer": None, "namespace_id": None,
            "namespace": None, "vlan_id": None, "tuntap": None, "bridge": None, **what}


def tree(*entries):
    return interfaces.show(entries).split("\n\n")[0].splitlines()


def test_the_tree():
    bridge = {"ports": ["eth0.5", "eth1"], "macs": []}
    assert tree(entry("eth0"), entry("eth0.5", kind="vlan", vlan_id=5, parent="eth0",
                                     master="br0"),
                entry("eth0.6", kind="vlan", vlan_id=6, parent="eth0", is_up=False),
                entry("eth1", master="br0", has_carrier=False),
                entry("br0", kind="bridge", bridge=bridge, addresses=["10.0.0.1/24"]),
                entry("far.7", kind="vlan", vlan_id=7, namespace_id=3)) == [
        "eth0  physical, up, MTU 1500",
        "└─ eth0.6  vlan 6 of eth0, down, MTU 1500",
        "br0  bridge, up, MTU 1500",
        "│    10.0.0.1/24",
        "├─ eth0.5  vlan 5 of eth0, up, MTU 1500",
        "└─ eth1  physical, up, no carrier, MTU 1500",
        "far.7  vlan 7 of something in another namespace (id 3), up, MTU 1500",
    ]


def test_a_circle_is_drawn_once():
    """Interfaces may change while they are read."""
    lines = tree(entry("a", master="b"), entry("b", master="a"), entry("c", master="gone"))
    assert len(lines) == 3 and {line.strip("└─ ").split()[0] for line in lines} == set("abc")


def test_many_macs_are_cut_short():
    macs = [{"mac": f"02:00:00:00:00:{number:02x}", "vlan": 5, "port": "eth0",
             "origin": "learned", "age_seconds": 1.4} for number in range(20)]
    lines = tree(entry("br0", kind="bridge", bridge={"ports": ["eth0"], "macs": macs}))
    assert lines[1].endswith("knows 02:00:00:00:00:00 in vlan 5 behind eth0, seen 1 s ago")
    assert lines[-1].endswith("and 4 more: --json shows all") and len(lines) == 18


def keys_of(value):
    """All keys of an object and those within it."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


@pytest.mark.netns
def test_the_manual_has_every_key(lab):
    lab.ip("a", "link", "add", "br0", "type", "bridge")
    lab.ip("a", "link", "set", "wire", "master", "br0")
    hold(lab, "a", "tap0", TAP | NO_PI)
    output = json.loads(lab.run("a", *FASTPUMP, "interfaces", "--json").stdout)
    keys = keys_of(output)
    assert {"interfaces", "holders", "fds", "macs", "origin", "ports"} <= keys
    section = MANUAL.read_text().split("\n### interfaces\n")[1].split("\n### ")[0]
    assert keys <= set(re.findall(r"\w+", section.split("--json")[1]))
    for kind in (*interfaces.KINDS, "other"):
        assert f"`{kind}`" in section


def test_interfaces_need_no_permission():
    """In a namespace of a user who is nobody's root, beside those who are."""
    interfaces.gather()     # loads what that user may not be able to read
    process = os.fork()
    if process == 0:        # the child, without capabilities
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with pytest.raises(PermissionError) as refused:
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            assert refused.value.errno == errno.EPERM
            assert "lo" in {entry["name"] for entry in interfaces.gather()}
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
