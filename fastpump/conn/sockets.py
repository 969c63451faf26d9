"""The UDP sockets: one per worker and one for handshakes, all on one port; and those of lanes.

They form one SO_REUSEPORT group, in the order of their binding: worker 0, ..., worker
n-1, handshakes. A classic BPF program on the group sees each datagram's payload from
offset 0 and picks the socket by its number: transport messages go to the worker whose
number stands in the low bits of the receiver index (which we chose), lane messages to
worker lane number modulo queues, everything else to the handshake socket. So an
unmodified peer reaches the right worker wherever it roams.

Lane sockets are for the lanes that we open ourselves (device/lanes.py): each has a port of its
own, and all peers share them. The kernel chooses it, but never one of those that tunnels are given
by habit (GIVEN_PORTS): another tunnel could not start then.

On each of these ports one more socket is bound, last, to which the program sends nothing: the
supervisor sends probes of the path MTU by it (device/path_mtus.py). They have DF set, which data
has not.

A GRO train is steered as a whole, by its first datagram, and whether datagrams are put into trains
at all is decided on a socket that the kernel picks by hash alone. Hence all sockets of the group
have UDP_GRO, the handshake socket too, and misdelivered datagrams are passed on (hot/rings.pxd).
Our handshake messages carry another traffic class than our data (AF41, as the kernel's do), which
keeps GRO from joining the two.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct

from fastpump import classic_bpf
from fastpump.classic_bpf import AND, JEQ, JGE, LD_B_ABS, MOD, RET_A, RET_K, Instruction
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.constants import DEFAULT_PORT, MIN_LANE_SOCKETS
from fastpump.errors import SystemSetupError
from fastpump.kernel import (
    IP_MTU_DISCOVER,
    IP_PKTINFO,
    IP_PMTUDISC_DONT,
    IP_PMTUDISC_PROBE,
    IP_RECVFRAGSIZE,
    IPV6_MTU_DISCOVER,
    IPV6_PMTUDISC_DONT,
    IPV6_PMTUDISC_PROBE,
    IPV6_RECVFRAGSIZE,
    SK_MEMINFO,
    SO_ATTACH_FILTER,
    SO_ATTACH_REUSEPORT_CBPF,
    SO_MEMINFO,
    SO_RCVBUFFORCE,
    SO_SNDBUFFORCE,
    UDP_GRO,
    UDP_SEGMENT,
)
from fastpump.protocol.wire import INITIATION_TYPE, LANE_TYPE, TRANSPORT_TYPE

log = logging.getLogger("fastpump")

GIVEN_PORTS = range(DEFAULT_PORT, DEFAULT_PORT + 256)
"""What `--listen-port` is of the first tunnel of a host, of its second one, ..."""

HANDSHAKE_TOS = 0x88        # AF41, as the kernel's WireGuard
OTHER_TOS = 0x90            # AF42, if data has that
_PKTINFO4 = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16si")
_UINT = struct.Struct("=I")

# When the CPUs are the bottleneck, this buffer is a standing queue: latency. 1 MiB (the kernel
# doubles it for its bookkeeping) is about 1 ms at 10 Gbit/s; with 4 MiB, the 99th percentile of a
# ping beside a TCP stream was half as long again, at equal throughput.
BUFFER_BYTES = 1 << 20


def steering_program(queue_count: int) -> list[Instruction]:
    """(code, jump if true, jump if false, k) of the group's program."""
    mask = (1 << (queue_count - 1).bit_length()) - 1
    return [
        (LD_B_ABS, 0, 0, 0),
        (JEQ, 4, 0, LANE_TYPE),
        (JEQ, 0, 6, TRANSPORT_TYPE),
        (LD_B_ABS, 0, 0, 4),           # receiver index, little-endian: its low byte
        (AND, 0, 0, mask),
        (JGE, 3, 2, queue_count),
        (LD_B_ABS, 0, 0, 2),           # the lane
        (MOD, 0, 0, queue_count),
        (RET_A, 0, 0, 0),
        (RET_K, 0, 0, queue_count),
    ]


def lane_socket_count(queue_count: int) -> int:
    """How many lane sockets there are: as many for each worker, and some more than queues, for
    peers with more queues than we have (hot/lane.pxd)."""
    return queue_count * -(-MIN_LANE_SOCKETS // queue_count)


def handshake_filter() -> list[Instruction]:
    """What the handshake socket accepts, by the first byte: types 1 to 3. Anything else is
    dropped by the kernel, before it costs a wake-up. A train passes as a whole."""
    return [
        (LD_B_ABS, 0, 0, 8),           # behind the UDP header
        (JGE, 0, 2, INITIATION_TYPE),
        (JGE, 1, 0, TRANSPORT_TYPE),
        (RET_K, 0, 0, 0xFFFF),
        (RET_K, 0, 0, 0),
    ]


def first_socket_program() -> list[Instruction]:
    """Of a lane socket's group: all to the lane socket, nothing to the one that sends probes."""
    return [(RET_K, 0, 0, 0)]


def lane_filter() -> list[Instruction]:
    """What lane sockets accept: lane messages. The port is for nothing else."""
    return [
        (LD_B_ABS, 0, 0, 8),
        (JEQ, 0, 1, LANE_TYPE),
        (RET_K, 0, 0, 0xFFFF),
        (RET_K, 0, 0, 0),
    ]


def preferred_family() -> int:
    """AF_INET6 (dual-stack) where the host has IPv6, else AF_INET."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return socket.AF_INET
    return socket.AF_INET6


def _mark(sock: socket.socket, fwmark: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _UINT.pack(fwmark))
    except OSError as error:
        raise SystemSetupError(f"the firewall mark {fwmark:#x} cannot be set: "
                               f"{error.strerror}") from None


def _pktinfo(source_address: bytes, family: int) -> tuple[int, int, bytes]:
    """The control message for sendmsg that gives the source address."""
    if family == socket.AF_INET:
        return socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(0, source_address[12:], bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(source_address, 0)


def _dropped(sock: socket.socket) -> int:
    """Datagrams that a socket did not take: its buffer was full (RcvbufErrors of nstat(8)), a
    checksum was wrong, or a filter dropped them. 0 before Linux 4.12. The kernel counts 32 bits."""
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, SK_MEMINFO.size)
        return int(SK_MEMINFO.unpack(found)[-1])
    except (OSError, struct.error):
        return 0


def check_route(where: Endpoint, family: int, fwmark: int = 0) -> None:
    """SystemSetupError if nothing can be sent to an endpoint from here."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        if fwmark:
            _mark(probe, fwmark)
        try:
            probe.connect(where.to_python(family))
        except OSError as error:
            raise SystemSetupError(
                f"the endpoint {where} cannot be reached from this host: {error.strerror}; "
                "check the address, and the routes: ip route") from None


def source_towards(where: Endpoint, family: int, fwmark: int = 0) -> str | None:
    """The address that the kernel sends from to an endpoint now; None if there is no way, or no
    file descriptor left to ask with."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if fwmark:
                _mark(probe, fwmark)
            probe.connect(where.to_python(family))
            return str(probe.getsockname()[0])
    except OSError:
        return None


class SocketGroup:
    """The workers' sockets, the handshake socket, and their common port; the lane sockets."""

    def __init__(self, queue_count: int, port: int | None, family: int, *, fwmark: int = 0,
                 gro: bool = True, lane_sockets: int = 0, dscp: int = 0) -> None:
        """`port`: None for 51820, or any free one when that is taken; 0 for any. `family`:
        see `preferred_family`. `lane_sockets`: how many of those. `dscp`: of data."""
        self.family = family
        self._fwmark = fwmark
        self._tos = dscp << 2
        self.workers: list[socket.socket] = []
        self.lanes: list[socket.socket] = []
        self._open: list[socket.socket] = []
        try:
            self.workers.append(self._bind_first(port))
            self.port = int(self.workers[0].getsockname()[1])
            for _ in range(1, queue_count):
                self.workers.append(self._bind(self.port))
            self.handshake = self._bind(self.port)
            self._set_tos(self.handshake, OTHER_TOS if self._tos == HANDSHAKE_TOS
                          else HANDSHAKE_TOS)
            self._prober = self._make_prober(self.port)
            self._lane_probers: list[socket.socket] = []
            for _ in range(lane_sockets):
                sock = self._make_free()        # alone at first: as workers[0]
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                self.lanes.append(sock)
                self._lane_probers.append(self._make_prober(sock.getsockname()[1]))
            if gro:
                for sock in self._open:
                    sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
            try:
                classic_bpf.attach(self.handshake, SO_ATTACH_REUSEPORT_CBPF,
                                   steering_program(queue_count))
                classic_bpf.attach(self.handshake, SO_ATTACH_FILTER, handshake_filter())
                for sock in self.lanes:
                    classic_bpf.attach(sock, SO_ATTACH_REUSEPORT_CBPF, first_socket_program())
                    classic_bpf.attach(sock, SO_ATTACH_FILTER, lane_filter())
            except OSError as error:
                raise SystemSetupError(
                    "the kernel refuses the program that steers datagrams to workers "
                    f"(SO_ATTACH_REUSEPORT_CBPF: {error.strerror}); Linux 4.5 or newer is "
                    "needed") from None
        except OSError as error:
            self.close()
            raise SystemSetupError(f"the UDP sockets cannot be made: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def _set_tos(self, sock: socket.socket, tos: int) -> None:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        if self.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)

    @property
    def all(self) -> list[socket.socket]:
        """Those of the workers, of lanes, and for handshakes."""
        return list(self._open)

    def _bind_first(self, wanted: int | None) -> socket.socket:
        """The first socket claims the port for itself, and only then lets others join:
        joining the group of another process would steal its datagrams."""
        if wanted == 0:
            sock = self._make_free()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            return sock
        sock = self._make()
        port = DEFAULT_PORT if wanted is None else wanted
        try:
            sock.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise SystemSetupError(
                    f"the UDP port {port} cannot be bound: {error.strerror}") from None
            if wanted is not None:
                raise SystemSetupError(
                    f"the UDP port {wanted} is in use; choose another, or "
                    f"see who has it: ss -lunp 'sport = :{wanted}'") from None
            self._drop(sock)
            sock = self._make_free()
            log.warning("the UDP port %(wanted)d is in use: this tunnel has port %(port)d",
                        {"wanted": port, "port": sock.getsockname()[1]})
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return sock

    def _make_free(self) -> socket.socket:
        """A socket on a port that nobody has, and that nobody is going to be given."""
        refused: list[socket.socket] = []
        try:
            while True:
                sock = self._make()
                try:
                    sock.bind(("", 0))
                except OSError:
                    if not refused:
                        raise
                    self._drop(sock)
                    return refused.pop()    # the host has no others
                if sock.getsockname()[1] not in GIVEN_PORTS:
                    return sock
                refused.append(sock)        # kept until then, so that it is not chosen again
        finally:
            for each in refused:
                self._drop(each)

    def _drop(self, sock: socket.socket) -> None:
        self._open.remove(sock)
        sock.close()

    def _bind(self, port: int) -> socket.socket:
        """Another socket of the group."""
        sock = self._make()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
        return sock

    def _make_prober(self, port: int) -> socket.socket:
        """A socket on a port that we have, which only sends: with DF, whatever the kernel has
        learned of the path."""
        sock = self._bind(port)
        if self.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE)
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        return sock

    def _make(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._open.append(sock)
        if self.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVFRAGSIZE, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVFRAGSIZE, 1)      # Linux 4.10
        # As the kernel's WireGuard: outer packets may be fragmented on the way.
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        if self._tos:
            self._set_tos(sock, self._tos)
        if self._fwmark:
            _mark(sock, self._fwmark)
        for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF),
                              (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
        return sock

    def set_fwmark(self, fwmark: int) -> None:
        """Mark what is sent from now on, by the workers too; 0 for no mark."""
        self._fwmark = fwmark
        for sock in self._open:
            _mark(sock, fwmark)

    def dropped(self) -> list[int]:
        """Datagrams that the kernel dropped at the sockets of each queue; and, last, at the
        handshake socket, where its filter's are among them."""
        counts = [_dropped(sock) for sock in (*self.workers, self.handshake)]
        for number, sock in enumerate(self.lanes):
            counts[number % len(self.workers)] += _dropped(sock)
        return counts

    def send_handshake(self, message: bytes, endpoint: Endpoint, source_address: bytes) -> None:
        """Send from a source address, or from one that the kernel chooses (NO_SOURCE_ADDRESS, or
        when that address is gone). OSError when nothing can be sent."""
        self._send(self.handshake, message, endpoint, source_address)

    def send_lane(self, message: bytes, endpoint: Endpoint, source_address: bytes,
                  number: int | None) -> bool:
        """The same, by a lane socket, or from our port (None). True."""
        self._send(self.handshake if number is None else self.lanes[number], message, endpoint,
                   source_address)
        return True

    def send_probe(self, message: bytes, endpoint: Endpoint, source_address: bytes,
                   number: int | None, datagram_len: int = 0) -> bool:
        """As `send_lane`, never in fragments, but in datagrams of that length (UDP GSO), or in one
        (0). False if our own link does not take it."""
        refusals = (errno.EMSGSIZE, errno.EINVAL, errno.EIO) if datagram_len else (errno.EMSGSIZE,)
        try:
            self._send(self._prober if number is None else self._lane_probers[number], message,
                       endpoint, source_address, datagram_len)
        except OSError as error:
            if error.errno in refusals:
                return False
            raise
        return True

    def _send(self, sock: socket.socket, message: bytes, endpoint: Endpoint,
              source_address: bytes, datagram_len: int = 0) -> None:
        where = endpoint.to_python(self.family)
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", datagram_len))
                   ] if datagram_len else []
        if source_address != NO_SOURCE_ADDRESS:
            try:
                sock.sendmsg([message], [_pktinfo(source_address, self.family), *control], 0, where)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH):
                    raise
        sock.sendmsg([message], control, 0, where)

    def close(self) -> None:
        """Close all sockets."""
        for sock in self._open:
            sock.close()


class SocketDrops:
    """Datagrams that the kernel dropped at a tunnel's sockets, from one group to the next."""

    def __init__(self, queue_count: int) -> None:
        self._group: SocketGroup | None = None
        self._before = [0] * (queue_count + 1)

    def follow(self, group: SocketGroup | None) -> None:
        """Count those of another group from now on; None: of none, before the last is closed."""
        self._before = self.counts()
        self._group = group

    def counts(self) -> list[int]:
        """As SocketGroup.dropped()."""
        now = [0] * len(self._before) if self._group is None else self._group.dropped()
        return [sum(pair) for pair in zip(self._before, now, strict=True)]
