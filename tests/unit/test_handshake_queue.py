"""The queue of handshake messages: what preceded them is handed to the device first."""

import socket

import pytest

from fastpump._core import Admission
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS
from fastpump.constants import REKEY_TIMEOUT
from fastpump.device.handshake_queue import HandshakeQueue, QueueCallbacks
from support.devices import PLACE, World


def served(world, *, on_slice):
    """b serves the initiation that a has sent."""
    queue = HandshakeQueue(world.b.device, Admission(), QueueCallbacks(on_slice, lambda _: None))
    (initiation,) = world.drop(world.a)
    queue.add((initiation.message, PLACE["a"].sockaddr(socket.AF_INET6), NO_SOURCE_ADDRESS),
              world.now)
    assert queue.serve(lambda: world.now) is False


@pytest.mark.parametrize("is_handed_over", [True, False])
def test_a_session_that_was_just_confirmed_outlives_the_next_initiation(is_handed_over):
    """Its first message is with the worker, and the worker's event still in the ring, when the
    initiation is served. An unconfirmed session would be dropped for the new one's sake."""
    world = World()
    world.a.want_session()
    world.deliver(world.a, world.b)
    world.deliver(world.b, world.a)
    world.drop(world.a)                     # the message that confirms; a worker has it
    fresh = world.b.peer.keypairs.next
    world.pass_time(REKEY_TIMEOUT)
    world.a.want_session()
    served(world, on_slice=world.b.confirm if is_handed_over else lambda: None)
    assert world.b.kinds == [2] and world.b.peer.keypairs.next is not fresh
    assert (world.b.peer.keypairs.current is fresh) == is_handed_over


def test_an_empty_queue_hands_nothing_over():
    world = World()
    queue = HandshakeQueue(world.b.device, Admission(), QueueCallbacks(
        lambda: pytest.fail("there is no slice"), lambda _: None))
    assert queue.serve(lambda: world.now) is False
