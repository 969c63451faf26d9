"""A path of three links between the two hosts of a lab: the middle one is narrower.

    a  wire --- left  r  middle --- middle  s  right --- wire  b

Both hosts have a default route, of the MTU that their own link has. The routers say nothing by ICMP
of what they drop, or drop fragments, if a test wants it.
"""

from __future__ import annotations

import itertools

from fastpump.lab.networks import OUTSIDE4, OUTSIDE6, ip

NEAR = {"a": ("r", "left"), "b": ("s", "right")}
ROUTER4 = {"r": "192.0.2.101", "s": "192.0.2.102"}
ROUTER6 = {"r": "2001:db8::101", "s": "2001:db8::102"}
NO_ICMP = """chain out { type filter hook output priority 0
icmp type destination-unreachable drop
icmpv6 type packet-too-big drop
}
"""
NO_FRAGMENTS = """chain in { type filter hook prerouting priority -450
ip frag-off & 0x3fff != 0 counter drop
exthdr frag exists counter drop
}
"""


class NarrowPath:
    """Between the hosts of a lab, whose cable it takes the place of."""

    def __init__(self, lab, *, mtu, outside=1500, icmp=True, fragments=True):
        """`outside`: of the hosts' own links."""
        self.lab = lab
        lab.ip("a", "link", "delete", "wire")
        for router in "rs":
            lab.add_host(router)
            lab.sysctl(router, {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1,
                                "net.ipv4.icmp_ratelimit": 0, "net.ipv6.icmp.ratelimit": 0})
        self._link("r", "middle", "s", "middle")
        for side, (router, name) in NEAR.items():
            self._link(side, "wire", router, name)
            lab.ip(side, "link", "set", "wire", "mtu", str(outside))
            lab.ip(router, "link", "set", name, "mtu", str(outside))
            for version, own, other in (("-4", OUTSIDE4[side], ROUTER4[router]),
                                        ("-6", OUTSIDE6[side], ROUTER6[router])):
                length = "32" if version == "-4" else "128"
                nodad = ["nodad"] if version == "-6" else []
                lab.ip(side, "address", "add", f"{own}/{length}", "dev", "wire", *nodad)
                lab.ip(router, "address", "add", f"{other}/{length}", "dev", name, *nodad)
                lab.ip(router, version, "route", "add", own, "dev", name)
                lab.ip(side, version, "route", "add", other, "dev", "wire")
                lab.ip(side, version, "route", "add", "default", "via", other, "dev", "wire")
        for router, far, via in (("r", "b", "s"), ("s", "a", "r")):
            for version, target, hop in (("-4", OUTSIDE4[far], "10.255.0."),
                                         ("-6", OUTSIDE6[far], "fd00:255::")):
                length = "24" if version == "-4" else "64"
                nodad = ["nodad"] if version == "-6" else []
                lab.ip(router, "address", "add", f"{hop}{ord(router)}/{length}", "dev", "middle",
                       *nodad)
                lab.ip(router, version, "route", "add", target, "via", f"{hop}{ord(via)}", "dev",
                       "middle")
        self.set_mtu(mtu)
        rules = ("" if icmp else NO_ICMP) + ("" if fragments else NO_FRAGMENTS)
        for router in "rs":
            lab.run(router, "nft", "-f", "-", input=f"table inet path {{ {rules} }}\n")

    def _link(self, one, name, other, other_name):
        names = self.lab.names
        ip("link", "add", name, "netns", names[one], "type", "veth", "peer", "name", other_name,
           "netns", names[other])
        self.lab.ip(one, "link", "set", name, "up")
        self.lab.ip(other, "link", "set", other_name, "up")

    def set_mtu(self, mtu):
        """Of the link in the middle, from now on."""
        for router in "rs":
            self.lab.ip(router, "link", "set", "middle", "mtu", str(mtu))

    def fragments_dropped(self):
        """So many, at both routers."""
        found = "".join(self.lab.run(each, "nft", "list", "table", "inet", "path").stdout
                        for each in "rs").split()
        return sum(int(count) for word, count in itertools.pairwise(found)
                   if word == "packets")
