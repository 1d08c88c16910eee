/* Memory slots: gpa ranges backed by client memory; lock-free lookup, publish-then-wait change. */
#ifndef CORE_MEMSLOT_H
#define CORE_MEMSLOT_H

#include <linux/kvm.h>
#include "core/vm.h"

/* One slot.  Immutable while published except through *dirty_bitmap; a change publishes a new array of slots. */
struct memslot {
  gfn_t base_gfn;
  u64 npages;
  hva_t hva;
  u32 flags; /* KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY */
  u16 id, as_id;
  u64 *dirty_bitmap; /* NULL unless logging; see dirty.c */
  u64 dirty_clean;   /* a word of it when none of its pages is dirty: 0, or all ones */
  void *arch;        /* per-slot state of the architecture (code-page bits), owned by slot_prepare/commit */
};

#define USER_MEM_SLOTS 32764 /* ids per address space (KVM_CAP_NR_MEMSLOTS) */

struct memslots {
  u64 generation;      /* grows with every change; never repeats within a VM */
  unsigned n, room;
  struct memslot slot[]; /* sorted by base_gfn, not overlapping */
};

/* The slot that holds gfn, or NULL.  Caller is in an RCU read section, or is a vCPU between vcpu_enter() and vcpu_leave(). */
const struct memslot *memslot_find(const struct memslots *slots, gfn_t gfn);

static inline const struct memslots *vm_memslots(struct vm *vm, unsigned as_id) {
  return __atomic_load_n(&vm->slots[as_id], __ATOMIC_ACQUIRE);
}

static inline hva_t memslot_hva(const struct memslot *slot, gfn_t gfn) { return slot->hva + ((gfn - slot->base_gfn) << PAGE_SHIFT); }

/* KVM_SET_USER_MEMORY_REGION with all its error cases.  Takes slots_lock; waits for vCPUs. */
int vm_set_memory_region(struct vm *vm, const struct kvm_userspace_memory_region *mem);

/* Guest-physical copies for chips and PV; writes with vcpu->mutex held.  Host faults on guest memory give -EFAULT, as do holes; read-only slots
 * refuse writes with -EFAULT.  Writes mark dirty and tell the architecture. */
int vm_read_gpa(struct vm *vm, gpa_t gpa, void *data, size_t len);
int vcpu_write_gpa(struct vcpu *vcpu, gpa_t gpa, const void *data, size_t len);

/* Marks a page dirty in whichever log the VM uses.  vcpu->mutex is held. */
void mark_page_dirty(struct vcpu *vcpu, const struct memslot *slot, gfn_t gfn);

#endif
