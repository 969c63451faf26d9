"""The reorder buffer is all peers': nobody can fill it for the others."""

import socket
import struct

import pytest

from fastpump._core import NewLanes
from fastpump.constants import SECOND
from support.packets import A4, B4, udp
from support.plainlanes import FENCE, PlainLane
from support.pumps import ALL_FEATURES, START, lane_pair, send_train, udp_socket

MS = SECOND // 1000
SMALL = udp(A4, B4, b"small")
OTHER4 = "10.9.0.77"
CAPACITY = 2048         # small messages
TRAIN = 60


@pytest.fixture
def ends(closed):
    return closed(lane_pair())


@pytest.fixture
def stranger():
    with udp_socket() as made:
        yield made


def send(sock, end, messages):
    """Messages of one length that come to an end's port."""
    for at in range(0, len(messages), TRAIN):
        send_train(sock, end.udp, messages[at:at + TRAIN])
        end.poll()
    end.poll()


def fenced(lane, packet, count, first=1000):
    return [lane.seal(packet, FENCE, counter=first + n) for n in range(count)]


def other_peer(end):
    """Another peer of an end: its side of a lane, as the plain implementation has it."""
    peer = end.tables.peers.add()
    end.tables.allowed_ips.insert(socket.inet_aton(OTHER4), 32, peer)
    first, index = end.tables.lanes.reserve(peer, 1)
    keys = bytes([1]) * 32, bytes([2]) * 32
    end.tables.lanes.install(first, NewLanes(
        remote_index=9, cipher="aes-256-gcm", features=ALL_FEATURES, keys=[keys],
        endpoints=[(b"", bytes(16))], sockets=None, rekey_at_ns=2 * START,
        rekey_rx_at_ns=2 * START, reject_at_ns=2 * START))
    return PlainLane(0, index, *keys[::-1])


def junk(index, count):
    """What nobody has authenticated, for a set whose keys are not known yet."""
    return [b"\5\0\0\0" + struct.pack("<IQ", index, n) + bytes(40) for n in range(count)]


def test_strangers_leave_room_for_what_is_authentic(one, two, stranger):
    _, index = two.tables.lanes.reserve(two.peer, 1)
    send(stranger, two, junk(index, 3000))
    dropped = two.verdicts()["DROP_HOLD_FULL"]
    assert 3000 - dropped == CAPACITY // 9
    send(one.lane_sockets[0], two, fenced(one.plain(), SMALL, CAPACITY // 4))
    assert two.take() == [] and two.verdicts() == {"DROP_HOLD_FULL": dropped}
    two.poll(START + 20 * MS)
    assert two.counters()["tun_tx_packets"] == CAPACITY // 4


def test_a_peer_leaves_room_for_others(one, two, stranger):
    other, packet = other_peer(two), udp(OTHER4, B4, b"small")
    send(one.lane_sockets[0], two, fenced(one.plain(), SMALL, 3000))
    assert two.verdicts() == {"DROP_HOLD_FULL": 3000 - CAPACITY // 2}
    send(stranger, two, fenced(other, packet, 3000))
    assert two.verdicts() == {"DROP_HOLD_FULL": 6000 - CAPACITY // 2 - CAPACITY // 4}
    two.poll(START + 20 * MS)
    assert two.counters()["tun_tx_packets"] == CAPACITY // 2 + CAPACITY // 4


def test_big_messages_take_more_of_it(one, two):
    big = udp(A4, B4, bytes(16000))
    for message in fenced(one.plain(), big, 400):
        one.send_lane(message)
        two.poll()
    held = 400 - two.verdicts()["DROP_HOLD_FULL"]
    assert held == (4 << 20) // 2 // (16000 + 28 + 32)


def test_room_comes_back(one, two, stranger):
    _, index = two.tables.lanes.reserve(two.peer, 1)
    packet, dropped = udp(OTHER4, B4, b"small"), 0
    for _ in range(3):
        send(stranger, two, junk(index, 300))
        dropped += 300 - CAPACITY // 9
        assert two.verdicts()["DROP_HOLD_FULL"] == dropped
        two.poll(START + 20 * MS)
        send(stranger, two, fenced(other_peer(two), packet, 1100))
        dropped += 1100 - CAPACITY // 2
        assert two.verdicts()["DROP_HOLD_FULL"] == dropped
        two.poll(START + 20 * MS)
    assert two.counters()["tun_tx_packets"] == 3 * CAPACITY // 2
