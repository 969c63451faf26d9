"""Rate limits in the data plane, in a time that the tests make: exact, fair, in order."""

import select
import struct

import pytest

from fastpump.constants import SECOND
from support.packets import A4, ACK, B4, PLAIN, VNET, superpacket, tcp, udp
from support.pumps import START, datagrams, lane_pair
from support.sites import close, network

MS = SECOND // 1000


@pytest.fixture
def ends():
    both = lane_pair(offloads=("udp-gso",))     # what is written is not coalesced
    yield both
    for end in both:
        end.close()


def numbered(number, size):
    """A UDP packet of `size` bytes that says its number."""
    return udp(A4, B4, struct.pack("!I", number).ljust(size - 28, b"\0"))


def offered(one, two, sizes, seconds, load, vnet=PLAIN, step=MS, start=START, packet=numbered):
    """Offer `load` packets in each step; what came out of the other side: [(time, packet)]."""
    got, number = [], 0
    for at in range(start, start + int(seconds * SECOND), step):
        for _ in range(load):
            one.give(packet(number, sizes), vnet)
            number += 1
        one.poll(at)
        two.poll(at)
        got += [(at, data[VNET.size:]) for data in two.take()]
    # On a busy machine the kernel delivers some of it later.
    while select.select([two.udp, *two.lane_sockets], [], [], 0.01)[0]:
        two.poll(at)
        got += [(at, data[VNET.size:]) for data in two.take()]
    return got


def limits_bytes(end, way, per_s, size, burst=0, peer=None):
    end.tables.limiters.set(peer, way, (size, size * SECOND // per_s, burst), None, START)


@pytest.mark.parametrize("whose", ["interface", "peer"])
@pytest.mark.parametrize("way", ["tx", "rx"])
@pytest.mark.parametrize(("per_s", "load"), [(1_250_000, 3), (12_500_000, 15), (125_000, 1)])
def test_bytes_are_limited_exactly(ends, way, whose, per_s, load):
    one, two = ends
    limited = one if way == "tx" else two
    limits_bytes(limited, way, per_s, per_s // 20,
                 peer=limited.peer if whose == "peer" else None)
    got = offered(one, two, 1400, 3, load)
    total = sum(len(packet) for _, packet in got)
    assert total == pytest.approx(3 * per_s + per_s // 20, rel=0.01)
    late = sum(len(packet) for at, packet in got if at >= START + SECOND)
    assert late == pytest.approx(2 * per_s, rel=0.01)       # and evenly
    numbers = [struct.unpack("!I", packet[28:32])[0] for _, packet in got]
    assert numbers == sorted(numbers)
    assert limited.counters()["shaped_packets"] > len(got) / 2
    dropped = limited.verdicts()["DROP_RATE_LIMIT"]
    left = load * 3000 - len(got) - dropped
    assert 0 <= left <= 0.26 * per_s / 1400         # what waits: a quarter of a second


@pytest.mark.parametrize("way", ["tx", "rx"])
def test_operations_are_packets(ends, way):
    one, two = ends
    limited = one if way == "tx" else two
    limited.tables.limiters.set(None, way, None, (50, 50 * MS, 0), START)
    assert len(offered(one, two, 60, 4, 5)) == pytest.approx(4050, abs=10)


def test_a_superpacket_counts_as_its_packets(ends):
    one, two = ends
    one.tables.limiters.set(None, "tx", None, (100, SECOND, 0), START)
    data = superpacket(tcp(A4, B4, bytes(13000), flags=ACK), 1300)      # ten of them
    wire = 0
    for at in range(START, START + 2 * SECOND, 10 * MS):
        one.give(data[VNET.size:], data[:VNET.size])
        one.poll(at)
        wire += len(datagrams(two.udp))
    assert wire == pytest.approx(300, abs=10)
    one.tables.limiters.set(None, "tx", (130_000, SECOND, 0), None, START)
    one.tables.limiters.set(None, "rx", (1, SECOND, 0), None, START)      # the other way is free
    wire = 0
    for at in range(START + 2 * SECOND, START + 4 * SECOND, 10 * MS):
        one.give(data[VNET.size:], data[:VNET.size])
        one.poll(at)
        wire += sum(len(each) - 32 for each in datagrams(two.udp))
    assert wire == pytest.approx(3 * 130_000, rel=0.1)


def test_a_burst_passes_at_once_and_comes_back(ends):
    """`size` after each pause, the one-time burst once."""
    one, two = ends
    limits_bytes(one, "tx", 100_000, 14_000, burst=28_000)
    bursts = []
    for pause in (1, 4, 7):
        bursts.append(len(offered(one, two, 1400, 0.001, 60, start=START + pause * SECOND)))
        offered(one, two, 1400, 0.5, 0, start=START + pause * SECOND + MS)      # what waits
    assert bursts == [30, 10, 10]


def test_nothing_is_larger_than_a_bucket_for_ever(ends):
    """A packet larger than the bucket waits until that is full, and leaves a debt."""
    one, two = ends
    limits_bytes(one, "tx", 14_000, 100)
    got = offered(one, two, 1400, 2, 1, step=100 * MS)
    assert len(got) == pytest.approx(20, abs=2)


def test_who_has_no_limit_does_not_wait_for_who_has():
    sites = network(*"abc")
    a, b, c = (sites[name] for name in "abc")
    a.tables.limiters.set(a.peers["b"], "tx", (1400, SECOND, 0), None, START)
    from support.packets import frame
    for name, number in (("b", 2), ("c", 3)):
        a.tables.fdb.add(bytes([2, 0, 0, 0, 0, number]), 0, a.peers[name], START)
    for _ in range(20):
        for number in (2, 3):
            a.give(frame(f"02:00:00:00:00:0{number}", "02:00:00:00:00:01", bytes(1386),
                         ethertype=0x88B5))
    a.poll()
    b.poll()
    for _ in range(5):
        c.poll()
    assert (len(b.take()), len(c.take())) == (1, 20)
    close(sites)


def test_limits_change_and_go_while_packets_wait(ends):
    one, two = ends
    limits_bytes(one, "tx", 100_000, 1400)
    got = offered(one, two, 1400, 0.1, 2)
    waiting = one.counters()["shaped_packets"] - len(got) + 1
    assert waiting > 5
    one.tables.limiters.set(None, "tx", None, None, START + 100 * MS)
    rest = offered(one, two, 1400, 1, 1, start=START + 100 * MS)
    numbers = [struct.unpack("!I", packet[28:32])[0] for _, packet in got + rest]
    first_new = len(got) + waiting
    assert numbers[:first_new - 1] == sorted(numbers[:first_new - 1])
    assert numbers[first_new:] == sorted(numbers[first_new:])           # counted anew
    shaped = one.counters()["shaped_packets"]
    offered(one, two, 1400, 0.1, 1, start=START + 2 * SECOND)
    assert one.counters()["shaped_packets"] == shaped                   # it is over


def test_a_removed_peer_takes_its_limit_along(ends):
    one, _ = ends
    one.tables.limiters.set(one.peer, "tx", (1, SECOND, 0), None, START)
    one.tables.peers.remove(one.peer)
    one.poll()
    one.tables.retired.reclaim()
    one.tables.retired.reclaim()
    assert one.tables.peers.add() == one.peer
    for _ in range(50):
        one.give(numbered(1, 100))
        one.poll()
    assert "DROP_RATE_LIMIT" not in one.verdicts() and one.counters()["shaped_packets"] == 0


@pytest.mark.parametrize("bucket", [(0, 1, 0), (1, 0, 0)])
def test_a_bucket_that_never_fills_is_a_mistake(ends, bucket):
    with pytest.raises(ValueError, match="a token bucket"):
        ends[0].tables.limiters.set(None, "tx", bucket, None, START)
    with pytest.raises(KeyError):
        ends[0].tables.limiters.set(None, "up", None, None, START)
    with pytest.raises(IndexError):
        ends[0].tables.limiters.set(7, "tx", None, None, START)


def test_extreme_buckets_do_no_harm(ends):
    one, two = ends
    for size, refill in ((1 << 62, 1), (1 << 62, 3_600_000 * MS), (1, 3_600_000 * MS)):
        one.tables.limiters.set(None, "tx", (size, refill, 1 << 62), (size, refill, 0), START)
        offered(one, two, 1400, 0.01, 3)
    assert one.counters()["tun_rx_packets"] == 90


def test_what_waits_for_a_peer_is_not_sent_to_the_next_one_in_its_slot(ends):
    one, two = ends
    limits_bytes(one, "tx", 14_000, 1400)
    offered(one, two, 1400, 0.001, 3)
    assert one.counters()["shaped_packets"] == 2
    one.tables.peers.remove(one.peer)
    assert one.tables.peers.add() == one.peer        # nobody holds the slot: it is used again
    one.tables.peers.set_endpoint(one.peer, two.endpoint.sockaddr(10))
    one.poll(START + SECOND)
    one.start_session(two.index, created=START)
    one.poll(START + 2 * SECOND)
    assert one.verdicts()["DROP_STAGED_TIMEOUT"] == 2
    assert datagrams(two.udp) == []


def test_what_came_from_a_removed_peer_is_not_delivered(ends):
    one, two = ends
    limits_bytes(two, "rx", 14_000, 1400)
    offered(one, two, 1400, 0.001, 3)
    two.take()
    assert two.counters()["shaped_packets"] == 2
    two.tables.peers.remove(two.peer)
    two.poll(START + SECOND)
    assert two.take() == [] and two.verdicts()["DROP_STAGED_TIMEOUT"] == 2


def test_one_peer_cannot_have_all_the_room_there_is():
    from support.packets import frame
    sites = network(*"abc")
    a = sites["a"]
    frames = {}
    for name, number in (("b", 2), ("c", 3)):
        a.tables.fdb.add(bytes([2, 0, 0, 0, 0, number]), 0, a.peers[name], START)
        a.tables.limiters.set(a.peers[name], "tx", None, (1, 2 * MS, 0), START)
        frames[name] = frame(f"02:00:00:00:00:0{number}", "02:00:00:00:00:01", bytes(58),
                             ethertype=0x88B5)
    a.tables.limiters.set(a.peers["b"], "tx", (60_000, 50 * MS, 0), None, START)
    for _ in range(60):
        for _ in range(100):
            a.give(frames["b"])
        for _ in range(2):
            a.poll()
    for _ in range(50):
        a.give(frames["c"])
    before = a.counters()["shaped_packets"]
    a.poll()
    assert before == 2048
    assert a.counters()["shaped_packets"] == 2048 + 49
    close(sites)


def test_tcp_options_are_headers_too(ends):
    """A superpacket of exactly ten packets is ten, with timestamps or without."""
    one, two = ends
    one.tables.limiters.set(None, "tx", None, (100, SECOND, 0), START)
    data = superpacket(tcp(A4, B4, bytes(13000), flags=ACK, options=bytes(12)), 1300)
    wire = 0
    for _ in range(12):
        one.give(data[VNET.size:], data[:VNET.size])
        one.poll()
        wire += len(datagrams(two.udp))
    assert wire == 100


def test_buckets_begin_full_also_just_after_boot(ends):
    one, two = ends
    young = 10 * SECOND
    one.tables.limiters.set(None, "tx", (70_000, 3_600 * SECOND, 0), None, young)
    for _ in range(60):
        one.give(numbered(1, 1400))
    one.poll(young)
    assert len(datagrams(two.udp)) == 50
