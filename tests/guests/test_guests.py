"""Two virtual machines that are joined at layer 2: nothing about them is ours but the middle.

The guests boot once. What joins their TAP interfaces comes and goes under them (JOINS).
"""

import contextlib
import json
import os
import platform

import pytest

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import OUTSIDE4, Lab, key_files, stop
from support.guestimage import cpio, make_image
from support.guests import GUEST4, GUEST6, INIT, MAC, add_tap, guest_transfer, running, watched
from support.hosts import until

TAPS = {"a": "guest0", "b": "guest0"}
SIZE = 20 << 20
OTHER = {"a": "b", "b": "a"}
# linux/virtio_net.h; the guest's side is what it receives, the host's what it sends
CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6 = 0, 1, 7, 8, 11, 12

# The first download of the kernel package takes its time.
pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the guests are of the PC's architecture")]


# -- what joins the TAP interfaces: context managers of the guests' MTU

@contextlib.contextmanager
def bridges(lab, directory):
    """Linux bridges and a cable, without fastpump: what the others are measured by."""
    lab.ip("a", "link", "add", "cable", "type", "veth", "peer", "name", "cable",
           "netns", lab.names["b"])
    try:
        for side, tap in TAPS.items():
            lab.ip(side, "link", "add", "plain0", "type", "bridge", "mcast_snooping", "0")
            for port in (tap, "cable"):
                lab.ip(side, "link", "set", port, "master", "plain0", "up")
            lab.ip(side, "link", "set", "plain0", "up")
        yield 1500
    finally:
        lab.ip("a", "link", "delete", "cable", check=False)
        for side in TAPS:
            lab.ip(side, "link", "delete", "plain0", check=False)


@contextlib.contextmanager
def tunnel(lab, directory):
    """`fastpump tunnel --tap`: by a bridge on one side, by tc on the other."""
    key = key_files(directory)
    attach = {"a": ["--bridge", "br0", "--attach", TAPS["a"]],
              "b": ["--attach", TAPS["b"], "--attach-mode", "tc"]}
    processes = []
    for side in OTHER:      # the way carries frames of 1500 bytes and all that comes before them
        lab.ip(side, "link", "set", "wire", "mtu", "1700")
    try:
        for side, other in OTHER.items():
            processes.append(lab.fastpump(
                side, "--tap", "--queues", "2", "--private-key", str(key[side][0]),
                "--peer", f"{key[other][1]}@{OUTSIDE4[other]}:51820,keepalive=1", *attach[side]))
        until(lambda: all(lab.status(side)["peers"][0]["transport"] == "lanes" for side in OTHER))
        yield json.loads(lab.ip("a", "-json", "link", "show", "dev", "fp0"))[0]["mtu"]
    finally:
        for process in processes:
            stop(process)
            lab.processes.remove(process)


JOINS = {"bridges": bridges, "tunnel": tunnel}


# -- fixtures

@pytest.fixture(scope="module", autouse=True)
def _own_directories(tmp_path_factory):
    """In place of that in conftest.py: here tunnels outlive a test."""
    directory = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTPUMP_STATE", str(directory / "state"))
        patch.setenv("FASTPUMP_RUN", str(directory / "run"))
        yield


@pytest.fixture(scope="module")
def lab(_own_directories):
    """In place of that in conftest.py: one for the module, with a TAP interface a side."""
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run the suite as root (make test)")
    with Lab() as made:
        for side, tap in TAPS.items():
            add_tap(made, side, tap)
        yield made


@pytest.fixture(scope="module")
def booted(lab, tmp_path_factory):
    image = make_image(tmp_path_factory.mktemp("image"), INIT)
    with running(lab, TAPS, image) as guests:
        yield guests


@pytest.fixture(scope="module", params=JOINS)
def guests(request, lab, booted, tmp_path_factory):
    """Both guests, joined."""
    with JOINS[request.param](lab, tmp_path_factory.mktemp("join")) as mtu:
        for guest in booted.values():
            guest.run(f"ip link set eth0 mtu {mtu}; ip neigh flush dev eth0")
        yield booted


# -- tests

@pytest.mark.parametrize("side", OTHER)
def test_the_guests_driver_has_its_offloads(booted, side):
    """Else the other tests would show nothing about superpackets."""
    assert booted[side].negotiated() >= {CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4,
                                         HOST_TSO6}


@pytest.mark.parametrize("side", OTHER)
def test_guests_find_each_other(guests, side):
    """By ARP and neighbour discovery, broadcast and multicast; each sees the other's own MAC."""
    other = OTHER[side]
    for host in (GUEST4[other], GUEST6[other]):
        assert guests[side].reaches(host)
        assert guests[side].neighbour_mac(host) == MAC[other]


@pytest.mark.parametrize("side", OTHER)
def test_pings_of_full_size_arrive_and_larger_ones_in_fragments(guests, side):
    mtu = int(guests[side].run("cat /sys/class/net/eth0/mtu"))
    for size in (mtu - 28, 5000):
        assert guests[side].reaches(GUEST4[OTHER[side]], size=size)
    assert guests[side].reaches(GUEST6[OTHER[side]], size=mtu - 48)


@pytest.mark.parametrize("address", [GUEST4, GUEST6], ids=["v4", "v6"])
@pytest.mark.parametrize("side", OTHER)
def test_tcp_arrives_whole_and_leaves_the_guest_in_superpackets(guests, lab, side, address):
    """The kernel of the guest leaves segmentation and checksums to its host, and takes
    superpackets from it."""
    other = OTHER[side]
    with watched(lab, guests) as seen:
        assert guest_transfer(guests[side], guests[other], address[other], SIZE)
    for way in (seen[side]["from_guest"], seen[other]["to_guest"]):
        assert way["bytes"] > SIZE
        assert way["bytes"] / way["packets"] > 2 * 1514
        assert way["largest"] > 10 * 1514
        assert way["superpackets"] > way["packets"] / 4
    assert seen[side]["from_guest"]["unsummed"] > seen[side]["from_guest"]["packets"] / 2


def test_a_hanging_command_ends_in_time_and_the_guest_goes_on(booted):
    with pytest.raises(SystemSetupError, match=r"sleep 60 in guest a: exit status 137"):
        booted["a"].run("sleep 60", timeout_s=1)
    assert booted["a"].run("echo on") == "on\n"


def test_a_guest_that_does_not_boot_is_named_and_leaves_nothing(lab, tmp_path):
    """Its last words are in the error: here the kernel's, which finds no initramfs to run."""
    add_tap(lab, "a", "guest1")
    kernel, _ = make_image(tmp_path, INIT)
    (tmp_path / "initramfs").write_bytes(cpio({"init": None}))
    before = list(lab.processes)
    with (pytest.raises(SystemSetupError, match=r"guest a ended: .*Kernel panic"),
          running(lab, {"a": "guest1"}, (kernel, tmp_path / "initramfs"))):
        pass
    assert lab.processes == before
