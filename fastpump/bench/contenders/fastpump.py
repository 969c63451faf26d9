"""fastpump itself: by lanes, by WireGuard's transport, as TAP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from fastpump.bench.contender import Contender, Place, Processes, Setup
from fastpump.lab.networks import fastpump_pair

KINDS = {
    "fastpump": ("IP, lanes: AES-256-GCM or ChaCha20-Poly1305, post-quantum keys", (),
                 ("hosts", "gateways", "peers")),
    "fastpump wireguard": ("IP, WireGuard: ChaCha20-Poly1305", ("--transport", "wireguard"),
                           ("hosts", "gateways", "peers")),
    "fastpump tap": ("Ethernet, lanes", ("--tap",), ("hosts", "bridges")),
}


def contenders(queues: Sequence[int], options: Sequence[str] = ()) -> Iterator[Contender]:
    """Each kind with each number of queues."""
    for name, (kind, words, topologies) in KINDS.items():
        for count in queues:
            words_of = ("--queues", str(count), *words, *options)
            yield Contender(f"{name}, {count} queue{'s' * (count != 1)}", kind, _setup(words_of),
                            settings=" ".join(words_of), topologies=topologies,
                            device="fp0")


def _setup(words: Sequence[str]) -> Setup:
    @contextlib.contextmanager
    def setup(place: Place) -> Iterator[Processes]:
        others = [word for public, allowed in place.others
                  for word in ("--peer", f"{public},allowed-ips={allowed}")]
        behind = {} if others else place.behind
        with fastpump_pair(place.lab, place.directory, *words, behind=behind,
                           more={"b": others}) as processes:
            yield processes
    return setup
