"""Messages of ours that come back as packets for the peer that they were for."""

import pytest

from support.packets import A4, A6, B4, B6, VNET, frame, superpacket, udp
from support.pumps import carry, lane_pair, pair
from support.sites import HOST, close, network, settle

INNER = udp(A4, B4, bytes(100))


@pytest.fixture(params=["session", "lanes"])
def ends(request, closed):
    return closed((pair if request.param == "session" else lane_pair)())


def sealed(one, two):
    """A message to `two` as it is on the wire."""
    one.give(INNER)
    one.poll()
    return two.udp.recv(65536)


def as_packet(message, version=4, **more):
    addresses = (A4, B4) if version == 4 else (A6, B6)
    return udp(*addresses, message, sport=51820, dport=51820, **more)


@pytest.mark.parametrize("version", [4, 6])
def test_its_own_message_is_not_sealed_again(ends, version):
    one, two = ends
    message = sealed(one, two)
    before = one.counters()["udp_tx_datagrams"]
    one.events()
    for _ in range(3):
        assert carry(one, two, as_packet(message, version)) == []
    assert one.verdicts() == {"DROP_LOOP": 3}
    assert one.counters()["udp_tx_datagrams"] == before
    assert one.events().count("loop") == 1
    one.tables.peers.rearm(one.peer, "loop")
    carry(one, two, as_packet(message, version))
    assert one.events().count("loop") == 1


def test_a_train_of_them_neither(ends):
    one, two = ends
    message = sealed(one, two)
    one.interface.send(superpacket(as_packet(message * 3), len(message)))
    one.poll()
    assert one.verdicts() == {"DROP_LOOP": 1} and two.take() == []


def test_all_else_passes(ends):
    """Another tunnel's messages, what is shorter, what only looks like one, other protocols."""
    one, two = ends
    message = sealed(one, two)
    others = [
        message[:4] + bytes([message[4] ^ 1]) + message[5:],
        b"\1" + message[1:],
        message[:31],
        b"",
    ]
    for other in others:
        packet = as_packet(other)
        assert [data[VNET.size:] for data in carry(one, two, packet)] == [packet]
    later = as_packet(message, offset=1480)
    assert [data[VNET.size:] for data in carry(one, two, later)] == [later]
    assert one.verdicts() == {}


def test_a_frame_s_packet_counts(closed):
    sites = network("a", "b")
    a, b = sites.values()
    a.give(frame(HOST["b"], HOST["a"], INNER))
    a.poll()
    message = b.udp.recv(65536)
    a.give(frame(HOST["b"], HOST["a"], as_packet(message)))
    settle(sites)
    assert a.verdicts() == {"DROP_LOOP": 1} and b.take() == []
    close(sites)
