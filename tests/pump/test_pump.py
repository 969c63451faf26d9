"""One worker's data plane, end to end in this process: what passes, what is counted."""

import ctypes
import errno
import mmap
import re
import socket
import struct
import sys
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpump import _core
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME, SECOND
from support import plainlanes
from support.packets import (
    A4,
    A6,
    ACK,
    B4,
    B6,
    NEEDS_CSUM,
    PLAIN,
    UDP,
    VNET,
    Vnet,
    checksums_are_right,
    ip,
    parse_vnet,
    partial,
    superpacket,
    tcp,
    udp,
)
from support.pumps import START, carry, drain, message, pair, udp_socket


@pytest.fixture
def ends(closed):
    return closed(pair())


@pytest.mark.parametrize("backend", _core.BACKENDS)
@pytest.mark.parametrize("packet", [
    tcp(A4, B4, b"hello"), udp(A6, B6, bytes(1300)), ip(A4, B4, 1, b"\x08\0" + bytes(62)),
    ip(A4, B4, UDP, bytes(1400), more_fragments=True, df=False), ip(A6, B6, 59, b""),
    tcp(A4, B4, b"", tos=3, bad_checksum=True), ip(A4, B4, 253, b"?" * 333, options=bytes(8)),
], ids=["tcp", "udp6", "icmp", "fragment", "no-next-header", "bad-checksum", "unknown"])
def test_a_packet_arrives_as_it_was(backend, packet):
    one, two = pair(backend=backend)
    assert carry(one, two, packet) == [PLAIN + packet]
    assert one.verdicts() == two.verdicts() == {}
    one.close()
    two.close()


def private_kib():
    """Of this process: memory that no file backs."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"Private_Dirty: +(\d+) kB", text)[1])


def test_a_worker_that_has_little_to_do_has_little_memory(closed):
    """Its 60 MB of buffers are there when they are needed. In huge pages, of 2 MiB, too."""
    closed(pair())          # what this process needs for the first one
    before = private_kib()
    one, two = closed(pair(session=False))
    one.interface.send(PLAIN + udp(A4, B4, bytes(1300)))        # waits for a session
    one.poll()
    for end, other in ((one, two), (two, one)):
        end.start_session(other.index)
    for _ in range(3):
        assert carry(one, two, udp(A4, B4, bytes(1300)))
        assert carry(two, one, udp(B4, A4, bytes(1300)))
    assert private_kib() - before < 2 * (2048 + 1024)


@pytest.mark.parametrize("backend", _core.BACKENDS)
@pytest.mark.parametrize("addresses", [(A4, B4), (A6, B6)], ids=["v4", "v6"])
def test_a_superpacket_arrives_as_one(backend, addresses):
    one, two = pair(backend=backend)
    whole = tcp(*addresses, bytes(range(256)) * 200, flags=ACK)
    one.interface.send(superpacket(whole, 1348))
    one.poll()
    two.poll()
    (written,) = two.take()
    assert parse_vnet(written)[1] == parse_vnet(superpacket(whole, 1348))[1]
    assert one.counters()["udp_tx_datagrams"] == 38 == two.counters()["udp_rx_datagrams"]
    assert one.counters()["udp_tx_calls"] == 1
    assert two.counters()["tun_tx_superpackets"] == 1
    one.close()
    two.close()


def test_without_offloads_the_same_packets_arrive_singly():
    one, two = pair(offloads=())
    whole = tcp(A4, B4, bytes(5000))
    one.interface.send(superpacket(whole, 1000))
    one.poll()
    two.poll()
    two.poll()
    written = two.take()
    assert [data[VNET.size:] for data in written] == _core.split(superpacket(whole, 1000))
    assert one.counters()["udp_tx_messages"] == 5
    one.close()
    two.close()


def test_equal_small_packets_share_one_send(one, two):
    for i in range(40):
        one.give(udp(A4, B4, bytes([i]) * 64, ident=i))
    one.poll()
    assert one.counters()["udp_tx_messages"] == one.counters()["udp_tx_calls"] == 1
    two.poll()
    (written,) = two.take()
    assert len(_core.split(written)) == 40


def test_a_partial_checksum_leaves_complete(one, two):
    packet = udp(A4, B4, b"odd")
    (written,) = carry(one, two, partial(packet, 20, 6), Vnet(
        NEEDS_CSUM, csum_start=20, csum_offset=6).emit())
    assert written == PLAIN + packet and checksums_are_right(written[VNET.size:])


def test_padding_is_a_multiple_of_16_within_the_mtu(one, two):
    for size, sealed in ((1, 32), (4, 32), (5, 48), (1392, 1420), (1391, 1420), (1380, 1408)):
        one.give(udp(A4, B4, bytes(size)))
        one.poll()
        (datagram,) = two.udp.recv(1 << 16),
        assert len(datagram) == sealed + 32, size


def test_the_longest_packet_of_a_large_mtu():
    one, two = pair(mtu=65000)
    packet = udp(A4, B4, bytes(65000 - 28))
    assert carry(one, two, packet) == [PLAIN + packet]
    one.give(udp(A4, B4, bytes(65480)))
    one.poll()
    assert one.verdicts() == {"DROP_TOO_BIG": 1}
    one.close()
    two.close()


def test_no_route_no_packet(one, two):
    one.give(udp(A4, "10.9.0.77", b"x"))
    one.give(b"\x00" * 40)
    one.give(b"\x45")
    one.give(b"")
    one.poll()
    assert one.verdicts() == {"DROP_NO_PEER": 1, "DROP_MALFORMED_PACKET": 3}
    two.poll()
    assert two.counters()["udp_rx_datagrams"] == 0


def test_without_an_endpoint_nothing_is_kept(one):
    one.tables.peers.set_endpoint(one.peer, b"")
    one.give(udp(A4, B4, b"x"))
    one.poll()
    assert one.verdicts() == {"DROP_NO_ENDPOINT": 1}


HOSTILE = [
    ("short", lambda e: b"\4\0\0\0", "DROP_MALFORMED_MESSAGE"),
    ("31 bytes", lambda e: bytes([4]) + bytes(30), "DROP_MALFORMED_MESSAGE"),
    ("type 6", lambda e: message(e, 0, b"", kind=6), "DROP_MALFORMED_MESSAGE"),
    ("reserved bytes", lambda e: message(e, 0, b"", kind=0x10004), "DROP_MALFORMED_MESSAGE"),
    ("index of nobody", lambda e: message(e, 0, b"", index=e.index ^ 1 << 31),
     "DROP_UNKNOWN_INDEX"),
    ("index out of the table", lambda e: message(e, 0, b"", index=0xffffffff),
     "DROP_UNKNOWN_INDEX"),
    ("wrong key", lambda e: message(e, 0, b"", key=bytes(32)), "DROP_UNAUTHENTIC"),
    ("cut", lambda e: message(e, 0, udp(B4, A4, b"abc"))[:-1], "DROP_UNAUTHENTIC"),
    ("counter changed", lambda e: message(e, 0, b"")[:8] + b"\1" + message(e, 0, b"")[9:],
     "DROP_UNAUTHENTIC"),
    ("counter beyond the limit", lambda e: message(e, 2**64 - 1, b""), "DROP_REPLAYED"),
    ("no IP inside", lambda e: message(e, 0, b"hello"), "DROP_MALFORMED_INNER"),
    ("version 5 inside", lambda e: message(e, 0, b"\x55" + bytes(60)), "DROP_MALFORMED_INNER"),
    ("inner length lies", lambda e: message(e, 0, udp(B4, A4, bytes(99))[:60]),
     "DROP_MALFORMED_INNER"),
    ("inner v6 length lies", lambda e: message(e, 0, udp(B6, A6, bytes(99))[:60]),
     "DROP_MALFORMED_INNER"),
    ("inner header length 0", lambda e: message(e, 0, b"\x40" + bytes(60)),
     "DROP_MALFORMED_INNER"),
    ("source of somebody else", lambda e: message(e, 0, udp("10.9.0.3", A4, b"x")),
     "DROP_SOURCE_NOT_ALLOWED"),
    ("our own source", lambda e: message(e, 0, udp(A4, A4, b"x")), "DROP_SOURCE_NOT_ALLOWED"),
]


@pytest.mark.parametrize(("make", "verdict"), [row[1:] for row in HOSTILE],
                         ids=[row[0] for row in HOSTILE])
def test_hostile_datagrams_cost_a_counter(one, two, make, verdict):
    endpoint = one.tables.peers.activity(one.peer)
    two.udp.sendto(make(one), one.udp.getsockname())
    one.poll()
    assert one.take() == []
    assert one.verdicts() == {verdict: 1}
    if verdict not in ("DROP_MALFORMED_INNER", "DROP_SOURCE_NOT_ALLOWED"):
        assert one.tables.peers.activity(one.peer) == endpoint
    # And the session lives on.
    two.udp.sendto(message(one, 77, udp(B4, A4, b"fine")), one.udp.getsockname())
    one.poll()
    assert one.take() == [PLAIN + udp(B4, A4, b"fine")]


def test_what_a_dead_worker_had_no_time_to_tell_is_told_again():
    one, two = pair(session=False)
    one.give(udp(A4, B4, b"x"))
    one.poll()
    assert one.events() == ["want_session"]
    one.give(udp(A4, B4, b"x"))
    one.poll()
    assert one.events() == []
    one.tables.workers.exited(0)
    one.give(udp(A4, B4, b"x"))
    one.poll()
    assert one.events() == ["want_session"]
    one.close()
    two.close()


def test_a_replay_is_dropped_also_inside_a_train(one, two):
    datagram = message(one, 3, udp(B4, A4, b"x"))
    for _ in range(3):
        two.udp.sendto(datagram, one.udp.getsockname())
    one.poll()
    one.poll()
    assert len(one.take()) == 1 and one.verdicts() == {"DROP_REPLAYED": 2}


def test_a_forgery_does_not_move_the_replay_window(one, two):
    two.udp.sendto(message(one, 1 << 40, b"", key=bytes(32)), one.udp.getsockname())
    two.udp.sendto(message(one, 0, udp(B4, A4, b"x")), one.udp.getsockname())
    one.poll()
    one.poll()
    assert len(one.take()) == 1


def test_an_old_keypair_is_no_use(one, two):
    late = START + REJECT_AFTER_TIME
    two.udp.sendto(message(one, 0, udp(B4, A4, b"x")), one.udp.getsockname())
    one.poll(late)
    assert one.verdicts() == {"DROP_EXPIRED_KEYPAIR": 1}
    one.give(udp(A4, B4, b"x"))
    one.poll(late)
    assert "want_session" in one.events() and one.counters()["udp_tx_datagrams"] == 0


def test_the_initiator_asks_for_a_rekey_once(one, two):
    for _ in range(3):
        one.give(udp(A4, B4, b"x"))
        one.poll(START + REKEY_AFTER_TIME)
    assert one.events().count("rekey") == 1
    one.tables.keypairs.rearm_rekey(one.slot)
    one.give(udp(A4, B4, b"x"))
    one.poll(START + REKEY_AFTER_TIME)
    assert one.events() == ["rekey"]


def test_a_responder_reports_the_first_message_once():
    one, two = pair()
    two.start_session(one.index, is_initiator=False)
    for counter in range(3):
        one.udp.sendto(message(two, counter, udp(A4, B4, b"x")), two.udp.getsockname())
        two.poll()
    assert two.events().count("confirmed") == 1
    one.close()
    two.close()


def test_staged_packets_leave_in_order_when_a_session_comes():
    one, two = pair(session=False)
    packets = [udp(A4, B4, bytes([i]), ident=i) for i in range(20)]
    for packet in packets:
        one.give(packet)
    one.poll()
    assert one.events() == ["want_session"] and one.counters()["udp_tx_datagrams"] == 0
    for end, other in ((one, two), (two, one)):
        end.start_session(other.index)
    one.poll()
    two.poll()
    assert [p for w in two.take() for p in _core.split(w)] == packets
    one.close()
    two.close()


def test_at_most_128_packets_are_staged_and_the_oldest_give_way():
    one, two = pair(session=False)
    for start in range(0, 150, 50):
        for i in range(start, start + 50):
            one.give(udp(A4, B4, struct.pack("!H", i), ident=i))
        one.poll()
    assert one.verdicts() == {"DROP_STAGED_FULL": 22}
    for end, other in ((one, two), (two, one)):
        end.start_session(other.index)
    one.poll()
    for _ in range(4):
        two.poll()
    arrived = [p for w in two.take() for p in _core.split(w)]
    assert [struct.unpack("!H", packet[28:30])[0] for packet in arrived] == list(range(22, 150))
    one.close()
    two.close()


def test_purged_packets_are_counted():
    one, two = pair(session=False)
    one.give(udp(A4, B4, b"x"))
    one.poll()
    one.tables.peers.purge_staged(one.peer)
    one.poll()
    assert one.verdicts() == {"DROP_STAGED_TIMEOUT": 1}
    one.close()
    two.close()


@pytest.mark.parametrize("inner", [b"", b"\xff no packet", udp("1.2.3.4", A4, b"x"),
                                   plainlanes.end(7, 0)],
                         ids=["keepalive", "no packet", "source not allowed", "end of no lane"])
def test_an_authentic_message_moves_the_endpoint_whatever_is_inside(one, two, inner):
    """The kernel's order: wg_packet_consume_data_done() sets it first."""
    with udp_socket() as elsewhere:
        elsewhere.sendto(message(one, 0, inner), one.udp.getsockname())
        one.poll()
        sockaddr, _ = one.tables.peers.endpoint(one.peer)
        assert Endpoint.from_sockaddr(sockaddr) == Endpoint.from_python(elsewhere.getsockname())


def test_roaming_is_told_once_and_only_for_authentic_messages(one, two):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        elsewhere.bind(("::ffff:127.0.0.1", 0))
        two.udp.sendto(message(one, 0, b""), one.udp.getsockname())
        one.poll()
        elsewhere.sendto(message(one, 0, b""), one.udp.getsockname())
        elsewhere.sendto(message(one, 1, b"", key=bytes(32)), one.udp.getsockname())
        one.poll()
        one.poll()
        assert "roam" not in one.events()
        for counter in (2, 3):
            elsewhere.sendto(message(one, counter, b""), one.udp.getsockname())
        one.poll()
        one.poll()
        assert one.events().count("roam") == 1
        sockaddr, _ = one.tables.peers.endpoint(one.peer)
        assert Endpoint.from_sockaddr(sockaddr).port == elsewhere.getsockname()[1]


def test_the_answer_to_a_roaming_peer_goes_where_it_is(one, two):
    """Before the supervisor has heard of it; and from the address that it spoke to."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        elsewhere.bind(("::ffff:127.0.0.1", 0))
        elsewhere.settimeout(5)
        one.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elsewhere.sendto(message(one, 0, udp(B4, A4, b"x")), one.udp.getsockname())
        one.poll()
        one.give(udp(A4, B4, b"y"))
        one.poll()
        assert elsewhere.recv(2000)[:1] == b"\4"
    assert one.tables.peers.endpoint(one.peer)[1] == ip_address("::ffff:127.0.0.1").packed


def test_an_own_address_that_is_gone_is_given_up(one, two):
    one.tables.peers.set_endpoint(one.peer, two.endpoint.sockaddr(socket.AF_INET6),
                                 ip_address("::ffff:192.0.2.200").packed)
    for size in (10, 10, 700):      # a GSO send, and a single datagram
        one.give(udp(A4, B4, bytes(size)))
    one.poll()
    two.poll()
    assert len(two.take()) >= 2
    assert one.events().count("source_address_gone") == 1 and one.verdicts() == {}


def test_a_worker_killed_while_it_wrote_an_endpoint(one, two):
    """An odd sequence number is what it leaves: nobody may wait for it for ever."""
    before = one.tables.peers.endpoint(one.peer)
    with mmap.mmap(one.tables.state_fd, 0) as memory:
        at = memory.find(before[0]) - 8             # endpoint_seq, endpoint_len, endpoint
        sequence = ctypes.c_uint32.from_buffer(memory, at)
        sequence.value |= 1
        one.give(udp(A4, B4, b"x"))
        one.poll()
        assert one.verdicts() == {"DROP_NO_ENDPOINT": 1}
        assert one.tables.workers.exited(0) == [one.peer]
        assert one.tables.peers.endpoint(one.peer)[0] == b"" and sequence.value % 2 == 0
        one.tables.peers.set_endpoint(one.peer, *before)
        assert one.tables.peers.endpoint(one.peer) == before
        del sequence


def test_activity_is_noted_for_the_timers(one, two):
    one.give(udp(A4, B4, b"x"))
    one.poll(START + 1)
    assert one.tables.peers.activity(one.peer) == (START + 1, 0, START + 1, 0)
    two.poll(START + 2)
    assert two.tables.peers.activity(two.peer) == (0, START + 2, 0, START + 2)
    two.give(udp(B4, A4, b"y"))
    two.poll(START + 3)
    one.poll(START + 4)
    assert one.tables.peers.activity(one.peer) == (0, START + 4, START + 1, START + 4)
    assert two.tables.peers.activity(two.peer)[1] == 0
    assert one.tables.peers.traffic(one.peer) == two.tables.peers.traffic(two.peer)[::-1]


def test_what_the_kernel_refuses_is_reported_once_and_so_is_its_end(one, two):
    """However much is refused; and the end only when it has lasted."""
    def send(at, where):
        one.tables.peers.set_endpoint(one.peer, where.sockaddr(socket.AF_INET6))
        one.give(udp(A4, B4, b"x"))
        one.poll(at)
        return [(name, peer, error) for name, peer, _, error, _ in one.tables.workers.events(0)
                if name == "send_error"]

    refused = Endpoint(ip_address("255.255.255.255"), 9)    # SO_BROADCAST is not set
    fails, works = (("send_error", one.peer, error) for error in (errno.EACCES, 0))
    assert send(START, two.endpoint) == []
    for second in range(60):
        assert send(START + second * SECOND, refused) == [fails] * (second == 0)
    one.tables.has_send_errors = True       # as the supervisor does then
    after = START + 59 * SECOND
    assert send(after + SECOND, two.endpoint) == []
    assert send(after + 3 * SECOND, two.endpoint) == [works]
    assert send(after + 4 * SECOND, two.endpoint) == []
    assert send(after + 5 * SECOND, refused) == [fails]
    assert one.verdicts() == {"DROP_SEND_ERROR": 61}


def test_an_empty_message_is_a_keepalive(one, two):
    two.udp.sendto(message(one, 0, b""), one.udp.getsockname())
    one.poll()
    assert one.counters()["keepalives_received"] == 1 and one.take() == []
    assert one.tables.peers.activity(one.peer)[1] == 0


def test_a_full_interface_is_counted(one, two):
    one.queue.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for counter in range(60):
        two.udp.sendto(message(one, counter, udp(B4, A4, bytes(900 + counter))),
                       one.udp.getsockname())
        one.poll()
    written = len(one.take())
    assert one.verdicts() == {"DROP_INTERFACE_FULL": 60 - written} and written < 60


@settings(max_examples=400, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(
    st.binary(max_size=200),
    st.builds(lambda head, body: head + body, st.sampled_from([
        udp(B4, A4, bytes(40))[:28], tcp(B4, A4, bytes(40))[:40], tcp(B6, A6, bytes(40))[:60]]),
        st.binary(max_size=120))), min_size=1, max_size=12))
def test_an_authenticated_but_lying_peer(one, two, inners):
    """Whatever is inside, the interface sees whole IP packets from allowed sources."""
    counter = one.counters()["udp_rx_datagrams"]
    for i, inner in enumerate(inners):
        two.udp.sendto(message(one, counter + i, inner), one.udp.getsockname())
    one.poll()
    one.poll()
    assert one.counters()["udp_rx_datagrams"] == counter + len(inners)
    for written in one.take():
        for packet in _core.split(written):
            if packet[0] >> 4 == 4:
                assert packet[12:16] == bytes([10, 9, 0, 2])
                assert struct.unpack("!H", packet[2:4])[0] == len(packet)
            else:
                assert packet[8:12] == b"\xfd\0\0\x09"
                assert struct.unpack("!H", packet[4:6])[0] == len(packet) - 40


def test_no_bytecode_and_no_python_object_per_packet(one, two):
    """An iteration over 64 packets runs as many Python calls, and allocates as many Python
    blocks, as an iteration over none."""
    def cost(packet_count):
        for i in range(packet_count):
            one.give(udp(A4, B4, bytes(10 + i % 7), ident=i))
        calls = []
        one.poll()                              # warm
        for i in range(packet_count):
            one.give(udp(A4, B4, bytes(10 + i % 7), ident=i))
        poll = one.pump.poll
        blocks = sys.getallocatedblocks()
        sys.setprofile(lambda *event: calls.append(event[1]))
        poll(START)
        sys.setprofile(None)
        blocks = sys.getallocatedblocks() - blocks
        list(drain(two.udp))
        return calls, blocks

    sent = one.counters()["udp_tx_datagrams"]
    idle = cost(0)
    busy = cost(64)
    assert one.counters()["udp_tx_datagrams"] == sent + 128
    assert busy[0] == idle[0]
    assert abs(busy[1] - idle[1]) <= 2


def test_tables_change_while_a_worker_runs():
    """Prefixes, endpoints and sessions change under load; every packet that arrives is
    whole, and the session survives."""
    one, two = pair()
    stop = threading.Event()
    payload = bytes(range(200))

    def load():
        while not stop.is_set():
            one.give(udp(A4, B4, payload))
            one.poll()
            two.poll()

    thread = threading.Thread(target=load)
    thread.start()
    for i in range(3000):
        one.tables.allowed_ips.insert(bytes([10, i % 200, 0, 0]), 16 + i % 9, one.peer)
        one.tables.allowed_ips.remove(bytes([10, (i * 7) % 200, 0, 0]), 16 + i % 9)
        one.tables.peers.set_endpoint(one.peer, two.endpoint.sockaddr(socket.AF_INET6))
        slot, _ = one.tables.keypairs.reserve(0)
        one.tables.keypairs.retire(slot)
        if i % 50 == 0:
            one.tables.retired.reclaim()
    stop.set()
    thread.join()
    arrived = two.take()
    assert arrived and all(packet == udp(A4, B4, payload) for w in arrived
                           for packet in _core.split(w))
    assert set(one.verdicts()) <= {"DROP_SEND_ERROR"} and two.verdicts().keys() <= {
        "DROP_INTERFACE_FULL"}
    one.close()
    two.close()

