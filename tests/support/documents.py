"""The commands of README.md and docs/, and a stage to run them on as they stand there.

The stage is a mount namespace with its own /etc, /run and /var/lib, in which are two hosts, "a"
and "b", on one network; whoever types is root, so `sudo` only runs its words. Nothing of it is
seen outside, and all of it is gone with the process that holds it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from support.hosts import until

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PROGRAMS = {"fastpump", "fastpump-wg", "wg", "wg-quick", "ip", "make", "python", "python3", "ping",
            "perf", "apt", "pip", "ln", "dhclient", "systemctl", "mmdebstrap"}

ADDRESSES = {"a": "192.0.2.1", "b": "192.0.2.2"}
NAMES = {"a": ("a.example.net", "one.example.net", "vpn.example.net", "server.example.net"),
         "b": ("b.example.net", "two.example.net", "other.example.net", "other-node")}

# Arguments: a directory, the hosts file.
_SET_UP = r"""
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir -p /run/netns "$1/etc"
cp -a /etc/. "$1/etc"
rm -rf "$1/etc/fastpump" "$1/etc/wireguard"
mkdir -p "$1/etc/fastpump" "$1/etc/wireguard"
printf '%s\n' "$2" > "$1/etc/hosts"
echo 'hosts: files' > "$1/etc/nsswitch.conf"
mount --bind "$1/etc" /etc
for host in a b inside; do ip netns add $host; ip -n $host link set lo up; done
ip link add wire netns a type veth peer name wire netns b
ip -n a address add 192.0.2.1/24 dev wire
ip -n b address add 192.0.2.2/24 dev wire
ip -n a link set wire up
ip -n b link set wire up
echo ready
exec cat > /dev/null
"""


def blocks(path: Path) -> list[tuple[str, str]]:
    """(heading, text) of each code block of a document."""
    found: list[tuple[str, str]] = []
    heading, block, was_blank = "", [], True
    for line in [*path.read_text().splitlines(), "end"]:
        is_code = line.startswith("    ") and (block or was_blank)
        if block and line.strip() and not is_code:
            indent = min(len(each) - len(each.lstrip()) for each in block if each.strip())
            found.append((heading, "\n".join(each[indent:] for each in block).strip() + "\n"))
            block = []
        # A continued word begins a line.
        if is_code or (block and (not line.strip() or block[-1].endswith("\\"))):
            block.append(line)
        if line.startswith("#"):
            heading = line.lstrip("# ")
        was_blank = not line.strip()
    return found


def commands(path: Path) -> list[str]:
    """The commands in the code blocks of a document, each as one line without its comment; not the
    SYNOPSIS of a manual, which is a grammar."""
    found = []
    for heading, text in blocks(path):
        for line in re.sub(r"\\\n", "", text).splitlines():
            command = " ".join(re.sub(r"\s#\s.*", "", line).split())
            words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
            if words[:1] in (["sudo"], ["time"]):
                words.pop(0)
            if heading != "SYNOPSIS" and words and Path(words[0]).name in PROGRAMS:
                found.append(command)
    return found


def files(path: Path) -> list[str]:
    """The configuration files in the code blocks of a document."""
    return [text for _, text in blocks(path) if text.startswith("[Interface]")]


class Stage:
    """The stage; close it with `with`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bin = directory / "bin"
        self._services: list[subprocess.Popen[str]] = []
        self.etc = directory / "etc"
        self.words: dict[str, str] = {}
        """What a word in capitals stands for: a key."""
        self._bin.mkdir(parents=True)
        for name, program in (("sudo", 'exec "$@"'), ("resolvconf", "cat > /dev/null"),
                              ("fastpump", f'exec {shlex.quote(sys.executable)} -m fastpump "$@"'),
                              ("fastpump-wg", f"exec {shlex.quote(sys.executable)} -m "
                                              'fastpump.cli.wg "$@"')):
            path = self._bin / name
            path.write_text(f"#!/bin/sh\n{program}\n")
            path.chmod(0o755)

    def __enter__(self) -> Stage:
        hosts = "\n".join(f"{ADDRESSES[side]} {' '.join(names)}" for side, names in NAMES.items())
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _SET_UP, "sh",
             str(self._directory), f"127.0.0.1 localhost\n{hosts}"], cwd=self._directory,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "the stage cannot be made"
        return self

    def __exit__(self, *_: object) -> None:
        for service in reversed(self._services):
            self.end(service)
        for side in ("a", "b", "inside"):       # what `up` and fastpump-wg left in the background
            pids = self._in_stage(["ip", "netns", "pids", side]).stdout.split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
        until(lambda: not self._in_stage(["sh", "-c", "for each in a b inside; do "
                                                      "ip netns pids $each; done"]).stdout.strip())
        self._holder.communicate(timeout=20)        # it ends when its stdin does

    def _in_stage(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._enter, *command], text=True, capture_output=True,
                              check=False, **options)

    @property
    def _enter(self) -> list[str]:
        """With the root directory, too: that of a chroot is not its mount namespace's."""
        return ["nsenter", "-t", str(self._holder.pid), "--mount", "--root", "--wd"]

    def _words(self, side: str, command: str) -> list[str]:
        """The command line that runs a command on a host, by bash."""
        return [*self._enter, "ip", "netns", "exec", side, "bash", "-c", self.filled(command)]

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith("FASTPUMP_")}
        return {**kept, "PATH": f"{self._bin}:{os.environ['PATH']}"}

    def filled(self, text: str) -> str:
        """With keys in place of the words that stand for them."""
        return re.sub(r"\b[A-Z_0-9]+\b", lambda match: self.words.get(match[0], match[0]), text)

    def run(self, side: str, command: str) -> str:
        """Run a command on a host to its end, which must be a good one; what it prints."""
        result = subprocess.run(self._words(side, command), env=self._environment, text=True,
                                cwd=self._directory, capture_output=True, check=False, timeout=120)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def start(self, side: str, command: str) -> tuple[subprocess.Popen[str], str]:
        """Start a tunnel in the foreground, and wait until it is ready; what it prints then."""
        log = self._directory / f"log{len(self._services)}"
        with log.open("w") as errors:
            service = subprocess.Popen(
                self._words(side, f"exec {self.filled(command).removeprefix('sudo ')}"),
                env=self._environment, cwd=self._directory, text=True, stderr=errors,
                stdout=subprocess.PIPE, process_group=0)
        self._services.append(service)
        assert service.stdout is not None
        line = service.stdout.readline()
        assert " is ready: " in line, f"{command}: {line}{log.read_text()}"
        return service, line

    def end(self, service: subprocess.Popen[str]) -> str:
        """End a tunnel as Ctrl-C does; what else it had printed."""
        if service in self._services:
            self._services.remove(service)
        service.send_signal(signal.SIGINT)
        assert service.stdout is not None
        with service.stdout:
            said = service.stdout.read()        # not communicate(): some of it is in the buffer
        service.wait(30)
        return said

    def make_key(self, word: str) -> None:
        """Let a word stand for a new public key, and with PRIVATE_ before it for the private
        one."""
        from fastpump.protocol import keys

        private = keys.generate_private()
        self.words |= {word: keys.encode(keys.public_of(private)),
                       f"PRIVATE_{word}": keys.encode(private)}
