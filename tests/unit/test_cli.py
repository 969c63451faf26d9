"""The command line as a person meets it."""

import shutil
import subprocess
import sys

import pytest

from fastpump import ratelimit
from fastpump.cli.main import COMMANDS, main
from fastpump.cli.wg import main as wg_main
from fastpump.config.model import PeerConfig, TunnelConfig

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
    (("tunnel", "--mtu", "70000"), "invalid MTU '70000': must be 576 to 65521"),
    (("tunnel", "--address", "10.0.0.1/40"), "like 10.9.0.1/24"),
    (("tunnel", "--listen-port", "65536"), "0 to 65535"),
    (("tunnel", "--peer", "x"), "44 characters"),
    (("tunnel", "--offload", "tso9=on"), "with NAME csum, "),
    (("tunnel", "--offload", "tso4"), "NAME=on or NAME=off"),
    (("tunnel", "--fwmark", "-1"), "0 to"),
    (("tunnel", "--busy-poll", "x"), "0 to"),
    (("tunnel", "--tap", "--bridge", "a/b"), "invalid interface name"),
    (("tunnel", "--tap", "--attach", ""), "invalid interface name"),
    (("tunnel", "--tap", "--attach-mode", "ovs"), "bridge or tc"),
    (("tunnel", "--tap", "--mac", "01:00:00:00:00:00"), "six bytes like 02:00:00:00:00:01"),
    (("tunnel", "--tap", "--mac-ageing", "9"), "10 to 86400"),
    (("tunnel", "--tap", "--mac-limit", "0"), "1 to 1048576"),
    (("tunnel", "--tap", "--mac-table", "1048577"), "1 to 1048576"),
    (("tunnel", "--tap", "--storm-limit", "-1"), "0 to 10000000, or off"),
    (("tunnel", "--rate-limit", "fast"), "items like tx=1gbit"),
    (("tunnel", "--rate-limit", "KEY:tx=1gbit"), "invalid public key before the colon: must be"),
    (("tunnel", "--gateway", "vpn0"), "invalid part of a gateway 'vpn0': must be forward, nat, "
                                      "nat:IFACE or mss"),
    (("tunnel", "--gateway", "mss:eth0"), "nat:IFACE or mss"),
    (("tunnel", "--gateway", "forward,nat:"), "nat:IFACE or mss"),
    (("tunnel", "--gateway", "nat:a/b"), "invalid interface name"),
    (("tunnel", "--gateway", "nat:eth*"), "rename the interface"),
    (("demo", "--seconds", "0"), "1 to 3600"),
]


@pytest.mark.parametrize(("words", "complaint"), USAGE_ERRORS,
                         ids=[" ".join(row[0]) for row in USAGE_ERRORS])
def test_usage_errors_say_what_is_expected(words, complaint):
    result = fastpump(*words)
    assert result.returncode == 2 and complaint in result.stderr
    assert "Traceback" not in result.stderr


A_KEY = "oaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaE="


@pytest.mark.parametrize(("words", "complaint"), [
    (("--bridge", "br0"), "--bridge is for Ethernet, but this tunnel carries IP"),
    (("--mtu", "65001"), "over 65000 is for Ethernet only"),
    (("--tap", "--transport", "wireguard"), "Ethernet frames need lanes"),
    (("--tap", "--no-routes"), "--no-routes has no effect with --tap"),
    (("--transport", "wireguard", "--cipher", "chacha20-poly1305"), "is for lanes"),
    (("--tap", "--peer", f"{A_KEY},allowed-ips=10.0.0.0/8"), "allowed IPs have no effect"),
    (("--tap", "--gateway"), "--gateway is for IP packets, but --tap carries Ethernet frames"),
    (("--gateway", "--gateway", "nat:eth0"), "--gateway nat is for all ways out, --gateway "
                                             "nat:eth0 for one; leave out one of them"),
    (("--rate-limit", "tx=1gbit", "--rate-limit", "off"), "given twice for the interface"),
    (("--rate-limit", f"{A_KEY}:off"), "but no --peer has that key"),
    (("--rate-limit", "@/nonexistent"), "cannot read"),
])
def test_combinations_that_cannot_be(words, complaint):
    result = fastpump("tunnel", *words)
    assert result.returncode in (1, 2) and complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_variables_that_do_not_go_together(monkeypatch, capsys):
    """In words of the environment, before the program goes to the background."""
    monkeypatch.setattr("fastpump.process.logs.set_up", lambda *_: None)
    monkeypatch.setattr("fastpump.cli.wg.detach", pytest.fail)
    for name, value in (("TRANSPORT", "wireguard"), ("OFFLOAD", "bundle=on")):
        monkeypatch.setenv(f"FASTPUMP_{name}", value)
    assert wg_main(["wg0"]) == 1
    assert capsys.readouterr().err == (
        "fastpump-wg: FASTPUMP_OFFLOAD=bundle=on is for lanes, which FASTPUMP_TRANSPORT=wireguard "
        "disables; leave out one of them\n")


def test_ctrl_c_while_fastpump_wg_starts(monkeypatch):
    def interrupted(_work):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastpump.process.logs.set_up", lambda *_: None)
    monkeypatch.setattr("fastpump.cli.wg.detach", interrupted)
    try:
        status = wg_main(["wg0"])
    except KeyboardInterrupt:       # which would end the run of the tests
        status = None
    assert status == 130


def test_all_of_a_tap_is_understood(monkeypatch):
    ran = []

    def run(config, *, as_json):
        assert not as_json
        ran.append(config)

    monkeypatch.setattr("fastpump.cli.foreground.run_in_foreground", run)
    monkeypatch.setattr("fastpump.process.logs.set_up", lambda *_, **__: None)
    assert main(["tunnel", "vms", "--queues", "2", "--tap", "--bridge", "br0",
                     "--attach", "eth1", "--attach", "tap3", "--attach-mode", "tc",
                     "--mac", "02-00-00-00-00-0A", "--relay", "--mac-ageing", "60",
                     "--mac-limit", "16", "--mac-table", "1024", "--storm-limit", "off",
                     "--peer", A_KEY, "--rate-limit", "tx=1gbit",
                     "--rate-limit", f"{A_KEY}:rx-ops=100"]) == 0
    assert ran == [TunnelConfig(
        name="vms", queues=2, mode="tap", bridge="br0", attach=("eth1", "tap3"),
        attach_mode="tc", mac=bytes.fromhex("02000000000a"), relay=True, mac_ageing_s=60,
        mac_limit=16, mac_table=1024, storm_limit=0, rate_limits=ratelimit.parse("tx=1gbit"),
        peers=(PeerConfig(b"\xa1" * 32, rate_limits=ratelimit.parse("rx-ops=100")),))]
    assert main(["tunnel", "--queues", "1"]) == 0
    assert ran[1] == TunnelConfig(queues=1)


@pytest.mark.parametrize(("words", "parts"), [
    (["--gateway"], ("forward", "nat", "mss")), (["--gateway", "forward"], ("forward",)),
    (["--gateway", "forward,nat:eth0"], ("forward", "nat:eth0")),
    (["--gateway", "mss", "--gateway=nat:eth0"], ("mss", "nat:eth0")), ([], ()),
])
def test_the_parts_of_a_gateway(monkeypatch, words, parts):
    ran = []
    monkeypatch.setattr("fastpump.cli.foreground.run_in_foreground",
                        lambda config, **_: ran.append(config.gateway))
    monkeypatch.setattr("fastpump.process.logs.set_up", lambda *_, **__: None)
    assert main(["tunnel", "vpn0", *words]) == 0
    assert ran == [parts]


def test_help_teaches():
    assert "fastpump demo" in fastpump("--help").stdout
    text = fastpump("tunnel", "--help").stdout
    for word in ("--peer", "allowed-ips", "host A", "51820", "keepalive", "--busy-poll",
                 "Connect VMs", "Ethernet:", "--storm-limit", "Rate limits:", "tx=1gbit"):
        assert word in text
    assert fastpump("--version").stdout.startswith("fastpump ")


@pytest.mark.parametrize("command", [name for name, *_ in COMMANDS])
def test_every_command_explains_itself_and_refuses_what_it_does_not_take(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: fastpump {command} ") and said.count("\n\n") >= 2
    with pytest.raises(SystemExit, match="2"):
        main([command, "--no-such-option"])
    assert capsys.readouterr().err == (
        f"fastpump {command}: unknown option --no-such-option; `fastpump {command} --help` "
        "explains it\n")


def test_keys_need_no_heavy_imports():
    program = ("import sys, fastpump.cli.main as cli; cli.main(['genkey']); "
               "print([name for name in sys.modules if name.startswith(('asyncio', 'pyroute2', "
               "'fastpump._core', 'fastpump.config', 'fastpump.cli.arguments'))])")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                            check=True)
    assert result.stdout.splitlines()[1] == "[]"
