"""Handshakes that fail: what each side says of them, and how often."""

import logging

import pytest

from fastpump.constants import MAX_HANDSHAKE_ATTEMPTS, REKEY_TIMEOUT, SECOND
from fastpump.device import handshake_problems
from fastpump.device.handshake_problems import (
    BURST,
    INTERVAL,
    NO_ANSWER,
    NOT_AUTHENTIC,
    SILENT,
)
from fastpump.protocol import cookie, keys, noise, tai64n
from support.devices import PLACE, Side, World


@pytest.fixture
def world(caplog):
    caplog.set_level(logging.INFO, "fastpump.device")
    return World()


def said(caplog):
    return [record.getMessage() for record in caplog.records
            if record.levelno >= logging.WARNING]


def initiation(receiver, unix_ns, *, sender=None, public=None):
    """Of a stranger: one with a private key, or one that only says what its public key is."""
    static = sender or noise.DhKeyPair.generate()
    secret = static.exchange(receiver.public_key)
    if public is not None:
        static.public = public
    message, _ = noise.create_initiation(static, receiver.public_key, 7, tai64n.emit(unix_ns),
                                         secret)
    return cookie.add_macs(message.emit(), cookie.mac1_key(receiver.public_key), None)


# -- the rejecting side

def test_a_wrong_key_is_told_with_where_it_came_from_once(world, caplog):
    """Though its owner tries again and again."""
    stranger = Side(world, "mallory")
    stranger.configure(world.a.public_key, endpoint=PLACE["a"])
    stranger.want_session()
    for _ in range(10):
        for each in world.drop(stranger):
            world.a.receive(each.message, PLACE["mallory"])
        world.pass_time(REKEY_TIMEOUT)
        stranger.tick()
    assert world.a.device.verdicts == {"DROP_UNKNOWN_PEER": 10}
    rejected = [line for line in said(caplog) if "rejected" in line]
    assert rejected == [f"a handshake from {PLACE['mallory']} was rejected: its public key "
                        f"{keys.encode(stranger.public_key)} is not a peer's here"]


def test_a_key_that_is_not_the_senders_is_not_told(world, caplog):
    for _ in range(100):
        world.a.receive(initiation(world.a, world.unix_ns, public=world.b.public_key[::-1]),
                        PLACE["mallory"])
        world.pass_time(SECOND)
    assert said(caplog) == [] and world.a.device.verdicts == {"DROP_UNKNOWN_PEER": 100}
    world.a.receive(initiation(world.a, world.unix_ns), PLACE["mallory"])
    assert len(said(caplog)) == 1


def test_a_flood_of_strangers_fills_no_log_and_costs_little(world, caplog, monkeypatch):
    checked = []
    consume = noise.consume_initiation
    monkeypatch.setattr(handshake_problems.noise, "consume_initiation", lambda *arguments: (
        checked.append(1), consume(*arguments))[1])
    messages = [initiation(world.a, world.unix_ns) for _ in range(50)]
    for message in messages:
        world.a.receive(message, PLACE["mallory"])
    assert len(said(caplog)) == BURST
    assert len(checked) == 50 + BURST           # each was opened once, as ever
    world.pass_time(INTERVAL)
    world.a.receive(initiation(world.a, world.unix_ns), PLACE["mallory"])
    assert len(said(caplog)) == BURST + 1
    assert said(caplog)[-1].endswith(f" ({50 - BURST} others were rejected before)")


def test_a_clock_that_was_set_back_is_told_once(world, caplog):
    world.handshake(world.a, world.b)
    world.a.peer.timestamp_sent = bytes(12)
    world.a.device._handshakes.timestamps.set_key(world.a.public_key)    # and its file was lost
    world.unix_ns -= 3600 * SECOND
    world.pass_time(REKEY_TIMEOUT)
    world.a.event("rekey", world.a.peer.keypairs.current.slot)
    for _ in range(5):
        world.deliver(world.a, world.b)
        world.advance(REKEY_TIMEOUT + SECOND)
    assert world.b.device.verdicts["DROP_REPLAYED_INITIATION"] >= 4
    old = [line for line in said(caplog) if "is older" in line]
    assert len(old) == 1 and f"of {world.b.peer} from {PLACE['a']}" in old[0]


def test_a_message_that_the_network_doubles_is_not_told(world, caplog):
    world.a.want_session()
    (sent,) = world.drop(world.a)
    for _ in range(3):
        world.b.receive(sent.message, PLACE["a"])
    assert world.b.device.verdicts == {"DROP_REPLAYED_INITIATION": 2} and said(caplog) == []


# -- the side that is not answered

def test_a_peer_that_does_not_answer_is_told_after_five_seconds_and_once(world, caplog):
    a = world.a
    a.want_session()
    assert (a.peer.handshake_tries, a.device.handshake_problems.of(a.peer)) == (1, None)
    world.advance(REKEY_TIMEOUT - 1)
    assert said(caplog) == []
    world.advance(1)
    assert said(caplog) == [f"no handshake with {a.peer}: {NO_ANSWER}; trying on"]
    for _ in range(MAX_HANDSHAKE_ATTEMPTS):
        world.advance(REKEY_TIMEOUT)
    a.want_session()
    for _ in range(5):
        world.advance(REKEY_TIMEOUT)
    assert [line.partition(")")[2][:17] for line in said(caplog)[1:]] == [" does not answer;"]
    assert a.peer.handshake_tries > 18 and a.device.handshake_problems.of(a.peer) == NO_ANSWER


def test_a_peer_that_still_does_not_answer_is_told_again_after_down_and_up(world, caplog):
    a = world.a
    for _ in range(2):
        a.want_session()
        world.advance(REKEY_TIMEOUT)
        assert a.peer.handshake_tries == 2
        a.device.stop()
        assert a.peer.handshake_tries == 0
        a.device.start(world.now)
        world.advance(REKEY_TIMEOUT)
    assert sum("no handshake with" in line for line in said(caplog)) == 2


def test_of_many_peers_that_do_not_answer_some_are_named(world, caplog):
    a = world.a
    for _ in range(60):
        public = noise.DhKeyPair.generate().public
        a.event("want_session", peer=a.configure(public, endpoint=PLACE["b"]))
    world.pass_time(REKEY_TIMEOUT)
    while a.device.next_deadline() <= world.now:
        a.tick()
    assert sum("no handshake with" in line for line in said(caplog)) == SILENT


def test_a_full_table_is_told_once(world, caplog, monkeypatch):
    def is_full(_peer):
        raise MemoryError("the table of keypairs is full")

    monkeypatch.setattr(world.a.device.sessions, "begin", is_full)
    world.a.want_session()
    for _ in range(10):
        world.advance(REKEY_TIMEOUT)
    assert said(caplog) == [
        f"no handshake with {world.a.peer} now: the table of keypairs is full"]
    assert world.a.device.handshake_problems.of(world.a.peer) == "the table of keypairs is full"


def test_all_is_forgotten_when_a_handshake_succeeds(world, caplog):
    a, b = world.a, world.b
    a.want_session()
    world.advance(REKEY_TIMEOUT)
    a.sent.clear()
    world.advance(REKEY_TIMEOUT)
    assert world.deliver(a, b) == [1] and world.deliver(b, a) == [2]
    assert (a.peer.handshake_tries, a.device.handshake_problems.of(a.peer)) == (0, None)
    world.deliver(a, b)
    b.confirm()
    assert (b.peer.sessions_unused, len(said(caplog))) == (0, 1)


def test_another_preshared_key_is_told_on_both_sides(world, caplog):
    """The initiator knows at once; the responder when nobody uses its sessions."""
    a, b = world.a, world.b
    a.configure(b.public_key, preshared_key=bytes([9]) * 32)
    a.want_session()
    for _ in range(12):
        world.deliver(a, b)
        world.deliver(b, a)
        assert a.device.handshake_problems.of(a.peer) == NOT_AUTHENTIC
        world.advance(REKEY_TIMEOUT)
    lines = said(caplog)
    assert lines[0] == f"no handshake with {a.peer}: {NOT_AUTHENTIC}; trying on"
    assert lines[1].startswith(f"{b.peer} starts handshake after handshake, and uses none")
    assert len(lines) == 2
