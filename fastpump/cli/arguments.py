"""Parsers of ours as argparse types, for the command lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

from fastpump.errors import ConfigError


def configured(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of ours as an argparse type: its complaint is shown as it is."""
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return convert


def number(what: str, low: int, high: int) -> Callable[[str], Any]:
    """A whole number in a range."""
    def parse(text: str) -> int:
        from fastpump.config.model import parse_number
        return parse_number(text, what, low, high)
    return configured(parse)


def lazily(name: str, module: str = "config.model") -> Callable[[str], Any]:
    """A parser of a module of ours, imported when it is used (genkey starts quickly)."""
    def parse(text: str) -> Any:
        return getattr(import_module(f"fastpump.{module}"), name)(text)
    return configured(parse)
