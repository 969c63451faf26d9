"""Superpackets leave as the packets that the kernel would have made of them."""

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump import _core
from support.packets import (
    A4,
    A6,
    ACK,
    B4,
    B6,
    CWR,
    ECE,
    FIN,
    GSO_IN_UDP4,
    GSO_IN_UDP6,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    OUTER_CSUM,
    PLAIN,
    PSH,
    TCP,
    UDP,
    VNET,
    Vnet,
    checksums_are_right,
    frame,
    ip,
    l4_checksum,
    parse_vnet,
    partial,
    superpacket,
    tcp,
    udp,
    vxlan,
    vxlan_superpacket,
)

PAIRS = {"v4": (A4, B4), "v6": (A6, B6)}
ICMP = 1


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("options", [b"", b"\x01\x01\x08\x0a" + bytes(range(8))],
                         ids=["plain", "timestamps"])
def test_tcp(pair, options):
    payload = bytes(range(256)) * 20
    whole = tcp(*pair, payload, seq=2**32 - 1000, flags=ACK | PSH | FIN, options=options,
                ident=65534)
    expected = [
        tcp(*pair, payload[at:at + 1000], seq=2**32 - 1000 + at, options=options,
            ident=65534 + at // 1000, flags=ACK | (PSH | FIN if at + 1000 >= len(payload) else 0))
        for at in range(0, len(payload), 1000)]
    assert _core.split(superpacket(whole, 1000)) == expected


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_udp(pair):
    payload = bytes(range(251)) * 13
    whole = udp(*pair, payload, ident=9)
    expected = [udp(*pair, payload[at:at + 500], ident=9 + at // 500)
                for at in range(0, len(payload), 500)]
    assert _core.split(superpacket(whole, 500)) == expected


@pytest.mark.parametrize("outer", PAIRS.values(), ids=["in v4", "in v6"])
@pytest.mark.parametrize("inner", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("make", [tcp, udp])
@pytest.mark.parametrize("no_checksum", [False, True], ids=["checksum", "none"])
def test_in_a_tunnel(outer, inner, make, no_checksum):
    """Each segment is what the tunnel's end would have made of it, but for the outer id."""
    payload = bytes(range(241)) * 21

    def packed(at, end):
        more = {"seq": 2**32 - 700 + at} if make is tcp else {}
        return vxlan(*outer, make(*inner, payload[at:end], ident=65535 + at // 1000, **more),
                     ident=65534 + at // 1000, no_checksum=no_checksum)

    given = vxlan_superpacket(packed(0, None), 1000, has_checksum=not no_checksum)
    expected = [packed(at, at + 1000) for at in range(0, len(payload), 1000)]
    assert _core.split(given) == expected
    ethernet = frame("02:00:00:00:00:02", "02:00:00:00:00:01", b"", ethertype=(
        0x86dd if outer == (A6, B6) else 0x800))
    header, packet = parse_vnet(given)
    moved = replace(header, **{name: getattr(header, name) + 14 for name in (
        "csum_start", "outer_l4_at", "inner_ip_at")}).emit()
    assert _core.split(moved + ethernet + packet, is_frame=True) == [
        ethernet + each for each in expected]
    left = _core.split(given, may_leave_partial=True)
    assert left == (expected if no_checksum else [
        partial(each, header.outer_l4_at, 6) for each in expected])


def test_in_a_tunnel_behind_a_tag_that_linux_has_put_in():
    """It counts the tag for csum_start only (virtio_net_hdr_tnl_from_skb())."""
    whole = vxlan(A4, B4, tcp(A4, B4, bytes(5000)))
    header, packet = parse_vnet(vxlan_superpacket(whole, 1000))
    tagged = frame("02:00:00:00:00:02", "02:00:00:00:00:01", b"", ethertype=0x800, vlans=(5,))
    moved = replace(header, csum_start=header.csum_start + 18, outer_l4_at=header.outer_l4_at + 14,
                    inner_ip_at=header.inner_ip_at + 14)
    segments = _core.split(moved.emit() + tagged + packet, is_frame=True)
    assert [segment[:18] for segment in segments] == [tagged] * 5
    assert [segment[18:] for segment in segments] == _core.split(header.emit() + packet)


@pytest.mark.parametrize("change", [
    {"gso_type": GSO_TCPV4 | GSO_IN_UDP6},
    {"gso_type": GSO_TCPV4 | GSO_IN_UDP4 | GSO_IN_UDP6}, {"gso_type": GSO_IN_UDP4},
    {"gso_type": GSO_TCPV6 | GSO_IN_UDP4}, {"outer_l4_at": 19}, {"outer_l4_at": 43},
    {"inner_ip_at": 27}, {"inner_ip_at": 49}, {"inner_ip_at": 65535}, {"csum_start": 69},
    {"flags": OUTER_CSUM}])
def test_lies_about_a_tunnel_are_refused(change):
    whole = vxlan(A4, B4, tcp(A4, B4, bytes(3000)))
    header, packet = parse_vnet(vxlan_superpacket(whole, 1000))
    assert _core.split(header.emit() + packet)
    assert _core.split(replace(header, **change).emit() + packet) is None


def test_cwr_stays_on_the_first_and_ece_on_all():
    whole = tcp(A4, B4, bytes(3000), flags=ACK | CWR | ECE, tos=2)
    segments = _core.split(superpacket(whole, 1000, ecn=True))
    assert [segment[33] for segment in segments] == [ACK | CWR | ECE, ACK | ECE, ACK | ECE]
    assert all(segment[1] == 2 and checksums_are_right(segment) for segment in segments)


def test_behind_ipv4_options():
    whole = tcp(A4, B4, bytes(2500), options=b"", **{})
    with_options = ip(A4, B4, TCP, whole[20:], options=b"\x94\x04\x00\x00")
    segments = _core.split(superpacket(with_options, 1000))
    assert [len(segment) for segment in segments] == [1044, 1044, 544]
    assert all(checksums_are_right(segment) for segment in segments)


def test_behind_an_ipv6_extension_header():
    inner = tcp(A6, B6, bytes(2500))[40:]
    hop_by_hop = struct.pack("!BB", TCP, 0) + b"\x01\x04" + bytes(4)
    packet = ip(A6, B6, 0, hop_by_hop + inner)
    vnet = Vnet(NEEDS_CSUM, GSO_TCPV6, 0, 1000, 48, 16)
    segments = _core.split(vnet.emit() + partial(packet, 48, 16))
    assert [len(segment) for segment in segments] == [1068, 1068, 568]
    for segment in segments:
        assert segment[6] == 0 and segment[40:48] == hop_by_hop
        without = segment[:6] + bytes([TCP]) + segment[7:40] + segment[48:]
        without = without[:4] + struct.pack("!H", len(without) - 40) + without[6:]
        assert checksums_are_right(without)


ROUTER4, ROUTER6 = "10.9.0.77", "fd00:9::77"
# What stands between the IP header and TCP's or UDP's, and has an address that is the
# pseudo-header's (RFC 8200, 8.1; RFC 6275, 11.3.1): (next header, extension header).
ROUTING_HEADER = 43, struct.pack("!BBBBI", 0, 2, 2, 1, 0) + ip_address(B6).packed
HOME_ADDRESS = 60, struct.pack("!BB", 0, 2) + b"\x01\x02\0\0\xc9\x10" + ip_address(A6).packed
SOURCE_ROUTE = b"\x83\x07\x04" + ip_address(B4).packed + b"\0"     # RFC 791, loose


def routed(way, protocol, l4):
    """(packet, its IP header's end) by a way on which a router is one of the IP header's
    addresses."""
    if way == "source route":
        return ip(A4, ROUTER4, protocol, l4, options=SOURCE_ROUTE), 20 + len(SOURCE_ROUTE)
    kind, header = ROUTING_HEADER if way == "routing header" else HOME_ADDRESS
    addresses = (A6, ROUTER6) if way == "routing header" else (ROUTER6, B6)
    return ip(*addresses, kind, bytes([protocol]) + header[1:] + l4), 40 + len(header)


@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("way", ["routing header", "home address", "source route"])
@pytest.mark.parametrize("may_leave_partial", [False, True], ids=["complete", "partial"])
def test_checksums_are_for_the_addresses_that_the_partial_one_is_for(
        way, protocol, may_leave_partial):
    pair = (A4, B4) if way == "source route" else (A6, B6)
    plain = (tcp if protocol == TCP else udp)(*pair, bytes(range(250)) * 10)
    packet, l4_at = routed(way, protocol, plain[20 if way == "source route" else 40:])
    check_at = 16 if protocol == TCP else 6
    gso = GSO_UDP_L4 if protocol == UDP else GSO_TCPV4 if way == "source route" else GSO_TCPV6
    whole = Vnet(NEEDS_CSUM, gso, 0, 1000, l4_at, check_at).emit() + partial(
        packet, l4_at, check_at, source=pair[0], destination=pair[1])
    segments = _core.split(whole, may_leave_partial=may_leave_partial)
    assert len(segments) == 3
    for segment in segments:
        l4 = segment[l4_at:]
        if may_leave_partial and way == "source route":
            assert segment == partial(segment, l4_at, check_at, source=pair[0],
                                      destination=pair[1])
        else:
            assert l4_checksum(*pair, protocol, blank(l4, check_at)) == int.from_bytes(
                l4[check_at:check_at + 2], "big")


def blank(l4, check_at):
    return l4[:check_at] + bytes(2) + l4[check_at + 2:]


@pytest.mark.parametrize("size, count", [(32, 2000), (31, None), (1, None)])
def test_very_many_segments_are_refused(size, count):
    """A guest may ask for them, and the kernel lets it; others would wait for the worker."""
    data = superpacket(tcp(A4, B4, bytes(64_000), flags=ACK), size)
    packets = _core.split(data)
    assert packets is None if count is None else len(packets) == count


def test_a_superpacket_of_one_segment():
    whole = tcp(A4, B4, b"abc", flags=ACK | PSH)
    assert _core.split(superpacket(whole, 1000)) == [whole]


@pytest.mark.parametrize("packet", [
    tcp(A4, B4, b"hello"), udp(A6, B6, b"hello", tos=3),
    ip(A4, B4, UDP, bytes(24), more_fragments=True, df=False),
    ip(A4, B4, UDP, bytes(24), offset=24, df=False),
    ip(A4, B4, ICMP, b"\x08\0" + bytes(30)), ip(A6, B6, 59, b""), ip(A6, B6, 132, bytes(99)),
    ip(A4, B4, 253, b"experimental", options=bytes(8)),
], ids=["tcp", "udp-ecn", "first-fragment", "last-fragment", "icmp", "no-next-header", "sctp",
        "unknown-with-options"])
def test_what_is_no_superpacket_passes_as_it_is(packet):
    assert _core.split(PLAIN + packet) == [packet]


def test_a_partial_checksum_is_completed():
    for packet, l4_at, check_at in ((tcp(A4, B4, b"odd"), 20, 16), (udp(A6, B6, b"xy"), 40, 6)):
        vnet = Vnet(NEEDS_CSUM, csum_start=l4_at, csum_offset=check_at)
        assert _core.split(vnet.emit() + partial(packet, l4_at, check_at)) == [packet]


def test_ethernet_padding_is_cut():
    packet = udp(A4, B4, b"x")
    assert _core.split(PLAIN + packet + bytes(17)) == [packet]


GOOD = superpacket(tcp(A4, B4, bytes(3000)), 1000)


@pytest.mark.parametrize("change", [
    {"gso_size": 0}, {"flags": 0}, {"csum_start": 21}, {"csum_start": 3020}, {"csum_start": 65535},
    {"csum_offset": 6}, {"csum_offset": 65535}, {"gso_type": 2}, {"gso_type": 3},
    {"gso_type": GSO_TCPV6}, {"gso_type": 5},
], ids=str)
def test_a_lying_vnet_header_is_refused(change):
    fields = {"flags": NEEDS_CSUM, "gso_type": GSO_TCPV4, "gso_size": 1000, "csum_start": 20,
              "csum_offset": 16, **change}
    result = _core.split(Vnet(**fields).emit() + GOOD[VNET.size:])
    if change == {"csum_start": 21}:    # inside the packet; the TCP header it finds is absurd
        assert result is None or all(len(packet) <= 3040 for packet in result)
    else:
        assert result is None


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_small(data):
    result = _core.split(data)
    assert result is None or sum(map(len, result)) <= 200 * 200


@given(vnet=st.builds(Vnet, st.integers(0, 3), st.integers(0, 255), st.integers(0, 65535),
                      st.integers(0, 65535), st.integers(0, 200), st.integers(0, 40),
                      st.integers(0, 60), st.integers(0, 100)),
       cut=st.integers(0, 120), v6=st.booleans(), is_tunnel=st.booleans())
def test_lying_headers_of_real_packets_never_go_out_of_bounds(vnet, cut, v6, is_tunnel):
    pair = PAIRS["v6" if v6 else "v4"]
    packet = tcp(*pair, bytes(100))
    if is_tunnel:
        packet = vxlan(*pair, packet)
    result = _core.split(vnet.emit() + packet[:len(packet) - cut])
    for segment in result or ():
        assert len(segment) <= len(packet)
