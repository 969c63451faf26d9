"""What `fastpump up` and its like do beside other programs, and on hosts that lack something."""

import errno
import os
import platform
import signal
import socket
import sys

import pytest

from fastpump.lab.networks import INSIDE4, OUTSIDE4
from support.hosts import FASTPUMP, is_reachable, until
from support.quick import ADDRESSES, FAR, FULL, NEAR, a_public_key

SRC_VALID_MARK = "net.ipv4.conf.all.src_valid_mark"


# -- a default route

def test_no_default_route_is_there_before_both_rules(quick, lab):
    """Between them, packets to the host's other networks would go into the tunnel."""
    log = quick.directory / "monitor"
    monitor = lab.spawn("a", "sh", "-c", 'exec ip -4 monitor rule route > "$0"', str(log))
    until(lambda: [line for line in lab.run("a", "cat", "/proc/net/netlink").stdout.splitlines()[1:]
                   if line.split()[2:3] == [str(monitor.pid)] and int(line.split()[3], 16)])
    quick.write(ADDRESSES, peer=(FULL,))
    quick("up")
    until(lambda: f"default dev {quick.name} table 51820" in log.read_text())
    before, *_ = log.read_text().partition("default dev")
    assert "not from all fwmark 0xca6c lookup 51820" in before
    assert "from all lookup main suppress_prefixlength 0" in before


@pytest.mark.parametrize("value", [1, 0])
def test_sysctls_that_are_read_only(quick, lab, value):
    """As in containers: what is set already need not be written."""
    lab.sysctl("a", {SRC_VALID_MARK: value})
    quick.write(ADDRESSES, peer=(FULL,))
    before = quick.state()
    quick.prefix = ["sh", "-euc", 'mount -o bind,ro /proc/sys /proc/sys; exec "$@"', "sh"]
    if value == 1:
        quick("up")
        assert all(is_reachable(lab, host) for host in FAR)
        quick("down")
    else:
        assert f"needs {SRC_VALID_MARK} = 1, which cannot be set here" in quick.fails("up")
    assert quick.state() == before


def test_marks_of_other_programs_stay(quick, lab):
    """Those of the packets of others, that is: UDP replies, for one, which another program marks by
    where they came in."""
    lab.run("a", "nft", """\
add table inet other
add chain inet other early { type filter hook prerouting priority raw; }
add rule inet other early udp dport 7000 meta mark set 0x99
add chain inet other late { type filter hook input priority filter; }
add rule inet other late udp dport 7000 meta mark 0x99 counter
""")
    quick.write(ADDRESSES, peer=(FULL,))
    quick("up")
    assert is_reachable(lab, FAR[0])
    lab.run("b", "bash", "-c", f"echo hello > /dev/udp/{OUTSIDE4['a']}/7000")
    until(lambda: "meta mark 0x00000099 counter packets 1 " in lab.run(
        "a", "nft", "list", "table", "inet", "other").stdout, 5)


def test_the_table_of_another_tunnel_has_no_say_in_the_mtu(quick, lab):
    """Without endpoints it is that of the host's default route."""
    lab.ip("a", "route", "add", "default", "dev", "wire", "mtu", "1300", "table", "77")
    lab.ip("a", "route", "add", "default", "dev", "wire", "mtu", "1450")
    quick.write(ADDRESSES)
    quick.path.write_text("".join(line for line in quick.path.read_text().splitlines(True)
                                  if not line.startswith("Endpoint")))
    quick("up")
    assert lab.status("a")["mtu"] == 1370


COUNTING = """\
import sys
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from fastpump.netlink import routes
decode, decoded = rtmsg.decode, []
rtmsg.decode = lambda self: (decoded.append(self), decode(self))
index = int(sys.argv[1])
routes.change_routes(index, [], [])
print(routes.unused_table(51820, ()), routes.fitting_mtu([]), routes.likely_address(0))
print(len(decoded))
"""


def test_the_routes_of_others_are_not_looked_at(lab):
    """A router may have hundreds of thousands."""
    lab.ip("a", "route", "add", "default", "dev", "wire", "mtu", "1400")
    lab.run("a", "sh", "-c", "for each in $(seq 0 4095); do echo route add blackhole "
            "10.100.$((each / 256)).$((each % 256)); done | ip -batch -")
    index = lab.run("a", "cat", "/sys/class/net/wire/ifindex").stdout.strip()
    *said, decoded = lab.run("a", *FASTPUMP[:1], "-c", COUNTING, index).stdout.split()
    assert said == ["51820", "1320", OUTSIDE4["a"]] and int(decoded) < 50


def test_the_address_that_others_may_reach_is_ours_on_a_point_to_point_link(lab):
    lab.ip("a", "address", "flush", "dev", "wire")
    lab.ip("a", "address", "add", "192.0.2.78", "peer", "192.0.2.79", "dev", "wire")
    ask = "from fastpump.netlink import routes; print(routes.likely_address(0))"
    assert lab.run("a", *FASTPUMP[:1], "-c", ask).stdout == "192.0.2.78\n"


# -- a file behind a link

def swap(link, target):
    """As all do it who swap links: so that there is one at any time."""
    new = link.with_name(link.name + ".new")
    new.symlink_to(target)
    new.rename(link)


def test_a_file_behind_links_that_are_swapped_is_the_one_of_now(quick, lab):
    """As in a volume of Kubernetes: wg0.conf -> ..data/wg0.conf, ..data -> ..2026_01."""
    versions = [quick.directory / name for name in ("..2026_01", "..2026_02")]
    for version, mtu in zip(versions, (1400, 1380), strict=True):
        version.mkdir()
        quick.write(ADDRESSES, f"MTU = {mtu}", "SaveConfig = true", "PreDown = true")
        quick.path.rename(version / quick.path.name)
    data = quick.directory / "..data"
    data.symlink_to(versions[0].name)
    quick.path.symlink_to(f"..data/{quick.path.name}")
    old = (versions[0] / quick.path.name).read_text()
    quick("up")
    assert lab.status("a")["configuration_file"] == str(quick.path)
    assert lab.status("a")["mtu"] == 1400
    swap(data, versions[1].name)
    assert "the MTU" in quick("reload").stdout
    assert lab.status("a")["configuration_file"] == str(quick.path)
    until(lambda: lab.status("a")["mtu"] == 1380)
    lab.run("a", "wg", "set", quick.name, "listen-port", "4242")
    quick("down")
    assert quick.path.is_symlink() and data.is_symlink()
    assert "ListenPort = 4242" in (versions[1] / quick.path.name).read_text()
    assert (versions[0] / quick.path.name).read_text() == old


def test_a_directory_behind_a_link_that_is_swapped(quick, lab):
    """The shell's working directory is a link: /etc/tunnels -> generation-1, say."""
    current = quick.directory / "current"
    for number, mtu in enumerate((1400, 1380)):
        (quick.directory / f"generation-{number}").mkdir()
        quick.write(ADDRESSES, f"MTU = {mtu}")
        quick.path.rename(quick.directory / f"generation-{number}" / quick.path.name)
    current.symlink_to("generation-0")
    lab.run("a", "bash", "-c", f"cd {current}; exec \"$@\"", "bash", *quick.words("up"),
            f"./{quick.path.name}")
    assert lab.status("a")["configuration_file"] == str(current / quick.path.name)
    swap(current, "generation-1")
    lab.run("a", "bash", "-c", "cd /; exec \"$@\"", "bash", *quick.words("reload"),
            str(current / quick.path.name))
    until(lambda: lab.status("a")["mtu"] == 1380)


def test_reload_reads_the_file_that_it_is_given(quick, lab):
    quick.write(ADDRESSES, "MTU = 1400")
    quick("up")
    (quick.directory / "other").mkdir()
    first, quick.directory = quick.path, quick.directory / "other"
    quick.write(ADDRESSES, "MTU = 1380")
    said = quick("reload").stdout
    assert said == f"changed: the file is {quick.path} from now on, the MTU\n"
    assert lab.status("a")["configuration_file"] == str(quick.path) != str(first)


def test_down_goes_by_the_file_that_the_tunnel_runs_from(quick, lab):
    """Another of that name is not its file. By name, it is found wherever it is."""
    (quick.directory / "other").mkdir()
    (quick.directory / "link").symlink_to(".")
    other = quick.directory / "other" / quick.path.name
    quick.write("SaveConfig = true", "Address = 10.44.0.1/24",
                f"PreDown = touch {quick.directory}/ran")
    quick.path.rename(other)
    text = other.read_text()
    for words in ((quick.name,), (f"{quick.directory}/link/{quick.name}.conf",)):
        quick.write(ADDRESSES, f"PreDown = echo %i >> {quick.directory}/hooks")
        before = quick.state()
        quick("up")
        result = lab.run("a", *quick.words("down"), str(other), check=False)
        assert (result.returncode, result.stderr) == (
            1, f"fastpump: {quick.name} runs from {quick.path}, not from {other}: `fastpump down "
               f"{quick.name}` stops it\n")
        assert is_reachable(lab, INSIDE4["b"])
        lab.run("a", *quick.words("down"), *words)
        assert quick.state() == before
    assert quick.hooks() == [quick.name, quick.name]
    assert other.read_text() == text and not (quick.directory / "ran").exists()


def test_a_file_that_cannot_be_replaced_keeps_no_tunnel_from_ending(quick, lab):
    """As one that a container has by a mount of its own."""
    quick.write(ADDRESSES, "SaveConfig = true", f"PostDown = echo %i >> {quick.directory}/hooks")
    before, text = quick.state(), quick.path.read_text()
    quick("up")
    lab.run("a", "wg", "set", quick.name, "listen-port", "4242")
    quick.prefix = ["sh", "-euc", f'mount --bind {quick.path} {quick.path}; exec "$@"', "sh"]
    said = quick("down").stderr
    assert (f"the running configuration is not saved: cannot write {quick.path}: Device or "
            "resource busy") in said
    assert quick.state() == before and quick.hooks() == [quick.name]
    assert quick.path.read_text() == text
    assert not list(quick.directory.glob(f".{quick.name}*"))


# -- a host without IPv6

@pytest.mark.parametrize("peer", [NEAR, FULL], ids=["near", "full"])
def test_a_host_without_ipv6_gets_ipv4(quick, lab, peer):
    lab.sysctl("a", {f"net.ipv6.conf.{which}.disable_ipv6": 1 for which in ("all", "default")})
    quick.write(ADDRESSES, peer=(peer,))
    before = quick.state()
    said = quick("up").stderr
    assert "this host has no IPv6" in said and "fd00:9::1/64" in said
    assert is_reachable(lab, INSIDE4["b"])
    if peer == FULL:
        assert is_reachable(lab, FAR[0])
        assert quick.state()["-6 rule"] == before["-6 rule"]
    quick.write(ADDRESSES, "MTU = 1400", peer=(peer,))
    assert quick("reload").stdout == "changed: the MTU\n"
    quick("down")
    assert quick.state() == before


def test_no_packet_goes_beside_the_tunnel_because_it_cannot_have_ipv6(quick, lab):
    """Only new interfaces lack it here."""
    lab.sysctl("a", {"net.ipv6.conf.default.disable_ipv6": 1})
    before = quick.state()
    quick.write(ADDRESSES, peer=(FULL,))
    assert "net.ipv6.conf.default.disable_ipv6" in quick.fails("up")
    assert quick.state() == before
    quick.write(ADDRESSES, "PreUp = echo 0 > /proc/sys/net/ipv6/conf/%i/disable_ipv6",
                peer=(FULL,))
    quick("up")
    assert all(is_reachable(lab, host) for host in FAR)


def test_a_short_path_does_not_take_ipv6_away(quick, lab):
    """The kernel removes the IPv6 addresses of an interface whose MTU gets smaller than 1280."""
    lab.ip("a", "link", "set", "wire", "mtu", "1300")
    quick.write(ADDRESSES, peer=(FULL,))
    assert "IPv6 needs 1280" in quick("up").stderr
    assert lab.status("a")["mtu"] == 1280
    assert all(is_reachable(lab, host) for host in FAR)
    quick.write(f"Address = {INSIDE4['a']}/24", peer=("AllowedIPs = 10.9.0.0/24",))
    quick("down")
    assert "IPv6" not in quick("up").stderr
    assert lab.status("a")["mtu"] == 1220


# -- a kernel, or a container, that refuses something

# Has the kernel refuse a system call with an errno, if its first argument is a certain one (-1:
# any), and becomes the rest of the command line. (The number of the system call is the same on all
# machines, or by platform.machine().)
REFUSE = """\
import ctypes, os, struct, sys
number, argument, errno = map(int, sys.argv[1:4])
program = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16),   # the number; the argument
           (0x15, 0, 1, argument & 0xFFFFFFFF), (0x06, 0, 0, 0x50000 | errno),
           (0x06, 0, 0, 0x7FFF0000)]
if argument < 0:
    program[1:4] = [(0x15, 0, 1, number)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
header = struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, header, 0, 0) == 0, ctypes.get_errno()
os.execvp(sys.argv[4], sys.argv[4:])
"""
SYS_PIDFD_OPEN = 434
SYS_SOCKET = {"x86_64": 41, "aarch64": 198}.get(platform.machine())


def refusing(number, argument, number_of_error):
    return [sys.executable, "-c", REFUSE, *map(str, (number, argument, number_of_error))]


def test_up_and_down_where_pidfd_open_is_refused(quick, lab):
    before = quick.state()
    quick.prefix = refusing(SYS_PIDFD_OPEN, -1, errno.EPERM)
    quick("up")
    assert is_reachable(lab, INSIDE4["b"])
    pids = [queue["pid"] for queue in lab.status("a")["queues"]]
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: lab.status("a")["worker_restarts"] == 1)
    assert is_reachable(lab, INSIDE4["b"])
    quick("down")
    assert quick.state() == before


@pytest.mark.skipif(SYS_SOCKET is None, reason="the number of socket(2) here is not known")
def test_a_kernel_without_ipv6(quick, lab):
    """As with ipv6.disable=1: no such sockets, no such settings."""
    lab.sysctl("a", {f"net.ipv6.conf.{which}.disable_ipv6": 1 for which in ("all", "default")})
    before = quick.state()
    quick.prefix = ["sh", "-euc", 'mount -t tmpfs tmpfs /proc/sys/net/ipv6; exec "$@"', "sh",
                    *refusing(SYS_SOCKET, socket.AF_INET6, errno.EAFNOSUPPORT)]
    other = a_public_key(1)
    quick.write(ADDRESSES, peer=(FULL,), more=(
        "[Peer]", f"PublicKey = {other}", "Endpoint = [2001:db8::9]:51820",
        "AllowedIPs = 10.66.0.0/16"))
    said = quick("up").stderr
    assert "this host has no IPv6: without fd00:9::1/64, ::/0" in said
    assert "the endpoint [2001:db8::9]:51820 cannot be reached" in said
    assert quick.peers()[other][1] == "(none)"
    assert is_reachable(lab, INSIDE4["b"]) and is_reachable(lab, FAR[0])
    quick("reload")
    quick("down")
    assert quick.state() == before


# -- what is gone from the file

def test_reload_drops_what_is_gone(quick, lab):
    """As wg syncconf does since 1.0.20260223."""
    secret = lab.run("a", "wg", "genpsk").stdout.strip()
    quick.write(ADDRESSES, "FwMark = 9", peer=(NEAR, f"PresharedKey = {secret}",
                                               "PersistentKeepalive = 25"))
    quick("up")
    assert quick.peers()[quick.public_b][0] == secret
    quick.write(ADDRESSES)
    quick("reload")
    preshared_key, *_, keepalive = quick.peers()[quick.public_b]
    assert (preshared_key, keepalive) == ("(none)", "off")
    assert lab.run("a", "wg", "show", quick.name, "fwmark").stdout == "off\n"
    assert is_reachable(lab, INSIDE4["b"])
