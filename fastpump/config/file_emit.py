"""The text of a configuration file, for SaveConfig: defaults are left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastpump.config.file import FileConfig
from fastpump.config.options import OPTIONS, PEER_OPTIONS, Option


def emit(file: FileConfig) -> str:
    """The text of a configuration, with its keys. ValueError for a value that would not read
    back the same."""
    lines = ["[Interface]", *_lines((option, file.get(option)) for option in OPTIONS if option.key)]
    for peer in file.tunnel.peers:
        lines += ["", "[Peer]", *_lines(
            (option, getattr(peer, option.name)) for option in PEER_OPTIONS)]
    return "\n".join(lines) + "\n"


def _lines(values: Iterable[tuple[Option, Any]]) -> Iterable[str]:
    for option, value in values:
        if value is None or value == option.default_value:
            continue
        for text in option.value.lines(value):
            # A value that did not come from a file must not smuggle in further lines.
            unsafe = "\n\0" if option.value.may_have_hash else "#\n\0"
            if any(char in text for char in unsafe):
                raise ValueError(f"{option.key} is not one line, or has a comment")
            yield f"{option.key} = {text}"
