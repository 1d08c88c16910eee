/* Capabilities: the table in caps.def, then the architecture. */
#include <errno.h>
#include "api/caps.h"
#include "base/log.h"
#include "base/process.h"
#include "core/dirty.h"
#include "core/dirty_ring.h"

int caps_check(const struct arch_ops *arch, struct vm *vm, long cap) {
  switch (cap) {
#define CAP(number, value)                                                                                                       \
  case number:                                                                                                                   \
    return value;
#include "api/caps.def"
#undef CAP
  default:
    return arch->check_extension(vm, cap);
  }
}

static int enable_halt_poll(struct vm *vm, const struct kvm_enable_cap *cap) {
  if (cap->flags || cap->args[0] != (u32)cap->args[0]) return trace_error(-EINVAL);
  atomic_store(&vm->max_halt_poll_ns, (u32)cap->args[0]);
  return 0;
}

int caps_enable_vm(struct vm *vm, const struct kvm_enable_cap *cap) {
  switch (cap->cap) {
  case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
    return cap->flags ? trace_error(-EINVAL) : vm_set_manual_dirty_protect(vm, cap->args[0]);
  case KVM_CAP_DIRTY_LOG_RING:
  case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
    return vm_enable_dirty_ring(vm, cap->args[0]);
  case KVM_CAP_HALT_POLL:
    return enable_halt_poll(vm, cap);
  default:
    return vm->arch->vm_enable_cap(vm, cap->cap, cap->flags, (const u64 *)cap->args);
  }
}

int caps_enable_vcpu(struct vcpu *vcpu, const struct kvm_enable_cap *cap) {
  return vcpu->vm->arch->vcpu_enable_cap(vcpu, cap->cap, cap->flags, (const u64 *)cap->args);
}
