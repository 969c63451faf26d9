"""Explicit congestion notification through the tunnel (RFC 6040)."""

import os
import socket
import struct

import pytest

from fastpump import _core
from fastpump.kernel import UDP_GRO
from support.packets import A4, A6, B4, B6, VNET, checksum, frame, superpacket, tcp, udp
from support.pumps import lane_pair, pair
from support.sites import HOST, arp, close, network, settle

NOT_ECT, ECT1, ECT0, CE = range(4)
NAMES = ["Not-ECT", "ECT(1)", "ECT(0)", "CE"]
# RFC 6040, figure 4: by what is inside and what is outside. None: dropped.
OUT = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}
DSCP = 0x28
SMALL, LARGE = b"small", bytes(900)


def ecn(packet):
    """Of an IP packet."""
    first, second = packet[0], packet[1]
    return second >> 4 & 3 if first >> 4 == 6 else second & 3


def marked(version, tos, payload=SMALL, **more):
    """A packet with an ECN field and a DSCP."""
    addresses = (A4, B4) if version == 4 else (A6, B6)
    return udp(*addresses, payload, tos=DSCP | tos, **more)


@pytest.fixture(params=["session", "lanes"])
def ends(request, closed):
    """Two ends whose sockets say how datagrams were marked."""
    one, two = closed((pair if request.param == "session" else lane_pair)())
    for end in (one, two):
        for sock in (end.udp, *end.lane_sockets):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    return one, two


def outside(end):
    """[(datagram, its ECN field)] that came to an end's socket, and were not taken."""
    found = []
    while True:
        try:
            data, control, _, _ = end.udp.recvmsg(65536, 200)
        except BlockingIOError:
            return found
        length, tos = len(data) or 1, 0
        for level, kind, value in control:
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                (length,) = struct.unpack("=i", value)
            elif (level, kind) in ((socket.IPPROTO_IP, socket.IP_TOS),
                                   (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)):
                tos = value[0]
        found += [(data[at:at + length], tos) for at in range(0, len(data), length)]


def arrive(end, datagram, tos):
    """A datagram comes that a router has marked; what is written to the interface."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as router:
        router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        router.sendmsg([datagram], [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", tos))], 0,
                       end.udp.getsockname())
    end.poll()
    return end.take()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tos", range(4), ids=NAMES)
def test_a_datagram_has_the_field_of_what_is_in_it(ends, version, tos):
    one, two = ends
    for payload in (SMALL, LARGE):
        one.give(marked(version, tos, payload))
    one.poll()
    assert [each for _, each in outside(two)] == [tos, tos]


def test_over_ipv6_too(closed):
    """Which has another control message."""
    one, two = closed(pair())
    for end in (one, two):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
            other.bind(("::1", 0))
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            os.dup2(other.fileno(), end.udp.fileno())
    one.tables.peers.set_endpoint(one.peer, two.endpoint.sockaddr(socket.AF_INET6))
    for tos in range(4):
        one.give(marked(6, tos))
        one.poll()
        ((datagram, seen),) = outside(two)
        assert seen == tos
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as router:
            router.sendmsg([datagram], [(socket.IPPROTO_IPV6, socket.IPV6_TCLASS,
                                         struct.pack("=i", ECT1))], 0, two.udp.getsockname())
        two.poll()
        assert [data[VNET.size:] for data in two.take()] == [marked(6, OUT[tos][ECT1])]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inside", range(4), ids=[f"{name} inside" for name in NAMES])
@pytest.mark.parametrize("on_the_way", range(4), ids=[f"{name} outside" for name in NAMES])
def test_what_routers_marked_is_put_into_the_packet(ends, version, inside, on_the_way):
    one, two = ends
    one.give(marked(version, inside))
    one.poll()
    ((datagram, _),) = outside(two)
    written = arrive(two, datagram, on_the_way)
    wanted = OUT[inside][on_the_way]
    if wanted is None:
        assert written == [] and two.verdicts() == {"DROP_ECN": 1}
        return
    assert [data[VNET.size:] for data in written] == [marked(version, wanted)]
    assert two.verdicts() == {}


def test_packets_of_different_fields_share_no_gso_send(ends):
    one, two = ends
    fields = [ECT0, ECT0, CE, ECT0, NOT_ECT, NOT_ECT, ECT1]
    for number, tos in enumerate(fields):
        one.give(marked(4, tos, LARGE, dport=3000 + number))
    before = one.counters()["udp_tx_messages"]
    one.poll()
    assert one.counters()["udp_tx_messages"] - before == 5
    found = outside(two)
    assert [tos for _, tos in found] == fields
    written = [arrive(two, datagram, tos) for datagram, tos in found]
    assert [[data[VNET.size:] for data in each] for each in written] == [
        [marked(4, tos, LARGE, dport=3000 + number)] for number, tos in enumerate(fields)]


def test_a_superpacket_s_segments_all_have_its_field(ends):
    one, two = ends
    whole = superpacket(tcp(A4, B4, bytes(5000), tos=ECT0), 1000)
    one.interface.send(whole)
    one.poll()
    found = outside(two)
    assert [tos for _, tos in found] == [ECT0] * 5
    written = [data[VNET.size:] for datagram, tos in found for data in arrive(two, datagram, CE)]
    assert [ecn(packet) for packet in written] == [CE] * 5
    assert all(checksum(packet[:20]) == 0 for packet in written)


@pytest.fixture
def lanes(closed):
    one, two = closed(lane_pair())
    two.udp.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    return one, two


def test_a_bundle_holds_packets_of_one_field(lanes):
    one, two = lanes
    fields = [ECT0, ECT0, CE, NOT_ECT, NOT_ECT, NOT_ECT]
    for number, tos in enumerate(fields):
        one.give(marked(4, tos, bytes(number + 1)))
    one.poll()
    found = outside(two)
    assert [tos for _, tos in found] == [ECT0, CE, NOT_ECT]
    assert one.counters()["udp_tx_bundles"] == 2


def test_a_mark_reaches_every_packet_of_a_bundle(lanes):
    one, two = lanes
    packets = [(6, ECT0), (4, ECT0), (4, ECT0)]
    for number, (version, tos) in enumerate(packets):
        one.give(marked(version, tos, bytes(number + 1)))
    one.poll()
    ((bundle, _),) = outside(two)
    assert [data[VNET.size:] for data in arrive(two, bundle, CE)] == [
        marked(version, CE, bytes(number + 1)) for number, (version, _) in enumerate(packets)]


def test_marked_and_unmarked_packets_are_not_merged(ends):
    one, two = ends
    packets = [tcp(A4, B4, bytes(1000), seq=1 + 1000 * number, ident=number, tos=tos)
               for number, tos in enumerate((ECT0, ECT0, CE, CE, ECT0))]
    for packet in packets:
        one.give(packet)
    one.poll()
    two.poll()
    written = two.take()
    assert [ecn(data[VNET.size:]) for data in written] == [ECT0, CE, ECT0]
    segments = [segment for data in written for segment in _core.split(data)] \
        if len(written) < len(packets) else [data[VNET.size:] for data in written]
    assert segments == packets


def listen(*sites):
    for site in sites:
        site.udp.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)


@pytest.mark.parametrize("vlans", [(), (7,), (100, 7)], ids=["untagged", "tagged", "stacked"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_frame_s_packet_is_what_counts(version, vlans):
    sites = network("a", "b")
    a, b = sites.values()
    listen(a, b)
    for tos in (ECT0, ECT1, CE):
        a.give(frame(HOST["b"], HOST["a"], marked(version, tos), vlans=vlans))
        a.poll()
        ((datagram, seen),) = outside(b)
        assert seen == tos
        assert [data[VNET.size:] for data in arrive(b, datagram, CE)] == [
            frame(HOST["b"], HOST["a"], marked(version, CE), vlans=vlans)]
    close(sites)


def test_a_frame_without_a_packet_knows_no_ecn():
    sites = network("a", "b")
    a, b = sites.values()
    listen(a, b)
    a.give(arp(HOST["a"]))
    a.poll()
    ((datagram, seen),) = outside(b)
    assert seen == NOT_ECT
    assert arrive(b, datagram, CE) == [] and b.verdicts() == {"DROP_ECN": 1}
    close(sites)


def test_a_relay_passes_a_mark_on():
    sites = network("a", "r", "b", relays="r", links=("ar", "rb"))
    a, r, b = (sites[name] for name in "arb")
    listen(a, r, b)
    a.give(frame(HOST["b"], HOST["a"], marked(4, ECT0)))
    a.poll()
    ((datagram, _),) = outside(r)
    arrive(r, datagram, CE)
    ((_, seen),) = outside(b)
    assert seen == CE
    settle(sites)
    close(sites)


# -- DSCP

AF41, AF42 = 0x88, 0x90


def dscp_seen(one, two, packet):
    """The TOS of the datagram that a packet leaves in."""
    one.give(packet)
    one.poll()
    ((_, seen),) = outside(two)
    return seen


@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_s_dscp_stays_inside(ends, version):
    one, two = ends
    assert dscp_seen(one, two, marked(version, ECT0)) == ECT0


@pytest.mark.parametrize("version", [4, 6])
def test_a_copied_dscp(ends, version):
    one, two = ends
    one.tables.set_dscp("copy")
    assert dscp_seen(one, two, marked(version, ECT0)) == DSCP | ECT0
    assert dscp_seen(one, two, udp(A4, B4, SMALL)) == 0
    # That of handshakes is theirs.
    assert dscp_seen(one, two, udp(A4, B4, SMALL, tos=AF41 | CE)) == AF42 | CE
    assert dscp_seen(one, two, udp(A4, B4, SMALL, tos=AF42)) == AF42


@pytest.mark.parametrize("version", [4, 6])
def test_a_fixed_dscp(ends, version):
    """The socket has it, so that only ECN costs a control message."""
    one, two = ends
    one.tables.set_dscp(46)
    for sock in (one.udp, *one.lane_sockets):
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2)
    assert dscp_seen(one, two, marked(version, NOT_ECT)) == 46 << 2
    assert dscp_seen(one, two, marked(version, ECT1)) == 46 << 2 | ECT1
    with pytest.raises(ValueError, match="0 to 63"):
        one.tables.set_dscp(64)


def test_packets_of_different_dscp_share_no_gso_send(ends):
    one, two = ends
    one.tables.set_dscp("copy")
    fields = [DSCP, DSCP, 0, DSCP]
    for number, tos in enumerate(fields):
        one.give(udp(A4, B4, LARGE, tos=tos, dport=3000 + number))
    one.poll()
    assert [tos for _, tos in outside(two)] == fields
