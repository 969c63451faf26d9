"""What is said of mistakes: in one line, in the operator's own words, with what to do, and nothing
that would do harm."""

import re
import subprocess
import sys

import pytest

from fastpump.cli.wg import main as fastpump_wg
from fastpump.config.file import parse, tunnel_config
from fastpump.conn.endpoint import EndpointError
from fastpump.errors import ConfigError
from fastpump.host import taps
from fastpump.netlink.links import Link, TunDetails
from fastpump.protocol import keys
from fastpump.tun import queues
from fastpump.tunnel.file import checked

KEY = keys.encode(bytes(range(1, 33)))


def fastpump(*words):
    return subprocess.run([sys.executable, "-m", "fastpump", *words], capture_output=True,
                          text=True, check=False, timeout=60)


# -- the command line

@pytest.mark.parametrize(("words", "complaint"), [
    (("tunnel", "--adress", "10.9.0.1/24"),
     "fastpump tunnel: unknown option --adress (did you mean --address?)"),
    (("tunnel", "--queue=2x", "--adress=1"),
     "fastpump tunnel: unknown option --adress (did you mean --address?)"),
    (("up", "--frobnicate"), "fastpump up: unknown option --frobnicate"),
    (("tap", "create", "vm0", "--bride", "br0"),
     "fastpump tap create: unknown option --bride (did you mean --bridge?)"),
    (("tunel",), "fastpump: argument COMMAND: invalid choice 'tunel' (did you mean tunnel?): must "
                 "be one of tunnel, status, "),
    (("tap", "crate"), "fastpump tap: argument COMMAND: invalid choice 'crate' (did you mean "
                       "create?): must be one of create, delete, list"),
    (("tunnel", "--log-level", "warn"), "fastpump tunnel: argument --log-level: invalid choice "
                                        "'warn' (did you mean warning?): must be one of debug, "),
    (("up",), "fastpump up: the following arguments are required: CONF"),
    (("up", "wg0", "wg1"), "fastpump up: unexpected argument 'wg1'"),
    (("up", "wg0", KEY), "fastpump up: unexpected argument '(a key)'"),
    (("tunnel", "--peer", f"{KEY[:-4]}zz"), "fastpump tunnel: argument --peer: invalid public key "
     "of a peer: must be 44 characters of base64, as `fastpump pubkey` prints them"),
    (("tunnel", "--private-key", "a", "--private-keys", KEY),
     "fastpump tunnel: unknown option --private-keys (did you mean --private-key?)"),
])
def test_wrong_usage_is_one_line(words, complaint):
    result = fastpump(*words)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(complaint)
    assert result.stderr.count("\n") == 1 and KEY[:20] not in result.stderr
    assert re.search(r"; `fastpump[a-z ]* --help` explains it\n$", result.stderr)


def test_wrong_usage_of_fastpump_wg_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        fastpump_wg(["--foregound", "wg0"])
    assert capsys.readouterr().err == ("fastpump-wg: unknown option --foregound (did you mean "
                                       "--foreground?); `fastpump-wg --help` explains it\n")


# -- a file

COMBINATIONS = [
    ("Relay = true", "2: Relay is for Ethernet, but this tunnel carries IP packets; add Mode = "
                     "tap, or leave it out"),
    ("Mode = tap\nGateway = nat", "3: Gateway is for IP packets, but Mode = tap carries Ethernet "
                                  "frames: leave it out, and let the hosts of that Ethernet route"),
    ("Queues = 2\nMacLimit = 5", "3: MacLimit is for Ethernet, but this"),
    ("Address = fd00::1/64\nMTU = 1279", "3: IPv6 needs an MTU of at least 1280; raise MTU, or "
                                         "leave out the IPv6 Address"),
    ("MTU = 65001", "2: an MTU over 65000 is for Ethernet only; lower it, or add Mode = tap"),
    ("Mode = tap\nTransport = wireguard", "3: Ethernet frames need lanes, which Transport = "
                                          "wireguard disables; leave it out, or choose lanes"),
    ("Mode = tap\nAttachMode = tc\nBridge = br0\nAttach = eth1",
     "3: AttachMode = tc works without a bridge; leave out Bridge, or the mode"),
    ("Mode = tap\nAttachMode = tc", "3: AttachMode = tc joins exactly one interface; give one "
                                    "Attach, or use a bridge for several"),
    ("Mode = tap\nBridge = br0\nAttach = br0", "4: br0 is given as the bridge and as a port of it; "
                                               "leave out Attach = br0"),
]


@pytest.mark.parametrize(("lines", "complaint"), COMBINATIONS)
def test_a_complaint_about_a_file_names_its_key_and_line(lines, complaint):
    with pytest.raises(ConfigError) as caught:
        checked("wg0", parse(f"[Interface]\n{lines}\n", "/etc/wg0.conf"))
    assert str(caught.value).startswith(f"/etc/wg0.conf:{complaint}")
    assert "--" not in str(caught.value)


def test_an_endpoint_that_is_not_found_is_told_with_its_line():
    file = parse(f"[Peer]\nPublicKey = {KEY}\nEndpoint = nowhere.invalid:5\n", "wg0.conf")
    error = file.located(EndpointError("it cannot be resolved", ("nowhere.invalid", 5)))
    assert str(error) == "wg0.conf:3: it cannot be resolved"
    other = ConfigError("something else")
    assert file.located(other) is other


@pytest.fixture
def check(tmp_path):
    """`fastpump check` of a text; its warnings, and its line."""
    def check(text):
        path = tmp_path / "wg0.conf"
        path.write_text(text)
        path.chmod(0o600)
        result = fastpump("check", str(path))
        assert result.returncode == 0, result.stderr
        return (result.stderr.replace(str(path), "wg0.conf").splitlines(),
                result.stdout.replace(str(path), "wg0.conf"))
    return check


OWN = f"[Interface]\nPrivateKey = {KEY}\n"
PEER = f"[Peer]\nPublicKey = {keys.encode(bytes(range(32)))}\nAllowedIPs = 10.0.0.0/8\n"


@pytest.mark.parametrize(("text", "warnings"), [
    (OWN + PEER, []),
    ("# nothing\n", ["WARNING wg0.conf says nothing: a tunnel needs a PrivateKey, and a [Peer]"]),
    (PEER, ["WARNING wg0.conf has no PrivateKey: there will be no handshake until `wg set` gives "
            "the interface one"]),
    ("[Interface]\nPostUp = wg set %i private-key /etc/key\n" + PEER, []),
    (OWN, ["WARNING wg0.conf has no [Peer]: there is nobody to send to"]),
    (OWN + PEER + "Endpoint = nowhere.invalid:51820\n",
     ["WARNING wg0.conf:6: the endpoint host 'nowhere.invalid' cannot be resolved: "]),
    (OWN + PEER.partition("Allowed")[0],
     [f"WARNING the peer {keys.encode(bytes(range(32)))} has no AllowedIPs: no packet goes to it, "
      "and none from it is accepted"]),
])
def test_check_warns_of_what_is_hardly_meant_so(check, text, warnings):
    said, line = check(text)
    assert len(said) == len(warnings)
    for one, wanted in zip(said, warnings, strict=True):
        assert one.startswith(wanted)
    verdict = "is good" if not warnings else "can be used, with 1 warning"
    assert line.startswith(f"wg0.conf {verdict}: interface wg0, 0 addresses, ")


# -- what is advised

def link(name, kind, tun=None):
    return Link(name=name, index=1, kernel_kind=kind, is_ethernet=True, is_loopback=False,
                **dict.fromkeys(LINK_FIELDS), tun=tun)


LINK_FIELDS = [field for field in Link.__dataclass_fields__ if field not in (
    "name", "index", "kernel_kind", "is_ethernet", "is_loopback", "tun")]
TAP = TunDetails(is_tap=True, is_persistent=True, is_multi_queue=False, has_vnet_header=True,
                 owner=None, group=None, attached_queues=0)


def test_nobody_is_told_to_delete_what_the_host_may_need(monkeypatch):
    assert taps.how_to_delete(link("eth0", None)) == ""
    assert taps.how_to_delete(link("br0", "bridge")) == ""
    assert taps.how_to_delete(None) == ""
    assert taps.how_to_delete(link("tap0", "tun", TAP)) == (
        ", or delete it: fastpump tap delete tap0")
    monkeypatch.setattr(taps, "_links_by_name", lambda: {"eth0": link("eth0", None)})
    for refused in (lambda: taps.create(taps.TapConfig(("eth0",))), lambda: taps.delete(["eth0"])):
        with pytest.raises(ConfigError) as caught:
            refused()
        assert "ip link" not in str(caught.value) and "eth0" in str(caught.value)
    error = OSError(16, "busy")
    assert queues._explain(error, -1, "eth0", "the TUN eth0", 0, 0) == (
        "the interface eth0 exists already; choose another name")


def test_the_tunnel_of_a_file_has_no_words_of_the_command_line():
    with pytest.raises(ConfigError, match=r"^wg0\.conf:2: Relay is for Ethernet"):
        tunnel_config("wg0", parse("[Interface]\nRelay = true", "wg0.conf"))
