"""`fastpump tap`: TAPs that stay, all that were asked for or none, and what guests are told."""

import json
import os
import re
import shlex
import sys
from types import SimpleNamespace

import pytest
from test_interfaces import (
    GROUP,
    HOLD,
    MANUAL,
    NO_PI,
    TAP,
    TUN,
    USER,
    VNET_HDR,
    hold,
    keys_of,
    let_go,
    seen,
)

import fastpump
from fastpump.cli.main import main
from fastpump.errors import ConfigError
from fastpump.host import monitors, taps
from fastpump.lab.networks import need, stop
from support.hosts import FASTPUMP, as_user, until, with_tun_device

COUNT = 1000
FIRECRACKER_FLAGS = TAP | NO_PI | VNET_HDR


def tap(lab, *words, side="a"):
    """Run `fastpump tap`; what it prints."""
    return lab.run(side, *FASTPUMP, "tap", *words).stdout


def refusal(lab, *words):
    """The one line that says why it refuses."""
    result = lab.run("a", *FASTPUMP, "tap", *words, check=False)
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def listed(lab):
    return {entry["name"]: entry for entry in json.loads(tap(lab, "list", "--json"))["taps"]}


def in_namespace(lab, program, *words):
    """Run Python inside; what it prints."""
    return lab.run("a", sys.executable, "-c", program, *words).stdout


@pytest.mark.netns
def test_a_tap_as_guests_want_it(lab):
    assert tap(lab, "create", "vm0", "vm-1") == "created vm0, vm-1\n"
    for name in ("vm0", "vm-1"):
        entry = listed(lab)[name]
        assert entry["kind"] == "tap" and entry["is_up"] and entry["mtu"] == 1500
        assert entry["tuntap"] == {
            "is_persistent": True, "is_multi_queue": False, "has_vnet_header": True,
            "owner": None, "group": None, "attached_queues": 0, "holders": []}
    assert tap(lab, "delete", "vm0", "vm-1", "vm0") == "deleted vm0, vm-1\n"
    assert listed(lab) == {} and "no persistent TAP" in tap(lab, "list")


@pytest.mark.netns
def test_all_that_can_be_said_of_a_tap(lab):
    lab.ip("a", "link", "add", "br0", "type", "bridge")
    tap(lab, "create", "--count", "3", "--prefix", "vm", "--user", USER, "--group", "2",
        "--bridge", "br0", "--mac", "02:00:00:00:00:ff", "--mtu", "9000", "--multi-queue",
        "--no-vnet-hdr", "--down")
    found = listed(lab)
    assert list(found) == ["vm0", "vm1", "vm2"]
    assert [entry["mac"] for entry in found.values()] == [
        "02:00:00:00:00:ff", "02:00:00:00:01:00", "02:00:00:00:01:01"]
    for entry in found.values():
        assert (entry["master"], entry["mtu"], entry["is_up"]) == ("br0", 9000, False)
        tuntap = entry["tuntap"]
        assert (tuntap["owner"], tuntap["group"]) == (1, 2)
        assert tuntap["is_multi_queue"] and not tuntap["has_vnet_header"]
    assert re.search(rf"^vm0 +down +br0 +multi-queue, 0 attached, owner {USER}, group {GROUP} "
                     r"+nobody$", tap(lab, "list"), re.MULTILINE)


@pytest.mark.netns
def test_its_owner_may_open_it_and_others_may_not(lab):
    tap(lab, "create", "vm0", "--user", "1")
    for number, may in ((1, True), (2, False)):
        result = lab.run("a", *with_tun_device(0o666, *as_user(
            number, sys.executable, "-c", HOLD.replace("sleep(600)", "sleep(0)"), "vm0",
            hex(FIRECRACKER_FLAGS), "1")), check=False)
        assert (result.returncode == 0) == may, result.stderr
        assert may or "PermissionError: [Errno 1]" in result.stderr


@pytest.mark.netns
def test_firecracker_takes_single_queue_taps_only(lab):
    """What the manual says of --multi-queue: opened as Firecracker opens it."""
    tap(lab, "create", "one")
    tap(lab, "create", "many", "--multi-queue")
    let_go(lab, hold(lab, "a", "one", FIRECRACKER_FLAGS))
    result = lab.run("a", sys.executable, "-c", HOLD, "many", hex(FIRECRACKER_FLAGS), "1",
                     check=False)
    assert "[Errno 22] Invalid argument" in result.stderr


@pytest.mark.netns
def test_a_thousand_taps_come_and_go_in_one_call(lab):
    lab.ip("a", "link", "add", "br0", "type", "bridge")
    output = tap(lab, "create", "--count", str(COUNT), "--prefix", "vm", "--bridge", "br0")
    assert output == f"created {COUNT} TAPs: vm0 to vm{COUNT - 1}\n"
    found = listed(lab)
    assert list(found) == [f"vm{number}" for number in range(COUNT)]
    assert all(entry["is_up"] and entry["master"] == "br0" for entry in found.values())
    assert tap(lab, "delete", "--prefix", "vm").startswith(f"deleted {COUNT} TAPs")
    assert list(seen(lab)) == ["lo", "wire", "br0"]


@pytest.mark.netns
def test_none_is_left_when_one_fails(lab):
    """The bridge is full in the middle."""
    lab.ip("a", "link", "add", "br0", "type", "bridge")
    line = refusal(lab, "create", "--count", "1030", "--prefix", "vm", "--bridge", "br0")
    assert line == ("fastpump: the TAP vm1023 cannot be set up in the bridge br0, which is full: a "
                    "bridge has at most 1023 ports; take another bridge for the rest")
    assert list(seen(lab)) == ["lo", "wire", "br0"]


@pytest.mark.netns
def test_none_is_left_when_it_is_interrupted(lab):
    process = lab.spawn("a", *FASTPUMP, "tap", "create", "--count", "10000", "--prefix", "vm")
    until(lambda: lab.ip("a", "link", "show", "vm50", check=False), timeout_s=60)
    stop(process, timeout_s=60)
    assert process.returncode == 143
    assert list(seen(lab)) == ["lo", "wire"]


REFUSALS = [
    (("create",), "give either the TAPs' names, or --count N and --prefix PREFIX"),
    (("create", "x", "--count", "2", "--prefix", "vm"), "give either"),
    (("create", "--count", "2"), "--count and --prefix go together"),
    (("create", "x", "--prefix", "vm"), "--count and --prefix go together"),
    (("create", "--count", "0", "--prefix", "vm"), "1 to 10000"),
    (("create", "wire"), "the interface wire exists already; choose another name"),
    (("create", "new", "old"), "delete it: fastpump tap delete old"),
    (("create", "x", "y", "x"), "x is named twice"),
    (("create", "a/b"), "invalid interface name 'a/b'"),
    (("create", "--count", "11", "--prefix", "fourteen-bytes"),
     "invalid interface name 'fourteen-bytes10'"),
    (("create", "x", "--user", "nobody-of-that-name"), "there is no user 'nobody-of-that-name'"),
    (("create", "x", "--group", "4294967295"), "there is no group '4294967295'"),
    (("create", "x", "--user", "9" * 5000), "there is no user"),
    (("create", "x", "--bridge", "br7"), "there is no bridge br7: make it with `ip link add br7 "
     "type bridge`, or let `fastpump tunnel --tap --bridge br7` make it"),
    (("create", "x", "--bridge", "wire"), "wire is not a bridge (its kind: veth)"),
    (("create", "x", "--mac", "01:00:00:00:00:00"), "the first an even number"),
    (("create", "x", "--mac", "00:00:00:00:00:00"), "the first an even number"),
    (("create", "x", "--mac", "2:0:0:0:0:1"), "six bytes like 02:00:00:00:00:01"),
    (("create", "x", "y", "--mac", "fe:ff:ff:ff:ff:ff"), "leaves the usable MACs"),
    (("create", "x", "--mac", "02:00:00:00:00:01", "--guest-mac", "02:00:00:00:00:01", "--qemu"),
     "must differ"),
    (("create", "x", "--mtu", "67"), "68 to 65521"),
    (("create", "x", "--queues", "2"), "--multi-queue and --qemu too"),
    (("create", "x", "--firecracker", "--multi-queue"),
     "Firecracker cannot open a multi-queue TAP; leave out --multi-queue"),
    (("create", "x", "--firecracker", "--qemu"), "cannot be combined"),
    (("create", "x", "--rate-limit", "1"), "give --firecracker too"),
    (("create", "x", "--guest-mac", "02:00:00:00:00:01"), "give one of them too"),
    (("delete",), "give either the TAPs' names, or --prefix PREFIX"),
    (("delete", "old", "x"), "there is no TAP x; `fastpump tap list`"),
    (("delete", "old", "wire"), "wire is not a TAP (its kind: veth); `fastpump tap list` lists"),
    (("delete", "tun0"), "tun0 is not a TAP (its kind: tun)"),
    (("delete", "--prefix", "ol"), "there is no TAP ol0 or with another number"),
]


@pytest.mark.netns
def test_refusals_say_what_is_expected(lab):
    tap(lab, "create", "old")
    lab.ip("a", "tuntap", "add", "tun0", "mode", "tun")
    program = (
        "import contextlib, io, json, sys; from fastpump.cli import main as cli\n"
        "def refuse(words):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        try:\n"
        "            status = cli.main(['tap', *words])\n"
        "        except SystemExit as ended:\n"
        "            status = ended.code\n"
        "    return status, said.getvalue()\n"
        "print(json.dumps([refuse(words) for words in json.load(sys.stdin)]))\n")
    answers = json.loads(lab.run("a", sys.executable, "-c", program, input=json.dumps(
        [words for words, _ in REFUSALS])).stdout)
    for (words, complaint), (status, said) in zip(REFUSALS, answers, strict=True):
        assert status in (1, 2) and complaint in said.splitlines()[-1], words
        assert "ip link delete" not in said
    assert list(seen(lab)) == ["lo", "wire", "old", "tun0"]


@pytest.mark.netns
@pytest.mark.parametrize(("mode", "words", "complaint"), [
    (0o666, ("create", "x"), "the TAP x cannot be created: Operation not permitted"),
    (0o600, ("create", "x"), "/dev/net/tun cannot be opened: Permission denied"),
    (0o600, ("delete", "vm0"), "nothing was deleted: Operation not permitted"),
])
def test_missing_permission_is_said(lab, mode, words, complaint):
    tap(lab, "create", "vm0")
    result = lab.run("a", *with_tun_device(mode, *as_user(65534, *FASTPUMP, "tap", *words)),
                     check=False)
    assert (result.returncode, result.stderr) == (
        1, f"fastpump: {complaint}; run as root, or with CAP_NET_ADMIN\n")
    assert list(listed(lab)) == ["vm0"]


@pytest.mark.netns
def test_a_tap_that_is_held_is_kept_unless_forced(lab):
    tap(lab, "create", "vm0", "vm1")
    holder = hold(lab, "a", "vm1", FIRECRACKER_FLAGS)
    who = f"{seen(lab)['vm1']['tuntap']['holders'][0]['command']} (pid {holder.pid})"
    assert who in tap(lab, "list")
    assert refusal(lab, "delete", "vm0", "vm1") == (
        f"fastpump: vm1 is in use by {who}: end it first, or delete with --force, which cuts it "
        "off (nothing was deleted)")
    assert set(listed(lab)) == {"vm0", "vm1"}
    assert tap(lab, "delete", "--force", "vm0", "vm1") == "deleted vm0, vm1\n"
    assert listed(lab) == {} and holder.poll() is None      # cut off, not ended


@pytest.mark.netns
def test_what_a_process_sees_when_its_tap_is_deleted(lab):
    """What the manual says of --force."""
    tap(lab, "create", "vm0")
    program = HOLD.replace("time.sleep(600)", (
        "import errno, select, subprocess\n"
        "subprocess.run([sys.executable, '-m', 'fastpump', 'tap', 'delete', '--force', name],"
        " check=True)\n"
        "poll = select.poll(); poll.register(fds[0], select.POLLIN)\n"
        "assert poll.poll(0)[0][1] & select.POLLERR\n"
        "for call in (lambda: os.read(fds[0], 2000), lambda: os.write(fds[0], bytes(100))):\n"
        "    try:\n"
        "        call()\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"))
    assert in_namespace(lab, program, "vm0", hex(FIRECRACKER_FLAGS), "1").splitlines()[-2:] == [
        "EBADFD", "EBADFD"]


@pytest.mark.netns
def test_a_prefix_is_followed_by_a_number(lab):
    tap(lab, "create", "vm0", "vm12", "vmware0", "vm", "vm1x")
    assert tap(lab, "delete", "--prefix", "vm") == "deleted vm0, vm12\n"
    assert set(listed(lab)) == {"vmware0", "vm", "vm1x"}


@pytest.mark.netns
def test_users_of_an_interface(lab):
    tap(lab, "create", "vm0", "vm1")
    lab.ip("a", "tuntap", "add", "tun0", "mode", "tun")
    holders = {name: hold(lab, "a", name, flags)
               for name, flags in (("vm0", FIRECRACKER_FLAGS), ("tun0", TUN | NO_PI))}
    program = ("import sys; from fastpump.host.taps import users_of\n"
               "for name in sys.argv[1:]: print(users_of(name))")
    lines = in_namespace(lab, program, "vm0", "tun0", "vm1", "wire", "nothing").splitlines()
    assert [re.sub(r"^\S+ ", "", line) for line in lines] == [
        f"(pid {holders['vm0'].pid})", f"(pid {holders['tun0'].pid})", "None", "None", "None"]


# -- what monitors are told

@pytest.mark.netns
def test_firecrackers_configuration(lab):
    words = ("--count", "2", "--prefix", "vm", "--firecracker")
    first = json.loads(tap(lab, "create", *words))
    assert [(each["iface_id"], each["host_dev_name"]) for each in first] == [
        ("vm0", "vm0"), ("vm1", "vm1")]
    macs = [each["guest_mac"] for each in first]
    assert len({*macs, *(entry["mac"] for entry in listed(lab).values())}) == 4
    assert all(mac.startswith("02:") for mac in macs)
    tap(lab, "delete", "--prefix", "vm")
    assert json.loads(tap(lab, "create", *words)) == first
    other = json.loads(tap(lab, "create", *words, side="b"))    # the same names on another host
    assert not set(macs) & {each["guest_mac"] for each in other}


@pytest.mark.netns
def test_a_guests_mac_is_never_that_of_its_tap(lab):
    (made,) = json.loads(tap(lab, "create", "vm0", "--firecracker"))
    tap(lab, "delete", "vm0")
    (again,) = json.loads(tap(lab, "create", "vm0", "--firecracker", "--mac", made["guest_mac"]))
    assert again["guest_mac"] != made["guest_mac"] == listed(lab)["vm0"]["mac"]


def test_interface_ids_have_letters_digits_and_underscores():
    """Firecracker's API takes no others."""
    made = [taps.Tap("vm-0", "02:00:00:00:00:01"), taps.Tap("net0", "02:00:00:00:00:02")]
    ids = [each["iface_id"] for each in json.loads(monitors.firecracker_json(made, {}))]
    assert ids == ["net0", "net1"]


@pytest.fixture
def limits(monkeypatch):
    """A parser of rate limits that takes "fast" and "none"; what `create` is asked for."""
    def parse(text):
        if text not in ("fast", "none"):
            raise ConfigError(f"{text!r} is no rate limit")
        bucket = {"bandwidth": {"size": 1000, "refill_time": 100}}
        return SimpleNamespace(to_firecracker=lambda: (
            {"rx_rate_limiter": bucket} if text == "fast" else {}))

    asked = []
    monkeypatch.setitem(sys.modules, "fastpump.ratelimit", SimpleNamespace(parse=parse))
    monkeypatch.setattr(fastpump, "ratelimit", sys.modules["fastpump.ratelimit"], raising=False)
    monkeypatch.setattr(taps, "create", lambda config: asked.append(config) or [
        taps.Tap(name, "02:00:00:00:00:01") for name in config.names])
    monkeypatch.setattr("fastpump.process.signals.exit_on_signals", lambda: None)
    return asked


@pytest.mark.parametrize(("spec", "keys"), [("fast", {"rx_rate_limiter"}), ("none", set())])
def test_rate_limiters(limits, capsys, spec, keys):
    assert main(["tap", "create", "vm0", "--firecracker", "--rate-limit", spec]) == 0
    (made,) = json.loads(capsys.readouterr().out)
    assert set(made) == {"iface_id", "host_dev_name", "guest_mac"} | keys


def test_a_bad_rate_limit_makes_nothing(limits, capsys):
    assert main(["tap", "create", "vm0", "--firecracker", "--rate-limit", "?"]) == 1
    assert "'?' is no rate limit" in capsys.readouterr().err and limits == []


QEMU = [
    ("vm0", 1, "-netdev tap,id=net-vm0,ifname=vm0,script=no,downscript=no,vhost=off "
     "-device virtio-net-pci,netdev=net-vm0,mac=02:00:00:00:00:01"),
    ("vm0", 4, "-netdev tap,id=net-vm0,ifname=vm0,script=no,downscript=no,vhost=off,queues=4 "
     "-device virtio-net-pci,netdev=net-vm0,mac=02:00:00:00:00:01,mq=on,vectors=10"),
    ("a,b;c", 1, "-netdev 'tap,id=net-a-b-c,ifname=a,,b;c,script=no,downscript=no,vhost=off' "
     "-device virtio-net-pci,netdev=net-a-b-c,mac=02:00:00:00:00:01"),
]


@pytest.mark.parametrize(("name", "queue_count", "arguments"), QEMU)
def test_qemus_arguments(name, queue_count, arguments):
    assert monitors.qemu_arguments(taps.Tap(name, "02:00:00:00:00:01"), queue_count) == arguments


@pytest.mark.netns
@pytest.mark.parametrize("options", [(), ("--multi-queue", "--queues", "3")],
                         ids=["one queue", "three queues"])
def test_qemu_takes_them(lab, options):
    need("qemu-system-x86_64")
    arguments = shlex.split(tap(lab, "create", "a,b", "--qemu", *options))
    machine = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "16",
               "-display", "none", "-nodefaults", "-S", "-monitor", "stdio"]
    lab.spawn("a", *machine, *arguments)
    (holder,) = until(lambda: listed(lab)["a,b"]["tuntap"]["holders"], timeout_s=30)
    assert (holder["command"], holder["fds"]) == ("qemu-system-x86", 3 if options else 1)
    assert "in use by qemu-system-x86 (pid" in refusal(lab, "delete", "a,b")


@pytest.mark.netns
def test_the_manual_has_every_key_of_the_list(lab):
    tap(lab, "create", "vm0")
    output = json.loads(tap(lab, "list", "--json"))
    assert set(output) == {"taps"}
    text = MANUAL.read_text()
    assert "taps[]" in text.split("\n### tap\n")[1].split("\n### ")[0]
    section = text.split("\n### interfaces\n")[1].split("\n### ")[0]
    assert keys_of(output["taps"]) <= set(re.findall(r"\w+", section))


@pytest.mark.parametrize("words", [("interfaces",), ("tap",), ("tap", "create"),
                                   ("tap", "delete"), ("tap", "list")])
def test_help_is_plain_text_and_in_the_manual(capsys, words):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert text.isascii()
    manual = MANUAL.read_text()
    for option in re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE):
        assert f"**{option}**" in manual, option


def test_numbers_and_names_of_users():
    assert taps.parse_user("root") == taps.parse_user("0") == os.getuid() == 0
    assert taps.parse_group("root") == 0 and taps.parse_group("4000000000") == 4_000_000_000


@pytest.mark.netns
def test_large_numbers_of_users(lab):
    tap(lab, "create", "vm0", "--user", "4000000000", "--group", "4294967294")
    tuntap = listed(lab)["vm0"]["tuntap"]
    assert (tuntap["owner"], tuntap["group"]) == (4_000_000_000, 4_294_967_294)
