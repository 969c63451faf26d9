"""The switch in the data plane: what it learns, where frames go, how they arrive."""

import random

import pytest

from fastpump import _core
from fastpump.constants import SECOND
from support.packets import (
    A4,
    A6,
    ACK,
    B4,
    B6,
    PLAIN,
    VNET,
    checksums_are_right,
    frame,
    framed,
    parse_vnet,
    superpacket,
    tcp,
    udp,
)
from support.plainlanes import BUNDLE, FRAME, PARTIAL, RELAY, parse_relay
from support.pumps import START
from support.sites import ALL, ARP, HOST, PACKET, Site, arp, close, network, sent, settle, unicast

# -- learning and forwarding

def test_a_broadcast_goes_to_all_and_teaches_them(mesh):
    data = arp(HOST["a"])
    assert sent(mesh, "a", data) == {"a": [], "b": [data], "c": [data]}
    assert [mesh[name].owner(HOST["a"]) for name in "abc"] == ["", "a", "a"]
    assert mesh["a"].counters()["frames_flooded"] == 1
    assert [mesh[name].counters()["macs_learned"] for name in "abc"] == [1, 1, 1]


def test_a_known_host_is_sent_to_alone(mesh):
    sent(mesh, "b", arp(HOST["b"]))
    data = unicast(HOST["a"], HOST["b"])
    assert sent(mesh, "a", data) == {"a": [], "b": [data], "c": []}
    assert mesh["c"].owner(HOST["a"]) is None


def test_an_unknown_host_is_looked_for_everywhere(mesh):
    data = unicast(HOST["a"], HOST["g"])
    assert sent(mesh, "a", data) == {"a": [], "b": [data], "c": [data]}


def test_what_came_from_a_peer_goes_to_no_peer(mesh):
    sent(mesh, "c", arp(HOST["c"]))
    mesh["a"].lie("b", unicast(HOST["a"], HOST["c"]))
    settle(mesh)
    assert [len(mesh[name].take()) for name in "abc"] == [0, 1, 0]


def test_a_frame_to_a_host_of_this_side_goes_nowhere(mesh):
    sent(mesh, "a", arp(HOST["d"]))
    assert sent(mesh, "a", unicast(HOST["a"], HOST["d"])) == {"a": [], "b": [], "c": []}
    assert mesh["a"].verdicts() == {"DROP_LOCAL_FRAME": 1}


def test_vlans_are_learned_apart(mesh):
    sent(mesh, "b", arp(HOST["b"], (7,)))
    assert mesh["a"].owner(HOST["b"], 7) == "b"
    assert mesh["a"].owner(HOST["b"], 0) is None
    known, unknown = (unicast(HOST["a"], HOST["b"], (vlan,)) for vlan in (7, 8))
    assert sent(mesh, "a", known) == {"a": [], "b": [known], "c": []}
    assert sent(mesh, "a", unknown) == {"a": [], "b": [unknown], "c": [unknown]}


def test_the_outer_tag_counts_and_a_priority_tag_is_none(mesh):
    sent(mesh, "b", arp(HOST["b"], (100, 7)), arp(HOST["c"], (0,)))
    assert mesh["a"].owner(HOST["b"], 100) == "b"
    assert mesh["a"].owner(HOST["c"], 0) == "b"


def test_a_host_that_moves_is_found_by_its_first_frame(mesh):
    """Also where that frame is to one host only."""
    sent(mesh, "a", arp(HOST["d"]))
    sent(mesh, "c", arp(HOST["c"]))
    data = unicast(HOST["d"], HOST["c"])
    assert sent(mesh, "b", data) == {"a": [data], "b": [], "c": [data]}
    assert [mesh[name].owner(HOST["d"]) for name in "abc"] == ["b", "", "b"]
    assert mesh["b"].counters()["macs_moved"] == 1
    assert sent(mesh, "b", data) == {"a": [], "b": [], "c": [data]}
    back = unicast(HOST["c"], HOST["d"])
    assert sent(mesh, "c", back) == {"a": [], "b": [back], "c": []}


def test_hosts_age(mesh):
    a = mesh["a"]
    sent(mesh, "b", arp(HOST["b"]))
    assert a.owner(HOST["b"], now=START + 299 * SECOND) == "b"
    assert a.owner(HOST["b"], now=START + 302 * SECOND) is None
    to_b = unicast(HOST["a"], HOST["b"])
    assert sent(mesh, "a", to_b, now=START + 100 * SECOND)["c"] == []
    later = START + 170 * SECOND                    # the lanes are too old soon
    a.tables.configure_switch(is_relay=False, ageing_s=60, limit_per_peer=500, storm_limit=0)
    assert sent(mesh, "a", to_b, now=later)["c"] == [to_b]
    assert a.tables.fdb.counts()[:2] == (2, 1)
    a.tables.fdb.sweep(later)
    assert a.tables.fdb.counts()[:2] == (1, 1)
    assert [entry[0].hex(":") for entry in a.tables.fdb.entries(later)] == [HOST["a"]]


def test_a_removed_peer_takes_its_hosts_along(mesh):
    sent(mesh, "b", arp(HOST["b"]))
    sent(mesh, "c", arp(HOST["c"]))
    mesh["a"].tables.peers.remove(mesh["a"].peers["b"])
    assert [mesh["a"].owner(HOST[name]) for name in "bc"] == [None, "c"]
    assert mesh["a"].tables.fdb.counts()[0] == 1


def test_a_static_entry_needs_no_frame_to_be_known(mesh):
    a = mesh["a"]
    a.tables.fdb.add(bytes.fromhex(HOST["g"].replace(":", "")), 0, a.peers["c"], START)
    data = unicast(HOST["a"], HOST["g"])
    assert sent(mesh, "a", data) == {"a": [], "b": [], "c": [data]}


def test_frames_wait_for_lanes_and_keep_their_name():
    """Flooded before there are lanes, copied for each peer, delivered once."""
    sites = network(*"abc", relays="bc")
    a = sites["a"]
    sets = {name: a._first[name] for name in "bc"}
    for name in "bc":
        a.tables.peers.set_lanes(a.peers[name], None, None)
    data = arp(HOST["a"])
    assert sent(sites, "a", data) == {"a": [], "b": [], "c": []}
    for name in "bc":
        a.tables.peers.set_lanes(a.peers[name], sets[name], None)
    settle(sites)
    assert [[each[VNET.size:] for each in sites[name].take()]
            for name in "abc"] == [[], [data], [data]]
    close(sites)


# -- any frame

@pytest.mark.parametrize("vlans", [(), (5,), (100, 5), (1, 2, 3, 4)], ids=len)
@pytest.mark.parametrize("inner", ["tcp4", "tcp6", "udp4", "udp6"])
def test_superpackets_behind_any_ethernet_header(mesh, vlans, inner):
    """Split into frames, each right by itself, and coalesced again, flooded and not."""
    source, destination = (A4, B4) if inner.endswith("4") else (A6, B6)
    payload = random.Random(inner).randbytes(6000)
    packet = tcp(source, destination, payload, flags=ACK) if inner.startswith("tcp") else udp(
        source, destination, payload)
    link = frame(HOST["b"], HOST["a"], packet, vlans=vlans)[:-len(packet)]
    data = framed(superpacket(packet, 1300), link)
    for is_known in (False, True):
        mesh["a"].give(data[VNET.size:], data[:VNET.size])
        mesh["a"].poll()
        for name in "b" if is_known else "bc":
            seen = 0
            for flags, message in mesh[name].wire("a"):
                assert flags == FRAME | PARTIAL | (0 if is_known else RELAY)
                each = message if is_known else parse_relay(message)[3]
                assert each.startswith(link) and len(each) <= len(link) + 1300 + 60
                seen += 1
            assert seen == 5
        if is_known:
            continue
        mesh["a"].give(data[VNET.size:], data[:VNET.size])
        settle(mesh)
        for name in "bc":
            (written,) = mesh[name].take()
            vnet, got = parse_vnet(written)
            assert got[:len(link)] == link and got.endswith(payload)
            assert vnet.gso_size == 1300 and vnet.csum_start == data[6] + 256 * data[7]
            parts = _core.split(written, is_frame=True)
            assert len(parts) == 5
            assert all(part.startswith(link) and checksums_are_right(part[len(link):])
                       for part in parts)
        sent(mesh, "b", arp(HOST["b"], vlans[:1]))


@pytest.mark.parametrize("data", [
    frame(HOST["b"], HOST["a"], bytes(46), ethertype=ARP),
    frame(HOST["b"], HOST["a"], b"\x01", ethertype=0x88B5),
    frame(HOST["b"], HOST["a"], bytes(1490), ethertype=0x0600),
    frame(HOST["b"], HOST["a"], b"", ethertype=0x8100),
    frame(HOST["b"], HOST["a"], b"\x45no packet", ethertype=0x0800),
    frame(HOST["b"], HOST["a"], PACKET + bytes(18)),
    frame(HOST["b"], HOST["a"], tcp(A4, B4, b"") + b"trailer"),
    frame("33:33:00:00:00:01", HOST["a"], udp(A6, B6, b"group")),
    frame("f0:04:06:00:00:01", HOST["a"], PACKET),      # begins like a control packet
    frame(HOST["b"], HOST["a"], bytes(9000), ethertype=0x88B5, vlans=(3, 4)),
], ids=lambda data: str(len(data)))
def test_any_frame_arrives_as_it_was(mesh, data):
    for _ in range(2):
        assert sent(mesh, "a", data)["b"] == [data]
    assert not mesh["b"].verdicts()


def test_small_frames_share_a_message(mesh):
    sent(mesh, "b", arp(HOST["b"]))
    frames = [unicast(HOST["a"], HOST["b"], packet=udp(A4, B4, bytes(n), sport=n + 1))
              for n in range(20)]
    for data in frames:
        mesh["a"].give(data)
    mesh["a"].poll()
    ((flags, _),) = mesh["b"].wire("a")
    assert flags == FRAME | BUNDLE
    assert sent(mesh, "a", *frames)["b"] == frames


@pytest.mark.parametrize("data", [b"", b"\x02" * 13, frame(ALL, "03:00:00:00:00:01", PACKET)],
                         ids=["empty", "short", "source is a group"])
def test_what_is_no_frame_is_dropped(mesh, data):
    mesh["a"].interface.send(PLAIN + data)
    settle(mesh)
    assert mesh["a"].verdicts() == {"DROP_MALFORMED_PACKET": 1}
    if data:
        mesh["a"].lie("b", data)
        settle(mesh)
        assert mesh["b"].verdicts() == {"DROP_MALFORMED_INNER": 1}


def test_a_partial_checksum_outside_the_frame_is_refused(mesh):
    for vnet in ("0100000000000e001000", "01000000000022000060", "010000000000ffff0600"):
        mesh["a"].interface.send(bytes.fromhex(vnet) + unicast(HOST["a"], HOST["b"]))
    settle(mesh)
    assert mesh["a"].verdicts() == {"DROP_MALFORMED_PACKET": 6}     # two peers
    assert mesh["b"].take() == []


def test_frames_of_different_peers_are_not_merged():
    sites = network(*"abc")
    packets = [tcp(A4, B4, bytes(1000), seq=1 + 1000 * n, ident=n) for n in range(4)]
    for number, packet in enumerate(packets):
        sites["ab"[number % 2]].lie("c", frame(HOST["c"], HOST["g"], packet))
    sites["c"].poll()
    assert len(sites["c"].take()) == 4
    close(sites)


# -- the table itself

def test_entries_are_as_they_were_put_in():
    site = Site("a")        # its buckets have room for all 120, whatever the seed of their hash
    rng = random.Random(2)
    model = {}
    site.peers = {"b": site.tables.peers.add(), "c": site.tables.peers.add()}
    for _ in range(3000):
        mac, vlan = bytes([2, 0, 0, 0, 0, rng.randrange(60)]), rng.randrange(2)
        owner = rng.choice([*site.peers.values(), _core.LOCAL_PORT])
        if rng.random() < 0.4:
            assert site.tables.fdb.remove(mac, vlan) == (model.pop((mac, vlan), None) is not None)
        else:
            site.tables.fdb.add(mac, vlan, owner, START)
            model[mac, vlan] = owner
    entries = site.tables.fdb.entries(START)
    assert {(mac, vlan): owner for mac, vlan, owner, _, _ in entries} == model
    assert site.tables.fdb.counts()[0] == len(model)
    assert all(site.tables.fdb.owner(*key, START) == owner for key, owner in model.items())
    flushed = site.tables.fdb.flush(site.peers["b"])
    assert flushed == list(model.values()).count(site.peers["b"])
    assert site.tables.fdb.counts()[2] == {
        site.peers["b"]: 0, site.peers["c"]: list(model.values()).count(site.peers["c"])}
    for bad in (b"\x01" + bytes(5), b"short"):
        with pytest.raises(ValueError, match="not the address of a host"):
            site.tables.fdb.add(bad, 0, site.peers["b"], START)
    site.close()
