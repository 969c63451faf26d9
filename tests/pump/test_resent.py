"""TCP that sends the same large segment again and again, where nothing is known of the path."""

import pytest

from fastpump.constants import SECOND
from support.packets import A4, A6, ACK, B4, B6, superpacket, tcp
from support.pumps import START, on_the_wire, pair

LARGE, SMALL = bytes(1200), bytes(1160)
FLIGHT = [0, 0.2, 0.6, 1.4]


@pytest.fixture
def one(closed):
    return closed(pair())[0]


def send(one, at, packet):
    """At a time in seconds; the events but those of timers."""
    if isinstance(packet, bytes):
        one.give(packet)
    else:
        one.interface.send(superpacket(*packet))
    one.poll(START + int(at * SECOND))
    return [name + " in pieces" * detail for name, _, detail, *_ in one.tables.workers.events(0)
            if name.startswith("resent")]


def segment(sequence, payload=LARGE, addresses=(A4, B4), flags=ACK, **more):
    return tcp(*addresses, payload, seq=sequence, flags=flags, **more)


@pytest.mark.parametrize("addresses", [(A4, B4), (A6, B6)])
def test_the_third_time_it_is_reported_once(one, addresses):
    packet = segment(7, addresses=addresses)
    assert [send(one, at, packet) for at in (*FLIGHT, 3)] == [[], [], [], ["resent"], []]
    one.tables.peers.rearm(one.peer, "resent")
    assert send(one, 6.2, packet) == ["resent"]


NEXT = 7 + len(LARGE)
RST = 4
NOTHING = [
    segment(7),                                 # once more
    segment(NEXT, sport=4),                     # another flow
    segment(6),
    segment(NEXT, b""),                         # an ACK: of what comes next
    segment(NEXT, b"x", flags=ACK | RST),
]


@pytest.mark.parametrize("others", [[], NOTHING])
def test_the_flow_goes_on_as_it_was(one, others):
    for at in FLIGHT:
        send(one, at, segment(7))
    for packet in [*others, segment(NEXT, SMALL)]:      # a small one may be sent before the ack
        assert send(one, 2, packet) == []
    assert send(one, 2, segment(NEXT)) == ["resent_acked"]
    assert send(one, 2, segment(NEXT + 1)) == []


@pytest.mark.parametrize("others", [[], NOTHING])
def test_the_flow_goes_on_in_pieces_that_fit(one, others):
    for at in FLIGHT:
        send(one, at, segment(7))
    one.tables.peers.set_payload_mtu(one.peer, 1220)
    for packet in [*others, segment(NEXT, SMALL)]:
        assert send(one, 3, packet) == []
    assert send(one, 3, segment(7, SMALL)) == []
    for packet in others:
        assert send(one, 3, packet) == []
    assert send(one, 3, segment(7 + len(SMALL), SMALL)) == ["resent_acked in pieces"]


def test_what_was_long_ago_says_nothing(one):
    for at in FLIGHT:
        send(one, at, segment(7))
    assert send(one, 40, segment(NEXT)) == []


def test_tcp_that_goes_back_sends_again(one):
    """A flight in two superpackets, of which the first was lost, too; then single segments."""
    flight = [(segment(sequence, bytes(12000)), 1200) for sequence in (1000, 13000)]
    assert send(one, 0, flight[0]) == send(one, 0, flight[1]) == []
    assert [send(one, at, segment(1000)) for at in (0.2, 0.6, 1.4)] == [[], [], ["resent"]]


@pytest.mark.parametrize("sent", [
    [(at, segment(7, SMALL)) for at in FLIGHT],                             # it would pass
    [(at / 2, segment(7)) for at in FLIGHT],                                # too soon
    [(at, segment(7 + number)) for number, at in enumerate(FLIGHT)],        # TCP goes on
    [(at, segment(2**32 - 2 + number)) for number, at in enumerate(FLIGHT)],
    [(at, segment(7, sport=80 + number)) for number, at in enumerate(FLIGHT)],
])
def test_what_says_nothing(one, sent):
    assert [event for at, packet in sent for event in send(one, at, packet)] == []


def test_nothing_is_watched_where_the_path_is_known(one):
    one.tables.peers.set_payload_mtu(one.peer, None)
    assert [event for at in FLIGHT for event in send(one, at, segment(7))] == []
    one.tables.peers.set_unprobed(one.peer)
    assert one.tables.peers.payload_mtu(one.peer) is None
    assert [event for at in FLIGHT for event in send(one, at, segment(7))] == ["resent"]


def test_all_of_it_leaves(closed):
    one, two = closed(pair())
    on_the_wire(two)
    for at in FLIGHT:
        send(one, at, segment(7))
    assert len(on_the_wire(two)) == len(FLIGHT)
