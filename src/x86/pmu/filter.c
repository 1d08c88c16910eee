/* KVM_SET_PMU_EVENT_FILTER: which events may be counted (api.rst 4.120). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "api/ioctl.h"
#include "base/rcu.h"
#include "x86/pmu/pmu.h"

#define EVENTS_MAX 300          /* KVM_PMU_EVENT_FILTER_MAX_EVENTS */
#define EVENT_BITS 0xf0000ffffull /* event select, its upper bits on AMD processors, unit mask */

struct x86_pmu_filter {
  bool allow; /* what is listed; else deny it */
  u32 fixed, n;
  u64 event[]; /* sorted */
};

static int compare(const void *a, const void *b) {
  u64 x = *(const u64 *)a, y = *(const u64 *)b;
  return x < y ? -1 : x > y;
}

bool pmu_allowed(struct x86_vm *vm, const struct x86_pmu *p, const struct pmu_counter *k) {
  bool allowed = true;
  rcu_read_lock();
  const struct x86_pmu_filter *f = rcu_dereference(vm->pmu_filter);
  if (f && k >= p->fixed && k < p->fixed + PMU_FIXED_MAX) {
    allowed = f->allow == (f->fixed >> (k - p->fixed) & 1);
  } else if (f) {
    u64 event = k->select & EVENT_BITS;
    allowed = f->allow == (bsearch(&event, f->event, f->n, sizeof(event), compare) != NULL);
  }
  rcu_read_unlock();
  return allowed;
}

/* The user's structure, or NULL with *err. */
static struct x86_pmu_filter *copy_filter(const void *user, int *err) {
  struct kvm_pmu_event_filter head;
  *err = copy_from_user(&head, user, sizeof(head));
  if (*err) return NULL;
  *err = -EINVAL;
  if ((head.action != KVM_PMU_EVENT_ALLOW && head.action != KVM_PMU_EVENT_DENY) || head.flags) return NULL;
  *err = -E2BIG;
  if (head.nevents > EVENTS_MAX) return NULL;
  struct x86_pmu_filter *f = malloc(sizeof(*f) + head.nevents * sizeof(f->event[0]));
  *err = f ? copy_from_user(f->event, user_at(user, sizeof(head)), head.nevents * sizeof(f->event[0])) : -ENOMEM;
  if (*err) {
    free(f);
    return NULL;
  }
  f->allow = head.action == KVM_PMU_EVENT_ALLOW;
  f->fixed = head.fixed_counter_bitmap;
  f->n = head.nevents;
  qsort(f->event, f->n, sizeof(f->event[0]), compare);
  return f;
}

int x86_pmu_filter_set(struct x86_vm *vm, const void *user) {
  int err;
  struct x86_pmu_filter *f = copy_filter(user, &err), *old = vm->pmu_filter;
  if (!f) return err;
  rcu_assign_pointer(vm->pmu_filter, f);
  vm_request_all(&vm->core, NULL, REQ_PMU, false); /* counters are programmed anew */
  synchronize_rcu();
  free(old);
  return 0;
}

void x86_pmu_filter_destroy(struct x86_vm *vm) {
  free(vm->pmu_filter);
  vm->pmu_filter = NULL;
}
