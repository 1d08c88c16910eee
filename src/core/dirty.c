/* Dirty logging: marking, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG. */
#include "core/dirty.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "api/ioctl.h"

static u64 words_of(u64 npages) { return (npages + 63) / 64; }

u64 *dirty_bitmap_create(struct vm *vm, u64 npages) {
  u64 *b = calloc(words_of(npages), sizeof(u64));
  if (b && (vm->dirty_flags & KVM_DIRTY_LOG_INITIALLY_SET)) memset(b, 0xff, words_of(npages) * sizeof(u64));
  return b;
}

void mark_page_dirty(struct vm *vm, struct vcpu *vcpu, const struct memslot *slot, gfn_t gfn) {
  if (!slot->dirty_bitmap) return;
  u64 bit = gfn - slot->base_gfn;
  __atomic_fetch_or(&slot->dirty_bitmap[bit / 64], 1ull << (bit % 64), __ATOMIC_RELAXED);
}

static const struct memslot *logged_slot(struct vm *vm, u32 slot) {
  unsigned as = slot >> 16;
  if (as >= vm->arch->address_spaces) return NULL;
  const struct memslots *s = vm->slots[as];
  for (unsigned k = 0; k < s->n; k++)
    if (s->slot[k].id == (u16)slot) return &s->slot[k];
  return NULL;
}

/* The slot of an ioctl: -EINVAL for a bad number, -ENOENT without a log. */
static int find_logged(struct vm *vm, u32 slot, const struct memslot **out) {
  if (slot >> 16 >= vm->arch->address_spaces || (slot & 0xffff) >= 32764) return -EINVAL;
  *out = logged_slot(vm, slot);
  return *out && (*out)->dirty_bitmap ? 0 : -ENOENT;
}

static int get_locked(struct vm *vm, const struct kvm_dirty_log *log) {
  const struct memslot *slot;
  int r = find_logged(vm, log->slot, &slot);
  if (r) return r;
  u64 n = words_of(slot->npages);
  u64 *copy = malloc(n * sizeof(u64));
  if (!copy) return -ENOMEM;
  bool manual = vm->dirty_flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, any = false;
  for (u64 k = 0; k < n; k++) {
    u64 *w = &slot->dirty_bitmap[k];
    copy[k] = manual ? __atomic_load_n(w, __ATOMIC_RELAXED) : *w ? __atomic_exchange_n(w, 0, __ATOMIC_ACQ_REL) : 0;
    any |= copy[k] != 0;
  }
  /* Pages whose bit went are written the slow way again. */
  if (any && !manual) vm_request_all(vm, NULL, REQ_TLB_FLUSH, true);
  if (slot->npages % 64) copy[n - 1] &= (1ull << (slot->npages % 64)) - 1;
  r = copy_to_user(log->dirty_bitmap, copy, n * sizeof(u64));
  free(copy);
  return r;
}

int vm_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log) {
  pthread_mutex_lock(&vm->slots_lock);
  int r = get_locked(vm, log);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

static int clear_locked(struct vm *vm, const struct kvm_clear_dirty_log *log) {
  const struct memslot *slot;
  if (log->first_page & 63) return -EINVAL;
  int r = find_logged(vm, log->slot, &slot);
  if (r) return r;
  if (log->first_page > slot->npages || log->num_pages > slot->npages - log->first_page ||
      (log->num_pages < slot->npages - log->first_page && (log->num_pages & 63)))
    return -EINVAL;
  u64 n = words_of(log->num_pages);
  u64 *mask = malloc(n * sizeof(u64) + 1);
  if (!mask) return -ENOMEM;
  r = copy_from_user(mask, log->dirty_bitmap, n * sizeof(u64));
  bool any = false;
  for (u64 k = 0; !r && k < n; k++) {
    if (!mask[k]) continue;
    u64 was = __atomic_fetch_and(&slot->dirty_bitmap[log->first_page / 64 + k], ~mask[k], __ATOMIC_ACQ_REL);
    any |= (was & mask[k]) != 0;
  }
  if (any) vm_request_all(vm, NULL, REQ_TLB_FLUSH, true);
  free(mask);
  return r;
}

int vm_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log) {
  pthread_mutex_lock(&vm->slots_lock);
  int r = clear_locked(vm, log);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}
