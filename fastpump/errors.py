"""Errors outside the packet path. Each message says what to do; none repeats what may be a key."""

import re

_LIKE_KEY = re.compile(r"[A-Za-z0-9+/]{42,}=*")     # in base64


class FastpumpError(Exception):
    """The operator's to solve: the command line prints its text alone."""


class ConfigError(FastpumpError):
    """A value that the operator gave cannot be used."""


class SystemSetupError(FastpumpError):
    """The system refused something that the tunnel needs."""


def invalid(what: str, text: str, expected: str) -> ConfigError:
    """The one form of "this text is not a WHAT"."""
    return ConfigError(f"invalid {what} {hide_keys(text)!r}: must be {expected}")


def is_like_key(word: str) -> bool:
    """Whether a word is rather a key than the name of a file."""
    return bool(_LIKE_KEY.fullmatch(word)) and (word.endswith("=") or not word.startswith("/"))


def hide_keys(text: str) -> str:
    """The text without what looks like a key, which may stand where another word should."""
    return _LIKE_KEY.sub("(a key)", text)
