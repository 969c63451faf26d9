"""What iperf3 reports is read, and what is not plausible about it is said."""

import pytest

from fastpump.cli.demo import Figure, _table
from fastpump.lab.iperf import Load, most_in_flight, tcp_load, udp_load

MB = 10**6
IN_FLIGHT = 20 * MB


def seconds(*megabytes, rest=0.01):
    """The intervals of one end: a second each, and what is left over at the end."""
    found = [{"sum": {"seconds": 1.0, "bytes": each * MB, "omitted": False}} for each in megabytes]
    return [*found, {"sum": {"seconds": rest, "bytes": 0, "omitted": False}}]


def report(client, server, *, reverse=0, sent=None, received=None, duration=3):
    """As `iperf3 --json --get-server-output` has it, as far as it is read."""
    ends = (server, client) if reverse else (client, server)
    totals = [sum(each["sum"]["bytes"] for each in end or ()) for end in ends]
    made = {"start": {"test_start": {"num_streams": 1, "reverse": reverse, "duration": duration}},
            "intervals": client,
            "end": {"sum_sent": {"seconds": duration, "bytes": totals[0]},
                    "sum_received": {"seconds": duration, "bytes": totals[1]},
                    "sum": {"seconds": duration, "packets": totals[0] // 100,
                            "lost_packets": (totals[0] - totals[1]) // 100}}}
    if sent is not None:
        made["end"]["sum_sent"]["bytes"] = sent
    if received is not None:
        made["end"]["sum_received"]["bytes"] = received
    if server is not None:
        made["server_output_json"] = {"intervals": server}
    return made


GOOD = seconds(100, 110, 90)
DIFFER = "the sender counts {:,} bytes, the receiver {:,}".format


@pytest.mark.parametrize(("said", "doubts"), [
    (report(GOOD, GOOD), ()),
    (report(GOOD, GOOD, reverse=1), ()),
    (report(GOOD, None, received=300 * MB), ()),                # the server is not asked
    (report(seconds(100, 0, 200), GOOD), ("nothing passed in 1 of 3 s at the sender",)),
    (report(GOOD, seconds(0, 300, 0)), ("nothing passed in 2 of 3 s at the receiver",)),
    (report(GOOD, seconds(0, 300, 0), reverse=1), ("nothing passed in 2 of 3 s at the sender",)),
    (report(seconds(0, 0, 0), seconds(0, 0, 0)), (
        "nothing passed in 3 of 3 s at the sender", "nothing passed in 3 of 3 s at the receiver")),
    # What was written at the end is still on the way, and no more than that.
    (report(GOOD, GOOD, sent=300 * MB + IN_FLIGHT), ()),
    (report(GOOD, GOOD, sent=300 * MB + IN_FLIGHT + 1), (DIFFER(320_000_001, 300 * MB),)),
    (report(GOOD, GOOD, received=0), (DIFFER(300 * MB, 0),)),
    (report(GOOD, GOOD, received=321 * MB), (DIFFER(300 * MB, 321 * MB),)),
])
def test_what_is_not_plausible_about_tcp(said, doubts):
    load = tcp_load(said, IN_FLIGHT)
    assert load.doubts == doubts
    assert load.bytes == said["end"]["sum_received"]["bytes"]
    assert load.bytes_per_s == load.bytes / 3


def test_an_interval_that_is_left_out_or_short_says_nothing():
    ends = [{"sum": {"seconds": 1.0, "bytes": 0, "omitted": True}}, *seconds(100, rest=0.8)]
    assert tcp_load(report(ends, ends, duration=1), IN_FLIGHT).doubts == ()
    half = [{"sum": {"seconds": 0.5, "bytes": 0, "omitted": False}}]
    assert tcp_load(report(half, half, duration=0.5), IN_FLIGHT).doubts == (
        "nothing passed in 1 of 1 s at the sender", "nothing passed in 1 of 1 s at the receiver")


def test_what_is_not_plausible_about_udp():
    """Losses are usual, silence is not."""
    load = udp_load(report(GOOD, seconds(30, 10, 20)), 100)
    assert (load.bytes, load.packets_per_s, load.doubts) == (60 * MB, 200_000, ())
    assert udp_load(report(GOOD, seconds(30, 0, 30)), 100).doubts == (
        "nothing passed in 1 of 3 s at the receiver",)


def test_doubts_about_either_direction_are_doubts_about_both():
    assert Load(1, 2.0, 3.0, ("a",)) + Load(10, 20.0, 30.0, ("b",)) == Load(
        11, 22.0, 33.0, ("a", "b"))


def test_more_streams_have_more_on_the_way():
    assert most_in_flight(4) == 4 * most_in_flight(1) > 4 * 4096


def test_the_row_of_the_demo_says_so():
    good = {"ping": Figure("1 ms"), "TCP": Figure("9.00 Gbit/s")}
    bad = good | {"TCP": Figure("0.00 Gbit/s", ("nothing passed", "and that"))}
    assert _table(good, bad, 1).splitlines() == [
        "        bare cable   fastpump, 1 queue",
        "--------------------------------------",
        "ping          1 ms                1 ms",
        "TCP    9.00 Gbit/s         0.00 Gbit/s",
        "  not plausible, fastpump, 1 queue: nothing passed",
        "  not plausible, fastpump, 1 queue: and that"]
    assert "plausible" not in _table(good, good, 1)
