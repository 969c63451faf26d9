"""The log: what a line says, in words and as JSON; bounded, whoever causes the lines, and never
waited for."""

import contextlib
import errno
import io
import itertools
import json
import logging
import os
import pty
import re
import select
import socket
from types import SimpleNamespace

import pytest

from fastpump.process import logs

log = logging.getLogger("fastpump.test")
SAYS = "%(peer)s says %(number)d"
ALICE, BOB = (SimpleNamespace(public_key=key) for key in (b"a", b"b"))


KEY = "kH3S" + "A" * 39 + "="


class Peer:
    json_value = KEY

    def __str__(self):
        return "peer kH3S…"


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The logger as it was before."""
    root = logging.getLogger("fastpump")
    before = root.handlers, root.propagate, root.level
    monkeypatch.setattr(logs._Process, "interface", "")
    yield
    root.handlers, root.propagate = before[:2]
    root.setLevel(before[2])


def emit(formatter, message, fields=None):
    """Log by a formatter, and give the line."""
    return formatter.format(log.makeRecord("fastpump.test", logging.WARNING, __file__, 1, message,
                                           () if fields is None else (fields,), None))


def formatter_of(as_json):
    logs.set_up("info", as_json=as_json)
    return logging.getLogger("fastpump").handlers[0].formatter


def syslog_formatter():
    handler = logs.SyslogHandler()
    handler.close()
    return handler.formatter


@pytest.mark.parametrize(("interface", "line", "background"), [
    ("", "WARNING no way to peer kH3S…", "no way to peer kH3S…"),
    ("wg0", "WARNING wg0: no way to peer kH3S…", "wg0: no way to peer kH3S…"),
])
def test_a_line_names_the_interface(monkeypatch, tmp_path, interface, line, background):
    monkeypatch.setattr(logs, "SYSLOG", tmp_path / "log")
    logs.name_interface(interface)
    said = "no way to %(peer)s", {"peer": Peer()}
    assert emit(formatter_of(False), *said) == line
    assert emit(syslog_formatter(), *said) == background


def test_json_has_the_values_as_members():
    logs.name_interface("wg0")
    line = json.loads(emit(formatter_of(True), "%(peer)s: %(ms).0f ms, %(worker)d, %(error)s", {
        "peer": Peer(), "ms": 1.5, "worker": 3, "error": OSError(5, "no"), "cpus": (1, 2),
        "level": "is taken"}))
    assert line.pop("time") > 1e9
    assert line == {"level": "warning", "logger": "fastpump.test", "interface": "wg0",
                    "message": "peer kH3S…: 2 ms, 3, [Errno 5] no", "peer": KEY, "ms": 1.5,
                    "worker": 3, "error": "[Errno 5] no", "cpus": [1, 2]}


def test_json_without_a_tunnel_and_without_values():
    line = json.loads(emit(formatter_of(True), "100% of \"it\"\n"))
    assert (line["interface"], line["message"]) == (None, "100% of \"it\"\n")


class Limited:
    """A limit with a clock; `take` gives the text of a line that passes."""

    def __init__(self):
        self.now = 1000.0
        self.limit = logs.RateLimit(lambda: self.now)

    def pass_on(self, message, **fields):
        """The record, if it passes."""
        record = logging.makeLogRecord({"msg": message, "args": fields})
        return record if self.limit.filter(record) else None

    def take(self, message, **fields):
        record = self.pass_on(message, **fields)
        return record and record.getMessage()


def test_lines_of_one_kind_about_one_peer_are_limited():
    limited = Limited()
    found = [limited.take(SAYS, peer=ALICE, number=n) is not None for n in range(1000)]
    assert found == [True] * logs.BURST + [False] * (1000 - logs.BURST)
    # Neither those about another peer, nor those of another kind.
    assert limited.take(SAYS, peer=BOB, number=1) and limited.take("%(peer)s sings", peer=ALICE)
    limited.now += logs.INTERVAL_S
    assert limited.take(SAYS, peer=ALICE, number=7).endswith(
        f"says 7 (and {1000 - logs.BURST} more like it)")
    assert limited.take(SAYS, peer=ALICE, number=8) is None
    limited.now += 2 * logs.INTERVAL_S
    assert limited.take(SAYS, peer=ALICE, number=9).endswith("says 9 (and 1 more like it)")
    assert limited.take(SAYS, peer=ALICE, number=10).endswith("says 10")


def test_a_line_after_others_that_were_left_out_keeps_its_values():
    limited = Limited()
    for _ in range(logs.BURST + 3):
        limited.take(SAYS, peer=ALICE, number=1)
        limited.take("100% of it")
    limited.now += logs.INTERVAL_S
    record = limited.pass_on(SAYS, peer=ALICE, number=2)
    assert record.args == {"peer": ALICE, "number": 2, "left_out": 3}
    assert limited.take("100% of it") == "100% of it (and 3 more like it)"


def test_lines_of_no_format_are_told_apart_by_their_text():
    limited = Limited()
    assert all(limited.take("%(error)s", error=f"problem {n}") for n in range(100))
    passed = [limited.take("%(error)s", error="problem 0") is not None for _ in range(100)]
    assert sum(passed) == logs.BURST - 1


def test_the_limit_takes_no_more_memory_however_many_kinds_there_are():
    limited = Limited()
    for n in range(3 * logs.MAX_KINDS):
        limited.take("%(error)s", error=str(n))
        limited.take("%(peer)s says", peer=ALICE)
    assert len(limited.limit._kinds) == logs.MAX_KINDS
    assert limited.take("%(peer)s says", peer=ALICE) is None       # the busiest is not forgotten


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
            log.info("line %(number)d %(text)s", {"number": number, "text": "x" * 1000})
        log.info("long %(text)s", {"text": "x" * 100_000})
        os.set_blocking(pipe.fileno(), False)
        lines = pipe.read(1 << 20).decode().splitlines()
        log.info("after that")
        lost, after = pipe.read(1 << 20).decode().splitlines()
    assert 10 < len(lines) < 100
    assert after == "INFO after that" or json.loads(after)["message"] == "after that"
    assert f"{1001 - len(lines)} log lines were lost" in lost


@pytest.fixture
def terminal():
    """(its reader's end, what is written to)"""
    reading, writing = pty.openpty()
    with os.fdopen(reading, "rb", buffering=0) as master, os.fdopen(writing, "w") as stream:
        yield master, stream


def read_all(file):
    """What waits."""
    os.set_blocking(file.fileno(), False)
    found = b""
    while part := file.read(1 << 20):
        found += part
    return found.decode()


def test_a_terminal_that_nobody_reads_is_not_waited_for(monkeypatch, terminal):
    """A terminal is writable as long as it has room for a byte."""
    master, stream = terminal
    log_to(monkeypatch, stream)
    for number in range(2000):
        log.info("line %(number)4d %(text)s", {"number": number, "text": "x" * 60})
    shown, again = read_all(master), 0
    while not shown.endswith("INFO after that\r\n"):     # a terminal takes its time
        log.info("after that")
        again += 1
        select.select([master], [], [], 0.01)
        shown += read_all(master)
    lines = shown.replace("\r", "").splitlines()
    whole = [line for line in lines if re.fullmatch("INFO (line .... x{60}|after that)", line)]
    lost = [int(line.split()[1]) for line in lines if line.endswith(" as nobody read them")]
    # One that was written but for its end counts as lost.
    assert 0 <= len(whole) + sum(lost) - (2000 + again) <= len(lost) and sum(lost) > 100
    assert max(map(len, lines)) == max(map(len, whole))     # none begins at the end of a lost one
    assert os.get_blocking(stream.fileno())                 # others write there, too


def test_a_pipe_that_another_fills_is_not_waited_for(monkeypatch):
    """In the moment after it was found to have room."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as pipe, os.fdopen(writing, "w") as stream:
        log_to(monkeypatch, stream)

        def is_writable(fd):
            os.set_blocking(writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, b"y" * 4096)
            os.set_blocking(writing, True)
            return True

        with monkeypatch.context() as patch:
            patch.setattr(logs, "_is_writable", is_writable)
            log.info("a line")
        assert set(read_all(pipe)) == {"y"}
        log.info("another")
        assert read_all(pipe).splitlines() == [
            "WARNING 1 log lines were lost, as nobody read them", "INFO another"]


def test_a_log_keeps_no_file_open(monkeypatch):
    """Whoever reads it would wait for ever for its end."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        with os.fdopen(writing, "w") as stream:
            log_to(monkeypatch, stream)
            log.info("a line")
        assert pipe.read() == b"INFO a line\n" and pipe.read() == b""


def test_a_terminal_that_may_not_be_opened_is_written_to(monkeypatch, terminal):
    """Another user's, say."""
    master, stream = terminal
    log_to(monkeypatch, stream)

    def refuse(*_arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        log.info("a line")
    select.select([master], [], [])
    assert read_all(master) == "INFO a line\r\n"


def test_a_long_line_is_written_whole(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as pipe, os.fdopen(writing, "w") as stream:
        log_to(monkeypatch, stream)
        log.info("%(text)s", {"text": "x" * 20_000})
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
            log.info("%(text)s", {"text": f"line {number}"})
        assert syslog.recv(1000).endswith(b"line 0\0")
        assert b": line 1\0" in syslog.recv(1000) and b"fastpump[" in syslog.recv(1000)
    log.info("nobody is there")


def received(sock):
    """The messages that wait in a syslog's socket."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while message := sock.recv(1 << 20):
            found += [part.partition(b"]: ")[2].decode() for part in message.split(b"\0") if part]
    return found


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM],
                         ids=["datagrams", "a stream"])
def test_what_a_syslog_does_not_read_is_counted(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(logs, "SYSLOG", tmp_path / "log")
    with contextlib.ExitStack() as opened:
        syslog = opened.enter_context(socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK))
        syslog.bind(str(logs.SYSLOG))
        if kind == socket.SOCK_STREAM:
            syslog.listen(1)
        logs.set_up("info")
        logs.to_syslog()
        (handler,) = logging.getLogger("fastpump").handlers
        opened.callback(handler.close)
        handler.filters.clear()

        def read():
            if kind == socket.SOCK_DGRAM:
                return received(syslog)
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    connection = opened.enter_context(syslog.accept()[0])
                    connection.setblocking(False)
                    found += received(connection)
            return found

        numbers = itertools.count()
        while handler._losses._count < 3:
            log.info("line %(number)d %(text)s", {"number": next(numbers), "text": "x" * 1000})
        lines = read()
        assert [line.split()[1] for line in lines] == [str(n) for n in range(next(numbers) - 3)]
        log.info("after that")
        assert read() == ["3 log lines were lost, as nobody read them", "after that"]


def test_without_a_syslog_there_is_no_log(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "SYSLOG", tmp_path / "log")
    logs.to_syslog()
    log.info("a line")
