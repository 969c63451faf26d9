"""The senders of bench/attack.py, and of handshakes, against a gateway that counts what comes."""

import importlib
import json
import time
from pathlib import Path

import pytest

from fastpump.bench.ends import Crowd
from fastpump.bench.handshakes import run_handshakes
from fastpump.errors import SystemSetupError
from fastpump.lab.networks import OUTSIDE4, key_files, tunnel_words
from fastpump.protocol import keys

BENCH = Path(__file__).parents[2] / "bench"
TARGET = (OUTSIDE4["b"], 51820)
JUDGED_AS = {
    "random": {"DROP_INVALID_MAC1"},
    "replayed": {"DROP_REPLAYED_INITIATION"},
    "forged": {"DROP_INVALID_HANDSHAKE"},
    "spoofed": {"DROP_INVALID_HANDSHAKE"},
    "unknown": {"DROP_UNKNOWN_INDEX"},
    "hidden": {"DROP_UNKNOWN_INDEX", "DROP_MISDELIVERED"},
    "reverse": {"DROP_MISDELIVERED"},
    "strays": {"DROP_UNKNOWN_INDEX"},
    "reserved": {"DROP_HOLD_FULL"},
    "controls": {"DROP_CONTROL_RATE", "DROP_MALFORMED_CONTROL"},
}
"""What the gateway must say of them, at least."""
PASS = {"keepalives", "moving"}
NO_ATTACK = {"none", "elsewhere"}


@pytest.fixture
def attack(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("attack")


@pytest.fixture
def carry_out(lab, tmp_path, attack):
    """Have host a carry out orders; what came of it."""
    def run(orders):
        process = lab.spawn("a", *attack.orders_file(tmp_path, orders))
        return json.loads(process.communicate(timeout=60)[0].splitlines()[-1])
    return run


@pytest.fixture
def key(lab, tmp_path):
    """Of both hosts; host b is the gateway."""
    key = key_files(tmp_path)
    lab.fastpump("b", *tunnel_words("b", key["b"], key["a"][1], "--queues", "2", endpoint=False))
    return key


def private(key):
    return key["a"][0].read_text().strip()


def received(lab):
    return int(lab.status("b")["peers"][0]["rx_bytes"])


def test_each_kind_is_what_it_says(lab, attack, carry_out, key):
    assert set(attack.KINDS) == JUDGED_AS.keys() | PASS | NO_ATTACK
    for kind in [*JUDGED_AS, *PASS]:
        before, bytes_before = lab.status("b")["verdicts"], received(lab)
        sent = carry_out(attack.Flood(kind, TARGET, key["b"][1], private(key), 20_000,
                                      time.monotonic(), 0.2))["sent"]
        after = lab.status("b")["verdicts"]
        said = {name for name, count in after.items() if count > before.get(name, 0)}
        assert sent > 200, kind
        if kind in PASS:
            assert not said, kind
            assert received(lab) - bytes_before >= 32 * sent, kind
        else:
            assert JUDGED_AS[kind] <= said, kind


def test_an_honest_peer_is_answered_and_offered_lanes(attack, carry_out, key):
    (one,) = carry_out(attack.Honest(TARGET, key["b"][1], [
        (private(key), OUTSIDE4["a"], time.monotonic())], 5))
    assert one["ms"] is not None and one["offer_ms"] is not None
    assert (one["attempts"], one["cookies"]) == (1, 0)


def test_a_stranger_is_not_answered(attack, carry_out, key):
    (one,) = carry_out(attack.Honest(TARGET, key["b"][1], [
        (keys.encode(keys.generate_private()), OUTSIDE4["a"], time.monotonic())], 1))
    assert one["ms"] is None and one["attempts"] == 1


def test_handshakes_in_turn_are_counted(lab, key):
    crowd = Crowd((private(key),), key["b"][1], TARGET)
    done = run_handshakes(lab, "a", crowd, passes=1)
    assert (done.sent, done.responses, done.invalid, done.lost) == (1, 1, 0, 0)
    assert done.per_s > 0
    stranger = Crowd((keys.encode(keys.generate_private()),), key["b"][1], TARGET)
    with pytest.raises(SystemSetupError, match="no handshake was answered"):
        run_handshakes(lab, "a", stranger, passes=1)
