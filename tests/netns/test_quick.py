"""`fastpump up`, `down`, `reload` and `check`: what they do to a host, and undo."""

import json
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastpump.config.file import parse, tunnel_config
from fastpump.errors import ConfigError
from fastpump.lab.networks import INSIDE4, INSIDE6
from fastpump.protocol import keys
from fastpump.ratelimit import emit
from support.hosts import (
    FASTPUMP,
    Pings,
    handshakes,
    interface_names,
    is_reachable,
    pids_in,
    transfer,
    until,
)
from support.quick import ADDRESSES, FAR, FULL, NEAR, a_public_key

# -- up and down

# Of distributions and administrators, in place of the kernel's defaults.
STRICT = {"net.ipv4.conf.all.rp_filter": 1, "net.ipv4.conf.all.promote_secondaries": 1,
          "net.ipv4.conf.all.arp_ignore": 1, "net.ipv6.conf.default.accept_dad": 0}


@pytest.mark.parametrize("settings", [{}, STRICT], ids=["defaults", "strict"])
def test_a_full_tunnel_comes_and_goes_without_a_trace(quick, lab, settings):
    for side in "ab":
        lab.sysctl(side, settings)
    quick.write(ADDRESSES, "DNS = 10.9.0.2, example.net", peer=(FULL,))
    before = quick.state()
    for _ in range(2):
        quick("up")
        assert (quick.records / quick.name).read_text() == (
            "nameserver 10.9.0.2\nsearch example.net\n")
        for host in (INSIDE4["b"], INSIDE6["b"], *FAR):
            assert is_reachable(lab, host)
        assert transfer(lab, "a", FAR[0], 4 << 20)
        (link,) = json.loads(lab.ip("a", "-json", "link", "show", quick.name))
        assert link["mtu"] == 1420
        quick("down")
        assert quick.state() == before


def test_a_routing_table_in_use_is_not_touched(quick, lab):
    lab.ip("a", "route", "add", "10.50.0.0/16", "dev", "wire", "table", "51820")
    lab.ip("a", "rule", "add", "to", "10.50.0.0/16", "lookup", "51820", "priority", "100")
    quick.write(ADDRESSES, peer=(FULL,))
    before = quick.state()
    quick("up")
    assert quick.routes("51820") == set() and "default" in quick.routes("51821")
    assert all(is_reachable(lab, host) for host in FAR)
    quick("down")
    assert quick.state() == before


@pytest.mark.parametrize("lines, peer, expected", [
    (["FwMark = 0x77"], [FULL], {"0x77": {"default"}, "main": {"10.9.0.0/24", "fd00:9::/64"}}),
    ([], ["AllowedIPs = 10.9.0.2/32, 10.77.0.0/16, 0.0.0.0/0"],
     {"51820": {"default"}, "main": {"10.9.0.0/24", "10.9.0.2", "10.77.0.0/16", "fd00:9::/64"}}),
    (["Table = off"], [FULL], {"main": {"10.9.0.0/24", "fd00:9::/64"}, "51820": set()}),
    (["Table = 123"], [FULL], {"main": {"10.9.0.0/24", "fd00:9::/64"}, "123": {"default"}}),
    (["Table = 123"], ["AllowedIPs = 10.9.0.2/32, 10.77.0.0/16"],
     {"main": {"10.9.0.0/24", "fd00:9::/64"}, "123": {"10.9.0.2", "10.77.0.0/16"}}),
], ids=["mark", "default4", "off", "table", "table without default"])
def test_routes_go_where_the_file_says(quick, lab, lines, peer, expected):
    quick.write(ADDRESSES, *lines, peer=peer)
    before = quick.state()
    quick("up")
    assert {table: quick.routes(table) for table in expected} == expected
    if lines[:1] != ["FwMark = 0x77"] and lines:
        assert {each: quick.state()[each] for each in ("-4 rule", "-6 rule", "nft")} == {
            each: before[each] for each in ("-4 rule", "-6 rule", "nft")}
    assert is_reachable(lab, INSIDE4["b"])
    quick("down")
    assert quick.state() == before


@pytest.mark.parametrize("wire_mtu, lines, expected", [
    ("1500", (), 1420), ("1400", (), 1320), ("1400", ("MTU = 1380",), 1380)])
def test_the_mtu_fits_the_way_to_the_peer(quick, lab, wire_mtu, lines, expected):
    lab.ip("a", "link", "set", "wire", "mtu", wire_mtu)
    quick.write(ADDRESSES, *lines)
    quick("up")
    assert lab.status("a")["mtu"] == expected
    assert is_reachable(lab, INSIDE4["b"])


def hook_lines(*failing):
    """All hooks, twice each: they write down whether the interface is there."""
    lines = []
    for kind in ("PreUp", "PostUp", "PreDown", "PostDown"):
        for number in "12":
            lines.append(f"{kind} = (ip link show %i && echo {kind}{number} %i || echo {kind}"
                         f"{number} none) 2>&1 | tail -n 1 >> $HOOKS")
            if f"{kind}{number}" in failing:
                lines.append(f"{kind} = exit 3")
    return lines


def test_the_commands_of_the_file_run_in_order(quick, monkeypatch):
    monkeypatch.setenv("HOOKS", str(quick.directory / "hooks"))
    quick.write(ADDRESSES, *hook_lines())
    quick("up")
    assert quick.hooks() == [f"{each} {quick.name}" for each in ("PreUp1", "PreUp2", "PostUp1",
                                                                 "PostUp2")]
    quick("down")
    assert quick.hooks()[4:] == [f"PreDown1 {quick.name}", f"PreDown2 {quick.name}",
                                 "PostDown1 none", "PostDown2 none"]


@pytest.mark.parametrize("failing, ran", [
    ("PreUp1", ["PreUp1"]), ("PostUp1", ["PreUp1", "PreUp2", "PostUp1"])])
def test_a_command_that_fails_undoes_all(quick, monkeypatch, failing, ran):
    monkeypatch.setenv("HOOKS", str(quick.directory / "hooks"))
    quick.write(ADDRESSES, "DNS = 10.9.0.2", *hook_lines(failing), peer=(FULL,))
    before = quick.state()
    assert "the command 'exit 3' of the configuration failed with status 3" in quick.fails("up")
    assert [line.split()[0] for line in quick.hooks()] == ran
    assert quick.state() == before


def test_what_fails_on_the_way_up_undoes_all(quick, lab):
    (quick.directory / "bin" / "resolvconf").write_text("#!/bin/sh\necho no >&2; exit 1\n")
    before = quick.state()
    quick.write(ADDRESSES, "DNS = 10.9.0.2", peer=(FULL,))
    result = quick("up", check=False)
    assert result.returncode == 1 and "resolvconf" in result.stderr.splitlines()[-1]
    assert quick.state() == before
    lab.ip("a", "route", "add", "10.50.0.0/16", "dev", "wire")
    before = quick.state()
    quick.write(ADDRESSES, peer=(FULL, "AllowedIPs = 10.50.0.0/16"))
    assert "Table = off" in quick.fails("up")
    assert quick.state() == before


def test_mistakes_are_explained_in_one_line(quick, lab, monkeypatch):
    before = quick.state()
    assert "is not up" in quick.fails("down") and "is not up" in quick.fails("reload")
    quick("up")
    assert "is already up" in quick.fails("up")
    assert is_reachable(lab, INSIDE4["b"])
    quick("down")
    assert "is not up" in quick.fails("down")
    quick.path.write_text("[Interface]\nAdress = 10.9.0.1/24\n")
    for verb in ("up", "down", "check"):
        assert f"{quick.path}:2: unknown key 'Adress' in [Interface] (did you mean " in (
            quick.fails(verb))
    quick.path.unlink()
    for verb in ("up", "down", "reload", "check"):
        assert f"there is no file {quick.path}" in quick.fails(verb)
    assert quick.state() == before


def test_a_foreign_interface_of_that_name_is_left_alone(quick, lab):
    lab.ip("a", "link", "add", quick.name, "type", "veth", "peer", "name", "other")
    before = quick.state()
    quick.write(ADDRESSES, f"PreUp = touch {quick.directory}/ran", peer=(FULL,))
    assert quick.fails("up") == (f"fastpump: an interface {quick.name} already exists; rename the "
                                 "file")
    assert "is not up" in quick.fails("down")
    assert quick.state() == before
    assert not (quick.directory / "ran").exists()      # as wg-quick, which looks first


def test_check_changes_nothing(quick):
    before = quick.state(), quick.path.stat().st_mtime_ns
    assert quick("check").stdout == (
        f"{quick.path} is good: interface {quick.name}, 2 addresses, 1 peer\n")
    quick("up")
    running = quick.state(), quick.peers()
    quick("check")
    assert (quick.state(), quick.peers()) == running
    quick("down")
    assert (quick.state(), quick.path.stat().st_mtime_ns) == before
    for line, complaint in (("Address = 10.9.0.300/24", ":4: "), ("Table = no_such_table", "table"),
                            ("MTU = 5", ":4: "), ("nonsense", ":4: ")):
        quick.write(line)
        assert complaint in quick.fails("check")
    assert quick.state() == before[0]


def test_its_output_through_a_pipe_ends(quick, lab):
    """The background process and its workers hold no end of the caller's pipes."""
    quick.write(ADDRESSES, "PostUp = echo hello")
    command = " ".join((*FASTPUMP, "up", str(quick.path)))
    result = lab.run("a", "bash", "-c", f"out=$({command} 2>&1); echo \"<$out>\"", timeout=20)
    assert result.stdout.startswith("<") and quick.pid is not None
    assert re.search(rf"\[#\] echo hello\nhello\n{quick.name} is up: UDP port \d+, 1 peer, "
                     r"public key \S{44}>\n$", result.stdout)


def test_save_config_writes_what_runs(quick, lab):
    quick.write(ADDRESSES, "SaveConfig = true", "MTU = 1400", "PostUp = true", "Table = off",
                "RateLimit = tx=100gbit", peer=(NEAR, "RateLimit = rx=100gbit"))
    quick("up")
    lab.run("a", "wg", "set", quick.name, "listen-port", "4242", "peer", a_public_key(1),
            "allowed-ips", "10.7.0.0/16,fd07::/16", "endpoint", "[2001:db8::2]:7",
            "persistent-keepalive", "9")
    lab.ip("a", "address", "add", "10.8.0.1/24", "dev", quick.name)
    lab.ip("a", "link", "set", quick.name, "mtu", "1300")
    until(lambda: lab.status("a")["mtu"] == 1300)
    quick("down")
    assert quick.path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in quick.directory.glob(f".{quick.name}*")] == []
    text = quick.path.read_text()
    for line in ("SaveConfig = true", "MTU = 1300", "PostUp = true", "Table = off", "Queues = 2",
                 "ListenPort = 4242", "Address = 10.8.0.1/24", "Address = 10.9.0.1/24",
                 "Address = fd00:9::1/64", f"PrivateKey = {quick.private}",
                 "Endpoint = [2001:db8::2]:7", "PersistentKeepalive = 9",
                 "RateLimit = tx=100gbit", "RateLimit = rx=100gbit"):
        assert line in text.splitlines(), line
    quick("up")
    peers = quick.peers()
    assert set(peers) == {quick.public_b, a_public_key(1)}
    assert set(peers[a_public_key(1)][2].split(",")) == {"10.7.0.0/16", "fd07::/16"}
    assert is_reachable(lab, INSIDE4["b"]) and lab.status("a")["listen_port"] == 4242


def test_a_link_local_address_of_the_file_has_no_rival_and_is_saved(quick, lab):
    quick.write(ADDRESSES, "Address = fe80::5/64", "SaveConfig = true")
    quick("up")
    addresses = json.loads(lab.ip("a", "-json", "-6", "address", "show", quick.name))
    assert [each["local"] for each in addresses[0]["addr_info"] if each["scope"] == "link"] == [
        "fe80::5"]
    quick("down")
    assert "Address = fe80::5/64" in quick.path.read_text().splitlines()


def test_a_command_is_all_of_its_line_and_is_saved_as_it_was(quick, monkeypatch):
    """With what follows a '#', and bytes that are not UTF-8."""
    monkeypatch.setenv("HOOKS", str(quick.directory / "hooks"))
    command = b"PostUp = echo '%i #1 \xfc' >> $HOOKS # done"
    quick.write(ADDRESSES, "SaveConfig = true", "PostUp = true")
    quick.path.write_bytes(quick.path.read_bytes().replace(b"PostUp = true", command))
    quick("up")
    quick("down")
    assert (quick.directory / "hooks").read_bytes() == f"{quick.name} #1 ".encode() + b"\xfc\n"
    assert command in quick.path.read_bytes().splitlines()


def test_the_tunnel_of_a_tap_is_what_the_file_says():
    lines = {"Mode = tap": ("mode", "tap"), "Bridge = br0": ("bridge", "br0"),
             "Attach = eth1": ("attach", ("eth1",)), "AttachMode = tc": ("attach_mode", "tc"),
             "BridgeVlans = 2-9 4094": ("bridge_vlans", ((2, 9), (4094, 4094))),
             "MACAddress = 02:00:00:00:00:01": ("mac", b"\2\0\0\0\0\1"),
             "Relay = true": ("relay", True), "MacAgeing = 60": ("mac_ageing_s", 60),
             "MacLimit = 16": ("mac_limit", 16), "MacTable = 99": ("mac_table", 99),
             "StormLimit = off": ("storm_limit", 0), "MTU = 65521": ("mtu", 65521)}
    config = tunnel_config("vms", parse("\n".join(("[Interface]", *lines)), "vms.conf"))
    for name, value in lines.values():
        assert getattr(config, name) == value, name
    limited = parse(f"[Interface]\nRateLimit = tx=1gbit\n[Peer]\nPublicKey = {a_public_key(1)}\n"
                    "RateLimit = rx=1gbit\n", "wg0.conf")
    config = tunnel_config("wg0", limited)
    assert (emit(config.rate_limits), emit(config.peers[0].rate_limits)) == ("tx=1gbit", "rx=1gbit")
    assert config.mtu is None
    for line, complaint in (("Relay = true", "for Ethernet"), ("MTU = 65521", "over 65000"),
                            ("Mode = tap\nTransport = wireguard", "need lanes")):
        with pytest.raises(ConfigError, match=complaint):
            tunnel_config("wg0", parse(f"[Interface]\n{line}", "wg0.conf"))


# -- reload

def test_reload_keeps_the_session_of_a_peer_that_stays(quick, lab, tmp_path):
    quick("up")
    assert is_reachable(lab, INSIDE4["b"])
    before = handshakes(quick.name)[quick.public_b]
    third = ("[Peer]", f"PublicKey = {a_public_key(1)}", "AllowedIPs = 10.77.0.0/16")
    moved = ("[Peer]", f"PublicKey = {a_public_key(1)}", "AllowedIPs = 10.78.0.0/16",
             "Endpoint = 192.0.2.9:9")
    more = f"{ADDRESSES}, 10.8.0.1/24"
    steps = (
        ((ADDRESSES,), {}, "nothing"),
        ((ADDRESSES,), {"more": third}, "added, the routes"),
        ((ADDRESSES,), {"more": moved}, "changed, the routes"),
        ((ADDRESSES,), {"peer": (NEAR, "AllowedIPs = 10.79.0.0/16")}, "removed"),
        ((ADDRESSES,), {"peer": (NEAR, "PersistentKeepalive = 25")}, "changed, the routes"),
        ((more,), {}, "the addresses"),
        ((more, "MTU = 1400"), {}, "the MTU"),
        ((ADDRESSES, "MTU = 1300"), {}, "the addresses, the MTU"),
        ((ADDRESSES, "MTU = 1300", "FwMark = 9"), {}, "the firewall mark"),
        ((ADDRESSES, "MTU = 1300", "DNS = 10.9.0.2"), {}, "DNS"),
        ((ADDRESSES, "MTU = 1300"), {}, "DNS"))
    pings = Pings(lab, "a", INSIDE4["b"], tmp_path / "pings")
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(transfer, lab, "b", INSIDE4["a"], 8 << 20, seconds=4)
        for interface, sections, expected in steps:
            quick.write(*interface, **sections)
            said = quick("reload").stdout
            assert said.startswith("changed: ") and expected in said, said
            assert not pings.go_on(), said
            assert handshakes(quick.name)[quick.public_b] == before, said
            assert set(quick.peers()) == {quick.public_b} | (
                {a_public_key(1)} if "more" in sections else set())
            addresses = lab.ip("a", "address", "show", quick.name)
            assert ("10.8.0.1/24" in addresses) is ("10.8.0.1" in interface[0])
            assert ("10.77.0.0/16" in quick.routes()) is (sections.get("more") is third)
            assert ("10.78.0.0/16" in quick.routes()) is (sections.get("more") is moved)
            assert ("10.79.0.0/16" in quick.routes()) is (
                "AllowedIPs = 10.79.0.0/16" in sections.get("peer", ()))
            assert (quick.records / quick.name).exists() is (
                "DNS = 10.9.0.2" in interface)
            if interface[1:]:
                assert interface[1] == f"MTU = {lab.status('a')['mtu']}"
        assert stream.result()
    assert not pings.end()
    assert lab.status("a")["worker_restarts"] == 0


def test_a_reload_without_the_mtu_makes_it_fit_again(quick, lab):
    quick.write(ADDRESSES, "MTU = 1300")
    quick("up")
    quick.write(ADDRESSES)
    assert "the MTU" in quick("reload").stdout
    until(lambda: lab.status("a")["mtu"] == 1420)


def test_reload_of_port_and_key(quick, lab):
    quick("up")
    assert is_reachable(lab, INSIDE4["b"])
    before = handshakes(quick.name)
    quick.write(ADDRESSES, "ListenPort = 4242")
    assert "the port" in quick("reload").stdout
    assert lab.status("a")["listen_port"] == 4242
    assert is_reachable(lab, INSIDE4["b"]) and handshakes(quick.name) == before
    # A key that b does not know, and the first again.
    good = quick.private
    for private, works in ((keys.encode(bytes([7]) * 32), False), (good, True)):
        quick.private = private
        quick.write(ADDRESSES, "ListenPort = 4242")
        assert "the private key" in quick("reload").stdout
        ping = lab.run("a", "ping", "-c", "1", "-W", "5" if works else "1", INSIDE4["b"],
                       check=False)
        assert (ping.returncode == 0) is works


@pytest.mark.parametrize("line, word", [
    ("Queues = 3", "queues"), ("Table = off", "table"), ("BusyPoll = 5", "busy_poll_us"),
    ("Offload = gro=off", "offloads"), ("Mode = tap", "mode")])
def test_reload_says_what_needs_a_restart(quick, lab, line, word):
    quick("up")
    before = quick.state()
    quick.write(ADDRESSES, line)
    said = quick("reload").stdout.splitlines()
    assert said[0] == "changed: nothing"
    assert said[1].startswith("not applied until") and word in said[1].lower()
    assert quick.state() == before and is_reachable(lab, INSIDE4["b"])


def test_reload_to_another_mode_applies_nothing_else(quick, lab):
    """What else the file says is about frames then."""
    quick("up")
    before = quick.state(), quick.peers()
    quick.write("Address = 10.8.0.1/24", "Mode = tap", "Bridge = br0", peer=(NEAR,))
    said = quick("reload")
    assert said.stdout.splitlines() == [
        "changed: nothing", "not applied until `fastpump down` and `fastpump up`: mode"]
    assert "AllowedIPs have no effect with Mode = tap" in said.stderr
    assert (quick.state(), quick.peers()) == before and is_reachable(lab, INSIDE4["b"])


def test_reload_of_a_broken_file_changes_nothing(quick, lab):
    quick("up")
    before = quick.state(), quick.peers()
    for lines, complaint in ((["Address = nowhere"], ":4: "), (["MTU = 1"], ":4: ")):
        quick.write(*lines)
        assert complaint in quick.fails("reload")
        assert (quick.state(), quick.peers()) == before
    # Nor does it keep anybody from going down.
    quick("down")
    assert quick.name not in lab.ip("a", "link") and quick.pid is None


def test_a_reload_that_failed_can_be_done_again(quick, lab):
    quick("up")
    lab.ip("a", "route", "add", "10.50.0.0/16", "dev", "wire")
    quick.write(f"{ADDRESSES}, 10.8.0.1/24", peer=(NEAR, "AllowedIPs = 10.50.0.0/16"))
    assert "10.50.0.0/16" in quick.fails("reload")
    lab.ip("a", "route", "delete", "10.50.0.0/16", "dev", "wire")
    quick("reload")
    assert "10.50.0.0/16" in quick.routes() and "10.8.0.0/24" in quick.routes()
    assert is_reachable(lab, INSIDE4["b"])


def test_a_reload_that_failed_can_be_gone_back_from(quick, lab):
    quick.write(ADDRESSES, "ListenPort = 4242")
    quick("up")
    key = lab.run("a", "wg", "show", quick.name, "private-key").stdout
    lab.spawn("a", sys.executable, "-c", "import socket, time\n"
              "taken = socket.socket(type=socket.SOCK_DGRAM)\n"
              "taken.bind(('', 4243))\ntime.sleep(1000)")
    until(lambda: ":4243 " in lab.run("a", "ss", "-lunH").stdout)
    lab.ip("a", "route", "add", "10.50.0.0/16", "dev", "wire")
    good = quick.private
    quick.private = keys.encode(bytes([7]) * 32)
    quick.write(ADDRESSES, "ListenPort = 4243")
    assert "4243" in quick.fails("reload")
    quick.private = good
    quick.write(f"{ADDRESSES}, 10.8.0.1/24", "ListenPort = 4242",
                peer=(NEAR, "AllowedIPs = 10.40.0.0/16, 10.50.0.0/16"))
    assert "10.50.0.0/16" in quick.fails("reload")
    quick.write(ADDRESSES, "ListenPort = 4242")
    quick("reload")
    assert lab.run("a", "wg", "show", quick.name, "private-key").stdout == key
    assert quick.routes() == {"10.9.0.0/24", "fd00:9::/64"} and is_reachable(lab, INSIDE4["b"])
    assert quick("reload").stdout == "changed: nothing\n"


def test_reload_of_what_somebody_removed_by_hand(quick, lab):
    quick.write(f"{ADDRESSES}, 10.8.0.1/24", peer=(NEAR, "AllowedIPs = 10.50.0.0/16"))
    quick("up")
    lab.ip("a", "address", "delete", "10.8.0.1/24", "dev", quick.name)
    lab.ip("a", "route", "delete", "10.50.0.0/16", "dev", quick.name)
    quick.write(ADDRESSES)
    quick("reload")
    assert quick.routes() == {"10.9.0.0/24", "fd00:9::/64"} and is_reachable(lab, INSIDE4["b"])


@pytest.mark.parametrize("new", ["10.9.0.3/24", "10.99.0.3/24"],
                         ids=["same network", "other network"])
def test_reload_of_the_only_address_keeps_the_routes(quick, lab, new):
    """The kernel removes all IPv4 routes of an interface along with its last IPv4 address,
    and an address along with the first of its network."""
    peer = (FULL, "AllowedIPs = 10.77.0.0/16, 10.9.0.0/24, 10.99.0.0/24")
    quick.write(f"Address = {INSIDE4['a']}/24", peer=peer)
    quick("up")
    quick.write(f"Address = {new}", peer=peer)
    quick("reload")
    assert new in lab.ip("a", "address", "show", quick.name)
    assert {"10.77.0.0/16", "10.9.0.0/24", "10.99.0.0/24"} <= quick.routes()
    assert "default" in quick.routes("51820")


def test_reload_of_dns_is_undone_by_down(quick):
    before = quick.state()
    quick("up")
    quick.write(ADDRESSES, "DNS = 10.9.0.2")
    quick("reload")
    assert (quick.records / quick.name).exists()
    quick("down")
    assert quick.state() == before


def test_reload_of_addresses_protects_them(quick, lab):
    """The firewall of a full tunnel names the tunnel's addresses."""
    before = quick.state()
    quick.write(ADDRESSES, peer=(FULL,))
    quick("up")
    assert "ip daddr 10.9.0.1 " in quick.state()["nft"]
    quick.write(f"{ADDRESSES}, 10.8.0.1/24", peer=(FULL,))
    quick("reload")
    assert "ip daddr 10.8.0.1 " in quick.state()["nft"]
    quick("down")
    assert quick.state() == before


def test_reload_to_a_second_default_route_works_or_says_so(quick, lab):
    before = quick.state()
    quick.write(ADDRESSES, peer=(NEAR, "AllowedIPs = 0.0.0.0/0"))
    quick("up")
    quick.write(ADDRESSES, peer=(NEAR, FULL))
    said = quick("reload").stdout
    assert "default route" in said or is_reachable(lab, FAR[1])
    assert is_reachable(lab, FAR[0])
    quick("down")
    assert quick.state() == before


# -- ends that nobody asked for

@pytest.mark.parametrize("how", ["deleted", "SIGTERM", "SIGINT", "SIGHUP"])
def test_whatever_ends_it_all_is_undone(quick, lab, how):
    quick.write(ADDRESSES, "DNS = 10.9.0.2", peer=(FULL,))
    before = quick.state()
    quick("up")
    if how == "deleted":
        lab.ip("a", "link", "delete", quick.name)
    else:
        os.kill(quick.pid, getattr(signal, how))
    until(lambda: not pids_in(lab, "a"))
    assert quick.state() == before
    assert "is not up" in quick.fails("down")


@pytest.mark.parametrize("then", ["down", "up"])
def test_what_a_killed_one_left_is_undone_or_taken_over_by_the_next(quick, lab, then):
    quick.write(ADDRESSES, "DNS = 10.9.0.2", f"PostDown = touch {quick.directory}/down",
                peer=(FULL,))
    before = quick.state()
    quick("up")
    running = quick.state()
    os.kill(quick.pid, signal.SIGKILL)
    until(lambda: not pids_in(lab, "a"))
    assert quick.state() != before
    said = quick(then).stderr
    if then == "up":
        assert "was killed; what it left behind is taken over now" in said
        assert quick.state() == running
        assert all(is_reachable(lab, host) for host in FAR)
        quick("down")
    assert quick.state() == before and (quick.directory / "down").exists()


def test_two_files_beside_each_other(quick, lab, tmp_path):
    """A full tunnel and another: each goes without the other."""
    quick.write(ADDRESSES, "DNS = 10.9.0.2", peer=(FULL,))
    quick("up")
    running = quick.state()
    with interface_names(1) as (name,):
        path = tmp_path / f"{name}.conf"
        path.touch(mode=0o600)
        path.write_text(f"[Interface]\nPrivateKey = {keys.encode(bytes([9]) * 32)}\n"
                        "Queues = 1\nAddress = 10.44.0.1/24\n[Peer]\n"
                        f"PublicKey = {quick.public_b}\nAllowedIPs = 0.0.0.0/0, ::/0\n")
        lab.run("a", *FASTPUMP, "up", str(path))
        assert "default dev " + name in lab.ip("a", "route", "show", "table", "51821")
        lab.run("a", *FASTPUMP, "down", str(path))
    assert quick.state() == running
    assert all(is_reachable(lab, host) for host in FAR)


def test_a_file_is_found_through_a_link_and_a_relative_path(quick, lab):
    """The name is the link's, where it leads does not matter; reload reads it from anywhere."""
    target = quick.directory / "somewhere.txt"
    quick.path.rename(target)
    quick.path.symlink_to(target)
    command = [sys.executable, "-m", "fastpump"]
    for verb in ("up", "reload", "down"):
        lab.run("a", "env", "-C", str(quick.directory),
                f"PYTHONPATH={Path(sys.modules['fastpump'].__file__).parent.parent}",
                *command, verb, f"./{quick.name}.conf")
    assert quick.pid is None
