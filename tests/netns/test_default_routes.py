"""Several tunnels with the default route on one host: none takes the rules of another, whatever
becomes of either, since packets would leave the host beside it then."""

import os
import re
import signal
from dataclasses import replace

import pytest

from support.hosts import interface_names, pids_in, until
from support.quick import ADDRESSES, FAR, FULL


@pytest.fixture
def two(quick, lab):
    """Files of two tunnels, which lead all traffic into them; other traffic could go by the
    wire."""
    lab.ip("a", "route", "add", "default", "dev", "wire")
    lab.ip("a", "-6", "route", "add", "default", "dev", "wire")
    with interface_names(1) as names:
        second = replace(quick, name=names[0])
        quick.write(ADDRESSES, peer=(FULL,))
        second.write("Address = 10.8.0.1/24, fd00:8::1/64", peer=(FULL,))
        yield quick, second


def kill(tunnel):
    before = pids_in(tunnel.lab, "a")
    os.kill(tunnel.pid, signal.SIGKILL)
    until(lambda: len(pids_in(tunnel.lab, "a")) <= len(before) - 3)     # its two workers as well


def ways(lab):
    """The interfaces by which packets leave to hosts that only a default route leads to."""
    return {re.search(r" dev (\S+)", lab.ip("a", "route", "get", host))[1] for host in FAR}


def rules(lab):
    return [lab.ip("a", version, "rule") for version in ("-4", "-6")]


def test_undoing_a_killed_tunnel_leaves_the_other_one_alone(two, lab):
    """A killed tunnel's routes are gone, its rules are not."""
    first, second = two
    before = first.state()
    first("up")
    kill(first)
    second("up")
    assert ways(lab) == {second.name}
    first("down")
    assert ways(lab) == {second.name}
    second("down")
    assert first.state() == before


def test_tunnels_that_come_up_at_once(two, lab):
    before = two[0].state()
    for _ in range(2):
        started = [lab.spawn("a", *each.words("up"), str(each.path)) for each in two]
        said = [process.communicate(timeout=60)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], said
        tables = [table for each in two for table in ("51820", "51821")
                  if "default" in each.routes(table)]
        assert sorted(tables) == ["51820", "51821"]
        for down, left in (two, two[::-1]):
            down("down")
            assert ways(lab) == {left.name}
            down("up")
        for each in two:
            each("down")
        assert two[0].state() == before


def test_a_tunnel_whose_routes_were_flushed_keeps_its_rules_and_table(two, lab):
    first, second = two
    first("up")
    of_first = rules(lab)
    lab.ip("a", "link", "set", first.name, "down")
    lab.ip("a", "link", "set", first.name, "up")
    second("up")
    assert "default" in second.routes("51821") and ways(lab) == {second.name}
    second("down")
    assert rules(lab) == of_first


def test_a_tunnel_whose_rules_were_flushed_takes_none_of_another(two, lab):
    """The other one has the priorities that it had. (One that lives has them back at once.)"""
    first, second = two
    first("up")
    kill(first)
    for version in ("-4", "-6"):
        for rule in ("51820", "main suppress_prefixlength 0"):
            lab.ip("a", version, "rule", "delete", "table", *rule.split())
    second("up")
    of_second = rules(lab)
    first("down")
    assert rules(lab) == of_second and ways(lab) == {second.name}


def test_rules_of_wg_quick_stay(two, lab):
    """Its routes are gone while its interface is down."""
    first, _ = two
    for version in ("-4", "-6"):
        lab.ip("a", version, "rule", "add", "not", "fwmark", "51820", "table", "51820")
        lab.ip("a", version, "rule", "add", "table", "main", "suppress_prefixlength", "0")
    before = first.state()
    first("up")
    assert "default" in first.routes("51821") and ways(lab) == {first.name}
    first("down")
    assert first.state() == before


def test_a_failing_start_takes_no_rules_of_another(two, lab):
    """The second has the same mark, and so the same table, where the route is already."""
    first, second = two
    first("up")
    of_first = rules(lab)
    second.write("Address = 10.8.0.1/24, fd00:8::1/64", "FwMark = 51820", peer=(FULL,))
    assert "there is one already" in second.fails("up")
    assert rules(lab) == of_first and ways(lab) == {first.name}
