"""What a log line says: in words, and as JSON."""

import json
import logging

import pytest

from fastpump.process import logs

KEY = "kH3S" + "A" * 39 + "="


class Peer:
    json_value = KEY

    def __str__(self):
        return "peer kH3S…"


@pytest.fixture
def emit(monkeypatch):
    """A function that logs by a formatter, and gives the line."""
    def formatted(formatter, message, fields=None, **more):
        record = logging.getLogger("fastpump.test").makeRecord(
            "fastpump.test", logging.WARNING, __file__, 1, message,
            () if fields is None else (fields,), None, **more)
        return formatter.format(record)

    monkeypatch.setattr(logs._Process, "interface", "")
    return formatted


def formatter_of(as_json):
    logger = logging.getLogger("fastpump")
    before = logger.handlers, logger.propagate, logger.level
    try:
        logs.set_up("info", as_json=as_json)
        return logger.handlers[0].formatter
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


@pytest.mark.parametrize(("interface", "line", "background"), [
    ("", "WARNING no way to peer kH3S…", "no way to peer kH3S…"),
    ("wg0", "WARNING wg0: no way to peer kH3S…", "wg0: no way to peer kH3S…"),
])
def test_a_line_names_the_interface(emit, interface, line, background):
    logs.name_interface(interface)
    said = "no way to %(peer)s", {"peer": Peer()}
    assert emit(formatter_of(False), *said) == line
    assert emit(logs.syslog_formatter(), *said) == background


def test_json_has_the_values_as_members(emit):
    logs.name_interface("wg0")
    line = json.loads(emit(formatter_of(True), "%(peer)s: %(ms).0f ms, %(worker)d, %(error)s", {
        "peer": Peer(), "ms": 1.5, "worker": 3, "error": OSError(5, "no"), "cpus": (1, 2),
        "level": "is taken"}))
    assert line.pop("time") > 1e9
    assert line == {"level": "warning", "logger": "fastpump.test", "interface": "wg0",
                    "message": "peer kH3S…: 2 ms, 3, [Errno 5] no", "peer": KEY, "ms": 1.5,
                    "worker": 3, "error": "[Errno 5] no", "cpus": [1, 2]}


def test_json_without_a_tunnel_and_without_values(emit):
    line = json.loads(emit(formatter_of(True), "100% of \"it\"\n"))
    assert (line["interface"], line["message"]) == (None, "100% of \"it\"\n")
