"""A worker process: one queue, one core, no Python per packet.

The supervisor starts it as a program of its own (not as a fork, so that the static
private key is not in its memory) with the numbers of the fds that it inherits. It maps
the shared tables, confines itself, and never returns from the data plane's loop.

Imports are few: a restart after a crash has 200 ms.
"""

import os
import sys
from collections import namedtuple

EXIT_INTERFACE_GONE = 3
EXIT_SETUP = 4


class WorkerArguments(namedtuple("_Fields", (
        "interface", "number", "udp_fd", "configuration_fd", "state_fd", "doorbell_fd", "event_fd",
        "busy_poll_us", "parent", "lane_fds", "tun_fds"))):
    """The command line of a worker: NAME=NUMBER, or NAME=NUMBER,NUMBER... for the last two.

    `interface`: its name; `configuration_fd` is read-only; `parent`: the supervisor's pid;
    `lane_fds`, `tun_fds`: tuples, of all lane sockets and of all queues. (Not of typing, which
    takes longer to load than all else.)
    """

    __slots__ = ()

    @property
    def fds(self) -> tuple[int, ...]:
        """All that the process inherits."""
        return (self.udp_fd, self.configuration_fd, self.state_fd, self.doorbell_fd, self.event_fd,
                *self.lane_fds, *self.tun_fds)

    @property
    def titles(self) -> tuple[bytes, bytes]:
        """What ps and top call the process."""
        name = os.fsencode(self.interface)
        return (b"fastpump: %b worker %d" % (name, self.number),
                b"fpw%d:%b" % (self.number, name))

    def emit(self) -> list[str]:
        """As words of a command line."""
        return [f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
                for name, value in zip(self._fields, self, strict=True)]

    @classmethod
    def parse(cls, words: list[str]) -> "WorkerArguments":
        """What `emit` gave."""
        values: dict[str, str | int | tuple[int, ...]] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name == "interface":
                values[name] = text
                continue
            numbers = tuple(map(int, filter(None, text.split(","))))
            values[name] = numbers if name in ("lane_fds", "tun_fds") else numbers[0]
        return cls(**values)


def main() -> None:
    """Entry point of the process; leaves by _exit: there is nothing to tidy up."""
    status = EXIT_SETUP
    try:
        arguments = WorkerArguments.parse(sys.argv[1:])
        from fastpump._core import AttachedTables, Pump, confine, set_title

        set_title(*arguments.titles)
        tables = AttachedTables.attach(arguments.configuration_fd, arguments.state_fd)
        pump = Pump(tables, arguments.number, list(arguments.tun_fds), arguments.udp_fd,
                    arguments.doorbell_fd, arguments.event_fd, lane_fds=arguments.lane_fds,
                    busy_poll_us=arguments.busy_poll_us)
        confine(arguments.parent)
        pump.run()
        status = EXIT_INTERFACE_GONE
    except Exception as error:
        os.write(2, f"fastpump worker: {error}\n".encode())
    finally:
        os._exit(status)
