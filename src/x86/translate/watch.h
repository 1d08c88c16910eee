/* Those who watch translations being made: statistics, the listing (trace.c), and names for perf (perfmap.c) and gdb (gdbjit.c).
 */
#ifndef X86_TRANSLATE_WATCH_H
#define X86_TRANSLATE_WATCH_H

#include "jit/arena.h"
#include "x86/block.h"
#include "x86/translate/settings.h"

struct x86_code;

/* Of one VM; all calls with its code's lock held. */
struct x86_watch *x86_watch_create(const struct x86_code_settings *s, const struct jit_arena *a); /* NULL: nobody watches */
void x86_watch_destroy(struct x86_watch *w);
/* This vCPU, at the block's address, has translated it, which began then (clock_now_ns).  Nobody runs it yet. */
void x86_watch_made(struct x86_watch *w, struct x86_vcpu *c, const struct x86_code *code, u64 began);
/* The VM's translations are no more. */
void x86_watch_reset(struct x86_watch *w, struct x86_vm *vm);

#endif
