"""The configuration file of wg-quick(8) and wg(8), with a few keys of our own: find, read,
parse, and write the text again.

Flow: a line is cut at its first '#', and is a [Section] or a KEY = VALUE; each section fills a
draft; at the end the drafts of peers are settled in the order of the file, as the kernel would
take them one by one (a [Peer] replaces the allowed IPs its peer had before, an allowed IP moves
to the peer that named it last; with Mode = tap there are none). Every complaint is FILE:LINE and
one sentence; what is merely suspicious is in `FileConfig.warnings`. No complaint repeats a key,
also not one that stands where another word should.

Accepted limits: white space inside a value is not squeezed out, as wg does; the files are read
whole, and are at most MAX_FILE_LEN.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastpump import ratelimit
from fastpump.config.model import (
    DEFAULT_MAC_AGEING_S,
    DEFAULT_MAC_LIMIT,
    DEFAULT_MAC_TABLE,
    DEFAULT_STORM_LIMIT,
    MAX_KEEPALIVE_S,
    Interface,
    Network,
    PeerConfig,
    parse_address,
    parse_attach_mode,
    parse_cipher,
    parse_mac,
    parse_mac_ageing,
    parse_mac_limit,
    parse_mode,
    parse_mtu,
    parse_network,
    parse_number,
    parse_number_or_off,
    parse_offload,
    parse_storm_limit,
    parse_transport,
)
from fastpump.conn.endpoint import split_host_port
from fastpump.constants import KEY_LEN
from fastpump.errors import ConfigError
from fastpump.protocol import keys
from fastpump.ratelimit import NO_LIMITS, RateLimits
from fastpump.tun.queues import check_name

SEARCH = (Path("/etc/fastpump"), Path("/etc/wireguard"))
SUFFIX = ".conf"
MAX_FILE_LEN = 16 << 20     # bytes

MAX_QUEUES = 256
MAX_BUSY_POLL_US = 1_000_000
MIN_RESOLVE_S, MAX_RESOLVE_S = 5, 86400
MAX_U32 = 2 ** 32 - 1

INTERFACE_KEYS = ("Address", "DNS", "MTU", "Table", "Queues", "Pin", "BusyPoll", "Offload",
                  "ResolveEvery", "Transport", "Cipher", "RateLimit", "Mode", "Bridge", "Attach",
                  "AttachMode", "MACAddress", "Relay", "MacAgeing", "MacLimit", "MacTable",
                  "StormLimit", "SaveConfig", "PreUp", "PostUp", "PreDown", "PostDown",
                  "ListenPort", "FwMark", "PrivateKey")
PEER_KEYS = ("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive",
             "RateLimit")

_NO_KEY = bytes(KEY_LEN)    # how wg says that there is none
_NAME = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")       # wg-quick's
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")  # shorter than a key in base64
_LIKE_KEY = re.compile(r"[A-Za-z0-9+/]{42,}=*")
_TABLE = re.compile(r"[a-z0-9_][a-z0-9_-]*")
_HOST = re.compile(r"[\w.-]+")
_DOMAIN = re.compile(r"~?[\w.-]+|~")                # ~: a routing domain of systemd-resolved
_LIKE_ADDRESS = re.compile(r"[0-9.]+|.*:.*")        # wg-quick's


@dataclass(frozen=True, slots=True)
class FileConfig:
    """What a file says. None: not said. `fwmark` 0: off; `listen_port` 0: any free one;
    `table`: auto, off, a number or a name; `resolve_every_s` 0: off. `warnings` are whole
    sentences with FILE:LINE."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    addresses: tuple[Interface, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    mtu: int | None = None
    table: str = "auto"
    pre_up: tuple[str, ...] = ()
    post_up: tuple[str, ...] = ()
    pre_down: tuple[str, ...] = ()
    post_down: tuple[str, ...] = ()
    save_config: bool = False
    peers: tuple[PeerConfig, ...] = ()
    queues: int | None = None
    pin: bool = False
    busy_poll_us: int = 0
    offloads: tuple[tuple[str, bool], ...] = ()
    resolve_every_s: int = 0
    transport: str = "auto"
    cipher: str = "auto"
    rate_limits: RateLimits = NO_LIMITS
    mode: str = "tun"
    bridge: str | None = None
    attach: tuple[str, ...] = ()
    attach_mode: str = "bridge"
    mac: bytes | None = None
    relay: bool = False
    mac_ageing_s: int = DEFAULT_MAC_AGEING_S
    mac_limit: int = DEFAULT_MAC_LIMIT
    mac_table: int = DEFAULT_MAC_TABLE
    storm_limit: int = DEFAULT_STORM_LIMIT
    warnings: tuple[str, ...] = field(default=(), compare=False)


def find(word: str) -> Path:
    """The file that a word on the command line means: NAME as in `wg-quick up NAME`, or a
    path. ConfigError tells where was looked."""
    if not _NAME.fullmatch(word):
        path = Path(word)
        if not _exists(path):
            raise ConfigError(f"there is no file {path}: an interface name, or the path of a "
                              f"NAME{SUFFIX} is expected")
        interface_name(path)
        return path
    places = [directory / f"{word}{SUFFIX}" for directory in SEARCH]
    for path in places:
        if _exists(path):
            interface_name(path)
            return path
    # wg-quick takes wg0.conf for a name too.
    hint = f" (for the file here write ./{word})" if word.endswith(SUFFIX) else ""
    raise ConfigError(f"there is no configuration of {word}: {' or '.join(map(str, places))} is "
                      f"expected{hint}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise ConfigError(f"{path} cannot be looked at: {error.strerror}; run as root, or name a "
                          "file that you can read") from None


def interface_name(path: Path) -> str:
    """The interface that a file configures; ConfigError if the file's name gives none."""
    name = path.name.removesuffix(SUFFIX)
    if name == path.name or not _NAME.fullmatch(name):
        raise ConfigError(f"{path} is not named after an interface: NAME{SUFFIX} is expected, "
                          "NAME 1 to 15 of a-z, A-Z, 0-9, '_', '=', '+', '.' and '-'")
    return check_name(name)


def load(path: Path) -> FileConfig:
    """Read and parse; ConfigError also for what cannot be read, or is no text file."""
    data, mode = _read(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is not text: UTF-8 is expected") from None
    config = parse(text, str(path))
    secret = config.private_key is not None or any(
        peer.preshared_key is not None for peer in config.peers)
    if not secret or not mode & 0o007:
        return config
    return replace(config, warnings=(
        f"{path} has keys in it and is open to others; make it yours alone: chmod 600 {path}",
        *config.warnings))


def _read(path: Path) -> tuple[bytes, int]:
    """What is in a regular file, and its mode."""
    try:
        # Not blocking: a FIFO would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path} is no configuration: a regular file is expected")
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_LEN + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_LEN:
        raise ConfigError(f"{path} is too long for a configuration: at most "
                          f"{MAX_FILE_LEN >> 20} MiB are expected")
    return data, mode


def parse(text: str, name: str) -> FileConfig:
    """The text of a file; `name` is the file's, for complaints and warnings."""
    interface = _Interface()
    peers: list[_Peer] = []
    section: _Interface | _Peer | None = None
    number = 0
    try:
        # Not splitlines(), which knows more ends of lines than wg-quick does.
        for number, whole in enumerate(text.split("\n"), 1):
            line = whole.partition("#")[0].strip()
            if not line:
                continue
            if "\0" in line:
                raise ConfigError("there is a NUL byte here: text is expected")
            if line[0] != "[":
                _set(section, line, number)
            elif _section_name(line) == "interface":
                section = interface
            else:
                section = _Peer(number)
                peers.append(section)
    except ConfigError as error:
        complaint = _LIKE_KEY.sub("(a key)", str(error))
        raise ConfigError(f"{name}:{number}: {complaint}") from None
    warnings = _without_allowed_ips(peers, name) if interface.said.mode == "tap" else ()
    settled, more = _settle(peers, name)
    return interface.config(settled, (*warnings, *more))


@dataclass(slots=True)
class _Interface:
    """All [Interface] sections so far. Dicts are ordered sets."""

    said: FileConfig = field(default_factory=FileConfig)
    """The values given once."""
    addresses: dict[Interface, None] = field(default_factory=dict)
    dns: dict[str, None] = field(default_factory=dict)
    dns_search: dict[str, None] = field(default_factory=dict)
    offloads: dict[str, bool] = field(default_factory=dict)
    attach: dict[str, None] = field(default_factory=dict)
    hooks: dict[str, list[str]] = field(default_factory=lambda: {
        "preup": [], "postup": [], "predown": [], "postdown": []})

    def set(self, key: str, value: str) -> None:
        """One line, the key in any case."""
        match key.lower():
            case "address":
                self.addresses.update((parse_address(item), None) for item in _items(value))
            case "dns":
                for item in _items(value):
                    self._add_dns(item)
            case "offload":
                self.offloads.update(map(parse_offload, _items(value)))
            case "preup" | "postup" | "predown" | "postdown" as hook:
                if value:
                    self.hooks[hook].append(value)
            case "mtu":     # wg-quick takes an empty MTU or Table for none
                self.said = replace(self.said, mtu=parse_mtu(value) if value else None)
            case "table":
                self.said = replace(self.said, table=_parse_table(value))
            case "queues":
                self.said = replace(self.said, queues=parse_number(
                    value, "number of queues", 1, MAX_QUEUES))
            case "pin":
                self.said = replace(self.said, pin=_parse_bool(value))
            case "busypoll":
                self.said = replace(self.said, busy_poll_us=parse_number(
                    value, "number of microseconds", 0, MAX_BUSY_POLL_US))
            case "resolveevery":
                self.said = replace(self.said, resolve_every_s=parse_number_or_off(
                    value, "number of seconds", MIN_RESOLVE_S, MAX_RESOLVE_S))
            case "transport":
                self.said = replace(self.said, transport=parse_transport(value))
            case "cipher":
                self.said = replace(self.said, cipher=parse_cipher(value))
            case "ratelimit":
                self.said = replace(self.said, rate_limits=_parse_rate_limits(value))
            case "mode":
                self.said = replace(self.said, mode=parse_mode(value))
            case "bridge":
                self.said = replace(self.said, bridge=check_name(value) if value else None)
            case "attach":
                self.attach.update((check_name(item), None) for item in _items(value))
            case "attachmode":
                self.said = replace(self.said, attach_mode=parse_attach_mode(value))
            case "macaddress":
                self.said = replace(self.said, mac=parse_mac(value) if value else None)
            case "relay":
                self.said = replace(self.said, relay=_parse_bool(value))
            case "macageing":
                self.said = replace(self.said, mac_ageing_s=parse_mac_ageing(value))
            case "maclimit":
                self.said = replace(self.said, mac_limit=parse_mac_limit(value))
            case "mactable":
                self.said = replace(self.said, mac_table=parse_mac_limit(value))
            case "stormlimit":
                self.said = replace(self.said, storm_limit=parse_storm_limit(value))
            case "saveconfig":
                self.said = replace(self.said, save_config=_parse_bool(value))
            case "listenport":
                self.said = replace(self.said, listen_port=parse_number(
                    value, "port", 0, 65535))
            case "fwmark":
                self.said = replace(self.said, fwmark=parse_number_or_off(
                    value, "firewall mark", 0, MAX_U32))
            case "privatekey":
                key_bytes = keys.decode(value, "private key")
                self.said = replace(self.said, private_key=_key_or_none(key_bytes))
            case _:
                raise ConfigError(_unknown_key(key, "Interface", INTERFACE_KEYS, PEER_KEYS))

    def _add_dns(self, item: str) -> None:
        try:
            self.dns[str(ipaddress.ip_address(item))] = None
        except ValueError:
            if _LIKE_ADDRESS.fullmatch(item) or not _DOMAIN.fullmatch(item):
                raise ConfigError(f"{item!r} is no DNS entry: the IP address of a server, or a "
                                  "search domain is expected") from None
            self.dns_search[item] = None

    def config(self, peers: tuple[PeerConfig, ...], warnings: tuple[str, ...]) -> FileConfig:
        """The whole of it."""
        return replace(
            self.said, addresses=tuple(self.addresses), dns=tuple(self.dns),
            dns_search=tuple(self.dns_search), offloads=tuple(self.offloads.items()),
            attach=tuple(self.attach),
            pre_up=tuple(self.hooks["preup"]), post_up=tuple(self.hooks["postup"]),
            pre_down=tuple(self.hooks["predown"]), post_down=tuple(self.hooks["postdown"]),
            peers=peers, warnings=warnings)


@dataclass(slots=True, eq=False)
class _Peer:
    """One [Peer] section, on `line`. None: not said; a preshared key of zeros: said to be
    none. `networks` are the allowed IPs, and the lines they are on."""

    line: int
    public_key: bytes | None = None
    preshared_key: bytes | None = None
    endpoint: tuple[str, int] | None = None
    keepalive_s: int | None = None
    rate_limits: RateLimits | None = None
    networks: dict[Network, int] = field(default_factory=dict)

    def set(self, key: str, value: str, line: int) -> None:
        """One line, the key in any case."""
        match key.lower():
            case "publickey":
                self.public_key = keys.decode(value, "public key")
            case "presharedkey":
                self.preshared_key = keys.decode(value, "preshared key")
            case "allowedips":
                self.networks.update((parse_network(item), line) for item in _items(value))
            case "endpoint":
                self.endpoint = _parse_endpoint(value)
            case "persistentkeepalive":
                self.keepalive_s = parse_number_or_off(
                    value, "keepalive interval", 0, MAX_KEEPALIVE_S)
            case "ratelimit":
                self.rate_limits = _parse_rate_limits(value)
            case _:
                raise ConfigError(_unknown_key(key, "Peer", PEER_KEYS, INTERFACE_KEYS))

    def inherit(self, earlier: _Peer) -> None:
        """Take over what only an earlier section of the same peer said. Not its allowed IPs:
        wg asks the kernel to replace those for every [Peer]."""
        if self.preshared_key is None:
            self.preshared_key = earlier.preshared_key
        if self.endpoint is None:
            self.endpoint = earlier.endpoint
        if self.keepalive_s is None:
            self.keepalive_s = earlier.keepalive_s
        if self.rate_limits is None:
            self.rate_limits = earlier.rate_limits


def _section_name(line: str) -> str:
    """interface or peer."""
    name = line[1:-1].strip().lower()
    if line[-1] != "]" or name not in ("interface", "peer"):
        raise ConfigError("this is no section: [Interface] or [Peer] is expected")
    return name


def _set(section: _Interface | _Peer | None, line: str, number: int) -> None:
    """A line that is not the head of a section."""
    key, equals, value = line.partition("=")
    if not equals:      # not repeated: it may be half of a secret
        raise ConfigError("this line is not understood: KEY = VALUE, [Interface] or [Peer] is "
                          "expected")
    key, value = key.rstrip(), value.lstrip()
    if section is None:
        raise ConfigError("this key stands before any section: [Interface] or [Peer] is expected "
                          "first")
    if isinstance(section, _Peer):
        section.set(key, value, number)
    else:
        section.set(key, value)


def _unknown_key(key: str, section: str, valid: tuple[str, ...], others: tuple[str, ...]) -> str:
    """The complaint about a key that `section` has not."""
    expected = f"one of {', '.join(valid)} is expected in [{section}]"
    lower = key.lower()
    for other in others:
        if other.lower() == lower:
            return f"{other} does not belong here: {expected}"
    if not _WORD.fullmatch(key):    # may be a key in base64
        return f"this key is not known: {expected}"
    close = difflib.get_close_matches(lower, [name.lower() for name in valid], n=1)
    hint = "".join(f" (is it {name}?)" for name in valid if name.lower() in close)
    return f"the key {key!r} is not known{hint}: {expected}"


def _items(value: str) -> list[str]:
    """A list with commas, spaces or both."""
    return value.replace(",", " ").split()


def _key_or_none(key: bytes) -> bytes | None:
    return None if key == _NO_KEY else key


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"{text!r} is no answer: true or false is expected")
    return text.lower() == "true"


def _parse_rate_limits(text: str) -> RateLimits:
    """Limits that stand here in full; empty: none."""
    return ratelimit.parse(text or "off", may_read=False)


def _parse_table(text: str) -> str:
    """A routing table as `ip route` takes it, or auto, or off."""
    if not text:
        return "auto"
    if text.isdigit() or text.startswith("0x"):
        try:
            return str(parse_number(text, "routing table", 1, MAX_U32))
        except ConfigError as error:
            raise ConfigError(f"{error}, or auto, off, or the name of a table") from None
    if not _TABLE.fullmatch(text):
        raise ConfigError(f"{text!r} is no routing table: auto, off, a number from 1 to {MAX_U32}, "
                          "or a name of a-z, 0-9, '_' and '-' is expected")
    return text


def _parse_endpoint(text: str) -> tuple[str, int]:
    """HOST:PORT; what cannot be a host is refused here, not when it is resolved."""
    host, port = split_host_port(text)
    try:
        good = bool(ipaddress.IPv6Address(host)) if ":" in host else _HOST.fullmatch(host)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{host!r} is no endpoint host: a name, an IPv4 address, or an IPv6 "
                          "address in brackets is expected")
    return host, port


def _without_allowed_ips(sections: list[_Peer], name: str) -> tuple[str, ...]:
    """Frames go by MAC addresses: what wg's tools write all the same is dropped."""
    lines = [line for peer in sections for line in peer.networks.values()]
    for peer in sections:
        peer.networks.clear()
    return (f"{name}:{min(lines)}: AllowedIPs mean nothing with Mode = tap: frames go where their "
            "MAC address was learnt",) if lines else ()


def _settle(sections: list[_Peer], name: str) -> tuple[tuple[PeerConfig, ...], tuple[str, ...]]:
    """The peers, in the order of their first sections, and what is odd about them."""
    peers: dict[bytes, _Peer] = {}
    owners: dict[Network, _Peer] = {}
    warnings: list[str] = []
    for peer in sections:
        if peer.public_key is None:
            raise ConfigError(f"{name}:{peer.line}: this [Peer] has no key: PublicKey = KEY is "
                              "expected in it")
        earlier = peers.get(peer.public_key)
        if earlier is not None:
            warnings.append(
                f"{name}:{peer.line}: the peer {keys.encode(peer.public_key)} has a [Peer] on "
                f"line {earlier.line} already; this one's values win, and its allowed IPs "
                "replace the earlier ones")
            for network in earlier.networks:
                del owners[network]
            peer.inherit(earlier)
        for network, line in peer.networks.items():
            loser = owners.get(network)
            if loser is not None:
                warnings.append(
                    f"{name}:{line}: the allowed IPs {network} are given to another peer on line "
                    f"{loser.networks.pop(network)} already; this one gets their packets")
            owners[network] = peer
        peers[peer.public_key] = peer
    settled = tuple(
        PeerConfig(public_key, peer.endpoint, tuple(peer.networks),
                   _key_or_none(peer.preshared_key or _NO_KEY), peer.keepalive_s or 0,
                   peer.rate_limits or NO_LIMITS)
        for public_key, peer in peers.items())
    return settled, tuple(warnings)


def emit(config: FileConfig) -> str:
    """The file that says this, keys and all; without what is as by default. ValueError if a
    value cannot be written so that it is read again."""
    lines = ["[Interface]", *_interface_lines(config)]
    for peer in config.peers:
        lines += ["", "[Peer]", *_peer_lines(peer)]
    return "\n".join(lines) + "\n"


def _line(key: str, value: object) -> str:
    text = str(value)
    # Whoever fills a FileConfig from elsewhere must not get other lines than asked for.
    if any(char in text for char in "#\n\0"):
        raise ValueError(f"{key} is not one line without '#'")
    return f"{key} = {text}"


def _interface_lines(config: FileConfig) -> list[str]:
    pairs: list[tuple[str, object]] = [("Address", address) for address in config.addresses]
    if config.dns or config.dns_search:
        pairs.append(("DNS", ", ".join((*config.dns, *config.dns_search))))
    if config.mtu is not None:
        pairs.append(("MTU", config.mtu))
    if config.table != "auto":
        pairs.append(("Table", config.table))
    if config.queues is not None:
        pairs.append(("Queues", config.queues))
    if config.pin:
        pairs.append(("Pin", "true"))
    if config.busy_poll_us:
        pairs.append(("BusyPoll", config.busy_poll_us))
    if config.offloads:
        pairs.append(("Offload", ", ".join(
            f"{name}={'on' if on else 'off'}" for name, on in config.offloads)))
    if config.resolve_every_s:
        pairs.append(("ResolveEvery", config.resolve_every_s))
    if config.transport != "auto":
        pairs.append(("Transport", config.transport))
    if config.cipher != "auto":
        pairs.append(("Cipher", config.cipher))
    if not config.rate_limits.is_empty:
        pairs.append(("RateLimit", ratelimit.emit(config.rate_limits)))
    pairs += _ethernet_pairs(config)
    if config.save_config:
        pairs.append(("SaveConfig", "true"))
    for key, hooks in (("PreUp", config.pre_up), ("PostUp", config.post_up),
                       ("PreDown", config.pre_down), ("PostDown", config.post_down)):
        pairs += [(key, hook) for hook in hooks]
    if config.listen_port is not None:
        pairs.append(("ListenPort", config.listen_port))
    if config.fwmark is not None:
        pairs.append(("FwMark", f"0x{config.fwmark:x}"))
    if config.private_key is not None:
        pairs.append(("PrivateKey", keys.encode(config.private_key)))
    return [_line(key, value) for key, value in pairs]


def _ethernet_pairs(config: FileConfig) -> Iterator[tuple[str, object]]:
    if config.mode != "tun":
        yield "Mode", config.mode
    if config.bridge is not None:
        yield "Bridge", config.bridge
    if config.attach:
        yield "Attach", ", ".join(config.attach)
    if config.attach_mode != "bridge":
        yield "AttachMode", config.attach_mode
    if config.mac is not None:
        yield "MACAddress", config.mac.hex(":")
    if config.relay:
        yield "Relay", "true"
    if config.mac_ageing_s != DEFAULT_MAC_AGEING_S:
        yield "MacAgeing", config.mac_ageing_s
    if config.mac_limit != DEFAULT_MAC_LIMIT:
        yield "MacLimit", config.mac_limit
    if config.mac_table != DEFAULT_MAC_TABLE:
        yield "MacTable", config.mac_table
    if config.storm_limit != DEFAULT_STORM_LIMIT:
        yield "StormLimit", config.storm_limit


def _peer_lines(peer: PeerConfig) -> list[str]:
    lines = [_line("PublicKey", keys.encode(peer.public_key))]
    if peer.preshared_key is not None:
        lines.append(_line("PresharedKey", keys.encode(peer.preshared_key)))
    if peer.allowed_ips:
        lines.append(_line("AllowedIPs", ", ".join(map(str, peer.allowed_ips))))
    if peer.endpoint is not None:
        host, port = peer.endpoint
        lines.append(_line("Endpoint", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
    if peer.keepalive_s:
        lines.append(_line("PersistentKeepalive", peer.keepalive_s))
    if not peer.rate_limits.is_empty:
        lines.append(_line("RateLimit", ratelimit.emit(peer.rate_limits)))
    return lines
