"""The kill switch: nothing leaves in clear, whatever happens to the tunnel or to the host.

a sends without end what nobody on the outer wire must ever see: by IPv4, IPv6 and DNS, to hosts
behind the tunnel, to hosts on the wire, by sockets that exist since before the tunnel, and for a
guest. b counts what arrives there that is none of the tunnel's own datagrams.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from fastpump.lab.networks import INSIDE4, OUTSIDE4, OUTSIDE6, need, stop, wait_for_line
from support.hosts import FASTPUMP, is_reachable, pids_in, until
from support.quick import ADDRESSES, FAR, FULL, NEAR

SWITCH = "KillSwitch = on"
GUEST = "172.20.0.2"
SENDER = """\
import socket, sys, time
def udp(host):
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
old = {}
for host in sys.argv[1:]:
    old[host] = udp(host)
    try:
        old[host].connect((host, 9))
    except OSError:
        pass
print("sending", flush=True)
while True:
    for host, sock in old.items():
        with udp(host) as new:
            for way in (lambda: sock.send(b"in clear"), lambda: new.sendto(b"in clear", (host, 9)),
                        lambda: new.sendto(b"in clear", (host, 53))):
                try:
                    way()
                except OSError:
                    pass
    time.sleep(0.002)
"""
# Everything on the wire is in clear but what the tunnel sends, and what keeps the link going.
SEEN = f"""\
table inet seen {{
  counter clear {{}}
  counter inside {{}}
  chain raw {{
    type filter hook prerouting priority raw
    iifname "wire*" icmpv6 type {{ 133, 134, 135, 136 }} return
    iifname "wire*" udp dport 51820 return
    iifname "wire*" udp sport 51820 return
    iifname "wire*" ip daddr {{ {OUTSIDE4['b']}, {FAR[0]} }} counter name clear
    iifname "wire*" ip6 daddr {{ {OUTSIDE6['b']}, {FAR[1]} }} counter name clear
    iifname != "wire*" ip daddr {FAR[0]} counter name inside
  }}
}}
"""


@pytest.fixture
def world(quick, lab):
    """b is the way of a to everywhere; a guest of a's sends, too."""
    lab.run("b", "nft", "-f", "-", input=SEEN)
    for version, gateway in ((4, OUTSIDE4["b"]), (6, OUTSIDE6["b"])):
        lab.ip("a", f"-{version}", "route", "add", "default", "via", gateway)
    return quick


def seen(lab, what):
    listed = json.loads(lab.run("b", "nft", "-j", "list", "counters").stdout)["nftables"]
    return next(each["counter"]["packets"] for each in listed
                if "counter" in each and each["counter"]["name"] == what)


@contextlib.contextmanager
def traffic(lab):
    """To hosts behind the tunnel and on the wire, and into other networks there."""
    sender = lab.spawn("a", sys.executable, "-c", SENDER, *FAR, OUTSIDE4["b"], OUTSIDE6["b"])
    try:
        wait_for_line(sender, "sending")
        yield
    finally:
        lab.processes.remove(sender)
        stop(sender)


def passes(lab):
    """The tunnel carries what is sent into it."""
    before = seen(lab, "inside")
    until(lambda: seen(lab, "inside") > before + 20)


class Started:
    """A tunnel of a, by either command."""

    def __init__(self, world, way, *options, full=True, endpoint=OUTSIDE4["b"]):
        self.world, self.way, self.options, self.full = world, way, options, full
        self.endpoint, self.said = endpoint, ""
        self.up()

    def up(self):
        world, lab = self.world, self.world.lab
        world.write(ADDRESSES, SWITCH, *self.options, peer=(FULL if self.full else NEAR,))
        world.path.write_text(world.path.read_text().replace(
            f"{OUTSIDE4['b']}:", f"{self.endpoint}:"))
        if self.way == "up":
            self.said += world("up").stderr
            return
        key = world.directory / "key"
        key.touch(mode=0o600)
        key.write_text(world.private)
        flags = {"KillSwitchAllow": "--kill-switch-allow", "EndpointDNS": "--endpoint-dns"}
        allowed = (FULL if self.full else NEAR).partition("= ")[2].replace(", ", "+")
        with (world.directory / "said").open("w") as said:
            self.process = lab.spawn(
                "a", *world.prefix, *FASTPUMP, "tunnel", world.name, "--queues", "2",
                "--private-key", str(key), "--kill-switch",
                *(word for option in self.options for value in option.partition("= ")[2].split(", ")
                  for word in (flags[option.partition(" =")[0]], value)),
                *(word for each in ADDRESSES.removeprefix("Address = ").split(", ")
                  for word in ("--address", each)),
                "--peer", f"{world.public_b}@{self.endpoint}:51820,allowed-ips={allowed}",
                stderr=said.fileno())
        wait_for_line(self.process, " is ready: ")
        self.said += (world.directory / "said").read_text()

    def kill(self, supervisor=True, workers=True):
        lab = self.world.lab
        pid = self.world.pid
        for each in ([pid] if supervisor else []) + (
                [worker for worker in pids_in(lab, "a") if worker != pid
                 and "worker" in comm(worker)] if workers else []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        if supervisor:
            until(lambda: f"{self.world.name}:" not in lab.ip("a", "link", "show"))
            if self.way == "tunnel":
                lab.processes.remove(self.process)
                stop(self.process)

    def end(self):
        if self.way == "up":
            self.world("down")
        else:
            self.world.lab.processes.remove(self.process)
            stop(self.process, signal.SIGTERM)
            assert self.process.returncode == 0, self.said


def comm(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


WAYS = pytest.mark.parametrize("way", ["up", "tunnel"])


def is_silent(lab, packets=60):
    """Nothing arrives in clear while a sends so much."""
    before = seen(lab, "clear")
    assert threading.Event().wait(packets * 0.02) is False
    return seen(lab, "clear") == before


@WAYS
def test_nothing_leaves_in_clear(world, lab, way):
    """Also by sockets that were connected before, and while it is killed and started again."""
    before = world.state()
    with traffic(lab):
        until(lambda: seen(lab, "clear") > 100)
        tunnel = Started(world, way)
        leaked = seen(lab, "clear")         # until the switch was on
        passes(lab)
        for _ in range(2):
            tunnel.kill()
            assert is_silent(lab)
            tunnel.up()
            passes(lab)
        tunnel.kill(supervisor=False)
        passes(lab)
        assert seen(lab, "clear") == leaked
        tunnel.end()
        until(lambda: seen(lab, "clear") > leaked + 100)
    assert world.state() == before
    assert tunnel.said.count("was killed; what it left behind is taken over now") == 2


def test_a_restart_opens_nothing(world, lab):
    """As systemd restarts the unit: `down`, then `up`."""
    before = world.state()
    hooks = world.directory / "hooks"
    tunnel = Started(world, "up", f"PostDown = echo down %i >> {hooks}")
    with traffic(lab):
        passes(lab)
        leaked = seen(lab, "clear")
        lab.run("a", *world.words("down"), "--keep-closed", str(world.path))
        assert is_silent(lab)
        tunnel.up()
        passes(lab)
        lab.run("a", *world.words("down"), "--keep-closed", str(world.path))
        assert is_silent(lab)
        assert seen(lab, "clear") == leaked
        assert world("down", check=False).returncode == 0
        until(lambda: seen(lab, "clear") > leaked + 100)
    assert world.state() == before
    assert world.hooks() == [f"down {world.name}"] * 2


@pytest.mark.parametrize("layer", ["nft flush ruleset", "ip rule flush; ip -6 rule flush"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_either_layer_alone_keeps_it_closed(world, lab, layer, is_killed):
    tunnel = Started(world, "up")
    with traffic(lab):
        passes(lab)
        if is_killed:
            tunnel.kill()
        leaked = seen(lab, "clear")
        lab.run("a", "sh", "-ec", layer)
        assert is_silent(lab) and seen(lab, "clear") == leaked
        if is_killed:
            world("down")
        else:
            tunnel.end()


@WAYS
def test_what_is_allowed_by_name(world, lab, way):
    before = world.state()
    tunnel = Started(world, way, f"KillSwitchAllow = {OUTSIDE4['b']}/32, {OUTSIDE6['b']}/128")
    for host in (OUTSIDE4["b"], OUTSIDE6["b"]):
        assert is_reachable(lab, host)
    rules = lab.ip("a", "rule"), lab.ip("a", "-6", "rule")
    assert f"to {OUTSIDE4['b']} lookup main" in rules[0]
    assert f"to {OUTSIDE6['b']} lookup main" in rules[1]
    assert all(is_reachable(lab, host) for host in FAR)
    if way == "up":
        tunnel.options = ()
        world.write(ADDRESSES, SWITCH, peer=(FULL,))
        assert "changed: the kill switch, the rules" in world("reload").stdout
        assert f"dev {world.name} " in lab.ip("a", "route", "get", OUTSIDE6["b"])
        assert all(is_reachable(lab, host) for host in FAR)
    tunnel.end()
    assert world.state() == before


@WAYS
def test_a_split_tunnel_lets_nothing_else_through(world, lab, way):
    before = world.state()
    tunnel = Started(world, way, full=False)
    assert is_reachable(lab, INSIDE4["b"])
    with traffic(lab):
        assert is_silent(lab)
    assert not is_reachable(lab, FAR[0], timeout_s=1)
    tunnel.end()
    assert world.state() == before


def test_forwarded_packets_do_not_leave_in_clear(world, lab):
    """Of a guest in a namespace behind a."""
    lab.ip("a", "link", "add", "guest", "type", "veth", "peer", "name", "eth0", "netns",
           lab.names["b"])
    lab.ip("a", "address", "add", "172.20.0.1/24", "dev", "guest")
    lab.ip("a", "link", "set", "guest", "up")
    lab.run("a", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    lab.run("b", "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
    lab.ip("b", "address", "add", f"{GUEST}/24", "dev", "eth0")
    lab.ip("b", "link", "set", "eth0", "up")
    lab.ip("b", "route", "add", "198.18.0.0/24", "via", "172.20.0.1")
    lab.run("b", "nft", "-f", "-", input="""\
table inet guest {
  chain raw {
    type filter hook prerouting priority raw
    iifname "wire*" ip daddr 198.18.0.0/24 counter
  }
}
""")
    lab.ip("b", "route", "add", "blackhole", "198.18.1.0/24")

    def arrived():
        return "packets 0 " not in lab.run("b", "nft", "list", "table", "inet", "guest").stdout

    def send():
        lab.run("b", "ping", "-c", "3", "-i", "0.05", "-W", "1", "198.18.0.9", check=False)

    world.write(ADDRESSES, SWITCH, peer=(NEAR,))
    world("up")
    send()
    assert not arrived()
    lab.run("a", "sh", "-ec", "ip rule flush; ip rule add lookup main")
    send()
    assert not arrived()
    world("down")
    send()
    until(arrived)


def test_a_start_that_fails_opens_what_it_closed(world, lab):
    before = world.state()
    world.write(ADDRESSES, SWITCH, "PreUp = false", peer=(FULL,))
    assert world("up", check=False).returncode == 1
    assert world.state() == before


def test_only_one_tunnel_of_a_host_has_one(world, lab):
    Started(world, "up")
    state = world.state()
    other = lab.run("a", *FASTPUMP, "tunnel", f"{world.name[:13]}x", "--kill-switch",
                    "--address", "10.8.0.1/24", "--listen-port", "0", check=False)
    assert other.returncode == 1
    assert f"{world.name} has a kill switch" in other.stderr
    assert world.state() == state
    world("down")


@pytest.mark.parametrize("options, complaint", [
    (("KillSwitchAllow = 10.0.0.0/8",), "has no effect without KillSwitch"),
    (("EndpointDNS = 192.0.2.1",), "has no effect without KillSwitch"),
    ((SWITCH, "Table = off"), "KillSwitch needs routes in a table of its own"),
    (("KillSwitch = maybe",), "must be on or off"),
    ((SWITCH, "KillSwitchAllow = here"), "must be ADDRESS/PREFIXLEN, like 192.168.7.0/24"),
    ((SWITCH, "EndpointDNS = dns.example"), "must be an address, like 192.0.2.53"),
])
def test_mistakes(world, options, complaint):
    world.write(*options, peer=(NEAR,))
    assert complaint in world.fails("up")


def test_a_tap_has_none(lab):
    result = lab.run("a", *FASTPUMP, "tunnel", "--tap", "--kill-switch", check=False)
    assert result.returncode == 1
    assert "--kill-switch is for IP packets, but --tap carries Ethernet frames" in result.stderr


def test_a_session_that_would_be_cut_off_is_warned(world, monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.77 50000 192.0.2.1 22")
    tunnel = Started(world, "up")
    assert "cuts off the SSH session from 192.0.2.77" in tunnel.said
    tunnel.end()
    tunnel.options = ("KillSwitchAllow = 192.0.2.77",)
    tunnel.said = ""
    tunnel.up()
    assert "SSH" not in tunnel.said
    tunnel.end()


# -- names of endpoints

@pytest.fixture
def name_server(lab, tmp_path):
    """Run or stop one on b, which knows b.test."""
    need("dnsmasq")
    running = []

    def run(is_there):
        if running and not is_there:
            lab.processes.remove(running[0])
            stop(running.pop())
        elif is_there:
            running.append(lab.spawn(
                "b", "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root",
                "--conf-file=/dev/null", f"--pid-file={tmp_path}/dnsmasq.pid",
                f"--listen-address={OUTSIDE4['b']}", "--bind-interfaces",
                f"--address=/b.test/{OUTSIDE4['b']}"))
    return run


@WAYS
def test_names_are_asked_for_outside_of_the_tunnel(world, lab, name_server, way):
    """Nothing else may. The tunnel is up before there is an answer."""
    tunnel = Started(world, way, f"EndpointDNS = {OUTSIDE4['b']}", endpoint="b.test")
    assert "'b.test' cannot be resolved: no answer from " in tunnel.said or (
        "'b.test' has no address yet" in tunnel.said)
    assert not is_reachable(lab, INSIDE4["b"], timeout_s=1)
    name_server(True)
    until(lambda: is_reachable(lab, INSIDE4["b"], timeout_s=1), timeout_s=90)
    with traffic(lab):
        passes(lab)
    name_server(False)
    # Its last address is tried, also after an end that left nothing else behind.
    tunnel.end()
    tunnel.said = ""
    tunnel.up()
    assert f"{OUTSIDE4['b']} is tried, where it was before" in tunnel.said
    assert is_reachable(lab, INSIDE4["b"])
    tunnel.end()


def test_a_name_in_the_hosts_file_needs_no_server(world, lab):
    hosts = world.directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{OUTSIDE4['b']} other B.test # that one\n")
    world.prefix = ["sh", "-euc", f'mount --bind {hosts} /etc/hosts; exec "$@"', "sh"]
    tunnel = Started(world, "up", endpoint="b.test")
    assert is_reachable(lab, INSIDE4["b"])
    tunnel.end()
