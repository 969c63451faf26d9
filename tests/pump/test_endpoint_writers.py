"""An Endpoint that several processes write: who is stopped in between is not overruled."""

import contextlib
import ctypes
import mmap
import socket
from ipaddress import IPv4Address

import pytest

from fastpump.conn.endpoint import Endpoint
from support.pumps import lane_pair, pair

OURS, OTHERS, NEWEST = (Endpoint(IPv4Address(f"192.0.2.{number}"), number).sockaddr(
    socket.AF_INET6) for number in (1, 2, 3))
LOCKED, OWNER_SHIFT, WRITTEN = 1, 1, 0x400


class PlayedWorker:
    """Writes an endpoint as a worker of that number does, and may stop at any instant."""

    def __init__(self, memory, sockaddr, number=0):
        at = memory.find(sockaddr) - 8              # sequence, length, address
        self.sequence = ctypes.c_uint32.from_buffer(memory, at)
        self.length = ctypes.c_uint32.from_buffer(memory, at + 4)
        self.address = (ctypes.c_uint8 * 28).from_buffer(memory, at + 8)
        self.before, self.number = self.sequence.value, number

    def begin(self):
        assert not self.sequence.value & LOCKED
        self.before = self.sequence.value
        self.sequence.value = self.before | self.number << OWNER_SHIFT | LOCKED
        self.address[:14] = b"\xee" * 14            # half of it

    def end(self, sockaddr):
        self.address[:len(sockaddr)] = sockaddr
        self.length.value = len(sockaddr)
        self.sequence.value = self.before + WRITTEN


@pytest.fixture(params=["peer", "lane"])
def target(request, closed):
    """(tables, how to write, how to read) of a peer's or a lane's endpoint, which is at OURS."""
    is_peer = request.param == "peer"
    one, _ = closed((pair if is_peer else lane_pair)())
    table, slot = (one.tables.peers, one.peer) if is_peer else (one.tables.lanes, one.first)
    table.set_endpoint(slot, OURS)
    return one.tables, lambda sockaddr: table.set_endpoint(slot, sockaddr), \
        lambda: table.endpoint(slot)[0]


@contextlib.contextmanager
def played(tables, number=0):
    with mmap.mmap(tables.state_fd, 0) as memory:
        worker = PlayedWorker(memory, OURS, number)
        yield worker
        del worker.sequence, worker.length, worker.address


def test_a_stopped_writer_ends_its_write_before_the_supervisor_s_counts(target):
    tables, write, read = target
    with played(tables) as worker:
        worker.begin()
        write(NEWEST)
        assert read() == b"" and bytes(worker.address[:14]) == b"\xee" * 14
        assert tables.retired.reclaim() == 1        # it waits, however long
        worker.end(OTHERS)
        assert read() == OTHERS
        assert tables.retired.reclaim() == 0
        assert read() == NEWEST


def test_what_is_written_after_the_supervisor_s_write_counts(target):
    tables, write, read = target
    with played(tables) as worker:
        worker.begin()
        write(OURS)
        worker.end(OTHERS)
        worker.begin()
        worker.end(NEWEST)                          # it has heard the peer there since
        assert tables.retired.reclaim() == 0
        assert read() == NEWEST


def test_the_supervisor_s_last_write_counts(target):
    tables, write, read = target
    with played(tables) as worker:
        worker.begin()
        write(OTHERS)
        write(NEWEST)
        assert tables.retired.reclaim() == 1
        worker.end(OURS)
        tables.retired.reclaim()
        assert read() == NEWEST


def test_only_the_lock_of_the_worker_that_died_is_released(closed):
    one, _ = closed(pair())
    before = one.tables.peers.endpoint(one.peer)[0]
    one.tables.peers.set_endpoint(one.peer, OURS)
    with played(one.tables, number=1) as worker:
        worker.begin()
        assert one.tables.workers.exited(0) == []
        assert worker.sequence.value & LOCKED
        worker.end(OTHERS)
        assert one.tables.peers.endpoint(one.peer)[0] == OTHERS
        worker.number = 0
        worker.begin()
        one.tables.peers.set_endpoint(one.peer, before)
        assert one.tables.workers.exited(0) == [one.peer]
        assert one.tables.peers.endpoint(one.peer)[0] == before     # what waited is written at once


def test_a_removed_peer_s_endpoint_is_not_written(closed):
    one, _ = closed(pair())
    one.tables.peers.set_endpoint(one.peer, OURS)
    with played(one.tables) as worker:
        worker.begin()
        one.tables.peers.set_endpoint(one.peer, NEWEST)
        one.tables.peers.remove(one.peer)
        worker.end(OTHERS)
        for _ in range(3):
            one.tables.retired.reclaim()
        assert bytes(worker.address[:28]) == OTHERS.ljust(28, b"\0")
