"""`--gateway` (`Gateway`): a host that forwards what comes out of the tunnel, and is as before when
the tunnel ends."""

import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import INSIDE4, INSIDE6, key_files, need, stop, wait_for_line
from support.gateways import BEYOND, Site, answers, read_until_ready, stream
from support.hosts import FASTPUMP, interface_names, make_program, until
from support.pretence import pretending

C, D = BEYOND["c"][2], BEYOND["d"][2]
A_TO_C = ("198.51.100.1", "2001:db8:51::1")
INSIDE_B = (INSIDE4["b"], INSIDE6["b"])
PROGRAMS = pytest.mark.parametrize("program", ["tunnel", "file"])
HAS_FORCE_FORWARDING = Path("/proc/sys/net/ipv6/conf/all/force_forwarding").exists()
NO_TOO_BIG = """table inet silent {
  chain out {
    type filter hook output priority 0
    icmp type destination-unreachable drop
    icmpv6 type packet-too-big drop
  }
}
"""


@pytest.fixture
def site(lab, tmp_path):
    need("nft")
    with interface_names(3) as names:
        made = Site(lab, names, tmp_path, key_files(tmp_path))
        made.build()
        yield made


def kill(site, name=None):
    pid = site.pid(name)
    os.kill(pid, signal.SIGKILL)
    name = name or site.names[0]
    until(lambda: f" {name}:" not in site.lab.ip("a", "link"))
    for process in site.lab.processes[:]:
        if name in process.args:
            site.lab.processes.remove(process)
            stop(process)


@PROGRAMS
def test_an_exit_node(site, lab, program):
    """One command on each side; who is beyond knows no way back to the client."""
    before = site.state()
    assert not site.start(program)
    site.connect()
    for host, seen in zip(C, A_TO_C, strict=True):
        assert stream(lab, "b", "c", host)[0] == seen
    assert answers(lab, "b", D[0]) and answers(lab, "b", D[1])
    during = site.sysctls()
    assert during["ipv4/ip_forward"] == "0"
    assert during["ipv6/conf/all/forwarding"] == ("0" if HAS_FORCE_FORWARDING else "1")
    site.end(program)
    assert site.state() == before


@PROGRAMS
def test_a_subnet_router(site, lab, program):
    """The network behind it is reached, and reaches the client, whose address it sees."""
    for version, inside, near in (("-4", "10.9.0.0/24", A_TO_C[0]), ("-6", "fd00:9::/64",
                                                                    A_TO_C[1])):
        lab.ip("c", version, "route", "add", inside, "via", near)
    before = site.state()
    site.start(program, "forward")
    site.connect("10.9.0.0/24+198.51.100.0/24+fd00:9::/64+2001:db8:51::/64")
    for host, own in zip(C, INSIDE_B, strict=True):
        assert stream(lab, "b", "c", host)[0] == own
        assert stream(lab, "c", "b", own)[0] == host
    assert site.state()["nft"] == ""
    site.end(program)
    assert site.state() == before


@PROGRAMS
def test_a_way_out_by_name(site, lab, program):
    """Only there is anything forwarded and masqueraded."""
    before = site.state()
    site.start(program, "forward, nat:way")
    site.connect()
    assert answers(lab, "b", C[0]) and answers(lab, "b", C[1])
    during = site.sysctls()
    changed = {name for name in during if before.get(name, during[name]) != during[name]}
    ipv6 = ("ipv6/conf/way/force_forwarding" if HAS_FORCE_FORWARDING else
            "ipv6/conf/all/forwarding")
    assert {"ipv4/conf/way/forwarding", ipv6} <= changed
    assert all("/way/" in name for name in changed) or not HAS_FORCE_FORWARDING
    for version, inside, near in (("-4", "10.9.0.0/24", "203.0.113.1"), ("-6", "fd00:9::/64",
                                                                        "2001:db8:52::1")):
        lab.ip("d", version, "route", "add", inside, "via", near)
    lab.sysctl("a", {"net.ipv4.conf.side.forwarding": 1})
    assert stream(lab, "b", "d", D[0])[0] == INSIDE_B[0]
    lab.sysctl("a", {"net.ipv4.conf.side.forwarding": 0})
    site.end(program)
    assert site.state() == before


@pytest.mark.parametrize("gateway, sizes", [("forward, nat, mss", (1300, 1300)),
                                            ("forward, nat", (1500, 1420))])
def test_segments_fit_the_narrow_side_beyond(site, lab, gateway, sizes):
    """No host hears of packets that are too big. The sizes of the packets that are sent to c, and
    by it."""
    lab.run("a", "nft", "-f", "-", input=NO_TOO_BIG)
    site.start("tunnel", gateway)
    site.connect()
    lab.ip("a", "link", "set", "way", "mtu", "1300")
    if "mss" not in gateway:
        lab.ip("a", "link", "set", "way", "mtu", "1500")    # or nothing would come through
    for host, headers in zip(C, (40, 60), strict=True):
        _, to_c, to_b = stream(lab, "b", "c", host)
        assert (to_c + headers, to_b + headers) == (min(sizes[0], 1420), sizes[1])


@PROGRAMS
def test_segments_fit_the_tunnel(site, lab, program):
    """From hosts behind both gateways, whose own interfaces take 1500 bytes."""
    lab.add_host("e")
    lab.join("b", "e", "lan", ("10.20.0.1/24", "fd00:20::1/64"), ("10.20.0.2/24", "fd00:20::2/64"))
    lab.ip("e", "route", "add", "default", "via", "10.20.0.1")
    lab.ip("e", "-6", "route", "add", "default", "via", "fd00:20::1")
    for side in "ab":
        lab.run(side, "nft", "-f", "-", input=NO_TOO_BIG)
    site.start(program, allowed="10.9.0.2/32+fd00:9::2/128+10.20.0.0/24+fd00:20::/64")
    site.connect("10.9.0.0/24+fd00:9::/64+198.51.100.0/24+2001:db8:51::/64", "--gateway",
                 "forward")
    for host, headers in zip(C, (40, 60), strict=True):
        assert stream(lab, "e", "c", host)[1:] == (1420 - headers, 1420 - headers)


def start_second(site):
    """Another gateway on a."""
    process = site.lab.spawn("a", *site.prefix, *FASTPUMP, "tunnel", site.names[2], "--queues", "1",
                             "--listen-port", "0", "--address", "10.7.0.1/24", "--address",
                             "fd00:7::1/64", "--gateway", "--peer", site.key["a"][1])
    return process, read_until_ready(process)


def end(site, process):
    site.lab.processes.remove(process)
    stop(process)
    assert process.returncode == 0


@pytest.mark.parametrize("is_old", [not HAS_FORCE_FORWARDING, True])
def test_two_gateways_on_one_host_do_not_undo_each_other_s(site, lab, is_old):
    """The first ends first: the second's clients go on, and what the first found is restored by
    the second."""
    if is_old:
        site.prefix = as_before_linux_6_17(site)
    before = site.state()
    site.lab.sysctl("a", {"net.ipv4.conf.side.forwarding": 1})
    try:
        site.start("tunnel")
        second, said = start_second(site)
        assert not said
        site.end("tunnel")
        site.start("tunnel")
        site.connect()
        assert all(answers(lab, "b", host) for host in C)
        end(site, second)
        assert all(answers(lab, "b", host) for host in C)
        start_second(site)
        kill(site, site.names[2])
        assert all(answers(lab, "b", host) for host in C)
    finally:
        site.end("tunnel")
    second, said = start_second(site)
    assert "undoing what it left behind" in said
    end(site, second)
    site.lab.sysctl("a", {"net.ipv4.conf.side.forwarding": 0})
    assert site.state() == before


@pytest.mark.parametrize("program, then", [("tunnel", "tunnel"), ("file", "up"), ("file", "down")])
def test_what_a_killed_gateway_left_is_undone_by_the_next_start(site, program, then):
    before = site.state()
    site.start(program)
    kill(site)
    left = site.state()
    assert left["nft"] and left["ipv4/conf/way/forwarding"] == "1"
    if then == "down":
        assert "undoing what it left behind" in site.fastpump("down", str(site.path)).stderr
    else:
        assert "undoing what it left behind" in site.start(program, "mss")
        assert site.sysctls()["ipv4/conf/way/forwarding"] == "0"
        site.end(program)
    assert site.state() == before


def watch_nft(lab):
    """`nft monitor` on a, which shows what happens from now on."""
    monitor = lab.spawn("a", "nft", "monitor")
    for number in range(100):
        lab.run("a", "nft", f"add table inet seen{number}; delete table inet seen{number}")
        with contextlib.suppress(SystemSetupError):
            wait_for_line(monitor, "seen", 0.1)
            return monitor
    raise AssertionError("nft monitor shows nothing")


@PROGRAMS
def test_addresses_are_translated_until_a_killed_gateway_is_replaced(site, lab, program):
    before = site.state()
    site.start(program)
    kill(site)
    monitor = watch_nft(lab)
    assert "undoing what it left behind" in site.start(program)
    lab.processes.remove(monitor)
    happened = stop(monitor)
    assert "add rule inet fastpump_gateway-" in happened
    assert not re.search("delete (table|chain) inet fastpump_gateway-", happened)
    site.end(program)
    assert site.state() == before


def test_addresses_are_translated_while_a_gateway_is_restarted(site, lab):
    before = site.state()
    site.start("file")
    monitor = watch_nft(lab)
    assert site.fastpump("down", "--keep-closed", str(site.path)).stderr == ""
    assert "masquerade" in site.state()["nft"]
    assert "killed" not in site.start("file")
    lab.processes.remove(monitor)
    assert not re.search("delete (table|chain) inet fastpump_gateway-", stop(monitor))
    assert site.fastpump("down", "--keep-closed", str(site.path)).stderr == ""
    site.fastpump("down", str(site.path))
    assert site.state() == before


def test_a_restart_is_not_undone_by_another_gateway_that_starts(site, lab):
    """As when both are restarted at once."""
    before = site.state()
    site.start("file")
    site.fastpump("down", "--keep-closed", str(site.path))
    monitor = watch_nft(lab)
    second, _ = start_second(site)
    site.start("file")
    lab.processes.remove(monitor)
    assert not re.search("delete (table|chain) inet fastpump_gateway-", stop(monitor))
    end(site, second)
    site.fastpump("down", str(site.path))
    assert site.state() == before


def test_a_record_that_somebody_removed_is_not_needed(site):
    before = site.state()
    site.start("tunnel")
    shutil.rmtree(os.environ["FASTPUMP_RUN"])
    site.end("tunnel")
    assert site.state() == before


def test_ctrl_c(site):
    before = site.state()
    site.start("tunnel")
    os.killpg(site.lab.processes[-1].pid, signal.SIGINT)
    assert site.lab.processes[-1].wait(10) == 0
    assert site.state() == before


def test_settings_that_somebody_changed_meanwhile_stay(site, lab):
    """Docker, for one, switches all on."""
    site.start("tunnel")
    lab.sysctl("a", {"net.ipv4.ip_forward": 1})
    site.end("tunnel")
    assert site.sysctls()["ipv4/conf/way/forwarding"] == "1"


# -- hosts that are no routers

def as_before_linux_6_17(site):
    """What runs fastpump as on a kernel without net.ipv6.conf.X.force_forwarding."""
    program = make_program(site.directory / "bin", "old", (
        f"#!{sys.executable}\nimport sys\nfrom fastpump.host import forwarding\n"
        "forwarding.FORCE_FORWARDING = 'not_there'\n"
        "from fastpump.cli.main import main\nsys.argv = ['fastpump', *sys.argv[4:]]\n"
        "sys.exit(main())\n"))
    return [str(program)]


ADVERTISE = """
import socket, struct, sys
router = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
router.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wire")
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + socket.inet_pton(
    socket.AF_INET6, sys.argv[2])
router.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, int(sys.argv[1]), 0, 0) + prefix,
              ("ff02::1%wire", 0))
"""


def advertise(lab, lifetime, side="c", prefix="2001:db8:60::"):
    lab.run(side, sys.executable, "-c", ADVERTISE, str(lifetime), prefix)


def learned(lab, interface):
    """The lifetime of the default route that was learned from router advertisements there, or
    None."""
    route = lab.ip("a", "-6", "route", "show", "default", "dev", interface, "proto", "ra")
    found = re.search(r"expires (\d+)sec", route)
    return found and int(found[1])


@pytest.mark.parametrize("is_old", [not HAS_FORCE_FORWARDING, True])
@PROGRAMS
def test_router_advertisements_are_taken_all_the_while(site, lab, program, is_old):
    """Also on interfaces that have no part in it."""
    if is_old:
        site.prefix = as_before_linux_6_17(site)
    for side, interface in (("c", "way"), ("d", "side")):
        lab.ip(side, "address", "add", "fe80::1/64", "dev", "wire", "nodad")

        def is_learned(side=side, interface=interface):
            advertise(lab, 1000, side)
            return learned(lab, interface)

        until(is_learned)
    before = site.sysctls()
    site.start(program, "forward, nat:way")
    assert site.sysctls()["ipv6/conf/way/accept_ra"] == ("2" if is_old else "1")
    assert all(learned(lab, interface) for interface in ("way", "side"))
    site.connect()
    assert answers(lab, "b", C[1])
    advertise(lab, 1800)
    until(lambda: (learned(lab, "way") or 0) > 1000)
    site.end(program)
    assert site.sysctls() == before
    assert all(learned(lab, interface) for interface in ("way", "side"))


def test_an_interface_that_was_a_router_by_itself_is_one_again(site, lab):
    site.prefix = as_before_linux_6_17(site)
    lab.sysctl("a", {"net.ipv6.conf.side.forwarding": 1})
    before = site.state()
    site.start("tunnel")
    assert site.sysctls()["ipv6/conf/all/forwarding"] == "1"
    site.end("tunnel")
    assert site.state() == before


def test_a_tunnel_without_ipv6_leaves_ipv6_alone(site, lab):
    site.prefix = as_before_linux_6_17(site)
    lab.run("a", "nft", "-f", "-", input=(
        "table ip6 filter {\nchain forward {\ntype filter hook forward priority 0\n"
        "policy drop\n}\n}\n"))
    process = site.lab.spawn("a", *site.prefix, *FASTPUMP, "tunnel", site.names[2], "--queues", "1",
                             "--address", "10.7.0.1/24", "--gateway")
    assert not read_until_ready(process)
    assert site.sysctls()["ipv4/conf/way/forwarding"] == "1"
    assert site.sysctls()["ipv6/conf/all/forwarding"] == "0"
    end(site, process)


# -- what is in the way

def read_only_settings():
    """As in a container."""
    return ["sh", "-euc", "mount --bind /proc/sys /proc/sys\n"
            'mount -o remount,bind,ro /proc/sys\nexec "$@"', "sh"]


def test_settings_that_cannot_be_changed(site, lab):
    """Fine if forwarding is on already, else one sentence."""
    site.prefix = read_only_settings()
    before = site.state()
    line = site.fails(*site.words("--gateway"))
    assert "--gateway forward needs net.ipv4.conf." in line and (
        "--sysctl net.ipv4.ip_forward=1" in line)
    assert site.state() == before
    lab.sysctl("a", {"net.ipv4.ip_forward": 1})
    line = site.fails(*site.words("--gateway"))
    assert "--sysctl net.ipv6.conf.all.forwarding=1" in line
    site.write("forward")
    assert re.match(rf"fastpump: {site.path}:7: Gateway = forward needs net.ipv6", site.fails(
        "up", str(site.path)))
    lab.sysctl("a", {"net.ipv6.conf.all.forwarding": 1})
    before = site.state()
    site.start("tunnel")
    site.connect()
    assert all(answers(lab, "b", host) for host in C)
    site.end("tunnel")
    assert site.state() == before


def test_without_nft(site):
    """It is needed for nat and mss only."""
    site.prefix = ["env", "PATH=/nowhere"]
    for gateway in ("nat", "mss"):
        assert site.fails(*site.words("--gateway", gateway)) == (
            "fastpump: nft is missing, which a gateway needs; install it (Debian: apt install "
            "nftables)")
    site.start("tunnel", "forward")
    site.end("tunnel")


def test_a_way_out_that_is_not_there(site):
    assert site.fails(*site.words("--gateway", "nat:wan7")) == (
        "fastpump: --gateway nat:wan7: there is no interface wan7; `ip link` lists those that "
        "there are")


DROPS = {
    "policy": "table inet filter { chain forward { type filter hook forward priority 0; "
              "policy drop; ct state established accept; }; }",
    "last rule": "table ip6 other { chain nothing { }; chain FWD { type filter hook forward "
                 "priority 5; iifname eth9 accept; jump nothing; counter reject; }; }",
    "docker": "table ip filter { chain DOCKER-USER { return; }; chain FORWARD { type filter hook "
              "forward priority 0; policy drop; jump DOCKER-USER; iifname docker0 accept; }; }",
}


@pytest.mark.parametrize("program, kind", [("tunnel", "policy"), ("file", "last rule"),
                                           ("tunnel", "docker")])
def test_a_firewall_that_drops_what_is_forwarded_is_named(site, lab, program, kind):
    """In one warning; the command in it is all that it takes."""
    lab.run("a", "nft", "-f", "-", input=DROPS[kind].replace("; }", "\n}").replace(
        "{ ", "{\n").replace("; ", "\n"))
    (warning,) = site.start(program).splitlines()
    site.connect()
    blocked = {"policy": C, "last rule": C[1:], "docker": C[:1]}[kind]
    assert [host for host in C if not answers(lab, "b", host)] == list(blocked)
    assert "are dropped by another firewall here (nftables chain " in warning
    lab.run("a", "sh", "-c", warning.split("let them pass: ")[1])
    assert all(answers(lab, "b", host) for host in C)
    site.end(program)
    assert not site.start(program)      # it passes by now
    site.end(program)


@pytest.mark.parametrize("ruleset, command", [
    ("table ip filter {\nchain ufw-before-forward {\n}\nchain FORWARD {\ntype filter hook forward "
     "priority 0\npolicy drop\njump ufw-before-forward\n}\n}\n",
     "ufw route allow in on {0} && ufw route allow out on {0}"),
    ("table inet firewalld {\nchain filter_FORWARD {\ntype filter hook forward priority 10\n"
     "reject with icmpx admin-prohibited\n}\n}\n",
     "firewall-cmd --zone=trusted --add-interface={0}")])
def test_programs_that_make_firewalls_have_commands_of_their_own(site, lab, ruleset, command):
    lab.run("a", "nft", "-f", "-", input=ruleset)
    said = site.start("tunnel")
    assert said.endswith("let them pass: " + command.format(site.names[0]))


def test_a_firewall_that_lets_it_pass_is_not_named(site, lab):
    lab.run("a", "nft", "-f", "-", input=(
        "table inet filter {\nchain early {\ntype filter hook forward priority -10\nct state "
        "invalid drop\n}\nchain input {\ntype filter hook input priority 0\npolicy drop\nudp dport "
        "51820 accept\n}\nchain forward {\ntype filter hook forward priority 0\npolicy drop\n"
        f'iifname "{site.names[0][:4]}*" accept\noifname {{ "x", "{site.names[0]}" }} accept\n}}\n'
        "}\n"))
    assert not site.start("tunnel")


# -- status

def test_status_compares_the_gateway_with_the_kernel(site, lab):
    """Other programs flush nftables, and set what sysctl.conf says."""
    site.start("tunnel", "forward, nat:way, mss")
    site.connect()
    table = f"fastpump_gateway-{site.names[0]}"
    as_wanted = {"forward": True, "nat": True, "mss": True, "interfaces": ["way"],
                 "interfaces_missing": [], "table": table, "table_lacks": [],
                 "forwarding_off": []}
    assert lab.status("b")["gateway"] is None
    assert lab.status("a")["gateway"] == as_wanted
    lines = site.fastpump("status").stdout.splitlines()
    at = lines.index("  gateway: forward, nat on way, mss")
    assert lines[at + 1:at + 3] == [f"    nftables table {table}: complete", "    forwarding: on"]

    lab.ip("a", "link", "set", site.names[0], "down")       # it may be renamed, too
    lab.ip("a", "link", "set", site.names[0], "name", site.names[2])
    lab.ip("a", "link", "set", "way", "name", "other")
    assert lab.status("a")["gateway"]["interfaces_missing"] == ["way"]
    assert "    there is no interface way" in site.fastpump("status").stdout.splitlines()


@PROGRAMS
def test_what_others_take_away_comes_back(site, lab, program, tmp_path):
    site.prefix = ["env", *(f"{name}={value}" for name, value in pretending(
        tmp_path, owns_no_tables=True).items())]
    site.start(program, "forward, nat:way, mss")
    site.connect()
    running = site.state()
    table = f"fastpump_gateway-{site.names[0]}"
    for take, called in ((("nft", "flush", "chain", "inet", table, "leaving"),
                          "the gateway's table"),
                         (("nft", "flush", "ruleset"), "the gateway's table"),
                         (("sysctl", "-qw", "net.ipv4.conf.way.forwarding=0"), "forwarding")):
        before = lab.status("a")["repairs"].get(called, 0)
        lab.run("a", *take)
        until(lambda called=called, before=before:
              lab.status("a")["repairs"].get(called, 0) > before)
        until(lambda: site.state() == running)
    site.end(program)


@pytest.mark.parametrize("gateway, expected", [("forward, nat", "1"), ("forward, nat:way", "0")])
def test_an_interface_that_comes_later(site, lab, gateway, expected):
    """An uplink that is put in, say."""
    before = site.state()
    site.start("tunnel", gateway)
    lab.ip("a", "link", "add", "late", "type", "veth", "peer", "name", "late2")
    lab.sysctl("a", {"net.ipv4.conf.way.forwarding": 0})
    until(lambda: site.sysctls()["ipv4/conf/way/forwarding"] == "1")    # so it has looked
    assert site.sysctls()["ipv4/conf/late/forwarding"] == expected
    if HAS_FORCE_FORWARDING:
        assert site.sysctls()["ipv6/conf/late/force_forwarding"] == expected
    site.end("tunnel")
    assert site.sysctls()["ipv4/conf/late/forwarding"] == "0"
    lab.ip("a", "link", "delete", "late")
    assert site.state() == before


def test_others_cannot_take_its_table_away(site, lab):
    """Where the kernel has that: not for a moment are addresses not translated."""
    before = site.state()
    site.start("tunnel")
    running = site.state()
    if "flags owner" not in running["nft"]:
        pytest.skip("this kernel has no owned tables that persist (Linux 6.9)")
    table = f"fastpump_gateway-{site.names[0]}"
    for take in (("flush", "chain", "inet", table, "leaving"), ("flush", "ruleset"),
                 ("delete", "table", "inet", table)):
        lab.run("a", "nft", *take, check=False)
        assert site.state() == running
    assert lab.status("a")["repairs"] == {}
    site.end("tunnel")
    assert site.state() == before


def test_status_of_a_gateway_that_has_no_table(site, lab):
    """And of one that was moved to another network namespace, where it has nothing."""
    site.start("tunnel", "forward")
    as_wanted = {"forward": True, "nat": False, "mss": False, "interfaces": [],
                 "interfaces_missing": [], "table": None, "table_lacks": None,
                 "forwarding_off": []}
    assert lab.status("a")["gateway"] == as_wanted
    lab.ip("a", "link", "set", site.names[0], "netns", lab.names["c"])
    until(lambda: '"name"' in lab.run("c", *FASTPUMP, "status", "--json").stdout)
    assert lab.status("c")["gateway"] == as_wanted | {"interfaces_missing": None,
                                                      "forwarding_off": None}
    lines = lab.run("c", *FASTPUMP, "status").stdout.splitlines()
    assert "  gateway: forward" in lines and not any("forwarding: " in line for line in lines)
