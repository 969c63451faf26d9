"""Records of what is to be undone: whole, whatever happens; and nobody else's to lock."""

import errno
import fcntl
import os
import stat
import subprocess
import sys

import pytest

from fastpump.errors import SystemSetupError
from fastpump.host import undo_record
from fastpump.host.undo_record import LOCK, Record, locked

SMALL, LARGE = {"a": 1}, {"a": list(range(5000))}


@pytest.fixture
def record(tmp_path):
    found = Record.take(tmp_path / "x.json")
    yield found
    found.release()


@pytest.mark.parametrize("contents", [
    (SMALL, LARGE, SMALL), (LARGE, SMALL, LARGE), (LARGE, {**LARGE, "b": 2})])
def test_the_content_is_what_was_written_last(record, contents):
    for content in contents:
        record.write(content)
        assert record.read() == content
    assert record.path.read_text().count("\n") == 1


class Killed(BaseException):
    """At some page."""


@pytest.mark.parametrize("before, after", [(SMALL, LARGE), (LARGE, SMALL),
                                           (LARGE, {"b": list(range(4000))})])
def test_whenever_it_is_killed_the_content_is_the_old_or_the_new(record, monkeypatch, before,
                                                                 after):
    """The kernel stops between any two pages of a write."""
    real = os.pwrite
    pages = 0

    def pwrite(fd, data, at):
        nonlocal pages
        if pages == 0:
            raise Killed
        pages -= 1
        return real(fd, data[:100], at)

    monkeypatch.setattr(undo_record.os, "pwrite", pwrite)
    seen = []
    for kill_at in range(3000):
        pages = 1 << 30
        record.write(before)
        pages = kill_at
        try:
            record.write(after)
        except Killed:
            assert record.read() in (before, after)
            seen.append(record.read() == after)
        else:
            break
    assert record.read() == after and seen == sorted(seen) and seen[0] is False and seen[-1]


def test_without_room_it_stays_as_it_was(record, monkeypatch):
    record.write(SMALL)
    real = os.pwrite

    def pwrite(fd, data, at):
        if at > 8192:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:4096], at)

    monkeypatch.setattr(undo_record.os, "pwrite", pwrite)
    with pytest.raises(SystemSetupError, match="No space left"):
        record.write(LARGE)
    assert record.read() == SMALL


@pytest.mark.parametrize("content", [b"[]\n", b"{\n", b"x", b"\xff\xfe{}\n"])
def test_what_is_no_record_is_said(record, caplog, content):
    record.path.write_bytes(content)
    assert record.read() == {} and "cannot be read" in caplog.text
    record.path.write_text("")
    caplog.clear()
    assert record.read() == {} and caplog.text == ""


# -- locks

def test_one_after_the_other(tmp_path):
    """In processes; whoever waits goes on when the file is removed."""
    directory = tmp_path / "run"
    words = [sys.executable, "-c", (
        "import sys, time, pathlib\n"
        "from fastpump.host.undo_record import locked\n"
        "path = pathlib.Path(sys.argv[2])\n"
        "for _ in range(20):\n"
        "    with locked(pathlib.Path(sys.argv[1])):\n"
        "        path.touch(exist_ok=False)\n"
        "        time.sleep(0.001)\n"
        "        path.unlink()\n"), str(directory), str(tmp_path / "one")]
    running = [subprocess.Popen(words) for _ in range(4)]
    assert [each.wait(60) for each in running] == [0] * 4
    assert not directory.exists()


def test_nobody_else_can_have_the_lock(tmp_path):
    with locked(tmp_path / "run"):
        path = tmp_path / "run" / LOCK
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not path.parent.exists()


def test_a_directory_that_somebody_has_locked_does_not_matter(tmp_path):
    """Anybody may open it."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with locked(tmp_path):
            pass
    finally:
        os.close(fd)


def test_a_lock_of_a_killed_process_is_free(tmp_path):
    (tmp_path / LOCK).touch(mode=0o600)
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_what_holds_records_is_kept(tmp_path):
    (tmp_path / "x.json").touch()
    with locked(tmp_path):
        pass
    assert (tmp_path / "x.json").exists()
