/* What core asks of an architecture: the operations table, and the places where its state is embedded.
 *
 * core includes no architecture header.  An architecture's VM and vCPU structures hold the neutral ones as first member;
 * core allocates vm_size and vcpu_size zeroed bytes for them.
 *
 * Return convention unless said otherwise: 0 or a positive result; failures are negative errno.
 */
#ifndef CORE_ARCH_H
#define CORE_ARCH_H

#include "base/types.h"

struct vm;
struct vcpu;
struct memslot;
struct irq_route_entry;
struct kvm_irq_routing_entry;
struct ioctl_row;
struct io_range;

enum slot_change { SLOT_CREATE, SLOT_DELETE, SLOT_MOVE, SLOT_FLAGS };

struct arch_ops {
  const char *name;
  size_t vm_size, vcpu_size;
  unsigned max_vcpus, max_vcpu_id, address_spaces;
  unsigned irq_pins; /* highest GSI + 1 that routing accepts (KVM_MAX_IRQ_ROUTES entries, this many GSIs) */

  /* KVM_CHECK_EXTENSION for what core does not answer itself; 0 for unknown.  vm is NULL on the system descriptor. */
  int (*check_extension)(struct vm *vm, long cap);
  /* Ioctls of the architecture, one table per kind of descriptor, sorted by nothing; see api/ioctl.h. */
  const struct ioctl_row *system_ioctls, *vm_ioctls, *vcpu_ioctls;
  unsigned n_system_ioctls, n_vm_ioctls, n_vcpu_ioctls;
  /* KVM_ENABLE_CAP on a VM or vCPU for capabilities core does not know; -EINVAL for unknown.  args: 4 words. */
  int (*vm_enable_cap)(struct vm *vm, u32 cap, u32 flags, const u64 *args);
  int (*vcpu_enable_cap)(struct vcpu *vcpu, u32 cap, u32 flags, const u64 *args);

  /* Life cycle.  vm->lock is held in vcpu_create and vcpu_destroy is called when the last reference goes. */
  int (*vm_create)(struct vm *vm, unsigned long type);
  void (*vm_destroy)(struct vm *vm);
  int (*vcpu_create)(struct vcpu *vcpu);
  void (*vcpu_destroy)(struct vcpu *vcpu);

  /* KVM_RUN, with vcpu->mutex held and on the vCPU's thread.  Runs until something is for the client: fills
   * vcpu->run and returns 0, or -EINTR / -EFAULT / -EAGAIN... as KVM_RUN does.  Completes a pending I/O first.
   * core has already handled immediate_exit before entry and sets/restores the signal mask around it. */
  int (*vcpu_run)(struct vcpu *vcpu);
  /* Finishes a pending I/O exit without running (immediate_exit on entry). */
  int (*vcpu_complete_io)(struct vcpu *vcpu);
  /* Whether a halted vCPU has a reason to run (interrupt, NMI, SMI, INIT, SIPI, ...).  Called on its thread. */
  bool (*vcpu_runnable)(struct vcpu *vcpu);
  /* It goes to sleep, on its thread.  Who knows when it will be woken may say so a little before (vcpu_wake_near()).  May be NULL. */
  void (*vcpu_sleeps)(struct vcpu *vcpu);

  /* Memory slots.  prepare may refuse (arch limits) before anything changed; commit follows the publication of the new
   * slots and must not fail.  After commit, core makes every vCPU handle REQ_TLB_FLUSH and waits (vm_request_all).
   * old is NULL for SLOT_CREATE, new is NULL for SLOT_DELETE.  Both hooks may be NULL. */
  int (*slot_prepare)(struct vm *vm, const struct memslot *old, struct memslot *new, enum slot_change change);
  void (*slot_commit)(struct vm *vm, const struct memslot *old, const struct memslot *new, enum slot_change change);

  /* The library itself has written guest memory, which lies at `host` in one slot.  RCU read lock held.  NULL: vm_memory_changed() does what there is to do. */
  void (*memory_written)(struct vm *vm, const void *host, size_t len);

  /* Interrupt routing.  route_set translates one user entry into entry->set (below); -EINVAL for unknown chips/pins.  core has filled
   * entry's gsi, type and, for the types KVM_IRQ_ROUTING_IRQCHIP and KVM_IRQ_ROUTING_MSI, its union from ue.
   * The architecture supplies the delivery functions; core calls entry->set from any thread, without locks but inside an RCU
   * read section: it must not sleep except on short mutexes. */
  int (*route_set)(struct vm *vm, struct irq_route_entry *entry, const struct kvm_irq_routing_entry *ue);
  /* The routing table changed (I/O APIC EOI maps). May be NULL. */
  void (*routes_changed)(struct vm *vm);
  /* Whether the VM has interrupt controllers in the library (KVM_IRQ_LINE). */
  bool (*irqchip_present)(struct vm *vm);
  /* Whether eventfds may raise interrupts; resample: as lines, for which the library has to see the acknowledgement. */
  bool (*irqfd_allowed)(struct vm *vm, bool resample);
};

/* The architectures built in; api/devnode.c picks by device node. */
extern const struct arch_ops x86_arch;

#endif
