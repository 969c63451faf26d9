"""OpenVPN, point to point, with throw-away certificates; in a process, and with its data channel in
the kernel (DCO)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastpump.bench.contender import SIDES, Contender, Place, Processes, ended
from fastpump.lab.networks import INSIDE4, OUTSIDE4


@contextlib.contextmanager
def setup(place: Place, *options: str) -> Iterator[Processes]:
    """b is the TLS server."""
    lab, directory = place.lab, place.directory
    with ended(lab) as processes:
        prints = {}
        for side in "ab":
            lab.run(side, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={side}",
                    "-keyout", str(directory / f"{side}.pem"), "-out",
                    str(directory / f"{side}.crt"))
            prints[side] = lab.run(side, "openssl", "x509", "-noout", "-fingerprint", "-sha256",
                                   "-in", str(directory / f"{side}.crt")).stdout.split("=")[1]
        for side, other in SIDES:
            role = ["--tls-server", "--dh", "none"] if side == "b" else ["--tls-client"]
            processes[side] = lab.spawn(
                side, place.program, "--dev", "ovpn0", "--dev-type", "tun", "--proto", "udp",
                "--remote", OUTSIDE4[other], "--ifconfig", INSIDE4[side], INSIDE4[other],
                "--data-ciphers", "AES-256-GCM", "--cipher", "AES-256-GCM", "--cert",
                str(directory / f"{side}.crt"), "--key", str(directory / f"{side}.pem"),
                "--peer-fingerprint", prints[other].strip(), *role, *options)
        yield processes


SETTINGS = "proto udp; data-ciphers AES-256-GCM; its own MTU, 1500"
CONTENDERS = (
    Contender("openvpn", "IP, TLS: AES-256-GCM", lambda place: setup(place, "--disable-dco"),
              "openvpn", needs=("openssl",), settings=f"{SETTINGS}; disable-dco"),
    Contender("openvpn dco", "IP, TLS: AES-256-GCM, in the kernel", setup, "openvpn",
              needs=("openssl",), modules=("ovpn", "ovpn_dco_v2"), settings=SETTINGS),
)
