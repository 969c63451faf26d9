"""Lanes between real tunnels: the upgrade on the wire, order, faults, the far end."""

import json
import os
import re
import secrets
import signal
import sys

import pytest

from fastpump.constants import SECOND
from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    OUTSIDE4,
    fastpump_pair,
    ip,
    key_files,
    stop,
    tunnel_words,
    wait_for_line,
)
from fastpump.protocol import keys
from support.hosts import is_reachable, transfer, until
from support.packets import checksums_are_right
from support.pretence import pretending

CAPTURE = """
import signal, socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
sock.bind((sys.argv[1], 0))
sock.settimeout(0.2)
going, frames = [True], []
signal.signal(signal.SIGINT, lambda *_: going.clear())
print("capturing", flush=True)
while going:
    try:
        frames.append(sock.recv(65535))
    except TimeoutError:
        pass
for frame in frames:
    print("frame", frame.hex())
print("end", flush=True)
"""


class Capture:
    """Every frame that passes an interface of a host."""

    def __init__(self, lab, side, interface):
        self.lab = lab
        self.process = lab.spawn(side, sys.executable, "-c", CAPTURE, interface)
        wait_for_line(self.process, "capturing")

    def frames(self):
        self.process.send_signal(signal.SIGINT)
        output = self.process.communicate(timeout=20)[0]
        self.lab.processes.remove(self.process)
        assert output.endswith("end\n")
        return [bytes.fromhex(line.split()[1]) for line in output.splitlines()
                if line.startswith("frame")]

    def messages(self):
        """(sender, type, length) of the datagrams between both hosts, over IPv4."""
        found = []
        for frame in self.frames():
            if frame[12:14] == b"\x08\0" and frame[23] == 17:
                sender = next((side for side, address in OUTSIDE4.items()
                               if bytes(map(int, address.split("."))) == frame[26:30]), None)
                if sender:
                    length = int.from_bytes(frame[38:40], "big") - 8
                    found.append((sender, frame[42], length))
        return found


def peer_of(lab, side):
    (peer,) = lab.status(side)["peers"]
    return peer


def does_lanes(lab, side):
    peer = peer_of(lab, side)
    return bool(peer["lanes"]) and all(lane["state"] == "up" for lane in peer["lanes"])


def has_lanes(lab):
    return all(does_lanes(lab, side) for side in "ab")


# -- the upgrade

def test_two_fastpumps_are_on_lanes_a_round_trip_after_the_handshake(lab, tmp_path):
    capture = Capture(lab, "a", "wire")
    with fastpump_pair(lab, tmp_path, "--queues", "2"):
        assert is_reachable(lab, INSIDE4["b"])
        until(lambda: has_lanes(lab))
        messages = [each for each in capture.messages() if each[1] <= 5]
        types = [(sender, kind) for sender, kind, _ in messages]
        # Initiation, response; HELLO, OFFER, ACCEPT in the session (the ping goes there too);
        # then the probes: nothing more than one round trip stands between.
        begin = types.index(("a", 1))
        first_lane = next(n for n, (_, kind) in enumerate(types) if kind == 5)
        between = messages[begin:first_lane]
        assert [kind for _, kind in types[begin:begin + 3]] == [1, 2, 4]
        offers = [n for n, (sender, _, length) in enumerate(between)
                  if sender == "b" and length > 1200]
        assert len(offers) == 1
        assert types[first_lane] == ("a", 5)
        assert sum(1 for sender, _, length in between if sender == "a" and length > 1100) == 1
        for side in "ab":
            peer = peer_of(lab, side)
            assert peer["transport"] == "lanes" and peer["post_quantum"] is True
            assert peer["cipher"] in ("aes-256-gcm", "chacha20-poly1305")
            assert [lane["lane"] for lane in peer["lanes"]] == [0, 1]
            text = lab.run(side, sys.executable, "-m", "fastpump", "status").stdout
            assert "transport: lanes, " in text and "post-quantum" in text
            assert "lane 1: up, worker 1, " in text
        # Data goes there now, and nowhere else. (The session has END, of a worker's first message.)
        session = peer_of(lab, "a")["tx_bytes"]
        capture = Capture(lab, "a", "wire")
        assert transfer(lab, "a", INSIDE4["b"], 1 << 20)
        assert {kind for _, kind, length in capture.messages() if length > 100} == {5}
        assert peer_of(lab, "a")["tx_bytes"] > session + (1 << 20)


@pytest.mark.parametrize("queues", [("4", "1"), ("2", "3")], ids=" and ".join)
@pytest.mark.parametrize("v6_outside", [False, True], ids=["over v4", "over v6"])
def test_the_number_of_queues_may_differ(lab, tmp_path, queues, v6_outside):
    key = key_files(tmp_path)
    for side, other, count in (("a", "b", queues[0]), ("b", "a", queues[1])):
        lab.fastpump(side, *tunnel_words(side, key[side], key[other][1], "--queues", count,
                                         v6_outside=v6_outside))
    assert is_reachable(lab, INSIDE4["b"])
    until(lambda: has_lanes(lab))
    assert len(peer_of(lab, "a")["lanes"]) == int(max(queues))
    for side, other in (("a", "b"), ("b", "a")):
        assert transfer(lab, side, INSIDE6[other], 8 << 20)


def test_ciphers_and_features_can_be_chosen(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "1", "--cipher", "chacha20-poly1305",
                       "--offload", "partial=off", "--offload", "bundle=off"):
        assert is_reachable(lab, INSIDE4["b"])
        until(lambda: has_lanes(lab))
        assert peer_of(lab, "a")["cipher"] == "chacha20-poly1305"
        assert transfer(lab, "a", INSIDE4["b"], 8 << 20)
        status = lab.status("a")
        assert not {"partial", "bundle"} & set(status["offloads"])
        assert status["queues"][0]["udp_tx_bundles"] == 0


def pair_of(lab, tmp_path, transports):
    key = key_files(tmp_path)
    return {side: lab.fastpump(side, *tunnel_words(
        side, key[side], key[other][1], "--queues", "2", "--transport", transports[side]))
        for side, other in (("a", "b"), ("b", "a"))}


def test_only_lanes_with_a_peer_that_does_none(lab, tmp_path):
    """A downgrade is refused, and told."""
    processes = pair_of(lab, tmp_path, {"a": "lanes", "b": "wireguard"})
    assert not is_reachable(lab, INSIDE4["b"])
    assert not is_reachable(lab, INSIDE4["a"], "b")
    until(lambda: peer_of(lab, "a")["no_lanes_because"])
    verdicts = lab.status("a")["verdicts"]
    assert verdicts["DROP_NOT_IN_LANES"] > 0
    assert "no lanes:" in lab.run("a", sys.executable, "-m", "fastpump", "status").stdout
    output = stop(processes["a"])
    lab.processes.remove(processes["a"])
    assert "nothing is sent to it (--transport lanes)" in output


def test_one_side_may_be_told_to_stay_with_wireguard(lab, tmp_path):
    pair_of(lab, tmp_path, {"a": "auto", "b": "wireguard"})
    assert transfer(lab, "a", INSIDE4["b"], 1 << 20)
    assert peer_of(lab, "a")["transport"] == peer_of(lab, "b")["transport"] == "wireguard"
    assert peer_of(lab, "a")["lanes"] == []


def test_only_lanes_on_both_sides(lab, tmp_path):
    pair_of(lab, tmp_path, {"a": "lanes", "b": "lanes"})
    assert transfer(lab, "a", INSIDE4["b"], 1 << 20)
    assert has_lanes(lab)


def test_wireguard_go_gets_one_small_message_more(lab, tmp_path):
    name = f"wg{os.getpid():x}{secrets.token_hex(2)}"
    key = key_files(tmp_path)
    capture = Capture(lab, "a", "wire")
    lab.spawn("b", "wireguard-go", "--foreground", name)
    until(lambda: lab.run("b", "wg", "show", name, check=False).returncode == 0)
    lab.run("b", "wg", "set", name, "private-key", str(key["b"][0]), "listen-port", "51820",
            "peer", key["a"][1], "allowed-ips", f"{INSIDE4['a']}/32")
    lab.ip("b", "address", "add", f"{INSIDE4['b']}/24", "dev", name)
    lab.ip("b", "link", "set", name, "up")
    lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--queues", "2"))
    assert is_reachable(lab, INSIDE4["b"])
    # Ten seconds after what it heard last it sends a keepalive. Until then all has been said.
    transfer_of = re.compile(r"\t(\d+)\t(\d+)$", re.MULTILINE)
    until(lambda: transfer_of.search(lab.run("b", "wg", "show", name, "transfer").stdout).groups()
          == (str(148 + 80 + 128 + 80), str(92 + 128 + 32)), 30)
    assert peer_of(lab, "a")["transport"] == "wireguard"
    messages = capture.messages()
    ours = [(kind, length) for sender, kind, length in messages if sender == "a"]
    # HELLO in place of the keepalive, the ping, HELLO again.
    assert [kind for kind, _ in ours] == [1, 4, 4, 4]
    assert sorted(length for _, length in ours[1:]) == [80, 80, 128]
    assert [kind for sender, kind, _ in messages if sender == "b"] == [2, 4, 4]


# -- order

# Says "flowing" when it could receive, sends for some seconds after the first SIGUSR1, says "sent",
# and after the second SIGUSR1 counts on until nothing comes any more.
FLOWS = """
import select, signal, socket, struct, sys, time
local, remote = sys.argv[1:3]
seconds, flows, rate = map(float, sys.argv[3:6])
flows = int(flows)
signals = []
signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
sockets = []
for flow in range(flows):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((local, 7000 + flow))
    sock.connect((remote, 7000 + flow))
    sock.setblocking(False)
    sockets.append(sock)
poll = select.epoll()
for sock in sockets:
    poll.register(sock, select.EPOLLIN)
by_fd = {sock.fileno(): flow for flow, sock in enumerate(sockets)}
sent, next_seen = [0] * flows, [0] * flows
got, late = [0] * flows, [0] * flows
print("flowing", flush=True)
signal.sigwait([signal.SIGUSR1])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
start = due = heard = time.monotonic()
burst, is_sending = 5, True
while not signals or time.monotonic() < heard + 0.5:
    now = time.monotonic()
    if is_sending and now >= start + seconds:
        is_sending = False
        print("sent", flush=True)
    if is_sending and now >= due:
        due = max(due + burst / rate, now - 0.1)
        for flow, sock in enumerate(sockets):
            for _ in range(burst):
                size = 20 + (sent[flow] * 37 + flow) % 900
                try:
                    sock.send(struct.pack("!IQ", flow, sent[flow]) + bytes(size))
                    sent[flow] += 1
                except OSError:
                    pass
    for fd, _ in poll.poll(max(0.001, min(0.01, due - time.monotonic()))):
        try:
            while True:
                flow, number = struct.unpack("!IQ", sockets[by_fd[fd]].recv(2048)[:12])
                got[flow] += 1
                heard = time.monotonic()
                if number < next_seen[flow]:
                    late[flow] += 1
                else:
                    next_seen[flow] = number + 1
        except OSError:
            pass
print("result", sum(sent), sum(got), sum(late), flush=True)
"""


def flow(lab, seconds, rate, flows=16):
    """Sequence numbers both ways, over 16 UDP flows; wait with `flowed`."""
    processes = {
        side: lab.spawn(side, sys.executable, "-c", FLOWS, INSIDE4[side], INSIDE4[other],
                        str(seconds), str(flows), str(rate))
        for side, other in (("a", "b"), ("b", "a"))}
    for process in processes.values():
        wait_for_line(process, "flowing")
    for process in processes.values():
        process.send_signal(signal.SIGUSR1)
    return processes


def flowed(lab, processes, seconds):
    """Nothing was lost and nothing came late."""
    for process in processes.values():
        wait_for_line(process, "sent", seconds + 20)
    for process in processes.values():
        process.send_signal(signal.SIGUSR1)
    figures = {side: tuple(map(int, wait_for_line(process, "result").split()[1:]))
               for side, process in processes.items()}
    for process in processes.values():
        stop(process)
        lab.processes.remove(process)
    for side, other in (("a", "b"), ("b", "a")):
        sent, (_, got, late) = figures[side][0], figures[other]
        verdicts = [lab.status(each)["verdicts"] for each in "ab"]
        assert late == 0, (figures, verdicts)
        assert got == sent > 1000, (figures, verdicts)


def test_the_switch_to_lanes_loses_and_reorders_nothing(lab, tmp_path):
    """Flows run before the first handshake: staged, by the session, on lanes."""
    for number in range(4):
        directory = tmp_path / str(number)
        directory.mkdir()
        with fastpump_pair(lab, directory, "--queues", "4"):
            flowed(lab, flow(lab, 1.5, 80), 1.5)
            assert has_lanes(lab)
            for side in "ab":
                busy = [queue["udp_tx_datagrams"] for queue in lab.status(side)["queues"]]
                assert len(busy) == 4 and min(busy) > 10, busy


@pytest.mark.abridged
@pytest.mark.alone
@pytest.mark.timeout(400)
def test_rekeys_lose_and_reorder_nothing(lab, tmp_path, is_long):
    rekey_s = 120 if is_long else 15
    with fastpump_pair(lab, tmp_path, "--queues", "3", env=pretending(
            tmp_path, REKEY_AFTER_TIME=rekey_s * SECOND)):
        assert is_reachable(lab, INSIDE4["b"])
        until(lambda: has_lanes(lab))
        before = peer_of(lab, "a")
        flowed(lab, flow(lab, rekey_s + 10, 50), rekey_s + 10)
        after = peer_of(lab, "a")
        assert after["latest_handshake"] > before["latest_handshake"] + rekey_s - 10
        # New ones: they were used for some ten seconds.
        assert sum(lane["tx_messages"] for lane in after["lanes"]) < 16 * 50 * 12
        assert has_lanes(lab)


# -- faults

def test_a_dead_worker_is_no_end_of_its_lane(lab, tunnel):
    assert is_reachable(lab, INSIDE4["b"])
    until(lambda: has_lanes(lab))
    for side, victim in (("a", 0), ("b", 2), ("a", 3)):
        os.kill(lab.status(side)["queues"][victim]["pid"], signal.SIGKILL)
        assert transfer(lab, "a", INSIDE4["b"], 2 << 20)
        assert transfer(lab, "b", INSIDE4["a"], 2 << 20)
    assert has_lanes(lab)
    assert not {"DROP_UNAUTHENTIC", "DROP_REPLAYED"} & set(lab.status("b")["verdicts"])


def test_a_blocked_lane_is_noticed_and_its_flows_move(lab, tunnel):
    assert is_reachable(lab, INSIDE4["b"])
    until(lambda: has_lanes(lab))
    port = peer_of(lab, "b")["lanes"][1]["endpoint"].rpartition(":")[2]
    lab.run("b", "nft", "add table inet t; add chain inet t c { type filter hook input priority "
            "0; }; add rule inet t c udp sport " + port + " drop")
    load = flow(lab, 20, 100)

    def blocked(side):
        return peer_of(lab, side)["lanes"][1]

    # First b, which hears nothing there; then a, which heard b's data as answers until then.
    for side in "ba":
        until(lambda: [lane["state"] for lane in peer_of(lab, side)["lanes"]] == [  # noqa: B023
            "up", "dead", "up", "up"], 12)
    # They are asked again and again, and stay dead.
    before = {side: blocked(side)["tx_messages"] for side in "ab"}
    until(lambda: all(blocked(side)["tx_messages"] > before[side] + 1 for side in "ab"), 30)
    assert blocked("a")["state"] == blocked("b")["state"] == "dead"
    before = blocked("a")["tx_messages"]
    assert is_reachable(lab, INSIDE4["b"])
    assert all(transfer(lab, "a", INSIDE4["b"], 1 << 20, port=str(7100 + n)) for n in range(4))
    assert blocked("a")["tx_messages"] - before < 10       # probes only
    lab.run("b", "nft", "delete table inet t")
    until(lambda: has_lanes(lab), 15)
    for process in load.values():
        stop(process)
        lab.processes.remove(process)
    output = stop(tunnel["a"])
    assert re.search(r"lane 1 of .* is dead", output) and "is back" in output


def test_a_restarted_side_gets_lanes_again(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "2") as tunnel:
        assert is_reachable(lab, INSIDE4["b"])
        until(lambda: has_lanes(lab))
        stop(tunnel["a"])
        lab.processes.remove(tunnel["a"])
        public = keys.encode(keys.public_of(keys.read_file(tmp_path / "b.key", "key")))
        words = tunnel_words("a", (tmp_path / "a.key", ""), public, "--queues", "4")
        tunnel["a"] = lab.fastpump("a", *words)
        assert transfer(lab, "a", INSIDE4["b"], 1 << 20)
        until(lambda: has_lanes(lab))
        assert len(peer_of(lab, "b")["lanes"]) == 4
        assert transfer(lab, "b", INSIDE4["a"], 1 << 20)


# -- checksums

@pytest.fixture
def third(lab):
    """A host "c" behind "b": 10.77.0.2 and fd00:77::2, reached by a veth that computes no
    checksums."""
    lab.add_host("c")
    ip("link", "add", "near", "netns", lab.names["b"], "type", "veth", "peer", "name", "far",
       "netns", lab.names["c"])
    for side, interface, number in (("b", "near", 1), ("c", "far", 2)):
        lab.ip(side, "address", "add", f"10.77.0.{number}/24", "dev", interface)
        lab.ip(side, "address", "add", f"fd00:77::{number}/64", "dev", interface, "nodad")
        lab.ip(side, "link", "set", interface, "up")
        lab.run(side, "ethtool", "-K", interface, "tx", "off", "rx", "off")
    lab.sysctl("b", {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    lab.ip("c", "route", "add", "10.9.0.0/24", "via", "10.77.0.1")
    lab.ip("c", "route", "add", "fd00:9::/64", "via", "fd00:77::1")


def test_what_leaves_the_far_host_has_right_checksums(lab, third, tmp_path):
    key = key_files(tmp_path)
    words = tunnel_words("a", key["a"], key["b"][1], "--queues", "2")
    words[words.index("--peer") + 1] += (
        ",allowed-ips=10.9.0.0/24+fd00:9::/64+10.77.0.0/24+fd00:77::/64")
    lab.fastpump("b", *tunnel_words("b", key["b"], key["a"][1], "--queues", "2"))
    lab.fastpump("a", *words)
    assert is_reachable(lab, "10.77.0.2")
    until(lambda: has_lanes(lab))
    capture = Capture(lab, "c", "far")
    for host in ("10.77.0.2", "fd00:77::2"):
        server = lab.spawn("c", "iperf3", "--server", "--one-off", "--forceflush")
        wait_for_line(server, "Server listening")
        lab.run("a", "iperf3", "--client", host, "--bytes", "3M")
        server.wait(10)
        stop(server)
        lab.processes.remove(server)
        server = lab.spawn("c", "iperf3", "--server", "--one-off", "--forceflush")
        wait_for_line(server, "Server listening")
        lab.run("a", "iperf3", "--client", host, "--udp", "--bytes", "500K", "--bitrate", "50M",
                "--length", "700")
        server.wait(10)
        stop(server)
        lab.processes.remove(server)
    counts = {}
    for frame in capture.frames():
        packet = frame[14:]
        version = packet[0] >> 4
        protocol = packet[9] if version == 4 else packet[6]
        if protocol not in (6, 17) or len(packet) > 1500:
            continue
        source = packet[12:16] if version == 4 else packet[8:24]
        if source in (bytes([10, 9, 0, 1]), bytes.fromhex("fd000009") + bytes(11) + b"\1"):
            counts[version, protocol] = counts.get((version, protocol), 0) + 1
            assert checksums_are_right(packet), packet.hex()
    assert set(counts) == {(4, 6), (4, 17), (6, 6), (6, 17)}, counts
    assert min(counts.values()) > 500, counts
    assert lab.status("a")["queues"][0]["tun_rx_superpackets"] + lab.status(
        "a")["queues"][1]["tun_rx_superpackets"] > 0


# -- status

def test_status_tells_of_lanes_in_json(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "2"):
        assert is_reachable(lab, INSIDE4["b"])
        until(lambda: has_lanes(lab))
        output = lab.run("b", sys.executable, "-m", "fastpump", "status", "--json").stdout
        (peer,) = json.loads(output)["interfaces"][0]["peers"]
        ports = {lane["endpoint"].rpartition(":")[2] for lane in peer["lanes"]}
        assert len(ports) == 2 and "51820" not in ports
        assert set(peer["lanes"][0]) == {"lane", "worker", "state", "endpoint", "tx_messages",
                                         "tx_bytes", "rx_bytes", "rx_counter", "records"}
        there = peer_of(lab, "a")["lanes"]
        assert {lane["endpoint"] for lane in there} == {f"{OUTSIDE4['b']}:51820"}
