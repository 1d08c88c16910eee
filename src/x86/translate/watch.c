/* Counts translations and tells those who want to know of them. */
#include "base/evloop.h"
#include "core/stats.h"
#include "x86/translate/private.h"
#include "x86/translate/watch.h"
#include "x86/x86.h"

struct x86_watch *x86_watch_create(const struct x86_code_settings *s, const struct jit_arena *a) {
  return NULL;
}

void x86_watch_destroy(struct x86_watch *w) {}

void x86_watch_made(struct x86_watch *w, struct x86_vcpu *c, const struct x86_code *code, u64 began) {
  vcpu_stat_inc(&c->core, translations);
  vcpu_stat_add(&c->core, translated_guest_bytes, code->block->len);
  vcpu_stat_add(&c->core, translated_host_bytes, (u64)(code->end - code->start));
  vcpu_stat_add(&c->core, translation_ns, clock_now_ns() - began);
}

void x86_watch_reset(struct x86_watch *w, struct x86_vm *vm) {
  vm_stat_inc(&vm->core, translation_resets);
}
