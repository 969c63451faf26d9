"""/etc/resolv.conf as a plain file: servers of tunnels in it, and back to what it was.

The file itself says what it was before and whose servers it has, in comments, so that this survives
whatever the file survives, a crash of the machine as well:

    # The DNS servers of a VPN (fastpump). When it ends, the file is again what follows "#|".
    #tunnel {"record": "/run/fastpump/4026531840/wg0.json", "servers": [...], "search": [...]}
    nameserver 10.9.0.2
    search example.net
    options timeout:1
    #before {"link": null, "exists": true}
    #|nameserver 192.0.2.1
    #|options timeout:1

Several tunnels have a line each, the last one up at the end: its servers are used, and whichever
ends, what was before the first of them stays. A file that differs by a single byte from what these
comments make of it was changed by another program: that version stays, and is what was before for
the next tunnel.

The file is replaced atomically. Where it is a mount point, as in containers and for `ip netns exec`
(/etc/netns/NAME/resolv.conf), it can only be overwritten: by one write, padded to the length of the
old content, which is then cut off. All of it happens under a lock of the directory.

A line is of a tunnel that is gone if its record (host/network.py) is: after a reboot, say; or if
nobody holds it and it is of another network namespace, so that nobody would undo it. `forget_gone`
removes such lines. A killed tunnel of this namespace is undone by its record.

Accepted limits: a program that rewrites the file takes the tunnel's servers away. Programs that
read more than 8 KiB of a line as a second one could take the end of a comment for a setting.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastpump import paths
from fastpump.errors import SystemSetupError
from fastpump.host.undo_record import Record, locked, namespace_cookie

log = logging.getLogger("fastpump")

RESOLV_CONF = Path("/etc/resolv.conf")
_HEAD = (b'# The DNS servers of a VPN (fastpump). When it ends, the file is again what follows '
         b'"#|".\n')
_TUNNEL, _BEFORE, _OLD = b"#tunnel ", b"#before ", b"#|"
# Where the file cannot be replaced, it may still be possible to overwrite it.
# (EINVAL: its owner has no number in this user namespace.)
_NOT_REPLACED = {errno.EBUSY, errno.EROFS, errno.EACCES, errno.EPERM, errno.EINVAL}


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Whose servers are in the file; `record` identifies it."""

    record: str
    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """What the file says, in short. `link`: what it was a symbolic link to. `old`: what stood in
    it; None if there was no file (or the link led nowhere)."""

    tunnels: tuple[Tunnel, ...]
    link: str | None
    old: bytes | None

    def render(self) -> bytes:
        """The whole file."""
        tunnels = b"".join(_TUNNEL + json.dumps({
            "record": each.record, "servers": each.servers,
            "search": each.search}).encode() + b"\n" for each in self.tunnels)
        before = json.dumps({"link": self.link, "exists": self.old is not None}).encode()
        return b"".join((
            _HEAD, tunnels, *self._settings(), _BEFORE, before, b"\n",
            *(_OLD + line + b"\n" for line in (self.old or b"").split(b"\n"))))

    @classmethod
    def parse(cls, text: bytes) -> Content | None:
        """What `render` gave; None if it is anything else."""
        lines = text.split(b"\n")
        try:
            said = json.loads(next(line.removeprefix(_BEFORE) for line in lines
                                   if line.startswith(_BEFORE)))
            old = b"\n".join(line.removeprefix(_OLD) for line in lines if line.startswith(_OLD))
            found = cls(tuple(_tunnel_of(line.removeprefix(_TUNNEL)) for line in lines
                              if line.startswith(_TUNNEL)),
                        said["link"], old if said["exists"] else None)
            return found if found.render() == text else None
        except (StopIteration, ValueError, LookupError, TypeError):
            return None

    def _settings(self) -> Iterator[bytes]:
        """The lines that count. Servers are used instead of others, and so are search domains; the
        options stay, but for the trust in what other servers had verified."""
        first = max((at for at, each in enumerate(self.tunnels) if each.servers), default=0)
        used = self.tunnels[first:]
        yield from (f"nameserver {server}\n".encode() for server in used[0].servers)
        search = next((each.search for each in reversed(used) if each.search), ())
        if search:
            yield f"search {' '.join(search)}\n".encode()
        for line in (self.old or b"").split(b"\n"):
            key, *words = [b""] if line[:1].isspace() else line.split() or [b""]
            if (key == b"nameserver" and not used[0].servers) or key == b"sortlist":
                yield line + b"\n"
            elif key == b"options":
                yield b" ".join((key, *(word for word in words if word != b"trust-ad"))) + b"\n"


def _tunnel_of(line: bytes) -> Tunnel:
    said = json.loads(line)
    return Tunnel(said["record"], tuple(said["servers"]), tuple(said["search"]))


# -- for tunnels

def add(record: Path, servers: Sequence[str], search: Sequence[str]) -> None:
    """Have the file name the servers and search domains of the tunnel with that record; in place of
    those that it had before. SystemSetupError; then the file is as it was."""
    with locked(paths.runtime_dir().parent):      # of all network namespaces
        content = _look()
        own = Tunnel(str(record), tuple(servers), tuple(search))
        there = [each.record for each in content.tunnels]
        _write(replace(content, tunnels=tuple(
            own if each.record == own.record else each for each in content.tunnels)
            if own.record in there else (*content.tunnels, own)).render())


def remove(record: Path) -> bool:
    """Undo that; False if the file does not have them any more. SystemSetupError."""
    return bool(_remove_if(lambda each: each.record == str(record)))


def forget_gone(name: str) -> bool:
    """Undo what tunnels left that nobody undoes any more; whether one was called so. Errors go to
    the log."""
    try:
        gone = [Path(each.record).stem for each in _remove_if(_is_gone)] if _look().tunnels else []
    except (SystemSetupError, OSError) as error:
        log.warning("%(error)s", {"error": error})
        return False
    if gone:
        log.warning("%(file)s had the DNS servers of tunnels that are gone (%(names)s): removed",
                    {"file": RESOLV_CONF, "names": ", ".join(gone)})
    return name in gone


def _remove_if(is_removed: Callable[[Tunnel], bool]) -> list[Tunnel]:
    with locked(paths.runtime_dir().parent):      # of all network namespaces
        content = _look()
        removed = [each for each in content.tunnels if is_removed(each)]
        left = tuple(each for each in content.tunnels if each not in removed)
        if removed and left:
            _write(replace(content, tunnels=left).render())
        elif removed:
            _restore(content)
        return removed


def _is_gone(tunnel: Tunnel) -> bool:
    path = Path(tunnel.record)
    record = Record.peek(path)
    if record is None:
        return True
    try:
        is_of_here = (path.parent == paths.runtime_dir()
                      and record.read().get("namespace") == namespace_cookie())
        return not is_of_here and not record.is_held()
    finally:
        record.release()


# -- the file

def _look() -> Content:
    """What is there now: ours, or what will be before."""
    try:
        text: bytes | None = RESOLV_CONF.read_bytes()
    except FileNotFoundError:
        text = None
    except OSError as error:
        raise SystemSetupError(f"{RESOLV_CONF} cannot be read: {error.strerror}") from None
    # Not Path.readlink(), which tidies up.
    link = os.readlink(RESOLV_CONF) if RESOLV_CONF.is_symlink() else None      # noqa: PTH115
    return (Content.parse(text) if text is not None else None) or Content((), link, text)


def _restore(content: Content) -> None:
    """Make the file what it was before."""
    if RESOLV_CONF.is_symlink():        # what it leads to was overwritten
        _overwrite(content.old or b"")
    elif content.link is not None:
        _replace(content.old or b"", content.link)
    elif content.old is not None:
        _write(content.old)
    else:
        try:
            RESOLV_CONF.unlink()
        except OSError:
            _overwrite(b"")


def _write(text: bytes) -> None:
    """SystemSetupError; then it is as it was."""
    _replace(text, None)


def _replace(text: bytes, link: str | None) -> None:
    """Put a new file, or a new link, in its place; where that cannot be, overwrite it."""
    new = RESOLV_CONF.with_name(f".{RESOLV_CONF.name}.{secrets.token_hex(8)}")
    try:
        try:
            if link is not None:
                new.symlink_to(link)
            else:
                _write_new(new, text)
            new.rename(RESOLV_CONF)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _NOT_REPLACED:
            raise _refusal(error) from None
        _overwrite(text)


def _write_new(new: Path, text: bytes) -> None:
    """With the mode, the owner and the labels of the file that it replaces."""
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fchmod(fd, 0o644)
        if RESOLV_CONF.is_file() and not RESOLV_CONF.is_symlink():
            old = RESOLV_CONF.stat()
            os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, stat.S_IMODE(old.st_mode))
            with contextlib.suppress(OSError):      # a file system without them
                for name in os.listxattr(RESOLV_CONF):
                    os.setxattr(fd, name, os.getxattr(RESOLV_CONF, name))
        os.fsync(fd)


def _overwrite(text: bytes) -> None:
    """Whenever we are killed, it has the old content, or the new one and empty lines."""
    try:
        fd = os.open(RESOLV_CONF, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, text.ljust(os.fstat(fd).st_size, b"\n"), 0)
            os.ftruncate(fd, len(text))
        finally:
            os.close(fd)
    except OSError as error:
        raise _refusal(error) from None


def _refusal(error: OSError) -> SystemSetupError:
    what_to_do = {
        errno.EPERM: f"if it is immutable (lsattr {RESOLV_CONF}), `chattr -i {RESOLV_CONF}`",
        errno.EROFS: "make it writable, by a mount of its own for instance",
    }.get(error.errno or 0, "see to it that root may write it")
    return SystemSetupError(f"{RESOLV_CONF} cannot be changed, which DNS needs: {error.strerror}; "
                            f"{what_to_do}, or leave out DNS")
