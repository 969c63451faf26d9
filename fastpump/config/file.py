"""The configuration file of wg-quick(8) and wg(8), with a few keys of our own: find, read, parse.

Flow: a line is cut at its first '#', unless it is a shell command, and is a [Section] or a
KEY = VALUE; the tables of options say what a KEY takes. Values of [Interface] are gathered by the
names of their options; each [Peer] is a section of its own, and at the end they are merged in the
order of the file (file_peers.py). Every error is FILE:LINE and one sentence; what is merely
suspicious is in `FileConfig.warnings`. No error repeats a key, not even one in place of another
word. file_emit.py writes the text back.

What wg reads is read as wg does: blanks inside do not count. Comments and commands may hold bytes
that are not UTF-8; in text they are surrogates.

Accepted limits: a file is read whole, and has at most MAX_FILE_LEN bytes.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fastpump.config.file_peers import PeerSection, drop_allowed_ips, merge
from fastpump.config.model import DEFAULTS, TunnelConfig, check
from fastpump.config.options import OPTIONS, PEER_OPTIONS, Option
from fastpump.config.values import BLANKS, squeeze
from fastpump.config.wording import OptionError
from fastpump.conn.endpoint import EndpointError
from fastpump.errors import ConfigError, FastpumpError, hide_keys, is_like_key
from fastpump.protocol import keys
from fastpump.tun.queues import check_name

SEARCH = (Path("/etc/fastpump"), Path("/etc/wireguard"))
SUFFIX = ".conf"
MAX_FILE_LEN = 16 << 20     # bytes

INTERFACE_KEYS = {option.key.lower(): option for option in OPTIONS if option.key}
PEER_KEYS = {option.key.lower(): option for option in PEER_OPTIONS}

_NAME = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")       # wg-quick's
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")  # shorter than a key in base64
_NOT_UTF_8 = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class FileConfig:
    """What a file says: the tunnel's configuration, and what `up` and `down` do besides. The
    tunnel's name is the file's (`tunnel_config`); `warnings` are whole sentences with FILE:LINE."""

    tunnel: TunnelConfig = TunnelConfig()       # noqa: RUF009 (frozen)
    dns: tuple[str, ...] = DEFAULTS["dns"]
    """Servers and search domains."""
    table: str = DEFAULTS["table"]
    """auto, off, a number or a name."""
    save_config: bool = DEFAULTS["save_config"]
    pre_up: tuple[str, ...] = DEFAULTS["pre_up"]
    post_up: tuple[str, ...] = DEFAULTS["post_up"]
    pre_down: tuple[str, ...] = DEFAULTS["pre_down"]
    post_down: tuple[str, ...] = DEFAULTS["post_down"]
    warnings: tuple[str, ...] = field(default=(), compare=False)
    path: str = field(default="", compare=False)
    """As it is called in errors."""
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Where in the file an option of [Interface] is set last, by its name."""
    endpoint_lines: Mapping[tuple[str, int], int] = field(default_factory=dict, compare=False)
    """Where an endpoint is."""

    def get(self, option: Option) -> Any:
        """The value of an option of [Interface]."""
        return getattr(self.tunnel if option.name in _OF_TUNNEL else self, option.name)

    def having(self, **values: Any) -> FileConfig:
        """The same with other values, by the names of their options."""
        of_tunnel = {name: value for name, value in values.items() if name in _OF_TUNNEL}
        others = {name: value for name, value in values.items() if name not in _OF_TUNNEL}
        return replace(self, tunnel=replace(self.tunnel, **of_tunnel), **others)

    def located(self, error: FastpumpError) -> FastpumpError:
        """An error about what the file says, with its keys for options and FILE:LINE before it, if
        there is such a line; else the error."""
        line, text = 0, str(error)
        if isinstance(error, OptionError):
            line = next((self.lines[name] for name in error.names if name in self.lines), 0)
            text = error.for_file
        elif isinstance(error, EndpointError):
            line = self.endpoint_lines.get(error.endpoint, 0)
        else:
            return error
        return ConfigError(f"{self.path}:{line}: {text}" if line else f"{self.path}: {text}")

    @property
    def dns_servers(self) -> tuple[str, ...]:
        """The addresses among `dns`."""
        return tuple(entry for entry in self.dns if _is_address(entry))

    @property
    def dns_search(self) -> tuple[str, ...]:
        """The domains among `dns`."""
        return tuple(entry for entry in self.dns if not _is_address(entry))


_OF_TUNNEL = frozenset(each.name for each in fields(TunnelConfig))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def tunnel_config(name: str, file: FileConfig) -> TunnelConfig:
    """The tunnel that a file describes, as interface `name`; ConfigError."""
    tunnel = file.tunnel
    peers = tunnel.peers
    if tunnel.private_key is not None:
        # Our own key is passed over, so that one file can serve all sides (as wg does).
        own = keys.public_of(tunnel.private_key)
        peers = tuple(peer for peer in peers if peer.public_key != own)
    config = replace(tunnel, name=name, peers=peers, keeps_key=False,
                     listen_port=tunnel.listen_port or 0)
    try:
        check(config)
    except ConfigError as error:
        raise file.located(error) from None
    return config


def is_name(word: str) -> bool:
    """Whether a word on the command line is NAME, as in `wg-quick up NAME`, and no path."""
    return bool(_NAME.fullmatch(word))


def find(word: str) -> Path:
    """The file that a word on the command line stands for: NAME or a path. ConfigError says where
    it was looked for."""
    if not is_name(word):
        path = Path(word)
        if not _exists(path):
            said = "of that name" if is_like_key(word) else path
            raise ConfigError(f"there is no file {said}: must be an interface name, or the path "
                              f"of a NAME{SUFFIX}")
        interface_name(path)
        return path
    places = [directory / f"{word}{SUFFIX}" for directory in SEARCH]
    for path in places:
        if _exists(path):
            interface_name(path)
            return path
    # wg-quick takes wg0.conf for a name too.
    hint = f" (for a file in this directory, write ./{word})" if word.endswith(SUFFIX) else ""
    raise ConfigError(f"there is no configuration file for {word}: must be "
                      f"{' or '.join(map(str, places))}{hint}")


def absolute(path: Path) -> Path:
    """A path for processes in other directories. Links in it are not followed now but whenever the
    file is read: they may lead elsewhere by then (Kubernetes, NixOS, stow). So the shell's idea of
    the working directory counts, if it is right."""
    shell = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if Path(shell).is_absolute() and Path(shell).samefile("."):
            return Path(shell, path)
    return path.absolute()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise ConfigError(f"cannot access {path}: {error.strerror}; run as root, or name a file "
                          "that you can read") from None


def interface_name(path: Path) -> str:
    """The interface that a file configures, by the file's name; ConfigError."""
    name = path.name.removesuffix(SUFFIX)
    if name == path.name or not _NAME.fullmatch(name):
        raise ConfigError(f"{path} is not named after an interface: must be NAME{SUFFIX}, with "
                          "NAME 1 to 15 of a-z, A-Z, 0-9, '_', '=', '+', '.' and '-'")
    return check_name(name)


def load(path: Path) -> FileConfig:
    """Read and parse; ConfigError also for what cannot be read."""
    data, mode = _read(path)
    file = parse(data.decode("utf-8-sig", "surrogateescape"), str(path))
    has_secrets = file.tunnel.private_key is not None or any(
        peer.preshared_key is not None for peer in file.tunnel.peers)
    if not has_secrets or not mode & 0o007:
        return file
    return replace(file, warnings=(
        f"{path} contains keys and others can read or write it; restrict it: chmod 600 {path}",
        *file.warnings))


def _read(path: Path) -> tuple[bytes, int]:
    """What is in a regular file, and its mode."""
    try:
        # Not blocking: a FIFO would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"cannot read {path}: must be a regular file")
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_LEN + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_LEN:
        raise ConfigError(f"{path} is too long: must be at most {MAX_FILE_LEN >> 20} MiB")
    return data, mode


def parse(text: str, name: str) -> FileConfig:
    """The text of a file; `name` is the file's, for errors and warnings."""
    interface: dict[str, Any] = {}
    lines: dict[str, int] = {}
    peers: list[PeerSection] = []
    section: dict[str, Any] | PeerSection | None = None
    number = 0
    try:
        # Not splitlines(), which knows more line endings than wg-quick does.
        for number, whole in enumerate(text.split("\n"), 1):
            line = _content(section, whole)
            if not line:
                continue
            if "\0" in line:
                raise ConfigError("there is a NUL byte here: must be text")
            if line[0] != "[":
                option = _parse_line(section, line, number)
                if section is interface:
                    lines[option.name] = number
            elif _section_name(line) == "interface":
                section = interface
            else:
                section = PeerSection(number)
                peers.append(section)
    except ConfigError as error:
        raise ConfigError(f"{name}:{number}: {hide_keys(str(error))}") from None
    warnings = []
    if interface.get("mode") == "tap":
        warnings += drop_allowed_ips(peers, name)
        if interface.pop("table", DEFAULTS["table"]) != DEFAULTS["table"]:
            warnings.append(f"{name}:{lines['table']}: Table has no effect with Mode = tap: no "
                            "routes are added")
    interface["peers"], more = merge(peers, name)
    return FileConfig(
        warnings=(*warnings, *more), path=name, lines=lines, endpoint_lines={
            endpoint: line for peer in peers
            for endpoint, line in peer.endpoint_lines.items()}).having(**interface)


def _content(section: dict[str, Any] | PeerSection | None, whole: str) -> str:
    """A line without its comment; of a command, '#' is part, and the shell decides what it is.
    ConfigError."""
    key = whole.partition("=")[0].strip(BLANKS).lower()
    if isinstance(section, dict) and key in INTERFACE_KEYS \
            and INTERFACE_KEYS[key].value.may_have_hash:
        return whole.strip(BLANKS)
    line = whole.partition("#")[0].strip(BLANKS)
    if _NOT_UTF_8.search(line):
        raise ConfigError("there are bytes here that are no text: must be UTF-8")
    return line


def _section_name(line: str) -> str:
    """interface or peer."""
    head = squeeze(line).lower()
    if head not in ("[interface]", "[peer]"):
        raise ConfigError("unknown section: must be [Interface] or [Peer]")
    return head[1:-1]


def _parse_line(section: dict[str, Any] | PeerSection | None, line: str, number: int) -> Option:
    """A line that is not the head of a section; the option that it sets."""
    key, equals, value = line.partition("=")
    known = INTERFACE_KEYS | PEER_KEYS
    word = re.split(f"[:{BLANKS}]", line, maxsplit=1)[0].lower()
    if word in known and (not equals or len(word) < len(key.rstrip(BLANKS))):
        raise ConfigError(f"there is no '=' behind {known[word].key}: must be {known[word].key} = "
                          "VALUE")
    if not equals:      # not repeated: it may be half of a secret
        raise ConfigError("cannot parse this line: must be KEY = VALUE, [Interface] or [Peer]")
    key, value = key.rstrip(BLANKS), value.lstrip(BLANKS)
    if section is None:
        raise ConfigError("this key is in no section: must follow [Interface] or [Peer]")
    if isinstance(section, PeerSection):
        option = _option(key, "Peer", PEER_KEYS, INTERFACE_KEYS)
        section.set(option, squeeze(value) if option.is_wg else value, number)
        return option
    option = _option(key, "Interface", INTERFACE_KEYS, PEER_KEYS)
    if option.is_wg:
        value = squeeze(value)
    before = section.get(option.name, option.value.nothing)
    section[option.name] = option.read(before, value)
    return option


def _option(key: str, section: str, known: Mapping[str, Option],
            others: Mapping[str, Option]) -> Option:
    """The option that a key of `section` sets; ConfigError."""
    lower = key.lower() if key.isascii() else key   # the Kelvin sign's lower() is k
    if lower in known:
        return known[lower]
    squeezed = squeeze(lower)
    if squeezed in known and known[squeezed].is_wg:
        return known[squeezed]
    expected = f"must be one of {', '.join(option.key for option in known.values())}"
    if lower in others:
        raise ConfigError(f"{others[lower].key} does not belong in [{section}]: {expected}")
    if not _WORD.fullmatch(key):    # may be a key in base64
        raise ConfigError(f"unknown key in [{section}]: {expected}")
    close = difflib.get_close_matches(lower, known, n=1)
    hint = "".join(f" (did you mean {known[name].key}?)" for name in close)
    raise ConfigError(f"unknown key {key!r} in [{section}]{hint}: {expected}")
