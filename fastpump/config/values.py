"""Kinds of values that options have: read from text, and written as text that reads the same.

Light to load: what a kind needs beyond the interpreter's own types is imported when it is used.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from fastpump.errors import invalid

BLANKS = "\t\n\v\f\r "
"""White space as wg and wg-quick have it; Python's has more."""

_NO_BLANKS = str.maketrans("", "", BLANKS)
_SEPARATORS = re.compile(f"[,{BLANKS}]+")


def lazily(dotted: str, *more: Any, **named: Any) -> Callable[[Any], Any]:
    """The function of that full name, given `more` and `named` besides its first argument. Its
    module is imported when it is called."""
    module, _, name = dotted.rpartition(".")

    def call(argument: Any) -> Any:
        return getattr(import_module(module), name)(argument, *more, **named)
    return call


def one_of(words: Iterable[str]) -> str:
    """a, b or c"""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def split_list(text: str) -> list[str]:
    """The items of a list with commas, spaces or both."""
    return [item for item in _SEPARATORS.split(text) if item]


def squeeze(text: str) -> str:
    """Without any blanks, as wg reads a line."""
    return text.translate(_NO_BLANKS)


class Notation(NamedTuple):
    """How a number is written: ASCII digits only, no sign, no underscore."""

    pattern: re.Pattern[str]
    words: str

    def read(self, text: str) -> int | None:
        """The number; None if it is written in another way."""
        if not self.pattern.fullmatch(text):
            return None
        if text[1:2] in ("x", "X"):
            return int(text, 16)
        return int(text.lstrip("0")[:20] or "0")    # more digits are out of any range, too


DECIMAL = Notation(re.compile("[0-9]+"), "in decimal")
"""Leading zeros mean nothing, as with wg."""
DECIMAL_OR_HEX = Notation(re.compile("[0-9]+|0x[0-9a-fA-F]+"),
                          "in decimal, or in hexadecimal with 0x")
NOT_OCTAL = Notation(re.compile("0|[1-9][0-9]*|0[xX][0-9a-fA-F]+"),
                     "in decimal without leading zeros, or in hexadecimal with 0x")
"""For what wg-quick gives to ip(8), where a leading zero means octal."""


class Value(ABC):
    """A kind of value. By itself a single value: the last one given counts."""

    nothing: ClassVar[Any] = None
    """The value of an option that was not given and has no default."""
    is_repeatable: ClassVar[bool] = False
    """Whether its flag may be given several times."""
    may_have_hash: ClassVar[bool] = False
    """Whether a '#' in a file is part of it, and begins no comment."""

    @abstractmethod
    def parse(self, text: str) -> Any:
        """What the operator typed; ConfigError says what it must be."""

    def parse_environment(self, text: str) -> Any:
        """The same, from an environment variable."""
        return self.parse(text)

    def emit(self, value: Any) -> str:
        """Text that `parse` turns back into the value."""
        return str(value)

    def add(self, _before: Any, text: str) -> Any:
        """The value after one more line of a file."""
        return self.parse(text)

    def lines(self, value: Any) -> Iterable[str]:
        """The text of each line of a file that gives the value."""
        return (self.emit(value),)

    @property
    def bounds(self) -> str:
        """576 to 65521; empty if there are none."""
        return ""


@dataclass(frozen=True, slots=True)
class Number(Value):
    """A whole number in a range; perhaps `off`, which is 0."""

    what: str
    low: int
    high: int
    has_off: bool = False
    is_hex: bool = False
    """Whether it is written in hexadecimal."""
    notation: Notation = DECIMAL_OR_HEX

    def parse(self, text: str) -> int:
        if self.has_off and text.lower() == "off":
            return 0
        value = self.notation.read(text)
        if value is not None and self.low <= value <= self.high:
            return value
        notation = f" ({self.notation.words})" if value is None else ""
        raise invalid(self.what, text, self.bounds + ", or off" * self.has_off + notation)

    def emit(self, value: Any) -> str:
        if self.has_off and value == 0:
            return "off"
        return f"{value:#x}" if self.is_hex else str(value)

    @property
    def bounds(self) -> str:
        return f"{self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Choice(Value):
    """One of a few words."""

    what: str
    words: tuple[str, ...]

    def parse(self, text: str) -> str:
        if text not in self.words:
            raise invalid(self.what, text, one_of(self.words))
        return text


class Switch(Value):
    """On or off: `true` or `false` in a file, 1 or 0 in the environment."""

    def parse(self, text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise invalid("value", text, "true or false")
        return text.lower() == "true"

    def parse_environment(self, text: str) -> bool:
        return bool(Number("value", 0, 1).parse(text))

    def emit(self, value: Any) -> str:
        return "true" if value else "false"


class OnOff(Switch):
    """A switch that is also written as `on` or `off`."""

    def parse(self, text: str) -> bool:
        words = {"on": True, "true": True, "off": False, "false": False}
        if text.lower() not in words:
            raise invalid("value", text, "on or off")
        return words[text.lower()]

    def emit(self, value: Any) -> str:
        return "on" if value else "off"


@dataclass(frozen=True, slots=True)
class Parsed(Value):
    """A value that a pair of functions parses and writes."""

    parser: Callable[[str], Any]
    emitter: Callable[[Any], str] = str

    def parse(self, text: str) -> Any:
        return self.parser(text)

    def emit(self, value: Any) -> str:
        return self.emitter(value)


@dataclass(frozen=True, slots=True)
class Items(Value):
    """A tuple of different values in the order in which they were given: a list in a line of a
    file, or in several; a flag for each."""

    nothing: ClassVar[Any] = ()
    is_repeatable: ClassVar[bool] = True

    item: Value
    is_one_line: bool = True
    """Whether a file that we write has them all on one line."""

    def parse(self, text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(map(self.item.parse, split_list(text))))

    def emit(self, value: Any) -> str:
        return ", ".join(map(self.item.emit, value))

    def add(self, before: Any, text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys((*before, *self.parse(text))))

    def lines(self, value: Any) -> Iterable[str]:
        return (self.emit(value),) if self.is_one_line else map(self.item.emit, value)

    def collect(self, given: Iterable[Any]) -> Any:
        """The value of a flag that was given for each of these."""
        return tuple(given)


class Repeated(Items):
    """Items of which a line of a file has exactly one. One that comes twice is kept twice."""

    def parse(self, text: str) -> tuple[Any, ...]:
        return (self.item.parse(text),)

    def add(self, before: Any, text: str) -> tuple[Any, ...]:
        return (*before, *self.parse(text))

    def lines(self, value: Any) -> Iterable[str]:
        return map(self.item.emit, value)


class Networks(Items):
    """Networks as wg lists them: commas alone separate them, and none is empty."""

    def parse(self, text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(network for _, network in self.changes(text)))

    def changes(self, text: str) -> Iterable[tuple[str, Any]]:
        """Each with its sign: "+" or nothing if the peer gets it, "-" if it loses it."""
        for item in squeeze(text).split(","):
            sign = item[0] if item.startswith(("+", "-")) else ""
            yield sign, self.item.parse(item[len(sign):])


class Settings(Items):
    """Items that are NAME=VALUE: a dict, in which the last value of a name counts."""

    nothing: ClassVar[Any] = MappingProxyType({})

    def parse(self, text: str) -> Any:
        return dict(map(self.item.parse, split_list(text)))

    def emit(self, value: Any) -> str:
        return ", ".join(map(self.item.emit, value.items()))

    def add(self, before: Any, text: str) -> Any:
        return {**before, **self.parse(text)}

    def collect(self, given: Iterable[Any]) -> Any:
        return dict(given)


class Commands(Value):
    """Shell commands in order, a line of a file each."""

    nothing: ClassVar[Any] = ()
    may_have_hash: ClassVar[bool] = True

    def parse(self, text: str) -> tuple[str, ...]:
        return (text,) if text else ()

    def add(self, before: Any, text: str) -> tuple[str, ...]:
        return (*before, *self.parse(text))

    def lines(self, value: Any) -> Iterable[str]:
        return tuple(value)
