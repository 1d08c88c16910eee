/* MONITOR and MWAIT: nothing is waited for, as in KVM, unless the client gave them to the guest (KVM_X86_DISABLE_EXITS_MWAIT).
 *
 * Then MWAIT watches the line until it differs from what MONITOR found.  A store of the same bytes would not be noticed, so no wait is longer
 * than a millisecond: it may end for reasons of the processor's own (SDM Vol. 2B, MWAIT).
 */
#include "core/vm.h"
#include "x86/cpu/tsc.h"
#include "x86/exec/exec.h"
#include "x86/exec/system.h"
#include "x86/mmu/walk.h"
#include "x86/msr/msr.h"

#define LINE 64u

static bool in_guest(struct x86_vcpu *c) {
  return x86_vm_of(c)->exits_disabled & KVM_X86_DISABLE_EXITS_MWAIT;
}

/* Whether they are #UD without their CPUID bit is a quirk (KVM_CAP_DISABLE_QUIRKS2). */
static bool undefined(struct x86_vcpu *c) {
  bool never = in_guest(c) || !(x86_vm_of(c)->disabled_quirks & KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS);
  return c->cpl || (!never && !x86_has(c, X86_FEATURE_MONITOR));
}

/* Where the line is now; NULL: nowhere, or on a device. */
static const void *line_of(struct x86_vcpu *c, u64 lin) {
  struct x86_xlat x;
  return x86_translate(c, lin, ACC_READ, c->mmu.right, &x) ? NULL : x.host;
}

static int exec_monitor(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 mask = i->adsize == 8 ? ~0ull : i->adsize == 4 ? 0xffffffffull : 0xffffull, ea = c->regs[RAX] & mask, lin;
  u8 byte;
  if (undefined(c)) return x86_ud(c);
  if (!in_guest(c)) return X86_OK;
  if ((u32)c->regs[RCX]) return x86_gp0(c); /* extensions */
  int r = x86_linear(c, i->seg, ea, 1, ACC_READ, &lin);
  if (!r) r = x86_read(c, i->seg, ea, &byte, 1); /* it counts as a load */
  if (r) return r;
  c->monitor.lin = lin & ~(u64)(LINE - 1);
  const void *line = line_of(c, c->monitor.lin);
  c->monitor.armed = line != NULL;
  if (line) x86_copy_guest(c->monitor.line, line, LINE);
  return X86_OK;
}

/* Everything that may end it early comes as a request: interrupts, kicks, changed memory slots. */
static void watch(struct x86_vcpu *c, const void *line) {
  u64 end = x86_host_tsc() + x86_host_tsc_khz();
  while (x86_equal_guest(c->monitor.line, line, LINE) && x86_host_tsc() < end) {
    if (atomic_load_explicit(&c->core.requests, memory_order_relaxed) || READ_ONCE(c->core.run->immediate_exit)) return;
    __builtin_ia32_pause();
  }
}

/* ECX bit 0: an interrupt ends the wait also where it is masked, which it does in any case. */
static int exec_mwait(struct x86_vcpu *c, const struct x86_insn *i) {
  if (undefined(c)) return x86_ud(c);
  if (!in_guest(c)) return X86_OK;
  if ((u32)c->regs[RCX] & ~1u) return x86_gp0(c);
  const void *line = c->monitor.armed ? line_of(c, c->monitor.lin) : NULL;
  c->monitor.armed = false;
  if (line) watch(c, line);
  return X86_OK;
}

x86_exec_fn *x86_select_monitor(const struct x86_decoded *d, struct x86_insn *i) {
  i->seg = x86_implied_segment(d);
  return exec_monitor;
}
/* The block ends behind it: what ended the wait is looked at. */
x86_exec_fn *x86_select_mwait(const struct x86_decoded *d, struct x86_insn *i) {
  i->iflags |= X86_I_END;
  return exec_mwait;
}
