/* Where statistics live: one file of the process, which other programs of the same user may read (uvirt_stats.h, `uvirt stat`). */
#ifndef CORE_STATS_ARENA_H
#define CORE_STATS_ARENA_H

#include "base/types.h"
#include "uvirt_stats.h"

/* A zeroed slot of UVIRT_STATS_SLOT bytes; NULL: no memory.  Any thread. */
void *stats_slot_alloc(void);
/* Gives a slot back; whatever was mapped over its pages goes. */
void stats_slot_free(void *slot);
/* Other pages have been mapped over the first `size` bytes: what lay there goes from the file. */
void stats_slot_hide(void *slot, size_t size);

#endif
