"""What worker and supervisor pass to each other by rings: whose it is, and how much of it."""

import mmap
import os
import socket
import struct
from contextlib import contextmanager

import pytest

from fastpump._core import Admission, NewKeypair
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import REJECT_AFTER_TIME, SECOND
from fastpump.protocol import cookie, keys, wire
from support import plainlanes
from support.packets import A4, B4, PLAIN, tcp, udp
from support.pumps import START, lane_pair, message, pair, send_train, udp_socket

PUBLIC = keys.public_of(bytes([64]) * 32)
KEY, COOKIE_KEY = cookie.mac1_key(PUBLIC), cookie.cookie_key(PUBLIC)
HELLO = plainlanes.control(plainlanes.HELLO, {1: b"\1"})
RING_LEN = 64
# What hot/upcall.pxd allows at once.
OF_A_PEER, OF_STRANGERS = 10, 20
NO_SOCKET = -1


@pytest.fixture
def ends(closed):
    return closed(pair())


@pytest.fixture
def admission(one):
    made = Admission(one.tables)
    made.set_keys(KEY, COOKIE_KEY)
    return made


def initiation():
    return cookie.add_macs(b"\1\0\0\0" + os.urandom(144), KEY)


def data_train(one, count, first):
    """Messages that are as long as an initiation, but the last is shorter."""
    return [message(one, first + n, udp(B4, A4, bytes(88))) for n in range(count)]


@contextmanager
def memory_of(tables):
    """The shared memory, as a worker has it."""
    with mmap.mmap(tables.state_fd, 0) as memory:
        yield memory


def claim(memory, data, before, tail):
    """The ring of which the first slot holds `data`, so many bytes behind the slots' begin, claims
    that so many came in."""
    at = memory.find(data) - before - 8
    assert at > 0 and struct.unpack("=Q", memory[at:at + 8]) == (1,)
    memory[at:at + 8] = struct.pack("=Q", tail)


# -- control packets

def send_control(one, two, counter, **more):
    two.udp.sendto(message(one, counter, HELLO, **more), one.udp.getsockname())
    one.poll(more.pop("now", START))


def second_peer(one):
    """Another peer of the first end: the index and key of a session of its."""
    peer = one.tables.peers.add()
    slot, index = one.tables.keypairs.reserve(0)
    one.tables.keypairs.install(slot, NewKeypair(
        local_index=index, remote_index=9, peer=peer, worker=0, send_key=bytes(32),
        receive_key=bytes([5]) * 32, is_initiator=True, rekey_at_ns=START + REJECT_AFTER_TIME,
        rekey_rx_at_ns=START + REJECT_AFTER_TIME, reject_at_ns=START + REJECT_AFTER_TIME))
    return peer, index, bytes([5]) * 32


def test_control_packets_go_to_the_supervisor(one, two):
    two.udp.sendto(message(one, 7, HELLO + bytes(9)), one.udp.getsockname())
    one.poll()
    assert one.tables.workers.controls(0) == [(one.peer, one.index, HELLO + bytes(9))]
    two.udp.sendto(message(one, 200, b"\xf0\1" + bytes(2000)), one.udp.getsockname())
    one.poll()
    assert one.verdicts() == {"DROP_CONTROL_FULL": 1}


def test_the_control_packets_of_one_peer_leave_room_for_those_of_another(one, two):
    peer, index, key = second_peer(one)
    for counter in range(200):
        send_control(one, two, counter)
    send_control(one, two, 0, index=index, key=key)
    taken = one.tables.workers.controls(0)
    assert [each[0] for each in taken] == [one.peer] * OF_A_PEER + [peer]
    assert one.verdicts() == {"DROP_CONTROL_RATE": 200 - OF_A_PEER}


def test_a_peer_may_send_more_control_packets_later(one, two):
    for counter in range(20):
        send_control(one, two, counter)
    assert len(one.tables.workers.controls(0)) == OF_A_PEER
    for counter in range(20, 40):
        two.udp.sendto(message(one, counter, HELLO), one.udp.getsockname())
    for _ in range(4):
        one.poll(START + SECOND // 2)
    assert len(one.tables.workers.controls(0)) == OF_A_PEER // 2


def test_with_plain_wireguard_control_packets_end_in_the_worker(one, two):
    one.tables.takes_control_packets = False
    for counter, inner in enumerate((HELLO, plainlanes.end(5, 0))):
        two.udp.sendto(message(one, counter, inner), one.udp.getsockname())
        one.poll()
    assert one.tables.workers.controls(0) == []
    assert one.verdicts() == {"DROP_CONTROL_UNWANTED": 2}


def test_a_worker_that_claims_more_control_packets_than_a_ring_holds_is_not_believed(one, two):
    send_control(one, two, 0)
    with memory_of(one.tables) as memory:
        claim(memory, HELLO, 12, 1 << 20)
    assert one.tables.workers.controls(0) == []
    send_control(one, two, 1)
    assert len(one.tables.workers.controls(0)) == 1


# -- handshake messages that come to a worker

def test_a_handshake_message_behind_data_goes_to_the_supervisor(one, two, admission):
    first = initiation()
    send_train(two.udp, one.udp, [*data_train(one, 3, 0), first])
    one.poll()
    ((taken, sockaddr, _),) = admission.receive_misdelivered(0, NO_SOCKET, START)
    assert taken == first
    assert sockaddr == two.endpoint.sockaddr(socket.AF_INET6)
    assert len(b"".join(one.take())) > 3 * 88 and one.verdicts() == {}


@pytest.mark.parametrize("datagram", [
    b"\1\0\0\0" + bytes(1000), b"\1\0\0\0" + bytes(88), b"\2\0\0\0" + bytes(144),
    b"\3\0\0\0" + bytes(61), b"\0\0\0\0" + bytes(144), b"\1\1\0\0" + bytes(144),
], ids=["long", "initiation", "response", "cookie", "type 0", "reserved"])
def test_what_is_no_handshake_message_is_dropped_there(one, two, datagram):
    two.udp.sendto(datagram, one.udp.getsockname())
    one.poll()
    assert one.verdicts() == {"DROP_MALFORMED_MESSAGE": 1}


def test_handshake_messages_of_strangers_leave_room_for_a_peers(one, two, admission):
    """Also if they come in the same ring's time."""
    stranger = udp_socket()
    for _ in range(10):
        send_train(stranger, one.udp, [initiation() for _ in range(40)])
    mine = initiation()
    send_train(two.udp, one.udp, [*data_train(one, 1, 0), mine])
    for _ in range(12):
        one.poll()
    taken = [data for data, _, _ in admission.receive_misdelivered(0, NO_SOCKET, START)]
    assert len(taken) == OF_STRANGERS + 1 and taken[-1] == mine
    assert one.verdicts() == {"DROP_MISDELIVERED": 400 - OF_STRANGERS}
    stranger.close()


def test_a_peer_cannot_pass_up_without_bound_either(one, two, admission):
    send_train(two.udp, one.udp, [*data_train(one, 1, 0), *(initiation() for _ in range(50))])
    one.poll()
    assert len(admission.receive_misdelivered(0, NO_SOCKET, START)) == OF_A_PEER
    assert one.verdicts() == {"DROP_MISDELIVERED": 50 - OF_A_PEER}


def test_a_train_of_replays_is_a_strangers(one, two, admission):
    (captured,) = data_train(one, 1, 0)
    two.udp.sendto(captured, one.udp.getsockname())
    one.poll()
    for _ in range(3):
        send_train(two.udp, one.udp, [captured, *(initiation() for _ in range(9))])
    one.poll()
    assert len(admission.receive_misdelivered(0, NO_SOCKET, START)) == OF_STRANGERS
    assert one.verdicts() == {"DROP_REPLAYED": 3, "DROP_MISDELIVERED": 27 - OF_STRANGERS}


def test_strays_are_judged_before_they_cost_python(one, two, admission):
    session = one.index.to_bytes(4, "little")
    for datagram in (b"\1\0\0\0" + bytes(144), initiation(), b"\3\0\0\0" + session + bytes(56),
                     b"\3\0\0\0" + bytes(60)):
        two.udp.sendto(datagram, one.udp.getsockname())
    one.poll()
    assert [data[0] for data, _, _ in admission.receive_misdelivered(0, NO_SOCKET, START)] == [1, 3]
    assert admission.verdicts["DROP_INVALID_MAC1"] == 1
    assert admission.verdicts["DROP_UNEXPECTED_COOKIE"] == 1


def test_a_stray_that_is_answered_with_a_cookie_gets_it(one, two, admission):
    admission.declare_overload(START + SECOND)
    for number in range(50):            # as many as are admitted of strangers
        where = Endpoint.from_python((f"10.0.{number}.1", 9)).sockaddr(socket.AF_INET6)
        admission.judge(initiation(), where, START)
    first = initiation()
    two.udp.sendto(first, one.udp.getsockname())
    one.poll()
    handshake = udp_socket()
    assert admission.receive_misdelivered(0, handshake.fileno(), START) == []
    reply, where = two.udp.recvfrom(100)
    assert where == handshake.getsockname() and admission.verdicts["SENT_COOKIE_REPLY"] == 1
    assert cookie.open_reply(COOKIE_KEY, cookie.mac1_of(first), wire.parse(reply)) is not None
    handshake.close()


def test_a_worker_that_claims_more_strays_than_a_ring_holds_is_not_believed(one, two, admission):
    first = initiation()
    two.udp.sendto(first, one.udp.getsockname())
    one.poll()
    with memory_of(one.tables) as memory:
        claim(memory, first, 52, 1 << 20)
    assert admission.receive_misdelivered(0, NO_SOCKET, START) == []
    two.udp.sendto(first, one.udp.getsockname())
    one.poll()
    assert len(admission.receive_misdelivered(0, NO_SOCKET, START)) == 1


def test_a_stray_with_an_address_of_no_family_is_malformed(one, two, admission):
    first = initiation()
    two.udp.sendto(first, one.udp.getsockname())
    one.poll()
    with memory_of(one.tables) as memory:
        at = memory.find(first) - 44
        memory[at:at + 2] = b"\xff\xff"
    assert admission.receive_misdelivered(0, NO_SOCKET, START) == []
    assert admission.verdicts["DROP_MALFORMED_HANDSHAKE"] == 1


# -- transport messages that come to the supervisor

def received(admission, sock):
    """What one call takes: how many messages, how many are admitted, which workers to wake."""
    count, admitted, passed_on = admission.receive(sock.fileno(), START)
    return count, len(admitted), set(passed_on)


def test_data_behind_a_handshake_message_comes_back_to_the_worker(one, two, admission):
    handshake, packet = udp_socket(), udp(B4, A4, b"stray")
    send_train(two.udp, handshake, [initiation(), message(one, 5, packet)])
    assert received(admission, handshake) == (1, 1, {0})
    one.poll()
    assert one.take() == [PLAIN + packet] and one.verdicts() == {}
    handshake.close()


def test_data_of_no_session_costs_no_worker_anything(one, two, admission):
    handshake = udp_socket()
    send_train(two.udp, handshake, [
        message(one, n, udp(B4, A4, bytes(88)), index=one.index ^ n << 20) for n in range(1, 50)])
    assert received(admission, handshake) == (1, 0, set())
    assert admission.verdicts["DROP_MISDELIVERED"] == 49
    handshake.close()


def test_data_of_a_session_is_passed_on_at_a_rate(one, two, admission):
    handshake = udp_socket()
    for _ in range(2):
        send_train(two.udp, handshake, data_train(one, 40, 0))
    assert received(admission, handshake) == (2, 0, {0})
    assert admission.verdicts["DROP_MISDELIVERED"] == 30
    one.poll()
    assert one.verdicts() == {"DROP_REPLAYED": 10}
    handshake.close()


def test_a_worker_takes_no_more_of_them_at_once_than_a_ring_holds(one, two, admission):
    handshake, first = udp_socket(), data_train(one, 1, 0)[0]
    send_train(two.udp, handshake, [first])
    assert received(admission, handshake) == (1, 0, {0})
    with memory_of(one.tables) as memory:
        claim(memory, first, 52, 1 << 20)
    one.poll()
    assert len(one.take()) == 1 and one.verdicts() == {"DROP_MALFORMED_MESSAGE": RING_LEN - 1}
    handshake.close()


# -- events that a peer could cause by each of its packets

def events_of(end, name, messages, now=START):
    """How often a worker reports an event while the peer sends, if each is handled at once."""
    count = 0
    for sock, message_ in messages:
        sock.sendto(message_, end.udp.getsockname())
        end.poll(now)
        found = [event for event in end.tables.workers.events(0) if event[0] == name]
        count += len(found)
        for _, peer, lane, _, _ in found:
            if name == "roam":
                end.tables.peers.rearm(peer, "roam")
            else:
                end.tables.lanes.rearm(lane, {"lane_roam": "roam_reported",
                                              "lane_echo_request": "echo_reported"}[name])
    return count


def test_a_peer_that_moves_all_the_time_is_followed_at_a_rate(one, two):
    places = [udp_socket() for _ in range(2)]

    def keepalives(first, count):
        return [(places[n % 2], message(one, n, b"")) for n in range(first, first + count)]

    assert events_of(one, "roam", keepalives(0, 200)) == OF_A_PEER
    # It is where it was followed to last; and later where it is then.
    before = one.tables.peers.endpoint(one.peer)
    assert events_of(one, "roam", keepalives(200, 1)) == 0
    assert one.tables.peers.endpoint(one.peer) == before
    assert events_of(one, "roam", keepalives(201, 2), START + SECOND) == 1 + (
        before[0][2:4] != places[1].getsockname()[1].to_bytes(2, "big"))
    assert Endpoint.from_sockaddr(one.tables.peers.endpoint(one.peer)[0]).port \
        == places[0].getsockname()[1]
    for sock in places:
        sock.close()


@pytest.mark.parametrize(("name", "flags", "expected"), [
    ("lane_echo_request", plainlanes.ASK, 2), ("lane_roam", 0, 5)])
def test_a_lane_is_probed_and_moves_at_a_rate(closed, name, flags, expected):
    one, two = closed(lane_pair())
    places = [udp_socket() for _ in range(2)]
    plain = one.plain()

    def messages(first):
        return [(places[n % 2 if name == "lane_roam" else 0],
                 plain.seal(b"", flags, counter=n)) for n in range(first, first + 100)]

    two.tables.workers.events(0)
    assert events_of(two, name, messages(100)) == expected
    assert events_of(two, name, messages(200)) == 0
    assert events_of(two, name, messages(300), START + SECOND) == 2
    for sock in places:
        sock.close()


def test_end_markers_that_come_again_cost_no_superpackets(closed):
    one, two = closed(lane_pair())
    for turn in range(2):
        parts = [message(two, 10 * turn + n, each) for n, each in enumerate((
            tcp(A4, B4, bytes(1000), seq=1), plainlanes.end(two.lanes_index, 0),
            tcp(A4, B4, bytes(1000), seq=1001)))]
        for part in parts:
            one.udp.sendto(part, two.udp.getsockname())
        two.poll()
        assert len(two.take()) == (2, 1)[turn]
