"""Microbenchmarks of the data plane, in one process (pytest-benchmark; `make bench`).

The interface is a socket pair and the network is loopback, so the kernel's part differs
from a tunnel's; compare builds and ciphers with these, not products.
"""

from __future__ import annotations

import pytest

from fastpump import _core
from support.packets import A4, B4, superpacket, tcp, udp
from support.pumps import drain, lane_pair, pair

SEGMENT = 1348


@pytest.fixture(params=[(backend, way) for backend in _core.BACKENDS
                        for way in ("session", "lane")], ids=" ".join)
def ends(request):
    backend, way = request.param
    both = (pair if way == "session" else lane_pair)(backend=backend)
    yield both
    for end in both:
        end.close()


def test_seal_a_superpacket_of_47_segments(benchmark, ends):
    one, two = ends
    whole = superpacket(tcp(A4, B4, bytes(47 * SEGMENT)), SEGMENT)

    def clean():
        list(drain(two.udp))
        one.interface.send(whole)

    benchmark.pedantic(one.poll, setup=clean, rounds=500)


def test_open_and_coalesce_47_segments(benchmark, ends):
    one, two = ends
    whole = superpacket(tcp(A4, B4, bytes(47 * SEGMENT)), SEGMENT)

    def fill():
        two.take()
        one.interface.send(whole)
        one.poll()

    benchmark.pedantic(two.poll, setup=fill, rounds=500)


def test_seal_64_small_packets(benchmark, ends):
    one, two = ends
    packets = [udp(A4, B4, bytes(64), ident=i) for i in range(64)]

    def fill():
        list(drain(two.udp))
        for packet in packets:
            one.give(packet)

    benchmark.pedantic(one.poll, setup=fill, rounds=500)


@pytest.mark.parametrize("prefixes", [1, 1000, 100_000])
def test_look_up_an_address(benchmark, prefixes):
    tables = _core.SharedTables.create(1)
    peer = tables.peers.add()
    for number in range(prefixes):
        tables.allowed_ips.insert((0x0A000000 + (number << 4)).to_bytes(4, "big"), 28, peer)
    address = bytes([10, 0, 0, 1])
    assert benchmark(tables.allowed_ips.lookup, address) == peer


def test_mark_a_counter(benchmark):
    window = _core.ReplayWindow()
    counters = iter(range(1 << 40))
    assert benchmark(lambda: window.mark(next(counters)))
