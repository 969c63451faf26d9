# What ps and top call a process; see title.h.

cdef extern from "title.h" nogil:
    void title_set(const char *title, const char *short_name)
