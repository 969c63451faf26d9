"""What `reload` changes of a running tunnel: what differs from what is applied, also after a reload
that failed on its way."""

import asyncio
import threading
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastpump.config.file import parse
from fastpump.config.file_emit import emit as emit_file
from fastpump.device.peer_change import UNCHANGED, PeerChange, Presence
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.protocol import keys
from fastpump.ratelimit import emit
from fastpump.tunnel.file import FileTunnel
from fastpump.tunnel.resolver import Resolver

PEERS = {name: bytes([number]) * 32 for number, name in enumerate("ABC", 1)}
A, B, C = PEERS.values()
FIRST, SECOND = (keys.encode(bytes([number]) * 32) for number in (8, 9))


class Running:
    """A stand-in for a tunnel: `made` is what it was told, `refused` what it cannot do."""

    def __init__(self, *public_keys):
        self.made, self.refused, self.limits = [], {}, []
        self.supervisor = self
        self.resolver = Resolver(0)
        self.device = SimpleNamespace(peers={}, public_key=bytes(32))
        self.addresses_of_peers = list
        self.fwmark, self.listen_port, self.is_at_home = 0, 4711, True
        self.link = SimpleNamespace(index=5)
        for public_key in public_keys:
            self.configure_peer(PeerChange(public_key))
        self.made.clear()

    def _make(self, what, value):
        if what in self.refused:
            raise self.refused[what]
        self.made.append((what, value))

    def set_private_key(self, key):
        self._make("key", keys.encode(key))

    def set_listen_port(self, port):
        self._make("port", port)

    def set_fwmark(self, mark):
        self._make("mark", mark)

    def configure_peer(self, change, _names=None):
        name = "ABC"[change.public_key[0] - 1]
        if change.presence is Presence.REMOVE:
            self._make(name, None)
            del self.device.peers[change.public_key]
            return
        self._make(name, [str(ip_address(each.prefix[0])) for each in change.allowed_ips])
        self.device.peers.setdefault(change.public_key, SimpleNamespace(
            public_key=change.public_key, endpoint=None))
        if change.rate_limits is not UNCHANGED:
            self.limits.append((change.public_key, emit(change.rate_limits)))

    def set_rate_limits(self, public_key, limits):
        self.limits.append((public_key, emit(limits)))

    def now(self):
        """The last value of each."""
        return dict(self.made)


class Host:
    """A stand-in for what a file changes on the host: it notes what is done, and waits for
    `may_go_on` meanwhile."""

    def __init__(self):
        self.changes, self.done, self.refusal = [], None, None
        self.may_go_on, self.is_waiting = threading.Event(), threading.Event()
        self.may_go_on.set()

    def set_commands(self, _commands):
        pass

    def change(self, _index, wanted):
        self.changes.append(wanted)
        self.is_waiting.set()
        assert self.may_go_on.wait(20)
        if self.refusal is not None:
            raise self.refusal
        self.done = wanted
        return []


def a_file(*interface, **allowed_ips):
    """[Interface] lines, and what the peers A, B and C have."""
    return parse("\n".join(("[Interface]", *interface, *(
        f"[Peer]\nPublicKey = {keys.encode(PEERS[name])}\nAllowedIPs = {each}"
        for name, each in allowed_ips.items()))), "wg0.conf")


@pytest.fixture
def tunnel(monkeypatch):
    """A tunnel of a file, which is up: `reload(file)` reads that file."""
    monkeypatch.setattr("fastpump.host.ipv6.is_left_out", lambda *_: False)
    monkeypatch.setattr("fastpump.netlink.routes.fitting_mtu", lambda *_: 1420)

    def up(file, **files):
        made = FileTunnel.of(Path("wg0"), "wg0", file)
        running = Running(*(peer.public_key for peer in file.tunnel.peers))
        made.host, made._running, made._was_ready = Host(), running, True
        made._changes = SimpleNamespace(apart=lambda _: frozenset(), table=0)
        files |= {"wg0": file}
        monkeypatch.setattr("fastpump.config.file.load", lambda path: files[path.name])

        async def reload(name="wg0"):
            return (await made._reload(running, {"file": name}))["changed"][1:]

        return SimpleNamespace(file=made, running=running, host=made.host, reload=reload)

    return up


# -- what differs

def test_reload_sets_the_rate_limits_that_changed():
    def file(interface, **limits):
        return parse("".join((f"[Interface]\nRateLimit = {interface}\n", *(
            f"[Peer]\nPublicKey = {keys.encode(key)}\nRateLimit = {said}\n"
            for key, said in zip((A, B, C), limits.values(), strict=False)))), "wg0.conf")

    old = file("tx=1gbit", a="tx=1mbit", b="rx=1mbit", c="off")
    for new, present, expected in (
            (old, (A, B, C), []),
            (file("rx=1gbit", a="tx=1mbit", b="off", c="both=1mbit"), (A, B, C),
             [(None, "rx=1gbit"), (B, "off"), (C, "both=1mbit")]),
            # wg(8) removed these; they come back with their limits.
            (old, (), [(A, "tx=1mbit"), (B, "rx=1mbit")])):
        loaded, running = FileTunnel.of(Path(), "wg0", old), Running(*present)
        loaded.change_interface(running, new.tunnel)
        loaded.change_peers(running, new, {})
        assert running.limits == expected


# -- after a failure

@pytest.mark.parametrize("refused, there", [
    ("port", {"key": SECOND}), ("mark", {"key": SECOND, "port": 22}),
    ("B", {"key": SECOND, "port": 22, "mark": 2, "A": ["10.1.2.0"]}),
])
def test_the_file_before_a_failure_can_be_gone_back_to(tunnel, refused, there):
    old = a_file(f"PrivateKey = {FIRST}", "ListenPort = 11", "FwMark = 1",
                 A="10.1.1.0/24", B="10.1.2.0/24")
    new = a_file(f"PrivateKey = {SECOND}", "ListenPort = 22", "FwMark = 2",
                 A="10.1.2.0/24", B="10.1.1.0/24")
    up = tunnel(old, new=new)
    up.running.refused[refused] = SystemSetupError("taken")
    with pytest.raises(SystemSetupError, match="taken"):
        asyncio.run(up.reload("new"))
    assert up.running.now() == there
    del up.running.refused[refused]
    asyncio.run(up.reload())
    assert up.running.now() == {key: value for key, value in {
        "key": FIRST, "port": 11, "mark": 1, "A": ["10.1.1.0"], "B": ["10.1.2.0"],
    }.items() if key in there or (key, refused) == ("B", "B")}
    up.running.made.clear()
    asyncio.run(up.reload())
    assert up.running.made == []


@pytest.mark.parametrize("error", [SystemSetupError("no room"), ConfigError("no IPv6")])
def test_what_failed_of_a_peer_is_done_by_the_next_reload(tunnel, error):
    up = tunnel(a_file(A="10.1.1.0/24"), new=a_file(A="10.1.2.0/24"))
    up.running.refused["A"] = error
    with pytest.raises(type(error)):
        asyncio.run(up.reload("new"))
    del up.running.refused["A"]
    asyncio.run(up.reload("new"))
    assert up.running.made == [("A", ["10.1.2.0"])]


@pytest.mark.parametrize("first, then, mtu", [("", "MTU = 1300", 1420), ("MTU = 1300", "", 1300)])
def test_an_mtu_is_gone_back_to(tunnel, first, then, mtu):
    up = tunnel(a_file(first), new=a_file(then))
    up.host.refusal = SystemSetupError("a route is there already")
    with pytest.raises(SystemSetupError):
        asyncio.run(up.reload("new"))
    up.host.refusal = None
    asyncio.run(up.reload())
    assert up.host.done.mtu == mtu


# -- one after the other

class Turn(asyncio.Lock):
    """Counts who has asked for it."""

    asked = 0

    async def acquire(self):
        self.asked += 1
        return await super().acquire()


@pytest.mark.parametrize("is_left", [False, True])
def test_reloads_are_done_one_after_the_other(tunnel, is_left):
    """Also if whoever asked for the first has left before its end."""
    up = tunnel(a_file(), first=a_file("DNS = 10.0.0.1", A="10.1.1.0/24"),
                second=a_file("DNS = 10.0.0.2", A="10.1.2.0/24"))

    async def two():
        up.file._turn = Turn()
        up.host.may_go_on.clear()
        first = asyncio.create_task(up.reload("first"))
        await asyncio.to_thread(up.host.is_waiting.wait, 20)
        if is_left:
            first.cancel()
        second = asyncio.create_task(up.reload("second"))
        while up.file._turn.asked < 2:
            await asyncio.sleep(0)
        assert up.running.now()["A"] == ["10.1.1.0"] and len(up.host.changes) == 1
        up.host.may_go_on.set()
        await asyncio.gather(first, second, return_exceptions=True)

    asyncio.run(two())
    assert up.running.now()["A"] == ["10.1.2.0"] and up.host.done.dns == ("10.0.0.2",)


def test_nothing_is_reloaded_before_the_tunnel_is_up(tunnel):
    old = a_file("SaveConfig = true", A="10.1.1.0/24")
    up = tunnel(old, new=a_file(A="10.1.2.0/24"))
    up.file._was_ready = False
    with pytest.raises(ConfigError, match="not up yet"):
        asyncio.run(up.reload("new"))
    assert up.running.made == [] and up.host.changes == []
    # Nor is a file that `down` saves replaced by what is there by then: nothing.
    assert asyncio.run(up.file._configuration(up.running, {})) == {"text": emit_file(old)}
