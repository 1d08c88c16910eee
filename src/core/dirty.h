/* The dirty bitmap of a slot: its life, KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG. */
#ifndef CORE_DIRTY_H
#define CORE_DIRTY_H

#include "core/memslot.h"

/* Gives `new` a bitmap if it logs: the one of `old` (may be NULL) or a fresh one.  0 or -ENOMEM. */
int dirty_bitmap_prepare(struct vm *vm, const struct memslot *old, struct memslot *new);
/* Frees the slot's bitmap unless `keeper` (may be NULL) has the same one. */
void dirty_bitmap_drop(struct memslot *slot, const struct memslot *keeper);
/* Whether enabling the log of a slot, which made `new` of `old`, asks that pages be protected: not if all of them begin as dirty.
 */
bool dirty_enable_protects(const struct memslot *old, const struct memslot *new);
/* Clears bits of 64 pages; what was set of them. */
static inline u64 dirty_word_clear(const struct memslot *slot, u64 word, u64 bits) {
  u64 *at = &slot->dirty_bitmap[word], old;
  if (slot->dirty_clean)
    old = ~__atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST);
  else
    old = __atomic_fetch_and(at, ~bits, __ATOMIC_SEQ_CST);
  return old & bits;
}

/* -ENXIO: the VM uses dirty rings; -EINVAL: no such slot number; -ENOENT: no such slot, or it does not log. */
int vm_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log);
int vm_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log);
/* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. */
int vm_set_manual_dirty_protect(struct vm *vm, u64 bits);

#endif
