"""Logging to stderr, as lines or as JSON."""

from __future__ import annotations

import json
import logging

LEVELS = ("debug", "info", "warning", "error")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"time": round(record.created, 3), "level": record.levelname.lower(),
                           "logger": record.name, "message": record.getMessage()})


def set_up(level: str, *, as_json: bool = False) -> None:
    """Log what is at least as important as `level` (of LEVELS)."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if as_json else
                         logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("fastpump")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
