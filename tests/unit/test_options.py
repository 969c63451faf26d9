"""The table of options: its rows are sound, and code, --help and manuals say what it says."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from fastpump.cli.main import main
from fastpump.config import model
from fastpump.config.file import FileConfig
from fastpump.config.options import ETHERNET_OPTIONS, OPTIONS, PEER_OPTIONS, named
from fastpump.config.values import Items, Number, Switch
from fastpump.constants import MAX_MTU
from fastpump.errors import ConfigError
from fastpump.protocol import keys
from fastpump.tun.offloads import LANE_CIPHERS, OFFLOAD_NAMES

DOCS = Path(__file__).parents[2] / "docs"
KEY = keys.encode(bytes(range(1, 33)))
LIMIT = "tx=1gbit,burst=10mb"
EXAMPLES = {
    "addresses": "10.9.0.1/24 fd00::1/64", "routes": "false", "dns": "10.9.0.53, corp.example",
    "mtu": "0x578", "table": "0x100", "queues": "4", "pin": "TRUE", "busy_poll_us": "50",
    "dscp": "46", "latency": "low",
    "offloads": "tso4=off, gro=on", "resolve_every_s": "30", "transport": "lanes",
    "cipher": "aes-256-gcm", "rate_limits": LIMIT, "mode": "tap", "bridge": "br0",
    "attach": "eth1,tap0", "attach_mode": "tc", "bridge_vlans": "10, 100-4094",
    "mac": "02-00-00-00-00-0A", "relay": "true",
    "mac_ageing_s": "60", "mac_limit": "16", "mac_table": "1024", "storm_limit": "off",
    "gateway": "forward, nat:eth0, mss",
    "kill_switch": "on", "kill_switch_allow": "192.168.7.0/24, fd00::/8",
    "endpoint_dns": "192.0.2.53, 2001:db8::53",
    "save_config": "true", "pre_up": "true", "post_up": "echo a=b", "pre_down": "x; y",
    "post_down": "[", "listen_port": "0", "fwmark": "51820", "private_key": KEY,
    "private_key_file": "/etc/key", "public_key": KEY, "preshared_key": KEY,
    "allowed_ips": "10.1.2.3/16, fd01::/48", "endpoints": "[2001:db8::1]:51820",
    "keepalive_s": "25",
}
ROWS = [*OPTIONS, *PEER_OPTIONS]


def of_rows(rows):
    return pytest.mark.parametrize("option", rows, ids=lambda option: option.label)


def test_every_row_can_be_reached_in_one_way_each():
    for option in OPTIONS:
        assert option.flag or option.key or option.environment
    for rows in (OPTIONS, PEER_OPTIONS):
        for kind in ("name", "flag", "key", "environment"):
            values = [value for option in rows if (value := getattr(option, kind))]
            assert len(set(values)) == len(values)


def test_every_row_has_a_field_with_its_default():
    for rows, objects in ((OPTIONS, (model.TunnelConfig(), FileConfig())),
                          (PEER_OPTIONS, (model.PeerConfig(bytes(32), allowed_ips=()),))):
        defaults = {field.name: getattr(each, field.name)
                    for each in objects for field in fields(each)}
        for option in rows:
            if option.name != "public_key":
                assert defaults[option.name] == option.default_value, option.name


@of_rows(ROWS)
def test_what_is_read_is_written_and_read_again(option):
    value = option.value.parse(EXAMPLES[option.name])
    lines = list(option.value.lines(value))
    again = option.value.nothing
    for line in lines:
        again = option.value.add(again, line)
    assert again == value != option.default_value
    assert list(option.value.lines(again)) == lines


@of_rows([option for option in ROWS if option.default])
def test_a_default_is_written_as_an_operator_would(option):
    assert option.value.emit(option.default_value) == option.default


@of_rows([option for option in ROWS if isinstance(option.value, Number)])
def test_bounds_are_the_first_and_last_that_are_taken(option):
    number = option.value
    for good in (number.low, number.high):
        assert number.parse(str(good)) == good
    for bad in (number.low - 1, number.high + 1):
        with pytest.raises(ConfigError, match=f"invalid {number.what} '{bad}': must be "
                                              f"{number.low} to {number.high}"):
            number.parse(str(bad))


@of_rows([option for option in OPTIONS if option.flag])
def test_the_help_of_a_flag_states_its_default(option, capsys):
    with pytest.raises(SystemExit):
        main(["tunnel", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    may_be_repeated = "; may be repeated" if isinstance(option.value, Items) else ""
    assert option.help + may_be_repeated in text
    if option.default and option.constant is None:
        assert f"{option.flag} {option.metavar} " in text
        assert f"default: {option.default}" in option.help


def test_words_are_those_that_the_rest_of_the_program_knows():
    assert named("cipher").value.words == ("auto", *LANE_CIPHERS)
    for name in OFFLOAD_NAMES:
        assert re.search(rf"\b{name}\b", named("offloads").help)


def test_what_is_for_ethernet_needs_tap_mode_and_a_restart():
    assert {option for option in OPTIONS if option.needs_tap} == {*ETHERNET_OPTIONS} - {
        named("mode")}
    assert all(option.needs_restart for option in ETHERNET_OPTIONS)


def test_the_table_is_light():
    """It is all that the --help of `tunnel` and `up` needs."""
    program = ("import sys, fastpump.config.options; print([name for name in ("
               "'asyncio', 'fractions', 'cryptography', 'fastpump._core', "
               "'fastpump.config.model') if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                            check=True)
    assert result.stdout.strip() == "[]"


# -- the manuals

def entries(manual, heading):
    """{name: text} of the definitions (**NAME** ..., then their text) under a heading."""
    text = (DOCS / manual).read_text()
    level = "#" * (len(heading) - len(heading.lstrip("#")))
    (section,) = re.findall(rf"^{heading}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", text,
                            re.MULTILINE | re.DOTALL)
    found = {}
    for entry in re.split(r"^(?=\*\*)", section, flags=re.MULTILINE)[1:]:
        head, _, _ = entry.partition("\n")
        found |= {name: plain(entry) for name in re.findall(r"\*\*([\w-]+)\*\*", head)}
    return found


def plain(text):
    """Without emphasis, and 1,000,000 as 1000000."""
    return re.sub(r"(?<=\d)[,_](?=\d{3}\b)", "", " ".join(re.sub(r"[*`]", "", text).split()))


FLAGS = entries("fastpump.1.md", "### tunnel")
INTERFACE_KEYS = entries("fastpump.conf.5.md", "## INTERFACE")
PEER_KEYS = entries("fastpump.conf.5.md", "## PEER")
ENVIRONMENT = entries("fastpump-wg.1.md", "## ENVIRONMENT")
NO_LIMITS = ("off", "no limits", "none")


def states_default(text, *ways):
    """Whether a text says "Default: WAY", perhaps with a few words between."""
    words = "|".join(re.escape(way) for way in ways)
    return re.search(rf"\bdefault\b\W+(\w+\W+){{0,3}}?({words})(?![\w.]*\w)", text, re.IGNORECASE)


def check_bounds(option, text):
    """Each range that a text states is the option's."""
    for low, high in re.findall(r"\b(\d+) to (\d+)\b", text):
        assert int(high) in ((option.value.high, MAX_MTU) if option.name == "mtu" else
                             (option.value.high,))
        assert int(low) in (option.value.low, option.value.low or 1)    # 0 may stand apart


@of_rows([option for option in OPTIONS if option.flag])
def test_the_manual_of_the_command_states_defaults_and_bounds(option):
    text = FLAGS[option.flag]
    if option.default and option.constant is None:
        assert states_default(text, option.default)
    if isinstance(option.value, Number):
        check_bounds(option, text)


@of_rows([option for option in ROWS if option.key])
def test_the_manual_of_the_file_states_defaults_and_bounds(option):
    text = (INTERFACE_KEYS if option in OPTIONS else PEER_KEYS)[option.key]
    if option.name == "rate_limits":
        assert states_default(text, *NO_LIMITS)
    elif option.default:
        assert states_default(text, option.default)
    elif option.name != "public_key":
        assert re.search(r"\bdefault\b", text, re.IGNORECASE)
    if isinstance(option.value, Number):
        check_bounds(option, text)
        assert re.search(rf"\b{option.value.high}\b", text)


@of_rows([option for option in OPTIONS if option.environment])
def test_the_manual_of_fastpump_wg_states_defaults_and_bounds(option):
    text = ENVIRONMENT[option.environment]
    if option.default:
        is_switch = isinstance(option.value, Switch)
        assert states_default(text, str(int(option.default_value)) if is_switch
                              else option.default)
    if isinstance(option.value, Number):
        check_bounds(option, text)
