"""VLANs of bridge ports, as netlink has them (linux/if_bridge.h, linux/if_link.h)."""

import contextlib
import errno
import os
import socket
import struct
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import attach
from fastpump.host.attach import Attachment
from fastpump.netlink import bridges, links

RTM_NEWLINK = 16
PVID, UNTAGGED, BEGIN, END = 2, 4, 8, 16
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_AF_SPEC = 3, 10, 18, 26
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_BR_VLAN_FILTERING = 1, 2, 7
IFLA_BRIDGE_VLAN_INFO = 2


def attribute(kind, content):
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def new_link(family, index, attributes):
    """The message, as pyroute2 parses it."""
    body = struct.pack("=BxHiII", family, 1, index, 0x1043, 0) + attributes
    data = struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, 0, 7, 0) + body
    (message,) = MarshalRtnl().parse(data)
    return message


def port(*vlans):
    """A port of a bridge and its VLANs: (flags, id)."""
    spec = b"".join(attribute(IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", *vlan)) for vlan in vlans)
    return new_link(socket.AF_BRIDGE, 5, attribute(IFLA_IFNAME, b"fp0\0")
                    + attribute(IFLA_MASTER, struct.pack("=I", 4))
                    + attribute(IFLA_AF_SPEC, spec))


def bridge(filtering):
    data = attribute(IFLA_BR_VLAN_FILTERING, bytes([filtering]))
    info = attribute(IFLA_INFO_KIND, b"bridge\0") + attribute(IFLA_INFO_DATA, data)
    return links.link_of(new_link(socket.AF_UNSPEC, 4, attribute(IFLA_IFNAME, b"vmbr0\0")
                                  + attribute(IFLA_LINKINFO, info)))


@pytest.mark.parametrize(("vlans", "tagged"), [
    ([(PVID | UNTAGGED, 1)], []),
    ([(PVID | UNTAGGED, 1), (BEGIN, 2), (END, 4094)], [(2, 4094)]),
    ([(0, 7), (BEGIN, 10), (END, 20), (UNTAGGED, 30), (0, 40)], [(7, 7), (10, 20), (40, 40)]),
    ([(BEGIN | UNTAGGED, 5), (END | UNTAGGED, 9), (PVID, 11)], [(11, 11)]),
    ([], []),
])
def test_which_vlans_leave_a_port_with_their_tags(vlans, tagged):
    assert list(bridges.tagged_of(port(*vlans))) == tagged


def test_a_message_without_vlans_has_none():
    assert list(bridges.tagged_of(new_link(socket.AF_BRIDGE, 5, b""))) == []


@pytest.mark.parametrize("filtering", [0, 1])
def test_whether_a_bridge_filters(filtering):
    assert bridge(filtering).filters_vlans == bool(filtering)


@pytest.fixture
def kernel(monkeypatch):
    """Takes requests, and refuses them with `error`."""
    made = SimpleNamespace(asked=[], error=0)

    def vlan_filter(verb, **what):
        made.asked.append((verb, what["index"], what["vlan_info"]["vid"]))
        if made.error:
            raise NetlinkError(made.error, os.strerror(made.error))

    monkeypatch.setattr(bridges, "IPRoute", lambda: contextlib.nullcontext(
        SimpleNamespace(vlan_filter=vlan_filter)))
    return made


def test_each_range_is_asked_for(kernel):
    tap = replace(bridge(0), name="fp0", index=5)
    bridges.add_vlans(bridge(1), tap, [(2, 50), (100, 100), (200, 4094)])
    assert kernel.asked == [("add", 5, "2-50"), ("add", 5, "100"), ("add", 5, "200-4094")]


def test_a_kernel_that_cannot_filter_needs_no_vlans(kernel):
    tap = replace(bridge(0), name="fp0", index=5)
    kernel.error = errno.EOPNOTSUPP
    bridges.add_vlans(bridge(0), tap, [(2, 50), (100, 100)])
    assert len(kernel.asked) == 1
    for filtering, error in ((1, errno.EOPNOTSUPP), (0, errno.EPERM)):
        kernel.error = error
        with pytest.raises(SystemSetupError, match="fp0 cannot carry the VLANs 2-50 of vmbr0: "):
            bridges.add_vlans(bridge(filtering), tap, [(2, 50)])


@pytest.mark.parametrize(("filtering", "tagged", "given", "warns"), [
    (1, [], (), True), (1, [(7, 7)], (), False), (0, [], (), False), (1, [], ((2, 9),), False),
])
def test_who_says_nothing_about_vlans_is_told(monkeypatch, filtering, tagged, given, warns):
    tap = replace(bridge(0), name="fp0", index=5, master=4, kernel_kind="tun", mtu=1500)
    found = {5: tap, 4: bridge(filtering)}
    monkeypatch.setattr(links, "find", found.get)
    monkeypatch.setattr(bridges, "ports", lambda _: [tap])
    monkeypatch.setattr(bridges, "tagged_vlans", lambda _: tagged)
    said = attach.warnings(Attachment("vmbr0", vlans=given), 5, 1500)
    assert len(said) == warns
    assert not said or "--bridge-vlans 2-4094" in said[0]


@pytest.mark.parametrize("attachment", [
    Attachment(vlans=((2, 9),)), Attachment(interfaces=("eth1",), mode="tc", vlans=((2, 9),))])
def test_vlans_are_for_a_bridge(attachment):
    with pytest.raises(ConfigError, match="--bridge-vlans is for a bridge"):
        attach.check(attachment)
