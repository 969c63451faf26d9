"""`tap create --address --nat`, and `--netns`: a guest that is routed, in one command."""

import re
import sys

import pytest

from fastpump.lab.networks import key_files, need, wait_for_line
from support.gateways import BEYOND, Site, answers, stream
from support.hosts import FASTPUMP, interface_names

C = BEYOND["c"][2]
A_TO_C = ("198.51.100.1", "2001:db8:51::1")
NAT = ["--address", "172.16.0.1/30", "--address", "fd00:16::1/64", "--nat"]
# Opens a TAP here, and one in another namespace, and is the cable between them.
CABLE = """
import os, select, sys
from fastpump.kernel import IFF_TAP, IFF_VNET_HDR
from fastpump.netlink import namespaces
from fastpump.tun.queues import open_queue
ends = [open_queue(sys.argv[1], IFF_TAP | IFF_VNET_HDR, 1)]
namespaces.enter(sys.argv[2])
ends.append(open_queue("eth0", IFF_TAP | IFF_VNET_HDR))
print("plugged in", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        try:
            os.write(ends[end == ends[0]], os.read(end, 70000))
        except (BlockingIOError, OSError):
            pass        # that end is down yet
"""


@pytest.fixture
def site(lab, tmp_path):
    need("nft")
    with interface_names(3) as names:
        made = Site(lab, names, tmp_path, key_files(tmp_path))
        made.build()
        yield made


def tap(lab, *words, check=True):
    return lab.run("a", *FASTPUMP, "tap", *words, check=check)


def plug_in(lab, name, number=0):
    """A guest behind a TAP."""
    host = f"guest{number}"
    lab.add_host(host)
    process = lab.spawn("a", sys.executable, "-c", CABLE, name, lab.names[host])
    wait_for_line(process, "plugged in")
    for address in (f"172.16.0.{4 * number + 2}/30", f"fd00:16:0:{number:x}::2/64"):
        lab.ip(host, "address", "add", address, "dev", "eth0", *["nodad"] * (":" in address))
    lab.ip(host, "link", "set", "eth0", "up")
    lab.ip(host, "route", "add", "default", "via", f"172.16.0.{4 * number + 1}")
    lab.ip(host, "-6", "route", "add", "default", "via", f"fd00:16:0:{number:x}::1")
    return host


def is_ready(lab, host):
    return all(answers(lab, host, address, 10) for address in C)


def test_a_guest_in_one_command(site, lab):
    before = site.state()
    assert tap(lab, "create", "vm0", *NAT).stdout == "created vm0\n"
    guest = plug_in(lab, "vm0")
    assert is_ready(lab, guest)
    for address, seen in zip(C, A_TO_C, strict=True):
        assert stream(lab, guest, "c", address)[0] == seen
    during = site.sysctls()
    assert during["ipv6/conf/vm0/accept_ra"] == "0" and during["ipv4/ip_forward"] == "0"
    tap(lab, "delete", "vm0", "--force")
    assert site.state() == before


def test_the_last_of_several_undoes_it(site, lab):
    before = site.state()
    tap(lab, "create", "--count", "3", "--prefix", "vm", *NAT)
    addresses = lab.ip("a", "-brief", "address")
    for number, ipv6 in enumerate(("fd00:16::1", "fd00:16:0:1::1", "fd00:16:0:2::1")):
        assert re.search(rf"vm{number} .* 172\.16\.0\.{4 * number + 1}/30 {ipv6}/64", addresses)
    tap(lab, "delete", "vm0")
    lab.ip("a", "link", "delete", "vm1")        # by somebody else
    guest = plug_in(lab, "vm2", 2)
    assert is_ready(lab, guest)
    assert answers(lab, guest, "172.16.0.9")
    tap(lab, "create", "vm7")
    tap(lab, "delete", "vm7")
    assert re.search(r'elements = \{ (\d+, )?"vm2" \}', lab.run("a", "nft", "list",
                                                              "ruleset").stdout)
    tap(lab, "delete", "vm2", "--force")
    assert site.state() == before


def test_a_tunnel_and_a_guest_do_not_undo_each_other_s(site, lab):
    before = site.state()
    site.start("tunnel")
    tap(lab, "create", "vm0", *NAT)
    guest = plug_in(lab, "vm0")
    site.end("tunnel")
    assert is_ready(lab, guest)
    site.start("tunnel")
    site.connect()
    tap(lab, "delete", "vm0", "--force")
    assert all(answers(lab, "b", address, 5) for address in C)
    site.end("tunnel")
    assert site.state() == before


def test_a_firewall_that_drops_what_is_forwarded_is_named(site, lab):
    lab.run("a", "nft", "-f", "-", input="table inet filter {\nchain forward {\ntype filter hook "
            "forward priority 0\npolicy drop\n}\n}\n")
    (warning,) = tap(lab, "create", "vm0", *NAT).stderr.splitlines()
    assert "forwarded packets of vm0 are dropped by another firewall here" in warning
    guest = plug_in(lab, "vm0")
    assert not answers(lab, guest, C[0])
    lab.run("a", "sh", "-c", warning.split("let them pass: ")[1])
    assert is_ready(lab, guest)


def test_a_failing_create_leaves_nothing(site, lab):
    before = site.state()
    read_only = ["sh", "-euc", "mount --bind /proc/sys /proc/sys\n"
                 'mount -o remount,bind,ro /proc/sys\nexec "$@"', "sh"]
    for prefix, said in ((read_only, "--nat needs net.ipv4.conf."),
                         (["env", "PATH=/nowhere"], "nft is missing, which a gateway needs")):
        result = lab.run("a", *prefix, *FASTPUMP, "tap", "create", "vm0", "vm1", *NAT, check=False)
        assert result.returncode == 1 and said in result.stderr and result.stdout == ""
        assert len(result.stderr.splitlines()) == 1 and "<" not in result.stderr
        assert site.state() == before


def test_the_namespace_of_a_jailer(site, lab):
    """Clones of a snapshot have TAPs of one name. By its name and by its path."""
    for host, namespace in (("c", lab.names["c"]), ("d", f"/run/netns/{lab.names['d']}")):
        assert tap(lab, "create", "vm0", *NAT, "--netns", namespace).stdout == "created vm0\n"
        assert "vm0" in tap(lab, "list", "--netns", namespace).stdout
        assert "172.16.0.1/30" in lab.ip(host, "address", "show", "vm0")
        assert "masquerade" in lab.run(host, "nft", "list", "ruleset").stdout
    assert "vm0" not in tap(lab, "list").stdout
    tap(lab, "delete", "vm0", "--netns", lab.names["c"])
    assert lab.run("c", "nft", "list", "ruleset").stdout == ""
    assert "vm0" in lab.ip("d", "link")


@pytest.mark.parametrize("words, complaint", [
    (["create", "vm0", "--nat"], "--nat is for a guest that is routed: give --address too"),
    (["create", "vm0", "--address", "10.0.0.1/24", "--bridge", "br0"],
     "a port of a bridge needs no --address"),
    (["create", "--count", "2", "--prefix", "vm", "--address", "255.255.255.253/30"],
     "counting up from 255.255.255.253/30 leaves the addresses that there are"),
    (["create", "vm0", "--netns", "nowhere7"], "there is no network namespace nowhere7"),
    (["list", "--netns", "/proc/self/ns/mnt"], "/proc/self/ns/mnt is no network namespace"),
])
def test_mistakes_are_one_sentence(lab, words, complaint):
    result = tap(lab, *words, check=False)
    assert result.returncode == 1 and result.stderr.startswith(f"fastpump: {complaint}")
    assert len(result.stderr.splitlines()) == 1
