"""VTun, over UDP, which its manual recommends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastpump.bench.contender import Contender, Place, Processes, configure_link, ended
from fastpump.lab.networks import OUTSIDE4, wait_until

CIPHER = "aes128ecb"
"""Its chained modes stand still once a datagram is lost: CBC and CFB of 3.0.4."""
_CONFIG = f"""
options {{ port 5000; }}
bench {{
  passwd bench;
  type tun;
  device vt0;
  proto udp;
  encrypt {CIPHER};
  keepalive yes;
}}
"""


@contextlib.contextmanager
def setup(place: Place) -> Iterator[Processes]:
    """b is the server. It ends if its interface is not up when the first packet comes; so that is
    there before. What it forks for a session survives it, and is left to the lab."""
    lab, config = place.lab, place.directory / "vtund.conf"
    config.touch(mode=0o600)
    config.write_text(_CONFIG, encoding="ascii")
    with ended(lab) as processes:
        for side in "ab":
            lab.ip(side, "tuntap", "add", "vt0", "mode", "tun")
        configure_link(lab, "vt0", mtu=1420)
        for side, words in (("b", ["-s"]), ("a", ["bench", OUTSIDE4["b"]])):
            processes[side] = lab.spawn(side, "sh", "-c", 'exec "$@" > /dev/null 2>&1', "sh",
                                        place.program, "-n", "-f", str(config), *words)
            wait_until(lambda: lab.run("b", "ss", "-Hltn", "sport = :5000").stdout,
                       "vtund does not listen")
        yield processes


CONTENDER = Contender("vtun", f"IP, {CIPHER}, not authenticated", setup, "vtund",
                      settings=f"proto udp; encrypt {CIPHER}; mtu 1420")
