"""Verdicts are counted for the peer, too, where one is known; and once for the worker."""

import pytest

from fastpump.constants import REJECT_AFTER_TIME
from support.packets import A4, B4, ip, udp
from support.pumps import START, message, pair

# What hosts send by themselves; and addresses that look like it.
LINK_LOCAL = ["fe80::1", "febf:ffff::1", "ff02::16", "ff01::1", "ff12::1", "::", "169.254.0.1",
              "224.0.0.22", "255.255.255.255", "0.0.0.0"]
WIDER = ["fec0::1", "fe7f::1", "ff05::2", "ff0e::1", "::1", "2001:db8::1", "169.253.0.1",
         "169.255.0.1", "224.0.1.1", "239.255.255.250", "255.255.255.254", "0.0.0.1", "192.0.2.1"]


@pytest.fixture
def ends(closed):
    return closed(pair())


def blamed(end):
    """Verdicts that are counted for the peer."""
    return end.tables.peers.verdicts(end.peer)


@pytest.mark.parametrize(("addresses", "verdict", "source_verdict"), [
    (LINK_LOCAL, "DROP_LINK_LOCAL", "DROP_LINK_LOCAL"),
    (WIDER, "DROP_NO_PEER", "DROP_SOURCE_NOT_ALLOWED"),
], ids=["link-local", "wider"])
def test_chatter_has_a_verdict_of_its_own(ends, addresses, verdict, source_verdict):
    """So that the others mean that something is wrong."""
    one, two = ends
    for address in addresses:
        version = "fd00:9::1" if ":" in address else A4
        one.give(ip(version, address, 59, b"chatter"))
    one.poll()
    assert one.verdicts() == {verdict: len(addresses)}
    assert blamed(one) == {}
    for counter, address in enumerate(addresses):
        version = "fd00:9::2" if ":" in address else B4
        one.udp.sendto(message(two, counter, ip(address, version, 59, b"chatter")),
                       two.udp.getsockname())
        two.poll()
    assert two.verdicts() == {source_verdict: len(addresses)} == blamed(two)
    assert two.take() == []


def test_a_message_is_counted_for_the_session_that_it_names(ends):
    one, two = ends
    good = message(two, 7, udp(A4, B4, b"x"))
    for datagram in (good, good, good[:-1] + bytes([good[-1] ^ 1]),
                     good[:8] + bytes(8) + good[16:], b"\4\0\0\0" + b"\xff" * 28):
        one.udp.sendto(datagram, two.udp.getsockname())
    two.poll()
    known = {"DROP_REPLAYED": 2, "DROP_UNAUTHENTIC": 1}
    assert two.verdicts() == {**known, "DROP_UNKNOWN_INDEX": 1}
    assert blamed(two) == known
    one.udp.sendto(message(two, 8, udp(A4, B4, b"x")), two.udp.getsockname())
    two.poll(START + REJECT_AFTER_TIME)
    assert blamed(two) == {**known, "DROP_EXPIRED_KEYPAIR": 1}


def test_what_waits_for_a_peer_in_vain_is_counted_for_it(closed):
    (one, _two) = closed(pair(session=False))
    for number in range(130):
        one.give(udp(A4, B4, b"%d" % number))
        one.poll()
    assert one.verdicts() == {"DROP_STAGED_FULL": 2} == blamed(one)
    one.tables.peers.purge_staged(one.peer)
    one.poll()
    assert blamed(one) == {"DROP_STAGED_FULL": 2, "DROP_STAGED_TIMEOUT": 128} == one.verdicts()


def test_the_next_peer_in_a_slot_has_a_clean_record(closed):
    (one, _two) = closed(pair(session=False))
    for _ in range(130):
        one.give(udp(A4, B4, b"x"))
        one.poll()
    one.tables.allowed_ips.remove(bytes([10, 9, 0, 2]), 32)
    one.tables.peers.remove(one.peer)
    one.tables.retired.reclaim()
    assert one.tables.peers.add() == one.peer
    one.poll()
    assert blamed(one) == {}
    assert one.verdicts() == {"DROP_STAGED_FULL": 2, "DROP_STAGED_TIMEOUT": 128}
    with pytest.raises(IndexError):
        one.tables.peers.verdicts(5)
