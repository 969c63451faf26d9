"""The data plane of lanes, end to end in this process, beside the plain implementation: packets
and bundles of them."""

import random

import pytest

from fastpump import _core
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
from support.plainlanes import BUNDLE, PARTIAL
from support.pumps import carry, closing, lane_pair, on_the_wire

SMALL = udp(A4, B4, b"small")


@pytest.fixture
def ends(closed):
    return closed(lane_pair())


def needs_csum(packet, l4_at=20):
    """A packet as the kernel hands it over with a checksum to finish: (vnet, packet)."""
    is_tcp = (packet[6] if packet[0] >> 4 == 6 else packet[9]) == TCP
    check_at = 16 if is_tcp else 6
    return Vnet(NEEDS_CSUM, 0, 0, 0, l4_at, check_at).emit(), partial(packet, l4_at, check_at)


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


def test_small_packets_wait_for_nothing(one, two):
    """The iteration of a lone packet sends it."""
    one.give(SMALL)
    one.poll()
    assert len(on_the_wire(two)) == 1


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
