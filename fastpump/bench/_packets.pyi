"""Types of the extension module; its docstrings are in _packets.pyx."""

from collections.abc import Sequence

SMALLEST: int

class Sender:
    sent: int
    def __init__(self, fds: Sequence[int], sizes: Sequence[int], rate: float, run: int,
                 segments: int = 1) -> None: ...
    def send(self, seconds: float) -> None: ...

class Receiver:
    received: int
    octets: int
    reordered: int
    repeated: int
    damaged: int
    first_ns: int
    last_ns: int
    def __init__(self, fd: int, run: int, flows: int = 1, ack_every: int = 0) -> None: ...
    def drain(self) -> int: ...
    def delays_ns(self) -> list[list[int]]: ...
