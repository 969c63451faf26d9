"""A TAP joined to a host's Ethernet, by a bridge and by tc, and all of it undone.

    guest-a  eth0 === port  a  fp0 -- (a socket) -- fp0  b  port === eth0  guest-b
"""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastpump.errors import ConfigError
from fastpump.host.attach import Attachment, check
from fastpump.host.attach_undo import AttachState
from fastpump.host.undo_record import Record
from fastpump.lab.networks import ip, stop, wait_for_line
from support.hosts import is_reachable, transfer, until

PROGRAM = str(Path(__file__).parents[1] / "support" / "tapjoin.py")
BRIDGED = {"bridge": "br7", "interfaces": ["port"]}
BY_TC = {"interfaces": ["port"], "mode": "tc"}
BOTH = pytest.mark.parametrize("attachment", [BRIDGED, BY_TC], ids=["bridge", "tc"])
GUEST4 = {"a": "10.7.0.1", "b": "10.7.0.2"}
GUEST6 = {"a": "fd07::1", "b": "fd07::2"}


@pytest.fixture
def guests(lab):
    """The lab with a guest behind each host."""
    for side in "ab":
        guest = f"guest-{side}"
        lab.add_host(guest)
        ip("link", "add", "port", "netns", lab.names[side], "type", "veth", "peer", "name", "eth0",
           "netns", lab.names[guest])
        lab.ip(side, "link", "set", "port", "up")
        lab.ip(guest, "link", "set", "eth0", "up")
        lab.ip(guest, "address", "add", f"{GUEST4[side]}/24", "dev", "eth0")
        lab.ip(guest, "address", "add", f"{GUEST6[side]}/64", "dev", "eth0", "nodad")
    for side in "ab":
        until(lambda side=side: link(lab, side, "port")["operstate"] == "UP")
    return lab


def start(lab, side, attachment, *, tap="fp0", addresses=(), mtu=0, cable=None, failing=None,
          machine_id=None):
    """The program that joins; its output is still to be read."""
    fd = None if cable is None else cable.fileno()
    said = {"tap": tap, "attachment": attachment, "addresses": addresses, "mtu": mtu, "socket": fd,
            "failing": failing, "machine_id": machine_id}
    process = subprocess.Popen(
        lab.command(side, [sys.executable, PROGRAM, json.dumps(said)]), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        process_group=0, pass_fds=[] if fd is None else [fd])
    lab.processes.append(process)
    return process


def joined(lab, side, attachment, **options):
    """The program, and what it says when it has joined."""
    process = start(lab, side, attachment, **options)
    return process, json.loads(wait_for_line(process, "joined ").removeprefix("joined "))


def refusal(lab, side, attachment, **options):
    """Why it does not join."""
    process = start(lab, side, attachment, **options)
    output = process.communicate(timeout=20)[0]
    lab.processes.remove(process)
    assert "refused: " in output, output
    return output.partition("refused: ")[2].strip()


def ended(lab, process, number=signal.SIGTERM):
    """Its output after a signal."""
    lab.processes.remove(process)
    output = stop(process, number)
    assert "Traceback" not in output
    return output


@contextlib.contextmanager
def cable(lab, attachment, **options):
    """Both hosts joined, and their TAPs by a socket; the list that it yields has, afterwards,
    what went over each TAP."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    saw = []
    with ends[0], ends[1]:
        processes = [joined(lab, side, attachment, cable=end, **options)[0]
                     for side, end in zip("ab", ends, strict=True)]
        yield saw
        for process in processes:
            output = ended(lab, process)
            assert output.splitlines()[-1] == "undone", output
            saw.append(json.loads(re.search(r"^saw (.*)$", output, re.MULTILINE)[1]))


def looks(lab, side):
    """All that joining may change, as ip and tc show it, without what moves by itself, and
    after the search for duplicates of IPv6 addresses."""
    until(lambda: not lab.ip(side, "-6", "address", "show", "up", "scope", "global", "tentative"))

    def comparable(text):
        """Without clocks, and without what the kernel leaves to a bridge of its first port."""
        for moving, still in (
                (r"\w+_timer +[0-9.]+| (first|last)?used [0-9]+ sec|installed [0-9]+ sec", ""),
                (r"(bridge_id|designated_root|tso_max_size) \S+", ""),
                ("qdisc noop ", "qdisc noqueue ")):
            text = re.sub(moving, still, text)
        return "\n".join(line for line in text.splitlines() if not re.search(
            r"fe80:|valid_lft forever|^qdisc noqueue", line))

    found = {"links": lab.ip(side, "-d", "link"), "addresses": lab.ip(side, "address"),
             "routes": lab.ip(side, "route"),
             "qdiscs": lab.run(side, "tc", "qdisc", "show").stdout}
    for name in re.findall(r"^\d+: ([^:@]+)", found["links"], re.MULTILINE):
        for hook in ("ingress", "egress"):
            found[f"{name} {hook}"] = lab.run(side, "tc", "filter", "show", "dev", name, hook,
                                              check=False).stdout
    return {what: comparable(text) for what, text in found.items()}


def is_as_before(lab, side, before):
    """Waits for it, as link states come late."""
    with contextlib.suppress(AssertionError):
        until(lambda: looks(lab, side) == before, timeout_s=5)
    after = looks(lab, side)
    for what, text in before.items():
        assert after[what].splitlines() == text.splitlines(), what
    assert after.keys() == before.keys()


def filters(lab, side, name="port"):
    return lab.run(side, "tc", "filter", "show", "dev", name, "ingress", check=False).stdout


def ports(lab, side, bridge="br7"):
    return {link["ifname"] for link in json.loads(lab.ip(side, "-json", "link"))
            if link.get("master") == bridge}


def link(lab, side, name):
    output = lab.ip(side, "-json", "-d", "link", "show", name, check=False)
    return json.loads(output)[0] if output else None


# -- frames

@BOTH
def test_guests_reach_each_other(guests, attachment):
    before = {side: looks(guests, side) for side in "ab"}
    with cable(guests, attachment):
        for address in (GUEST4["b"], GUEST6["b"]):
            assert is_reachable(guests, address, "guest-a")
        if attachment is BRIDGED:
            assert ports(guests, "a") == {"fp0", "port"}
    for side in "ab":
        is_as_before(guests, side, before[side])


@BOTH
@pytest.mark.parametrize("version", [4, 6])
def test_superpackets_and_unfinished_checksums_stay_as_they_are(guests, attachment, version):
    host = {4: GUEST4, 6: GUEST6}[version]["b"]
    with cable(guests, attachment) as saw:
        assert guest_transfer(guests, host)
    assert saw[0]["superpackets"] > 10
    assert saw[0]["partial_checksums"] > 10
    assert saw[0]["largest"] > 10000


def guest_transfer(lab, host):
    """`transfer` from guest-a to guest-b."""
    class Guests:
        processes = lab.processes

        @staticmethod
        def spawn(side, *words):
            return lab.spawn(f"guest-{side}", *words)

        @staticmethod
        def run(side, *words, **options):
            return lab.run(f"guest-{side}", *words, **options)

    return transfer(Guests, "a", host, 16 << 20)


SEND_TAGGED = """
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
    out.bind(("eth0", 0))
    out.send(b"\\xff" * 6 + b"\\x02\\0\\0\\0\\0\\1" + bytes.fromhex("8100 2064 88b5")
             + b"tagged" + bytes(50))
"""
RECEIVE_TAGGED = """
import socket, struct
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as incoming:
    incoming.setsockopt(263, 8, 1)              # PACKET_AUXDATA
    incoming.bind(("eth0", 3))
    print("listening", flush=True)
    while True:
        frame, about, _, _ = incoming.recvmsg(2000, 100)
        if b"tagged" in frame:
            status, _, _, _, _, tci, protocol = struct.unpack("IIIHHHH", about[0][2])
            print("got", hex(protocol), hex(tci), frame[12:20].hex(), flush=True)
            break
"""


@BOTH
def test_vlan_tags_are_carried(guests, attachment):
    with cable(guests, attachment) as saw:
        receiver = guests.spawn("guest-b", sys.executable, "-c", RECEIVE_TAGGED)
        wait_for_line(receiver, "listening")
        guests.run("guest-a", sys.executable, "-c", SEND_TAGGED)
        assert wait_for_line(receiver, "got") == "got 0x8100 0x2064 88b5746167676564"
    assert saw[0]["tagged"] == 1


def test_addresses_stand_on_the_bridge(guests):
    before = looks(guests, "a")
    with cable(guests, BRIDGED, addresses=["10.7.0.9/24", "fd07::9/64"]):
        assert "10.7.0.9/24" in guests.ip("a", "address", "show", "br7")
        assert "inet" not in guests.ip("a", "address", "show", "fp0")
        assert is_reachable(guests, "10.7.0.9", "guest-a")
    is_as_before(guests, "a", before)


def test_a_tap_that_is_joined_to_nothing_gets_the_addresses_itself(lab):
    joined(lab, "a", {}, addresses=["10.7.0.9/24"], mtu=1300)
    assert "10.7.0.9/24" in lab.ip("a", "address", "show", "fp0")
    assert link(lab, "a", "fp0")["mtu"] == 1300
    assert "UP" in link(lab, "a", "fp0")["flags"]


# -- bridges

def test_a_new_bridge_forwards_like_a_cable(guests):
    process, _ = joined(guests, "a", BRIDGED)
    bridge = link(guests, "a", "br7")
    assert bridge["linkinfo"]["info_data"]["stp_state"] == 0
    assert bridge["linkinfo"]["info_data"]["mcast_snooping"] == 0
    assert bridge["ifalias"] == "fastpump: made for fp0"
    assert bridge["address"].startswith("02:")
    assert link(guests, "a", "fp0")["address"].startswith("fe:")
    assert link(guests, "a", "port")["promiscuity"] == 1
    ended(guests, process)
    assert link(guests, "a", "br7") is None


def test_a_new_bridge_keeps_its_own_mac_address_whatever_its_ports_are(guests, tmp_path):
    """Or its neighbours would send to an address that is gone, until they ask again."""
    addresses = {}
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    for side, tap in (("a", "fp0"), ("b", "fp0"), ("a", "fp1")):
        process, _ = joined(guests, side, BRIDGED, tap=tap,
                            machine_id=str(tmp_path / "machine-id"))
        own = addresses.setdefault(side, link(guests, side, "br7")["address"])
        guests.ip(side, "link", "add", "low0", "address", "00:00:00:00:00:01", "type", "veth",
                  "peer", "name", "low1")
        for words in (("set", "low0", "master", "br7"), ("set", "port", "nomaster"),
                      ("delete", "low0")):
            guests.ip(side, "link", *words)
            assert link(guests, side, "br7")["address"] == own
        ended(guests, process)
    assert addresses["a"] != addresses["b"]


def user_bridge(lab, side="a"):
    """A bridge of the user's, with an address and a port."""
    lab.ip(side, "link", "add", "br7", "type", "bridge", "stp_state", "0")
    lab.ip(side, "link", "add", "own0", "type", "veth", "peer", "name", "own1")
    lab.ip(side, "link", "set", "own0", "up", "master", "br7")
    lab.ip(side, "link", "set", "own1", "up")
    lab.ip(side, "address", "add", "10.7.0.8/24", "dev", "br7")


@pytest.mark.parametrize("is_up", [True, False])
def test_a_bridge_of_the_user_is_left_as_it_was(guests, is_up):
    user_bridge(guests)
    guests.ip("a", "link", "set", "br7", "up" if is_up else "down")
    guests.ip("a", "link", "set", "port", "up" if is_up else "down")
    until(lambda: link(guests, "a", "own0")["operstate"] == "UP")
    before = looks(guests, "a")
    process, _ = joined(guests, "a", BRIDGED, mtu=1300,
                        addresses=["10.7.0.9/24", "10.7.0.8/24"])
    assert ports(guests, "a") == {"own0", "fp0", "port"}
    assert all("UP" in link(guests, "a", name)["flags"] for name in ("br7", "port"))
    assert link(guests, "a", "br7")["mtu"] == 1300
    assert "10.7.0.9/24" in guests.ip("a", "address", "show", "br7")
    ended(guests, process)
    is_as_before(guests, "a", before)


def test_a_port_that_was_in_the_bridge_stays_in_it(guests):
    user_bridge(guests)
    guests.ip("a", "link", "set", "port", "master", "br7")
    before = looks(guests, "a")
    process, _ = joined(guests, "a", {"interfaces": ["port"]})      # its bridge is ours
    assert ports(guests, "a") == {"own0", "fp0", "port"}
    ended(guests, process)
    is_as_before(guests, "a", before)


def test_a_bridge_that_others_use_meanwhile_stays(guests):
    process, _ = joined(guests, "a", BRIDGED)
    guests.ip("a", "link", "add", "own0", "type", "veth", "peer", "name", "own1")
    guests.ip("a", "link", "set", "own0", "master", "br7")
    assert "br7 stays, since own0 is in it" in ended(guests, process)
    assert ports(guests, "a") == {"own0"}


def test_two_tunnels_share_a_bridge_and_the_last_one_removes_it(guests):
    first, _ = joined(guests, "a", BRIDGED)
    second, _ = joined(guests, "a", {"bridge": "br7"}, tap="fp1")
    assert ports(guests, "a") == {"fp0", "fp1", "port"}
    ended(guests, first)
    assert ports(guests, "a") == {"fp1"}
    ended(guests, second)
    assert link(guests, "a", "br7") is None


# -- tc

def test_filters_of_the_user_stay_and_come_first(guests):
    guests.run("a", "tc", "qdisc", "add", "dev", "port", "ingress")
    for priority in ("10", "65000"):
        guests.run("a", "tc", "filter", "add", "dev", "port", "ingress", "protocol", "ip", "prio",
                   priority, "u32", "match", "ip", "dst", "10.7.0.77", "action", "mirred",
                   "egress", "mirror", "dev", "lo")
    before = looks(guests, "a")
    process, _ = joined(guests, "a", BY_TC)
    assert re.search(r"pref 64999 .*(\n.*)*Redirect to device fp0", filters(guests, "a"))
    ended(guests, process)
    is_as_before(guests, "a", before)


def test_a_qdisc_of_ours_stays_when_others_have_filters_in_it(guests):
    process, _ = joined(guests, "a", BY_TC)
    guests.run("a", "tc", "filter", "add", "dev", "port", "egress", "prio", "3", "u32", "match",
               "u32", "0", "0")
    assert "clsact qdisc of port stays" in ended(guests, process)
    assert "clsact" in guests.run("a", "tc", "qdisc", "show", "dev", "port").stdout
    assert "Redirect" not in filters(guests, "a")


def test_tc_is_promiscuous_while_it_lasts(guests):
    process, _ = joined(guests, "a", BY_TC)
    assert link(guests, "a", "port")["promiscuity"] == 1
    process.kill()
    process.wait()
    until(lambda: link(guests, "a", "port")["promiscuity"] == 0)


# -- MTU

@pytest.mark.parametrize(("make", "attachment", "planned", "foreign"), [
    ([], {"bridge": "br7"}, None, ()),
    ([["link", "set", "port", "mtu", "3000"]], BRIDGED, 3000, ()),
    ([["link", "set", "port", "mtu", "3000"]], BY_TC, 3000, ()),
    ([["link", "add", "br7", "mtu", "2000", "type", "bridge"]], {"bridge": "br7"}, 2000, ()),
    ([["link", "add", "br7", "mtu", "2000", "type", "bridge"],
      ["link", "set", "port", "mtu", "9000"]], BRIDGED, 9000, ()),
])
def test_the_mtu_is_that_of_what_is_there(guests, make, attachment, planned, foreign):
    for words in make:
        guests.ip("a", *words)
    before = looks(guests, "a")
    process, said = joined(guests, "a", attachment)
    assert said == {"planned": planned, "foreign": list(foreign)}
    assert link(guests, "a", "fp0")["mtu"] == (planned or 1400)
    ended(guests, process)
    is_as_before(guests, "a", before)


@BOTH
def test_interfaces_with_a_larger_mtu_are_told_of(guests, attachment):
    _, said = joined(guests, "a", attachment, mtu=1400)
    assert said["foreign"] == [
        "port has an MTU of 1500, the tunnel's interface one of 1400: larger frames are lost; "
        "raise that to 1500, or lower the other: ip link set port mtu 1400 (and that of the "
        "hosts behind it)"]
    assert link(guests, "a", "port")["mtu"] == 1500


# -- what cannot be

@pytest.mark.parametrize(("attachment", "complaint"), [
    (Attachment(mode="tc"), "exactly one interface"),
    (Attachment(interfaces=("p", "q"), mode="tc"), "exactly one interface"),
    (Attachment("br7", ("p",), mode="tc"), "without a bridge"),
    (Attachment("br7", ("p", "q", "p")), "--attach p is given twice"),
    (Attachment("br7", ("br7",)), "as the bridge and as a port"),
    (Attachment("a bridge"), "invalid interface name"),
])
def test_combinations_that_mean_nothing(attachment, complaint):
    with pytest.raises(ConfigError, match=complaint):
        check(attachment)


@pytest.mark.parametrize(("make", "attachment", "complaint"), [
    ([], {"bridge": "br7", "interfaces": ["port9"]}, "there is no interface port9 to attach"),
    ([], {"interfaces": ["port9"]}, "there is no interface port9 to attach"),
    ([], {"interfaces": ["lo"]}, "lo is not in a bridge; name the bridge "),
    ([], {"bridge": "br7", "interfaces": ["lo"]}, "lo is the loopback interface"),
    ([], {"bridge": "port"}, "port is not a bridge; .* --attach port"),
    ([], {"bridge": "br7", "interfaces": ["fp0"]}, "fp0 is the tunnel's own interface"),
    ([["tuntap", "add", "mode", "tun", "tun7"]], {"bridge": "br7", "interfaces": ["tun7"]},
     "tun7 is not an Ethernet interface"),
    ([["link", "add", "br8", "type", "bridge"]], {"bridge": "br7", "interfaces": ["br8"]},
     "br8 is a bridge, which cannot be a port: --bridge br8"),
    ([["link", "add", "br8", "type", "bridge"], ["link", "set", "port", "master", "br8"]],
     BRIDGED, r"port is a port of the bridge br8: use that \(--bridge br8\), or take it out"),
    ([["link", "add", "br8", "type", "bridge"], ["link", "set", "port", "master", "br8"]],
     BY_TC, "port is a port of the bridge br8"),
    ([["address", "add", "10.3.0.1/24", "dev", "port"],
      ["address", "add", "fd03::1/64", "dev", "port"]], BRIDGED,
     r"port has addresses, .* \(ip addr del 10.3.0.1/24 dev port && ip addr del fd03::1/64 dev "
     r"port; --address 10.3.0.1/24 --address fd03::1/64\)"),
    ([["address", "add", "10.3.0.1/24", "dev", "port"]], BY_TC,
     "port has addresses, .* use a bridge and move them to it: --bridge br0 --address 10.3.0.1/24"),
])
def test_what_cannot_be_joined_is_refused(guests, make, attachment, complaint):
    for words in make:
        guests.ip("a", *words)
    before = looks(guests, "a")
    said = refusal(guests, "a", attachment)
    assert re.match("(Config|Option)Error: " + complaint, said), said
    is_as_before(guests, "a", before)


def test_addresses_and_tc_do_not_go_together(guests):
    assert "--address would not work" in refusal(guests, "a", BY_TC, addresses=["10.7.0.9/24"])


def test_an_interface_is_joined_to_one_tunnel_only(guests):
    joined(guests, "a", BY_TC)
    assert "port is joined to fp0 already" in refusal(guests, "a", BY_TC, tap="fp1")
    assert "port is joined to fp0 already" in refusal(guests, "a", BRIDGED, tap="fp1")


# -- steps that fail, TAPs that are gone, processes that are killed

@pytest.mark.parametrize(("attachment", "failing"), [
    *((BRIDGED, where) for where in (
        "bridges.make:1", "links.set_alias:1", "links.set_mac:1", "links.set_up:1",
        "links.set_up:2", "links.set_up:3", "bridges.add_port:1", "bridges.add_port:2")),
    *((BY_TC, where) for where in (
        "links.set_up:1", "links.set_up:2", "redirects.add_qdisc:1", "redirects.add:1",
        "redirects.add_qdisc:2", "redirects.add:2")),
])
def test_a_step_that_fails_undoes_those_before(guests, attachment, failing):
    guests.ip("a", "link", "set", "port", "down")
    before = looks(guests, "a")
    said = refusal(guests, "a", attachment, failing=failing)
    assert said == "SystemSetupError: this step was made to fail"
    is_as_before(guests, "a", before)


@BOTH
def test_a_tap_that_was_deleted_does_not_hinder(guests, attachment):
    before = looks(guests, "a")
    process, _ = joined(guests, "a", attachment)
    guests.ip("a", "link", "delete", "fp0")
    assert "undone" in ended(guests, process)
    is_as_before(guests, "a", before)


@BOTH
def test_an_interface_that_was_deleted_does_not_hinder(guests, attachment):
    process, _ = joined(guests, "a", attachment)
    guests.ip("a", "link", "delete", "port")
    output = ended(guests, process)
    assert output.splitlines()[1:] == ["undone"], output
    assert link(guests, "a", "br7") is None


def kill(lab, process):
    lab.processes.remove(process)
    stop(process, signal.SIGKILL)
    until(lambda: link(lab, "a", "fp0") is None)


@BOTH
@pytest.mark.parametrize("tap", ["fp0", "fp1"])
def test_what_a_killed_process_leaves_is_undone_by_the_next(guests, tmp_path, attachment, tap):
    guests.ip("a", "link", "set", "port", "down")
    before = looks(guests, "a")
    addresses = ["10.7.0.9/24"] if attachment is BRIDGED else []
    kill(guests, joined(guests, "a", attachment, addresses=addresses)[0])
    assert looks(guests, "a") != before
    process = start(guests, "a", attachment, tap=tap)
    wait_for_line(process, "fp0 was killed when it last ran")
    wait_for_line(process, "joined")
    assert "10.7.0.9" not in guests.ip("a", "address")
    ended(guests, process)
    is_as_before(guests, "a", before)
    assert not list((tmp_path / "run").glob("*/*"))


def test_a_redirect_to_nowhere_is_removed_without_a_record(guests, tmp_path):
    kill(guests, joined(guests, "a", BY_TC)[0])
    assert "Redirect to device *" in filters(guests, "a")
    (record,) = (tmp_path / "run").glob("*/*.attach")
    record.unlink()
    process = start(guests, "a", BY_TC)
    wait_for_line(process, "port has a redirect of a tunnel that was killed")
    wait_for_line(process, "joined")
    ended(guests, process)
    assert filters(guests, "a") == ""


def test_a_bridge_of_ours_is_known_without_a_record(guests, tmp_path):
    before = looks(guests, "a")
    kill(guests, joined(guests, "a", BRIDGED)[0])
    (record,) = (tmp_path / "run").glob("*/*.attach")
    record.unlink()
    guests.ip("a", "link", "set", "port", "nomaster")
    process, said = joined(guests, "a", {"bridge": "br7"})
    assert said["planned"] is None
    ended(guests, process)
    is_as_before(guests, "a", before)


def test_what_found_another_use_after_a_kill_is_left_to_it(guests):
    guests.ip("a", "link", "set", "port", "down")
    kill(guests, joined(guests, "a", BRIDGED)[0])
    guests.ip("a", "link", "set", "port", "nomaster")
    guests.ip("a", "address", "add", "10.3.0.1/24", "dev", "port")
    joined(guests, "a", {"bridge": "br8"})
    assert "UP" in link(guests, "a", "port")["flags"]
    assert link(guests, "a", "br7") is None


def test_living_processes_keep_what_they_did(guests):
    joined(guests, "a", BRIDGED)
    joined(guests, "a", {"bridge": "br8"}, tap="fp1")
    assert ports(guests, "a") == {"fp0", "port"}


@pytest.mark.parametrize(("attachment", "steps"), [
    (BRIDGED, [["bridge", "br7"], ["up", "br7", 0, [], []], ["port", "fp0", "br7"],
               ["up", "port", 0, [], []], ["port", "port", "br7"],
               ["address", "br7", "10.7.0.9/24"]]),
    (BY_TC, [["up", "port", 0, [], []], ["ingress", "fp0"], ["redirect", "fp0", "port"],
             ["ingress", "port"], ["redirect", "port", "fp0"]]),
], ids=["bridge", "tc"])
def test_the_record_keeps_its_format(guests, tmp_path, attachment, steps):
    """A process of another version may undo it."""
    guests.ip("a", "link", "set", "port", "down")
    joined(guests, "a", attachment, addresses=["10.7.0.9/24"] if attachment is BRIDGED else ())
    (path,) = (tmp_path / "run").glob("*/*.attach")
    index = {name: link(guests, "a", name)["ifindex"] for name in ("fp0", "port")}
    index["br7"] = link(guests, "a", "br7")["ifindex"] if attachment is BRIDGED else 0
    assert json.loads(path.read_text())["steps"] == [
        [verb, *(index.get(what, what) if isinstance(what, str) else what for what in rest)]
        for verb, *rest in steps]


def test_a_record_of_another_namespace_says_nothing():
    state = AttachState([("up", 1, 0, [])])
    assert AttachState.from_json(json.loads(json.dumps(state.to_json()))) == state
    assert AttachState.from_json({**state.to_json(), "namespace": 1 << 60}).steps == []


def test_a_record_is_had_by_one_process_and_may_be_broken(tmp_path, caplog):
    path = tmp_path / "run" / "1" / "fp0@3.attach"
    record = Record.take(path)
    assert Record.take(path) is None
    record.write({"steps": [1, 2, 3]})
    record.write({"steps": []})
    assert record.read() == {"steps": []}
    path.write_text("[1]\n")
    assert record.read() == {}
    assert "cannot be read" in caplog.text
    record.remove()
    assert not (tmp_path / "run").exists()
