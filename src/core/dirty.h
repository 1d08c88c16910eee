/* Dirty logging with a bitmap per slot. */
#ifndef CORE_DIRTY_H
#define CORE_DIRTY_H

#include "core/memslot.h"

/* Bitmap for a slot that starts to log; all set where KVM_DIRTY_LOG_INITIALLY_SET is on.  NULL: no memory. */
u64 *dirty_bitmap_create(struct vm *vm, u64 npages);
int vm_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log);
int vm_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log);

#endif
