"""Interoperation with wireguard-go (Debian's): a WireGuard that is not ours."""

import re
import signal
import threading
from pathlib import Path

import pytest
from hosts import is_reachable, transfer, until

from fastpump import keys
from fastpump.lab import INSIDE4, INSIDE6, OUTSIDE4, OUTSIDE6, Lab, key_files, need, tunnel_words


@pytest.fixture(autouse=True)
def _tools():
    need("wireguard-go", "wg")


def start_wireguard_go(lab, side, key, peer_public, *, endpoint=True, psk=None, v6=False, extra=()):
    """wireguard-go inside, configured by wg; the interface's name."""
    name = "wg" + lab.names[side][2:].replace("-", "")
    other = "b" if side == "a" else "a"
    where = f"[{OUTSIDE6[other]}]" if v6 else OUTSIDE4[other]
    lab.spawn(side, "wireguard-go", "--foreground", name)
    until(Path(f"/var/run/wireguard/{name}.sock").exists)
    words = ["wg", "set", name, "private-key", str(key[0]), "listen-port", "51820", "peer",
             peer_public, "allowed-ips", f"{INSIDE4[other]}/32,{INSIDE6[other]}/128", *extra]
    if endpoint:
        words += ["endpoint", f"{where}:51820"]
    if psk is not None:
        words += ["preshared-key", str(psk)]
    lab.run(side, *words)
    lab.ip(side, "address", "add", f"{INSIDE4[side]}/24", "dev", name)
    lab.ip(side, "address", "add", f"{INSIDE6[side]}/64", "dev", name, "nodad")
    lab.ip(side, "link", "set", name, "mtu", "1420", "up")
    return name


@pytest.mark.parametrize("initiator", ["fastpump", "wireguard-go"])
@pytest.mark.parametrize("with_psk", [False, True], ids=["no-psk", "psk"])
@pytest.mark.parametrize("v6", [False, True], ids=["outside4", "outside6"])
def test_either_side_may_start(lab, tmp_path, initiator, with_psk, v6):
    key, psk = key_files(tmp_path), None
    if with_psk:
        psk = tmp_path / "psk"
        psk.touch(mode=0o600)
        psk.write_text(keys.encode(keys.generate_preshared()))
    ours = initiator == "fastpump"
    start_wireguard_go(lab, "b", key["b"], key["a"][1], endpoint=not ours, psk=psk, v6=v6)
    words = tunnel_words("a", key["a"], key["b"][1], "--queues", "2", endpoint=ours,
                         v6_outside=v6)
    if with_psk:
        words[-3 if words[-2] == "--queues" else -1] += f",psk={psk}"
    lab.fastpump("a", *words)
    first, second = ("a", "b") if ours else ("b", "a")
    assert is_reachable(lab, INSIDE4[second], first)
    for side, other in (("a", "b"), ("b", "a")):
        assert transfer(lab, side, INSIDE4[other], 100 << 20)
        assert transfer(lab, side, INSIDE6[other], 5 << 20)
    status = lab.status("a")
    assert status["peers"][0]["transport"] == "wireguard"
    assert status["peers"][0]["preshared_key"] is with_psk
    assert not {name for name in status["verdicts"] if "UNAUTHENTIC" in name or "MALFORMED" in name}


def test_a_wrong_preshared_key_gives_no_session(lab, tmp_path):
    key, psk = key_files(tmp_path), tmp_path / "psk"
    psk.touch(mode=0o600)
    psk.write_text(keys.encode(keys.generate_preshared()))
    start_wireguard_go(lab, "b", key["b"], key["a"][1], psk=psk, endpoint=False)
    lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1]))
    assert lab.run("a", "ping", "-c", "1", "-W", "2", INSIDE4["b"], check=False).returncode != 0
    assert lab.status("a")["verdicts"]["DROP_INVALID_HANDSHAKE"] >= 1


def test_a_rekey_in_the_middle_of_a_transfer_loses_nothing(tmp_path):
    """REKEY_AFTER_TIME is 120 s: one long transfer each way and pings go on through it,
    slowly enough that no queue on the way drops anything. Both kinds of initiator run
    beside each other."""
    outcome = {}

    def one(initiator):
        directory = tmp_path / initiator
        directory.mkdir()
        key, ours = key_files(directory), initiator == "fastpump"
        with Lab() as lab:
            start_wireguard_go(lab, "b", key["b"], key["a"][1], endpoint=not ours)
            lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--queues", "2",
                                            endpoint=ours))
            assert is_reachable(lab, INSIDE4["b" if ours else "a"], "a" if ours else "b")
            first = lab.status("a")["peers"][0]["latest_handshake"]
            pings = lab.spawn("a", "ping", "-q", "-i", "0.02", INSIDE4["b"])
            arrived = {}
            ways = [threading.Thread(target=lambda s=side, o=other: arrived.update(
                {s: transfer(lab, s, INSIDE4[o], 64 << 20, port=f"700{ord(s) % 10}",
                             seconds=130)})) for side, other in (("a", "b"), ("b", "a"))]
            for way in ways:
                way.start()
            for way in ways:
                way.join()
            pings.send_signal(signal.SIGINT)
            summary = pings.communicate(timeout=10)[0]
            status = lab.status("a")
            outcome[initiator] = (
                arrived, status["peers"][0]["latest_handshake"] > first + 100,
                re.search(r"(\d+) packets transmitted, (\d+) received", summary).groups(),
                {name for name in status["verdicts"] if name != "DROP_NO_PEER"})

    threads = [threading.Thread(target=one, args=(who,)) for who in ("fastpump", "wireguard-go")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for who in ("fastpump", "wireguard-go"):
        arrived, is_rekeyed, (sent, received), dropped = outcome[who]
        assert arrived == {"a": True, "b": True} and is_rekeyed, outcome
        assert int(sent) > 5000 and sent == received and not dropped, outcome
