# The forwarding database of a TAP (hot/fdb.pxd).

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastpump.hot.fdb cimport (
    MAC_LOCAL_PORT, MAC_STATIC, MAC_UNKNOWN, fdb_add_static, fdb_flush, fdb_next, fdb_remove,
    fdb_sweep, mac_address, mac_is_aged, mac_key, mac_lookup, mac_owner,
)
from fastpump.hot.shm cimport InterfaceState, Tables

LOCAL_PORT = MAC_LOCAL_PORT


cdef class Fdb:
    """At which port MAC addresses are, per VLAN: a peer's slot, or LOCAL_PORT. Addresses are 6
    bytes, times are CLOCK_BOOTTIME in ns. ValueError for an invalid address or VLAN, and for
    the tables of a TUN."""

    cdef Mapping mapping

    def __cinit__(self, Mapping mapping):
        self.mapping = mapping

    cdef uint64_t key_of(self, bytes mac, uint32_t vlan) except 0:
        if len(mac) != 6 or mac[0] & 1 or vlan > 4095:
            raise ValueError(f"not the address of a host: {mac.hex(':')} in VLAN {vlan}")
        if not self.mapping.tables.header.is_tap:
            raise ValueError("a TUN has no MAC addresses")
        return mac_key(int.from_bytes(mac, "big"), vlan)

    def add(self, bytes mac, uint32_t vlan, uint32_t owner, uint64_t now):
        """A static entry: the address is at that port, and locked to it. MemoryError when there
        is no room for it."""
        cdef uint64_t key = self.key_of(mac, vlan)
        if owner != MAC_LOCAL_PORT:
            self.mapping.check_peer(owner)
        if not fdb_add_static(&self.mapping.tables, key, owner, seconds(now)):
            raise MemoryError("there is no room for that MAC address")

    def remove(self, bytes mac, uint32_t vlan):
        """Forget an address; False if it was not known."""
        return bool(fdb_remove(&self.mapping.tables, self.key_of(mac, vlan)))

    def owner(self, bytes mac, uint32_t vlan, uint64_t now):
        """The port that an address is at; None when unknown."""
        cdef uint32_t owner = mac_lookup(&self.mapping.tables, self.key_of(mac, vlan),
                                         seconds(now))
        return None if owner == MAC_UNKNOWN else owner

    def entries(self, uint64_t now):
        """All that is known: [(address, VLAN, owner, is_static, age in seconds)]."""
        cdef Tables *tables = &self.mapping.tables
        cdef uint64_t position = 0, key, value
        found = []
        while fdb_next(tables, &position, &key, &value) != NULL:
            if not mac_is_aged(tables, value, seconds(now)):
                is_static = bool(value & MAC_STATIC)
                age_s = 0 if is_static else max(0, seconds(now) - (value & 0xffffffff))
                found.append((mac_address(key).to_bytes(6, "big"), key & 0xfff,
                              mac_owner(value), is_static, age_s))
        return found

    def flush(self, owner=None, *, bint with_static=True):
        """Forget the addresses at one port, or all; how many."""
        return fdb_flush(&self.mapping.tables, MAC_UNKNOWN if owner is None else owner, with_static)

    def sweep(self, uint64_t now):
        """Take aged entries out, and count the others anew."""
        cdef uint32_t *counts = <uint32_t *>calloc(
            self.mapping.tables.header.peer_capacity, sizeof(uint32_t))
        if counts == NULL:
            raise MemoryError
        fdb_sweep(&self.mapping.tables, seconds(now), counts, self.mapping.peers_end)
        free(counts)

    def counts(self):
        """(all, at the local port, {peer's slot: of that peer})."""
        cdef InterfaceState *interface = self.mapping.tables.interface
        cdef uint32_t slot
        return (interface.mac_count, interface.mac_count_local_port, {
            slot: self.mapping.tables.peer_states[slot].mac_count
            for slot in range(self.mapping.peers_end) if self.mapping.tables.peers[slot].live})


cdef uint32_t seconds(uint64_t now):
    return <uint32_t>(now // 1000000000)
