"""eBPF programs and maps for the kernel's side of an interface, by bpf(2).

Loading one takes CAP_BPF or CAP_SYS_ADMIN in the first user namespace, and no sysctl or lockdown
against it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterable

from fastpump.kernel import (
    BPF_MAP_CREATE,
    BPF_MAP_DELETE_ELEM,
    BPF_MAP_LOOKUP_ELEM,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_UPDATE_ELEM,
    BPF_PROG_LOAD,
    BPF_PROG_TYPE_SOCKET_FILTER,
    SYS_BPF,
)

# eBPF (Documentation/bpf/standardization/instruction-set.rst). LD_ABS and LD_IND read the
# packet, big-endian, into r0, and use up r1 to r5; r6 must hold the context.
LD_ABS, LD_IND, BYTE, HALF, WORD = 0x20, 0x40, 0x10, 0x08, 0x00
MOV, ADD, MUL, AND, RSH, MOD, LSH = 0xB7, 0x07, 0x27, 0x57, 0x77, 0x97, 0x67
REGISTER = 0x08             # the source is a register, not a constant
JA, JEQ, JNE, JSET, CALL, EXIT = 0x05, 0x15, 0x55, 0x45, 0x85, 0x95
STORE_DOUBLE, ATOMIC_DOUBLE = 0x7B, 0xDB
LD_IMM64, PSEUDO_MAP_FD = 0x18, 1

Label = str
Instruction = tuple[int, int, int, int | Label, int]
Line = Instruction | Label


def assemble(lines: Iterable[Line]) -> bytes:
    """A program as the kernel takes it. A line is (code, destination, source, offset or label,
    constant), or a label."""
    instructions: list[Instruction] = []
    labels: dict[Label, int] = {}
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(instructions)
            continue
        instructions.append(line)
        if line[0] == LD_IMM64:
            instructions.append((0, 0, 0, 0, 0))        # the upper half of the constant
    code = b""
    for number, (operation, destination, source, where, constant) in enumerate(instructions):
        offset = labels[where] - number - 1 if isinstance(where, str) else where
        code += struct.pack("=BBhi", operation, source << 4 | destination, offset, constant)
    return code


def load_program(code: bytes) -> int:
    """An fd of a socket filter; OSError."""
    buffer = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"MIT")
    return _bpf(BPF_PROG_LOAD, struct.pack(
        "=IIQQ", BPF_PROG_TYPE_SOCKET_FILTER, len(code) // 8, ctypes.addressof(buffer),
        ctypes.addressof(licence)))


class HashMap:
    """A map of 64-bit numbers to values of one size in bytes, a multiple of 8."""

    def __init__(self, value_len: int, capacity: int) -> None:
        """OSError where the kernel refuses it."""
        self._value_len = value_len
        self.fd = _bpf(BPF_MAP_CREATE, struct.pack("=IIII", BPF_MAP_TYPE_HASH, 8, value_len,
                                                   capacity))

    def close(self) -> None:
        """Give it up; programs keep it."""
        os.close(self.fd)

    def get(self, key: int) -> bytes:
        """Zeros if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            return self._element(BPF_MAP_LOOKUP_ELEM, key)
        return bytes(self._value_len)

    def set(self, key: int, value: bytes) -> None:
        """Add or replace."""
        self._element(BPF_MAP_UPDATE_ELEM, key, value)

    def remove(self, key: int) -> None:
        """It may be gone already."""
        keys = ctypes.c_uint64(key)
        with contextlib.suppress(FileNotFoundError):    # fields that it does not use must be 0
            _bpf(BPF_MAP_DELETE_ELEM, struct.pack("=IIQ", self.fd, 0, ctypes.addressof(keys)))

    def _element(self, command: int, key: int, value: bytes = b"") -> bytes:
        keys = ctypes.c_uint64(key)
        values = ctypes.create_string_buffer(value, self._value_len)
        _bpf(command, struct.pack("=IIQQQ", self.fd, 0, ctypes.addressof(keys),
                                  ctypes.addressof(values), 0))
        return values.raw


def _bpf(command: int, attributes: bytes) -> int:
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(0, f"not written for {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, command, ctypes.create_string_buffer(attributes, 48), 48)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
