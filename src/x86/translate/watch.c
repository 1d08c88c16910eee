/* Counts translations and tells those who want to know of them. */
#include <stdlib.h>
#include <string.h>
#include "base/evloop.h"
#include "core/stats.h"
#include "x86/translate/gdbjit.h"
#include "x86/translate/perfmap.h"
#include "x86/translate/private.h"
#include "x86/translate/symbols.h"
#include "x86/translate/trace.h"
#include "x86/translate/watch.h"
#include "x86/x86.h"

struct x86_watch {
  const struct jit_arena *arena;
  char *trace; /* file of the listing, or NULL */
  bool perf;
  struct gdb_names *gdb; /* or NULL */
  struct symbols *symbols;
  u64 made;
};

struct x86_watch *x86_watch_create(const struct x86_code_settings *s, const struct jit_arena *a) {
  if (!s->trace && !s->perf && !s->gdb) return NULL;
  struct x86_watch *w = calloc(1, sizeof(*w));
  if (!w) return NULL;
  w->arena = a;
  w->trace = s->trace ? strdup(s->trace) : NULL;
  w->perf = s->perf;
  w->gdb = s->gdb ? gdb_names_create() : NULL;
  w->symbols = s->symbols ? symbols_load(s->symbols) : NULL;
  if (w->perf) perf_map_forget(a); /* of a VM that is no more */
  return w;
}

/* The file for perf stays: it is read when all is over. */
void x86_watch_destroy(struct x86_watch *w) {
  if (!w) return;
  gdb_names_destroy(w->gdb);
  symbols_free(w->symbols);
  free(w->trace);
  free(w);
}

static void tell(struct x86_watch *w, const struct x86_code *code, u64 lin) {
  char name[GUEST_NAME_MAX];
  symbols_name(w->symbols, lin, name);
  w->made++;
  if (w->trace) x86_trace_code(w->trace, name, code, lin, w->made);
  if (w->perf) perf_map_add(code->start, (size_t)(code->end - code->start), name);
  if (w->gdb) gdb_names_add(w->gdb, code->start, code->end, name);
}

void x86_watch_made(struct x86_watch *w, struct x86_vcpu *c, const struct x86_code *code, u64 began) {
  vcpu_stat_inc(&c->core, translations);
  vcpu_stat_add(&c->core, translated_guest_bytes, code->block->len);
  vcpu_stat_add(&c->core, translated_host_bytes, (u64)(code->end - code->start));
  vcpu_stat_add(&c->core, translation_ns, clock_now_ns() - began);
  if (w) tell(w, code, c->rip);
}

void x86_watch_reset(struct x86_watch *w, struct x86_vm *vm) {
  vm_stat_inc(&vm->core, translation_resets);
  if (w && w->perf) perf_map_forget(w->arena);
  if (w && w->gdb) gdb_names_reset(w->gdb);
}
