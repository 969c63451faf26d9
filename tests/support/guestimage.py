"""What a guest boots: Debian's kernel, the modules of virtio-net and a static busybox.

The packages are downloaded and unpacked, never installed: the host gets no boot loader run,
no initramfs-tools and no other busybox. What is needed of them stays in build/guests, so that
later runs need no network; remove that directory for newer ones. The initramfs is written
anew each time.
"""

from __future__ import annotations

import contextlib
import fcntl
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fastpump.errors import SystemSetupError

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "guests"
LOCK = "guests.lock"
# The kernel for virtual machines is a third of the other one, and boots faster.
KERNELS = ("linux-image-cloud-amd64", "linux-image-amd64")
# With PCI or without; Debian's kernel has them as modules. The others: for bridges in the guest.
MODULES = ("virtio_pci", "virtio_mmio", "virtio_net", "bridge", "tun", "veth")
APT = ["-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20",
       "-o", "APT::Sandbox::User=root"]     # apt's own user may not write here


def make_image(directory: Path, init: str,
               more: Mapping[str, bytes | None] = MappingProxyType({})) -> tuple[Path, Path]:
    """A kernel, and in the directory an initramfs that runs a shell script and has more files (and
    directories, None): their paths."""
    CACHE.parent.mkdir(exist_ok=True)
    with (CACHE.parent / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)        # test runs beside each other share the cache
        if not _is_cached():
            shutil.rmtree(CACHE, ignore_errors=True)
            _fill_cache()
    modules = sorted((CACHE / "modules").iterdir())
    loading = "".join(f"insmod /modules/{module.name}\n" for module in modules)
    files = {"bin": None, "dev": None, "modules": None, "proc": None, "sys": None, "tmp": None,
             "bin/busybox": (CACHE / "busybox").read_bytes(),
             "init": init.replace("@load modules@\n", loading).encode()}
    files |= {f"modules/{module.name}": module.read_bytes() for module in modules}
    files |= more
    initramfs = directory / "initramfs"
    initramfs.write_bytes(cpio(files))
    return CACHE / "vmlinuz", initramfs


def cpio(files: dict[str, bytes | None]) -> bytes:
    """An archive of executable files, and of directories where the content is None, in the
    format "newc": Linux, Documentation/driver-api/early-userspace/buffer-format.rst."""
    archive = bytearray()
    for number, (name, content) in enumerate({**files, "TRAILER!!!": b""}.items(), 1):
        mode = (stat.S_IFDIR if content is None else stat.S_IFREG) | 0o755
        data = content or b""
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        archive += b"070701" + b"".join(b"%08x" % field for field in fields)
        archive += name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _is_cached() -> bool:
    """Whether all that is asked for is there, but what the kernel has built in."""
    listed = CACHE / "modules.asked"
    return listed.exists() and listed.read_text().split() == list(MODULES)


def _fill_cache() -> None:
    with tempfile.TemporaryDirectory(dir=CACHE.parent, prefix="guests.") as name:
        scratch = Path(name)
        packages = _download(scratch)
        root, kept = scratch / "root", scratch / "kept"
        for package in packages:
            _run("dpkg-deb", "--extract", str(package), str(root))
        (kept / "modules").mkdir(parents=True)
        (kernel,) = root.glob("boot/vmlinuz-*")
        shutil.copy(kernel, kept / "vmlinuz")
        # /bin is a part of /usr in newer packages.
        busybox = next(path for path in (root / "bin", root / "usr/bin")
                       if (path / "busybox").exists()) / "busybox"
        shutil.copy(busybox, kept / "busybox")
        for number, (module, content) in enumerate(load_order(root, MODULES).items()):
            (kept / "modules" / f"{number:02}-{module}.ko").write_bytes(content)
        (kept / "modules.asked").write_text(" ".join(MODULES))
        owner = ROOT.stat()     # as the Makefile promises
        for path in (CACHE.parent, CACHE.parent / LOCK, kept, *kept.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        kept.rename(CACHE)


def load_order(root: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Modules and what they depend on, in the order to load them in, without what is built
    in. The package has no modules.dep (its installation makes it), so they are asked."""
    found = {path.name.partition(".")[0].replace("-", "_"): path
             for path in root.glob("**/lib/modules/*/kernel/**/*.ko*")}
    (builtin,) = root.glob("**/lib/modules/*/modules.builtin")
    built_in = {Path(line).stem.replace("-", "_") for line in builtin.read_text().split()}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in found:
            raise SystemSetupError(f"the kernel package has no module {name}: remove {name} from "
                                   "tests/support/guestimage.py or take another kernel package")
        content = found[name].read_bytes()
        if found[name].suffix == ".xz":
            content = lzma.decompress(content)
        match = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in match[1].decode().split(",") if match else []:
            if needed:
                add(needed.replace("-", "_"))
        order[name] = content

    for name in names:
        add(name)
    return order


def _download(directory: Path) -> list[Path]:
    """The kernel's and busybox's packages; apt's lists are brought up to date if they are
    missing or name what the mirror has no more."""
    try:
        return _try_download(directory)
    except SystemSetupError:
        # Other sources of the machine may fail: only what follows counts.
        subprocess.run(["apt-get", "-qq", *APT, "update"], capture_output=True, timeout=300,
                       check=False)
    return _try_download(directory)


def _try_download(directory: Path) -> list[Path]:
    kernel = _kernel_package()
    try:
        _run("apt-get", "-qq", *APT, "download", f"{kernel}:amd64", "busybox-static:amd64",
             cwd=directory)
    except SystemSetupError as error:
        raise SystemSetupError("the guests' packages cannot be downloaded; make apt-get update "
                               f"work: {error}") from None
    return [next(directory.glob(f"{package}_*.deb")) for package in (kernel, "busybox-static")]


def _kernel_package() -> str:
    """The package that the package for the newest kernel stands for."""
    for name in KERNELS:
        with contextlib.suppress(SystemSetupError):
            record = _run("apt-cache", "show", "--no-all-versions", f"{name}:amd64")
            match = re.search(r"^Depends:.*?\b(linux-image-[^\s,]+)", record, re.MULTILINE)
            if match:
                return match[1]
    raise SystemSetupError(f"apt knows neither {' nor '.join(KERNELS)}: the guests need Debian's "
                           "kernel; add Debian's main archive to apt's sources")


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd,
                                check=False, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise SystemSetupError(f"{command[0]} is missing: the guests are made of Debian's "
                               "packages; run their tests on Debian") from None
    if result.returncode != 0:
        raise SystemSetupError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout
