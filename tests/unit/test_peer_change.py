"""Changes of peers: what each field does, and that all who ask for one ask for the same."""

import socket
from ipaddress import ip_address, ip_network

import pytest

from fastpump._core import SharedTables
from fastpump.config.model import PeerConfig
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND
from fastpump.device.peer_change import UNCHANGED, PeerChange, PrefixChange, Presence
from fastpump.errors import ConfigError
from fastpump.ipc import uapi
from fastpump.protocol import keys
from fastpump.ratelimit import NO_LIMITS, parse
from fastpump.tunnel import peer_changes
from support.devices import Clock, Side

A, B = bytes([0xA1]) * 32, bytes([0xB1]) * 32
HERE, THERE = (Endpoint(ip_address(f"192.0.2.{number}"), 9) for number in (1, 2))
V6 = Endpoint(ip_address("2001:db8::1"), 9)
NAME = ("vpn.example.net", 9)
PSK = bytes(range(32))
LIMITS = parse("tx=1mbit")


@pytest.fixture
def side():
    return Side(Clock())


def prefix(text):
    network = ip_network(text)
    return network.network_address.packed, network.prefixlen


def added(*texts):
    return tuple(PrefixChange(prefix(text)) for text in texts)


def removed(*texts):
    return tuple(PrefixChange(prefix(text), is_added=False) for text in texts)


def state(side, public_key=A):
    """What is configured of a peer."""
    peer = side.device.peers.get(public_key)
    return None if peer is None else {
        "preshared_key": peer.preshared_key, "endpoint": peer.endpoint,
        "endpoint_names": peer.endpoint_names, "keepalive_s": peer.persistent_keepalive_s,
        "rate_limits": peer.rate_limits, "allowed_ips": peer.allowed_ips}


NEW = {"preshared_key": bytes(32), "endpoint": None, "endpoint_names": (), "keepalive_s": 0,
       "rate_limits": NO_LIMITS, "allowed_ips": set()}
FULL = {"preshared_key": PSK, "endpoint": HERE, "endpoint_names": (NAME,), "keepalive_s": 25,
        "rate_limits": LIMITS, "allowed_ips": {prefix("10.0.0.0/8"), prefix("::/0")}}
MAKE_FULL = {**FULL, "allowed_ips": added("10.0.0.0/8", "::/0")}

# What is changed of a new peer and of one that has everything; what is otherwise there afterwards.
FIELDS = [
    ("nothing", {}, {}, {}),
    ("another preshared key", {"preshared_key": bytes([7]) * 32},
     {"preshared_key": bytes([7]) * 32}, {"preshared_key": bytes([7]) * 32}),
    ("no preshared key", {"preshared_key": bytes(32)}, {}, {"preshared_key": bytes(32)}),
    ("another endpoint", {"endpoint": THERE}, {"endpoint": THERE}, {"endpoint": THERE}),
    ("an endpoint instead of a name", {"endpoint": THERE, "endpoint_names": ()},
     {"endpoint": THERE}, {"endpoint": THERE, "endpoint_names": ()}),
    ("another name", {"endpoint_names": (("x", 1),)},
     {"endpoint_names": (("x", 1),)}, {"endpoint_names": (("x", 1),)}),
    ("another keepalive", {"keepalive_s": 9}, {"keepalive_s": 9}, {"keepalive_s": 9}),
    ("no keepalive", {"keepalive_s": 0}, {}, {"keepalive_s": 0}),
    ("other rate limits", {"rate_limits": parse("rx=5mbit")},
     {"rate_limits": parse("rx=5mbit")}, {"rate_limits": parse("rx=5mbit")}),
    ("no rate limits", {"rate_limits": NO_LIMITS}, {}, {"rate_limits": NO_LIMITS}),
    ("an allowed IP more", {"allowed_ips": added("10.1.0.0/16")},
     {"allowed_ips": {prefix("10.1.0.0/16")}},
     {"allowed_ips": FULL["allowed_ips"] | {prefix("10.1.0.0/16")}}),
    ("an allowed IP less", {"allowed_ips": removed("::/0")},
     {}, {"allowed_ips": {prefix("10.0.0.0/8")}}),
    ("other allowed IPs", {"replaces_allowed_ips": True, "allowed_ips": added("::/0", "fd00::/8")},
     {"allowed_ips": {prefix("::/0"), prefix("fd00::/8")}},
     {"allowed_ips": {prefix("::/0"), prefix("fd00::/8")}}),
    ("no allowed IPs", {"replaces_allowed_ips": True}, {}, {"allowed_ips": set()}),
]


@pytest.mark.parametrize(("change", "new", "full"), [row[1:] for row in FIELDS],
                         ids=[row[0] for row in FIELDS])
def test_a_change_changes_what_it_says_and_nothing_else(side, change, new, full):
    side.configure(A, **change)
    assert state(side) == NEW | new
    side.configure(B, **MAKE_FULL)
    same = side.configure(B, **MAKE_FULL)
    assert state(side, B) == FULL
    assert side.configure(B, **change) is same
    assert state(side, B) == FULL | full


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize(("presence", "there_after"), [
    (Presence.CREATE, (True, True)), (Presence.UPDATE, (False, True)),
    (Presence.REMOVE, (False, False))])
def test_presence(side, there_before, presence, there_after):
    if there_before:
        side.configure(A)
    peer = side.configure(A, presence=presence, **MAKE_FULL)
    assert peer is side.device.peers.get(A)
    assert state(side) == (FULL if there_after[there_before] else None)


def lookup(side, address):
    """Whom the workers send a packet for an address to."""
    slot = side.tables.allowed_ips.lookup(ip_address(address).packed)
    peer = None if slot is None else side.device.peer_in_slot(slot)
    return None if peer is None else peer.public_key


def test_an_allowed_ip_moves_to_the_peer_that_it_is_added_to(side):
    side.configure(A, allowed_ips=added("10.0.0.0/8", "::/0"))
    side.configure(B, allowed_ips=added("10.0.0.0/8"))
    assert state(side, A)["allowed_ips"] == {prefix("::/0")}
    assert side.device.allowed_ips.owner(prefix("10.0.0.0/8")) is side.device.peers[B]
    assert lookup(side, "10.1.1.1") == B and lookup(side, "fd00::1") == A
    side.configure(A, allowed_ips=removed("10.0.0.0/8"))        # it is not A's any more
    assert lookup(side, "10.1.1.1") == B
    side.remove(B)
    assert lookup(side, "10.1.1.1") is None and len(side.device.allowed_ips) == 1


class Recorder:
    """An object whose methods' calls are recorded, and those of the objects in it."""

    def __init__(self, recorded, name="", calls=None):
        self._recorded, self._name = recorded, name
        self._calls = [] if calls is None else calls

    def __getattr__(self, name):
        attribute, path = getattr(self._recorded, name), f"{self._name}{name}"
        if name in ("allowed_ips", "limiters"):
            return Recorder(attribute, f"{path}.", self._calls)
        if not callable(attribute):
            return attribute

        def call(*arguments):
            self._calls.append((path, *arguments))
            return attribute(*arguments)

        return call

    def take(self, prefix):
        """The calls since the last time whose names begin so."""
        taken = [call for call in self._calls if call[0].startswith(prefix)]
        self._calls.clear()
        return taken


def recorded_side():
    return Side(Clock(), tables=Recorder(SharedTables.create(1, 4, 64)))


def test_an_allowed_ip_that_stays_is_not_touched_by_a_replacement():
    """Packets to it never miss their way."""
    side = recorded_side()
    side.configure(A, allowed_ips=added("10.0.0.0/8", "::/0"))
    assert len(side.tables.take("allowed_ips.")) == 2
    side.configure(A, replaces_allowed_ips=True, allowed_ips=added("10.0.0.0/8", "::/0"))
    assert side.tables.take("allowed_ips.") == []
    side.configure(A, replaces_allowed_ips=True, allowed_ips=added("10.0.0.0/8"))
    assert side.tables.take("allowed_ips.") == [("allowed_ips.remove", *prefix("::/0"))]


def test_rate_limits_are_the_workers_too():
    side = recorded_side()
    limits = parse("tx.bandwidth.size=100,tx.bandwidth.refill-time=50,rx.ops.size=7,"
                   "rx.ops.refill-time=1000,rx.ops.one-time-burst=3")
    slot, now = side.configure(A, rate_limits=limits).slot, side.clock.now
    assert side.tables.take("limiters.") == [
        ("limiters.set", slot, "tx", (100, SECOND // 20, 0), None, now),
        ("limiters.set", slot, "rx", None, (7, SECOND, 3), now)]
    side.configure(A, keepalive_s=9)
    assert side.tables.take("limiters.") == []


def test_the_session_stays(side):
    """And so does whatever else the peer has learned."""
    peer = side.configure(A, **MAKE_FULL)
    side.want_session()
    handshake = peer.handshake
    side.configure(A, **MAKE_FULL | {"preshared_key": bytes(32), "keepalive_s": 7})
    assert handshake is not None and peer.handshake is handshake


def test_a_keepalive_that_is_said_again_is_not_put_off(side):
    side.configure(A, endpoint=HERE, keepalive_s=25)
    assert side.device.next_deadline() == side.clock.now        # the first at once
    side.tick()
    due = side.peer.timers.persistent_at
    side.clock.pass_time(10 * SECOND)
    side.configure(A, keepalive_s=25)
    assert side.peer.timers.persistent_at == due
    side.configure(A, keepalive_s=20)
    assert side.peer.timers.persistent_at == side.clock.now + 20 * SECOND


# -- what is refused

def test_an_endpoint_that_cannot_be_reached_changes_nothing():
    side = Side(Clock(), family=socket.AF_INET)
    with pytest.raises(ConfigError, match="IPv6"):
        side.configure(A, **MAKE_FULL | {"endpoint": V6})
    assert side.device.peers == {}
    side.configure(A, **MAKE_FULL)
    with pytest.raises(ConfigError, match="IPv6"):
        side.configure(A, preshared_key=bytes(32), endpoint=V6, allowed_ips=removed("::/0"))
    assert state(side) == FULL
    side.configure(B, presence=Presence.UPDATE, endpoint=V6)        # nobody is there
    side.configure(A, presence=Presence.REMOVE, endpoint=V6)
    assert side.device.peers == {}


def test_our_own_public_key_is_no_peer(side):
    with pytest.raises(ConfigError, match="own public key"):
        side.configure(side.public_key)
    assert side.configure(side.public_key, presence=Presence.UPDATE) is None
    assert side.device.peers == {}


def test_a_full_table_of_peers_changes_nothing():
    side = Side(Clock(), tables=SharedTables.create(1, 1, 64))
    side.configure(A, **MAKE_FULL)
    with pytest.raises(MemoryError):
        side.configure(B, allowed_ips=added("::/0"))
    assert list(side.device.peers) == [A] and state(side) == FULL
    side.remove(A)
    assert side.configure(B) is not None


def test_a_full_table_of_allowed_ips_applies_all_but_the_rest_of_them():
    side = Side(Clock(), tables=SharedTables.create(1, 4, 16))
    chain = [f"::/{length}" for length in range(64)]
    with pytest.raises(MemoryError):
        side.configure(A, **MAKE_FULL | {"allowed_ips": added(*chain)})
    found = state(side)
    count = len(found["allowed_ips"])
    assert 0 < count < 16
    assert found == FULL | {"allowed_ips": {prefix(text) for text in chain[:count]}}
    # What takes no memory works still; and so does what follows a removal in the same change.
    assert side.configure(B, allowed_ips=added("::/3")) is not None
    assert state(side, B)["allowed_ips"] == {prefix("::/3")}
    side.configure(A, replaces_allowed_ips=True, allowed_ips=added("10.0.0.0/8"))
    assert state(side)["allowed_ips"] == {prefix("10.0.0.0/8")}


# -- wg set, reload and --peer

def wg_change(text):
    """What the lines of a set say of one peer."""
    (change,) = uapi.parse(f"public_key={A.hex()} {text}".split()).peers
    return change


def test_a_peer_of_the_command_line_or_a_file_is_the_same_change_as_wgs():
    said = PeerConfig(A, (("192.0.2.1", 9),), (ip_network("10.0.0.0/8"), ip_network("::/0")), PSK,
                      25)
    whole = wg_change(f"preshared_key={PSK.hex()} endpoint=192.0.2.1:9 replace_allowed_ips=true "
                      "persistent_keepalive_interval=25 allowed_ip=10.0.0.0/8 allowed_ip=::/0")
    (of_command_line,) = peer_changes.of_new_peers([said], {A: (HERE,)})
    of_reload = peer_changes.peer_change_of(said, (HERE,), before=PeerConfig(A))
    assert whole == of_command_line == of_reload == PeerChange(
        A, preshared_key=PSK, endpoint=HERE, endpoint_names=(), replaces_allowed_ips=True,
        allowed_ips=added("10.0.0.0/8", "::/0"), keepalive_s=25)


def test_a_file_that_says_less_takes_away():
    whole = wg_change(f"preshared_key={bytes(32).hex()} replace_allowed_ips=true "
                      "persistent_keepalive_interval=0")
    said = peer_changes.peer_change_of(PeerConfig(A), before=PeerConfig(A, (), (), PSK, 25))
    assert whole.endpoint_names is UNCHANGED     # without an endpoint wg says nothing of it
    assert said == PeerChange(A, endpoint_names=(), replaces_allowed_ips=True,
                              preshared_key=bytes(32), keepalive_s=0)
    assert (whole.preshared_key, whole.keepalive_s, whole.allowed_ips) == (
        said.preshared_key, said.keepalive_s, said.allowed_ips)


@pytest.mark.parametrize(("now", "before", "said"), [
    (NO_LIMITS, None, UNCHANGED), (LIMITS, None, LIMITS), (LIMITS, LIMITS, UNCHANGED),
    (NO_LIMITS, LIMITS, NO_LIMITS)])
def test_a_reload_leaves_rate_limits_that_the_file_does_not_change(now, before, said):
    """`fastpump limit` may have set others since."""
    change = peer_changes.peer_change_of(
        PeerConfig(A, rate_limits=now),
        before=None if before is None else PeerConfig(A, rate_limits=before))
    assert change.rate_limits is said


def test_a_name_is_kept_to_be_resolved_again():
    change = peer_changes.peer_change_of(PeerConfig(A, (NAME,)), (HERE,))
    assert (change.endpoint, change.endpoint_names) == (HERE, (NAME,))


def test_a_peer_that_is_given_twice_is_a_mistake():
    with pytest.raises(ConfigError, match=f"{keys.encode(B)} is given twice"):
        list(peer_changes.of_new_peers([PeerConfig(key) for key in (A, B, B)], {}))


@pytest.mark.parametrize(("text", "presence"), [
    ("", Presence.CREATE), ("update_only=true", Presence.UPDATE), ("remove=true", Presence.REMOVE),
    ("remove=true update_only=true", Presence.REMOVE)])
def test_presence_by_wg(text, presence):
    assert wg_change(text) == PeerChange(A, presence)


def test_a_change_does_not_show_keys():
    assert "preshared" not in repr(PeerChange(A, preshared_key=PSK))
