/* Dirty rings: a vCPU tells which pages it dirtied in a ring that the client maps (api.rst 8.29, KVM_CAP_DIRTY_LOG_RING).
 *
 * The slots' bitmaps exist here too, for the library alone: a page whose bit is set is in some ring already.  Entries are filled
 * by whoever holds vcpu->mutex, harvested by the client in order, and given back by KVM_RESET_DIRTY_RINGS, which clears the
 * pages' bits and has all translations dropped.
 */
#ifndef CORE_DIRTY_RING_H
#define CORE_DIRTY_RING_H

#include <linux/kvm.h>
#include "core/vm.h"

#define DIRTY_RING_ENTRIES_MAX 65536u
#define DIRTY_RING_BYTES_MAX   (DIRTY_RING_ENTRIES_MAX * (u32)sizeof(struct kvm_dirty_gfn))

/* Client's pages of the ring: at this page offset of a vCPU's descriptor. */
#define DIRTY_RING_PAGE KVM_DIRTY_LOG_PAGE_OFFSET

struct dirty_ring {
  struct kvm_dirty_gfn *entry; /* (o) size entries, shared with the client */
  u32 size;                    /* (o) power of two */
  _Atomic u32 dirty_index;     /* next to fill; by whoever holds vcpu->mutex */
  _Atomic u32 reset_index;     /* first not given back; [s] slots_lock */
};

/* KVM_ENABLE_CAP: -EINVAL for a bad size, a second time, or after a vCPU was created; -E2BIG. */
int vm_enable_dirty_ring(struct vm *vm, u64 bytes);
/* KVM_RESET_DIRTY_RINGS: the number of entries given back; -EINVAL without rings. */
int vm_reset_dirty_rings(struct vm *vm);

/* vCPU life; nothing to do without rings.  The ring follows the other pages of vcpu->fd. */
int dirty_ring_create(struct vcpu *vcpu);
void dirty_ring_destroy(struct vcpu *vcpu);
/* Whether a mapping of [offset, offset + length) of vcpu->fd touches the ring at either end. */
bool dirty_ring_mapped(const struct vm *vm, u64 offset, u64 length);

/* The page, which was not dirty, is entered; REQ_RING_FULL when few entries are left. */
void dirty_ring_push(struct vcpu *vcpu, u16 as_id, u16 slot, u64 page);

#define DIRTY_RING_RESERVED 64u /* entries above the soft limit */
#define DIRTY_RING_LAST     16u /* of them: for what is not a guest instruction's store */

static inline u32 dirty_ring_used(const struct dirty_ring *r) {
  return atomic_load_explicit(&r->dirty_index, memory_order_relaxed) -
         atomic_load_explicit(&r->reset_index, memory_order_acquire);
}
/* No guest code may run until the client has harvested: KVM_EXIT_DIRTY_RING_FULL. */
static inline bool vcpu_ring_soft_full(const struct vcpu *vcpu) {
  return unlikely(vcpu->dirty_ring) && dirty_ring_used(vcpu->dirty_ring) >= vcpu->dirty_ring->size - DIRTY_RING_RESERVED;
}
/* A store of a guest instruction has to wait: the instruction leaves with KVM_EXIT_DIRTY_RING_FULL and runs again. */
static inline bool vcpu_ring_hard_full(const struct vcpu *vcpu) {
  return unlikely(vcpu->dirty_ring) && dirty_ring_used(vcpu->dirty_ring) >= vcpu->dirty_ring->size - DIRTY_RING_LAST;
}

#endif
