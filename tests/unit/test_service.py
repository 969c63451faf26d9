"""What runs beside the supervisor: the chores of a tunnel."""

import asyncio
import errno
import os
from types import SimpleNamespace

import pytest

from fastpump.errors import SystemSetupError
from fastpump.tunnel.service import Service


@pytest.mark.parametrize("error", [
    OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)), SystemSetupError("no netlink now")])
def test_a_look_at_what_the_tunnel_is_joined_to_that_fails_is_taken_again(error):
    """And one that does not is taken when links change."""
    looks, outcomes = [], [error, error, None]

    def check(*link):
        looks.append(link)
        if outcome := outcomes.pop(0):
            raise outcome

    async def scenario():
        service = SimpleNamespace(
            _links_changed=asyncio.Event(), _tunnel=SimpleNamespace(
                is_at_home=True, link=SimpleNamespace(index=7, mtu=1500)))
        service._links_changed.set()
        for _ in range(5):
            await Service._check_join(service, SimpleNamespace(check=check))

    asyncio.run(scenario())
    assert looks == [(7, 1500)] * 3
