"""The data plane, as Python sees it.

Thin: the mechanisms are inline functions in hot/*.pxd, compiled into this one module. What Python
needs of them is in core_parts/, by subject; each part says what it takes from hot/:

names        what the operator calls verdicts, counters and events, from the enums of hot/
memory       mapped memory, and the owner of the tables' mappings
backends     the AEAD libraries of this build
secrets      what keys are made of, wiped when it is not needed any more
endpoints    addresses of peers and lanes, as bytes
reclaim      slots of the tables: free, taken, retired
peers keypairs lanes allowed_ips fdb limiters workers
             the tables by subject: SharedTables.peers and so on
tables       SharedTables: the supervisor's interface to the shared memory (hot/shm.pxd);
             AttachedTables: a worker's
pump         Pump: one worker, its buffers, its loop; confine: its sandbox
admission    Admission: what is admitted at the supervisor's handshake socket
tools        plain functions over the hot code, for tests and tools
shared_constants
             numbers that Python has, too

Three kinds of errors: hostile input ends in a counted verdict; a system error
(-errno) is raised here, once; a caller's bug raises ValueError or IndexError.
"""

include "core_parts/names.pxi"
include "core_parts/memory.pxi"
include "core_parts/backends.pxi"
include "core_parts/secrets.pxi"
include "core_parts/endpoints.pxi"
include "core_parts/reclaim.pxi"
include "core_parts/limiters.pxi"
include "core_parts/peers.pxi"
include "core_parts/keypairs.pxi"
include "core_parts/lanes.pxi"
include "core_parts/allowed_ips.pxi"
include "core_parts/fdb.pxi"
include "core_parts/workers.pxi"
include "core_parts/tables.pxi"
include "core_parts/pump.pxi"
include "core_parts/admission.pxi"
include "core_parts/tools.pxi"
include "core_parts/shared_constants.pxi"
