/* MSR filters: which registers the library may handle for the guest.
 *
 * What was decided of a register is remembered, so that the next access costs no search, however many ranges there are.
 */
#include <errno.h>
#include <stdlib.h>
#include "api/ioctl.h"
#include "core/request.h"
#include "x86/msr/msr.h"

struct range {
  u32 flags, base, n;
  u64 *bitmap;
};

#define DECIDED 64

struct x86_msr_filter {
  bool default_allow;
  u64 decided[DECIDED]; /* index << 8 | KNOWN | accesses that are allowed; vCPUs write the same values */
  unsigned n;
  struct range range[KVM_MSR_FILTER_MAX_RANGES];
};

#define FILTER_FLAGS KVM_MSR_FILTER_DEFAULT_DENY
#define RANGE_FLAGS  (KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)

static void filter_free(struct x86_msr_filter *f) {
  if (!f) return;
  for (unsigned k = 0; k < f->n; k++) free(f->range[k].bitmap);
  free(f);
}

static int add_range(struct x86_msr_filter *f, const struct kvm_msr_filter_range *u) {
  if (!u->nmsrs) return 0;
  if ((u->flags & ~(u32)RANGE_FLAGS) || !u->flags) return -EINVAL;
  size_t size = ((size_t)u->nmsrs + 63) / 64 * sizeof(u64);
  if (size > KVM_MSR_FILTER_MAX_BITMAP_SIZE) return -EINVAL;
  u64 *bitmap = malloc(size);
  if (!bitmap) return -ENOMEM;
  if (copy_from_user(bitmap, u->bitmap, size)) {
    free(bitmap);
    return -EFAULT;
  }
  f->range[f->n++] = (struct range){.flags = u->flags, .base = u->base, .n = u->nmsrs, .bitmap = bitmap};
  return 0;
}

/* vm->lock held.  vCPUs look at the filter only while they run: once each of them has passed a point between two blocks, nobody sees
 * the old one any more. */
static void publish(struct x86_vm *vm, struct x86_msr_filter *f) {
  struct x86_msr_filter *old = vm->msr_filter;
  __atomic_store_n(&vm->msr_filter, f, __ATOMIC_RELEASE);
  vm_request_all(&vm->core, NULL, REQ_SYNC, true);
  filter_free(old);
}

int x86_msr_filter_set(struct x86_vm *vm, const struct kvm_msr_filter *filter) {
  bool empty = true;
  int r = 0;
  if (filter->flags & ~(u32)FILTER_FLAGS) return -EINVAL;
  for (unsigned k = 0; k < KVM_MSR_FILTER_MAX_RANGES; k++) empty &= !filter->ranges[k].nmsrs;
  if (empty && (filter->flags & KVM_MSR_FILTER_DEFAULT_DENY)) return -EINVAL;
  struct x86_msr_filter *f = calloc(1, sizeof(*f));
  if (!f) return -ENOMEM;
  f->default_allow = !(filter->flags & KVM_MSR_FILTER_DEFAULT_DENY);
  for (unsigned k = 0; k < KVM_MSR_FILTER_MAX_RANGES && !r; k++) r = add_range(f, &filter->ranges[k]);
  if (r)
    filter_free(f);
  else
    publish(vm, f);
  return r;
}

void x86_msr_filter_destroy(struct x86_vm *vm) {
  filter_free(vm->msr_filter);
  vm->msr_filter = NULL;
}

/* The first range that holds the register and names the direction decides. */
static bool decide(const struct x86_msr_filter *f, u32 index, u32 access) {
  for (unsigned k = 0; k < f->n; k++) {
    const struct range *r = &f->range[k];
    u32 at = index - r->base;
    if (index >= r->base && at < r->n && (r->flags & access)) return r->bitmap[at / 64] >> (at % 64) & 1;
  }
  return f->default_allow;
}

#define KNOWN 0x80u
#define BOTH  (KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)

static u64 decide_both(struct x86_msr_filter *f, u32 index, u64 *known) {
  u64 allowed = BOTH; /* api.rst 4.135: x2APIC registers are never filtered */
  if (index < 0x800 || index > 0x8ff)
    allowed = (decide(f, index, KVM_MSR_FILTER_READ) ? KVM_MSR_FILTER_READ : 0u) |
              (decide(f, index, KVM_MSR_FILTER_WRITE) ? KVM_MSR_FILTER_WRITE : 0u);
  u64 value = (u64)index << 8 | KNOWN | allowed;
  __atomic_store_n(known, value, __ATOMIC_RELAXED);
  return value;
}

bool x86_msr_allowed(struct x86_vm *vm, u32 index, u32 access) {
  struct x86_msr_filter *f = __atomic_load_n(&vm->msr_filter, __ATOMIC_ACQUIRE);
  if (likely(!f)) return true;
  u64 *known = &f->decided[(index ^ index >> 6) % DECIDED], value = __atomic_load_n(known, __ATOMIC_RELAXED);
  if (unlikely((value & ~(u64)BOTH) != ((u64)index << 8 | KNOWN))) value = decide_both(f, index, known);
  return value & access;
}
