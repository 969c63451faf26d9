"""The switch in the data plane: sites that pass frames on for others."""

import pytest

from support.packets import A4, B4, tcp
from support.plainlanes import FRAME, RELAY, relay_header
from support.pumps import START
from support.sites import HOST, arp, close, network, sent, settle, unicast


def test_a_hub_joins_its_spokes():
    sites = network(*"gabc", relays="g", links=("ag", "bg", "cg"))
    data = arp(HOST["a"])
    assert sent(sites, "a", data) == {"a": [], "b": [data], "c": [data], "g": [data]}
    assert [sites[name].owner(HOST["a"]) for name in "abcg"] == ["", "g", "g", "a"]
    answer = unicast(HOST["b"], HOST["a"])
    assert sent(sites, "b", answer) == {"a": [answer], "b": [], "c": [], "g": []}
    assert sites["g"].counters()["frames_relayed"] == 2
    there = unicast(HOST["a"], HOST["b"], packet=tcp(A4, B4, bytes(1400)))
    assert sent(sites, "a", there, there) == {"a": [], "b": [there, there], "c": [], "g": []}
    close(sites)


def test_without_relay_a_hub_keeps_its_spokes_apart():
    sites = network(*"gab", links=("ag", "bg"))
    data = arp(HOST["a"])
    assert sent(sites, "a", data) == {"a": [], "b": [], "g": [data]}
    close(sites)


def reached(links, relays, source):
    """All sites that a frame comes to: by relays."""
    found, left = {source}, [source]
    while left:
        at = left.pop()
        if at == source or at in relays:
            new = {other for link in links for other in link if at in link} - found
            found |= new
            left += new
    return found


@pytest.mark.parametrize("links", [
    [a + b for a in "abcde" for b in "abcde" if a < b],
    ["ad", "ae", "bd", "be", "cd", "ce"],
    ["ad", "ae", "bd", "be", "cd", "ce", "de"],
    ["ab", "bc", "cd", "de", "ae"],
    ["ab", "ac", "bc", "cd", "de", "ce"],
], ids=["mesh", "two hubs", "two joined hubs", "ring", "two triangles"])
@pytest.mark.parametrize("relays", ["de", "abcde"])
def test_redundant_relays_neither_copy_nor_loop(links, relays):
    sites = network(*"abcde", relays=relays, links=links)
    for name in "abcde":
        data = arp(HOST[name])
        got = sent(sites, name, data)
        assert got == {other: [data] if other in reached(links, relays, name) - {name} else []
                       for other in sites}
    pairs = [(source, destination) for source in "abcde" for destination in "abcde"
             if source != destination and destination in reached(links, relays, source)]
    assert len(pairs) >= 8
    for source, destination in pairs:
        data = unicast(HOST[source], HOST[destination])
        got = sent(sites, source, data)
        assert got == {other: [data] if other == destination else [] for other in sites}
    # It ends: nothing is under way any more.
    before = [site.counters()["udp_tx_datagrams"] for site in sites.values()]
    settle(sites, 50)
    assert [site.counters()["udp_tx_datagrams"] for site in sites.values()] == before
    close(sites)


def test_of_several_ways_the_shortest_counts():
    """The copy by the relay comes first, and does not stay the way."""
    sites = network(*"abc", relays="c")
    a, b, c = (sites[name] for name in "abc")
    a.give(arp(HOST["a"]))
    a.poll()
    c.poll()                                    # relays before b has looked
    b.poll()
    assert len(b.take()) == 1 and b.verdicts() == {"DROP_DUPLICATE_FRAME": 1}
    assert b.owner(HOST["a"]) == "a"
    b.lie("a", relay_header(77, 3) + arp(HOST["b"]), FRAME | RELAY)
    a.poll()
    assert a.owner(HOST["b"]) == "b"
    c.lie("a", relay_header(77, 1) + arp(HOST["b"]), FRAME | RELAY)
    a.poll()
    assert a.owner(HOST["b"]) == "c" and a.verdicts() == {"DROP_DUPLICATE_FRAME": 1}
    close(sites)


def test_a_loop_of_wrong_entries_ends():
    """Two relays that each have a host on the other's side."""
    sites = network(*"abc", relays="ab", links=("ab", "bc"))
    host = bytes.fromhex(HOST["g"].replace(":", ""))
    sites["a"].tables.fdb.add(host, 0, sites["a"].peers["b"], START)
    sites["b"].tables.fdb.add(host, 0, sites["b"].peers["a"], START)
    sites["c"].lie("b", unicast(HOST["c"], HOST["g"]))
    settle(sites, 50)
    assert sites["a"].verdicts() == {"DROP_LOCAL_FRAME": 1}
    assert sites["b"].verdicts() == {}
    close(sites)
    ring = network(*"abcd", relays="abc", links=("ab", "bc", "ac", "ad"))
    for one, two in ("ab", "bc", "ca"):
        ring[one].tables.fdb.add(host, 0, ring[one].peers[two], START)
    ring["d"].lie("a", unicast(HOST["d"], HOST["g"]))
    settle(ring, 50)
    dropped = {name: site.verdicts() for name, site in ring.items() if site.verdicts()}
    assert list(dropped.values()) == [{"DROP_HOP_LIMIT": 1}]
    close(ring)


def test_a_unicast_does_not_come_back_by_another_relay():
    """The first relay has forgotten where the destination is, and floods; the second one must
    not bring it back to where it came from."""
    sites = network(*"abcd", relays="bc", links=("ab", "ac", "bc", "bd"))
    sent(sites, "d", arp(HOST["d"]))
    sent(sites, "a", arp(HOST["a"]))
    sites["b"].tables.fdb.flush()
    assert sites["a"].verdicts() == {"DROP_DUPLICATE_FRAME": 1}         # of the first broadcast
    data = unicast(HOST["a"], HOST["d"])
    assert sent(sites, "a", data) == {"a": [], "b": [data], "c": [data], "d": [data]}
    assert sites["a"].owner(HOST["a"]) == ""
    assert sites["a"].verdicts() == {"DROP_DUPLICATE_FRAME": 2}
    close(sites)
