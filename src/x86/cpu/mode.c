/* The mode the processor runs in, derived from control registers, segments and flags; and changes of RFLAGS.
 *
 * Intel SDM Vol. 3A chapter 2.2 (modes), 5.5 (CPL), 3.3.7.1 (canonical addresses).
 */
#include "x86/cpu/desc.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

static u32 code_size(const struct x86_vcpu *c) {
  if (c->code64) return X86_MODE_64;
  return c->seg[SEG_CS].db ? X86_MODE_32 : X86_MODE_16;
}

void x86_mode_changed(struct x86_vcpu *c) {
  bool v86 = x86_v86(c);
  c->code64 = x86_long(c) && c->seg[SEG_CS].l;
  c->cpl = v86 ? 3 : x86_protected(c) ? c->seg[SEG_SS].dpl : 0;
  u32 mode = code_size(c);
  if (v86 || !x86_protected(c)) mode |= X86_MODE_REAL;
  if (c->smm) mode |= X86_MODE_SMM;
  if (x86_debug_active(c)) mode |= X86_MODE_SINGLE;
  c->mode = mode;
  x86_mmu_rights_changed(c);
}

void x86_window_opened(struct x86_vcpu *c) {
  bool waiting = c->lapic ? x86_irq_pending(c) : c->interrupt.injected || c->core.run->request_interrupt_window;
  if (waiting || atomic_load_explicit(&c->nmi_pending, memory_order_relaxed)) x86_request_event(c);
}

void x86_set_rflags(struct x86_vcpu *c, u64 value, u64 mask) {
  u64 old = c->rflags;
  c->rflags = (old & ~mask) | (value & mask) | 2;
  u64 changed = old ^ c->rflags;
  if (changed & (FL_TF | FL_VM))
    x86_mode_changed(c);
  else if (changed & FL_AC)
    x86_mmu_rights_changed(c);
  if (changed & c->rflags & FL_IF) x86_window_opened(c);
}

void x86_commit_flags(struct x86_vcpu *c, u64 flags) {
  bool opened = ~c->rflags & flags & FL_IF;
  c->rflags = flags | 2;
  x86_mode_changed(c);
  if (opened) x86_window_opened(c);
}

bool x86_canonical(const struct x86_vcpu *c, u64 addr) {
  unsigned unused = c->cr4 & CR4_LA57 ? 64 - 57 : 64 - 48;
  return (u64)((s64)(addr << unused) >> unused) == addr;
}
