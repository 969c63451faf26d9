"""The timers, as a table with a fake clock. Times are seconds here."""

import pytest

from fastpump.constants import SECOND
from fastpump.protocol.timers import Action, Activity, Timers

INITIATE, GIVE_UP, KEEPALIVE, ZERO_KEYS, REARM_TX, REARM_RX = (
    Action.INITIATE, Action.GIVE_UP, Action.KEEPALIVE, Action.ZERO_KEYS, Action.REARM_TX,
    Action.REARM_RX)


def activity(tx=0, rx=0, last_tx=0, last_rx=0):
    return Activity(*(int(at * SECOND) for at in (tx, rx, last_tx, last_rx)))


def at(seconds):
    return int(seconds * SECOND)


QUIET = activity()

# name, set-up, steps of (time, activity, actions)
TABLE = [
    ("an initiation is repeated after five seconds and jitter",
     lambda t: t.initiation_sent(at(100), at(0.3)),
     [(105, QUIET, []), (105.3, QUIET, [INITIATE]), (200, QUIET, [])]),
    ("a session ends the retransmission",
     lambda t: (t.initiation_sent(at(100), 0), t.session_derived(at(101)),
                t.handshake_complete()),
     [(105, QUIET, []), (640.9, QUIET, []), (641, QUIET, [ZERO_KEYS])]),
    ("an answer of ours that is not confirmed does not end our own attempt",
     lambda t: (t.initiation_sent(at(100), 0), t.session_derived(at(101))),
     [(105, QUIET, [INITIATE])]),
    ("a silent peer gets a handshake 15 seconds after the first unanswered packet",
     lambda t: t.unanswered_tx(at(100), 0),
     [(114.9, activity(tx=100), []), (115, activity(tx=100), [INITIATE, REARM_TX])]),
    ("an answer moves it on",
     lambda t: t.unanswered_tx(at(100), 0),
     [(115, activity(tx=110), []), (124, activity(tx=110), []),
      (125, activity(tx=110), [INITIATE, REARM_TX])]),
    ("all answered: stop watching",
     lambda t: t.unanswered_tx(at(100), 0),
     [(115, activity(tx=0), [REARM_TX]), (130, activity(tx=0), [])]),
    ("ten seconds of silence after data came: a keepalive",
     lambda t: t.unanswered_rx(at(100)),
     [(109.9, activity(rx=100), []), (110, activity(rx=100), [KEEPALIVE, REARM_RX]),
      (120, activity(rx=0), [])]),
    ("data went back meanwhile: no keepalive",
     lambda t: t.unanswered_rx(at(100)),
     [(110, activity(rx=0), [REARM_RX])]),
    ("data went back and more came: later",
     lambda t: t.unanswered_rx(at(100)),
     [(110, activity(rx=104), []), (114, activity(rx=104), [KEEPALIVE, REARM_RX])]),
    ("persistent keepalive: at once, then after every silence",
     lambda t: t.set_persistent(at(25), at(100)),
     [(100, QUIET, [KEEPALIVE]), (125, activity(last_tx=100), [KEEPALIVE]),
      (150, activity(last_tx=140), []), (165, activity(last_tx=140), [KEEPALIVE]),
      (190, activity(last_tx=165, last_rx=170), []),
      (195, activity(last_tx=165, last_rx=170), [KEEPALIVE])]),
    ("persistent keepalive off",
     lambda t: (t.set_persistent(at(25), at(100)), t.set_persistent(0, at(100))),
     [(1000, QUIET, [])]),
    ("stopped", lambda t: (t.initiation_sent(at(1), 0), t.unanswered_rx(at(1)), t.stop()),
     [(1000, activity(rx=1), [])]),
]


@pytest.mark.parametrize(("set_up", "steps"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])
def test_table(set_up, steps):
    timers = Timers()
    set_up(timers)
    for seconds, noted, actions in steps:
        deadline = timers.deadline()
        if actions:
            assert deadline is not None and deadline <= at(seconds)
        assert timers.expire(at(seconds), noted) == actions, seconds


def test_giving_up_after_ninety_seconds():
    timers, now, initiations = Timers(), at(100), 1
    timers.initiation_sent(now, 0)
    while True:
        now = timers.deadline()
        actions = timers.expire(now, QUIET)
        if actions == [GIVE_UP]:
            break
        assert actions == [INITIATE]
        initiations += 1
        timers.initiation_sent(now, 0)
    assert initiations == 18
    assert now == at(190)
    assert timers.retransmit_at is None and timers.attempts == 0


def test_nothing_to_do_has_no_deadline():
    assert Timers().deadline() is None
