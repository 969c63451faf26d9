"""Packets without a way are answered, and what must not be answered is not."""

import struct

import pytest

from fastpump.constants import SECOND
from support.packets import (
    A4,
    A6,
    ACK,
    B4,
    B6,
    PLAIN,
    VNET,
    checksum,
    ip,
    pseudo,
    superpacket,
    tcp,
    udp,
)
from support.pumps import START, pair

ICMP, ICMPV6, FRAGMENT = 1, 58, 44
NOBODY4, NOBODY6 = "10.99.0.1", "fd99::1"


@pytest.fixture
def one(closed):
    return closed(pair())[0]



def answers(one, *packets, now=START):
    """What is written to the interface for packets from it, without their vnet headers."""
    for packet in packets:
        one.give(packet)
    one.poll(now)
    written = one.take()
    assert all(data[:VNET.size] == PLAIN for data in written)
    return [data[VNET.size:] for data in written]


def host_unreachable(packet, most=548):
    """RFC 792, from the packet's destination to its source."""
    icmp = struct.pack("!BBHI", 3, 1, 0, 0) + packet[:most]
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    header = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(icmp), 0, 0, 64, ICMP, 0)
    header += packet[16:20] + packet[12:16]
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + icmp


def address_unreachable(packet, most=1232):
    """RFC 4443."""
    icmp = struct.pack("!BBHI", 1, 3, 0, 0) + packet[:most]
    source, destination = packet[24:40], packet[8:24]
    check = checksum(pseudo(source, destination, ICMPV6, len(icmp)) + icmp)
    icmp = icmp[:2] + struct.pack("!H", check) + icmp[4:]
    return struct.pack("!IHBB", 6 << 28 | 0xC0 << 20, len(icmp), ICMPV6, 64) + (
        source + destination + icmp)


@pytest.mark.parametrize("size", [0, 100, 1300])
def test_an_address_that_nobody_owns(one, size):
    packet4 = udp(A4, NOBODY4, bytes(size), tos=3)
    packet6 = tcp(A6, NOBODY6, bytes(size))
    assert answers(one, packet4, packet6) == [host_unreachable(packet4),
                                              address_unreachable(packet6)]
    assert one.verdicts() == {"DROP_NO_PEER": 2} and one.counters()["icmp_errors"] == 2


def test_a_peer_that_is_nowhere(one):
    one.tables.peers.set_endpoint(one.peer, b"")
    one.tables.peers.set_send_keypair(one.peer, None)
    packet4, packet6 = udp(A4, B4, b"x"), udp(A6, B6, b"x")
    assert answers(one, packet4, packet6) == [host_unreachable(packet4),
                                              address_unreachable(packet6)]
    assert one.verdicts() == {"DROP_NO_ENDPOINT": 2}


def test_a_superpacket_is_answered_once(one):
    one.interface.send(superpacket(tcp(A4, NOBODY4, bytes(5000), flags=ACK), 1000))
    one.poll()
    (answer,) = one.take()
    assert len(answer) == VNET.size + 576 and answer[VNET.size + 20:][:2] == b"\3\1"


def icmp4(kind, **more):
    return ip(A4, NOBODY4, ICMP, bytes([kind, 0]) + bytes(30), **more)


def icmp6(kind):
    return ip(A6, NOBODY6, ICMPV6, bytes([kind, 0]) + bytes(30))


def fragment6(offset):
    return ip(A6, NOBODY6, FRAGMENT, struct.pack("!BBHI", 17, 0, offset | 1, 7) + bytes(40))


@pytest.mark.parametrize("packet", [
    *(icmp4(kind) for kind in (3, 4, 5, 11, 12)),
    *(icmp6(kind) for kind in (1, 2, 3, 4, 127)),
    udp(A4, NOBODY4, bytes(20), offset=80),
    fragment6(80),
    udp(A4, "239.1.2.3", b"group"),
    udp(A6, "ff0e::1", b"group"),
    udp("0.0.0.0", NOBODY4, b"x"),
    udp("127.0.0.1", NOBODY4, b"x"),
    udp("224.0.0.9", NOBODY4, b"x"),
    udp("255.255.255.255", NOBODY4, b"x"),
    udp("::", NOBODY6, b"x"),
    udp("::1", NOBODY6, b"x"),
    udp("ff02::1", NOBODY6, b"x"),
    ip(A4, NOBODY4, ICMP, b""),
    ip(A6, NOBODY6, ICMPV6, b""),
    ip(A6, NOBODY6, FRAGMENT, bytes(7)),
])
def test_what_must_not_be_answered(one, packet):
    assert answers(one, packet) == []
    assert one.verdicts() == {"DROP_NO_PEER": 1} and one.counters()["icmp_errors"] == 0


@pytest.mark.parametrize("packet", [
    icmp4(8), icmp4(0), icmp4(13), udp(A4, NOBODY4, bytes(20), more_fragments=True),
])
def test_queries_and_first_fragments_are_answered(one, packet):
    assert answers(one, packet) == [host_unreachable(packet)]


@pytest.mark.parametrize("packet", [icmp6(128), icmp6(129), fragment6(0)])
def test_of_ipv6_too(one, packet):
    assert answers(one, packet) == [address_unreachable(packet)]


def test_answers_are_limited(one):
    packet = udp(A4, NOBODY4, b"x")
    for _ in range(4):
        assert len(answers(one, *[packet] * 50)) in (50, 0)
    assert one.counters()["icmp_errors"] == 50
    assert len(answers(one, *[packet] * 50, now=START + SECOND // 10)) == 10
    assert one.verdicts() == {"DROP_NO_PEER": 250}
