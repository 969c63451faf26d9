"""When the end of a tunnel undoes what it has changed on the host, and when that stays closed."""

import asyncio
from types import SimpleNamespace

import pytest

from fastpump.host.down_commands import DownCommands
from fastpump.tunnel import host_changes
from fastpump.tunnel.host_changes import HostChanges


class State:
    def __init__(self, *, is_closed, is_taken_over):
        self.is_closed, self.is_taken_over = is_closed, is_taken_over
        self.end = None
        self.nft_tables = ()

    def undo(self, *, keeps_commands):
        self.end = "undone", keeps_commands

    def leave_closed(self, *, keeps_commands):
        self.end = "closed", keeps_commands


@pytest.fixture
def ended(monkeypatch):
    """How a tunnel ends that was stopped for a reason (empty: by an exception)."""
    def run(reason, *, was_ready=True, is_closed=True, is_taken_over=False, leaves_all=False,
            failure=None):
        state = State(is_closed=is_closed, is_taken_over=is_taken_over)
        monkeypatch.setattr(host_changes, "HostState", lambda *_: state)
        device = SimpleNamespace(endpoints=SimpleNamespace(), peers={})
        monkeypatch.setattr(host_changes, "RepairWatch", lambda _: SimpleNamespace(
            start=lambda *_: None))
        running = SimpleNamespace(
            link=SimpleNamespace(index=5), config=SimpleNamespace(kill_switch=False),
            supervisor=SimpleNamespace(stop_reason=reason, failure=failure, device=device))
        changes = HostChanges(running, "wg0", DownCommands(), asyncio.Lock(), lambda: None)

        async def ready():
            changes.ready()

        if was_ready:
            asyncio.run(ready())
        running.leaves_all = leaves_all
        changes.end(keeps_commands=not leaves_all)    # as whoever wants that has them run
        return state.end

    return run


@pytest.mark.parametrize("reason", ["on SIGTERM", "on SIGINT", "on request",
                                    "because the interface was deleted"])
@pytest.mark.parametrize("is_taken_over", [False, True])
def test_an_end_that_was_wanted_undoes_all(ended, reason, is_taken_over):
    assert ended(reason, is_taken_over=is_taken_over) == ("undone", True)
    assert ended(reason, is_taken_over=is_taken_over, was_ready=False) == ("undone", True)


def test_an_error_of_ours_leaves_a_full_tunnel_closed(ended):
    """As a SIGKILL would."""
    assert ended("") == ended("on an error", failure="no memory") == ("closed", True)
    assert ended("", is_closed=False) == ("undone", True)


def test_a_start_that_fails_leaves_what_it_found(ended):
    assert ended("", was_ready=False) == ("undone", True)
    assert ended("", was_ready=False, is_taken_over=True) == ("closed", False)
    assert ended("on request", leaves_all=True, is_taken_over=True) == ("closed", False)
    assert ended("on request", leaves_all=True, is_closed=False) == ("undone", False)
