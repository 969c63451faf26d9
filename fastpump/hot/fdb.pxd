# The forwarding database of a TAP: at which port a MAC address is, per VLAN: the local port (our
# interface) or a peer.
#
# A hash table of buckets with FDB_WAYS entries of two words. Workers learn and look up without
# locks. An entry's key changes only from free (or aged) to BUSY by compare and swap, and from
# there to the new key after the value is written; an entry that is in use changes its value
# alone, in one word: so a reader finds the right owner, or none. BUSY holds the claimant's number;
# a worker that finds a busy entry in its bucket looks again before it claims another, so an address
# has one entry.
#
# Ageing is exact: readers compare times. The supervisor sweeps aged entries out, and counts
# anew (what two workers counted wrongly in a race does not last). A static entry does not age,
# and locks its address: frames from it are taken from its owner only.
#
# Bounds: the table never grows, and no entry is evicted to make room. Past a limit (of one port,
# of all) an address is not learned, and one that moved is forgotten: frames to it are flooded.
#
# An address is at the port where its last frame came in. A flooded frame may come by several
# routes; the one with the fewest hops counts (hot/switch.pxd).

from libc.stdint cimport int32_t, uint32_t, uint64_t

from fastpump.hot.atomics cimport (
    ACQUIRE, RELAXED, RELEASE, add32, cas64, load32, load64, store32, store64,
)
from fastpump.hot.constants cimport FDB_WAYS, MAX_QUEUES
from fastpump.hot.shm cimport MacEntry, Tables

cdef enum:
    MAC_LOCAL_PORT = 0x00ffffff     # an owner: our interface
    MAC_UNKNOWN = 0x01ffffff        # no owner
    MAC_OWNER_MASK = 0x00ffffff
    MAC_HOPS_SHIFT = 56
    MAC_OWNER_SHIFT = 32

cdef extern from *:
    """
    #define FASTPUMP_MAC_VALID (1ULL << 63)
    #define FASTPUMP_MAC_STATIC (1ULL << 60)
    """
    unsigned long long MAC_VALID "FASTPUMP_MAC_VALID"       # of a key: address << 12 | VLAN
    unsigned long long MAC_STATIC "FASTPUMP_MAC_STATIC"     # of a value

cdef enum:
    MAC_BUSY = 1                    # of a key that is being claimed: twice the claimant, plus this
    MAC_SUPERVISOR = MAX_QUEUES     # the supervisor as a claimant; the others are workers

cdef enum Learned:
    LEARN_KNOWN
    LEARN_NEW
    LEARN_MOVED
    LEARN_LOCKED                    # it is another's
    LEARN_FULL                      # and so it is not learned


cdef inline uint64_t mac_key(uint64_t address, uint32_t vlan) noexcept nogil:
    return MAC_VALID | address << 12 | vlan


cdef inline uint64_t mac_address(uint64_t key) noexcept nogil:
    """The 48 bits of it, whatever else is in the key."""
    return key >> 12 & <uint64_t>0xffffffffffff


cdef inline uint64_t mac_busy(uint32_t who) noexcept nogil:
    return <uint64_t>who << 1 | MAC_BUSY


cdef inline bint mac_key_is_busy(uint64_t key) noexcept nogil:
    return key != 0 and not key & MAC_VALID


cdef inline uint64_t mac_value(uint32_t owner, uint32_t hops, uint32_t now_s) noexcept nogil:
    return <uint64_t>hops << MAC_HOPS_SHIFT | <uint64_t>owner << MAC_OWNER_SHIFT | now_s


cdef inline uint32_t mac_owner(uint64_t value) noexcept nogil:
    return <uint32_t>(value >> MAC_OWNER_SHIFT) & MAC_OWNER_MASK


cdef inline uint32_t mac_hops(uint64_t value) noexcept nogil:
    return <uint32_t>(value >> MAC_HOPS_SHIFT) & 15


cdef inline bint mac_is_aged(const Tables *tables, uint64_t value, uint32_t now_s) noexcept nogil:
    return not value & MAC_STATIC and now_s - <uint32_t>value > tables.header.mac_ageing_s \
        and <int>(now_s - <uint32_t>value) > 0      # another worker may be a second ahead


cdef inline MacEntry *mac_bucket(const Tables *tables, uint64_t key) noexcept nogil:
    """Spread by a secret seed, so that a sender who chooses addresses cannot choose a bucket."""
    cdef uint64_t mix = (key ^ tables.header.mac_seed) * <uint64_t>0x9e3779b97f4a7c15u
    mix = (mix ^ mix >> 32 ^ tables.header.mac_seed >> 17) * <uint64_t>0xd6e8feb86659fd93u
    return &tables.macs[(<uint32_t>(mix >> 32) & (tables.header.mac_buckets - 1)) * FDB_WAYS]


cdef inline MacEntry *mac_find(const Tables *tables, uint64_t key) noexcept nogil:
    """The entry of an address, aged or not; NULL if there is none."""
    cdef MacEntry *bucket = mac_bucket(tables, key)
    cdef int i
    for i in range(FDB_WAYS):
        if load64(&bucket[i].key, ACQUIRE) == key:
            return &bucket[i]
    return NULL


cdef inline uint32_t mac_lookup(const Tables *tables, uint64_t key, uint32_t now_s) noexcept nogil:
    """Where an address is: at a peer (its slot), MAC_LOCAL_PORT or MAC_UNKNOWN."""
    cdef MacEntry *entry = mac_find(tables, key)
    cdef uint64_t value
    cdef uint32_t owner
    if entry == NULL:
        return MAC_UNKNOWN
    value = load64(&entry.value, ACQUIRE)
    if load64(&entry.key, ACQUIRE) != key or mac_is_aged(tables, value, now_s):
        return MAC_UNKNOWN
    owner = mac_owner(value)
    if owner >= tables.header.peer_capacity and owner != MAC_LOCAL_PORT:
        return MAC_UNKNOWN          # nobody writes that, but a worker that was taken over
    return owner


cdef inline bint mac_is_locked(const Tables *tables, uint64_t key, uint32_t owner) noexcept nogil:
    """Whether frames from an address are taken from another port only."""
    cdef MacEntry *entry = mac_find(tables, key)
    cdef uint64_t value
    if entry == NULL:
        return False
    value = load64(&entry.value, ACQUIRE)
    return load64(&entry.key, ACQUIRE) == key and value & MAC_STATIC != 0 \
        and mac_owner(value) != owner


cdef inline uint32_t *mac_counter(const Tables *tables, uint32_t owner) noexcept nogil:
    """`owner` must be one that there may be."""
    if owner == MAC_LOCAL_PORT:
        return &tables.interface.mac_count_local_port
    return &tables.peer_states[owner].mac_count


cdef inline bint mac_has_room(const Tables *tables, uint32_t owner) noexcept nogil:
    # Signed: races may have counted below zero, until the next sweep.
    return <int32_t>load32(mac_counter(tables, owner), RELAXED) \
        < <int32_t>tables.header.mac_limit_per_peer \
        and <int32_t>load32(&tables.interface.mac_count, RELAXED) \
        < <int32_t>tables.header.mac_limit


cdef inline void mac_count_add(const Tables *tables, uint32_t owner, int change) noexcept nogil:
    if owner == MAC_LOCAL_PORT or owner < tables.header.peer_capacity:
        add32(mac_counter(tables, owner), <uint32_t>change, RELAXED)
    add32(&tables.interface.mac_count, <uint32_t>change, RELAXED)


cdef inline MacEntry *mac_victim(const Tables *tables, MacEntry *bucket, uint32_t now_s,
                                 bint *is_busy) noexcept nogil:
    """A free or aged entry; NULL if the bucket is full, or (then `is_busy`) another claims
    an entry of it just now, maybe for the same address."""
    cdef MacEntry *victim = NULL
    cdef uint64_t key
    cdef int i
    is_busy[0] = False
    for i in range(FDB_WAYS):
        key = load64(&bucket[i].key, ACQUIRE)
        if mac_key_is_busy(key):
            is_busy[0] = True
            return NULL
        if victim == NULL and (key == 0 or mac_is_aged(
                tables, load64(&bucket[i].value, ACQUIRE), now_s)):
            victim = &bucket[i]
    return victim


cdef inline bint mac_claim(const Tables *tables, MacEntry *entry, uint32_t now_s,
                           uint32_t who) noexcept nogil:
    """Claim a free or aged entry for `who`; False if another was first."""
    cdef uint64_t key = load64(&entry.key, ACQUIRE)
    cdef uint64_t value = load64(&entry.value, ACQUIRE)
    if mac_key_is_busy(key) or (key != 0 and not mac_is_aged(tables, value, now_s)) \
            or not cas64(&entry.key, key, mac_busy(who)):
        return False
    if key != 0:
        mac_count_add(tables, mac_owner(value), -1)
    return True


cdef inline void mac_fill(const Tables *tables, MacEntry *entry, uint64_t key, uint64_t value,
                          uint32_t who) noexcept nogil:
    """Complete a claimed entry; unless the supervisor took us for dead and freed it."""
    store64(&entry.value, value, RELEASE)
    if cas64(&entry.key, mac_busy(who), key):
        mac_count_add(tables, mac_owner(value), 1)


cdef inline bint mac_forget(const Tables *tables, MacEntry *entry, uint64_t key) noexcept nogil:
    """Free an entry, if it still is that address's."""
    cdef uint64_t value = load64(&entry.value, ACQUIRE)
    if not cas64(&entry.key, key, 0):
        return False
    mac_count_add(tables, mac_owner(value), -1)
    return True


cdef inline Learned mac_refresh(const Tables *tables, MacEntry *entry, uint64_t key, uint32_t owner,
                                uint32_t hops, uint32_t now_s) noexcept nogil:
    """A frame came from `owner` whose source is in the table."""
    cdef uint64_t value = load64(&entry.value, ACQUIRE)
    cdef uint64_t fresh = mac_value(owner, hops, now_s)
    cdef uint32_t before = mac_owner(value)
    if value == fresh:
        return LEARN_KNOWN
    if load64(&entry.key, ACQUIRE) != key:
        return LEARN_KNOWN          # it was another's entry by then: with the next frame
    if value & MAC_STATIC:
        return LEARN_KNOWN if before == owner else LEARN_LOCKED
    if before == owner:
        cas64(&entry.value, value, fresh)
        return LEARN_KNOWN
    if <int32_t>load32(mac_counter(tables, owner), RELAXED) \
            >= <int32_t>tables.header.mac_limit_per_peer:
        mac_forget(tables, entry, key)
        return LEARN_FULL
    if not cas64(&entry.value, value, fresh):
        return LEARN_KNOWN          # another worker was first
    mac_count_add(tables, before, -1)
    mac_count_add(tables, owner, 1)
    return LEARN_MOVED


cdef inline Learned mac_learn(const Tables *tables, uint64_t key, uint32_t owner, uint32_t hops,
                              uint32_t now_s, uint32_t who) noexcept nogil:
    """A frame came from `owner`, over so many relays. `who`: the claimant, our worker."""
    cdef MacEntry *entry
    cdef bint is_busy
    cdef int _
    for _ in range(8):
        entry = mac_find(tables, key)
        if entry != NULL:
            return mac_refresh(tables, entry, key, owner, hops, now_s)
        entry = mac_victim(tables, mac_bucket(tables, key), now_s, &is_busy)
        if is_busy:
            continue
        if entry == NULL or not mac_has_room(tables, owner):
            return LEARN_FULL
        if mac_claim(tables, entry, now_s, who):
            mac_fill(tables, entry, key, mac_value(owner, hops, now_s), who)
            return LEARN_NEW
    return LEARN_KNOWN              # others are at it: with the next frame


# -- the supervisor's side: entries that it makes, and scans of the whole table

cdef inline bint fdb_add_static(const Tables *tables, uint64_t key, uint32_t owner,
                                uint32_t now_s) noexcept nogil:
    """Lock an address to a port, whatever was known of it; False when its bucket is full."""
    cdef MacEntry *entry
    cdef bint is_busy
    cdef int _
    for _ in range(1000):
        entry = mac_find(tables, key)
        if entry != NULL:
            mac_forget(tables, entry, key)
            continue
        entry = mac_victim(tables, mac_bucket(tables, key), now_s, &is_busy)
        if entry == NULL and not is_busy:
            return False
        if entry != NULL and mac_claim(tables, entry, now_s, MAC_SUPERVISOR):
            mac_fill(tables, entry, key, MAC_STATIC | mac_value(owner, 0, 0), MAC_SUPERVISOR)
            return True
    return False


cdef inline bint fdb_remove(const Tables *tables, uint64_t key) noexcept nogil:
    """Forget an address; False if it was not known."""
    cdef MacEntry *entry = mac_find(tables, key)
    return entry != NULL and mac_forget(tables, entry, key)


cdef inline MacEntry *fdb_next(const Tables *tables, uint64_t *position, uint64_t *key,
                               uint64_t *value) noexcept nogil:
    """The next entry in use, aged or not, and its words; NULL after the last. `position` is 0
    at first."""
    cdef uint64_t end = <uint64_t>tables.header.mac_buckets * FDB_WAYS
    cdef MacEntry *entry
    while position[0] < end:
        entry = &tables.macs[position[0]]
        position[0] += 1
        key[0] = load64(&entry.key, ACQUIRE)
        value[0] = load64(&entry.value, ACQUIRE)
        if key[0] & MAC_VALID:
            return entry
    return NULL


cdef inline uint32_t fdb_flush(const Tables *tables, uint32_t owner,
                               bint with_static) noexcept nogil:
    """Forget the addresses of one port, or of all (MAC_UNKNOWN); how many."""
    cdef uint64_t position = 0, key, value
    cdef uint32_t count = 0
    cdef MacEntry *entry = fdb_next(tables, &position, &key, &value)
    while entry != NULL:
        if (owner == MAC_UNKNOWN or mac_owner(value) == owner) and (
                with_static or not value & MAC_STATIC):
            count += mac_forget(tables, entry, key)
        entry = fdb_next(tables, &position, &key, &value)
    return count


cdef inline void fdb_sweep(const Tables *tables, uint32_t now_s, uint32_t *counts,
                           uint32_t peers_end) noexcept nogil:
    """Take aged entries out, and count the others anew. `counts`: a zero for each of `peers_end`
    peers."""
    cdef uint64_t position = 0, key, value
    cdef uint32_t owner, slot, total = 0, local = 0
    cdef MacEntry *entry = fdb_next(tables, &position, &key, &value)
    while entry != NULL:
        owner = mac_owner(value)
        if mac_is_aged(tables, value, now_s):
            cas64(&entry.key, key, 0)
        else:
            total += 1
            if owner == MAC_LOCAL_PORT:
                local += 1
            elif owner < peers_end:
                counts[owner] += 1
        entry = fdb_next(tables, &position, &key, &value)
    store32(&tables.interface.mac_count, total, RELAXED)
    store32(&tables.interface.mac_count_local_port, local, RELAXED)
    for slot in range(peers_end):
        store32(&tables.peer_states[slot].mac_count, counts[slot], RELAXED)


cdef inline void fdb_repair(const Tables *tables, uint32_t who) noexcept nogil:
    """Free what a dead worker claimed and did not fill."""
    cdef uint64_t i
    for i in range(<uint64_t>tables.header.mac_buckets * FDB_WAYS):
        cas64(&tables.macs[i].key, mac_busy(who), 0)
