"""The data plane of lanes, end to end in this process, beside the plain implementation."""

import random
import socket
from ipaddress import ip_address

import pytest

from fastpump import _core
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME, SECOND
from support import plainlanes
from support.packets import (
    A4,
    A6,
    ACK,
    B4,
    B6,
    NEEDS_CSUM,
    PLAIN,
    TCP,
    UDP,
    Vnet,
    checksums_are_right,
    ip,
    parse_vnet,
    partial,
    superpacket,
    tcp,
    udp,
)
from support.plainlanes import ASK, BUNDLE, FENCE, PARTIAL
from support.pumps import ALL_FEATURES, START, carry, datagrams, lane_pair, message, pair

MS = SECOND // 1000
SMALL = udp(A4, B4, b"small")


@pytest.fixture
def ends(closed):
    return closed(lane_pair())


def closing(ends):
    for end in ends:
        end.close()


def needs_csum(packet, l4_at=20):
    """A packet as the kernel hands it over with a checksum to finish: (vnet, packet)."""
    is_tcp = (packet[6] if packet[0] >> 4 == 6 else packet[9]) == TCP
    check_at = 16 if is_tcp else 6
    return Vnet(NEEDS_CSUM, 0, 0, 0, l4_at, check_at).emit(), partial(packet, l4_at, check_at)


def on_the_wire(two):
    """Lane messages that have come to the non-opener's socket, not taken by its worker."""
    return datagrams(two.udp)


# -- packets

@pytest.mark.parametrize("backend", _core.BACKENDS)
@pytest.mark.parametrize("cipher", ["aes-256-gcm", "chacha20-poly1305"])
@pytest.mark.parametrize("packet", [
    tcp(A4, B4, b"hello"), udp(A6, B6, bytes(1300)), ip(A4, B4, 1, b"\x08\0" + bytes(62)),
    ip(A4, B4, UDP, bytes(1400), more_fragments=True, df=False), ip(A6, B6, 59, b""),
    tcp(A4, B4, b"", tos=3, bad_checksum=True), ip(A4, B4, 253, b"?" * 333, options=bytes(8)),
], ids=["tcp", "udp6", "icmp", "fragment", "no-next-header", "bad-checksum", "unknown"])
def test_a_packet_arrives_as_it_was(backend, cipher, packet):
    one, two = lane_pair(backend=backend, cipher=cipher)
    assert carry(one, two, packet) == [PLAIN + packet]
    back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
    if packet[0] >> 4 == 6:
        back = packet[:8] + packet[24:40] + packet[8:24] + packet[40:]
    assert carry(two, one, back) == [PLAIN + back]
    assert one.verdicts() == two.verdicts() == {}
    assert one.lane()["tx_messages"] == 2 and two.lane()["rx_newest"] == 2
    closing((one, two))


@pytest.mark.parametrize("addresses", [(A4, B4), (A6, B6)], ids=["v4", "v6"])
@pytest.mark.parametrize("make", [tcp, udp])
def test_a_partial_checksum_stays_partial(one, two, addresses, make):
    vnet, packet = needs_csum(make(*addresses, b"payload" * 100), 20 if addresses[0] == A4 else 40)
    ((got_vnet, got),) = map(parse_vnet, carry(one, two, packet, vnet))
    assert got == packet
    assert got_vnet == parse_vnet(vnet + packet)[0]


@pytest.mark.parametrize("addresses", [(A4, B4), (A6, B6)], ids=["v4", "v6"])
@pytest.mark.parametrize(("make", "size"), [(tcp, 1348), (udp, 1348)])
def test_a_superpacket_arrives_as_one(one, two, addresses, make, size):
    whole = superpacket(make(*addresses, bytes(range(256)) * 200), size)
    one.interface.send(whole)
    one.poll()
    two.poll()
    (written,) = two.take()
    assert parse_vnet(written)[1] == parse_vnet(whole)[1]
    assert _core.split(written) == _core.split(whole)
    assert one.counters()["udp_tx_calls"] == 1


def test_segments_travel_with_partial_checksums(one, two):
    whole = superpacket(tcp(A4, B4, bytes(5000)), 1000)
    one.interface.send(whole)
    one.poll()
    lane = two.plain()
    segments = [plainlanes.packets_of(*lane.open(each)) for each in on_the_wire(two)]
    assert [each[0][1] for each in segments] == [True] * 5
    complete = _core.split(whole)
    for ((packet, _),), right in zip(segments, complete, strict=True):
        assert packet == partial(right, 20, 16)
        assert checksums_are_right(right)


def test_checksums_are_completed_for_a_peer_that_does_not_take_partial_ones():
    one, two = lane_pair(features=0)
    vnet, packet = needs_csum(tcp(A4, B4, b"payload"))
    (written,) = carry(one, two, packet, vnet)
    assert written == PLAIN + tcp(A4, B4, b"payload")
    one.interface.send(superpacket(tcp(A4, B4, bytes(3000)), 1000))
    one.poll()
    lane = two.plain()
    for each in on_the_wire(two):
        ((packet, is_partial),) = plainlanes.packets_of(*lane.open(each))
        assert not is_partial and checksums_are_right(packet)
    closing((one, two))


def test_checksums_behind_extension_headers_are_completed(one, two):
    """The receiver could not tell where they are."""
    segment = udp(A6, B6, b"behind options")[40:]
    packet = ip(A6, B6, 0, bytes([17, 0, 1, 4, 0, 0, 0, 0]) + segment)
    unfinished = bytearray(packet)
    unfinished[54:56] = partial(udp(A6, B6, b"behind options"), 40, 6)[46:48]
    (written,) = carry(one, two, bytes(unfinished), Vnet(NEEDS_CSUM, 0, 0, 0, 48, 6).emit())
    assert written == PLAIN + packet


def test_partial_and_complete_packets_are_not_merged(one, two):
    first = tcp(A4, B4, bytes(1000), seq=1, ident=1)
    second = tcp(A4, B4, bytes(1000), seq=1001, ident=2)
    vnet, unfinished = needs_csum(second)
    one.give(first)
    one.give(unfinished, vnet)
    one.poll()
    two.poll()
    assert two.take() == [PLAIN + first, vnet + unfinished]


def test_without_gro_partial_packets_are_written_singly():
    one, two = lane_pair(offloads=("udp-gso",))
    whole = superpacket(tcp(A4, B4, bytes(3000)), 1000)
    one.interface.send(whole)
    one.poll()
    two.poll()
    written = two.take()
    assert len(written) == 3
    assert [parse_vnet(each)[0].flags for each in written] == [NEEDS_CSUM] * 3
    assert [_core.split(each)[0] for each in written] == _core.split(whole)
    closing((one, two))


# -- bundles

def test_small_packets_of_unequal_sizes_share_a_datagram_in_order(one, two):
    sizes = [3, 200, 40, 40, 7, 300, 64]
    sent = [udp(A4, B4, bytes([n]) * size, sport=1000 + n, ident=n)
            for n, size in enumerate(sizes)]
    for packet in sent:
        one.give(packet)
    one.poll()
    (wire,) = on_the_wire(two)
    lane = two.plain()
    flags, payload = lane.open(wire)
    assert flags == BUNDLE
    assert plainlanes.unbundle(payload) == [(packet, False) for packet in sent]
    assert one.counters()["udp_tx_bundles"] == 1
    one.send_lane(one.plain().seal(payload, BUNDLE, counter=99))
    two.poll()
    assert two.take() == [PLAIN + packet for packet in sent]


def test_a_lone_small_packet_is_no_bundle(one, two):
    vnet, packet = needs_csum(udp(A4, B4, b"alone"))
    one.give(packet, vnet)
    one.poll()
    (wire,) = on_the_wire(two)
    assert two.plain().open(wire) == (PARTIAL, packet)
    assert one.counters()["udp_tx_bundles"] == 0


def test_a_larger_packet_waits_behind_a_bundle_of_its_lane(one, two):
    sent = [udp(A4, B4, bytes(size), ident=n) for n, size in enumerate((9, 99, 1300, 9, 10))]
    for packet in sent:
        one.give(packet)
    one.poll()
    lane = two.plain()
    opened = [lane.open(wire) for wire in on_the_wire(two)]
    assert [flags for flags, _ in opened] == [BUNDLE, 0, BUNDLE]
    assert [packet for each in opened for packet, _ in plainlanes.packets_of(*each)] == sent


def test_a_bundle_is_no_longer_than_the_mtu_allows(one, two):
    sent = [udp(A4, B4, bytes(100 + n % 3), ident=n) for n in range(64)]
    for packet in sent:
        one.give(packet)
    one.poll()
    wires = on_the_wire(two)
    assert max(map(len, wires)) <= 1420 + 32
    assert len(wires) < 10
    lane = two.plain()
    assert [packet for wire in wires
            for packet, _ in plainlanes.packets_of(*lane.open(wire))] == sent


def test_packets_out_of_bundles_merge(one, two):
    parts = [tcp(A4, B4, bytes([n]) * 100, seq=1 + 100 * n, ident=n) for n in range(5)]
    for n, packet in enumerate(parts):
        one.give(packet)
        one.give(udp(A4, B4, bytes(n), ident=n, sport=7))      # sizes differ, flows mix
    one.poll()
    two.poll()
    written = two.take()
    (merged,) = [each for each in written if parse_vnet(each)[0].gso_type]
    assert _core.split(merged) == parts
    assert len(written) == 6


def test_without_the_feature_nothing_is_bundled():
    one, two = lane_pair(features=_core.FEATURE_PARTIAL)
    for n in range(5):
        one.give(udp(A4, B4, bytes(10 * n)))
    one.poll()
    assert len(on_the_wire(two)) == 5
    closing((one, two))


def test_partial_packets_of_a_bundle_stay_partial(one, two):
    vnet, packet = needs_csum(tcp(A4, B4, b"partial", flags=ACK | 8))
    one.give(SMALL)
    one.give(packet, vnet)
    one.poll()
    two.poll()
    assert two.take() == [PLAIN + SMALL, vnet + packet]


# -- the plain implementation talks with the real one

@pytest.mark.parametrize("cipher", [1, 2])
def test_the_plain_implementation_is_understood(cipher):
    rng = random.Random(cipher)
    one, two = lane_pair(cipher=plainlanes.CIPHER_NAMES[cipher])
    lane = two.plain(cipher=cipher, counter=5)
    vnet, unfinished = needs_csum(tcp(B4, A4, b"partial"))
    two.send_lane(lane.seal(udp(B4, A4, b"plain")))
    two.send_lane(lane.seal(unfinished, PARTIAL))
    packets = [(udp(B4, A4, rng.randbytes(rng.randrange(400)), sport=n), False) for n in range(3)]
    two.send_lane(lane.seal(plainlanes.bundle([*packets, (unfinished, True)]), BUNDLE))
    one.poll()
    assert one.take() == [PLAIN + udp(B4, A4, b"plain"), vnet + unfinished,
                          *(PLAIN + packet for packet, _ in packets), vnet + unfinished]
    assert one.verdicts() == {}
    closing((one, two))


# -- hostile

def flip(data, at, bits=1):
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1:]


GOOD = udp(B4, A4, b"good")
HOSTILE = [
    ("short", lambda lane: lane.seal()[:31], {"DROP_MALFORMED_MESSAGE": 1}),
    ("unknown flag", lambda lane: lane.seal(GOOD, 0x10), {"DROP_MALFORMED_MESSAGE": 1}),
    ("reserved byte", lambda lane: flip(lane.seal(GOOD), 3), {"DROP_MALFORMED_MESSAGE": 1}),
    ("lane that is not", lambda lane: flip(lane.seal(GOOD), 2, 8), {"DROP_UNKNOWN_INDEX": 1}),
    ("another lane's", lambda lane: flip(lane.seal(GOOD), 2), {"DROP_UNAUTHENTIC": 1}),
    ("index of nobody", lambda lane: flip(lane.seal(GOOD), 7, 128), {"DROP_UNKNOWN_INDEX": 1}),
    ("flags changed", lambda lane: flip(lane.seal(GOOD), 1, PARTIAL), {"DROP_UNAUTHENTIC": 1}),
    ("counter changed", lambda lane: flip(lane.seal(GOOD), 8, 64), {"DROP_UNAUTHENTIC": 1}),
    ("cut", lambda lane: lane.seal(GOOD)[:-1], {"DROP_UNAUTHENTIC": 1}),
    ("counter beyond the limit", lambda lane: lane.seal(GOOD, counter=2**64 - 1),
     {"DROP_REPLAYED": 1}),
    ("no IP inside", lambda lane: lane.seal(b"hello"), {"DROP_MALFORMED_INNER": 1}),
    ("control packet on a lane", lambda lane: lane.seal(plainlanes.control(1, {1: b"123456"})),
     {"DROP_MALFORMED_INNER": 1}),
    ("END of nothing", lambda lane: lane.seal(plainlanes.end(0, 0)), {"DROP_UNKNOWN_INDEX": 1}),
    ("source of somebody else", lambda lane: lane.seal(udp("10.9.0.3", A4, b"x")),
     {"DROP_SOURCE_NOT_ALLOWED": 1}),
    ("partial, too short for TCP", lambda lane: lane.seal(ip(B4, A4, TCP, bytes(19)), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("partial, too short for UDP", lambda lane: lane.seal(ip(B4, A4, UDP, bytes(7)), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("partial, empty v6", lambda lane: lane.seal(ip(B6, A6, UDP, b""), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("partial ICMP", lambda lane: lane.seal(ip(B4, A4, 1, bytes(64)), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("partial fragment", lambda lane: lane.seal(
        ip(B4, A4, UDP, bytes(64), more_fragments=True, df=False), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("bundle of one byte", lambda lane: lane.seal(b"\1", BUNDLE), {"DROP_MALFORMED_BUNDLE": 1}),
    ("bundle with an empty entry", lambda lane: lane.seal(b"\0\0", BUNDLE),
     {"DROP_MALFORMED_BUNDLE": 1}),
    ("bundle that claims more", lambda lane: lane.seal(b"\xff\x7f" + GOOD, BUNDLE),
     {"DROP_MALFORMED_BUNDLE": 1}),
    ("bundle of what is no packet", lambda lane: lane.seal(
        plainlanes.bundle([(b"hello", False), (b"", True)]), BUNDLE),
     {"DROP_MALFORMED_INNER": 1, "DROP_MALFORMED_BUNDLE": 1}),
    ("bundle of lies", lambda lane: lane.seal(plainlanes.bundle([
        (GOOD[:-1], False), (ip(B4, A4, 1, bytes(9)), True), (udp(A4, A4, b""), False)]), BUNDLE),
     {"DROP_MALFORMED_INNER": 1, "DROP_MALFORMED_PARTIAL": 1, "DROP_SOURCE_NOT_ALLOWED": 1}),
]


@pytest.mark.parametrize(("make", "verdicts"), [row[1:] for row in HOSTILE],
                         ids=[row[0] for row in HOSTILE])
def test_hostile_lane_messages_cost_a_counter(make, verdicts):
    one, two = lane_pair(count=2)
    two.send_lane(make(two.plain(0, counter=5)))
    one.poll()
    assert one.take() == []
    assert one.verdicts() == verdicts
    # And the lane lives on.
    two.send_lane(two.plain(0).seal(GOOD, counter=77))
    one.poll()
    assert one.take() == [PLAIN + GOOD]
    closing((one, two))


def test_a_truncated_bundle_delivers_what_is_whole(one, two):
    payload = plainlanes.bundle([(GOOD, False), (GOOD, False)])[:-1]
    two.send_lane(two.plain().seal(payload, BUNDLE, counter=9))
    one.poll()
    assert one.take() == [PLAIN + GOOD]
    assert one.verdicts() == {"DROP_MALFORMED_BUNDLE": 1}


def test_a_replayed_message_is_dropped_on_whatever_lane_it_comes():
    one, two = lane_pair(count=4)
    wire = two.plain(1, counter=5).seal(GOOD)
    for sock in one.lane_sockets[:4]:
        two.udp.sendto(wire, sock.getsockname())
    for lane in (0, 2, 3):
        two.send_lane(wire[:2] + bytes([lane]) + wire[3:])
    one.poll()
    assert one.take() == [PLAIN + GOOD]
    assert one.verdicts() == {"DROP_REPLAYED": 3, "DROP_UNAUTHENTIC": 3}
    closing((one, two))


# -- ways

def test_data_goes_by_the_session_until_the_lane_was_heard():
    one, two = lane_pair(usable=False)
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    assert one.lane()["tx_messages"] == 0
    two.send_lane(two.plain().seal())
    one.poll()
    assert one.lane()["is_usable"]
    assert "lane_usable" in one.events()
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    assert one.lane()["tx_messages"] == 1
    closing((one, two))


def test_the_lane_of_a_probe_tells_the_supervisor(one, two):
    two.send_lane(two.plain().seal(b"", ASK, counter=8))
    two.send_lane(two.plain().seal(b"", ASK, counter=9))
    one.poll()
    assert one.events() == ["lane_echo_request"]
    one.tables.lanes.rearm(one.first, "echo_reported")
    two.send_lane(two.plain().seal(b"", ASK, counter=10))
    one.poll()
    assert one.events() == ["lane_echo_request"]


def test_who_asks_does_not_hear_us(one, two):
    """The way there may be blocked while the way back is free."""
    one.give(SMALL)
    one.poll()
    assert one.lane()["first_unanswered_tx_ns"] == START
    two.send_lane(two.plain().seal(b"", ASK, counter=8))
    one.poll()
    assert one.lane()["first_unanswered_tx_ns"] == START
    two.send_lane(two.plain().seal(b"", counter=9))
    one.poll()
    assert one.lane()["first_unanswered_tx_ns"] == 0
    one.tables.lanes.set_dead(one.first)
    two.send_lane(two.plain().seal(b"", ASK, counter=10))
    one.poll()
    assert not one.lane()["is_usable"]
    two.send_lane(two.plain().seal(b"", counter=11))
    one.poll()
    assert one.lane()["is_usable"]


def test_each_lane_roams_by_itself():
    one, two = lane_pair(count=2)
    before = [two.lane(n)["endpoint"] for n in range(2)]
    assert before == [one.lane_sockets[n].getsockname() and
                      _sockaddr(one.lane_sockets[n]) for n in range(2)]
    elsewhere = one.lane_sockets[5]
    elsewhere.sendto(one.plain(1).seal(SMALL, counter=50), two.udp.getsockname())
    two.poll()
    assert two.take() == [PLAIN + SMALL]
    assert [two.lane(n)["endpoint"] for n in range(2)] == [before[0], _sockaddr(elsewhere)]
    # A message that fails, or comes again, moves nothing.
    for hostile in (flip(one.plain(1).seal(SMALL, counter=51), 20),
                    one.plain(1).seal(SMALL, counter=50)):
        one.lane_sockets[6].sendto(hostile, two.udp.getsockname())
    two.poll()
    assert two.lane(1)["endpoint"] == _sockaddr(elsewhere)
    closing((one, two))


@pytest.mark.parametrize(("payload", "flags"), [
    (b"", 0), (b"no packet", 0), (udp("1.2.3.4", B4, b"x"), 0), (SMALL, FENCE), (b"\0", BUNDLE),
], ids=["empty", "no packet", "source not allowed", "waits for an end marker", "no bundle"])
def test_an_authentic_message_moves_its_lane_whatever_is_inside(one, two, payload, flags):
    elsewhere = one.lane_sockets[5]
    elsewhere.sendto(one.plain().seal(payload, flags, counter=50), two.udp.getsockname())
    two.poll()
    assert two.lane()["endpoint"] == _sockaddr(elsewhere)


def test_the_session_is_sent_from_where_a_lane_of_the_peer_comes_to(one, two):
    """An opener sends all to one address of ours. What came from another would bring it back."""
    two.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    before = two.tables.peers.endpoint(two.peer)
    for counter in (50, 51):
        one.lane_sockets[0].sendto(one.plain().seal(b"", counter=counter), two.udp.getsockname())
    two.poll()
    assert two.tables.peers.endpoint(two.peer) == (
        before[0], ip_address("::ffff:127.0.0.1").packed)
    assert two.events().count("roam") == 1


def test_an_ipv6_session_is_not_sent_from_an_ipv4_address(one, two):
    two.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    where = Endpoint(ip_address("2001:db8::1"), 1).sockaddr(socket.AF_INET6)
    two.tables.peers.set_endpoint(two.peer, where)
    one.lane_sockets[0].sendto(one.plain().seal(b"", counter=50), two.udp.getsockname())
    two.poll()
    assert two.tables.peers.endpoint(two.peer) == (where, bytes(16))


def _sockaddr(sock):
    return Endpoint.from_python(sock.getsockname()).sockaddr(socket.AF_INET6)


def test_flows_keep_to_one_of_several_lanes():
    one, two = lane_pair(count=4)           # one worker has all four
    flows = [udp(A4, B4, bytes(600), sport=port) for port in range(1000, 1032)]
    seen = {}
    for _ in range(3):
        for packet in flows:
            one.give(packet)
            one.poll()
            (wire,) = on_the_wire(two)
            assert seen.setdefault(packet[20:22], wire[2]) == wire[2]
    assert set(seen.values()) == {0, 1, 2, 3}
    closing((one, two))


def test_a_dead_lane_gives_its_flows_to_others():
    one, two = lane_pair(count=2)
    packets = [udp(A4, B4, bytes(600), sport=port) for port in range(1000, 1016)]
    one.tables.lanes.set_dead(one.first)
    for packet in packets:
        one.give(packet)
    one.poll()
    assert {wire[2] for wire in on_the_wire(two)} == {1}
    one.tables.lanes.set_dead(one.first + 1)
    one.give(packets[0])
    one.poll()
    assert [wire[0] for wire in on_the_wire(two)] == [4]    # the session
    closing((one, two))


def test_flows_do_not_wander_to_a_lane_that_was_heard_first():
    one, two = lane_pair(count=2, usable=False)
    packets = [udp(A4, B4, bytes(600), sport=port) for port in range(1000, 1016)]
    two.send_lane(two.plain(1).seal())
    one.poll()
    for packet in packets:
        one.give(packet)
    one.poll()
    assert {wire[0] for wire in on_the_wire(two)} == {4, 5}    # lane 0's go by the session
    closing((one, two))


def test_the_next_set_takes_over_when_its_lane_is_heard(one, two):
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    old = one.first, two.first
    for end in (one, two):
        end.reserve_lanes()
    for end, before in ((one, old[0]), (two, old[1])):
        end.install_lanes(generation=1)
        end.tables.peers.set_lanes(end.peer, end.first, before)
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    assert one.lane()["tx_messages"] == 0
    one.send_lane(one.plain(generation=1).seal(counter=one.take_counter()))
    two.poll()
    two.send_lane(two.plain(generation=1).seal(counter=two.take_counter()))
    one.poll()
    one.give(SMALL)
    one.poll()
    (wire,) = on_the_wire(two)
    assert two.plain(generation=1).open(wire) == (0, SMALL)     # no fence: the same sockets
    two.tables.lanes.retire(old[1])
    one.tables.lanes.retire(old[0])
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    assert one.verdicts() == two.verdicts() == {}


def test_lanes_end_with_their_age(one, two):
    one.give(SMALL)
    one.poll(START + REJECT_AFTER_TIME)
    assert one.lane()["tx_messages"] == 1
    one.send_lane(one.plain().seal(SMALL, counter=3))
    two.poll(START + REJECT_AFTER_TIME)
    assert two.verdicts() == {"DROP_EXPIRED_KEYPAIR": 1}


def test_an_old_lane_asks_for_a_new_session_once(one, two):
    for _ in range(2):
        one.give(SMALL)
        one.poll(START + REKEY_AFTER_TIME)
    assert one.events().count("rekey") == 1
    two.send_lane(two.plain().seal(GOOD, counter=3))
    one.tables.lanes.rearm(one.first, "rekey_reported")
    one.poll(START + REKEY_AFTER_TIME)
    assert one.events().count("rekey") == 1


@pytest.mark.parametrize("policy", ["lanes", "nothing"])
def test_data_outside_of_lanes_is_refused_on_demand(policy):
    one, two = lane_pair(usable=False)
    for end in (one, two):
        end.tables.peers.set_policy(end.peer, policy)
    one.give(SMALL)
    one.poll()
    two.udp.sendto(message(one, 5, udp(B4, A4, b"by the session")), one.udp.getsockname())
    one.poll()
    assert one.take() == [] and on_the_wire(two) == []
    assert one.verdicts() == {"DROP_NOT_IN_LANES": 1,
                              **({"DROP_NO_LANES": 1} if policy == "nothing" else {})}
    if policy == "lanes":       # it waited
        two.send_lane(two.plain().seal())
        one.poll()
        one.poll()
        (wire,) = on_the_wire(two)
        assert two.plain().open(wire) == (0, SMALL)
    closing((one, two))


# -- order at the switch

def switch(one, two):
    """`one` has sent by the session, and now hears its lane."""
    one.give(udp(A4, B4, b"by the session", ident=1))
    one.poll()
    two.send_lane(two.plain().seal(counter=two.take_counter()))
    one.poll()
    one.give(udp(A4, B4, b"on the lane", ident=2))
    one.poll()
    found = on_the_wire(two)
    return [each for each in found if each[0] == 4], [each for each in found if each[0] == 5]


def test_the_first_use_of_a_lane_is_fenced():
    one, two = lane_pair(usable=False)
    (data, end), (fenced,) = switch(one, two)
    assert fenced[1] == FENCE
    target = two.udp.getsockname()
    # The lane message overtakes; the data of the session and the END follow.
    one.udp.sendto(fenced, target)
    two.poll()
    assert two.take() == []
    one.udp.sendto(data, target)
    one.udp.sendto(end, target)
    two.poll()
    two.poll()
    assert [each[38:] for each in two.take()] == [b"by the session", b"on the lane"]
    assert two.verdicts() == {}
    # From now on nothing waits.
    one.give(udp(A4, B4, b"later"))
    one.poll()
    two.poll()
    assert [each[38:] for each in two.take()] == [b"later"]
    closing((one, two))


def test_a_set_of_the_other_sides_is_fenced_too(one, two):
    """Both started a session: the sets have different openers, hence other sockets."""
    one.give(udp(A4, B4, b"first"))
    one.poll()
    (first,) = on_the_wire(two)
    old = one.first
    for end in (one, two):
        end.reserve_lanes()
    one.install_lanes(generation=1, opens=False)
    two.install_lanes(generation=1, opens=True)
    one.tables.peers.set_lanes(one.peer, one.first, old)
    two.lane_sockets[0].sendto(two.plain(generation=1).seal(counter=two.take_counter()),
                               one.udp.getsockname())
    one.poll()
    one.give(udp(A4, B4, b"second"))
    one.poll()
    (end,) = on_the_wire(two)
    fenced = two.lane_sockets[0].recv(2000)
    assert fenced[1] == FENCE
    where = two.udp.getsockname()
    one.lane_sockets[0].sendto(fenced, two.lane_sockets[0].getsockname())
    two.poll()
    assert two.take() == []
    one.lane_sockets[0].sendto(first, where)
    one.lane_sockets[0].sendto(end, where)
    two.poll()
    two.poll()
    assert [each[38:] for each in two.take()] == [b"first", b"second"]
    assert two.verdicts() == {}


def test_a_lost_end_costs_20_ms_and_no_data():
    one, two = lane_pair(usable=False)
    _, (fenced,) = switch(one, two)
    one.udp.sendto(fenced, two.udp.getsockname())
    two.poll()
    two.poll(START + 19 * MS)
    assert two.take() == []
    two.poll(START + 20 * MS)
    assert [each[38:] for each in two.take()] == [b"on the lane"]
    one.give(udp(A4, B4, b"later"))
    one.poll()
    two.poll()
    assert [each[38:] for each in two.take()] == [b"later"]
    closing((one, two))


def test_a_quiet_session_needs_no_fence(one, two):
    one.give(SMALL)
    one.poll()
    (wire,) = on_the_wire(two)
    assert wire[1] == 0


def test_a_stranger_cannot_have_messages_held(one, two):
    forged = flip(one.plain().seal(SMALL, FENCE, counter=9), 20)
    one.send_lane(forged)
    one.send_lane(one.plain().seal(SMALL, counter=10))
    two.poll()
    assert two.take() == [PLAIN + SMALL]
    assert two.verdicts() == {"DROP_UNAUTHENTIC": 1}


def test_lane_messages_wait_for_their_keys():
    one, two = pair()
    for end in (one, two):
        end.reserve_lanes()
    one.install_lanes()
    lane = one.plain()
    one.send_lane(lane.seal(b"", ASK))
    one.send_lane(lane.seal(SMALL))
    two.poll()
    assert two.take() == [] and two.events() == [] and two.verdicts() == {}
    two.install_lanes()
    two.poll()
    assert two.take() == [PLAIN + SMALL]
    assert set(two.events()) >= {"lane_echo_request", "lane_usable"}
    closing((one, two))


def test_what_waits_for_keys_that_never_come_is_dropped():
    one, two = pair()
    for end in (one, two):
        end.reserve_lanes()
    big = one.plain().seal(bytes(60000))
    for _ in range(60):
        one.send_lane(big)
        two.poll()
    held = (4 << 20) // 9 // (60000 + 32)
    assert two.verdicts() == {"DROP_HOLD_FULL": 60 - held}
    two.poll(START + 20 * MS)
    assert two.verdicts() == {"DROP_HOLD_FULL": 60 - held, "DROP_UNKNOWN_INDEX": held}
    one.send_lane(one.plain().seal(SMALL, counter=1))
    two.poll()
    two.tables.lanes.retire(two.first)
    two.poll(START + 20 * MS)
    assert two.verdicts()["DROP_UNKNOWN_INDEX"] == held + 1
    closing((one, two))


def test_an_end_for_somebody_elses_lane_is_dropped(one, two):
    other = one.tables.peers.add()
    first, index = one.tables.lanes.reserve(other, 1)
    one.tables.lanes.install(first, _core.NewLanes(
        remote_index=1, cipher="aes-256-gcm", features=ALL_FEATURES,
        keys=[(bytes(32), bytes(32))], endpoints=[(b"", bytes(16))], sockets=None,
        rekey_at_ns=START * 2, rekey_rx_at_ns=START * 2, reject_at_ns=START * 2))
    for index_, lane in ((index, 0), (one.lanes_index, 7), (0xffffffff, 0), (0, 65535)):
        counter = one.tables.keypairs.take_counter(one.slot, one.index)
        two.udp.sendto(message(one, counter, plainlanes.end(index_, lane)),
                       one.udp.getsockname())
    one.poll()
    assert one.verdicts() == {"DROP_UNKNOWN_INDEX": 4}


def test_a_dead_worker_leaves_lanes_that_work(one, two):
    one.give(SMALL)
    one.poll()
    two.poll()
    one.tables.workers.exited(0)
    assert carry(one, two, SMALL)[-1] == PLAIN + SMALL
    assert one.lane()["tx_messages"] == 3


def test_unanswered_data_is_reported_when_the_event_ring_has_room_again(one, two):
    """By the next data; the time is that of the first."""
    one.events()
    while "FAILED_EVENT_RING_FULL" not in one.verdicts():
        one.tables.lanes.rearm(one.first, "unanswered_reported")
        one.give(SMALL)
        one.poll()
        two.send_lane(two.plain(counter=two.take_counter()).seal())     # the answer
        one.poll(START + 1)
    one.give(SMALL)
    one.poll(START + 2)
    one.events()
    one.give(SMALL)
    one.poll(START + MS)
    assert [(name, at) for name, _, _, _, at in one.tables.workers.events(0)] == [
        ("lane_unanswered", START + 2)]


# -- tables

def test_lane_sets_are_reused_by_their_size():
    one, two = pair()
    first, index = one.tables.lanes.reserve(one.peer, 3)
    other, _ = one.tables.lanes.reserve(one.peer, 4)
    one.tables.lanes.retire(first)
    while one.tables.retired.reclaim():
        pass
    again, new_index = one.tables.lanes.reserve(one.peer, 4)
    assert again == first and other == first + 4 and new_index != index
    with pytest.raises(ValueError, match="1 to 256"):
        one.tables.lanes.reserve(one.peer, 257)
    with pytest.raises(MemoryError, match="table of lanes is full"):
        for _ in range(1000):
            one.tables.lanes.reserve(one.peer, 256)
    closing((one, two))


def test_small_packets_wait_for_nothing(one, two):
    """The iteration of a lone packet sends it."""
    one.give(SMALL)
    one.poll()
    assert len(on_the_wire(two)) == 1
