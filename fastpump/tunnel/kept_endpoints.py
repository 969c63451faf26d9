"""Where the peers of a tunnel with a kill switch were last, by the names of their endpoints: kept
on disk, since at the next start no name server may answer.

One file for each interface name: JSON, {"HOST:PORT": "ADDRESS"}. It is written whole, under another
name first. What cannot be read or written is a warning.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from collections.abc import Mapping

from fastpump import paths

log = logging.getLogger("fastpump")

_MAX_LEN = 1 << 20


def load(interface: str) -> dict[str, str]:
    """What is kept; nothing if that is unusable."""
    path = paths.endpoints_file(interface)
    try:
        # No link: the name is ours alone.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW),
                       encoding="utf-8") as file:
            said = json.loads(file.read(_MAX_LEN))
        if not isinstance(said, dict):
            raise ValueError("it is damaged")
        return {str(name): str(ipaddress.ip_address(address)) for name, address in said.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%(path)s cannot be used: %(error)s; if no name server answers, the tunnel "
                    "waits", {"path": path, "error": error})
        return {}


def keep(interface: str, endpoints: Mapping[str, str]) -> None:
    """Keep this in place of what was kept."""
    path = paths.endpoints_file(interface)
    new = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
                     0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(dict(endpoints), file)
            file.flush()
            os.fsync(fd)
        new.replace(path)
    except OSError as error:
        log.warning("%(path)s cannot be written: %(error)s; if no name server answers at the next "
                    "start, the tunnel waits", {"path": path, "error": error.strerror})
