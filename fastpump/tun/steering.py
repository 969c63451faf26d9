"""Which queue the kernel gives a packet to: that of its flow, by a hash that is the same for
both directions.

Without a program the kernel takes the queue on which a flow was last written. That queue changes
during a flow's life, and then two workers can have packets of one flow at the same time. With it
(TUNSETSTEERINGEBPF, Linux 4.16) a flow stays with one worker from its first packet on, in both
directions, on both sides of a tunnel with equal queues; and the kernel keeps no table of flows.

The hash is a sum, so that it does not matter which end comes first, of the addresses, and of
the ports of TCP and UDP where they stand right behind the IP header of a whole packet. On a TAP
that is behind the Ethernet header and up to two VLAN tags (a tag that the kernel keeps beside
the frame is not seen); frames with other contents go by both MAC addresses.

Loading a program takes CAP_BPF or CAP_SYS_ADMIN in the first user namespace. Where that is
missing the kernel keeps its own rule.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import platform
import struct

from fastpump.kernel import (
    BPF_PROG_LOAD,
    BPF_PROG_TYPE_SOCKET_FILTER,
    SYS_BPF,
    TUNSETSTEERINGEBPF,
)
from fastpump.tun.queues import TunQueues

log = logging.getLogger("fastpump.steering")

# eBPF (Documentation/bpf/standardization/instruction-set.rst). LD_ABS and LD_IND read the
# packet, big-endian, into r0, and use up r1 to r5; r6 must hold the context.
_LD_ABS, _LD_IND, _BYTE, _HALF, _WORD = 0x20, 0x40, 0x10, 0x08, 0x00
_MOV, _ADD, _MUL, _AND, _RSH, _MOD, _LSH = 0xB7, 0x07, 0x27, 0x57, 0x77, 0x97, 0x67
_REGISTER = 0x08            # the source is a register, not a constant
_JA, _JEQ, _JNE, _JSET, _EXIT = 0x05, 0x15, 0x55, 0x45, 0x95
_MIX = 0x61C88647           # positive as a 32-bit constant; the golden ratio's complement

_Label = str
_Instruction = tuple[int, int, int, int | _Label, int]
_Line = _Instruction | _Label


def _program(queue_count: int, is_tap: bool) -> list[_Line]:
    """(code, destination, source, offset or label, constant), and labels. r7: the sum;
    r8: where the ports are; r9: where the IP header is."""
    def load(size: int, at: int) -> _Line:
        return (_LD_ABS | size, 0, 0, 0, at)

    def load_behind(register: int, size: int, at: int) -> _Line:
        return (_LD_IND | size, 0, register, 0, at)

    def add() -> _Line:
        return (_ADD | _REGISTER, 7, 0, 0, 0)

    lines: list[_Line] = [
        (_MOV | _REGISTER, 6, 1, 0, 0),
        (_MOV, 7, 0, 0, 0),
        (_MOV, 9, 0, 0, 0),
    ]
    if is_tap:
        lines += [(_MOV, 9, 0, 0, 14), load(_HALF, 12)]
        for tag in range(2):
            lines += [
                (_JEQ, 0, 0, f"tag {tag}", 0x8100),
                (_JNE, 0, 0, "ethertype", 0x88A8),
                f"tag {tag}",
                load_behind(9, _HALF, 2),
                (_ADD, 9, 0, 0, 4),
            ]
        lines += [
            "ethertype",
            (_JEQ, 0, 0, "ip", 0x0800),
            (_JEQ, 0, 0, "ip", 0x86DD),
        ]
        for at in range(0, 12, 2):
            lines += [load(_HALF, at), add()]
        lines += [(_JA, 0, 0, "mix", 0), "ip"]
    lines += [
        load_behind(9, _BYTE, 0),
        (_RSH, 0, 0, 0, 4),
        (_JEQ, 0, 0, "v6", 6),
        (_JNE, 0, 0, "mix", 4),
        load_behind(9, _WORD, 12), add(),
        load_behind(9, _WORD, 16), add(),
        load_behind(9, _HALF, 6),
        (_JSET, 0, 0, "mix", 0x3FFF),           # a fragment has no ports to see
        load_behind(9, _BYTE, 0),
        (_AND, 0, 0, 0, 15),
        (_LSH, 0, 0, 0, 2),
        (_MOV | _REGISTER, 8, 0, 0, 0),
        (_ADD | _REGISTER, 8, 9, 0, 0),
        load_behind(9, _BYTE, 9),
        (_JA, 0, 0, "protocol", 0),
        "v6",
    ]
    for at in range(8, 40, 4):
        lines += [load_behind(9, _WORD, at), add()]
    return [
        *lines,
        (_MOV | _REGISTER, 8, 9, 0, 0),
        (_ADD, 8, 0, 0, 40),
        load_behind(9, _BYTE, 6),
        "protocol",
        (_JEQ, 0, 0, "ports", 6),
        (_JNE, 0, 0, "mix", 17),
        "ports",
        load_behind(8, _HALF, 0), add(),
        load_behind(8, _HALF, 2), add(),
        "mix",
        (_MUL, 7, 0, 0, _MIX),
        (_MOV | _REGISTER, 0, 7, 0, 0),
        (_RSH, 0, 0, 0, 16),
        (_AND, 0, 0, 0, 0xFFFF),
        (_MOD, 0, 0, 0, queue_count),
        (_EXIT, 0, 0, 0, 0),
    ]


def assemble(queue_count: int, *, is_tap: bool = False) -> bytes:
    """The program for so many queues, as the kernel takes it."""
    instructions: list[_Instruction] = []
    labels: dict[_Label, int] = {}
    for line in _program(queue_count, is_tap):
        if isinstance(line, str):
            labels[line] = len(instructions)
        else:
            instructions.append(line)
    code = b""
    for number, (operation, destination, source, where, constant) in enumerate(instructions):
        offset = labels[where] - number - 1 if isinstance(where, str) else where
        code += struct.pack("=BBhi", operation, source << 4 | destination, offset, constant)
    return code


def _load_program(code: bytes) -> int:
    """An fd of the program; OSError."""
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(0, f"not written for {platform.machine()}")
    buffer = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"MIT")
    attributes = struct.pack("=IIQQ", BPF_PROG_TYPE_SOCKET_FILTER, len(code) // 8,
                             ctypes.addressof(buffer), ctypes.addressof(licence))
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, BPF_PROG_LOAD, ctypes.create_string_buffer(attributes, 48), 48)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(fd)


def steer_by_flow(tun: TunQueues) -> bool:
    """Have the kernel choose the queue by flow; False where we may not load the program."""
    try:
        program = _load_program(assemble(len(tun.fds), is_tap=tun.is_tap))
        try:
            fcntl.ioctl(tun.fds[0], TUNSETSTEERINGEBPF, struct.pack("=i", program))
        finally:
            os.close(program)
    except OSError as error:
        log.info("flows are steered by the kernel's own rule, not by a program (%(error)s): long "
                 "flows may change their worker once", {"error": error.strerror})
        return False
    return True
