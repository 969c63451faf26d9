"""The path MTU in the data plane: what does not fit is answered, TCP is clamped, probes go up."""

import struct

import pytest

from fastpump._core import NO_SLOT
from support.packets import (
    A4,
    A6,
    ACK,
    B4,
    B6,
    PLAIN,
    SYN,
    VNET,
    Vnet,
    checksum,
    checksums_are_right,
    frame,
    framed,
    parse_vnet,
    partial,
    pseudo,
    superpacket,
    tcp,
    udp,
)
from support.plainlanes import ASK, EXTENSION, FRAME
from support.pumps import START, lane_pair, message, on_the_wire, pair
from support.sites import HOST, settle

FITS = 1300
MSS = struct.pack("!BBH", 2, 4, 1460)
FRAGMENTATION_NEEDED, PACKET_TOO_BIG = (3, 4), (2, 0)
PROBE, ACKNOWLEDGED = 1, 2
BY_SESSION = {PROBE: 6, ACKNOWLEDGED: 7}


@pytest.fixture(params=["session", "lanes"])
def ends(request, closed):
    """Two ends; the path from the first takes payloads of FITS bytes."""
    one, two = closed(lane_pair() if request.param == "lanes" else pair())
    on_the_wire(two)
    one.tables.peers.set_payload_mtu(one.peer, FITS)
    return one, two


def told(one):
    """(type and code, MTU, what is quoted) of the ICMP errors that were written."""
    found = []
    for data in one.take():
        packet = data[VNET.size:]
        if packet[0] >> 4 == 4:
            assert checksum(packet[:20]) == checksum(packet[20:]) == 0 and packet[9] == 1
            icmp = packet[20:]
        else:
            icmp = packet[40:]
            assert packet[6] == 58 and checksum(
                pseudo(packet[8:24], packet[24:40], 58, len(icmp)) + icmp) == 0
        found.append(((icmp[0], icmp[1]), struct.unpack("!I", icmp[4:8])[0], icmp[8:]))
    return found


@pytest.mark.parametrize("size, is_told", [(FITS, False), (FITS + 1, True), (1420, True)])
def test_a_packet_that_does_not_fit_is_answered(ends, size, is_told):
    one, two = ends
    packet4, packet6 = udp(A4, B4, bytes(size - 28)), udp(A6, B6, bytes(size - 48))
    for packet in (packet4, packet6):
        one.give(packet)
    one.poll()
    assert told(one) == [(FRAGMENTATION_NEEDED, FITS, packet4[:548]),
                         (PACKET_TOO_BIG, FITS, packet6[:1232])] * is_told
    assert len(on_the_wire(two)) == (0 if is_told else 2)
    assert one.verdicts().get("DROP_PATH_MTU", 0) == (2 if is_told else 0)


def test_who_cannot_be_told_now_loses_nothing(ends):
    """There is a rate of answers; and multicast has none."""
    one, two = ends
    packets = [udp(A4, B4, bytes(1392))] * 120
    for packet in packets:
        one.give(packet)
        one.poll()
    answered = len(told(one))
    assert 0 < answered < len(packets)
    assert len(on_the_wire(two)) == len(packets) - answered
    assert one.verdicts()["DROP_PATH_MTU"] == answered


def test_what_may_be_fragmented_leaves(ends):
    one, two = ends
    one.give(udp(A4, B4, bytes(1392), df=False))
    one.poll()
    assert told(one) == [] and len(on_the_wire(two)) == 1


def test_nobody_is_told_less_than_ipv6_needs(ends):
    one, two = ends
    one.tables.peers.set_payload_mtu(one.peer, 1200)
    for size in (1280, 1281):
        one.give(udp(A6, B6, bytes(size - 48)))
    one.poll()
    assert [each[:2] for each in told(one)] == [(PACKET_TOO_BIG, 1280)]
    assert len(on_the_wire(two)) == 1


@pytest.mark.parametrize("addresses, headers", [((A4, B4), 40), ((A6, B6), 60)])
@pytest.mark.parametrize("excess, is_told", [(0, False), (1, True)])
def test_the_segments_of_a_superpacket_count(ends, addresses, headers, excess, is_told):
    one, two = ends
    size = FITS - headers + excess
    one.interface.send(superpacket(tcp(*addresses, bytes(4 * size)), size))
    one.poll()
    found = told(one)
    assert [each[1] for each in found] == [FITS] * is_told
    assert len(on_the_wire(two)) == (0 if is_told else 4)


def test_padding_does_not_exceed_it(closed):
    one, two = closed(pair())
    one.tables.peers.set_payload_mtu(one.peer, 1299)
    one.give(udp(A4, B4, bytes(1299 - 28)))
    one.poll()
    assert [len(each) for each in on_the_wire(two)] == [1299 + 32]


def test_without_a_limit_all_leaves(ends):
    one, two = ends
    one.tables.peers.set_payload_mtu(one.peer, None)
    assert one.tables.peers.payload_mtu(one.peer) is None
    one.give(udp(A4, B4, bytes(1392)))
    one.poll()
    assert told(one) == [] and len(on_the_wire(two)) == 1


# -- MSS

def mss_of(packet):
    """The MSS that a TCP packet states; its checksum is right."""
    assert checksums_are_right(packet)
    l4 = packet[40:] if packet[0] >> 4 == 6 else packet[(packet[0] & 15) * 4:]
    at = 20
    while l4[at] != 2:
        at += 1 if l4[at] == 1 else l4[at + 1]
    return struct.unpack("!H", l4[at + 2:at + 4])[0]


@pytest.mark.parametrize("is_partial", [False, True])
@pytest.mark.parametrize("options", [
    MSS, b"\1" + MSS + b"\1\1\1", b"\4\2" + MSS + b"\1\1", b"\3\3\7" + MSS + b"\0"])
@pytest.mark.parametrize("addresses, fits", [((A4, B4), FITS - 40), ((A6, B6), FITS - 60)])
def test_tcp_that_opens_is_clamped(ends, addresses, fits, options, is_partial):
    one, two = ends
    packet = tcp(*addresses, b"", flags=SYN, options=options)
    vnet = Vnet(0, 0, 0, 0, 0, 0)
    if is_partial:
        l4_at = 40 if packet[0] >> 4 == 6 else 20
        vnet, packet = Vnet(1, 0, 0, 0, l4_at, 16), partial(packet, l4_at, 16)
    one.give(packet, vnet.emit())
    one.poll()
    two.poll()
    ((header, written),) = [parse_vnet(data) for data in two.take()]
    if header.flags & 1:
        at = header.csum_start + header.csum_offset
        check = ~checksum(written[header.csum_start:]) & 0xffff
        written = written[:at] + struct.pack("!H", ~check & 0xffff) + written[at + 2:]
    assert mss_of(written) == fits


@pytest.mark.parametrize("addresses, fits", [((A4, B4), 1220 - 40), ((A6, B6), 1220 - 60)])
def test_the_receiver_clamps_to_its_own_path_back(ends, addresses, fits):
    """The sender may be one that does not clamp."""
    one, two = ends
    one.tables.peers.set_payload_mtu(one.peer, None)
    two.tables.peers.set_payload_mtu(two.peer, 1220)
    one.give(tcp(*addresses, b"", flags=SYN | ACK, options=MSS))
    one.poll()
    two.poll()
    ((_, written),) = [parse_vnet(data) for data in two.take()]
    assert mss_of(written) == fits


@pytest.mark.parametrize("flags, options, mss", [
    (SYN | ACK, MSS, FITS - 40), (SYN, struct.pack("!BBH", 2, 4, 536), 536), (ACK, MSS, 1460)])
def test_what_else_has_an_mss(ends, flags, options, mss):
    one, two = ends
    one.give(tcp(A4, B4, b"", flags=flags, options=options))
    one.poll()
    two.poll()
    ((_, written),) = [parse_vnet(data) for data in two.take()]
    assert mss_of(written) == mss


@pytest.mark.parametrize("options", [b"\2\4", b"\2\3\5\0", b"\3\0\0\0", b"\1\1\1\2", b"\3\xff\2\4"])
def test_broken_options_are_left_alone(ends, options):
    one, two = ends
    packet = tcp(A4, B4, b"", flags=SYN, options=options.ljust(4, b"\2"))
    one.give(packet)
    one.poll()
    two.poll()
    ((_, written),) = [parse_vnet(data) for data in two.take()]
    assert written == packet


def introduce(mesh, vlans):
    """The hosts of a and b are known."""
    for other in "ab":
        mesh[other].interface.send(PLAIN + frame(
            HOST["a" if other == "b" else "b"], HOST[other], udp(A4, B4, b""), vlans=vlans))
        settle(mesh)
    for each in mesh.values():
        each.take()


@pytest.mark.parametrize("vlans", [(), (5,)])
def test_tcp_in_frames_is_clamped(mesh, vlans):
    """And frames that are too large leave: their datagrams travel in fragments."""
    introduce(mesh, vlans)
    for site in mesh.values():
        for peer in site.peers.values():
            site.tables.peers.set_payload_mtu(peer, FITS)
    link = frame(HOST["b"], HOST["a"], tcp(A4, B4, b""), vlans=vlans)
    link = link[:14 + 4 * len(vlans)]
    mesh["a"].interface.send(framed(PLAIN + tcp(A4, B4, b"", flags=SYN, options=MSS), link))
    mesh["a"].interface.send(framed(PLAIN + udp(A4, B4, bytes(1400)), link))
    mesh["a"].poll()
    mesh["b"].poll()
    opening, large = [data[VNET.size + len(link):] for data in mesh["b"].take()]
    assert mss_of(opening) == FITS - len(link) - 16 - 40
    assert len(large) == 1428


def test_a_flooded_frame_is_the_same_for_all(mesh):
    """Or its copies would not be known for copies (hot/duplicates.pxd)."""
    site = mesh["a"]
    site.tables.peers.set_payload_mtu(site.peers["b"], FITS)
    opening = frame(HOST["b"], HOST["a"], tcp(A4, B4, b"", flags=SYN, options=MSS))
    site.interface.send(PLAIN + opening)
    settle(mesh)
    assert [data[VNET.size:] for data in mesh["b"].take()] == [opening]


@pytest.mark.parametrize("vlans", [(), (5,)])
@pytest.mark.parametrize("packet", [tcp(A4, B4, bytes(1400)), tcp(A6, B6, bytes(1400))])
def test_the_sender_of_a_frame_with_tcp_is_told(mesh, packet, vlans):
    """It leaves all the same: its host may not listen."""
    site = mesh["a"]
    introduce(mesh, vlans)
    for peer in site.peers.values():
        site.tables.peers.set_payload_mtu(peer, FITS)
    data = frame(HOST["b"], HOST["a"], packet, vlans=vlans)
    site.interface.send(PLAIN + data)
    site.poll()
    mesh["b"].poll()
    assert [each[VNET.size:] for each in mesh["b"].take()] == [data]
    (answer,) = [each[VNET.size:] for each in site.take()]
    link_len = 14 + 4 * len(vlans)
    assert answer[:link_len] == data[6:12] + data[:6] + data[12:link_len]
    icmp = answer[link_len + (40 if packet[0] >> 4 == 6 else 20):]
    assert struct.unpack("!I", icmp[4:8])[0] == FITS - link_len - 16 or packet[0] >> 4 == 6
    assert (icmp[0], icmp[1]) in (FRAGMENTATION_NEEDED, PACKET_TOO_BIG)


# -- probes

def events(end):
    """(name, slot, number, size) of what its worker reports of path probes."""
    return [(name, detail, error >> 16, error & 0xffff)
            for name, _, detail, error, _ in end.tables.workers.events(0)
            if name.startswith("path_")]


@pytest.mark.parametrize("kind, size, expected", [
    (PROBE, 1472, ("path_probe", 1472)), (PROBE, 40, ("path_probe", 40)),
    (ACKNOWLEDGED, 40, ("path_ack", 1234))])
def test_a_probe_and_its_ack_go_to_the_supervisor(closed, kind, size, expected):
    one, two = closed(lane_pair())
    two.events()
    content = struct.pack("<HHH", 4, 0xabcd, 1234).ljust(size - 34, b"\0")
    one.send_lane(one.plain().seal(bytes([kind, 0]) + content, EXTENSION,
                                   counter=one.take_counter()))
    two.poll()
    assert events(two) == [(expected[0], two.first, 0xabcd, expected[1])]
    inner = bytes([0xf0, BY_SESSION[kind]]) + content
    two.udp.sendto(message(two, 5, inner), two.udp.getsockname())
    two.poll()
    assert events(two) == [(expected[0], NO_SLOT, 0xabcd, expected[1])]
    assert two.verdicts() == {} and two.take() == []


@pytest.mark.parametrize("payload, flags", [
    (b"\1\0\4\0\1\0\0", EXTENSION), (b"\5\0\4\0\1\0\0\0", EXTENSION),
    (b"\1\0\4\0\1\0\0\0", EXTENSION | ASK), (b"", EXTENSION)])
def test_malformed_extensions_are_dropped(closed, payload, flags):
    one, two = closed(lane_pair())
    one.send_lane(one.plain().seal(payload, flags, counter=one.take_counter()))
    two.poll()
    assert events(two) == [] and two.verdicts() == {"DROP_MALFORMED_INNER": 1}


def test_the_rate_of_probes_is_limited(closed):
    one, two = closed(lane_pair())
    two.events()
    for _ in range(100):
        one.send_lane(one.plain().seal(b"\1\0\4\0\1\0\0\0", EXTENSION,
                                       counter=one.take_counter()))
    for _ in range(20):
        two.poll(START)
    assert len(events(two)) == 60 and two.verdicts() == {"DROP_CONTROL_RATE": 40}


def test_extensions_are_for_frames_too(mesh):
    """The flag is of messages of both kinds of interface."""
    assert FRAME != EXTENSION
    site = mesh["a"]
    site.tables.workers.events(0)
    plain = mesh["b"].plain["a"]
    site.udp.sendto(plain.seal(b"\1\0\4\0\1\0\0\0", EXTENSION, counter=900),
                    site.udp.getsockname())
    site.poll()
    assert [event[0] for event in site.tables.workers.events(0)
            if event[0] == "path_probe"] == ["path_probe"]
