"""wireguard-go (Debian's), configured by wg."""

from __future__ import annotations

from pathlib import Path

from fastpump.lab.networks import INSIDE4, INSIDE6, OUTSIDE4, OUTSIDE6
from support.hosts import until


def start_wireguard_go(lab, side, key, peer_public, *, endpoint=True, psk=None, v6=False, extra=()):
    """One inside; the interface's name."""
    name = "wg" + lab.names[side][2:].replace("-", "")
    other = "b" if side == "a" else "a"
    where = f"[{OUTSIDE6[other]}]" if v6 else OUTSIDE4[other]
    lab.spawn(side, "wireguard-go", "--foreground", name)
    until(Path(f"/var/run/wireguard/{name}.sock").exists)
    words = ["wg", "set", name, "private-key", str(key[0]), "listen-port", "51820", "peer",
             peer_public, "allowed-ips", f"{INSIDE4[other]}/32,{INSIDE6[other]}/128", *extra]
    if endpoint:
        words += ["endpoint", f"{where}:51820"]
    if psk is not None:
        words += ["preshared-key", str(psk)]
    lab.run(side, *words)
    lab.ip(side, "address", "add", f"{INSIDE4[side]}/24", "dev", name)
    lab.ip(side, "address", "add", f"{INSIDE6[side]}/64", "dev", name, "nodad")
    lab.ip(side, "link", "set", name, "mtu", "1420", "up")
    return name
