# Moderation: a worker that many packets wake pauses before it waits again, so that it is woken for
# several at once, as interrupt moderation does in a network card.
#
# To be woken costs a worker some microseconds, as much as several small packets do. But a pause
# delays the first packet of the next turn. So how long it is follows from the packets of the last
# window (MODERATION_WINDOW_NS, or as long as the worker waited): as many as should come in a pause
# are MODERATION_WANTED. There is none if not even MODERATION_NEEDED would come in the longest pause
# that the operator allows, or if a wake-up brings MODERATION_ENOUGH bytes anyway, as one of TCP
# does, whose trains come at once. The kernel adds its timer slack, 50 us.
#
# What counts are packets in one direction, less those in the other: whoever asks and waits for the
# answer before he asks again would only ask less often. (Tried: all packets. Sixteen pings that
# wait for one another lost 15% of their rate, and each cost more. With the difference, nothing.)
#
# A lone packet is never delayed, as a single one in a window is no reason for a pause.

from libc.stdint cimport uint64_t

from fastpump.hot.verdict cimport (
    PAUSES, TUN_RX_BYTES, TUN_RX_PACKETS, TUN_TX_BYTES, TUN_TX_PACKETS, WAKEUPS,
)
from fastpump.hot.worker cimport Worker

cdef enum:
    MODERATION_WINDOW_NS = 2000000
    MODERATION_NEEDED = 2
    MODERATION_WANTED = 8
    MODERATION_ENOUGH = 32768


cdef inline uint64_t moderation_pause_ns(Worker *worker) noexcept nogil:
    """How long to pause after a turn; 0: not at all."""
    cdef uint64_t passed_ns = worker.now_ns - worker.window_began_ns
    cdef uint64_t wakeups = worker.shared.counters[WAKEUPS]
    cdef uint64_t sent, received, excess, bytes
    if passed_ns >= MODERATION_WINDOW_NS:
        sent = worker.shared.counters[TUN_RX_PACKETS] - worker.window_sent
        received = worker.shared.counters[TUN_TX_PACKETS] - worker.window_received
        bytes = worker.shared.counters[TUN_RX_BYTES] + worker.shared.counters[TUN_TX_BYTES]
        excess = sent - received if sent > received else received - sent
        worker.next_pause_ns = 0
        if excess and excess * worker.max_pause_ns >= MODERATION_NEEDED * passed_ns \
                and bytes - worker.window_bytes < MODERATION_ENOUGH * (
                    wakeups - worker.window_wakeups):
            worker.next_pause_ns = min(worker.max_pause_ns, MODERATION_WANTED * passed_ns / excess)
        worker.window_began_ns = worker.now_ns
        worker.window_sent += sent
        worker.window_received += received
        worker.window_bytes, worker.window_wakeups = bytes, wakeups
    if worker.next_pause_ns:
        worker.shared.counters[PAUSES] += 1
    return worker.next_pause_ns
