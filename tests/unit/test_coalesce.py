"""Coalescing merges what the kernel's GRO would have merged, and nothing else."""

import struct

import pytest
from hypothesis import given, settings
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
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PLAIN,
    PSH,
    RST,
    SYN,
    UDP,
    URG,
    VNET,
    Vnet,
    ip,
    parse_vnet,
    superpacket,
    tcp,
    udp,
)

PAIRS = {"v4": (A4, B4), "v6": (A6, B6)}
TIMESTAMPS = b"\x01\x01\x08\x0a" + bytes(8)


def lengths(packets, **kwargs):
    """How many packets each write holds."""
    counts = []
    for written in _core.coalesce(packets, **kwargs):
        vnet, packet = parse_vnet(written)
        if vnet.gso_type == 0:
            assert written[:VNET.size] == PLAIN
            counts.append(1)
        else:
            is_v6 = packet[0] >> 4 == 6
            header = 40 if is_v6 else 20
            header += 8 if vnet.gso_type == GSO_UDP_L4 else (packet[header + 12] >> 4) * 4
            counts.append(-(-(len(packet) - header) // vnet.gso_size))
    return counts


def stream(count, size=100, *, pair=(A4, B4), seq=1, ident=1, **more):
    """`count` contiguous TCP packets."""
    return [tcp(*pair, bytes([i]) * size, seq=seq + i * size, ident=ident + i, **more)
            for i in range(count)]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_tcp_becomes_the_superpacket_that_was(pair):
    whole = tcp(*pair, bytes(range(200)) * 5, seq=77, flags=ACK | PSH, options=TIMESTAMPS, ident=5)
    packets = _core.split(superpacket(whole, 300))
    (written,) = _core.coalesce(packets)
    vnet, packet = parse_vnet(written)
    expected_vnet, expected = parse_vnet(superpacket(whole, 300))
    header = (40 if len(pair[0]) > 8 else 20) + 32
    assert packet == expected
    assert vnet == Vnet(NEEDS_CSUM, expected_vnet.gso_type, header, 300, header - 32, 16)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_udp_becomes_the_superpacket_that_was(pair):
    whole = udp(*pair, bytes(range(250)) * 4, ident=5)
    packets = _core.split(superpacket(whole, 300))
    (written,) = _core.coalesce(packets)
    vnet, packet = parse_vnet(written)
    assert packet == parse_vnet(superpacket(whole, 300))[1]
    assert (vnet.gso_type, vnet.gso_size, vnet.csum_offset) == (GSO_UDP_L4, 300, 6)


def changed(packets, number, **more):
    """The same stream with one packet built differently."""
    return [tcp(A4, B4, bytes([i]) * 100, **{"seq": 1 + i * 100, "ident": 1 + i,
                                            **(more if i == number else {})})
            for i in range(len(packets))]


S = stream(4)
TCP_TABLE = [
    ("contiguous", S, [4]),
    ("gap", [S[0], S[2], S[3]], [1, 2]),
    ("swapped", [S[1], S[0], S[2]], [1, 1, 1]),
    ("twice", [S[0], S[0], S[1]], [1, 2]),
    ("short segment ends", [*stream(2), *stream(1, 50, seq=201, ident=3),
                            *stream(2, 50, seq=251, ident=4)], [3, 2]),
    ("longer starts anew", [*stream(1, 50), *stream(2, 100, seq=51, ident=2)], [1, 2]),
    ("PSH ends, inclusive", changed(S, 1, flags=ACK | PSH), [2, 2]),
    ("PSH on the first", changed(S, 0, flags=ACK | PSH), [1, 3]),
    ("FIN ends, inclusive", changed(S, 2, flags=ACK | FIN), [3, 1]),
    ("SYN", changed(S, 1, flags=ACK | SYN), [1, 1, 2]),
    ("RST", changed(S, 1, flags=ACK | RST), [1, 1, 2]),
    ("URG", changed(S, 1, flags=ACK | URG), [1, 1, 2]),
    ("CWR", changed(S, 1, flags=ACK | CWR), [1, 1, 2]),
    ("no ACK", changed(S, 1, flags=0), [1, 1, 2]),
    ("ECE differs", changed(S, 1, flags=ACK | ECE), [1, 1, 2]),
    ("ECE on all", stream(4, flags=ACK | ECE), [4]),
    ("acknowledgement differs", changed(S, 2, ack=8), [2, 1, 1]),
    ("window differs", changed(S, 2, window=501), [2, 1, 1]),
    ("TTL differs", changed(S, 2, ttl=63), [2, 1, 1]),
    ("ECN mark differs", changed(S, 2, tos=3), [2, 1, 1]),
    ("DF differs", changed(S, 2, df=False), [2, 1, 1]),
    ("id jumps", changed(S, 2, ident=99), [2, 1, 1]),
    ("fixed ids with DF", [tcp(A4, B4, bytes(100), seq=1 + 100 * i, ident=0) for i in range(3)],
     [3]),
    ("fixed ids without DF", [tcp(A4, B4, bytes(100), seq=1 + 100 * i, ident=7, df=False)
                              for i in range(3)], [1, 1, 1]),
    ("ids count without DF", stream(3, df=False), [3]),
    ("ids wrap", stream(3, ident=65535), [3]),
    ("options differ", changed(S, 2, options=TIMESTAMPS), [2, 1, 1]),
    ("a fragment", changed(S, 1, more_fragments=True, df=False), [1, 1, 2]),
    ("wrong checksum on the first", changed(S, 0, bad_checksum=True), [1, 3]),
    ("wrong checksum inside", changed(S, 1, bad_checksum=True), [1, 1, 2]),
    ("wrong IP header checksum", [S[0], S[1][:10] + b"\0\0" + S[1][12:], S[2]], [1, 1, 1]),
    ("pure ACK ends", [S[0], tcp(A4, B4, b"", seq=101, ident=2), S[1]], [1, 1, 1]),
    ("sequence wraps", stream(3, seq=2**32 - 150), [3]),
    ("another port between", [S[0], tcp(A4, B4, b"x", sport=7), S[1]], [2, 1]),
    ("IP options", [ip(A4, B4, 6, packet[20:], options=bytes(4), ident=i)
                    for i, packet in enumerate(S)], [1, 1, 1, 1]),
]


@pytest.mark.parametrize(("packets", "expected"), [row[1:] for row in TCP_TABLE],
                         ids=[row[0] for row in TCP_TABLE])
def test_tcp_table(packets, expected):
    assert lengths(packets) == expected


def datagrams(sizes, **more):
    return [udp(A4, B4, bytes(size), ident=1 + i, **more) for i, size in enumerate(sizes)]


UDP_TABLE = [
    ("equal", datagrams([100] * 5), [5]),
    ("short one ends", datagrams([100, 100, 60, 60, 60]), [3, 2]),
    ("longer starts anew", datagrams([60, 100, 100]), [1, 2]),
    ("at most 64", datagrams([10] * 130), [64, 64, 2]),
    ("no checksum", datagrams([100, 100], no_checksum=True), [1, 1]),
    ("wrong checksum", [*datagrams([50, 50]), udp(A4, B4, bytes(50), ident=3, bad_checksum=True),
                        udp(A4, B4, bytes(50), ident=4)], [2, 1, 1]),
    ("empty", datagrams([0, 0]), [1, 1]),
    ("length lies", [ip(A4, B4, UDP, struct.pack("!HHHH", 1, 2, 50, 9) + bytes(10), ident=i)
                     for i in range(2)], [1, 1]),
    ("ids apart without DF", [udp(A4, B4, bytes(9), ident=i * 5, df=False) for i in range(3)],
     [1, 1, 1]),
    ("fragments", [udp(A4, B4, bytes(16), ident=i, df=False, more_fragments=True)
                   for i in range(3)], [1, 1, 1]),
]


@pytest.mark.parametrize(("packets", "expected"), [row[1:] for row in UDP_TABLE],
                         ids=[row[0] for row in UDP_TABLE])
def test_udp_table(packets, expected):
    assert lengths(packets) == expected


def test_ipv6_headers_must_match():
    for more in ({"flow_label": 5}, {"tos": 3}, {"ttl": 9}):
        packets = [tcp(A6, B6, bytes(9)), tcp(A6, B6, bytes(9), seq=10, **more)]
        assert lengths(packets) == [1, 1]


def test_a_superpacket_never_exceeds_64_kib():
    packets = stream(60, 1400)
    assert lengths(packets) == [46, 14]
    assert all(len(written) <= 65535 + 10 for written in _core.coalesce(packets))


def test_two_flows_interleaved_are_both_merged():
    one = stream(5)
    two = stream(5, pair=(A6, B6))
    assert lengths([packet for pair in zip(one, two, strict=True) for packet in pair]) == [5, 5]


@pytest.mark.parametrize(("pair", "kind"), [((A4, B4), "tun-tcp4"), ((A6, B6), "tun-tcp6")])
def test_each_offload_has_its_switch(pair, kind):
    others = [name for name in _core.OFFLOAD_BITS if name != kind]
    assert lengths(stream(3, pair=pair), offloads=others) == [1, 1, 1]
    assert lengths(stream(3, pair=pair), offloads=[kind]) == [3]


def test_gso_types():
    types = {parse_vnet(_core.coalesce(packets)[0])[0].gso_type for packets in (
        stream(2), stream(2, pair=(A6, B6)), datagrams([5, 5]))}
    assert types == {GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4}


@settings(max_examples=300)
@given(is_tcp=st.booleans(), pair=st.sampled_from(list(PAIRS.values())),
       segment=st.integers(1, 1500), count=st.integers(2, 64), short=st.integers(0, 1499),
       options=st.sampled_from([b"", TIMESTAMPS, b"\x01" * 40]), seq=st.integers(0, 2**32 - 1),
       ident=st.integers(0, 65535), flags=st.sampled_from([0, PSH, FIN, PSH | FIN, ECE]),
       fill=st.binary(min_size=1, max_size=9))
def test_coalescing_what_was_split_gives_the_superpacket_back(
        is_tcp, pair, segment, count, short, options, seq, ident, flags, fill):
    """Byte for byte, for any sizes, odd ones too."""
    size = min(segment * (count - 1) + 1 + short % segment, 65000)
    if size <= segment:
        size = segment + 1
    payload = (fill * (size // len(fill) + 1))[:size]
    if is_tcp:
        whole = tcp(*pair, payload, seq=seq, ident=ident, flags=ACK | flags, options=options)
    else:
        whole = udp(*pair, payload, ident=ident)
    given_vnet, given_packet = parse_vnet(superpacket(whole, segment))
    (written,) = _core.coalesce(_core.split(superpacket(whole, segment)))
    vnet, packet = parse_vnet(written)
    assert packet == given_packet
    assert (vnet.flags, vnet.gso_type, vnet.gso_size, vnet.csum_start, vnet.csum_offset) == (
        given_vnet.flags, given_vnet.gso_type, segment, given_vnet.csum_start,
        given_vnet.csum_offset)


@settings(max_examples=200)
@given(st.data())
def test_splitting_what_was_coalesced_gives_the_packets_back(data):
    """Whatever the mix of flows, flags and damage: nothing is lost, changed or reordered
    inside a flow."""
    packets, seqs = [], {}
    for i in range(data.draw(st.integers(1, 30))):
        port = data.draw(st.integers(1, 3))
        size = data.draw(st.sampled_from([0, 40, 100, 100, 100]))
        v6 = data.draw(st.booleans())
        pair = PAIRS["v6" if v6 else "v4"]
        if data.draw(st.booleans()):
            seq = seqs.get((port, v6), 1)
            seqs[port, v6] = seq + size
            packets.append(tcp(*pair, bytes([i]) * size, sport=port, seq=seq, ident=seq // 100,
                               flags=ACK | data.draw(st.sampled_from([0, 0, 0, PSH, FIN, ECE])),
                               bad_checksum=data.draw(st.integers(0, 9)) == 0))
        else:
            packets.append(udp(*pair, bytes([i]) * size, sport=port, ident=i))
    def flow(packet):
        at = 40 if packet[0] >> 4 == 6 else 20
        return packet[0], packet[at:at + 4], packet[6 if at == 40 else 9]

    def comparable(packet):
        # Ids of DF packets carry no meaning, and a superpacket has only one to count from.
        return packet if packet[0] >> 4 == 6 else packet[:4] + packet[6:10] + packet[12:]

    out = [packet for written in _core.coalesce(packets) for packet in _core.split(written)]
    assert sorted(map(comparable, out)) == sorted(map(comparable, packets))
    for key in set(map(flow, packets)):
        assert [comparable(p) for p in out if flow(p) == key] == [
            comparable(p) for p in packets if flow(p) == key]
