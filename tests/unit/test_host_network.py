"""What a tunnel of a file changes on the host, when a step of it fails, and what is undone."""

import json
from ipaddress import ip_interface, ip_network
from types import SimpleNamespace

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from fastpump import paths
from fastpump.errors import SystemSetupError
from fastpump.host import dns, network, protection, undo_record
from fastpump.host.down_commands import DownCommands
from fastpump.host.network import HostNet, HostState, find_leftover
from fastpump.netlink import links, routes, rules

ONE, TWO = (ip_interface(f"10.9.0.{number}/24") for number in (1, 2))
ALL, NEAR = ip_network("0.0.0.0/0"), (ip_network("10.1.0.0/16"), 254)
NAME = "wg0"


class World:
    """A host in place of the kernel's, nft and resolvconf; the next call of what is in `failing`
    fails, and does nothing or, of several things, the first one."""

    def __init__(self, monkeypatch):
        self.addresses, self.routes, self.rules, self.closed = set(), set(), {}, set()
        self.protected = self.dns = None
        self.hosts = []
        self.failing, self.priority = set(), 32765
        monkeypatch.setattr(network, "SRC_VALID_MARK", SimpleNamespace(read_text=lambda: "1"))
        monkeypatch.setattr(routes, "closed", lambda table: {
            network for network, where in self.closed if where == table})
        for module, *names in (
                (routes, "change_addresses", "change_routes", "unused_table", "close", "reopen"),
                (dns, "choose", "set_dns", "unset_dns")):
            for name in names:
                monkeypatch.setattr(module, name, getattr(self, name))
        table = SimpleNamespace(name="fastpump-wg0", make=self.protect, remove=self.unprotect,
                                is_as_made=lambda: True)
        monkeypatch.setattr(protection, "table", lambda _: table)
        monkeypatch.setattr(protection, "chains", lambda _name, addresses, mark: (
            set(addresses), mark))
        monkeypatch.setattr(links, "get", lambda _: SimpleNamespace(is_up=True))
        for name in ("unused_priority", "add", "remove", "add_missing"):
            monkeypatch.setattr(rules, name, getattr(
                self, name if name == "unused_priority" else f"{name}_rules"))

    def host(self, name=NAME):
        """A tunnel's, and its table."""
        made = HostState(name, DownCommands())
        self.hosts.append(made)
        return made, made.take_table(0, 51820)

    def _may_fail(self, what, error=SystemSetupError):
        if what in self.failing:
            self.failing.remove(what)
            raise error(f"{what} failed")

    def change_addresses(self, _index, gone, wanted):
        return self._change(self.addresses, "addresses", gone, wanted)

    def change_routes(self, _index, gone, wanted):
        return self._change(self.routes, "routes", gone, wanted)

    def _change(self, there, what, gone, wanted):
        before = set(there)
        there.difference_update(gone)
        for each in wanted:
            there.add(each)
            self._may_fail(what)
        return there != before

    def close(self, network, table):
        self._may_fail("closing")
        self.closed.add((network, table))

    def reopen(self, network, table):
        self.closed.remove((network, table))

    def unused_priority(self, _version, _pairs):
        return self.priority

    def unused_table(self, first, taken):
        return next(table for table in range(first, first + 99) if table not in taken)

    def add_rules(self, made):
        self._may_fail("rules")
        if (made.version, made.priority) in self.rules:
            self.priority -= 2      # as the other one has it, the next search finds another
            return False
        assert any(table == made.table for _, table in self.closed)
        self.rules[made.version, made.priority] = made.table
        return True

    def add_missing_rules(self, made):
        is_missing = (made.version, made.priority) not in self.rules
        self.rules[made.version, made.priority] = made.table
        return is_missing

    def remove_rules(self, made):
        self._may_fail("removal", lambda text: NetlinkError(95, text))
        if self.rules.get((made.version, made.priority)) == made.table:
            del self.rules[made.version, made.priority]

    def protect(self, chains):
        self._may_fail("nft")
        self.protected = chains

    def unprotect(self):
        self._may_fail("nft")
        self.protected = None

    def choose(self, _index, way):
        return way or dns.Way("resolvconf")

    def set_dns(self, _way, _record, servers, _domains):
        self.dns = servers
        self._may_fail("resolvconf")

    def unset_dns(self, _way, _record):
        self.dns = None
        self._may_fail("resolvconf")

    def state(self):
        return self.addresses, self.routes, self.rules, self.protected, self.dns


@pytest.fixture
def world(monkeypatch):
    made = World(monkeypatch)
    yield made
    for host in made.hosts:
        host._record.release()


def net(*addresses, table=51820, full=True, near=(), dns=()):
    return HostNet(addresses, routes=((ALL, table), *near) if full else near, dns=dns,
                   default_table=table)


def expected(*addresses, near=(), dns=None):
    return (set(addresses), {(ALL, 51820), *near}, {(4, 32765): 51820}, (set(addresses), 51820),
            dns)


def record(name=NAME):
    return json.loads((paths.runtime_dir() / f"{name}.json").read_text())


@pytest.mark.parametrize("what, wanted", [
    ("addresses", net(ONE, TWO)), ("nft", net(ONE, TWO)), ("nft", net(TWO)),
    ("resolvconf", net(ONE, dns=("10.0.0.1",))), ("routes", net(ONE, near=(NEAR,))),
])
@pytest.mark.parametrize("then", ["again", "back"])
def test_after_a_step_that_failed_the_next_change_does_it_all(world, what, wanted, then):
    """The same change, or back to what was before."""
    host, _ = world.host()
    first = net(ONE)
    host.change(5, first)
    world.failing.add(what)
    with pytest.raises(SystemSetupError, match=what):
        host.change(5, wanted)
    if then == "again":
        host.change(5, wanted)
        assert world.state() == expected(*wanted.addresses, near=wanted.routes[1:],
                                         dns=wanted.dns or None)
    else:
        host.change(5, first)
        assert world.state() == expected(ONE)
    host.undo(keeps_commands=False)
    assert world.state()[2:] == ({}, None, None)


def test_a_firewall_that_could_not_be_removed_is_removed_by_the_next_change(world):
    host, _ = world.host()
    host.change(5, net(ONE))
    world.failing.add("nft")
    with pytest.raises(SystemSetupError):
        host.change(5, net(ONE, full=False))
    assert world.rules == {} and world.protected is not None
    assert record()["is_protected"]
    host.change(5, net(ONE, full=False))
    assert world.protected is None and not record()["is_protected"]
    host.change(5, net(ONE))
    assert world.state() == expected(ONE)


def test_rules_that_could_not_be_added_are_added_by_the_next_change(world):
    host, _ = world.host()
    world.failing.add("rules")
    with pytest.raises(SystemSetupError):
        host.change(5, net(ONE))
    assert record()["closed"] == [["0.0.0.0/0", 51820]] and world.rules == {}
    host.change(5, net(ONE))
    assert world.state() == expected(ONE) and record()["rules"] == [[4, 51820, 32765, [0], "", []]]


def test_tunnels_at_once_have_their_own_tables_and_priorities(world):
    """Also while nothing is in their tables yet, or any more."""
    first, table = world.host()
    second, other_table = world.host("wg1")
    assert (table, other_table) == (51820, 51821)
    first.change(5, net(ONE))
    second.change(6, net(TWO, table=other_table))       # it is late, and finds no other rules
    assert world.rules == {(4, 32765): 51820, (4, 32763): 51821}
    first.undo(keeps_commands=False)
    assert world.rules == {(4, 32763): 51821}
    assert world.host()[1] == 51820


def test_rules_are_written_down_before_they_are_there(world, monkeypatch):
    host, _ = world.host()
    seen = []
    monkeypatch.setattr(routes, "close", lambda *_: seen.append(record()["closed"]))
    monkeypatch.setattr(rules, "add", lambda _: not seen.append(record()["rules"]))
    host.change(5, net(ONE))
    assert seen == [[["0.0.0.0/0", 51820]], [[4, 51820, 32765, [0], "", []]]]


def test_commands_that_change_meanwhile_take_nothing_from_the_record(world, monkeypatch):
    """wg(8) may set another port while resolvconf is slow."""
    host, _ = world.host()
    commands = DownCommands("wg0.conf", ("true",), (), 51820, 31777)

    def set_dns(*_):
        host.set_commands(commands)
        assert record()["dns"] == ["resolvconf", 0, False]
        assert record()["has_dns"] and DownCommands.from_json(record()["commands"]) == commands

    monkeypatch.setattr(dns, "set_dns", set_dns)
    host.change(5, net(ONE, dns=("10.0.0.1",)))


@pytest.mark.parametrize("is_of_here", [True, False])
def test_what_a_killed_tunnel_left_is_undone_in_its_namespace_only(world, monkeypatch, is_of_here):
    host, _ = world.host()
    host.change(5, net(ONE, dns=("10.0.0.1",)))
    host._record.release()      # as its process was killed
    before = world.state()
    if not is_of_here:          # another namespace has the inode
        cookie = undo_record.namespace_cookie() + 1
        monkeypatch.setattr(network, "namespace_cookie", lambda: cookie)
    assert world.host("wg1")[1] == (51821 if is_of_here else 51820)
    left = find_leftover(NAME)
    left.undo()
    left.forget()
    assert (world.closed == set()) == is_of_here
    assert world.state()[2:] == (({}, None, None) if is_of_here else before[2:])


def test_an_error_of_any_kind_keeps_nothing_else_from_being_undone(world):
    """NetlinkError, for one, is no error of ours."""
    host, _ = world.host()
    host.change(5, net(ONE, dns=("10.0.0.1",)))
    world.failing.add("removal")
    host.undo(keeps_commands=False)
    assert world.state()[3:] == (None, None) and not (paths.runtime_dir() / f"{NAME}.json").exists()


def killed(world, wanted):
    """A tunnel whose process was killed: its routes went with the interface."""
    host, _ = world.host()
    host.change(5, wanted)
    host._record.release()
    world.routes.clear()
    world.addresses.clear()


def taken_over(world):
    left = find_leftover(NAME)
    assert left.is_closed and not left.is_empty
    left.keep()
    return world.host()


@pytest.mark.parametrize("flushed", [False, True])
def test_a_killed_tunnel_is_taken_over_rule_by_rule(world, monkeypatch, flushed):
    killed(world, net(ONE, dns=("10.0.0.1",)))
    if flushed:
        world.rules.clear()
        world.closed.clear()
    else:       # nothing of it is touched
        monkeypatch.setattr(rules, "add", None)
        monkeypatch.setattr(rules, "remove", None)
        monkeypatch.setattr(routes, "close", None)
    host, table = taken_over(world)
    assert table == 51820 and host.is_taken_over
    host.change(6, net(ONE))
    assert world.state() == expected(ONE) and world.closed == {(ALL, 51820)}
    monkeypatch.undo()


def test_another_table_is_closed_before_the_one_of_a_killed_tunnel_is_opened(world):
    killed(world, net(ONE))
    host, _ = taken_over(world)
    world.priority = 32763
    assert host.take_table(77, 51820) == 77
    remove, seen = rules.remove, []

    def look(rules):
        seen.append((dict(world.rules), set(world.closed), set(world.routes)))
        remove(rules)

    rules.remove = look          # World's monkeypatch takes it back
    host.change(6, net(ONE, table=77))
    assert seen == [({(4, 32765): 51820, (4, 32763): 77}, {(ALL, 51820), (ALL, 77)}, {(ALL, 77)})]
    assert world.rules == {(4, 32763): 77} and world.closed == {(ALL, 77)}
    assert record()["rules"] == [[4, 77, 32763, [0], "", []]]


def test_a_start_that_fails_leaves_a_killed_tunnel_closed(world):
    killed(world, net(ONE))
    host, _ = taken_over(world)
    host.set_commands(DownCommands("wg0.conf", ("false",)))
    world.failing.add("nft")
    with pytest.raises(SystemSetupError):
        host.change(6, net(ONE))
    host.leave_closed(keeps_commands=False)
    assert network.find_closed(NAME).table == 51820
    left = find_leftover(NAME)
    assert left.is_closed and not left.commands
    left.undo()
    left.forget()
    assert (world.rules, world.closed, world.protected) == ({}, set(), None)


def test_an_unreachable_route_of_somebody_else_is_not_ours_to_remove(world):
    host, _ = world.host()
    world.closed.add((ALL, 51820))
    with pytest.raises(SystemSetupError, match="there is one already"):
        host.change(5, net(ONE))
    assert record()["closed"] == []
    host.undo(keeps_commands=False)
    assert world.closed == {(ALL, 51820)}


def test_a_killed_tunnel_without_commands_and_changes_has_left_nothing(world):
    host, _ = world.host()
    host.change(5, net(ONE, full=False, near=(NEAR,)))
    host._record.release()
    left = find_leftover(NAME)
    assert left.is_empty and not network.find_closed(NAME)
    left.forget()
