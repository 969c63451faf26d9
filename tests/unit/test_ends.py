"""Waiting for another process to end, with and without a pidfd."""

import errno
import os
import subprocess

import pytest

from fastpump.process.ends import wait_for_end


@pytest.fixture(params=["pidfd", "refused"])
def _pidfds(request, monkeypatch):
    def refuse(_pid):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if request.param == "refused":
        monkeypatch.setattr(os, "pidfd_open", refuse)


@pytest.mark.usefixtures("_pidfds")
def test_it_waits_until_the_process_has_ended():
    process = subprocess.Popen(["sleep", "60"])
    assert not wait_for_end(process.pid, 0.05)
    process.kill()
    assert wait_for_end(process.pid, 30)        # nobody has waited for it: it is a zombie
    process.wait()
    assert wait_for_end(process.pid, 30)
