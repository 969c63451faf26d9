"""Frames: anything from the interface of a TAP, and anything from a peer that has the keys and
lies, at a side that switches and relays.

Whatever comes, what is written to the interface is a frame behind a vnet header that the kernel
can believe; what is sent to the other peers opens and is whole frames; the table of addresses
keeps its bounds; and it ends: nothing goes round for ever.
"""

from __future__ import annotations

import atexit

from fastpump import _core
from fuzz.common import mutated, telling
from fuzz.lanes import random_packet, random_read
from support import plainlanes
from support.packets import TCP, UDP, frame, framed, parse_vnet
from support.plainlanes import BUNDLE, FENCE, FRAME, PARTIAL, RELAY
from support.pumps import START
from support.sites import network

_SITES: list[dict] = []
LIMIT, PER_PEER = 200, 80


def sites():
    """A hub between two spokes that know each other, too, kept for all cases."""
    if not _SITES:
        _SITES.append(network(*"abc", relays="b", mac_limit=LIMIT, per_peer=PER_PEER,
                              storm_limit=1000))
        for site in _SITES[0].values():
            atexit.register(site.close)
    return _SITES[0]


def random_mac(rng):
    what = rng.randrange(8)
    if what == 0:
        return "ff:ff:ff:ff:ff:ff"
    if what == 1:
        return rng.randbytes(6).hex(":")
    return f"02:00:00:00:{rng.choice((0, 0, 0, 1)):02x}:{rng.randrange(9):02x}"


def random_link(rng):
    """An Ethernet header, mostly one for IP."""
    vlans = tuple(rng.choice((0, 1, 7, 4095)) for _ in range(rng.choice((0, 0, 0, 1, 2, 5))))
    ethertype = rng.choice((0x0800, 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x9100, 0, 1500))
    return frame(random_mac(rng), random_mac(rng), b"", vlans=vlans, ethertype=ethertype)


def random_frame(rng):
    """A frame, mostly; whether its checksum is partial."""
    packet, is_partial = random_packet(rng)
    data = random_link(rng)
    if packet and data[-2:] in (b"\x08\0", b"\x86\xdd"):
        data = data[:-2] + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\0")
    data += packet + bytes(rng.choice((0, 0, 0, 1, 18)))
    if rng.random() < 0.1:
        data = mutated(rng, data)
    return data, is_partial


def random_payload(rng):
    """(flags, payload) of a lane message."""
    flags = FRAME | rng.choice((0, 0, PARTIAL, BUNDLE, BUNDLE, RELAY, RELAY, RELAY | PARTIAL,
                                rng.randrange(256)))
    if rng.random() < 0.05:
        flags &= ~FRAME
    frames = [random_frame(rng) for _ in range(rng.choice((1, 1, 2, 5)))]
    payload = plainlanes.bundle(frames) if flags & BUNDLE else frames[0][0]
    if flags & RELAY and rng.random() < 0.95:
        payload = plainlanes.relay_header(rng.choice((0, rng.randrange(9), rng.getrandbits(56))),
                                          rng.choice((0, 0, 1, 7, 8, 9, 255)),
                                          rng.choice((bytes(8), plainlanes.origin(b"b"),
                                                      plainlanes.origin(b"c")))) + payload
    if rng.random() < 0.1:
        payload = mutated(rng, payload)
    return flags, payload[:60000]


def ip_at(data):
    """Where the IP header of a frame is, and its version; or None."""
    at = 12
    for _ in range(5):
        ethertype = data[at:at + 2]
        if ethertype in (b"\x81\0", b"\x88\xa8", b"\x91\0"):
            at += 4
        elif ethertype in (b"\x08\0", b"\x86\xdd"):
            return at + 2, 4 if ethertype == b"\x08\0" else 6
    return None


def check_written(data):
    """As fuzz.lanes has it, behind an Ethernet header."""
    vnet, whole = parse_vnet(data)
    assert len(whole) >= 14 and not whole[6] & 1
    if vnet.flags == 0:
        assert (vnet.gso_type, vnet.gso_size, vnet.csum_start, vnet.csum_offset) == (0, 0, 0, 0)
        return
    at, version = ip_at(whole)
    header_len = 40 if version == 6 else (whole[at] & 15) * 4
    protocol = whole[at + 6] if version == 6 else whole[at + 9]
    assert vnet.flags == 1 and protocol in (TCP, UDP)
    assert vnet.csum_start == at + header_len
    assert vnet.csum_offset == (16 if protocol == TCP else 6)
    assert vnet.csum_start + (20 if protocol == TCP else 8) <= len(whole)
    if vnet.gso_type:
        assert vnet.gso_type == (5 if protocol == UDP else 1 if version == 4 else 4)
        assert 0 < vnet.gso_size < len(whole) - vnet.hdr_len
        parts = _core.split(data, is_frame=True)
        assert parts and all(part[:at] == whole[:at] for part in parts)


def check_sent(flags, payload):
    """What a lane of an honest side carries."""
    assert not flags & ~(PARTIAL | BUNDLE | FENCE | FRAME | RELAY)
    if not payload:
        return
    assert flags & FRAME
    if flags & RELAY:
        assert not flags & BUNDLE
        name, hops, _, payload = plainlanes.parse_relay(payload)
        assert (name or hops) and hops <= 8
    for data, is_partial in plainlanes.packets_of(flags, payload):
        assert len(data) >= 14 and not data[6] & 1
        assert not is_partial or ip_at(data) is not None


def check_frames(rng):
    """A liar at a; b switches and relays; c listens."""
    world = sites()
    a, b, c = (world[name] for name in "abc")
    now = START + rng.randrange(100) * 1_000_000_000
    inputs = []
    with telling(inputs):
        for _ in range(rng.randint(1, 6)):
            if rng.random() < 0.4:
                data = random_read(rng)
                if len(data) > 10 and rng.random() < 0.9:
                    data = framed(data, random_link(rng))
                if rng.random() < 0.2:
                    data = mutated(rng, data[:90]) + data[90:]
                inputs.append(("interface", data.hex()))
                b.interface.send(data[:65545])
            else:
                flags, payload = random_payload(rng)
                inputs.append(("peer", flags, payload.hex()))
                a.lie("b", payload, flags)
        b.poll(now)
        b.poll(now)
        for data in b.take():
            check_written(data)
        for site in (a, c):
            for opened in site.wire("b"):
                check_sent(*opened)
        count, local, by_peer = b.tables.fdb.counts()
        assert count <= LIMIT and local <= PER_PEER
        assert all(n <= PER_PEER for n in by_peer.values())
        b.tables.fdb.sweep(now)
        assert b.tables.fdb.counts()[0] == len(b.tables.fdb.entries(now)) <= count
        assert not set(b.verdicts()) & {
            "FAILED_TUN_GSO", "DROP_INTERFACE_ERROR", "DROP_INTERFACE_DOWN"}
        b.tables.workers.events(0)
        if rng.random() < 0.02:
            b.tables.fdb.flush()
