"""The log: bounded, whoever causes its lines, and never waited for."""

import io
import json
import logging
import os
import socket
from types import SimpleNamespace

import pytest

from fastpump.process import logs

log = logging.getLogger("fastpump.test")
ALICE, BOB = (SimpleNamespace(public_key=key) for key in (b"a", b"b"))


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The logger as it was before."""
    root = logging.getLogger("fastpump")
    before = root.handlers, root.propagate, root.level
    yield
    root.handlers, root.propagate = before[:2]
    root.setLevel(before[2])


class Limited:
    """A limit with a clock; `take` gives the text of a line that passes."""

    def __init__(self):
        self.now = 1000.0
        self.limit = logs.RateLimit(lambda: self.now)

    def take(self, message, *args):
        record = logging.makeLogRecord({"msg": message, "args": args})
        return record.getMessage() if self.limit.filter(record) else None


def test_lines_of_one_kind_about_one_peer_are_limited():
    limited = Limited()
    found = [limited.take("%s says %d", ALICE, n) is not None for n in range(1000)]
    assert found == [True] * logs.BURST + [False] * (1000 - logs.BURST)
    # Neither those about another peer, nor those of another kind.
    assert limited.take("%s says %d", BOB, 1) and limited.take("%s sings", ALICE)
    limited.now += logs.INTERVAL_S
    assert limited.take("%s says %d", ALICE, 7).endswith(f"says 7 (and {1000 - logs.BURST} more "
                                                         "like it)")
    assert limited.take("%s says %d", ALICE, 8) is None
    limited.now += 2 * logs.INTERVAL_S
    assert limited.take("%s says %d", ALICE, 9).endswith("says 9 (and 1 more like it)")
    assert limited.take("%s says %d", ALICE, 10).endswith("says 10")


def test_lines_of_no_format_are_told_apart_by_their_text():
    limited = Limited()
    assert all(limited.take("%s", f"problem {n}") for n in range(100))
    assert sum(limited.take("%s", "problem 0") is not None for _ in range(100)) == logs.BURST - 1


def test_the_limit_takes_no_more_memory_however_many_kinds_there_are():
    limited = Limited()
    for n in range(3 * logs.MAX_KINDS):
        limited.take("%s", str(n))
        limited.take("%s says", ALICE)
    assert len(limited.limit._kinds) == logs.MAX_KINDS
    assert limited.take("%s says", ALICE) is None       # the busiest is not forgotten


def test_a_peer_that_says_another_thing_each_time_is_limited(worlds):
    """Its MTU, in session after session."""
    world, lines = worlds(), io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.addFilter(logs.RateLimit(lambda: 0.0))
    logging.getLogger("fastpump").handlers = [handler]
    for turn in range(4 * logs.BURST):
        world.b.tables.mtu = 1400 + turn % 2
        world.rekey(world.b, world.a)
    found = [line for line in lines.getvalue().splitlines() if f"{world.b.place.endpoint}" in line]
    assert len([line for line in found if "has an MTU of 14" in line]) == logs.BURST


def log_to(monkeypatch, stream, **options):
    monkeypatch.setattr("sys.stderr", stream)
    logs.set_up("info", **options)
    logging.getLogger("fastpump").handlers[0].filters.clear()   # the limit is another test's


@pytest.mark.parametrize("as_json", [False, True])
def test_a_pipe_that_nobody_reads_is_not_waited_for(monkeypatch, as_json):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as pipe, os.fdopen(writing, "w") as stream:
        log_to(monkeypatch, stream, as_json=as_json)
        for number in range(1000):
            log.info("line %d %s", number, "x" * 1000)
        log.info("long %s", "x" * 100_000)
        os.set_blocking(pipe.fileno(), False)
        lines = pipe.read(1 << 20).decode().splitlines()
        log.info("after that")
        lost, after = pipe.read(1 << 20).decode().splitlines()
    assert 10 < len(lines) < 100
    assert after == "INFO after that" or json.loads(after)["message"] == "after that"
    assert f"{1001 - len(lines)} log lines were lost" in lost


def test_a_long_line_is_written_whole(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as pipe, os.fdopen(writing, "w") as stream:
        log_to(monkeypatch, stream)
        log.info("%s", "x" * 20_000)
        assert pipe.read(1 << 20) == b"INFO " + b"x" * 20_000 + b"\n"


def test_a_reader_that_is_gone_ends_nothing(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        log_to(monkeypatch, stream)
        os.close(reading)
        log.info("a line")


def test_a_syslog_that_does_not_read_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "SYSLOG", tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(logs.SYSLOG))
        syslog.setblocking(False)
        logs.set_up("info")
        logs.to_syslog()
        for number in range(1000):
            log.info("%s", f"line {number}")
        assert syslog.recv(1000).endswith(b"line 0\0")
        assert b": line 1\0" in syslog.recv(1000) and b"fastpump[" in syslog.recv(1000)
    log.info("nobody is there")


def test_without_a_syslog_there_is_no_log(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "SYSLOG", tmp_path / "log")
    logs.to_syslog()
    log.info("a line")
