"""An Endpoint that several processes write: who is stopped in between is not overruled."""

import contextlib
import ctypes
import mmap
import socket
from ipaddress import IPv4Address

import pytest

from fastpump._core import SharedTables
from fastpump.conn.endpoint import Endpoint
from support.pumps import lane_pair, pair

OURS, OTHERS, NEWEST = (Endpoint(IPv4Address(f"192.0.2.{number}"), number).sockaddr(
    socket.AF_INET6) for number in (1, 2, 3))
LOCKED, OWNER_SHIFT, MOVES, SOURCE_WRITTEN, MOVED = 1, 1, 0x400, 0x800, 0x200000


class PlayedWorker:
    """Writes an endpoint as a worker of that number does, and may stop at any instant."""

    def __init__(self, memory, sockaddr, number=0):
        at = memory.find(sockaddr) - 8              # sequence, length, address
        self.sequence = ctypes.c_uint32.from_buffer(memory, at)
        self.length = ctypes.c_uint32.from_buffer(memory, at + 4)
        self.address = (ctypes.c_uint8 * 28).from_buffer(memory, at + 8)
        self.before, self.number = self.sequence.value, number

    def begin(self):
        self._lock(MOVES)
        self.address[:14] = b"\xee" * 14            # half of it

    def end(self, sockaddr):
        self.address[:len(sockaddr)] = sockaddr
        self.length.value = len(sockaddr)
        self.sequence.value = self.before + MOVED

    def begin_source(self):
        self._lock(0)

    def end_source(self):
        self.sequence.value = self.before + SOURCE_WRITTEN

    def _lock(self, moves):
        assert not self.sequence.value & LOCKED
        self.before = self.sequence.value
        self.sequence.value = self.before | self.number << OWNER_SHIFT | moves | LOCKED


@pytest.fixture(params=["peer", "lane"])
def target(request, closed):
    """(tables, how to write, how to read, how to forget the source address) of a peer's or a lane's
    endpoint, which is at OURS."""
    is_peer = request.param == "peer"
    one, _ = closed((pair if is_peer else lane_pair)())
    table, slot = (one.tables.peers, one.peer) if is_peer else (one.tables.lanes, one.first)
    table.set_endpoint(slot, OURS)
    return one.tables, lambda sockaddr: table.set_endpoint(slot, sockaddr), \
        lambda: table.endpoint(slot)[0], lambda: table.forget_source_address(slot)


@contextlib.contextmanager
def played(tables, number=0):
    with mmap.mmap(tables.state_fd, 0) as memory:
        worker = PlayedWorker(memory, OURS, number)
        yield worker
        del worker.sequence, worker.length, worker.address


def test_a_stopped_writer_ends_its_write_before_the_supervisor_s_counts(target):
    tables, write, read, _ = target
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
    tables, write, read, _ = target
    with played(tables) as worker:
        worker.begin()
        write(OURS)
        worker.end(OTHERS)
        worker.begin()
        worker.end(NEWEST)                          # it has heard the peer there since
        assert tables.retired.reclaim() == 0
        assert read() == NEWEST


def test_what_does_not_say_where_the_peer_is_counts_for_nothing(target):
    """The worker's own write, and others of the source address, while the supervisor's waits."""
    tables, write, read, _ = target
    with played(tables) as worker:
        worker.begin_source()
        write(NEWEST)
        assert tables.retired.reclaim() == 1
        worker.end_source()
        for _ in range(3):
            worker.begin_source()
            worker.end_source()
        assert read() == OURS
        assert tables.retired.reclaim() == 0
        assert read() == NEWEST


def test_the_count_of_such_writes_does_not_run_into_that_of_moves(target):
    tables, write, read, forget_source = target
    with played(tables) as worker:
        worker.sequence.value |= MOVED - SOURCE_WRITTEN
        worker.begin()
        write(NEWEST)
        worker.end(OTHERS)
        forget_source()
        assert worker.sequence.value & (MOVED - SOURCE_WRITTEN) == 0
        assert tables.retired.reclaim() == 0
        assert read() == NEWEST


def test_who_moves_it_after_that_counts(target):
    tables, write, read, _ = target
    with played(tables) as worker:
        worker.begin_source()
        write(OURS)
        worker.end_source()
        worker.begin()
        worker.end(NEWEST)
        assert tables.retired.reclaim() == 0
        assert read() == NEWEST


def test_the_supervisor_s_last_write_counts(target):
    tables, write, read, _ = target
    with played(tables) as worker:
        worker.begin()
        write(OTHERS)
        write(NEWEST)
        assert tables.retired.reclaim() == 1
        worker.end(OURS)
        tables.retired.reclaim()
        assert read() == NEWEST


def test_only_the_lock_of_the_worker_that_died_is_released():
    tables = SharedTables.create(2, 16, 8192)
    peer = tables.peers.add()
    tables.peers.set_endpoint(peer, OURS)
    with played(tables, number=1) as worker:
        worker.begin()
        assert tables.workers.exited(0) == []
        assert worker.sequence.value & LOCKED
        worker.end(OTHERS)
        assert tables.peers.endpoint(peer)[0] == OTHERS
        worker.number = 0
        worker.begin()
        tables.peers.set_endpoint(peer, NEWEST)
        assert tables.workers.exited(0) == [peer]
        assert tables.peers.endpoint(peer)[0] == NEWEST     # what waited is written at once
    tables.close()


@pytest.mark.parametrize("owner", [2, 0x1ff], ids=["no worker", "the supervisor"])
def test_a_lock_of_nobody_is_released_when_a_worker_dies(target, owner):
    """One that had been taken over may have written anything; the supervisor is not writing."""
    tables, write, read, _ = target
    with played(tables, owner) as worker:
        worker.begin()
        write(NEWEST)
        assert tables.retired.reclaim() == 1
        tables.workers.exited(0)
        assert read() == NEWEST and tables.retired.reclaim() == 0


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
