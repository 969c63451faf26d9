"""Owned and persistent nftables tables: nobody but the owner's socket can change or flush them, and
they stay when it is closed, as when its process is killed (Linux 6.9; include/uapi/linux/netfilter/
nf_tables.h: NFT_TABLE_F_OWNER, NFT_TABLE_F_PERSIST).

nft(8) has a socket of its own for each run. So a table is made by it while nobody owns it, and
claimed then.
"""

from __future__ import annotations

import socket
import struct

from fastpump.kernel import NL_ATTRIBUTE, NLM_F_REQUEST, NLMSG_HEADER

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h; pyroute2's socket would
# be one more event loop, for these three messages.
NETLINK_NETFILTER = 12
_NLM_F_ACK, _NLM_F_CREATE = 0x4, 0x400
_BATCH_BEGIN, _BATCH_END, _SUBSYSTEM = 0x10, 0x11, 10
_NEWTABLE = _SUBSYSTEM << 8
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_OWNER, _PERSIST = 2, 4
_INET = 1
_MESSAGE = struct.Struct(">BBH")        # struct nfgenmsg: family, version, resource
_FLAGS = struct.Struct(">I")
_ERROR = struct.Struct("=i")            # struct nlmsgerr


def claim(table: str) -> socket.socket | None:
    """Own a table of the family inet, which is made if it is not there, until the socket is closed;
    None if that cannot be: an older kernel, a table without that flag, or another owner."""
    owner = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    try:
        owner.bind((0, 0))
        owner.send(_request(_BATCH_BEGIN, 0, 0, _SUBSYSTEM)
                   + _request(_NEWTABLE, _NLM_F_ACK | _NLM_F_CREATE, _INET, 0,
                              _attribute(_TABLE_NAME, table.encode() + b"\0")
                              + _attribute(_TABLE_FLAGS, _FLAGS.pack(_OWNER | _PERSIST)))
                   + _request(_BATCH_END, 0, 0, _SUBSYSTEM))
        answer = owner.recv(1 << 16)
    except OSError:
        owner.close()
        return None
    if _ERROR.unpack_from(answer, NLMSG_HEADER.size)[0] != 0:
        owner.close()
        return None
    return owner


def _request(kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    data = _MESSAGE.pack(family, 0, resource) + body
    return NLMSG_HEADER.pack(NLMSG_HEADER.size + len(data), kind, NLM_F_REQUEST | flags, 1,
                             0) + data


def _attribute(kind: int, value: bytes) -> bytes:
    length = NL_ATTRIBUTE.size + len(value)
    return NL_ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)
