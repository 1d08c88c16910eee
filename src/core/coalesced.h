/* Coalesced MMIO and PIO: writes to registered zones wait in a ring for the client instead of exiting one by one. */
#ifndef CORE_COALESCED_H
#define CORE_COALESCED_H

#include "core/vm.h"

/* KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO.  -EINVAL for pio other than 0 and 1. */
int vm_register_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone);
int vm_unregister_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone);

#endif
