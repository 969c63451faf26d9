"""Classic BPF programs on sockets (linux/filter.h, linux/bpf_common.h; the kernel's
Documentation/networking/filter.rst). Loads are big-endian."""

from __future__ import annotations

import ctypes
import socket
import struct

Instruction = tuple[int, int, int, int]
"""Code, instructions to jump over if true, and if false, and a constant."""

LD_W_ABS, LD_H_ABS, LD_B_ABS, LD_W_IND, LD_IMM, LDX_IMM = 0x20, 0x28, 0x30, 0x40, 0x00, 0x01
JEQ, JGE, AND, MOD, TAX = 0x15, 0x35, 0x54, 0x94, 0x07
RET_K, RET_A = 0x06, 0x16
AD_NLATTR = 0xFFFFF000 + 12
"""Where to load from for the offset of the netlink attribute X, which is searched from offset A on:
0 if there is none."""


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def attach(sock: socket.socket, option: int, program: list[Instruction]) -> None:
    """Set a socket's option to a program; OSError."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = _SockFprog(len(program), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, option, bytes(header))
