"""Logging to stderr, as lines or as JSON, and to syslog.

Every line names the interface of the tunnel that the process runs. The values of a line have names,
by logging's own means: log.info("%(peer)s is at %(endpoint)s", {"peer": peer, "endpoint": where}).
In JSON they are members of the object, beside the sentence. An object that has a `json_value` is
represented by that, else by its text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

LEVELS = ("debug", "info", "warning", "error")


class _Process:
    """Of this process: a tunnel's, or a command's."""

    interface = ""


def name_interface(name: str) -> None:
    """The interface of this process's tunnel has that name from now on."""
    _Process.interface = name


class _LineFormatter(logging.Formatter):
    """WARNING wg0: what happened; without the level for syslog, which has its own."""

    def __init__(self, *, with_level: bool = True) -> None:
        super().__init__("%(levelname)s %(interface)s%(message)s" if with_level
                         else "%(interface)s%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.interface = f"{_Process.interface}: " if _Process.interface else ""
        return super().formatMessage(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(),
                "logger": record.name, "interface": _Process.interface or None,
                "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        fields = record.args if isinstance(record.args, Mapping) else {}
        for name, value in fields.items():
            line.setdefault(name, _plain(value))
        return json.dumps(line)


def _plain(value: Any) -> Any:
    """As JSON can have it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return _plain(getattr(value, "json_value", str(value)))


def set_up(level: str, *, as_json: bool = False) -> None:
    """Log what is at least as important as `level` (of LEVELS)."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if as_json else _LineFormatter())
    logger = logging.getLogger("fastpump")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


def syslog_formatter() -> logging.Formatter:
    """For the lines of a process in the background."""
    return _LineFormatter(with_level=False)
