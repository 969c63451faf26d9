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

import fcntl
import logging
import os
import struct

from fastpump.kernel import TUNSETSTEERINGEBPF
from fastpump.tun import bpf
from fastpump.tun.queues import TunQueues

log = logging.getLogger("fastpump.steering")

_MIX = 0x61C88647           # positive as a 32-bit constant; the golden ratio's complement


def _program(queue_count: int, is_tap: bool) -> list[bpf.Line]:
    """(code, destination, source, offset or label, constant), and labels. r7: the sum;
    r8: where the ports are; r9: where the IP header is."""
    def load(size: int, at: int) -> bpf.Line:
        return (bpf.LD_ABS | size, 0, 0, 0, at)

    def load_behind(register: int, size: int, at: int) -> bpf.Line:
        return (bpf.LD_IND | size, 0, register, 0, at)

    def add() -> bpf.Line:
        return (bpf.ADD | bpf.REGISTER, 7, 0, 0, 0)

    lines: list[bpf.Line] = [
        (bpf.MOV | bpf.REGISTER, 6, 1, 0, 0),
        (bpf.MOV, 7, 0, 0, 0),
        (bpf.MOV, 9, 0, 0, 0),
    ]
    if is_tap:
        lines += [(bpf.MOV, 9, 0, 0, 14), load(bpf.HALF, 12)]
        for tag in range(2):
            lines += [
                (bpf.JEQ, 0, 0, f"tag {tag}", 0x8100),
                (bpf.JNE, 0, 0, "ethertype", 0x88A8),
                f"tag {tag}",
                load_behind(9, bpf.HALF, 2),
                (bpf.ADD, 9, 0, 0, 4),
            ]
        lines += [
            "ethertype",
            (bpf.JEQ, 0, 0, "ip", 0x0800),
            (bpf.JEQ, 0, 0, "ip", 0x86DD),
        ]
        for at in range(0, 12, 2):
            lines += [load(bpf.HALF, at), add()]
        lines += [(bpf.JA, 0, 0, "mix", 0), "ip"]
    lines += [
        load_behind(9, bpf.BYTE, 0),
        (bpf.RSH, 0, 0, 0, 4),
        (bpf.JEQ, 0, 0, "v6", 6),
        (bpf.JNE, 0, 0, "mix", 4),
        load_behind(9, bpf.WORD, 12), add(),
        load_behind(9, bpf.WORD, 16), add(),
        load_behind(9, bpf.HALF, 6),
        (bpf.JSET, 0, 0, "mix", 0x3FFF),           # a fragment has no ports to see
        load_behind(9, bpf.BYTE, 0),
        (bpf.AND, 0, 0, 0, 15),
        (bpf.LSH, 0, 0, 0, 2),
        (bpf.MOV | bpf.REGISTER, 8, 0, 0, 0),
        (bpf.ADD | bpf.REGISTER, 8, 9, 0, 0),
        load_behind(9, bpf.BYTE, 9),
        (bpf.JA, 0, 0, "protocol", 0),
        "v6",
    ]
    for at in range(8, 40, 4):
        lines += [load_behind(9, bpf.WORD, at), add()]
    return [
        *lines,
        (bpf.MOV | bpf.REGISTER, 8, 9, 0, 0),
        (bpf.ADD, 8, 0, 0, 40),
        load_behind(9, bpf.BYTE, 6),
        "protocol",
        (bpf.JEQ, 0, 0, "ports", 6),
        (bpf.JNE, 0, 0, "mix", 17),
        "ports",
        load_behind(8, bpf.HALF, 0), add(),
        load_behind(8, bpf.HALF, 2), add(),
        "mix",
        (bpf.MUL, 7, 0, 0, _MIX),
        (bpf.MOV | bpf.REGISTER, 0, 7, 0, 0),
        (bpf.RSH, 0, 0, 0, 16),
        (bpf.AND, 0, 0, 0, 0xFFFF),
        (bpf.MOD, 0, 0, 0, queue_count),
        (bpf.EXIT, 0, 0, 0, 0),
    ]


def assemble(queue_count: int, *, is_tap: bool = False) -> bytes:
    """The program for so many queues, as the kernel takes it."""
    return bpf.assemble(_program(queue_count, is_tap))


def steer_by_flow(tun: TunQueues) -> bool:
    """Have the kernel choose the queue by flow; False where we may not load the program."""
    try:
        program = bpf.load_program(assemble(len(tun.fds), is_tap=tun.is_tap))
        try:
            fcntl.ioctl(tun.fds[0], TUNSETSTEERINGEBPF, struct.pack("=i", program))
        finally:
            os.close(program)
    except OSError as error:
        log.info("flows are steered by the kernel's own rule, not by a program (%(error)s): long "
                 "flows may change their worker once", {"error": error.strerror})
        return False
    return True
