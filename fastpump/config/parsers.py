"""Options that take more than a number or a word: parse, and write back.

Every ConfigError says what the text must be. Numbers, words and lists of them: values.py.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from fastpump.config.options import MAX_U32
from fastpump.config.values import DECIMAL, NOT_OCTAL, Number, one_of
from fastpump.conn.endpoint import split_host_port
from fastpump.constants import KEY_LEN, MAX_VLAN
from fastpump.errors import ConfigError, invalid
from fastpump.ip import Interface, Network
from fastpump.protocol import keys
from fastpump.tun.offloads import OFFLOAD_NAMES

MAX_NAME_LEN, MAX_LABEL_LEN = 254, 63       # RFC 1035; the first with a dot at the end

_NO_KEY = bytes(KEY_LEN)    # how wg says that there is none
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4}[0-9a-fA-F]{2}")
_TABLE = re.compile(r"[a-z0-9_][a-z0-9_-]*")
_DSCP = Number("DSCP", 0, 63)
_TABLE_NUMBER = Number("routing table", 1, MAX_U32, notation=NOT_OCTAL)
_LIKE_NUMBER = re.compile(r"[0-9]+|0x.*")
_HOST = re.compile(r"[\w.-]+", re.ASCII)
_DOMAIN = re.compile(r"~?[\w.-]+|~")                # ~: a routing domain of systemd-resolved
_LIKE_ADDRESS = re.compile(r"[0-9.]+|.*:.*")        # wg-quick's


# -- addresses

def parse_address(text: str) -> Interface:
    """An address with its prefix length or netmask, for the interface."""
    try:
        if "%" in text:
            raise ValueError("no scope id here")
        interface = ipaddress.ip_interface(text)
        length = text.partition("/")[2]
        # ip(8) refuses a host mask, and reads /030 as octal.
        if length and length not in (str(interface.network.prefixlen), str(interface.netmask)):
            raise ValueError("the length must be decimal without leading zeros")
        return interface
    except ValueError as error:
        raise invalid("address", text,
                      f"ADDRESS/PREFIXLEN, like 10.9.0.1/24 ({error})") from None


def parse_network(text: str) -> Network:
    """A prefix; host bits are cleared, as wg does. The length is a number, no mask."""
    address, slash, length_text = text.partition("/")
    try:
        if "%" in address:
            raise ValueError("no scope id here")
        if not slash:
            return ipaddress.ip_network(address)
        length = DECIMAL.read(length_text)
        if length is None:
            raise ValueError("the length must be decimal")
        return ipaddress.ip_network((address, length), strict=False)
    except ValueError as error:
        raise invalid("allowed IP", text,
                      f"ADDRESS/PREFIXLEN, like 10.9.0.0/24 ({error})") from None


def parse_allowed(text: str) -> Network:
    """A network that the kill switch leaves alone."""
    try:
        return parse_network(text)
    except ConfigError:
        raise invalid("allowed network", text, "ADDRESS/PREFIXLEN, like 192.168.7.0/24") from None


def parse_name_server(text: str) -> str:
    """The address of a name server."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise invalid("name server", text, "an address, like 192.0.2.53 or 2001:db8::53") from None


def parse_mac(text: str) -> bytes:
    """The MAC address of an interface: six bytes, not a group address."""
    mac = bytes.fromhex(re.sub("[:-]", "", text)) if _MAC.fullmatch(text) else b""
    if not any(mac) or mac[0] & 1:
        raise invalid("MAC address", text,
                      "six bytes like 02:00:00:00:00:01, the first an even number")
    return mac


def emit_mac(mac: bytes) -> str:
    """02:00:00:00:00:01"""
    return mac.hex(":")


def parse_vlans(text: str) -> tuple[int, int]:
    """A VLAN id, or FIRST-LAST, as the first and the last one."""
    first_text, dash, last_text = text.partition("-")
    first = DECIMAL.read(first_text)
    last = DECIMAL.read(last_text) if dash else first
    if first is None or last is None or not 1 <= first <= last <= MAX_VLAN:
        raise invalid("VLAN", text, f"an id of 1 to {MAX_VLAN}, or a range of them like "
                                    f"2-{MAX_VLAN}")
    return first, last


def emit_vlans(vlans: tuple[int, int]) -> str:
    """10 or 2-4094"""
    first, last = vlans
    return str(first) if first == last else f"{first}-{last}"


def parse_endpoint(text: str) -> tuple[str, int]:
    """HOST:PORT; what cannot be a host is refused here, not when it is resolved."""
    host, port = split_host_port(text)
    try:
        good = bool(ipaddress.IPv6Address(host)) if ":" in host else _is_host(host)
    except ValueError:
        good = False
    if not good:
        raise invalid("endpoint host", host, "a name, an IPv4 address, or an IPv6 address"
                                             + ", not a URL" * ("/" in host))
    return host, port


def _is_host(text: str) -> bool:
    """Whether it can be a name (RFC 1123), or is an IPv4 address in one of the C library's forms,
    like 127.1. What ends in a number is never a name."""
    labels = text.removesuffix(".").split(".")
    if not _HOST.fullmatch(text) or len(text) > MAX_NAME_LEN or not all(
            1 <= len(label) <= MAX_LABEL_LEN for label in labels):
        return False
    if _LIKE_NUMBER.fullmatch(labels[-1].lower()):
        try:
            socket.inet_aton(text)
        except OSError:
            return False
    return True


def emit_endpoint(endpoint: tuple[str, int]) -> str:
    """vpn.example.net:51820 or [2001:db8::1]:51820"""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_dns(text: str) -> str:
    """The address of a DNS server, or a search domain."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if _LIKE_ADDRESS.fullmatch(text) or not _DOMAIN.fullmatch(text):
            raise invalid("DNS entry", text,
                          "the IP address of a server, or a search domain") from None
        return text


def parse_dscp(text: str) -> int | str:
    """A differentiated services codepoint (RFC 2474), or "copy"."""
    if text.lower() == "copy":
        return "copy"
    try:
        return _DSCP.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{error}, or copy") from None


def parse_table(text: str) -> str:
    """A routing table as `ip route` takes it, or auto, or off."""
    if _LIKE_NUMBER.fullmatch(text):
        try:
            return str(_TABLE_NUMBER.parse(text))
        except ConfigError as error:
            raise ConfigError(f"{error}, or auto, off, or the name of a table") from None
    if not _TABLE.fullmatch(text):
        raise invalid("routing table", text, f"auto, off, a number ({_TABLE_NUMBER.bounds}), or a "
                                             "name of a-z, 0-9, '_' and '-'")
    return text


# -- keys and words

def parse_optional_key(text: str, what: str) -> bytes | None:
    """A key in base64; zeros: no key."""
    key = keys.decode(text, what)
    return None if key == _NO_KEY else key


def parse_offload(text: str) -> tuple[str, bool]:
    """NAME=on or NAME=off."""
    name, _, value = text.partition("=")
    if name not in OFFLOAD_NAMES or value not in ("on", "off"):
        raise invalid("offload setting", text,
                      f"NAME=on or NAME=off, with NAME {one_of(OFFLOAD_NAMES)}")
    return name, value == "on"


def emit_offload(setting: tuple[str, bool]) -> str:
    """tso4=off"""
    name, is_on = setting
    return f"{name}={'on' if is_on else 'off'}"
