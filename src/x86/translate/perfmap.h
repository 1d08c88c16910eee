/* Names of translations for perf(1): /tmp/perf-PID.map, as its interface for JIT compilers has it. */
#ifndef X86_TRANSLATE_PERFMAP_H
#define X86_TRANSLATE_PERFMAP_H

#include "jit/arena.h"

/* Any VM of the process. */
void perf_map_add(const u8 *start, size_t size, const char *name);
/* What lies there is gone, or was another VM's. */
void perf_map_forget(const struct jit_arena *a);

#endif
