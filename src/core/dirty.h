/* The dirty bitmap of a slot: its life, KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG. */
#ifndef CORE_DIRTY_H
#define CORE_DIRTY_H

#include "core/memslot.h"

/* Gives `new` a bitmap if it logs: the one of `old` (may be NULL) or a fresh one.  0 or -ENOMEM. */
int dirty_bitmap_prepare(struct vm *vm, const struct memslot *old, struct memslot *new);
/* Frees the slot's bitmap unless `keeper` (may be NULL) has the same one. */
void dirty_bitmap_drop(struct memslot *slot, const struct memslot *keeper);

/* -ENXIO: the VM uses dirty rings; -EINVAL: no such slot number; -ENOENT: no such slot, or it does not log. */
int vm_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log);
int vm_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log);
/* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. */
int vm_set_manual_dirty_protect(struct vm *vm, u64 bits);

#endif
