"""What is in the memory of a supervisor: its private key, but no key of a session or a lane."""

import contextlib
import secrets
from pathlib import Path

import pytest

from fastpump import _core
from fastpump.lab.networks import INSIDE4, fastpump_pair, key_files, tunnel_words
from fastpump.protocol import keys
from support.hosts import is_reachable, until

SLOTS = 64      # that one peer can have used


def tables_of(pid):
    """The shared memory of a tunnel."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):        # it was closed meanwhile
            if str(fd.readlink()).startswith("/memfd:fastpump"):
                found[str(fd.readlink()).split()[1]] = fd
    with found["configuration"].open("rb") as configuration, found["state"].open("r+b") as state:
        return _core.AttachedTables.attach(configuration.fileno(), state.fileno())


def keys_in(tables):
    """All that are there, without the empty ones."""
    return {key for slot in range(SLOTS) for keys_of in (_core.keys_of_session, _core.keys_of_lane)
            for key in keys_of(tables, slot)} - {bytes(32)}


def private_memory(pid):
    """The contents of all that a process could write, but for shared memory."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, mode = line.split()[:2]
            if mode == "rw-p" and "[v" not in line:
                begin, end = (int(address, 16) for address in where.split("-"))
                memory.seek(begin)
                yield memory.read(end - begin)


@pytest.mark.parametrize("backend", _core.BACKENDS)
def test_keys_of_sessions_and_lanes_are_in_the_shared_memory_only(lab, tmp_path, backend):
    with fastpump_pair(lab, tmp_path, "--queues", "2",
                       env={"FASTPUMP_AEAD": backend}) as processes:
        assert is_reachable(lab, INSIDE4["b"])
        until(lambda: lab.status("a")["peers"][0]["transport"] == "lanes")
        for side in "ab":
            pid = processes[side].pid
            tables = tables_of(pid)
            # A session's two keys, and two for each lane.
            in_use = until(lambda tables=tables: len(keys_in(tables)) >= 6 and keys_in(tables))
            contents = list(private_memory(pid))
            private = keys.read_file(tmp_path / f"{side}.key", "private key")
            assert any(private in part for part in contents)    # so keys would be found
            assert not [key.hex() for key in in_use if any(key in part for part in contents)]


@pytest.mark.parametrize("transport", ["wireguard", "lanes"])
@pytest.mark.parametrize("backend", _core.BACKENDS)
def test_nobody_keeps_keys_that_are_out_of_use(lab, tmp_path, backend, transport):
    """The workers' libraries had those of their last messages, and nothing comes after these."""
    key = key_files(tmp_path)
    names = {side: f"fpk{side}{secrets.token_hex(4)}" for side in "ab"}     # wg's socket is by name
    processes = {side: lab.fastpump(side, names[side], *tunnel_words(
        side, key[side], key[other][1], "--queues", "2", "--transport", transport),
        env={"FASTPUMP_AEAD": backend}) for side, other in ("ab", "ba")}
    until(lambda: is_reachable(lab, INSIDE4["b"]))
    used = {side: until(lambda side=side: keys_in(tables_of(processes[side].pid)))
            for side in "ab"}
    for side, other in ("ab", "ba"):
        lab.run(side, "wg", "set", names[side], "peer", key[other][1], "remove")
    for side in "ab":
        pid = processes[side].pid
        until(lambda pid=pid: not keys_in(tables_of(pid)))
        everybody = [pid, *(queue["pid"] for queue in lab.status(side)["queues"])]
        assert len(everybody) == 3
        until(lambda everybody=everybody, used=used[side]: not any(
            key in part for each in everybody for part in private_memory(each) for key in used),
            timeout_s=5)
