"""Errors about options, in the operator's words: those of the command line are flags, those of a
file are keys, those of the environment are variables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from fastpump.config.options import OPTIONS, Option
from fastpump.errors import ConfigError

_BY_NAME = {option.name: option for option in OPTIONS}
_REFERENCE = re.compile(r"<([a-z_]+)(?:=([^<>]*))?>")


class OptionError(ConfigError):
    """Options of [Interface] that do not go together, or not with this host. In the sentence,
    <mtu> and <mtu=1280> stand for an option by the name of its row; the error's text has flags
    there."""

    def __init__(self, sentence: str) -> None:
        super().__init__(_worded(sentence, _flag))
        self._sentence = sentence

    @property
    def for_file(self) -> str:
        """The text with keys of a file."""
        return _worded(self._sentence, _key)

    @property
    def for_environment(self) -> str:
        """The text with variables of fastpump-wg."""
        return _worded(self._sentence, _variable)

    @property
    def names(self) -> Iterator[str]:
        """The options' names, in the order of the sentence."""
        return (match[1] for match in _REFERENCE.finditer(self._sentence))


def _worded(sentence: str, word: Callable[[Option, str], str]) -> str:
    def replace(match: re.Match[str]) -> str:
        option = _BY_NAME.get(match[1])
        return match[0] if option is None else word(option, match[2] or "")
    return _REFERENCE.sub(replace, sentence)


def _flag(option: Option, value: str) -> str:
    return f"{option.flag} {value}" if value and option.constant is None else option.flag


def _key(option: Option, value: str) -> str:
    return f"{option.key} = {value}" if value else option.key


def _variable(option: Option, value: str) -> str:
    return f"{option.environment}={value}" if value else option.environment
