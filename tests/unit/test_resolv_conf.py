"""/etc/resolv.conf as a plain file: what tunnels make of it, and that it comes back as it was."""

import errno
import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump import paths
from fastpump.errors import SystemSetupError
from fastpump.host import dns, resolv_conf
from fastpump.host.dns import Way
from fastpump.host.resolv_conf import Content, Tunnel
from fastpump.host.undo_record import Record, namespace_cookie

OLD = b"# by hand\nnameserver 192.0.2.1\nsearch lan\noptions timeout:1 trust-ad\n"


@pytest.fixture
def etc(tmp_path, monkeypatch):
    """A directory for the file."""
    made = tmp_path / "etc"
    made.mkdir()
    monkeypatch.setattr(resolv_conf, "RESOLV_CONF", made / "resolv.conf")
    monkeypatch.setattr(dns, "RESOLV_CONF", made / "resolv.conf")
    return made


@pytest.fixture
def file(etc):
    path = etc / "resolv.conf"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def tunnels():
    """A function that makes the record of a tunnel, living or killed; its path."""
    held = []

    def make(name, is_alive, namespace=None):
        record = Record.take(paths.runtime_dir(namespace) / f"{name}.json")
        record.write({"namespace": namespace_cookie() + (namespace is not None)})
        if is_alive:
            held.append(record)
        else:
            record.release()
        return record.path

    yield make
    for record in held:
        record.release()


def record(name):
    return paths.runtime_dir() / f"{name}.json"


def settings(file):
    return [line for line in file.read_text(
        errors="replace").splitlines() if not line.startswith("#")]


# -- what is in it

@pytest.mark.parametrize("tunnels, expected", [
    ([(["10.9.0.2", "fd00:9::2"], ["a.test", "b.test"])],
     ["nameserver 10.9.0.2", "nameserver fd00:9::2", "search a.test b.test"]),
    ([(["10.9.0.2"], [])], ["nameserver 10.9.0.2"]),
    ([([], ["a.test"])], ["nameserver 192.0.2.1", "search a.test"]),
    ([(["10.9.0.2"], ["a.test"]), (["10.8.0.2"], [])], ["nameserver 10.8.0.2"]),
    ([(["10.9.0.2"], []), ([], ["b.test"])], ["nameserver 10.9.0.2", "search b.test"]),
    ([([], ["a.test"]), (["10.8.0.2"], [])], ["nameserver 10.8.0.2"]),
], ids=["both", "servers", "search", "the last one wins", "search comes later", "and before"])
def test_what_tunnels_make_of_the_file(file, tunnels, expected):
    """Their servers instead of others; options stay, without the trust in other servers."""
    for number, (servers, search) in enumerate(tunnels):
        resolv_conf.add(record(f"wg{number}"), servers, search)
    before = [line for line in expected if not line.startswith("search")]
    search = [line for line in expected if line.startswith("search")]
    assert sorted(settings(file)) == sorted([*before, *search, "options timeout:1"])
    assert b"\n#|# by hand\n#|nameserver 192.0.2.1\n" in file.read_bytes()


def test_other_servers_of_a_tunnel_take_the_place_of_its_first_ones(file):
    resolv_conf.add(record("wg0"), ["10.9.0.2"], [])
    resolv_conf.add(record("wg1"), ["10.8.0.2"], [])
    resolv_conf.add(record("wg0"), ["10.9.0.3"], ["a.test"])
    assert settings(file)[:1] == ["nameserver 10.8.0.2"]
    assert resolv_conf.remove(record("wg1"))
    assert settings(file) == ["nameserver 10.9.0.3", "search a.test", "options timeout:1"]


TEXTS = st.one_of(st.none(), st.binary(), st.lists(st.sampled_from(
    [b"nameserver 192.0.2.1\n", b"search lan\r\n", b"options a trust-ad", b"#|\n", b"\n", b"#|x",
     b" options b\n", b'#before {"link": null, "exists": true}\n'])).map(b"".join))
TUNNELS = st.lists(st.builds(
    Tunnel, st.text(max_size=9), st.sampled_from([(), ("10.9.0.2",), ("fd00::2", "192.0.2.9")]),
    st.sampled_from([(), ("a.test",), ("\u00e9.test", "b.test")])), min_size=1, max_size=3)


@given(TUNNELS, st.none() | st.text(min_size=1), TEXTS)
def test_any_content_is_found_again(tunnels, link, old):
    content = Content(tuple(tunnels), link, old)
    assert Content.parse(content.render()) == content


@given(st.binary() | TEXTS.map(lambda text: resolv_conf._HEAD + (text or b"")))
def test_other_content_is_none_of_ours(text):
    assert Content.parse(text) is None


def test_every_changed_byte_of_a_setting_is_noticed():
    """Whoever changes the comments changes what will be restored."""
    text = Content((Tunnel("/run/1/wg0.json", ("10.9.0.2",)),), None, OLD).render()
    start, end = text.index(b"nameserver"), text.index(b"#before")
    for at in range(start, end):
        assert Content.parse(text[:at] + bytes([text[at] ^ 1]) + text[at + 1:]) is None


# -- and back

def regular(file):
    file.write_bytes(OLD)
    file.chmod(0o640)
    os.chown(file, 12, 34)


def without_a_last_newline(file):
    file.write_bytes(b"nameserver 192.0.2.1\r\n\n\xff#|x")


def empty(file):
    file.touch()


def missing(_file):
    """There was none."""


def link(file):
    (file.parent / "other").write_bytes(OLD)
    file.symlink_to("..//etc/./other")


def dangling(file):
    file.symlink_to("nowhere")


def picture(file):
    """All that is to come back."""
    if file.is_symlink():
        return os.readlink(file), file.exists() and file.read_bytes()   # noqa: PTH115
    if not file.exists():
        return None
    found = file.stat()
    return file.read_bytes(), found.st_mode, found.st_uid, found.st_gid


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("make", [regular, without_a_last_newline, empty, missing, link, dangling],
                         ids=lambda each: each.__name__)
def test_in_whatever_order_tunnels_end_the_file_is_what_it_was(etc, make, order):
    file = etc / "resolv.conf"
    make(file)
    before = picture(file)
    for number in range(3):
        resolv_conf.add(record(f"wg{number}"), [f"10.{number}.0.1"], [])
        assert settings(file)[0] == f"nameserver 10.{number}.0.1"
    left = list(range(3))
    for number in order:
        assert resolv_conf.remove(record(f"wg{number}"))
        left.remove(number)
        if left:
            assert settings(file)[0] == f"nameserver 10.{left[-1]}.0.1"
    assert picture(file) == before
    assert [path.name for path in etc.iterdir() if path.name.startswith(".")] == []


def test_the_file_is_never_half_written(file, monkeypatch):
    """Whoever reads it has the old one or the new one."""
    seen = []
    rename = Path.rename

    def look(new, target):
        seen.append((file.read_bytes(), new.read_bytes()))
        return rename(new, target)

    monkeypatch.setattr(Path, "rename", look)
    resolv_conf.add(record("wg0"), ["10.9.0.2"], [])
    resolv_conf.remove(record("wg0"))
    assert [text == OLD for pair in seen for text in pair] == [True, False, False, True]


@pytest.mark.parametrize("to_be_kept", [b"nameserver 198.51.100.1\n", None])
def test_what_another_program_made_of_it_stays(file, caplog, to_be_kept):
    resolv_conf.add(record("wg0"), ["10.9.0.2"], [])
    if to_be_kept is None:      # an editor's change
        to_be_kept = file.read_bytes().replace(b"server 10.9.0.2", b"server 10.9.0.3")
    file.write_bytes(to_be_kept)
    dns.unset_dns(Way("file", 0, True), record("wg0"))
    assert file.read_bytes() == to_be_kept
    assert caplog.messages == [
        f"{file} was changed by another program meanwhile, and stays as it is"]


def test_what_another_program_made_of_it_is_what_the_next_tunnel_restores(file):
    resolv_conf.add(record("wg0"), ["10.9.0.2"], [])
    file.write_bytes(b"nameserver 198.51.100.1\n")
    resolv_conf.add(record("wg1"), ["10.8.0.2"], [])
    assert not resolv_conf.remove(record("wg0"))
    assert resolv_conf.remove(record("wg1"))
    assert file.read_bytes() == b"nameserver 198.51.100.1\n"


def test_nothing_is_said_of_what_was_not_done(file, caplog):
    """Its process was killed between its record and the file; or setting it has failed."""
    dns.unset_dns(Way("file"), record("wg0"))
    assert file.read_bytes() == OLD and not caplog.messages


# -- where it cannot be replaced

def refusing(number):
    def rename(*_):
        raise OSError(number, os.strerror(number))
    return rename


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EROFS, errno.EACCES])
def test_a_mount_point_is_overwritten(file, monkeypatch, number):
    monkeypatch.setattr(Path, "rename", refusing(number))
    before, inode = picture(file), file.stat().st_ino
    for servers in (["10.9.0.2"] * 20, ["10.9.0.3"]):     # a longer one, a shorter one
        resolv_conf.add(record("wg0"), servers, [])
        assert settings(file) == [*(f"nameserver {each}" for each in servers), "options timeout:1"]
    assert resolv_conf.remove(record("wg0"))
    assert picture(file) == before and file.stat().st_ino == inode


def test_the_file_behind_a_link_is_overwritten_where_the_link_cannot_be_replaced(etc, monkeypatch):
    file = etc / "resolv.conf"
    link(file)
    before = picture(file)
    monkeypatch.setattr(Path, "rename", refusing(errno.EROFS))
    resolv_conf.add(record("wg0"), ["10.9.0.2"], [])
    assert file.is_symlink() and settings(file)[0] == "nameserver 10.9.0.2"
    assert resolv_conf.remove(record("wg0"))
    assert picture(file) == before


def test_an_overwritten_file_is_whole_when_the_process_is_killed(file, monkeypatch):
    """Between the write and the cut."""
    monkeypatch.setattr(Path, "rename", refusing(errno.EBUSY))
    resolv_conf.add(record("wg0"), ["10.9.0.2"], [])
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda *_: None)
        resolv_conf.remove(record("wg0"))
    assert file.read_bytes().rstrip(b"\n") == OLD.rstrip(b"\n")


@pytest.mark.parametrize("number, what_to_do", [
    (errno.EPERM, "if it is immutable (lsattr {0}), `chattr -i {0}`"),
    (errno.EROFS, "make it writable, by a mount of its own for instance"),
    (errno.ENOSPC, "see to it that root may write it")])
def test_a_file_that_cannot_be_changed_is_an_error_that_says_what_to_do(
        file, monkeypatch, number, what_to_do):
    monkeypatch.setattr(Path, "rename", refusing(number))
    monkeypatch.setattr(os, "pwrite", refusing(number))
    with pytest.raises(SystemSetupError) as caught:
        resolv_conf.add(record("wg0"), ["10.9.0.2"], [])
    assert str(caught.value) == (
        f"{file} cannot be changed, which DNS needs: {os.strerror(number)}; "
        f"{what_to_do.format(file)}, or leave out DNS")
    assert file.read_bytes() == OLD and os.listdir(file.parent) == [file.name]  # noqa: PTH208


# -- tunnels that are gone

def test_what_nobody_undoes_any_more_is_undone_by_the_next_tunnel(file, tunnels, caplog):
    """After a reboot there is no record. In another namespace, which only a living process can
    be in, nobody finds it."""
    elsewhere = paths.namespace_inode() + 1
    kept = [tunnels("alive", True), tunnels("far", True, elsewhere), tunnels("killed", False)]
    gone = [record("reboot"), tunnels("container", False, elsewhere)]
    for path in (*kept, *gone):
        resolv_conf.add(path, ["10.9.0.2"], [])
    assert not resolv_conf.forget_gone("killed")
    assert [each.record for each in Content.parse(file.read_bytes()).tunnels] == list(
        map(str, kept))
    assert caplog.messages == [
        f"{file} had the DNS servers of tunnels that are gone (reboot, container): removed"]
    assert not resolv_conf.forget_gone("reboot")
    for path in kept:
        assert resolv_conf.remove(path)
    assert file.read_bytes() == OLD


def test_the_tunnel_that_is_asked_for_may_be_the_one_that_is_gone(file):
    resolv_conf.add(record("wg0"), ["10.9.0.2"], [])
    assert resolv_conf.forget_gone("wg0") and file.read_bytes() == OLD


def test_a_record_can_be_read_by_older_eyes(file):
    """The format of a line stays: the process that reads it may be of a later version."""
    resolv_conf.add(Path("/run/fastpump/1/wg0.json"), ["10.9.0.2"], ["a.test"])
    (line,) = [line for line in file.read_text().splitlines() if line.startswith("#tunnel ")]
    assert json.loads(line.removeprefix("#tunnel ")) == {
        "record": "/run/fastpump/1/wg0.json", "servers": ["10.9.0.2"], "search": ["a.test"]}
