"""The switch in the data plane: what liars get, and how much anybody may send."""

import random

import pytest

from fastpump.constants import SECOND
from support.packets import A4, ACK, B4, VNET, frame, framed, ip, superpacket, tcp
from support.plainlanes import BUNDLE, FRAME, PARTIAL, RECORD, RELAY, bundle, origin, relay_header
from support.pumps import START
from support.sites import ALL, HOST, PACKET, arp, close, network, sent, settle, unicast

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
    (arp(HOST["a"]), FRAME | 64, "DROP_MALFORMED_INNER"),               # an extension has no other
    (arp(HOST["a"]), FRAME | RECORD, "DROP_MALFORMED_RECORD"),
])
def test_a_peer_that_lies_is_counted(mesh, payload, flags, verdict):
    mesh["a"].lie("b", payload, flags)
    settle(mesh)
    assert mesh["b"].verdicts() == {verdict: 1}
    assert all(data[VNET.size:] == arp(HOST["a"]) for data in mesh["b"].take())


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
        for number in range(100):           # more than 80: a bucket may be full by chance
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
    # Of those flooded, 3 a second.
    assert [each[VNET.size:] for each in b.take()].count(data) >= 197
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
        sites["a"].give(data[VNET.size:], data[:VNET.size])
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
    assert [each[VNET.size:] for each in sites["b"].take()] == [arp(HOST["a"])] * 8 + data
    close(sites)
