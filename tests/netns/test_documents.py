"""Every command of README.md and docs/ runs as it stands there, or is listed with the reason why it
cannot. Every configuration file in them is one."""

import os
import re
import time

import pytest

from support.documents import DOCUMENTS, Stage, commands, files
from support.hosts import until

THOUSAND = "tests/netns/test_taps.py makes, lists and deletes a thousand TAPs"
BETWEEN_HOSTS = "run between namespaces by tests/netns/test_bench_runs.py"
MEASURES = "measures for minutes, on a machine that does nothing else"
NOT_RUN = {
    "make demo": "installs packages; what it then runs is run by tests/netns/test_demo.py",
    "make test": "runs this test",
    "sudo apt install build-essential pkg-config python3-dev python3-venv libssl-dev "
    "libipsec-mb-dev": "changes the host",
    "sudo python3 -m venv /opt/fastpump": "run by tests/build/test_packages.py",
    "sudo /opt/fastpump/bin/pip install .": "run by tests/build/test_packages.py",
    "sudo ln -s /opt/fastpump/bin/fastpump /opt/fastpump/bin/fastpump-wg /usr/local/bin/":
        "run by tests/build/test_packages.py",
    "sudo systemctl link /opt/fastpump/lib/systemd/system/fastpump@.service":
        "needs a system that systemd runs",
    "sudo dhclient lan": "needs a DHCP server behind the other end",
    "time fastpump tap create --count 1000 --prefix vm --bridge br0": THOUSAND,
    "time fastpump tap list": THOUSAND,
    "time fastpump tap delete --prefix vm": THOUSAND,
    'make bench WIREGUARD_GO=/path/to/wireguard-go BENCH_OPTIONS="--json figures.json"': MEASURES,
    'make bench-lanes BENCH_OPTIONS="--rounds 5"': MEASURES,
    "make bench-limits": MEASURES,
    "fastpump bench --rounds 5 --only fastpump,wireguard-go": MEASURES,
    "fastpump bench --topology gateways --rounds 5 --program "
    "wireguard-go=/path/to/wireguard-go": MEASURES,
    "fastpump bench --server": BETWEEN_HOSTS,
    "fastpump bench --client 10.9.0.2 --name wireguard --process wireguard-go --json hosts.json":
        BETWEEN_HOSTS,
    "fastpump bench report hosts.json --html hosts.html": BETWEEN_HOSTS,
    'fastpump bench --rounds 5 --queues 1 --only "fastpump,fastpump tap,fastd,tinc" --tunnel '
    '"--mtu 1382"': MEASURES,
}


@pytest.fixture
def stage(tmp_path):
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run the suite as root (make test)")
    with Stage(tmp_path / "stage") as made:
        yield made


def in_documents():
    return [command for path in DOCUMENTS for command in commands(path)]


def test_every_command_is_run_or_has_a_reason():
    """By the name of the command alone: each test below says what it runs as it stands there."""
    there = set(in_documents())
    assert len(there) > 30
    run = RUN.keys()
    assert not NOT_RUN.keys() & run
    assert there == NOT_RUN.keys() | run, (there - NOT_RUN.keys() - run,
                                           (NOT_RUN.keys() | run) - there)


RUN = {}


def runs(*texts):
    """Marks the test that runs these commands; they are what it is given, in this order."""
    def mark(function):
        RUN.update(dict.fromkeys(texts, function))

        def test(stage):
            function(stage, *texts)
        test.__name__, test.__doc__ = function.__name__, function.__doc__
        return test
    return mark


def public_key(line):
    return re.search(r"public key (\S{44}),", line)[1]


def is_answered(stage, side, host):
    return stage.run(side, f"ping -c 1 -W 5 {host} > /dev/null && echo yes") == "yes\n"


@runs("sudo fastpump tunnel --address 10.9.0.1/24",
      "sudo fastpump tunnel --address 10.9.0.2/24 --peer A_PUBLIC_KEY@a.example.net:51820",
      "sudo fastpump tunnel --address 10.9.0.1/24 --peer B_PUBLIC_KEY",
      "ping -c 3 10.9.0.1")
def test_two_hosts(stage, first, other, again, ping):
    """README, from the top: B is started with A's key, A again with B's; then B pings."""
    service, line = stage.start("a", first)
    stage.words["A_PUBLIC_KEY"] = public_key(line)
    _, line = stage.start("b", other)
    stage.words["B_PUBLIC_KEY"] = public_key(line)
    said = stage.end(service)
    assert "\n    fastpump tunnel " in said and stage.words["A_PUBLIC_KEY"] in said
    _, line = stage.start("a", again)
    assert public_key(line) == stage.words["A_PUBLIC_KEY"]
    assert "3 received" in stage.run("b", ping)
    assert is_answered(stage, "a", "10.9.0.2")
    assert "\n  endpoint: 192.0.2.2:" in stage.run("a", "fastpump status").replace("    ", "  ")


@runs("sudo fastpump tunnel --address 10.9.0.1/24 --peer "
      "B_KEY@b.example.net:51820,allowed-ips=10.9.0.2/32+192.168.7.0/24,keepalive=25")
def test_two_networks(stage, command):
    stage.make_key("B_KEY")
    stage.start("a", command)
    assert " dev fp0 " in stage.run("a", "ip route get 192.168.7.1")


@runs("sudo fastpump check wg0", "sudo fastpump up wg0", "sudo fastpump reload wg0",
      "sudo fastpump down wg0", "fastpump up wg0", "fastpump reload wg0")
def test_a_tunnel_from_the_file_of_the_readme(stage, check, *commands):
    (text,) = files(DOCUMENTS[0])
    stage.make_key("ITS_PUBLIC_KEY")
    stage.make_key("OUR")
    stage.words["OUR_PRIVATE_KEY"] = stage.words["PRIVATE_OUR"]
    path = stage.etc / "fastpump" / "wg0.conf"
    path.write_text(stage.filled(text))
    path.chmod(0o600)
    assert " is good: interface wg0, 1 address, 1 peer\n" in stage.run("a", check)
    up, reload, down, up_again, reload_again = commands
    for one, two in ((up, reload), (up_again, reload_again)):
        assert stage.run("a", one) == (f"wg0 is up: UDP port 51820, 1 peer, public key "
                                       f"{stage.words['OUR']}\n")
        assert "inet 10.9.0.1/24" in stage.run("a", "ip address show wg0")
        assert stage.run("a", two) == "changed: nothing\n"
        stage.run("a", down)
        assert "wg0" not in stage.run("a", "ip link")


TWO_PEERS = ("KEY1", "KEY2")


@runs("fastpump tunnel --address 10.9.0.1/24 --peer KEY1,allowed-ips=10.9.0.2/32 --peer "
      "KEY2,allowed-ips=10.9.0.3/32+192.168.3.0/24")
def test_a_gateway(stage, command):
    for word in TWO_PEERS:
        stage.make_key(word)
    stage.start("a", command)
    assert stage.run("a", "fastpump status").count("peer: ") == 2


@runs("fastpump tunnel --gateway --address 10.9.0.1/24 --peer KEY1",
      "fastpump tunnel --address 10.9.0.2/24 --peer KEY2@vpn.example.net:51820,"
      "allowed-ips=10.9.0.0/24+192.168.7.0/24")
def test_a_router_and_its_client(stage, gateway, client):
    for word in TWO_PEERS:
        stage.make_key(word)
    stage.start("a", gateway)
    assert "masquerade" in stage.run("a", "nft list ruleset")
    stage.start("b", client)
    assert "192.168.7.0/24" in stage.run("b", "ip route show dev fp0")


@runs("fastpump tunnel vms --tap --bridge br0 --rate-limit both=1gbit --peer "
      "KEY1@one.example.net:51820 --peer KEY2@two.example.net:51820",
      "fastpump limit vms @/srv/vm1/interface.json", "fastpump limit vms KEY1 off")
def test_an_ethernet_of_three_hosts_and_its_limits(stage, command, from_file, off):
    for word in TWO_PEERS:
        stage.make_key(word)
    stage.start("a", command)
    limits = stage.etc / "interface.json"
    limits.write_text('{"iface_id": "e", "rx_rate_limiter": {"bandwidth": {"size": 1000000, '
                      '"refill_time": 100}}}')
    stage.run("a", from_file.replace("/srv/vm1", "/etc"))       # there is no /srv/vm1 here
    assert stage.run("a", "fastpump limit vms") == "rx 80 Mbit/s (1 MB at once)\n"
    stage.run("a", off)


@runs("sudo fastpump tunnel vms --tap --bridge br0 --peer KEY@other.example.net:51820",
      "sudo fastpump tap create vm0 --bridge br0 --firecracker",
      "fastpump tap create fc0 --bridge br0 --user alice --firecracker",
      "fastpump tap create vm0 --bridge br0 --user alice --multi-queue --queues 4 --qemu")
def test_taps_in_a_bridge(stage, tunnel, readme, firecracker, qemu):
    with (stage.etc / "passwd").open("a") as file:
        file.write("alice:x:4711:4711::/:/bin/sh\n")
    stage.make_key("KEY")
    stage.start("a", tunnel)
    assert '"host_dev_name": "vm0"' in stage.run("a", readme)
    stage.run("a", "fastpump tap delete vm0")
    assert '"host_dev_name": "fc0"' in stage.run("a", firecracker)
    assert "queues=4" in stage.run("a", qemu)


@runs("sudo fastpump tunnel vms --tap --bridge br0 --address 10.77.0.1/24",
      "sudo fastpump tunnel vms --tap --bridge br0 --address 10.77.0.2/24 --peer "
      "KEY_OF_ONE@one.example.net:51820",
      "sudo fastpump tap create fc0 --bridge br0 --user alice --firecracker --rate-limit "
      "both=500mbit,burst=1mb > network.json")
def test_two_firecracker_hosts(stage, one, two, tap):
    """docs/ethernet.md, step by step."""
    with (stage.etc / "passwd").open("a") as file:
        file.write("alice:x:4711:4711::/:/bin/sh\n")
    service, line = stage.start("a", one)
    stage.words["KEY_OF_ONE"] = public_key(line)
    _, line = stage.start("b", two)
    stage.end(service)
    stage.start("a", f"{one} --peer {public_key(line)}")
    assert is_answered(stage, "b", "10.77.0.1")
    until(lambda: "transport: lanes" in stage.run("a", "fastpump status vms")
          or (not time.sleep(0.2) and None))
    assert is_answered(stage, "a", "10.77.0.2")
    stage.run("a", tap)
    assert '"rx_rate_limiter"' in stage.run("a", "cat network.json")


@runs("fastpump tunnel vms --tap --bridge vmbr1 --peer KEY@other-node:51820")
def test_a_proxmox_node(stage, command):
    stage.make_key("KEY")
    stage.run("a", "ip link add vmbr1 type bridge")
    stage.start("a", command)


@runs("sudo fastpump tunnel lan --tap --bridge br0 --attach eth1 --peer "
      "KEY_OF_SERVER@server.example.net:51820,keepalive=25",
      "sudo fastpump tunnel lan --tap --peer KEY_OF_HOME")
def test_a_home_lab(stage, home, server):
    stage.run("b", "ip link add eth1 type veth peer name plug")
    stage.make_key("KEY_OF_SERVER")
    stage.make_key("KEY_OF_HOME")
    stage.start("b", home)
    stage.start("a", server)


@runs("fastpump-wg wg0", "wg setconf wg0 wg0.conf", "ip address add 10.9.0.1/24 dev wg0",
      "ip link set wg0 up", "ip link set wg0 netns inside")
def test_an_interface_for_wg(stage, create, setconf, address, up, move):
    """By hand, and with its sockets outside of the namespace that it is in."""
    stage.make_key("OUR")
    stage.run("a", "echo '[Interface]\nPrivateKey = PRIVATE_OUR' > wg0.conf")
    for command in (create, setconf, address, up):
        stage.run("a", command)
    assert stage.words["OUR"] in stage.run("a", "wg show wg0")
    stage.run("a", move)
    assert "wg0" in stage.run("inside", "ip link")
    stage.run("inside", "ip link delete wg0")


@runs("WG_QUICK_USERSPACE_IMPLEMENTATION=fastpump-wg wg-quick up wg0")
def test_wg_quick(stage, command):
    stage.make_key("OUR")
    path = stage.etc / "wireguard" / "wg0.conf"
    path.write_text(stage.filled("[Interface]\nPrivateKey = PRIVATE_OUR\nAddress = 10.9.0.2/24\n"))
    path.chmod(0o600)
    stage.run("a", command)
    assert "inet 10.9.0.2/24" in stage.run("a", "ip address show wg0")
    stage.run("a", "wg-quick down wg0")


def test_files_are_good(stage):
    """With keys in place of the words and dots that stand for them."""
    for word in ("ITS_PUBLIC_KEY", "OUR", "KEY_1", "KEY_2"):
        stage.make_key(word)
    stage.words["OUR_PRIVATE_KEY"] = stage.words["PRIVATE_OUR"]
    texts = [text for path in DOCUMENTS for text in files(path)]
    assert len(texts) >= 5
    for text in texts:
        filled = stage.filled(text.replace("PrivateKey = ...", "PrivateKey = OUR_PRIVATE_KEY")
                              .replace("PublicKey = ...", "PublicKey = ITS_PUBLIC_KEY"))
        file = stage.etc / "fastpump" / "wg0.conf"
        file.write_text(filled)
        file.chmod(0o600)
        assert " is good: interface wg0, " in stage.run("a", "fastpump check wg0"), text
