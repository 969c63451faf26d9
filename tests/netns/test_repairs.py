"""What somebody else removes on the host comes back within a second, counted and told."""

import json

import pytest

from fastpump.lab.networks import INSIDE4, OUTSIDE4, OUTSIDE6
from support.hosts import is_reachable, until
from support.quick import ADDRESSES, FAR, FULL

# What is removed, and what a status calls it.
REMOVALS = {
    "rules": ("ip rule flush; ip -6 rule flush; for v in 4 6; do "
              "ip -$v rule add lookup main pref 32766; done; "
              "ip rule add lookup default pref 32767", "the rules"),
    "one rule": ("ip rule del pref $(ip rule | sed -n 's/:.*51820$//p')", "the rules"),
    "ruleset": ("nft flush ruleset", "the firewall"),
    "routes": ("ip route flush table 51820; ip -6 route flush table 51820", "the routes"),
    "addresses": ("ip address flush dev NAME", "the addresses"),
    "one address": (f"ip address delete {INSIDE4['a']}/24 dev NAME", "the addresses"),
}


@pytest.fixture
def world(quick, lab):
    for version, gateway in ((4, OUTSIDE4["b"]), (6, OUTSIDE6["b"])):
        lab.ip("a", f"-{version}", "route", "add", "default", "via", gateway)
    return quick


def repairs(lab):
    return lab.status("a")["repairs"]


def host(world):
    """But for what the kernel sees to itself."""
    state = world.state()
    return {key: state[key] for key in state if key not in ("processes", "run")}


@pytest.mark.parametrize("switch", [(), ("KillSwitch = on",)], ids=["full", "kill switch"])
@pytest.mark.parametrize("what", REMOVALS)
def test_it_comes_back(world, lab, what, switch):
    command, called = REMOVALS[what]
    before = host(world)
    world.write(ADDRESSES, *switch, peer=(FULL,))
    world("up")
    up = host(world)
    assert repairs(lab) == {}
    for count in (1, 2):
        lab.run("a", "sh", "-ec", command.replace("NAME", world.name))
        until(lambda count=count: repairs(lab).get(called, 0) >= count)
        until(lambda: host(world) == up)
    assert all(is_reachable(lab, far) for far in FAR)
    assert f"{called}: 2 times" in " ".join(lab.run(
        "a", *world.words("status")).stdout.split())
    world("down")
    assert host(world) == before


def test_it_comes_back_every_time(world, lab):
    world.write(ADDRESSES, peer=(FULL,))
    world("up")
    for count in range(1, 14):          # the last ones wait 1 s, or 2 s
        lab.run("a", "nft", "flush", "ruleset")
        until(lambda count=count: repairs(lab).get("the firewall") == count)
    assert is_reachable(lab, FAR[0])
    world("down")


def test_reload_compares_with_the_kernel(world, lab):
    """Whether the watch or the reload is first."""
    world.write(ADDRESSES, peer=(FULL,))
    world("up")
    up = host(world)
    assert world("reload").stdout == "changed: nothing\n"
    lab.run("a", "sh", "-ec", REMOVALS["rules"][0])
    assert "changed: " in world("reload").stdout
    assert host(world) == up
    world("down")


def test_changes_of_others_are_not_compared(world, lab):
    """A router changes its routes and its ruleset all the time."""
    world.write(ADDRESSES, peer=(FULL,))
    world("up")
    lab.run("a", "sh", "-ec", "nft add table inet others; nft delete table inet others; "
            "ip route add 192.0.3.0/24 dev wire; ip route delete 192.0.3.0/24 dev wire")
    assert repairs(lab) == {} and json.dumps(lab.status("a"))
    world("down")
