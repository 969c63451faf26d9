"""argparse, but what is wrong is one line, and says what was probably meant.

A word that looks like a key is not repeated: a secret may stand where a file should.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from fastpump.errors import hide_keys


class Parser(argparse.ArgumentParser):
    """A parser of a command, or of all commands."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        self.exit(2, f"{self.prog}: {hide_keys(message)}; `{self.prog} --help` explains it\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an option that there is not is an error here, where all others are known."""
        if args is not None:
            self._refuse_unknown_options(args)
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return known, unknown

    def _refuse_unknown_options(self, args: Sequence[str]) -> None:
        for word in args:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return      # what follows is not an option, or a command's
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and not any(
                    option.startswith(name) for option in self._option_string_actions):
                self.error(f"unknown option {name}" + did_you_mean(
                    name, (option for option in self._option_string_actions
                           if option.startswith("--"))))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            raise argparse.ArgumentError(action, (
                f"invalid choice {value!r}{did_you_mean(value, choices)}: must be one of "
                f"{', '.join(choices)}"))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question in brackets, if a known word is close."""
    import difflib

    return "".join(f" (did you mean {close}?)"
                   for close in difflib.get_close_matches(word, list(known), n=1))
