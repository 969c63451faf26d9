"""A table of leaks: what happens to a full tunnel or to its host, under traffic that nobody on the
wire may see. With the kill switch not one packet leaves in clear; without it none does a second
later. Afterwards it flows again, through the tunnel."""

import time

import pytest

from fastpump.lab.networks import OUTSIDE4, OUTSIDE6
from support.leaks import Started, in_clear, passes, seen, traffic, watch
from support.quick import FAR

ALL_RULES = ("ip rule flush; ip -6 rule flush; ip rule add lookup main pref 32766; "
             "ip rule add lookup default pref 32767; ip -6 rule add lookup main pref 32766")
CUT = "table inet cut { chain in { type filter hook input priority 0; udp dport 51820 drop; }; }"


class Host:
    """What happens to host a, by its name in the table."""

    def __init__(self, tunnel, silence_s):
        self.tunnel, self.lab, self.world = tunnel, tunnel.world.lab, tunnel.world
        self._silence_s = silence_s

    def run(self, command):
        self.lab.run("a", "sh", "-ec", command.replace("NAME", self.world.name))

    def restart(self, **what):
        self.tunnel.kill(**what)
        self.settle()
        self.tunnel.up()

    def settle(self):
        """A second, in which it may be put right; then traffic for a while."""
        before = seen(self.lab, "clear")
        time.sleep(1)
        after = seen(self.lab, "clear")
        time.sleep(0.5)
        assert seen(self.lab, "clear") == after, (before, after)

    def cut_off(self):
        """The peer receives nothing; for 200 s if the run is a long one, so that keys expire."""
        self.lab.run("b", "nft", "-f", "-", input=CUT)
        time.sleep(self._silence_s)
        self.lab.run("b", "nft", "delete", "table", "inet", "cut")

    def replace_uplink(self):
        lab = self.lab
        lab.ip("a", "link", "add", "wire2", "type", "veth", "peer", "name", "wire2", "netns",
               lab.names["b"])
        for side, number in (("a", 1), ("b", 2)):
            lab.ip(side, "address", "add", f"192.0.3.{number}/24", "dev", "wire2")
            lab.ip(side, "address", "add", f"2001:db8:3::{number}/64", "dev", "wire2", "nodad")
            lab.ip(side, "link", "set", "wire2", "up")
        lab.ip("a", "address", "flush", "dev", "wire")
        lab.ip("a", "link", "set", "wire", "down")
        lab.ip("a", "route", "add", "default", "via", "192.0.3.2", "metric", "50")
        lab.ip("a", "-6", "route", "add", "default", "via", "2001:db8:3::2", "metric", "50")


EVENTS = {
    "SIGKILL of the workers": lambda host: host.tunnel.kill(supervisor=False),
    "SIGKILL of the supervisor": lambda host: host.restart(workers=False),
    "SIGKILL of all": lambda host: host.restart(),
    "nft flush ruleset": lambda host: host.run("nft flush ruleset"),
    "ip rule flush": lambda host: host.run(ALL_RULES),
    "ip route flush table": lambda host: host.run(
        "ip route flush table 51820; ip -6 route flush table 51820"),
    "ip address flush": lambda host: host.run("ip address flush dev NAME"),
    "ip link down, up": lambda host: host.run("ip link set NAME down; ip link set NAME up"),
    "the peer is unreachable": lambda host: host.cut_off(),
    "another uplink": lambda host: host.replace_uplink(),
}


@pytest.mark.abridged
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way, switch", [("up", True), ("tunnel", False)],
                         ids=["up, kill switch", "tunnel, full only"])
def test_nothing_leaves_in_clear(quick, lab, is_long, way, switch):
    watch(lab)
    hosts = (*FAR, OUTSIDE4["b"], OUTSIDE6["b"]) if switch else FAR
    count = in_clear if switch else lambda lab: seen(lab, "clear")
    silence_s = 200 if is_long else 3
    leaks = {}
    with traffic(lab, *hosts):
        host = Host(Started(quick, way, *(["KillSwitch = on"] if switch else [])), silence_s)
        before = count(lab)
        passes(lab)
        for name, happen in EVENTS.items():
            print(name, time.monotonic(), flush=True)
            happen(host)
            host.settle()
            passes(lab)
            leaks[name] = count(lab) - before
            before += leaks[name]
        if way == "up":
            quick("reload")
            passes(lab)
            leaks["reload"] = count(lab) - before
        host.tunnel.end()
    if switch:
        assert not any(leaks.values()), leaks
    else:
        repaired = {"nft flush ruleset", "ip rule flush", "ip route flush table"}
        assert {name for name, packets in leaks.items() if packets} <= repaired, leaks
