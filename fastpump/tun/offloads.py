"""Offloads of this kernel, probed once by really trying them.

By the names that `--offload NAME=off` takes:

    csum      the kernel leaves TCP and UDP checksums to us (TUN_F_CSUM)
    tso4 tso6 it hands over TCP superpackets (TUN_F_TSO4/6, with ECN)
    uso       it hands over UDP superpackets (TUN_F_USO4|6; Linux 6.2)
    tunnel    it hands over both as VXLAN and Geneve have packed them (TUN_F_UDP_TUNNEL_GSO; Linux
              6.17)
    gro       it takes superpackets that we coalesced
    udp-gso   one send carries many datagrams (UDP_SEGMENT; Linux 4.18)
    udp-gro   one receive brings many datagrams (UDP_GRO; Linux 5.0)
    partial   on lanes, checksums that the kernel left to us are left to the peer's kernel
    bundle    on lanes, small packets that wait together share a datagram
    records   on lanes, superpackets travel whole where the path allows it

Some kernels accept vnet headers and then fail superpackets, so each kind is written to
the interface before it is up: a kernel that takes it says EIO (interface down), one that
does not EINVAL. What the interface refuses later is switched off by the worker that notices; a path
that takes no UDP GSO does without (hot/gso.pxd).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastpump._core import (
    FEATURE_BUNDLE,
    FEATURE_PARTIAL,
    FEATURE_PATH_MTU,
    FEATURE_RECORDS,
)
from fastpump.kernel import (
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_TSO_ECN,
    TUN_F_UDP_TUNNEL_GSO,
    TUN_F_UDP_TUNNEL_GSO_CSUM,
    TUN_F_USO4,
    TUN_F_USO6,
    UDP_GRO,
    UDP_SEGMENT,
    VIRTIO_NET_HDR,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)
from fastpump.protocol import lane_messages
from fastpump.tun.queues import TunQueues

LANE_OFFLOADS = ("partial", "bundle", "records")
OFFLOAD_NAMES = ("csum", "tso4", "tso6", "uso", "tunnel", "gro", "udp-gso", "udp-gro",
                 *LANE_OFFLOADS)
LANE_CIPHERS = tuple(lane_messages.CIPHER_NUMBERS)


@dataclass(frozen=True, slots=True)
class Offloads:
    """The offloads in use, and how they go to the data plane."""

    names: tuple[str, ...]
    """Those of OFFLOAD_NAMES that are on."""
    hot: tuple[str, ...]
    """Names of _core.OFFLOAD_BITS."""
    has_udp_gro: bool
    lane_features: int
    """_core.FEATURE_* that peers may use."""


def _superpacket(kind: str, is_frame: bool) -> bytes:
    """A vnet header and a superpacket of two segments between documentation addresses."""
    is_tcp = kind.startswith("tun-tcp")
    l4_len, offset = (20, 16) if is_tcp else (8, 6)
    payload = bytes(200)
    if is_tcp:
        l4 = struct.pack("!HHIIBBHHH", 9, 9, 1, 1, 5 << 4, 0x10, 512, 0, 0)
    else:
        l4 = struct.pack("!HHHH", 9, 9, l4_len + len(payload), 0)
    if kind.endswith("4"):
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + l4_len + len(payload), 1, 0x4000, 64,
                         6 if is_tcp else 17, 0, b"\xc0\0\2\1", b"\xc0\0\2\2")
    else:
        address = bytes.fromhex("20010db8000000000000000000000001")
        ip = struct.pack("!IHBB16s16s", 6 << 28, l4_len + len(payload), 6 if is_tcp else 17, 64,
                         address, address)
    gso = (VIRTIO_NET_HDR_GSO_UDP_L4 if not is_tcp else VIRTIO_NET_HDR_GSO_TCPV4
           if kind.endswith("4") else VIRTIO_NET_HDR_GSO_TCPV6)
    link = b""
    if is_frame:        # between two MACs that no host has
        link = bytes(range(2, 14)) + (b"\x08\0" if kind.endswith("4") else b"\x86\xdd")
    vnet = VIRTIO_NET_HDR.pack(VIRTIO_NET_HDR_F_NEEDS_CSUM, gso, len(link + ip) + l4_len, 100,
                               len(link + ip), offset, 0, 0)
    return vnet + link + ip + l4 + payload


def _takes_superpacket(tun: TunQueues, kind: str) -> bool:
    try:
        os.write(tun.fds[0], _superpacket(kind, tun.is_tap))
    except OSError as error:
        return error.errno == errno.EIO
    return True


def _has_socket_option(option: int, value: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError:
            return False
    return True


def probe(tun: TunQueues, wanted: Mapping[str, bool]) -> Offloads:
    """Switch on what the kernel offers and the operator did not switch off.

    `tun` is not up yet. Without csum there is no tso, uso or gro: superpackets have
    partial checksums.
    """
    def is_allowed(name: str) -> bool:
        return wanted.get(name, True)

    names = _switch_on(tun, is_allowed)
    hot: list[str] = []
    if "csum" in names and is_allowed("gro"):
        hot += [kind for kind in ("tun-tcp4", "tun-tcp6", "tun-udp4", "tun-udp6")
                if _takes_superpacket(tun, kind)]
        if hot:
            names.append("gro")
    if is_allowed("udp-gso") and _has_socket_option(UDP_SEGMENT, 1200):
        names.append("udp-gso")
        hot.append("udp-gso")
    has_udp_gro = is_allowed("udp-gro") and _has_socket_option(UDP_GRO, 1)
    if has_udp_gro:
        names.append("udp-gro")
    lane_features = FEATURE_PATH_MTU
    if "csum" in names and is_allowed("partial"):
        names.append("partial")
        lane_features |= FEATURE_PARTIAL
    if is_allowed("bundle"):
        names.append("bundle")
        lane_features |= FEATURE_BUNDLE
    if has_udp_gro and {"partial", "gro", "udp-gso"} <= set(names) and is_allowed("records"):
        names.append("records")
        lane_features |= FEATURE_RECORDS
    return Offloads(tuple(names), tuple(hot), has_udp_gro, lane_features)


def _switch_on(tun: TunQueues, is_allowed: Callable[[str], bool]) -> list[str]:
    """What the kernel may leave to us (TUNSETOFFLOAD); the names of what it then does."""
    if not is_allowed("csum") or not tun.set_offloads(TUN_F_CSUM):
        tun.set_offloads(0)
        return []
    names, mask = ["csum"], TUN_F_CSUM
    for name, bits in (("tso4", TUN_F_TSO4), ("tso6", TUN_F_TSO6),
                       ("uso", TUN_F_USO4 | TUN_F_USO6),
                       ("tunnel", TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM)):
        if is_allowed(name) and tun.set_offloads(mask | bits):
            names.append(name)
            mask |= bits
    if mask & (TUN_F_TSO4 | TUN_F_TSO6) and tun.set_offloads(mask | TUN_F_TSO_ECN):
        mask |= TUN_F_TSO_ECN
    tun.set_offloads(mask)
    return names


def lane_ciphers(wanted: str) -> tuple[str, ...]:
    """The ciphers of lanes that are fast here, the best first; or the one that is wanted. AES
    in software is slow, and leaks its key through the cache."""
    if wanted != "auto":
        return (wanted,)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        flags = ""
    has_aes = any(line.startswith(("flags", "Features")) and "aes" in line.split()
                  for line in flags.splitlines())
    return LANE_CIPHERS if has_aes else ("chacha20-poly1305",)
