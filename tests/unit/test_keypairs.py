"""How current, previous and next take turns: a table of moves."""

import pytest

from fastpump._core import Secret
from fastpump.protocol.keypairs import Keypair, Keypairs

KEYPAIRS = {name: Keypair(slot, slot, slot, True, 0, Secret(bytes(32)))
            for slot, name in enumerate("ABCD")}


def named(keypair):
    return next((name for name, value in KEYPAIRS.items() if value is keypair), "-")


# moves (i: initiator, r: responder, c: confirm), then current-previous-next, all dropped
TABLE = [
    ("iA", "A--", ""),
    ("iA iB", "BA-", ""),
    ("iA iB iC", "CB-", "A"),
    ("rA", "--A", ""),
    ("rA cA", "A--", ""),
    ("rA cB", "--A", ""),
    ("rA rB", "--B", "A"),
    ("rA cA rB", "A-B", ""),
    ("rA cA rB cB", "BA-", ""),
    ("iA iB rC", "B-C", "A"),
    ("iA iB rC cC", "CB-", "A"),
    ("iA rB iC", "CB-", "A"),
    ("iA rB iC cB", "CB-", "A"),
]


@pytest.mark.parametrize(("moves", "expected", "dropped"), TABLE, ids=[row[0] for row in TABLE])
def test_table(moves, expected, dropped):
    keypairs, gone = Keypairs(), []
    for move, name in moves.split():
        keypair = KEYPAIRS[name]
        if move == "i":
            gone += keypairs.add_as_initiator(keypair)
        elif move == "r":
            gone += keypairs.add_as_responder(keypair)
        else:
            gone += keypairs.confirm(keypair.slot) or []
    assert "".join(map(named, (keypairs.current, keypairs.previous, keypairs.next))) == expected
    assert "".join(map(named, gone)) == dropped


def test_clear_hands_everything_back():
    keypairs = Keypairs(KEYPAIRS["A"], KEYPAIRS["B"], KEYPAIRS["C"])
    assert [named(keypair) for keypair in keypairs.clear()] == ["A", "B", "C"]
    assert keypairs == Keypairs()
