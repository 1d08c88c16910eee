/* Breakpoints, single step, and KVM_SET_GUEST_DEBUG.
 *
 * Intel SDM Vol. 3B chapter 17.2 (debug registers) and 17.3 (debug exceptions).  While anything here is active the processor runs
 * one instruction per block; pending_dbg collects the DR6 bits of the running instruction's trap, and in its high bits what must
 * be remembered across it.
 */
#include "x86/cpu/cpu.h"
#include "x86/cpu/desc.h"
#include "x86/mmu/access.h"
#include "x86/mmu/io.h"
#include "x86/x86.h"

#define DR6_ONES    0xffff0ff0ull /* bits that read as 1 when nothing happened */
#define DR7_ENABLES 0xffull

enum { BP_EXEC, BP_WRITE, BP_IO, BP_READ_WRITE };

static bool guest_debug_hw(const struct x86_vcpu *c) {
  u64 want = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
  return (c->guest_debug & want) == want;
}

static bool guest_debug_step(const struct x86_vcpu *c) {
  u64 want = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
  return (c->guest_debug & want) == want;
}

/* The debugger outside replaces the guest's breakpoints by its own. */
static const u64 *effective_dr(const struct x86_vcpu *c) {
  return guest_debug_hw(c) ? c->guest_debug_dr : c->dr;
}

u64 x86_debug_dr7(const struct x86_vcpu *c) {
  return effective_dr(c)[7];
}

bool x86_debug_active(const struct x86_vcpu *c) {
  return (c->rflags & FL_TF) || (effective_dr(c)[7] & DR7_ENABLES) || guest_debug_step(c) || (c->pending_dbg & DBG_MOV_SS);
}

static bool bp_enabled(u64 dr7, unsigned n) {
  return (dr7 >> (2 * n)) & 3;
}
static unsigned bp_kind(u64 dr7, unsigned n) {
  return (dr7 >> (16 + 4 * n)) & 3;
}
static unsigned bp_len(u64 dr7, unsigned n) {
  static const u8 len[4] = {1, 2, 8, 4};
  return len[(dr7 >> (18 + 4 * n)) & 3];
}

/* 17.2.5: a breakpoint covers len bytes from its address aligned to len. */
static bool bp_overlaps(const u64 *dr, unsigned n, u64 at, unsigned size) {
  u64 len = bp_len(dr[7], n), first = dr[n] & ~(len - 1);
  return at < first + len && first < at + size;
}

static u64 bp_hits(const u64 *dr, u64 at, unsigned size, unsigned kinds) {
  u64 hits = 0;
  for (unsigned n = 0; n < 4; n++)
    if (bp_enabled(dr[7], n) && (kinds & BIT(bp_kind(dr[7], n))) && bp_overlaps(dr, n, at, size)) hits |= BIT(n);
  return hits;
}

bool x86_code_breakpoint(struct x86_vcpu *c, u64 lin) {
  c->pending_dbg &= ~DBG_ARMED_TF;
  if (c->rflags & FL_TF) c->pending_dbg |= DBG_ARMED_TF;
  if (c->rflags & FL_RF) return false;                              /* 17.3.1.1 */
  if (c->int_shadow && (c->pending_dbg & DBG_MOV_SS)) return false; /* 6.8.3 */
  u64 hits = bp_hits(effective_dr(c), lin, 1, BIT(BP_EXEC));
  if (!hits) return false;
  c->fault = (struct x86_fault){.vector = VEC_DB, .payload = hits};
  return true;
}

void x86_data_breakpoint(struct x86_vcpu *c, u64 lin, unsigned size, bool write) {
  u64 hits = bp_hits(effective_dr(c), lin, size, BIT(BP_READ_WRITE) | (write ? BIT(BP_WRITE) : 0));
  if (!hits) return;
  c->pending_dbg |= hits;
  c->stop |= X86_STOP_DEBUG;
}

void x86_io_breakpoint(struct x86_vcpu *c, u16 port, unsigned size) {
  if (!(c->cr4 & CR4_DE)) return;
  u64 hits = bp_hits(effective_dr(c), port, size, BIT(BP_IO));
  if (!hits) return;
  c->pending_dbg |= hits;
  c->stop |= X86_STOP_DEBUG;
}

void x86_debug_mov_ss(struct x86_vcpu *c) {
  c->int_shadow = X86_SHADOW_MOV_SS;
  if (c->mode & X86_MODE_SINGLE) c->pending_dbg |= DBG_MOV_SS;
}

void x86_debug_new_tf(struct x86_vcpu *c, bool stepping) {
  c->pending_dbg &= ~DBG_ARMED_TF;
  if (!(c->rflags & FL_TF)) return;
  if (stepping) {
    c->pending_dbg |= DBG_ARMED_TF;
    return;
  }
  c->pending_dbg |= DR6_BS;
  x86_request_event(c);
}

int x86_debug_exit(struct x86_vcpu *c, unsigned vector, u64 ip, u64 dr6) {
  struct kvm_run *run = c->core.run;
  run->exit_reason = KVM_EXIT_DEBUG;
  run->debug.arch.exception = vector;
  run->debug.arch.pc = c->code64 ? ip : (u32)(ip + c->seg[SEG_CS].base);
  run->debug.arch.dr6 = dr6 | DR6_ONES;
  run->debug.arch.dr7 = effective_dr(c)[7];
  return X86_EXIT;
}

/* RF guards one instruction (17.3.1.1). */
static void drop_rf(struct x86_vcpu *c, u64 dbg) {
  if (!(c->rflags & FL_RF) || (dbg & DBG_KEEP_RF)) return;
  c->rflags &= ~(u64)FL_RF;
}

int x86_after_single_step(struct x86_vcpu *c) {
  u64 dbg = c->pending_dbg;
  bool in_shadow = (dbg & DBG_MOV_SS) && c->int_shadow == X86_SHADOW_MOV_SS;
  c->pending_dbg = dbg & (DR6_TRAPS | (in_shadow ? DBG_MOV_SS : 0));
  drop_rf(c, dbg);
  x86_mode_changed(c);
  if (in_shadow)
    return X86_OK; /* 6.8.3: data breakpoints wait for the next instruction, the single step is lost; the debugger's too */
  if (guest_debug_step(c)) {
    c->pending_dbg &= ~(u64)DR6_TRAPS;
    return x86_debug_exit(c, VEC_DB, c->rip, DR6_BS | (dbg & DR6_TRAPS));
  }
  if (dbg & DBG_ARMED_TF) c->pending_dbg |= DR6_BS;
  if (!c->pending_dbg) return X86_OK;
  c->fault = (struct x86_fault){.vector = VEC_DB, .trap = true, .payload = c->pending_dbg};
  c->pending_dbg = 0;
  return X86_FAULT;
}

/* 17.3.1.4: a repeated string instruction traps after every iteration; RF lasts until its end. */
int x86_after_iteration(struct x86_vcpu *c) {
  c->pending_dbg |= DBG_KEEP_RF;
  return x86_after_single_step(c);
}
