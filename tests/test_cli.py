"""The command line as a person meets it."""

import shutil
import subprocess
import sys

import pytest

FASTPUMP = [sys.executable, "-m", "fastpump"]


def fastpump(*words, input=None):
    return subprocess.run([*FASTPUMP, *words], input=input, capture_output=True, text=True,
                          check=False, timeout=30)


def wg(*words, input=None):
    if shutil.which("wg") is None:
        pytest.fail("wg is missing: apt install wireguard-tools (make test does)")
    return subprocess.run(["wg", *words], input=input, capture_output=True, text=True, check=True)


def test_keys_are_those_of_wg():
    for private in (fastpump("genkey").stdout, wg("genkey").stdout):
        assert fastpump("pubkey", input=private).stdout == wg("pubkey", input=private).stdout
    assert len(fastpump("genpsk").stdout) == len(wg("genpsk").stdout) == 45
    assert fastpump("genkey").stdout != fastpump("genkey").stdout


@pytest.mark.parametrize("text", ["", "hello", "A" * 44, "é" * 44, "A" * 100000])
def test_pubkey_refuses_what_is_no_key(text):
    result = fastpump("pubkey", input=text)
    assert result.returncode == 1 and result.stdout == ""
    assert "44 characters of base64" in result.stderr and "Traceback" not in result.stderr


USAGE_ERRORS = [
    ((), "COMMAND"),
    (("dance",), "invalid choice"),
    (("tunnel", "--queues", "0"), "1 to 256"),
    (("tunnel", "--queues", "257"), "1 to 256"),
    (("tunnel", "--mtu", "70000"), "576 to 65000"),
    (("tunnel", "--address", "10.0.0.1/40"), "like 10.9.0.1/24"),
    (("tunnel", "--listen-port", "65536"), "0 to 65535"),
    (("tunnel", "--peer", "x"), "44 characters"),
    (("tunnel", "--offload", "tso9=on"), "NAME one of csum"),
    (("tunnel", "--offload", "tso4"), "NAME=on or NAME=off"),
    (("tunnel", "--fwmark", "-1"), "0 to"),
    (("tunnel", "--busy-poll", "x"), "0 to"),
    (("demo", "--seconds", "0"), "1 to 3600"),
]


@pytest.mark.parametrize(("words", "complaint"), USAGE_ERRORS,
                         ids=[" ".join(row[0]) for row in USAGE_ERRORS])
def test_usage_errors_say_what_is_expected(words, complaint):
    result = fastpump(*words)
    assert result.returncode == 2 and complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_help_teaches():
    assert "fastpump demo" in fastpump("--help").stdout
    text = fastpump("tunnel", "--help").stdout
    for word in ("--peer", "allowed-ips", "host A", "51820", "keepalive", "--busy-poll"):
        assert word in text
    for command in ("status", "demo", "genkey", "pubkey", "genpsk"):
        assert fastpump(command, "--help").returncode == 0
    assert fastpump("--version").stdout.startswith("fastpump ")


def test_keys_need_no_heavy_imports():
    program = ("import sys, fastpump.cli as cli; cli.main(['genkey']); "
               "print([name for name in ('asyncio', 'pyroute2', 'fastpump._core') "
               "if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                            check=True)
    assert result.stdout.splitlines()[1] == "[]"
