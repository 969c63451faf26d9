"""A fastpump that believes what a test wants it to: another time of day, shorter timers. And a host
whose names are in a file of the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_SITE = """\
import json, os, time
from fastpump import constants
said = json.loads(os.environ["PRETENCE"])
for name, value in said["constants"].items():
    assert hasattr(constants, name)
    setattr(constants, name, value)
if said["owns_no_tables"]:
    from fastpump.netlink import nft_owner
    nft_owner.claim = lambda table: None
true_time = time.time_ns
time.time_ns = lambda: true_time() + said["clock_ahead_ns"]
"""


def pretending(directory, *, clock_ahead_ns=0, owns_no_tables=False, **constants):
    """The environment of such a process; `owns_no_tables`: as of Linux before 6.9; `constants`: of
    fastpump.constants, by name."""
    site = directory / "pretence"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_SITE)
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(site), str(_ROOT), *([before] if before else [])]),
            "PRETENCE": json.dumps({
                "clock_ahead_ns": clock_ahead_ns, "owns_no_tables": owns_no_tables,
                "constants": constants})}


class Hosts:
    """Names and their addresses, for commands that run `within`: nobody else sees the file."""

    def __init__(self, directory):
        self._file = directory / "hosts"
        self._switch = directory / "nsswitch.conf"
        self._switch.write_text("hosts: files\n")
        self.say()

    def say(self, **addresses):
        """The addresses of each name from now on, the preferred ones first."""
        self._file.write_text("".join(f"{address} {name}.example\n"
                                      for name, found in addresses.items() for address in found))

    def within(self, *command):
        """The command as `Lab.run` takes it. (`ip netns exec` makes a mount namespace.)"""
        return ["sh", "-euc", 'touch "$1" "$2"\n'
                'mount --bind "$1" /etc/hosts\n'
                '[ ! -e /etc/nsswitch.conf ] || mount --bind "$2" /etc/nsswitch.conf\n'
                'shift 2\nexec "$@"', "sh", str(self._file), str(self._switch), *command]
