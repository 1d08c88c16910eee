/* KVM_CHECK_EXTENSION and KVM_ENABLE_CAP: what core answers itself, then the architecture. */
#ifndef API_CAPS_H
#define API_CAPS_H

#include "core/vm.h"

/* vm is NULL on the system descriptor.  0 for unknown numbers. */
int caps_check(const struct arch_ops *arch, struct vm *vm, long cap);
int caps_enable_vm(struct vm *vm, const struct kvm_enable_cap *cap);
int caps_enable_vcpu(struct vcpu *vcpu, const struct kvm_enable_cap *cap);

#endif
