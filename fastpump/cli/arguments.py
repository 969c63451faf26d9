"""Options and parsers of ours as arguments of argparse."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastpump.config import values
from fastpump.config.options import Option
from fastpump.config.values import Items, Number
from fastpump.errors import ConfigError


def configured(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of ours as an argparse type: its error is shown as it is."""
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return convert


def number(what: str, low: int, high: int) -> Callable[[str], Any]:
    """A whole number in a range."""
    return configured(Number(what, low, high).parse)


def lazily(dotted: str) -> Callable[[str], Any]:
    """The parser of that full name, imported when it is used (--help stays quick)."""
    return configured(values.lazily(dotted))


def add_option(group: Any, option: Option) -> None:
    """Add the flag of an option to a parser, or to a group of its arguments."""
    common: dict[str, Any] = {"dest": option.name, "help": option.help}
    if option.constant is not None:
        group.add_argument(option.flag, action="store_const", const=option.constant,
                           default=option.default_value, **common)
        return
    if option.bare:
        common["help"] += "; may be repeated"
        common |= {"action": "extend", "nargs": "?", "const": option.value.parse(option.bare),
                   "type": configured(option.value.parse), "default": []}
    elif isinstance(option.value, Items):
        common["help"] += "; may be repeated"
        common |= {"action": "append", "type": configured(option.value.item.parse), "default": []}
    else:
        # Text is parsed only if the flag is not given; nothing heavy is loaded for others.
        common |= {"type": configured(option.value.parse), "default": option.default or None}
    group.add_argument(option.flag, metavar=option.metavar, **common)


def option_values(options: Iterable[Option], args: argparse.Namespace) -> dict[str, Any]:
    """The values of the options that have flags, by their names."""
    return {option.name: option.value.collect(getattr(args, option.name))
            if isinstance(option.value, Items) else getattr(args, option.name)
            for option in options if option.flag}


def listed(option: Option) -> str:
    """What stands for the value where all of it is given at once."""
    return f"{option.metavar},..." if isinstance(option.value, Items) else option.metavar


def describe(entries: Mapping[str, str], indent: int) -> str:
    """Names and what they are, as lines of a --help."""
    lines: list[str] = []
    for name, text in entries.items():
        head = f"  {name}"
        wrapped = textwrap.wrap(text, 96 - indent, break_on_hyphens=False)
        if len(head) + 2 <= indent:
            lines.append(head.ljust(indent) + wrapped.pop(0))
        else:
            lines.append(head)
        lines += [" " * indent + line for line in wrapped]
    return "\n".join(lines)
