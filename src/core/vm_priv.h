/* The part of a VM that only core's own files touch. */
#ifndef CORE_VM_PRIV_H
#define CORE_VM_PRIV_H

#include "core/iobus.h"
#include "core/vm.h"

struct coalesced_zone;
struct ioeventfd;
struct irq_ack_notifier;

/* Legend as in vm.h; [g] ring_lock */
struct vm_priv {
  u64 generation;           /* [s] of the memory slots; grows with every change */
  struct memslots *idle[2]; /* [s] the unpublished twin of vm->slots[], with the same content between changes */
  u64 *slot_base[2];        /* [s] base_gfn + 1 by slot id, 0: no such slot */
  unsigned slot_room[2];    /* [s] entries in slot_base */
  pthread_mutex_t ring_lock;
  struct kvm_coalesced_mmio_ring *ring;   /* (o) the pointer; [g] the entries */
  struct coalesced_zone *zones;           /* [s] */
  struct ioeventfd *ioeventfds;           /* [s] */
  struct irq_ack_notifier *ack_notifiers; /* (r) [i] */
};

/* The VM ends: frees the vCPU, which nobody can reach any more. */
void vcpu_destroy(struct vcpu *vcpu);

int memslots_create(struct vm *vm);
void memslots_destroy(struct vm *vm);
int io_buses_create(struct vm *vm);
void io_buses_destroy(struct vm *vm);
int coalesced_create(struct vm *vm);
void coalesced_destroy(struct vm *vm);
void ioeventfds_destroy(struct vm *vm);
int routing_create(struct vm *vm);
void routing_destroy(struct vm *vm);
int irqfds_create(struct vm *vm);
void irqfds_release(struct vm *vm);
void irqfds_destroy(struct vm *vm);

/* The published slot with this id, or NULL.  slots_lock held. */
const struct memslot *memslot_by_id_locked(struct vm *vm, unsigned as_id, unsigned id);

int io_bus_register_locked(struct vm *vm, enum io_bus_kind bus, u64 addr, u64 len, struct io_device *dev, bool counted);
int io_bus_unregister_locked(struct vm *vm, enum io_bus_kind bus, struct io_device *dev);

#endif
