# The anti-replay window of RFC 6479: a ring of 64-bit words.
#
# A counter's bit lives in word (counter / 64) modulo the ring. Moving forward
# clears the words passed over, instead of shifting the whole window. One word is
# always partly in the future, so the window is the ring less one word: 8128.
#
# Order of use: `replay_is_fresh` before the (expensive) opening of the message,
# `replay_mark` after it has proved authentic, so that a forgery moves nothing.
#
# A worker may be killed at any instruction, and the next goes on with the window: so the newest
# counter is stored before the words of older ones are cleared. Bits of a ring ago that stay then
# let messages be dropped; nothing is accepted twice.

from libc.stdint cimport uint64_t

from fastpump.hot.atomics cimport SEQ_CST, signal_fence
from fastpump.hot.constants cimport REJECT_AFTER_MESSAGES, REPLAY_WINDOW, REPLAY_WORDS
from fastpump.hot.shm cimport Replay


cdef inline bint replay_is_fresh(const Replay *self, uint64_t counter) noexcept nogil:
    """Whether `counter` may still be accepted."""
    if counter >= REJECT_AFTER_MESSAGES:
        return False
    if counter >= self.newest:
        return True
    if counter + REPLAY_WINDOW < self.newest:
        return False
    return not (self.bitmap[(counter >> 6) % REPLAY_WORDS] >> (counter & 63)) & 1


cdef inline bint replay_mark(Replay *self, uint64_t counter) noexcept nogil:
    """Accept `counter`; False if it was not fresh."""
    cdef uint64_t before = self.newest
    cdef uint64_t word = counter >> 6
    cdef uint64_t newest_word, passed, i
    if not replay_is_fresh(self, counter):
        return False
    if counter >= before:
        self.newest = counter + 1
        signal_fence(SEQ_CST)
        # `newest` is one past the highest counter; its word may not be started yet.
        newest_word = (before - 1) >> 6 if before else 0
        passed = word - newest_word
        if passed > REPLAY_WORDS:
            passed = REPLAY_WORDS
        for i in range(passed):
            self.bitmap[(newest_word + 1 + i) % REPLAY_WORDS] = 0
    self.bitmap[word % REPLAY_WORDS] |= <uint64_t>1 << (counter & 63)
    return True
