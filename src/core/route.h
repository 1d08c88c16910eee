/* GSI routing: from a GSI to the chip pins or MSI messages it stands for. */
#ifndef CORE_ROUTE_H
#define CORE_ROUTE_H

#include <linux/kvm.h>
#include "core/vm.h"

/* Sources of a shared line. */
#ifndef KVM_USERSPACE_IRQ_SOURCE_ID
#define KVM_USERSPACE_IRQ_SOURCE_ID      0
#define KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID 2
#endif

/* One published route.  set() is the architecture's: level 1/0; source is KVM_USERSPACE_IRQ_SOURCE_ID (0) or an irqfd resample
 * source (2).  Returns <0 ignored, 0 coalesced, >0 number of vCPUs it was delivered to. */
struct irq_route_entry {
  u32 gsi, type;
  int (*set)(struct irq_route_entry *e, struct vm *vm, int source, int level, bool line_status);
  union {
    struct { u32 irqchip, pin; } chip;
    struct { u32 address_lo, address_hi, data, flags, devid; } msi;
  };
};

/* Said before an interrupt of a device is passed on: its handler may find that the device has written memory. */
static inline void vm_irq_from_outside(struct vm *vm) { atomic_fetch_add_explicit(&vm->outside_irqs, 1, memory_order_relaxed); }

/* Sets the line of a GSI on every chip it is routed to.  Any thread; takes the RCU read lock.  Result as set() above, summed. */
int vm_set_irq(struct vm *vm, int source, u32 gsi, int level, bool line_status);
/* KVM_SET_GSI_ROUTING; entries are the user's, n at most 4096. */
int vm_set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned n, unsigned flags);
/* KVM_SIGNAL_MSI: the result of delivery; -EINVAL without interrupt controllers or for unknown flags. */
int vm_signal_msi(struct vm *vm, const struct kvm_msi *msi);
/* Calls fn for every route of gsi / every route of the VM.  RCU read lock held by the caller. */
void vm_for_each_route(struct vm *vm, void (*fn)(const struct irq_route_entry *e, void *arg), void *arg);

/* EOI of a level-triggered pin: runs resamplefds and chip notifiers (PIT).  chip is KVM_IRQCHIP_*. */
void vm_notify_ack(struct vm *vm, unsigned chip, unsigned pin);
bool vm_has_ack_notifier(struct vm *vm, unsigned chip, unsigned pin);

struct irq_ack_notifier {
  u32 gsi;
  void (*acked)(struct irq_ack_notifier *n);
  struct irq_ack_notifier *next; /* core's */
};
void vm_register_ack_notifier(struct vm *vm, struct irq_ack_notifier *n);
void vm_unregister_ack_notifier(struct vm *vm, struct irq_ack_notifier *n);

#endif
