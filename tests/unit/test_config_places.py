"""Where configuration files are looked for, what they are called, and what is read of them."""

import os
import re
from pathlib import Path

import pytest

from fastpump.config import file as config_file
from fastpump.config.file import FileConfig, parse
from fastpump.config.file_emit import emit
from fastpump.errors import ConfigError
from support.configfiles import SECRET, WHOLE, A, public


@pytest.fixture
def search(tmp_path, monkeypatch):
    places = tmp_path / "fastpump", tmp_path / "wireguard"
    for place in places:
        place.mkdir()
    monkeypatch.setattr(config_file, "SEARCH", places)
    return places


def test_names_are_looked_up_in_our_directory_first(search):
    ours, theirs = (place / "wg0.conf" for place in search)
    theirs.touch()
    assert config_file.find("wg0") == theirs
    ours.touch()
    assert config_file.find("wg0") == ours
    (search[1] / "a=b+c.conf").touch()
    assert config_file.find("a=b+c") == search[1] / "a=b+c.conf"


def test_a_missing_file_is_told_with_its_places(search):
    with pytest.raises(ConfigError) as caught:
        config_file.find("wg0")
    for place in search:
        assert str(place / "wg0.conf") in str(caught.value)
    with pytest.raises(ConfigError, match=r"write \./wg0\.conf"):
        config_file.find("wg0.conf")
    for word in ("", "sixteen-letters-", "wg0\n", "/nonexistent/wg0.conf", "x" * 5000, "./\0"):
        with pytest.raises(ConfigError):
            config_file.find(word)


def test_paths(search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wg1.conf").touch()
    assert config_file.find("./wg1.conf") == Path("wg1.conf")
    assert config_file.find(str(tmp_path / "wg1.conf")) == tmp_path / "wg1.conf"
    for name in ("wg1.txt", "wg 1.conf", ".conf", "sixteen-letters-.conf", "wg1.conf\n"):
        Path(name).touch()
        with pytest.raises(ConfigError, match=r"must be NAME\.conf"):
            config_file.find(f"./{name}")


def test_what_cannot_be_looked_at_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(config_file, "SEARCH", (tmp_path / ("x" * 300), tmp_path))
    with pytest.raises(ConfigError, match=r"cannot access .*: File name too long"):
        config_file.find("wg0")


@pytest.mark.parametrize(("path", "name"), [
    ("/etc/wireguard/wg0.conf", "wg0"), ("a=b+c_d.e.conf", "a=b+c_d.e"), ("x.conf.conf", "x.conf"),
    ("fifteen-letters.conf", "fifteen-letters"),
])
def test_interface_names(path, name):
    assert config_file.interface_name(Path(path)) == name


@pytest.mark.parametrize("path", ["wg0", "wg0.CONF", "..conf", "...conf", "w\u0121.conf", "/"])
def test_bad_interface_names(path):
    with pytest.raises(ConfigError, match="must be "):
        config_file.interface_name(Path(path))


def write(path, data, mode=0o600):
    path.touch()
    path.chmod(mode)
    path.write_bytes(data)
    return path


def test_a_file_is_loaded(tmp_path):
    path = tmp_path / "wg0.conf"
    for data in (WHOLE.encode(), b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode()):
        config = config_file.load(write(path, data))
        assert config == parse(WHOLE, "wg0.conf")
        assert config.warnings == ()
    with pytest.raises(ConfigError, match=re.escape(f"{path}:2: invalid MTU 'x'")):
        config_file.load(write(path, b"[Interface]\nMTU = x"))


def test_comments_and_commands_may_have_any_bytes(tmp_path):
    """And are written as they were."""
    data = b"# B\xfcro\n[Interface]\nPostUp = echo \xfc # \xff\n"
    config = config_file.load(write(tmp_path / "wg0.conf", data))
    (command,) = config.post_up
    assert os.fsencode(command) == b"echo \xfc # \xff"
    assert emit(config).encode("utf-8", "surrogateescape") == data.partition(b"\n")[2]
    for line in (b"MTU = \xfc", b"Attach = \xfc", b"\xfc = 1", b"[\xfc]"):
        with pytest.raises(ConfigError, match=r"wg0\.conf:2: .* UTF-8"):
            config_file.load(write(tmp_path / "wg0.conf", b"[Interface]\n" + line))


@pytest.mark.parametrize(("text", "mode", "warned"), [
    (f"[Interface]\nPrivateKey = {SECRET}", 0o604, True),
    (f"[Interface]\nPrivateKey = {SECRET}", 0o602, True),
    (f"[Interface]\nPrivateKey = {SECRET}", 0o640, False),
    (f"[Peer]\n{public(A)}PresharedKey = {SECRET}", 0o644, True),
    (f"[Peer]\n{public(A)}", 0o644, False),
])
def test_a_warning_about_keys_that_others_can_read(tmp_path, text, mode, warned):
    config = config_file.load(write(tmp_path / "wg0.conf", text.encode(), mode))
    assert ["chmod 600" in warning for warning in config.warnings] == [True] * warned


def test_strange_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    write(tmp_path / "binary", b"[Interface]\n\xff\xfe")
    write(tmp_path / "big", b"#" * (config_file.MAX_FILE_LEN + 1))
    for name, complaint in (("fifo", "regular file"), (".", "regular file"),
                            ("missing", "cannot read"), ("binary", "binary:2: .*UTF-8"),
                            ("big", "at most 16 MiB")):
        with pytest.raises(ConfigError, match=complaint):
            config_file.load(tmp_path / name)
    big = write(tmp_path / "big", b"#" * config_file.MAX_FILE_LEN)
    assert config_file.load(big) == FileConfig()
