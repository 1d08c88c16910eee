/* Help for clients that patch a guest's accesses to the task priority register (KVM_TPR_ACCESS_REPORTING, KVM_SET_VAPIC_ADDR;
 * Documentation/virt/kvm/api.rst): exits that tell where the register is used, and a word of guest memory that stands for it.
 *
 * The word: bits 7:0 TPR, which the patched code writes; 15:8 the priority class in service; 31:24 the highest request.  It is
 * read before the APIC is looked at and written after that; what the guest writes in between counts from the next look on, for
 * which the patched code asks by an exit or a hypercall (KVM_HC_VAPIC_POLL_IRQ).
 */
#include <errno.h>
#include <string.h>
#include "core/memslot.h"
#include "x86/insn.h"
#include "x86/irqchip/lapic.h"

int x86_vapic_set_address(struct x86_vcpu *c, u64 gpa) {
  struct x86_lapic *l = c->lapic;
  u32 word;
  if (!l) return -EINVAL;
  if (gpa && vm_read_gpa(c->core.vm, gpa, &word, sizeof(word))) return -EINVAL;
  l->vapic = gpa;
  x86_request_event(c);
  return 0;
}

void lapic_vapic_read(struct x86_lapic *l) {
  u32 word;
  if (!vm_read_gpa(l->c->core.vm, l->vapic, &word, sizeof(word))) l->regs[REG_TPR] = word & 0xff;
}

void lapic_vapic_write(struct x86_lapic *l) {
  int request = vec_top(l->irr), service = vec_top(l->isr);
  u32 word = l->regs[REG_TPR] & 0xff;
  if (service >= 0) word |= ((u32)service & 0xf0) << 8;
  if (request >= 0) word |= (u32)request << 24;
  vm_write_gpa(l->c->core.vm, l->vapic, &word, sizeof(word));
}

/* ---- reports ---- */

int x86_tpr_reporting(struct x86_vcpu *c, const struct kvm_tpr_access_ctl *ctl) {
  if (ctl->flags) return -EINVAL;
  c->tpr_reporting = ctl->enabled;
  return 0;
}

/* The access is done; the exit follows before the next instruction. */
void lapic_report_tpr(struct x86_lapic *l, bool write) {
  struct x86_vcpu *c = l->c;
  l->tpr_rip = c->cur ? x86_insn_ip(c, c->cur) : c->rip;
  l->tpr_write = write;
  c->stop |= X86_STOP_REQUEST;
  vcpu_request(&c->core, REQ_TPR_EXIT);
}

/* kvm_run's tpr_access by another name for its first member, which x86/regs.h gives to a register. */
struct tpr_access {
  u64 ip;
  u32 is_write, pad;
};

void x86_tpr_exit(struct x86_vcpu *c) {
  struct kvm_run *run = c->core.run;
  struct tpr_access access = {.ip = c->lapic->tpr_rip, .is_write = c->lapic->tpr_write};
  _Static_assert(sizeof(run->tpr_access) == sizeof(access), "kvm_run.tpr_access");
  run->exit_reason = KVM_EXIT_TPR_ACCESS;
  memcpy(&run->tpr_access, &access, sizeof(access));
}
