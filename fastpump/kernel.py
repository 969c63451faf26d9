"""Numbers and layouts of Linux that neither Python's `socket` nor its `os` has, each below the
header that it is from (include/uapi). What is spoken over netlink alone is pyroute2's (netlink/);
the data plane takes its own from the headers (hot/linux.pxd)."""

import struct

# linux/if.h
IFF_UP = 0x1
IFREQ_FLAGS = struct.Struct("=16sH22x")     # struct ifreq with ifr_flags
IFREQ_INT = struct.Struct("=16si20x")       # struct ifreq with ifr_ifindex or ifr_mtu

# linux/sockios.h
SIOCGIFFLAGS = 0x8913
SIOCGIFMTU = 0x8921
SIOCGIFINDEX = 0x8933

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
TUNSETGROUP = 0x400454CE
TUNGETFEATURES = 0x800454CF
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETVNETHDRSZ = 0x400454D8
TUNSETSTEERINGEBPF = 0x800454E0
TUNSETFILTEREBPF = 0x800454E1
TUNGETDEVNETNS = 0x54E3
IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40
TUN_F_UDP_TUNNEL_GSO = 0x80
TUN_F_UDP_TUNNEL_GSO_CSUM = 0x100

# linux/virtio_net.h
VIRTIO_NET_HDR = struct.Struct("=BBHHHH10xHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, outer_th_offset, inner_nh_offset
(struct virtio_net_hdr_v1_hash_tunnel)"""
VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_TCPV6 = 4
VIRTIO_NET_HDR_GSO_UDP_L4 = 5

# asm-generic/socket.h
SO_ATTACH_FILTER = 26
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_ATTACH_REUSEPORT_CBPF = 51
SO_TIMESTAMPNS = 35         # SO_TIMESTAMPNS_OLD: a struct timespec
SO_MEMINFO = 55
SO_COOKIE = 57
SO_NETNS_COOKIE = 71

# linux/in.h, linux/in6.h, linux/udp.h
IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DONT = 0
IP_PMTUDISC_PROBE = 3
IP_RECVFRAGSIZE = 25
IPV6_MTU_DISCOVER = 23
IPV6_PMTUDISC_DONT = 0
IPV6_PMTUDISC_PROBE = 3
IPV6_RECVFRAGSIZE = 77
UDP_SEGMENT = 103
UDP_GRO = 104

# linux/if_packet.h (SOL_PACKET: linux/socket.h)
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_PROMISC = 1
PACKET_MREQ = struct.Struct("=iHH8x")       # struct packet_mreq: interface, type, address length

# linux/sock_diag.h
SK_MEMINFO = struct.Struct("=9I")           # the last one: SK_MEMINFO_DROPS

# linux/netlink.h
NLMSG_HEADER = struct.Struct("=IHHII")      # length, type, flags, sequence, port
NLM_F_REQUEST = 1
NL_ATTRIBUTE = struct.Struct("=HH")         # length, type

# linux/rtnetlink.h
RTMGRP_LINK = 1
RTM_NEWSTATS = 92
RTM_NEWLINK = 16
RTM_GETSTATS = 94

# linux/if_link.h
IFINFO = struct.Struct("=BxHiII")           # struct ifinfomsg: family, type, index, flags, change
IF_STATS = struct.Struct("=B3xII")          # struct if_stats_msg: family, index, filter
IFLA_STATS_LINK_64 = 1
LINK_STATS64 = struct.Struct("=56xQ")       # struct rtnl_link_stats64, up to tx_dropped

# linux/netlink.h, lib/kobject_uevent.c
NETLINK_KOBJECT_UEVENT = 15
UEVENT_GROUP_KERNEL = 1

# linux/prctl.h
PR_SET_DUMPABLE = 4

# linux/sched.h
CLONE_NEWNET = 0x40000000

# linux/bpf.h
BPF_MAP_CREATE = 0
BPF_MAP_LOOKUP_ELEM = 1
BPF_MAP_UPDATE_ELEM = 2
BPF_MAP_DELETE_ELEM = 3
BPF_PROG_LOAD = 5
BPF_MAP_TYPE_HASH = 1
BPF_PROG_TYPE_SOCKET_FILTER = 1
BPF_FUNC_MAP_LOOKUP_ELEM = 1
BPF_FUNC_SKB_LOAD_BYTES = 26
BPF_FUNC_GET_SOCKET_COOKIE = 46

# asm/unistd.h: system calls without a function in libc
SYS_BPF = {"x86_64": 321, "aarch64": 280}   # by platform.machine()
SYS_PIDFD_GETFD = 438       # the same number on all architectures that Python runs on, except alpha
