/* RDMSR and WRMSR of the guest and of user space; exits for registers that user space wants to handle itself. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "x86/insn.h"
#include "x86/msr/msr.h"

#define MSR_FILTERED 3 /* besides enum x86_msr_result */

static int get(struct x86_vcpu *c, u32 index, bool host, u64 *value) {
  const struct x86_msr_row *row = x86_msr_find(index);
  *value = 0;
  if (!row || !row->get) return MSR_UNKNOWN;
  if (!host && (row->flags & (x86_is_amd(c) ? MSR_INTEL : MSR_AMD))) return MSR_UNKNOWN;
  return row->get(c, row, index, host, value);
}

static int set(struct x86_vcpu *c, u32 index, bool host, u64 value) {
  const struct x86_msr_row *row = x86_msr_find(index);
  if (!row || !row->set) return MSR_UNKNOWN;
  if (!host && (row->flags & (x86_is_amd(c) ? MSR_INTEL : MSR_AMD))) return MSR_UNKNOWN;
  return row->set(c, row, index, host, value);
}

int x86_msr_get_host(struct x86_vcpu *c, u32 index, u64 *value) {
  return get(c, index, true, value) ? -EINVAL : 0;
}
int x86_msr_set_host(struct x86_vcpu *c, u32 index, u64 value) {
  return set(c, index, true, value) ? -EINVAL : 0;
}

/* ---- exits (KVM_CAP_X86_USER_SPACE_MSR) ---- */

/* The instruction ends as user space decided. */
static int complete_write(struct x86_vcpu *c) {
  return c->core.run->msr.error ? x86_gp0(c) : x86_finish_insn(c);
}

static int complete_read(struct x86_vcpu *c) {
  const struct kvm_run *run = c->core.run;
  if (run->msr.error) return x86_gp0(c);
  c->regs[RAX] = (u32)run->msr.data;
  c->regs[RDX] = (u32)(run->msr.data >> 32);
  return x86_finish_insn(c);
}

static u32 reason_of(int result) {
  return result == MSR_UNKNOWN    ? KVM_MSR_EXIT_REASON_UNKNOWN
         : result == MSR_FILTERED ? KVM_MSR_EXIT_REASON_FILTER
                                  : KVM_MSR_EXIT_REASON_INVAL;
}

/* A refused access: #GP(0), unless user space wants to see it. */
static int refused(struct x86_vcpu *c, int result, u32 exit_reason, u32 index, u64 data) {
  struct kvm_run *run = c->core.run;
  u32 reason = reason_of(result);
  if (!(x86_vm_of(c)->user_msr_mask & reason)) return x86_gp0(c);
  run->exit_reason = exit_reason;
  run->msr.error = 0;
  memset(run->msr.pad, 0, sizeof(run->msr.pad));
  run->msr.reason = reason;
  run->msr.index = index;
  run->msr.data = data;
  return x86_leave_insn(c, exit_reason == KVM_EXIT_X86_RDMSR ? complete_read : complete_write);
}

int x86_rdmsr(struct x86_vcpu *c, u32 index, u64 *value) {
  int r = x86_msr_allowed(x86_vm_of(c), index, KVM_MSR_FILTER_READ) ? get(c, index, false, value) : MSR_FILTERED;
  return likely(!r) ? X86_OK : refused(c, r, KVM_EXIT_X86_RDMSR, index, 0);
}

int x86_wrmsr(struct x86_vcpu *c, u32 index, u64 value) {
  int r = x86_msr_allowed(x86_vm_of(c), index, KVM_MSR_FILTER_WRITE) ? set(c, index, false, value) : MSR_FILTERED;
  return likely(!r) ? X86_OK : refused(c, r, KVM_EXIT_X86_WRMSR, index, value);
}
