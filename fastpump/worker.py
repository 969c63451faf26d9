"""A worker process: one queue, one core, no Python per packet.

The supervisor starts it as a program of its own (not as a fork, so that the static
private key is not in its memory) with the numbers of the fds that it inherits. It maps
the shared tables, locks itself in, and never comes back from the data plane's loop.

Imports are few: a restart after a crash has 200 ms.
"""

import os
import sys

EXIT_INTERFACE_GONE = 3
EXIT_SETUP = 4


def main() -> None:
    """Entry point of the process; leaves by _exit, nothing needs tidying.

    Arguments: number, udp_fd, tables_fd, doorbell_fd, event_fd, cpu (-1: any),
    busy_poll_us, parent pid, number of lane sockets, and the fds of those and of all queues.
    """
    number, udp, tables, doorbell, event, cpu, busy_poll_us, parent, lane_count, *fds = map(
        int, sys.argv[1:])
    status = EXIT_SETUP
    try:
        from fastpump._core import Pump, SharedTables, confine

        if cpu >= 0:
            os.sched_setaffinity(0, {cpu})
        pump = Pump(SharedTables.attach(tables), number, fds[lane_count:], udp, doorbell, event,
                    lane_fds=fds[:lane_count], busy_poll_us=busy_poll_us)
        confine(parent)
        pump.run()
        status = EXIT_INTERFACE_GONE
    except Exception as error:
        os.write(2, f"fastpump worker {number}: {error}\n".encode())
    finally:
        os._exit(status)
