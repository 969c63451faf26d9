"""nftables and resolvconf on behalf of `fastpump up`: both are other programs. They are waited for,
for a while, but not for what they leave running in the background (hooks of resolvconf do).

With the default route in the tunnel, packets to the tunnel's addresses must not come in by
another interface (CVE-2019-14899), and replies to our own datagrams must be marked as those
are, so that the reverse path filter finds them (as wg-quick(8) does). All other packets keep the
marks that other programs gave them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from fastpump.errors import SystemSetupError
from fastpump.ip import Interface

RESOLVCONF_ORDER = Path("/etc/resolvconf/interface-order")
PROGRAM_TIMEOUT_S = 30.0


def _run(command: Sequence[str], text: str, package: str, purpose: str) -> str:
    """Run a program with `text` on its stdin; what it prints. SystemSetupError."""
    if shutil.which(command[0]) is None:
        raise SystemSetupError(f"{command[0]} is missing, which {purpose} needs; install it "
                               f"(Debian: apt install {package})")
    # Not pipes: those end when the last process that has them does.
    with _memory_file("stdout") as stdout, _memory_file("stderr") as stderr:
        try:
            status = subprocess.run(command, input=text.encode(), stdout=stdout, stderr=stderr,
                                    timeout=PROGRAM_TIMEOUT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            raise SystemSetupError(f"{' '.join(command)} did not end within "
                                   f"{PROGRAM_TIMEOUT_S:g} s; find out what it waits "
                                   "for") from None
        except OSError as error:
            raise SystemSetupError(f"{command[0]} cannot be started, which {purpose} needs: "
                                   f"{error.strerror}") from None
        if status != 0:
            reason = next(filter(None, map(_first_line, (stderr, stdout))), "no reason given")
            raise SystemSetupError(f"{' '.join(command)} failed: {reason}")
        stdout.seek(0)
        return stdout.read().decode(errors="replace")


def _memory_file(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "w+b")


def _first_line(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip().partition("\n")[0]


# -- nftables

def run_nft(script: str, purpose: str, *options: str) -> str:
    """Run a script of nft, all of it or nothing; what it prints. SystemSetupError."""
    return _run(["nft", *options, "-f", "-"], script, "nftables", purpose)


def _table(name: str) -> str:
    """The nftables table of an interface; names there have fewer characters."""
    return "fastpump-" + re.sub(r"[^a-zA-Z0-9_.-]", lambda char: f"_{ord(char[0]):x}", name)


def protect(name: str, addresses: Iterable[Interface], mark: int) -> None:
    """Make the table for an interface that the default route leads into, in place of what
    it was before."""
    drops = "".join(
        f'    iifname != "{name}" {"ip" if address.version == 4 else "ip6"} daddr {address.ip} '
        "fib saddr type != local drop\n" for address in addresses)
    # `add` first: deleting what is not there would be an error.
    run_nft(f"""\
add table inet {_table(name)}
delete table inet {_table(name)}
table inet {_table(name)} {{
  chain raw {{
    type filter hook prerouting priority raw
{drops}  }}
  chain arriving {{
    type filter hook prerouting priority mangle
    meta l4proto udp ct mark {mark} meta mark set {mark}
  }}
  chain leaving {{
    type filter hook postrouting priority mangle
    meta l4proto udp meta mark {mark} ct mark set meta mark
  }}
}}
""", "a default route through the tunnel")


def unprotect(name: str) -> None:
    """Remove that table."""
    run_nft(f"add table inet {_table(name)}\ndelete table inet {_table(name)}\n",
            "a default route through the tunnel")


# -- resolvconf

def _record(name: str) -> str:
    """The name of our record. Debian's resolvconf orders records by their prefix: that of
    the first pattern like `tun*` in its list. It may have left that list behind where resolvconf is
    a link to another program by now, which wants the interface's name."""
    program = shutil.which("resolvconf")
    if program is not None and Path(program).is_symlink():
        return name
    try:
        lines = RESOLVCONF_ORDER.read_text().splitlines()
    except OSError:
        return name
    found = (re.fullmatch(r"([A-Za-z0-9-]+)\*", line.strip()) for line in lines)
    return next((f"{match[1]}.{name}" for match in found if match), name)


def set_dns(name: str, servers: Sequence[str], domains: Sequence[str]) -> None:
    """Use these servers, before and instead of others."""
    text = "".join(f"nameserver {server}\n" for server in servers)
    text += f"search {' '.join(domains)}\n" if domains else ""
    _run(["resolvconf", "-a", _record(name), "-m", "0", "-x"], text, "openresolv", "DNS")


def unset_dns(name: str) -> None:
    """Remove our record."""
    _run(["resolvconf", "-d", _record(name), "-f"], "", "openresolv", "DNS")
