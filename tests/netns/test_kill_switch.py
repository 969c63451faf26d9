"""The kill switch: nothing leaves in clear, whatever happens to the tunnel or to the host.

a sends without end what nobody on the outer wire must ever see, to hosts behind the tunnel and on
the wire, and for a guest (support/leaks.py).
"""

import pytest

from fastpump.lab.networks import INSIDE4, OUTSIDE4, OUTSIDE6, need, stop
from support.hosts import FASTPUMP, is_reachable, until
from support.leaks import Started, in_clear, is_silent, passes, traffic, watch
from support.quick import ADDRESSES, FAR, FULL, NEAR

SWITCH = "KillSwitch = on"
GUEST = "172.20.0.2"
INSIDE = "10.9.0.0/24", "fd00:9::/64"
WAYS = pytest.mark.parametrize("way", ["up", "tunnel"])
EVERYBODY = *FAR, OUTSIDE4["b"], OUTSIDE6["b"]


@pytest.fixture
def world(quick, lab):
    watch(lab)
    return quick


@WAYS
def test_nothing_leaves_in_clear(world, lab, way):
    """Also by sockets that were connected before, and while it is killed and started again."""
    before = world.state()
    with traffic(lab, *EVERYBODY):
        until(lambda: in_clear(lab) > 100)
        tunnel = Started(world, way, SWITCH)
        leaked = in_clear(lab)              # until the switch was on
        passes(lab)
        for _ in range(2):
            tunnel.kill()
            assert is_silent(lab)
            tunnel.up()
            passes(lab)
        tunnel.kill(supervisor=False)
        passes(lab)
        assert in_clear(lab) == leaked
        tunnel.end()
        until(lambda: in_clear(lab) > leaked + 100)
    assert world.state() == before
    assert tunnel.said.count("was killed; what it left behind is taken over now") == 2


def test_a_restart_opens_nothing(world, lab):
    """As systemd restarts the unit: `down`, then `up`."""
    before = world.state()
    hooks = world.directory / "hooks"
    tunnel = Started(world, "up", SWITCH, f"PostDown = echo down %i >> {hooks}")
    with traffic(lab, *EVERYBODY):
        passes(lab)
        leaked = in_clear(lab)
        lab.run("a", *world.words("down"), "--keep-closed", str(world.path))
        assert is_silent(lab)
        tunnel.up()
        passes(lab)
        lab.run("a", *world.words("down"), "--keep-closed", str(world.path))
        assert is_silent(lab)
        assert in_clear(lab) == leaked
        assert world("down", check=False).returncode == 0
        until(lambda: in_clear(lab) > leaked + 100)
    assert world.state() == before
    assert world.hooks() == [f"down {world.name}"] * 2


@pytest.mark.parametrize("layer", ["nft flush ruleset", "ip rule flush; ip -6 rule flush"])
def test_either_layer_alone_keeps_a_killed_one_closed(world, lab, layer):
    tunnel = Started(world, "up", SWITCH)
    with traffic(lab, *EVERYBODY):
        passes(lab)
        tunnel.kill()
        leaked = in_clear(lab)
        lab.run("a", "sh", "-ec", layer)
        assert is_silent(lab) and in_clear(lab) == leaked
        world("down")


@WAYS
def test_what_is_allowed_by_name(world, lab, way):
    before = world.state()
    tunnel = Started(world, way, SWITCH,
                     f"KillSwitchAllow = {OUTSIDE4['b']}/32, {OUTSIDE6['b']}/128")
    for host in (OUTSIDE4["b"], OUTSIDE6["b"]):
        assert is_reachable(lab, host)
    rules = lab.ip("a", "rule"), lab.ip("a", "-6", "rule")
    assert f"to {OUTSIDE4['b']} lookup main" in rules[0]
    assert f"to {OUTSIDE6['b']} lookup main" in rules[1]
    assert all(is_reachable(lab, host) for host in FAR)
    if way == "up":
        tunnel.options = (SWITCH,)
        world.write(ADDRESSES, SWITCH, peer=(FULL,))
        assert "changed: the kill switch, the rules" in world("reload").stdout
        assert f"dev {world.name} " in lab.ip("a", "route", "get", OUTSIDE6["b"])
        assert all(is_reachable(lab, host) for host in FAR)
    tunnel.end()
    assert world.state() == before


@WAYS
def test_a_split_tunnel_lets_nothing_else_through(world, lab, way):
    before = world.state()
    tunnel = Started(world, way, SWITCH, allowed=INSIDE)
    assert is_reachable(lab, INSIDE4["b"])
    with traffic(lab, *EVERYBODY):
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
    Started(world, "up", SWITCH)
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
    tunnel = Started(world, "up", SWITCH)
    assert "cuts off the SSH session from 192.0.2.77" in tunnel.said
    tunnel.end()
    tunnel.options = (SWITCH, "KillSwitchAllow = 192.0.2.77")
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
    tunnel = Started(world, way, SWITCH, f"EndpointDNS = {OUTSIDE4['b']}", endpoint="b.test")
    assert "'b.test' cannot be resolved: no answer from " in tunnel.said or (
        "'b.test' has no address yet" in tunnel.said)
    assert not is_reachable(lab, INSIDE4["b"], timeout_s=1)
    name_server(True)
    until(lambda: is_reachable(lab, INSIDE4["b"], timeout_s=1), timeout_s=90)
    with traffic(lab, *EVERYBODY):
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
    tunnel = Started(world, "up", SWITCH, endpoint="b.test")
    assert is_reachable(lab, INSIDE4["b"])
    tunnel.end()
