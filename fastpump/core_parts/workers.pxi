# What the supervisor and its workers send each other.

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastpump.hot.atomics cimport RELAXED, RELEASE, load32, load64, store64
from fastpump.hot.constants cimport BATCH_BUCKETS, CONTROL_PACKET_LEN, CONTROL_RING_LEN
from fastpump.hot.events cimport event_at, events_end, events_pop
from fastpump.hot.fdb cimport fdb_repair
from fastpump.hot.rings cimport control_packet_at, ring_end
from fastpump.hot.shm cimport ControlPacket, ControlPacketRing, Event, Tables, WorkerShared
from fastpump.hot.worker_exit cimport keypair_repair, lane_repair, peer_repair, worker_repair

cdef struct Positions:
    # Where the supervisor is in a worker's rings. The worker can write to those in the state.
    uint64_t events, up, controls   # the next to take; `up` and `down` are Admission's
    uint64_t down                   # the next to fill


cdef class Workers:
    """The workers by their numbers. IndexError for one that does not exist. What a worker says is
    taken as it is; that it is well-formed, and no more than its ring holds, is made sure of
    here."""

    cdef Mapping mapping
    cdef Keypairs keypairs
    cdef Lanes lanes
    cdef Positions *positions       # by number

    def __cinit__(self, Mapping mapping, Keypairs keypairs, Lanes lanes):
        self.mapping, self.keypairs, self.lanes = mapping, keypairs, lanes
        self.positions = <Positions *>calloc(mapping.tables.header.queue_count, sizeof(Positions))
        if self.positions == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.positions)

    def exited(self, uint32_t number):
        """The worker's process has ended: put right what it left behind (hot/worker_exit.pxd).
        Take its events first. The slots of peers whose endpoint it was just writing: they
        need one."""
        cdef Tables *tables = &self.mapping.tables
        cdef uint32_t slot
        worker_repair(self.mapping.worker(number))
        torn = []
        for slot in range(self.mapping.peers_end):
            if peer_repair(&tables.peer_states[slot], number, tables.header.queue_count):
                torn.append(slot)
        for slot in range(self.keypairs.end):
            keypair_repair(&tables.keypair_states[slot])
        for slot in range(self.lanes.end):
            lane_repair(&tables.lanes[slot], &tables.lane_states[slot], number,
                        tables.header.queue_count)
        fdb_repair(tables, number)
        self.lanes.retired.endpoints.write_late()
        return torn

    def epoch(self, uint32_t number):
        """Its progress: another number after each iteration of its loop (hot/loop.pxd)."""
        return load64(&self.mapping.worker(number).epoch, RELAXED)

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
        cdef uint64_t *head = &self.positions[number].controls
        cdef uint64_t end = ring_end(head, &ring.tail, CONTROL_RING_LEN)
        cdef ControlPacket *control
        taken = []
        while head[0] != end:
            control = control_packet_at(ring, head[0])
            taken.append((control.peer, control.local_index, PyBytes_FromStringAndSize(
                <char *>control.data,
                min(load32(&control.length, RELAXED), <uint32_t>CONTROL_PACKET_LEN))))
            head[0] += 1
        store64(&ring.head, end, RELEASE)
        return taken

    def events(self, uint32_t number):
        """Take all events of one worker: [(name, peer, detail, error, at_ns)]."""
        cdef WorkerShared *worker = self.mapping.worker(number)
        cdef uint64_t *head = &self.positions[number].events
        cdef uint64_t end = events_end(worker, head)
        cdef Event *event
        taken = []
        while head[0] != end:
            event = event_at(worker, head[0])
            name = EVENT_NAMES.get(event.kind)
            if name is not None:
                taken.append((name, event.peer, event.detail, event.error, event.at_ns))
            head[0] += 1
        events_pop(worker, end)
        return taken
