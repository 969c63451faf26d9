"""A random life of the lanes between two sides, over a network of which a part is blocked at times.

Both sides are devices with real workers (support/lanedevices.py), so data is real, too: a packet
that is written to a side's interface arrives at the other's, or not. Time is ours. A schedule
blocks some lanes in one direction or both, and starts and stops flows: one for each worker and
side.
"""

import socket
from dataclasses import dataclass

from fastpump.constants import REKEY_TIMEOUT, SECOND
from fastpump.device.peer_change import PrefixChange
from fastpump.kernel import UDP_GRO
from support.lanedevices import PACKET, World, received

STEP = SECOND // 20
LIFE = 60 * SECOND
MOVES = 8 * SECOND
"""A flow on a blocked lane moves in this time, however many are blocked, if the schedule does not
change meanwhile."""
RECOVERY = 8 * SECOND
"""A lane that is not blocked any more works again in this time."""
PROOF = 5 * SECOND + SECOND // 2
"""A lane that dies was blocked at some time as recently as this; the side that does not open it
waits the longest, LANE_OPENING_TIME."""


@dataclass
class Flow:
    """Of one worker of one side. `since`: of the first packet, none of which, nor of the later
    ones, has arrived; 0 for none."""

    period: int = 0
    """In steps; 0: it is silent."""
    since: int = 0


class Network(World):
    """A schedule, as `rng` draws it."""

    def __init__(self, rng, *, queues):
        super().__init__(queues=(queues, queues), a=self._options(rng), b=self._options(rng))
        self.rng, self.queues = rng, queues
        self.delay = rng.choice((0, 0, STEP, 6 * STEP))
        self.log = []
        self._flights, self._steps = [], 0
        self._victims = rng.sample(range(queues), rng.randrange(1, queues))
        self._blocked_at = dict.fromkeys(range(queues), 0)      # when a lane was blocked last
        self._changed_at = self.now     # the schedule, as far as it concerns the victims
        self._flows = {(side, worker): Flow() for side in self.sides for worker in range(queues)}
        self._packets = {}              # flow and time, by the packet's IP identification
        self._dead = set()
        for side, other in ((self.a, self.b), (self.b, self.a)):
            side.place.socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 0)
            side.configure(other, keepalive_s=rng.choice((0, 0, 1, 25)), allowed_ips=(
                PrefixChange((bytes([10, 9, 0, 0]), 24), True),))

    @staticmethod
    def _options(rng):
        return {"transport": rng.choice(("auto", "lanes"))}

    @property
    def sides(self):
        return self.a, self.b

    def other(self, side):
        return self.b if side is self.a else self.a

    def name(self, side):
        return "a" if side is self.a else "b"

    # -- the schedule

    def live(self):
        """All of it. AssertionError for a flow that stays on a dead way, and for a healthy lane
        that dies or does not come back."""
        opener = self.rng.choice(self.sides)
        if self.rng.random() < 0.3:
            self._block()
        self._initiate(opener)
        end = self.now + LIFE
        while self.now < end:
            what = self.rng.random()
            if what < 0.005:
                self._block()
            elif what < 0.02:
                self._change_flow()
            elif what < 0.021:
                self._initiate(self.rng.choice(self.sides))
            self._step()
            self._check_flows()
            self._check_lanes()

    def _block(self):
        """Block the victims in some direction, both, or none."""
        self._changed_at = self.now
        sides = self.rng.choice(((), (self.a,), (self.b,), self.sides))
        self.blocked = {(side, victim) for side in sides for victim in self._victims}
        self.log.append((self.now, "blocked", [(self.name(side), lane)
                                               for side, lane in self.blocked]))

    def _change_flow(self):
        side, worker = self.rng.choice(list(self._flows))
        flow = self._flows[side, worker]
        flow.period = self.rng.choice((0, 1, 2, 5))
        flow.since = 0
        if worker in self._victims:
            self._changed_at = self.now
        self.log.append((self.now, "flow", self.name(side), worker, flow.period))

    def _initiate(self, side):
        last = side.peer.last_initiation_sent_at
        if last is None or self.now > last + REKEY_TIMEOUT:
            self._changed_at = self.now
            self.log.append((self.now, "handshake", self.name(side)))
            side.sent.append(side.start_handshake())

    # -- what happens

    def _step(self):
        self.pass_time(STEP)
        self._steps += 1
        for lane in {lane for _, lane in self.blocked}:
            self._blocked_at[lane] = self.now
        for (side, worker), flow in self._flows.items():
            if flow.period and self._steps % flow.period == 0:
                self._send(side, worker, flow)
        for side in self.sides:
            side.tick()
            side.run()
        self._collect()
        while self._flights and self._flights[0][0] <= self.now:
            _, sender, message = self._flights.pop(0)
            self._arrive(sender, self.other(sender), message)
            self._collect()
        self._take_packets()

    def _send(self, side, worker, flow):
        ident = len(self._packets) & 0xFFFF
        self._packets[ident] = (side, worker), self.now
        flow.since = flow.since or self.now
        side.write_packet(worker, PACKET[:4] + ident.to_bytes(2, "big") + PACKET[6:])

    def _collect(self):
        """What was sent: by the supervisors, and by the workers."""
        for side in self.sides:
            messages = side.sent + [message for message, _, _ in side.lane_sent]
            side.sent.clear()
            side.lane_sent.clear()
            messages += received(self.other(side).place.socket)
            self._flights += [(self.now + self.delay, side, message) for message in messages
                              if message[0] != 5 or (side, message[2]) not in self.blocked]

    def _arrive(self, sender, side, message):
        if message[0] == 5:
            side.receive_lane(message, sender)
        elif message[0] == 4:
            side.receive_by(side.peer.worker, message, sender.place)
        else:
            side.receive_handshake(message, sender)

    def _take_packets(self):
        for side in self.sides:
            for packet in side.take_packets():
                key, sent_at = self._packets[int.from_bytes(packet[4:6], "big")]
                flow = self._flows[key]
                if sent_at >= flow.since:
                    flow.since = 0

    # -- what must hold

    def _check_flows(self):
        for (side, worker), flow in self._flows.items():
            since = max(flow.since, self._changed_at)
            assert not flow.since or self.now - since <= MOVES + 3 * self.delay, \
                f"the flow of {self.name(side)}'s worker {worker} does not move"

    def _check_lanes(self):
        for side in self.sides:
            for lane in side.newest.lanes if side.newest else ():
                age = self.now - self._blocked_at[lane.number]
                if lane.is_dead and lane not in self._dead:
                    self._dead.add(lane)
                    self.log.append((self.now, "dead", self.name(side), lane.number))
                    assert age <= PROOF + 2 * self.delay, \
                        f"{self.name(side)}'s healthy lane {lane.number} has died"
                elif not lane.is_dead and lane in self._dead:
                    self._dead.remove(lane)
                    self.log.append((self.now, "back", self.name(side), lane.number))
                assert not lane.is_dead or age <= RECOVERY + 2 * self.delay, \
                    f"{self.name(side)}'s lane {lane.number} is not back"
