"""PreUp, PostUp, PreDown and PostDown of a file: when they run, as what, and what becomes of them
when a tunnel does not end by `down`."""

import os
import signal
import sys

import pytest

from fastpump.lab.networks import INSIDE4, OUTSIDE4
from support.hosts import interface_names, is_reachable, make_program, pids_in, until
from support.quick import ADDRESSES, FAR, FULL, NEAR, a_public_key

# As in wg-quick(8), but for nft: only what the tunnel sends leaves this host.
KILL_SWITCH = (
    "PostUp = nft \"add table inet kill_$(wg show %i fwmark); "
    "add chain inet kill_$(wg show %i fwmark) out { type filter hook output priority 0; }; "
    "add rule inet kill_$(wg show %i fwmark) out oifname != %i "
    "meta mark != $(wg show %i fwmark) drop\"",
    "PreDown = nft delete table inet kill_$(wg show %i fwmark)")


def kill(quick, number=signal.SIGKILL):
    os.kill(quick.pid, number)
    until(lambda: not pids_in(quick.lab, "a"))


def noting(quick, kind, text="$INTERFACE"):
    return f"{kind} = echo {kind} {text} >> {quick.directory}/hooks"


# -- ends that nobody asked for

@pytest.mark.parametrize("then", ["down", "up"])
def test_the_kill_switch_of_a_killed_tunnel_goes(quick, lab, then):
    quick.write(ADDRESSES, *KILL_SWITCH, noting(quick, "PreDown"), noting(quick, "PostDown"),
                peer=(FULL,))
    before = quick.state()
    quick("up")
    running = quick.state()
    assert not is_reachable(lab, OUTSIDE4["b"], timeout_s=1) and is_reachable(lab, FAR[0])
    kill(quick)
    quick(then)
    if then == "up":
        assert quick.state() == running and is_reachable(lab, FAR[0])
        quick("down")
    assert quick.state() == before and is_reachable(lab, OUTSIDE4["b"])
    assert quick.hooks() == [f"PreDown {quick.name}", f"PostDown {quick.name}"] * (
        2 if then == "up" else 1)


@pytest.mark.parametrize("file", ["other", "broken", "gone"])
def test_what_runs_is_what_the_file_said_that_was_up(quick, file):
    quick.write(ADDRESSES, noting(quick, "PreDown"))
    before = quick.state()
    quick("up")
    quick.write(ADDRESSES, noting(quick, "PreDown", "reloaded"), noting(quick, "PostDown"))
    quick("reload")
    kill(quick)
    if file == "gone":
        quick.path.unlink()
    else:
        quick.write(noting(quick, "PostDown", "another"), *["MTU = 1"] * (file == "broken"))
    quick("down")
    assert quick.hooks() == ["PreDown reloaded", f"PostDown {quick.name}"]
    assert quick.state() == before
    quick.fails("down")
    assert len(quick.hooks()) == 2


def test_a_running_tunnel_without_its_file_ends_by_what_it_said(quick):
    quick.write(ADDRESSES, noting(quick, "PreDown"), noting(quick, "PostDown"))
    before = quick.state()
    quick("up")
    quick.path.unlink()
    quick("down")
    assert quick.hooks() == [f"PreDown {quick.name}", f"PostDown {quick.name}"]
    assert quick.state() == before


@pytest.mark.parametrize("how", ["deleted", "SIGTERM"])
def test_a_tunnel_that_ended_by_itself_leaves_its_commands_to_down(quick, lab, how):
    quick.write(ADDRESSES, "DNS = 10.9.0.2", *KILL_SWITCH, noting(quick, "PostDown"), peer=(FULL,))
    before = quick.state()
    quick("up")
    if how == "deleted":
        lab.ip("a", "link", "delete", quick.name)
        until(lambda: not pids_in(lab, "a"))
    else:
        kill(quick, signal.SIGTERM)
    left = quick.state()
    assert {each: left[each] for each in ("-4 rule", "-6 rule")} == {
        each: before[each] for each in ("-4 rule", "-6 rule")}
    assert not list(quick.records.iterdir()) and "kill_0xca6c" in left["nft"]
    assert "ended by itself" in quick("down").stderr
    assert quick.state() == before and quick.hooks() == [f"PostDown {quick.name}"]


IMPATIENTLY = ("import sys\nfrom fastpump.cli import main, quick\nquick.END_TIMEOUT_S = 0.1\n"
               "sys.exit(main.main())")


@pytest.mark.parametrize("then", ["down", "up"])
def test_post_down_is_left_to_do_when_down_gave_up(quick, lab, then):
    """What the file says at that `down`, and not before the tunnel has ended."""
    gate = quick.directory / "gate"
    os.mkfifo(gate)
    resolvconf = quick.directory / "bin" / "resolvconf"
    resolvconf.rename(resolvconf.with_name("quickly"))
    make_program(quick.directory / "bin", "resolvconf", (
        f'#!/bin/sh\n[ "$1" = -a ] || read line < {gate}\nexec {resolvconf.parent}/quickly "$@"\n'))
    quick.write(ADDRESSES, "DNS = 10.9.0.2", noting(quick, "PreDown"),
                noting(quick, "PostDown", "old"))
    before = quick.state()
    quick("up")
    quick.write(ADDRESSES, "DNS = 10.9.0.2", noting(quick, "PreDown"), noting(quick, "PostDown"))
    with gate.open("r+b", buffering=0) as opener:
        pid = quick.pid
        result = lab.run("a", sys.executable, "-c", IMPATIENTLY, "down", str(quick.path),
                         check=False)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == (
            f"fastpump: {quick.name} has not ended within 0.1 s; its process is {pid}; once it has "
            f"ended, `fastpump down {quick.name}` runs PostDown")
        until(lambda: not list((quick.directory / "run").rglob(f"{quick.name}.sock")))
        assert "it is just ending" in quick.fails("down")
        assert quick.hooks() == [f"PreDown {quick.name}"]
        opener.write(b"open\n")
        until(lambda: not pids_in(lab, "a"))
        quick(then)
        assert quick.hooks() == [f"PreDown {quick.name}", f"PostDown {quick.name}"]
        if then == "up":
            opener.write(b"open\n")
            quick("down")
    assert quick.state() == before
    assert "is not up" in quick.fails("down")


def test_the_commands_of_a_renamed_tunnel_run_once(quick, lab):
    """Its record has the name that it was brought up as."""
    quick.write(ADDRESSES, noting(quick, "PreDown"), noting(quick, "PostDown"))
    before = quick.state()
    quick("up")
    with interface_names(1) as (name,):
        lab.ip("a", "link", "set", quick.name, "down")
        lab.ip("a", "link", "set", quick.name, "name", name)
        until(lambda: list((quick.directory / "run").rglob(f"{name}.sock")))
        lab.run("a", *quick.words("down"), name)
    assert quick.hooks() == [f"PreDown {name}", f"PostDown {name}"]
    assert quick.state() == before
    assert "is not up" in quick.fails("down")


def test_a_tunnel_whose_start_fails_has_never_been_up(quick):
    quick.write(ADDRESSES, "PostUp = false", noting(quick, "PreDown"), noting(quick, "PostDown"))
    before = quick.state()
    quick.fails("up")
    assert quick.state() == before
    assert "is not up" in quick.fails("down") and not (quick.directory / "hooks").exists()


def test_a_command_that_fails_after_a_crash_keeps_none_from_running(quick):
    quick.write(ADDRESSES, "PreDown = ip link show %i", noting(quick, "PreDown"),
                noting(quick, "PostDown"))
    before = quick.state()
    quick("up")
    kill(quick)
    assert "failed with status 1" in quick("down").stderr
    assert quick.hooks() == [f"PreDown {quick.name}", f"PostDown {quick.name}"]
    assert quick.state() == before


def test_what_wg_set_meanwhile_is_what_the_commands_see_after_a_crash(quick, lab):
    quick.write(ADDRESSES, "ListenPort = 31000", "FwMark = 8", noting(
        quick, "PostDown", "$(wg show %i listen-port) $(wg show %i fwmark)"))
    quick("up")
    lab.run("a", "wg", "set", quick.name, "listen-port", "31777", "fwmark", "9")
    kill(quick)
    quick("down")
    assert quick.hooks() == ["PostDown 31777 0x9"]


def test_commands_that_others_can_have_written_are_not_run(quick):
    quick.write(ADDRESSES, noting(quick, "PreDown"))
    quick("up")
    (record,) = (quick.directory / "run").rglob(f"{quick.name}.json")
    assert record.stat().st_mode & 0o777 == 0o600
    kill(quick)
    record.chmod(0o602)
    assert "can be written by others" in quick("down").stderr
    assert not record.exists() and not (quick.directory / "hooks").exists()


# -- PreUp

def test_pre_up_gives_the_interface_its_key(quick, lab):
    """And what else wg sets then stays, where the file does not say otherwise."""
    secret = quick.directory / "secret"
    secret.write_text(quick.private)
    quick.write(
        ADDRESSES, f"PreUp = wg set %i private-key <(cat {secret}) fwmark 0x77 listen-port 4711",
        f"PreUp = wg set %i peer {a_public_key(1)} allowed-ips 10.66.0.0/16",
        f"PreUp = wg set %i peer {quick.public_b} allowed-ips 10.67.0.0/16", peer=(FULL,))
    quick.path.write_text(quick.path.read_text().replace(f"PrivateKey = {quick.private}\n", ""))
    before = quick.state()
    quick("up")
    assert lab.run("a", "wg", "show", quick.name, "private-key").stdout.strip() == quick.private
    assert lab.status("a")["listen_port"] == 4711
    assert quick.routes("119") == {"default"}       # 0x77
    assert "10.66.0.0/16" in quick.routes() and "10.67.0.0/16" not in quick.routes()
    assert all(is_reachable(lab, host) for host in (INSIDE4["b"], *FAR))
    quick("down")
    assert quick.state() == before


def test_the_file_comes_after_pre_up(quick, lab):
    other = f"<(echo {a_public_key(2)})"
    quick.write(ADDRESSES, "ListenPort = 4242", "FwMark = 9",
                f"PreUp = wg set %i private-key {other} listen-port 4711 fwmark 8")
    quick("up")
    assert lab.run("a", "wg", "show", quick.name, "private-key").stdout.strip() == quick.private
    assert lab.run("a", "wg", "show", quick.name, "fwmark").stdout == "0x9\n"
    assert lab.status("a")["listen_port"] == 4242 and is_reachable(lab, INSIDE4["b"])


def test_one_file_serves_all_sides_also_if_pre_up_sets_the_key(quick, lab):
    secret = quick.directory / "secret"
    secret.write_text(quick.private)
    own = lab.run("a", "sh", "-c", f"wg pubkey < {secret}").stdout.strip()
    quick.write(ADDRESSES, f"PreUp = wg set %i private-key {secret}",
                more=("[Peer]", f"PublicKey = {own}", "AllowedIPs = 10.66.0.0/16"))
    quick.path.write_text(quick.path.read_text().replace(f"PrivateKey = {quick.private}\n", ""))
    quick("up")
    quick.write(ADDRESSES, "MTU = 1400", f"PreUp = wg set %i private-key {secret}",
                more=("[Peer]", f"PublicKey = {own}", "AllowedIPs = 10.66.0.0/16"))
    quick.path.write_text(quick.path.read_text().replace(f"PrivateKey = {quick.private}\n", ""))
    assert quick("reload").stdout == "changed: the MTU\n"
    assert set(quick.peers()) == {quick.public_b} and is_reachable(lab, INSIDE4["b"])


def test_a_reload_has_to_wait_for_the_end_of_pre_up(quick, lab):
    started, go_on = (quick.directory / name for name in ("started", "go_on"))
    quick.write(ADDRESSES,
                f"PreUp = touch {started}; until [ -e {go_on} ]; do sleep 0.02; done")
    up = lab.spawn("a", *quick.words("up"), str(quick.path))
    try:
        until(started.exists)
        assert "not up yet" in quick.fails("reload")
        assert not quick.peers()
    finally:
        go_on.touch()
    said = up.communicate(timeout=60)[0]
    assert up.returncode == 0, said
    assert set(quick.peers()) == {quick.public_b} and is_reachable(lab, INSIDE4["b"])
    assert quick("reload").stdout == "changed: nothing\n"


def test_names_are_looked_up_after_pre_up(quick, lab):
    """PreUp may be what makes them known."""
    hosts = quick.directory / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    quick.write(ADDRESSES, f"PreUp = echo {OUTSIDE4['b']} b.test >> {hosts}")
    quick.path.write_text(quick.path.read_text().replace(f"Endpoint = {OUTSIDE4['b']}:",
                                                         "Endpoint = b.test:"))
    quick.prefix = ["sh", "-euc", f'mount --bind {hosts} /etc/hosts; exec "$@"', "sh"]
    quick("up")
    assert is_reachable(lab, INSIDE4["b"])


def test_a_pre_up_that_is_stopped_leaves_nothing(quick):
    before = quick.state()
    quick.write(ADDRESSES, f"PreUp = touch {quick.directory}/there; kill $PPID; "
                           "exec sleep 1 > /dev/null 2>&1", peer=(FULL,))
    assert quick("up", check=False).returncode != 0
    assert (quick.directory / "there").exists()
    until(lambda: quick.state() == before)


# -- as what they run

def test_they_run_as_wg_quick_runs_them(quick, lab):
    """bash, errexit, pipefail, extglob; $INTERFACE; the C locale; a subshell each."""
    log = quick.directory / "log"
    quick.write(ADDRESSES, f"PreUp = word=aab; echo ${{word##+(a)}} $INTERFACE $LC_ALL >> {log}",
                f"PostUp = word=$LC_ALL; echo \"[${{word}}]$CONFIG_FILE\" >> {log}",
                "PostDown = false; true", peer=(NEAR,))
    quick("up")
    assert log.read_text() == f"b {quick.name} C\n[C]{quick.path}\n"
    assert "failed with status 1" in quick.fails("down")
    for command in ("false | true", "false; true"):
        before = quick.state()
        quick.write(ADDRESSES, f"PreUp = {command}")
        assert "failed with status 1" in quick.fails("up")
        assert quick.state() == before
