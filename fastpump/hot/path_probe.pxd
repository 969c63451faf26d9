# Probes of the path MTU (RFC 8899), as they come from the peer (docs/PROTOCOL.md).
#
# The supervisors probe (device/path_mtus.py): by a lane message with the flag EXTENSION, or by a
# control packet of a session, as large as the datagram has to be. The receiver says how large it
# was. Both messages look the same:
#
#   0      EXTENSION_* with a zero behind it; or CONTROL_MAGIC and CONTROL_PATH_*
#   2      4, the length of what follows, without padding
#   4      a number that the prober chose; the ack has the same
#   6      a probe: 0; an ack: the size of the datagram that came, without IP and UDP headers
#
# A datagram that was put together from fragments says nothing about the path: it is not answered.
# The kernel tells by IP_RECVFRAGSIZE and IPV6_RECVFRAGSIZE, for what it has put together itself. Of
# a message that waited for its keys that is not known any more, so it is not answered either.
#
# An event's `error` is number << 16 | size.

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.activity cimport activity_lane_received, activity_path_probed
from fastpump.hot.bytes cimport load_le16
from fastpump.hot.constants cimport (
    CONTROL_PATH_PROBE, EXTENSION_PATH_ACK, EXTENSION_PATH_PROBE, EXTENSION_RECORD_CUT,
    EXTENSION_HEADER_LEN, EXTENSION_TRAIN_END, LANE_FLAG_EXTENSION, TRANSPORT_OVERHEAD,
)
from fastpump.hot.events cimport event_push, events_are_many
from fastpump.hot.lane cimport lane_slot
from fastpump.hot.shm cimport (
    EVENT_PATH_ACK, EVENT_PATH_PROBE, EVENT_RECORDS_END, NONE, Keypair, Lane, lane_state,
)
from fastpump.hot.upcall cimport upcall_take_path
from fastpump.hot.verdict cimport (
    DROP_CONTROL_RATE, DROP_FRAGMENTED_PROBE, DROP_MALFORMED_INNER, PASS, Verdict,
)
from fastpump.hot.worker cimport Worker

cdef enum:
    PATH_PROBE_LEN = 8


cdef inline bint path_probe_is(uint32_t kind, uint32_t probe, uint32_t ack) noexcept nogil:
    return kind == probe or kind == ack


cdef inline Verdict path_probe_on_lane(Worker *worker, const Lane *lane, uint32_t flags,
                                       const uint8_t *inner, uint32_t inner_len) noexcept nogil:
    """A lane message with the flag EXTENSION."""
    cdef bint is_probe
    if flags == LANE_FLAG_EXTENSION and inner_len >= EXTENSION_HEADER_LEN \
            and inner[0] == EXTENSION_TRAIN_END:
        return PASS
    if flags == LANE_FLAG_EXTENSION and inner_len >= PATH_PROBE_LEN \
            and inner[0] == EXTENSION_RECORD_CUT:
        activity_lane_received(worker, lane, 0, False)
        return record_end(worker, lane)
    if flags != LANE_FLAG_EXTENSION or inner_len < PATH_PROBE_LEN or not path_probe_is(
            inner[0], EXTENSION_PATH_PROBE, EXTENSION_PATH_ACK):
        return DROP_MALFORMED_INNER
    is_probe = inner[0] == EXTENSION_PATH_PROBE
    if is_probe:
        activity_path_probed(worker, lane)
    else:
        activity_lane_received(worker, lane, 0, False)
    return path_probe_report(worker, lane.peer, lane_slot(&worker.tables, lane), is_probe, inner,
                             inner_len, &lane_state(&worker.tables, lane).path_full_at_ns)


cdef inline Verdict record_end(Worker *worker, const Lane *lane) noexcept nogil:
    """The peer got a record of ours in part (hot/record.pxd): none for a while."""
    if events_are_many(worker.shared) or not upcall_take_path(
            worker, &lane_state(&worker.tables, lane).path_full_at_ns):
        return DROP_CONTROL_RATE
    worker.send.has_events |= event_push(worker.shared, EVENT_RECORDS_END, lane.peer,
                                         lane_slot(&worker.tables, lane), 0, worker.now_ns)
    return PASS


cdef inline Verdict path_probe_on_session(Worker *worker, const Keypair *keypair,
                                          const uint8_t *inner, uint32_t inner_len) noexcept nogil:
    """A control packet of a session. Also where only plain WireGuard is wanted."""
    if inner_len < PATH_PROBE_LEN:
        return DROP_MALFORMED_INNER
    return path_probe_report(worker, keypair.peer, NONE, inner[1] == CONTROL_PATH_PROBE, inner,
                             inner_len, &worker.paths_full_at_ns[keypair.peer])


cdef inline Verdict path_probe_report(Worker *worker, uint32_t peer, uint32_t slot, bint is_probe,
                                      const uint8_t *inner, uint32_t inner_len,
                                      uint64_t *full_at_ns) noexcept nogil:
    """Hand it to the supervisor."""
    cdef uint32_t size = inner_len + TRANSPORT_OVERHEAD if is_probe else load_le16(inner + 6)
    if is_probe and worker.is_reassembled:
        return DROP_FRAGMENTED_PROBE
    if events_are_many(worker.shared) or not upcall_take_path(worker, full_at_ns):
        return DROP_CONTROL_RATE
    if not event_push(worker.shared, EVENT_PATH_PROBE if is_probe else EVENT_PATH_ACK, peer, slot,
                      <uint32_t>load_le16(inner + 4) << 16 | size, worker.now_ns):
        return PASS                 # that is counted
    worker.send.has_events = True
    return PASS
