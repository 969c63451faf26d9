"""A peer with several places where it may be: initiations go to one after the other until one is
answered; data stays where it is."""

import errno
import socket
from ipaddress import ip_address

import pytest

from fastpump.conn.endpoint import Endpoint
from fastpump.constants import KEEPALIVE_TIMEOUT, MAX_HANDSHAKE_ATTEMPTS, REKEY_TIMEOUT, SECOND
from support.devices import PLACE, World

THREE = DEAD, GOOD, SPARE = [Endpoint(ip_address(f"192.0.2.{number}"), 51820)
                             for number in (10, 20, 30)]
SIX = Endpoint(ip_address("2001:db8::1"), 51820)


class Places(World):
    """Host b is at `alive`; a knows `candidates`."""

    def __init__(self, *candidates, alive=(), **fields):
        super().__init__(**fields)
        self.alive = alive
        self.a.configure(self.b.public_key, endpoint=candidates[0], candidates=candidates)
        self.a.sent.clear()

    def exchange(self):
        """Deliver what can be; where a's initiations went."""
        sent = self.drop(self.a)
        for each in sent:
            if each.where in self.alive and each.kind == 1:
                self.b.receive(each.message, PLACE["a"])
                for answer in self.drop(self.b):
                    self.a.receive(answer.message, each.where)
        return [each.where for each in sent if each.kind == 1]

    def tries(self, count):
        """Where initiations go, one in five seconds; the first leaves now."""
        where = self.exchange()
        while len(where) < count:
            assert self.a.device.next_deadline() is not None
            self.pass_time(REKEY_TIMEOUT)
            self.a.tick()
            where += self.exchange()
        return where

    def die(self):
        """Nothing is alive any more, and a wants to send."""
        self.alive = ()
        self.pass_time(REKEY_TIMEOUT)
        self.a.want_session()


def test_one_after_the_other_is_tried_and_the_first_again():
    world = Places(*THREE)
    world.a.want_session()
    assert world.tries(7) == [DEAD, GOOD, SPARE, DEAD, GOOD, SPARE, DEAD]
    assert world.a.peer.endpoint == DEAD and world.a.peer.trying is None


def test_the_one_that_answers_stays():
    world = Places(*THREE, alive=[GOOD, SPARE])
    world.a.want_session()
    assert world.tries(2) == [DEAD, GOOD]
    assert world.a.has_session and world.a.peer.endpoint == GOOD and world.a.peer.trying is None
    world.pass_time(REKEY_TIMEOUT)
    world.a.want_session()
    assert world.exchange() == [GOOD]


def test_when_it_dies_the_others_are_tried():
    world = Places(*THREE, alive=[GOOD])
    world.a.want_session()
    world.tries(2)
    world.die()
    assert world.tries(3) == [GOOD, SPARE, DEAD]
    world.alive = [SPARE]
    assert world.tries(2) == [GOOD, SPARE]
    assert world.a.peer.endpoint == SPARE and world.a.peer.trying is None


def test_data_stays_where_the_session_is_while_others_are_tried():
    world = Places(*THREE, alive=[DEAD])
    world.a.want_session()
    world.tries(1)
    world.alive = ()
    world.pass_time(REKEY_TIMEOUT)
    world.a.want_session()
    assert world.tries(3) == [DEAD, GOOD, SPARE]
    assert world.a.peer.endpoint == DEAD and world.a.peer.trying == SPARE
    assert world.a.device.endpoints.of_data(world.a.peer) == DEAD


def test_where_the_peer_was_heard_is_tried_as_well():
    world = Places(*THREE)
    elsewhere = Endpoint(ip_address("198.51.100.9"), 9)
    world.a.device.endpoints.set(world.a.peer, elsewhere, bytes(16))
    world.a.want_session()
    assert world.tries(5) == [elsewhere, DEAD, GOOD, SPARE, elsewhere]


def test_a_peer_with_one_endpoint_stays_where_it_was_heard():
    world = Places(DEAD)
    world.a.device.endpoints.set(world.a.peer, GOOD, bytes(16))
    world.a.want_session()
    assert world.tries(3) == [GOOD] * 3


def test_after_giving_up_the_next_one_has_its_turn():
    world = Places(DEAD, GOOD)
    world.a.want_session()
    world.tries(MAX_HANDSHAKE_ATTEMPTS)
    world.pass_time(REKEY_TIMEOUT)
    world.a.tick()
    assert world.exchange() == []
    world.a.want_session()
    assert world.exchange() == [DEAD]           # the last of an even number was GOOD


def test_what_the_kernel_refuses_is_not_waited_for(monkeypatch):
    """A host without a route for IPv6, say."""
    world = Places(SIX, GOOD, alive=[GOOD])
    transmit = world.a.transmit

    def refuse(message, where, source):
        if where == SIX:
            raise OSError(errno.ENETUNREACH, "refused")
        transmit(message, where, source)

    object.__setattr__(world.a.device.endpoints._callbacks, "transmit", refuse)
    world.a.want_session()
    assert world.exchange() == [GOOD]
    assert world.a.has_session and world.a.device.send_errors.of(world.a.peer) is None


def test_all_that_is_refused_is_told():
    world = Places(SIX, GOOD)
    world.a.refusal = errno.ENETUNREACH
    world.a.want_session()
    assert world.exchange() == []
    assert "ENETUNREACH" in world.a.device.send_errors.of(world.a.peer)


def test_ipv6_is_left_out_where_there_is_none():
    world = World()
    world.a.device.endpoints._family = socket.AF_INET
    world.a.configure(world.b.public_key, endpoint=DEAD, candidates=(DEAD, SIX, GOOD))
    assert world.a.peer.candidates == (DEAD, GOOD)


def test_answers_of_a_place_that_is_tried_are_admitted_under_load():
    world = Places(*THREE)
    assert world.a.known_endpoints == [DEAD]
    world.a.want_session()
    world.tries(2)
    assert sorted(map(str, world.a.known_endpoints)) == sorted(map(str, (DEAD, GOOD)))
    world.alive = [SPARE]
    world.tries(1)
    assert world.a.known_endpoints == [SPARE]
    world.die()
    world.tries(2)
    world.a.remove(world.b.public_key)
    assert world.a.known_endpoints == []


@pytest.mark.parametrize(("fields", "at_once", "later"), [
    ({"endpoint": SPARE}, [SPARE], [SPARE, SPARE]),
    ({"candidates": (GOOD, SPARE)}, [], [SPARE, DEAD])], ids=["an endpoint", "other candidates"])
def test_what_the_operator_says_counts(fields, at_once, later):
    world = Places(DEAD, GOOD)
    world.a.want_session()
    assert world.tries(2) == [DEAD, GOOD]
    world.a.configure(world.b.public_key, **fields)
    assert world.exchange() == at_once
    assert world.tries(2) == later


def test_a_place_that_leads_into_the_tunnel_is_told_and_left(caplog):
    world = Places(*THREE)
    world.a.want_session()
    world.tries(2)
    endpoints = world.a.device.endpoints
    assert endpoints.addresses(world.a.peer) == {DEAD.address, GOOD.address}
    endpoints.give_up(world.a.peer, GOOD.address, world.now)
    assert f"the way to {GOOD.address} leads into this tunnel; give it another route" in caplog.text
    assert world.tries(1) == [SPARE] and world.a.peer.candidates == tuple(THREE)


def test_what_works_is_not_left_for_a_loop_elsewhere(caplog):
    world = Places(*THREE, alive=[GOOD])
    world.a.want_session()
    world.tries(2)
    world.a.device.endpoints.give_up(world.a.peer, DEAD.address, world.now)
    assert world.a.peer.endpoint == GOOD and "leads into" not in caplog.text


# -- the first endpoint

@pytest.mark.parametrize(("fields", "kinds"), [({}, []), ({"keepalive_s": 25}, [1])])
def test_the_first_endpoint_starts_what_waits_for_it(fields, kinds):
    world = World()
    world.a.configure(bytes(range(32)), **fields)
    peer = world.a.device.peers[bytes(range(32))]
    world.a.tick()
    assert world.a.sent == []
    world.pass_time(KEEPALIVE_TIMEOUT + SECOND)
    world.a.configure(peer.public_key, endpoint=GOOD)
    assert world.a.kinds == kinds
