"""The two tables of states of lanes: they are whole, and what is not in them is dropped."""

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from fastpump._core import Secret
from fastpump.constants import (
    HELLO_TIMEOUT,
    LANE_DEAD_AFTER_PROBES,
    LANE_PROBE_INTERVALS,
    LANE_PROBE_TIMEOUT,
    LANE_UNANSWERED_TIME,
    SECOND,
)
from fastpump.device import lane_probes, lane_upgrade
from fastpump.device.lane_probes import Lane
from fastpump.device.lane_sets import Reservation
from fastpump.device.lane_upgrade import Upgrade
from fastpump.protocol import lane_messages
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.lane_messages import (
    Abilities,
    Accept,
    Hello,
    Mode,
    Offer,
    Refusal,
    Refuse,
)

MACHINES = pytest.mark.parametrize("machine", [lane_upgrade, lane_probes],
                                   ids=lambda machine: machine.__name__.rpartition(".")[2])
# Where an upgrade stays until its session ends.
LAST_STATES = {"ACCEPT_SENT", "ACCEPTED", "REFUSED", "REFUSE_SENT"}


def reachable(machine, *first):
    found = set(first)
    while True:
        more = {state for (before, _), (state, _) in machine.TRANSITIONS.items()
                if before in found} - found
        if not more:
            return found
        found |= more


# -- both tables

@MACHINES
def test_every_state_event_and_action_is_used(machine):
    first = [state for state in machine.State if state.name in ("NEW", "LISTENING")]
    assert reachable(machine, *first) == set(machine.State)
    assert {event for _, event in machine.TRANSITIONS} == set(machine.Event)
    assert {action for _, action in machine.TRANSITIONS.values()} == set(machine.Action)


@MACHINES
def test_there_is_a_way_out_of_every_state_but_the_last_ones(machine):
    left = {before for (before, _), (state, _) in machine.TRANSITIONS.items() if state != before}
    stuck = {state.name for state in set(machine.State) - left}
    assert stuck == (LAST_STATES if machine is lane_upgrade else set())


# -- the upgrade

class Sets:
    """Room for lanes, and no sets."""

    is_opener = False

    def __init__(self):
        self.is_full, self.reserved = False, 0

    def reserve(self, count):
        if self.is_full:
            raise MemoryError
        self.reserved += 1
        return Reservation(0, 0x01020304, count)

    def release(self, reservation):
        self.reserved -= 1


class Owner:
    """Keeps what an upgrade sends and reports."""

    def __init__(self, mode):
        self.mode, self.sets, self.sent, self.news = mode, Sets(), [], []

    def abilities(self):
        return Abilities(self.mode, (1, 2), 2, 0, 1420)

    def send_control(self, keypair, data, now):
        self.sent.append(data)

    def install(self, agreement):
        self.news.append("installed")
        return agreement

    def open(self, lane_set, now):
        self.news.append("opened")

    def on_hello(self, keypair, theirs):
        pass

    def on_abilities(self, keypair, theirs):
        pass

    def on_refused(self, why):
        self.news.append(why)

    def on_unanswered(self, keypair):
        self.news.append("unanswered")


class Session:
    """Both sides of a session's upgrade; 0 is the initiator."""

    def __init__(self, mode=Mode.TUN):
        self.owners = Owner(Mode.TUN), Owner(mode)
        self.sides = tuple(
            Upgrade(Keypair(0, 1, 2, is_initiator, 0, Secret(bytes(32))),
                    (b"i" * 32, b"r" * 32), owner)
            for is_initiator, owner in zip((True, False), self.owners, strict=True))

    def go(self, steps):
        """H, O, A: a HELLO, an OFFER or REFUSE, an ACCEPT is sent, and received but for the last;
        then t: the tries of that are spent."""
        for at, step in enumerate(steps):
            number = "HOA".find(step) % 2
            if step == "H":
                self.sides[0].start(0, 0)
            elif step == "t":
                side = self.sides["HOA".index(steps[at - 1]) % 2]
                while side.deadline is not None:
                    side.on_timer(side.deadline)
            else:
                receive(self.sides[number], self.owners[1 - number].sent[-1])
        return self


def receive(side, data):
    return side.receive(*lane_messages.parse(data), 0)


State, Event = lane_upgrade.State, lane_upgrade.Event
# How a side gets into each state: what was sent, the responder's mode, which side.
WAYS = {
    State.NEW: ("", Mode.TUN, 0), State.LISTENING: ("", Mode.TUN, 1),
    State.HELLO_SENT: ("H", Mode.TUN, 0), State.HELLO_UNANSWERED: ("Ht", Mode.TUN, 0),
    State.OFFER_SENT: ("HO", Mode.TUN, 1), State.OFFER_UNANSWERED: ("HOt", Mode.TUN, 1),
    State.ACCEPT_SENT: ("HOA", Mode.TUN, 0), State.ACCEPTED: ("HOA.", Mode.TUN, 1),
    State.REFUSE_SENT: ("HO", Mode.TAP, 1), State.REFUSED: ("HO.", Mode.TAP, 0),
}


def in_state(state):
    """(side, owner) of a session, one side of which is in that state."""
    steps, mode, number = WAYS[state]
    session = Session(mode).go(steps.rstrip("."))
    if steps.endswith("."):         # the last message is received, too
        receive(session.sides[number], session.owners[1 - number].sent[-1])
    assert session.sides[number].state is state
    return session.sides[number], session.owners[number]


def strange(mode=Mode.TUN):
    """HELLO, OFFER and ACCEPT of another session."""
    theirs = Abilities(mode, (1, 2), 2, 0, 1280)
    kem_key = MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
    return (Hello(theirs).emit(), Offer(theirs, 7, False, kem_key).emit(),
            Accept(7, bytes(1088)).emit())


MESSAGES = {
    Event.HELLO: lambda side: strange()[0],
    Event.HELLO_AGAIN: lambda side: side.hello,
    Event.HELLO_NO_TERMS: lambda side: strange(Mode.TAP)[0],
    Event.OFFER: lambda side: strange()[1],
    Event.OFFER_AGAIN: lambda side: side.offer,
    Event.OFFER_NO_TERMS: lambda side: strange(Mode.TAP)[1],
    Event.ACCEPT: lambda side: strange()[2],
    Event.ACCEPT_AGAIN: lambda side: side.accept,
    Event.REFUSE: lambda side: Refuse(Refusal.CIPHER).emit(),
}


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_a_message_is_in_the_table_or_dropped(state):
    for event, message in MESSAGES.items():
        side, owner = in_state(state)
        data = message(side)
        if not data:
            continue            # nothing that could come again
        sent, news = len(owner.sent), len(owner.news)
        verdict = receive(side, data)
        row = lane_upgrade.TRANSITIONS.get((state, event))
        if row is None:
            assert verdict == "DROP_UNEXPECTED_CONTROL", event
            assert (side.state, len(owner.sent), len(owner.news)) == (state, sent, news), event
        else:
            assert (verdict, side.state) == (None, row[0]), event


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_the_timer_runs_where_the_table_expects_it(state):
    side, _ = in_state(state)
    timed = {before for before, event in lane_upgrade.TRANSITIONS
             if event in (Event.TIMEOUT, Event.TRIES_SPENT)}
    assert (side.deadline is not None) == (state in timed) == (state in lane_upgrade.WAITING)


def test_tries_are_a_second_apart_and_then_spent():
    session = Session()
    side, owner = session.sides[0], session.owners[0]
    side.start(2, 0)
    for tries in (2, 3):
        assert side.deadline == (tries - 1) * HELLO_TIMEOUT
        side.on_timer(side.deadline)
        assert (side.state, len(owner.sent)) == (State.HELLO_SENT, tries)
    side.on_timer(side.deadline)
    assert side.state is State.HELLO_UNANSWERED
    assert len(set(owner.sent)) == 1 and owner.news == ["unanswered"]


def test_what_cannot_be_done_is_as_if_it_had_not_come():
    session = Session().go("H")
    side, owner = session.sides[1], session.owners[1]
    hello = session.owners[0].sent[0]
    owner.sets.is_full = True
    assert receive(side, hello) == "DROP_TABLE_FULL"
    assert side.state is State.LISTENING and not side.has_begun and owner.sent == []

    owner.sets.is_full = False
    assert receive(side, hello) is None
    assert side.state is State.OFFER_SENT and owner.sets.reserved == 1


def test_an_offer_without_a_kem_key_is_as_if_it_had_not_come():
    side, owner = in_state(State.HELLO_SENT)
    theirs = Abilities(Mode.TUN, (1, 2), 2, 0, 1280)
    assert receive(side, Offer(theirs, 7, False, b"\xff" * 1184).emit()) \
        == "DROP_MALFORMED_CONTROL"
    assert side.state is State.HELLO_SENT and owner.news == []
    assert receive(side, strange()[1]) is None


@pytest.mark.parametrize(("state", "reserved"), [
    (State.OFFER_SENT, 0), (State.OFFER_UNANSWERED, 0), (State.ACCEPTED, 1)],
    ids=lambda each: getattr(each, "name", None))
def test_the_end_of_a_session_releases_what_is_not_used(state, reserved):
    side, owner = in_state(state)
    side.end()
    assert owner.sets.reserved == reserved


@pytest.mark.parametrize("what", ["the KEM", "sending"])
def test_a_hello_whose_answer_fails_reserves_nothing_and_may_come_again(monkeypatch, what):
    session = Session()
    session.go("H")
    side, owner = session.sides[1], session.owners[1]

    def fail(*_arguments):
        raise RuntimeError("no random numbers")

    with monkeypatch.context() as patch:
        if what == "the KEM":
            patch.setattr(lane_messages, "generate_kem_key", fail)
        else:
            patch.setattr(owner, "send_control", fail)
        with pytest.raises(RuntimeError):
            receive(side, session.owners[0].sent[-1])
    assert (side.state, owner.sets.reserved) == (State.LISTENING, 0)
    receive(side, session.owners[0].sent[-1])
    assert (side.state, owner.sets.reserved) == (State.OFFER_SENT, 1)


# -- one lane

Life, Happening = lane_probes.State, lane_probes.Event
FROM_WORKERS = {Happening.USABLE, Happening.UNANSWERED}
START = 1000 * SECOND


class Bits:
    """A lane in the shared tables."""

    def __init__(self):
        self.is_usable, self.since, self.cleared = False, 0, 0

    @property
    def lanes(self):
        return self

    def status(self, slot):
        return {"is_usable": self.is_usable, "first_unanswered_tx_ns": self.since}

    def rearm(self, slot, bit):
        assert bit == "unanswered_reported"
        self.cleared += 1

    def forget_source_address(self, slot):
        pass

    def set_dead(self, slot):
        self.is_usable = False

    def expect_answer(self, slot, now):
        self.since = self.since or now


class Set:
    """A set with one lane; keeps what it sends and logs."""

    peer, first = "peer", 0

    def __init__(self, *, is_opener=True):
        self.is_opener = is_opener
        self.tables, self.due, self.sent, self.logged, self.deaths = Bits(), {}, [], [], []
        self.doubted = []
        self.lane = Lane(self, 0)

    def send(self, number, flags, now):
        self.sent.append(now)

    def warn(self, message, fields):
        self.logged.append(message % fields)

    note = warn

    def doubt(self, now):
        self.doubted.append(now)

    def on_dead(self, since, now):
        self.deaths.append(now)

    def usable(self):
        """The worker has received the peer there, and reports it."""
        self.tables.is_usable, self.tables.since = True, 0
        self.lane.on_usable(START)

    def unanswered(self, at):
        """The worker has sent data, and reports it."""
        self.tables.is_usable, self.tables.since = True, at
        self.lane.on_unanswered(at)

    def run(self, until):
        """Fire the timer as often as it is due; the times."""
        fired = []
        while self.due and self.due[self.lane] <= until:
            fired.append(self.due[self.lane])
            self.lane.on_timer(fired[-1])
            assert len(fired) < 100
        return fired


def dead():
    each = Set()
    each.lane.open(START)
    each.run(START + 60 * SECOND)
    return each


def living(state):
    """A set whose lane is in a state."""
    each = dead() if state is Life.DEAD else Set(is_opener=state is not Life.NEW)
    if state is Life.NEW:
        each.lane.open(START)
    if state is Life.OPENING:
        each.lane.open(START)
    if state in (Life.UP, Life.SUSPECT):
        each.usable()
    if state is Life.SUSPECT:
        each.unanswered(START)
    assert each.lane.state is state
    return each


@pytest.mark.parametrize("state", Life, ids=lambda state: state.name)
def test_a_lane_expects_a_workers_report_in_every_state(state):
    assert {(state, event) for event in FROM_WORKERS} <= set(lane_probes.TRANSITIONS)
    for report in (lambda each: each.usable(), lambda each: each.unanswered(START)):
        each = living(state)
        report(each)
        assert (each.lane.state in lane_probes.TIMED) == bool(each.due)


@pytest.mark.parametrize("state", Life, ids=lambda state: state.name)
def test_a_lanes_timer_runs_in_timed_states_only(state):
    expected = {event for before, event in lane_probes.TRANSITIONS if before is state}
    timer = expected - FROM_WORKERS - {Happening.OPENED, Happening.AWAITED, Happening.DOUBTED}
    assert bool(timer) == (state in lane_probes.TIMED) == bool(living(state).due)


@pytest.mark.parametrize("state", sorted(lane_probes.TIMED, key=lambda state: state.name),
                         ids=lambda state: state.name)
@pytest.mark.parametrize("is_usable", [False, True])
@pytest.mark.parametrize("age", [None, 0, LANE_UNANSWERED_TIME, 10 * SECOND])
def test_a_timer_that_fires_is_set_again_or_stops(state, is_usable, age):
    """Whatever the worker has noted meanwhile: a timer in the past would fire for ever."""
    for fires in range(8):
        each = living(state)
        for _ in range(fires):
            if each.due:
                now = each.due[each.lane]
                each.tables.is_usable = is_usable
                each.tables.since = 0 if age is None else now - age
                each.lane.on_timer(now)
                assert not each.due or each.due[each.lane] > now
                assert (each.lane.state in lane_probes.TIMED) == bool(each.due)


def test_a_lane_is_probed_often_then_slowly_until_it_is_usable():
    each = Set()
    each.lane.open(START)
    each.run(START + 30 * SECOND)
    gaps = [later - earlier for earlier, later in itertools.pairwise(each.sent)]
    assert gaps == [*LANE_PROBE_INTERVALS, *[LANE_PROBE_INTERVALS[-1]] * 4]
    assert each.lane.is_dead
    assert each.logged == ["lane 0 of peer: no reply on its UDP port (blocked?); moving its flows "
                           "to other lanes"]
    each.usable()
    assert each.logged[1:] == ["lane 0 of peer is back"]
    assert not each.lane.is_dead and not each.due


def test_data_that_is_yet_to_leave_puts_no_timer_off():
    """No honest worker says so."""
    each = living(Life.SUSPECT)
    each.tables.since = (1 << 64) - 1
    each.run(START + SECOND)
    assert each.lane.state is Life.UP and not each.due


def test_a_lane_that_is_not_answered_when_it_opens_is_dead_in_time():
    each = living(Life.OPENING)
    each.run(START + 4 * SECOND)
    assert each.lane.is_dead


@pytest.mark.parametrize("is_received", [False, True])
def test_a_lane_that_the_peer_does_not_open_is_dead(is_received):
    each = living(Life.NEW)
    if is_received:
        each.usable()
    each.run(START + 6 * SECOND)
    assert each.lane.is_dead == (not is_received)
    if not is_received:
        assert each.logged == ["lane 0 of peer: nothing arrives on its UDP port (blocked?); moving "
                               "its flows to other lanes"]
        each.usable()
        assert each.lane.state is Life.UP


def test_unanswered_data_is_probed_for_and_then_the_lane_is_dead():
    each = living(Life.UP)
    each.unanswered(START)
    dead_at = START + LANE_UNANSWERED_TIME + LANE_DEAD_AFTER_PROBES * LANE_PROBE_TIMEOUT
    assert each.run(dead_at) == [*range(START + LANE_UNANSWERED_TIME, dead_at + 1,
                                        LANE_PROBE_TIMEOUT)]
    assert each.lane.is_dead and len(each.sent) == 4
    assert each.deaths == [dead_at]
    assert each.logged == ["lane 0 of peer is dead: no reply for 3 seconds; moving its flows to "
                           "other lanes"]


def test_a_first_probe_that_is_lost_makes_all_lanes_doubtful_once():
    each = living(Life.SUSPECT)
    each.run(START + 10 * SECOND)
    assert each.lane.is_dead and each.doubted == [
        START + LANE_UNANSWERED_TIME + LANE_PROBE_TIMEOUT]


@pytest.mark.parametrize("answers_at", [None, 1, LANE_PROBE_TIMEOUT + 1])
def test_a_lane_that_is_doubted_dies_with_the_other_or_is_up_and_watched(answers_at):
    """The other one has two probes left, and as much time for each."""
    each = living(Life.UP)
    each.lane.doubt(START)
    dead_at = START + (LANE_DEAD_AFTER_PROBES - 1) * LANE_PROBE_TIMEOUT
    assert each.sent == [START] and each.lane.state is Life.SUSPECT
    if answers_at is None:
        each.run(dead_at)
        assert each.deaths == [dead_at] and each.doubted == []
        assert each.sent == [*range(START, dead_at + 1, LANE_PROBE_TIMEOUT)]
        return
    each.run(START + answers_at)
    each.tables.since = 0
    each.run(START + 60 * SECOND)
    assert (each.lane.state, each.tables.cleared, each.logged) == (Life.UP, 1, [])
    each.unanswered(START + 100 * SECOND)
    each.run(START + 110 * SECOND)
    assert each.lane.is_dead and len(each.doubted) == 1


@pytest.mark.parametrize("state", [state for state in Life if state is not Life.UP],
                         ids=lambda state: state.name)
def test_a_lane_that_is_probed_anyway_is_not_doubted(state):
    each = living(state)
    before = dict(each.due), list(each.sent), each.tables.since
    each.lane.doubt(START + SECOND // 100)
    assert (each.lane.state, before) == (state, (each.due, each.sent, each.tables.since))


def test_an_answer_in_time_has_the_next_data_reported():
    each = living(Life.SUSPECT)
    each.tables.since = 0
    assert each.run(START + 60 * SECOND) == [START + LANE_UNANSWERED_TIME]
    assert (each.lane.state, each.tables.cleared, each.sent) == (Life.UP, 1, [])


def test_younger_data_gets_its_time():
    each = living(Life.SUSPECT)
    look_at = START + LANE_UNANSWERED_TIME
    each.tables.since = START + SECOND // 4
    assert each.run(look_at) == [look_at]
    assert each.due[each.lane] == START + SECOND // 4 + LANE_UNANSWERED_TIME
    assert each.sent == []


@pytest.mark.parametrize("state", [Life.SUSPECT, Life.DEAD], ids=lambda state: state.name)
def test_a_lane_that_works_again_is_watched_again(state):
    each = living(state)
    each.usable()
    assert (each.lane.state, each.tables.cleared, each.due) == (Life.UP, 1, {})
    each.unanswered(START + 100 * SECOND)
    assert each.run(START + 105 * SECOND)
    assert each.lane.is_dead


def test_data_that_left_before_the_report_was_cleared_is_not_overlooked():
    each = living(Life.DEAD)
    each.tables.is_usable, each.tables.since = True, START + 100 * SECOND
    each.lane.on_usable(START + 100 * SECOND)
    assert each.lane.state is Life.SUSPECT
    assert each.due == {each.lane: START + 100 * SECOND + LANE_UNANSWERED_TIME}


@pytest.mark.parametrize("answered_after", [0, SECOND // 100, 2 * SECOND + SECOND // 2])
def test_a_lane_whose_probes_are_answered_never_dies(answered_after):
    """There is data all the time, so that there is always some that is not answered."""
    each = living(Life.SUSPECT)
    answers = []
    for now in range(START, START + 60 * SECOND, SECOND // 100):
        if answers and now >= answers[0]:
            del answers[0]
            each.tables.since = now
        if now >= each.due[each.lane]:
            each.lane.on_timer(now)
            answers += [at + answered_after for at in each.sent]
            each.sent.clear()
    assert each.lane.state is Life.SUSPECT and each.logged == []


def test_probes_of_the_opening_do_not_count_for_data():
    each = living(Life.OPENING)
    each.run(START + 3 * SECOND)
    each.unanswered(START + 3 * SECOND)
    each.sent.clear()
    each.run(START + 8 * SECOND)
    assert each.lane.is_dead and len(each.sent) >= LANE_DEAD_AFTER_PROBES
