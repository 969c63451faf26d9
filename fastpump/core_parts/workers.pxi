# What the supervisor and its workers send each other.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.atomics cimport RELAXED, load64
from fastpump.hot.constants cimport BATCH_BUCKETS, CONTROL_PACKET_LEN, MISDELIVERED_LEN
from fastpump.hot.events cimport event_at, events_begin, events_pop
from fastpump.hot.fdb cimport fdb_repair
from fastpump.hot.rings cimport (
    control_packet_first, control_packet_pop, misdelivered_first, misdelivered_pop,
    misdelivered_push,
)
from fastpump.hot.shm cimport (
    ADDRESS_LEN, SOURCE_ADDRESS_LEN, ControlPacket, ControlPacketRing, Event, Misdelivered,
    MisdeliveredRing, Tables, WorkerShared,
)
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

    def messages(self, uint32_t number):
        """Take the handshake messages that reached a worker: [(data, sockaddr, source_address)]."""
        cdef MisdeliveredRing *ring = &self.mapping.worker(number).up
        cdef Misdelivered *datagram = misdelivered_first(ring)
        taken = []
        while datagram != NULL:
            taken.append((
                PyBytes_FromStringAndSize(<char *>datagram.data,
                                          min(datagram.length, <uint32_t>MISDELIVERED_LEN)),
                PyBytes_FromStringAndSize(<char *>datagram.address, ADDRESS_LEN),
                PyBytes_FromStringAndSize(<char *>datagram.source_address, SOURCE_ADDRESS_LEN)))
            misdelivered_pop(ring)
            datagram = misdelivered_first(ring)
        return taken

    def controls(self, uint32_t number):
        """Take the control packets that a worker received: [(peer, local index of the session,
        data)]; padding may follow in `data`."""
        cdef ControlPacketRing *ring = &self.mapping.worker(number).controls
        cdef ControlPacket *control = control_packet_first(ring)
        taken = []
        while control != NULL:
            taken.append((control.peer, control.local_index, PyBytes_FromStringAndSize(
                <char *>control.data, min(control.length, <uint32_t>CONTROL_PACKET_LEN))))
            control_packet_pop(ring)
            control = control_packet_first(ring)
        return taken

    def inject(self, uint32_t number, bytes data, bytes sockaddr,
               bytes source_address=bytes(SOURCE_ADDRESS_LEN)):
        """Give a worker a transport message that reached the supervisor; ring its doorbell
        afterwards. False if it is too long or the ring is full."""
        return bool(misdelivered_push(
            &self.mapping.worker(number).down, <const uint8_t *>PyBytes_AS_STRING(data),
            <uint32_t>len(data), PyBytes_AS_STRING(sockaddr), <uint32_t>len(sockaddr),
            PyBytes_AS_STRING(source_address)))

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
