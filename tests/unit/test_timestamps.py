"""Timestamps of initiations grow over a restart, also if the clock is set back meanwhile."""

import stat

import pytest

from fastpump import paths
from fastpump.constants import REKEY_TIMEOUT, SECOND
from fastpump.device.timestamps import NUDGE, STEP
from fastpump.protocol import keys, noise, tai64n
from fastpump.protocol.wire import Initiation, parse
from fastpump.tunnel.timestamp_files import TimestampFiles
from support.devices import PLACE, UNIX_START, Clock, Side

YEAR = 365 * 86400 * SECOND
KEY, OTHER_KEY = bytes([1]) * 32, bytes([2]) * 32
PUBLIC = keys.public_of(KEY)


class Responder:
    """Remembers, as responders do, the newest timestamp of each key, and refuses what is not
    newer."""

    def __init__(self):
        self.static = noise.DhKeyPair.from_private(bytes([9]) * 32)
        self.of_key, self.seen = {}, []

    @property
    def newest(self):
        return self.of_key[PUBLIC]

    def accepts(self, message):
        parsed = parse(message)
        assert isinstance(parsed, Initiation)
        found = noise.consume_initiation(self.static, parsed, self.static.exchange)
        before = self.of_key.get(found.peer_public, bytes(12))
        self.of_key[found.peer_public] = max(before, found.timestamp)
        self.seen.append(found.timestamp)
        return found.timestamp > before


class Host:
    """A device that is restarted: only files outlive that. `writes` counts those."""

    def __init__(self, private_key=KEY):
        self.clock, self.private_key, self.writes = Clock(), private_key, 0
        self.responder = Responder()
        self.start()

    def start(self, private_key=None):
        files = TimestampFiles()

        def keep(public_key, before, timestamp):
            self.writes += 1
            files.keep(public_key, before, timestamp)

        self.side = Side(self.clock, private_key=private_key or self.private_key,
                         load_timestamp=files.load, keep_timestamp=keep)
        self.side.configure(self.responder.static.public, endpoint=PLACE["b"])

    def initiate(self):
        """Whether an initiation of now is accepted."""
        self.clock.pass_time(REKEY_TIMEOUT)
        self.side.want_session()
        self.side.tick()
        (sent,) = self.side.sent
        self.side.sent.clear()
        return self.responder.accepts(sent.message)


@pytest.fixture
def host():
    return Host()


@pytest.mark.parametrize("is_orderly", [True, False], ids=["stopped", "killed"])
@pytest.mark.parametrize("back", [SECOND, STEP, YEAR, UNIX_START])
def test_a_clock_that_was_set_back_shuts_nobody_out(host, is_orderly, back):
    assert all(host.initiate() for _ in range(5))
    if is_orderly:
        host.side.device.close()
    host.clock.unix_ns -= back
    for _ in range(3):
        host.start()
        assert host.initiate()


def test_while_it_runs_neither(host):
    assert host.initiate()
    host.clock.unix_ns -= YEAR
    assert host.initiate()
    host.side.remove(host.responder.static.public)      # and is configured again
    host.side.configure(host.responder.static.public, endpoint=PLACE["b"])
    assert host.initiate()


def test_the_disk_is_written_rarely(host):
    """An hour of handshakes every two minutes."""
    for _ in range(30):
        host.clock.pass_time(120 * SECOND)
        assert host.initiate()
    assert host.writes <= 3600 * SECOND // STEP + 2


def test_what_is_on_disk_is_ahead_of_what_was_sent(host):
    for _ in range(300):
        host.initiate()
        assert host.responder.newest <= TimestampFiles().load(PUBLIC)


def test_an_orderly_end_leaves_what_was_sent(host):
    host.initiate()
    host.side.device.close()
    assert TimestampFiles().load(PUBLIC) == host.responder.newest
    assert host.responder.newest == tai64n.emit(host.clock.unix_ns)


def test_a_process_that_is_killed_over_and_over_does_not_run_ahead_of_the_clock(host):
    for _ in range(50):
        host.start()
        assert host.initiate()
    ahead = tai64n.emit(host.clock.unix_ns + STEP + 50 * NUDGE)
    assert max(host.responder.seen) < ahead


def test_the_time_of_the_clock_is_gone_back_to(host):
    """Once it is past what may have been sent."""
    host.initiate()
    host.start()
    host.clock.pass_time(STEP + SECOND)
    assert host.initiate()
    assert host.responder.newest == tai64n.emit(host.clock.unix_ns)


def test_each_key_has_a_file_of_its_own(host):
    host.initiate()
    before = TimestampFiles().load(PUBLIC)
    host.clock.unix_ns -= YEAR
    host.side.device.set_private_key(OTHER_KEY)
    assert host.initiate() and host.responder.seen[-1] == tai64n.emit(
        host.clock.unix_ns)
    host.start(KEY)
    assert host.initiate() and tai64n.emit(UNIX_START) < TimestampFiles().load(PUBLIC) <= before


def test_nothing_is_written_without_an_initiation(host):
    host.side.device.close()
    assert host.writes == 0 and not paths.timestamp_file(PUBLIC).exists()


# -- the files

STAMP, LATER = tai64n.emit(UNIX_START), tai64n.emit(UNIX_START + SECOND)


def test_a_file_is_the_owners_alone():
    TimestampFiles().keep(PUBLIC, bytes(12), STAMP)
    path = paths.timestamp_file(PUBLIC)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [path] == list(path.parent.iterdir()) and PUBLIC.hex() not in str(path)
    assert path.read_text().startswith(f"@{STAMP.hex()} ")


def test_of_two_tunnels_with_one_key_the_later_timestamp_counts():
    one, other = TimestampFiles(), TimestampFiles()
    other.keep(PUBLIC, bytes(12), LATER)
    one.keep(PUBLIC, bytes(12), STAMP)
    assert one.load(PUBLIC) == LATER
    other.keep(PUBLIC, LATER, STAMP)        # its own, at its end
    assert one.load(PUBLIC) == STAMP


def damage(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)


GOOD = b"@4000000065537d0a00000000 3b5c1d7e\n"


@pytest.mark.parametrize("text", [b"", b"\n", b"junk", bytes(64), b"@" + b"f" * 24 + b" 00000000\n",
                                  GOOD.replace(b"3b", b"3c"), b"x" * 100_000])
def test_a_damaged_file_is_a_warning(host, caplog, text):
    damage(paths.timestamp_file(PUBLIC), text)
    host.start()
    assert caplog.text.count("cannot be used: it is damaged; if the clock was set back") == 1
    assert host.initiate()
    assert TimestampFiles().load(PUBLIC) > host.responder.newest
    assert len(caplog.records) == 1


def test_a_file_that_cannot_be_read_is_a_warning(host, caplog):
    paths.timestamp_file(PUBLIC).mkdir(parents=True)
    host.start()
    for _ in range(300):
        assert host.initiate()
    for what in ("used", "written"):
        assert caplog.text.count(f"cannot be {what}: Is a directory") == 1


def test_a_link_is_not_followed(host, caplog, tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    path = paths.timestamp_file(PUBLIC)
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    path.with_suffix(".new").symlink_to(target)
    host.start()
    assert host.initiate() and "cannot be written" in caplog.text
    assert target.read_text() == "mine"


def test_a_directory_that_cannot_be_made_is_a_warning(host, caplog, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTPUMP_STATE", str(tmp_path / "file"))
    host.start()
    for _ in range(300):
        assert host.initiate()
    assert sum("cannot be written: Not a directory" in line.getMessage()
               for line in caplog.records) == 1


@pytest.mark.parametrize(("ns", "expected"), [
    (0, STAMP), (1, tai64n.emit_after(STAMP, UNIX_START)),
    (SECOND - 1, STAMP[:8] + (SECOND - 1).to_bytes(4, "big")), (SECOND, LATER),
    (YEAR, tai64n.emit(UNIX_START + YEAR))])
def test_a_later_timestamp(ns, expected):
    assert tai64n.later(STAMP, ns) == expected
    assert tai64n.is_valid(expected)


@pytest.mark.parametrize("timestamp", [
    bytes(12), b"\xff" * 12, STAMP[:11], STAMP[:8] + b"\xff" * 4])
def test_what_is_no_time(timestamp):
    assert not tai64n.is_valid(timestamp)
