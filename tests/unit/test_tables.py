"""Shared tables: longest-prefix match, slots, grace periods, steering by index."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpump._core import AttachedTables, NewKeypair, SharedTables


def address(text):
    return ipaddress.ip_address(text).packed


def insert(tables, cidr, peer):
    network = ipaddress.ip_network(cidr)
    tables.allowed_ips.insert(network.network_address.packed, network.prefixlen, peer)


def remove(tables, cidr):
    network = ipaddress.ip_network(cidr)
    tables.allowed_ips.remove(network.network_address.packed, network.prefixlen)


@pytest.fixture
def tables():
    return SharedTables.create(4, 64, 4096)


def test_longest_prefix_wins(tables):
    wide, narrow, host, six = (tables.peers.add() for _ in range(4))
    insert(tables, "0.0.0.0/0", wide)
    insert(tables, "10.0.0.0/8", narrow)
    insert(tables, "10.1.2.3/32", host)
    insert(tables, "::/0", six)
    insert(tables, "fd00::/65", host)
    for text, peer in (("192.0.2.1", wide), ("10.9.9.9", narrow), ("10.1.2.3", host),
                       ("10.1.2.2", narrow), ("2001:db8::1", six), ("fd00::1", host),
                       ("fd00:0:0:0:8000::", six)):
        assert tables.allowed_ips.lookup(address(text)) == peer, text


def test_moving_and_removing_a_prefix(tables):
    one, two = tables.peers.add(), tables.peers.add()
    insert(tables, "10.0.0.0/8", one)
    insert(tables, "10.0.0.0/8", two)
    assert tables.allowed_ips.lookup(address("10.0.0.1")) == two
    remove(tables, "10.0.0.0/8")
    remove(tables, "10.0.0.0/8")
    remove(tables, "172.16.0.0/12")
    assert tables.allowed_ips.lookup(address("10.0.0.1")) is None


networks = st.one_of(
    st.builds(lambda n, p: ipaddress.ip_network((n & 0xF0F00303 | 0x0A000000, p), strict=False),
              st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda n, p: ipaddress.ip_network((n & (0xF3 << 120 | 0xF << 62 | 3), p),
                                                strict=False),
              st.integers(0, 2**128 - 1), st.integers(0, 128)))


@settings(max_examples=200)
@given(st.lists(st.tuples(networks, st.integers(0, 7), st.booleans()), max_size=60),
       st.lists(networks, max_size=20))
def test_trie_against_brute_force(changes, probes):
    tables = SharedTables.create(1, 8, 4096)
    peers = [tables.peers.add() for _ in range(8)]
    routes = {}
    for network, peer, is_removal in changes:
        if is_removal and routes:
            victim = sorted(routes, key=str)[peer % len(routes)]
            del routes[victim]
            remove(tables, victim)
        else:
            routes[network] = peers[peer]
            insert(tables, network, peers[peer])
    for probe in [*routes, *probes]:
        where = probe.broadcast_address
        covering = [n for n in routes if n.version == where.version and where in n]
        expected = routes[max(covering, key=lambda n: n.prefixlen)] if covering else None
        assert tables.allowed_ips.lookup(where.packed) == expected


def test_nodes_are_reused_for_ever(tables):
    peer = tables.peers.add()
    for round_number in range(20000):
        insert(tables, f"10.{round_number % 200}.0.0/16", peer)
        insert(tables, f"10.{round_number % 200}.7.0/24", peer)
        remove(tables, f"10.{round_number % 200}.7.0/24")
        remove(tables, f"10.{round_number % 200}.0.0/16")
    assert tables.allowed_ips.lookup(address("10.7.7.1")) is None


def test_a_full_table_says_so():
    tables = SharedTables.create(1, 2, 4)
    peer = tables.peers.add()
    tables.peers.add()
    with pytest.raises(MemoryError, match="peer table is full"):
        tables.peers.add()
    insert(tables, "10.0.0.0/8", peer)
    with pytest.raises(MemoryError, match="allowed IPs is full"):
        for i in range(9):
            insert(tables, f"{20 + i}.0.0.0/8", peer)
    assert tables.allowed_ips.lookup(address("10.0.0.1")) == peer


def test_slots_come_back_after_a_grace_period(tables):
    for _ in range(1000):
        peer = tables.peers.add()
        slot, _ = tables.keypairs.reserve(1)
        tables.keypairs.retire(slot)
        tables.peers.remove(peer)
    assert tables.retired.reclaim() == 0 or tables.retired.reclaim() == 0


def test_removed_slots_are_refused(tables):
    peer = tables.peers.add()
    tables.peers.remove(peer)
    with pytest.raises(IndexError):
        tables.peers.set_endpoint(peer, b"")
    with pytest.raises(IndexError):
        insert(tables, "10.0.0.0/8", peer)
    for bad in (b"", b"123", bytes(5)):
        with pytest.raises(ValueError):
            tables.allowed_ips.lookup(bad)
    with pytest.raises(ValueError):
        tables.allowed_ips.insert(bytes(4), 33, tables.peers.add())
    with pytest.raises(ValueError):
        SharedTables.create(257)


def test_the_index_names_the_worker(tables):
    indices = [tables.keypairs.reserve(worker)[1] for worker in (0, 1, 2, 3, 2)]
    assert [index & 3 for index in indices] == [0, 1, 2, 3, 2]
    assert len(set(indices)) == 5
    with pytest.raises(IndexError):
        tables.keypairs.reserve(4)


def test_counters_are_taken_once_each(tables):
    slot, index = tables.keypairs.reserve(0)
    attached = AttachedTables.attach(tables.readonly_fd, tables.state_fd)
    tables.keypairs.install(slot, NewKeypair(
        local_index=index, remote_index=1, peer=tables.peers.add(), worker=0, send_key=bytes(32),
        receive_key=bytes(32), is_initiator=True, rekey_at_ns=1, rekey_rx_at_ns=1,
        reject_at_ns=1))
    assert [tables.keypairs.take_counter(slot, index) for _ in range(3)] == [0, 1, 2]
    tables.keypairs.retire(slot)
    with pytest.raises(ValueError, match="is gone"):
        tables.keypairs.take_counter(slot, index)
    assert attached.queue_count == 4
