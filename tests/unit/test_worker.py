"""The command line of a worker process."""

from fastpump.worker import WorkerArguments


def test_arguments_survive_the_command_line():
    arguments = WorkerArguments(number=3, udp_fd=5, tables_fd=6, doorbell_fd=7, event_fd=8, cpu=-1,
                                busy_poll_us=50, parent=4711, lane_fds=(), tun_fds=(9, 10))
    assert WorkerArguments.parse(arguments.emit()) == arguments
    assert arguments.fds == (5, 6, 7, 8, 9, 10)
    lanes = arguments._replace(lane_fds=(20, 21))
    assert WorkerArguments.parse(lanes.emit()) == lanes
