"""A peer that has the keys and lies: anything inside lane messages, sessions and the upgrade.

Whatever comes, what is written to the interface is well formed: a vnet header that the kernel
can believe, in front of whole IP packets from the peer's addresses; and each message has a
verdict.
"""

from __future__ import annotations

import atexit

from fastpump import _core
from fastpump.protocol import lane_messages
from fuzz.common import mutated, telling
from support import plainlanes
from support.packets import (
    A4,
    A6,
    B4,
    B6,
    NEEDS_CSUM,
    PLAIN,
    TCP,
    UDP,
    VNET,
    Vnet,
    checksum,
    ip,
    parse_vnet,
    partial,
    pseudo,
    superpacket,
    tcp,
    udp,
    vxlan,
    vxlan_superpacket,
)
from support.plainlanes import ASK, BUNDLE, FENCE, PARTIAL, RECORD
from support.pumps import START, lane_pair, message

SOURCES = {bytes([10, 9, 0, 2]), bytes.fromhex("fd000009") + bytes(11) + b"\2"}
_ENDS: dict[str, tuple] = {}


def ends(cipher):
    """Two ends that are kept for all cases: to make them takes a thousand cases' time. What came
    too late for the case before, as it does on a busy machine, is not this one's."""
    if cipher not in _ENDS:
        _ENDS[cipher] = lane_pair(count=2, cipher=cipher)
        for end in _ENDS[cipher]:
            atexit.register(end.close)
    for end in _ENDS[cipher]:
        datagrams(end)
        end.take()
    return _ENDS[cipher]


def random_packet(rng):
    """A packet, mostly one that could be; whether its checksum is partial."""
    source, destination = rng.choice(((B4, A4), (B4, A4), (B6, A6), (A4, B4), ("10.9.0.7", A4)))
    size = rng.choice((0, 1, 7, 8, 9, 19, 20, 40, 100, 300, 1300))
    what = rng.randrange(8)
    l4_at = 40 if ":" in source else 20
    if what < 3:
        packet = tcp(source, destination, rng.randbytes(size), seq=1 + size * rng.randrange(3),
                     ident=rng.randrange(4), flags=rng.choice((16, 16, 24, 2, 1, 255)))
        if rng.random() < 0.5:
            return partial(packet, l4_at, 16), True
    elif what < 5:
        packet = udp(source, destination, rng.randbytes(size), ident=rng.randrange(4))
        if rng.random() < 0.5:
            return partial(packet, l4_at, 6), True
    elif what == 5:
        packet = ip(source, destination, rng.choice((TCP, UDP, 1, 0, 255)), rng.randbytes(size))
    elif what == 6 and ":" not in source:
        packet = ip(source, destination, rng.choice((TCP, UDP)), rng.randbytes(size),
                    more_fragments=rng.random() < 0.5, offset=8 * rng.randrange(3), df=False,
                    options=bytes(4 * rng.randrange(11)))
    else:
        packet = rng.randbytes(size)
    if rng.random() < 0.25:
        packet = mutated(rng, packet)
    return packet, rng.random() < 0.4


def random_payload(rng):
    """(flags, payload) of a lane message."""
    flags = rng.choice((0, 0, PARTIAL, BUNDLE, BUNDLE, PARTIAL | BUNDLE, ASK, PARTIAL | RECORD,
                        rng.randrange(256)))
    packets = [random_packet(rng) for _ in range(rng.choice((1, 1, 2, 3, 9)))]
    if flags & BUNDLE and rng.random() < 0.95:
        payload = plainlanes.bundle(packets)
        if rng.random() < 0.3:
            payload = mutated(rng, payload)
    elif flags & RECORD and rng.random() < 0.95:
        payload = parse_vnet(superpacket(rng.choice((tcp, udp))(
            *rng.choice(((B4, A4), (B6, A6))), rng.randbytes(rng.choice((90, 3000, 30_000)))),
            1300))[1]
        if rng.random() < 0.3:
            payload = mutated(rng, payload[:80]) + payload[80:]
    else:
        payload = packets[0][0]
    if rng.random() < 0.05:
        payload = b""
    return flags, payload[:60000]


def check_written(data):
    """What the kernel needs to be true of a write (virtio_net_hdr_to_skb(), tun_get_user())."""
    vnet, packet = parse_vnet(data)
    version = packet[0] >> 4
    assert version in (4, 6)
    if version == 4:
        header_len, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        source, protocol = packet[12:16], packet[9]
    else:
        header_len, total = 40, 40 + int.from_bytes(packet[4:6], "big")
        source, protocol = packet[8:24], packet[6]
    assert header_len <= total == len(packet)
    assert source in SOURCES
    assert vnet.flags in (0, 1)
    if vnet.flags == 0:
        assert (vnet.gso_type, vnet.gso_size, vnet.csum_start, vnet.csum_offset) == (0, 0, 0, 0)
        return
    assert vnet.csum_start == header_len and protocol in (TCP, UDP)
    assert vnet.csum_offset == (16 if protocol == TCP else 6)
    assert vnet.csum_start + (20 if protocol == TCP else 8) <= len(packet)
    if vnet.gso_type:
        assert vnet.gso_type == (5 if protocol == UDP else 1 if version == 4 else 4)
        assert 0 < vnet.gso_size < len(packet) - vnet.hdr_len
        assert vnet.hdr_len == header_len + (8 if protocol == UDP else
                                             4 * (packet[header_len + 12] >> 4))
        assert _core.split(data) is not None


def check_lanes(rng):
    """Lane messages with the right keys and anything inside; sessions with control packets."""
    cipher = rng.choice(("aes-256-gcm", "chacha20-poly1305"))
    one, two = ends(cipher)
    lanes = [two.plain(number, cipher=lane_messages.CIPHER_NUMBERS[cipher]) for number in range(2)]
    inputs = []
    before = one.tables.workers.counters(0)
    with telling(inputs):
        for _ in range(rng.randint(1, 6)):
            if rng.random() < 0.1:
                inner = random_control(rng, one)
                inputs.append(("session", inner.hex()))
                counter = one.tables.keypairs.take_counter(one.slot, one.index)
                two.udp.sendto(message(one, counter, inner), one.udp.getsockname())
                continue
            lane = rng.choice(lanes)
            flags, payload = random_payload(rng)
            wire = lane.seal(payload, flags, counter=two.take_counter(lane.number),
                             segment_size=rng.choice((1300, 1300, 60, 1, rng.randrange(65536))))
            if rng.random() < 0.15:
                wire = mutated(rng, wire)
            inputs.append((lane.number, flags, wire.hex()))
            if len(wire) > 2:
                two.udp.sendto(wire[:60000], one.lane_sockets[lane.number].getsockname())
        one.poll(START)
        one.poll(START + 25_000_000)        # what was held goes on
        for data in one.take():
            check_written(data)
        one.events()
        for _, _, data in one.tables.workers.controls(0):
            lane_messages.parse(data)
        after = one.tables.workers.counters(0)
        assert not {name for name, n in after["verdicts"].items()
                    if n != before["verdicts"][name]} & {
                        "FAILED_TUN_GSO", "DROP_INTERFACE_ERROR", "DROP_INTERFACE_DOWN"}


def random_control(rng, end):
    """A control packet, an END, or neither."""
    what = rng.randrange(5)
    if what == 0:
        return plainlanes.end(rng.choice((end.lanes_index, rng.getrandbits(32))),
                              rng.choice((0, 1, 2, 65535)))
    if what == 1:
        return b"\xf0" + rng.randbytes(rng.choice((0, 1, 9, 10, 40, 1500, 1600)))
    fields = {rng.randrange(14): rng.randbytes(rng.choice((0, 1, 2, 4, 1088, 1184)))
              for _ in range(rng.randrange(9))}
    data = plainlanes.control(rng.randrange(8), fields)
    return mutated(rng, data) if rng.random() < 0.5 else data[:1500]


def check_egress(rng):
    """Anything that the kernel might hand over: what leaves opens, in order, and is whole."""
    one, two = ends("aes-256-gcm")
    lanes = {number: two.plain(number) for number in range(2)}
    inputs = []
    with telling(inputs):
        for _ in range(rng.randint(1, 8)):
            data = random_read(rng)
            inputs.append(data.hex())
            one.interface.send(data)
        one.poll(START)
        for wire in datagrams(two):
            if wire[0] != 5:
                continue
            flags, payload = lanes[wire[2]].open(wire)
            assert not flags & ~(PARTIAL | BUNDLE | FENCE)
            for packet, is_partial in plainlanes.packets_of(flags, payload):
                assert packet[0] >> 4 in (4, 6)
                header_len = 40 if packet[0] >> 4 == 6 else (packet[0] & 15) * 4
                protocol = packet[6] if packet[0] >> 4 == 6 else packet[9]
                if is_partial:
                    assert protocol in (TCP, UDP)
                    assert len(packet) >= header_len + (20 if protocol == TCP else 8)
        for data in one.take():
            check_answer(data)
        one.events()


def check_answer(data):
    """Nobody is there: that is all that may be written for a packet from the interface."""
    vnet, packet = data[:VNET.size], data[VNET.size:]
    assert vnet == PLAIN
    if packet[0] == 0x45:
        assert len(packet) == int.from_bytes(packet[2:4], "big") <= 576
        assert packet[9] == 1 and packet[20:22] == b"\3\1"
        assert checksum(packet[:20]) == checksum(packet[20:]) == 0
    else:
        assert len(packet) == 40 + int.from_bytes(packet[4:6], "big") <= 1280
        assert packet[0] >> 4 == 6 and packet[6] == 58 and packet[40:42] == b"\1\3"
        assert checksum(pseudo(packet[8:24], packet[24:40], 58, len(packet) - 40)
                        + packet[40:]) == 0


def random_read(rng):
    """Vnet header and packet, as the kernel would give it, or nearly."""
    size = rng.choice((0, 1, 8, 100, 600, 1500, 5000, 30000))
    source, destination = rng.choice(((A4, B4), (A6, B6)))
    make = rng.choice((tcp, udp))
    packet = make(source, destination, rng.randbytes(size), ident=rng.randrange(4))
    what = rng.randrange(5)
    if what == 0:
        data = PLAIN + packet
    elif what == 1:
        l4_at, check_at = 20 if source == A4 else 40, 16 if make is tcp else 6
        data = Vnet(NEEDS_CSUM, csum_start=l4_at, csum_offset=check_at).emit() + partial(
            packet, l4_at, check_at)
    else:
        gso_size = rng.choice((1, 100, 536, 1348, 1428, 9000))
        if rng.random() < 0.5 and size > 5000:
            gso_size = 1348
        data = superpacket(packet, gso_size) if what < 4 else vxlan_superpacket(
            vxlan(*rng.choice(((A4, B4), (A6, B6))), packet), gso_size,
            has_checksum=rng.random() < 0.5)
    if rng.random() < 0.2:
        headers = VNET.size + (60 if what < 4 else 130)
        data = mutated(rng, data[:headers]).ljust(VNET.size, b"\0") + data[headers:]
    return data[:VNET.size + 65535]


def datagrams(end):
    """What has come to an end's sockets, not taken by its worker."""
    found = []
    for sock in (end.udp, *end.lane_sockets):
        while True:
            try:
                data, control, _, _ = sock.recvmsg(1 << 17, 100)
            except BlockingIOError:
                break
            size = next((int.from_bytes(value, "little") for _, kind, value in control
                         if kind == 104), len(data))
            found += [data[at:at + size] for at in range(0, len(data), size)]
    return found
