"""The upgrade of one session to lanes: a table of states and transitions (docs/PROTOCOL.md).

Sans-I/O: time is an argument; the owner sends the messages, and is notified of the outcome.
protocol/lane_messages.py has the messages and how keys are made of them.

    initiator of the session                responder
    NEW                                     LISTENING
      |------------- HELLO ------------------>|
    HELLO_SENT                                |
      |<------------ OFFER -------------------|     or REFUSE
      |                                     OFFER_SENT
      |------------- ACCEPT ----------------->|
    ACCEPT_SENT                             ACCEPTED

Each side sends again what is not answered in HELLO_TIMEOUT, byte for byte, until its tries are
spent; a large one then in parts, if the peer takes them, as it may not fit the path. It accepts a
late answer all the same. An upgrade ends with its session. A message that the
table does not expect changes nothing, and is dropped as DROP_UNEXPECTED_CONTROL. One whose action
fails is dropped with the action's verdict, and the state stays: the peer may send it again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from fastpump._core import FEATURE_PATH_MTU, wipe
from fastpump.constants import HELLO_TIMEOUT, UPGRADE_ATTEMPTS
from fastpump.device.lane_sets import Agreement, LaneSet, LaneSets, Reservation
from fastpump.protocol import lane_messages
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.lane_messages import (
    REFUSAL_TEXTS,
    Abilities,
    Accept,
    Hello,
    LaneKeys,
    Message,
    Offer,
    Refusal,
    Refuse,
    Terms,
    Transcript,
)
from fastpump.verdicts import Verdict


@enum.unique
class State(enum.Enum):
    """Of an upgrade; the first five are the session's initiator's."""

    NEW = "nothing was sent yet"
    HELLO_SENT = "waits for the OFFER"
    HELLO_UNANSWERED = "does not repeat the HELLO any more; takes an OFFER all the same"
    ACCEPT_SENT = "there are lanes; the responder may not know yet"
    REFUSED = "there are no lanes in this session"
    LISTENING = "the peer has not sent a HELLO yet"
    OFFER_SENT = "waits for the ACCEPT"
    OFFER_UNANSWERED = "does not repeat the OFFER any more; takes an ACCEPT all the same"
    ACCEPTED = "there are lanes, on both sides"
    REFUSE_SENT = "there are no lanes; the initiator may not know yet"


@enum.unique
class Event(enum.Enum):
    """What happens to an upgrade. AGAIN: byte for byte the one that was answered. NO_TERMS: with
    abilities that have nothing in common with ours."""

    START = "the session has begun"
    HELLO = "HELLO"
    HELLO_AGAIN = "the same HELLO"
    HELLO_NO_TERMS = "HELLO, without terms"
    OFFER = "OFFER"
    OFFER_AGAIN = "the same OFFER"
    OFFER_NO_TERMS = "OFFER, without terms"
    ACCEPT = "ACCEPT"
    ACCEPT_AGAIN = "the same ACCEPT"
    REFUSE = "REFUSE"
    TIMEOUT = "no answer in time, and a try is left"
    TRIES_SPENT = "no answer in time, and none is left"


@enum.unique
class Action(enum.Enum):
    """What is done at a transition."""

    SEND_HELLO = "send a HELLO"
    SEND_OFFER = "reserve lanes, send an OFFER"
    SEND_REFUSE = "send a REFUSE, notify the owner"
    SEND_ACCEPT = "derive keys, install lanes, send an ACCEPT, open the lanes"
    INSTALL = "derive keys, install lanes, open them"
    RETRY = "send the last message again"
    ANSWER_AGAIN = "send the last message again, so often and no more"
    NOTIFY_REFUSED = "notify the owner of the peer's reason"
    NOTIFY_NO_TERMS = "notify the owner of ours"
    NOTIFY_UNANSWERED = "notify the owner"
    NONE = "nothing"


WAITING = frozenset({State.HELLO_SENT, State.OFFER_SENT})
"""States in which the timer of retries runs."""

TRANSITIONS: dict[tuple[State, Event], tuple[State, Action]] = {
    # -- the session's initiator

    # It sends first anyway, to prove its keys: the HELLO takes the keepalive's place.
    (State.NEW, Event.START): (State.HELLO_SENT, Action.SEND_HELLO),
    # It has all that keys are made of, and the responder has them with the ACCEPT.
    (State.HELLO_SENT, Event.OFFER): (State.ACCEPT_SENT, Action.SEND_ACCEPT),
    # A responder that agrees to other terms than we do. It gets no answer, and gives up.
    (State.HELLO_SENT, Event.OFFER_NO_TERMS): (State.REFUSED, Action.NOTIFY_NO_TERMS),
    # There is nothing in common.
    (State.HELLO_SENT, Event.REFUSE): (State.REFUSED, Action.NOTIFY_REFUSED),
    # The HELLO or the OFFER was lost.
    (State.HELLO_SENT, Event.TIMEOUT): (State.HELLO_SENT, Action.RETRY),
    # A WireGuard peer drops a HELLO silently.
    (State.HELLO_SENT, Event.TRIES_SPENT): (State.HELLO_UNANSWERED, Action.NOTIFY_UNANSWERED),
    # Late answers: the peer was busy, or the path was down.
    (State.HELLO_UNANSWERED, Event.OFFER): (State.ACCEPT_SENT, Action.SEND_ACCEPT),
    (State.HELLO_UNANSWERED, Event.OFFER_NO_TERMS): (State.REFUSED, Action.NOTIFY_NO_TERMS),
    (State.HELLO_UNANSWERED, Event.REFUSE): (State.REFUSED, Action.NOTIFY_REFUSED),
    # The ACCEPT was lost.
    (State.ACCEPT_SENT, Event.OFFER_AGAIN): (State.ACCEPT_SENT, Action.ANSWER_AGAIN),

    # -- the responder

    # The lanes are reserved with the OFFER: messages on them may overtake the ACCEPT.
    (State.LISTENING, Event.HELLO): (State.OFFER_SENT, Action.SEND_OFFER),
    # The initiator need not try again.
    (State.LISTENING, Event.HELLO_NO_TERMS): (State.REFUSE_SENT, Action.SEND_REFUSE),
    # The ACCEPT completes what keys are made of.
    (State.OFFER_SENT, Event.ACCEPT): (State.ACCEPTED, Action.INSTALL),
    # The OFFER was lost, or is later than the initiator's timer.
    (State.OFFER_SENT, Event.HELLO_AGAIN): (State.OFFER_SENT, Action.ANSWER_AGAIN),
    # The OFFER or the ACCEPT was lost.
    (State.OFFER_SENT, Event.TIMEOUT): (State.OFFER_SENT, Action.RETRY),
    # The peer is gone, or does not agree to the terms.
    (State.OFFER_SENT, Event.TRIES_SPENT): (State.OFFER_UNANSWERED, Action.NOTIFY_UNANSWERED),
    # Late answers, as above.
    (State.OFFER_UNANSWERED, Event.ACCEPT): (State.ACCEPTED, Action.INSTALL),
    (State.OFFER_UNANSWERED, Event.HELLO_AGAIN): (State.OFFER_UNANSWERED, Action.ANSWER_AGAIN),
    # A HELLO that another overtook. The initiator answers the OFFER with the same ACCEPT.
    (State.ACCEPTED, Event.HELLO_AGAIN): (State.ACCEPTED, Action.ANSWER_AGAIN),
    # The answer to an OFFER that was sent twice.
    (State.ACCEPTED, Event.ACCEPT_AGAIN): (State.ACCEPTED, Action.NONE),
    # The REFUSE was lost.
    (State.REFUSE_SENT, Event.HELLO_AGAIN): (State.REFUSE_SENT, Action.ANSWER_AGAIN),
}


class UpgradeOwner(Protocol):
    """The lanes of the peer, as the upgrade of a session needs them."""

    @property
    def sets(self) -> LaneSets:
        """The sets that there are."""

    def abilities(self) -> Abilities:
        """What we can do now."""

    def send_control(self, keypair: Keypair, data: bytes, now: int) -> None:
        """Send a control packet in a session."""

    def on_hello(self, keypair: Keypair, theirs: Abilities) -> None:
        """A session's upgrade begins with the peer's HELLO."""

    def on_abilities(self, keypair: Keypair, theirs: Abilities) -> None:
        """What the peer says of itself in a session."""

    def install(self, agreement: Agreement) -> LaneSet:
        """Make a set of lanes live."""

    def open(self, lane_set: LaneSet, now: int) -> None:
        """Begin to use it."""

    def on_refused(self, why: str) -> None:
        """There will be no lanes in this session."""

    def on_unanswered(self, keypair: Keypair) -> None:
        """There may be no lanes in this session."""


@dataclass(frozen=True, slots=True)
class _Offered:
    """What a responder keeps until it has the ACCEPT."""

    reservation: Reservation
    terms: Terms
    is_opener: bool
    """Whether we, the responder, open the lanes."""
    peer_features: int
    kem_key: MLKEM768PrivateKey = field(repr=False)


Received = tuple[Message, bytes] | None
"""A control packet and its bytes; None for a timer."""
_Kind = TypeVar("_Kind", bound=Message)


def _expect(kind: type[_Kind], received: Received) -> tuple[_Kind, bytes]:
    """What an action takes that is only done at a message of one kind."""
    assert received is not None and isinstance(received[0], kind)
    return received[0], received[1]


class Upgrade:
    """One session's. `hello`, `offer` and `accept` are the messages as they were sent or
    received; b"" for none."""

    __slots__ = ("_answers_left", "_offered", "_ours", "_owner", "_public_keys", "_retry_at",
                 "_sent", "_takes_parts", "_tries_left", "accept", "hello", "keypair", "offer",
                 "parts", "state")

    def __init__(self, keypair: Keypair, public_keys: tuple[bytes, bytes],
                 owner: UpgradeOwner) -> None:
        """`public_keys`: the static ones of the session's initiator and responder."""
        self.keypair = keypair
        self.state = State.NEW if keypair.is_initiator else State.LISTENING
        self.hello = self.offer = self.accept = b""
        self.parts = lane_messages.Parts()
        self._public_keys = public_keys
        self._owner = owner
        self._ours: Abilities | None = None
        self._offered: _Offered | None = None
        self._sent = b""
        self._takes_parts = False
        self._retry_at = 0
        self._tries_left = 0
        self._answers_left = 2 * UPGRADE_ATTEMPTS

    @property
    def has_begun(self) -> bool:
        """Whether a HELLO was sent, or received and answered."""
        return self.state not in (State.NEW, State.LISTENING)

    @property
    def is_waiting(self) -> bool:
        """Whether we still try to get lanes."""
        return self.state in WAITING

    @property
    def deadline(self) -> int | None:
        """When `on_timer` wants to be called."""
        return self._retry_at if self.is_waiting else None

    # -- events

    def start(self, tries_left: int, now: int) -> None:
        """The session, which we initiated, has begun; the HELLO is repeated so often."""
        self._tries_left = tries_left
        self._step(Event.START, None, now)

    def receive(self, message: Message, whole: bytes, now: int) -> str | None:
        """A control packet of the session, and its bytes without padding; the verdict if it is
        dropped."""
        return self._step(self._event(message, whole), (message, whole), now)

    def on_timer(self, now: int) -> None:
        """The deadline has come."""
        self._step(Event.TIMEOUT if self._tries_left else Event.TRIES_SPENT, None, now)

    def end(self) -> None:
        """The session is gone: what was reserved is free again."""
        if self._offered is not None:
            self._owner.sets.release(self._offered.reservation)

    def _event(self, message: Message, whole: bytes) -> Event:
        match message:
            case Hello(theirs):
                if whole == self.hello:
                    return Event.HELLO_AGAIN
                terms = lane_messages.agree(theirs, self._owner.abilities())
                return Event.HELLO if isinstance(terms, Terms) else Event.HELLO_NO_TERMS
            case Offer():
                if whole == self.offer:
                    return Event.OFFER_AGAIN
                return Event.OFFER if isinstance(self._terms(message), Terms) \
                    else Event.OFFER_NO_TERMS
            case Accept():
                return Event.ACCEPT_AGAIN if whole == self.accept else Event.ACCEPT
            case Refuse():
                return Event.REFUSE

    def _terms(self, offer: Offer) -> Terms | Refusal:
        """What our HELLO and the peer's OFFER have in common."""
        ours = self._ours or self._owner.abilities()
        return lane_messages.agree(ours, offer.abilities)

    def _step(self, event: Event, received: Received, now: int) -> str | None:
        row = TRANSITIONS.get((self.state, event))
        if row is None:
            return Verdict.DROP_UNEXPECTED_CONTROL
        before, (self.state, action) = self.state, row
        try:
            verdict = _ACTIONS[action](self, received, now)
        except BaseException:
            self.state = before
            raise
        if verdict is not None:
            self.state = before
        return verdict

    # -- the initiator's actions

    def _send_hello(self, _: Received, now: int) -> None:
        self._ours = self._owner.abilities()
        self.hello = self._sent = Hello(self._ours).emit()
        self._retry_at = now + HELLO_TIMEOUT
        self._send(now)

    def _send_accept(self, received: Received, now: int) -> str | None:
        offer, whole = _expect(Offer, received)
        terms = self._terms(offer)
        assert isinstance(terms, Terms)
        try:
            secret, ciphertext = lane_messages.encapsulate(offer.kem_key)
        except ValueError:
            return Verdict.DROP_MALFORMED_CONTROL
        self._owner.on_abilities(self.keypair, offer.abilities)
        try:
            reservation = self._owner.sets.reserve(terms.lanes)
        except MemoryError:
            return Verdict.DROP_TABLE_FULL
        accept = Accept(reservation.index, ciphertext).emit()
        try:
            keys = self._derive(secret, terms, whole, accept)
            lane_set = self._owner.install(Agreement(
                self.keypair, reservation, terms, offer.index, not offer.responder_opens,
                offer.abilities.features, keys.to_responder, keys.to_initiator))
        except BaseException:
            self._owner.sets.release(reservation)
            raise
        self._takes_parts = bool(offer.abilities.features & FEATURE_PATH_MTU)
        self.offer, self.accept, self._sent = whole, accept, accept
        self._send(now)
        self._owner.open(lane_set, now)
        return None

    def _notify_refused(self, received: Received, _: int) -> None:
        refuse, _whole = _expect(Refuse, received)
        self._owner.on_refused(REFUSAL_TEXTS[refuse.reason])

    def _notify_no_terms(self, received: Received, _: int) -> None:
        reason = self._terms(_expect(Offer, received)[0])
        assert isinstance(reason, Refusal)
        self._owner.on_refused(REFUSAL_TEXTS[reason])

    # -- the responder's actions

    def _send_offer(self, received: Received, now: int) -> str | None:
        hello, whole = _expect(Hello, received)
        self._owner.on_hello(self.keypair, hello.abilities)
        ours = self._owner.abilities()
        terms = lane_messages.agree(hello.abilities, ours)
        assert isinstance(terms, Terms)
        kem_key = lane_messages.generate_kem_key()
        try:
            reservation = self._owner.sets.reserve(terms.lanes)
        except MemoryError:
            return Verdict.DROP_TABLE_FULL
        is_opener = self._owner.sets.is_opener
        try:
            self.offer = self._sent = Offer(ours, reservation.index, is_opener,
                                            kem_key.public_key().public_bytes_raw()).emit()
            self._send(now)
        except BaseException:
            self._owner.sets.release(reservation)
            raise
        self._takes_parts = bool(hello.abilities.features & FEATURE_PATH_MTU)
        self._offered = _Offered(reservation, terms, is_opener, hello.abilities.features, kem_key)
        self.hello = whole
        self._tries_left = UPGRADE_ATTEMPTS - 1
        self._retry_at = now + HELLO_TIMEOUT
        return None

    def _send_refuse(self, received: Received, now: int) -> None:
        hello, self.hello = _expect(Hello, received)
        self._owner.on_hello(self.keypair, hello.abilities)
        reason = lane_messages.agree(hello.abilities, self._owner.abilities())
        assert isinstance(reason, Refusal)
        self._sent = Refuse(reason).emit()
        self._send(now)
        self._owner.on_refused(REFUSAL_TEXTS[reason])

    def _install(self, received: Received, now: int) -> None:
        accept, whole = _expect(Accept, received)
        offered = self._offered
        assert offered is not None
        secret = offered.kem_key.decapsulate(accept.kem_ciphertext)
        keys = self._derive(secret, offered.terms, self.offer, whole)
        lane_set = self._owner.install(Agreement(
            self.keypair, offered.reservation, offered.terms, accept.index, offered.is_opener,
            offered.peer_features, keys.to_initiator, keys.to_responder))
        self._offered, self.accept = None, whole
        self._owner.open(lane_set, now)

    # -- the actions of both

    def _retry(self, _: Received, now: int) -> None:
        self._tries_left -= 1
        self._retry_at = now + HELLO_TIMEOUT
        self._send_again(now)

    def _answer_again(self, _: Received, now: int) -> str | None:
        if self._answers_left == 0:
            return Verdict.DROP_UNEXPECTED_CONTROL
        self._answers_left -= 1
        self._send_again(now)
        return None

    def _notify_unanswered(self, _: Received, __: int) -> None:
        self._owner.on_unanswered(self.keypair)

    def _do_nothing(self, _: Received, __: int) -> None:
        pass

    def _send(self, now: int) -> None:
        """Send the last message."""
        self._owner.send_control(self.keypair, self._sent, now)

    def _send_again(self, now: int) -> None:
        """In parts, if it may have been too large, and the peer takes them."""
        is_large = self._takes_parts and len(self._sent) > lane_messages.PART_LEN
        for data in lane_messages.parts_of(self._sent) if is_large else [self._sent]:
            self._owner.send_control(self.keypair, data, now)

    def _derive(self, kem_secret: bytes, terms: Terms, offer: bytes, accept: bytes) -> LaneKeys:
        transcript = Transcript(*self._public_keys, self.hello, offer, accept)
        keys = lane_messages.derive(self.keypair.exported, kem_secret, transcript, terms)
        wipe(kem_secret)
        return keys


_ACTIONS: dict[Action, Callable[[Upgrade, Received, int], str | None]] = {
    Action.SEND_HELLO: Upgrade._send_hello,
    Action.SEND_OFFER: Upgrade._send_offer,
    Action.SEND_REFUSE: Upgrade._send_refuse,
    Action.SEND_ACCEPT: Upgrade._send_accept,
    Action.INSTALL: Upgrade._install,
    Action.RETRY: Upgrade._retry,
    Action.ANSWER_AGAIN: Upgrade._answer_again,
    Action.NOTIFY_REFUSED: Upgrade._notify_refused,
    Action.NOTIFY_NO_TERMS: Upgrade._notify_no_terms,
    Action.NOTIFY_UNANSWERED: Upgrade._notify_unanswered,
    Action.NONE: Upgrade._do_nothing,
}
