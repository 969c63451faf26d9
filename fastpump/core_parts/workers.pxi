# What the supervisor and its workers send each other.

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.constants cimport BATCH_BUCKETS, CONTROL_PACKET_LEN
from fastpump.hot.events cimport event_at, events_begin, events_pop
from fastpump.hot.fdb cimport fdb_repair
from fastpump.hot.rings cimport (
    control_packet_count, control_packet_first, control_packet_pop,
)
from fastpump.hot.shm cimport ControlPacket, ControlPacketRing, Event, Tables, WorkerShared
from fastpump.hot.worker_exit cimport keypair_repair, lane_repair, peer_repair, worker_repair


cdef class Workers:
    """The workers by their numbers. IndexError for one that does not exist."""

    cdef Mapping mapping
    cdef Keypairs keypairs
    cdef Lanes lanes

    def __cinit__(self, Mapping mapping, Keypairs keypairs, Lanes lanes):
        self.mapping, self.keypairs, self.lanes = mapping, keypairs, lanes

    def exited(self, uint32_t number):
        """The worker's process has ended: put right what it left behind (hot/worker_exit.pxd).
        Take its events first. The slots of peers whose endpoint it was just writing: they
        need one."""
        cdef Tables *tables = &self.mapping.tables
        cdef uint32_t slot
        worker_repair(self.mapping.worker(number))
        torn = []
        for slot in range(self.mapping.peers_end):
            if peer_repair(&tables.peers[slot]):
                torn.append(slot)
        for slot in range(self.keypairs.end):
            keypair_repair(&tables.keypairs[slot])
        for slot in range(self.lanes.end):
            lane_repair(&tables.lanes[slot], number)
        fdb_repair(tables, number)
        return torn

    def counters(self, uint32_t number):
        """{"counters": {name: n}, "verdicts": {name: n}, "tx_batches": [n], "rx_batches":
        [n]}; bucket i of a batch histogram holds calls of 2^i to 2^(i+1)-1 datagrams."""
        cdef WorkerShared *worker = self.mapping.worker(number)
        return {
            "counters": {name: worker.counters[<int>i] for i, name in COUNTER_NAMES.items()},
            "verdicts": {name: worker.verdicts[<int>i] for i, name in VERDICT_NAMES.items()},
            "tx_batches": [worker.send_batches[i] for i in range(BATCH_BUCKETS)],
            "rx_batches": [worker.recv_batches[i] for i in range(BATCH_BUCKETS)],
        }

    def controls(self, uint32_t number):
        """Take the control packets that a worker has received until now: [(peer, local index of
        the session, data)]; padding may follow in `data`."""
        cdef ControlPacketRing *ring = &self.mapping.worker(number).controls
        cdef ControlPacket *control
        taken = []
        for _ in range(control_packet_count(ring)):
            control = control_packet_first(ring)
            if control == NULL:
                break
            taken.append((control.peer, control.local_index, PyBytes_FromStringAndSize(
                <char *>control.data, min(control.length, <uint32_t>CONTROL_PACKET_LEN))))
            control_packet_pop(ring)
        return taken

    def events(self, uint32_t number):
        """Take all events of one worker: [(name, peer, detail, error, at_ns)]."""
        cdef WorkerShared *worker = self.mapping.worker(number)
        cdef uint64_t end, position = events_begin(worker, &end)
        cdef Event *event
        taken = []
        while position != end:
            event = event_at(worker, position)
            taken.append((EVENT_NAMES.get(event.kind, "unknown"), event.peer, event.detail,
                          event.error, event.at_ns))
            position += 1
        events_pop(worker, end)
        return taken
