/* IRET, IRETD and IRETQ: to the same and to outer rings, from 64-bit mode, to virtual-8086 mode, to the previous task.
 *
 * Intel SDM Vol. 2 IRET; Vol. 3A 6.14.3, 20.2.3.
 */
#include "x86/cpu/cpu.h"
#include "x86/cpu/desc.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

#define FLAGS_USER (FL_ARITH | FL_TF | FL_DF | FL_NT)

/* Which flags the popped image may change: operand size, CPL, IOPL. */
static u64 flags_mask(const struct x86_vcpu *c, unsigned opsize) {
  u64 mask = FLAGS_USER;
  if (opsize > 2) mask |= FL_RF | FL_AC | FL_ID;
  if (c->cpl <= x86_iopl(c)) mask |= FL_IF;
  if (c->cpl == 0) {
    mask |= FL_IOPL;
    if (opsize > 2) mask |= FL_VIF | FL_VIP;
  }
  return mask;
}

/* SDM Vol. 3A 6.7.1; Vol. 3C 27.2.3: blocking ends before a fault of the IRET is delivered. */
static void unblock_nmi(struct x86_vcpu *c) {
  if (!c->nmi_blocked) return;
  c->nmi_blocked = false;
  if (atomic_load_explicit(&c->nmi_pending, memory_order_relaxed)) x86_request_event(c);
}

/* The instruction returned to runs under the RF that comes back: while stepping, the end of IRET must not drop it. */
static void keep_rf(struct x86_vcpu *c, u64 flags) {
  if ((flags & FL_RF) && (c->mode & X86_MODE_SINGLE)) c->pending_dbg |= DBG_KEEP_RF;
}

/* The common end: RIP, flags and mode. */
static int finish(struct x86_vcpu *c, u64 off, u64 flags) {
  keep_rf(c, flags);
  c->rip = off;
  x86_commit_flags(c, flags);
  return X86_BRANCH;
}

static u64 merged(const struct x86_vcpu *c, u64 popped, u64 mask) { return (c->rflags & ~(mask | FL_RF)) | (popped & mask); }

static int peek3(struct x86_vcpu *c, unsigned opsize, u64 v[3]) {
  int r = x86_stack_peek(c, 0, opsize, 0, &v[0]);
  if (!r) r = x86_stack_peek(c, 1, opsize, 0, &v[1]);
  if (!r) r = x86_stack_peek(c, 2, opsize, 0, &v[2]);
  return r;
}

static void pop_bytes(struct x86_vcpu *c, unsigned n) {
  struct x86_stack st = x86_stack_current(c, 0);
  st.sp = (st.sp & ~st.mask) | ((st.sp + n) & st.mask);
  x86_stack_commit(c, &st);
}

/* ---- real and virtual-8086 mode ---- */

static int real_iret(struct x86_vcpu *c, unsigned opsize, u64 mask) {
  u64 v[3];
  int r = peek3(c, opsize, v);
  if (r) return r;
  if (v[0] > c->seg[SEG_CS].limit) return x86_gp0(c);
  pop_bytes(c, 3 * opsize);
  x86_seg_real(c, SEG_CS, (u16)v[1]);
  return finish(c, v[0], merged(c, v[2], mask));
}

/* 20.3.3.6 with the virtual interrupt flag: IOPL < 3, CR4.VME. */
static int v86_iret_vif(struct x86_vcpu *c) {
  u64 v[3];
  int r = peek3(c, 2, v);
  if (r) return r;
  if ((v[2] & FL_TF) || ((c->rflags & FL_VIP) && (v[2] & FL_IF))) return x86_gp0(c);
  if (v[0] > c->seg[SEG_CS].limit) return x86_gp0(c);
  pop_bytes(c, 6);
  x86_seg_real(c, SEG_CS, (u16)v[1]);
  u64 flags = merged(c, v[2], FLAGS_USER) & ~(u64)FL_VIF;
  return finish(c, v[0], flags | (v[2] & FL_IF ? FL_VIF : 0));
}

static int v86_iret(struct x86_vcpu *c, unsigned opsize) {
  u64 mask = FLAGS_USER | FL_IF;
  if (x86_iopl(c) == 3) return real_iret(c, opsize, opsize > 2 ? mask | FL_RF | FL_AC | FL_ID : mask);
  if (!(c->cr4 & CR4_VME) || opsize != 2) return x86_gp0(c);
  return v86_iret_vif(c);
}

/* ---- protected mode ---- */

/* 7.4: NT set, back to the task in the link field. */
static int task_return(struct x86_vcpu *c, u64 next) {
  u16 link;
  if (x86_long(c)) return x86_gp0(c);
  int r = x86_sys_read(c, c->tr.base, &link, 2);
  if (r) return r;
  if (sel_null(link) || (link & 4)) return x86_fault_code(c, VEC_TS, sel_code(link, 0));
  u64 old = c->rflags & ~(u64)FL_NT;
  r = x86_task_switch(c, link, TASK_IRET, next, old, 0);
  return r ? r : X86_BRANCH;
}

/* 20.2.3: EIP CS EFLAGS ESP SS ES DS FS GS. */
static int to_v86(struct x86_vcpu *c, const u64 v[3]) {
  static const u8 segs[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
  u64 sp, sel[5];
  int r = x86_stack_peek(c, 3, 4, 0, &sp);
  for (unsigned n = 0; !r && n < 5; n++) r = x86_stack_peek(c, 4 + n, 4, 0, &sel[n]);
  if (r) return r;
  if ((u32)v[0] > 0xffff) return x86_gp0(c);
  u64 all = flags_mask(c, 4) | FL_VM;
  c->rflags |= FL_VM; /* for the segment loads: 64 KiB, ring 3 */
  x86_seg_real(c, SEG_CS, (u16)v[1]);
  for (unsigned n = 0; n < 5; n++) x86_seg_real(c, segs[n], (u16)sel[n]);
  c->regs[RSP] = (u32)sp;
  return finish(c, v[0], (c->rflags & ~(all | FL_RF)) | (v[2] & all) | FL_VM);
}

/* The stack comes from the frame: outer ring, or any IRET of 64-bit mode. */
static int with_stack(struct x86_vcpu *c, const struct x86_seg *cs, const u64 v[3], unsigned opsize) {
  unsigned rpl = cs->sel & 3;
  bool target64 = x86_long(c) && cs->l;
  struct x86_stack st = {0};
  u64 sp, sel, mask = flags_mask(c, opsize);
  int r = x86_stack_peek(c, 3, opsize, 0, &sp);
  if (!r) r = x86_stack_peek(c, 4, opsize, 0, &sel);
  if (!r) r = x86_return_ss(c, (u16)sel, rpl, target64, &st.ss);
  if (!r) r = x86_check_target(c, cs, v[0], 0);
  if (r) return r;
  u64 flags = merged(c, v[2], mask);
  bool outer = rpl > c->cpl;
  st.mask = seg_sp_mask(&st.ss, target64);
  st.sp = (c->regs[RSP] & ~st.mask) | (sp & st.mask);
  x86_commit_cs(c, cs, rpl);
  c->seg[SEG_SS] = st.ss;
  x86_stack_commit(c, &st);
  if (outer) x86_null_data_segs(c, rpl);
  return finish(c, v[0], flags);
}

/* 64-bit code to 64-bit code, where nothing is out of the ordinary. */
static bool plain_iretq(struct x86_vcpu *c) {
  u64 v[5];
  struct x86_seg cs, ss;
  if (!x86_iret64(c, v, &cs, &ss)) return false;
  u64 flags = merged(c, v[2], flags_mask(c, 8));
  bool outer = (cs.sel & 3) > c->cpl;
  c->seg[SEG_CS] = cs;
  c->seg[SEG_SS] = ss;
  c->regs[RSP] = v[3];
  if (outer) x86_null_data_segs(c, cs.sel & 3);
  finish(c, v[0], flags);
  return true;
}

static int same_ring(struct x86_vcpu *c, const struct x86_seg *cs, const u64 v[3], unsigned opsize) {
  int r = x86_check_target(c, cs, v[0], 0);
  if (r) return r;
  u64 flags = merged(c, v[2], flags_mask(c, opsize));
  pop_bytes(c, 3 * opsize);
  x86_commit_cs(c, cs, c->cpl);
  return finish(c, v[0], flags);
}

static int iret(struct x86_vcpu *c, unsigned opsize, u64 next) {
  struct x86_desc d;
  u64 v[3];
  if (x86_v86(c)) return v86_iret(c, opsize);
  if (!x86_protected(c)) return real_iret(c, opsize, flags_mask(c, opsize) & ~(u64)(FL_VIF | FL_VIP));
  if (c->rflags & FL_NT) return task_return(c, next);
  if (c->code64 && opsize == 8 && plain_iretq(c)) return X86_BRANCH;
  int r = peek3(c, opsize, v);
  if (r) return r;
  if (opsize == 4 && (v[2] & FL_VM) && c->cpl == 0 && !x86_long(c)) return to_v86(c, v);
  r = x86_return_cs(c, (u16)v[1], &d);
  if (r) return r;
  struct x86_seg cs = x86_desc_seg((u16)v[1], &d);
  if (c->code64 || (cs.sel & 3) > c->cpl) return with_stack(c, &cs, v, opsize);
  return same_ring(c, &cs, v, opsize);
}

int x86_iret(struct x86_vcpu *c, unsigned opsize, u64 next) {
  int r = iret(c, opsize, next);
  if (r != X86_EXIT) unblock_nmi(c);
  return r;
}
