"""Superpackets that travel whole on a lane."""

import pytest

from fastpump import _core
from fastpump._core import FEATURE_RECORDS
from fastpump.constants import SECOND
from support.packets import (
    A4,
    A6,
    ACK,
    B4,
    B6,
    CWR,
    NEEDS_CSUM,
    SYN,
    parse_vnet,
    superpacket,
    tcp,
    udp,
)
from support.plainlanes import BUNDLE, EXTENSION, FENCE, FRAME, PARTIAL, RECORD, RELAY
from support.pumps import (
    ALL_FEATURES,
    EVERYTHING,
    START,
    carry,
    datagrams,
    lane_pair,
    on_the_wire,
    send_train,
)

PAIRS = {"v4": (A4, B4), "v6": (A6, B6)}
DATA = bytes(range(251)) * 80


def record_pair(*, are_used=True, **more):
    ends = lane_pair(**more)
    for end in ends:
        end.tables.lanes.set_records(end.first, are_used)
    return ends


@pytest.fixture
def ends(closed):
    return closed(record_pair())


def give(end, vnet_and_packet):
    """A superpacket from the host."""
    end.interface.send(vnet_and_packet)
    end.poll()


def from_peer(one, two, payload, flags=PARTIAL | RECORD, *, cut=None, datagram_len=1452, **more):
    """A record of the plain implementation, from two's peer, as a train; `cut`: so many datagrams
    of it only."""
    sealed = one.plain().seal(payload, flags, counter=one.take_counter(), **more)
    pieces = [sealed[at:at + datagram_len] for at in range(0, len(sealed), datagram_len)]
    where = two.udp
    send_train(one.lane_sockets[0], where, pieces[:cut])
    two.poll()
    return two.take()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("make, size", [(tcp, 1360), (udp, 1372), (tcp, 500)])
def test_a_superpacket_travels_whole(ends, pair, make, size):
    one, two = ends
    given = superpacket(make(*pair, DATA), size)
    give(one, given)
    two.poll()
    (written,) = two.take()
    (vnet, packet), (given_vnet, given_packet) = parse_vnet(written), parse_vnet(given)
    assert packet == given_packet
    assert (vnet.flags, vnet.gso_type, vnet.gso_size, vnet.csum_start, vnet.csum_offset) == (
        NEEDS_CSUM, given_vnet.gso_type, size, given_vnet.csum_start, given_vnet.csum_offset)
    sent, received = one.counters(), two.counters()
    assert (sent["udp_tx_records"], received["udp_rx_records"]) == (1, 1)
    header = given_vnet.csum_start + (20 if make is tcp else 8)
    assert sent["udp_tx_datagrams"] == -(-(len(packet) + 36) // (header + size + 32))
    assert received["udp_rx_datagrams"] == sent["udp_tx_datagrams"] + 1     # of lane_pair
    assert received["tun_tx_packets"] == -(-len(DATA) // size)
    assert not one.verdicts() and not two.verdicts()


def test_as_the_plain_implementation_has_it(ends):
    one, two = ends
    _, packet = parse_vnet(superpacket(tcp(A4, B4, DATA), 1360))
    give(one, superpacket(tcp(A4, B4, DATA), 1360))
    pieces = on_the_wire(two)
    assert {len(piece) for piece in pieces[:-1]} == {1432} and len(pieces[-1]) < 1432
    sealed = b"".join(pieces)
    assert two.plain().open(sealed) == (PARTIAL | RECORD, packet)
    assert sealed[16:20] == len(sealed).to_bytes(2, "little") + (1360).to_bytes(2, "little")
    assert from_peer(two, one, b"", 0) == []
    (written,) = from_peer(one, two, packet, segment_size=1360)
    assert parse_vnet(written)[1] == packet


@pytest.mark.parametrize("length", range(20_000, 20_000 + 1432, 179))
def test_the_last_datagram_is_shorter(ends, length):
    """Whatever the length: also where it would be as long as the others."""
    one, two = ends
    give(one, superpacket(tcp(A4, B4, bytes(1432 * 14 - 76)), 1360))
    give(one, superpacket(tcp(A4, B4, bytes(length)), 1360))
    pieces = on_the_wire(two)
    ends_of = [at for at, piece in enumerate(pieces) if len(piece) < 1431]
    assert len(ends_of) == 2 and ends_of[-1] == len(pieces) - 1


@pytest.mark.parametrize("whole, size", [
    (tcp(A4, B4, bytes(3000)), 1000), (tcp(A4, B4, DATA, flags=ACK | CWR), 1360),
    (udp(A4, B4, DATA), 300), (tcp(A4, B4, DATA), 100)],
    ids=["three segments", "CWR", "more than UDP GSO takes", "more datagrams than a send takes"])
def test_what_goes_in_single_messages(ends, whole, size):
    one, two = ends
    give(one, superpacket(whole, size))
    two.poll()
    two.take()
    assert one.counters()["udp_tx_records"] == two.counters()["udp_rx_records"] == 0
    assert one.counters()["udp_tx_datagrams"] >= 3 and not two.verdicts()


@pytest.mark.parametrize("options", [
    {"are_used": False}, {"offloads": EVERYTHING[1:]}], ids=["not probed", "no GSO"])
def test_where_they_are_not_used(closed, options):
    one, two = closed(record_pair(**options))
    give(one, superpacket(tcp(A4, B4, DATA), 1360))
    two.poll()
    assert parse_vnet(b"".join(two.take()))[1] and one.counters()["udp_tx_records"] == 0


@pytest.mark.parametrize("make, size", [(tcp, 1360), (udp, 1372)])
def test_where_the_kernel_takes_no_superpackets(closed, make, size):
    one, two = closed(record_pair())
    two.tables.offloads = ("udp-gso",)
    whole = make(A4, B4, DATA)
    give(one, superpacket(whole, size))
    two.poll()
    written = [parse_vnet(each) for each in two.take()]
    assert [packet for _, packet in written] == _core.split(
        superpacket(whole, size), may_leave_partial=True)
    assert {vnet.gso_type for vnet, _ in written} == {0}
    assert {vnet.flags for vnet, _ in written} == {NEEDS_CSUM}
    assert two.counters()["tun_tx_packets"] == len(written)


@pytest.mark.parametrize("before, is_ended", [(1000, False), (1403, True), (1404, True)])
def test_gro_cannot_join_it_to_what_was_sent_before(ends, before, is_ended):
    """A shorter datagram ends a train; a longer one begins another."""
    one, two = ends
    one.give(udp(A4, B4, bytes(before - 60)))
    one.poll()
    for _ in range(2):
        give(one, superpacket(tcp(A4, B4, DATA[:19_000]), 1331))
    assert one.counters()["udp_tx_records"] == 2
    pieces = on_the_wire(two)
    assert [len(piece) for piece in pieces].count(36) == is_ended
    plain = two.plain()
    assert not is_ended or plain.open(pieces[1]) == (EXTENSION, b"\4\0\0\0")
    for piece in pieces[:1 + is_ended]:
        one.lane_sockets[0].sendto(piece, two.udp.getsockname())
    two.poll()
    assert len(two.take()) == 1 and not two.verdicts()


def test_packets_that_may_be_marked_go_alone(ends):
    one, _ = ends
    give(one, superpacket(tcp(A4, B4, DATA, tos=2), 1360))
    give(one, superpacket(tcp(A4, B4, DATA, tos=4), 1360))
    assert one.counters()["udp_tx_records"] == 1


def test_datagrams_fit_the_path(ends):
    """What is larger may travel in fragments, which GRO never puts together."""
    one, two = ends
    one.tables.peers.set_payload_mtu(one.peer, 1200)
    packet = udp(A4, B4, DATA, df=False)
    give(one, superpacket(packet, 1372))
    pieces = on_the_wire(two)
    assert one.counters()["udp_tx_records"] == 1
    assert {len(piece) for piece in pieces[:-1]} == {1232}


def test_limits_by_messages_hold(ends):
    """A counter for each 2 KiB."""
    one, two = ends
    before = one.lane()["tx_messages"]
    give(one, superpacket(tcp(A4, B4, DATA), 1360))
    assert one.lane()["tx_messages"] == before + -(-len(GOOD) // 2048)
    for _ in range(300):
        give(one, superpacket(tcp(A4, B4, DATA), 1360))
        two.poll()
        two.take()
    assert not two.verdicts()


def test_a_lane_that_moves_has_none(ends):
    one, two = ends
    assert two.lane()["has_records"]
    sender = one.lane_sockets[1]
    sender.sendto(one.plain().seal(counter=one.take_counter()), two.udp.getsockname())
    two.poll()
    assert not two.lane()["has_records"]
    one.tables.lanes.set_endpoint(one.first, one.lane()["endpoint"])
    assert not one.lane()["has_records"]


def test_a_rate_limit_holds_where_they_are_split(closed):
    one, two = closed(record_pair())
    two.tables.offloads = ("udp-gso",)
    two.tables.limiters.set(None, "rx", None, (100, SECOND, 0), START)
    for _ in range(20):
        give(one, superpacket(tcp(A4, B4, DATA), 1360))
        two.poll()
    assert len(two.take()) == 100 and two.counters()["shaped_packets"] > 0


def test_a_flow_keeps_its_order(ends):
    """What comes before a record is not joined by what comes behind it."""
    one, two = ends
    sizes = [1300, 19_040, 1300, 1300, 19_040, 100]
    at = 0
    for size in sizes:
        packet = tcp(A4, B4, DATA[:size], seq=at)
        one.interface.send(superpacket(packet, 1360))
        at += size
    one.poll()
    two.poll()
    packets = [parse_vnet(each)[1] for each in two.take()]
    sequences = [int.from_bytes(packet[24:28], "big") for packet in packets]
    assert sequences == sorted(sequences)
    assert sum(len(packet) - 40 for packet in packets) == sum(sizes)
    assert two.counters()["udp_rx_records"] == 2


# -- what is refused

GOOD = parse_vnet(superpacket(tcp(A4, B4, DATA), 1360))[1]


@pytest.mark.parametrize("payload, flags, size, verdict", [
    (GOOD, RECORD, 1360, "DROP_MALFORMED_RECORD"),
    (GOOD, PARTIAL | RECORD | BUNDLE, 1360, "DROP_MALFORMED_RECORD"),
    (GOOD, PARTIAL | RECORD | FRAME, 1360, "DROP_MALFORMED_MESSAGE"),
    (GOOD, PARTIAL | RECORD | RELAY, 1360, "DROP_MALFORMED_MESSAGE"),
    (GOOD, PARTIAL | RECORD, 0, "DROP_MALFORMED_RECORD"),
    (GOOD, PARTIAL | RECORD, 39, "DROP_MALFORMED_RECORD"),
    (GOOD, PARTIAL | RECORD, 20_080, "DROP_MALFORMED_RECORD"),
    (GOOD[:-1], PARTIAL | RECORD, 1360, "DROP_MALFORMED_INNER"),
    (udp(A4, B4, DATA), PARTIAL | RECORD, 300, "DROP_MALFORMED_RECORD"),
    (tcp(A4, B4, DATA, flags=SYN), PARTIAL | RECORD, 1360, "DROP_MALFORMED_RECORD"),
    (tcp(A4, B4, DATA, flags=ACK | CWR), PARTIAL | RECORD, 1360, "DROP_MALFORMED_RECORD"),
    (tcp("10.9.0.7", B4, DATA), PARTIAL | RECORD, 1360, "DROP_SOURCE_NOT_ALLOWED"),
    (GOOD, RECORD | EXTENSION, 0, "DROP_MALFORMED_INNER"),
])
def test_what_no_kernel_would_have_made(ends, payload, flags, size, verdict):
    one, two = ends
    payload += bytes(0 if (len(payload) + 36) % 1452 else 1)
    assert from_peer(one, two, payload, flags, segment_size=size) == []
    assert two.verdicts() == {verdict: 15 if verdict == "DROP_SOURCE_NOT_ALLOWED" else 1}
    assert len(from_peer(one, two, GOOD, segment_size=1360)) == 1


@pytest.mark.parametrize("cut", [1, 2, 13])
def test_one_that_came_in_part_is_lost_and_told(ends, cut):
    one, two = ends
    assert from_peer(one, two, GOOD, cut=cut, segment_size=1360) == []
    verdicts = two.verdicts()
    assert verdicts.pop("DROP_RECORD_CUT") == 1 and two.events() == ["record_cut"]
    assert sum(verdicts.values()) == cut - 1        # what has no header is something else
    assert len(from_peer(one, two, GOOD, segment_size=1360)) == 1


def test_datagrams_that_come_one_by_one(ends):
    """No GRO: the first tells, the others are nothing."""
    one, two = ends
    sealed = one.plain().seal(GOOD, PARTIAL | RECORD, counter=one.take_counter(),
                              segment_size=1360)
    for at in range(0, len(sealed), 1452):
        one.lane_sockets[0].sendto(sealed[at:at + 1452], two.udp.getsockname())
        two.poll()
    assert two.take() == []
    assert two.verdicts()["DROP_RECORD_CUT"] == 1 and two.events() == ["record_cut"]


def test_whoever_makes_them_up_cannot_fill_the_event_ring(ends):
    one, two = ends
    for _ in range(200):
        from_peer(one, two, GOOD, cut=1, segment_size=1360)
    assert two.verdicts() == {"DROP_RECORD_CUT": 200} and len(two.events()) == 5


@pytest.mark.parametrize("length, verdict", [
    (0, "DROP_RECORD_CUT"), (65535, "DROP_RECORD_CUT"), (len(GOOD) + 36, None)])
def test_the_length_is_that_of_the_header(ends, length, verdict):
    one, two = ends
    from_peer(one, two, GOOD, segment_size=1360, length=length)
    assert two.verdicts().get(verdict) == (1 if verdict else None)


def test_who_puts_one_into_a_train_of_others_costs_them_nothing(ends):
    """It has the size of the others, and even the right length, but no index of ours."""
    one, two = ends

    def single():
        return one.plain().seal(udp(A4, B4, bytes(1452 - 32 - 28)), PARTIAL,
                                counter=one.take_counter())

    for index, length in ((1, 3 * 1452), (one.other.lanes_index, 9)):
        forged = bytes([5, PARTIAL | RECORD, 0, 0]) + index.to_bytes(4, "little") + bytes(
            [7] * 8) + length.to_bytes(2, "little")
        send_train(one.lane_sockets[0], two.udp, [
            single(), forged.ljust(1452, b"x"), single(), single()])
        two.poll()
    packets = [parse_vnet(each) for each in two.take()]
    assert sum(len(packet) // 1392 for _, packet in packets) == 6
    assert two.verdicts() == {"DROP_UNKNOWN_INDEX": 1, "DROP_RECORD_CUT": 1}


def test_too_short_for_its_fields(ends):
    one, two = ends
    message = one.plain().seal(b"", RECORD, counter=one.take_counter())
    for short in (message[:35], message[:32]):
        one.send_lane(short)
        two.poll()
    assert two.verdicts() == {"DROP_MALFORMED_MESSAGE": 2}


def test_whoever_said_that_it_takes_none(closed):
    one, two = closed(lane_pair(features=ALL_FEATURES & ~FEATURE_RECORDS))
    assert from_peer(one, two, GOOD, segment_size=1360) == []
    from_peer(one, two, GOOD, segment_size=1360, cut=1)
    assert two.verdicts() == {"DROP_MALFORMED_RECORD": 2} and two.events() == []


def test_changed_or_again(ends):
    one, two = ends
    sealed = one.plain().seal(GOOD, PARTIAL | RECORD, counter=one.take_counter(),
                              segment_size=1360)
    pieces = [sealed[at:at + 1452] for at in range(0, len(sealed), 1452)]
    changed = [*pieces[:5], bytes([pieces[5][0] ^ 1]) + pieces[5][1:], *pieces[6:]]
    size = [pieces[0][:18] + b"\x51" + pieces[0][19:], *pieces[1:]]
    for train in (changed, size, pieces, pieces):
        send_train(one.lane_sockets[0], two.udp, train)
        two.poll()
    assert len(two.take()) == 1
    assert two.verdicts() == {"DROP_UNAUTHENTIC": 2, "DROP_REPLAYED": 1}


def test_behind_datagrams_of_the_same_length(ends):
    """GRO may put a record behind what came before it."""
    one, two = ends
    single = one.plain().seal(udp(A4, B4, bytes(1452 - 32 - 28)), PARTIAL,
                              counter=one.take_counter())
    sealed = one.plain().seal(GOOD, PARTIAL | RECORD | FENCE, counter=one.take_counter(),
                              segment_size=1360)
    send_train(one.lane_sockets[0], two.udp,
               [single, *(sealed[at:at + 1452] for at in range(0, len(sealed), 1452))])
    two.poll(START + SECOND)
    two.poll(START + 2 * SECOND)
    assert len(two.take()) == 2 and not two.verdicts()


# -- probes, and when they are wanted

def test_a_record_of_zeros_is_a_probe_of_that_size(ends):
    one, two = ends
    probe = bytes([1, 0, 4, 0, 7, 0, 0, 0]).ljust(30_000, b"\0")
    assert from_peer(one, two, probe, RECORD | EXTENSION) == []
    ((name, _, slot, number_and_size, _),) = two.tables.workers.events(0)
    assert (name, slot, number_and_size) == ("path_probe", two.first, 7 << 16 | 30_032)


def test_the_peer_ends_them(ends):
    one, two = ends
    assert from_peer(one, two, bytes([3, 0, 4, 0, 0, 0, 0, 0]), EXTENSION) == []
    assert two.events() == ["records_end"] and not two.verdicts()


def test_much_is_told_once_a_second(closed):
    one, two = closed(record_pair(are_used=False))
    given = superpacket(tcp(A4, B4, bytes(60_000)), 1360)

    def told(now, count):
        for _ in range(count):
            one.interface.send(given)
            one.poll(now)
            datagrams(two.udp)
        return one.events().count("lane_bulk")

    ms = SECOND // 1000
    assert told(START, 15) == 0                             # 0.9 MB
    assert told(START + 150 * ms, 10) == 0                  # not within 100 ms
    assert told(START + 160 * ms, 20) == 1
    assert told(START + 900 * ms, 60) == 0
    assert told(START + 1200 * ms, 20) == 1
    one.tables.lanes.set_records(one.first, True)
    assert told(START + 3000 * ms, 60) == 0


def test_single_packets_are_not_much(closed):
    one, two = closed(record_pair(are_used=False))
    for _ in range(1500):
        carry(one, two, udp(A4, B4, bytes(1300)))
    assert "lane_bulk" not in one.events()
