"""Build and take apart packets, independently of the code under test (RFC 791, 8200,
793, 768, 1071). Headers are plain; checksums are right unless asked otherwise."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
VNET = struct.Struct("=BBHHHH10xHH")     # struct virtio_net_hdr_v1_hash_tunnel
NEEDS_CSUM, OUTER_CSUM = 1, 8
GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 1, 4, 5, 0x80
GSO_IN_UDP4, GSO_IN_UDP6 = 0x20, 0x40
VXLAN_PORT = 4789

A4, B4 = "10.9.0.1", "10.9.0.2"
A6, B6 = "fd00:9::1", "fd00:9::2"


def checksum(data: bytes) -> int:
    """RFC 1071, complemented."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """The pseudo-header of TCP and UDP."""
    return src + dst + struct.pack("!II", length, protocol)


def ip(src: str, dst: str, protocol: int, payload: bytes, *, ident: int = 1, df: bool = True,
       ttl: int = 64, tos: int = 0, more_fragments: bool = False, offset: int = 0,
       options: bytes = b"", flow_label: int = 0) -> bytes:
    """An IPv4 or IPv6 packet."""
    source, destination = ipaddress.ip_address(src), ipaddress.ip_address(dst)
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28 | tos << 20 | flow_label, len(payload), protocol,
                           ttl) + source.packed + destination.packed + payload
    flags = df << 14 | more_fragments << 13 | offset // 8
    header_len = 20 + len(options)
    header = struct.pack("!BBHHHBBH", 0x40 | header_len // 4, tos, header_len + len(payload),
                         ident & 0xFFFF, flags, ttl, protocol, 0)
    header += source.packed + destination.packed + options
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return header + payload


def l4_checksum(src: str, dst: str, protocol: int, segment: bytes) -> int:
    """The complete checksum of a segment whose checksum field is zero."""
    source, destination = (ipaddress.ip_address(text).packed for text in (src, dst))
    check = checksum(pseudo(source, destination, protocol, len(segment)) + segment)
    return check or (0xFFFF if protocol == UDP else 0)


def tcp(src: str, dst: str, payload: bytes, *, sport: int = 1000, dport: int = 2000, seq: int = 1,
        ack: int = 7, flags: int = ACK, window: int = 500, options: bytes = b"",
        bad_checksum: bool = False, **more: object) -> bytes:
    """A TCP packet."""
    header = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack,
                         (20 + len(options)) // 4 << 4, flags, window, 0, 0) + options
    check = l4_checksum(src, dst, TCP, header + payload) ^ bad_checksum
    segment = header[:16] + struct.pack("!H", check) + header[18:] + payload
    return ip(src, dst, TCP, segment, **more)  # type: ignore[arg-type]


def udp(src: str, dst: str, payload: bytes, *, sport: int = 1000, dport: int = 2000,
        bad_checksum: bool = False, no_checksum: bool = False, **more: object) -> bytes:
    """A UDP packet."""
    header = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    check = 0 if no_checksum else l4_checksum(src, dst, UDP, header + payload) ^ bad_checksum
    return ip(src, dst, UDP, header[:6] + struct.pack("!H", check) + payload,
              **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Vnet:
    """A virtio-net header."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    outer_l4_at: int = 0
    inner_ip_at: int = 0

    def emit(self) -> bytes:
        """24 bytes, native order."""
        return VNET.pack(self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start,
                         self.csum_offset, self.outer_l4_at, self.inner_ip_at)


PLAIN = Vnet().emit()


def parse_vnet(data: bytes) -> tuple[Vnet, bytes]:
    """Take a written or read packet apart."""
    return Vnet(*VNET.unpack(data[:VNET.size])), data[VNET.size:]


def partial(packet: bytes, l4_at: int, check_at: int, *, source: str | None = None,
            destination: str | None = None) -> bytes:
    """The packet with its checksum field as CHECKSUM_PARTIAL has it: the pseudo-header's
    sum, not complemented. Its addresses are the IP header's unless given."""
    is_v6 = packet[0] >> 4 == 6
    src, dst = (packet[8:24], packet[24:40]) if is_v6 else (packet[12:16], packet[16:20])
    if source is not None:
        src = ipaddress.ip_address(source).packed
    if destination is not None:
        dst = ipaddress.ip_address(destination).packed
    protocol = TCP if check_at == 16 else UDP
    total = ~checksum(pseudo(src, dst, protocol, len(packet) - l4_at)) & 0xFFFF
    at = l4_at + check_at
    return packet[:at] + struct.pack("!H", total) + packet[at + 2:]


def superpacket(packet: bytes, gso_size: int, *, l4_at: int | None = None,
                ecn: bool = False) -> bytes:
    """Vnet header and superpacket, as the kernel hands it over, of one big packet."""
    is_v6 = packet[0] >> 4 == 6
    if l4_at is None:
        l4_at = 40 if is_v6 else (packet[0] & 15) * 4
    is_tcp = (packet[6] if is_v6 else packet[9]) == TCP
    check_at = 16 if is_tcp else 6
    gso = GSO_UDP_L4 if not is_tcp else GSO_TCPV6 if is_v6 else GSO_TCPV4
    vnet = Vnet(NEEDS_CSUM, gso | (GSO_ECN if ecn else 0), 0, gso_size, l4_at, check_at)
    return vnet.emit() + partial(packet, l4_at, check_at)


def vxlan(src: str, dst: str, inner: bytes, *, vni: int = 7, **more: object) -> bytes:
    """A VXLAN packet (RFC 7348) with an Ethernet frame of that packet in it."""
    header = struct.pack("!II", 0x08000000, vni << 8)
    return udp(src, dst, header + frame("02:00:00:00:00:0b", "02:00:00:00:00:0a", inner),
               sport=40000, dport=VXLAN_PORT, **more)


def vxlan_superpacket(whole: bytes, gso_size: int, *, has_checksum: bool = True) -> bytes:
    """Vnet header and superpacket, as the kernel hands it over, of one big VXLAN packet."""
    is_v6 = whole[0] >> 4 == 6
    udp_at = 40 if is_v6 else 20
    inner_at = udp_at + 8 + 8 + 14
    vnet, inner = parse_vnet(superpacket(whole[inner_at:], gso_size))
    outer = (partial(whole, udp_at, 6) if has_checksum else whole)[:inner_at]
    return Vnet(NEEDS_CSUM | (OUTER_CSUM if has_checksum else 0),
                vnet.gso_type | (GSO_IN_UDP6 if is_v6 else GSO_IN_UDP4), 0, gso_size,
                inner_at + vnet.csum_start, vnet.csum_offset, udp_at, inner_at).emit() \
        + outer + inner


def checksums_are_right(packet: bytes) -> bool:
    """Of a TCP or UDP packet over IP without extension headers."""
    if packet[0] >> 4 == 6:
        src, dst, protocol, l4 = packet[8:24], packet[24:40], packet[6], packet[40:]
        if struct.unpack("!H", packet[4:6])[0] != len(l4):
            return False
    else:
        header_len = (packet[0] & 15) * 4
        if checksum(packet[:header_len]) or struct.unpack("!H", packet[2:4])[0] != len(packet):
            return False
        src, dst, protocol, l4 = packet[12:16], packet[16:20], packet[9], packet[header_len:]
    if protocol == UDP and struct.unpack("!H", l4[4:6])[0] != len(l4):
        return False
    return checksum(pseudo(src, dst, protocol, len(l4)) + l4) == 0


# -- frames

def frame(destination: str, source: str, payload: bytes, *, vlans: tuple[int, ...] = (),
          ethertype: int | None = None, outer: int = 0x88A8) -> bytes:
    """An Ethernet frame: IP by its first nibble, unless told otherwise. Of several VLAN tags
    the outer ones are service tags."""
    if ethertype is None:
        ethertype = 0x86DD if payload[0] >> 4 == 6 else 0x0800
    tags = b"".join(struct.pack("!HH", 0x8100 if number == len(vlans) - 1 else outer, vlan)
                    for number, vlan in enumerate(vlans))
    return bytes.fromhex(destination.replace(":", "")) + bytes.fromhex(
        source.replace(":", "")) + tags + struct.pack("!H", ethertype) + payload


def framed(vnet_and_packet: bytes, link: bytes) -> bytes:
    """A superpacket, or packet with a vnet header, behind an Ethernet header (14 bytes or
    more, ending in the ethertype)."""
    vnet, packet = parse_vnet(vnet_and_packet)
    if vnet.flags & NEEDS_CSUM:
        vnet = Vnet(vnet.flags, vnet.gso_type, vnet.hdr_len and vnet.hdr_len + len(link) & 0xFFFF,
                    vnet.gso_size, vnet.csum_start + len(link) & 0xFFFF, vnet.csum_offset)
    return vnet.emit() + link + packet


def flip(data: bytes, at: int, bits: int = 1) -> bytes:
    """The data with bits of one byte changed."""
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1:]
