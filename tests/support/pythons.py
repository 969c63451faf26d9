"""Build, install and run fastpump with the Python of each of some Debian releases (make
test-pythons): in a root of its own, from the source distribution.

    python tests/support/pythons.py bookworm trixie forky

Of this machine, such a root has the devices, the network, and what pip is configured with.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("python3", "python3-venv", "python3-dev", "gcc", "libc6-dev", "pkg-config",
            "libssl-dev", "libipsec-mb-dev", "iproute2", "iputils-ping", "iperf3")
FROM_HERE = ("/dev", "/sys", "/etc/resolv.conf", "/etc/ssl/certs", "/etc/pip.conf", "/etc/xdg/pip",
             "/opt")

# Arguments: the root; what it has of this machine.
INSIDE = r"""
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
for path; do
    if [ -d "$path" ]; then mkdir -p "$root$path"; else
        mkdir -p "$(dirname "$root$path")"; [ -e "$root$path" ] || touch "$root$path"; fi
    mount --rbind "$path" "$root$path"
done
exec chroot "$root" bash -euxc '
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
python3 -m venv /srv/fastpump
/srv/fastpump/bin/pip install --quiet --disable-pip-version-check /srv/fastpump-*.tar.gz
/srv/fastpump/bin/python /srv/installed.py /srv/fastpump /srv/fastpump/bin
/srv/fastpump/bin/fastpump demo --queues 2 --seconds 1'
"""


def main(releases: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="fastpump-pythons-") as directory:
        subprocess.run([sys.executable, "-m", "build", "--outdir", directory, ROOT], check=True)
        (archive,) = Path(directory).glob("fastpump-*.tar.gz")
        (wheel,) = Path(directory).glob("fastpump-*.whl")
        print(f"built {archive.name} and {wheel.name}", flush=True)
        for release in releases:
            _try(release, Path(directory), archive)


def _try(release: str, directory: Path, archive: Path) -> None:
    root = directory / release
    subprocess.run(["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}",
                    "--aptopt=Acquire::Check-Valid-Until \"false\"", release, root], check=True)
    for path in (archive, ROOT / "tests" / "support" / "installed.py"):
        (root / "srv" / path.name).write_bytes(path.read_bytes())
    subprocess.run(["unshare", "--mount", "--propagation", "private", "bash", "-euc", INSIDE,
                    "bash", root, *filter(lambda path: Path(path).exists(), FROM_HERE)], check=True)
    print(f"{release} is good", flush=True)
    subprocess.run(["rm", "-rf", root], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
