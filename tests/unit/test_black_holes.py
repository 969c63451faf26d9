"""A path that loses what is large, and says nothing: TCP to a WireGuard peer tells."""

import logging
from types import SimpleNamespace

import pytest

from fastpump.constants import REKEY_TIMEOUT, SECOND
from fastpump.device.black_holes import (
    ANSWER_TIME,
    HOLD_TIMES,
    TRIAL_PAUSES,
    TRIAL_TIME,
    BlackHole,
)
from support.devices import PLACE, World

FITS = 1280 - 28 - 32
NOW = 1000 * SECOND


class Path:
    """To a peer, and what was asked for: `asked` when a handshake was, `let` when workers were let
    report an event again."""

    def __init__(self):
        self.now, self.asked, self.let = NOW, [], []
        self.peer = SimpleNamespace(slot=7, endpoint=PLACE["b"], last_initiation_sent_at=None,
                                    handshake=None)
        self.hole = BlackHole(self.peer, SimpleNamespace(
            tables=SimpleNamespace(peers=SimpleNamespace(rearm=self.rearm)),
            callbacks=SimpleNamespace(want_session=self.want_session)))

    def rearm(self, slot, event):
        assert slot == 7
        self.let.append((event, self.now))

    def want_session(self, peer, now):
        assert peer is self.peer
        self.asked.append(now)

    def wait(self, ns=None):
        """Until something is due, or so long."""
        self.now = self.hole.deadline() if ns is None else self.now + ns
        self.hole.tick(self.now)

    def resent(self):
        self.hole.on_resent(self.now)
        self.hole.tick(self.now)

    def trial(self):
        """The answer comes at once."""
        self.resent()
        self.hole.session_started(self.now)


@pytest.fixture
def path():
    return Path()


def test_the_peer_answers_and_tcp_goes_on(path):
    path.resent()
    assert path.asked == [NOW] and path.hole.endpoint is None
    path.hole.session_started(NOW + SECOND // 10)
    assert path.hole.endpoint == PLACE["b"] and not path.hole.is_certain
    path.hole.on_resent_acked(True, NOW + SECOND, NOW + SECOND)
    assert path.hole.is_certain and path.let == [("resent_acked", NOW)]
    path.resent()               # as a worker may say that was taken over
    assert path.asked == [NOW]


def test_it_is_not_believed_in_for_ever(path):
    """Whoever can send TCP to the peer can play it."""
    held = []
    for _ in range(7):
        path.trial()
        path.hole.on_resent_acked(True, path.now + 1, path.now)
        begun = path.now
        path.wait()
        assert path.hole.endpoint is None and path.hole.deadline() is None
        assert path.let[-1] == ("resent", path.now)
        held.append((path.now - begun) // (60 * SECOND))
    assert held == [10, 20, 40, 80, 160, 160, 160]
    path.hole.clear()
    path.trial()
    path.hole.on_resent_acked(True, path.now + 1, path.now)
    assert path.hole.deadline() == path.now + HOLD_TIMES[0]


def test_what_arrives_as_it_was_needs_no_smaller_pieces(path):
    """The outage ended just before the trial: the segment had arrived already."""
    path.trial()
    path.hole.on_resent_acked(False, NOW + 1, NOW + 1)
    assert path.hole.endpoint is None and path.hole.deadline() is None
    assert path.let[-1] == ("resent", NOW)
    path.trial()
    assert path.hole.endpoint is not None


def test_a_handshake_that_has_no_answer_yet_is_not_waited_for(path):
    """Its answer would say that an outage is over."""
    path.peer.handshake = object()
    path.resent()
    assert path.asked == [] and path.hole.deadline() == NOW + REKEY_TIMEOUT
    path.hole.session_started(NOW + SECOND)
    assert path.hole.endpoint is None
    path.wait()
    assert path.let == [("resent", NOW + REKEY_TIMEOUT)]


def test_handshakes_do_not_follow_too_soon(path):
    path.peer.last_initiation_sent_at = NOW - SECOND
    path.resent()
    assert path.asked == []
    path.wait()
    assert path.asked == [NOW + REKEY_TIMEOUT - SECOND]


def test_an_outage_is_no_black_hole(path):
    """Its end is an answer that comes late."""
    path.resent()
    path.wait(ANSWER_TIME)
    assert path.let == [("resent", path.now)]
    path.hole.session_started(path.now)
    assert path.hole.endpoint is None and path.hole.deadline() is None


@pytest.mark.parametrize("is_asked", [False, True])
def test_tcp_that_went_on_before_the_trial(path, is_asked):
    path.peer.last_initiation_sent_at = NOW if not is_asked else None
    path.resent()
    path.hole.on_resent_acked(False, NOW, NOW)
    assert path.let == [("resent_acked", NOW), ("resent", NOW)] and path.hole.deadline() is None
    path.hole.session_started(NOW)
    assert path.hole.endpoint is None


def test_what_was_acked_before_the_trial_does_not_end_it(path):
    path.trial()
    path.hole.on_resent_acked(True, NOW - 1, NOW)
    assert not path.hole.is_certain


def test_a_host_that_is_gone_is_no_black_hole(path):
    """Trials end, and become rare: hosts remember for ten minutes what they were told."""
    pauses = []
    for _ in range(4):
        path.trial()
        begun = path.now
        path.wait()
        assert path.hole.endpoint is None and path.now == begun + TRIAL_TIME
        ended = path.now
        path.resent()
        path.hole.on_resent_acked(True, path.now, path.now)         # of an old trial
        assert path.hole.endpoint is None and "resent" not in [
            event for event, at in path.let if at >= ended]
        path.wait()
        pauses.append((path.now - ended) // SECOND)
    assert pauses == [20, 3600, 3600, 3600] == [each // SECOND for each in (
        TRIAL_PAUSES[0], *3 * TRIAL_PAUSES[1:])]
    assert len(path.asked) == 4


def test_nothing_is_left_after_the_peer_has_moved(path):
    path.trial()
    path.hole.clear()
    assert path.hole.endpoint is None and path.hole.deadline() is None
    assert path.let[-1] == ("resent", NOW)


# -- in a device

@pytest.fixture
def world():
    """a is one of ours, b a WireGuard peer."""
    world = World()
    world.a.tables.mtu = 1420
    world.handshake(world.a, world.b)
    world.advance(10 * SECOND)
    world.drop(world.a)
    return world


def payload_mtu(world):
    return world.a.tables.peers.payload_mtu(world.a.peer.slot)


def trial(world):
    world.a.event("resent")
    world.a.tick()
    assert world.deliver(world.a, world.b) == [1]
    assert world.deliver(world.b, world.a) == [2]
    assert payload_mtu(world) == FITS


def test_less_is_sent_until_the_peer_is_elsewhere(world, caplog):
    trial(world)
    assert "get lost" not in caplog.text        # it is not certain yet
    world.advance(SECOND)
    with caplog.at_level(logging.WARNING):
        world.a.event("resent_acked", 1)
    world.advance(2 * TRIAL_TIME)
    assert payload_mtu(world) == FITS and world.a.device.lanes.of(world.a.peer).paths.mtu == 1280
    assert caplog.text.count("seem to get lost on the way") == 1

    world.b.name = "mallory"
    world.a.configure(world.b.public_key, endpoint=PLACE[world.b.name])
    world.drop(world.a)
    world.a.want_session()
    world.deliver(world.a, world.b)
    world.deliver(world.b, world.a)
    assert payload_mtu(world) is None


def test_a_trial_that_does_not_help_leaves_nothing(world, caplog):
    trial(world)
    world.advance(TRIAL_TIME)
    assert payload_mtu(world) is None and "get lost" not in caplog.text
