/* A VM that has had next to nothing to do for a while gives back the memory of what was decoded and translated for it: most of that is of its start.
 *
 * A timer runs from when there is enough of it until it was given back, so an idle VM has none.  It compares how long the vCPUs slept in HLT; those whose client
 * halts for them never count as idle. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "base/evloop.h"
#include "core/stats.h"
#include "x86/block.h"
#include "x86/x86.h"

#define PERIOD     2000000000ull  /* ns; twice as long after each time, for whoever does a little again and again would pay for it each time */
#define PERIOD_MAX 64000000000ull
#define BUSY_SHARE 16             /* idle: less than this part of a period was spent running */

struct x86_idle {
  struct evtimer timer;
  struct x86_vm *vm;
  _Atomic bool watching;
  u64 period;
  u64 began, slept; /* when this period began, and how long all vCPUs had slept by then */
};

static u64 vcpu_slept(struct vcpu *v, u64 now) {
  u64 slept = __atomic_load_n(&v->stats->halt_wait_ns[0], __ATOMIC_ACQUIRE);
  u64 since = atomic_load(&v->asleep_since); /* read second: what is counted in `slept` has left here before (vcpu_halt) */
  return slept + (since && since < now ? now - since : 0);
}

static void period_begin(struct x86_idle *i, u64 now) {
  struct vm *vm = &i->vm->core;
  i->began = now;
  i->slept = 0;
  for (unsigned k = 0, n = atomic_load(&vm->n_vcpus); k < n; k++) i->slept += vcpu_slept(vm->vcpus[k], now);
}

static void period_end(struct evtimer *t) {
  struct x86_idle *i = container_of(t, struct x86_idle, timer);
  struct vm *vm = &i->vm->core;
  unsigned n = atomic_load(&vm->n_vcpus);
  u64 now = clock_now_ns(), had = (now - i->began) * n, before = i->slept;
  period_begin(i, now);
  if (i->slept - before + had / BUSY_SHARE < had) {
    evtimer_arm(t, now + i->period);
    return;
  }
  i->period = MIN(i->period * 2, PERIOD_MAX);
  atomic_store(&i->watching, false);
  for (unsigned k = 0; k < n; k++) vcpu_request(vm->vcpus[k], REQ_FORGET);
}

int x86_idle_create(struct x86_vm *vm) {
  struct x86_idle *i = vm->idle = calloc(1, sizeof(*i));
  if (!i) return -ENOMEM;
  i->vm = vm;
  i->period = PERIOD;
  evtimer_init(&i->timer, vm->core.evloop, period_end);
  return 0;
}

void x86_idle_destroy(struct x86_vm *vm) {
  if (vm->idle) evtimer_cancel(&vm->idle->timer, true);
  free(vm->idle);
  vm->idle = NULL;
}

void x86_idle_watch(struct x86_vcpu *c) {
  struct x86_idle *i = x86_vm_of(c)->idle;
  if (!i || !c->lapic || atomic_load_explicit(&i->watching, memory_order_relaxed) || atomic_exchange(&i->watching, true)) return;
  period_begin(i, clock_now_ns());
  evtimer_arm(&i->timer, i->began + i->period);
}

/* Whole pages of a table that may as well be zero. */
static void drop_pages(void *table, size_t size) {
  u8 *start = (u8 *)ALIGN_UP((uintptr_t)table, (uintptr_t)PAGE_SIZE), *end = (u8 *)ALIGN_DOWN((uintptr_t)table + size, (uintptr_t)PAGE_SIZE);
  if (start < end) madvise(start, (size_t)(end - start), MADV_DONTNEED);
}

void x86_idle_forget(struct x86_vcpu *c) {
  x86_blocks_forget(c);
  drop_pages(c->code.targets, sizeof(c->code.targets));
  drop_pages(c->jcache, sizeof(*c->jcache) << X86_JCACHE_BITS);
}
