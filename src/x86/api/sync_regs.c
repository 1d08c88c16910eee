/* Registers in the kvm_run page (KVM_CAP_SYNC_REGS). */
#include <errno.h>
#include "x86/api/api.h"
#include "x86/x86.h"

/* A copy first: the client may write the page at any time. */
int x86_sync_regs_in(struct x86_vcpu *c) {
  struct kvm_run *run = c->core.run;
  u64 valid = READ_ONCE(run->kvm_valid_regs), dirty = READ_ONCE(run->kvm_dirty_regs);
  if (likely(!(valid | dirty))) return 0;
  if ((valid | dirty) & ~(u64)KVM_SYNC_X86_VALID_FIELDS) return -EINVAL;
  if (dirty & KVM_SYNC_X86_REGS) {
    struct kvm_regs regs = run->s.regs.regs;
    x86_set_regs(c, &regs);
    run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_REGS;
  }
  if (dirty & KVM_SYNC_X86_SREGS) {
    struct kvm_sregs sregs = run->s.regs.sregs;
    if (x86_set_sregs(c, &sregs)) return -EINVAL;
    run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_SREGS;
  }
  if (dirty & KVM_SYNC_X86_EVENTS) {
    struct kvm_vcpu_events events = run->s.regs.events;
    if (x86_set_vcpu_events(c, &events)) return -EINVAL;
    run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_EVENTS;
  }
  return 0;
}

void x86_sync_regs_out(struct x86_vcpu *c) {
  struct kvm_run *run = c->core.run;
  u64 valid = READ_ONCE(run->kvm_valid_regs);
  if (valid & KVM_SYNC_X86_REGS) x86_get_regs(c, &run->s.regs.regs);
  if (valid & KVM_SYNC_X86_SREGS) x86_get_sregs(c, &run->s.regs.sregs);
  if (valid & KVM_SYNC_X86_EVENTS) x86_get_vcpu_events(c, &run->s.regs.events);
}
