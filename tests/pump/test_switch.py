"""The switch in the data plane: learning, flooding, relaying, what liars get."""

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
    checksums_are_right,
    frame,
    framed,
    ip,
    parse_vnet,
    superpacket,
    tcp,
    udp,
)
from support.plainlanes import (
    BUNDLE,
    FRAME,
    PARTIAL,
    RELAY,
    bundle,
    origin,
    parse_relay,
    relay_header,
)
from support.pumps import START
from support.sites import Site, close, network, settle

ALL = "ff:ff:ff:ff:ff:ff"
HOST = {name: f"02:00:00:00:00:0{number}" for number, name in enumerate("abcdefg")}
ARP = 0x0806
PACKET = udp(A4, B4, b"inside")


@pytest.fixture
def mesh():
    sites = network(*"abc")
    yield sites
    close(sites)


def arp(source, vlans=()):
    """A broadcast of a host."""
    return frame(ALL, source, bytes(46), ethertype=ARP, vlans=vlans)


def unicast(source, destination, vlans=(), packet=PACKET):
    return frame(destination, source, packet, vlans=vlans)


def sent(sites, name, *frames, now=START):
    """What each site gets of frames that enter at one."""
    for each in frames:
        sites[name].give(each)
    settle(sites, now=now)
    return {other: [data[10:] for data in site.take()] for other, site in sites.items()}


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
    assert [[each[10:] for each in sites[name].take()] for name in "abc"] == [[], [data], [data]]
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
        mesh["a"].give(data[10:], data[:10])
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
        mesh["a"].give(data[10:], data[:10])
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


# -- liars

@pytest.mark.parametrize(("payload", "flags", "verdict"), [
    (unicast(HOST["a"], HOST["b"]), 0, "DROP_MALFORMED_INNER"),         # no frame, it says
    (PACKET, 0, "DROP_MALFORMED_INNER"),
    (b"\xf0\x04\x06\0" + bytes(6), 0, "DROP_UNKNOWN_INDEX"),            # an END
    (b"\xf0\x04", 0, "DROP_MALFORMED_INNER"),
    (relay_header(5), FRAME | RELAY, "DROP_MALFORMED_INNER"),           # and nothing behind
    (bytes(3), FRAME | RELAY, "DROP_MALFORMED_INNER"),
    (relay_header(5) + PACKET, RELAY, "DROP_MALFORMED_INNER"),
    (relay_header(5) + bundle([(arp(HOST["a"]), False)]), FRAME | RELAY | BUNDLE,
     "DROP_MALFORMED_INNER"),
    (relay_header(5, 9) + arp(HOST["a"]), FRAME | RELAY, "DROP_HOP_LIMIT"),
    (relay_header(0, 255) + arp(HOST["a"]), FRAME | RELAY, "DROP_HOP_LIMIT"),
    (relay_header(5, 1, origin(b"b")) + arp(HOST["a"]), FRAME | RELAY, "DROP_DUPLICATE_FRAME"),
    (arp(HOST["a"]), FRAME | PARTIAL, "DROP_MALFORMED_PARTIAL"),
    (frame(HOST["b"], HOST["a"], ip(A4, B4, 17, b"short")), FRAME | PARTIAL,
     "DROP_MALFORMED_PARTIAL"),
    (bundle([(arp(HOST["a"]), False)]) + b"\xff\xff", FRAME | BUNDLE, "DROP_MALFORMED_BUNDLE"),
    (bundle([(b"short", False)]), FRAME | BUNDLE, "DROP_MALFORMED_INNER"),
    (arp(HOST["a"]), FRAME | 64, "DROP_MALFORMED_MESSAGE"),
])
def test_a_peer_that_lies_is_counted(mesh, payload, flags, verdict):
    mesh["a"].lie("b", payload, flags)
    settle(mesh)
    assert mesh["b"].verdicts() == {verdict: 1}
    assert all(data[10:] == arp(HOST["a"]) for data in mesh["b"].take())


def test_a_tun_takes_no_frames():
    from support.pumps import lane_pair
    one, two = lane_pair()
    for flags in (FRAME, RELAY, FRAME | RELAY):
        two.send_lane(two.plain().seal(arp(HOST["a"]), flags, counter=one_more(two)))
    one.poll()
    assert one.verdicts() == {"DROP_MALFORMED_MESSAGE": 3} and one.take() == []
    for end in (one, two):
        end.close()


def one_more(end):
    return end.take_counter()


def test_a_locked_address_is_taken_from_its_side_only(mesh):
    b = mesh["b"]
    b.tables.fdb.add(bytes.fromhex(HOST["c"].replace(":", "")), 0, b.peers["c"], START)
    assert sent(mesh, "a", arp(HOST["c"]))["b"] == []
    assert b.verdicts() == {"DROP_MAC_LOCKED": 1}
    assert sent(mesh, "b", arp(HOST["c"])) == {"a": [], "b": [], "c": []}
    assert b.verdicts() == {"DROP_MAC_LOCKED": 2}
    assert sent(mesh, "c", arp(HOST["c"]))["b"] == [arp(HOST["c"])]
    assert b.owner(HOST["c"], now=START + 10_000 * SECOND) == "c"       # it does not age
    assert b.tables.fdb.flush(with_static=False) == 0
    assert b.tables.fdb.remove(bytes.fromhex(HOST["c"].replace(":", "")), 0)
    assert sent(mesh, "a", arp(HOST["c"]))["b"] == [arp(HOST["c"])]


def test_a_static_entry_needs_no_frame_to_be_known(mesh):
    a = mesh["a"]
    a.tables.fdb.add(bytes.fromhex(HOST["g"].replace(":", "")), 0, a.peers["c"], START)
    data = unicast(HOST["a"], HOST["g"])
    assert sent(mesh, "a", data) == {"a": [], "b": [], "c": [data]}


# -- limits

def test_a_flood_of_addresses_is_bounded_and_harms_nobody():
    """100,000 sources from one peer: bounded, counted; known hosts are still sent to alone."""
    sites = network(*"abc", mac_limit=2000, per_peer=800)
    b = sites["b"]
    sent(sites, "c", arp(HOST["c"]))
    sent(sites, "a", arp(HOST["a"]))
    numbers = random.Random(1).sample(range(1 << 40), 100_000)
    for begin in range(0, len(numbers), 500):
        for number in numbers[begin:begin + 500]:
            sites["a"].lie("b", frame(ALL, (0x020000000000 | number).to_bytes(6, "big").hex(":"),
                                      b"\0", ethertype=0x88B5))
        for _ in range(70):
            b.poll()
        b.take()
    everything, local, by_peer = b.tables.fdb.counts()
    assert (everything, local) == (801, 0)
    assert by_peer == {b.peers["a"]: 800, b.peers["c"]: 1}
    assert len(b.tables.fdb.entries(START)) == 801
    b.tables.fdb.sweep(START)
    assert b.tables.fdb.counts() == (everything, local, by_peer)
    got = b.counters()["tun_tx_packets"]
    assert b.verdicts()["FAILED_MAC_LIMIT"] == got - 2 - 799 > 90_000
    assert [b.owner(HOST[name]) for name in "ac"] == ["a", "c"]
    for name in "ac":
        data = unicast(HOST["b"], HOST[name])
        assert sent(sites, "b", data)[name][-1] == data
    assert b.counters()["frames_flooded"] == 0
    # A host that is not known any more is reached all the same, by flooding.
    data = unicast(HOST["b"], HOST["g"])
    assert sent(sites, "b", data) == {"a": [data], "b": [], "c": [data]}
    close(sites)


def test_all_together_are_bounded_too():
    sites = network(*"abc", mac_limit=100, per_peer=80)
    for name in "ac":
        for number in range(80):
            sites[name].lie("b", arp(f"02:00:00:00:{number:02x}:0{name}"))
        settle(sites)
    everything, _, by_peer = sites["b"].tables.fdb.counts()
    assert everything == 100 and sorted(by_peer.values()) == [20, 80]
    close(sites)


def test_storms_are_limited_both_ways():
    sites = network(*"abc", storm_limit=100)
    a, b = sites["a"], sites["b"]
    for _ in range(250):
        a.give(arp(HOST["a"]))
        a.poll()
    assert a.verdicts() == {"DROP_STORM": 150}
    settle(sites)
    assert len(b.take()) == 100
    for number in range(250):               # one that keeps no limit
        a.lie("b", relay_header(1 + number * 256) + arp(HOST["a"]), FRAME | RELAY)
    settle(sites, 40)
    assert b.verdicts() == {"DROP_STORM": 250} and b.take() == []
    for _ in range(20):                     # c is not known yet
        sites["c"].give(arp(HOST["c"]))
    settle(sites)
    assert len(b.take()) == 20
    sites["a"].give(unicast(HOST["a"], HOST["c"]))
    settle(sites)                           # known hosts are no storm
    assert len(sites["c"].take()) == 100 + 1
    later = START + SECOND // 2
    for _ in range(100):
        a.give(arp(HOST["a"]))
        a.poll(later)
    assert a.verdicts() == {"DROP_STORM": 200}
    close(sites)


# -- relays

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


# -- the table itself

def test_entries_are_as_they_were_put_in():
    site = Site("a", mac_limit=50)
    rng = random.Random(2)
    model = {}
    site.peers = {"b": site.tables.peers.add(), "c": site.tables.peers.add()}
    for _ in range(3000):
        mac, vlan = bytes([2, 0, 0, 0, 0, rng.randrange(60)]), rng.randrange(2)
        owner = rng.choice([*site.peers.values(), _core.LOCAL_PORT])
        if rng.random() < 0.4:
            assert site.tables.fdb.remove(mac, vlan) == (model.pop((mac, vlan), None) is not None)
        elif len(model) < 50 or (mac, vlan) in model:
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


# -- what a reviewer thought of

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


def test_who_leaves_the_name_out_is_limited_all_the_same():
    sites = network(*"ab", storm_limit=10)
    for _ in range(150):
        sites["a"].lie("b", arp(HOST["a"]))
    settle(sites, 40)
    assert len(sites["b"].take()) == 10 and sites["b"].verdicts() == {"DROP_STORM": 140}
    close(sites)


def test_who_claims_our_addresses_stops_nothing():
    """Each claim moves our host away; each of its frames moves it back, and gets through."""
    sites = network(*"abc", storm_limit=3)
    a, b, c = (sites[name] for name in "abc")
    sent(sites, "b", arp(HOST["b"]))
    data = unicast(HOST["a"], HOST["b"])
    for _ in range(200):
        c.lie("a", unicast(HOST["a"], HOST["g"]))
        a.poll()
        a.give(data)
        a.poll()
        b.poll()
    settle(sites, 40)
    assert [each[10:] for each in b.take()].count(data) >= 197      # of those flooded, 3 a second
    assert len(c.take()) <= 101
    assert "DROP_STORM" not in a.verdicts()
    close(sites)


def test_a_host_that_moves_to_a_full_side_is_looked_for():
    sites = network(*"abc", per_peer=2)
    sent(sites, "c", arp(HOST["c"]), arp(HOST["d"]))
    sent(sites, "b", arp(HOST["e"]))
    assert sites["a"].owner(HOST["e"]) == "b"
    sent(sites, "c", arp(HOST["e"]))
    assert sites["a"].owner(HOST["e"]) is None
    data = unicast(HOST["a"], HOST["e"])
    assert sent(sites, "a", data) == {"a": [], "b": [data], "c": [data]}
    assert sites["a"].tables.fdb.counts() == (3, 1, {0: 0, 1: 2})
    close(sites)


def test_the_frames_of_a_superpacket_are_a_storm_too():
    sites = network(*"ab", storm_limit=20)
    packet = tcp(A4, B4, bytes(13000), flags=ACK)
    link = frame(HOST["b"], HOST["a"], packet)[:-len(packet)]
    data = framed(superpacket(packet, 1300), link)
    for _ in range(5):
        sites["a"].give(data[10:], data[:10])
        sites["a"].poll()
    assert sites["a"].verdicts() == {"DROP_STORM": 3}
    settle(sites)
    assert sites["b"].counters()["tun_tx_packets"] == 20 and not sites["b"].verdicts()
    close(sites)


def test_floods_leave_room_for_those_who_wait_for_a_session():
    sites = network(*"abcdefg")
    a = sites["a"]
    for name in "bcdef":
        a.tables.peers.set_lanes(a.peers[name], None, None)
    for _ in range(200):
        a.give(arp(HOST["a"]))
        a.poll()
    a.tables.fdb.add(bytes.fromhex(HOST["b"].replace(":", "")), 0, a.peers["b"], START)
    data = [frame(HOST["b"], HOST["a"], bytes([n]), ethertype=0x88B5) for n in range(100)]
    for each in data:
        a.give(each)
        a.poll()
    a.tables.peers.set_lanes(a.peers["b"], a._first["b"], None)
    settle(sites)
    assert [each[10:] for each in sites["b"].take()] == [arp(HOST["a"])] * 8 + data
    close(sites)


def test_frames_of_different_peers_are_not_merged():
    sites = network(*"abc")
    packets = [tcp(A4, B4, bytes(1000), seq=1 + 1000 * n, ident=n) for n in range(4)]
    for number, packet in enumerate(packets):
        sites["ab"[number % 2]].lie("c", frame(HOST["c"], HOST["g"], packet))
    sites["c"].poll()
    assert len(sites["c"].take()) == 4
    close(sites)
