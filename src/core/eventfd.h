/* KVM_IOEVENTFD, KVM_IRQFD and coalesced I/O. */
#ifndef CORE_EVENTFD_H
#define CORE_EVENTFD_H

#include "core/vm.h"

int vm_ioeventfd(struct vm *vm, const struct kvm_ioeventfd *args);
int vm_irqfd(struct vm *vm, const struct kvm_irqfd *args);
int vm_register_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone);
int vm_unregister_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone);

#endif
