"""What wg shows of an interface of `fastpump-wg`, and what it sets."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from fastpump.lab.networks import wait_for_line
from fastpump.protocol import keys
from support.quick import a_public_key
from support.wginterfaces import FASTPUMP_WG, section


def test_it_goes_to_the_background_and_wg_sees_it(alone, lab):
    (link,) = json.loads(lab.ip("a", "-json", "link", "show", alone.name))
    assert link["mtu"] == 1420 and "UP" not in link["flags"]
    assert alone.socket.stat().st_mode & 0o777 == 0o600
    pid = alone.pid
    assert os.getsid(pid) == pid
    assert all(Path(f"/proc/{pid}/fd/{fd}").samefile("/dev/null") for fd in (0, 1, 2))
    assert alone.name in lab.run("a", "wg", "show", "interfaces").stdout.split()
    assert f"interface: {alone.name}\n" in lab.run("a", "wg", "show", "all").stdout
    assert f"{alone.name}\t(none)\t(none)\t0\toff" in lab.run(
        "a", "wg", "show", "all", "dump").stdout.splitlines()
    assert alone.dump() == (["(none)", "(none)", "0", "off"], {})
    assert alone.wg("showconf").stdout == "[Interface]\n\n"


def test_in_front_it_says_when_it_is_ready(lab, names):
    process = lab.spawn("a", *FASTPUMP_WG, "-f", names[0])
    assert wait_for_line(process, "ready") == f"{names[0]} is ready"
    assert f"interface: {names[0]}" in lab.run("a", "wg", "show", names[0]).stdout
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=10)[0]
    assert process.returncode == 0 and "stopped on SIGINT" in output
    assert "Traceback" not in output
    process = lab.spawn("a", *FASTPUMP_WG, names[0], env={"WG_PROCESS_FOREGROUND": "1"})
    wait_for_line(process, f"{names[0]} is ready")


@pytest.mark.parametrize("state", ["down", "up"])
def test_wg_set_changes_what_it_names(alone, lab, state):
    lab.ip("a", "link", "set", alone.name, state)
    psk = keys.encode(bytes(range(32)))
    first, second = a_public_key(1), a_public_key(2)
    alone.set_key()
    port = alone.dump()[0][2]
    assert (port == "0") is (state == "down")
    fixed = [alone.private, alone.public]
    assert alone.dump()[0] == [*fixed, port, "off"]
    for words, expected in (
            (("listen-port", "4242"), ["4242", "off"]),
            (("fwmark", "0x1234"), ["4242", "0x1234"]),
            (("listen-port", "4243"), ["4243", "0x1234"]),
            (("fwmark", "off"), ["4243", "off"]),
            (("fwmark", "0xffffffff"), ["4243", "0xffffffff"]),
            (("fwmark", "0"), ["4243", "off"])):
        alone.wg("set", *words)
        assert alone.dump()[0] == [*fixed, *expected], words
    empty = ["(none)", "(none)", "(none)", "0", "0", "0", "off"]
    # Without a private key nothing is sent, though there are keepalives and an endpoint.
    alone.wg("set", "private-key", "/dev/null")
    for words, changed in (
            ((), {}),
            (("preshared-key", alone.file(psk, "psk")), {0: psk}),
            (("endpoint", "192.0.2.2:5"), {1: "192.0.2.2:5"}),
            (("endpoint", "[2001:db8::2]:6"), {1: "[2001:db8::2]:6"}),
            (("persistent-keepalive", "25"), {6: "25"}),
            (("allowed-ips", "10.1.2.3/16"), {2: "10.1.0.0/16"}),
            (("allowed-ips", "fd00::/64"), {2: "fd00::/64"}),
            (("allowed-ips", "0.0.0.0/0"), {2: "0.0.0.0/0"}),
            (("allowed-ips", ""), {2: "(none)"}),
            (("persistent-keepalive", "off"), {6: "off"}),
            (("preshared-key", "/dev/null"), {0: "(none)"}),
            (("allowed-ips", "10.1.0.0/16", "persistent-keepalive", "65535"),
             {2: "10.1.0.0/16", 6: "65535"})):
        alone.wg("set", "peer", first, *words)
        empty = [changed.get(number, value) for number, value in enumerate(empty)]
        assert alone.dump()[1] == {first: empty}, words
    # An allowed IP has one owner.
    alone.wg("set", "peer", second, "allowed-ips", "10.1.0.0/16,10.2.0.0/16")
    assert alone.peer(first)[2] == "(none)"
    assert set(alone.peer(second)[2].split(",")) == {"10.1.0.0/16", "10.2.0.0/16"}
    alone.wg("set", "peer", first, "remove")
    alone.wg("set", "peer", first, "remove")
    assert set(alone.dump()[1]) == {second}
    # Our own key is no peer: not when it is set, and not when it becomes ours.
    alone.set_key()
    alone.wg("set", "peer", alone.public, "allowed-ips", "10.3.0.0/16")
    assert set(alone.dump()[1]) == {second}
    alone.wg("set", "private-key", alone.file(keys.encode(bytes([2]) * 32), "key"))
    assert alone.dump()[1] == {} and alone.dump()[0][1] == second


def test_setconf_addconf_and_syncconf(alone):
    one, two, three = (section(a_public_key(number), f"10.{number}.0.0/16", *lines)
                       for number, lines in ((1, ["Endpoint = 192.0.2.7:1"]),
                                             (2, [f"PresharedKey = {keys.encode(b'x' * 32)}"]),
                                             (3, ["PersistentKeepalive = 7"])))

    def peers():
        return {keys.decode(key, "key"): value[2] for key, value in alone.dump()[1].items()}

    def expected(*numbers):
        return {keys.decode(a_public_key(number), "key"): f"10.{number}.0.0/16"
                for number in numbers}

    alone.wg("setconf", alone.config(one, two, port=4242))
    assert alone.dump()[0][2] == "4242" and peers() == expected(1, 2)
    alone.wg("addconf", alone.file(three, "conf"))
    assert peers() == expected(1, 2, 3)
    assert alone.peer(a_public_key(1))[1] == "192.0.2.7:1"
    assert alone.peer(a_public_key(3))[6] == "7"
    text = alone.wg("showconf").stdout
    alone.wg("syncconf", alone.config(three, two, port=4243))
    assert peers() == expected(2, 3) and alone.dump()[0][2] == "4243"
    alone.wg("syncconf", alone.config(port=4242))
    assert peers() == {}
    # What showconf says makes the same interface again; what setconf does not say is gone.
    alone.wg("setconf", alone.file(text, "conf"))
    assert sorted(alone.wg("showconf").stdout.split("\n\n")) == sorted(text.split("\n\n"))
    assert peers() == expected(1, 2, 3)
    alone.wg("setconf", alone.file("[Interface]\n", "conf"))
    assert peers() == {} and alone.dump()[0][0] == "(none)"


def test_what_wg_does_not_send_is_refused_and_changes_nothing(alone):
    alone.set_key()
    before = alone.dump()
    peer = f"public_key={'11' * 32}\n"
    for lines in ("listen_port=70000\n", "fwmark=-1\n", "private_key=00\n", "color=red\n",
                  "listen_port\n", f"{peer}allowed_ip=10.0.0.0/33\n", f"{peer}endpoint=host:1\n",
                  f"{peer}persistent_keepalive_interval=65536\n", f"{peer}protocol_version=2\n",
                  f"{peer}remove=yes\n", "listen_port=\u00b2\n"):
        answer = alone.ask(f"set=1\nfwmark=5\n{lines}\n".encode())
        assert re.fullmatch(r"errno=-?[1-9]\d*\n\n", answer), lines
        assert alone.dump() == before, lines
