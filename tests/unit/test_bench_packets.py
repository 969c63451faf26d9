"""What makes UDP load for `fastpump bench`, and counts it."""

import json
import random
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from fastpump.bench._packets import SMALLEST, Receiver, Sender
from fastpump.bench.packets import Arrived
from fastpump.kernel import SO_TIMESTAMPNS, UDP_SEGMENT

RUN = 0xC0FFEE
HEADER = struct.Struct("<QII")


@pytest.fixture
def server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def clients(server):
    made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for each in made:
        each.connect(server.getsockname())
    yield made
    for each in made:
        each.close()


def sender_of(clients, *words, run=RUN, **more):
    return Sender([each.fileno() for each in clients], *words, run, **more)


def send(sender, receiver, rounds=10):
    """Some milliseconds of it at a time: nothing is lost in the socket."""
    for _ in range(rounds):
        sender.send(0.005)
        receiver.drain()


def test_all_that_is_sent_is_counted_once(server, clients):
    receiver = Receiver(server.fileno(), RUN, flows=3)
    sender = sender_of(clients, [SMALLEST, 548], 5000)
    before = time.time_ns()
    send(sender, receiver)
    after = time.time_ns()
    assert 0 < sender.sent == receiver.received
    assert receiver.octets == sender.sent // 2 * (SMALLEST + 548) + sender.sent % 2 * SMALLEST
    assert not (receiver.reordered or receiver.repeated or receiver.damaged)
    assert before <= receiver.first_ns <= receiver.last_ns <= after
    delays, counts = zip(*receiver.delays_ns(), strict=True)
    assert sum(counts) == receiver.received and list(delays) == sorted(set(delays))
    assert delays[-1] <= after - before


def test_what_a_bad_tunnel_does_is_told_apart(server, clients):
    """Lost, late, twice, changed, cut, of another run: each is counted as what it is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tap:
        tap.bind(("127.0.0.1", 0))
        tap.settimeout(5)
        clients[0].connect(tap.getsockname())
        sender = sender_of(clients[:1], [100], 10_000)
        sender.send(0.01)
        sent = [tap.recv(2000) for _ in range(sender.sent)]
    assert [HEADER.unpack_from(each)[1:] for each in sent] == [
        (number, RUN) for number in range(len(sent))]
    assert len({each[HEADER.size:] for each in sent}) == len(sent)
    last = bytearray(sent[-1])
    last[-1] ^= 1
    on_the_way = [*sent[1:3], sent[0], *sent[3:-1], sent[5], bytes(last), sent[7][:15],
                  HEADER.pack(0, 1, RUN + 1) + sent[1][HEADER.size:]]
    receiver = Receiver(server.fileno(), RUN)
    for each in on_the_way:
        clients[1].send(each)
    assert receiver.drain() == len(on_the_way)
    assert (receiver.received, receiver.reordered, receiver.repeated, receiver.damaged) == (
        len(sent) - 1, 1, 1, 1)


def test_order_is_that_of_each_flow(server, clients):
    """Flows may overtake each other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tap:
        tap.bind(("127.0.0.1", 0))
        tap.settimeout(5)
        for each in clients:
            each.connect(tap.getsockname())
        sender = sender_of(clients, [100], 10_000)
        sender.send(0.01)
        sent = [tap.recv(2000) for _ in range(sender.sent)]
    receivers = {flows: Receiver(server.fileno(), RUN, flows) for flows in (3, 1)}
    for receiver in receivers.values():
        for each in sorted(sent, key=lambda data: HEADER.unpack_from(data)[1] % 3):
            clients[1].connect(server.getsockname())
            clients[1].send(each)
        receiver.drain()
    assert receivers[3].reordered == 0 < receivers[1].reordered


def test_segments_and_answers(server, clients):
    clients[0].setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1200)
    receiver = Receiver(server.fileno(), RUN, ack_every=2)
    sender = sender_of(clients[:1], [1200], 20_000, segments=10)
    send(sender, receiver)
    assert sender.sent % 10 == 0 < sender.sent == receiver.received
    assert receiver.octets == 1200 * sender.sent
    clients[0].settimeout(5)
    assert {len(clients[0].recv(2000)) for _ in range(receiver.received // 2)} == {40}


def test_a_host_that_refuses_is_no_error(server, clients):
    server.close()
    sender = sender_of(clients, [64], 0)
    sender.send(0.01)
    assert sender.sent


def test_what_is_too_large_is_an_error(clients):
    sender = sender_of(clients, [65535], 1000)
    with pytest.raises(OSError, match="Message too long"):
        sender.send(0.1)


@pytest.mark.parametrize("words, more", [
    (([64], -1), {}), (([], 1), {}), (([SMALLEST - 1], 1), {}), (([65536], 1), {}),
    (([64, 65], 1), {"segments": 2}), (([64], 1), {"segments": 0}), (([64], 1), {"segments": 2}),
    (([64], 1), {"segments": 65})])
def test_what_cannot_be_sent_is_refused(clients, words, more):
    with pytest.raises(ValueError):
        sender_of(clients, *words, **more)
    with pytest.raises(ValueError):
        Receiver(0, RUN, flows=0)


def test_who_was_not_allowed_to_run_does_not_catch_up(server):
    """A burst of half a second's packets is no fixed rate."""
    words = {"host": "127.0.0.1", "port": server.getsockname()[1], "seconds": 1.5, "run": 1,
             "sizes": [64], "rate": 10_000, "flows": 1, "segments": 1}
    with subprocess.Popen(
            [sys.executable, "-m", "fastpump.bench.packets", "send", json.dumps(words)],
            stdout=subprocess.PIPE, text=True) as sender:
        server.settimeout(10)
        server.recv(100)
        sender.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        sender.send_signal(signal.SIGCONT)
        sent = int(sender.communicate(timeout=30)[0])
    assert 0 < sent < 10_000 * (1.5 - 0.5 + 0.05)


def test_percentiles_of_delays():
    rng = random.Random(3)
    delays = sorted(rng.randrange(1000, 10_000_000) for _ in range(1000))
    arrived = Arrived(2000, 2, 1000, 0, 0, 0, 0, [(delay, 1) for delay in delays])
    assert [arrived.delay_us(percent) * 1e3 for percent in (50, 99, 99.9, 100)] == [
        delays[499], delays[989], delays[998], delays[999]]
    assert (arrived.lost, arrived.packets_per_s) == (0.5, 500)
    assert Arrived(0, 1, 0, 0, 0, 0, 0, []).lost == 0
