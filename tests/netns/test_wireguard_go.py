"""Interoperation with wireguard-go (Debian's): a WireGuard that is not ours."""

import itertools
import threading

import pytest

from fastpump.constants import REKEY_AFTER_TIME, SECOND
from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    OUTSIDE4,
    OUTSIDE6,
    Lab,
    key_files,
    need,
    tunnel_words,
)
from fastpump.protocol import keys
from support.hosts import FASTPUMP, Pings, is_reachable, transfer, until
from support.pretence import pretending
from support.wireguard_go import start_wireguard_go

REKEY_S = REKEY_AFTER_TIME // SECOND


@pytest.fixture(autouse=True)
def _tools():
    need("wireguard-go", "wg")


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


def configuration(key, peer_public, *, endpoint, psk, port=51820, more=""):
    """A file for `fastpump up` on host a."""
    return (f"[Interface]\nPrivateKey = {key[0].read_text()}Address = {INSIDE4['a']}/24, "
            f"{INSIDE6['a']}/64\nListenPort = {port}\nQueues = 2\nTable = off\nMTU = 1420\n"
            f"[Peer]\nPublicKey = {peer_public}\nAllowedIPs = {INSIDE4['b']}/32, "
            f"{INSIDE6['b']}/128\n"
            + (f"Endpoint = {endpoint}\n" if endpoint else "")
            + (f"PresharedKey = {psk.read_text()}\n" if psk else "") + more)


def a_life(lab, directory, initiator, psk, v6, rekey_s):
    """A session's whole life, with a transfer each way all the time: handshake, both sides
    roam (port, then IP version), reload, rekey. What came of it, by name. `rekey_s`: when fastpump
    does that; wireguard-go always after 120 s."""
    key, ours = key_files(directory), initiator == "fastpump"
    file = directory / "life0.conf"
    file.touch(mode=0o600)
    where = f"[{OUTSIDE6['b']}]:51820" if v6 else f"{OUTSIDE4['b']}:51820"
    said = {"endpoint": where if ours else None, "psk": psk}
    file.write_text(configuration(key["a"], key["b"][1], **said))
    name = start_wireguard_go(lab, "b", key["b"], key["a"][1], endpoint=not ours, psk=psk, v6=v6)
    pretence = pretending(directory, REKEY_AFTER_TIME=rekey_s * SECOND)
    lab.run("a", "env", *(f"{name}={value}" for name, value in pretence.items()), *FASTPUMP, "up",
            str(file))
    assert is_reachable(lab, INSIDE4["b" if ours else "a"], "a" if ours else "b")
    arrived = {}
    ways = [threading.Thread(target=lambda s=side, o=other: arrived.update(
        {s: transfer(lab, s, INSIDE4[o], 8 << 20, port=f"700{ord(s) % 10}",
                           seconds=rekey_s + 15)}))
        for side, other in (("a", "b"), ("b", "a"))]
    for way in ways:
        way.start()

    def peer():
        return lab.status("a")["peers"][0]

    patience_s = 90     # one of eight, perhaps all on one CPU

    def hears(endpoint):
        return until(lambda: peer()["endpoint"] == endpoint, patience_s)

    first = peer()["latest_handshake"]
    outcome = {}
    # They roam to another port, we to another port, they to the other IP version and back.
    lab.run("b", "wg", "set", name, "listen-port", "4242")
    outcome["followed a port"] = hears(where.replace("51820", "4242"))
    file.write_text(configuration(key["a"], key["b"][1], **said, port=4343))
    lab.run("a", *FASTPUMP, "reload", str(file))
    theirs = f"[{OUTSIDE6['a']}]:4343" if v6 else f"{OUTSIDE4['a']}:4343"
    outcome["was followed"] = until(lambda: theirs in lab.run(
        "b", "wg", "show", name, "endpoints").stdout, patience_s)
    other_way = f"{OUTSIDE4['a']}:4343" if v6 else f"[{OUTSIDE6['a']}]:4343"
    there = f"{OUTSIDE4['b']}:4242" if v6 else f"[{OUTSIDE6['b']}]:4242"

    def moves():
        # Again and again: a packet of ours that is under way brings them back.
        lab.run("b", "wg", "set", name, "peer", key["a"][1], "endpoint", other_way)
        return peer()["endpoint"] == there

    outcome["followed to the other IP version"] = until(moves, patience_s)
    # From here on not a packet may be lost. The rekey is yet to come.
    pings = Pings(lab, "a", INSIDE4["b"], directory / "pings")
    stranger = keys.encode(keys.public_of(keys.generate_private()))
    file.write_text(configuration(
        key["a"], key["b"][1], **said, port=4343,
        more=f"[Peer]\nPublicKey = {stranger}\nAllowedIPs = 10.77.0.0/16\n"))
    before = peer()["latest_handshake"]
    lab.run("a", *FASTPUMP, "reload", str(file))
    after = peer()["latest_handshake"]      # another one if it was due; on one CPU it may be
    outcome["reload kept the session"] = after == before or after > before + rekey_s - 1
    outcome["reload added a peer"] = len(lab.status("a")["peers"]) == 2
    for way in ways:
        way.join()
    outcome["pings"] = pings.end() or True
    outcome["arrived"] = arrived == {"a": True, "b": True}
    if ours or rekey_s == REKEY_S:
        outcome["rekeyed"] = peer()["latest_handshake"] > first + rekey_s - 20
    dropped = set(lab.status("a")["verdicts"]) - {"DROP_NO_PEER", "DROP_UNKNOWN_INDEX"}
    outcome["nothing dropped"] = dropped or True
    # Eight end at once: it may say that it is busy.
    until(lambda: lab.run("a", *FASTPUMP, "down", str(file), check=False).returncode == 0)
    return outcome


@pytest.mark.abridged
@pytest.mark.alone
@pytest.mark.timeout(600)       # 150 s are its own, if it is long
def test_the_whole_life_of_a_session(tmp_path, is_long):
    """initiator x PSK x IP version outside, each with roaming of both sides, reload and rekey. All
    eight run beside each other, and slowly enough that no queue on the way drops anything."""
    rekey_s = REKEY_S if is_long else 30
    outcomes = {}

    def one(initiator, with_psk, v6):
        directory = tmp_path / f"{initiator}-{with_psk}-{v6}"
        directory.mkdir()
        psk = None
        if with_psk:
            psk = directory / "psk"
            psk.touch(mode=0o600)
            psk.write_text(keys.encode(keys.generate_preshared()))
        try:
            with Lab() as lab:
                outcomes[directory.name] = a_life(lab, directory, initiator, psk, v6,
                                                  rekey_s)
        except Exception as error:
            outcomes[directory.name] = {"ended": repr(error)}

    threads = [threading.Thread(target=one, args=case) for case in itertools.product(
        ("fastpump", "wireguard-go"), (False, True), (False, True))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    wrong = {name: {what: said for what, said in outcome.items() if said is not True}
             for name, outcome in outcomes.items()}
    assert not any(wrong.values()), wrong
