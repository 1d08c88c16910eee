/* Hypercalls (Documentation/virt/kvm/x86/hypercalls.rst). */
#include <asm/kvm_para.h>
#include <errno.h>
#include <linux/kvm_para.h>
#include <sched.h>
#include <string.h>
#include <time.h>
#include "core/memslot.h"
#include "core/stats.h"
#include "x86/cpuid/cpuid.h"
#include "x86/pv/pv.h"

struct call {
  u64 arg[4];
  bool mode64;
};

static struct x86_vcpu *vcpu_by_apic_id(struct x86_vm *vm, u64 id) {
  unsigned n = atomic_load_explicit(&vm->core.n_vcpus, memory_order_acquire);
  for (unsigned k = 0; k < n; k++) {
    struct x86_vcpu *o = x86_vcpu(vm->core.vcpus[k]);
    if (o->lapic && x86_lapic_id(o) == id) return o;
  }
  return NULL;
}

/* The guest wrote its TPR to the virtual APIC word: look again. */
static long vapic_poll_irq(struct x86_vcpu *c, const struct call *call) {
  x86_request_event(c);
  return 0;
}

static long kick_cpu(struct x86_vcpu *c, const struct call *call) {
  struct x86_vcpu *target = vcpu_by_apic_id(x86_vm_of(c), call->arg[1]);
  if (!target) return 0;
  atomic_store_explicit(&target->pv->kicked, true, memory_order_release);
  vcpu_request(&target->core, REQ_UNHALT);
  return 0;
}

static long sched_yield_to(struct x86_vcpu *c, const struct call *call) {
  struct x86_vcpu *target = vcpu_by_apic_id(x86_vm_of(c), call->arg[0]);
  if (target && target != c) sched_yield();
  return 0;
}

static long send_ipi(struct x86_vcpu *c, const struct call *call) {
  return x86_lapic_pv_ipi(x86_vm_of(c), call->arg[0], call->arg[1], (u32)call->arg[2], (u32)call->arg[3], call->mode64);
}

static long clock_pairing(struct x86_vcpu *c, const struct call *call) {
  struct kvm_clock_pairing p;
  struct timespec ts;
  if (call->arg[1] != KVM_CLOCK_PAIRING_WALLCLOCK) return -KVM_EOPNOTSUPP;
  memset(&p, 0, sizeof(p));
  p.tsc = x86_guest_tsc(c);
  clock_gettime(CLOCK_REALTIME, &ts);
  p.sec = ts.tv_sec;
  p.nsec = ts.tv_nsec;
  return vm_write_gpa(c->core.vm, call->arg[0], &p, sizeof(p)) ? -KVM_EFAULT : 0;
}

#define NO_FEATURE X86_FEATURE_COUNT

static const struct {
  u32 nr;
  u16 feature; /* that the guest must have, or NO_FEATURE */
  long (*fn)(struct x86_vcpu *c, const struct call *call);
} calls[] = {
    {KVM_HC_VAPIC_POLL_IRQ, NO_FEATURE, vapic_poll_irq},
    {KVM_HC_KICK_CPU, X86_FEATURE_KVM_PV_UNHALT, kick_cpu},
    {KVM_HC_CLOCK_PAIRING, NO_FEATURE, clock_pairing},
    {KVM_HC_SEND_IPI, X86_FEATURE_KVM_PV_SEND_IPI, send_ipi},
    {KVM_HC_SCHED_YIELD, X86_FEATURE_KVM_PV_SCHED_YIELD, sched_yield_to},
};

static long dispatch(struct x86_vcpu *c, u64 nr, const struct call *call) {
  if (c->cpl) return -KVM_EPERM;
  for (unsigned k = 0; k < ARRAY_SIZE(calls); k++)
    if (calls[k].nr == nr && (calls[k].feature == NO_FEATURE || x86_pv_has(c, (enum x86_feature)calls[k].feature)))
      return calls[k].fn(c, call);
  return -KVM_ENOSYS;
}

int x86_hypercall(struct x86_vcpu *c) {
  struct call call = {.arg = {c->regs[RBX], c->regs[RCX], c->regs[RDX], c->regs[RSI]}, .mode64 = c->code64};
  u64 nr = c->regs[RAX];
  vcpu_stat_exit(&c->core, hypercalls);
  if (!call.mode64) {
    nr = (u32)nr;
    for (unsigned k = 0; k < 4; k++) call.arg[k] = (u32)call.arg[k];
  }
  u64 r = (u64)dispatch(c, nr, &call);
  c->regs[RAX] = call.mode64 ? r : (u32)r;
  return X86_OK;
}
